//! Who did what, from where: one row for each request that asked for a change, and for what the ledger does by itself.
//!
//! Rows are written behind the answers, in bulk, by a task of its own. To record one costs a few clones; when too many wait
//! they are dropped and counted. The event itself has its actor and request in any case.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use ledger_core::{Account, Event, Timestamp};
use ledger_store::{Database, error::chain};
use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

pub(crate) mod about;
pub(crate) mod search;
pub(crate) mod table;

/// Entries that may wait; those of administrators and of the ledger itself have some room more.
const WAITING_MAX: usize = 50_000;
const WAITING_MAX_ADMIN: usize = 60_000;
/// Rows of one round. On PostgreSQL that is a transaction, of some milliseconds. On SQLite it is cut into short turns; there
/// each of the 64 partitions is a place of its own in the tree, and the more rows a round has for it the fewer pages a row takes.
const ROWS_ON_POSTGRES: usize = 1_000;
const ROWS_ON_SQLITE: usize = 8_000;
/// How long rows are gathered, and on SQLite how long when there are more than a turn's.
const GATHER: Duration = Duration::from_millis(200);
const GATHER_MANY: Duration = Duration::from_secs(1);
/// The pause after a failure, and how long is tried when the service stops.
const PAUSE: Duration = Duration::from_secs(1);
const LAST_TRY: Duration = Duration::from_secs(5);
/// How often rows are pruned that are kept long enough.
const PRUNE: Duration = Duration::from_secs(600);

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Every request that asks for a change.
    All,
    /// What administrators and the ledger itself do.
    Admin,
    Off,
}

/// What callers ask for all the time; everything else is of administrators or of the ledger itself.
const COMMANDS: [&str; 7] = ["credit", "debit", "freeze", "unfreeze", "refund", "batch", "operation"];

/// How it ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Recorded(Arc<Event>),
    Replayed(Arc<Event>),
    /// The code of the refusal.
    Refused(&'static str),
    /// Something that is no transaction.
    Done,
}

/// One thing that was done, or refused.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) action: &'static str,
    pub(crate) actor: Arc<str>,
    /// The peer's address and port; none for what the ledger does by itself.
    pub(crate) address: Option<Arc<str>>,
    pub(crate) request_id: Option<Arc<str>>,
    pub(crate) account: Option<Account>,
    pub(crate) outcome: Outcome,
    pub(crate) details: Option<Box<Map<String, Value>>>,
}

/// Takes entries. Cloning is cheap.
#[derive(Debug, Clone)]
pub(crate) struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    level: Level,
    waiting: AtomicUsize,
    entries: mpsc::UnboundedSender<(Timestamp, Entry)>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    pub(crate) fn start(database: Database, level: Level, kept_days: u32) -> Self {
        // The queue itself has no bound; what waits is counted.
        let (entries, queue) = mpsc::unbounded_channel();
        let stop = watch::Sender::new(false);
        let audit = Self(Arc::new(Shared {
            level,
            waiting: AtomicUsize::new(0),
            entries,
            stop: stop.clone(),
            task: Mutex::new(None),
        }));
        let task = tokio::spawn(write(database, audit.clone(), queue, stop.subscribe(), kept_days));
        *audit.0.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        audit
    }

    /// Whether an entry of this action would be written.
    pub(crate) fn wants(&self, action: &str) -> bool {
        match self.0.level {
            Level::All => true,
            Level::Admin => !COMMANDS.contains(&action),
            Level::Off => false,
        }
    }

    /// Hands an entry over to be written. Nobody waits.
    pub(crate) fn record(&self, entry: Entry) {
        if !self.wants(entry.action) {
            return;
        }
        let room = if COMMANDS.contains(&entry.action) { WAITING_MAX } else { WAITING_MAX_ADMIN };
        if self.0.waiting.fetch_add(1, Ordering::Relaxed) >= room || self.0.entries.send((now(), entry)).is_err() {
            self.0.waiting.fetch_sub(1, Ordering::Relaxed);
            metrics::counter!("ledger_audit_dropped_total").increment(1);
        }
    }

    /// Writes what waits, and ends.
    pub(crate) async fn stop(&self) {
        self.0.stop.send_replace(true);
        let task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // A task that panicked has ended, too.
            let _ = task.await;
        }
    }
}

async fn write(
    database: Database,
    audit: Audit,
    mut queue: mpsc::UnboundedReceiver<(Timestamp, Entry)>,
    mut stop: watch::Receiver<bool>,
    kept_days: u32,
) {
    let (most, longest) = match database {
        Database::Postgres(_) => (ROWS_ON_POSTGRES, GATHER),
        Database::Sqlite(_) => (ROWS_ON_SQLITE, GATHER_MANY),
    };
    let mut rows = Vec::new();
    let mut prune = Instant::now();
    loop {
        let is_stopping = *stop.borrow();
        if is_stopping && queue.is_empty() {
            return;
        }
        tokio::select! {
            first = queue.recv() => rows.extend(first.map(|(at, entry)| table::Row::of(at, entry))),
            () = sleep(PRUNE) => {}
            _ = stop.wait_for(|stop| *stop), if !is_stopping => continue,
        }
        let began = Instant::now();
        loop {
            while rows.len() < most
                && let Ok((at, entry)) = queue.try_recv()
            {
                rows.push(table::Row::of(at, entry));
            }
            let waited = began.elapsed();
            let is_enough =
                rows.len() >= most || waited >= longest || waited >= GATHER && rows.len() <= table::ROWS_OF_A_TURN;
            if is_enough || timeout(GATHER, stop.wait_for(|stop| *stop)).await.is_ok() {
                break;
            }
        }
        audit.0.waiting.fetch_sub(rows.len(), Ordering::Relaxed);
        let batch = std::mem::take(&mut rows);
        let began = Instant::now();
        let mut attempt = table::Attempt::First;
        while !batch.is_empty() {
            let attempt = std::mem::replace(&mut attempt, table::Attempt::Again);
            match database.step(table::insert(&database, &batch, attempt)).await {
                Ok(()) => break,
                Err(error) if *stop.borrow() && began.elapsed() > LAST_TRY => {
                    tracing::error!(error = %chain(&error), rows = batch.len(), "rows of the audit are lost");
                    metrics::counter!("ledger_audit_dropped_total").increment(batch.len() as u64);
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the audit cannot be written; trying again");
                    sleep(PAUSE).await;
                }
            }
        }
        metrics::counter!("ledger_audit_rows_total").increment(batch.len() as u64);
        if kept_days > 0 && Instant::now() >= prune {
            prune = Instant::now() + PRUNE;
            let before = now().micros() - i64::from(kept_days) * 86_400_000_000;
            if let Err(error) = table::prune(&database, table::id_at(before / 1_000, [0; 10])).await {
                tracing::warn!(error = %chain(&error), "old rows of the audit cannot be deleted");
            }
        }
    }
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_micros(chrono::Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}
