//! Where an event stands: partitions, positions, epochs, heads.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

/// How many partitions a ledger has. An account belongs to one of them for ever, so this never changes.
pub const PARTITIONS: usize = 64;
/// The same number in the width of a partition's own.
const PARTITION_COUNT: u8 = 64;
const _: () = assert!(PARTITION_COUNT as usize == PARTITIONS);

/// One of the [`PARTITIONS`] logs: 0 ..= 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub struct Partition(u8);

impl Partition {
    /// The partition numbered `number`, if there is one.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < PARTITIONS { Some(Self(number)) } else { None }
    }

    /// The partition that a hash's byte falls into.
    pub(crate) const fn of_byte(byte: u8) -> Self {
        Self(byte % PARTITION_COUNT)
    }

    /// Every partition, in order.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        (0..PARTITION_COUNT).map(Self)
    }

    /// 0 ..= 63.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number as an index into an array of [`PARTITIONS`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// There is no partition of that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no partition {0}: they are numbered from 0 to 63")]
pub struct NoPartition(u8);

impl TryFrom<u8> for Partition {
    type Error = NoPartition;

    fn try_from(number: u8) -> Result<Self, NoPartition> {
        Self::new(number).ok_or(NoPartition(number))
    }
}

impl From<Partition> for u8 {
    fn from(partition: Partition) -> Self {
        partition.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An event's place in its partition: 1, 2, 3 … without gaps; 0 is the place before the first. At most 2^48 − 1, which
/// is what an id has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// The place before the first event.
    pub const ZERO: Self = Self(0);

    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Which life of the log an event was written in: 1 at first, larger after every restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// A new ledger's epoch.
    pub const FIRST: Self = Self(1);
}

/// A link of the hash chain: BLAKE3, 32 bytes. Written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What stands before the first event of a partition.
    pub const ZERO: Self = Self([0; 32]);
}

impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The text is not a hash of 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not 64 hexadecimal digits")]
pub struct NotAHash;

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NotAHash);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NotAHash)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The newest event of a partition, by which the next one is fenced and chained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The epoch in which the next event will be written.
    pub epoch: Epoch,
    /// The newest event's position; 0 when there is none.
    pub position: Position,
    /// The newest event's hash; zero when there is none.
    pub hash: Hash,
}

impl Head {
    /// The head of a new ledger's partition.
    pub const EMPTY: Self = Self { epoch: Epoch::FIRST, position: Position::ZERO, hash: Hash::ZERO };
}

/// The place that a decided event will take.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// The account's partition.
    pub partition: Partition,
    /// The head that the event follows.
    pub head: Head,
    /// The account's previous event in the partition; 0 when this is its first.
    pub previous_position: Position,
}
