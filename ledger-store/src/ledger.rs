//! The handle that others hold on the ledger.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use ledger_core::{
    Account, Balance, BusinessKey, Command, Event, PARTITIONS, Partition, Position, Rejection, Timestamp, TransactionId,
};
use tokio::{
    sync::{Mutex, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    Database, StoreError,
    batch::{Answer, Ask, Newest, Request},
    feed::Feed,
    index::KeyHash,
    lookup::missing,
    published::Published,
    tail::Tail,
    writer::Writer,
};

/// Operations that are read at once.
const OPERATION_READS_MAX: usize = 6;

/// The clock that events are recorded by.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How much the writer takes on, and by which clock it records.
#[derive(Clone)]
pub struct LedgerOptions {
    /// Commands that may wait for the writer; past that they are refused as overloaded.
    pub queue_commands_max: usize,
    /// How long an answer may wait for a database that is away before the caller is told so.
    pub patience: Duration,
    /// Events that are kept in memory before they are written to the indexes, at some 200 bytes each; past twice as many
    /// no more is decided until those are written.
    pub flush_events: usize,
    /// The clock that `recorded_at` is read from.
    pub clock: Clock,
}

impl Default for LedgerOptions {
    /// The system's clock, 65,536 commands waiting, 2 s of patience, 80,000 events to a flush.
    fn default() -> Self {
        Self {
            queue_commands_max: 65_536,
            patience: Duration::from_secs(2),
            flush_events: 80_000,
            clock: Arc::new(system_time),
        }
    }
}

pub(crate) fn system_time() -> Timestamp {
    Timestamp::from_micros(Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}

/// A command that is done: now, or before.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub event: Arc<Event>,
    /// The key was bound before; this is the first answer again.
    pub replayed: bool,
}

/// Why nothing is known to have been done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much is waiting; nothing was done.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The database is away; nothing was done, or the same key finds out.
    #[error("the database cannot be reached")]
    Store,
    /// What this needs is damaged in the database, which works otherwise; nothing was done, or the same key finds out.
    #[error("a part of the database that this needs is damaged: run replay-tool verify")]
    Damaged,
    /// The service is stopping; nothing was done.
    #[error("the service is stopping")]
    Stopping,
}

/// Why a command has no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why an atomic batch did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The first command that is refused.
    #[error("command {index} of the batch: {rejection}")]
    Rejected { index: usize, rejection: Rejection },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A handle on the task that decides. Cloning is cheap; a dropped call does not cancel what it asked for.
#[derive(Clone)]
pub struct Ledger {
    pub(crate) database: Database,
    queue: mpsc::UnboundedSender<Request>,
    room: Arc<Semaphore>,
    published: Arc<Published>,
    /// Operations that may be read at once: each takes some statements, and all share the connections for reading.
    pub(crate) operation_reads: Arc<Semaphore>,
    stop: watch::Sender<bool>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Writes the refusals; ends after the writer.
    recorder: Arc<Mutex<Option<Recorder>>>,
}

#[derive(Debug)]
struct Recorder {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Ledger {
    /// Reads what came after the indexes' checkpoint and starts the writer.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or its parts contradict each other.
    pub async fn start(database: Database, options: LedgerOptions) -> Result<Self, StoreError> {
        // Its connection is begun before the tail is read, so the one that commits has all that was flushed by then.
        let deciding = database.for_the_writer().await;
        let tail = Tail::load(&deciding).await?;
        let published = Arc::new(Published::new(&tail.heads));
        // The queue itself has no bound; the semaphore counts the commands in it, whatever batches they come in.
        let (queue, requests) = mpsc::unbounded_channel();
        let stop = watch::Sender::new(false);
        let writer = Writer::new(deciding, tail, requests, stop.subscribe(), options.clone(), published.clone());
        let writer = tokio::spawn(writer.run());
        let (stop_recorder, stopped) = watch::channel(false);
        let task = tokio::spawn(published.refusals.clone().write(database.clone(), stopped));
        let recorder = Recorder { stop: stop_recorder, task };
        Ok(Self {
            database,
            queue,
            room: Arc::new(Semaphore::new(options.queue_commands_max)),
            published,
            operation_reads: Arc::new(Semaphore::new(OPERATION_READS_MAX)),
            stop,
            writer: Arc::new(Mutex::new(Some(writer))),
            recorder: Arc::new(Mutex::new(Some(recorder))),
        })
    }

