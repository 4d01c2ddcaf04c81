//! Ledgers without a service around them.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use ledger_core::{Account, Action, Amount, BusinessKey, Command, NamedAccount, Provenance, Timestamp, TransactionId};
use ledger_store::LedgerOptions;
use tempfile::TempDir;

use crate::Postgres;

/// The address of a new, empty database, and what keeps it there.
#[derive(Debug)]
pub struct NewDatabase {
    pub url: String,
    _folder: Option<TempDir>,
}

/// A new SQLite file.
///
/// # Panics
///
/// When there is no room for it.
#[must_use]
pub fn sqlite() -> NewDatabase {
    let folder = tempfile::tempdir().expect("a temporary folder");
    NewDatabase { url: format!("sqlite://{}/ledger.db", folder.path().display()), _folder: Some(folder) }
}

/// A new database on the shared PostgreSQL cluster.
#[must_use]
pub fn postgres() -> NewDatabase {
    postgres_on(Postgres::shared())
}

/// A new database on a cluster of one's own.
#[must_use]
pub fn postgres_on(cluster: &Postgres) -> NewDatabase {
    NewDatabase { url: cluster.database(), _folder: None }
}

/// Runs a test on both databases, as two tests.
#[macro_export]
macro_rules! on_both_databases {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test($crate::store::sqlite()).await; })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test($crate::store::postgres()).await; })+
        }
    };
}

/// A clock that begins at a fixed instant and goes on by a millisecond whenever it is read.
///
/// # Panics
///
/// Never: the instants are in range.
#[must_use]
pub fn ticking_clock() -> LedgerOptions {
    let micros = AtomicI64::new(1_700_000_000_000_000);
    let clock = move || Timestamp::from_micros(micros.fetch_add(1_000, Ordering::Relaxed)).expect("in range");
    LedgerOptions { clock: Arc::new(clock), ..LedgerOptions::default() }
}

/// A command as a service would make it.
///
/// # Panics
///
/// When the key is no key.
#[must_use]
pub fn command(action: Action, code: &str, id: &str) -> Command {
    Command {
        action,
        key: BusinessKey::new(code, id).expect("a valid key"),
        expected_version: None,
        provenance: Provenance {
            operation_id: None,
            request_id: "request".into(),
            actor: "test".into(),
            description: None,
            metadata: None,
        },
    }
}

fn account(user: &str) -> Account {
    Account::new(user, "points").expect("a valid account")
}

fn amount(units: u64) -> Amount {
    Amount::new(units).expect("a valid amount")
}

#[must_use]
pub fn credit(user: &str, units: u64, id: &str) -> Command {
    command(Action::Credit { account: account(user), amount: amount(units) }, "test.credit", id)
}

#[must_use]
pub fn debit(user: &str, units: u64, id: &str) -> Command {
    command(Action::Debit { account: account(user), amount: amount(units) }, "test.debit", id)
}

#[must_use]
pub fn freeze(user: &str, units: u64, id: &str) -> Command {
    command(Action::Freeze { account: account(user), amount: amount(units), expiry: None }, "test.freeze", id)
}

#[must_use]
pub fn capture(freeze: TransactionId, units: Option<u64>, release_remainder: bool, id: &str) -> Command {
    let action = Action::Capture {
        freeze,
        named: NamedAccount::default(),
        amount: units.map(amount),
        release_remainder: Some(release_remainder),
    };
    command(action, "test.capture", id)
}

#[must_use]
pub fn unfreeze(freeze: TransactionId, units: Option<u64>, id: &str) -> Command {
    let action = Action::Unfreeze { freeze, named: NamedAccount::default(), amount: units.map(amount) };
    command(action, "test.unfreeze", id)
}

#[must_use]
pub fn refund(debit: TransactionId, units: Option<u64>, id: &str) -> Command {
    let action = Action::Refund { debit, named: NamedAccount::default(), amount: units.map(amount) };
    command(action, "test.refund", id)
}
