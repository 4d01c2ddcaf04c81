//! The checks of one partition's log: pure, event by event.

use std::collections::{HashMap, HashSet};

use ledger_core::{
    Account, AccountId, Amount, Balance, Event, EventType, Freeze, Hash, Head, Partition, Position, SCHEMA_VERSION,
    Timestamp, TransactionId, chain, rejection::Contradiction,
};
use ledger_store::DamagedRow;

use super::batches::Batches;
use crate::finding::{Finding, Findings, Kind};

/// The replay of one partition: what its events make, and what is wrong with them.
#[derive(Debug)]
pub(crate) struct Replay {
    partition: Partition,
    /// The newest event's place; its hash is not known after a gap or a damaged row.
    position: Position,
    hash: Option<Hash>,
    epoch: ledger_core::Epoch,
    recorded_at: Option<Timestamp>,
    pub(crate) accounts: HashMap<AccountId, Balance>,
    pub(crate) freezes: HashMap<Position, Freeze>,
    deductions: HashMap<Position, Deduction>,
    /// 128 bits of BLAKE3 of account and key: enough that no two keys share them.
    keys: HashSet<[u8; 16]>,
    pub(crate) events: u64,
}

#[derive(Debug)]
struct Deduction {
    id: TransactionId,
    account: Account,
    refundable: u64,
}

impl Replay {
    pub(crate) fn new(partition: Partition) -> Self {
        Self {
            partition,
            position: Position::ZERO,
            hash: Some(Hash::ZERO),
            epoch: ledger_core::Epoch::FIRST,
            recorded_at: None,
            accounts: HashMap::new(),
            freezes: HashMap::new(),
            deductions: HashMap::new(),
            keys: HashSet::new(),
            events: 0,
        }
    }

    pub(crate) const fn position(&self) -> Position {
        self.position
    }

    /// Takes the row at the next place, whatever it is.
    pub(crate) fn take(
        &mut self,
        row: Result<Event, DamagedRow>,
        batches: &mut Batches,
        findings: &mut Findings,
    ) -> Option<Event> {
        let position = row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
        self.skip_to(position, findings);
        self.position = position;
        self.events += 1;
        match row {
            Ok(event) => {
                self.check_place(&event, findings);
                self.check_ids(&event, findings);
                self.check_account(&event, findings);
                self.check_relation(&event, findings);
                batches.take(&event);
                Some(event)
            }
            Err(damage) => {
                let found = format!("column {} {}", damage.column, damage.reason);
                findings.push(Finding::at(Kind::DamagedEvent, self.partition, position, "an event", found));
                self.hash = None;
                None
            }
        }
    }

    /// Notes the positions that are missing before `position`.
    pub(crate) fn skip_to(&mut self, position: Position, findings: &mut Findings) {
        let next = self.position.next();
        if position > next {
            let last = position.0 - 1;
            let expected =
                if last == next.0 { format!("position {next}") } else { format!("positions {next} to {last}") };
            findings.push(Finding::at(Kind::Gap, self.partition, next, expected, "nothing"));
            self.hash = None;
        }
    }

    /// The partition's head must be the newest event.
    pub(crate) fn check_head(&mut self, head: &Head, newest: Option<&Event>, findings: &mut Findings) {
        self.skip_to(head.position.next(), findings);
        if let Some(newest) = newest.filter(|newest| newest.position == head.position)
            && (newest.hash != head.hash || newest.epoch > head.epoch)
        {
            let expected = format!("epoch {} hash {}", newest.epoch.0, newest.hash);
            let found = format!("epoch {} hash {}", head.epoch.0, head.hash);
            findings.push(Finding::of(Kind::HeadMismatch, newest, expected, found));
        }
    }

    /// The head of a partition without events names nothing: the next event would be chained to it.
    pub(crate) fn check_empty_head(&self, head: &Head, findings: &mut Findings) {
        if head.hash != Hash::ZERO {
            let (expected, found) = (format!("hash {}", Hash::ZERO), head.hash.to_string());
            findings.push(Finding::at(Kind::HeadMismatch, self.partition, head.position, expected, found));
        }
    }

    fn check_place(&mut self, event: &Event, findings: &mut Findings) {
        if let Some(previous) = self.hash {
            let expected = chain::link(&previous, event);
            if expected != event.hash {
                findings.push(Finding::of(Kind::HashMismatch, event, expected.to_string(), event.hash.to_string()));
            }
        }
        self.hash = Some(event.hash);
        if event.epoch < self.epoch {
            let expected = format!("an epoch of at least {}", self.epoch.0);
            findings.push(Finding::of(Kind::OrderMismatch, event, expected, format!("epoch {}", event.epoch.0)));
        }
        self.epoch = self.epoch.max(event.epoch);
        if let Some(before) = self.recorded_at
            && event.recorded_at < before
        {
            let expected = format!("recorded_at of at least {before}");
            findings.push(Finding::of(Kind::OrderMismatch, event, expected, event.recorded_at.to_string()));
        }
        self.recorded_at = self.recorded_at.max(Some(event.recorded_at));
    }

