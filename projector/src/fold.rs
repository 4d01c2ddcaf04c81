//! One round of a projector: what some events make of the rows that are there.

use std::borrow::Borrow;

use foldhash::{HashMap, HashSet};

use ledger_core::{
    AccountId, Balance, Event, Freeze, Hash, Head, Partition, Position, chain, rejection::Contradiction,
};

use crate::checkpoint::{ReadModel, Step};

/// What one round writes, in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) balances: Vec<Balance>,
    /// Whose rows of balances were not there before.
    pub(crate) opened: HashSet<AccountId>,
    pub(crate) freezes: Vec<Freeze>,
    pub(crate) steps: Vec<Step>,
    /// The rows of balances that the events were folded over, where they were not read: what the events themselves say
    /// was there. Whoever writes makes sure of them, and that there is none for those that are opened.
    pub(crate) believed: Option<HashMap<AccountId, Balance>>,
}

/// The rows that the events build on.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) balances: HashMap<AccountId, Balance>,
    pub(crate) freezes: HashMap<(Partition, Position), Freeze>,
}

impl Rows {
    pub(crate) fn of(balances: impl IntoIterator<Item = Balance>, freezes: impl IntoIterator<Item = Freeze>) -> Self {
        Self {
            balances: balances.into_iter().map(|balance| (balance.account.id(), balance)).collect(),
            freezes: freezes
                .into_iter()
                .map(|freeze| ((freeze.account.partition(), freeze.position), freeze))
                .collect(),
        }
    }
}

/// What some events, in the order of the log, say of the rows of balances that they build on, and the accounts of which
/// they do not say it.
///
/// An event's amounts, taken away from the state that it carries, leave the state that they were added to. To compare that
/// with the row is the same as to fold the amounts over the row and to compare the sum with what the event carries; but
/// the row need not be read for it, only compared where it is written.
pub(crate) fn believed_before<'e>(
    events: impl Iterator<Item = &'e Event>,
) -> (HashMap<AccountId, Balance>, Vec<AccountId>) {
    let (mut believed, mut unknown) = (HashMap::default(), Vec::new());
    let mut seen: HashSet<AccountId> = HashSet::default();
    for event in events {
        let id = event.account.id();
        if !seen.insert(id) || event.after.version == 1 {
            continue;
        }
        match Balance::preceding(event) {
            Some(before) => drop(believed.insert(id, before)),
            None => unknown.push(id),
        }
    }
    (believed, unknown)
}

/// The accounts that some events are about.
pub(crate) fn accounts_of<'e>(events: impl Iterator<Item = &'e Event>) -> Vec<AccountId> {
    let accounts: HashSet<_> = events.map(|event| event.account.id()).collect();
    accounts.into_iter().collect()
}

/// The freezes that some events are about.
pub(crate) fn freezes_of<'e>(events: impl Iterator<Item = &'e Event>) -> Vec<(Partition, Position)> {
    let touched: HashSet<_> = events
        .filter_map(Freeze::touched_by)
        .map(|id| {
            let (partition, _, position) = id.locate();
            (partition, position)
        })
        .collect();
    touched.into_iter().collect()
}

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Read from the event table: whether they are what was written is checked by the hash chain.
    Log,
    /// From the writer in this process, which made the chain a moment ago.
    Feed,
}

/// Folds a partition's events, which follow `from`, into one read model's rows. What can be folded before the first
/// contradiction is in `changes`.
pub(crate) fn fold(
    model: ReadModel,
    partition: Partition,
    from: Head,
    source: Source,
    events: &[impl Borrow<Event>],
    rows: &Rows,
    changes: &mut Changes,
) -> Result<(), Contradiction> {
    let mut at = from;
    let mut balances: HashMap<AccountId, Balance> = HashMap::default();
    let mut freezes: HashMap<Position, Freeze> = HashMap::default();
    let mut outcome = Ok(());
    for event in events {
        let event = event.borrow();
        outcome = follows(&at, source, event).and_then(|()| match model {
            ReadModel::Balances => {
                let id = event.account.id();
                let before = balances.get(&id).or_else(|| rows.balances.get(&id));
                Balance::fold(before, event).map(|after| drop(balances.insert(id, after)))
            }
            ReadModel::Freezes => fold_freeze(event, rows, &mut freezes),
        });
        if outcome.is_err() {
            break;
        }
        at = event.head();
    }
    if at != from {
        changes.opened.extend(balances.keys().filter(|id| !rows.balances.contains_key(id)));
        changes.balances.extend(balances.into_values());
        changes.freezes.extend(freezes.into_values());
        changes.steps.push(Step { model, partition, from, to: at });
    }
    outcome
}

/// Whether the event is the one after `at`: no gap, and the chain holds.
pub(crate) fn follows(at: &Head, source: Source, event: &Event) -> Result<(), Contradiction> {
    match source {
        Source::Feed => follows_by(at, &event.hash, event),
        Source::Log => follows_by(at, &chain::link(&at.hash, event), event),
    }
}

/// The same, when its hash must be `hash`.
pub(crate) fn follows_by(at: &Head, hash: &Hash, event: &Event) -> Result<(), Contradiction> {
    let contradiction =
        |field, expected: String, found: String| Contradiction { position: event.position, field, expected, found };
    if event.position != at.position.next() {
        return Err(contradiction("position", at.position.next().to_string(), event.position.to_string()));
    }
    if *hash != event.hash {
        return Err(contradiction("hash", hash.to_string(), event.hash.to_string()));
    }
    Ok(())
}

fn fold_freeze(event: &Event, rows: &Rows, freezes: &mut HashMap<Position, Freeze>) -> Result<(), Contradiction> {
    if let Some(freeze) = Freeze::opened_by(event) {
        freezes.insert(event.position, freeze);
    }
    let Some(id) = Freeze::touched_by(event) else { return Ok(()) };
    let (partition, _, position) = id.locate();
    let known = freezes.get(&position).or_else(|| rows.freezes.get(&(partition, position)));
    let mut freeze = known.filter(|freeze| freeze.freeze_id == id).cloned().ok_or_else(|| Contradiction {
        position: event.position,
        field: "related_id",
        expected: "a freeze in the read model".to_owned(),
        found: id.to_string(),
    })?;
    freeze.fold(event)?;
    freezes.insert(position, freeze);
    Ok(())
}
