use ledger_core::Account;
use ledger_core::{
    Action, Amount, BusinessKey, Command, Head, NamedAccount, Original, Provenance, Situation, Slot, decide,
};

use super::*;

/// A sound log of one account: 1 credit, 2 freeze, 3 capture, 4 refund, 5 debit, 6 release, 7 credit.
fn log() -> Vec<Event> {
    let account = Account::new("ann", "points").expect("valid");
    let units = |units: u64| Amount::new(units).expect("valid");
    let mut events: Vec<Event> = Vec::new();
    let mut originals: Vec<Original> = Vec::new();
    for number in 1..=7_u64 {
        let named = NamedAccount::default();
        let id = |index: usize| events[index].transaction_id;
        let action = match number {
            2 => Action::Freeze { account: account.clone(), amount: units(50), expiry: None },
            3 => Action::Capture { freeze: id(1), named, amount: Some(units(20)), release_remainder: None },
            4 => Action::Refund { debit: id(2), named, amount: Some(units(5)) },
            5 => Action::Debit { account: account.clone(), amount: units(1) },
            6 => Action::Unfreeze { freeze: id(1), named, amount: Some(units(10)) },
            _ => Action::Credit { account: account.clone(), amount: units(100) },
        };
        let original = action.original().and_then(|id| originals.iter().find(|known| known.transaction_id == id));
        let command = Command {
            action,
            key: BusinessKey::new("test", &number.to_string()).expect("valid"),
            expected_version: None,
            provenance: Provenance {
                operation_id: None,
                request_id: "request".into(),
                actor: "test".into(),
                description: None,
                metadata: None,
            },
        };
        let head = events.last().map_or(Head::EMPTY, Event::head);
        let now = Timestamp::from_micros(1_700_000_000_000_000 + number.cast_signed()).expect("in range");
        let state = events.last().map(|event| event.after);
        let effect = decide(&Situation { account: state.as_ref(), original }, &command, now).expect("not refused");
        let slot = Slot { partition: account.partition(), head, previous_position: head.position };
        let event = Event::seal(&account, &command, &effect, &slot, None, now);
        originals.extend(Original::made_by(&event));
        if let (Some(related), Some(remaining)) = (event.related_id, event.remaining) {
            let known = originals.iter_mut().find(|known| known.transaction_id == related);
            known.expect("decided on it").remaining = remaining;
        }
        events.push(event);
    }
    events
}

/// The findings of a log, and how many contradictions follow from them.
fn found(events: Vec<Event>) -> (Vec<(Kind, u64)>, u64) {
    let mut replay = Replay::new(Account::new("ann", "points").expect("valid").partition(), Depth::Full);
    events.into_iter().for_each(|event| replay.take(&Ok(event)));
    let named = replay.findings.kept.iter().map(|finding| (finding.kind, finding.position.map_or(0, |at| at.0)));
    (named.collect(), replay.findings.consequences)
}

#[test]
fn a_sound_log_has_no_findings_and_the_digest_of_its_folds() {
    let mut full = Replay::new(log()[0].partition, Depth::Full);
    let mut fold = Replay::new(log()[0].partition, Depth::Fold);
    for event in log() {
        full.take(&Ok(event.clone()));
        fold.take(&Ok(event));
    }
    assert_eq!((full.findings.count, fold.findings.count), (0, 0));
    assert_eq!(full.digest(), fold.digest());
    assert!(full.repeated_keys().is_empty());
    let freeze = &full.freezes()[0];
    assert_eq!((freeze.remaining, freeze.captured, freeze.released), (20, 20, 10));
}

#[test]
fn each_changed_event_is_named_once_and_no_other_with_it() {
    for index in 0..7 {
        let mut events = log();
        events[index].after.balance += 1;
        assert_eq!(found(events).0, [(Kind::HashMismatch, index as u64 + 1)]);
        let mut events = log();
        events[index].hash = Hash([7; 32]);
        assert_eq!(found(events).0, [(Kind::HashMismatch, index as u64 + 1)]);
        let mut events = log();
        events[index].amount = Amount::new(3).ok();
        assert_eq!(found(events).0, [(Kind::HashMismatch, index as u64 + 1)]);
    }
}

#[test]
fn a_lost_event_is_one_gap_and_the_rest_follows() {
    for index in 0..6 {
        let mut events = log();
        events.remove(index);
        let (named, consequences) = found(events);
        assert_eq!(named, [(Kind::Gap, index as u64 + 1)]);
        assert!(consequences > 0, "the next event of the account has no predecessor");
    }
    let mut events = log();
    events.drain(1..4);
    assert_eq!(found(events).0, [(Kind::Gap, 2)]);
}

#[test]
fn two_events_that_changed_places_are_both_named_and_no_other() {
    for first in 0..6 {
        let mut events = log();
        events.swap(first, first + 1);
        for (index, event) in events.iter_mut().enumerate() {
            event.position = Position(index as u64 + 1);
        }
        let at = first as u64 + 1;
        assert_eq!(found(events).0, [(Kind::HashMismatch, at), (Kind::HashMismatch, at + 1)]);
    }
}

#[test]
fn what_a_hash_does_not_tell_the_amounts_do() {
    let lie = |at: usize, edit: &dyn Fn(&mut Event)| {
        let mut events = log();
        edit(&mut events[at - 1]);
        let mut before = Hash::ZERO;
        for event in &mut events {
            event.hash = chain::link(&before, event);
            before = event.hash;
        }
        found(events).0
    };
    assert_eq!(lie(5, &|event| event.after.balance += 1), [(Kind::StateMismatch, 5)]);
    assert_eq!(lie(5, &|event| event.after.version += 1), [(Kind::VersionMismatch, 5)]);
    assert_eq!(lie(6, &|event| event.remaining = Some(0)), [(Kind::RelationMismatch, 6)]);
    assert_eq!(lie(6, &|event| event.related_id = None), [(Kind::RelationMissing, 6)]);
    let first = log()[0].transaction_id;
    assert_eq!(lie(6, &|event| event.related_id = Some(first)), [(Kind::RelationMissing, 6)]);
    assert_eq!(lie(4, &|event| event.recorded_at = log()[0].recorded_at), [(Kind::OrderMismatch, 4)]);
    assert_eq!(lie(7, &|event| event.key = log()[0].key.clone()), [(Kind::IdMismatch, 7)]);
}

#[test]
fn keys_that_occur_twice_are_looked_at_again() {
    let mut replay = Replay::new(log()[0].partition, Depth::Full);
    let mut events = log();
    events[6].key = events[0].key.clone();
    events.into_iter().for_each(|event| replay.take(&Ok(event)));
    assert_eq!(replay.repeated_keys(), [key_digest(&log()[0])]);
}

#[test]
fn a_replay_that_begins_in_the_middle_takes_for_granted_what_stands_before() {
    let events = log();
    let mut replay = Replay::after(&events[2]);
    let rows: Vec<_> = events[3..].iter().cloned().map(Ok).collect();
    let wanted: Vec<_> = replay.wants(&rows).into_iter().map(|position| position.0).collect();
    assert_eq!(wanted, [2, 3]);
    wanted.iter().for_each(|position| replay.seed(&events[usize::try_from(*position).expect("small") - 1]));
    rows.iter().for_each(|row| replay.take(row));
    assert_eq!((replay.findings.kept.len(), replay.events), (0, 4));
}
