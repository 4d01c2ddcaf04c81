use std::collections::HashMap;

use ledger_core::{
    AccountState, Action, BatchMark, BusinessKey, Command, Event, Head, NamedAccount, Original, Provenance, Situation,
    Slot, decide,
};

use super::*;
use crate::reconcile::{judge::judge, mismatch::Kind};

/// One account's partition: commands become events as in the ledger.
struct Log {
    account: Account,
    head: Head,
    state: Option<AccountState>,
    originals: HashMap<TransactionId, Original>,
    events: Vec<Event>,
}

impl Log {
    fn new() -> Self {
        let account = Account::new("ann", "points").expect("valid");
        let mut log = Self { account, head: Head::EMPTY, state: None, originals: HashMap::new(), events: Vec::new() };
        let action = Action::Credit { account: log.account.clone(), amount: Amount::new(1_000_000).expect("valid") };
        log.record(action, "seed", "1");
        log
    }

    fn record(&mut self, action: Action, code: &str, id: &str) -> TransactionId {
        let command = Command {
            action,
            key: BusinessKey::reserved(code, id).expect("valid"),
            expected_version: None,
            provenance: Provenance {
                operation_id: None,
                request_id: "r".into(),
                actor: "a".into(),
                description: None,
                metadata: None,
            },
        };
        let original = command.action.original().and_then(|id| self.originals.get(&id));
        let now =
            Timestamp::from_micros(0).and_then(|start| start.plus_seconds(self.head.position.0)).expect("in range");
        let situation = Situation { account: self.state.as_ref(), original };
        let effect = decide(&situation, &command, now).expect("it is not refused");
        let slot = Slot { partition: self.account.partition(), head: self.head, previous_position: self.head.position };
        let event = Event::seal(&self.account, &command, &effect, &slot, None::<BatchMark>, now);
        if let Some(related) = event.related_id {
            self.originals.get_mut(&related).expect("there").remaining = event.remaining.expect("a rest");
        }
        if let Some(made) = Original::made_by(&event) {
            self.originals.insert(event.transaction_id, made);
        }
        self.head = event.head();
        self.state = Some(event.after);
        let id = event.transaction_id;
        self.events.push(event);
        id
    }

    fn freeze(&mut self, order: &str, units: u64) -> TransactionId {
        self.hold("order.create", order, units)
    }

    fn hold(&mut self, code: &str, id: &str, units: u64) -> TransactionId {
        let amount = Amount::new(units).expect("valid");
        self.record(Action::Freeze { account: self.account.clone(), amount, expiry: None }, code, id)
    }

    fn debit(&mut self, code: &str, order: &str, units: u64) -> TransactionId {
        let amount = Amount::new(units).expect("valid");
        self.record(Action::Debit { account: self.account.clone(), amount }, code, order)
    }

    fn capture(&mut self, freeze: TransactionId, id: &str, units: u64) -> TransactionId {
        let amount = Amount::new(units).ok();
        let named = NamedAccount::default();
        self.record(Action::Capture { freeze, named, amount, release_remainder: None }, "order.payment", id)
    }

    fn unfreeze(&mut self, freeze: TransactionId, id: &str) {
        let named = NamedAccount::default();
        self.record(Action::Unfreeze { freeze, named, amount: None }, "order.cancel", id);
    }

    fn refund(&mut self, debit: TransactionId, id: &str, units: u64) {
        let amount = Amount::new(units).ok();
        let named = NamedAccount::default();
        self.record(Action::Refund { debit, named, amount }, "order.refund", id);
    }

    fn order(&self, line: u64, order_id: &str, points: u64, stage: Stage) -> Order {
        Order {
            line,
            order_id: order_id.into(),
            account: self.account.clone(),
            points,
            stage,
            status: "status".into(),
            refunded_points: None,
            judged: true,
        }
    }

    fn tally(&self, orders: &[Order], part: Part, entries_max: usize) -> Tally {
        self.tally_in(scope("order"), orders, part, entries_max)
    }

    fn tally_in(&self, scope: Scope, orders: &[Order], part: Part, entries_max: usize) -> Tally {
        let mut tally = Tally::new(Arc::new(scope), part, entries_max);
        orders.iter().for_each(|order| tally.claim(order.clone()));
        self.events.iter().for_each(|event| tally.take(event));
        tally
    }
}

