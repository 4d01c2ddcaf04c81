//! Child processes that never outlive the test that started them.

use std::{
    io,
    net::TcpListener,
    process::{Child, Command},
    sync::{Mutex, OnceLock, mpsc},
    thread,
};

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// A command whose process is killed when this one dies, however it dies.
///
/// `setpriv` (util-linux) sets the parent-death signal, so that the harness needs no unsafe code for it.
#[must_use]
pub fn bound_to_this_process(program: &str, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--", program]);
    command
}

/// Starts the command's process from a thread that lives as long as this process: a parent-death signal is sent when the
/// thread that started the child ends, and tests' threads end with their tests.
///
/// # Panics
///
/// When the program cannot be started.
#[must_use]
pub fn spawn(command: Command) -> Child {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                // Whoever ordered waits for the reply.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let program = command.get_program().to_owned();
    let (reply, child) = mpsc::channel();
    starter.lock().expect("the starter does not panic").send((command, reply)).expect("the starter lives");
    child
        .recv()
        .expect("the starter answers")
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()))
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
