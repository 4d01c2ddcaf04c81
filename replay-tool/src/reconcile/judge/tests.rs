use std::sync::Arc;

use ledger_core::{Account, BusinessKey, Epoch, Position, TransactionId};

use super::*;
use crate::reconcile::tally::Frozen;

fn id(position: u64) -> TransactionId {
    let account = Account::new("u1", "points").expect("valid");
    TransactionId::derive(&account, Epoch::FIRST, Position(position), &BusinessKey::new("order", "1").expect("valid"))
}

/// (amount, remaining, released) of freezes; (amount, refunded, of a freeze) of deductions.
fn entry(stage: Stage, freezes: &[(u64, u64, u64)], deductions: &[(u64, u64, bool)]) -> Entry {
    let freezes: Vec<_> = (1..)
        .zip(freezes)
        .map(|(position, &(amount, remaining, released))| Frozen { id: id(position), amount, remaining, released })
        .collect();
    let deductions: Vec<_> = (11..)
        .zip(deductions)
        .map(|(position, &(amount, refunded, captured))| {
            let freeze = captured.then(|| id(1));
            Deducted { id: id(position), amount, refunded, freeze }
        })
        .collect();
    Entry {
        account: Account::new("u1", "points").expect("valid"),
        order_id: "O1".into(),
        claim: Some(Claim {
            line: 2,
            points: 100,
            stage,
            status: "status".into(),
            refunded_points: None,
            judged: true,
        }),
        again: Vec::new(),
        seen: !freezes.is_empty() || !deductions.is_empty(),
        freezes,
        deductions,
        credited: 0,
        newest_at: None,
        settled: false,
    }
}

fn only(entry: &Entry) -> Mismatch {
    let mut verdict = judge(entry);
    assert_eq!(verdict.mismatches.len(), 1, "{:?}", verdict.mismatches);
    verdict.mismatches.remove(0)
}

#[test]
fn every_way_in_which_both_sides_agree() {
    use Stage::{Cancelled, Held, PartlyRefunded, Refunded, Taken};
    for (what, entry) in [
        ("frozen", entry(Held, &[(100, 100, 0)], &[])),
        ("deducted, refunded and frozen", entry(Held, &[(100, 100, 0)], &[(100, 100, false)])),
        ("captured", entry(Taken, &[(100, 0, 0)], &[(100, 0, true)])),
        ("captured, the rest released", entry(Taken, &[(150, 0, 50)], &[(100, 0, true)])),
        ("deducted", entry(Taken, &[], &[(100, 0, false)])),
        ("deducted twice, once refunded", entry(Taken, &[], &[(100, 100, false), (100, 0, false)])),
        ("released, then tried again", entry(Taken, &[(100, 0, 100), (100, 0, 0)], &[(100, 0, true)])),
        ("released", entry(Cancelled, &[(100, 0, 100)], &[])),
        ("refunded", entry(Cancelled, &[], &[(100, 100, false)])),
        ("changed before it was cancelled", entry(Cancelled, &[(80, 0, 80), (100, 0, 100)], &[])),
        ("never heard of", entry(Cancelled, &[], &[])),
        ("captured and refunded", entry(Refunded, &[(100, 0, 0)], &[(100, 100, true)])),
        ("partly refunded", entry(PartlyRefunded, &[], &[(100, 30, false)])),
    ] {
        let verdict = judge(&entry);
        assert!(verdict.mismatches.is_empty(), "{what}: {:?}", verdict.mismatches);
        assert_eq!(verdict.untouched, what == "never heard of", "{what}");
    }
}

