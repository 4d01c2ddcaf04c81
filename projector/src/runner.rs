//! Keeps the read models up to date.
//!
//! A round reads the events after the checkpoints, folds them over the rows that are there, and commits rows and
//! checkpoints in one transaction by compare-and-set. So an event is applied exactly once, however many runners there
//! are; and because positions have no gaps, none is skipped however late it commits.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use ledger_core::{Event, Head, PARTITIONS, Partition, Position, Timestamp, rejection::Contradiction};
use ledger_store::{Database, StoreError, error::chain, feed::Feed};
use sqlx::postgres::PgListener;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    checkpoint::{self, ReadModel},
    election::{Election, Office},
};

mod round;

/// How long a runner that nobody wakes waits before it looks for itself: polling is the truth, waking only makes it quick.
const POLL: Duration = Duration::from_millis(250);
/// Events of one round that are read from the database. From the feed more are taken, if more wait.
const ROUND_EVENTS: usize = 8_000;
/// How long it rests after a round while little waits and nobody is in a hurry: many small rounds would write the same
/// pages again and again.
const REST: Duration = Duration::from_millis(120);
/// How long a commit of this process is waited for that may be what heads in the database are ahead of the feed by.
const UNSETTLED: Duration = Duration::from_secs(1);
/// A partition that stopped at an inconsistency is tried again after this long: a rebuild mends it.
const RETRY_HALTED: Duration = Duration::from_secs(2);
/// The pause after a failure, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a runner that is not elected looks whether it is its turn now.
const ELECTION: Duration = Duration::from_secs(1);
/// The channel on which a process that is not elected tells of its commits.
const COMMITTED: &str = "ledger_committed";
/// Commits within this time are told of together.
const COALESCE: Duration = Duration::from_millis(20);

/// How far the read models are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The smaller of both read models' positions, by partition.
    pub positions: [Position; PARTITIONS],
    /// The newest events that were seen, by partition.
    pub heads: [Position; PARTITIONS],
    /// Partitions that stopped at an inconsistency.
    pub halted: Vec<Partition>,
    /// When the oldest event that is not applied was recorded; absent when all are.
    pub behind_since: Option<Timestamp>,
}

impl Progress {
    /// How many events are not applied yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.lag_behind(&self.heads)
    }

    /// How many events up to some positions are not applied yet.
    #[must_use]
    pub fn lag_behind(&self, heads: &[Position; PARTITIONS]) -> u64 {
        heads.iter().zip(&self.positions).map(|(head, position)| head.0.saturating_sub(position.0)).sum()
    }
}

