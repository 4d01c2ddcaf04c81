//! Child processes that never outlive the test that started them.

use std::{
    net::TcpListener,
    process::{Child, Command},
};

/// A command whose process is killed when this one dies, however it dies.
///
/// `setpriv` (util-linux) sets the parent-death signal, so that the harness needs no unsafe code for it.
#[must_use]
pub fn bound_to_this_process(program: &str, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--", program]);
    command
}

/// A loopback port that was free a moment ago.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free loopback port").port()
}

/// Kills a process and waits for its end.
pub fn kill(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal by name.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "cannot signal process {}", child.id());
}
