//! What goes wrong with a database.

use std::{borrow::Cow, io::ErrorKind};

use ledger_core::{Partition, Position};

/// A stored row that is no event: a column holds what the ledger never wrote there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition} position {position}: column {column} {reason}")]
pub struct DamagedRow {
    pub partition: Partition,
    pub position: Position,
    pub column: &'static str,
    pub reason: String,
}

/// The database did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address of the database cannot be used; the text says what to write instead.
    #[error("{0}")]
    Address(String),
    /// The database would lose acknowledged commands; the text names the setting.
    #[error("{0}")]
    NotDurable(String),
    /// The database could not be opened; the text says where and what to look at.
    #[error("{text}")]
    Unopened { text: String, error: sqlx::Error },
    /// There is no ledger in the database.
    #[error("{0}")]
    Schema(String),
    /// The ledger in the database is of another version of the schema; the text says which program to run.
    #[error("{0}")]
    Version(String),
    /// The database contradicts itself or what this process has seen of it; nothing may be decided on it.
    #[error("{0}")]
    Inconsistent(String),
    /// A row cannot be read as an event.
    #[error("damaged event")]
    Damaged(#[from] DamagedRow),
    /// The migrations could not be run.
    #[error("could not bring the schema up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database could not be reached, or refused.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What PostgreSQL answers when it ends or refuses a session, or when others are in the way; said of the moment, not of
/// the data (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const PASSING: [&str; 8] = ["25P03", "40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03"];
/// A session that was idle for too long, and the class of lost connections.
const IDLE_SESSION: &str = "57P05";
const CONNECTION_CLASS: &str = "08";
/// SQLite's primary codes for the same, `SQLITE_BUSY` and `SQLITE_LOCKED` (<https://sqlite.org/rescode.html>).
const PASSING_ON_SQLITE: [i32; 2] = [5, 6];

/// What PostgreSQL answers when a file, a table, a column or a function that must be there is not.
const MISSING: [&str; 5] = ["58P01", "42P01", "42703", "42704", "42883"];
/// The classes of values that cannot be, and of pages that cannot be read.
const DATA_CLASS: &str = "22";
const DAMAGE_CLASS: &str = "XX";
/// SQLite's primary codes for a damaged file and for one that is no database at all, `SQLITE_CORRUPT` and `SQLITE_NOTADB`.
const DAMAGE_ON_SQLITE: [i32; 2] = [11, 26];
/// SQLite's codes for a part of the file that the disk does not give: `SQLITE_IOERR_READ`, `_SHORT_READ`, `_DATA` and `_CORRUPTFS`.
const UNREADABLE_ON_SQLITE: [i32; 4] = [266, 522, 8_202, 8_458];
/// SQLite's codes for a flush that failed: `SQLITE_IOERR_FSYNC` and `_DIR_FSYNC`.
const LOST_ON_SQLITE: [i32; 2] = [1_034, 1_290];

impl StoreError {
    /// Whether the same may succeed a moment later: a connection was lost, none was free, or others held a lock. It says
    /// nothing about what the database holds.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let Some(error) = self.of_the_driver() else { return false };
        match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Io(error) if LOST.contains(&error.kind()) => true,
            _ => match Code::of(error) {
                Some(Code::Postgres(code)) => {
                    PASSING.contains(&&*code) || code == IDLE_SESSION || code.starts_with(CONNECTION_CLASS)
                }
                Some(Code::Sqlite(code)) => PASSING_ON_SQLITE.contains(&(code & 0xff)),
                None => false,
            },
        }
    }

    /// Whether it says that what is stored is damaged. Everything else (rights, room, a server that does not answer) says
    /// nothing about that, and is no reason to put anything in its place.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        if matches!(self, Self::Inconsistent(_) | Self::Damaged(_)) {
            return true;
        }
        let Some(error) = self.of_the_driver() else { return false };
        match error {
            sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_) => true,
            _ => match Code::of(error) {
                Some(Code::Postgres(code)) => {
                    MISSING.contains(&&*code) || code.starts_with(DATA_CLASS) || code.starts_with(DAMAGE_CLASS)
                }
                Some(Code::Sqlite(code)) => {
                    DAMAGE_ON_SQLITE.contains(&(code & 0xff))
                        || UNREADABLE_ON_SQLITE.contains(&code)
                        || is_missing(error)
                }
                None => of_rusqlite(error).is_some_and(|error| error.sqlite_error().is_none()),
            },
        }
    }

    /// Whether the disk did not take what SQLite told it to keep.
    #[must_use]
    pub fn is_lost_sync(&self) -> bool {
        let code = self.of_the_driver().and_then(Code::of);
        matches!(code, Some(Code::Sqlite(code)) if LOST_ON_SQLITE.contains(&code))
    }

    /// Whether a table or a column that must be there is not.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.of_the_driver().is_some_and(is_missing)
    }

    const fn of_the_driver(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error)
            | Self::Unopened { error, .. }
            | Self::Migrate(sqlx::migrate::MigrateError::Execute(error)) => Some(error),
            _ => None,
        }
    }
}

