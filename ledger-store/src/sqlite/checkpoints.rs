//! Copies the write-ahead log back into the database's file, beside the commits.
//!
//! Left to itself, SQLite does this in the commit that makes the log long enough, and everybody waits for it. Here a
//! connection of its own copies nearly all of it while commits go on (a passive checkpoint blocks nobody), and only the
//! rest is copied in a turn of its own, so that the log can begin anew: it does when nobody reads from it any more, which
//! has to be waited for, because somebody always reads. See <https://sqlite.org/wal.html#ckpt>.

use std::{
    fs::File,
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{sync::Notify, task::AbortHandle, time::sleep};

use super::{Sqlite, files::never_closed};
use crate::{
    StoreError,
    error::{chain, end_on_lost_sync, end_with_lost_sync},
};

/// Pages of the log that are worth a checkpoint: 64 MiB.
const PAGES: u64 = 16_000;
/// Should checkpoints fail, commits make their own once the log has so many pages: 512 MiB.
const FALLBACK: &str = "pragma wal_autocheckpoint = 131072";
/// Pages that had better be left at most for the turn in which nobody commits, and that may be left: some milliseconds, and some
/// tenths of a second. There are more when somebody reads from the log for long.
const PAGES_LEFT: u64 = 500;
const PAGES_LEFT_MAX: u64 = 2 * PAGES;
/// How often all is copied that came meanwhile, until so little is left.
const PASSES_MAX: usize = 4;
/// How long that turn waits for those who read from the log. Commands wait meanwhile, and most reads are shorter.
const READERS_PATIENCE: Duration = Duration::from_millis(5);
/// The pause before it is tried again when somebody read for longer, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long it waits after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How long who stops waits for those who are in the way of the last checkpoint.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How many pages the log has, about. SQLite is asked when it seems to be time.
#[derive(Debug, Default)]
pub(super) struct Written {
    pages: AtomicU64,
    enough: Notify,
}

impl Written {
    pub(super) fn add(&self, pages: usize) {
        let pages = u64::try_from(pages).unwrap_or(PAGES);
        if self.pages.fetch_add(pages, Ordering::Relaxed) + pages >= PAGES {
            self.enough.notify_one();
        }
    }
}

type NeverClosed = Arc<ManuallyDrop<File>>;

impl Sqlite {
    /// Starts to make checkpoints, until the handle aborts it.
    pub(crate) fn start_checkpoints(&self) -> AbortHandle {
        let database = self.clone();
        let task = tokio::spawn(async move {
            let mut file = None;
            while let Err(error) = database.make_checkpoints(&mut file).await.map_err(end_on_lost_sync) {
                tracing::warn!(error = %chain(&error), "the write-ahead log could not be copied back; trying again");
                sleep(RETRY).await;
            }
        });
        task.abort_handle()
    }

    async fn make_checkpoints(&self, file: &mut Option<NeverClosed>) -> Result<(), StoreError> {
        let options = SqliteConnectOptions::clone(&self.options).busy_timeout(READERS_PATIENCE);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::query(FALLBACK).execute(&mut *self.durable_turn().await?).await?;
        let file = match file {
            Some(file) => &*file,
            None => file.insert(Arc::new(never_closed(&*self.file).map_err(sqlx::Error::Io)?)),
        };
        let written: Arc<Written> = self.written.clone();
        loop {
            written.enough.notified().await;
            let (is_busy, pages, _) = checkpoint(&mut connection, "noop").await?;
            if pages < PAGES && !is_busy {
                written.pages.store(pages, Ordering::Relaxed);
                continue;
            }
            let mut pause = PAUSE;
            while !self.copy_back(&mut connection, file).await? {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Copies the log, all of it at last. False when somebody is in the way, mostly one who still reads from it: then the next
    /// commit does not begin it anew.
    async fn copy_back(&self, connection: &mut SqliteConnection, file: &NeverClosed) -> Result<bool, StoreError> {
        let mut left = u64::MAX;
        for _ in 0..PASSES_MAX {
            checkpoint(connection, "passive").await?;
            // SQLite waits for the disk only with the last page of the log, and so while nobody may commit.
            let file = file.clone();
            let synced = tokio::task::spawn_blocking(move || file.sync_data());
            if let Err(error) = synced.await.unwrap_or(Ok(())) {
                // The pages that were copied would count as kept, and the log would begin anew over them.
                end_with_lost_sync(&error.to_string());
            }
            let (is_busy, pages, copied) = checkpoint(connection, "noop").await?;
            left = if is_busy { u64::MAX } else { pages.saturating_sub(copied) };
            if left <= PAGES_LEFT {
                break;
            }
        }
        if left > PAGES_LEFT_MAX {
            return Ok(false);
        }
        // Nobody of this process commits meanwhile.
        let turn = self.writer.lock().await;
        let began = Instant::now();
        let (is_busy, pages, copied) = checkpoint(connection, "restart").await?;
        self.written.pages.store(0, Ordering::Relaxed);
        drop(turn);
        tracing::debug!(is_busy, pages, copied, left, took = ?began.elapsed(), "the write-ahead log was copied back");
        Ok(!is_busy)
    }
}

/// Copies the whole log, after the last commit. False when others were in the way all the time.
pub(super) async fn copy_all_back(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let began = Instant::now();
    loop {
        // A passive one keeps nobody from going on, whoever else has the file open.
        let (is_busy, pages, copied) = checkpoint(connection, "passive").await?;
        if !is_busy && copied >= pages {
            return Ok(true);
        }
        if began.elapsed() >= LAST_PATIENCE {
            return Ok(false);
        }
        sleep(PAUSE).await;
    }
}

/// Makes a checkpoint of this kind. Tells whether somebody was in its way, the log's pages, and how many of them are copied.
pub(super) async fn checkpoint(connection: &mut SqliteConnection, kind: &str) -> Result<(bool, u64, u64), StoreError> {
    let (is_busy, pages, copied): (bool, i64, i64) =
        sqlx::query_as(AssertSqlSafe(format!("pragma wal_checkpoint({kind})"))).fetch_one(connection).await?;
    // -1 before there is any log.
    let number = |pages| u64::try_from(pages).unwrap_or(0);
    Ok((is_busy, number(pages), number(copied)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::copy_of_open;

    async fn write(database: &Sqlite) {
        let mut turn = database.relaxed_turn().await.expect("a turn");
        let written = sqlx::query("insert into scratch values (zeroblob(400000))").execute(turn.connection()).await;
        written.expect("a row");
    }

    /// A ledger with a table to write to.
    async fn ledger(folder: &tempfile::TempDir) -> Sqlite {
        let url = format!("sqlite://{}", folder.path().join("ledger.db").display());
        let database = Sqlite::open(&url, true).await.expect("a ledger");
        let create = sqlx::query("create table scratch (bytes blob)");
        create.execute(database.relaxed_turn().await.expect("a turn").connection()).await.expect("a table");
        database
    }

    /// How long the log is.
    async fn pages(connection: &mut SqliteConnection) -> u64 {
        checkpoint(connection, "noop").await.expect("a look").1
    }

    #[tokio::test]
    async fn a_long_log_begins_anew_after_a_long_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = ledger(&folder).await;
        let mut connection = SqliteConnection::connect_with(&database.options).await.expect("a connection");
        let upkeep = database.start_checkpoints();
        let mut reader = database.readers().begin().await.expect("a reader");
        sqlx::query("select count(*) from scratch").execute(&mut *reader).await.expect("a read");
        while pages(&mut connection).await < PAGES + PAGES / 8 {
            write(&database).await;
        }
        reader.rollback().await.expect("the end of it");
        let begun_anew = async {
            while pages(&mut connection).await > PAGES {
                write(&database).await;
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), begun_anew).await.expect("the log begins anew");
        upkeep.abort();
        database.close().await;
    }

    /// Part of it may not be on the disk, whatever the operating system says.
    #[tokio::test]
    async fn what_a_crash_left_in_the_log_is_copied_back_before_anything_else() {
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let database = ledger(&folders[0]).await;
        write(&database).await;
        // As a crash would leave them.
        for name in ["ledger.db", "ledger.db-wal"] {
            let [from, to] = [0, 1].map(|folder| folders[folder].path().join(name));
            copy_of_open(&from, &to).expect("there is room");
        }
        database.close().await;
        let url = format!("sqlite://{}", folders[1].path().join("ledger.db").display());
        let database = Sqlite::open(&url, true).await.expect("a ledger");
        let mut turn = database.durable_turn().await.expect("a turn");
        let (_, pages, copied) = checkpoint(&mut turn, "noop").await.expect("a look");
        assert!(pages > 100 && copied == pages, "the row takes a hundred pages, there are {pages}, {copied} copied");
        drop(turn);
        database.close().await;
    }

    #[tokio::test]
    async fn a_ledger_that_was_closed_is_whole_in_its_file_even_beside_somebody_who_has_it_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let [file, copy] = ["ledger.db", "copy.db"].map(|name| folder.path().join(name));
        let database = ledger(&folder).await;
        for round in 1..=5 {
            let reopened = Sqlite::open(&format!("sqlite://{}", file.display()), true).await.expect("a ledger");
            let mut other = SqliteConnection::connect_with(&reopened.options).await.expect("a connection");
            sqlx::query("select count(*) from scratch").execute(&mut other).await.expect("a read");
            write(&reopened).await;
            let clone = reopened.clone();
            reopened.close().await;
            assert!(clone.relaxed_turn().await.is_err(), "closed is closed");
            copy_of_open(&file, &copy).expect("there is room");
            let mut alone =
                SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&copy)).await.expect("it");
            let rows: i64 =
                sqlx::query_scalar("select count(*) from scratch").fetch_one(&mut alone).await.expect("a read");
            assert_eq!(rows, round);
            alone.close().await.expect("closed");
        }
        database.close().await;
    }

    #[tokio::test]
    async fn the_log_begins_anew_once_nobody_reads_from_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = ledger(&folder).await;
        let options = SqliteConnectOptions::clone(&database.options).busy_timeout(READERS_PATIENCE);
        let mut connection = SqliteConnection::connect_with(&options).await.expect("a connection");
        let file = Arc::new(never_closed(&*database.file).expect("the file"));

        let mut reader = database.readers().begin().await.expect("a reader");
        sqlx::query("select count(*) from scratch").execute(&mut *reader).await.expect("a read");
        write(&database).await;
        assert!(
            !database.copy_back(&mut connection, &file).await.expect("a checkpoint"),
            "somebody reads from the log"
        );
        reader.rollback().await.expect("the end of it");
        assert!(database.copy_back(&mut connection, &file).await.expect("a checkpoint"));
        let (_, before, copied) = checkpoint(&mut connection, "noop").await.expect("a look");
        assert!(before > 100 && copied == before, "the row takes a hundred pages, there are {before}, {copied} copied");
        write(&database).await;
        let (_, after, copied) = checkpoint(&mut connection, "noop").await.expect("a look");
        assert!(after < before && copied == 0, "{before} pages before, then {after} with {copied} copied");
        database.close().await;
    }
}
