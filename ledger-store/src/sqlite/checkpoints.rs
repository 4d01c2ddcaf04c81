//! Copies the write-ahead log back into the database's file, beside the commits.
//!
//! Left to itself, SQLite does this in the commit that makes the log long enough, and everybody waits for it. Here a
//! connection of its own copies nearly all of it while commits go on (a passive checkpoint blocks nobody), and only the
//! rest is copied in a turn of its own, so that the log can begin anew. See <https://sqlite.org/wal.html#ckpt>.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection, SqliteConnection};
use tokio::{sync::Notify, task::AbortHandle, time::sleep};

use super::Sqlite;
use crate::{StoreError, error::chain};

/// Pages of the log that are worth a checkpoint: 32 MiB.
const PAGES: u64 = 8_000;
/// Should checkpoints fail, commits make their own once the log has so many pages: 512 MiB.
const FALLBACK: &str = "pragma wal_autocheckpoint = 131072";
/// How long it waits after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// How many pages were written since the last checkpoint, about.
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
        let mut connection = SqliteConnection::connect_with(&self.options).await?;
        sqlx::query(FALLBACK).execute(&mut *self.writer.lock().await).await?;
        let written: Arc<Written> = self.written.clone();
        loop {
            written.enough.notified().await;
            written.pages.store(0, Ordering::Relaxed);
            checkpoint(&mut connection).await?;
            // Nobody commits meanwhile, and little is left: then the next commit begins the log anew.
            let turn = self.writer.lock().await;
            checkpoint(&mut connection).await?;
            drop(turn);
        }
    }
}

/// As much as can be copied without waiting for anybody.
async fn checkpoint(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("pragma wal_checkpoint(passive)").execute(connection).await?;
    Ok(())
}
