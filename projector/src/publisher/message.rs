//! The messages: an event as JSON, CloudEvents 1.0 attributes as headers (binary mode), and where it stands in the log.

use async_nats::HeaderMap;
use bytes::Bytes;
use ledger_core::{Epoch, Event, EventType, Head, Partition, Position, json::LogEntry};

const PARTITION: &str = "Ledger-Partition";
pub(super) const EPOCH: &str = "Ledger-Epoch";
const POSITION: &str = "Ledger-Position";
const HASH: &str = "Ledger-Hash";

/// The subject of an event.
pub(super) const fn subject(event_type: EventType) -> &'static str {
    match event_type {
        EventType::Credited => "credit.credited",
        EventType::Deducted => "credit.deducted",
        EventType::Frozen => "credit.frozen",
        EventType::Unfrozen => "credit.unfrozen",
        EventType::Refunded => "credit.refunded",
        EventType::Locked => "credit.account.locked",
        EventType::Unlocked => "credit.account.unlocked",
    }
}

/// What the server knows an event's message by.
fn id(event: &Event) -> String {
    format!("{}-{}-{}", event.partition, event.epoch.0, event.position)
}

/// An event's message, to be stored only as the one after `last_sequence`, and, where another one was sent right before it
/// and is not acknowledged yet, only after that one.
pub(super) fn of(event: &Event, last_sequence: u64, sent_before: Option<&Event>) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    headers.insert("ce-specversion", "1.0");
    headers.insert("ce-id", event.transaction_id.to_string());
    headers.insert("ce-source", "/ledger");
    headers.insert("ce-type", subject(event.event_type));
    headers.insert("ce-subject", event.account.id().to_string());
    headers.insert("ce-time", event.recorded_at.to_string());
    headers.insert("content-type", "application/json");
    headers.insert(PARTITION, event.partition.to_string());
    headers.insert(EPOCH, event.epoch.0.to_string());
    headers.insert(POSITION, event.position.to_string());
    headers.insert(HASH, event.hash.to_string());
    headers.insert("Nats-Msg-Id", id(event));
    headers.insert("Nats-Expected-Last-Sequence", last_sequence.to_string());
    if let Some(before) = sent_before {
        headers.insert("Nats-Expected-Last-Msg-Id", id(before));
    }
    let payload = serde_json::to_vec(&LogEntry(event)).expect("an event is JSON");
    (headers, payload.into())
}

/// Where the event of a message stands in the log, by the message's headers; `None` for messages of another kind.
#[must_use]
pub fn place(headers: &HeaderMap) -> Option<(Partition, Head)> {
    let get = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    let partition = Partition::new(get(PARTITION)?.parse().ok()?)?;
    let head = Head {
        epoch: Epoch(get(EPOCH)?.parse().ok()?),
        position: Position(get(POSITION)?.parse().ok()?),
        hash: get(HASH)?.parse().ok()?,
    };
    Some((partition, head))
}
