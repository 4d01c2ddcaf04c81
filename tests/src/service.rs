//! The project's own programs, as their users start them.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::children::{bound_to_this_process, kill, signal, spawn};

/// A running `api`, gone with the value.
#[derive(Debug)]
pub struct Service {
    child: Child,
    pub url: String,
    client: reqwest::Client,
    log: Arc<Mutex<String>>,
}

/// An answer, read.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The body, after the status was found to be `status`.
    ///
    /// # Panics
    ///
    /// When it is another one.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// The body's text field.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }
}

/// Where cargo put the programs: in the folder of this one, or, for a test, which stands in `deps`, in the one above.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a program knows itself");
    let folder = this.parent().expect("a program stands in a folder");
    let target = if folder.ends_with("deps") { folder.parent().expect("target/PROFILE") } else { folder };
    let program = target.join(name);
    assert!(program.exists(), "{} is missing: run ./test.sh, which builds the programs first", program.display());
    program
}

impl Service {
    /// Starts the service and waits until it listens.
    ///
    /// # Panics
    ///
    /// When it ends instead.
    #[must_use]
    pub fn start(database_url: &str, arguments: &[&str]) -> Self {
        Self::try_start(database_url, arguments).unwrap_or_else(|log| panic!("the service did not start: {log}"))
    }

    /// Starts the service and waits until it listens; `Err` is what it said when it ended instead.
    ///
    /// # Panics
    ///
    /// When it cannot be started at all.
    pub fn try_start(database_url: &str, arguments: &[&str]) -> Result<Self, String> {
        let mut command = bound_to_this_process(program("api").to_str().expect("a plain path"), "KILL");
        command
            .args(["--database-url", database_url])
            .args((!arguments.contains(&"--listen")).then_some(["--listen", "127.0.0.1:0"]).into_iter().flatten())
            .args(arguments)
            .env_remove("NATS_URL")
            .env("RUST_BACKTRACE", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command);
        let log = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let keep = log.clone();
        let logging = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = keep.lock().expect("no holder panics");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("listening on ") {
                    // The test may have given up.
                    let _ = tell.send(url.to_owned());
                }
            }
        });
        let Ok(url) = told.recv_timeout(Duration::from_secs(60)) else {
            kill(&mut child);
            // What it said last is still on its way.
            let _ = logging.join();
            return Err(log.lock().expect("no holder panics").clone());
        };
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
        Ok(Self { child, url, client, log })
    }

    /// What the service logged so far.
    ///
    /// # Panics
    ///
    /// Never: no holder of the lock panics.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Kills it as a crash would.
    pub fn kill9(&mut self) {
        kill(&mut self.child);
    }

    /// Tells it to stop and waits until it did.
    ///
    /// # Panics
    ///
    /// When it does not end well.
    pub fn terminate(&mut self) {
        signal(&self.child, "TERM");
        assert!(self.child.wait().expect("our child").success(), "{}", self.log());
    }

    /// The service's resident memory, in KiB.
    ///
    /// # Panics
    ///
    /// When the process is gone.
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Sends a request; an error when no answer came.
    pub async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, headers, body })
    }

    /// Sends a request with an `Authorization` header, or without one.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn send_as(
        &self,
        authorization: Option<&str>,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        if headers.get("content-type").is_some_and(|kind| kind == "text/event-stream") {
            // It never ends.
            return Answer { status, headers, body: Value::Null };
        }
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, headers, body }
    }

    /// Posts JSON.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some(body.to_string())).await.expect("an answer")
    }

    /// Posts a body as it is.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn post_text(&self, path: &str, body: impl Into<String>) -> Answer {
        self.send(Method::POST, path, Some(body.into())).await.expect("an answer")
    }

    /// Gets a path.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await.expect("an answer")
    }

    /// Credits an account, and gives the transaction.
    ///
    /// # Panics
    ///
    /// When that is refused.
    pub async fn credit(&self, user: &str, amount: u64, id: &str) -> Value {
        let command = json!({ "user_id": user, "credit_type": "points", "amount": amount,
            "business_code": "test.credit", "business_id": id });
        self.post("/v1/credits", &command).await.expect(201)
    }

    /// An account's (balance, frozen, available) by the newest event.
    ///
    /// # Panics
    ///
    /// When there is no such account.
    pub async fn holdings(&self, user: &str) -> (u64, u64, u64) {
        let account = self.get(&format!("/v1/accounts/{user}/points?consistency=strong")).await.expect(200);
        let units = |field: &str| account[field].as_u64().expect("a number");
        (units("balance"), units("frozen"), units("available"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        kill(&mut self.child);
        if !thread::panicking() {
            let log = self.log();
            assert!(!log.contains("panicked"), "the service panicked: {log}");
        }
    }
}

/// Runs the replay-tool with `--json`, and gives its exit code and what it printed.
///
/// # Panics
///
/// When it cannot be started.
#[must_use]
pub fn replay_tool(database_url: &str, arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(program("replay-tool"));
    command.args(["--database-url", database_url, "--json"]).args(arguments);
    let mut child = spawn_piped(command);
    let mut printed = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut printed).expect("it prints UTF-8");
    let code = child.wait().expect("our child").code().unwrap_or(-1);
    (code, serde_json::from_str(&printed).unwrap_or(Value::Null))
}

fn spawn_piped(mut command: Command) -> Child {
    command.stdout(Stdio::piped());
    spawn(command)
}

/// Verification must find nothing; gives what it printed.
///
/// # Panics
///
/// When it finds something.
pub fn verify_consistent(database_url: &str) -> Value {
    let (code, verified) = replay_tool(database_url, &["verify"]);
    assert_eq!(code, 0, "{verified:#}");
    assert_eq!(verified["consistent"], true);
    verified
}
