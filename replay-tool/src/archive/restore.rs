//! An archive, or any whole log, into a database.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ledger_core::{Epoch, Event, Hash, Head, PARTITIONS, Partition, Timestamp};
use ledger_store::{
    Database, StoreError,
    restore::{Log, RestoreError, Target},
};
use projector::rebuild::{self, RebuildError, Restoring};

use crate::{context::Failure, progress::Progress};

/// A partition's events, in order. Reading them may block.
pub(crate) type Events = Box<dyn Iterator<Item = Result<Event, Failure>> + Send>;

/// A whole log that is to be put into a database.
pub(crate) struct Restored {
    /// Names where it comes from in the table `restores`.
    pub(crate) archive_id: String,
    /// The epoch in which the ledger goes on; each event must be of an older one.
    pub(crate) epoch: Epoch,
    /// Where the log of each partition ends. The epochs play no part.
    pub(crate) heads: [Head; PARTITIONS],
    pub(crate) events: Box<dyn Fn(Partition) -> Events + Send + Sync>,
    /// The caller holds PostgreSQL's lock of appends in a session of its own.
    pub(crate) appends_are_held: bool,
    /// Where the ledger that is replaced stood when its log was read: see [`Log::standing`].
    pub(crate) standing: Option<String>,
}

/// What a restore came to.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    pub(crate) accounts: u64,
    pub(crate) freezes: u64,
    /// Of the read models, as they were read back.
    pub(crate) digest: Hash,
    pub(crate) epoch: Epoch,
    /// Where the ledger that was there is kept: a schema, or a file.
    pub(crate) kept: Option<String>,
    /// Tables whose rows could not be taken along from it.
    pub(crate) left_out: Vec<String>,
    /// How long it took to write the log, its indexes and the read models.
    pub(crate) wrote_in: Duration,
    /// How long it took to compare the read models with what the log comes to.
    pub(crate) compared_in: Duration,
}

/// The epoch after a restore of a log: the largest of its newest + 1, what else is known to be taken + 1, and the time in
/// Unix seconds, so that two restores of one archive differ.
pub(crate) fn next_epoch(newest: Epoch) -> Epoch {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Epoch(u32::try_from(seconds).unwrap_or(u32::MAX).max(newest.0.saturating_add(1)))
}

/// Now, as the ledger writes it.
pub(crate) fn now() -> Timestamp {
    let micros = chrono::Utc::now().timestamp_micros();
    Timestamp::from_micros(micros).unwrap_or_else(|| Timestamp::from_micros(0).unwrap_or_else(|| unreachable!("1970")))
}

/// Puts exactly these events and their read models into the database, in one step that is either done or not. What the
/// read models hold then is compared with what the events come to.
///
/// With [`Target::Replace`] the ledger that is there is kept aside. On SQLite nobody may have the file open.
///
/// # Errors
///
/// When the events do not follow one another up to the heads or contradict each other, or the database cannot be written:
/// nothing was changed then. When the read models could not be read back: `replay-tool rebuild` makes them anew.
pub(crate) async fn restore(database_url: &str, target: Target, restored: Restored) -> Result<Summary, Failure> {
    let began = Instant::now();
    let Restored { archive_id, epoch, heads, events, appends_are_held, standing } = restored;
    let progress = Arc::new(Progress::new("writing"));
    progress.expect(heads.iter().map(|head| head.position.0).sum());
    let shown = progress.clone();
    let restoring = Restoring::default();
    let folding = restoring.clone();
    let log = Log {
        archive_id,
        epoch,
        heads,
        restored_at: now(),
        events: Box::new(move |partition| {
            Box::new(events(partition).map(|event| event.map_err(|why| why.to_string())))
        }),
        fold: Some(Box::new(move |partition| folding.fold(partition))),
        progress: Box::new(move |events| shown.advance(events)),
        appends_are_held,
        standing,
    };
    let written = ledger_store::restore::restore(database_url, target, log).await;
    progress.finish();
    let written = written.map_err(failure)?;
    let wrote_in = began.elapsed();
    let database = Database::open_existing(database_url).await?;
    let compared = match restoring.compare(&database).await {
        // Somebody went on with the ledger meanwhile, or the tables lie: a rebuild makes sure.
        Err(RebuildError::Differs { .. }) => make_read_models(&database).await,
        Err(error) => Err(not_made(error)),
        Ok(compared) => Ok(compared),
    };
    database.close().await;
    let compared = compared?;
    Ok(Summary {
        events: written.events,
        accounts: compared.accounts,
        freezes: compared.freezes,
        digest: compared.digest,
        epoch,
        kept: written.kept,
        left_out: written.left_out,
        wrote_in,
        compared_in: compared.took,
    })
}

/// Waits for a restore whose tool was killed: the database may still be about to commit it.
pub(crate) async fn wait_for_other_restores(database_url: &str) -> Result<(), Failure> {
    match ledger_store::restore::wait_for_others(database_url).await {
        // Whoever looks at the database next says what to do about that.
        Err(RestoreError::Store(StoreError::Unopened { .. })) => Ok(()),
        waited => waited.map_err(failure),
    }
}

/// Makes the read models from what is in the database.
pub(crate) async fn make_read_models(database: &Database) -> Result<rebuild::Rebuilt, Failure> {
    let bar = Progress::new("rebuilding");
    let rebuilt = rebuild::rebuild(database, &mut |progress| bar.set(progress.done, progress.all)).await;
    bar.finish();
    rebuilt.map_err(not_made)
}

fn not_made(error: RebuildError) -> Failure {
    match error {
        RebuildError::Store(error) => error.into(),
        RebuildError::AlreadyRunning => Failure::passing("another rebuild is running; wait for it"),
        other => Failure::new(format!("the log is restored, but the read models were not made: {other}")),
    }
}

/// Why nothing was put there, in one line.
fn failure(error: RestoreError) -> Failure {
    match error {
        RestoreError::Store(error) => error.into(),
        RestoreError::WentOn(_) => Failure::passing(error.to_string()),
        other => Failure::new(other.to_string()),
    }
}
