//! What the indexes do not hold yet: the log after their checkpoint, in memory.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use foldhash::HashMap;

use ledger_core::{
    AccountId, AccountState, Balance, Event, EventType, Head, Original, OriginalKind, PARTITIONS, Partition, Position,
    Timestamp, chain, operation,
};
use quick_cache::unsync::Cache;
use smallvec::SmallVec;
use uuid::Uuid;

use crate::{
    StoreError,
    database::Database,
    index::{HISTORY_STRIDE, IndexEntries, KeyHash, key_run, operation_key},
};

/// Accounts that are remembered after the tail let them go: 36 MiB, with the traces that the cache keeps of half as many that
/// it let go.
const CACHED_ACCOUNTS_MAX: usize = 340_000;
/// Operations that are remembered as compensated: some 5 MiB. The database knows the others.
const CACHED_COMPENSATIONS_MAX: usize = 100_000;
/// Events of one read when the tail is made from the log.
const PAGE: usize = 5_000;

/// What an account's newest event left it with, and where that event is: without the account's texts, which whoever names the
/// account brings along.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    pub(crate) state: AccountState,
    pub(crate) position: Position,
}

/// A freeze or a deduction, and where the newest event about it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OriginalEntry {
    pub(crate) original: Original,
    /// The newest event about the original; [`Position::ZERO`] when none came after it.
    pub(crate) newest: Position,
}

/// Where events are, by their business key's hash.
type Businesses = HashMap<u64, SmallVec<[(Partition, Position); 1]>>;

/// What some successive events made.
#[derive(Debug, Default)]
pub(crate) struct Span {
    pub(crate) accounts: HashMap<AccountId, Balance>,
    pub(crate) keys: HashMap<KeyHash, SmallVec<[Position; 1]>>,
    /// The same by the business key's hash alone, for whoever asks without an account: made when the first one asks, and kept
    /// in step from then on. Nobody asks most spans, and each of their events would pay for it.
    businesses: OnceLock<Businesses>,
    /// Where the events of an operation are, by its hash: of those whose caller gave one.
    pub(crate) operations: HashMap<u64, SmallVec<[(Partition, Position); 2]>>,
    pub(crate) originals: HashMap<(Partition, Position), OriginalEntry>,
    /// Each [`HISTORY_STRIDE`]th version of an account.
    pub(crate) history: Vec<(AccountId, u64, Position)>,
    /// How many events they are: what the tail's bound counts.
    pub(crate) events: usize,
}

impl Span {
    /// Adds an event, which must follow all that were added before in its partition.
    pub(crate) fn add(&mut self, event: &Event) {
        let account = event.account.id();
        self.accounts.insert(account, balance_after(event));
        let key = KeyHash::new(&event.account, &event.key);
        self.keys.entry(key).or_default().push(event.position);
        if let Some(businesses) = self.businesses.get_mut() {
            businesses.entry(key.business).or_default().push((key.partition, event.position));
        }
        if let Some(id) = operation::given(event) {
            self.operations.entry(operation::hash(id)).or_default().push((event.partition, event.position));
        }
        if let Some(original) = Original::made_by(event) {
            let entry = OriginalEntry { original, newest: Position::ZERO };
            self.originals.insert((event.partition, event.position), entry);
        }
        if let Some((place, entry)) = about(event) {
            self.originals.insert(place, entry);
        }
        if event.after.version.is_multiple_of(HISTORY_STRIDE) {
            self.history.push((account, event.after.version, event.position));
        }
        self.events += 1;
    }

    /// Adds all of a newer span.
    pub(crate) fn absorb(&mut self, newer: Self) {
        if self.events == 0 {
            *self = newer;
            return;
        }
        self.accounts.extend(newer.accounts);
        for (key, positions) in newer.keys {
            if let Some(businesses) = self.businesses.get_mut() {
                let places = positions.iter().map(|position| (key.partition, *position));
                businesses.entry(key.business).or_default().extend(places);
            }
            self.keys.entry(key).or_default().extend(positions);
        }
        for (operation, places) in newer.operations {
            self.operations.entry(operation).or_default().extend(places);
        }
        self.originals.extend(newer.originals);
        self.history.extend(newer.history);
        self.events += newer.events;
    }

