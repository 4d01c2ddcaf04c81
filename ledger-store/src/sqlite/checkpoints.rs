//! Copies the write-ahead log back into the database's file, beside the commits.
//!
//! Left to itself, SQLite does this in the commit that makes the log long enough, and everybody waits for it. Here a
//! connection of its own copies nearly all of it while commits go on (a passive checkpoint blocks nobody), and only the
//! rest is copied in a turn of its own, so that the log can begin anew: it does when nobody reads from it any more, which
//! has to be waited for, because somebody always reads. See <https://sqlite.org/wal.html#ckpt>.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{sync::Notify, task::AbortHandle, time::sleep};

use super::Sqlite;
use crate::{StoreError, error::chain};

/// Pages of the log that are worth a checkpoint: 64 MiB.
const PAGES: u64 = 16_000;
/// Should checkpoints fail, commits make their own once the log has so many pages: 512 MiB.
const FALLBACK: &str = "pragma wal_autocheckpoint = 131072";
/// Pages that may be left for the turn in which nobody commits: some milliseconds.
const PAGES_LEFT: u64 = 500;
/// How often all is copied that came meanwhile, until so little is left.
const PASSES_MAX: usize = 4;
/// How long that turn waits for those who read from the log. Commands wait meanwhile, and most reads are shorter.
const READERS_PATIENCE: Duration = Duration::from_millis(5);
/// The pause before it is tried again when somebody read for longer, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long it waits after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// How many pages were written since the last checkpoint, about: rather more than fewer. SQLite is asked how many there
/// are when it seems to be time.
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

impl Sqlite {
    /// Starts to make checkpoints, until the handle aborts it.
    pub(crate) fn start_checkpoints(&self) -> AbortHandle {
        let database = self.clone();
        let task = tokio::spawn(async move {
            while let Err(error) = database.make_checkpoints().await {
                tracing::warn!(error = %chain(&error), "the write-ahead log could not be copied back; trying again");
                sleep(RETRY).await;
            }
        });
        task.abort_handle()
    }

    async fn make_checkpoints(&self) -> Result<(), StoreError> {
        let options = SqliteConnectOptions::clone(&self.options).busy_timeout(READERS_PATIENCE);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::query(FALLBACK).execute(&mut *self.writer.lock().await).await?;
        let written: Arc<Written> = self.written.clone();
        loop {
            written.enough.notified().await;
            if self.pages_left(&mut connection).await? < PAGES {
                continue;
            }
            let mut pause = PAUSE;
            while !self.copy_back(&mut connection).await? {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Copies the log, all of it at last. False when somebody still reads from it: then the next commit does not begin it anew.
    async fn copy_back(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        for _ in 0..PASSES_MAX {
            checkpoint(connection, "passive").await?;
            if self.pages_left(connection).await? <= PAGES_LEFT {
                break;
            }
        }
        // Nobody of this process commits meanwhile.
        let turn = self.writer.lock().await;
        let (is_busy, pages, copied) = checkpoint(connection, "restart").await?;
        self.written.pages.store(0, Ordering::Relaxed);
        drop(turn);
        tracing::debug!(is_busy, pages, copied, "the write-ahead log was copied back");
        Ok(!is_busy)
    }

    /// Pages of the log that are not copied yet.
    async fn pages_left(&self, connection: &mut SqliteConnection) -> Result<u64, StoreError> {
        let (_, pages, copied) = checkpoint(connection, "noop").await?;
        let left = pages.saturating_sub(copied);
        self.written.pages.store(left, Ordering::Relaxed);
        Ok(left)
    }
}

/// Makes a checkpoint of this kind. Tells whether somebody was in its way, the log's pages, and how many of them are copied.
async fn checkpoint(connection: &mut SqliteConnection, kind: &str) -> Result<(bool, u64, u64), StoreError> {
    let (is_busy, pages, copied): (bool, i64, i64) =
        sqlx::query_as(AssertSqlSafe(format!("pragma wal_checkpoint({kind})"))).fetch_one(connection).await?;
    // -1 before there is any log.
    let number = |pages| u64::try_from(pages).unwrap_or(0);
    Ok((is_busy, number(pages), number(copied)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn write(database: &Sqlite) {
        let mut turn = database.relaxed_turn().await.expect("a turn");
        let written = sqlx::query("insert into scratch values (zeroblob(400000))").execute(turn.connection()).await;
        written.expect("a row");
    }

    #[tokio::test]
    async fn the_log_begins_anew_once_nobody_reads_from_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("ledger.db").display());
        let database = Sqlite::open(&url, true).await.expect("a ledger");
        let create = sqlx::query("create table scratch (bytes blob)");
        create.execute(database.relaxed_turn().await.expect("a turn").connection()).await.expect("a table");
        let options = SqliteConnectOptions::clone(&database.options).busy_timeout(READERS_PATIENCE);
        let mut connection = SqliteConnection::connect_with(&options).await.expect("a connection");

        let mut reader = database.readers().begin().await.expect("a reader");
        sqlx::query("select count(*) from scratch").execute(&mut *reader).await.expect("a read");
        write(&database).await;
        assert!(!database.copy_back(&mut connection).await.expect("a checkpoint"), "somebody reads from the log");
        reader.rollback().await.expect("the end of it");
        assert!(database.copy_back(&mut connection).await.expect("a checkpoint"));
        assert_eq!(database.pages_left(&mut connection).await.expect("a look"), 0);

        let (_, before, _) = checkpoint(&mut connection, "noop").await.expect("a look");
        assert!(before > 100, "the row takes a hundred pages, there are {before}");
        write(&database).await;
        let (_, after, copied) = checkpoint(&mut connection, "noop").await.expect("a look");
        assert!(after < before && copied == 0, "{before} pages before, then {after} with {copied} copied");
        database.close().await;
    }
}
