//! The rows that are compared, as they are stored.

use ledger_core::{AccountId, Head, Partition, Position};
use ledger_store::{Database, StoreError};

use super::{
    ProofError,
    fold::{Fingerprints, Fold, Whose},
    head_of, on_postgres, on_sqlite,
};
use crate::{
    checkpoint::ReadModel,
    row::{BalanceRow, FreezeRow},
    snapshot::CheckpointRow,
};

/// Damaged rows of one pass that are kept.
const DAMAGED_MAX: usize = 10_000;

/// Rows of both read models and where they stand, from one consistent read.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) at: [Head; 2],
    pub(super) kept: Kept,
}

/// What is kept of rows that pass by.
#[derive(Debug)]
pub(super) struct Kept {
    fingerprints: Fingerprints,
    in_full: bool,
    /// Rows that can be read, of a slice.
    pub(super) balances: Vec<(AccountId, u64)>,
    pub(super) freezes: Vec<(Position, AccountId, u64)>,
    /// Rows in full: all of those accounts that are looked at again, and of a slice the damaged ones.
    pub(super) full_balances: Vec<BalanceRow>,
    pub(super) full_freezes: Vec<FreezeRow>,
}

impl Kept {
    pub(super) fn new(fold: &Fold) -> Self {
        Self {
            fingerprints: fold.fingerprints.clone(),
            in_full: matches!(fold.whose, Whose::These(_)),
            balances: Vec::new(),
            freezes: Vec::new(),
            full_balances: Vec::new(),
            full_freezes: Vec::new(),
        }
    }

    pub(super) fn add_balance(&mut self, row: BalanceRow) {
        if self.in_full {
            self.full_balances.push(row);
            return;
        }
        match row.clone().read() {
            Ok(balance) => self.balances.push((balance.account.id(), self.fingerprints.of_balance(&balance))),
            Err(_) if self.full_balances.len() < DAMAGED_MAX => self.full_balances.push(row),
            Err(_) => {}
        }
    }

    pub(super) fn add_freeze(&mut self, row: FreezeRow) {
        if self.in_full {
            self.full_freezes.push(row);
            return;
        }
        match row.clone().read() {
            Ok(freeze) => {
                self.freezes.push((freeze.position, freeze.account.id(), self.fingerprints.of_freeze(&freeze)));
            }
            Err(_) if self.full_freezes.len() < DAMAGED_MAX => self.full_freezes.push(row),
            Err(_) => {}
        }
    }
}

/// Which rows are read.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    Slice(Option<AccountId>, Option<AccountId>),
    /// Those of some accounts, and what stands in the places of their freezes.
    These(Vec<AccountId>, Vec<Position>),
}

/// Reads the rows of the accounts that a fold holds.
pub(super) async fn read(database: &Database, partition: Partition, fold: &Fold) -> Result<Rows, ProofError> {
    let wanted = match &fold.whose {
        Whose::Slice(from, to) => Wanted::Slice(*from, *to),
        Whose::These(ids) => Wanted::These(ids.iter().copied().collect(), fold.open.keys().copied().collect()),
    };
    let (database, kept) = (database.clone(), Kept::new(fold));
    // A task of its own: a transaction that is cancelled half way would stay open in its pool.
    let task = tokio::spawn(async move {
        match &database {
            Database::Postgres(database) => on_postgres::read(database.pool(), partition, &wanted, kept).await,
            Database::Sqlite(database) => on_sqlite::read(database.readers(), partition, &wanted, kept).await,
        }
    });
    let ended = |_| StoreError::Inconsistent("reading the rows ended early".to_owned());
    let (at, kept) = task.await.map_err(ended)??;
    Ok(Rows { at: heads(partition, at)?, kept })
}

/// Where both read models stand.
pub(super) async fn checkpoints(database: &Database, partition: Partition) -> Result<[Head; 2], ProofError> {
    let at = match database {
        Database::Postgres(database) => on_postgres::checkpoints(database.pool(), partition).await?,
        Database::Sqlite(database) => on_sqlite::checkpoints(database.readers(), partition).await?,
    };
    heads(partition, at)
}

fn heads(partition: Partition, rows: [Option<CheckpointRow>; 2]) -> Result<[Head; 2], ProofError> {
    let [balances, freezes] = rows;
    let head = |model, row| head_of(row).map_err(|reason| ProofError::Checkpoint { model, partition, reason });
    Ok([head(ReadModel::Balances, balances)?, head(ReadModel::Freezes, freezes)?])
}
