//! One of many: the session that holds an advisory lock of a PostgreSQL database.
//!
//! It only saves work that two would do twice. What they write is safe without it: read models by compare-and-set, the
//! stream by what each of its messages expects before it (see [`crate::publisher`]). On a SQLite file there is no session
//! that could hold a lock: every process is elected.

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

/// The numbers of the ledger's advisory locks are made of these bytes ("ledger"), so that they meet no one else's.
pub(crate) const LOCK_BASE: i64 = 0x006c_6564_6765_7200;
/// Asks for the lock of a number in the schema that the session uses: a database may hold a ledger in each of its schemas.
pub(crate) const TRY_LOCK: &str = "select pg_try_advisory_lock($1 # \
    ((select oid::bigint from pg_namespace where nspname = current_schema()) << 24))";

/// A candidate, and the session by which it holds the lock.
#[derive(Debug)]
pub struct Election {
    database: Database,
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
            Database::Postgres(postgres) => {
                Some(database.step(async { postgres.session().await.map_err(StoreError::from) }).await?)
            }
            Database::Sqlite(_) => None,
        };
        Ok(Self { database: database.clone(), session, lock: LOCK_BASE + office as i64, held: false })
    }

    /// Whether this candidate is elected.
    ///
    /// # Errors
    ///
    /// When its session died, and the lock with it.
    pub async fn won(&mut self) -> Result<bool, StoreError> {
        let Some(session) = &mut self.session else { return Ok(true) };
        let asked = async {
            if self.held {
                session.ping().await?;
                return Ok(true);
            }
            let ask = sqlx::query_scalar(TRY_LOCK).bind(self.lock);
            Ok::<_, StoreError>(ask.fetch_one(session).await?)
        };
        self.held = self.database.step(asked).await?;
        Ok(self.held)
    }
}
