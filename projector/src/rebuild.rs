//! Makes the read models anew from the log, beside the served ones, and puts them in their place.
//!
//! The next tables are filled partition by partition, two or more at a time, while the service runs; then each partition is
//! compared, as the database gives it back, with what the replay made of the log up to the same position. Then they catch
//! up by the same cross-checked folds that runners use. At last, in one short transaction that holds the checkpoints, so
//! that runners wait, the rest is folded and the tables change places. The served tables are untouched until then, and
//! after any failure.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_core::{
    Event, Hash, Head, PARTITIONS, Partition, Position,
    digest::{self, PartitionDigest},
    rejection::Contradiction,
};
use ledger_store::{Database, StoreError};

use crate::{
    checkpoint::ReadModel,
    fold::{self, Changes, Rows, Source},
    snapshot::DamagedModelRow,
};

mod account;
mod copy;
mod fill;
mod on_postgres;
mod on_sqlite;
pub(crate) mod pace;
pub(crate) mod replay;
mod restoring;

pub use account::{Mended, mend_account};
use fill::{Shared, Tables};
pub use restoring::Restoring;

/// Events of one read while the next tables catch up.
const PAGE: usize = 5_000;
/// The switch is tried when so few events are missing that it takes a moment.
const CLOSE_ENOUGH: u64 = 2_000;
/// Rounds of catching up before the switch is tried all the same.
const ROUNDS_MAX: usize = 50;

/// How often the switch is tried while others hold the tables, and the pause between.
const SWITCHES_MAX: u32 = 60;
const SWITCH_PAUSE: Duration = Duration::from_millis(500);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// What to rebuild, and how gently.
#[derive(Debug, Clone)]
pub struct Options {
    pub models: Vec<ReadModel>,
    /// At most so many events a second are replayed, so that a service on the same machine keeps its share. What is written
    /// meanwhile is folded in as fast as it comes.
    pub max_rate: Option<NonZeroU32>,
    /// Who is said to have resolved the inconsistencies that this mends.
    pub by: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { models: ReadModel::ALL.to_vec(), max_rate: None, by: "replay-tool rebuild" }
    }
}

/// How far a rebuild is: events folded, of all that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub all: u64,
}

/// What a rebuild made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    pub events: u64,
    /// 0 when balances were not rebuilt.
    pub accounts: u64,
    /// 0 when freezes were not rebuilt.
    pub freezes: u64,
    /// Of the new read models at the positions that the log had reached when the rebuild began. A read model that was not
    /// rebuilt counts as empty.
    pub digest: Hash,
    /// How many inconsistencies, as projectors had written them down, are resolved by it.
    pub resolved: u64,
    pub took: Duration,
}

/// Why nothing was put in place.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The log itself is damaged; the read models stay as they are.
    #[error("the log of partition {partition} is damaged at {contradiction}: run replay-tool verify")]
    Contradiction { partition: Partition, contradiction: Contradiction },
    /// The tables that were written do not hold what the replay made.
    #[error("partition {partition}: the new tables do not hold what the replay made: nothing was changed")]
    Differs { partition: Partition },
    /// One account cannot be mended where it stands.
    #[error("the checkpoint of {model} in partition {partition} {reason}: rebuild the whole read model, without --account", model = .model.name())]
    Checkpoint { model: ReadModel, partition: Partition, reason: String },
    #[error("another rebuild is running")]
    AlreadyRunning,
    #[error("the database failed")]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RebuildError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Rebuilds both read models as fast as it goes. Safe to kill at any moment and to run again.
