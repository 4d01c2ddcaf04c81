//! The folds refuse what cannot have happened: each event of a sound ledger with one field made impossible.

use ledger_core::{
    Account, Action, Amount, Balance, BusinessKey, Command, Event, EventType, Expiry, Freeze, Head, NamedAccount,
    Original, Position, Provenance, Situation, Slot, Timestamp, decide,
};

/// A ledger of one account, one command after the other.
struct Ledger {
    account: Account,
    head: Head,
    balance: Option<Balance>,
    originals: Vec<Original>,
}

impl Ledger {
    fn new() -> Self {
        let account = Account::new("ann", "points").expect("valid");
        Self { account, head: Head::EMPTY, balance: None, originals: Vec::new() }
    }

    /// What the ledger makes of a command.
    fn event(&self, action: Action) -> Event {
        let original = action.original().and_then(|id| self.originals.iter().find(|known| known.transaction_id == id));
        let command = Command {
            action,
            key: BusinessKey::new("test", &self.head.position.to_string()).expect("valid"),
            expected_version: None,
            provenance: Provenance {
                operation_id: None,
                request_id: "request".into(),
                actor: "test".into(),
                description: None,
                metadata: None,
            },
        };
        let now = Timestamp::from_micros(1_700_000_000_000_000).expect("in range");
        let situation = Situation { account: self.balance.as_ref().map(|balance| &balance.state), original };
        let effect = decide(&situation, &command, now).expect("not refused");
        let slot = Slot { partition: self.account.partition(), head: self.head, previous_position: self.head.position };
        Event::seal(&self.account, &command, &effect, &slot, None, now)
    }

    /// The same, done.
    fn done(&mut self, action: Action) -> Event {
        let event = self.event(action);
        self.balance = Some(Balance::fold(self.balance.as_ref(), &event).expect("no contradiction"));
        self.originals.extend(Original::made_by(&event));
        if let (Some(related), Some(remaining)) = (event.related_id, event.remaining) {
            let known = self.originals.iter_mut().find(|known| known.transaction_id == related);
            known.expect("decided on it").remaining = remaining;
        }
        self.head = event.head();
        event
    }

    /// The field that the fold of the balance contradicts, if it does.
    fn contradicted(&self, event: &Event) -> Option<&'static str> {
        Balance::fold(self.balance.as_ref(), event).err().map(|contradiction| contradiction.field)
    }
}

fn units(units: u64) -> Amount {
    Amount::new(units).expect("valid")
}

fn named() -> NamedAccount {
    NamedAccount::default()
}