#[test]
fn every_kind_of_disagreement_is_named_and_only_safe_ones_are_settled_without_a_person() {
    use Kind::{AmountMismatch as Amount, MissingCreditTransaction as Missing, StatusMismatch as Status};
    use Stage::{Cancelled, Held, PartlyRefunded, Refunded, Taken};
    let capture = |freeze: u64, amount| Step::Capture { freeze: id(freeze), amount };
    let release = |freeze: u64, amount| Step::Release { freeze: id(freeze), amount };
    let refund = |deduction: u64, amount| Step::Refund { deduction: id(deduction), amount };
    let (debit, freeze) = (|amount| Step::Debit { amount }, |amount| Step::Freeze { amount });
    let (automatic, by_hand) = (true, false);
    let cases = [
        ("pending, nothing frozen", entry(Held, &[], &[]), Missing, by_hand, vec![freeze(100)]),
        ("pending, less frozen", entry(Held, &[(90, 90, 0)], &[]), Amount, by_hand, vec![freeze(10)]),
        ("pending, more frozen", entry(Held, &[(110, 110, 0)], &[]), Amount, by_hand, vec![release(1, 10)]),
        (
            "pending, deducted, refunded and less frozen",
            entry(Held, &[(90, 90, 0)], &[(100, 100, false)]),
            Amount,
            by_hand,
            vec![freeze(10)],
        ),
        ("pending, deducted", entry(Held, &[(100, 0, 0)], &[(100, 0, true)]), Status, by_hand, vec![refund(11, 100)]),
        ("pending, released", entry(Held, &[(100, 0, 100)], &[]), Status, by_hand, vec![freeze(100)]),
        ("completed, nothing there", entry(Taken, &[], &[]), Missing, by_hand, vec![debit(100)]),
        ("completed, frozen", entry(Taken, &[(100, 100, 0)], &[]), Status, automatic, vec![capture(1, 100)]),
        (
            "completed, half captured",
            entry(Taken, &[(100, 60, 0)], &[(40, 0, true)]),
            Status,
            automatic,
            vec![capture(1, 60)],
        ),
        (
            "completed, deducted and another freeze left",
            entry(Taken, &[(100, 100, 0)], &[(100, 0, false)]),
            Status,
            automatic,
            vec![release(1, 100)],
        ),
        ("completed, another amount frozen", entry(Taken, &[(90, 90, 0)], &[]), Status, by_hand, vec![capture(1, 90)]),
        ("completed, released", entry(Taken, &[(100, 0, 100)], &[]), Status, by_hand, vec![debit(100)]),
        ("completed, refunded", entry(Taken, &[], &[(100, 100, false)]), Status, by_hand, vec![debit(100)]),
        ("completed, partly refunded", entry(Taken, &[], &[(100, 30, false)]), Status, by_hand, vec![debit(30)]),
        ("completed, less deducted", entry(Taken, &[], &[(90, 0, false)]), Amount, by_hand, vec![debit(10)]),
        (
            "completed, deducted twice",
            entry(Taken, &[], &[(100, 0, false), (100, 0, false)]),
            Amount,
            by_hand,
            vec![refund(12, 100)],
        ),
        ("cancelled, frozen", entry(Cancelled, &[(100, 100, 0)], &[]), Status, automatic, vec![release(1, 100)]),
        ("cancelled, deducted", entry(Cancelled, &[], &[(100, 0, false)]), Status, automatic, vec![refund(11, 100)]),
        (
            "cancelled, partly captured",
            entry(Cancelled, &[(100, 60, 0)], &[(40, 10, true)]),
            Status,
            automatic,
            vec![release(1, 60), refund(11, 30)],
        ),
        ("cancelled, another amount released", entry(Cancelled, &[(90, 0, 90)], &[]), Amount, by_hand, vec![]),
        ("refunded, nothing there", entry(Refunded, &[], &[]), Missing, by_hand, vec![]),
        ("refunded, deducted", entry(Refunded, &[], &[(100, 0, false)]), Status, automatic, vec![refund(11, 100)]),
        ("refunded, half of it", entry(Refunded, &[], &[(100, 50, false)]), Status, automatic, vec![refund(11, 50)]),
        ("refunded, frozen", entry(Refunded, &[(100, 100, 0)], &[]), Status, automatic, vec![release(1, 100)]),
        ("refunded, only released", entry(Refunded, &[(100, 0, 100)], &[]), Status, by_hand, vec![]),
        ("refunded, another amount", entry(Refunded, &[], &[(90, 90, false)]), Amount, by_hand, vec![]),
        ("partly refunded, not at all", entry(PartlyRefunded, &[], &[(100, 0, false)]), Status, by_hand, vec![]),
        ("partly refunded, wholly", entry(PartlyRefunded, &[], &[(100, 100, false)]), Status, by_hand, vec![]),
    ];
    for (what, entry, kind, automatic, steps) in cases {
        let mismatch = only(&entry);
        let Settlement { automatic: found, steps: taken, .. } = &mismatch.settlement;
        assert_eq!((mismatch.kind, *found, taken), (kind, automatic, &steps), "{what}: {mismatch:?}");
    }
}

#[test]
fn what_a_settlement_leaves_is_a_mismatch_of_its_own_for_a_person() {
    use Kind::{AmountMismatch as Amount, StatusMismatch as Status};
    use Stage::{Cancelled, PartlyRefunded, Refunded};
    let refund = Step::Refund { deduction: id(11), amount: 30 };
    let mut partly = entry(PartlyRefunded, &[(20, 20, 0)], &[(100, 0, false)]);
    partly.claim.as_mut().expect("an order").refunded_points = Some(30);
    for (what, entry, kind, steps) in [
        ("partly refunded, not at all, and a freeze left", partly, Status, vec![refund]),
        ("cancelled, another amount frozen", entry(Cancelled, &[(90, 90, 0)], &[]), Amount, vec![]),
        ("refunded, another amount deducted", entry(Refunded, &[], &[(90, 0, false)]), Amount, vec![]),
    ] {
        let found = judge(&entry).mismatches;
        let kinds: Vec<_> = found.iter().map(|mismatch| (mismatch.kind, mismatch.settlement.automatic)).collect();
        assert_eq!(kinds, [(Status, true), (kind, false)], "{what}: {found:?}");
        assert_eq!(found[1].settlement.steps, steps, "{what}");
        // Both tell what the ledger did, not what it would have done.
        assert_eq!(found[1].found, found[0].found, "{what}");
        // The next run finds just that.
        let next = only(&after(&entry, &found[0].settlement.steps));
        assert_eq!((next.kind, next.settlement.automatic, next.settlement.steps), (kind, false, steps), "{what}");
    }
}

