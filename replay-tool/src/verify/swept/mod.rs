//! The quick way of verification: the log is read as it lies in the database, all partitions at once, and of each it is
//! found out whether everything agrees. Nothing is named here. A partition in which anything does not agree – or that does
//! not fit into memory, or is written in an order that a sweep cannot follow – is verified by itself, and that names it.

mod beside;
mod check;
mod deductions;
mod held;
mod replay;
mod table;
mod tables;

use std::{
    array,
    sync::{Arc, Mutex, PoisonError},
};

use ledger_core::{Head, PARTITIONS, Partition, Position};
use ledger_store::{
    Database, StoreError,
    index_rows::{KeySum, KeySums},
    sweep::{Chunk, Extent, Sweep},
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    at_once,
    indexes::Indexes,
    log::{self, Depth},
    partition::{self, Around, Part},
    places, stored, within,
};
use crate::{finding::Findings, progress::Progress};
use beside::Waiting;
use check::{Checked, Checker};
use held::{AllHeld, Held};
use replay::{Doubt, Foreseen, Replay};
use table::{Agreement, Rows};

/// What the partitions of one pass may have in memory, besides the tool itself, which has some 90 MiB. When they have more,
/// half of them are put off to another pass.
const BYTES_MAX: usize = 208 << 20;
/// Readers besides one for each core: while one waits for its turn or for the database, the others work.
const READERS_BESIDES: usize = 2;

fn readers_at_once() -> usize {
    within(at_once(), READERS_BESIDES)
}

/// Rows whose accounts are looked for at once.
const AHEAD: usize = 32;

/// The steps of that.
#[derive(Debug, Clone, Copy)]
enum Step {
    Guess,
    Look,
    Call,
}

/// What became of the partitions.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Those in which everything agrees.
    pub(super) parts: Vec<Part>,
    /// The others.
    pub(super) doubtful: Vec<Partition>,
    /// What is to be said of the table once those are looked at.
    pub(super) table: Agreement,
}

/// A partition on its way: none once it is doubtful or put off.
type Slots = [Option<Box<(Replay, Findings)>>; PARTITIONS];

/// Verifies all partitions, as far as they agree.
///
/// # Errors
///
/// When the database cannot be read.
pub(super) async fn verify(
    database: &Database,
    around: &Arc<Around>,
    progress: &Progress,
) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let mut waiting: Vec<_> = Partition::all().collect();
    let mut is_first = true;
    while !waiting.is_empty() {
        let mut pass = prepare(database, around, std::mem::take(&mut waiting), &mut swept.doubtful).await?;
        tracing::debug!("what the log is compared with is read");
        let extent = if around.depth == Depth::Full { Extent::Whole } else { Extent::Fold };
        let mut sweep = database.sweep(extent).await?;
        let mut rows = None;
        if is_first && around.depth == Depth::Full {
            sweep = sweep.adding_places(table::up_to(&pass.heads));
            rows = Some(Rows::new(pass.heads)).filter(|_| sweep.reads_the_table());
        }
        (pass, rows) = read(&sweep, pass, rows, around.depth, progress).await?;
        tracing::debug!("the log is read");
        if let Some(rows) = rows {
            swept.table = table::compare(database, &sweep, &rows).await?;
            tracing::debug!("the table is compared with its key");
        }
        if pass.doubted_rows.iter().any(Option::is_some) && sweep.is_of_the_same_table().await? {
            swept.table.doubt(&pass.doubted_rows);
        }
        is_first = false;
        waiting = std::mem::take(&mut pass.put_off);
        swept.doubtful.append(&mut pass.doubtful);
        finish(database, around, pass, &mut swept).await?;
        tracing::debug!("what is compared at the end is compared");
    }
    // What is in none of the replays, such as a row after the head, is looked for by the key, too.
    let doubted: Vec<_> = swept.table.doubted().collect();
    let again = swept.parts.extract_if(.., |part| doubted.contains(&part.partition));
    swept.doubtful.extend(again.map(|part| part.partition));
    swept.doubtful.sort_unstable();
    Ok(swept)
}

