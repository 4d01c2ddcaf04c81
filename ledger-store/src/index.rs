//! What the indexes behind the log hold, and what a flush writes to them.

use ledger_core::{Account, AccountId, AccountState, BusinessKey, Event, Partition, Position, operation};

/// Each 256th version of an account has an entry of its own, so that a walk back along `previous_position` to any
/// version takes at most 255 steps, and the entries cost next to nothing.
pub(crate) const HISTORY_STRIDE: u64 = 256;

/// Where the key index looks for a business key of an account: 64 bits of each. Others may share them, so whoever finds
/// an event there compares the key itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyHash {
    pub(crate) partition: Partition,
    pub(crate) business: u64,
    pub(crate) account: u64,
}

impl KeyHash {
    pub(crate) fn new(account: &Account, key: &BusinessKey) -> Self {
        Self { partition: account.partition(), business: key.hash(), account: account.id().short() }
    }
}

/// What stands for the account where the key index holds an operation: an event that its caller put under one has a second
/// row there, under the operation's hash, so that all events of an operation are found.
const OPERATION: u64 = 0;

/// Where the key index holds an operation's events of a partition, by the operation's hash.
pub(crate) const fn operation_key(partition: Partition, hash: u64) -> KeyHash {
    KeyHash { partition, business: hash, account: OPERATION }
}

/// What the key index holds of an event: its key, and its operation where the caller gave one.
pub(crate) fn keys_of(event: &Event) -> impl Iterator<Item = KeyHash> {
    let operation = operation::given(event).map(|id| operation_key(event.partition, operation::hash(id)));
    std::iter::once(KeyHash::new(&event.account, &event.key)).chain(operation)
}

/// The key index is made of runs: the keys of so many successive positions of a partition, as a power of two. A key's hash
/// is random, so in one large tree each new key would touch a page of its own; a run is small enough that all of its pages
/// are at hand while it is written, and is never written again. A look-up asks each run, which costs a microsecond, and
/// few keys are looked up at all: the filter knows the others to be new.
pub(crate) const KEY_RUN_BITS: u32 = 15;

/// The run that holds the key of the event at a position.
pub(crate) fn key_run(position: Position) -> u32 {
    // PostgreSQL's integers are signed. No partition comes to 2^46 events; if one did, its last run would be larger.
    u32::try_from((position.0 >> KEY_RUN_BITS).min(0x7fff_ffff)).expect("31 bits")
}

/// An account as the index knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexedAccount {
    pub(crate) id: AccountId,
    /// Where its newest indexed event is.
    pub(crate) position: Position,
    /// What that event left it with, when the row is sealed; otherwise the event has to be read.
    pub(crate) state: Option<AccountState>,
}

/// What shows that an account's row is as it was written: 64 bits of BLAKE3 over all of it. It spares reading the event,
/// which lies anywhere in the log. A row whose seal is broken is worth no more than its position.
pub(crate) fn seal(id: AccountId, position: Position, state: &AccountState) -> i64 {
    let mut bytes = [0; 16 + 4 * 8 + 1];
    bytes[..16].copy_from_slice(id.uuid().as_bytes());
    for (index, number) in [position.0, state.balance, state.frozen, state.version].into_iter().enumerate() {
        bytes[16 + index * 8..24 + index * 8].copy_from_slice(&number.to_be_bytes());
    }
    bytes[48] = u8::from(state.locked);
    let hash = blake3::hash(&bytes);
    i64::from_be_bytes(std::array::from_fn(|index| hash.as_bytes()[index]))
}

/// The state in a row, if its seal is whole.
pub(crate) fn unseal(
    id: AccountId,
    position: Position,
    [balance, frozen, version]: [i64; 3],
    locked: bool,
    sealed: i64,
) -> Option<AccountState> {
    let [balance, frozen, version] = [balance, frozen, version].map(|number| u64::try_from(number).ok());
    let state = AccountState { balance: balance?, frozen: frozen?, locked, version: version? };
    (seal(id, position, &state) == sealed).then_some(state)
}

/// Rows for the indexes, each list in the order of its primary key.
#[derive(Debug, Default)]
pub(crate) struct IndexEntries {
    /// The newest event of an account.
    pub(crate) accounts: Vec<(AccountId, Position)>,
    /// What that event left each of them with, in the same order; empty where that is not known.
    pub(crate) states: Vec<AccountState>,
    /// The events that bound a key.
    pub(crate) keys: Vec<(KeyHash, Position)>,
    /// The newest event about an original.
    pub(crate) related: Vec<(Partition, Position, Position)>,
    /// Each [`HISTORY_STRIDE`]th version of an account.
    pub(crate) history: Vec<(AccountId, u64, Position)>,
}

/// A hash as both databases store it: the same 64 bits, signed.
pub(crate) const fn stored_hash(hash: u64) -> i64 {
    hash.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_broken_by_every_edit() {
        let id = Account::new("ann", "points").expect("valid").id();
        let other = Account::new("bob", "points").expect("valid").id();
        let state = AccountState { balance: 7, frozen: 2, locked: false, version: 3 };
        let sealed = seal(id, Position(9), &state);
        assert_eq!(unseal(id, Position(9), [7, 2, 3], false, sealed), Some(state));
        for (id, position, numbers, locked, sealed) in [
            (other, 9, [7, 2, 3], false, sealed),
            (id, 8, [7, 2, 3], false, sealed),
            (id, 9, [8, 2, 3], false, sealed),
            (id, 9, [7, 1, 3], false, sealed),
            (id, 9, [7, 2, 4], false, sealed),
            (id, 9, [-7, 2, 3], false, sealed),
            (id, 9, [7, 2, 3], true, sealed),
            (id, 9, [7, 2, 3], false, sealed + 1),
            (id, 9, [7, 2, 3], false, 0),
        ] {
            assert_eq!(unseal(id, Position(position), numbers, locked, sealed), None);
        }
    }
}
