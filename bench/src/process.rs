//! What processes use: CPU time and memory, as Linux's `/proc` tells (proc(5)).

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::figures::Cpu;

/// The kernel counts CPU time in hundredths of a second for user space, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes that a load keeps busy, besides this one, which makes the load.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy {
    pub(crate) service: Option<u32>,
    /// The first process of the database's server.
    pub(crate) database: Option<u32>,
}

impl Busy {
    /// Runs a load, and gives what came of it and the cores that it kept busy after the warm-up.
    pub(crate) async fn watch<T>(&self, warm_up: Duration, load: impl Future<Output = T>) -> (T, Cpu) {
        // First, and without a pause where there is no warm-up: a load may keep this thread to itself.
        let warm = async {
            if !warm_up.is_zero() {
                sleep(warm_up).await;
            }
            (self.cpu_seconds(), Instant::now())
        };
        let ((before, from), outcome) = futures::join!(warm, load);
        let after = self.cpu_seconds();
        let seconds = from.elapsed().as_secs_f64();
        let cores = |part: fn(&Cpu) -> f64| (part(&after) - part(&before)) / seconds;
        let cpu = Cpu {
            service: cores(|cpu| cpu.service),
            database: cores(|cpu| cpu.database),
            client: cores(|cpu| cpu.client),
        };
        (outcome, cpu)
    }

    fn cpu_seconds(&self) -> Cpu {
        Cpu {
            service: self.service.map(cpu_seconds).unwrap_or_default(),
            database: self.database.map(|pid| family(pid).into_iter().map(cpu_seconds).sum()).unwrap_or_default(),
            client: cpu_seconds(std::process::id()),
        }
    }
}

/// The largest resident memory that the process ever had, in MiB.
pub(crate) fn memory_peak_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The CPU time of a process and of its children that have ended.
fn cpu_seconds(pid: u32) -> f64 {
    let Some(fields) = stat(pid) else { return 0.0 };
    // utime, stime, cutime, cstime: fields 14 to 17.
    let ticks: f64 = fields[11..15].iter().filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

/// The fields of `/proc/PID/stat` from the third on: the second, the name, may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// A process and all that it started.
fn family(pid: u32) -> Vec<u32> {
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let parent = stat(pid)?.get(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let children = processes.iter().filter(|(_, parent)| *parent == family[next]).map(|(pid, _)| *pid);
        family.extend(children.collect::<Vec<_>>());
        next += 1;
    }
    family
}
