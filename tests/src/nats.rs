//! Private nats-server processes with JetStream.

mod proxy;

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

pub use proxy::{Fate, Proxy};

use crate::children::{bound_to_this_process, kill, spawn};

/// A nats-server of one's own, on a free loopback port, gone with the value.
#[derive(Debug)]
pub struct Nats {
    store: TempDir,
    /// None until the server chose it; a server that is started again takes the same one.
    port: Option<u16>,
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
        let mut nats = Self { store: tempfile::tempdir().expect("a temporary folder"), port: None, server: None };
        nats.run();
        nats
    }

    /// Starts the server over the store that is there, and waits until it takes connections.
    ///
    /// # Panics
    ///
    /// When it does not within half a minute.
    pub fn run(&mut self) {
        let port = self.port.map_or("-1".to_owned(), |port| port.to_string());
        let ports = self.store.path().join("ports");
        // What a server that was killed told.
        let _ = fs::remove_dir_all(&ports);
        fs::create_dir(&ports).expect("own folder");
        let mut command = bound_to_this_process("nats-server", "KILL");
        command.args(["-js", "-a", "127.0.0.1", "-p", &port, "-sd"]).arg(self.store.path());
        command.arg("--ports_file_dir").arg(&ports).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(spawn(command));
        // It tells which port it listens on, so no other process can have taken it in between.
        let deadline = Instant::now() + Duration::from_secs(30);
        self.port = loop {
            if let Some(port) = told_in(&ports) {
                break Some(port);
            }
            assert!(Instant::now() < deadline, "nats-server did not start");
            std::thread::sleep(Duration::from_millis(5));
        };
    }

    /// Kills the server as a crash would.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            kill(&mut server);
        }
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.expect("it was started"))
    }
}

/// The port in the one file of a folder, which is like `{"nats":["nats://127.0.0.1:4222"]}`; none before it is whole.
fn told_in(folder: &Path) -> Option<u16> {
    let file = fs::read_dir(folder).ok()?.next()?.ok()?;
    let ports: Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}
