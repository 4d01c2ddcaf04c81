//! The replay-tool, run as a person does.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{children, store::NewDatabase};

/// What a run of the replay-tool came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
    /// The most that it held in memory.
    pub memory_kib: u64,
    pub took: Duration,
}

fn program() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows itself");
    this.parent().and_then(Path::parent).expect("target/PROFILE/deps").join("replay-tool")
}

/// The command that runs the replay-tool on a database.
///
/// # Panics
///
/// Never: a test knows where it is.
#[must_use]
pub fn command(database: &NewDatabase, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["--database-url", &database.url]).args(arguments);
    command
}

/// Runs the replay-tool as a person does, without `--json`, and watches its memory.
///
/// # Panics
///
/// When it cannot be started.
#[must_use]
pub fn run(database: &NewDatabase, arguments: &[&str]) -> Ran {
    let mut command = command(database, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = children::spawn(command);
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let read = thread::spawn(move || {
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).expect("UTF-8");
        stderr.read_to_string(&mut err).expect("UTF-8");
        (out, err)
    });
    let mut memory_kib = 0;
    let status = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
        memory_kib = memory_kib.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        // The peak is the kernel's own; looking for it often only costs.
        thread::park_timeout(Duration::from_millis(5));
    };
    let (out, err) = read.join().expect("no panic");
    Ran { code: status.code().unwrap_or(-1), out, err, memory_kib, took: began.elapsed() }
}

/// A file in a folder that is gone with the value.
///
/// # Panics
///
/// When there is no room for it.
#[must_use]
pub fn file(name: &str, text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("a plain path").to_owned();
    (folder, path)
}

/// A JSON text, empty for anything else.
#[must_use]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
