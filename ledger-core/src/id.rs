//! Identifiers: UUIDs of version 8 (RFC 9562 §5.8) that say where the thing they name is.

use std::{fmt, str::FromStr};

use serde::Serialize;
use uuid::Uuid;

use crate::{
    account::Account,
    key::BusinessKey,
    log::{Epoch, Hash, Partition, Position},
};

/// How many bits of BLAKE3 a transaction's id carries.
const CHECK_BITS: u32 = 34;
/// Positions past this do not fit into an id.
pub const POSITION_MAX: u64 = (1 << 48) - 1;

/// An account's id: its partition (8 bits) and 114 bits of BLAKE3 over `user_id` and `credit_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AccountId(Uuid);

impl AccountId {
    /// The id of the account of `user_id` and `credit_type`.
    #[must_use]
    pub fn derive(user_id: &str, credit_type: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"ledger.account.v1");
        hasher.update(&(user_id.len() as u64).to_be_bytes());
        hasher.update(user_id.as_bytes());
        hasher.update(credit_type.as_bytes());
        let hash = hasher.finalize();
        let bytes = hash.as_bytes();
        let partition = Partition::of_byte(bytes[0]);
        let digits = u128::from_be_bytes(std::array::from_fn(|index| bytes[index + 1]));
        Self(pack(u128::from(partition.number()) << 114 | digits >> 14))
    }

    /// An id as it was stored; `None` when no account can have it.
    #[must_use]
    pub fn stored(uuid: Uuid) -> Option<Self> {
        let digits = unpack(uuid)?;
        partition_of(digits).map(|_| Self(uuid))
    }

    /// The partition that holds the account.
    #[must_use]
    pub fn partition(self) -> Partition {
        let digits = unpack(self.0).expect("an AccountId is a UUID of version 8");
        partition_of(digits).expect("an AccountId names a partition that exists")
    }

    /// The id as a UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// 64 bits of the id's hash, for indexes that need no more.
    #[must_use]
    pub fn short(self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "the low 62 bits of the id and its variant are wanted")]
        let low = self.0.as_u128() as u64;
        low
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A transaction's id: partition (8 bits), epoch (32), position (48), and 34 bits of BLAKE3 over the account and the
/// business key, so that another ledger's id does not resolve here. A freeze's id and a deduction's id are the ids of
/// the transactions that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TransactionId(Uuid);

impl TransactionId {
    /// The id of the event at (partition of `account`, `epoch`, `position`).
    ///
    /// # Panics
    ///
    /// When `position` is past [`POSITION_MAX`]: 2^48 events in one partition.
    #[must_use]
    pub fn derive(account: &Account, epoch: Epoch, position: Position, key: &BusinessKey) -> Self {
        let mut bytes = Vec::with_capacity(192);
        Self::write_hashed(&mut bytes, account.id(), key.code(), key.id());
        Self::of_hash(account.partition(), epoch, position, &Hash(*blake3::hash(&bytes).as_bytes()))
    }

    /// Appends what an id's hash runs over: see [`TransactionId::of_hash`].
    pub fn write_hashed(bytes: &mut Vec<u8>, account: AccountId, business_code: &str, business_id: &str) {
        bytes.extend_from_slice(b"ledger.transaction.v1");
        bytes.extend_from_slice(account.uuid().as_bytes());
        bytes.extend_from_slice(&(business_code.len() as u64).to_be_bytes());
        bytes.extend_from_slice(business_code.as_bytes());
        bytes.extend_from_slice(business_id.as_bytes());
    }

    /// The id of the event at (partition, epoch, position) from the hash of what [`TransactionId::write_hashed`] wrote.
    ///
    /// # Panics
    ///
    /// When `position` is past [`POSITION_MAX`].
    #[must_use]
    pub fn of_hash(partition: Partition, epoch: Epoch, position: Position, hash: &Hash) -> Self {
        let check = u64::from_be_bytes(std::array::from_fn(|index| hash.0[index])) >> (64 - CHECK_BITS);
        Self::of_check_bits(partition, epoch, position, check)
    }