/// How a connection is lost.
const LOST: [ErrorKind; 9] = [
    ErrorKind::BrokenPipe,
    ErrorKind::ConnectionAborted,
    ErrorKind::ConnectionRefused,
    ErrorKind::ConnectionReset,
    ErrorKind::HostUnreachable,
    ErrorKind::NetworkUnreachable,
    ErrorKind::NotConnected,
    ErrorKind::TimedOut,
    ErrorKind::UnexpectedEof,
];

/// What a database says of an error besides its words.
enum Code<'e> {
    Postgres(Cow<'e, str>),
    /// With the extended part.
    Sqlite(i32),
}

impl<'e> Code<'e> {
    fn of(error: &'e sqlx::Error) -> Option<Self> {
        if let sqlx::Error::Database(refusal) = error {
            let code = refusal.code()?;
            // All of PostgreSQL's have five characters, of SQLite's the longest four.
            return if code.len() == 5 { Some(Self::Postgres(code)) } else { code.parse().ok().map(Self::Sqlite) };
        }
        Some(Self::Sqlite(of_rusqlite(error)?.sqlite_error()?.extended_code))
    }
}

/// The other driver of SQLite reads the log in bulk.
impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(sqlx::Error::Io(std::io::Error::other(error)))
    }
}

fn of_rusqlite(error: &sqlx::Error) -> Option<&rusqlite::Error> {
    let sqlx::Error::Io(error) = error else { return None };
    error.get_ref()?.downcast_ref()
}

pub(crate) fn is_missing(error: &sqlx::Error) -> bool {
    match Code::of(error) {
        Some(Code::Postgres(code)) => MISSING.contains(&&*code),
        // SQLite has no code for it but that of every error in a statement.
        Some(Code::Sqlite(1)) => ["no such table", "no such column", "has no column named"]
            .iter()
            .any(|words| error.to_string().contains(words)),
        _ => false,
    }
}

/// Ends the process at once where the disk did not take what SQLite told it to keep, and gives every other error back: for
/// whatever waits for the disk.
#[must_use]
pub fn end_on_lost_sync(error: StoreError) -> StoreError {
    if error.is_lost_sync() {
        end_with_lost_sync(&chain(&error));
    }
    error
}

/// Ends the process, because a flush failed.
///
/// The operating system says so once and takes what it could not write for written: the next flush would succeed without it, and
/// what is acknowledged after that would stand behind a hole in the log, and be gone when the power fails. The next start
/// writes all of the log anew. Nothing is closed on the way out, because to close the file would copy the log back and
/// delete it.
pub(crate) fn end_with_lost_sync(why: &str) -> ! {
    tracing::error!(
        error = why,
        "the disk did not keep what it was told to, and would not say so again: this process ends; look at the disk and start it again"
    );
    std::process::abort()
}

