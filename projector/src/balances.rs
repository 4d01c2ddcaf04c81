//! The balances, for those who read them.

use ledger_core::{Account, Balance};
use ledger_store::{Database, StoreError};

use crate::{postgres, sqlite};

/// An account's row, if the read model has come so far.
///
/// # Errors
///
/// When the database cannot be read, or the row is damaged.
pub async fn find(database: &Database, account: &Account) -> Result<Option<Balance>, StoreError> {
    let mut rows = match database {
        Database::Postgres(database) => postgres::balances(database.pool(), "balances", &[account.id()]).await?,
        Database::Sqlite(database) => sqlite::balances(database.readers(), "balances", &[account.id()]).await?,
    };
    rows.pop().transpose().map_err(|damage| StoreError::Inconsistent(damage.to_string()))
}
