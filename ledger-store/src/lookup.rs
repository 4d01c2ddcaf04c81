//! What a decision has to know, from the newest layer down: drafts, the tail, the cache, and what was fetched.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use ledger_core::{
    Account, AccountId, AccountState, Balance, BusinessKey, Command, Event, Original, Partition, Position,
};
use uuid::Uuid;

use crate::{
    DamagedRow, StoreError,
    batch::{Ask, Draft, Partitions, Request},
    database::Database,
    filter::KeyFilter,
    index::{IndexedAccount, KeyHash},
    tail::{Left, OriginalEntry, Span, Tail, about},
    writer::Closely,
};

/// What was read from the indexes and the log for one round of decisions.
///
/// The answers hold as long as the tail reaches back to the checkpoint that the indexes had: the writer lets go of a
/// part of the tail only between rounds.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    /// By a sealed row or by the newest event. `None`: the account was never credited, as far as the indexes say.
    accounts: HashMap<AccountId, Option<Left>>,
    /// Whose originals were read.
    owners: HashMap<AccountId, Account>,
    keys: HashMap<KeyHash, Vec<Position>>,
    /// `None`: there is no freeze or deduction at that place, or there was none when the round began.
    originals: HashMap<(Partition, Position), Option<OriginalEntry>>,
    events: HashMap<(Partition, Position), Arc<Event>>,
    /// The operations that were found to be compensated, where that was asked for.
    pub(crate) compensated: HashSet<Uuid>,
    /// Where an index or an event cannot be believed: what was not found there is not known to be absent.
    broken: Partitions,
}

/// An account as its newest event left it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub(crate) state: AccountState,
    /// Where that event is.
    pub(crate) position: Position,
    /// Whose it is, where that is in memory.
    pub(crate) account: Option<&'a Account>,
}

/// Why a round of decisions cannot be made yet.
#[derive(Debug)]
pub(crate) enum LookupError {
    /// The indexes know more than this process: another one wrote. Catch up first.
    Behind,
    Store(StoreError),
}

impl From<StoreError> for LookupError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The layers that a decision looks through.
#[derive(Clone, Copy)]
pub(crate) struct Layers<'a> {
    /// What is not committed yet, newest first.
    pub(crate) drafts: [Option<&'a Draft>; 3],
    pub(crate) tail: &'a Tail,
}

impl<'a> Layers<'a> {
    fn spans(self) -> impl Iterator<Item = &'a Span> {
        let drafts = self.drafts.into_iter().flatten().map(|draft| &draft.span);
        drafts.chain([&self.tail.active]).chain(self.tail.sealed.as_deref())
    }

    /// The account, if the newest event is in these layers.
    fn account(self, id: AccountId) -> Option<&'a Balance> {
        self.spans().find_map(|span| span.accounts.get(&id))
    }

    /// The account, if it is remembered from before them.
    fn remembered(self, id: AccountId) -> Option<Left> {
        self.tail.accounts.peek(&id).copied()
    }

    fn knows(self, id: AccountId) -> bool {
        self.account(id).is_some() || self.remembered(id).is_some()
    }

    fn original(self, place: (Partition, Position)) -> Option<&'a OriginalEntry> {
        self.spans().find_map(|span| span.originals.get(&place))
    }

    /// Every entry of an account's history in these layers, ascending.
    pub(crate) fn anchors(self, id: AccountId) -> Vec<(u64, Position)> {
        let mut anchors: Vec<_> = self
            .spans()
            .flat_map(|span| &span.history)
            .filter(|(account, ..)| *account == id)
            .map(|&(_, version, position)| (version, position))
            .collect();
        anchors.sort_unstable();
        anchors
    }

    /// Where events under a key's hash are.
    pub(crate) fn key_places(self, hash: KeyHash) -> impl Iterator<Item = Position> {
        self.spans().filter_map(move |span| span.keys.get(&hash)).flatten().copied()
    }

    /// Where the events under an operation's hash are.
    pub(crate) fn operation_places(self, hash: u64) -> impl Iterator<Item = (Partition, Position)> {
        self.spans().filter_map(move |span| span.operations.get(&hash)).flatten().copied()
    }

    /// Where events under a business key's hash are, in any account.
    pub(crate) fn business_places(self, business: u64) -> impl Iterator<Item = (Partition, Position)> {
        self.spans().flat_map(move |span| span.business_places(business)).copied()
    }
}

