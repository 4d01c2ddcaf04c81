//! The freezes, for those who read them.

use ledger_core::{Account, Freeze, Position, TransactionId};
use ledger_store::{Database, StoreError};

use crate::{postgres, sqlite};

/// Whether anything remains of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Open,
    Settled,
}

impl Status {
    /// The name in the contract and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Settled => "settled",
        }
    }
}

/// The freeze of that id, if the read model has come so far.
///
/// # Errors
///
/// When the database cannot be read, or the row is damaged.
pub async fn find(database: &Database, id: TransactionId) -> Result<Option<Freeze>, StoreError> {
    let (partition, _, position) = id.locate();
    let mut rows = match database {
        Database::Postgres(database) => postgres::freezes(database.pool(), "freezes", &[(partition, position)]).await?,
        Database::Sqlite(database) => sqlite::freezes(database.readers(), "freezes", &[(partition, position)]).await?,
    };
    let found = rows.pop().transpose().map_err(|damage| StoreError::Inconsistent(damage.to_string()))?;
    Ok(found.filter(|freeze| freeze.freeze_id == id))
}

/// An account's freezes, newest first: those before position `before`, of one status if it is given, at most `limit`.
/// The position is where to go on, absent at the end.
///
/// # Errors
///
/// When the database cannot be read, or a row is damaged.
pub async fn of_account(
    database: &Database,
    account: &Account,
    status: Option<Status>,
    before: Option<Position>,
    limit: usize,
) -> Result<(Vec<Freeze>, Option<Position>), StoreError> {
    let before = before.map_or(i64::MAX, |before| i64::try_from(before.0).unwrap_or(i64::MAX));
    let status = status.map(Status::name);
    // One more than asked for tells whether there is more.
    let rows = i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1;
    let rows = match database {
        Database::Postgres(database) => {
            postgres::freezes_of(database.pool(), account.id(), status, before, rows).await?
        }
        Database::Sqlite(database) => {
            sqlite::freezes_of(database.readers(), account.id(), status, before, rows).await?
        }
    };
    let mut found = rows
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|damage| StoreError::Inconsistent(damage.to_string()))?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = if more { found.last().map(|freeze| freeze.position) } else { None };
    Ok((found, next))
}