    /// Where events under a business key's hash are, in any account.
    pub(crate) fn business_places(&self, business: u64) -> &[(Partition, Position)] {
        let businesses = self.businesses.get_or_init(|| {
            let mut businesses = Businesses::default();
            businesses.reserve(self.keys.len());
            for (key, positions) in &self.keys {
                let places = positions.iter().map(|position| (key.partition, *position));
                businesses.entry(key.business).or_default().extend(places);
            }
            businesses
        });
        businesses.get(&business).map(SmallVec::as_slice).unwrap_or_default()
    }

    /// The rows that this makes in the indexes, each list in the order of its primary key.
    pub(crate) fn index_entries(&self) -> IndexEntries {
        let mut entries = IndexEntries {
            accounts: self.accounts.iter().map(|(id, balance)| (*id, balance.position)).collect(),
            keys: self.keys.iter().flat_map(|(key, all)| all.iter().map(|position| (*key, *position))).collect(),
            related: self
                .originals
                .iter()
                .filter(|(_, entry)| entry.newest > Position::ZERO)
                .map(|(&(partition, original), entry)| (partition, original, entry.newest))
                .collect(),
            history: self.history.clone(),
            states: Vec::new(),
        };
        for (hash, places) in &self.operations {
            entries.keys.extend(places.iter().map(|(partition, at)| (operation_key(*partition, *hash), *at)));
        }
        // An account's id begins with its partition, so ids in order are rows in order.
        entries.accounts.sort_unstable();
        entries.states = entries.accounts.iter().map(|(id, _)| self.accounts[id].state).collect();
        entries.keys.sort_unstable_by_key(|(key, at)| {
            // The database orders by the signed number.
            (key.partition, key_run(*at), key.business.cast_signed(), key.account.cast_signed(), *at)
        });
        entries.related.sort_unstable();
        entries.history.sort_unstable();
        entries
    }
}

/// The account as an event left it.
pub(crate) fn balance_after(event: &Event) -> Balance {
    Balance {
        account: event.account.clone(),
        state: event.after,
        position: event.position,
        updated_at: event.recorded_at,
    }
}

/// The original that an event is about, as the event left it.
pub(crate) fn about(event: &Event) -> Option<((Partition, Position), OriginalEntry)> {
    let transaction_id = event.related_id?;
    let kind = match event.event_type {
        EventType::Refunded => OriginalKind::Deduction,
        _ => OriginalKind::Freeze,
    };
    let (partition, _, position) = transaction_id.locate();
    let original =
        Original { transaction_id, account_id: event.account.id(), kind, remaining: event.remaining.unwrap_or(0) };
    Some(((partition, position), OriginalEntry { original, newest: event.position }))
}

/// Events of each partition that are kept: 32,768 in all, some 20 MiB.
const RECENT_MAX: usize = 512;

/// The newest events that this process committed: whoever repeats a command does so soon.
#[derive(Debug)]
pub(crate) struct Recent([VecDeque<Arc<Event>>; PARTITIONS]);

impl Recent {
    fn new() -> Self {
        Self(std::array::from_fn(|_| VecDeque::new()))
    }

    pub(crate) fn add(&mut self, event: &Arc<Event>) {
        let events = &mut self.0[event.partition.index()];
        if events.back().is_some_and(|newest| newest.position.next() != event.position) {
            // Another process wrote in between.
            events.clear();
        }
        if events.len() == RECENT_MAX {
            events.pop_front();
        }
        events.push_back(event.clone());
    }

    pub(crate) fn at(&self, partition: Partition, position: Position) -> Option<&Arc<Event>> {
        let events = &self.0[partition.index()];
        let offset = position.0.checked_sub(events.front()?.position.0)?;
        events.get(usize::try_from(offset).ok()?)
    }
}

