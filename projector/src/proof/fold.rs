//! What the log makes of some accounts of a partition, in bounded memory.

use std::collections::BTreeSet;

use foldhash::{HashMap, quality::RandomState};
use ledger_core::{AccountId, Balance, Event, Freeze, Head, Partition, Position, rejection::Contradiction};
use std::hash::BuildHasher;

use crate::{
    fold::{Source, follows},
    rebuild::replay::fold_freeze,
};

/// About what each takes up, with its texts and its place in a map.
const BALANCE_BYTES: usize = 256;
const FREEZE_BYTES: usize = 384;
const SETTLED_BYTES: usize = 64;

/// Which accounts of a partition are proved.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    /// A slice in the order of the ids: from the first, included, to the second, excluded.
    Slice(Option<AccountId>, Option<AccountId>),
    /// Some, in full.
    These(BTreeSet<AccountId>),
}

impl Whose {
    /// All from an account on.
    pub(super) const fn from(from: Option<AccountId>) -> Self {
        Self::Slice(from, None)
    }

    pub(super) fn holds(&self, id: AccountId) -> bool {
        match self {
            Self::Slice(from, to) => from.is_none_or(|from| from <= id) && to.is_none_or(|to| id < to),
            Self::These(ids) => ids.contains(&id),
        }
    }

    /// Where the next slice begins, if there is one.
    pub(super) const fn end(&self) -> Option<AccountId> {
        match self {
            Self::Slice(_, to) => *to,
            Self::These(_) => None,
        }
    }
}

/// A replay of a partition that keeps some of its accounts.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) partition: Partition,
    pub(super) whose: Whose,
    pub(super) balances: HashMap<AccountId, Balance>,
    /// Freezes that are open; when accounts are looked at in full, all of them.
    pub(super) open: HashMap<Position, Freeze>,
    /// Freezes that nothing touches any more, by whose they are and what they came to.
    pub(super) settled: HashMap<Position, (AccountId, u64)>,
    /// Up to where the balances and the freezes are folded.
    pub(super) at: [Head; 2],
    pub(super) events: u64,
    pub(super) fingerprints: Fingerprints,
    memory_bytes: usize,
}

impl Fold {
    pub(super) fn new(partition: Partition, whose: Whose, memory_bytes: usize) -> Self {
        Self {
            partition,
            whose,
            balances: HashMap::default(),
            open: HashMap::default(),
            settled: HashMap::default(),
            at: [Head::EMPTY; 2],
            events: 0,
            fingerprints: Fingerprints::default(),
            memory_bytes,
        }
    }

    /// Folds an event in, where it is not yet and not past what is asked for.
    pub(super) fn take(&mut self, event: &Event, to: [Position; 2]) -> Result<(), Contradiction> {
        let [balances, freezes] =
            [0, 1].map(|model| event.position > self.at[model].position && event.position <= to[model]);
        let together = self.at[0] == self.at[1];
        if balances {
            follows(&self.at[0], Source::Log, event)?;
        }
        if freezes && !(balances && together) {
            follows(&self.at[1], Source::Log, event)?;
        }
        let is_held = self.whose.holds(event.account.id());
        if balances {
            if is_held {
                self.fold_balance(event)?;
            }
            self.at[0] = event.head();
        }
        if freezes {
            if is_held {
                self.fold_freeze(event)?;
            }
            self.at[1] = event.head();
        }
        self.events += 1;
        Ok(())
    }

    fn fold_balance(&mut self, event: &Event) -> Result<(), Contradiction> {
        if let Some(balance) = self.balances.get_mut(&event.account.id()) {
            return balance.advance(event);
        }
        self.balances.insert(event.account.id(), Balance::fold(None, event)?);
        Ok(())
    }

    fn fold_freeze(&mut self, event: &Event) -> Result<(), Contradiction> {
        fold_freeze(&mut self.open, event)?;
        let Some(id) = Freeze::touched_by(event) else { return Ok(()) };
        if let (Whose::Slice(..), (_, _, position)) = (&self.whose, id.locate())
            && self.open.get(&position).is_some_and(|freeze| freeze.remaining == 0)
            && let Some(freeze) = self.open.remove(&position)
        {
            self.settled.insert(position, (freeze.account.id(), self.fingerprints.of_freeze(&freeze)));
        }
        Ok(())
    }

    /// Lets go of the upper half of the accounts, until the rest fits: those are for another pass. A single account is
    /// held whatever it takes.
    pub(super) fn narrow(&mut self) {
        while self.bytes() > self.memory_bytes && self.balances.len() > 1 {
            let Whose::Slice(_, to) = &mut self.whose else { return };
            let mut ids: Vec<_> = self.balances.keys().copied().collect();
            let middle = ids.len() / 2;
            let end = *ids.select_nth_unstable(middle).1;
            *to = Some(end);
            self.balances.retain(|id, _| *id < end);
            self.open.retain(|_, freeze| freeze.account.id() < end);
            self.settled.retain(|_, (id, _)| *id < end);
            self.balances.shrink_to_fit();
            self.settled.shrink_to_fit();
        }
    }

    fn bytes(&self) -> usize {
        self.balances.len() * BALANCE_BYTES + self.open.len() * FREEZE_BYTES + self.settled.len() * SETTLED_BYTES
    }

    pub(super) fn accounts(&self) -> u64 {
        self.balances.len() as u64
    }

    pub(super) fn freezes(&self) -> u64 {
        (self.open.len() + self.settled.len()) as u64
    }

    /// Whose the freeze at a position is, if there is one.
    pub(super) fn owner_of_freeze(&self, position: Position) -> Option<AccountId> {
        let open = self.open.get(&position).map(|freeze| freeze.account.id());
        open.or_else(|| self.settled.get(&position).map(|(owner, _)| *owner))
    }

    /// The fingerprint of the freeze at a position, if there is one.
    pub(super) fn fingerprint_of_freeze(&self, position: Position) -> Option<u64> {
        let settled = self.settled.get(&position).map(|(_, fingerprint)| *fingerprint);
        settled.or_else(|| self.open.get(&position).map(|freeze| self.fingerprints.of_freeze(freeze)))
    }
}

/// Rows as numbers: 64 bits under a secret of this process, so that nobody can make two that look alike.
#[derive(Debug, Clone, Default)]
pub(super) struct Fingerprints(RandomState);

impl Fingerprints {
    pub(super) fn of_balance(&self, balance: &Balance) -> u64 {
        let Balance { account, state, position, updated_at } = balance;
        self.0.hash_one((
            (account.id(), account.user_id(), account.credit_type()),
            (state.balance, state.frozen, state.locked, state.version),
            (position, updated_at),
        ))
    }

    pub(super) fn of_freeze(&self, freeze: &Freeze) -> u64 {
        let Freeze { freeze_id, account, amount, remaining, captured, released, expires_at, key, created_at, position } =
            freeze;
        self.0.hash_one((
            (freeze_id, account.id(), account.user_id(), account.credit_type()),
            (amount, remaining, captured, released),
            (expires_at, key.code(), key.id(), created_at, position),
        ))
    }
}
