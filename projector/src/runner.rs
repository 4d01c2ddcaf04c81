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
use ledger_store::{Database, StoreError, error::chain};
use sqlx::postgres::PgListener;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    checkpoint::{self, ReadModel},
    election::{Election, Office},
    fold::{self, Changes, Rows},
    postgres, sqlite,
};

/// How long a runner that nobody wakes waits before it looks for itself: polling is the truth, waking only makes it quick.
const POLL: Duration = Duration::from_millis(250);
/// Events of one round on PostgreSQL.
const ROUND_EVENTS_POSTGRES: usize = 8_000;
/// On SQLite commands wait while a round is written: some milliseconds.
const ROUND_EVENTS_SQLITE: usize = 1_000;
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
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Runner {
    /// Starts a projector. `wake` changes when there may be news; without it the runner polls.
    #[must_use]
    pub fn start(database: Database, wake: Option<watch::Receiver<u64>>) -> Self {
        let nothing = Progress {
            positions: [Position::ZERO; PARTITIONS],
            heads: [Position::ZERO; PARTITIONS],
            halted: Vec::new(),
            behind_since: None,
        };
        let (publish, progress) = watch::channel(nothing);
        let (stop, stopped) = watch::channel(false);
        let rounds = Rounds { database, wake, stop: stopped, publish, halted: HashMap::new(), heard: Arc::default() };
        Self { progress, stop, task: tokio::spawn(rounds.run()) }
    }

    /// How far the read models are, as it changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ends after the round that is under way.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}

/// Where which read model met what.
type Found = (Partition, ReadModel, Contradiction);

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<Result<(), sqlx::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Rounds {
    database: Database,
    wake: Option<watch::Receiver<u64>>,
    stop: watch::Receiver<bool>,
    publish: watch::Sender<Progress>,
    halted: HashMap<Partition, Instant>,
    /// Another process committed.
    heard: Arc<Notify>,
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
                self.look().await?;
                if self.wait(ELECTION).await {
                    self.tell_elected().await?;
                }
                continue;
            }
            if !self.round().await? {
                let _ = self.wait(POLL).await;
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
            tokio::time::sleep(COALESCE).await;
        }
        Ok(())
    }

    /// Waits for news, for the end, or for `longest`. True when there was news of this process.
    async fn wait(&mut self, longest: Duration) -> bool {
        let heard = self.heard.clone();
        let news = async {
            if let Some(wake) = &mut self.wake {
                if wake.changed().await.is_ok() {
                    return;
                }
                // The writer is gone: only the clock wakes now.
                self.wake = None;
            }
            std::future::pending::<()>().await;
        };
        let mut stop = self.stop.clone();
        tokio::select! {
            // Whether it ran out or was woken: the next round looks.
            woken = timeout(longest, news) => woken.is_ok(),
            () = heard.notified() => false,
            _ = stop.wait_for(|stop| *stop) => false,
        }
    }

    /// Publishes how far another process's runner has come.
    async fn look(&mut self) -> Result<(), StoreError> {
        let heads = self.database.heads().await?;
        let checkpoints = self.checkpoints().await?;
        self.show(&heads, &checkpoints).await
    }

    async fn checkpoints(&self) -> Result<HashMap<ReadModel, [Head; PARTITIONS]>, StoreError> {
        let mut checkpoints = HashMap::new();
        for model in ReadModel::ALL {
            checkpoints.insert(model, checkpoint::read(&self.database, model).await?);
        }
        Ok(checkpoints)
    }

    /// Applies some events to the read models. False when there was nothing to do.
    async fn round(&mut self) -> Result<bool, StoreError> {
        let heads = self.database.heads().await?;
        let checkpoints = self.checkpoints().await?;
        let (events, damages) = self.news(&heads, &checkpoints).await?;
        if events.is_empty() && damages.is_empty() {
            self.show(&heads, &checkpoints).await?;
            return Ok(false);
        }
        let rows = self.rows(&events).await?;
        let mut changes = Changes::default();
        let mut contradictions = damages;
        for (partition, events) in &events {
            for model in ReadModel::ALL {
                let from = checkpoints[&model][partition.index()];
                // The other read model may be behind: what this one has already is not applied again.
                let new = events.partition_point(|event| event.position <= from.position);
                if let Err(found) = fold::fold(model, *partition, from, &events[new..], &rows, &mut changes) {
                    contradictions.push((*partition, model, found));
                }
            }
        }
        if !contradictions.is_empty() {
            // Rows that another runner wrote since the checkpoints were read contradict them, too: then begin again.
            if self.checkpoints().await? != checkpoints {
                return Ok(true);
            }
            for (partition, model, found) in contradictions {
                self.halt(partition, model, &found).await?;
            }
        }
        let applied: usize = changes.steps.len();
        if !self.commit(changes).await? {
            // Another runner was quicker: start again from what is there.
            return Ok(true);
        }
        let checkpoints = self.checkpoints().await?;
        self.show(&heads, &checkpoints).await?;
        Ok(applied > 0)
    }

    /// The events after the checkpoints, as many as one round takes, and what is in the way of more: an event that is
    /// missing or damaged, or a log that ends before its read models.
    async fn news(
        &self,
        heads: &[Head; PARTITIONS],
        checkpoints: &HashMap<ReadModel, [Head; PARTITIONS]>,
    ) -> Result<(Vec<(Partition, Vec<Event>)>, Vec<Found>), StoreError> {
        let mut room = match self.database {
            Database::Postgres(_) => ROUND_EVENTS_POSTGRES,
            Database::Sqlite(_) => ROUND_EVENTS_SQLITE,
        };
        let (mut news, mut damages) = (Vec::new(), Vec::new());
        for partition in Partition::all() {
            let paused = self.halted.get(&partition).is_some_and(|since| since.elapsed() < RETRY_HALTED);
            if room == 0 || paused {
                continue;
            }
            let head = heads[partition.index()];
            for model in ReadModel::ALL {
                let at = checkpoints[&model][partition.index()];
                if at.position > head.position || (at.position == head.position && at.hash != head.hash) {
                    let (expected, found) = (format!("{at:?} or later"), format!("{head:?}"));
                    let found = Contradiction { position: at.position, field: "head", expected, found };
                    damages.push((partition, model, found));
                }
            }
            let from = ReadModel::ALL.map(|model| checkpoints[&model][partition.index()].position);
            let from = from[0].min(from[1]);
            if head.position <= from {
                continue;
            }
            let mut events = Vec::new();
            let mut damage = None;
            for row in self.database.rows_after(partition, from, room).await? {
                match row {
                    Ok(event) => events.push(event),
                    Err(damaged) => {
                        damage = Some((damaged.column, damaged.reason));
                        break;
                    }
                }
            }
            if events.is_empty() {
                // The head says that there is one.
                let position = from.next();
                let (field, found) = damage.unwrap_or(("position", "is missing".to_owned()));
                let found = Contradiction { position, field, expected: format!("the event at {position}"), found };
                damages.push((partition, ReadModel::Balances, found));
            } else {
                room -= events.len();
                news.push((partition, events));
            }
        }
        Ok((news, damages))
    }

    async fn rows(&self, events: &[(Partition, Vec<Event>)]) -> Result<Rows, StoreError> {
        let all = || events.iter().flat_map(|(_, events)| events);
        let (accounts, freezes) = (fold::accounts_of(all()), fold::freezes_of(all()));
        let (balances, freezes) = match &self.database {
            Database::Postgres(database) => (
                postgres::balances(database.pool(), "balances", &accounts).await?,
                postgres::freezes(database.pool(), "freezes", &freezes).await?,
            ),
            Database::Sqlite(database) => (
                sqlite::balances(database.readers(), "balances", &accounts).await?,
                sqlite::freezes(database.readers(), "freezes", &freezes).await?,
            ),
        };
        // A damaged row is as good as missing: the fold meets a contradiction there and stops.
        Ok(Rows::of(balances.into_iter().flatten(), freezes.into_iter().flatten()))
    }

    async fn commit(&self, changes: Changes) -> Result<bool, StoreError> {
        if changes.steps.is_empty() {
            return Ok(true);
        }
        let database = self.database.clone();
        // A task of its own: whatever becomes of this one, the transaction comes to its end.
        let task = tokio::spawn(async move {
            match &database {
                Database::Postgres(database) => postgres::commit(database.pool(), &changes).await,
                Database::Sqlite(database) => sqlite::commit(database, &changes).await,
            }
        });
        task.await.unwrap_or_else(|_| Err(StoreError::Inconsistent("the projector's commit ended early".to_owned())))
    }

    /// A partition's events contradict its rows: it stops, the others go on, and nothing is skipped.
    async fn halt(&mut self, partition: Partition, model: ReadModel, found: &Contradiction) -> Result<(), StoreError> {
        if self.halted.insert(partition, Instant::now()).is_none() {
            tracing::error!(
                %partition, position = %found.position, read_model = model.name(), field = found.field,
                expected = %found.expected, found = %found.found,
                "the log and a read model contradict each other; the partition's read models stop here: run replay-tool verify"
            );
            metrics::counter!("ledger_inconsistencies_total", "read_model" => model.name()).increment(1);
        }
        match &self.database {
            Database::Postgres(database) => {
                postgres::record_inconsistency(database.pool(), partition, model, found, now()).await
            }
            Database::Sqlite(database) => sqlite::record_inconsistency(database, partition, model, found, now()).await,
        }
    }

    /// Publishes how far the read models are.
    async fn show(
        &mut self,
        heads: &[Head; PARTITIONS],
        checkpoints: &HashMap<ReadModel, [Head; PARTITIONS]>,
    ) -> Result<(), StoreError> {
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
            Err(StoreError::Damaged(_)) => self.publish.borrow().behind_since,
            Err(error) => return Err(error),
        };
        let mut halted: Vec<_> = self.halted.keys().copied().collect();
        halted.sort_unstable();
        let progress = Progress { positions, heads: heads.map(|head| head.position), halted, behind_since: oldest };
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            metrics::gauge!("ledger_projector_lag_positions").set(progress.lag() as f64);
            let age_micros = oldest.map_or(0, |oldest| now().micros().saturating_sub(oldest.micros()));
            metrics::gauge!("ledger_projector_lag_seconds").set(age_micros as f64 / 1e6);
            metrics::gauge!("ledger_projector_halted_partitions").set(progress.halted.len() as f64);
        }
        self.publish.send_if_modified(|shown| {
            let changed = *shown != progress;
            *shown = progress;
            changed
        });
        Ok(())
    }
}

fn now() -> Timestamp {
    Timestamp::from_micros(Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}
