//! The freezes that are due and cannot be released now: each is tried again after ever longer pauses.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ledger_core::{Partition, Position};

use crate::backoff;

/// Where a freeze stands.
pub(super) type Place = (Partition, Position);

/// So many are remembered: some hundred bytes each.
const WAITING_MAX: usize = 10_000;

/// Why a freeze is not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its order is paid.
    Kept,
    /// What became of its order cannot be found out.
    Unknown,
    /// Its release failed.
    Failed,
}

impl Why {
    /// The first pause and the longest; each is twice the one before.
    const fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Kept => (Duration::from_secs(60), Duration::from_secs(3_600)),
            Self::Unknown => (Duration::from_secs(1), Duration::from_secs(60)),
            Self::Failed => (Duration::from_secs(5), Duration::from_secs(600)),
        }
    }
}

#[derive(Debug)]
struct Entry {
    why: Why,
    /// For the same reason, one after the other.
    tries: u32,
    /// The reasons that were told of already.
    told: [bool; 3],
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    entries: HashMap<Place, Entry>,
}

impl Waiting {
    pub(super) fn contains(&self, place: Place) -> bool {
        self.entries.contains_key(&place)
    }

    /// How many wait for a reason.
    pub(super) fn count(&self, why: Why) -> usize {
        self.entries.values().filter(|entry| entry.why == why).count()
    }

    /// Those whose time has come, at most `limit`.
    pub(super) fn due(&self, now: Instant, limit: usize) -> Vec<Place> {
        let due = self.entries.iter().filter(|(_, entry)| entry.at <= now);
        due.take(limit).map(|(place, _)| *place).collect()
    }

    /// Nothing more is to be done about it.
    pub(super) fn done(&mut self, place: Place) {
        self.entries.remove(&place);
    }

    /// Remembers to try it again. How often it was tried for this reason, or `None` when there is no room for it.
    pub(super) fn postpone(&mut self, place: Place, why: Why, now: Instant) -> Option<u32> {
        if self.entries.len() >= WAITING_MAX && !self.contains(place) {
            return None;
        }
        let entry = self.entries.entry(place).or_insert(Entry { why, tries: 0, told: [false; 3], at: now });
        if entry.why != why {
            (entry.why, entry.tries) = (why, 0);
        }
        entry.tries += 1;
        let (first, longest) = why.pauses();
        entry.at = now + backoff::pause(entry.tries, first, longest);
        Some(entry.tries)
    }

    /// Those that wait for a reason need not wait any longer.
    pub(super) fn hasten(&mut self, why: Why) {
        let now = Instant::now();
        self.entries.values_mut().filter(|entry| entry.why == why).for_each(|entry| entry.at = now.min(entry.at));
    }

    /// Whether a person is to be told of it: once for each reason.
    pub(super) fn is_to_be_told(&mut self, place: Place, why: Why) -> bool {
        self.entries.get_mut(&place).is_some_and(|entry| !std::mem::replace(&mut entry.told[why as usize], true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(position: u64) -> Place {
        (Partition::new(3).expect("there is one"), Position(position))
    }

    #[test]
    fn a_freeze_comes_back_when_its_pause_is_over_and_is_told_of_once() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.postpone(place(1), Why::Kept, now), Some(1));
        assert!(waiting.due(now + Duration::from_secs(29), 9).is_empty());
        assert_eq!(waiting.due(now + Duration::from_secs(60), 9), [place(1)]);
        assert!(waiting.is_to_be_told(place(1), Why::Kept) && !waiting.is_to_be_told(place(1), Why::Kept));
        assert_eq!(waiting.postpone(place(1), Why::Kept, now), Some(2));
        // Another reason begins anew; that the first was told of is not forgotten.
        assert_eq!(waiting.postpone(place(1), Why::Unknown, now), Some(1));
        assert!(waiting.is_to_be_told(place(1), Why::Unknown));
        assert_eq!(waiting.postpone(place(1), Why::Kept, now), Some(1));
        assert!(!waiting.is_to_be_told(place(1), Why::Kept));
        assert_eq!((waiting.count(Why::Kept), waiting.count(Why::Unknown)), (1, 0));
        waiting.done(place(1));
        assert!(!waiting.contains(place(1)));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for position in 1..=WAITING_MAX as u64 {
            assert!(waiting.postpone(place(position), Why::Kept, now).is_some());
        }
        assert_eq!(waiting.postpone(place(0), Why::Kept, now), None);
        assert_eq!(waiting.postpone(place(7), Why::Kept, now), Some(2));
        assert_eq!(waiting.due(now + Duration::from_secs(7_200), 100).len(), 100);
    }
}
