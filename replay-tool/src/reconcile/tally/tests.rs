use std::collections::HashMap;

use ledger_core::{
    AccountState, Action, BatchMark, BusinessKey, Command, Event, Head, NamedAccount, Original, Provenance, Situation,
    Slot, decide,
};

use super::*;
use crate::reconcile::judge::judge;

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
        let amount = Amount::new(units).expect("valid");
        self.record(Action::Freeze { account: self.account.clone(), amount, expiry: None }, "order.create", order)
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
        let scope = Scope { codes: vec!["order".to_owned()], from: None, to: None };
        let mut tally = Tally::new(Arc::new(scope), part, entries_max);
        orders.iter().for_each(|order| tally.claim(order.clone()));
        self.events.iter().for_each(|event| tally.take(event));
        tally
    }
}

const ALL: Part = Part { low: 0, high: u64::MAX };

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
    let cart = log.record(
        Action::Freeze { account: log.account.clone(), amount: Amount::new(100).expect("valid"), expiry: None },
        "cart.hold",
        "CART-1",
    );
    log.capture(cart, "O1", 30);
    log.capture(cart, "O2", 70);
    let orders = [log.order(1, "O1", 30, Stage::Taken), log.order(2, "O2", 70, Stage::Taken)];
    let entries = log.tally(&orders, ALL, 10).into_entries();
    assert_eq!((figures(&entries, "O1"), figures(&entries, "O2")), ([0, 30, 0, 0], [0, 70, 0, 0]));
    assert!(entries.iter().all(|entry| judge(entry).mismatches.is_empty()));
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
