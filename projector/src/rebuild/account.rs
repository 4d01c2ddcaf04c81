//! Mends one account's rows where they stand, while the service runs.
//!
//! A runner may be in the middle of a round that began from the rows as they are: then its commit must fail, or it would
//! bring back what was mended. So, in one transaction that holds the partition's checkpoints, the account's rows are
//! replaced by what the log makes of them at those checkpoints, and then the events that follow are folded in, and the
//! checkpoints moved by compare-and-set, as a runner does: whoever began from the older checkpoints begins again. Where
//! no events follow there is no round, and none can begin, because the partition's head is held, too.

use std::time::{Duration, Instant};

use foldhash::HashMap;
use ledger_core::{Account, Balance, Event, Freeze, Head, Position};
use ledger_store::Database;

use super::{
    BEGINNING, Options, PAGE, Progress, RebuildError,
    pace::Pace,
    replay::{damaged, fold_freeze, gap},
};
use crate::{
    checkpoint::{self, ReadModel, Step},
    fold::{self, Changes, Rows, Source},
    snapshot::DamagedModelRow,
};

mod on_postgres;
mod on_sqlite;

/// Events that are folded in while the checkpoints are held: one is enough, more would keep commands waiting.
const FORWARD: usize = 200;
/// The checkpoints are held when so few events are missing to them that it takes a moment.
const CLOSE_ENOUGH: u64 = 1_000;
/// How often that is tried.
const TRIES_MAX: u32 = 100;

/// What became of an account's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mended {
    /// The account's events up to the read models' checkpoints.
    pub events: u64,
    /// Its freezes by then.
    pub freezes: u64,
    /// Rows that were missing, not the account's, or not what the log makes of them.
    pub rows_mended: u64,
    /// How many inconsistencies, as projectors had written them down, are resolved by it.
    pub resolved: u64,
    pub took: Duration,
}

/// One account at two places of its partition, where its balance and its freezes are read.
struct Replay {
    account: Account,
    balance: Option<Balance>,
    freezes: HashMap<Position, Freeze>,
    balance_at: Head,
    freezes_at: Head,
    events: u64,
    /// Positions that projectors stopped at, and those of them that are the account's.
    stopped_at: Vec<Position>,
    its_own: Vec<Position>,
}

/// Where the read models of a partition and its log stand while they are held.
struct Held {
    balances_at: Head,
    freezes_at: Head,
    head: Position,
}

/// The rows of an account that stood there.
type OldRows = (Vec<Result<Balance, DamagedModelRow>>, Vec<Result<Freeze, DamagedModelRow>>);

/// What is written in the transaction that holds the checkpoints.
trait Turn: Sized {
    async fn hold(&mut self, account: &Account) -> Result<Held, RebuildError>;
    /// Takes away the account's rows, and what stands in the place of its freezes.
    async fn remove(&mut self, account: &Account, freezes: &[Position]) -> Result<OldRows, RebuildError>;
    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError>;
    /// Writes rows, moves the checkpoints, resolves inconsistencies and commits. Tells how many were resolved.
    async fn commit(
        self,
        changes: &Changes,
        account: &Account,
        its_own: &[Position],
        by: &str,
    ) -> Result<u64, RebuildError>;
    async fn let_go(self) -> Result<(), RebuildError>;
}

