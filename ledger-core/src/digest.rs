//! One number for a whole state, to compare databases and read models by.
//!
//! Two ledgers have the same digest when they hold the same accounts with the same balances and the same freezes.
//! The epoch plays no part, so a restored ledger has the digest of the one that was lost.

use crate::{
    account::AccountState,
    balance::Balance,
    freeze::Freeze,
    id::AccountId,
    log::{Hash, PARTITIONS, Position},
    timestamp::Timestamp,
};

/// The digest of one partition's read models. Rows are added in order: balances by account id, freezes by position.
#[derive(Debug, Default, Clone)]
pub struct PartitionDigest {
    balances: blake3::Hasher,
    freezes: blake3::Hasher,
    buffer: Vec<u8>,
}

impl PartitionDigest {
    /// Adds an account's row; call it in ascending order of the account's id.
    pub fn add_balance(&mut self, balance: &Balance) {
        let Balance { account, state, position, updated_at } = balance;
        self.add_balance_of((account.id(), account.user_id(), account.credit_type()), state, *position, *updated_at);
    }

    /// The same for a row that was taken apart: an account's id, user and type of credit, and what the row holds of it.
    pub fn add_balance_of(
        &mut self,
        (id, user_id, credit_type): (AccountId, &str, &str),
        state: &AccountState,
        position: Position,
        updated_at: Timestamp,
    ) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(id.uuid().as_bytes());
        text(buffer, user_id);
        text(buffer, credit_type);
        for number in [state.balance, state.frozen, u64::from(state.locked), state.version, position.0] {
            buffer.extend_from_slice(&number.to_be_bytes());
        }
        buffer.extend_from_slice(&updated_at.micros().to_be_bytes());
        self.balances.update(buffer);
    }

    /// Adds a freeze's row; call it in ascending order of the freeze's position.
    pub fn add_freeze(&mut self, freeze: &Freeze) {
        let Freeze { freeze_id, account, amount, remaining, captured, released, expires_at, key, created_at, position } =
            freeze;
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(freeze_id.uuid().as_bytes());
        buffer.extend_from_slice(account.id().uuid().as_bytes());
        for number in [*amount, *remaining, *captured, *released, position.0] {
            buffer.extend_from_slice(&number.to_be_bytes());
        }
        buffer.extend_from_slice(&expires_at.map_or(-1, |at| at.micros()).to_be_bytes());
        buffer.extend_from_slice(&created_at.micros().to_be_bytes());
        text(buffer, key.code());
        text(buffer, key.id());
        self.freezes.update(buffer);
    }

    /// The digests of the balances and of the freezes.
    #[must_use]
    pub fn finish(&self) -> (Hash, Hash) {
        (Hash(*self.balances.finalize().as_bytes()), Hash(*self.freezes.finalize().as_bytes()))
    }
}

/// The digest of a whole state from its partitions', in order.
#[must_use]
pub fn combine(partitions: &[(Hash, Hash); PARTITIONS]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"ledger.state-digest.v1");
    for (balances, freezes) in partitions {
        hasher.update(&balances.0);
        hasher.update(&freezes.0);
    }
    Hash(*hasher.finalize().as_bytes())
}

fn text(buffer: &mut Vec<u8>, value: &str) {
    buffer.extend_from_slice(&(value.len() as u64).to_be_bytes());
    buffer.extend_from_slice(value.as_bytes());
}
