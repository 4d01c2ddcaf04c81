//! One of many: the session that holds an advisory lock of a PostgreSQL database.
//!
//! It only saves work that two would do twice; what they write is safe by compare-and-set. A SQLite file has one service,
//! which is always elected.

use ledger_store::{Database, StoreError};
use sqlx::{Connection, PgConnection};

/// What there is one of. The numbers 2 (rebuild), 7 (append) and 8 (restore) are taken, too.
#[derive(Debug, Clone, Copy)]
pub enum Office {
    /// Keeps the read models up to date.
    Runner = 1,
    /// Publishes to NATS.
    Publisher = 3,
    /// Releases freezes that are due.
    Expiry = 4,
    /// The continuous proof.
    Proof = 10,
}

/// The numbers of the ledger's advisory locks begin with these bytes ("ledger"), so that they meet no one else's.
pub(crate) const LOCK_BASE: i64 = 0x006c_6564_6765_7200;

/// A candidate, and the session by which it holds the lock.
#[derive(Debug)]
pub struct Election {
    session: Option<PgConnection>,
    lock: i64,
    held: bool,
}

impl Election {
    /// Becomes a candidate.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached.
    pub async fn stand(database: &Database, office: Office) -> Result<Self, StoreError> {
        let session = match database {
            Database::Postgres(database) => Some(PgConnection::connect_with(database.connect_options()).await?),
            Database::Sqlite(_) => None,
        };
        Ok(Self { session, lock: LOCK_BASE + office as i64, held: false })
    }

    /// Whether this candidate is elected.
    ///
    /// # Errors
    ///
    /// When its session died, and the lock with it.
    pub async fn won(&mut self) -> Result<bool, StoreError> {
        let Some(session) = &mut self.session else { return Ok(true) };
        if self.held {
            session.ping().await?;
        } else {
            self.held =
                sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(self.lock).fetch_one(session).await?;
        }
        Ok(self.held)
    }
}
