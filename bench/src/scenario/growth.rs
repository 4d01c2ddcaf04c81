//! One ledger that grows: whether it keeps its speed, how soon it is back after a crash, and what it takes up.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Bench, CONNECTIONS,
    batches::{PEER_CHUNK, PEER_ROWS, connections, load},
};
use crate::{
    client,
    figures::float,
    load::{Accounts, Batches, Fill, Filling, Singles},
    peers::copy,
    results::{Fact, FillPoint},
    series::{Grown, Series},
    subject::Subject,
};

/// Batches make many events: a measurement is not to be growth itself.
const BATCHES_MAX: Duration = Duration::from_secs(5);
/// How long a load runs at each stage before anything is measured: filling ends with a checkpoint, and what is looked for
/// is the rate of a service that has run for a while since.
const WARM_UP: Duration = Duration::from_secs(20);
/// Accounts that are visited by a service that has just started.
const COLD_ACCOUNTS: u32 = 1_000_000;

pub(super) async fn growth(bench: &Bench<'_>) {
    let stages = bench.plan.stages();
    let Some(last) = stages.last() else { return };
    let mut subject = Subject::start(bench.cluster, &bench.plan.folder);
    let accounts = (bench.plan.accounts_grown / 20).max(1);
    subject.open_accounts(0, accounts).await;
    subject.checkpoints = false;
    let fill = Rc::new(RefCell::new(Fill {
        events_at_end: *last,
        accounts_at_end: bench.plan.accounts_grown,
        events: subject.events().await,
        accounts,
        marks: Vec::new(),
    }));
    for (index, stage) in stages.iter().enumerate() {
        let is_passed = subject.events().await >= *stage;
        if is_passed && index > 0 && stage != last {
            // A small ledger is past it already by what was measured before.
            continue;
        }
        grow(bench, &subject, &fill, *stage).await;
        let ten_thousand = (stage == last).then_some(10_000);
        let sizes: Vec<u32> = [1_000].into_iter().chain(ten_thousand).collect();
        at_stage(bench, &subject, &fill, *stage, &sizes).await;
    }
    let accounts = fill.borrow().accounts;
    restarts(bench, &mut subject, *last, accounts).await;
    replays(bench, &subject, accounts).await;
    if bench.cluster.is_some() {
        peer(bench, &subject, *last).await;
    }
}

/// Fills a ledger up to so many events, and opens its accounts in proportion.
pub(crate) async fn fill(subject: &Subject<'_>, events: u64, accounts: u32) {
    let fill = Rc::new(RefCell::new(Fill {
        events_at_end: events,
        accounts_at_end: accounts,
        events: 0,
        accounts: 0,
        marks: Vec::new(),
    }));
    let opened = (accounts / 20).max(1);
    subject.open_accounts(0, opened).await;
    fill.borrow_mut().accounts = opened;
    fill.borrow_mut().events = subject.events().await;
    let mut sources = Filling::sources("fill", &fill, connections(10_000));
    client::while_wanted(&subject.service.url, &mut sources, |source| source.is_below(events)).await;
    let opened = fill.borrow().accounts;
    subject.open_accounts(opened, accounts).await;
}

/// Fills the ledger up to `stage` events, without a pause, and opens the accounts that are due by then.
async fn grow(bench: &Bench<'_>, subject: &Subject<'_>, fill: &Rc<RefCell<Fill>>, stage: u64) {
    let before = subject.events().await;
    fill.borrow_mut().events = before;
    fill.borrow_mut().marks = vec![(Instant::now(), before)];
    if before < stage {
        fill_up(bench, subject, fill, stage).await;
        // A ledger grows over months: what is measured next is not to wait for what filling left to be written.
        subject.settle().await;
        subject.checkpoint();
    }
    // Filling opens whole batches of accounts: the rest.
    let (from, due) = (fill.borrow().accounts, fill.borrow().accounts_due());
    if from < due {
        subject.open_accounts(from, due).await;
        fill.borrow_mut().accounts = due;
    }
}

async fn fill_up(bench: &Bench<'_>, subject: &Subject<'_>, fill: &Rc<RefCell<Fill>>, stage: u64) {
    let mut sources = Filling::sources(&format!("fill{stage}"), fill, connections(10_000));
    let filling = client::while_wanted(&subject.service.url, &mut sources, |source| source.is_below(stage));
    let ((), watched) = subject.watch(Duration::ZERO, filling).await;
    let marks = std::mem::take(&mut fill.borrow_mut().marks);
    let points = rates(&marks, bench.plan.events / 40);
    if let (Some(first), Some(newest)) = (marks.first(), marks.last()) {
        let rate = float(newest.1 - first.1) / (newest.0 - first.0).as_secs_f64();
        bench.record_at(Series::Filling(stage), Some(first.1), watched.figures_of(rate));
    }
    let points = points.into_iter().map(|(events, rate)| FillPoint { database: bench.kind, events, rate });
    bench.results.borrow_mut().filling.extend(points);
}

