//! Proves one partition's read models against the log, beside the service.
//!
//! The partition's events are folded from the first one, with the hash chain checked on the way, up to where the read models
//! stand; then rows and checkpoints are taken in one short read, the few events between are folded, too, and both are
//! compared, row by row and both ways. So lag is no difference, nothing is held open in the database while events are
//! read, and memory is bounded: what is settled is kept as a fingerprint, and a partition that is still too large is
//! proved in slices of its accounts, each by a pass of its own. What differs is looked at again by another pass, in full,
//! before it is called a finding.

use std::{collections::BTreeSet, num::NonZeroU32};

use ledger_core::{AccountId, Head, Partition, Position, rejection::Contradiction};
use ledger_store::{Database, StoreError};

use crate::{
    checkpoint::ReadModel,
    inconsistencies::Finding,
    rebuild::{
        pace::Pace,
        replay::{contradiction_of, gap_after},
    },
    snapshot::CheckpointRow,
};

mod compare;
mod fold;
mod journal;
mod on_postgres;
mod on_sqlite;
mod rows;

pub use compare::Difference;
use fold::{Fold, Whose};
pub use journal::{Due, Outcome, next_due, slot, write_down};
use rows::Rows;

/// Accounts of one pass whose rows are looked at in full; the others are found by the next proof.
const SUSPECTS_MAX: usize = 1_000;
/// How often a pass begins again because the read models were put in place anew meanwhile.
const TRIES_MAX: u32 = 5;
/// How often the fold is brought up to the checkpoints before the rows are read.
const CATCH_UPS_MAX: u32 = 20;
/// Rows of the log that are read at once: some milliseconds of the database, which has others to serve.
const PAGE: usize = 500;
/// The rows are read when so few events are missing to the checkpoints.
const CLOSE_ENOUGH: u64 = 20_000;

/// How gently a proof goes about it.
#[derive(Debug, Clone)]
pub struct Options {
    /// At most so many events a second.
    pub max_rate: Option<NonZeroU32>,
    /// At most so many a second of those that are there at the beginning, which are nearly all. What comes meanwhile may come
    /// faster, and is folded at the rate above.
    pub gentle_rate: Option<NonZeroU32>,
    /// What the fold may take up in memory, in bytes, about; rows that are compared take up as much again at most.
    pub memory_bytes: usize,
}

impl Default for Options {
    /// As fast as it goes, in 64 MiB.
    fn default() -> Self {
        Self { max_rate: None, gentle_rate: None, memory_bytes: 64 * 1024 * 1024 }
    }
}

/// What a proof of a partition came to.
#[derive(Debug)]
pub struct Proof {
    pub partition: Partition,
    /// Events that were folded, in all passes.
    pub events: u64,
    pub accounts: u64,
    pub freezes: u64,
    /// How many slices the partition was proved in.
    pub slices: u32,
    /// Up to where both read models were proved.
    pub position: Position,
    /// What is not as the log makes it, by account.
    pub differences: Vec<Difference>,
    /// More accounts differed than were looked at.
    pub has_more: bool,
    /// Where the log is damaged, after what the read models hold of it.
    pub damage: Option<Contradiction>,
}

/// Why a partition could not be proved.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The log itself is damaged.
    #[error("the log of partition {0} is damaged at {1}")]
    Log(Partition, Contradiction),
    /// A checkpoint is no place of the log.
    #[error("the checkpoint of {model} in partition {partition} {reason}", model = .model.name())]
    Checkpoint { model: ReadModel, partition: Partition, reason: String },
    /// The read models were put in place anew again and again.
    #[error("the read models of partition {0} changed too often to be compared")]
    Restless(Partition),
    #[error("the database failed")]
    Store(#[from] StoreError),
}

impl ProofError {
    /// The inconsistency that this is, if it is one.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        match self {
            Self::Log(partition, found) => Some(Finding::log_damaged(*partition, found)),
            Self::Checkpoint { model, partition, reason } => Some(Finding {
                partition: *partition,
                projection: model.name(),
                kind: "checkpoint_damaged",
                subject: "checkpoint".to_owned(),
                position: 0,
                account: None,
                expected: "a place of the log".to_owned(),
                found: reason.clone(),
                size: None,
            }),
            Self::Restless(_) | Self::Store(_) => None,
        }
    }
}

/// Proves a partition. It may be dropped at any point: nothing is written, and no transaction stays open.
///
/// # Errors
///
/// See [`ProofError`].
pub async fn prove(database: &Database, partition: Partition, options: &Options) -> Result<Proof, ProofError> {
    let pace =
        Paces { at_first: Pace::new(options.gentle_rate.or(options.max_rate)), then: Pace::new(options.max_rate) };
    let mut proof = Proof {
        partition,
        events: 0,
        accounts: 0,
        freezes: 0,
        slices: 0,
        position: Position::ZERO,
        differences: Vec::new(),
        has_more: false,
        damage: None,
    };
    let mut from = None;
    loop {
        let (mut fold, rows) = pass(database, partition, &Whose::from(from), options, &pace).await?;
        let mut suspects = compare::suspects(&fold, &rows);
        proof.events += fold.events;
        proof.accounts += fold.accounts();
        proof.freezes += fold.freezes();
        proof.slices += 1;
        proof.position = fold.at[0].position.min(fold.at[1].position);
        proof.differences.extend(compare::strays(partition, &rows));
        let next = fold.whose.end();
        drop(rows);
        if from.is_none() {
            proof.damage = look_ahead(database, &mut fold, &pace.then).await?;
        }
        drop(fold);
        while suspects.len() > SUSPECTS_MAX {
            proof.has_more = true;
            suspects.pop_last();
        }
        if !suspects.is_empty() {
            look_again(database, partition, suspects, options, &pace, &mut proof).await?;
        }
        match next {
            Some(next) => from = Some(next),
            None => return Ok(proof),
        }
    }
}