///
/// # Errors
///
/// See [`RebuildError`]; in every case the served tables are as they were.
pub async fn rebuild(
    database: &Database,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Rebuilt, RebuildError> {
    rebuild_with(database, &Options::default(), progress).await
}

/// Rebuilds some read models. Safe to kill at any moment and to run again.
///
/// # Errors
///
/// See [`RebuildError`]; in every case the served tables are as they were.
pub async fn rebuild_with(
    database: &Database,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Rebuilt, RebuildError> {
    match database {
        Database::Postgres(postgres) => {
            let next = on_postgres::Next::create(postgres, &options.models).await?;
            rebuild_into(database, options, next, progress).await
        }
        Database::Sqlite(sqlite) => {
            let next = on_sqlite::Next::create(sqlite, &options.models).await?;
            rebuild_into(database, options, next, progress).await
        }
    }
}

/// The tables that will take the served ones' place.
trait NextTables {
    /// Makes the indexes, once the tables are filled.
    async fn index(&mut self) -> Result<(), RebuildError>;
    /// Writes rows; those that are there already are replaced.
    async fn write(&mut self, changes: &Changes) -> Result<(), RebuildError>;
    /// Reads the rows that some events build on.
    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError>;
    /// Begins the transaction of the switch: from here on runners wait. Tells the heads.
    async fn hold(&mut self) -> Result<[Head; PARTITIONS], RebuildError>;
    /// Ends that transaction without having changed anything.
    async fn let_go(&mut self) -> Result<(), RebuildError>;
    /// Puts the tables in place, with their checkpoints, and commits. Tells how many inconsistencies that resolves.
    async fn switch(&mut self, at: &[Head; PARTITIONS]) -> Result<u64, RebuildError>;
    /// Drops what is not served: the tables that were, or the next ones when they did not come to be.
    async fn discard(&mut self) -> Result<(), RebuildError>;
}

async fn rebuild_into(
    database: &Database,
    options: &Options,
    mut next: impl NextTables,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Rebuilt, RebuildError> {
    let rebuilt = fill_and_switch(database, options, &mut next, progress).await;
    let discarded = next.discard().await;
    // What could not be dropped is dropped by the next rebuild; why there was none matters more.
    rebuilt.and_then(|rebuilt| discarded.map(|()| rebuilt))
}

async fn fill_and_switch(
    database: &Database,
    options: &Options,
    next: &mut impl NextTables,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Rebuilt, RebuildError> {
    let began = Instant::now();
    let first = database.heads().await?;
    let all = first.iter().fold(0, |sum: u64, head| sum.saturating_add(head.position.0));
    let shared = Arc::new(Shared::new(database, options, first, Tables::Next));
    let told = shared.clone();
    let mut tell = move || progress(Progress { done: told.done(), all: all.max(told.done()) });

    let filled = with_telling(fill::fill(&shared), &mut tell).await?;
    with_telling(next.index(), &mut tell).await?;
    with_telling(fill::compare(&shared, &filled), &mut tell).await?;

    let models = &options.models[..];
    let mut at = filled.each_ref().map(|filled| filled.at);
    for _ in 0..ROUNDS_MAX {
        let heads = database.heads().await?;
        if missing(&at, &heads) <= CLOSE_ENOUGH {
            break;
        }
        catch_up(database, models, next, &mut at, &heads, &shared, &mut tell).await?;
    }
    let mut attempt = 1;
    let resolved = loop {
        // What is written under the hold is undone with it, so each attempt begins where the last one began.
        let (mut reached, done) = (at, shared.done());
        let switched = match next.hold().await {
            Ok(heads) => match catch_up(database, models, next, &mut reached, &heads, &shared, &mut tell).await {
                Ok(()) => next.switch(&reached).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match switched {
            Ok(resolved) => break resolved,
            Err(error) => {
                next.let_go().await?;
                if attempt == SWITCHES_MAX || !is_lock_timeout(&error) {
                    return Err(error);
                }
            }
        }
        shared.set_done(done);
        // Someone reads the table for long. Whoever wants to read it must get in between the attempts.
        tokio::time::sleep(SWITCH_PAUSE).await;
        attempt += 1;
    };
    Ok(Rebuilt {
        events: shared.done(),
        accounts: filled.iter().map(|filled| filled.accounts).sum(),
        freezes: filled.iter().map(|filled| filled.freezes).sum(),
        digest: digest::combine(&filled.each_ref().map(|filled| filled.digest)),
        resolved,
        took: began.elapsed(),
    })
}

/// Does some work, and tells of the progress meanwhile.
async fn with_telling<T>(work: impl Future<Output = T>, tell: &mut impl FnMut()) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tell();
        if let Ok(done) = tokio::time::timeout(TELL, &mut work).await {
            return done;
        }
    }
}

/// Whether a lock was not had in time.
fn is_lock_timeout(error: &RebuildError) -> bool {
    match error {
        RebuildError::Store(StoreError::Database(sqlx::Error::Database(refusal))) => {
            refusal.code().is_some_and(|code| code == "55P03")
        }
        _ => false,
    }
}

/// Before the first event. The epoch plays no part in the chain.
const BEGINNING: Head = Head::EMPTY;

fn missing(at: &[Head; PARTITIONS], heads: &[Head; PARTITIONS]) -> u64 {
    at.iter().zip(heads).map(|(at, head)| head.position.0.saturating_sub(at.position.0)).sum()
}

/// Folds what came since into the next tables.
async fn catch_up(
    database: &Database,
    models: &[ReadModel],
    next: &mut impl NextTables,
    at: &mut [Head; PARTITIONS],
    heads: &[Head; PARTITIONS],
    shared: &Shared,
    tell: &mut impl FnMut(),
) -> Result<(), RebuildError> {
    for partition in Partition::all() {
        let index = partition.index();
        while at[index].position < heads[index].position {
            let events = page(database, partition, at[index].position, heads[index].position).await?;
            let rows = next.rows(&events).await?;
            let mut changes = Changes::default();
            for model in models {
                fold::fold(*model, partition, at[index], Source::Log, &events, &rows, &mut changes)
                    .map_err(|contradiction| RebuildError::Contradiction { partition, contradiction })?;
            }
            at[index] = changes.steps[0].to;
            next.write(&changes).await?;
            shared.add_done(events.len());
            tell();
        }
    }
    Ok(())
}

/// Some events of a partition after a position. Positions have no gaps, so there are some.
async fn page(
    database: &Database,
    partition: Partition,
    after: Position,
    to: Position,
) -> Result<Vec<Event>, RebuildError> {
    let missing = usize::try_from(to.0 - after.0).unwrap_or(usize::MAX);
    let mut events = Vec::new();
    for row in database.rows_after(partition, after, missing.min(PAGE)).await? {
        events.push(row.map_err(|damage| replay::damaged(partition, damage))?);
    }
    if events.is_empty() {
        return Err(replay::gap(partition, after));
    }
    Ok(events)
}

/// Rows of a next table that this rebuild wrote itself a moment ago.
fn sound<T>(rows: Vec<Result<T, DamagedModelRow>>) -> Result<Vec<T>, RebuildError> {
    rows.into_iter().collect::<Result<_, _>>().map_err(|damage| StoreError::Inconsistent(damage.to_string()).into())
}