/// The layers and what was fetched beneath them: all that a round of decisions knows.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) layers: Layers<'a>,
    pub(crate) fetched: &'a Fetched,
}

impl<'a> Known<'a> {
    /// The account as its newest event left it.
    pub(crate) fn account(self, id: AccountId) -> Result<Option<Standing<'a>>, StoreError> {
        let found = match self.layers.account(id) {
            Some(Balance { account, state, position, .. }) => {
                Some(Standing { state: *state, position: *position, account: Some(account) })
            }
            None => {
                let left = self.layers.remembered(id).or_else(|| self.fetched.accounts.get(&id).copied().flatten());
                let account = self.fetched.owners.get(&id);
                left.map(|Left { state, position }| Standing { state, position, account })
            }
        };
        self.absent_only_if_sound(id.partition(), found)
    }

    /// The freeze or deduction that a command names, as the newest event about it left it.
    pub(crate) fn original(self, command: &Command) -> Result<Option<&'a Original>, StoreError> {
        let Some(named) = command.action.original() else { return Ok(None) };
        let (partition, _, position) = named.locate();
        let place = (partition, position);
        let entry = match self.fetched.originals.get(&place) {
            // Also if the round itself has put one there since.
            Some(None) => None,
            fetched => self.layers.original(place).or_else(|| fetched?.as_ref()),
        };
        // The place may hold what another ledger, or another epoch, never named so.
        let original = entry.map(|entry| &entry.original).filter(|original| original.transaction_id == named);
        self.absent_only_if_sound(partition, original)
    }

    /// Whether the operation is known to be compensated. Where it is not known, the append finds out.
    pub(crate) fn is_compensated(self, operation: Uuid) -> bool {
        self.layers.drafts.into_iter().flatten().any(|draft| draft.compensates(operation))
            || self.layers.tail.compensated.peek(&operation).is_some()
            || self.fetched.compensated.contains(&operation)
    }

    /// The event that a key is bound to in an account.
    pub(crate) fn bound(self, account: &Account, key: &BusinessKey) -> Result<Option<&'a Arc<Event>>, StoreError> {
        let hash = KeyHash::new(account, key);
        let fetched = self.fetched.keys.get(&hash).into_iter().flatten().copied();
        for position in self.layers.key_places(hash).chain(fetched) {
            let place = (hash.partition, position);
            let drafts = self.layers.drafts.into_iter().flatten();
            let event = drafts.filter_map(|draft| draft.event_at(hash.partition, position)).next();
            let event = event.or_else(|| self.layers.tail.recent.at(hash.partition, position));
            let event = event.or_else(|| self.fetched.events.get(&place)).ok_or_else(|| missing(place))?;
            if event.account == *account && event.key == *key {
                return Ok(Some(event));
            }
        }
        self.absent_only_if_sound(hash.partition, None)
    }

    /// Fails closed: where something is broken, what was not found may still be there.
    fn absent_only_if_sound<T>(self, partition: Partition, found: Option<T>) -> Result<Option<T>, StoreError> {
        if found.is_none() && self.fetched.broken.contains(partition) {
            return Err(StoreError::Inconsistent(format!(
                "partition {partition}: its indexes or events are damaged: run replay-tool verify"
            )));
        }
        Ok(found)
    }

    /// Where the events under a key's hash are: in these layers and in the indexes.
    pub(crate) fn key_places(self, hash: KeyHash) -> Result<Vec<(Partition, Position)>, StoreError> {
        let fetched = self.fetched.keys.get(&hash).into_iter().flatten().copied();
        let places = self.layers.key_places(hash).chain(fetched).map(|position| (hash.partition, position));
        let places = Some(places.collect::<Vec<_>>()).filter(|places| !places.is_empty());
        self.absent_only_if_sound(hash.partition, places).map(Option::unwrap_or_default)
    }
}