    /// The id of the event at (partition, epoch, position) from its [`TransactionId::check_bits`].
    ///
    /// # Panics
    ///
    /// When `position` is past [`POSITION_MAX`].
    #[must_use]
    pub fn of_check_bits(partition: Partition, epoch: Epoch, position: Position, check: u64) -> Self {
        assert!(position.0 <= POSITION_MAX, "a partition holds at most 2^48 - 1 events");
        Self(pack(
            u128::from(partition.number()) << 114
                | u128::from(epoch.0) << 82
                | u128::from(position.0) << CHECK_BITS
                | u128::from(check & ((1 << CHECK_BITS) - 1)),
        ))
    }

    /// The bits of the id that follow from its account and business key.
    #[must_use]
    pub fn check_bits(self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "the low 34 bits are wanted")]
        let low = self.0.as_u128() as u64;
        low & ((1 << CHECK_BITS) - 1)
    }

    /// An id as a caller or a row gives it; `None` when no transaction can have it.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Option<Self> {
        let digits = unpack(uuid)?;
        partition_of(digits).map(|_| Self(uuid))
    }

    /// Where the transaction is: its partition, epoch and position.
    #[must_use]
    pub fn locate(self) -> (Partition, Epoch, Position) {
        let digits = unpack(self.0).expect("a TransactionId is a UUID of version 8");
        let partition = partition_of(digits).expect("a TransactionId names a partition that exists");
        #[expect(clippy::cast_possible_truncation, reason = "each field is masked to its width")]
        let (epoch, position) = ((digits >> 82) as u32, (digits >> CHECK_BITS) as u64 & POSITION_MAX);
        (partition, Epoch(epoch), Position(position))
    }

    /// The id as a UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The text is no id that this ledger could have given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a transaction's id")]
pub struct NotAnId;

impl FromStr for TransactionId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        Uuid::try_parse(text).ok().and_then(Self::from_uuid).ok_or(NotAnId)
    }
}

/// The partition in the first 8 of 122 bits.
fn partition_of(digits: u128) -> Option<Partition> {
    u8::try_from(digits >> 114).ok().and_then(Partition::new)
}

/// Lays 122 bits of our own around the version and variant of a UUIDv8: 48 before the version, 12 between, 62 after.
fn pack(digits: u128) -> Uuid {
    let a = digits >> 74 & ((1 << 48) - 1);
    let b = digits >> 62 & ((1 << 12) - 1);
    let c = digits & ((1 << 62) - 1);
    Uuid::from_u128(a << 80 | 0x8 << 76 | b << 64 | 0b10 << 62 | c)
}

/// The 122 bits that [`pack`] laid, or `None` when the UUID is not of version 8.
fn unpack(uuid: Uuid) -> Option<u128> {
    let bits = uuid.as_u128();
    if bits >> 76 & 0xf != 0x8 || bits >> 62 & 0b11 != 0b10 {
        return None;
    }
    Some((bits >> 80) << 74 | (bits >> 64 & ((1 << 12) - 1)) << 62 | bits & ((1 << 62) - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_says_where_its_transaction_is(user in "[a-z]{1,9}", epoch: u32, position in 0..=POSITION_MAX, code in "[a-z]{1,9}") {
            let account = Account::new(&user, "points").expect("valid");
            let key = BusinessKey::new(&code, "1").expect("valid");
            let id = TransactionId::derive(&account, Epoch(epoch), Position(position), &key);
            prop_assert_eq!(id.locate(), (account.partition(), Epoch(epoch), Position(position)));
            prop_assert_eq!(id.uuid().get_version_num(), 8);
            prop_assert_eq!(id.to_string().parse::<TransactionId>(), Ok(id));
        }

        #[test]
        fn packing_keeps_every_bit(digits in 0..1_u128 << 122) {
            prop_assert_eq!(unpack(pack(digits)), Some(digits));
        }
    }

    #[test]
    fn accounts_spread_over_all_partitions() {
        let mut seen = [0_u32; crate::log::PARTITIONS];
        for number in 0..6_400 {
            seen[Account::new(&format!("user-{number}"), "points").expect("valid").partition().index()] += 1;
        }
        assert!(seen.iter().all(|&count| (50..=160).contains(&count)), "{seen:?}");
    }

    #[test]
    fn a_uuid_of_another_version_is_no_id() {
        assert_eq!("67e55044-10b1-426f-9247-bb680e5fe0c8".parse::<TransactionId>(), Err(NotAnId));
    }
}
