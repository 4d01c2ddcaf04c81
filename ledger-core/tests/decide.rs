//! Given an account and an original, when a command comes, then this happens: one line a case, in the order of the guards.

use ledger_core::{
    Account, AccountState, Action, Amount, BusinessKey, Command, Effect, Epoch, Event, Expiry, Head, MAX_AMOUNT,
    NamedAccount, Original, OriginalKind, Position, Provenance, Rejection, Situation, Slot, Timestamp, TransactionId,
    decide, repeats,
};

const NOW_MICROS: i64 = 1_700_000_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_micros(NOW_MICROS).expect("in range")
}

fn ann() -> Account {
    Account::new("ann", "points").expect("valid")
}

fn units(units: u64) -> Amount {
    Amount::new(units).expect("valid")
}

fn id(position: u64) -> TransactionId {
    TransactionId::derive(&ann(), Epoch::FIRST, Position(position), &BusinessKey::new("a", "b").expect("valid"))
}

fn command(action: Action) -> Command {
    Command {
        action,
        key: BusinessKey::new("test", "1").expect("valid"),
        expected_version: None,
        provenance: Provenance {
            operation_id: None,
            request_id: "request".into(),
            actor: "test".into(),
            description: None,
            metadata: None,
        },
    }
}

fn state(balance: u64, frozen: u64) -> AccountState {
    AccountState { balance, frozen, locked: false, version: 3 }
}

fn locked(balance: u64, frozen: u64) -> AccountState {
    AccountState { locked: true, ..state(balance, frozen) }
}

fn original(kind: OriginalKind, remaining: u64) -> Original {
    Original { transaction_id: id(2), account_id: ann().id(), kind, remaining }
}

fn freeze(remaining: u64) -> Option<Original> {
    Some(original(OriginalKind::Freeze, remaining))
}

fn deduction(remaining: u64) -> Option<Original> {
    Some(original(OriginalKind::Deduction, remaining))
}

fn credit(amount: u64) -> Command {
    command(Action::Credit { account: ann(), amount: units(amount) })
}

fn debit(amount: u64) -> Command {
    command(Action::Debit { account: ann(), amount: units(amount) })
}

fn hold(amount: u64, expiry: Option<Expiry>) -> Command {
    command(Action::Freeze { account: ann(), amount: units(amount), expiry })
}

fn capture(amount: Option<u64>, release_remainder: Option<bool>) -> Command {
    let amount = amount.map(units);
    command(Action::Capture { freeze: id(2), named: NamedAccount::default(), amount, release_remainder })
}

fn unfreeze(amount: Option<u64>) -> Command {
    command(Action::Unfreeze { freeze: id(2), named: NamedAccount::default(), amount: amount.map(units) })
}

fn refund(amount: Option<u64>) -> Command {
    command(Action::Refund { debit: id(2), named: NamedAccount::default(), amount: amount.map(units) })
}

fn expecting(version: u64, command: Command) -> Command {
    Command { expected_version: Some(version), ..command }
}

fn run(account: Option<AccountState>, original: Option<Original>, command: &Command) -> Result<Effect, Rejection> {
    decide(&Situation { account: account.as_ref(), original: original.as_ref() }, command, now())
}