/// Reads what the requests need and the layers do not know, in as few statements as it takes.
pub(crate) async fn fetch(
    database: &Database,
    layers: Layers<'_>,
    filter: &KeyFilter,
    requests: &[Request],
    closely: Closely,
) -> Result<Fetched, LookupError> {
    let mut fetched = Fetched::default();
    if closely == Closely::Yes {
        let operations: HashSet<Uuid> = requests.iter().flat_map(Request::operations).collect();
        let operations: Vec<_> = operations.into_iter().collect();
        let compensations = database.compensations(&operations).await?;
        fetched.compensated.extend(compensations.into_iter().map(|compensation| compensation.operation_id));
    }
    originals(database, layers, requests, &mut fetched).await?;
    accounts_and_keys(database, layers, filter, requests, &mut fetched).await?;
    Ok(fetched)
}

/// The freezes and deductions that are named and not known, which also tell whose they are.
async fn originals(
    database: &Database,
    layers: Layers<'_>,
    requests: &[Request],
    fetched: &mut Fetched,
) -> Result<(), LookupError> {
    let mut cold: HashSet<(Partition, Position)> = HashSet::default();
    for command in requests.iter().flat_map(Request::commands) {
        let Some(original) = command.action.original() else { continue };
        let (partition, _, position) = original.locate();
        let place = (partition, position);
        if position == Position::ZERO || layers.original(place).is_some() {
            continue;
        }
        if position <= layers.tail.heads[partition.index()].position {
            cold.insert(place);
        } else {
            // Nobody was told the id of what is not decided yet. A guess must not come true while the round goes on: whose
            // account it is about, and so whether its command's key is bound there, is looked up now.
            fetched.originals.insert(place, None);
        }
    }
    if cold.is_empty() {
        return Ok(());
    }
    let cold: Vec<_> = cold.into_iter().collect();
    // At the same time, because there is nothing about most of them yet.
    let (related, events) =
        tokio::try_join!(database.related_positions(&cold), read(database, &cold, &mut fetched.broken))?;
    refuse_ahead(layers, &related)?;
    for place in &cold {
        let Some(event) = events.get(place) else { continue };
        if event.account.is_consistent() {
            fetched.owners.insert(event.account.id(), event.account.clone());
        }
        let entry = Original::made_by(event).map(|original| OriginalEntry { original, newest: Position::ZERO });
        fetched.originals.insert(*place, entry);
    }
    let events = read(database, &related, &mut fetched.broken).await?;
    for place in &related {
        let Some(event) = events.get(place) else { continue };
        let about =
            about(event).and_then(|(original, entry)| Some((fetched.originals.get_mut(&original)?.as_mut()?, entry)));
        match about {
            Some((known, entry)) if known.original.transaction_id == entry.original.transaction_id => *known = entry,
            _ => disagrees("related_positions", *place, &mut fetched.broken),
        }
    }
    // A rest that cannot be told is no rest: what is known of an original in a broken partition is not believed.
    let broken = fetched.broken;
    fetched.originals.retain(|(partition, _), _| !broken.contains(*partition));
    Ok(())
}