/// An error and what caused it, in one line: Display of each level says one thing.
#[must_use]
pub fn chain(error: &StoreError) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Some libraries repeat the cause in their own words.
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Error, ErrorKind},
        path::Path,
        time::Duration,
    };

    use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::Database;

    fn address(file: &Path) -> String {
        format!("sqlite://{}", file.display())
    }

    async fn opened(file: &Path) -> StoreError {
        Database::open_existing(&address(file)).await.map(|_| ()).expect_err("it cannot be opened")
    }

    /// One that waits so long for others.
    async fn connection(file: &Path, patience: Duration) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(file).busy_timeout(patience);
        options.connect().await.expect("the file is there")
    }

    /// What is said of the moment, and what of the data.
    fn judged(error: &StoreError) -> (bool, bool) {
        (error.is_passing(), error.is_damage())
    }

    #[tokio::test]
    async fn a_sqlite_file_that_others_hold_is_not_damaged_and_one_of_garbage_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ledger.db");
        Database::open(&address(&file)).await.expect("a new ledger").close().await;
        let mut holder = connection(&file, Duration::from_secs(10)).await;
        sqlx::raw_sql("pragma locking_mode = exclusive; begin exclusive").execute(&mut holder).await.expect("free");
        let mut other = connection(&file, Duration::ZERO).await;
        let locked = sqlx::query("select * from events").execute(&mut other).await.expect_err("somebody has it");
        assert_eq!(judged(&locked.into()), (true, false));
        let by_rusqlite = rusqlite::Connection::open(&file).expect("opened later");
        by_rusqlite.busy_timeout(Duration::ZERO).expect("set");
        let locked = by_rusqlite.query_row("select 1 from events", [], |_| Ok(())).expect_err("somebody has it");
        assert_eq!(judged(&locked.into()), (true, false));
        holder.close().await.expect("closed");

        let gone = sqlx::query("select * from absent").execute(&mut other).await.expect_err("there is none");
        let gone = StoreError::from(gone);
        assert_eq!((judged(&gone), gone.is_missing()), ((false, true), true), "{gone:?}");
        let wrong = sqlx::query("select 1 +").execute(&mut other).await.expect_err("half a statement");
        assert_eq!(judged(&wrong.into()), (false, false));
        other.close().await.expect("closed");

        fs::write(&file, [0x5a; 8_192]).expect("own file");
        let garbage = opened(&file).await;
        assert_eq!(judged(&garbage), (false, true), "{garbage}");
        let missing = opened(&folder.path().join("other.db")).await;
        assert_eq!(judged(&missing), (false, false), "{missing}");
    }

    #[test]
    fn a_flush_that_failed_is_told_from_every_other_error() {
        let of = |code| StoreError::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        for code in [1_034, 1_290] {
            assert!(of(code).is_lost_sync(), "{code}");
            assert_eq!(judged(&of(code)), (false, false), "{code}");
        }
        // Others hold it, no more is said, damaged, no room, cannot be read, written, cut short or locked.
        for code in [5, 10, 11, 13, 266, 778, 1_546, 3_850] {
            assert!(!of(code).is_lost_sync(), "{code}");
        }
        assert!(!StoreError::from(sqlx::Error::Io(Error::from(ErrorKind::StorageFull))).is_lost_sync());
    }

    #[tokio::test]
    async fn what_the_moment_or_the_machine_does_is_no_damage() {
        let nobody_listens = "postgres://postgres@127.0.0.1:9/ledger";
        let refused = Database::open_existing(nobody_listens).await.map(|_| ()).expect_err("nobody listens");
        assert_eq!(judged(&refused), (true, false), "{refused}");
        assert!(refused.to_string().contains("whether the server runs"));
        for (error, is_passing, is_damage) in [
            (sqlx::Error::PoolTimedOut, true, false),
            (sqlx::Error::Io(Error::from(ErrorKind::ConnectionReset)), true, false),
            (sqlx::Error::Io(Error::from(ErrorKind::PermissionDenied)), false, false),
            (sqlx::Error::Io(Error::from(ErrorKind::StorageFull)), false, false),
            (sqlx::Error::RowNotFound, false, true),
            (sqlx::Error::Decode("no number".into()), false, true),
        ] {
            let error = StoreError::from(error);
            assert_eq!(judged(&error), (is_passing, is_damage), "{error:?}");
        }
        for (error, is_damage) in [
            (StoreError::Inconsistent("the head of partition 3 is missing".to_owned()), true),
            (StoreError::NotDurable("fsync is off".to_owned()), false),
            (StoreError::Version("schema version 9".to_owned()), false),
            (StoreError::Address("no address".to_owned()), false),
        ] {
            assert_eq!(judged(&error), (false, is_damage), "{error}");
        }
    }
}