/// All that this process knows of the committed log beyond what the indexes hold.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The newest committed event of each partition that this process knows of.
    pub(crate) heads: [Head; PARTITIONS],
    /// When it was recorded.
    pub(crate) recorded_at: [Timestamp; PARTITIONS],
    /// Being written to the indexes.
    pub(crate) sealed: Option<Arc<Span>>,
    /// The heads when it was sealed: the indexes' next checkpoint.
    pub(crate) sealed_heads: [Head; PARTITIONS],
    /// The indexes' checkpoint, unless another process has moved it meanwhile.
    pub(crate) indexed: [Head; PARTITIONS],
    /// After that.
    pub(crate) active: Span,
    /// Accounts as the newest event left them, for those that neither span holds.
    pub(crate) accounts: Cache<AccountId, Left>,
    pub(crate) recent: Recent,
    /// Operations that are known to be compensated; that others are not is known to the database alone.
    pub(crate) compensated: Cache<Uuid, ()>,
}

impl Tail {
    /// Reads the log after the indexes' checkpoint.
    pub(crate) async fn load(database: &Database) -> Result<Self, StoreError> {
        // The checkpoint first: it only grows, so what is read after it covers at least as much.
        let checkpoint = database.index_checkpoints().await?;
        let heads = database.heads().await?;
        let newest: Vec<_> = Partition::all()
            .zip(&heads)
            .flat_map(|(partition, head)| {
                [(partition, head.position), (partition, checkpoint[partition.index()].position)]
            })
            .filter(|(_, position)| *position > Position::ZERO)
            .collect();
        let events: HashMap<_, _> = database
            .events_at(&newest)
            .await?
            .into_iter()
            .map(|event| ((event.partition, event.position), event))
            .collect();
        let mut tail = Self {
            heads: checkpoint,
            recorded_at: [Timestamp::from_micros(0).expect("1970 is a time"); PARTITIONS],
            sealed: None,
            sealed_heads: checkpoint,
            indexed: checkpoint,
            active: Span::default(),
            accounts: Cache::new(CACHED_ACCOUNTS_MAX),
            recent: Recent::new(),
            compensated: Cache::new(CACHED_COMPENSATIONS_MAX),
        };
        for (partition, (head, from)) in Partition::all().zip(heads.iter().zip(&checkpoint)) {
            if from.position > head.position {
                return Err(StoreError::Inconsistent(format!(
                    "partition {partition}: the indexes hold the log up to {}, but it ends at {}: the database was \
                     rewound; restore it as a whole, or run replay-tool verify",
                    from.position, head.position
                )));
            }
            for (what, place) in [("head", head), ("indexes' checkpoint", from)] {
                let stored = events.get(&(partition, place.position));
                if place.position > Position::ZERO && stored.is_none_or(|event| event.hash != place.hash) {
                    return Err(StoreError::Inconsistent(format!(
                        "partition {partition}: the event at position {} is not the one that the {what} names: run \
                         replay-tool verify",
                        place.position
                    )));
                }
            }
            if let Some(event) = events.get(&(partition, from.position)) {
                tail.recorded_at[partition.index()] = event.recorded_at;
            }
            tail.read_on(database, partition, head).await?;
            // After a restore the partition goes on in a newer epoch than its newest event's.
            tail.heads[partition.index()] = *head;
        }
        Ok(tail)
    }

    /// Takes in the events of a partition after the known head up to `to`. The chain is checked on the way: what does
    /// not follow from what this process knows is not believed.
    pub(crate) async fn read_on(
        &mut self,
        database: &Database,
        partition: Partition,
        to: &Head,
    ) -> Result<usize, StoreError> {
        let index = partition.index();
        let broken = |position: Position| {
            StoreError::Inconsistent(format!(
                "partition {partition} position {position}: the event does not follow the one before it: run replay-tool verify"
            ))
        };
        let mut read = 0;
        while self.heads[index].position < to.position {
            let from = self.heads[index];
            let missing = usize::try_from(to.position.0 - from.position.0).unwrap_or(usize::MAX);
            let events = database.events_after(partition, from.position, missing.min(PAGE)).await?;
            if events.is_empty() {
                return Err(broken(from.position.next()));
            }
            for event in events {
                let before = self.heads[index];
                if event.position != before.position.next() || chain::link(&before.hash, &event) != event.hash {
                    return Err(broken(before.position.next()));
                }
                self.active.add(&event);
                self.heads[index] = event.head();
                self.recorded_at[index] = event.recorded_at;
                read += 1;
            }
        }
        if self.heads[index].hash != to.hash {
            return Err(broken(to.position));
        }
        Ok(read)
    }

