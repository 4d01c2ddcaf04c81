//! The deductions of a partition in few bytes: what can still be refunded of each.

use std::collections::BTreeMap;

use ledger_core::TransactionId;

use super::tables::{AccountNumber, Mark, SEGMENT};

/// A deduction in 14 bytes: a ledger has millions of them.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(2))]
struct DeductionRow {
    /// After the first position of its segment.
    offset: u16,
    mark: Mark,
    /// What can still be refunded; [`LARGE`] where that stands elsewhere.
    refundable: u32,
}

/// No amount that fits a row.
const LARGE: u32 = u32::MAX;

/// The deductions of a partition, by position. In which epoch each was made, the caller knows.
#[derive(Debug, Default)]
pub(super) struct Deductions {
    /// Segments that are full, or whose next row would lie too far from their first.
    segments: Vec<(u32, Vec<DeductionRow>)>,
    len: usize,
    /// What can still be refunded of those that took more than fits a row, by position.
    large: BTreeMap<u32, u64>,
}

impl Deductions {
    pub(super) fn bytes(&self) -> usize {
        const OF_A_MAP: usize = 24;
        self.len * size_of::<DeductionRow>() + self.large.len() * OF_A_MAP
    }

    pub(super) fn add(&mut self, position: u32, id: TransactionId, account: AccountNumber, units: u64) {
        let refundable = u32::try_from(units).unwrap_or(LARGE);
        if refundable == LARGE {
            self.large.insert(position, units);
        }
        let mark = Mark::new(id, account);
        self.len += 1;
        if let Some((first, rows)) = self.segments.last_mut()
            && rows.len() < SEGMENT
            && let Ok(offset) = u16::try_from(position - *first)
        {
            rows.push(DeductionRow { offset, mark, refundable });
            return;
        }
        // Most partitions of a small ledger have few rows.
        let is_first = self.segments.is_empty();
        let mut rows = Vec::with_capacity(if is_first { 0 } else { SEGMENT });
        rows.push(DeductionRow { offset: 0, mark, refundable });
        self.segments.push((position, rows));
    }

    /// Takes a refund from the deduction with this id at this position; none when there is no such one of the account, or it
    /// does not bear it. Tells what is left.
    pub(super) fn refund(
        &mut self,
        position: u32,
        id: TransactionId,
        account: AccountNumber,
        units: u64,
    ) -> Option<u64> {
        let segment = self.segments.partition_point(|(first, _)| *first <= position).checked_sub(1)?;
        let (first, rows) = &mut self.segments[segment];
        let offset = u16::try_from(position - *first).ok()?;
        let index = rows.binary_search_by_key(&offset, |row| row.offset).ok()?;
        let row = &mut rows[index];
        let mark = row.mark;
        if !mark.is_of(id) || mark.account() != account {
            return None;
        }
        if row.refundable == LARGE {
            let large = self.large.get_mut(&position)?;
            *large = large.checked_sub(units)?;
            return Some(*large);
        }
        row.refundable = row.refundable.checked_sub(u32::try_from(units).ok()?)?;
        Some(row.refundable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger_core::{Epoch, Partition, Position};

    fn transaction(position: u64, check: u64) -> TransactionId {
        let partition = Partition::new(5).expect("below 64");
        TransactionId::of_check_bits(partition, Epoch(3), Position(position), check)
    }

    #[test]
    fn deductions_are_found_however_far_apart_they_lie_and_whatever_they_took() {
        let mut deductions = Deductions::default();
        let amounts = [1, u64::from(LARGE) - 1, u64::from(LARGE), u64::from(LARGE) + 1];
        let positions: Vec<u32> =
            (0..3_000).chain([70_000, 200_000, 200_000 + 65_535, 265_536, u32::MAX - 1]).collect();
        let taken = || positions.iter().zip(amounts.iter().cycle());
        for (position, amount) in taken() {
            deductions.add(*position, transaction(1, 5), 7, *amount);
        }
        for (position, amount) in taken() {
            assert_eq!(deductions.refund(*position, transaction(1, 5), 7, amount + 1), None, "{position}");
            assert_eq!(deductions.refund(*position, transaction(1, 5), 7, 1), Some(amount - 1), "{position}");
            assert_eq!(deductions.refund(*position, transaction(1, 5), 7, amount - 1), Some(0), "{position}");
            assert_eq!(deductions.refund(*position, transaction(1, 5), 7, 1), None, "{position}");
        }
        for position in [3_000, 69_999, 265_534, 265_537] {
            assert_eq!(deductions.refund(position, transaction(1, 5), 7, 1), None, "{position}");
        }
        assert!(size_of::<DeductionRow>() == 14 && deductions.bytes() >= 14 * positions.len());
    }

    #[test]
    fn a_deduction_bears_what_it_took_and_only_for_its_account_and_id() {
        let mut deductions = Deductions::default();
        let large = (1 << 53) - 1;
        for position in 1..3_000 {
            deductions.add(position * 2, transaction(u64::from(position), u64::from(position) << 4), position, large);
        }
        let (position, account) = (2_500 * 2, 2_500);
        let own = transaction(2_500, 2_500 << 4);
        assert_eq!(deductions.refund(position, own, account, 1), Some(large - 1));
        assert_eq!(deductions.refund(position, own, account, large), None, "more than is left");
        assert_eq!(deductions.refund(position, own, account + 1, 1), None, "of another account");
        assert_eq!(deductions.refund(position + 1, own, account, 1), None, "there is none");
        for bit in [0, 31, 32, 33] {
            let other = transaction(2_500, (2_500 << 4) ^ 1 << bit);
            assert_eq!(deductions.refund(position, other, account, 1), None, "bit {bit} of the id differs");
        }
        assert_eq!(deductions.refund(position, own, account, large - 1), Some(0));
        assert_eq!(deductions.refund(position, own, account, 1), None);
    }
}
