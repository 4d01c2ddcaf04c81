//! Which keys the index certainly does not hold: nearly every command's key is new, and then the database need not be
//! asked.
//!
//! A Bloom filter over every key in the key index. It says "certainly not" or "perhaps"; where it says "perhaps", or is
//! not made yet, the index is asked. It is filled from the index in the background after a start, partition by partition,
//! and the writer adds the keys of each part of the tail before it lets go of that part.

use std::{
    sync::{
        Arc,
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

/// Twelve bits for each key, four of them looked at: when the filter is as full as it was made for, about six of a thousand
/// keys that are not there are asked for in vain.
const BITS_PER_KEY: u64 = 12;
const HASHES: u32 = 4;
/// Room for so many keys at least: 12 MiB.
const KEYS_MIN: u64 = 1 << 23;
/// Room for so many keys at most: 192 MiB. With more keys than that the index is asked more often.
const KEYS_MAX: u64 = 1 << 27;
/// How long it waits after a failed read.
const RETRY: Duration = Duration::from_secs(2);
/// Keys of one read when the filter is filled: a few milliseconds, because SQLite's log cannot begin anew meanwhile.
const PAGE: usize = 8_192;

#[derive(Debug)]
pub(crate) struct KeyFilter {
    bits: AtomicBloomFilter<RandomState>,
    /// The partitions whose keys are all in it.
    ready: AtomicU64,
}

impl KeyFilter {
    /// Nothing is known yet; there will be some `keys` soon and twice as many later.
    pub(crate) fn new(keys: u64) -> Self {
        let keys = keys.saturating_mul(2).clamp(KEYS_MIN, KEYS_MAX);
        let bits = usize::try_from(keys * BITS_PER_KEY).expect("below 2^31 bits");
        let bits = AtomicBloomFilter::with_num_bits(bits).hasher(RandomState::default()).hashes(HASHES);
        Self { bits, ready: AtomicU64::new(0) }
    }

    /// Whether the index may hold the key.
    pub(crate) fn may_hold(&self, key: &KeyHash) -> bool {
        let is_ready = self.ready.load(Ordering::Acquire) >> key.partition.number() & 1 == 1;
        !is_ready || self.bits.contains(&(key.business, key.account))
    }

    /// The index may hold these keys from now on.
    pub(crate) fn add(&self, span: &Span) {
        for key in span.keys.keys() {
            self.bits.insert(&(key.business, key.account));
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
            for key in &keys {
                self.bits.insert(key);
            }
            after = keys.last().copied();
            if keys.len() < PAGE {
                return Ok(());
            }
        }
    }
}
