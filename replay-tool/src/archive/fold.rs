//! The state that a partition's events make.

use std::collections::BTreeMap;

use foldhash::HashMap;
use ledger_core::{
    AccountId, Balance, Event, Freeze, Hash, Head, Position, chain, digest::PartitionDigest, rejection::Contradiction,
};

/// A partition's accounts and freezes, folded from its events one by one.
#[derive(Debug)]
pub(crate) struct PartitionState {
    /// The newest event that was folded in.
    pub(crate) head: Head,
    pub(crate) balances: HashMap<AccountId, Balance>,
    pub(crate) freezes: BTreeMap<Position, Freeze>,
}

impl Default for PartitionState {
    fn default() -> Self {
        Self { head: Head::EMPTY, balances: HashMap::default(), freezes: BTreeMap::new() }
    }
}

impl PartitionState {
    /// Folds in the next event, after it was found to follow the one before it.
    ///
    /// # Errors
    ///
    /// What contradicts what came before; the state is of no use then.
    pub(crate) fn add(&mut self, event: &Event) -> Result<(), Contradiction> {
        let position = self.head.position.next();
        let contradiction = |field, expected: String, found: String| Contradiction { position, field, expected, found };
        if event.position != position {
            return Err(contradiction("position", position.to_string(), event.position.to_string()));
        }
        let link = chain::link(&self.head.hash, event);
        if link != event.hash {
            return Err(contradiction("hash", link.to_string(), event.hash.to_string()));
        }
        let account = event.account.id();
        let balance = Balance::fold(self.balances.get(&account), event)?;
        self.balances.insert(account, balance);
        if let Some(freeze) = Freeze::opened_by(event) {
            self.freezes.insert(event.position, freeze);
        } else if let Some(id) = Freeze::touched_by(event) {
            let (.., opened_at) = id.locate();
            let freeze = self.freezes.get_mut(&opened_at).filter(|freeze| freeze.freeze_id == id);
            let freeze = freeze.ok_or_else(|| {
                contradiction("related_id", format!("a freeze at position {opened_at}"), "none".to_owned())
            })?;
            freeze.fold(event)?;
        }
        self.head = event.head();
        Ok(())
    }

    /// The digests of the balances and of the freezes.
    pub(crate) fn digest(&self) -> (Hash, Hash) {
        let mut balances: Vec<_> = self.balances.values().collect();
        balances.sort_unstable_by_key(|balance| balance.account.id());
        let mut digest = PartitionDigest::default();
        balances.into_iter().for_each(|balance| digest.add_balance(balance));
        self.freezes.values().for_each(|freeze| digest.add_freeze(freeze));
        digest.finish()
    }
}
