//! Where it was measured.

use std::{fmt, fs, process::Command};

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    pub(crate) memory_gib: f64,
    kernel: String,
    commit: String,
    at: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'))?.1.trim().to_owned();
            Some(value)
        };
        let kib = field("/proc/meminfo", "MemTotal").and_then(|value| value.trim_end_matches(" kB").parse().ok());
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_gib: kib.unwrap_or(0.0) / 1024.0 / 1024.0,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: commit(),
            at: chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string(),
        }
    }
}

/// The commit, and whether files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    if changed { format!("{commit}, with changes") } else { commit }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, cpu, memory_gib, kernel, commit, at } = self;
        write!(f, "{cores} cores ({cpu}), {memory_gib:.0} GiB of memory, Linux {kernel}. Commit {commit}, {at}.")
    }
}