async fn accounts_and_keys(
    database: &Database,
    layers: Layers<'_>,
    filter: &KeyFilter,
    requests: &[Request],
    fetched: &mut Fetched,
) -> Result<(), LookupError> {
    let mut accounts: HashSet<AccountId> = HashSet::default();
    let mut keys: HashSet<KeyHash> = HashSet::default();
    let mut places: Vec<(Partition, Position)> = Vec::new();
    for request in requests {
        match &request.ask {
            Ask::Newest(account) if !layers.knows(*account) => {
                accounts.insert(*account);
            }
            Ask::Key(hash) => {
                keys.insert(*hash);
            }
            _ => {}
        }
        for command in request.commands() {
            let account = match command.action.account() {
                Some(account) => account.id(),
                None => match (Known { layers, fetched }).original(command) {
                    Ok(Some(original)) => original.account_id,
                    _ => continue,
                },
            };
            let hash =
                KeyHash { partition: account.partition(), business: command.key.hash(), account: account.short() };
            // What a draft holds is at hand; what the tail holds has to be read, to be compared and repeated.
            let committed = [Some(&layers.tail.active), layers.tail.sealed.as_deref()];
            let in_tail = committed.into_iter().flatten().filter_map(|span| span.keys.get(&hash)).flatten();
            let to_read = in_tail.filter(|position| layers.tail.recent.at(hash.partition, **position).is_none());
            places.extend(to_read.map(|position| (hash.partition, *position)));
            if !layers.knows(account) {
                accounts.insert(account);
            }
            if filter.may_hold(&hash) {
                keys.insert(hash);
            }
        }
    }
    let accounts: Vec<_> = accounts.into_iter().collect();
    let keys: Vec<_> = keys.into_iter().collect();

    let (newest, key_places) = tokio::try_join!(
        async { if accounts.is_empty() { Ok(Vec::new()) } else { database.indexed_accounts(&accounts).await } },
        async { if keys.is_empty() { Ok(Vec::new()) } else { database.key_positions(&keys).await } },
    )?;
    let place_of = |account: &IndexedAccount| (account.id.partition(), account.position);
    let account_places: Vec<_> = newest.iter().map(place_of).collect();
    refuse_ahead(layers, &account_places)?;
    refuse_ahead(layers, &key_places)?;
    places.extend(newest.iter().filter(|account| account.state.is_none()).map(place_of));
    places.extend(&key_places);
    let mut events = read(database, &places, &mut fetched.broken).await?;

    fetched.accounts.extend(accounts.iter().map(|id| (*id, None)));
    for (place, IndexedAccount { id, position, state }) in account_places.into_iter().zip(newest) {
        let state = match (state, events.get(&place)) {
            (Some(state), _) => state,
            (None, Some(event)) if event.account.id() == id && event.account.is_consistent() => event.after,
            (None, Some(_)) => {
                disagrees("account_positions", place, &mut fetched.broken);
                continue;
            }
            // Found broken when it was read.
            (None, None) => continue,
        };
        fetched.accounts.insert(id, Some(Left { state, position }));
    }
    for place in &key_places {
        let Some(event) = events.get(place) else { continue };
        let hash = KeyHash::new(&event.account, &event.key);
        if keys.contains(&hash) {
            fetched.keys.entry(hash).or_default().push(place.1);
        } else {
            disagrees("key_positions", *place, &mut fetched.broken);
        }
    }
    fetched.events.extend(events.drain());
    Ok(())
}

/// Reads events that must be there; a partition in which one is not, or is damaged, is broken.
async fn read(
    database: &Database,
    places: &[(Partition, Position)],
    broken: &mut Partitions,
) -> Result<HashMap<(Partition, Position), Arc<Event>>, StoreError> {
    let mut places = places.to_vec();
    places.sort_unstable();
    places.dedup();
    let mut rows: HashMap<_, _> = database
        .rows_at(&places)
        .await?
        .into_iter()
        .map(|row| match &row {
            Ok(event) => ((event.partition, event.position), row),
            Err(damage) => ((damage.partition, damage.position), row),
        })
        .collect();
    let events =
        places.into_iter().filter_map(|place| Some((place, Arc::new(sound(place, rows.remove(&place), broken)?))));
    Ok(events.collect())
}

/// The event at a place where one must be; a partition in which it is not, or is damaged, is broken.
fn sound(
    (partition, position): (Partition, Position),
    row: Option<Result<Event, DamagedRow>>,
    broken: &mut Partitions,
) -> Option<Event> {
    let damage = match row {
        Some(Ok(event)) => return Some(event),
        Some(Err(damage)) => damage.to_string(),
        None => "it is missing".to_owned(),
    };
    tracing::error!(%partition, %position, damage, "an event that must be there cannot be read: run replay-tool verify");
    broken.insert(partition);
    None
}

/// An index that points past the head was written by a process that knows more.
fn refuse_ahead(layers: Layers<'_>, places: &[(Partition, Position)]) -> Result<(), LookupError> {
    if places.iter().any(|(partition, position)| *position > layers.tail.heads[partition.index()].position) {
        return Err(LookupError::Behind);
    }
    Ok(())
}

/// There is no event at a place where one must be.
pub(crate) fn missing((partition, position): (Partition, Position)) -> StoreError {
    StoreError::Inconsistent(format!(
        "partition {partition} position {position}: the event is missing or damaged: run replay-tool verify"
    ))
}

/// The event is not what the index says it is.
fn disagrees(index: &'static str, (partition, position): (Partition, Position), broken: &mut Partitions) {
    tracing::error!(index, %partition, %position, "an index row disagrees with its event: run replay-tool verify");
    broken.insert(partition);
}