const ALL: Part = Part { low: 0, high: u64::MAX };

fn scope(code: &str) -> Scope {
    Scope { codes: vec![code.to_owned()], from: None, to: None }
}

fn figures(entries: &[Entry], order: &str) -> [u64; 4] {
    let entry = entries.iter().find(|entry| &*entry.order_id == order).expect("there");
    [entry.held(), entry.taken(), entry.refunded(), entry.released()]
}

#[test]
fn what_relates_to_an_order_is_the_orders_whatever_id_it_bears() {
    let mut log = Log::new();
    let freeze = log.freeze("O1", 100);
    let capture = log.capture(freeze, "PAYMENT-7", 60);
    log.refund(capture, "RMA-9", 25);
    log.unfreeze(freeze, "TIMEOUT-3");
    let orders = [log.order(1, "O1", 100, Stage::Taken)];
    let entries = log.tally(&orders, ALL, 10).into_entries();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(figures(&entries, "O1"), [0, 60, 25, 40]);
}

#[test]
fn a_capture_that_names_another_order_is_that_orders_payment() {
    let mut log = Log::new();
    let cart = log.hold("cart.hold", "CART-1", 100);
    log.capture(cart, "O1", 30);
    log.capture(cart, "O2", 70);
    let orders = [log.order(1, "O1", 30, Stage::Taken), log.order(2, "O2", 70, Stage::Taken)];
    let entries = log.tally(&orders, ALL, 10).into_entries();
    assert_eq!((figures(&entries, "O1"), figures(&entries, "O2")), ([0, 30, 0, 0], [0, 70, 0, 0]));
    assert!(entries.iter().all(|entry| judge(entry).mismatches.is_empty()));
}

#[test]
fn a_capture_needs_an_order_where_its_freeze_has_none_and_needs_none() {
    // The freeze is recorded at 1 s, the captures at 2 s and 3 s.
    let at = |seconds| Timestamp::from_micros(0).and_then(|start| start.plus_seconds(seconds));
    let range = |from, to| Scope { from, to, ..scope("order") };
    for (what, code, scope, needy) in [
        ("a freeze under a code that needs no order", "cart.hold", scope("order"), vec!["O1", "O2"]),
        ("a freeze under a code that is not asked about", "order.create", scope("order.payment"), vec!["O1", "O2"]),
        ("a freeze before the range", "order.create", range(at(2), None), vec!["O1", "O2"]),
        ("a freeze and a capture before the range", "order.create", range(at(3), None), vec!["O2"]),
        ("a capture after the range", "cart.hold", range(None, at(3)), vec!["O1"]),
        ("no code that is asked about", "cart.hold", scope("shop"), vec![]),
    ] {
        let mut log = Log::new();
        let freeze = log.hold(code, "CART-1", 100);
        log.capture(freeze, "O1", 30);
        log.capture(freeze, "O2", 50);
        let entries = log.tally_in(scope.clone(), &[], ALL, 10).into_entries();
        let found: Vec<_> = entries.iter().flat_map(|entry| judge(entry).mismatches).collect();
        let ids: Vec<_> = found.iter().map(|mismatch| &*mismatch.order_id).collect();
        assert_eq!(ids, needy, "{what}");
        assert!(found.iter().all(|mismatch| mismatch.kind == Kind::LedgerEntryWithoutOrder), "{what}: {found:?}");
        for (order, taken) in [("O1", 30), ("O2", 50)].iter().filter(|(order, _)| needy.contains(order)) {
            assert_eq!(figures(&entries, order), [0, *taken, 0, 0], "{what}");
        }
        // With the orders there, nothing is missed.
        let orders = [log.order(1, "O1", 30, Stage::Taken), log.order(2, "O2", 50, Stage::Taken)];
        let entries = log.tally_in(scope, &orders, ALL, 10).into_entries();
        assert_eq!(entries.len(), 2, "{what}");
        assert!(entries.iter().all(|entry| judge(entry).mismatches.is_empty()), "{what}");
    }
}