#[test]
fn each_refusal_stands_where_the_order_of_the_guards_puts_it() {
    use Rejection::{
        AccountLocked, AccountNotFound, BalanceLimitExceeded, DebitNotFound, ExpiryNotInFuture, FreezeNotFound,
        InsufficientBalance, InsufficientFrozen, RefundExceedsDebit, VersionConflict,
    };
    let past = Some(Expiry::At(now()));
    let freeze_id = id(2);
    let debit_id = id(2);
    for (line, account, original, command, expected) in [
        // The original.
        (line!(), Some(state(9, 0)), None, capture(None, None), FreezeNotFound { freeze_id }),
        (line!(), Some(state(9, 0)), None, unfreeze(None), FreezeNotFound { freeze_id }),
        (line!(), Some(state(9, 0)), deduction(5), unfreeze(None), FreezeNotFound { freeze_id }),
        (line!(), Some(state(9, 0)), None, refund(None), DebitNotFound { debit_id }),
        (line!(), Some(state(9, 5)), freeze(5), refund(None), DebitNotFound { debit_id }),
        (line!(), None, None, expecting(7, refund(None)), DebitNotFound { debit_id }),
        // The account.
        (line!(), None, None, debit(1), AccountNotFound),
        (line!(), None, None, hold(1, None), AccountNotFound),
        (line!(), None, None, command(Action::Lock { account: ann() }), AccountNotFound),
        (line!(), None, None, expecting(7, debit(1)), AccountNotFound),
        // Its version.
        (line!(), None, None, expecting(1, credit(1)), VersionConflict { expected: 1, current: 0 }),
        (line!(), Some(state(9, 0)), None, expecting(2, credit(1)), VersionConflict { expected: 2, current: 3 }),
        (line!(), Some(locked(0, 0)), None, expecting(4, debit(1)), VersionConflict { expected: 4, current: 3 }),
        // Its lock.
        (line!(), Some(locked(9, 0)), None, debit(1), AccountLocked),
        (line!(), Some(locked(0, 0)), None, debit(1), AccountLocked),
        (line!(), Some(locked(9, 0)), None, hold(1, past), AccountLocked),
        (line!(), Some(locked(9, 5)), freeze(5), capture(None, None), AccountLocked),
        // The expiry.
        (line!(), Some(state(0, 0)), None, hold(1, past), ExpiryNotInFuture),
        (line!(), Some(state(9, 0)), None, hold(1, Some(Expiry::InSeconds(u64::MAX))), ExpiryNotInFuture),
        // The amounts.
        (
            line!(),
            Some(state(9, 5)),
            freeze(5),
            capture(Some(6), None),
            InsufficientFrozen { required: 6, remaining: 5 },
        ),
        (line!(), Some(state(9, 0)), freeze(0), capture(None, None), InsufficientFrozen { required: 1, remaining: 0 }),
        (line!(), Some(state(9, 5)), freeze(5), unfreeze(Some(6)), InsufficientFrozen { required: 6, remaining: 5 }),
        (line!(), Some(state(9, 0)), freeze(0), unfreeze(None), InsufficientFrozen { required: 1, remaining: 0 }),
        (line!(), Some(state(9, 0)), deduction(3), refund(Some(4)), RefundExceedsDebit { required: 4, remaining: 3 }),
        (line!(), Some(state(9, 0)), deduction(0), refund(None), RefundExceedsDebit { required: 1, remaining: 0 }),
        (line!(), Some(state(9, 5)), None, debit(5), InsufficientBalance { required: 5, available: 4 }),
        (line!(), Some(state(9, 5)), None, hold(5, None), InsufficientBalance { required: 5, available: 4 }),
        (
            line!(),
            Some(state(MAX_AMOUNT, 0)),
            None,
            credit(1),
            BalanceLimitExceeded { balance: MAX_AMOUNT, amount: 1, maximum: MAX_AMOUNT },
        ),
        (
            line!(),
            Some(state(MAX_AMOUNT - 1, 0)),
            deduction(5),
            refund(Some(2)),
            BalanceLimitExceeded { balance: MAX_AMOUNT - 1, amount: 2, maximum: MAX_AMOUNT },
        ),
    ] {
        assert_eq!(run(account, original, &command), Err(expected), "line {line}");
    }
}