#[test]
fn a_credit_that_may_have_been_the_refund_is_looked_at_by_a_person() {
    let mut paid = entry(Stage::Cancelled, &[], &[(100, 0, false)]);
    paid.credited = 100;
    assert!(!only(&paid).settlement.automatic);
    // A freeze that is still open was not given back by any credit.
    let mut held = entry(Stage::Cancelled, &[(100, 100, 0)], &[]);
    held.credited = 5;
    assert!(only(&held).settlement.automatic);
}

#[test]
fn what_a_settlement_released_is_no_mismatch_any_more() {
    let mut released = entry(Stage::Refunded, &[(100, 0, 100)], &[]);
    released.settled = true;
    assert!(judge(&released).mismatches.is_empty());
}

#[test]
fn the_part_that_was_refunded_is_compared_where_it_is_known() {
    let mut partly = entry(Stage::PartlyRefunded, &[], &[(100, 30, false)]);
    let claim = |entry: &mut Entry, refunded| {
        entry.claim.as_mut().expect("an order").refunded_points = Some(refunded);
    };
    claim(&mut partly, 30);
    assert!(judge(&partly).mismatches.is_empty());
    claim(&mut partly, 45);
    let mismatch = only(&partly);
    assert_eq!(mismatch.kind, Kind::AmountMismatch);
    assert_eq!(mismatch.settlement.steps, [Step::Refund { deduction: id(11), amount: 15 }]);
}

#[test]
fn lines_that_contradict_each_other_are_settled_by_no_machine() {
    let mut twice = entry(Stage::Cancelled, &[(100, 100, 0)], &[]);
    let first = twice.claim.clone().expect("an order");
    twice.again = vec![Claim { line: 9, stage: Stage::Taken, status: "paid".into(), ..first.clone() }];
    let found = judge(&twice).mismatches;
    assert_eq!(
        found.iter().map(|mismatch| mismatch.kind).collect::<Vec<_>>(),
        [Kind::DuplicateOrder, Kind::StatusMismatch]
    );
    assert_eq!(found[0].found, "line 2 (status, 100 points) and line 9 (paid, 100 points)");
    assert!(!found[1].settlement.automatic);
    // The same line twice is only a line too many.
    twice.again = vec![Claim { line: 9, ..first }];
    assert!(judge(&twice).mismatches[1].settlement.automatic);
}

#[test]
fn an_order_without_points_wants_nothing() {
    let mut none = entry(Stage::Taken, &[], &[]);
    none.claim.as_mut().expect("an order").points = 0;
    assert!(judge(&none).mismatches.is_empty());
    let mut some = entry(Stage::Taken, &[], &[(5, 0, false)]);
    some.claim.as_mut().expect("an order").points = 0;
    assert_eq!(only(&some).kind, Kind::AmountMismatch);
}

#[test]
fn an_entry_that_no_order_explains_is_never_moved_by_a_machine() {
    let mut alone = entry(Stage::Held, &[(100, 70, 30)], &[]);
    alone.claim = None;
    let mismatch = only(&alone);
    assert_eq!(mismatch.kind, Kind::LedgerEntryWithoutOrder);
    assert_eq!((mismatch.line, mismatch.order_points), (None, None));
    assert_eq!(mismatch.found, "70 frozen, 30 released");
    assert!(!mismatch.settlement.automatic);
}

#[test]
fn orders_outside_the_range_are_not_judged() {
    let mut outside = entry(Stage::Taken, &[(100, 100, 0)], &[]);
    outside.claim.as_mut().expect("an order").judged = false;
    assert!(judge(&outside).mismatches.is_empty());
}

#[test]
fn a_command_for_the_shell_survives_quotes() {
    let mut quoted = entry(Stage::Cancelled, &[(100, 100, 0)], &[]);
    quoted.order_id = Arc::from("O'1; rm -rf");
    let commands = only(&quoted).commands("http://h");
    assert_eq!(commands.len(), 1);
    assert!(commands[0].starts_with("curl -sS http://h/v1/unfreezes "), "{}", commands[0]);
    assert!(commands[0].contains(r#""order_id":"O'\''1; rm -rf""#), "{}", commands[0]);
}
