//! Makes the read models anew from the log, beside the served ones, and puts them in their place.
//!
//! The next tables are filled partition by partition while the service runs, and each partition is compared, as the
//! database gives it back, with what the replay made of the log up to the same position. Then they catch up by the
//! same cross-checked folds that runners use. At last, in one short transaction that holds the checkpoints, so that
//! runners wait, the rest is folded and the tables change places. The served tables are untouched until then, and after
//! any failure.

use std::time::{Duration, Instant};

use ledger_core::{
    Balance, Event, Freeze, Hash, Head, PARTITIONS, Partition, Position,
    digest::{self, PartitionDigest},
    rejection::Contradiction,
};
use ledger_store::{Database, StoreError};

use crate::{
    checkpoint::{ReadModel, Step},
    fold::{self, Changes, Rows, Source},
    snapshot::DamagedModelRow,
};

mod on_postgres;
mod on_sqlite;

/// Events of one read.
const PAGE: usize = 5_000;
/// The switch is tried when so few events are missing that it takes a moment.
const CLOSE_ENOUGH: u64 = 2_000;
/// Rounds of catching up before the switch is tried all the same.
const ROUNDS_MAX: usize = 50;

/// How often the switch is tried while others hold the tables, and the pause between.
const SWITCHES_MAX: u32 = 60;
const SWITCH_PAUSE: Duration = Duration::from_millis(500);

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
    pub accounts: u64,
    pub freezes: u64,
    /// Of the new read models at the positions that the log had reached when the rebuild began.
    pub digest: Hash,
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

