//! The ledger on SQLite.

use std::sync::Arc;

use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, MutexGuard};

/// A SQLite file that holds a ledger.
///
/// SQLite has one writer at a time. Inside this process the turns are taken here, in order of arrival, because SQLite's
/// own waiting is sleeping and trying again.
#[derive(Debug, Clone)]
pub struct Sqlite {
    readers: SqlitePool,
    writers: Arc<Mutex<Writers>>,
}

#[derive(Debug)]
struct Writers {
    /// `synchronous = NORMAL`: for what can be made again from the log.
    relaxed: SqliteConnection,
}

/// The turn to write what can be made again from the log (read models, indexes, checkpoints). No commit waits for the
/// disk here; order is kept, so after a crash a prefix of the commits is there.
pub struct RelaxedTurn<'a>(MutexGuard<'a, Writers>);

impl Sqlite {
    /// Connections for reading.
    #[must_use]
    pub const fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Waits for the turn to write. Keep it for milliseconds: commands wait meanwhile. Use it in a spawned task, begin
    /// with `begin immediate`, and end the transaction in every case.
    pub async fn relaxed_turn(&self) -> RelaxedTurn<'_> {
        RelaxedTurn(self.writers.lock().await)
    }
}

impl RelaxedTurn<'_> {
    /// The connection to write with.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.0.relaxed
    }
}