/// The handle on a running projector.
#[derive(Debug)]
pub struct Runner {
    progress: watch::Receiver<Progress>,
    hurry: Arc<Notify>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Runner {
    /// Starts a projector. With the feed of the writer in the same process it is woken by its commits and need not read
    /// them back from the database; without one it polls.
    #[must_use]
    pub fn start(database: Database, feed: Option<Feed>) -> Self {
        let nothing = Progress {
            positions: [Position::ZERO; PARTITIONS],
            heads: [Position::ZERO; PARTITIONS],
            halted: Vec::new(),
            behind_since: None,
        };
        let (publish, progress) = watch::channel(nothing);
        let (stop, stopped) = watch::channel(false);
        let hurry = Arc::new(Notify::new());
        let rounds = Rounds {
            database,
            feed,
            stop: stopped,
            publish,
            halted: HashMap::new(),
            heard: Arc::default(),
            hurry: hurry.clone(),
            following: None,
            looked: Instant::now(),
            seen: None,
        };
        Self { progress, hurry, stop, task: tokio::spawn(rounds.run()) }
    }

    /// How far the read models are, as it changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ends the rest between two rounds when it is notified: somebody waits for the read models.
    #[must_use]
    pub fn hurry(&self) -> Arc<Notify> {
        self.hurry.clone()
    }

    /// Ends after the round that is under way.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.hurry.notify_one();
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}

/// Events that follow the checkpoints, by partition.
type News = Vec<(Partition, Vec<Arc<Event>>)>;

/// Where which read model met what.
type Found = (Partition, ReadModel, Contradiction);

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<Result<(), sqlx::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Checkpoints = HashMap<ReadModel, [Head; PARTITIONS]>;

struct Rounds {
    database: Database,
    feed: Option<Feed>,
    stop: watch::Receiver<bool>,
    publish: watch::Sender<Progress>,
    halted: HashMap<Partition, Instant>,
    /// Another process committed.
    heard: Arc<Notify>,
    hurry: Arc<Notify>,
    /// The checkpoints as this runner left them, while it follows the feed. Compare-and-set finds out if they moved.
    following: Option<Checkpoints>,
    /// When the heads in the database were read last while following.
    looked: Instant,
    /// What they were, if they were ahead of the feed: another process wrote, or this one in that moment.
    seen: Option<Seen>,
}

/// Heads in the database that were ahead of the feed.
struct Seen {
    heads: [Position; PARTITIONS],
    /// How many commits this process had begun by then.
    begun: u64,
    at: Instant,
}

/// What a round came to.
enum Round {
    /// There was nothing to apply.
    Nothing,
    /// Events were applied, or the state was found out anew; there may be more.
    Done,
}

impl Rounds {
    async fn run(mut self) {
        let mut pause = PAUSE;
        while !*self.stop.borrow() {
            match self.serve().await {
                Ok(()) => pause = PAUSE,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the read models cannot be brought up to date; trying again");
                    let _ = self.wait(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Waits to be elected, then runs rounds until something fails or it is told to stop.
    async fn serve(&mut self) -> Result<(), StoreError> {
        let mut election = Election::stand(&self.database, Office::Runner).await?;
        let _ears = self.listen();
        while !*self.stop.borrow() {
            if !election.won().await? {
                self.following = None;
                if let Some(feed) = &self.feed {
                    feed.clear();
                }
                let database = self.database.clone();
                database.step(self.look()).await?;
                if self.wait(ELECTION).await {
                    database.step(self.tell_elected()).await?;
                }
                continue;
            }
            let database = self.database.clone();
            match database.step(self.round()).await {
                Ok(Round::Nothing) => drop(self.wait(POLL).await),
                Ok(Round::Done) => self.rest().await,
                Err(error) => {
                    self.following = None;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Hears of the commits of other processes. Without it polling finds them.
    fn listen(&self) -> Option<AbortOnDrop> {
        let Database::Postgres(database) = &self.database else { return None };
        let (pool, heard) = (database.pool().clone(), self.heard.clone());
        let ears = tokio::spawn(async move {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(COMMITTED).await?;
            loop {
                listener.recv().await?;
                heard.notify_one();
            }
            #[expect(unreachable_code, reason = "it gives the task's type")]
            Ok::<(), sqlx::Error>(())
        });
        Some(AbortOnDrop(ears))
    }

    /// Tells the elected runner, in another process, that this one committed: once for many commits, and never in their
    /// transactions, because a notification takes a lock of the whole instance when it commits.
    async fn tell_elected(&self) -> Result<(), StoreError> {
        if let Database::Postgres(database) = &self.database {
            sqlx::query("select pg_notify($1, '')").bind(COMMITTED).execute(database.pool()).await?;
            sleep(COALESCE).await;
        }
        Ok(())
    }

    /// Waits for news, for the end, or for `longest`. True when there was news of this process.
    async fn wait(&mut self, longest: Duration) -> bool {
        let heard = self.heard.clone();
        let news = async {
            if let Some(feed) = &mut self.feed {
                if feed.changed().await {
                    return;
                }
                // The writer is gone: only the clock wakes now.
                self.feed = None;
            }
            std::future::pending::<()>().await;
        };
        let mut stop = self.stop.clone();
        tokio::select! {
            // Whether it ran out or was woken: the next round looks.
            woken = timeout(longest, news) => woken.is_ok(),
            () = heard.notified() => {
                self.following = None;
                false
            }
            _ = stop.wait_for(|stop| *stop) => false,
        }
    }

    /// Rests between two rounds, unless much waits or somebody is in a hurry.
    async fn rest(&mut self) {
        if self.following.is_none() {
            return;
        }
        let mut long_enough = false;
        // The backlog is looked at on the way: a burst must not wait.
        for _ in 0..8 {
            if long_enough || self.feed.as_ref().is_some_and(Feed::is_pressing) {
                return;
            }
            tokio::select! {
                () = sleep(REST / 8) => {}
                () = self.hurry.notified() => long_enough = true,
                () = self.heard.notified() => {
                    self.following = None;
                    return;
                }
            }
        }
    }

    /// Publishes how far another process's runner has come.
    async fn look(&mut self) -> Result<(), StoreError> {
        let heads = self.database.heads().await?;
        let checkpoints = self.checkpoints().await?;
        self.show(&heads, &checkpoints).await
    }

    async fn checkpoints(&self) -> Result<Checkpoints, StoreError> {
        let mut checkpoints = HashMap::new();
        for model in ReadModel::ALL {
            checkpoints.insert(model, checkpoint::read(&self.database, model).await?);
        }
        Ok(checkpoints)
    }

    /// Publishes how far the read models are.
    async fn show(&mut self, heads: &[Head; PARTITIONS], checkpoints: &Checkpoints) -> Result<(), StoreError> {
        let positions: [Position; PARTITIONS] = std::array::from_fn(|index| {
            let [balances, freezes] = ReadModel::ALL.map(|model| checkpoints[&model][index].position);
            balances.min(freezes)
        });
        // A partition that was mended goes on by itself.
        self.halted.retain(|partition, since| {
            positions[partition.index()] < heads[partition.index()].position || since.elapsed() < RETRY_HALTED
        });
        let behind: Vec<_> = Partition::all()
            .filter(|partition| positions[partition.index()] < heads[partition.index()].position)
            .map(|partition| (partition, positions[partition.index()].next()))
            .collect();
        let oldest = match self.database.events_at(&behind).await {
            Ok(events) => events.iter().map(|event| event.recorded_at).min(),
            Err(error) if error.is_damage() => self.publish.borrow().behind_since,
            Err(error) => return Err(error),
        };
        self.show_progress(heads.map(|head| head.position), positions, oldest);
        Ok(())
    }

    fn show_progress(
        &self,
        heads: [Position; PARTITIONS],
        positions: [Position; PARTITIONS],
        behind_since: Option<Timestamp>,
    ) {
        let mut halted: Vec<_> = self.halted.keys().copied().collect();
        halted.sort_unstable();
        let progress = Progress { positions, heads, halted, behind_since };
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            metrics::gauge!("ledger_projector_lag_positions").set(progress.lag() as f64);
            let age_micros = behind_since.map_or(0, |oldest| now().micros().saturating_sub(oldest.micros()));
            metrics::gauge!("ledger_projector_lag_seconds").set(age_micros as f64 / 1e6);
            metrics::gauge!("ledger_projector_halted_partitions").set(progress.halted.len() as f64);
        }
        self.publish.send_if_modified(|shown| {
            let changed = *shown != progress;
            *shown = progress;
            changed
        });
    }
}

fn now() -> Timestamp {
    Timestamp::from_micros(Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}
