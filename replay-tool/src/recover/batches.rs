//! Only whole batches: an atomic batch is one commit, so either all of its events happened or none did.

use std::collections::{HashMap, HashSet};

use ledger_core::{Event, PARTITIONS, Partition, Position};
use serde::Serialize;
use uuid::Uuid;

/// How many groups batches are kept in: one is looked at at a time.
pub(super) const GROUPS: usize = 64;
/// Batches that are named in a report; more are only counted.
const NAMED_MAX: usize = 1_000;

/// An event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: Uuid,
    pub(super) size: u32,
    pub(super) index: u32,
    pub(super) partition: Partition,
    pub(super) position: Position,
}

impl Member {
    pub(super) fn of(event: &Event) -> Option<Self> {
        let mark = event.batch?;
        let (partition, position) = (event.partition, event.position);
        Some(Self { id: mark.id, size: mark.size, index: mark.index, partition, position })
    }

    /// The group that holds every member of the same batch.
    pub(super) fn group(&self) -> usize {
        let bytes = self.id.as_bytes();
        bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % GROUPS
    }
}

/// A batch that was not whole, and so is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct CutBatch {
    pub(super) batch_id: Uuid,
    pub(super) size: u32,
    /// How many of its events were found; all of them where it builds on another batch that was cut.
    pub(super) held: usize,
}

/// What was cut.
#[derive(Debug, Default)]
pub(super) struct Cut {
    pub(super) batches: Vec<CutBatch>,
    pub(super) count: u64,
}

/// Moves the ends of partitions back until no batch is left in part. A cut may make other batches incomplete, so it is
/// repeated until nothing changes.
pub(super) fn cut<E>(
    ends: &mut [Position; PARTITIONS],
    group: impl Fn(usize) -> Result<Vec<Member>, E>,
) -> Result<Cut, E> {
    let mut cut = Cut::default();
    let mut known = HashSet::new();
    loop {
        let mut changed = false;
        for number in 0..GROUPS {
            for (batch, members) in batches(&group(number)?) {
                let held: Vec<_> =
                    members.iter().filter(|member| member.position <= ends[member.partition.index()]).collect();
                if held.is_empty() || is_whole(&held) {
                    continue;
                }
                for member in &held {
                    let end = &mut ends[member.partition.index()];
                    *end = (*end).min(Position(member.position.0.saturating_sub(1)));
                }
                changed = true;
                if known.insert(batch) {
                    cut.count += 1;
                    if cut.batches.len() < NAMED_MAX {
                        cut.batches.push(CutBatch { batch_id: batch, size: held[0].size, held: members.len() });
                    }
                }
            }
        }
        if !changed {
            cut.batches.sort_unstable_by_key(|batch| batch.batch_id);
            return Ok(cut);
        }
    }
}

fn batches(members: &[Member]) -> HashMap<Uuid, Vec<Member>> {
    let mut batches: HashMap<Uuid, Vec<Member>> = HashMap::new();
    for member in members {
        batches.entry(member.id).or_default().push(*member);
    }
    batches
}

