//! The rows of the indexes behind the log as they are: for verification.
//!
//! No row is believed here, and none is looked up: whoever verifies compares all of them with the log.

mod hash;

use ledger_core::{AccountId, AccountState, Event, Partition, Position};
use uuid::Uuid;

use crate::{
    Database, StoreError,
    index::{KEY_RUN_BITS, keys_of, unseal},
};

/// Each so-manieth version of an account has a row of its own in `history_positions`.
pub const HISTORY_STRIDE: u64 = crate::index::HISTORY_STRIDE;

/// The run of the key index that holds the key of the event at a position.
#[must_use]
pub fn key_run(position: Position) -> u32 {
    crate::index::key_run(position)
}

/// The positions of a run: the first and the last.
#[must_use]
pub const fn positions_of(run: u32) -> (Position, Position) {
    let first = (run as u64) << KEY_RUN_BITS;
    (Position(first), Position(first + (1 << KEY_RUN_BITS) - 1))
}

/// A partition's rows of the indexes that a flush moves forward, from one consistent read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexRows {
    /// Up to where the indexes hold the log, by the checkpoint that was read with them; none if there is no such row.
    pub checkpoint: Option<i64>,
    /// The newest event of an account, and what the row says that it left the account with.
    pub accounts: Vec<AccountRow>,
    /// The newest event about an original.
    pub related: Vec<(i64, i64)>,
    /// An account's version and where it is.
    pub history: Vec<(Option<Uuid>, i64, i64)>,
}

/// A row that says where the newest event of an account is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountRow {
    /// None where it is no id.
    pub id: Option<Uuid>,
    pub position: i64,
    /// What the account holds by this row, which is believed because its seal is whole; none where the event is read.
    pub state: Option<AccountState>,
}

impl AccountRow {
    pub(crate) fn new(id: Option<Uuid>, position: i64, numbers: [i64; 3], locked: bool, sealed: i64) -> Self {
        let state = id.and_then(AccountId::stored).zip(u64::try_from(position).ok());
        let state = state.and_then(|(id, at)| unseal(id, Position(at), numbers, locked, sealed));
        Self { id, position, state }
    }
}

/// A row of the key index: 64 bits of the business key, 64 bits of the account, and a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRow {
    pub business: u64,
    pub account: u64,
    pub position: i64,
}

/// What some rows of the key index come to: how many they are, and the exclusive or of a hash of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeySum {
    pub rows: u64,
    pub mixed: u64,
}

impl KeySum {
    /// Adds a row: as PostgreSQL's `hashint8extended(business_hash, hashint8extended(account_short, position))`.
    pub const fn add(&mut self, row: &KeyRow) {
        let seed = hash::of_number(row.account, row.position.cast_unsigned());
        self.rows += 1;
        self.mixed ^= hash::of_number(row.business, seed);
    }
}

/// A partition's key index: what the rows of each run come to, up to and with a position, and how many rows name later ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySums {
    pub runs: Vec<(i64, KeySum)>,
    pub later: u64,
}

/// The rows that an event has in the key index: one for its key, and one for its operation where the caller gave one.
pub fn key_rows_of(event: &Event) -> impl Iterator<Item = KeyRow> {
    let position = event.position.0.cast_signed();
    keys_of(event).map(move |key| KeyRow { business: key.business, account: key.account, position })
}

impl Database {
    /// A partition's rows of the indexes but for the keys, in one short transaction.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn index_rows(&self, partition: Partition) -> Result<IndexRows, StoreError> {
        match self {
            Self::Postgres(database) => database.index_rows(partition).await,
            Self::Sqlite(database) => database.index_rows(partition).await,
        }
    }

    /// The rows of one run of a partition's key index, in any order.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn key_rows(&self, partition: Partition, run: u32) -> Result<Vec<KeyRow>, StoreError> {
        match self {
            Self::Postgres(database) => database.key_rows(partition, run).await,
            Self::Sqlite(database) => database.key_rows(partition, run).await,
        }
    }

    /// What the rows of some partitions' key indexes come to, each up to and with a position, in the order of the runs. The
    /// partitions ascend.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn key_sums(&self, partitions: &[(Partition, Position)]) -> Result<Vec<KeySums>, StoreError> {
        match self {
            Self::Postgres(database) => database.key_sums(partitions).await,
            Self::Sqlite(database) => database.key_sums(partitions).await,
        }
    }

    /// The rows of a partition's key index that are in no run up to `last`, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn key_rows_past(
        &self,
        partition: Partition,
        last: u32,
        limit: usize,
    ) -> Result<Vec<KeyRow>, StoreError> {
        match self {
            Self::Postgres(database) => database.key_rows_past(partition, last, limit).await,
            Self::Sqlite(database) => database.key_rows_past(partition, last, limit).await,
        }
    }
}