/// One reading of the log.
#[derive(Debug)]
struct Pass {
    slots: Slots,
    doubtful: Vec<Partition>,
    put_off: Vec<Partition>,
    /// Where the heads stood before the log was read.
    heads: [Option<Position>; PARTITIONS],
    /// Of each partition the first row with which something is wrong by itself, or that came twice.
    doubted_rows: [Option<Position>; PARTITIONS],
}

/// Does some work for each of these, as many at once as there are readers.
async fn for_each<T, F>(
    partitions: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> F,
) -> Result<Vec<F::Output>, StoreError>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let mut partitions = partitions.into_iter();
    let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
    loop {
        while tasks.len() < readers_at_once()
            && let Some(partition) = partitions.next()
        {
            tasks.spawn(work(partition));
        }
        let Some(ended) = tasks.join_next().await else { return Ok(done) };
        done.push(
            ended.map_err(|error| {
                StoreError::Inconsistent(format!("a partition's verification ended early: {error}"))
            })?,
        );
    }
}

/// Reads all that the log is compared with.
async fn prepare(
    database: &Database,
    around: &Arc<Around>,
    partitions: Vec<Partition>,
    doubtful: &mut Vec<Partition>,
) -> Result<Pass, StoreError> {
    let mut held: AllHeld = array::from_fn(|_| None);
    if around.depth == Depth::Full {
        let read = for_each(held::lots(&partitions), |lot| {
            let database = database.clone();
            async move { held::read(&database, lot).await }
        });
        for read in read.await? {
            read?.into_iter().for_each(|(partition, read)| held[partition.index()] = Some(read));
        }
    }
    // Read after what is further than the heads that were read before it.
    let outermost = stored::outermost_positions(database).await?;
    let now = stored::heads(database).await?;
    let mut slots: Slots = array::from_fn(|_| None);
    for partition in partitions {
        let index = partition.index();
        let log = Log { outermost: outermost[index], head: now[index].head().map(|head| head.position) };
        slots[index] = begin(around, partition, held[index].take(), log);
        if slots[index].is_none() {
            doubtful.push(partition);
        }
    }
    let heads = array::from_fn(|index| now[index].head().map(|head| head.position));
    Ok(Pass { slots, doubtful: Vec::new(), put_off: Vec::new(), heads, doubted_rows: [None; PARTITIONS] })
}

/// Where a partition's log stands, once all that it is compared with is read.
#[derive(Debug, Clone, Copy)]
struct Log {
    /// Its first and its newest position.
    outermost: Option<(i64, i64)>,
    head: Option<Position>,
}

/// A partition at the beginning of its replay; none when something about it is wrong already.
fn begin(around: &Around, partition: Partition, held: Option<Box<Held>>, log: Log) -> Option<Box<(Replay, Findings)>> {
    let mut findings = Findings::default();
    let (first, newest) = log.outermost.unwrap_or((1, 0));
    let now = log.head?;
    let waiting = Waiting::of(around, partition, held, &mut findings)?;
    // What is compared with the log may be further than the heads that were read before it; then the replay goes as far.
    let end = waiting.head.max(waiting.furthest().min(now));
    let is_beyond_head = u64::try_from(newest).is_ok_and(|newest| newest > now.max(end).0);
    let is_stray = around.depth == Depth::Full && (first < 1 || is_beyond_head);
    if is_stray || findings.count > 0 || findings.consequences > 0 {
        return None;
    }
    let replay = Replay::new(partition, around.depth, end, waiting).ok()?;
    Some(Box::new((replay, findings)))
}

