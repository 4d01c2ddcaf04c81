//! The archive that a recovery begins with.

use std::path::PathBuf;

use ledger_core::{Event, Hash, Head, PARTITIONS, Partition, Position};

use crate::{
    archive::{Archive, Manifest},
    context::Failure,
};

/// An archive, opened and found whole.
#[derive(Debug, Clone)]
pub(super) struct Base {
    archive: Archive,
    pub(super) heads: [Head; PARTITIONS],
}

impl Base {
    /// Opens the archives; each after the first goes on from the one before it.
    pub(super) async fn open(folders: &[PathBuf]) -> Result<Self, Failure> {
        let archive = Archive::open_all(folders).await?;
        let heads = archive.manifest.heads;
        Ok(Self { archive, heads })
    }

    pub(super) const fn manifest(&self) -> &Manifest {
        &self.archive.manifest
    }

    /// How many events it has in all.
    pub(super) fn events_count(&self) -> u64 {
        self.archive.events_count()
    }

    /// A partition's events up to a position, in order. Reading them blocks.
    pub(super) fn events(
        &self,
        partition: Partition,
        to: Position,
    ) -> impl Iterator<Item = Result<Event, Failure>> + Send + use<> {
        self.archive
            .events(partition)
            .take_while(move |event| event.as_ref().map_or(true, |event| event.position <= to))
    }

    /// The hash of the event at a position; of position 0 what stands before the first event. It may block.
    pub(super) fn hash_at(&self, partition: Partition, position: Position) -> Result<Option<Hash>, Failure> {
        let head = self.heads[partition.index()];
        if position == Position::ZERO {
            return Ok(Some(Hash::ZERO));
        }
        if position >= head.position {
            return Ok((position == head.position).then_some(head.hash));
        }
        for event in self.events(partition, position) {
            let event = event?;
            if event.position == position {
                return Ok(Some(event.hash));
            }
        }
        Ok(None)
    }
}
