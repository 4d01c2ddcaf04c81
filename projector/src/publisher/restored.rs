//! What a restore voids, and the message that tells subscribers.
//!
//! A restore puts the log back to some point and goes on from there under a new epoch. What subscribers were told of
//! older epochs past that point never happened: `credit.log.restored` says so before the first event of the new epoch.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use bytes::Bytes;
use ledger_core::{Epoch, Head, PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{
    Database, StoreError,
    restore::{self, RestorePoint},
};
use serde::Deserialize;
use serde_json::json;

use super::message::EPOCH;

/// The subject of the message.
pub const SUBJECT: &str = "credit.log.restored";

/// A restore: under which epoch the log goes on, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The epoch that the restore began.
    pub epoch: Epoch,
    pub restored_at: Timestamp,
    /// The archive that the restore came from.
    pub archive_id: String,
    /// The newest event of each partition that stands; older epochs' events past it are void.
    pub heads: [Head; PARTITIONS],
}

impl Restored {
    /// Whether this restore made an event void, wherever it is still held.
    #[must_use]
    pub const fn voids(&self, partition: Partition, epoch: Epoch, position: Position) -> bool {
        epoch.0 < self.epoch.0 && position.0 > self.heads[partition.index()].position.0
    }

    /// The restore that a message tells of; `None` when the payload is not one.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let message: Message<'_> = serde_json::from_slice(payload).ok()?;
        let mut heads = [None; PARTITIONS];
        for place in &message.heads {
            let head =
                Head { epoch: Epoch(place.epoch), position: Position(place.position), hash: place.hash.parse().ok()? };
            if heads[Partition::new(place.partition)?.index()].replace(head).is_some() {
                return None;
            }
        }
        let heads: Option<Vec<Head>> = heads.into_iter().collect();
        Some(Self {
            epoch: Epoch(message.epoch),
            restored_at: Timestamp::parse(message.restored_at)?,
            archive_id: message.archive_id.to_owned(),
            heads: heads?.try_into().ok()?,
        })
    }

    /// The message, to be stored only as the one after `last_sequence`. Its `heads` are an anchor, too.
    pub(super) fn message(&self, last_sequence: u64) -> (HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-id", format!("restored-{}", self.epoch.0));
        headers.insert("ce-source", "/ledger");
        headers.insert("ce-type", SUBJECT);
        headers.insert("ce-time", self.restored_at.to_string());
        headers.insert("content-type", "application/json");
        headers.insert(EPOCH, self.epoch.0.to_string());
        headers.insert("Nats-Msg-Id", format!("restored-{}", self.epoch.0));
        headers.insert("Nats-Expected-Last-Sequence", last_sequence.to_string());
        let heads: Vec<_> = Partition::all()
            .zip(&self.heads)
            .map(|(partition, head)| {
                json!({ "partition": partition, "epoch": head.epoch, "position": head.position, "hash": head.hash })
            })
            .collect();
        let payload = json!({
            "epoch": self.epoch, "restored_at": self.restored_at, "archive_id": self.archive_id, "heads": heads,
        });
        (headers, payload.to_string().into())
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    epoch: u32,
    restored_at: &'a str,
    archive_id: &'a str,
    #[serde(borrow)]
    heads: Vec<Place<'a>>,
}

#[derive(Deserialize)]
struct Place<'a> {
    partition: u8,
    epoch: u32,
    position: u64,
    hash: &'a str,
}

/// The restores of a database, oldest first.
///
/// # Errors
///
/// When the database cannot be read, or its rows are no restores.
pub async fn read_all(database: &Database) -> Result<Vec<Restored>, StoreError> {
    let mut by_epoch: BTreeMap<Epoch, Vec<RestorePoint>> = BTreeMap::new();
    for point in restore::points(database).await? {
        by_epoch.entry(point.head.epoch).or_default().push(point);
    }
    let mut restores = Vec::with_capacity(by_epoch.len());
    let mut later = [None; PARTITIONS];
    for (epoch, points) in by_epoch.into_iter().rev() {
        let read = of_points(epoch, &points, &mut later).ok_or_else(|| {
            StoreError::Inconsistent(format!("restores lacks partitions of epoch {}: run replay-tool verify", epoch.0))
        })?;
        restores.push(with_epochs(database, read).await?);
    }
    restores.reverse();
    Ok(restores)
}

/// The restore of some rows. An older one may be known only by the events that followed it; a partition without any stood
/// still from then until the next restore, so that one's place is its place, too.
fn of_points(epoch: Epoch, points: &[RestorePoint], later: &mut [Option<Head>; PARTITIONS]) -> Option<Restored> {
    for point in points {
        later[point.partition.index()] = Some(Head { epoch: Epoch::FIRST, ..point.head });
    }
    let heads: Option<Vec<Head>> = later.iter().copied().collect();
    let (first, heads) = (points.first()?, heads?.try_into().ok()?);
    Some(Restored { epoch, restored_at: first.restored_at, archive_id: first.archive_id.clone(), heads })
}

/// Gives each head the epoch of the event that it is.
async fn with_epochs(database: &Database, mut restored: Restored) -> Result<Restored, StoreError> {
    let places: Vec<_> = Partition::all()
        .zip(&restored.heads)
        .filter(|(_, head)| head.position > Position::ZERO)
        .map(|(partition, head)| (partition, head.position))
        .collect();
    for event in database.events_at(&places).await? {
        let head = &mut restored.heads[event.partition.index()];
        // The events of an older restore may have been written over by a newer one.
        if head.hash == event.hash {
            head.epoch = event.epoch;
        }
    }
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use ledger_core::Hash;

    use super::*;

    #[test]
    fn the_message_says_what_it_was_made_of() {
        let mut heads = [Head::EMPTY; PARTITIONS];
        heads[7] = Head { epoch: Epoch(2), position: Position(12), hash: Hash([7; 32]) };
        let restored = Restored {
            epoch: Epoch(3),
            restored_at: Timestamp::parse("2026-11-20T12:00:00Z").expect("a time"),
            archive_id: "an archive".to_owned(),
            heads,
        };
        let (headers, payload) = restored.message(41);
        assert_eq!(Restored::read(&payload), Some(restored.clone()));
        assert_eq!(headers.get("Nats-Expected-Last-Sequence").map(ToString::to_string), Some("41".to_owned()));
        let [other, seven] = [1, 7].map(|number| Partition::new(number).expect("there is one"));
        assert!(restored.voids(seven, Epoch(2), Position(13)) && restored.voids(other, Epoch(1), Position(1)));
        assert!(!restored.voids(seven, Epoch(2), Position(12)) && !restored.voids(seven, Epoch(3), Position(13)));
    }

    #[test]
    fn what_is_no_restore_is_not_read_as_one() {
        for payload in [
            "{}",
            "[]",
            r#"{"epoch":2,"restored_at":"2026-11-20T12:00:00Z","archive_id":"a","heads":[]}"#,
            r#"{"epoch":2,"restored_at":"2026-11-20T12:00:00Z","archive_id":"a","heads":[{"partition":99,"epoch":1,"position":1,"hash":"00"}]}"#,
        ] {
            assert_eq!(Restored::read(payload.as_bytes()), None, "{payload}");
        }
    }
}
