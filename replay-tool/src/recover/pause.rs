//! No command is done while the log is mended.
//!
//! The pause is a lock that the tool's own session holds, so it ends with the tool, however that ends. Services that wait
//! for it answer `503 store_unavailable` after a while, and go on by themselves.

use std::str::FromStr;

use ledger_store::{Database, StoreError, error::chain, postgres::begin_session};
use sqlx::{
    ConnectOptions, Connection, PgConnection, SqliteConnection,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use crate::context::Failure;

/// The lock that every append takes first: see `advance_heads`.
const APPENDS: &str = "select pg_advisory_lock(x'6c656467657207'::bigint)";

/// Writes are held as long as this is.
pub(super) enum Pause {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Pause {
    /// Waits for the commit that is under way, if one is, and holds the next ones.
    pub(super) async fn begin(database: &Database, url: &str) -> Result<Self, Failure> {
        match database {
            Database::Postgres(postgres) => {
                let mut connection = begin_session(&patient(postgres.connect_options())).await?;
                sqlx::query(APPENDS).execute(&mut connection).await?;
                Ok(Self::Postgres(connection))
            }
            Database::Sqlite(_) => {
                let options = SqliteConnectOptions::from_str(url)?
                    .create_if_missing(false)
                    .journal_mode(SqliteJournalMode::Wal)
                    .busy_timeout(std::time::Duration::from_secs(60))
                    .disable_statement_logging();
                let mut connection = options.connect().await?;
                if let Err(error) = sqlx::query("begin immediate").execute(&mut connection).await {
                    let error = StoreError::from(error);
                    if !error.is_damage() {
                        return Err(error.into());
                    }
                    // A file that is too damaged for a transaction takes no command either.
                    tracing::warn!(error = chain(&error), "the file cannot be locked");
                }
                Ok(Self::Sqlite(connection))
            }
        }
    }

    /// Lets commands go on.
    pub(super) async fn end(self) {
        // The lock goes with the session in any case; closing it in order only says so at once.
        match self {
            Self::Postgres(connection) => drop(connection.close().await),
            Self::Sqlite(mut connection) => {
                let _ = sqlx::query("rollback").execute(&mut connection).await;
                let _ = connection.close().await;
            }
        }
    }
}

/// A session that waits for a commit as long as one may take. It is silent while others work, which no limit forbids: those
/// that only newer versions have are none that it can begin with.
fn patient(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().application_name("replay-tool recover").options([("lock_timeout", "60s")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_begins_with_what_every_version_knows() {
        let options = patient(&PgConnectOptions::new());
        assert_eq!(options.get_options().map(|begun| begun.ends_with("-c lock_timeout=60s")), Some(true));
        assert_eq!(options.get_options().map(|begun| begun.contains("session_timeout")), Some(false));
    }
}
