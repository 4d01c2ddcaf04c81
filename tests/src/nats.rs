//! Private nats-server processes with JetStream.

use std::{
    net::TcpStream,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::children::{bound_to_this_process, free_port, kill, spawn};

/// A nats-server of one's own, on a free loopback port, gone with the value.
#[derive(Debug)]
pub struct Nats {
    store: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Nats {
    /// Starts a server with an empty store.
    ///
    /// # Panics
    ///
    /// When nats-server is not installed or does not start.
    #[must_use]
    pub fn start() -> Self {
        let mut nats =
            Self { store: tempfile::tempdir().expect("a temporary folder"), port: free_port(), server: None };
        nats.run();
        nats
    }

    /// Starts the server over the store that is there, and waits until it takes connections.
    ///
    /// # Panics
    ///
    /// When it does not within half a minute.
    pub fn run(&mut self) {
        let mut command = bound_to_this_process("nats-server", "KILL");
        command
            .args(["-js", "-a", "127.0.0.1", "-p", &self.port.to_string(), "-sd"])
            .arg(self.store.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.server = Some(spawn(command));
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "nats-server did not start");
            std::thread::yield_now();
        }
    }

    /// Kills the server as a crash would.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            kill(&mut server);
        }
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill9();
    }
}
