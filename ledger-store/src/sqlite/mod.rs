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
pub use rows::{id_of, time_of};
pub(crate) use scan::Reader;
pub(crate) use sweep::Sweeper;

use std::{
    fs, io,
    path::{self, Path},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::{MappedMutexGuard, Mutex, MutexGuard, OwnedMappedMutexGuard, OwnedMutexGuard},
    time::{sleep, timeout},
};

use crate::{
    StoreError,
    error::{chain, end_on_lost_sync},
    schema,
};
use checkpoints::Written;
use files::Identity;
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
/// How long those who still read are waited for at the end.
const READERS_PATIENCE: Duration = Duration::from_secs(2);
/// How long others who make the same file take a breath, before it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// SQLite's primary codes (<https://sqlite.org/rescode.html>): `SQLITE_ERROR`, `_BUSY`, `_LOCKED`, `_READONLY`, `_CANTOPEN`,
/// `_CONSTRAINT`, `_NOTADB`.
const ERROR: i32 = 1;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READ_ONLY: i32 = 8;
const NOT_OPENED: i32 = 14;
const CONSTRAINT: i32 = 19;
const NO_DATABASE: i32 = 26;

/// A SQLite file that holds a ledger.
///
/// SQLite has one writer at a time. Inside this process the turns are taken here, in order of arrival, because SQLite's
/// own waiting is sleeping and trying again.
#[derive(Debug, Clone)]
pub struct Sqlite {
    file: Arc<str>,
    /// Which file it is.
    identity: Option<Identity>,
    is_new: bool,
    /// Whether it may have been opened to write commands.
    serves: bool,
    readers: SqlitePool,
    /// `None` once it is closed.
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    written: Arc<Written>,
    share: Arc<Share>,
    options: Arc<SqliteConnectOptions>,
}

/// The turn to write.
pub(crate) type Turn = OwnedMappedMutexGuard<Option<SqliteConnection>, SqliteConnection>;

/// The turn to write what can be made again from the log (read models, indexes, checkpoints). No commit waits for the
/// disk here; order is kept, so after a crash a prefix of the commits is there.
pub struct RelaxedTurn<'a>(MappedMutexGuard<'a, SqliteConnection>);

impl Sqlite {
    /// Opens the file at `url`, and creates it and its schema when `create` says so.
    pub(crate) async fn open(url: &str, create: bool) -> Result<Self, StoreError> {
        let options = options(url)?;
        // Told in full: in another folder it would be another ledger.
        let path = path::absolute(options.get_filename()).unwrap_or_else(|_| options.get_filename().to_path_buf());
        let file = path.display().to_string();
        find(&path, &file, create)?;
        let options = options
            .filename(&path)
            .create_if_missing(create)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(200)
            .disable_statement_logging();
        let writer = options
            .clone()
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", WRITER_CACHE)
            .pragma("wal_autocheckpoint", "8000")
            .pragma("temp_store", "memory");
        let options = options.journal_mode(SqliteJournalMode::Wal);
        let connected = SqliteConnection::connect_with(&writer).await;
        let mut writer = connected.map_err(|error| unopened(error, &file))?;
        // Another program's file is not even told to keep a write-ahead log.
        let is_new = refuse_others(&mut writer, &file, create).await?;
        write_ahead(&mut writer, &file).await?;
        if create {
            migrate(&mut writer, &file).await?;
        }
        schema::check(version(&mut writer).await, &MIGRATIONS, &file)?;
        refuse_to_lose(&mut writer, &file).await?;
        if create {
            refuse_read_only(&mut writer, &file).await?;
            write_log_anew(&mut writer, &file).await?;
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            // There is no server that could have gone away.
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().create_if_missing(false).pragma("query_only", "on"));
        let options = options.create_if_missing(false).synchronous(SqliteSynchronous::Full);
        Ok(Self {
            identity: files::identity(&path),
            file: file.into(),
            is_new,
            serves: create,
            readers,
            writer: Arc::new(Mutex::new(Some(writer))),
            written: Arc::default(),
            share: Arc::default(),
            options: Arc::new(options),
        })
    }