/// How fast the log is read.
struct Paces {
    /// Up to where the read models stand at the beginning.
    at_first: Pace,
    /// What comes meanwhile: it may come faster.
    then: Pace,
}

/// Folds what the read models do not hold yet, too: what makes a projector stop may be the next event.
async fn look_ahead(database: &Database, fold: &mut Fold, pace: &Pace) -> Result<Option<Contradiction>, ProofError> {
    let head = database.heads().await?[fold.partition.index()].position;
    match advance(database, fold, [head; 2], pace).await {
        Ok(()) => Ok(None),
        Err(ProofError::Log(_, found)) => Ok(Some(found)),
        Err(error) => Err(error),
    }
}

/// Looks at the rows of some accounts once more, in full.
async fn look_again(
    database: &Database,
    partition: Partition,
    suspects: BTreeSet<AccountId>,
    options: &Options,
    pace: &Paces,
    proof: &mut Proof,
) -> Result<(), ProofError> {
    let (fold, rows) = pass(database, partition, &Whose::These(suspects), options, pace).await?;
    proof.events += fold.events;
    proof.differences.extend(compare::differences(&fold, &rows));
    Ok(())
}

/// Folds what is asked for up to the read models' checkpoints, and reads their rows.
async fn pass(
    database: &Database,
    partition: Partition,
    whose: &Whose,
    options: &Options,
    pace: &Paces,
) -> Result<(Fold, Rows), ProofError> {
    for _ in 0..TRIES_MAX {
        let mut fold = Fold::new(partition, whose.clone(), options.memory_bytes);
        for number in 0..CATCH_UPS_MAX {
            let pace = if number == 0 { &pace.at_first } else { &pace.then };
            let to = rows::checkpoints(database, partition).await?;
            let to = to[0].position.min(to[1].position);
            let missing = to.0.saturating_sub(fold.at[0].position.0);
            advance(database, &mut fold, [to; 2], pace).await?;
            if missing <= CLOSE_ENOUGH {
                break;
            }
        }
        let rows = rows::read(database, partition, &fold).await?;
        let to = rows.at;
        if ReadModel::ALL.iter().zip(to).zip(fold.at).any(|((_, to), at)| to.position < at.position) {
            // Somebody put older read models in place.
            continue;
        }
        advance(database, &mut fold, to.map(|to| to.position), &pace.then).await?;
        for ((model, to), at) in ReadModel::ALL.into_iter().zip(to).zip(fold.at) {
            if (to.position, to.hash) != (at.position, at.hash) {
                let reason = format!("says {} at position {}, where the log has {}", to.hash, to.position, at.hash);
                return Err(ProofError::Checkpoint { model, partition, reason });
            }
        }
        return Ok((fold, rows));
    }
    Err(ProofError::Restless(partition))
}

/// Folds the events up to one position for each read model.
async fn advance(database: &Database, fold: &mut Fold, to: [Position; 2], pace: &Pace) -> Result<(), ProofError> {
    let partition = fold.partition;
    let from = fold.at[0].position.min(fold.at[1].position);
    let end = to[0].max(to[1]);
    let mut scan = database.scan(partition, from, end).in_pages_of(PAGE);
    loop {
        let events = scan.next().await?;
        if events.is_empty() {
            break;
        }
        let count = events.len();
        // Thousands of hashes take long enough to hold up the requests of this thread.
        let taken = tokio::task::block_in_place(|| {
            events.into_iter().try_for_each(|row| {
                let event = row.map_err(contradiction_of)?;
                fold.take(&event, to)
            })
        });
        taken.map_err(|found| ProofError::Log(partition, found))?;
        fold.narrow();
        metrics::counter!("ledger_proof_events_total").increment(count as u64);
        pace.pay(count).await;
    }
    let reached = fold.at[0].position.max(fold.at[1].position);
    if reached < end {
        let head = database.heads().await?[partition.index()].position;
        if head < end {
            let model = if to[0] > head { ReadModel::Balances } else { ReadModel::Freezes };
            let reason = format!("says position {end}, past the end of the log at {head}");
            return Err(ProofError::Checkpoint { model, partition, reason });
        }
        return Err(ProofError::Log(partition, gap_after(reached)));
    }
    Ok(())
}

/// A checkpoint as it is stored, if it can be believed.
fn head_of(row: Option<CheckpointRow>) -> Result<Head, String> {
    let (epoch, position, hash) = row.ok_or_else(|| "is missing".to_owned())?;
    let unreadable = || format!("cannot be read: epoch {epoch}, position {position}, {} bytes of hash", hash.len());
    Ok(Head {
        epoch: ledger_core::Epoch(u32::try_from(epoch).map_err(|_| unreadable())?),
        position: Position(u64::try_from(position).map_err(|_| unreadable())?),
        hash: ledger_core::Hash(hash.as_slice().try_into().map_err(|_| unreadable())?),
    })
}