/// Mends the rows of one account in both read models. Safe to kill at any moment and to run again.
///
/// # Errors
///
/// See [`RebuildError`]; in every case the rows are as they were.
pub async fn mend_account(
    database: &Database,
    account: &Account,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Mended, RebuildError> {
    let began = Instant::now();
    let pace = Pace::new(options.max_rate);
    let mut replay = Replay::new(account, stopped_at(database, account).await?);
    let mut tries = 0;
    loop {
        let to = checkpoints(database, account).await?;
        let to = to[0].position.min(to[1].position);
        while replay.balance_at.position < to {
            let events = replay.advance(database, to, to).await?;
            progress(Progress { done: replay.balance_at.position.0, all: to.0 });
            pace.pay(events).await;
        }
        let mended = match database {
            Database::Postgres(database_) => {
                mend(database, on_postgres::Turn::begin(database_).await?, &mut replay, options.by).await
            }
            Database::Sqlite(database_) => {
                mend(database, on_sqlite::Turn::begin(database_).await?, &mut replay, options.by).await
            }
        };
        match mended {
            Ok(Some((rows_mended, resolved))) => {
                let (events, freezes) = (replay.events, replay.freezes.len() as u64);
                return Ok(Mended { events, freezes, rows_mended, resolved, took: began.elapsed() });
            }
            Ok(None) if tries < TRIES_MAX => tries += 1,
            Ok(None) => {
                let reason = "moves faster than this account can be read".to_owned();
                let partition = account.partition();
                return Err(RebuildError::Checkpoint { model: ReadModel::Balances, partition, reason });
            }
            Err(error) if super::is_lock_timeout(&error) && tries < TRIES_MAX => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn checkpoints(database: &Database, account: &Account) -> Result<[Head; 2], RebuildError> {
    let index = account.partition().index();
    let mut at = [BEGINNING; 2];
    for (at, model) in at.iter_mut().zip(ReadModel::ALL) {
        *at = checkpoint::read(database, model).await?[index];
    }
    Ok(at)
}

/// Where projectors stopped in the account's partition.
async fn stopped_at(database: &Database, account: &Account) -> Result<Vec<Position>, RebuildError> {
    let positions = match database {
        Database::Postgres(database) => on_postgres::stopped_at(database, account.partition()).await?,
        Database::Sqlite(database) => on_sqlite::stopped_at(database, account.partition()).await?,
    };
    Ok(positions.into_iter().filter_map(|position| u64::try_from(position).ok().map(Position)).collect())
}

/// Replaces the rows, if the checkpoints are close enough; `None` when they are not. Gives how many rows were not what
/// they should be, and how many inconsistencies are resolved.
async fn mend<T: Turn>(
    database: &Database,
    mut turn: T,
    replay: &mut Replay,
    by: &str,
) -> Result<Option<(u64, u64)>, RebuildError> {
    match prepare(database, &mut turn, replay).await {
        Ok(Some((rows_mended, changes))) => {
            let resolved = turn.commit(&changes, &replay.account, &replay.its_own, by).await?;
            Ok(Some((rows_mended, resolved)))
        }
        Ok(None) => {
            turn.let_go().await?;
            Ok(None)
        }
        Err(error) => {
            turn.let_go().await?;
            Err(error)
        }
    }
}

async fn prepare(
    database: &Database,
    turn: &mut impl Turn,
    replay: &mut Replay,
) -> Result<Option<(u64, Changes)>, RebuildError> {
    let partition = replay.account.partition();
    let held = turn.hold(&replay.account).await?;
    let furthest = held.balances_at.position.max(held.freezes_at.position);
    if furthest.0.saturating_sub(replay.balance_at.position.0.min(replay.freezes_at.position.0)) > CLOSE_ENOUGH {
        return Ok(None);
    }
    while replay.balance_at.position < held.balances_at.position
        || replay.freezes_at.position < held.freezes_at.position
    {
        replay.advance(database, held.balances_at.position, held.freezes_at.position).await?;
    }
    for (model, at, reached) in [
        (ReadModel::Balances, held.balances_at, replay.balance_at),
        (ReadModel::Freezes, held.freezes_at, replay.freezes_at),
    ] {
        if (at.position, at.hash) != (reached.position, reached.hash) {
            let reason = format!("is no place of the log (position {})", at.position);
            return Err(RebuildError::Checkpoint { model, partition, reason });
        }
    }
    let mut freezes: Vec<_> = replay.freezes.keys().copied().collect();
    freezes.sort_unstable();
    let (old_balances, old_freezes) = turn.remove(&replay.account, &freezes).await?;
    let rows_mended = replay.differences(&old_balances, &old_freezes);

    // What follows, as a runner would fold it.
    let from = held.balances_at.position.min(held.freezes_at.position);
    let mut events = Vec::new();
    if held.head > from {
        for row in database.rows_after(partition, from, FORWARD).await? {
            let Ok(event) = row else { break };
            events.push(event);
        }
    }
    let mut rows = turn.rows(&events).await?;
    rows.balances.extend(replay.balance.iter().map(|balance| (balance.account.id(), balance.clone())));
    rows.freezes.extend(replay.freezes.iter().map(|(position, freeze)| ((partition, *position), freeze.clone())));
    let mut changes = Changes::default();
    for (model, at) in [(ReadModel::Balances, held.balances_at), (ReadModel::Freezes, held.freezes_at)] {
        let new = events.partition_point(|event| event.position <= at.position);
        // Where it meets another account that is damaged, it stops, as runners do.
        let _ = fold::fold(model, partition, at, Source::Log, &events[new..], &rows, &mut changes);
    }
    replay.note_own(&events, &changes.steps);
    complete(replay, &mut changes);
    Ok(Some((rows_mended, changes)))
}

/// The account's rows that no event after the checkpoints touched are written as well.
fn complete(replay: &Replay, changes: &mut Changes) {
    let id = replay.account.id();
    if let Some(balance) = &replay.balance
        && !changes.balances.iter().any(|changed| changed.account.id() == id)
    {
        changes.balances.push(balance.clone());
    }
    let changed: foldhash::HashSet<Position> = changes.freezes.iter().map(|freeze| freeze.position).collect();
    changes.freezes.extend(replay.freezes.values().filter(|freeze| !changed.contains(&freeze.position)).cloned());
}

impl Replay {
    fn new(account: &Account, stopped_at: Vec<Position>) -> Self {
        Self {
            account: account.clone(),
            balance: None,
            freezes: HashMap::default(),
            balance_at: BEGINNING,
            freezes_at: BEGINNING,
            events: 0,
            stopped_at,
            its_own: Vec::new(),
        }
    }

    /// Folds some more of the partition's events in: those of the balance up to one position, those of the freezes up to
    /// another. Tells how many were read.
    async fn advance(
        &mut self,
        database: &Database,
        balance_to: Position,
        freezes_to: Position,
    ) -> Result<usize, RebuildError> {
        let partition = self.account.partition();
        let from = self.balance_at.position.min(self.freezes_at.position);
        let to = balance_to.max(freezes_to);
        let missing = usize::try_from(to.0.saturating_sub(from.0)).unwrap_or(usize::MAX);
        let rows = database.rows_after(partition, from, missing.min(PAGE)).await?;
        if rows.is_empty() {
            return Err(gap(partition, from));
        }
        let read = rows.len();
        for row in rows {
            let event = row.map_err(|damage| damaged(partition, damage))?;
            self.take(&event, balance_to, freezes_to)
                .map_err(|contradiction| RebuildError::Contradiction { partition, contradiction })?;
        }
        Ok(read)
    }

    fn take(
        &mut self,
        event: &Event,
        balance_to: Position,
        freezes_to: Position,
    ) -> Result<(), ledger_core::rejection::Contradiction> {
        let is_own = event.account.id() == self.account.id();
        if is_own && self.stopped_at.contains(&event.position) {
            self.its_own.push(event.position);
        }
        if event.position > self.balance_at.position && event.position <= balance_to {
            fold::follows(&self.balance_at, Source::Log, event)?;
            if is_own {
                self.balance = Some(Balance::fold(self.balance.as_ref(), event)?);
                self.events += 1;
            }
            self.balance_at = event.head();
        }
        if event.position > self.freezes_at.position && event.position <= freezes_to {
            fold::follows(&self.freezes_at, Source::Log, event)?;
            if is_own {
                fold_freeze(&mut self.freezes, event)?;
            }
            self.freezes_at = event.head();
        }
        Ok(())
    }

    /// How many rows are not what they should be.
    fn differences(
        &self,
        balances: &[Result<Balance, DamagedModelRow>],
        freezes: &[Result<Freeze, DamagedModelRow>],
    ) -> u64 {
        let sound = balances.iter().filter(|row| row.as_ref().ok() == self.balance.as_ref() && row.is_ok()).count();
        let expected = usize::from(self.balance.is_some());
        let wrong_balances = expected.max(balances.len()) - sound;
        let is_sound = |row: &&Result<Freeze, DamagedModelRow>| match row {
            Ok(freeze) => self.freezes.get(&freeze.position) == Some(freeze),
            Err(_) => false,
        };
        let sound = freezes.iter().filter(is_sound).count();
        let wrong_freezes = self.freezes.len().max(freezes.len()) - sound;
        (wrong_balances + wrong_freezes) as u64
    }

    /// Notes where projectors stopped at this account's events, among those that are applied now.
    fn note_own(&mut self, events: &[Event], steps: &[Step]) {
        let applied = steps.iter().map(|step| step.to.position).min().unwrap_or(Position::ZERO);
        for event in events.iter().filter(|event| event.position <= applied) {
            if event.account.id() == self.account.id() && self.stopped_at.contains(&event.position) {
                self.its_own.push(event.position);
            }
        }
    }
}