#[test]
fn a_freeze_without_an_order_is_kept_while_anything_is_left_of_it() {
    let mut log = Log::new();
    let [captured, released, _open] = ["C1", "C2", "C3"].map(|id| log.hold("cart.hold", id, 10));
    log.capture(captured, "P1", 4);
    assert_eq!(log.tally(&[], ALL, 10).strays.len(), 3);
    log.capture(captured, "P2", 6);
    log.unfreeze(released, "C2");
    assert_eq!(log.tally(&[], ALL, 10).strays.len(), 1);
}

#[test]
fn whose_a_capture_is_does_not_depend_on_the_part() {
    let mut log = Log::new();
    log.debit("order.payment", "O1", 5);
    // It bears an id that an entry without an order bears, too.
    let cart = log.hold("cart.hold", "O1", 7);
    log.capture(cart, "O2", 7);
    let between = short(key(&log.account, "O1")).max(short(key(&log.account, "O2")));
    let halves = [Part { low: 0, high: between - 1 }, Part { low: between, high: u64::MAX }];
    let in_halves = halves.into_iter().flat_map(|part| log.tally(&[], part, 10).into_entries()).collect();
    for entries in [log.tally(&[], ALL, 10).into_entries(), in_halves] {
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!((figures(&entries, "O1"), figures(&entries, "O2")), ([0, 5, 0, 0], [0, 7, 0, 0]));
    }
}

#[test]
fn only_codes_of_orders_need_an_order() {
    let mut log = Log::new();
    log.debit("order.payment", "O1", 5);
    log.debit("order", "O2", 5);
    log.debit("order-7", "O3", 5);
    log.debit("ordering", "X1", 5);
    log.debit("coupon", "X2", 5);
    let entries = log.tally(&[], ALL, 10).into_entries();
    let ids: Vec<_> = entries.iter().map(|entry| &*entry.order_id).collect();
    assert_eq!(ids, ["O1", "O2", "O3"]);
}

#[test]
fn looked_at_part_by_part_the_findings_are_the_same() {
    let mut log = Log::new();
    let mut orders = Vec::new();
    for number in 0..400_u64 {
        let id = format!("O{number}");
        let points = 10 + number % 7;
        match number % 8 {
            0 => {}
            1 => drop(log.debit("order.payment", &id, points)),
            2 => {
                let freeze = log.freeze(&id, points);
                log.unfreeze(freeze, &format!("timeout {number}"));
            }
            3 => {
                let freeze = log.freeze(&id, points);
                let capture = log.capture(freeze, &format!("payment {number}"), points);
                log.refund(capture, &id, 3);
            }
            // The freeze of one order pays for the next.
            4 => {
                let freeze = log.freeze(&id, points);
                log.capture(freeze, &format!("O{}", number + 1), points);
            }
            // A cart is frozen, and its capture is the order's.
            6 => {
                let freeze = log.hold("cart.hold", &format!("CART{number}"), points);
                log.capture(freeze, &id, points);
            }
            _ => drop(log.freeze(&id, points)),
        }
        let stage = [Stage::Held, Stage::Taken, Stage::Cancelled, Stage::Refunded][(number % 4) as usize];
        if number % 11 != 0 {
            orders.push(log.order(number, &id, points, stage));
        }
    }
    let said = |entries: Vec<Entry>| {
        let mismatches = entries.iter().flat_map(|entry| judge(entry).mismatches);
        let mut said: Vec<_> = mismatches
            .map(|mismatch| (mismatch.order_id.to_string(), mismatch.kind, mismatch.found, mismatch.settlement.steps))
            .collect();
        said.sort_by(|a, b| a.0.cmp(&b.0));
        said
    };
    let whole = log.tally(&orders, ALL, usize::MAX);
    assert!(!whole.is_overfull());
    let whole = said(whole.into_entries());
    assert!(log.tally(&orders, ALL, 50).is_overfull());
    let (mut low, mut width, mut parts, mut entries) = (0_u64, u64::MAX, 0, Vec::new());
    loop {
        let part = Part { low, high: low.saturating_add(width) };
        let tally = log.tally(&orders, part, 50);
        if tally.is_overfull() {
            width = (part.high - part.low) / 2;
            continue;
        }
        parts += 1;
        entries.extend(tally.into_entries());
        match part.high.checked_add(1) {
            Some(next) => low = next,
            None => break,
        }
    }
    assert!(parts >= 8, "{parts} parts");
    assert!(whole.len() > 100, "{} mismatches", whole.len());
    assert_eq!(said(entries), whole);
}
