//! Releases the rests of freezes whose time is over: one process of many does it, and the log sees to it that each is
//! released once.
//!
//! The read model says where to look, the event says whether the freeze is due, and the writer decides what is left of it.
//! The release is an ordinary command of the ledger's own, keyed by the freeze: sent twice it is a repeat, and a capture that
//! comes at the same moment goes before it or is told that nothing remains.

mod marks;
mod order_status;
mod release;
mod waiting;

use std::time::{Duration, Instant};

use chrono::Utc;
use ledger_core::{PARTITIONS, Timestamp};
use ledger_store::{Database, Ledger, StoreError, error::chain};
use projector::{
    checkpoint::{self, ReadModel},
    due,
    election::{Election, Office},
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::alerts::Alerts;
use marks::{Marks, Turns};
pub(crate) use order_status::{OrderStatus, Template};
use release::Releaser;
use waiting::{Place, Waiting, Why};

/// How often it is looked for freezes that are due, when there are none.
const TICK: Duration = Duration::from_millis(500);
/// How often a process that is not elected looks whether it is its turn now.
const ELECTION: Duration = Duration::from_secs(1);
/// Freezes of each partition that are looked at in one go, settled ones too.
const PAGE: u32 = 64;
/// Freezes that are released by one batch: callers' commands wait meanwhile.
const BATCH: usize = 36;
/// Every partition is looked at from its beginning within about six hours.
const TURN: Duration = Duration::from_secs(6 * 3_600 / PARTITIONS as u64);
/// How often a backlog is counted, and how many rows of each partition are looked at for it.
const COUNT: Duration = Duration::from_secs(10);
const COUNT_ROWS: u32 = 1_000;
/// When it is looked again for freezes that there was no room to remember.
const COME_BACK: Duration = Duration::from_secs(300);
/// The pause after a failure, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The handle on the task that releases what is due.
pub(crate) struct Expiry {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Expiry {
    pub(crate) fn start(ledger: Ledger, database: Database, alerts: Alerts, orders: Option<OrderStatus>) -> Self {
        let (stop, stopped) = watch::channel(false);
        describe_metrics();
        let now = Instant::now();
        let expiring = Expiring {
            marks: Marks::new(),
            turns: Turns::new(now, TURN),
            releaser: Releaser::new(ledger.clone(), database.clone(), alerts, orders),
            ledger,
            database,
            failing: false,
            counted: None,
        };
        Self { stop, task: tokio::spawn(expiring.run(stopped)) }
    }

    /// Ends at once. What was handed to the writer is still done, and the rest is found again after the next start.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}

fn describe_metrics() {
    metrics::counter!("ledger_expiry_released_total").absolute(0);
    metrics::gauge!("ledger_expiry_due").set(0.0);
    metrics::gauge!("ledger_expiry_kept").set(0.0);
}

struct Expiring {
    ledger: Ledger,
    database: Database,
    marks: Marks,
    turns: Turns,
    releaser: Releaser,
    /// Whether the database failed last; told once.
    failing: bool,
    /// When a backlog was counted last.
    counted: Option<Instant>,
}

impl Expiring {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.serve_for_ever() => {}
        }
    }

    async fn serve_for_ever(&mut self) {
        let mut pause = PAUSE;
        loop {
            let Err(error) = self.serve(&mut pause).await;
            metrics::counter!("ledger_expiry_failures_total", "reason" => "store").increment(1);
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!(error = %chain(&error), "freezes that are due cannot be released; trying again");
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Waits to be elected, then releases what is due until something fails.
    async fn serve(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible, StoreError> {
        let mut election = Election::stand(&self.database, Office::Expiry).await?;
        loop {
            if !election.won().await? {
                self.tell(0);
                sleep(ELECTION).await;
                continue;
            }
            if self.ledger.trouble().is_some() {
                sleep(TICK).await;
                continue;
            }
            let is_more = self.round().await?;
            *pause = PAUSE;
            if std::mem::take(&mut self.failing) {
                tracing::info!("freezes that are due are released again");
            }
            if !is_more {
                sleep(TICK).await;
            }
        }
    }

    /// Deals with some of what is due. Whether there is more.
    async fn round(&mut self) -> Result<bool, StoreError> {
        let database = self.database.clone();
        database.step(self.observe()).await?;
        let started = Instant::now();
        self.marks.go_back(started);
        if let Some(partition) = self.turns.take(started) {
            self.marks.start_over(partition);
        }
        if self.releaser.is_resting() {
            return Ok(false);
        }
        let now = now();
        let mut found = database.step(due::page(&database, &self.marks.cursors(), now, PAGE)).await?;
        let is_more = is_more(&found);
        database.step(self.count_backlog(now, is_more)).await?;
        // The oldest first, whatever partition it is in.
        found.sort_by_key(|due| (due.expires_at, due.partition, due.position));
        let mut rest = found.as_slice();
        while !rest.is_empty() {
            let (batch, places) = self.batch(rest);
            if !self.deal(&places, now).await? {
                return Ok(false);
            }
            rest[..batch].iter().for_each(|due| self.marks.pass(due));
            rest = &rest[batch..];
        }
        self.retry(now).await?;
        Ok(is_more)
    }

    /// Takes in how far the read model is, before anything is read of it.
    async fn observe(&mut self) -> Result<(), StoreError> {
        let generation = due::generation(&self.database).await?;
        let checkpoints = checkpoint::read(&self.database, ReadModel::Freezes).await?;
        let moved = self.marks.moved(&checkpoints);
        let events: Vec<_> = self.database.rows_at(&moved).await?.into_iter().flatten().collect();
        self.marks.observe(generation, &checkpoints, &events);
        Ok(())
    }

    /// The first of `found` that make a batch: how many, and those among them that are to be dealt with.
    fn batch(&self, found: &[due::Due]) -> (usize, Vec<Place>) {
        let mut places = Vec::with_capacity(BATCH);
        for (taken, due) in found.iter().enumerate() {
            if places.len() == BATCH {
                return (taken, places);
            }
            let place = (due.partition, due.position);
            if due.is_open && !self.releaser.waiting.contains(place) {
                places.push(place);
            }
        }
        (found.len(), places)
    }

    /// Tries those again whose pause is over.
    async fn retry(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let places = self.releaser.waiting.due(Instant::now(), BATCH);
        if places.is_empty() {
            return Ok(());
        }
        // Most of those that are kept were captured meanwhile.
        let open = due::still_open(&self.database, &places).await?;
        for place in places.iter().filter(|place| !open.contains(place)) {
            self.releaser.waiting.done(*place);
        }
        self.deal(&open, now).await?;
        Ok(())
    }

    /// Releases the freezes at some places. False when they are to be dealt with again.
    async fn deal(&mut self, places: &[Place], now: Timestamp) -> Result<bool, StoreError> {
        let dealt = self.releaser.deal(places, now).await;
        for (partition, expires_at) in self.releaser.crowded_out.drain(..) {
            self.marks.come_back(partition, expires_at, Instant::now() + COME_BACK);
        }
        dealt
    }

    /// A backlog is counted now and then; without one only those wait that cannot be released.
    async fn count_backlog(&mut self, now: Timestamp, is_more: bool) -> Result<(), StoreError> {
        if !is_more {
            self.counted = None;
            self.tell(0);
            return Ok(());
        }
        if self.counted.is_some_and(|at| at.elapsed() < COUNT) {
            return Ok(());
        }
        let behind = due::count(&self.database, &self.marks.cursors(), now, COUNT_ROWS).await?;
        self.counted = Some(Instant::now());
        self.tell(behind);
        Ok(())
    }

    fn tell(&self, behind: u64) {
        let waiting: &Waiting = &self.releaser.waiting;
        let kept = waiting.count(Why::Kept);
        let stuck = waiting.count(Why::Unknown) + waiting.count(Why::Failed);
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            metrics::gauge!("ledger_expiry_due").set((behind + stuck as u64) as f64);
            metrics::gauge!("ledger_expiry_kept").set(kept as f64);
        }
    }
}

/// Whether some partition has more than a page.
fn is_more(found: &[due::Due]) -> bool {
    let mut counts = [0; PARTITIONS];
    found.iter().for_each(|due| counts[due.partition.index()] += 1);
    counts.contains(&PAGE)
}

fn now() -> Timestamp {
    Timestamp::from_micros(Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}