    /// How many keys there are, in the index and here.
    pub(crate) fn keys(&self) -> u64 {
        self.heads.iter().map(|head| head.position.0).sum()
    }

    /// Moves what is active aside, to be written to the indexes.
    pub(crate) fn seal(&mut self) -> Arc<Span> {
        let sealed = Arc::new(std::mem::take(&mut self.active));
        self.sealed = Some(sealed.clone());
        self.sealed_heads = self.heads;
        sealed
    }

    /// Lets go of what the indexes hold now, and gives it away; the accounts stay known within the cache's bound.
    pub(crate) fn forget_sealed(&mut self) -> Option<Arc<Span>> {
        let sealed = self.sealed.take()?;
        self.indexed = self.sealed_heads;
        for (id, balance) in &sealed.accounts {
            self.accounts.insert(*id, Left { state: balance.state, position: balance.position });
        }
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{Account, AccountState, Amount, BusinessKey, Epoch, Hash, SCHEMA_VERSION, TransactionId};

    use super::*;

    fn credit(user: &str, position: u64, id: &str) -> Event {
        let account = Account::new(user, "points").expect("valid");
        let key = BusinessKey::new("campaign", id).expect("valid");
        let transaction_id = TransactionId::derive(&account, Epoch::FIRST, Position(position), &key);
        Event {
            partition: account.partition(),
            epoch: Epoch::FIRST,
            position: Position(position),
            previous_position: Position::ZERO,
            transaction_id,
            event_type: EventType::Credited,
            schema_version: SCHEMA_VERSION,
            account,
            amount: Amount::new(1).ok(),
            released: 0,
            related_id: None,
            remaining: None,
            after: AccountState { balance: 1, version: 1, ..AccountState::default() },
            key,
            operation_id: transaction_id.uuid(),
            request_id: "request".into(),
            actor: "test".into(),
            description: None,
            metadata: None,
            expires_at: None,
            recorded_at: Timestamp::from_micros(1).expect("in range"),
            batch: None,
            hash: Hash::ZERO,
        }
    }

    /// Where a key's events are, sorted.
    fn places(span: &Span, id: &str) -> Vec<(Partition, Position)> {
        let key = BusinessKey::new("campaign", id).expect("valid");
        let mut places = span.business_places(key.hash()).to_vec();
        places.sort_unstable();
        places
    }

    #[test]
    fn a_business_key_is_found_in_every_account_whenever_it_was_asked_for_first() {
        let events: Vec<_> = (1..=9)
            .map(|number| credit(&format!("user-{number}"), number, if number % 3 == 0 { "other" } else { "one" }))
            .collect();
        let wanted = |up_to: usize, id: &str| {
            let of_key = events[..up_to].iter().filter(|event| **event.key.id() == *id);
            let mut places: Vec<_> = of_key.map(|event| (event.partition, event.position)).collect();
            places.sort_unstable();
            places
        };
        for (first_asked, newer_asked) in [(0, true), (2, true), (2, false), (9, false)] {
            let mut span = Span::default();
            let mut newer = Span::default();
            for (number, event) in (1_usize..).zip(&events[..6]) {
                span.add(event);
                if number == first_asked {
                    assert_eq!(places(&span, "one"), wanted(number, "one"));
                }
            }
            for event in &events[6..] {
                newer.add(event);
            }
            if newer_asked {
                assert_eq!(places(&newer, "other"), [(events[8].partition, events[8].position)]);
            }
            span.absorb(newer);
            for id in ["one", "other"] {
                assert_eq!(places(&span, id), wanted(9, id), "asked first after {first_asked}");
            }
            // One that was empty takes the other over as it is.
            let mut empty = Span::default();
            assert!(places(&empty, "one").is_empty());
            empty.absorb(span);
            assert_eq!(places(&empty, "one"), wanted(9, "one"));
        }
    }
}
