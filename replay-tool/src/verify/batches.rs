//! Atomic batches: every event of one is there, or none. A batch crosses partitions, and ten million events may be of five
//! million batches; so in the first place only sums are kept.
//!
//! Each event adds a random-looking number that follows from its mark, and the first of a batch takes away the numbers of
//! all that the batch must have. When nothing is left over, every batch is whole. Where something is left over, the log is
//! read again for the batches that share that sum, which are few.

use std::collections::BTreeSet;

use foldhash::HashMap;
use ledger_core::{BatchMark, Event, PARTITIONS, Partition, Position};
use ledger_store::{Database, StoreError};
use uuid::Uuid;

use crate::finding::{Finding, Findings, Kind};

/// Sums that batches are spread over.
const SUMS: usize = 4_096;
/// Batches of a second reading that are looked at; what is wrong with more of them shows after these are mended.
const SUSPECTS_MAX: usize = 100_000;
/// A batch has at most ten thousand commands (see the contract); a larger size is a damaged mark.
const SIZE_MAX: u32 = 1 << 20;

/// What is left over of the batches that were added.
#[derive(Debug, Clone)]
pub(super) struct Sums(Vec<u128>);

impl Default for Sums {
    fn default() -> Self {
        Self(vec![0; SUMS])
    }
}

impl Sums {
    /// Adds an event's mark.
    pub(super) fn add(&mut self, mark: BatchMark) {
        let sum = &mut self.0[sum_of(mark.id)];
        *sum = sum.wrapping_add(number(mark));
        if mark.index == 0 {
            for index in 0..mark.size.min(SIZE_MAX) {
                *sum = sum.wrapping_sub(number(BatchMark { index, ..mark }));
            }
        }
    }

    /// Adds those of another partition.
    pub(super) fn absorb(&mut self, other: &Self) {
        for (sum, other) in self.0.iter_mut().zip(&other.0) {
            *sum = sum.wrapping_add(*other);
        }
    }

    /// Whether every batch is whole.
    pub(super) fn are_whole(&self) -> bool {
        self.0.iter().all(|sum| *sum == 0)
    }
}

fn sum_of(id: Uuid) -> usize {
    let bits = (id.as_u128() ^ (id.as_u128() >> 64)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    usize::try_from(bits >> 116).unwrap_or(0) % SUMS
}

/// A mark's number: two rounds of multiplying and folding, so that the numbers of no few marks add up to nothing.
fn number(mark: BatchMark) -> u128 {
    const ODD: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
    let place = u128::from(mark.size) << 32 | u128::from(mark.index);
    let mixed = (mark.id.as_u128() ^ place.wrapping_mul(ODD)).wrapping_mul(ODD);
    let mixed = (mixed ^ mixed >> 61).wrapping_mul(ODD.rotate_left(64) | 1);
    mixed ^ mixed >> 67
}

#[derive(Debug)]
struct Open {
    size: u32,
    seen: BTreeSet<u32>,
    first: (Partition, Position),
    contradicts: bool,
}

/// The batches that may not be whole.
#[derive(Debug, Default)]
struct Suspects(HashMap<Uuid, Open>);

impl Suspects {
    fn add(&mut self, sums: &Sums, event: &Event) {
        let Some(mark) = event.batch.filter(|mark| sums.0[sum_of(mark.id)] != 0) else { return };
        let is_full = self.0.len() >= SUSPECTS_MAX;
        if is_full && !self.0.contains_key(&mark.id) {
            return;
        }
        let open = self.0.entry(mark.id).or_insert_with(|| Open {
            size: mark.size,
            seen: BTreeSet::new(),
            first: (event.partition, event.position),
            contradicts: false,
        });
        let fits = mark.size == open.size && mark.index < mark.size && open.seen.insert(mark.index);
        open.contradicts |= !fits;
    }

    fn name(self, log_is_damaged: bool, findings: &mut Findings) {
        for (id, open) in self.0 {
            let seen = open.seen.len();
            if !open.contradicts && seen == open.size as usize {
                continue;
            }
            let expected = format!("{} events of batch {id}", open.size);
            let (found, follows) = if open.contradicts {
                ("marks that contradict each other".to_owned(), false)
            } else {
                // What is missing is named as a gap, or as the event that was changed.
                (format!("{seen} of them"), log_is_damaged)
            };
            let (partition, position) = open.first;
            let finding = Finding::at(Kind::BatchIncomplete, partition, position, expected, found);
            if follows {
                findings.consequences += 1;
                findings.notice(finding.mended_by("what is missing is named by another finding: mend that"));
            } else {
                findings.push(finding);
            }
        }
    }
}

/// Names the batches that are not whole, by reading the log up to `heads` again.
pub(super) async fn find(
    database: &Database,
    sums: &Sums,
    heads: &[Position; PARTITIONS],
    findings: &mut Findings,
) -> Result<(), StoreError> {
    if sums.are_whole() {
        return Ok(());
    }
    let mut suspects = Suspects::default();
    for partition in Partition::all() {
        let mut scan = database.scan(partition, Position::ZERO, heads[partition.index()]);
        loop {
            let rows = scan.next().await?;
            if rows.is_empty() {
                break;
            }
            rows.iter().flatten().for_each(|event| suspects.add(sums, event));
        }
    }
    suspects.name(findings.log_is_damaged(), findings);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(id: u128, size: u32) -> Vec<BatchMark> {
        (0..size).map(|index| BatchMark { id: Uuid::from_u128(id), size, index }).collect()
    }

    fn are_whole(marks: &[BatchMark]) -> bool {
        let (mut one, mut other) = (Sums::default(), Sums::default());
        for (index, mark) in marks.iter().enumerate() {
            if index % 3 == 0 { one.add(*mark) } else { other.add(*mark) }
        }
        one.absorb(&other);
        one.are_whole()
    }

    #[test]
    fn whole_batches_leave_nothing_over_and_every_fault_does() {
        let marks: Vec<_> =
            (1..2_000).flat_map(|id| batch(id << 34, 2 + u32::try_from(id % 7).expect("small"))).collect();
        assert!(are_whole(&marks));
        for index in (0..marks.len()).step_by(97) {
            let mut one_less = marks.clone();
            let mark = one_less.remove(index);
            assert!(!are_whole(&one_less), "{mark:?} is missing");
            let mut one_more = marks.clone();
            one_more.push(mark);
            assert!(!are_whole(&one_more), "{mark:?} is there twice");
            for edited in [
                BatchMark { size: mark.size + 1, ..mark },
                BatchMark { index: mark.index + 1, ..mark },
                BatchMark { id: Uuid::from_u128(7), ..mark },
            ] {
                let mut marks = marks.clone();
                marks[index] = edited;
                assert!(!are_whole(&marks), "{mark:?} became {edited:?}");
            }
        }
    }
}