    /// Does one command.
    ///
    /// # Errors
    ///
    /// The refusal, or that nothing is known to have been done.
    pub async fn execute(&self, command: Command) -> Result<Recorded, CommandError> {
        match self.ask(Ask::One(Box::new(command)), 1).await {
            Answer::One(outcome) => Ok(outcome?),
            other => Err(unavailable(&other).into()),
        }
    }

    /// Does all of the commands in one transaction, or none. They are answered in order.
    ///
    /// # Errors
    ///
    /// The first refusal, or that nothing is known to have been done.
    pub async fn execute_atomic(&self, commands: Vec<Command>) -> Result<Vec<Recorded>, BatchError> {
        let weight = commands.len();
        match self.ask(Ask::Atomic(commands), weight).await {
            Answer::Atomic(Ok(recorded)) => Ok(recorded),
            Answer::Atomic(Err((index, rejection))) => Err(BatchError::Rejected { index, rejection }),
            other => Err(unavailable(&other).into()),
        }
    }

    /// Does each of the commands on its own, in order.
    pub async fn execute_each(&self, commands: Vec<Command>) -> Vec<Result<Recorded, CommandError>> {
        let weight = commands.len();
        match self.ask(Ask::Each(commands), weight).await {
            Answer::Each(outcomes) => outcomes,
            other => vec![Err(unavailable(&other).into()); weight],
        }
    }

    /// The newest event of an account, as of a moment after this was called: a strong read.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn newest(&self, account: &Account) -> Result<Option<Arc<Event>>, Unavailable> {
        let Some(newest) = self.where_newest(account).await? else { return Ok(None) };
        self.read_newest(account, &newest).await.map(Some)
    }

