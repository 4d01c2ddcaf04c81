//! What the ledger did for each order: a fold of one partition's events.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use ledger_core::{Account, Amount, Event, EventType, Position, Timestamp, TransactionId};

use super::{
    order::{Order, Stage, within},
    settle::SETTLEMENT_CODE,
};

/// The codes of steps that stand for orders, and the time in which such a step needs one.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) codes: Vec<String>,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

impl Scope {
    /// Whether a freeze or deduction must belong to an order.
    fn needs_order(&self, event: &Event) -> bool {
        let code = &**event.key.code();
        // `order` stands for `order.create` and `order-7`, not for `ordering`.
        let stands_for = |prefix: &String| {
            code.strip_prefix(prefix.as_str())
                .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
        };
        within(event.recorded_at, self.from, self.to) && self.codes.iter().any(stands_for)
    }
}

/// 128 bits of BLAKE3 of an account and an order's id: enough that no two share them.
type Key = u128;

/// A part of all keys, so that a partition that is too large for the memory is looked at part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl Part {
    fn holds(self, key: Key) -> bool {
        (self.low..=self.high).contains(&short(key))
    }
}

/// What the order system says of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) line: u64,
    pub(crate) points: u64,
    pub(crate) stage: Stage,
    pub(crate) status: Arc<str>,
    pub(crate) refunded_points: Option<u64>,
    pub(crate) judged: bool,
}

/// A freeze for an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frozen {
    pub(crate) id: TransactionId,
    pub(crate) amount: u64,
    pub(crate) remaining: u64,
    pub(crate) released: u64,
}

/// A deduction for an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deducted {
    pub(crate) id: TransactionId,
    pub(crate) amount: u64,
    pub(crate) refunded: u64,
    /// Of which freeze, if it is a capture.
    pub(crate) freeze: Option<TransactionId>,
}

/// An order, as both sides see it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) account: Account,
    pub(crate) order_id: Arc<str>,
    /// `None`: only the ledger knows it.
    pub(crate) claim: Option<Claim>,
    /// Further lines of the same order.
    pub(crate) again: Vec<Claim>,
    pub(crate) freezes: Vec<Frozen>,
    pub(crate) deductions: Vec<Deducted>,
    /// Credits under the order's own id: a reward, or a refund that was no refund.
    pub(crate) credited: u64,
    /// Whether any freeze, deduction, release or refund bears the order's id.
    pub(crate) seen: bool,
    /// When the newest of its events was recorded.
    pub(crate) newest_at: Option<Timestamp>,
    /// Whether an earlier settlement released a freeze of it.
    pub(crate) settled: bool,
}

/// Where a freeze or deduction is kept.
#[derive(Debug, Clone, Copy)]
struct Place {
    entry: usize,
    piece: usize,
}

/// The orders of a part of a partition.
#[derive(Debug)]
pub(crate) struct Tally {
    scope: Arc<Scope>,
    part: Part,
    entries_max: usize,
    entries: Vec<Entry>,
    by_key: HashMap<Key, usize>,
    /// Every order of the partition, this part's or not.
    orders: HashSet<u64>,
    freezes: HashMap<Position, Place>,
    deductions: HashMap<Position, Place>,
    /// Freezes that neither have an order nor need one, of the whole partition, while anything is left of them: a capture
    /// may still need an order.
    strays: HashSet<Position>,
    overfull: bool,
}

impl Tally {
    pub(crate) fn new(scope: Arc<Scope>, part: Part, entries_max: usize) -> Self {
        Self {
            scope,
            part,
            entries_max,
            entries: Vec::new(),
            by_key: HashMap::default(),
            orders: HashSet::default(),
            freezes: HashMap::default(),
            deductions: HashMap::default(),
            strays: HashSet::default(),
            overfull: false,
        }
    }

