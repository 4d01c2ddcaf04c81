//! The checks of one partition's log: pure, event by event.

use foldhash::HashMap;
use ledger_core::{
    AccountId, Balance, Epoch, Event, Freeze, Hash, Partition, Position, SCHEMA_VERSION, Timestamp, TransactionId,
    chain, digest::PartitionDigest, rejection::Contradiction,
};
use ledger_store::DamagedRow;

use super::{doubt::Doubts, relations::Originals};
use crate::finding::{Finding, Findings, Kind};

/// Hashes that are remembered after a broken link, so that a sound event after it is not accused.
const REMEMBERED_HASHES_MAX: usize = 8;

/// How much of each event is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Everything.
    Full,
    /// Only what the digest of the state needs: the folds of balances and freezes.
    Fold,
}

/// One thing that is wrong with an event.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) expected: String,
    pub(super) found: String,
    /// It follows from damage elsewhere, which is named there.
    pub(super) follows: bool,
}

/// Whether an event's hash follows from the one before it.
enum Link {
    Holds,
    Broken { expected: Hash },
}

/// The replay of one partition: what its events make, and what is wrong with them.
#[derive(Debug)]
pub(crate) struct Replay {
    partition: Partition,
    depth: Depth,
    /// The position before the first that is looked at.
    start: Position,
    position: Position,
    /// The newest event's hash; not known after a gap or a damaged row.
    hash: Option<Hash>,
    /// Hashes that the next event may follow as well, after a broken link.
    remembered: Vec<Hash>,
    epoch: Epoch,
    /// The first position of each epoch but the first.
    pub(super) epochs: Vec<(Position, Epoch)>,
    recorded_at: Option<Timestamp>,
    pub(super) accounts: HashMap<AccountId, Balance>,
    originals: Originals,
    /// Events from before `start` that later ones build on.
    seeds: HashMap<Position, Balance>,
    /// A digest of account and business key of each event: equal ones are looked at again.
    keys: Vec<u64>,
    pub(super) doubts: Doubts,
    pub(super) findings: Findings,
    pub(super) events: u64,
    buffer: Vec<u8>,
}

impl Replay {
    pub(crate) fn new(partition: Partition, depth: Depth) -> Self {
        Self {
            partition,
            depth,
            start: Position::ZERO,
            position: Position::ZERO,
            hash: Some(Hash::ZERO),
            remembered: Vec::new(),
            epoch: Epoch::FIRST,
            epochs: Vec::new(),
            recorded_at: None,
            accounts: HashMap::default(),
            originals: Originals::default(),
            seeds: HashMap::default(),
            keys: Vec::new(),
            doubts: Doubts::default(),
            findings: Findings::default(),
            events: 0,
            buffer: Vec::new(),
        }
    }

    /// A replay that begins after `event` and takes that for granted.
    pub(super) fn after(event: &Event) -> Self {
        Self {
            start: event.position,
            position: event.position,
            hash: Some(event.hash),
            epoch: event.epoch,
            recorded_at: Some(event.recorded_at),
            ..Self::new(event.partition, Depth::Full)
        }
    }

    /// Room for the keys of so many events.
    pub(super) fn expect(&mut self, events: u64) {
        if self.depth == Depth::Full {
            // What a head says may be damaged: room is made for what is likely, and grows.
            self.keys.reserve(usize::try_from(events).unwrap_or(usize::MAX).min(1 << 24));
        }
    }

    pub(crate) const fn position(&self) -> Position {
        self.position
    }

    /// The freezes by ascending position.
    pub(super) fn freezes(&self) -> &[Freeze] {
        &self.originals.freezes
    }

    /// Takes the row at the next place, whatever it is.
    pub(super) fn take(&mut self, row: &Result<Event, DamagedRow>) {
        let position = row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
        self.skip_to(position);
        self.position = position;
        self.events += 1;
        match row {
            Ok(event) => self.check(event),
            Err(damage) => {
                let found = format!("column {} {}", damage.column, damage.reason);
                self.findings.push(Finding::at(Kind::DamagedEvent, self.partition, position, "an event", found));
                self.doubts.lose(position, position);
                self.forget_hash();
            }
        }
    }

    /// Takes an event out of its neighbourhood: its account's next one, not its partition's. `before` is the hash of the
    /// event before it, if that is known.
    pub(super) fn take_alone(&mut self, row: &Result<Event, DamagedRow>, before: Option<Hash>) {
        let position = row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
        self.position = Position(position.0.saturating_sub(1));
        self.hash = before;
        self.take(row);
    }

