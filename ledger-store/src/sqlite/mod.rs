//! The ledger on SQLite.

mod bulk;
mod checkpoints;
mod files;
mod index;
mod index_rows;
mod log;
mod restore;
mod rows;
mod scan;
mod share;
mod sweep;

pub use files::copy_of_open;
pub(crate) use log::LockedHeads;
pub(crate) use scan::Reader;
pub(crate) use sweep::Sweeper;

use std::{str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

use crate::{StoreError, schema};
use checkpoints::Written;
use share::Share;

/// The migrations of this database, by version.
const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "ledger", include_str!("../../../migrations/sqlite/0001_ledger.sql")),
    (2, "access", include_str!("../../../migrations/sqlite/0002_access.sql")),
    (3, "operations", include_str!("../../../migrations/sqlite/0003_operations.sql")),
    (4, "expiry", include_str!("../../../migrations/sqlite/0004_expiry.sql")),
    (5, "audit", include_str!("../../../migrations/sqlite/0005_audit.sql")),
];

/// How long a statement waits for another process's transaction on the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What the writing connection keeps of the file in memory, in KiB, as SQLite writes it: negative.
const WRITER_CACHE: &str = "-32768";
/// A commit is not waited for: what it writes can be made again from the log. One connection writes everything, because
/// SQLite throws away what a connection remembers of the file whenever another one wrote; so each turn says how it commits.
const RELAXED: &str = "pragma synchronous = normal";
/// What a relaxed turn writes, about, in pages.
const RELAXED_PAGES: usize = 400;
/// Connections for reading: more than the machine has cores only wait for each other.
const READERS_MAX: u32 = 4;

/// A SQLite file that holds a ledger.
///
/// SQLite has one writer at a time. Inside this process the turns are taken here, in order of arrival, because SQLite's
/// own waiting is sleeping and trying again.
#[derive(Debug, Clone)]
pub struct Sqlite {
    file: Arc<str>,
    readers: SqlitePool,
    writer: Arc<Mutex<SqliteConnection>>,
    written: Arc<Written>,
    share: Arc<Share>,
    options: Arc<SqliteConnectOptions>,
}

/// The turn to write what can be made again from the log (read models, indexes, checkpoints). No commit waits for the
/// disk here; order is kept, so after a crash a prefix of the commits is there.
pub struct RelaxedTurn<'a>(MutexGuard<'a, SqliteConnection>);

impl Sqlite {
    /// Opens the file at `url`, and creates it and its schema when `create` says so.
    pub(crate) async fn open(url: &str, create: bool) -> Result<Self, StoreError> {
        let options = options(url)?;
        let path = options.get_filename().to_path_buf();
        let file = path.display().to_string();
        if !create && !path.is_file() {
            return Err(StoreError::Schema(format!(
                "there is no file {file}; look at the path in the database's address"
            )));
        }
        let options = options
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(200)
            .disable_statement_logging();
        let writer = options
            .clone()
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", WRITER_CACHE)
            .pragma("wal_autocheckpoint", "8000")
            .pragma("temp_store", "memory");
        let mut writer = connect(&writer, &file).await?;
        // A schema that is up to date is left alone: the service's role need not be the one that migrates.
        if create && !schema::is_current(version(&mut writer).await, &MIGRATIONS) {
            schema::migrator(&MIGRATIONS).run(&mut writer).await?;
        }
        schema::check(version(&mut writer).await, &MIGRATIONS, &file)?;
        refuse_to_lose(&mut writer, &file).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            // There is no server that could have gone away.
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().create_if_missing(false).pragma("query_only", "on"));
        let options = options.create_if_missing(false).synchronous(SqliteSynchronous::Full);
        Ok(Self {
            file: file.into(),
            readers,
            writer: Arc::new(Mutex::new(writer)),
            written: Arc::default(),
            share: Arc::default(),
            options: Arc::new(options),
        })
    }

    /// The file's path, as it was given.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Connections for reading.
    #[must_use]
    pub const fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Waits for the turn to write. Keep it for milliseconds, or for a fair share: commands wait meanwhile. Use it in a spawned task, begin
    /// with `begin immediate`, and end the transaction in every case.
    ///
    /// # Errors
    ///
    /// When the connection is gone, or an earlier turn left a transaction open, which is rolled back then.
    pub async fn relaxed_turn(&self) -> Result<RelaxedTurn<'_>, StoreError> {
        self.relaxed_turn_for(RELAXED_PAGES).await
    }

    /// The same, for one that writes about so many pages.
    ///
    /// # Errors
    ///
    /// Those of [`Sqlite::relaxed_turn`].
    pub async fn relaxed_turn_for(&self, pages: usize) -> Result<RelaxedTurn<'_>, StoreError> {
        let mut writer = self.writer.lock().await;
        if let Err(error) = sqlx::query(RELAXED).execute(&mut *writer).await {
            let _ = sqlx::query("rollback").execute(&mut *writer).await;
            return Err(error.into());
        }
        self.written.add(pages);
        Ok(RelaxedTurn(writer))
    }

    /// How many rows a relaxed turn may write so that it takes no more of the writer than a commit of events does; 0 when there
    /// are none lately. Turns and commits go by turns when both wait, so turns that are much shorter would never come to
    /// their end beside large commits.
    #[must_use]
    pub fn fair_rows(&self) -> usize {
        self.share.rows()
    }

    /// Notes what it took to write some rows of a relaxed turn.
    pub fn wrote(&self, rows: usize, took: Duration) {
        self.share.wrote(rows, took);
    }

    /// Waits for the turn to write durably. Whoever has it says so when it begins.
    pub(crate) async fn durable_turn(&self) -> OwnedMutexGuard<SqliteConnection> {
        self.writer.clone().lock_owned().await
    }

    /// Closes the connections for reading; the writer's closes with the last handle.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
    }
}

