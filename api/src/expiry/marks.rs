//! Up to where the freezes of each partition were dealt with.
//!
//! Settled freezes stay in the index, so where nothing is left to do is remembered. A freeze that is not in the read model
//! yet must not be passed by, whatever the clocks of the processes say: it expires after the instant at which it was
//! recorded, and instants never run backwards within a partition. So all that the read model does not hold yet expires
//! after the event that it applied last. Whenever it moved on, the look begins again from there.

use std::time::{Duration, Instant};

use ledger_core::{Event, Head, PARTITIONS, Partition, Position, Timestamp, id::POSITION_MAX};
use projector::due::{Cursor, Due};

/// Before every freeze.
const START: Cursor = Cursor { expires_at: Timestamp::EPOCH, position: Position::ZERO };

/// Where one partition stands.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Every freeze up to here that the read model held at `applied` was dealt with, or is waited for.
    seen: Cursor,
    applied: Head,
    /// When the event at `applied` was recorded, or one before it: what comes after expires later.
    recorded_at: Timestamp,
    /// Freezes that there was no room to remember: from which on to look again, and when.
    again: Option<(Cursor, Instant)>,
}

impl Mark {
    const NEW: Self = Self { seen: START, applied: Head::EMPTY, recorded_at: Timestamp::EPOCH, again: None };
}

#[derive(Debug)]
pub(super) struct Marks {
    /// Which table the marks speak of.
    generation: Option<i64>,
    marks: [Mark; PARTITIONS],
}

impl Marks {
    pub(super) const fn new() -> Self {
        Self { generation: None, marks: [Mark::NEW; PARTITIONS] }
    }

    /// Where to look from.
    pub(super) fn cursors(&self) -> [Cursor; PARTITIONS] {
        self.marks.map(|mark| mark.seen)
    }

    /// The places of the events that [`Marks::observe`] needs: the last ones that the read model applied, where it moved.
    pub(super) fn moved(&self, checkpoints: &[Head; PARTITIONS]) -> Vec<(Partition, Position)> {
        let moved = Partition::all().zip(self.marks.iter().zip(checkpoints));
        moved
            .filter(|(_, (mark, head))| mark.applied != **head && head.position > Position::ZERO)
            .map(|(partition, (_, head))| (partition, head.position))
            .collect()
    }

    /// Takes in how far the read model is. This must have been read before the freezes are.
    pub(super) fn observe(&mut self, generation: i64, checkpoints: &[Head; PARTITIONS], events: &[Event]) {
        if self.generation.replace(generation) != Some(generation) {
            // Another table was put in the place of the one that was looked at.
            self.marks = [Mark::NEW; PARTITIONS];
        }
        for (partition, (mark, head)) in Partition::all().zip(self.marks.iter_mut().zip(checkpoints)) {
            if mark.applied == *head {
                continue;
            }
            if head.epoch != mark.applied.epoch || head.position <= mark.applied.position {
                // The read model, or the log below it, was restored.
                *mark = Mark::NEW;
            }
            let after = Cursor { expires_at: mark.recorded_at, position: Position(POSITION_MAX) };
            if mark.seen > after {
                mark.seen = after;
            }
            mark.applied = *head;
            // An event that cannot be read leaves the older instant, which is true all the more.
            if let Some(event) =
                events.iter().find(|event| event.partition == partition && event.position == head.position)
            {
                mark.recorded_at = event.recorded_at;
            }
        }
    }

    /// The freeze was dealt with, and all before it.
    pub(super) fn pass(&mut self, due: &Due) {
        self.marks[due.partition.index()].seen = due.cursor();
    }

    /// There is no room to remember this freeze: it is looked for again after a while.
    pub(super) fn come_back(&mut self, partition: Partition, expires_at: Timestamp, at: Instant) {
        let mark = &mut self.marks[partition.index()];
        let from = Cursor { expires_at, position: Position::ZERO };
        mark.again = Some(mark.again.map_or((from, at), |(known, when)| (known.min(from), when.min(at))));
    }

    /// Goes back to what is to be looked for again by now.
    pub(super) fn go_back(&mut self, now: Instant) {
        for mark in &mut self.marks {
            if let Some((from, _)) = mark.again.take_if(|(_, at)| *at <= now) {
                mark.seen = mark.seen.min(from);
            }
        }
    }

    /// Looks at everything of a partition once more.
    pub(super) fn start_over(&mut self, partition: Partition) {
        self.marks[partition.index()].seen = START;
    }
}

/// Every partition is looked at from its beginning in turn, as often as this: for rows that somebody took out of the read
/// model and somebody else mended, which nothing here tells of.
pub(super) struct Turns {
    next: u8,
    due: Instant,
    every: Duration,
}

impl Turns {
    pub(super) fn new(now: Instant, every: Duration) -> Self {
        Self { next: 0, due: now + every, every }
    }

