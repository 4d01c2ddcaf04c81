//! Captures, releases and refunds: the original is there, is the account's own, and bears what is taken from it.

use foldhash::HashMap;
use ledger_core::{Account, AccountId, Amount, Event, EventType, Freeze, Position, TransactionId};

use super::{doubt::Doubts, log::Fault};
use crate::finding::Kind;

/// The freezes and deductions of a partition, in the order of their positions.
#[derive(Debug, Default)]
pub(super) struct Originals {
    pub(super) freezes: Vec<Freeze>,
    deductions: Vec<Deduction>,
    /// Freezes and deductions from before the first event that is looked at, as far as they were asked for.
    earlier: Earlier,
}

#[derive(Debug, Default)]
struct Earlier {
    freezes: HashMap<Position, Freeze>,
    deductions: HashMap<Position, Deduction>,
}

#[derive(Debug)]
struct Deduction {
    position: Position,
    id: TransactionId,
    account: AccountId,
    refundable: u64,
}

impl Originals {
    /// Keeps the original that `event` makes, if it makes one. `account` is the event's, already known.
    pub(super) fn open(&mut self, event: &Event, account: &Account) {
        match event.event_type {
            EventType::Frozen => {
                if let Some(mut freeze) = Freeze::opened_by(event) {
                    // The texts of the account are shared instead of kept once for each freeze.
                    freeze.account = account.clone();
                    self.freezes.push(freeze);
                }
            }
            EventType::Deducted => self.deductions.push(deduction(event)),
            _ => {}
        }
    }

    /// Takes in an original from before the first event that is looked at. How much was left of it is not known.
    pub(super) fn remember(&mut self, event: &Event) {
        if let Some(freeze) = Freeze::opened_by(event) {
            self.earlier.freezes.insert(event.position, freeze);
        } else if event.event_type == EventType::Deducted {
            self.earlier.deductions.insert(event.position, deduction(event));
        }
    }

    pub(super) fn remembers(&self, position: Position) -> bool {
        self.earlier.freezes.contains_key(&position) || self.earlier.deductions.contains_key(&position)
    }

    /// Folds in what `event` takes from an original. `start` is the position before the first that is looked at.
    pub(super) fn take(&mut self, event: &Event, start: Position, doubts: &Doubts) -> Option<Fault> {
        let id = event.related_id?;
        let original = match event.event_type {
            EventType::Deducted | EventType::Unfrozen => "freeze",
            EventType::Refunded => "deduction",
            // The shape of the event is wrong, and is named as that.
            _ => return None,
        };
        let (partition, _, position) = id.locate();
        let follows = doubts.covers_original(position, event.account.id());
        let fault = |kind, expected: String, found: String| Some(Fault { kind, expected, found, follows });
        let wanted = || format!("an earlier {original} of the account");
        if partition != event.partition {
            return fault(Kind::RelationForeign, wanted(), format!("{id}, of partition {partition}"));
        }
        if position >= event.position {
            return fault(Kind::RelationMissing, wanted(), format!("{id}, of position {position}"));
        }
        let is_earlier = position <= start;
        if event.event_type == EventType::Refunded {
            let known = if is_earlier {
                self.earlier.deductions.get_mut(&position)
            } else {
                let found = self.deductions.binary_search_by_key(&position, |known| known.position).ok();
                found.map(|index| &mut self.deductions[index])
            };
            let Some(known) = known.filter(|known| known.id == id) else {
                return fault(Kind::RelationMissing, wanted(), format!("{id}, which there is not"));
            };
            if known.account != event.account.id() {
                return fault(Kind::RelationForeign, wanted(), format!("{id}, of account {}", known.account));
            }
            return refund(known, event, is_earlier, follows);
        }
        let known = if is_earlier {
            self.earlier.freezes.get_mut(&position)
        } else {
            let found = self.freezes.binary_search_by_key(&position, |known| known.position).ok();
            found.map(|index| &mut self.freezes[index])
        };
        let Some(known) = known.filter(|known| known.freeze_id == id) else {
            return fault(Kind::RelationMissing, wanted(), format!("{id}, which there is not"));
        };
        if known.account != event.account {
            let (user_id, credit_type) = (known.account.user_id(), known.account.credit_type());
            return fault(Kind::RelationForeign, wanted(), format!("{id}, of {user_id}/{credit_type}"));
        }
        if is_earlier && let Some(left) = event.remaining {
            // What was left before is not known: what the event says is taken for granted, up to the whole freeze.
            let taken = event.amount.map_or(0, Amount::units).saturating_add(event.released);
            known.remaining = left.saturating_add(taken).min(known.amount);
        }
        let contradiction = known.fold(event).err()?;
        let kind = match contradiction.field {
            "amount" => Kind::RelationExceeded,
            _ => Kind::RelationMismatch,
        };
        known.remaining = event.remaining.unwrap_or(0);
        let expected = format!("{} {}", contradiction.field, contradiction.expected);
        fault(kind, expected, format!("{} {}", contradiction.field, contradiction.found))
    }
}

fn deduction(event: &Event) -> Deduction {
    Deduction {
        position: event.position,
        id: event.transaction_id,
        account: event.account.id(),
        refundable: event.amount.map_or(0, Amount::units),
    }
}

fn refund(known: &mut Deduction, event: &Event, is_earlier: bool, follows: bool) -> Option<Fault> {
    let amount = event.amount.map_or(0, Amount::units);
    if is_earlier && let Some(left) = event.remaining {
        known.refundable = left.saturating_add(amount).min(known.refundable);
    }
    let left = known.refundable.checked_sub(amount);
    let fault = if let Some(left) = left {
        (event.remaining != Some(left)).then(|| {
            let found = event.remaining.map_or("nothing".to_owned(), |found| found.to_string());
            (Kind::RelationMismatch, format!("remaining {left}"), format!("remaining {found}"))
        })
    } else {
        Some((Kind::RelationExceeded, format!("amount at most {}", known.refundable), format!("amount {amount}")))
    };
    known.refundable = event.remaining.unwrap_or(0);
    fault.map(|(kind, expected, found)| Fault { kind, expected, found, follows })
}