    /// The file's path, from the root.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether there was no ledger when it was opened.
    pub(crate) const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Refuses to commit into a file that has lost its name: nobody would find it again. To ask the file system takes a
    /// millionth of a second, and a commit waits for the disk.
    fn refuse_replaced(&self) -> Result<(), StoreError> {
        if files::identity(Path::new(&*self.file)) == self.identity {
            return Ok(());
        }
        let text = format!(
            "{} was removed or replaced while it is open: stop every service, put it back, start again",
            self.file
        );
        Err(StoreError::Unopened { text, error: sqlx::Error::Io(io::ErrorKind::NotFound.into()) })
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
        let mut writer = MutexGuard::try_map(self.writer.lock().await, Option::as_mut).map_err(|_| closed())?;
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
    pub(crate) async fn durable_turn(&self) -> Result<Turn, StoreError> {
        let writer = self.writer.clone().lock_owned().await;
        OwnedMutexGuard::try_map(writer, Option::as_mut).map_err(|_| closed())
    }

    /// Closes the connections, and before that copies the write-ahead log back into the file where commands may have been
    /// written: whoever stops the service and copies the file alone has every command. SQLite does so by itself only when
    /// nobody else has the file open.
    pub(crate) async fn close(&self) {
        // Those who read for longer are in nobody's way but the last checkpoint's.
        let _ = timeout(READERS_PATIENCE, self.readers.close()).await;
        let Some(mut writer) = self.writer.lock().await.take() else { return };
        if self.serves {
            // A task that was given up may have left a transaction open. Mostly there is none, and SQLite says so.
            let _ = sqlx::query("rollback").execute(&mut writer).await;
            let why = match checkpoints::copy_all_back(&mut writer).await.map_err(end_on_lost_sync) {
                Ok(true) => None,
                Ok(false) => Some("somebody else uses it".to_owned()),
                Err(error) => Some(chain(&error)),
            };
            if let Some(why) = why {
                let file = &self.file;
                tracing::warn!(why, "the newest commands are in {file}-wal: whoever copies {file} has to copy it, too");
            }
        }
        if let Err(error) = writer.close().await {
            tracing::debug!(%error, "the connection did not close");
        }
    }
}

fn closed() -> StoreError {
    sqlx::Error::PoolClosed.into()
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
    // Of `sqlite::memory:` the driver makes a name of its own.
    if file.is_empty() || url.contains(":memory:") || url.contains("mode=memory") {
        return Err(StoreError::NotDurable(format!(
            "{url} is kept in memory and would lose every command; write sqlite://FILE"
        )));
    }
    Ok(options)
}

/// Looks whether there can be a database: SQLite says of everything else only that it cannot open it.
fn find(path: &Path, file: &str, create: bool) -> Result<(), StoreError> {
    let error = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(StoreError::Address(is_a_folder(file))),
        // A new ledger has its first page before it has a log.
        Ok(found) if found.len() == 0 && has_log(file) => {
            return Err(StoreError::Address(format!(
                "{file} is empty, and {file}-wal holds commits that belong to another file of this name: put that back, or \
                 move the log aside"
            )));
        }
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    Err(match error.kind() {
        io::ErrorKind::NotFound if !create => {
            StoreError::Schema(format!("there is no file {file}; look at the path in the database's address"))
        }
        // SQLite would remove it, and with it the newest commits of a file that was moved away.
        io::ErrorKind::NotFound if has_log(file) => StoreError::Address(format!(
            "there is no file {file}, and {file}-wal holds commits that belong to it: put it back, or move that one aside"
        )),
        io::ErrorKind::NotFound => return Ok(()),
        io::ErrorKind::PermissionDenied => StoreError::Address(format!("this user may not look for {file}: {error}")),
        _ => StoreError::Address(format!("cannot read {file}: {error}")),
    })
}

fn has_log(file: &str) -> bool {
    fs::metadata(format!("{file}-wal")).is_ok_and(|log| log.len() > 0)
}

fn is_a_folder(file: &str) -> String {
    format!("{file} is a folder; name a file in it")
}

/// SQLite's primary code of an error, if it is SQLite's.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

fn unopened(error: sqlx::Error, file: &str) -> StoreError {
    let sqlx::Error::Database(refusal) = &error else { return error.into() };
    let said = refusal.message();
    let text = match primary_code(&error) {
        Some(NO_DATABASE) => format!("{file} is no SQLite database; look at the path in --database-url"),
        Some(READ_ONLY) => format!("this user may not write {file} or its folder"),
        Some(NOT_OPENED) => {
            format!("cannot open {file}: {said}; check that its folder exists, and that this user may write both")
        }
        _ => format!("cannot open {file}: {said}"),
    };
    StoreError::Unopened { text, error }
}

/// Refuses a file that holds no ledger but something else, or nothing where one must be. Says whether there is no ledger.
async fn refuse_others(connection: &mut SqliteConnection, file: &str, create: bool) -> Result<bool, StoreError> {
    // Before the version: whoever makes the ledger at this moment has made its first table by the time that others follow.
    let tables = tables(connection).await.map_err(|error| unopened(error, file))?;
    let found = version(connection).await;
    let is_new = schema::is_new(&found);
    if !create {
        schema::check(found, &MIGRATIONS, file)?;
    } else if is_new {
        schema::refuse_tables(&tables, file, schema::OWN_DATABASE)?;
    }
    Ok(is_new)
}

/// Has the file keep a write-ahead log. Those that make a file at once are in each other's way here, and SQLite does not wait
/// in every case.
async fn write_ahead(connection: &mut SqliteConnection, file: &str) -> Result<(), StoreError> {
    let began = Instant::now();
    while let Err(error) = sqlx::query("pragma journal_mode = wal").execute(&mut *connection).await {
        if primary_code(&error) != Some(BUSY) || began.elapsed() >= BUSY_TIMEOUT {
            return Err(unopened(error, file));
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Brings the schema up to date. One that is up to date is left alone: whoever reads need not be who migrates.
async fn migrate(connection: &mut SqliteConnection, file: &str) -> Result<(), StoreError> {
    let began = Instant::now();
    while schema::is_behind(&version(connection).await, &MIGRATIONS) {
        let Err(error) = schema::migrator(&MIGRATIONS).run(&mut *connection).await else { return Ok(()) };
        // No lock is held from one migration to the next, so those that start at once do them together.
        if !may_have_lost_a_race(&error) || began.elapsed() >= BUSY_TIMEOUT {
            return Err(unmigrated(error, file));
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Whether another process that runs the same migration may be why: it has the file, or the table is there already, or the
/// migration's row is.
fn may_have_lost_a_race(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else { return false };
    primary_code(error).is_some_and(|code| [ERROR, BUSY, LOCKED, CONSTRAINT].contains(&code))
}

fn unmigrated(error: MigrateError, file: &str) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if primary_code(&error) == Some(READ_ONLY) =>
        {
            unwritable(error, file)
        }
        error => schema::failed(error, file),
    }
}

/// The tables that are there, but for SQLite's and the migrations' own.
async fn tables(connection: &mut SqliteConnection) -> Result<Vec<String>, sqlx::Error> {
    let sql = "select name from sqlite_master where type = 'table' and name not like 'sqlite\\_%' escape '\\' \
        and name <> '_sqlx_migrations' order by name";
    sqlx::query_scalar(sql).fetch_all(connection).await
}

async fn version(connection: &mut SqliteConnection) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select max(version) from _sqlx_migrations where success").fetch_one(connection).await
}

/// SQLite opens what this user may not write for reading, and says so only to whoever writes.
async fn refuse_read_only(connection: &mut SqliteConnection, file: &str) -> Result<(), StoreError> {
    let attempt = "begin immediate; update partition_heads set position = position where partition = 0";
    let attempted = sqlx::raw_sql(attempt).execute(&mut *connection).await;
    // Where there is nothing to roll back SQLite says so, and that is what was wanted.
    let _ = sqlx::query("rollback").execute(connection).await;
    match attempted {
        Err(error) if primary_code(&error) == Some(READ_ONLY) => Err(unwritable(error, file)),
        // Whatever else is in the way is told where it matters.
        _ => Ok(()),
    }
}

fn unwritable(error: sqlx::Error, file: &str) -> StoreError {
    let text = format!(
        "{file} cannot be written by this user: it, {file}-wal and {file}-shm must belong to whoever runs the service; give \
         them to that user (chown)"
    );
    StoreError::Unopened { text, error }
}

/// What a process that ended left in the write-ahead log may not be on the disk, whatever the operating system says: all of
/// it is written back and waited for before anything is added to it.
async fn write_log_anew(connection: &mut SqliteConnection, file: &str) -> Result<(), StoreError> {
    match checkpoints::checkpoint(connection, "passive").await {
        Err(error) if error.is_lost_sync() => Err(error),
        Err(error) => {
            tracing::warn!(error = %chain(&error), file, "the write-ahead log could not be copied back");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
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
