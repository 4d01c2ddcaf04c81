//! A partition's log, folded in memory.

use std::collections::hash_map::Entry;

use foldhash::HashMap;
use ledger_core::{
    AccountId, Balance, Event, Freeze, Hash, Head, Partition, Position, chain::Links, rejection::Contradiction,
};
use ledger_store::DamagedRow;

use super::{BEGINNING, RebuildError};
use crate::{checkpoint::ReadModel, fold};

/// What some read models hold of a partition after an event.
#[derive(Debug)]
pub(super) struct Replay {
    partition: Partition,
    balances: Option<HashMap<AccountId, Balance>>,
    freezes: Option<HashMap<Position, Freeze>>,
    pub(super) at: Head,
    links: Links,
}

/// The rows of a partition in order.
#[derive(Debug, Default)]
pub(super) struct Folded {
    pub(super) balances: Vec<Balance>,
    pub(super) freezes: Vec<Freeze>,
}

impl Replay {
    pub(super) fn new(partition: Partition, models: &[ReadModel]) -> Self {
        Self {
            partition,
            balances: models.contains(&ReadModel::Balances).then(HashMap::default),
            freezes: models.contains(&ReadModel::Freezes).then(HashMap::default),
            at: BEGINNING,
            links: Links::default(),
        }
    }

    /// Folds the next rows in: each follows the one before, and the chain holds.
    pub(super) fn take(&mut self, rows: Vec<Result<Event, DamagedRow>>) -> Result<(), RebuildError> {
        let partition = self.partition;
        let mut links = std::mem::take(&mut self.links);
        // What comes after a damaged row is not come to.
        let sound = rows.iter().map_while(|row| row.as_ref().ok());
        for (event, link) in sound.clone().zip(links.of(&self.at.hash, sound)) {
            self.fold(event, link).map_err(|contradiction| RebuildError::Contradiction { partition, contradiction })?;
        }
        self.links = links;
        match rows.into_iter().find_map(Result::err) {
            Some(damage) => Err(damaged(partition, damage)),
            None => Ok(()),
        }
    }

    fn fold(&mut self, event: &Event, link: &Hash) -> Result<(), Contradiction> {
        fold::follows_by(&self.at, link, event)?;
        self.apply(event)
    }

    /// Folds an event in that was found to follow the one before it.
    pub(super) fn apply(&mut self, event: &Event) -> Result<(), Contradiction> {
        if let Some(balances) = &mut self.balances {
            match balances.entry(event.account.id()) {
                Entry::Occupied(mut known) => known.get_mut().advance(event)?,
                Entry::Vacant(new) => drop(new.insert(Balance::fold(None, event)?)),
            }
        }
        if let Some(freezes) = &mut self.freezes {
            fold_freeze(freezes, event)?;
        }
        self.at = event.head();
        Ok(())
    }

    pub(super) fn finish(self) -> Folded {
        let mut balances: Vec<_> = self.balances.unwrap_or_default().into_values().collect();
        let mut freezes: Vec<_> = self.freezes.unwrap_or_default().into_values().collect();
        balances.sort_unstable_by_key(|balance| balance.account.id());
        freezes.sort_unstable_by_key(|freeze| freeze.position);
        Folded { balances, freezes }
    }
}

/// Folds an event into the freezes of its partition, if it makes or touches one.
pub(crate) fn fold_freeze(freezes: &mut HashMap<Position, Freeze>, event: &Event) -> Result<(), Contradiction> {
    if let Some(freeze) = Freeze::opened_by(event) {
        freezes.insert(event.position, freeze);
    }
    let Some(id) = Freeze::touched_by(event) else { return Ok(()) };
    let (_, _, position) = id.locate();
    match freezes.get_mut(&position).filter(|freeze| freeze.freeze_id == id) {
        Some(freeze) => freeze.fold(event),
        None => Err(Contradiction {
            position: event.position,
            field: "related_id",
            expected: "a freeze of this partition".to_owned(),
            found: id.to_string(),
        }),
    }
}

/// A row that is no event is in the way of every read model.
pub(super) fn damaged(partition: Partition, damage: DamagedRow) -> RebuildError {
    RebuildError::Contradiction { partition, contradiction: contradiction_of(damage) }
}

/// What a row that is no event says to a replay.
pub(crate) fn contradiction_of(damage: DamagedRow) -> Contradiction {
    Contradiction {
        position: damage.position,
        field: damage.column,
        expected: "what the ledger writes there".to_owned(),
        found: damage.reason,
    }
}

/// There is no event after a position, though the head says so.
pub(super) fn gap(partition: Partition, after: Position) -> RebuildError {
    RebuildError::Contradiction { partition, contradiction: gap_after(after) }
}

/// An event that is missing.
pub(crate) fn gap_after(after: Position) -> Contradiction {
    let position = after.next();
    let (field, expected, found) = ("position", position.to_string(), "nothing".to_owned());
    Contradiction { position, field, expected, found }
}
