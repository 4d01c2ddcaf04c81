//! What processes use: CPU time, memory, bytes to the disk, as Linux's `/proc` tells (proc(5)).

use std::fs;

/// CPU seconds and bytes written of some processes, since they began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Use {
    pub(crate) cpu_seconds: f64,
    pub(crate) written_bytes: u64,
}

/// The kernel counts CPU time in hundredths of a second for user space, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What one process, and its children that have ended, used.
pub(crate) fn of(pid: u32) -> Use {
    let Some(fields) = stat(pid) else { return Use::default() };
    // utime, stime, cutime, cstime: fields 14 to 17.
    let ticks: f64 = fields[11..15].iter().filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let written = fs::read_to_string(format!("/proc/{pid}/io"))
        .ok()
        .and_then(|io| io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()));
    Use { cpu_seconds: ticks / TICKS_PER_SECOND, written_bytes: written.unwrap_or(0) }
}

/// What a process and all that it started used.
pub(crate) fn of_family(pid: u32) -> Use {
    family(pid).into_iter().map(of).fold(Use::default(), |sum, one| Use {
        cpu_seconds: sum.cpu_seconds + one.cpu_seconds,
        written_bytes: sum.written_bytes + one.written_bytes,
    })
}

/// The largest resident memory that the process ever had, in MiB.
pub(crate) fn memory_peak_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The fields of `/proc/PID/stat` from the third on: the second, the name, may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

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
