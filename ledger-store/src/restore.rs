//! Puts a whole log into a database, in one step that is either done or not.
//!
//! Events come partition by partition and in order; each is checked against the chain before it is written. The event table,
//! the heads and the indexes behind the log are written here, and with them what a [`Fold`] makes of the events: read models.
//! Without one those stay empty, and a rebuild makes them.

mod parts;

pub(crate) use parts::{Part, Parts};

use std::sync::Arc;

use futures::future::BoxFuture;
use ledger_core::{Epoch, Event, Head, PARTITIONS, Partition, Timestamp};
use sqlx::{PgConnection, SqliteConnection};

use crate::{Database, StoreError, postgres::Postgres, sqlite::Sqlite};

/// The tables that a restore makes out of the log, each with its kind. The list stands beside the schema: nothing in this
/// crate, whose writer decides, knows a read model by name.
fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = include_str!("../../migrations/made-from-the-log.txt").lines();
    lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '))
}

/// The tables that a restore makes out of the log. All others (who may call, for one) are taken along from the database that
/// is replaced.
pub(crate) fn made_from_log() -> impl Iterator<Item = &'static str> {
    listed().map(|(_, table)| table)
}

/// Those of them that projectors write, in the order in which they lock them.
pub(crate) fn read_models() -> impl Iterator<Item = &'static str> {
    listed().filter(|(kind, _)| *kind == "read-model").map(|(_, table)| table)
}

/// What becomes of the ledger that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// There must be none, or one without a single event.
    Empty,
    /// It is kept aside: on PostgreSQL in the schema `ledger_before_<epoch>`, on SQLite in `FILE.before-<epoch>`.
    Replace,
}

/// A partition's events, in order; a text says why they cannot be had.
pub type Events = Box<dyn Iterator<Item = Result<Event, String>> + Send>;

/// Begins to fold a partition.
pub type BeginFold = Box<dyn Fn(Partition) -> Box<dyn Fold> + Send + Sync>;

/// Makes rows (of read models) out of a partition's events while those are written.
pub trait Fold: Send {
    /// Takes the next event, which follows the one before it.
    ///
    /// # Errors
    ///
    /// Why it cannot stand there though the chain holds: then nothing is restored.
    fn add(&mut self, event: &Event) -> Result<(), String>;

    /// The rows, after the last event, and those of partitions before that were kept back; all of them with the last
    /// partition. `at` is the event's place, or where the new epoch begins if there is none.
    fn finish(self: Box<Self>, at: Head) -> Option<Box<dyn Rows>>;
}

/// Rows that are written in a restore's own transaction, into tables that are empty, but for checkpoints.
pub trait Rows: Send + Sync {
    /// The tables are the ones that the names without a schema mean.
    fn write_on_postgres<'c>(&'c self, connection: &'c mut PgConnection) -> BoxFuture<'c, Result<(), StoreError>>;
    fn write_on_sqlite<'c>(&'c self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Result<(), StoreError>>;
}

/// A log that is to be put into a database.
pub struct Log {
    /// Names where it comes from, in the table `restores`.
    pub archive_id: String,
    /// The epoch in which the ledger goes on.
    pub epoch: Epoch,
    /// Where each partition ends. The epochs play no part.
    pub heads: [Head; PARTITIONS],
    pub restored_at: Timestamp,
    /// The events of a partition, from its first to its head. Called once for each, in order, outside the runtime.
    pub events: Box<dyn Fn(Partition) -> Events + Send + Sync>,
    /// Makes what stands beside the log and is written in the same step, of each partition on its own.
    pub fold: Option<BeginFold>,
    /// Told how many events more were read.
    pub progress: Box<dyn Fn(u64) + Send + Sync>,
    /// The caller holds PostgreSQL's lock of appends in a session of its own, so that nothing can be written between its
    /// last look at the old ledger and its end. Then it is not waited for here.
    pub appends_are_held: bool,
    /// What [`standing`] told of the ledger that is replaced before its log was read. When it is something else at the end,
    /// commands were done meanwhile, and nothing is replaced.
    pub standing: Option<String>,
}

/// What was put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub events: u64,
    /// Where the ledger that was replaced is kept.
    pub kept: Option<String>,
    /// Tables that are taken along and that were not there any more, or could not be read: what they held is not there now.
    pub left_out: Vec<String>,
}

/// Where the log of a partition stood when it began a new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    pub partition: Partition,
    /// Epoch: the new one. Position and hash: of the newest event that stayed valid.
    pub head: Head,
    pub restored_at: Timestamp,
    pub archive_id: String,
}

