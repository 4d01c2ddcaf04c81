//! The JSON that the contract gives an event.

use serde::{Serialize, Serializer, ser::SerializeStruct};
use serde_json::value::RawValue;

use crate::event::Event;

/// An event as `/v1` answers it: a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Transaction<'a> {
    pub event: &'a Event,
    /// In the answer to a command: whether the command had been done before.
    pub replayed: Option<bool>,
}

/// An event as the log and NATS give it: a transaction and every other field that its hash covers.
#[derive(Debug, Clone, Copy)]
pub struct LogEntry<'a>(pub &'a Event);

impl<'a> From<&'a Event> for Transaction<'a> {
    fn from(event: &'a Event) -> Self {
        Self { event, replayed: None }
    }
}

const TRANSACTION_FIELDS: usize = 23;
const LOG_FIELDS: usize = 9;

impl Serialize for Transaction<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = TRANSACTION_FIELDS + usize::from(self.replayed.is_some());
        let mut object = serializer.serialize_struct("Transaction", fields)?;
        transaction_fields(&mut object, self.event)?;
        if let Some(replayed) = self.replayed {
            object.serialize_field("replayed", &replayed)?;
        }
        object.end()
    }
}

impl Serialize for LogEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut object = serializer.serialize_struct("LogEntry", TRANSACTION_FIELDS + LOG_FIELDS)?;
        transaction_fields(&mut object, event)?;
        object.serialize_field("epoch", &event.epoch)?;
        object.serialize_field("previous_position", &event.previous_position)?;
        object.serialize_field("hash", &event.hash)?;
        object.serialize_field("schema_version", &event.schema_version)?;
        object.serialize_field("locked", &event.after.locked)?;
        object.serialize_field("actor", &*event.actor)?;
        object.serialize_field("batch_id", &event.batch.map(|mark| mark.id))?;
        object.serialize_field("batch_size", &event.batch.map(|mark| mark.size))?;
        object.serialize_field("batch_index", &event.batch.map(|mark| mark.index))?;
        object.end()
    }
}

fn transaction_fields<O: SerializeStruct>(object: &mut O, event: &Event) -> Result<(), O::Error> {
    object.serialize_field("transaction_id", &event.transaction_id)?;
    object.serialize_field("type", event.event_type.name())?;
    object.serialize_field("account_id", &event.account.id())?;
    object.serialize_field("user_id", &**event.account.user_id())?;
    object.serialize_field("credit_type", &**event.account.credit_type())?;
    object.serialize_field("amount", &event.amount)?;
    object.serialize_field("released", &event.released)?;
    object.serialize_field("related_id", &event.related_id)?;
    object.serialize_field("remaining", &event.remaining)?;
    object.serialize_field("balance", &event.after.balance)?;
    object.serialize_field("frozen", &event.after.frozen)?;
    object.serialize_field("available", &event.after.available())?;
    object.serialize_field("version", &event.after.version)?;
    object.serialize_field("partition", &event.partition)?;
    object.serialize_field("position", &event.position)?;
    object.serialize_field("business_code", &**event.key.code())?;
    object.serialize_field("business_id", &**event.key.id())?;
    object.serialize_field("operation_id", &event.operation_id)?;
    object.serialize_field("request_id", &*event.request_id)?;
    object.serialize_field("description", &event.description.as_deref())?;
    object.serialize_field("metadata", &event.metadata.as_deref().map(verbatim))?;
    object.serialize_field("expires_at", &event.expires_at)?;
    object.serialize_field("recorded_at", &event.recorded_at)?;
    Ok(())
}

/// Metadata as the text that it came as. A stored text that is no JSON can only come from tampering; it is shown as a
/// JSON string then, so that the entry stays readable and its damage visible.
fn verbatim(metadata: &str) -> Verbatim<'_> {
    serde_json::from_str::<&RawValue>(metadata).map_or(Verbatim::Damaged(metadata), Verbatim::Json)
}

#[derive(Serialize)]
#[serde(untagged)]
enum Verbatim<'a> {
    Json(&'a RawValue),
    Damaged(&'a str),
}
