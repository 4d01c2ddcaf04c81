//! What a partition is compared with, each at its own checkpoint, in few bytes: of rows that agree nothing needs to be
//! named, so only what they come to is kept. Rows that do not agree are read again by whoever names them.

use blake3::Hasher;
use ledger_core::{AccountId, AccountState, Freeze, Hash, Partition, Position, digest::PartitionDigest};
use ledger_store::index_rows::KeyRow;

use super::held::Held;
use crate::{
    finding::{Findings, Kind},
    verify::{
        indexes::Sum,
        partition::{self, Around},
        places::{self, INDEXES, Places, Witness},
        stored::Stand,
    },
};

/// What waits for the replay to come to a checkpoint.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) places: Places,
    /// Up to where batches are added up.
    pub(super) head: Position,
    pub(super) balances: Option<(Position, Hash)>,
    pub(super) freezes: Option<(Position, (Hash, Hash))>,
    pub(super) indexes: Option<(Position, IndexSums)>,
    /// Accounts whose states are not compared, by 64 bits of their ids, ascending.
    pub(super) unsealed: Vec<u64>,
}

/// What the rows of the indexes but for the keys come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IndexSums {
    pub(super) accounts: Sum,
    pub(super) states: Sum,
    pub(super) related: Sum,
    pub(super) history: Sum,
}

impl Waiting {
    /// What is compared with a partition. What is wrong with it already is a finding; none when a row agrees with no log.
    pub(super) fn of(
        around: &Around,
        partition: Partition,
        held: Option<Box<Held>>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let index = partition.index();
        let kinds = (Kind::HeadMissing, Kind::HeadMismatch);
        let head = places::check_stand(partition, &around.heads[index], kinds, "partition_heads", findings)?;
        let mut places = Places::new(partition, Some(head.epoch));
        places.add(head, Witness::Head);
        let mut waiting =
            Self { places, head: head.position, balances: None, freezes: None, indexes: None, unsealed: Vec::new() };
        let Some(held) = held else { return Some(waiting) };
        partition::add_witnesses(partition, around, &mut waiting.places, findings);
        if held.is_damaged {
            return None;
        }
        let mut checkpoint = |stand: &Stand, name: &'static str| {
            let kinds = (Kind::CheckpointMissing, Kind::CheckpointMismatch);
            let at = places::check_stand(partition, stand, kinds, name, findings)?;
            waiting.places.add(at, Witness::Checkpoint(name));
            Some(at.position)
        };
        waiting.balances = checkpoint(&held.balances_at, "balances").map(|at| (at, held.balances.finish().0));
        waiting.freezes = checkpoint(&held.freezes_at, "freezes").map(|at| (at, held.freezes.finish()));
        if checkpoint(&around.indexes[index], INDEXES).is_some() {
            // It only moves forward: what is in the rows is at least what it promised before.
            let at = held.indexes_at.filter(|at| held.newest_indexed <= *at)?;
            waiting.indexes = Some((at, held.indexes));
            waiting.unsealed = held.unsealed;
            waiting.unsealed.sort_unstable();
            waiting.unsealed.shrink_to_fit();
        }
        Some(waiting)
    }

    /// The furthest position at which something is compared with the replay.
    pub(super) fn furthest(&self) -> Position {
        let balances = self.balances.as_ref().map(|(at, _)| *at);
        let freezes = self.freezes.as_ref().map(|(at, _)| *at);
        let indexes = self.indexes.as_ref().map(|(at, _)| *at);
        balances.max(freezes).max(indexes).unwrap_or_default()
    }
}

impl IndexSums {
    pub(super) fn add_account(&mut self, id: AccountId, newest: Position) {
        self.accounts.add(&row(id, 0, newest));
    }

    /// Adds what an account's row says that it holds.
    pub(super) fn add_state(&mut self, id: AccountId, state: &AccountState) {
        let AccountState { balance, frozen, locked, version } = *state;
        let (high, low) = id.uuid().as_u64_pair();
        // Each number with a place of its own, so that no two of them make up for each other.
        for (place, number) in [balance, frozen, version << 1 | u64::from(locked)].into_iter().enumerate() {
            let business = high ^ (place as u64) << 40;
            self.states.add(&KeyRow { business, account: low, position: number.cast_signed() });
        }
    }

    pub(super) fn add_related(&mut self, original: Position, newest: Position) {
        self.related.add(&KeyRow { business: original.0, account: 0, position: newest.0.cast_signed() });
    }

    pub(super) fn add_history(&mut self, id: AccountId, version: u64, at: Position) {
        self.history.add(&row(id, version, at));
    }
}

fn row(id: AccountId, version: u64, position: Position) -> KeyRow {
    let (high, low) = id.uuid().as_u64_pair();
    KeyRow { business: high ^ version.rotate_left(40), account: low, position: position.0.cast_signed() }
}

/// The digest of freezes in the order of their positions, and one of whose they are in words, which that leaves out.
#[derive(Debug, Default)]
pub(super) struct FreezesDigest {
    digest: PartitionDigest,
    names: Hasher,
}

impl FreezesDigest {
    pub(super) fn add(&mut self, freeze: &Freeze) {
        self.digest.add_freeze(freeze);
        for name in [freeze.account.user_id(), freeze.account.credit_type()] {
            self.names.update(&(name.len() as u64).to_be_bytes());
            self.names.update(name.as_bytes());
        }
    }

    pub(super) fn finish(&self) -> (Hash, Hash) {
        (self.digest.finish().1, Hash(*self.names.finalize().as_bytes()))
    }
}