/// The rate between marks that are at least `step` events apart, each at the middle of its events.
fn rates(marks: &[(Instant, u64)], step: u64) -> Vec<(f64, f64)> {
    let Some(mut from) = marks.first() else { return Vec::new() };
    let mut rates = Vec::new();
    for mark in marks {
        let (events, took) = (mark.1 - from.1, mark.0 - from.0);
        if events >= step.max(1) && !took.is_zero() {
            rates.push((f64::midpoint(float(from.1), float(mark.1)), float(events) / took.as_secs_f64()));
            from = mark;
        }
    }
    rates
}

/// Measures single commands and batches, some accounts far more often visited than others.
async fn at_stage(bench: &Bench<'_>, subject: &Subject<'_>, fill: &Rc<RefCell<Fill>>, stage: u64, sizes: &[u32]) {
    let accounts = Accounts::Zipf(fill.borrow().accounts);
    let (warm_up, length) = (bench.plan.warm_up(), bench.plan.length());
    let mut sources = Singles::sources(&format!("w{stage}"), accounts, CONNECTIONS);
    client::closed_loop(&subject.service.url, &mut sources, Duration::ZERO, WARM_UP).await;
    for run in 1..=bench.plan.runs {
        let bench = Bench { run, ..*bench };
        let stored = subject.events().await;
        let mut sources = Singles::sources(&format!("s{stage}r{run}"), accounts, CONNECTIONS);
        let figures = subject.closed(&mut sources, warm_up, length).await;
        bench.record_at(Series::Grown(stage, Grown::Singles), Some(stored), figures);
        for size in sizes {
            let stored = subject.events().await;
            let mut sources = Batches::sources(&format!("b{size}s{stage}r{run}"), accounts, *size, connections(*size));
            let figures = subject.closed(&mut sources, warm_up, length.min(BATCHES_MAX)).await;
            bench.record_at(Series::Grown(stage, Grown::Batches(*size)), Some(stored), figures);
        }
    }
}

/// Kills the service under the last of a load, measures how soon it answers, and how fast it is before it knows any
/// account.
async fn restarts(bench: &Bench<'_>, subject: &mut Subject<'_>, stage: u64, accounts: u32) {
    for run in 1..=bench.plan.runs {
        let bench = Bench { run, ..*bench };
        let mut sources = Batches::sources(&format!("kill{run}"), Accounts::Zipf(accounts), 1_000, connections(1_000));
        client::closed_loop(&subject.service.url, &mut sources, Duration::ZERO, Duration::from_secs(2)).await;
        bench.found(Fact::SecondsUntilServingAfterKill, subject.crash_and_start().await.as_secs_f64());
        subject.settle().await;
        let stored = subject.events().await;
        let cold = Accounts::Uniform(accounts.min(COLD_ACCOUNTS));
        let mut sources = Singles::sources(&format!("cold{run}"), cold, CONNECTIONS);
        // A warm-up would be what is to be measured.
        let figures = subject.closed(&mut sources, Duration::ZERO, bench.plan.length()).await;
        bench.record_at(Series::Cold(stage), Some(stored), figures);
    }
}

/// What the ledger takes up, and how fast it is replayed.
async fn replays(bench: &Bench<'_>, subject: &Subject<'_>, accounts: u32) {
    subject.settle().await;
    subject.checkpoint();
    let events = float(subject.events().await);
    bench.found(Fact::EventsStored, events);
    bench.found(Fact::AccountsStored, f64::from(accounts));
    bench.found(Fact::DiskBytesPerEvent, float(subject.disk_bytes()) / events);
    let verify = subject.replay("verify").as_secs_f64();
    bench.found(Fact::VerifySeconds, verify);
    bench.found(Fact::VerifyEventsPerSecond, events / verify);
    let rebuild = subject.replay("rebuild").as_secs_f64();
    bench.found(Fact::RebuildSeconds, rebuild);
    bench.found(Fact::RebuildEventsPerSecond, events / rebuild);
}

/// Loads rows into a naive table that holds as many. Each run loads others.
async fn peer(bench: &Bench<'_>, subject: &Subject<'_>, rows: u64) {
    copy::prepare_naive(&subject.database_url, Some(rows)).await;
    let wanted = (PEER_ROWS * u64::from(bench.plan.runs)).min(rows);
    let chunks = copy::rows(&subject.database_url, usize::try_from(wanted).expect("few rows"), PEER_CHUNK).await;
    let share = chunks.len().div_ceil(usize::try_from(bench.plan.runs).expect("few runs")).max(1);
    for (run, chunks) in (1..).zip(chunks.chunks(share)) {
        let figures = load(bench, subject, chunks).await;
        Bench { run, ..*bench }.record_at(Series::GrownPeer(rows), Some(rows), figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_between_marks_that_are_apart() {
        let began = Instant::now();
        let at = |millis, events| (began + Duration::from_millis(millis), events);
        let marks = [at(0, 100), at(10, 150), at(500, 1_100), at(600, 1_200), at(1_500, 3_100)];
        assert_eq!(rates(&marks, 1_000), [(600.0, 2_000.0), (2_100.0, 2_000.0)]);
        assert_eq!(rates(&[], 1_000), []);
    }
}
