//! The log on its way into a database: read, checked and encoded by a thread of its own, part by part.

use std::{collections::VecDeque, sync::Arc};

use foldhash::HashMap;
use ledger_core::{AccountId, Epoch, Event, Hash, Head, Partition, Position, chain::Links};
use tokio::{sync::mpsc, task::JoinHandle};
use uuid::Uuid;

use super::{Log, RestoreError, RestorePoint, Rows};
use crate::{
    index::{HISTORY_STRIDE, IndexEntries, KeyHash, key_run, keys_of},
    operations::Compensation,
    tail::about,
};

/// Events that are handed on at once.
const CHUNK: usize = 2_000;
/// Events whose hashes are made at once.
const LINKED: usize = 128;
/// Chunks that wait for the database at most.
const WAITING_MAX: usize = 8;

/// Rows to be written, in the order of each table's primary key.
pub(crate) enum Part {
    Events(Vec<Event>),
    Indexes(IndexEntries),
    /// What stands beside a partition's log.
    Beside(Box<dyn Rows>),
    /// Nothing more comes.
    End,
}

/// What was read once all of it was.
#[derive(Debug, Default)]
pub(crate) struct Produced {
    pub(crate) events: u64,
    /// Earlier restores, as far as the log itself tells of them: an event in a newer epoch than the one before it.
    pub(crate) points: Vec<RestorePoint>,
    /// The operations that were reversed.
    pub(crate) compensations: HashMap<Uuid, Compensation>,
}

/// What the thread that reads hands to the database.
pub(crate) struct Parts<T> {
    pub(crate) parts: mpsc::Receiver<T>,
    task: JoinHandle<Result<Produced, RestoreError>>,
}

impl<T: Send + 'static> Parts<T> {
    /// Starts to read, check and encode the log in a thread of its own, while the database writes.
    pub(crate) fn start(log: Arc<Log>, mut encode: impl FnMut(Part, &mut dyn FnMut(T)) + Send + 'static) -> Self {
        let (send, parts) = mpsc::channel(WAITING_MAX);
        let task = tokio::task::spawn_blocking(move || {
            let mut produced = Produced::default();
            for partition in Partition::all() {
                // Once nobody waits for it any more, the rest is not read.
                let mut is_wanted = true;
                let mut hand_on = |part| encode(part, &mut |encoded| is_wanted &= send.blocking_send(encoded).is_ok());
                read_partition(&log, partition, &mut produced, &mut hand_on)?;
                if !is_wanted {
                    break;
                }
            }
            // Whoever waits for nothing more does not wait for the rest either.
            encode(Part::End, &mut |encoded| drop(send.blocking_send(encoded)));
            Ok(produced)
        });
        Self { parts, task }
    }

    /// What was read, after all parts were taken.
    pub(crate) async fn end(mut self) -> Result<Produced, RestoreError> {
        self.parts.close();
        self.task.await.unwrap_or_else(|_| Err(RestoreError::Refused("the archive's reader ended early".to_owned())))
    }
}

/// Reads a partition, checks that each event follows the one before it, and that the last is the head's.
fn read_partition(
    log: &Log,
    partition: Partition,
    produced: &mut Produced,
    hand_on: &mut dyn FnMut(Part),
) -> Result<(), RestoreError> {
    let end = log.heads[partition.index()];
    let mut at = Head { epoch: Epoch(0), ..Head::EMPTY };
    let mut indexes = Indexes::default();
    let mut fold = log.fold.as_ref().map(|begin| begin(partition));
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut events =
        Linked { events: (log.events)(partition), links: Links::default(), ahead: VecDeque::new(), failed: None };
    while let Some(event) = events.next(&at.hash) {
        let (event, link) = event.map_err(RestoreError::Refused)?;
        check(partition, &at, &end, log.epoch, &event, &link)?;
        if event.epoch > at.epoch && event.epoch > Epoch::FIRST {
            produced.points.push(RestorePoint {
                partition,
                head: Head { epoch: event.epoch, ..at },
                restored_at: event.recorded_at,
                // Which archive it was is not written in the log.
                archive_id: String::new(),
            });
        }
        if let Some(compensation) = Compensation::told_by(&event) {
            produced.compensations.entry(event.operation_id).or_insert(compensation);
        }
        if let Some(fold) = &mut fold {
            fold.add(&event).map_err(|why| {
                RestoreError::Refused(format!("partition {partition} position {}: {why}", event.position))
            })?;
        }
        at = event.head();
        if let Some(run) = indexes.add(&event) {
            hand_on(Part::Indexes(run));
        }
        chunk.push(event);
        if chunk.len() == CHUNK {
            (log.progress)(CHUNK as u64);
            hand_on(Part::Events(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK))));
        }
    }
    if at.position != end.position || at.hash != end.hash {
        return Err(RestoreError::Refused(format!(
            "partition {partition} ends at position {} with hash {}, but its head is position {} with hash {}",
            at.position, at.hash, end.position, end.hash
        )));
    }
    produced.events += at.position.0;
    (log.progress)(chunk.len() as u64);
    if !chunk.is_empty() {
        hand_on(Part::Events(chunk));
    }
    if at.position > Position::ZERO {
        hand_on(Part::Indexes(indexes.finish()));
    }
    if let Some(fold) = fold {
        let at = if at.position > Position::ZERO { at } else { Head { epoch: log.epoch, ..at } };
        if let Some(rows) = fold.finish(at) {
            hand_on(Part::Beside(rows));
        }
    }
    Ok(())
}

