//! What HTTP and JSON cost without a ledger behind them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use axum::{Json, Router, routing::post, serve::ListenerExt};
use serde::{Deserialize, Serialize};
use tests::children::{bound_to_this_process, kill, spawn};
use tokio::net::TcpListener;

/// A command as the service takes it: some 200 bytes of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Command {
    user_id: String,
    credit_type: String,
    amount: u64,
    business_code: String,
    business_id: String,
    description: Option<String>,
}

/// Serves `POST /echo` on a free loopback port, which it prints, until the process is killed.
///
/// # Panics
///
/// When there is no free port.
pub(crate) async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free loopback port");
    println!("listening on http://{}", listener.local_addr().expect("it is bound"));
    let listener = listener.tap_io(|connection| {
        // Without it the kernel may hold back answers; a connection that is gone already needs none.
        let _ = connection.set_nodelay(true);
    });
    axum::serve(listener, Router::new().route("/echo", post(echo))).await.expect("it serves for ever");
}

async fn echo(Json(command): Json<Command>) -> Json<Command> {
    Json(command)
}

/// The server in a process of its own, gone with the value.
#[derive(Debug)]
pub(crate) struct Echo {
    child: Child,
    pub(crate) url: String,
}

impl Echo {
    /// Starts this program as the server and waits until it listens.
    ///
    /// # Panics
    ///
    /// When it ends instead.
    pub(crate) fn start() -> Self {
        let program = std::env::current_exe().expect("a program knows itself");
        let mut command = bound_to_this_process(program.to_str().expect("a plain path"), "KILL");
        command.arg("echo-server").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn(command);
        let mut line = String::new();
        // The pipe may close after this: the server prints nothing more.
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints UTF-8");
        let url = line.trim_end().strip_prefix("listening on ").map(str::to_owned);
        Self { url: url.unwrap_or_else(|| panic!("the echo server did not start: {line:?}")), child }
    }

    /// To watch what it uses.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}