    fn check_ids(&mut self, event: &Event, findings: &mut Findings) {
        let derived = TransactionId::derive(&event.account, event.epoch, event.position, &event.key);
        if derived != event.transaction_id {
            let expected = format!("transaction_id {derived}");
            findings.push(Finding::of(Kind::IdMismatch, event, expected, event.transaction_id.to_string()));
        }
        if !event.account.is_consistent() {
            let expected = "the account_id that follows from user_id and credit_type";
            findings.push(Finding::of(Kind::IdMismatch, event, expected, event.account.id().to_string()));
        }
        if event.schema_version != SCHEMA_VERSION {
            let expected = format!("schema_version {SCHEMA_VERSION}");
            findings.push(Finding::of(Kind::DamagedEvent, event, expected, event.schema_version.to_string()));
        }
        if !self.keys.insert(key_digest(event)) {
            let found = format!("{} {} again", event.key.code(), event.key.id());
            findings.push(Finding::of(Kind::DuplicateKey, event, "a key that is new to the account", found));
        }
    }

    /// The account: version, previous position, and the state folded from amounts against the state carried. After a
    /// contradiction the fold goes on from what the event carries, so that one fault gives one finding.
    fn check_account(&mut self, event: &Event, findings: &mut Findings) {
        let id = event.account.id();
        let carried = || Balance {
            account: event.account.clone(),
            state: event.after,
            position: event.position,
            updated_at: event.recorded_at,
        };
        let balance = match Balance::fold(self.accounts.get(&id), event) {
            Ok(balance) => balance,
            Err(contradiction) => {
                let kind = match contradiction.field {
                    "version" | "previous_position" => Kind::VersionMismatch,
                    "account_id" => Kind::IdMismatch,
                    _ => Kind::StateMismatch,
                };
                findings.push(contradicted(kind, event, &contradiction));
                carried()
            }
        };
        self.accounts.insert(id, balance);
        let own = match event.event_type {
            EventType::Frozen => Some(event.amount.map(Amount::units)),
            EventType::Deducted if event.related_id.is_none() => Some(event.amount.map(Amount::units)),
            EventType::Credited | EventType::Locked | EventType::Unlocked => Some(None),
            _ => None,
        };
        if let Some(own) = own
            && event.remaining != own
        {
            let say = |units: Option<u64>| units.map_or("nothing".to_owned(), |units| units.to_string());
            let expected = format!("remaining {}", say(own));
            findings.push(Finding::of(Kind::StateMismatch, event, expected, say(event.remaining)));
        }
    }

    /// A capture, release or refund: its original is there, is the account's own, and bears it.
    fn check_relation(&mut self, event: &Event, findings: &mut Findings) {
        if let Some(freeze) = Freeze::opened_by(event) {
            self.freezes.insert(event.position, freeze);
        }
        if event.event_type == EventType::Deducted {
            let refundable = event.amount.map_or(0, Amount::units);
            let deduction = Deduction { id: event.transaction_id, account: event.account.clone(), refundable };
            self.deductions.insert(event.position, deduction);
        }
        let related = match (event.event_type, event.related_id) {
            (EventType::Unfrozen | EventType::Refunded, None) => {
                findings.push(Finding::of(Kind::RelationMissing, event, "a related_id", "none"));
                return;
            }
            (EventType::Credited | EventType::Frozen | EventType::Locked | EventType::Unlocked, Some(id)) => {
                findings.push(Finding::of(Kind::RelationMissing, event, "no related_id", id.to_string()));
                return;
            }
            (_, None) => return,
            (_, Some(id)) => id,
        };
        let (partition, _, position) = related.locate();
        let local = partition == self.partition && position < event.position;
        if event.event_type == EventType::Refunded {
            let deduction = self.deductions.get_mut(&position).filter(|known| local && known.id == related);
            let Some(deduction) = deduction.filter(|known| known.account == event.account) else {
                findings.push(Finding::of(
                    Kind::RelationMissing,
                    event,
                    "an earlier deduction of the account",
                    related.to_string(),
                ));
                return;
            };
            let amount = event.amount.map_or(0, Amount::units);
            let left = deduction.refundable.checked_sub(amount);
            if left.is_none() || left != event.remaining {
                let expected = match left {
                    Some(left) => format!("remaining {left}"),
                    None => format!("an amount of at most {}", deduction.refundable),
                };
                let found = format!("amount {amount} remaining {}", event.remaining.unwrap_or(0));
                findings.push(Finding::of(Kind::RelationMismatch, event, expected, found));
            }
            deduction.refundable = event.remaining.unwrap_or(0);
            return;
        }
        let freeze = self.freezes.get_mut(&position).filter(|known| local && known.freeze_id == related);
        let Some(freeze) = freeze.filter(|known| known.account == event.account) else {
            findings.push(Finding::of(
                Kind::RelationMissing,
                event,
                "an earlier freeze of the account",
                related.to_string(),
            ));
            return;
        };
        if let Err(contradiction) = freeze.fold(event) {
            findings.push(contradicted(Kind::RelationMismatch, event, &contradiction));
            freeze.remaining = event.remaining.unwrap_or(0);
        }
    }
}

fn contradicted(kind: Kind, event: &Event, contradiction: &Contradiction) -> Finding {
    let expected = format!("{} {}", contradiction.field, contradiction.expected);
    Finding::of(kind, event, expected, contradiction.found.clone())
}

fn key_digest(event: &Event) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(event.account.id().uuid().as_bytes());
    hasher.update(&(event.key.code().len() as u64).to_be_bytes());
    hasher.update(event.key.code().as_bytes());
    hasher.update(event.key.id().as_bytes());
    let hash = hasher.finalize();
    std::array::from_fn(|index| hash.as_bytes()[index])
}
