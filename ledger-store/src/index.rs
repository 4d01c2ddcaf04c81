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
