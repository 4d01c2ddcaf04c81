//! Which keys the index certainly does not hold: nearly every command's key is new, and then the database need not be
//! asked.
//!
//! Bloom filters over every key in the key index. They say "certainly not" or "perhaps"; where one says "perhaps", or they
//! are not filled yet, the index is asked. The first is made for twice the keys that there are at the start; when one is as
//! full as it was made for, the next one takes what comes, and has room for as many keys as all before it. They are filled
//! from the index in the background after a start, partition by partition, and the writer adds the keys of each part of the
//! tail before it lets go of that part.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fastbloom::AtomicBloomFilter;
use foldhash::fast::RandomState;
use ledger_core::Partition;
use tokio::{task::AbortHandle, time::sleep};

use crate::{
    StoreError,
    database::Database,
    error::chain,
    index::{KeyHash, key_run},
    tail::Span,
};

/// Twelve bits for each key, four of them looked at: when a filter is as full as it was made for, about six of a thousand
/// keys that are not there are asked for in vain.
const BITS_PER_KEY: u64 = 12;
const HASHES: u32 = 4;
/// Room for so many keys at least: 12 MiB.
const KEYS_MIN: u64 = 1 << 23;
/// Room for so many keys at most, over all filters: 192 MiB. With more keys than that the index is asked more often.
const KEYS_MAX: u64 = 1 << 27;
const _: () = assert!(KEYS_MAX * BITS_PER_KEY < 1 << 31);
/// The most filters that this makes: each one after the first doubles the room.
const STAGES: usize = (KEYS_MAX / KEYS_MIN).ilog2() as usize + 1;
const _: () = assert!(KEYS_MIN << (STAGES - 1) == KEYS_MAX);
/// How long it waits after a failed read.
const RETRY: Duration = Duration::from_secs(2);
/// Keys of one read when the filter is filled: a few milliseconds, because SQLite's log cannot begin anew meanwhile.
const PAGE: usize = 8_192;

/// What an account and a business key of it come to: see [`KeyHash`].
type Key = (u64, u64);

#[derive(Debug)]
pub(crate) struct KeyFilter {
    first: Stage,
    /// Those that were needed later, in order.
    later: [OnceLock<Stage>; STAGES - 1],
    /// The partitions whose keys are all in it.
    ready: AtomicU64,
}

/// One filter, and how full it is.
#[derive(Debug)]
struct Stage {
    bits: AtomicBloomFilter<RandomState>,
    /// How many keys it was made for.
    room: u64,
    keys: AtomicU64,
}

impl Stage {
    fn new(room: u64) -> Self {
        let bits = usize::try_from(room * BITS_PER_KEY).expect("below 2^31 bits");
        let bits = AtomicBloomFilter::with_num_bits(bits).hasher(RandomState::default()).hashes(HASHES);
        Self { bits, room, keys: AtomicU64::new(0) }
    }

    fn is_full(&self) -> bool {
        self.keys.load(Ordering::Relaxed) >= self.room
    }
}

impl KeyFilter {
    /// Nothing is known yet; there will be some `keys` soon.
    pub(crate) fn new(keys: u64) -> Self {
        Self::with_room(keys.saturating_mul(2).clamp(KEYS_MIN, KEYS_MAX))
    }

    fn with_room(keys: u64) -> Self {
        Self { first: Stage::new(keys), later: Default::default(), ready: AtomicU64::new(0) }
    }

    fn stages(&self) -> impl Iterator<Item = &Stage> {
        std::iter::once(&self.first).chain(self.later.iter().map_while(OnceLock::get))
    }

    /// The filter that takes what comes.
    fn newest(&self) -> &Stage {
        let mut room = self.first.room;
        let mut newest = &self.first;
        for next in &self.later {
            if next.get().is_none() && (!newest.is_full() || room >= KEYS_MAX) {
                break;
            }
            newest = next.get_or_init(|| Stage::new(room.min(KEYS_MAX - room)));
            room += newest.room;
        }
        newest
    }

    /// Whether the index may hold the key.
    pub(crate) fn may_hold(&self, key: &KeyHash) -> bool {
        let is_ready = self.ready.load(Ordering::Acquire) >> key.partition.number() & 1 == 1;
        !is_ready || self.holds(&(key.business, key.account))
    }

    fn holds(&self, key: &Key) -> bool {
        self.stages().any(|stage| stage.bits.contains(key))
    }

    /// The index may hold these keys from now on.
    pub(crate) fn add(&self, span: &Span) {
        self.insert(span.keys.keys().map(|key| (key.business, key.account)));
    }

    fn insert(&self, keys: impl ExactSizeIterator<Item = Key>) {
        let stage = self.newest();
        stage.keys.fetch_add(u64::try_from(keys.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        for key in keys {
            stage.bits.insert(&key);
        }
    }

    /// Takes in every key that the index holds, in the background. What is flushed meanwhile is added by the writer.
    pub(crate) fn start_to_fill(self: &Arc<Self>, database: Database) -> AbortHandle {
        let filter = self.clone();
        let task = tokio::spawn(async move {
            while let Err(error) = filter.fill(&database).await {
                tracing::warn!(error = %chain(&error), "the keys of the index could not be read; trying again");
                sleep(RETRY).await;
            }
        });
        task.abort_handle()
    }

    async fn fill(&self, database: &Database) -> Result<(), StoreError> {
        let began = Instant::now();
        let indexed = database.index_checkpoints().await?;
        for partition in Partition::all() {
            for run in 0..=key_run(indexed[partition.index()].position) {
                self.fill_run(database, partition, run).await?;
            }
            self.ready.fetch_or(1 << partition.number(), Ordering::Release);
        }
        tracing::debug!(took = ?began.elapsed(), "the filter of keys is filled");
        Ok(())
    }

    async fn fill_run(&self, database: &Database, partition: Partition, run: u32) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let keys = database.keys_after(partition, run, after, PAGE).await?;
            self.insert(keys.iter().copied());
            after = keys.last().copied();
            if keys.len() < PAGE {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: std::ops::Range<u64>) -> impl ExactSizeIterator<Item = Key> {
        numbers.map(|number| (number, !number)).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn a_ledger_that_grows_past_what_was_expected_gets_more_room() {
        let filter = KeyFilter::with_room(1_000);
        let mut inserted = 0;
        for (upto, stages) in [(1_000, 1), (1_100, 2), (2_000, 2), (4_000, 3), (16_000, 5)] {
            while inserted < upto {
                filter.insert(keys(inserted..inserted + 100));
                inserted += 100;
            }
            assert_eq!(filter.stages().count(), stages, "{upto} keys");
            assert!(keys(0..upto).all(|key| filter.holds(&key)), "{upto} keys");
            let others = keys(1_000_000..1_010_000).filter(|key| filter.holds(key)).count();
            // Each filter takes at most some seven of a thousand for its own: five of them 3.5 %.
            assert!(others < 350, "{others} of 10,000 that were never inserted, {upto} keys");
        }
    }
}
