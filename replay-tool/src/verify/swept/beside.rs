//! What a partition is compared with, each at its own checkpoint, in few bytes: of rows that agree nothing needs to be
//! named, so only what they come to is kept. Rows that do not agree are read again by whoever names them.

use blake3::Hasher;
use ledger_core::{AccountId, Freeze, Hash, Position, digest::PartitionDigest};
use ledger_store::index_rows::KeyRow;

use crate::verify::{indexes::Sum, partition::Beside, places::Places};

/// What waits for the replay to come to a checkpoint.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) places: Places,
    /// Up to where batches are added up.
    pub(super) head: Position,
    pub(super) balances: Option<(Position, Hash)>,
    pub(super) freezes: Option<(Position, (Hash, Hash))>,
    pub(super) indexes: Option<(Position, IndexSums)>,
}

/// What the rows of the indexes but for the keys come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IndexSums {
    pub(super) accounts: Sum,
    pub(super) related: Sum,
    pub(super) history: Sum,
}

impl Waiting {
    /// None when some row is damaged, or cannot be up to its checkpoint: that is looked at row by row.
    pub(super) fn of(beside: Beside) -> Option<Self> {
        let Beside { places, read_models, indexes, head, .. } = beside;
        let balances = match read_models.balances {
            Some((at, rows)) => {
                let mut digest = PartitionDigest::default();
                for row in rows {
                    digest.add_balance(&row.ok()?);
                }
                Some((at, digest.finish().0))
            }
            None => None,
        };
        let freezes = match read_models.freezes {
            Some((at, rows)) => {
                let rows = rows.into_iter().collect::<Result<Vec<Freeze>, _>>().ok()?;
                Some((at, digest_of_freezes(rows)))
            }
            None => None,
        };
        let indexes = match indexes {
            Some(indexes) => {
                let (checkpoint, rows) = indexes.into_rows();
                let is_due = |position: i64| u64::try_from(position).is_ok_and(|position| position <= checkpoint.0);
                let mut sums = IndexSums::default();
                for (id, position) in rows.accounts {
                    sums.add_account(AccountId::stored(id?)?, Position(u64::try_from(position).ok()?));
                    is_due(position).then_some(())?;
                }
                for (original, position) in rows.related {
                    sums.add_related(Position(u64::try_from(original).ok()?), Position(u64::try_from(position).ok()?));
                    is_due(position).then_some(())?;
                }
                for (id, version, position) in rows.history {
                    let (id, position) = (AccountId::stored(id?)?, Position(u64::try_from(position).ok()?));
                    sums.add_history(id, u64::try_from(version).ok()?, position);
                    is_due(position.0.cast_signed()).then_some(())?;
                }
                Some((checkpoint, sums))
            }
            None => None,
        };
        Some(Self { places, head, balances, freezes, indexes })
    }
}

impl IndexSums {
    pub(super) fn add_account(&mut self, id: AccountId, newest: Position) {
        self.accounts.add(&row(id, 0, newest));
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
pub(super) fn digest_of_freezes(freezes: impl IntoIterator<Item = Freeze>) -> (Hash, Hash) {
    let (mut digest, mut names) = (PartitionDigest::default(), Hasher::new());
    for freeze in freezes {
        digest.add_freeze(&freeze);
        for name in [freeze.account.user_id(), freeze.account.credit_type()] {
            names.update(&(name.len() as u64).to_be_bytes());
            names.update(name.as_bytes());
        }
    }
    (digest.finish().1, Hash(*names.finalize().as_bytes()))
}