/// Every index is there once, and all agree on how many there are.
fn is_whole(held: &[&Member]) -> bool {
    let size = held[0].size;
    let indexes: HashSet<u32> = held.iter().filter(|member| member.index < size).map(|member| member.index).collect();
    held.iter().all(|member| member.size == size) && held.len() == size as usize && indexes.len() == held.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(batch: u128, size: u32, index: u32, partition: u8, position: u64) -> Member {
        let partition = Partition::new(partition).expect("there is one");
        Member { id: Uuid::from_u128(batch), size, index, partition, position: Position(position) }
    }

    fn cut_to(members: &[Member], ends: &[(usize, u64)]) -> (Vec<u64>, u64) {
        let mut all = [Position::ZERO; PARTITIONS];
        for &(partition, end) in ends {
            all[partition] = Position(end);
        }
        let group = |number| -> Result<Vec<Member>, std::convert::Infallible> {
            Ok(members.iter().filter(|member| member.group() == number).copied().collect())
        };
        let cut = cut(&mut all, group).expect("infallible");
        (ends.iter().map(|&(partition, _)| all[partition].0).collect(), cut.count)
    }

    #[test]
    fn a_whole_batch_stays() {
        let members = [member(1, 2, 0, 0, 5), member(1, 2, 1, 1, 9)];
        assert_eq!(cut_to(&members, &[(0, 7), (1, 9)]), (vec![7, 9], 0));
    }

    #[test]
    fn half_a_batch_cuts_its_partitions_before_it() {
        let members = [member(1, 3, 0, 0, 5), member(1, 3, 1, 1, 9)];
        assert_eq!(cut_to(&members, &[(0, 7), (1, 9)]), (vec![4, 8], 1));
    }

    #[test]
    fn a_cut_that_breaks_another_batch_cuts_on() {
        // 1 is incomplete in partition 0; that takes half of 2, whose other half takes half of 3.
        let members = [
            member(1, 2, 0, 0, 5),
            member(2, 2, 0, 0, 6),
            member(2, 2, 1, 1, 3),
            member(3, 2, 0, 1, 4),
            member(3, 2, 1, 2, 1),
            member(4, 2, 0, 2, 1),
        ];
        assert_eq!(cut_to(&members[..5], &[(0, 6), (1, 4), (2, 1)]), (vec![4, 2, 0], 3));
    }

    #[test]
    fn marks_that_contradict_each_other_are_not_whole() {
        assert_eq!(cut_to(&[member(1, 2, 0, 0, 1), member(1, 2, 0, 0, 2)], &[(0, 2)]), (vec![0], 1));
        assert_eq!(cut_to(&[member(1, 2, 0, 0, 1), member(1, 3, 1, 0, 2)], &[(0, 2)]), (vec![0], 1));
        assert_eq!(cut_to(&[member(1, 1, 1, 0, 1)], &[(0, 1)]), (vec![0], 1));
    }

    proptest! {
        /// Against the definition: the largest ends at which every batch is whole or absent.
        #[test]
        fn what_is_left_is_the_most_that_holds_only_whole_batches(
            batches in proptest::collection::vec(proptest::collection::vec(0..4_u8, 1..4), 1..10),
            lost in proptest::collection::vec(0..3_u64, 4),
        ) {
            let mut next = [0_u64; 4];
            let mut members = Vec::new();
            for (number, partitions) in batches.iter().enumerate() {
                for (index, partition) in (0_u32..).zip(partitions) {
                    next[usize::from(*partition)] += 1;
                    let size = u32::try_from(partitions.len()).expect("few");
                    members.push(member(number as u128, size, index, *partition, next[usize::from(*partition)]));
                }
            }
            let ends: Vec<(usize, u64)> =
                (0..4).map(|partition| (partition, next[partition].saturating_sub(lost[partition]))).collect();
            let there: Vec<Member> = members
                .iter()
                .filter(|member| member.position.0 <= ends[member.partition.index()].1)
                .copied()
                .collect();
            let (left, _) = cut_to(&there, &ends);
            // Batches are commits in order, so the most that can be kept is found by trying every vector of ends.
            let whole = |ends: &[u64]| (0..batches.len()).all(|number| {
                let all: Vec<_> = members.iter().filter(|member| member.id == Uuid::from_u128(number as u128)).collect();
                let held = all.iter().filter(|member| member.position.0 <= ends[member.partition.index()]).count();
                held == 0 || held == all.len()
            });
            prop_assert!(whole(&left));
            let fits = |ends: &[u64], most: &[(usize, u64)]| ends.iter().zip(most).all(|(end, (_, most))| end <= most);
            prop_assert!(fits(&left, &ends));
            let mut tried = [0_u64; 4];
            loop {
                if whole(&tried) && fits(&tried, &ends) {
                    prop_assert!(tried.iter().zip(&left).all(|(end, left)| end <= left), "{:?} holds more than {:?}", tried, left);
                }
                let Some(digit) = (0..4).find(|&digit| tried[digit] < ends[digit].1) else { break };
                tried[..digit].fill(0);
                tried[digit] += 1;
            }
        }
    }
}
