//! The fold of one account's events.

use std::collections::{BTreeMap, HashMap, VecDeque};

use ledger_core::{
    Amount, Balance, BusinessKey, Event, EventType, Freeze, Position, Timestamp, TransactionId,
    rejection::Contradiction,
};

use super::{Arguments, curve::Curve, served::Served};

/// A deduction of which something may still be refunded.
#[derive(Debug)]
pub(super) struct Refundable {
    pub(super) id: TransactionId,
    pub(super) amount: u64,
    pub(super) left: u64,
    pub(super) key: BusinessKey,
    pub(super) recorded_at: Timestamp,
}

/// An account, taken apart.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) balance: Balance,
    pub(super) parts: Parts,
}

/// The fold of one account's events.
pub(super) struct Fold {
    limit: usize,
    before: u64,
    balance: Option<Balance>,
    /// The account as it was at the position that the served balance stands at.
    at_served: Option<Balance>,
    /// The newest event that the balances' checkpoint promises.
    promised: Position,
    parts: Parts,
}

/// What the events come to, apart from the balance.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// How many events of each type there are, and what they moved.
    pub(super) moved: BTreeMap<&'static str, (u64, u64)>,
    pub(super) curve: Curve,
    /// The page of events that is shown.
    pub(super) events: VecDeque<Event>,
    /// The open ones.
    pub(super) freezes: BTreeMap<Position, Freeze>,
    /// The newest event about each open freeze.
    touched: HashMap<Position, Position>,
    /// Deductions that were not refunded wholly.
    pub(super) refundable: BTreeMap<Position, Refundable>,
    pub(super) contradictions: Vec<Contradiction>,
    /// Places of the partition where no event can be read: whose they were is not known.
    pub(super) unreadable: Vec<String>,
    /// `None` where the past is explained.
    pub(super) served: Option<Served>,
}

impl Fold {
    pub(super) fn new(arguments: &Arguments, served: Option<Served>) -> Self {
        Self {
            limit: arguments.limit,
            before: arguments.before.unwrap_or(u64::MAX),
            balance: None,
            at_served: None,
            promised: Position::ZERO,
            parts: Parts { served, ..Parts::default() },
        }
    }

    /// Takes the account's next event.
    pub(super) fn take(&mut self, event: Event) {
        let parts = &mut self.parts;
        let balance = Balance::fold(self.balance.as_ref(), &event).unwrap_or_else(|contradiction| {
            parts.contradictions.push(contradiction);
            // From here on what the event carries is taken as true: one fault is told once.
            Balance {
                account: event.account.clone(),
                state: event.after,
                position: event.position,
                updated_at: event.recorded_at,
            }
        });
        let (count, units) = parts.moved.entry(event.event_type.name()).or_default();
        *count += 1;
        *units += event.amount.map_or(0, Amount::units);
        parts.curve.add(balance.state.version.max(1), balance.state.balance);
        parts.relate(&event);
        if let Some(served) = &parts.served {
            if served.balance.as_ref().is_some_and(|row| row.position == event.position) {
                self.at_served = Some(balance.clone());
            }
            if event.position <= served.balances_at {
                self.promised = event.position;
            }
        }
        self.balance = Some(balance);
        if event.after.version < self.before && self.limit > 0 {
            if parts.events.len() == self.limit {
                parts.events.pop_front();
            }
            parts.events.push_back(event);
        }
    }

    /// A place where an event must be, and none can be read.
    pub(super) fn skip(&mut self, why: String) {
        self.parts.unreadable.push(why);
    }

    /// The account as it stands now; `None` when it has no event.
    pub(super) fn finish(self) -> Option<Explained> {
        let Self { balance, at_served, promised, mut parts, .. } = self;
        let balance = balance?;
        if let Some(served) = &mut parts.served {
            served.compare_balance(at_served.as_ref(), promised, &balance);
            served.compare_freezes(&parts.freezes, &parts.touched);
        }
        Some(Explained { balance, parts })
    }
}

impl Parts {
    /// What the event does to freezes and deductions.
    fn relate(&mut self, event: &Event) {
        if let Some(freeze) = Freeze::opened_by(event) {
            self.freezes.insert(event.position, freeze);
            self.touched.insert(event.position, event.position);
        }
        if event.event_type == EventType::Deducted {
            let amount = event.amount.map_or(0, Amount::units);
            let refundable = Refundable {
                id: event.transaction_id,
                amount,
                left: amount,
                key: event.key.clone(),
                recorded_at: event.recorded_at,
            };
            self.refundable.insert(event.position, refundable);
        }
        let Some(original) = event.related_id else { return };
        let place = original.locate().2;
        if event.event_type == EventType::Refunded {
            let left = self.refundable.get_mut(&place).map(|deduction| {
                deduction.left = deduction.left.saturating_sub(event.amount.map_or(0, Amount::units));
                deduction.left
            });
            match left {
                Some(0) => drop(self.refundable.remove(&place)),
                Some(_) => {}
                None => self.contradictions.push(missing(event, "a deduction with a rest", original)),
            }
            return;
        }
        let Some(freeze) = self.freezes.get_mut(&place) else {
            self.contradictions.push(missing(event, "an open freeze", original));
            return;
        };
        if let Err(contradiction) = freeze.fold(event) {
            self.contradictions.push(contradiction);
            freeze.remaining = event.remaining.unwrap_or(0);
        }
        self.touched.insert(place, event.position);
        if freeze.remaining == 0 {
            if let Some(served) = &mut self.served {
                served.settle(original, event.position);
            }
            self.freezes.remove(&place);
            self.touched.remove(&place);
        }
    }
}

fn missing(event: &Event, expected: &str, original: TransactionId) -> Contradiction {
    Contradiction {
        position: event.position,
        field: "related_id",
        expected: format!("{expected} of the account"),
        found: original.to_string(),
    }
}