/// Events with the hashes that they must have after the ones before them, which are made for some of them at once.
struct Linked<I> {
    events: I,
    links: Links,
    ahead: VecDeque<(Event, Hash)>,
    /// Why no more come, once those ahead are taken.
    failed: Option<String>,
}

impl<I: Iterator<Item = Result<Event, String>>> Linked<I> {
    /// The next event, after one of this hash.
    fn next(&mut self, before: &Hash) -> Option<Result<(Event, Hash), String>> {
        if self.ahead.is_empty() && self.failed.is_none() {
            let mut events = Vec::with_capacity(LINKED);
            for event in self.events.by_ref().take(LINKED) {
                match event {
                    Ok(event) => events.push(event),
                    Err(why) => {
                        self.failed = Some(why);
                        break;
                    }
                }
            }
            let links = self.links.of(before, &events).to_vec();
            self.ahead.extend(events.into_iter().zip(links));
        }
        self.ahead.pop_front().map(Ok).or_else(|| self.failed.take().map(Err))
    }
}

/// Whether an event may stand after `at`.
fn check(
    partition: Partition,
    at: &Head,
    end: &Head,
    next: Epoch,
    event: &Event,
    link: &Hash,
) -> Result<(), RestoreError> {
    let position = at.position.next();
    let refused =
        |what: String| Err(RestoreError::Refused(format!("partition {partition} position {position}: {what}")));
    if event.partition != partition || event.position != position {
        return refused(format!("partition {} position {} stands there", event.partition, event.position));
    }
    if position > end.position {
        return refused(format!("an event after the head, which is at position {}", end.position));
    }
    if event.epoch < at.epoch || event.epoch >= next {
        return refused(format!("epoch {}, which must be from {} to {}", event.epoch.0, at.epoch.0, next.0 - 1));
    }
    if *link != event.hash {
        return refused(
            "the event does not follow the one before it: its hash is not the one of its content".to_owned(),
        );
    }
    Ok(())
}

/// The entries of a partition's events in the indexes.
#[derive(Default)]
struct Indexes {
    run: u32,
    entries: IndexEntries,
    accounts: HashMap<AccountId, Position>,
    related: HashMap<(Partition, Position), Position>,
}

impl Indexes {
    /// Adds an event; gives the keys of the run before it once that is full.
    fn add(&mut self, event: &Event) -> Option<IndexEntries> {
        let full = (key_run(event.position) != self.run && !self.entries.keys.is_empty()).then(|| {
            let mut keys = std::mem::take(&mut self.entries.keys);
            sort_keys(&mut keys);
            IndexEntries { keys, ..IndexEntries::default() }
        });
        self.run = key_run(event.position);
        let account = event.account.id();
        self.accounts.insert(account, event.position);
        self.entries.keys.extend(keys_of(event).map(|key| (key, event.position)));
        if let Some((original, _)) = about(event) {
            self.related.insert(original, event.position);
        }
        if event.after.version.is_multiple_of(HISTORY_STRIDE) {
            self.entries.history.push((account, event.after.version, event.position));
        }
        full
    }

    fn finish(mut self) -> IndexEntries {
        self.entries.accounts = self.accounts.into_iter().collect();
        self.entries.accounts.sort_unstable();
        self.entries.related =
            self.related.into_iter().map(|((partition, original), newest)| (partition, original, newest)).collect();
        self.entries.related.sort_unstable();
        self.entries.history.sort_unstable();
        sort_keys(&mut self.entries.keys);
        self.entries
    }
}

/// Into the order of the primary key, for keys of one run.
fn sort_keys(keys: &mut [(KeyHash, Position)]) {
    // The database orders by the signed number.
    keys.sort_unstable_by_key(|(key, at)| (key.partition, key.business.cast_signed(), key.account.cast_signed(), *at));
}