    /// Whether there is more than the memory is meant to hold: then a smaller part has to be looked at.
    pub(crate) const fn is_overfull(&self) -> bool {
        self.overfull
    }

    pub(crate) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Takes what the order system says. All orders come before the first event.
    pub(crate) fn claim(&mut self, order: Order) {
        let Order { line, order_id, account, points, stage, status, refunded_points, judged } = order;
        let key = key(&account, &order_id);
        self.orders.insert(short(key));
        if self.overfull || !self.part.holds(key) {
            return;
        }
        let claim = Claim { line, points, stage, status, refunded_points, judged };
        let index = self.open(key, &account, &order_id);
        let entry = &mut self.entries[index];
        match entry.claim {
            None => entry.claim = Some(claim),
            Some(_) => entry.again.push(claim),
        }
    }

    /// Takes the next event of the partition.
    pub(crate) fn take(&mut self, event: &Event) {
        if self.overfull {
            return;
        }
        match (event.event_type, event.related_id) {
            (EventType::Credited, _) => {
                if let Some(index) = self.known(event) {
                    self.entries[index].credited += units(event);
                }
            }
            (EventType::Frozen, _) => self.freeze(event),
            (EventType::Deducted, None) => self.deduct(event, None),
            (EventType::Deducted, Some(freeze)) => self.capture(event, freeze),
            (EventType::Unfrozen, Some(freeze)) => self.release(event, freeze),
            (EventType::Refunded, Some(deduction)) => self.refund(event, deduction),
            _ => {}
        }
        // Nothing is left that a later capture could take.
        if event.remaining == Some(0)
            && let Some(original) = event.related_id
        {
            self.strays.remove(&original.locate().2);
        }
    }

    fn freeze(&mut self, event: &Event) {
        let own = key(&event.account, event.key.id());
        // An entry that only the ledger knows does not count: other parts do not have it, and all must judge alike.
        if !self.orders.contains(&short(own)) && !self.scope.needs_order(event) {
            self.strays.insert(event.position);
            return;
        }
        let Some(index) = self.owner(own, event) else { return };
        let entry = &mut self.entries[index];
        entry.touch(event);
        let amount = units(event);
        self.freezes.insert(event.position, Place { entry: index, piece: entry.freezes.len() });
        entry.freezes.push(Frozen { id: event.transaction_id, amount, remaining: amount, released: 0 });
    }

    fn deduct(&mut self, event: &Event, of: Option<(usize, TransactionId)>) {
        let index = match of {
            Some((index, _)) => Some(index),
            None => self.owner(key(&event.account, event.key.id()), event),
        };
        let Some(index) = index else { return };
        let entry = &mut self.entries[index];
        entry.touch(event);
        self.deductions.insert(event.position, Place { entry: index, piece: entry.deductions.len() });
        entry.deductions.push(Deducted {
            id: event.transaction_id,
            amount: units(event),
            refunded: 0,
            freeze: of.map(|(_, freeze)| freeze),
        });
    }

    /// A capture is the deduction of the order that it names itself, else of the order that its freeze is for. Where the
    /// freeze is for none it stands alone, as a deduction without a freeze does.
    fn capture(&mut self, event: &Event, freeze: TransactionId) {
        let position = freeze.locate().2;
        let place = self.freezes.get(&position).copied();
        if let Some(Place { entry, piece }) = place {
            let entry = &mut self.entries[entry];
            entry.touch(event);
            let frozen = &mut entry.freezes[piece];
            frozen.remaining = frozen.remaining.saturating_sub(units(event).saturating_add(event.released));
            frozen.released += event.released;
        }
        let own = key(&event.account, event.key.id());
        if self.orders.contains(&short(own)) {
            if let Some(index) = self.by_key.get(&own).copied() {
                // A freeze of the order itself is the usual case; another one makes this a deduction without a freeze.
                let of_own = place.is_some_and(|place| place.entry == index);
                if of_own {
                    self.deduct(event, Some((index, freeze)));
                } else {
                    self.deduct(event, None);
                }
            }
        } else if let Some(place) = place {
            self.deduct(event, Some((place.entry, freeze)));
        } else if self.strays.contains(&position) {
            self.deduct(event, None);
        }
    }