/// Rebuilds both read models. Safe to kill at any moment and to run again.
///
/// # Errors
///
/// See [`RebuildError`]; in every case the served tables are as they were.
pub async fn rebuild(
    database: &Database,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Rebuilt, RebuildError> {
    match database {
        Database::Postgres(postgres) => {
            let mut next = on_postgres::Next::create(postgres).await?;
            fill_and_switch(database, &mut next, progress).await
        }
        Database::Sqlite(sqlite) => {
            let mut next = on_sqlite::Next::create(sqlite).await?;
            fill_and_switch(database, &mut next, progress).await
        }
    }
}

/// The tables that will take the served ones' place.
trait NextTables {
    /// Writes rows; those that are there already are replaced.
    async fn write(&mut self, changes: &Changes) -> Result<(), RebuildError>;
    /// Reads the rows that some events build on.
    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError>;
    /// Reads back all of a partition, in order.
    async fn all(&mut self, partition: Partition) -> Result<(Vec<Balance>, Vec<Freeze>), RebuildError>;
    /// Begins the transaction of the switch: from here on runners wait. Tells the heads.
    async fn hold(&mut self) -> Result<[Head; PARTITIONS], RebuildError>;
    /// Ends that transaction without having changed anything.
    async fn let_go(&mut self) -> Result<(), RebuildError>;
    /// Puts the tables in place, with their checkpoints, and commits.
    async fn switch(&mut self, at: &[Head; PARTITIONS]) -> Result<(), RebuildError>;
}

async fn fill_and_switch(
    database: &Database,
    next: &mut impl NextTables,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Rebuilt, RebuildError> {
    let began = Instant::now();
    let first = database.heads().await?;
    let mut shown = Progress { done: 0, all: first.iter().fold(0, |sum, head| sum.saturating_add(head.position.0)) };
    let mut at = [BEGINNING; PARTITIONS];
    let mut digests = [(Hash::ZERO, Hash::ZERO); PARTITIONS];
    let (mut accounts, mut freezes) = (0, 0);
    for partition in Partition::all() {
        let index = partition.index();
        let changes = replay(database, partition, first[index].position, &mut shown, progress).await?;
        next.write(&changes).await?;
        let replayed = digest_of(&changes.balances, &changes.freezes);
        let (balances, stored_freezes) = next.all(partition).await?;
        let stored = digest_of(&balances, &stored_freezes);
        if stored != replayed {
            return Err(RebuildError::Differs { partition });
        }
        digests[index] = replayed;
        // No events: the partition's own beginning, which a restore may have put into a later epoch.
        at[index] = changes.steps.first().map_or(first[index], |step| step.to);
        accounts += balances.len() as u64;
        freezes += stored_freezes.len() as u64;
    }
    for _ in 0..ROUNDS_MAX {
        let heads = database.heads().await?;
        if missing(&at, &heads) <= CLOSE_ENOUGH {
            break;
        }
        catch_up(database, next, &mut at, &heads, &mut shown, progress).await?;
    }
    let mut attempt = 1;
    loop {
        // What is written under the hold is undone with it, so each attempt begins where the last one began.
        let mut reached = at;
        let heads = next.hold().await?;
        let switched = match catch_up(database, next, &mut reached, &heads, &mut shown, progress).await {
            Ok(()) => next.switch(&reached).await,
            Err(error) => Err(error),
        };
        match switched {
            Ok(()) => break,
            Err(error) => {
                next.let_go().await?;
                if attempt == SWITCHES_MAX || !is_lock_timeout(&error) {
                    return Err(error);
                }
            }
        }
        // Someone reads the table for long. Whoever wants to read it must get in between the attempts.
        tokio::time::sleep(SWITCH_PAUSE).await;
        attempt += 1;
    }
    Ok(Rebuilt { events: shown.done, accounts, freezes, digest: digest::combine(&digests), took: began.elapsed() })
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

/// Folds a partition's log from its beginning up to a position, in memory.
async fn replay(
    database: &Database,
    partition: Partition,
    to: Position,
    shown: &mut Progress,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Changes, RebuildError> {
    let mut rows = Rows::default();
    let mut at = BEGINNING;
    while at.position < to {
        let events = page(database, partition, at.position, to).await?;
        let changes = fold_page(partition, at, &events, &rows)?;
        at = changes.steps[0].to;
        rows.balances.extend(changes.balances.into_iter().map(|balance| (balance.account.id(), balance)));
        rows.freezes.extend(changes.freezes.into_iter().map(|freeze| ((partition, freeze.position), freeze)));
        shown.done += events.len() as u64;
        progress(*shown);
    }
    let mut changes = Changes {
        balances: rows.balances.into_values().collect(),
        freezes: rows.freezes.into_values().collect(),
        ..Changes::default()
    };
    changes.balances.sort_unstable_by_key(|balance| balance.account.id());
    changes.freezes.sort_unstable_by_key(|freeze| freeze.position);
    if at != BEGINNING {
        changes.steps.push(Step { model: ReadModel::Balances, partition, from: BEGINNING, to: at });
    }
    Ok(changes)
}

/// Folds what came since into the next tables.
async fn catch_up(
    database: &Database,
    next: &mut impl NextTables,
    at: &mut [Head; PARTITIONS],
    heads: &[Head; PARTITIONS],
    shown: &mut Progress,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), RebuildError> {
    shown.all += missing(at, heads).saturating_sub(shown.all - shown.done);
    for partition in Partition::all() {
        let index = partition.index();
        while at[index].position < heads[index].position {
            let events = page(database, partition, at[index].position, heads[index].position).await?;
            let rows = next.rows(&events).await?;
            let changes = fold_page(partition, at[index], &events, &rows)?;
            at[index] = changes.steps[0].to;
            next.write(&changes).await?;
            shown.done += events.len() as u64;
            progress(*shown);
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
    let events = database.events_after(partition, after, missing.min(PAGE)).await?;
    if events.is_empty() {
        let position = after.next();
        let (field, expected, found) = ("position", position.to_string(), "nothing".to_owned());
        let contradiction = Contradiction { position, field, expected, found };
        return Err(RebuildError::Contradiction { partition, contradiction });
    }
    Ok(events)
}

/// Folds events into both read models: the same fold that runners use.
fn fold_page(partition: Partition, at: Head, events: &[Event], rows: &Rows) -> Result<Changes, RebuildError> {
    let mut changes = Changes::default();
    for model in ReadModel::ALL {
        fold::fold(model, partition, at, Source::Log, events, rows, &mut changes)
            .map_err(|contradiction| RebuildError::Contradiction { partition, contradiction })?;
    }
    Ok(changes)
}

/// The digest of rows in order.
fn digest_of(balances: &[Balance], freezes: &[Freeze]) -> (Hash, Hash) {
    let mut digest = PartitionDigest::default();
    balances.iter().for_each(|balance| digest.add_balance(balance));
    freezes.iter().for_each(|freeze| digest.add_freeze(freeze));
    digest.finish()
}

/// Rows of a next table that this rebuild wrote itself a moment ago.
fn sound<T>(rows: Vec<Result<T, DamagedModelRow>>) -> Result<Vec<T>, RebuildError> {
    rows.into_iter().collect::<Result<_, _>>().map_err(|damage| StoreError::Inconsistent(damage.to_string()).into())
}
