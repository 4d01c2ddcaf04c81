//! Up to where each read model holds the log.

use ledger_core::{Head, PARTITIONS, Partition};
use ledger_store::{Database, StoreError};

use crate::{postgres, sqlite};

/// A table that is a fold of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadModel {
    Balances,
    Freezes,
}

impl ReadModel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Balances, Self::Freezes];

    /// The table's name, which is also the checkpoint's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balances => "balances",
            Self::Freezes => "freezes",
        }
    }
}

/// A checkpoint's step: it is taken only from `from`, so that the rows of the step are applied exactly once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) model: ReadModel,
    pub(crate) partition: Partition,
    pub(crate) from: Head,
    pub(crate) to: Head,
}

/// A read model's checkpoint in every partition.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn read(database: &Database, model: ReadModel) -> Result<[Head; PARTITIONS], StoreError> {
    match database {
        Database::Postgres(database) => postgres::checkpoints(database.pool(), model).await,
        Database::Sqlite(database) => sqlite::checkpoints(database.readers(), model).await,
    }
}