    /// The event that the key is bound to in that account, exact.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn find(&self, account: &Account, key: &BusinessKey) -> Result<Option<Arc<Event>>, Unavailable> {
        let places = self.places(Ask::Key(KeyHash::new(account, key))).await?;
        let events = self.read_all(places).await?;
        Ok(events.into_iter().find(|event| event.account == *account && event.key == *key).map(Arc::new))
    }

    /// At most `limit` of the events that the key is bound to, in any account, in the order of partition and position, and
    /// whether there are more. A key may be bound in every account there is.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn find_all(&self, key: &BusinessKey, limit: usize) -> Result<(Vec<Event>, bool), Unavailable> {
        // One more tells that there are more.
        let (hash, enough) = (key.hash(), limit.saturating_add(1));
        // The tail first: what it lets go of meanwhile is in the indexes by then.
        let mut places = self.places(Ask::Business(hash, enough)).await?;
        let indexed = self.database.some_business_positions(hash, enough).await;
        places.extend(indexed.map_err(|error| failed(&error))?);
        // Some may be in both.
        places.sort_unstable();
        places.dedup();
        let has_more = places.len() > limit;
        places.truncate(limit);
        let mut events = self.read_all(places).await?;
        events.retain(|event| event.key == *key);
        Ok((events, has_more))
    }

    /// The event of that id, if there is one.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn transaction(&self, id: TransactionId) -> Result<Option<Event>, Unavailable> {
        let (partition, _, position) = id.locate();
        // Before the look, or what is committed meanwhile would be missed.
        let committed = self.committed()[partition.index()];
        match self.database.event_at(partition, position).await.map_err(|error| failed(&error))? {
            Some(event) => Ok(Some(event).filter(|event| event.transaction_id == id)),
            None if position > Position::ZERO && position <= committed => Err(failed(&missing((partition, position)))),
            None => Ok(None),
        }
    }

    /// The account as the newest event left it that this process committed and still remembers. It may be older than the
    /// read model where other processes write too; it is never ahead of what is durable.
    #[must_use]
    pub fn recent(&self, account: &Account) -> Option<Balance> {
        self.published.recent(account)
    }

    /// The same, but only if it was, within the last 250 ms, what the newest event left: no other process had written to
    /// the account's partition then.
    #[must_use]
    pub fn fresh(&self, account: &Account) -> Option<Balance> {
        self.published.fresh(account)
    }

    /// Counts the commits of this process: a projector wakes when it changes.
    #[must_use]
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.published.commits()
    }

    /// The events that this process commits from now on, for one follower. There is one feed: whoever takes an event from
    /// it, the others do not see it.
    #[must_use]
    pub fn feed(&self) -> Feed {
        self.published.feed()
    }

    /// The positions up to which this process knows every partition to be committed.
    #[must_use]
    pub fn committed(&self) -> [Position; PARTITIONS] {
        self.published.positions()
    }

    /// Whether commands can be served: `None`, or why not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if self.queue.is_closed() { Some("the writer has stopped".to_owned()) } else { self.published.trouble() }
    }

    /// How many more commands may wait.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room.available_permits()
    }

    /// Takes no more commands, answers those that wait, and returns when the last commit is done.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        if let Some(writer) = self.writer.lock().await.take() {
            // The task ends by itself; if it panicked there is nothing more to wait for.
            let _ = writer.await;
        }
        if let Some(recorder) = self.recorder.lock().await.take() {
            recorder.stop.send_replace(true);
            let _ = recorder.task.await;
        }
    }

    pub(crate) async fn where_newest(&self, account: &Account) -> Result<Option<Newest>, Unavailable> {
        match self.ask(Ask::Newest(account.id()), 1).await {
            Answer::Newest(newest) => Ok(newest),
            other => Err(unavailable(&other)),
        }
    }

    pub(crate) async fn read(
        &self,
        partition: Partition,
        position: Position,
    ) -> Result<Option<Arc<Event>>, Unavailable> {
        let event = self.database.event_at(partition, position).await.map_err(|error| failed(&error))?;
        Ok(event.map(Arc::new))
    }

    /// An account's newest event, which must be there as what names it says.
    pub(crate) async fn read_newest(&self, account: &Account, newest: &Newest) -> Result<Arc<Event>, Unavailable> {
        let place = (account.partition(), newest.position);
        let event = self.read(place.0, place.1).await?;
        let event = event.filter(|event| event.account == *account && event.after.version == newest.version);
        event.ok_or_else(|| failed(&missing(place)))
    }

    /// The events at some places, in order: each must be there, or what is not found is not known to be absent.
    pub(crate) async fn read_all(&self, mut places: Vec<(Partition, Position)>) -> Result<Vec<Event>, Unavailable> {
        places.sort_unstable();
        places.dedup();
        let mut events = self.database.events_at(&places).await.map_err(|error| failed(&error))?;
        let place_of = |event: &Event| (event.partition, event.position);
        events.sort_unstable_by_key(place_of);
        match places.into_iter().find(|place| events.binary_search_by_key(place, place_of).is_err()) {
            Some(place) => Err(failed(&missing(place))),
            None => Ok(events),
        }
    }

    async fn places(&self, ask: Ask) -> Result<Vec<(Partition, Position)>, Unavailable> {
        match self.ask(ask, 1).await {
            Answer::Places(places) => Ok(places),
            other => Err(unavailable(&other)),
        }
    }

    /// Waits, but not for long, until what was refused before is written.
    pub(crate) async fn refusals_settled(&self) {
        self.published.refusals.settled().await;
    }

    pub(crate) async fn ask(&self, ask: Ask, weight: usize) -> Answer {
        let permits = u32::try_from(weight).unwrap_or(u32::MAX);
        let Ok(permit) = self.room.clone().try_acquire_many_owned(permits) else {
            return Answer::Unavailable(Unavailable::Overloaded);
        };
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Request { ask, reply, permit }).is_err() {
            return Answer::Unavailable(Unavailable::Stopping);
        }
        // Without an answer the writer is gone, and what became of the command only its key tells.
        answer.await.unwrap_or(Answer::Unavailable(Unavailable::Store))
    }
}

pub(crate) fn unavailable(answer: &Answer) -> Unavailable {
    match answer {
        Answer::Unavailable(unavailable) => unavailable.clone(),
        other => unreachable!("the writer answers what it was asked, not {other:?}"),
    }
}

/// A read failed: the log says why, the caller may try again.
pub(crate) fn failed(error: &StoreError) -> Unavailable {
    tracing::warn!(error = %crate::error::chain(error), "a read failed");
    if error.is_damage() { Unavailable::Damaged } else { Unavailable::Store }
}