/// Why nothing was put there.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{0} holds a ledger with events already; name an empty database")]
    NotEmpty(String),
    #[error("{0}")]
    InUse(String),
    /// Commands were done while the log was put together.
    #[error("commands were done in {0} after its log was read; nothing was changed: run this again")]
    WentOn(String),
    /// The events themselves.
    #[error("{0}")]
    Refused(String),
    /// A file cannot be written.
    #[error("{0}")]
    Files(String),
    #[error("the database failed")]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RestoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<sqlx::migrate::MigrateError> for RestoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Store(error.into())
    }
}

/// What is at an address before a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No ledger, and room for one.
    Nothing,
    /// A ledger without a single event.
    EmptyLedger,
    /// A ledger.
    Ledger,
}

/// Looks what is at an address, and changes nothing.
///
/// # Errors
///
/// When the database cannot be reached or read, or holds something else under the names of a ledger's tables.
pub async fn look(url: &str) -> Result<Found, StoreError> {
    if url.starts_with("sqlite:") { Sqlite::look(url).await } else { Postgres::look(url).await }
}

/// Puts the log into the database at `url`, with a schema of its own making.
///
/// # Errors
///
/// See [`RestoreError`]; in every case the database is as it was.
pub async fn restore(url: &str, target: Target, log: Log) -> Result<Restored, RestoreError> {
    let log = Arc::new(log);
    if url.starts_with("sqlite:") {
        Sqlite::restore(url, target, log).await
    } else {
        Postgres::restore(url, target, log).await
    }
}

/// Waits until no restore is under way at `url`: PostgreSQL may still commit one whose tool was killed. On SQLite it ends
/// with its process.
///
/// # Errors
///
/// [`RestoreError::InUse`] when one is still under way after 15 s; when the database cannot be reached.
pub async fn wait_for_others(url: &str) -> Result<(), RestoreError> {
    if url.starts_with("sqlite:") { Ok(()) } else { Postgres::wait_for_other_restores(url).await }
}

/// Every restore that the database knows of, by epoch and partition.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn points(database: &Database) -> Result<Vec<RestorePoint>, StoreError> {
    match database {
        Database::Postgres(database) => database.restore_points().await,
        Database::Sqlite(database) => database.restore_points().await,
    }
}

/// Where the log stands, as its heads are stored, whatever they hold: every append changes it. None when the heads cannot
/// be read, and so nothing can be appended.
///
/// # Errors
///
/// When the database cannot be asked at this moment.
pub async fn standing(database: &Database) -> Result<Option<String>, StoreError> {
    let read = match database {
        Database::Postgres(database) => database.standing().await,
        Database::Sqlite(database) => database.standing().await,
    };
    match read {
        Ok(standing) => Ok(standing),
        Err(error) => {
            let error = StoreError::from(error);
            if error.is_damage() { Ok(None) } else { Err(error) }
        }
    }
}

/// Removes a ledger from a database: for one that was only put there to be looked at.
///
/// # Errors
///
/// When the database refuses, or the files cannot be removed.
pub async fn remove(database: &Database) -> Result<(), StoreError> {
    match database {
        Database::Postgres(database) => database.remove_ledger().await,
        Database::Sqlite(database) => database.remove_ledger().await,
    }
}

/// Which rows `r` of a table of restores are true of the log in `next`, as SQL: that which the partition went back to is in
/// it, or it went back further since. Others were never made, or were edited, and would stay a finding in every ledger to come.
pub(crate) fn restores_to_take_along(next: &str, restores: &str, epoch: Epoch) -> String {
    let stands = |row: &str| {
        format!(
            "({row}.position = 0 or exists (select 1 from {next}events e where e.partition = {row}.partition \
                 and e.position = {row}.position and e.hash = {row}.hash))"
        )
    };
    let goes_further_back =
        |row: &str| format!("{row}.partition = r.partition and {row}.epoch > r.epoch and {row}.position < r.position");
    format!(
        "r.partition between 0 and {last} and r.epoch < {epoch} and r.position >= 0 and length(r.hash) = 32 and ({stands} \
         or exists (select 1 from {next}restores n where {n}) \
         or exists (select 1 from {restores} o where {o} and {o_stands}))",
        last = PARTITIONS - 1,
        epoch = epoch.0,
        stands = stands("r"),
        n = goes_further_back("n"),
        o = goes_further_back("o"),
        o_stands = stands("o"),
    )
}

impl Log {
    /// The heads with which the ledger goes on.
    pub(crate) fn next_heads(&self) -> [Head; PARTITIONS] {
        self.heads.map(|head| Head { epoch: self.epoch, ..head })
    }

    /// This restore's own points.
    pub(crate) fn points(&self) -> impl Iterator<Item = RestorePoint> + '_ {
        Partition::all().zip(self.next_heads()).map(|(partition, head)| RestorePoint {
            partition,
            head,
            restored_at: self.restored_at,
            archive_id: self.archive_id.clone(),
        })
    }
}