/// Reads the log with some readers. Their chunks are folded in the order in which they lie in the database.
async fn read(
    sweep: &Sweep,
    pass: Pass,
    counted: Option<Rows>,
    depth: Depth,
    progress: &Progress,
) -> Result<(Pass, Option<Rows>), StoreError> {
    let empty = counted.clone();
    let shared = Arc::new(Mutex::new((pass, counted)));
    let turn = watch::Sender::new(0_u64);
    let mut readers = JoinSet::new();
    for _ in 0..readers_at_once() {
        let (sweep, shared, turn, progress) = (sweep.clone(), shared.clone(), turn.clone(), progress.clone());
        let mut counted = empty.clone();
        readers.spawn(async move {
            let mut sweeper = sweep.sweeper().await?;
            let (mut chunk, mut checker, mut turns) = (sweep.chunk(), Checker::new(depth), turn.subscribe());
            while let Some(number) = sweeper.next(&mut chunk).await? {
                let rows = checker.check(&chunk);
                if let Some(counted) = &mut counted {
                    counted.add(&rows);
                }
                let ours = turns.wait_for(|turn| *turn == number).await;
                drop(ours.map_err(|_| StoreError::Inconsistent("another reader of the log ended early".to_owned()))?);
                {
                    // A reader that panicked in its turn ends the whole reading.
                    let (pass, _) = &mut *shared.lock().unwrap_or_else(PoisonError::into_inner);
                    pass.take_all(&rows, depth, &chunk, &mut checker);
                    pass.keep_within(BYTES_MAX);
                }
                progress.advance(rows.len() as u64);
                turn.send_replace(number + 1);
            }
            let (_, all) = &mut *shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((all, counted)) = all.as_mut().zip(counted) {
                all.absorb(&counted);
            }
            Ok::<_, StoreError>(())
        });
    }
    while let Some(ended) = readers.join_next().await {
        ended.map_err(|error| StoreError::Inconsistent(format!("a reader of the log ended early: {error}")))??;
    }
    let read =
        Arc::try_unwrap(shared).map_err(|_| StoreError::Inconsistent("a reader outlived its sweep".to_owned()))?;
    Ok(read.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Pass {
    fn take_all(&mut self, rows: &[Checked<'_>], depth: Depth, chunk: &Chunk, checker: &mut Checker) {
        for rows in rows.chunks(AHEAD) {
            let foreseen = self.foresee(rows, depth);
            rows.iter().zip(foreseen).for_each(|(row, foreseen)| self.take(row, foreseen, chunk, checker));
        }
    }

    /// Looks for the accounts of some rows at once: step by step for all of them, so that no step of one waits for the
    /// memory alone.
    fn foresee(&self, rows: &[Checked<'_>], depth: Depth) -> [Foreseen; AHEAD] {
        let accounts = |row: &Checked<'_>| match &row.event {
            Ok(event) => self.slots[event.partition.index()].as_ref().map(|slot| slot.0.accounts()),
            Err(_) => None,
        };
        let mut foreseen = [Foreseen::Nothing; AHEAD];
        for step in [Step::Guess, Step::Look, Step::Call] {
            for (row, foreseen) in rows.iter().zip(&mut foreseen) {
                let (Ok(event), Some(accounts)) = (&row.event, accounts(row)) else { continue };
                *foreseen = match (step, *foreseen) {
                    (Step::Guess, _) => accounts.guess(event.account_id).map_or(Foreseen::Nothing, Foreseen::Account),
                    (Step::Look, Foreseen::Account(number)) if !accounts.is(number, event.account_id) => {
                        Foreseen::Nothing
                    }
                    (Step::Call, Foreseen::Account(number))
                        if depth == Depth::Full && accounts.is_called(number, event.user_id, event.credit_type) =>
                    {
                        Foreseen::Called(number)
                    }
                    (_, before) => before,
                };
            }
        }
        foreseen
    }

    fn take(&mut self, row: &Checked<'_>, foreseen: Foreseen, chunk: &Chunk, checker: &mut Checker) {
        let partition = match (&row.event, row.event.as_ref().err().and_then(|none| none.0)) {
            (Ok(event), _) => event.partition,
            (Err(_), Some((partition, _))) => partition,
            // A row of no partition may belong to any of them.
            (Err(_), None) => return Partition::all().for_each(|partition| self.doubt(partition)),
        };
        let Some(slot) = &mut self.slots[partition.index()] else { return };
        let taken = match &row.event {
            Ok(event) => slot.0.take(row, event, foreseen, chunk, checker),
            // What lies after the end is not looked at, whatever it is.
            Err(none) if none.0.is_some_and(|(_, position)| position > slot.0.end) => Ok(()),
            Err(none) => Err(none.0.map_or(Doubt::Other, |(_, position)| Doubt::Row(position))),
        };
        if let Err(doubt) = taken {
            if let Doubt::Row(position) = doubt {
                self.doubted_rows[partition.index()].get_or_insert(position);
            }
            self.doubt(partition);
        }
    }

    fn doubt(&mut self, partition: Partition) {
        if self.slots[partition.index()].take().is_some() {
            self.doubtful.push(partition);
        }
    }

    /// Puts half of the partitions off when they have more than so many bytes in memory.
    fn keep_within(&mut self, bytes: usize) {
        if self.slots.iter().flatten().map(|slot| slot.0.bytes()).sum::<usize>() <= bytes {
            return;
        }
        let kept = self.slots.iter().flatten().count().div_ceil(2);
        for slot in self.slots.iter_mut().filter(|slot| slot.is_some()).skip(kept) {
            self.put_off.extend(slot.take().map(|slot| slot.0.partition));
        }
    }
}

/// Compares what is compared at the end.
async fn finish(database: &Database, around: &Arc<Around>, pass: Pass, swept: &mut Swept) -> Result<(), StoreError> {
    let mut slots: Vec<_> = pass.slots.into_iter().flatten().map(|slot| *slot).collect();
    let lots: Vec<_> = std::iter::from_fn(|| {
        let lot: Vec<_> = slots.drain(..slots.len().min(held::TOGETHER)).collect();
        Some(lot).filter(|lot| !lot.is_empty())
    })
    .collect();
    let finished = for_each(lots, |lot| {
        let (database, around) = (database.clone(), around.clone());
        async move { finish_some(&database, &around, lot).await }
    });
    for finished in finished.await? {
        for finished in finished? {
            match finished {
                Ok(part) => swept.parts.push(part),
                Err(partition) => swept.doubtful.push(partition),
            }
        }
    }
    Ok(())
}

async fn finish_some(
    database: &Database,
    around: &Around,
    lot: Vec<(Replay, Findings)>,
) -> Result<Vec<Result<Part, Partition>>, StoreError> {
    let indexed: Vec<_> =
        lot.iter().filter_map(|(replay, _)| Some((replay.partition, replay.waiting.indexes.as_ref()?.0))).collect();
    let sums = database.key_sums(&indexed).await?;
    let mut sums: Vec<_> = indexed.into_iter().map(|(partition, _)| partition).zip(sums).collect();
    let mut finished = Vec::new();
    for slot in lot {
        let keys = sums.iter().position(|(partition, _)| *partition == slot.0.partition);
        let keys = keys.map(|index| sums.swap_remove(index).1);
        finished.push(finish_partition(database, around, slot, keys).await?);
    }
    Ok(finished)
}

async fn finish_partition(
    database: &Database,
    around: &Around,
    (mut replay, mut findings): (Replay, Findings),
    keys: Option<KeySums>,
) -> Result<Result<Part, Partition>, StoreError> {
    let (partition, end) = (replay.partition, replay.end);
    let head = match around.depth {
        Depth::Full => None,
        Depth::Fold => match newest(database, partition, end).await? {
            Some(head) => Some(head),
            None => return Ok(Err(partition)),
        },
    };
    let Ok(outcome) = replay.finish(head.as_ref()) else { return Ok(Err(partition)) };
    if around.depth == Depth::Full {
        let restores: Vec<_> = around.restores[partition.index()].iter().flatten().cloned().collect();
        let head = &around.heads[partition.index()];
        let doubts = super::doubt::Doubts::default();
        places::check_epochs(partition, &replay.epochs, head, &restores, &doubts, &mut findings);
        let expired: Vec<_> = replay.freezes().filter(|freeze| partition::has_expired(freeze, around.now)).collect();
        partition::note_expired(partition, &expired, around.now, &mut findings);
    }
    if let (Some((checkpoint, _)), Some(keys)) = (replay.waiting.indexes, keys)
        && !keys_agree(database, partition, checkpoint, &keys, &outcome.runs, &mut findings).await?
    {
        return Ok(Err(partition));
    }
    if findings.count > 0 || findings.consequences > 0 {
        return Ok(Err(partition));
    }
    Ok(Ok(Part {
        partition,
        events: end.0,
        accounts: outcome.accounts,
        freezes: outcome.freezes,
        digest: outcome.digest,
        batches: replay.batches,
        compensations: replay.compensations,
        findings,
    }))
}

/// Whether a partition's key index comes to what the log makes of it.
async fn keys_agree(
    database: &Database,
    partition: Partition,
    checkpoint: Position,
    keys: &KeySums,
    expected: &[KeySum],
    findings: &mut Findings,
) -> Result<bool, StoreError> {
    let found = keys.runs.iter().filter(|(_, sum)| sum.rows > 0).copied();
    let expected = (0..).zip(expected).filter(|(_, sum)| sum.rows > 0).map(|(run, sum)| (run, *sum));
    if !found.eq(expected) {
        return Ok(false);
    }
    if keys.later > 0 {
        // What was written meanwhile is compared row by row.
        let mut later = log::Replay::new(partition, Depth::Full);
        if !Indexes::compare_later(database, partition, checkpoint, keys.later, &mut later).await? {
            return Ok(false);
        }
        findings.absorb(later.findings);
    }
    Ok(true)
}

/// The head that the event at a position makes; none when there is no such event.
async fn newest(database: &Database, partition: Partition, end: Position) -> Result<Option<Head>, StoreError> {
    if end == Position::ZERO {
        return Ok(Some(Head::EMPTY));
    }
    let row = database.rows_at(&[(partition, end)]).await?.pop();
    Ok(row.and_then(Result::ok).map(|event| event.head()))
}

#[cfg(test)]
mod tests {
    use ledger_store::sweep::READERS_MAX;

    use super::*;

    #[test]
    fn many_cores_make_no_more_readers_than_the_database_has_connections_for() {
        for cores in 1..200 {
            assert!((1..=READERS_MAX).contains(&within(within(cores, 0), READERS_BESIDES)), "{cores}");
        }
        assert_eq!(within(2, READERS_BESIDES), 4);
    }

    #[test]
    fn half_of_the_partitions_are_put_off_while_they_have_too_much_in_memory() {
        let slots = array::from_fn(|index| {
            let partition = Partition::new(u8::try_from(index).expect("64 partitions")).expect("below 64");
            Some(Box::new((Replay::of_an_account(partition), Findings::default())))
        });
        let (heads, doubted_rows) = ([None; PARTITIONS], [None; PARTITIONS]);
        let mut pass = Pass { slots, doubtful: Vec::new(), put_off: Vec::new(), heads, doubted_rows };
        let of_one = pass.slots[0].as_ref().expect("there").0.bytes();
        assert!(of_one > 64, "an account takes {of_one} bytes");
        pass.keep_within(64 * of_one);
        assert_eq!(pass.put_off, []);
        pass.keep_within(64 * of_one - 1);
        assert_eq!(pass.put_off, Partition::all().skip(32).collect::<Vec<_>>());
        assert!(pass.slots[..32].iter().all(Option::is_some) && pass.slots[32..].iter().all(Option::is_none));
        // What does not fit alone is read all the same.
        (0..9).for_each(|_| pass.keep_within(0));
        assert_eq!((pass.put_off.len(), pass.slots.iter().flatten().count()), (63, 1));
        assert_eq!(pass.doubtful, []);
    }
}