    /// The partition whose turn it is.
    pub(super) fn take(&mut self, now: Instant) -> Option<Partition> {
        if now < self.due {
            return None;
        }
        self.due = now + self.every;
        let partition = Partition::new(self.next)?;
        self.next = (self.next + 1) % u8::try_from(PARTITIONS).expect("there are 64");
        Some(partition)
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{
        Account, AccountState, Action, Amount, BusinessKey, Command, Epoch, Hash, Provenance, Situation, Slot, decide,
    };

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).expect("in range")
    }

    fn cursor(seconds: i64, position: u64) -> Cursor {
        Cursor { expires_at: at(seconds), position: Position(position) }
    }

    /// The read models when one partition has applied so many events, and the last of these.
    fn applied(account: &Account, position: u64, recorded_at: i64) -> ([Head; PARTITIONS], Event) {
        let state = AccountState::default();
        let command = Command {
            action: Action::Credit { account: account.clone(), amount: Amount::new(1).expect("an amount") },
            key: BusinessKey::new("test", &position.to_string()).expect("a key"),
            expected_version: None,
            provenance: Provenance {
                operation_id: None,
                request_id: "r".into(),
                actor: "a".into(),
                description: None,
                metadata: None,
            },
        };
        let situation = Situation { account: Some(&state), original: None };
        let effect = decide(&situation, &command, at(recorded_at)).expect("credited");
        let partition = account.partition();
        let head = Head { epoch: Epoch(1), position: Position(position - 1), hash: Hash::ZERO };
        let slot = Slot { partition, head, previous_position: Position::ZERO };
        let event = Event::seal(account, &command, &effect, &slot, None, at(recorded_at));
        let mut heads = [Head { epoch: Epoch(1), position: Position::ZERO, hash: Hash::ZERO }; PARTITIONS];
        heads[partition.index()] = event.head();
        (heads, event)
    }

    fn seen(marks: &Marks, account: &Account) -> Cursor {
        marks.cursors()[account.partition().index()]
    }

    fn pass(marks: &mut Marks, account: &Account, seconds: i64, position: u64) {
        let due = Due {
            partition: account.partition(),
            position: Position(position),
            expires_at: at(seconds),
            is_open: true,
        };
        marks.pass(&due);
    }

    #[test]
    fn what_the_read_model_did_not_hold_yet_is_not_passed_by() {
        let account = Account::new("ann", "points").expect("valid");
        let mut marks = Marks::new();
        let (heads, event) = applied(&account, 1, 100);
        marks.observe(7, &heads, &[event]);
        pass(&mut marks, &account, 300, 1);
        // Nothing new was applied: the look goes on where it was.
        marks.observe(7, &heads, &[]);
        assert_eq!(seen(&marks, &account), cursor(300, 1));
        // A process whose clock is behind froze something at 110 that expires at 120.
        let (heads, event) = applied(&account, 2, 110);
        assert_eq!(marks.moved(&heads), [(account.partition(), Position(2))]);
        marks.observe(7, &heads, &[event]);
        assert_eq!(seen(&marks, &account), cursor(100, POSITION_MAX));
        // From then on nothing that expires before 110 can come.
        pass(&mut marks, &account, 300, 1);
        let (heads, event) = applied(&account, 3, 400);
        marks.observe(7, &heads, &[event]);
        assert_eq!(seen(&marks, &account), cursor(110, POSITION_MAX));
        // A look that is far behind does not jump ahead.
        let (heads, event) = applied(&account, 4, 500);
        marks.observe(7, &heads, &[event]);
        assert_eq!(seen(&marks, &account), cursor(110, POSITION_MAX));
    }

    #[test]
    fn another_table_and_a_read_model_that_went_back_are_looked_at_from_the_beginning() {
        let account = Account::new("ann", "points").expect("valid");
        let mut marks = Marks::new();
        let (heads, event) = applied(&account, 5, 100);
        marks.observe(7, &heads, &[event]);
        pass(&mut marks, &account, 300, 1);
        marks.observe(8, &heads, &[]);
        assert_eq!(seen(&marks, &account), START);
        pass(&mut marks, &account, 300, 1);
        let (heads, event) = applied(&account, 4, 90);
        marks.observe(8, &heads, &[event]);
        assert_eq!(seen(&marks, &account), START);
    }

    #[test]
    fn what_there_was_no_room_for_is_looked_for_again() {
        let account = Account::new("ann", "points").expect("valid");
        let mut marks = Marks::new();
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        pass(&mut marks, &account, 300, 9);
        marks.come_back(account.partition(), at(250), later);
        marks.come_back(account.partition(), at(200), later + Duration::from_secs(60));
        marks.go_back(now);
        assert_eq!(seen(&marks, &account), cursor(300, 9));
        marks.go_back(later);
        assert_eq!(seen(&marks, &account), cursor(200, 0));
        pass(&mut marks, &account, 300, 9);
        marks.go_back(later);
        assert_eq!(seen(&marks, &account), cursor(300, 9));
    }

    #[test]
    fn each_partition_has_its_turn() {
        let now = Instant::now();
        let mut turns = Turns::new(now, Duration::from_secs(1));
        assert_eq!(turns.take(now), None);
        let taken: Vec<_> = (1..=65).filter_map(|second| turns.take(now + Duration::from_secs(second))).collect();
        assert_eq!(taken.len(), 65);
        assert_eq!(taken[0], taken[64]);
        assert!(Partition::all().all(|partition| taken.contains(&partition)));
    }
}
