//! Where a list or a stream goes on: opaque to callers.

use ledger_core::{Epoch, PARTITIONS, Partition, Position, id::POSITION_MAX};
use serde::{Serialize, Serializer};

use crate::{problem::Problem, request::Query};

/// The place in one partition that a list goes on before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    partition: Partition,
    position: Position,
}

impl Cursor {
    pub(crate) const fn new(partition: Partition, position: Position) -> Self {
        Self { partition, position }
    }

    /// The query's `cursor`, which must be one of this account's partition.
    pub(crate) fn of_query(query: &Query, partition: Partition) -> Result<Option<Position>, Problem> {
        let Some(text) = query.get("cursor") else { return Ok(None) };
        match Self::parse(text) {
            Some(cursor) if cursor.partition == partition => Ok(Some(cursor.position)),
            _ => Err(Problem::invalid("cursor", "must be the next_cursor of an earlier answer to the same request")),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (partition, position) = text.strip_prefix('c')?.split_once('-')?;
        let partition = Partition::new(u8::from_str_radix(partition, 16).ok()?)?;
        let position = Position(u64::from_str_radix(position, 16).ok()?);
        let cursor = Self { partition, position };
        // One spelling only, and no position past what an id can hold.
        (position.0 > 0 && position.0 <= POSITION_MAX && cursor.to_string() == text).then_some(cursor)
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "c{:x}-{:x}", self.partition.number(), self.position.0)
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How far a stream over all partitions is, and in which life of the log: the id of each of its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamCursor {
    pub(crate) epoch: Epoch,
    pub(crate) positions: [Position; PARTITIONS],
}

impl StreamCursor {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("s1.")?.split('.');
        let epoch = Epoch(u32::from_str_radix(parts.next()?, 16).ok()?);
        let mut positions = [Position::ZERO; PARTITIONS];
        for position in &mut positions {
            *position = Position(u64::from_str_radix(parts.next()?, 16).ok()?);
        }
        let is_possible = positions.iter().all(|position| position.0 <= POSITION_MAX);
        let cursor = Self { epoch, positions };
        // One spelling only.
        (is_possible && parts.next().is_none() && cursor.to_string() == text).then_some(cursor)
    }
}

impl std::fmt::Display for StreamCursor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "s1.{:x}", self.epoch.0)?;
        self.positions.iter().try_for_each(|position| write!(formatter, ".{:x}", position.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_has_one_spelling() {
        let cursor = Cursor::new(Partition::new(13).expect("there is one"), Position(90_412));
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        for wrong in ["", "c", "cd-", "cd-0", "cD-1", "c40-1", "cd-01", "c-1", "cd-ffffffffffffffff", "x"] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_stream_cursor_has_one_spelling() {
        let positions = std::array::from_fn(|index| Position(index as u64 * 1_000));
        let cursor = StreamCursor { epoch: Epoch(u32::MAX), positions };
        assert_eq!(StreamCursor::parse(&cursor.to_string()), Some(cursor.clone()));
        let good = cursor.to_string();
        let too_far = good.replace(".3e8.", ".ffffffffffffff.");
        for wrong in ["", "s1", "s1.1.2", "s2.0", &format!("{good}.1"), &good[..good.len() - 6], &too_far] {
            assert_eq!(StreamCursor::parse(wrong), None, "{wrong}");
        }
    }
}