#[test]
fn a_balance_refuses_each_shape_that_no_event_has() {
    let mut ledger = Ledger::new();
    let account = ledger.account.clone();
    let credit = Action::Credit { account: account.clone(), amount: units(100) };
    let first = ledger.event(credit.clone());
    let mut opening = first.clone();
    opening.event_type = EventType::Refunded;
    opening.related_id = Some(first.transaction_id);
    assert_eq!(ledger.contradicted(&opening), Some("related_id"), "a refund of itself");
    let mut opening = first;
    (opening.event_type, opening.amount, opening.after.balance) = (EventType::Locked, None, 0);
    (opening.after.locked, opening.remaining) = (true, None);
    assert_eq!(ledger.contradicted(&opening), Some("type"), "only a credit opens an account");

    ledger.done(credit);
    let expiry = Timestamp::from_micros(1_800_000_000_000_000).map(Expiry::At);
    let freeze = ledger.done(Action::Freeze { account: account.clone(), amount: units(50), expiry });
    let debit = ledger.done(Action::Debit { account: account.clone(), amount: units(20) });
    let id = freeze.transaction_id;
    let capture = |release| Action::Capture {
        freeze: id,
        named: named(),
        amount: Some(units(10)),
        release_remainder: Some(release),
    };
    let credited = ledger.event(Action::Credit { account: account.clone(), amount: units(5) });
    let debited = ledger.event(Action::Debit { account: account.clone(), amount: units(5) });
    let frozen = ledger.event(Action::Freeze { account: account.clone(), amount: units(5), expiry });
    let captured = ledger.event(capture(false));
    let settled = ledger.event(capture(true));
    let unfrozen = ledger.event(Action::Unfreeze { freeze: id, named: named(), amount: Some(units(5)) });
    let refunded = ledger.event(Action::Refund { debit: debit.transaction_id, named: named(), amount: Some(units(5)) });
    let locked = ledger.event(Action::Lock { account: account.clone() });
    let later = freeze.expires_at;
    type Edit<'a> = &'a dyn Fn(&mut Event);
    let cases: &[(&str, &Event, Edit<'_>, &str)] = &[
        ("a credit without an amount", &credited, &|event| event.amount = None, "amount"),
        ("a lock with an amount", &locked, &|event| event.amount = Some(units(1)), "amount"),
        ("a credit about an original", &credited, &|event| event.related_id = Some(id), "related_id"),
        ("a freeze about an original", &frozen, &|event| event.related_id = Some(id), "related_id"),
        ("a release of nothing", &unfrozen, &|event| event.related_id = None, "related_id"),
        ("a refund of nothing", &refunded, &|event| event.related_id = None, "related_id"),
        ("a capture of itself", &captured, &|event| event.related_id = Some(event.transaction_id), "related_id"),
        ("a debit that releases", &debited, &|event| event.released = 1, "released"),
        ("a release that releases besides", &unfrozen, &|event| event.released = 1, "released"),
        ("a capture that releases a part", &settled, &|event| event.remaining = Some(1), "remaining"),
        ("a credit with a rest", &credited, &|event| event.remaining = Some(5), "remaining"),
        ("a debit with another rest", &debited, &|event| event.remaining = Some(4), "remaining"),
        ("a freeze without a rest", &frozen, &|event| event.remaining = None, "remaining"),
        ("a refund that says no rest", &refunded, &|event| event.remaining = None, "remaining"),
        ("a credit that expires", &credited, &|event| event.expires_at = later, "expires_at"),
        ("a freeze that is over", &frozen, &|event| event.expires_at = Some(event.recorded_at), "expires_at"),
        ("a skipped version", &credited, &|event| event.after.version += 1, "version"),
        ("another predecessor", &credited, &|event| event.previous_position = Position(1), "previous_position"),
        ("another balance", &credited, &|event| event.after.balance += 1, "balance"),
        ("another part that is held", &captured, &|event| event.after.frozen += 1, "frozen"),
        ("a lock out of nowhere", &credited, &|event| event.after.locked = true, "locked"),
        (
            "more than there is",
            &debited,
            &|event| {
                (event.amount, event.remaining) = (Some(units(1_000)), Some(1_000));
            },
            "amount",
        ),
    ];
    for (what, event, edit, field) in cases {
        assert_eq!(ledger.contradicted(event), None, "{what}: before the edit");
        let mut event = (*event).clone();
        edit(&mut event);
        assert_eq!(ledger.contradicted(&event), Some(*field), "{what}");
    }

    ledger.done(Action::Lock { account: account.clone() });
    for (event_type, mut event) in [(EventType::Deducted, debited), (EventType::Frozen, frozen)] {
        (event.previous_position, event.after.version) = (ledger.head.position, event.after.version + 1);
        (event.position, event.after.locked) = (ledger.head.position.next(), true);
        assert_eq!(event.event_type, event_type);
        assert_eq!(ledger.contradicted(&event), Some("type"), "{event_type:?} while the account is locked");
    }
}

#[test]
fn a_freeze_refuses_what_is_not_about_it() {
    let mut ledger = Ledger::new();
    let account = ledger.account.clone();
    ledger.done(Action::Credit { account: account.clone(), amount: units(100) });
    let frozen = ledger.done(Action::Freeze { account: account.clone(), amount: units(50), expiry: None });
    let other = ledger.done(Action::Freeze { account: account.clone(), amount: units(10), expiry: None });
    let freeze = Freeze::opened_by(&frozen).expect("a freeze");
    let named = NamedAccount::default();
    let captured = ledger.event(Action::Capture {
        freeze: frozen.transaction_id,
        named: named.clone(),
        amount: Some(units(20)),
        release_remainder: None,
    });
    let unfrozen = ledger.event(Action::Unfreeze { freeze: frozen.transaction_id, named, amount: None });
    type Edit<'a> = &'a dyn Fn(&mut Event);
    let cases: &[(&str, &Event, Edit<'_>, &str)] = &[
        ("another freeze", &captured, &|event| event.related_id = Some(other.transaction_id), "related_id"),
        ("no freeze", &unfrozen, &|event| event.related_id = None, "related_id"),
        (
            "another account",
            &captured,
            &|event| {
                event.account = Account::new("bob", "points").expect("valid");
            },
            "account_id",
        ),
        ("a refund", &unfrozen, &|event| event.event_type = EventType::Refunded, "type"),
        ("a release that releases besides", &unfrozen, &|event| event.released = 1, "released"),
        ("no amount", &unfrozen, &|event| event.amount = None, "amount"),
        ("more than remains", &captured, &|event| event.amount = Some(units(51)), "amount"),
        ("another rest", &captured, &|event| event.remaining = Some(31), "remaining"),
    ];
    for (what, event, edit, field) in cases {
        let mut folded = freeze.clone();
        folded.fold(event).expect("no contradiction");
        assert_eq!(folded.amount, folded.remaining + folded.captured + folded.released);
        let mut event = (*event).clone();
        edit(&mut event);
        let mut folded = freeze.clone();
        assert_eq!(folded.fold(&event).expect_err(what).field, *field, "{what}");
        assert_eq!(folded, freeze, "{what}: a contradiction changes nothing");
    }
}