    fn release(&mut self, event: &Event, freeze: TransactionId) {
        if let Some(index) = self.known(event) {
            self.entries[index].touch(event);
        }
        let Some(Place { entry, piece }) = self.freezes.get(&freeze.locate().2).copied() else { return };
        let entry = &mut self.entries[entry];
        entry.touch(event);
        entry.settled |= &**event.key.code() == SETTLEMENT_CODE;
        let frozen = &mut entry.freezes[piece];
        frozen.remaining = frozen.remaining.saturating_sub(units(event));
        frozen.released += units(event);
    }

    fn refund(&mut self, event: &Event, deduction: TransactionId) {
        if let Some(index) = self.known(event) {
            self.entries[index].touch(event);
        }
        let Some(Place { entry, piece }) = self.deductions.get(&deduction.locate().2).copied() else { return };
        let entry = &mut self.entries[entry];
        entry.touch(event);
        entry.deductions[piece].refunded += units(event);
    }

    /// The order that an event names by its own business id, if it is one of this part.
    fn known(&self, event: &Event) -> Option<usize> {
        self.by_key.get(&key(&event.account, event.key.id())).copied()
    }

    /// The order that a freeze or a deduction of its own is for: one of the order system's, or one that it should know.
    fn owner(&mut self, key: Key, event: &Event) -> Option<usize> {
        if let Some(index) = self.by_key.get(&key) {
            return Some(*index);
        }
        let unknown = self.part.holds(key) && self.scope.needs_order(event);
        unknown.then(|| self.open(key, &event.account, event.key.id()))
    }

    fn open(&mut self, key: Key, account: &Account, order_id: &Arc<str>) -> usize {
        if let Some(index) = self.by_key.get(&key) {
            return *index;
        }
        let index = self.entries.len();
        self.by_key.insert(key, index);
        self.entries.push(Entry {
            account: account.clone(),
            order_id: order_id.clone(),
            claim: None,
            again: Vec::new(),
            freezes: Vec::new(),
            deductions: Vec::new(),
            credited: 0,
            seen: false,
            newest_at: None,
            settled: false,
        });
        self.overfull |= self.entries.len() > self.entries_max && self.part.low < self.part.high;
        index
    }
}

impl Entry {
    fn touch(&mut self, event: &Event) {
        self.seen = true;
        self.newest_at = self.newest_at.max(Some(event.recorded_at));
    }

    /// What is frozen for the order now.
    pub(crate) fn held(&self) -> u64 {
        self.freezes.iter().map(|freeze| freeze.remaining).sum()
    }

    /// What was deducted for it, refunded or not.
    pub(crate) fn taken(&self) -> u64 {
        self.deductions.iter().map(|deduction| deduction.amount).sum()
    }

    pub(crate) fn refunded(&self) -> u64 {
        self.deductions.iter().map(|deduction| deduction.refunded).sum()
    }

    pub(crate) fn released(&self) -> u64 {
        self.freezes.iter().map(|freeze| freeze.released).sum()
    }

    /// What the user paid in the end.
    pub(crate) fn net(&self) -> u64 {
        self.taken().saturating_sub(self.refunded())
    }
}

fn units(event: &Event) -> u64 {
    event.amount.map_or(0, Amount::units)
}

fn key(account: &Account, order_id: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(account.id().uuid().as_bytes());
    hasher.update(order_id.as_bytes());
    let hash = hasher.finalize();
    Key::from_be_bytes(std::array::from_fn(|index| hash.as_bytes()[index]))
}

fn short(key: Key) -> u64 {
    (key >> 64) as u64
}

#[cfg(test)]
mod tests;