    /// Notes the positions that are missing before `position`.
    pub(super) fn skip_to(&mut self, position: Position) {
        let next = self.position.next();
        if position > next {
            let last = Position(position.0 - 1);
            let (expected, count) = (positions(next, last), last.0 - next.0 + 1);
            let found = if count == 1 { "nothing".to_owned() } else { format!("none of these {count}") };
            self.findings.push(Finding::at(Kind::Gap, self.partition, next, expected, found));
            self.doubts.lose(next, last);
            self.forget_hash();
        }
    }

    fn forget_hash(&mut self) {
        self.hash = None;
        self.remembered.clear();
    }

    fn check(&mut self, event: &Event) {
        let mut faults = Vec::new();
        let mut link = Link::Holds;
        if self.depth == Depth::Full {
            link = self.check_link(event);
            self.check_order(event, &mut faults);
            self.check_ids(event, &mut faults);
        }
        self.check_account(event, &mut faults);
        if let Some(fault) = self.originals.take(event, self.start, &self.doubts) {
            // The fold of the balance says the same with less.
            faults.retain(|known| known.kind != Kind::RelationMissing);
            faults.push(fault);
        }
        if matches!(link, Link::Broken { .. }) || !faults.is_empty() {
            self.conclude(event, &link, faults);
        }
    }

    fn check_link(&mut self, event: &Event) -> Link {
        let before = self.hash.replace(event.hash);
        let Some(before) = before else { return Link::Holds };
        let expected = self.link(&before, event);
        if expected == event.hash {
            self.remembered.clear();
            return Link::Holds;
        }
        let remembered = std::mem::take(&mut self.remembered);
        if remembered.iter().any(|hash| self.link(hash, event) == event.hash) {
            return Link::Holds;
        }
        // The event after this one was chained to what stood here, or to what stands elsewhere by now.
        self.remembered = remembered;
        self.remembered.extend([before, expected]);
        self.remembered.push(event.hash);
        let surplus = self.remembered.len().saturating_sub(REMEMBERED_HASHES_MAX);
        self.remembered.drain(..surplus);
        Link::Broken { expected }
    }

    /// Like [`chain::link`], with a buffer that is kept.
    fn link(&mut self, before: &Hash, event: &Event) -> Hash {
        self.buffer.clear();
        self.buffer.extend_from_slice(&before.0);
        chain::write_canonical(&mut self.buffer, event);
        Hash(*blake3::hash(&self.buffer).as_bytes())
    }

    fn check_order(&mut self, event: &Event, faults: &mut Vec<Fault>) {
        if event.epoch < self.epoch {
            let expected = format!("an epoch of at least {}", self.epoch.0);
            faults.push(own(Kind::OrderMismatch, expected, format!("epoch {}", event.epoch.0)));
        } else if event.epoch > self.epoch {
            self.epochs.push((event.position, event.epoch));
            self.epoch = event.epoch;
        }
        if let Some(before) = self.recorded_at
            && event.recorded_at < before
        {
            let expected = format!("recorded_at of at least {before}");
            faults.push(own(Kind::OrderMismatch, expected, event.recorded_at.to_string()));
        } else {
            self.recorded_at = Some(event.recorded_at);
        }
    }

    fn check_ids(&mut self, event: &Event, faults: &mut Vec<Fault>) {
        let derived = TransactionId::derive(&event.account, event.epoch, event.position, &event.key);
        if derived != event.transaction_id {
            faults.push(own(Kind::IdMismatch, format!("transaction_id {derived}"), event.transaction_id.to_string()));
        }
        if event.schema_version != SCHEMA_VERSION {
            let expected = format!("schema_version {SCHEMA_VERSION}");
            faults.push(own(Kind::DamagedEvent, expected, event.schema_version.to_string()));
        }
        self.keys.push(key_digest(event));
    }

    /// The account: version, previous position, and the state folded from amounts against the state carried. After a
    /// contradiction the fold goes on from what the event carries, so that one fault gives one finding.
    fn check_account(&mut self, event: &Event, faults: &mut Vec<Fault>) {
        let id = event.account.id();
        if let Some(balance) = self.accounts.get_mut(&id) {
            if let Err(contradiction) = balance.advance(event) {
                let follows = self.doubts.covers(event.previous_position) || self.doubts.covers(balance.position);
                faults.push(fault_of(&contradiction, follows));
                balance.believe(event);
                if self.doubts.is_lost(event.previous_position) {
                    self.doubts.lose_event_of(id);
                }
            }
            self.originals.open(event, &balance.account);
            return;
        }
        if !event.account.is_consistent() {
            let expected = "the account_id that follows from user_id and credit_type".to_owned();
            faults.push(own(Kind::IdMismatch, expected, id.to_string()));
        }
        let before = self.seeds.remove(&event.previous_position).filter(|seed| seed.account == event.account);
        let balance = Balance::fold(before.as_ref(), event).unwrap_or_else(|contradiction| {
            let follows = self.doubts.covers(event.previous_position);
            faults.push(fault_of(&contradiction, follows));
            if self.doubts.is_lost(event.previous_position) {
                self.doubts.lose_event_of(id);
            }
            Balance::carried(event)
        });
        self.originals.open(event, &balance.account);
        self.accounts.insert(id, balance);
    }

