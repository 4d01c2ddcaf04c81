//! The quick way of verification: the log is read as it lies in the database, all partitions at once, and of each it is
//! found out whether everything agrees. Nothing is named here. A partition in which anything does not agree – or that does
//! not fit into memory, or is written in an order that a sweep cannot follow – is verified by itself, and that names it.

mod beside;
mod check;
mod replay;
mod tables;

use std::sync::{Arc, Mutex, PoisonError};

use ledger_core::{Head, PARTITIONS, Partition, Position};
use ledger_store::{
    Database, StoreError,
    sweep::{Chunk, Extent, Sweep},
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    at_once,
    indexes::Indexes,
    log::{self, Depth},
    partition::{self, Around, Part},
    places,
};
use crate::{finding::Findings, progress::Progress};
use beside::Waiting;
use check::{Checked, Checker};
use replay::{Doubt, Foreseen, Replay};

/// What the partitions of one pass may have in memory. When they have more, half of them are put off to another pass.
const BYTES_MAX: usize = 236 << 20;
/// Readers besides one for each core: while one waits for its turn or for the database, the others work.
const READERS_BESIDES: usize = 1;

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
    while !waiting.is_empty() {
        let mut pass = prepare(database, around, std::mem::take(&mut waiting), &mut swept.doubtful).await?;
        let extent = if around.depth == Depth::Full { Extent::Whole } else { Extent::Fold };
        let sweep = database.sweep(extent).await?;
        pass = read(&sweep, pass, around.depth, progress).await?;
        waiting = std::mem::take(&mut pass.put_off);
        swept.doubtful.append(&mut pass.doubtful);
        finish(database, around, pass, &mut swept).await?;
    }
    swept.doubtful.sort_unstable();
    Ok(swept)
}

/// One reading of the log.
#[derive(Debug)]
struct Pass {
    slots: Slots,
    doubtful: Vec<Partition>,
    put_off: Vec<Partition>,
}

/// Does some work for each of these partitions, as many at once as there are cores.
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
        while tasks.len() < at_once()
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
    let prepared = for_each(partitions, |partition| {
        let (database, around) = (database.clone(), around.clone());
        async move {
            let mut findings = Findings::default();
            let (beside, end) = partition::prepare(&database, partition, &around, &mut findings).await?;
            let is_sound = findings.count == 0 && findings.consequences == 0;
            let waiting = Waiting::of(beside).filter(|_| is_sound);
            let replay = waiting.and_then(|waiting| Replay::new(partition, around.depth, end, waiting).ok());
            Ok::<_, StoreError>((partition, replay.map(|replay| Box::new((replay, findings)))))
        }
    });
    let mut slots: Slots = std::array::from_fn(|_| None);
    for prepared in prepared.await? {
        let (partition, slot) = prepared?;
        if slot.is_none() {
            doubtful.push(partition);
        }
        slots[partition.index()] = slot;
    }
    Ok(Pass { slots, doubtful: Vec::new(), put_off: Vec::new() })
}

/// Reads the log with some readers. Their chunks are folded in the order in which they lie in the database.
async fn read(sweep: &Sweep, pass: Pass, depth: Depth, progress: &Progress) -> Result<Pass, StoreError> {
    let shared = Arc::new(Mutex::new(pass));
    let turn = watch::Sender::new(0_u64);
    let mut readers = JoinSet::new();
    for _ in 0..at_once() + READERS_BESIDES {
        let (sweep, shared, turn, progress) = (sweep.clone(), shared.clone(), turn.clone(), progress.clone());
        readers.spawn(async move {
            let mut sweeper = sweep.sweeper().await?;
            let (mut chunk, mut checker, mut turns) = (sweep.chunk(), Checker::new(depth), turn.subscribe());
            while let Some(number) = sweeper.next(&mut chunk).await? {
                let rows = checker.check(&chunk);
                let ours = turns.wait_for(|turn| *turn == number).await;
                drop(ours.map_err(|_| StoreError::Inconsistent("another reader of the log ended early".to_owned()))?);
                {
                    // A reader that panicked in its turn ends the whole reading.
                    let mut pass = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    pass.take_all(&rows, depth, &chunk, &mut checker);
                    pass.keep_within(BYTES_MAX);
                }
                progress.advance(rows.len() as u64);
                turn.send_replace(number + 1);
            }
            Ok::<_, StoreError>(())
        });
    }
    while let Some(ended) = readers.join_next().await {
        ended.map_err(|error| StoreError::Inconsistent(format!("a reader of the log ended early: {error}")))??;
    }
    let pass =
        Arc::try_unwrap(shared).map_err(|_| StoreError::Inconsistent("a reader outlived its sweep".to_owned()))?;
    Ok(pass.into_inner().unwrap_or_else(PoisonError::into_inner))
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
            Err(_) => Err(Doubt),
        };
        if taken.is_err() {
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
    let finished = for_each(pass.slots.into_iter().flatten(), |slot| {
        let (database, around) = (database.clone(), around.clone());
        async move { finish_partition(&database, &around, *slot).await }
    });
    for finished in finished.await? {
        match finished? {
            Ok(part) => swept.parts.push(part),
            Err(partition) => swept.doubtful.push(partition),
        }
    }
    Ok(())
}

async fn finish_partition(
    database: &Database,
    around: &Around,
    (mut replay, mut findings): (Replay, Findings),
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
        if let Some((checkpoint, _)) = replay.waiting.indexes {
            let sums = database.key_sums(partition, checkpoint).await?;
            let found = sums.runs.iter().filter(|(_, sum)| sum.rows > 0).copied();
            let expected = (0..).zip(&outcome.runs).filter(|(_, sum)| sum.rows > 0).map(|(run, sum)| (run, *sum));
            if !found.eq(expected) {
                return Ok(Err(partition));
            }
            let mut later = log::Replay::new(partition, Depth::Full);
            // What was written meanwhile is compared row by row.
            if sums.later > 0
                && !Indexes::compare_later(database, partition, checkpoint, sums.later, &mut later).await?
            {
                return Ok(Err(partition));
            }
            findings.absorb(later.findings);
        }
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
        findings,
    }))
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
    use super::*;

    #[test]
    fn half_of_the_partitions_are_put_off_while_they_have_too_much_in_memory() {
        let slots = std::array::from_fn(|index| {
            let partition = Partition::new(u8::try_from(index).expect("64 partitions")).expect("below 64");
            Some(Box::new((Replay::of_an_account(partition), Findings::default())))
        });
        let mut pass = Pass { slots, doubtful: Vec::new(), put_off: Vec::new() };
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
