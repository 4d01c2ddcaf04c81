//! What the indexes behind the log hold, and what a flush writes to them.

use ledger_core::{Account, AccountId, BusinessKey, Partition, Position};

/// Each 256th version of an account has an entry of its own, so that a walk back along `previous_position` to any
/// version takes at most 255 steps, and the entries cost next to nothing.
pub(crate) const HISTORY_STRIDE: u64 = 256;

/// Where the key index looks for a business key of an account: 64 bits of each. Others may share them, so whoever finds
/// an event there compares the key itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyHash {
    pub(crate) partition: Partition,
    pub(crate) business: u64,
    pub(crate) account: u64,
}

impl KeyHash {
    pub(crate) fn new(account: &Account, key: &BusinessKey) -> Self {
        Self { partition: account.partition(), business: key.hash(), account: account.id().short() }
    }
}

/// The key index is made of runs: the keys of so many successive positions of a partition, as a power of two. A key's hash
/// is random, so in one large tree each new key would touch a page of its own; a run is small enough that all of its pages
/// are at hand while it is written, and is never written again. A look-up asks each run, which costs a microsecond, and
/// few keys are looked up at all: the filter knows the others to be new.
pub(crate) const KEY_RUN_BITS: u32 = 15;

/// The run that holds the key of the event at a position.
pub(crate) fn key_run(position: Position) -> u32 {
    // PostgreSQL's integers are signed. No partition comes to 2^46 events; if one did, its last run would be larger.
    u32::try_from((position.0 >> KEY_RUN_BITS).min(0x7fff_ffff)).expect("31 bits")
}

/// Rows for the indexes, each list in the order of its primary key.
#[derive(Debug, Default)]
pub(crate) struct IndexEntries {
    /// The newest event of an account.
    pub(crate) accounts: Vec<(AccountId, Position)>,
    /// The events that bound a key.
    pub(crate) keys: Vec<(KeyHash, Position)>,
    /// The newest event about an original.
    pub(crate) related: Vec<(Partition, Position, Position)>,
    /// Each [`HISTORY_STRIDE`]th version of an account.
    pub(crate) history: Vec<(AccountId, u64, Position)>,
}

/// A hash as both databases store it: the same 64 bits, signed.
pub(crate) const fn stored_hash(hash: u64) -> i64 {
    hash.cast_signed()
}