#[test]
fn each_effect_moves_what_it_says() {
    // (balance, frozen) after, amount, released, remaining.
    let soon = Some(Expiry::InSeconds(60));
    for (line, account, original, command, after, amount, released, remaining) in [
        (line!(), None, None, credit(5), (5, 0), Some(5), 0, None),
        (line!(), Some(state(9, 5)), None, credit(1), (10, 5), Some(1), 0, None),
        (line!(), Some(locked(9, 5)), None, credit(1), (10, 5), Some(1), 0, None),
        (line!(), Some(state(MAX_AMOUNT - 1, 0)), None, credit(1), (MAX_AMOUNT, 0), Some(1), 0, None),
        (line!(), Some(state(9, 5)), None, debit(4), (5, 5), Some(4), 0, Some(4)),
        (line!(), Some(state(9, 5)), None, hold(4, soon), (9, 9), Some(4), 0, Some(4)),
        (line!(), Some(state(9, 5)), freeze(5), capture(None, None), (4, 0), Some(5), 0, Some(0)),
        (line!(), Some(state(9, 5)), freeze(5), capture(Some(2), None), (7, 3), Some(2), 0, Some(3)),
        (line!(), Some(state(9, 5)), freeze(5), capture(Some(2), Some(false)), (7, 3), Some(2), 0, Some(3)),
        (line!(), Some(state(9, 5)), freeze(5), capture(Some(2), Some(true)), (7, 0), Some(2), 3, Some(0)),
        (line!(), Some(state(9, 7)), freeze(5), capture(Some(5), Some(true)), (4, 2), Some(5), 0, Some(0)),
        (line!(), Some(state(9, 5)), freeze(5), unfreeze(None), (9, 0), Some(5), 0, Some(0)),
        (line!(), Some(locked(9, 5)), freeze(5), unfreeze(Some(1)), (9, 4), Some(1), 0, Some(4)),
        (line!(), Some(state(9, 5)), deduction(3), refund(None), (12, 5), Some(3), 0, Some(0)),
        (line!(), Some(locked(9, 5)), deduction(3), refund(Some(1)), (10, 5), Some(1), 0, Some(2)),
        (line!(), Some(state(9, 5)), None, command(Action::Lock { account: ann() }), (9, 5), None, 0, None),
        (line!(), Some(locked(9, 5)), None, command(Action::Unlock { account: ann() }), (9, 5), None, 0, None),
    ] {
        let effect = run(account, original, &command).unwrap_or_else(|refusal| panic!("line {line}: {refusal}"));
        assert_eq!((effect.after.balance, effect.after.frozen), after, "line {line}");
        assert_eq!(effect.amount.map(Amount::units), amount, "line {line}");
        assert_eq!((effect.released, effect.remaining), (released, remaining), "line {line}");
        assert_eq!(effect.after.version, account.map_or(0, |account| account.version) + 1, "line {line}");
        assert_eq!(effect.event_type, command.action.event_type(), "line {line}");
    }
    let held = run(Some(state(9, 0)), None, &hold(1, soon)).expect("held");
    assert_eq!(held.expires_at.map(Timestamp::micros), Some(NOW_MICROS + 60_000_000));
    assert!(run(Some(state(9, 0)), None, &command(Action::Lock { account: ann() })).expect("locked").after.locked);
    assert!(
        !run(Some(locked(9, 0)), None, &command(Action::Unlock { account: ann() })).expect("unlocked").after.locked
    );
    assert!(run(None, None, &expecting(0, credit(1))).is_ok(), "0 is the version of an account that is not opened yet");
}

/// The event that `command` made.
fn made_by(command: &Command, account: AccountState, original: Option<Original>) -> Event {
    let effect = run(Some(account), original, command).expect("it is done");
    let slot = Slot { partition: ann().partition(), head: Head::EMPTY, previous_position: Position::ZERO };
    Event::seal(&ann(), command, &effect, &slot, None, now())
}

#[test]
fn a_repeat_agrees_where_it_says_something() {
    let named = |user: Option<&str>| NamedAccount { user_id: user.map(Into::into), credit_type: None };
    let captured = made_by(&capture(Some(2), Some(true)), state(9, 5), freeze(5));
    let whole = made_by(&capture(None, None), state(9, 5), freeze(5));
    let partial = made_by(&capture(Some(2), None), state(9, 5), freeze(5));
    let debited = made_by(&debit(4), state(9, 0), None);
    let elsewhere = Action::Capture { freeze: id(3), named: named(None), amount: None, release_remainder: None };
    let other = Action::Debit { account: Account::new("bob", "points").expect("valid"), amount: units(4) };
    let by_user = |user| Action::Unfreeze { freeze: id(2), named: named(Some(user)), amount: None };
    let released = made_by(&unfreeze(None), state(9, 5), freeze(5));
    for (line, first, repeat, same) in [
        (line!(), &debited, debit(4), true),
        (line!(), &debited, debit(3), false),
        (line!(), &debited, hold(4, None), false),
        (line!(), &debited, command(other), false),
        (line!(), &debited, capture(Some(4), None), false),
        (line!(), &captured, capture(Some(2), Some(true)), true),
        (line!(), &captured, capture(None, None), true),
        (line!(), &captured, capture(Some(3), None), false),
        (line!(), &captured, capture(None, Some(false)), false),
        (line!(), &captured, command(elsewhere), false),
        // A debit that states no freeze, of the same account and amount.
        (line!(), &captured, debit(2), true),
        (line!(), &partial, capture(None, Some(true)), false),
        (line!(), &partial, capture(None, Some(false)), true),
        (line!(), &whole, capture(Some(5), Some(true)), true),
        (line!(), &whole, capture(Some(5), Some(false)), true),
        (line!(), &released, unfreeze(Some(5)), true),
        (line!(), &released, unfreeze(Some(4)), false),
        (line!(), &released, command(by_user("ann")), true),
        (line!(), &released, command(by_user("bob")), false),
        (line!(), &released, refund(None), false),
    ] {
        let conflict = Rejection::IdempotencyConflict { transaction_id: first.transaction_id };
        assert_eq!(repeats(first, &repeat), if same { Ok(()) } else { Err(conflict) }, "line {line}");
    }
}