impl RelaxedTurn<'_> {
    /// The connection to write with.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}

/// Rows that one statement asks for or writes at most, but for events.
pub const ROWS_MAX: usize = 1_024;

/// The number of rows that a statement for `rows` rows has: few sizes, so that each statement is prepared once. The
/// parameters of the others are not bound and so are null; they match nothing, and are left out where rows are written.
#[must_use]
pub fn padded(rows: usize) -> usize {
    [1, 4, 16, 64, 256].into_iter().find(|size| *size >= rows).unwrap_or(ROWS_MAX)
}

/// So many rows of so many parameters. Its columns are called `column1`, `column2` and so on.
#[must_use]
pub fn values(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    format!("values {}", vec![row; rows].join(","))
}

/// Where the file is; one that would be lost with the process is refused.
fn options(url: &str) -> Result<SqliteConnectOptions, StoreError> {
    let options = SqliteConnectOptions::from_str(url).map_err(|error| {
        StoreError::Address(format!("{url} is no address of a SQLite file ({error}); write sqlite://FILE"))
    })?;
    let file = options.get_filename().display().to_string();
    if file.is_empty() || file.contains(":memory:") || url.contains("mode=memory") {
        return Err(StoreError::NotDurable(format!(
            "{url} is kept in memory and would lose every command; write sqlite://FILE"
        )));
    }
    Ok(options)
}

async fn connect(options: &SqliteConnectOptions, file: &str) -> Result<SqliteConnection, StoreError> {
    SqliteConnection::connect_with(options).await.map_err(|error| match &error {
        sqlx::Error::Database(refusal) => {
            let text = format!(
                "cannot open {file}: {}; check that its folder exists and may be written to",
                refusal.message()
            );
            StoreError::Unopened { text, error }
        }
        _ => StoreError::Database(error),
    })
}

async fn version(connection: &mut SqliteConnection) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select max(version) from _sqlx_migrations where success").fetch_one(connection).await
}

/// The pragmas were asked for; what the file system made of them is what counts.
async fn refuse_to_lose(connection: &mut SqliteConnection, file: &str) -> Result<(), StoreError> {
    let journal: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *connection).await?;
    let synchronous: i64 = sqlx::query_scalar("pragma synchronous").fetch_one(&mut *connection).await?;
    if journal != "wal" || synchronous < 2 {
        return Err(StoreError::NotDurable(format!(
            "{file} runs with journal_mode={journal} and synchronous={synchronous}; the ledger needs wal and 2 (FULL), \
             or acknowledged commands could be lost: put the file on a local disk"
        )));
    }
    Ok(())
}
