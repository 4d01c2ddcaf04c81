//! What damage makes doubtful. One damaged event contradicts many others; only itself is to be named.

use foldhash::HashSet;
use ledger_core::{AccountId, Position};

/// The places of a partition that cannot be believed, and what depends on them.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Ranges of positions that are not there or cannot be read, first and last, ascending.
    lost: Vec<(Position, Position)>,
    /// Events that were changed.
    changed: HashSet<Position>,
    /// Freezes and deductions about which a changed event speaks, by their position.
    originals: HashSet<Position>,
    /// Accounts of which an event is lost, or was changed.
    accounts: HashSet<AccountId>,
}

impl Doubts {
    /// Positions of which nothing is known.
    pub(super) fn lose(&mut self, first: Position, last: Position) {
        match self.lost.last_mut() {
            Some((_, end)) if end.next() == first => *end = last,
            _ => self.lost.push((first, last)),
        }
    }

    /// An event that is not as it was, and the original that it speaks of.
    pub(super) fn change(&mut self, position: Position, original: Option<Position>) {
        self.changed.insert(position);
        self.originals.extend(original);
    }

    pub(super) fn lose_event_of(&mut self, account: AccountId) {
        self.accounts.insert(account);
    }

    pub(super) fn is_lost(&self, position: Position) -> bool {
        let after = self.lost.partition_point(|(first, _)| *first <= position);
        after.checked_sub(1).is_some_and(|range| self.lost[range].1 >= position)
    }

    /// Whether what stands at a position, or stood there, explains a contradiction with it.
    pub(super) fn covers(&self, position: Position) -> bool {
        !self.is_none() && (self.changed.contains(&position) || self.is_lost(position))
    }

    /// Whether what is known of an account's freeze or deduction may be wrong.
    pub(super) fn covers_original(&self, position: Position, account: AccountId) -> bool {
        self.covers(position) || self.originals.contains(&position) || self.accounts.contains(&account)
    }

    pub(super) fn is_none(&self) -> bool {
        self.lost.is_empty() && self.changed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_ranges_are_found_and_joined() {
        let mut doubts = Doubts::default();
        assert!(doubts.is_none() && !doubts.covers(Position(1)));
        for (first, last) in [(3, 4), (5, 5), (9, 12)] {
            doubts.lose(Position(first), Position(last));
        }
        assert_eq!(doubts.lost, [(Position(3), Position(5)), (Position(9), Position(12))]);
        let lost: Vec<_> = (0..15).filter(|position| doubts.is_lost(Position(*position))).collect();
        assert_eq!(lost, [3, 4, 5, 9, 10, 11, 12]);
    }
}
