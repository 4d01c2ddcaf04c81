//! A ledger replayed: verified, rebuilt, exported and imported, beside one process that copies its table out and in.

use std::{
    cell::RefCell,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use tests::{Postgres, children, service::program};
use tokio::time::sleep;

use super::{Bench, batches::connections};
use crate::{
    client,
    figures::{Figures, float},
    load::{Fill, Filling},
    process,
    series::{Replayed, Series},
    subject::{Subject, drop_database},
};

/// How often a process that is measured is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// One account for so many events.
const EVENTS_PER_ACCOUNT: u64 = 10;

pub(super) async fn replay(bench: &Bench<'_>) {
    let mut sizes = bench.plan.replay_events.clone();
    sizes.sort_unstable();
    let subject = Subject::start(bench.cluster, &bench.plan.folder);
    for events in sizes {
        grow(&subject, events).await;
        for run in 1..=bench.plan.runs {
            measure(&Bench { run, ..*bench }, &subject, events).await;
        }
    }
}

/// Fills the ledger up to so many events.
async fn grow(subject: &Subject<'_>, events: u64) {
    let accounts = u32::try_from(events / EVENTS_PER_ACCOUNT).expect("few accounts").max(1_000);
    subject.open_accounts(0, accounts).await;
    let stored = subject.events().await;
    let fill = Rc::new(RefCell::new(Fill {
        events_at_end: events,
        accounts_at_end: accounts,
        events: stored,
        accounts,
        marks: Vec::new(),
    }));
    let mut sources = Filling::sources(&format!("replay{events}"), &fill, connections(10_000));
    client::while_wanted(&subject.service.url, &mut sources, |source| source.is_below(events)).await;
    subject.settle().await;
    subject.checkpoint();
}

async fn measure(bench: &Bench<'_>, subject: &Subject<'_>, events: u64) {
    let url = &subject.database_url;
    let stored = subject.events().await;
    let record = |replayed, (took, memory_mib): (Duration, f64)| {
        let rate = float(stored) / took.as_secs_f64();
        let figures = Figures { rate, memory_mib: Some(memory_mib), ..Figures::default() };
        bench.record_at(Series::Replayed(events, replayed), Some(stored), figures);
    };
    let folder = tempfile::Builder::new().prefix("ledger-bench").tempdir_in(&bench.plan.folder);
    let folder = folder.expect("a temporary folder");
    if bench.cluster.is_some() {
        // What has been written a moment ago is marked as committed by whoever reads it first: not by what is measured.
        watch(psql(url, "vacuum analyze events", Stdio::null(), Stdio::null())).await;
        let copy = "copy events to stdout (format binary)";
        record(Replayed::CopyOut, watch(psql(url, copy, Stdio::null(), Stdio::null())).await);
    }
    for (replayed, arguments) in [
        (Replayed::Verify, &["verify"][..]),
        (Replayed::Fold, &["verify", "--digest-only"]),
        (Replayed::Rebuild, &["rebuild"]),
        (Replayed::RebuildBalances, &["rebuild", "--read-model", "balances"]),
    ] {
        record(replayed, watch(tool(url, arguments)).await);
    }
    let archive = folder.path().join("archive");
    let archive = archive.to_str().expect("a plain path");
    record(Replayed::Export, watch(tool(url, &["export", "--out", archive])).await);
    let (copy, _dropped) = match bench.cluster {
        Some(cluster) => {
            let copy = Scratch { cluster, url: cluster.database() };
            (copy.url.clone(), Some(copy))
        }
        None => (format!("sqlite://{}", folder.path().join("copy.db").display()), None),
    };
    record(Replayed::Import, watch(tool(&copy, &["import", "--from", archive])).await);
    if bench.cluster.is_some() {
        record(Replayed::CopyIn, copy_in(url, &folder.path().join("rows")).await);
    }
}

/// Copies the table's rows, which were written to a file before, into one with the same indexes.
async fn copy_in(url: &str, file: &Path) -> (Duration, f64) {
    let to = File::create(file).expect("room for the rows");
    watch(psql(url, "copy events to stdout (format binary)", Stdio::null(), to.into())).await;
    let create = "drop table if exists copied; create table copied (like events including all)";
    watch(psql(url, create, Stdio::null(), Stdio::null())).await;
    let from = File::open(file).expect("it was written a moment ago");
    let took = watch(psql(url, "copy copied from stdin (format binary)", from.into(), Stdio::null())).await;
    watch(psql(url, "drop table copied", Stdio::null(), Stdio::null())).await;
    took
}

fn psql(url: &str, sql: &str, from: Stdio, to: Stdio) -> Child {
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]).stdin(from).stdout(to);
    children::spawn(command)
}

fn tool(url: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(program("replay-tool"));
    command.args(["--database-url", url, "--json"]).args(arguments).stdout(Stdio::null());
    children::spawn(command)
}

/// Waits for a process's good end: how long it took, and the most memory that it had, in MiB.
async fn watch(mut child: Child) -> (Duration, f64) {
    let began = Instant::now();
    let mut memory_mib: f64 = 0.0;
    loop {
        memory_mib = memory_mib.max(process::memory_peak_mib(child.id()));
        if let Some(status) = child.try_wait().expect("our child") {
            assert!(status.success(), "what was to be measured failed: {status}; see above");
            return (began.elapsed(), memory_mib);
        }
        sleep(LOOK).await;
    }
}

/// A database of its own, gone with the value.
struct Scratch<'p> {
    cluster: &'p Postgres,
    url: String,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        drop_database(self.cluster, &self.url);
    }
}
