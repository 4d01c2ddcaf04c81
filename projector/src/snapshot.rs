//! The read models as they are, for a comparison with a replay.

use ledger_core::{Account, Balance, Freeze, Head, Partition};
use ledger_store::{Database, StoreError};

use crate::{postgres, sqlite};

/// A row of a read model that no fold made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table} {key}: column {column} {reason}")]
pub struct DamagedModelRow {
    pub table: &'static str,
    pub partition: i64,
    /// The position that the row stands at, as far as it can be read.
    pub position: i64,
    /// Whose row it is, in words.
    pub key: String,
    pub column: &'static str,
    pub reason: String,
}

/// One partition's read models and how far they go, from one consistent read.
#[derive(Debug)]
pub struct Snapshot {
    pub balances_at: Head,
    pub freezes_at: Head,
    /// Ascending by account id, damaged rows among them.
    pub balances: Vec<Result<Balance, DamagedModelRow>>,
    /// Ascending by position.
    pub freezes: Vec<Result<Freeze, DamagedModelRow>>,
}

/// Rows of one partition: balances and freezes, damaged ones among them.
pub(crate) type PartitionRows = (Vec<Result<Balance, DamagedModelRow>>, Vec<Result<Freeze, DamagedModelRow>>);

/// Reads one partition in a short transaction of its own.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn read(database: &Database, partition: Partition) -> Result<Snapshot, StoreError> {
    let database = database.clone();
    // A task of its own: a transaction that is cancelled half way would stay open in its pool.
    let task = tokio::spawn(async move {
        match &database {
            Database::Postgres(database) => postgres::snapshot(database.pool(), partition).await,
            Database::Sqlite(database) => sqlite::snapshot(database.readers(), partition).await,
        }
    });
    task.await.unwrap_or_else(|_| Err(StoreError::Inconsistent("the snapshot's task ended early".to_owned())))
}

/// A read model's checkpoint before anything is believed of it: epoch, position and hash.
pub type CheckpointRow = (i64, i64, Vec<u8>);

/// Rows of the read models and how far they go, from one consistent read: for verification, which names even a checkpoint
/// that is missing or damaged.
#[derive(Debug)]
pub struct StoredRows {
    pub balances_at: Option<CheckpointRow>,
    pub freezes_at: Option<CheckpointRow>,
    /// Ascending by account id, damaged rows among them.
    pub balances: Vec<Result<Balance, DamagedModelRow>>,
    /// Ascending by position.
    pub freezes: Vec<Result<Freeze, DamagedModelRow>>,
}

/// Whose rows are read.
#[derive(Debug, Clone)]
pub enum Whose {
    /// Those of every account of a partition.
    All(Partition),
    /// Those of one account.
    One(Account),
}

/// Reads rows in a short transaction of their own, whatever they are.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn stored_rows(database: &Database, whose: Whose) -> Result<StoredRows, StoreError> {
    let database = database.clone();
    // A task of its own, as above.
    let task = tokio::spawn(async move {
        match &database {
            Database::Postgres(database) => postgres::stored_rows(database.pool(), &whose).await,
            Database::Sqlite(database) => sqlite::stored_rows(database.readers(), &whose).await,
        }
    });
    task.await.unwrap_or_else(|_| Err(StoreError::Inconsistent("the snapshot's task ended early".to_owned())))
}