    /// Names what is wrong with an event: once, and only if it is not the consequence of something else.
    fn conclude(&mut self, event: &Event, link: &Link, faults: Vec<Fault>) {
        let original = event.related_id.map(|id| id.locate().2);
        let say = |fault: &Fault| format!("{}: expected {}, found {}", fault.kind.name(), fault.expected, fault.found);
        let mut finding = if let Link::Broken { expected } = link {
            let found = format!("hash {}", event.hash);
            let mut finding = Finding::of(Kind::HashMismatch, event, format!("hash {expected}"), found);
            finding.also = faults.iter().map(say).collect();
            // What it did to the account's freezes and deductions is not known.
            self.doubts.lose_event_of(event.account.id());
            finding
        } else {
            let (follow, mut faults): (Vec<_>, Vec<_>) = faults.into_iter().partition(|fault| fault.follows);
            self.findings.consequences += follow.len() as u64;
            faults.sort_by_key(|fault| fault.kind);
            let Some(first) = faults.first() else { return };
            let mut finding = Finding::of(first.kind, event, first.expected.clone(), first.found.clone());
            finding.also = faults[1..].iter().map(say).collect();
            finding
        };
        finding.also.dedup();
        self.findings.push(finding);
        self.doubts.change(event.position, original);
    }

    /// The places before `start` that the next rows build on: accounts' newest events, freezes and deductions.
    pub(super) fn wants(&self, rows: &[Result<Event, DamagedRow>]) -> Vec<Position> {
        let mut wanted = Vec::new();
        for event in rows.iter().flatten() {
            let previous = event.previous_position;
            if (Position(1)..=self.start).contains(&previous) {
                wanted.push(previous);
            }
            let original = event.related_id.map(|id| id.locate().2).filter(|original| *original <= self.start);
            wanted.extend(original.filter(|original| !self.originals.remembers(*original)));
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// Takes an event from before `start` for granted.
    pub(super) fn seed(&mut self, event: &Event) {
        self.seeds.insert(event.position, Balance::carried(event));
        self.originals.remember(event);
    }

    /// The digests of keys that occur more than once, ascending.
    pub(super) fn repeated_keys(&mut self) -> Vec<u64> {
        let mut keys = std::mem::take(&mut self.keys);
        keys.sort_unstable();
        let mut repeated: Vec<_> = keys.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        repeated.dedup();
        repeated
    }

    /// The digests of the balances and freezes.
    pub(super) fn digest(&self) -> (Hash, Hash) {
        let mut balances: Vec<_> = self.accounts.values().collect();
        balances.sort_unstable_by_key(|balance| balance.account.id());
        let mut digest = PartitionDigest::default();
        balances.into_iter().for_each(|balance| digest.add_balance(balance));
        self.freezes().iter().for_each(|freeze| digest.add_freeze(freeze));
        digest.finish()
    }
}

/// Some successive positions, in words.
pub(super) fn positions(first: Position, last: Position) -> String {
    if first == last { format!("position {first}") } else { format!("positions {first} to {last}") }
}

/// 64 bits of account and business key. Both halves are hashes already.
pub(super) fn key_digest(event: &Event) -> u64 {
    key_digest_of(event.key.hash(), event.account.id())
}

/// The same of a key's hash and an account.
pub(super) fn key_digest_of(key: u64, account: AccountId) -> u64 {
    key ^ account.short().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn own(kind: Kind, expected: String, found: String) -> Fault {
    Fault { kind, expected, found, follows: false }
}

/// What the fold of a balance contradicts.
fn fault_of(contradiction: &Contradiction, follows: bool) -> Fault {
    let kind = match contradiction.field {
        "version" | "previous_position" => Kind::VersionMismatch,
        "account_id" => Kind::IdMismatch,
        "related_id" => Kind::RelationMissing,
        _ => Kind::StateMismatch,
    };
    let expected = format!("{} {}", contradiction.field, contradiction.expected);
    Fault { kind, expected, found: contradiction.found.clone(), follows }
}

#[cfg(test)]
mod tests;
