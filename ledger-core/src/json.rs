//! The JSON that the contract gives an event.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    account::{Account, AccountState},
    amount::{Amount, MAX_AMOUNT},
    event::{BatchMark, Event, EventType},
    id::{AccountId, POSITION_MAX, TransactionId},
    key::BusinessKey,
    log::{Epoch, Hash, Partition, Position},
    timestamp::Timestamp,
};

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

/// The text is no entry of the log; the field and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct NotAnEntry {
    /// The field's name, or `entry` where the text as a whole is not an entry.
    pub field: &'static str,
    /// What is wrong, as a phrase that follows the field's name.
    pub reason: String,
}

/// The event that a [`LogEntry`]'s JSON gives, metadata to the letter. Fields that are not known are passed over, each that
/// is known must be there. Whether the hash follows from the event is for the caller to check: only the caller knows the
/// event before it.
///
/// # Errors
///
/// [`NotAnEntry`] names the first field that no event of this ledger can have.
pub fn read_log_entry(json: &[u8]) -> Result<Event, NotAnEntry> {
    serde_json::from_slice::<Entry<'_>>(json).map_err(|error| not("entry", format!("cannot be read: {error}")))?.read()
}

/// The fields of a [`LogEntry`] before anything is believed of them.
#[derive(Deserialize)]
struct Entry<'a> {
    transaction_id: Uuid,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
    account_id: Uuid,
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    credit_type: Cow<'a, str>,
    #[serde(deserialize_with = "there")]
    amount: Option<u64>,
    released: u64,
    #[serde(deserialize_with = "there")]
    related_id: Option<Uuid>,
    #[serde(deserialize_with = "there")]
    remaining: Option<u64>,
    balance: u64,
    frozen: u64,
    available: u64,
    version: u64,
    partition: u8,
    position: u64,
    #[serde(borrow)]
    business_code: Cow<'a, str>,
    #[serde(borrow)]
    business_id: Cow<'a, str>,
    operation_id: Uuid,
    #[serde(borrow)]
    request_id: Cow<'a, str>,
    #[serde(deserialize_with = "there")]
    description: Option<String>,
    #[serde(borrow, deserialize_with = "there")]
    metadata: Option<&'a RawValue>,
    #[serde(deserialize_with = "there")]
    expires_at: Option<String>,
    #[serde(borrow)]
    recorded_at: Cow<'a, str>,
    epoch: u32,
    previous_position: u64,
    #[serde(borrow)]
    hash: Cow<'a, str>,
    schema_version: u16,
    locked: bool,
    #[serde(borrow)]
    actor: Cow<'a, str>,
    #[serde(deserialize_with = "there")]
    batch_id: Option<Uuid>,
    #[serde(deserialize_with = "there")]
    batch_size: Option<u32>,
    #[serde(deserialize_with = "there")]
    batch_index: Option<u32>,
}

/// A field that may be null and may not be missing: an attribute of its own turns serde's lenience off.
fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

impl Entry<'_> {
    fn read(self) -> Result<Event, NotAnEntry> {
        let partition = Partition::new(self.partition).ok_or_else(|| not("partition", "is no partition"))?;
        let account_id = AccountId::stored(self.account_id).ok_or_else(|| no_id("account_id"))?;
        if account_id.partition() != partition {
            return Err(not("account_id", format!("belongs to partition {}", account_id.partition())));
        }
        let after = AccountState {
            balance: units("balance", self.balance)?,
            frozen: units("frozen", self.frozen)?,
            locked: self.locked,
            version: units("version", self.version)?,
        };
        if after.frozen > after.balance {
            return Err(not("frozen", format!("is {}, more than the balance of {}", after.frozen, after.balance)));
        }
        if self.available != after.available() {
            return Err(not("available", format!("is {}, not balance - frozen", self.available)));
        }
        // Both databases store signed numbers.
        if i16::try_from(self.schema_version).is_err() {
            return Err(not("schema_version", format!("is {}, more than {}", self.schema_version, i16::MAX)));
        }
        for (field, number) in [("batch_size", self.batch_size), ("batch_index", self.batch_index)] {
            if number.is_some_and(|number| i32::try_from(number).is_err()) {
                return Err(not(field, format!("is more than {}", i32::MAX)));
            }
        }
        let batch = match (self.batch_id, self.batch_size, self.batch_index) {
            (None, None, None) => None,
            (Some(id), Some(size), Some(index)) => Some(BatchMark { id, size, index }),
            _ => return Err(not("batch_id", "is there without batch_size and batch_index, or they without it")),
        };
        let amount = self.amount.map(Amount::new).transpose().map_err(|error| not("amount", error.reason))?;
        let related_id = self.related_id.map(|id| TransactionId::from_uuid(id).ok_or_else(|| no_id("related_id")));
        Ok(Event {
            partition,
            epoch: Epoch(self.epoch),
            position: place("position", self.position)?,
            previous_position: place("previous_position", self.previous_position)?,
            transaction_id: TransactionId::from_uuid(self.transaction_id).ok_or_else(|| no_id("transaction_id"))?,
            event_type: EventType::of_name(&self.event_type).ok_or_else(|| not("type", "is no type of event"))?,
            schema_version: self.schema_version,
            account: Account::stored(
                account_id,
                text("user_id", &self.user_id)?.into(),
                text("credit_type", &self.credit_type)?.into(),
            ),
            amount,
            released: units("released", self.released)?,
            related_id: related_id.transpose()?,
            remaining: self.remaining.map(|remaining| units("remaining", remaining)).transpose()?,
            after,
            key: BusinessKey::stored(
                text("business_code", &self.business_code)?.into(),
                text("business_id", &self.business_id)?.into(),
            ),
            operation_id: self.operation_id,
            request_id: text("request_id", &self.request_id)?.into(),
            actor: text("actor", &self.actor)?.into(),
            description: self
                .description
                .as_deref()
                .map(|value| text("description", value).map(Into::into))
                .transpose()?,
            metadata: self.metadata.map(|json| text("metadata", json.get()).map(Into::into)).transpose()?,
            expires_at: self.expires_at.as_deref().map(|at| instant("expires_at", at)).transpose()?,
            recorded_at: instant("recorded_at", &self.recorded_at)?,
            batch,
            hash: self.hash.parse::<Hash>().map_err(|error| not("hash", error.to_string()))?,
        })
    }
}

fn not(field: &'static str, reason: impl Into<String>) -> NotAnEntry {
    NotAnEntry { field, reason: reason.into() }
}

fn no_id(field: &'static str) -> NotAnEntry {
    not(field, "is no id that this ledger gives")
}

fn units(field: &'static str, units: u64) -> Result<u64, NotAnEntry> {
    if units <= MAX_AMOUNT { Ok(units) } else { Err(not(field, format!("is {units}, outside 0 ..= {MAX_AMOUNT}"))) }
}

fn place(field: &'static str, position: u64) -> Result<Position, NotAnEntry> {
    if position <= POSITION_MAX {
        Ok(Position(position))
    } else {
        Err(not(field, format!("is past {POSITION_MAX}, the largest that an id can hold")))
    }
}

/// A text that both databases can store: PostgreSQL cannot store NUL.
fn text<'t>(field: &'static str, text: &'t str) -> Result<&'t str, NotAnEntry> {
    if text.contains('\0') { Err(not(field, "contains NUL")) } else { Ok(text) }
}

/// An instant as the ledger writes it: one written otherwise would not be the same entry.
fn instant(field: &'static str, text: &str) -> Result<Timestamp, NotAnEntry> {
    Timestamp::parse(text)
        .filter(|instant| instant.to_string() == text)
        .ok_or_else(|| not(field, format!("is `{text}`, not a time such as 2026-11-20T12:00:00.000000Z")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain;

    prop_compose! {
        fn place_and_state()(
            position in 1..=POSITION_MAX,
            previous in 0..=POSITION_MAX,
            epoch: u32,
            balance in 0..=MAX_AMOUNT,
            part in 0..=100_u64,
            version in 1..=MAX_AMOUNT,
            locked: bool,
            micros in 0..253_402_300_800_000_000_i64,
            expiry in proptest::option::of(0..253_402_300_800_000_000_i64),
            batch in proptest::option::of((any::<u128>(), 0..=1_u32 << 30, 0..=1_u32 << 30)),
        ) -> (Position, Position, Epoch, AccountState, i64, Option<i64>, Option<BatchMark>) {
            let frozen = balance / 100 * part;
            let mark = batch.map(|(id, size, index)| BatchMark { id: Uuid::from_u128(id), size, index });
            let after = AccountState { balance, frozen, locked, version };
            (Position(position), Position(previous), Epoch(epoch), after, micros, expiry, mark)
        }
    }

    prop_compose! {
        fn event()(
            (position, previous_position, epoch, after, micros, expiry, batch) in place_and_state(),
            kind in 0..EventType::ALL.len(),
            user in "[^\\p{Cc}]{1,20}",
            texts in ("[^\\p{Cc}]{1,9}", "[^\\p{Cc}]{1,9}", "[^\0]{0,20}", "[^\0]{0,9}"),
            description in proptest::option::of("[^\0]{0,30}"),
            metadata in proptest::option::of((any::<i64>(), "[^\0]{0,20}", 0..3_usize)),
            amount in proptest::option::of(1..=MAX_AMOUNT),
            released in 0..=MAX_AMOUNT,
            remaining in proptest::option::of(0..=MAX_AMOUNT),
            related: bool,
            operation: u128,
            hash: [u8; 32],
        ) -> Event {
            let account = Account::new(&user, "points").expect("valid");
            let key = BusinessKey::stored(texts.0.as_str().into(), texts.1.as_str().into());
            let transaction_id = TransactionId::derive(&account, epoch, position, &key);
            Event {
                partition: account.partition(),
                epoch,
                position,
                previous_position,
                transaction_id,
                event_type: EventType::ALL[kind],
                schema_version: 1,
                account,
                amount: amount.map(|units| Amount::new(units).expect("in range")),
                released,
                related_id: related.then_some(transaction_id),
                remaining,
                after,
                key,
                operation_id: Uuid::from_u128(operation),
                request_id: texts.2.as_str().into(),
                actor: texts.3.as_str().into(),
                description: description.map(Into::into),
                // Spaces and newlines inside are part of the text that the hash covers.
                metadata: metadata.map(|(number, text, spaces)| {
                    let space = " \n".repeat(spaces);
                    format!("{{{space}\"n\":{space}{number}e0, \"t\":{}}}", serde_json::json!(text)).into()
                }),
                expires_at: expiry.and_then(Timestamp::from_micros),
                recorded_at: Timestamp::from_micros(micros).expect("in range"),
                batch,
                hash: Hash(hash),
            }
        }
    }

    proptest! {
        #[test]
        fn an_entry_read_back_is_the_event_to_the_letter(event in event()) {
            let json = serde_json::to_vec(&LogEntry(&event)).expect("JSON");
            let read = read_log_entry(&json);
            prop_assert_eq!(read.as_ref(), Ok(&event));
            prop_assert_eq!(chain::link(&Hash::ZERO, &event), chain::link(&Hash::ZERO, &read.expect("equal")));
        }

        #[test]
        fn a_missing_field_is_refused_and_an_unknown_one_is_passed_over(event in event(), pick: prop::sample::Index) {
            let json = serde_json::to_string(&LogEntry(&event)).expect("JSON");
            let more = format!("{{\"new\":[1],{}", &json[1..]);
            prop_assert_eq!(read_log_entry(more.as_bytes()), Ok(event));
            let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).expect("an object");
            prop_assert_eq!(fields.len(), TRANSACTION_FIELDS + LOG_FIELDS);
            let name = fields.keys().nth(pick.index(fields.len())).expect("there are some").clone();
            fields.shift_remove(&name);
            let refused = read_log_entry(&serde_json::to_vec(&fields).expect("JSON")).expect_err("a field is missing");
            prop_assert!(refused.reason.contains(&name), "{}", refused);
        }

        #[test]
        fn a_damaged_entry_is_never_a_panic(event in event(), at: prop::sample::Index, byte: u8, cut: bool) {
            let mut json = serde_json::to_vec(&LogEntry(&event)).expect("JSON");
            let at = at.index(json.len());
            if cut {
                json.truncate(at);
                prop_assert!(read_log_entry(&json).is_err());
            } else {
                json[at] = byte;
                // Read or refused; what is read is storable, and its hash tells whether it is the event.
                if let Ok(read) = read_log_entry(&json) {
                    prop_assert!(read.position.0 <= POSITION_MAX && read.after.balance <= MAX_AMOUNT);
                }
            }
        }
    }

    #[test]
    fn impossible_fields_are_named() {
        let account = Account::new("ann", "points").expect("valid");
        let entry = serde_json::json!({
            "transaction_id": TransactionId::derive(&account, Epoch(1), Position(1), &BusinessKey::stored("a".into(), "b".into())),
            "type": "credited", "account_id": account.id(), "user_id": "ann", "credit_type": "points", "amount": 5,
            "released": 0, "related_id": null, "remaining": null, "balance": 5, "frozen": 0, "available": 5, "version": 1,
            "partition": account.partition(), "position": 1, "business_code": "a", "business_id": "b",
            "operation_id": "67e55044-10b1-426f-9247-bb680e5fe0c8", "request_id": "r", "description": null,
            "metadata": null, "expires_at": null, "recorded_at": "2026-11-20T12:00:00.000000Z", "epoch": 1,
            "previous_position": 0, "hash": Hash::ZERO, "schema_version": 1, "locked": false, "actor": "x",
            "batch_id": null, "batch_size": null, "batch_index": null,
        });
        let read = |entry: &serde_json::Value| read_log_entry(entry.to_string().as_bytes());
        assert!(read(&entry).is_ok());
        for (field, value) in [
            ("amount", serde_json::json!(0)),
            ("balance", serde_json::json!(MAX_AMOUNT + 1)),
            ("frozen", serde_json::json!(6)),
            ("available", serde_json::json!(4)),
            ("type", serde_json::json!("moved")),
            ("partition", serde_json::json!(64)),
            ("position", serde_json::json!(POSITION_MAX + 1)),
            ("recorded_at", serde_json::json!("2026-11-20T12:00:00Z")),
            ("hash", serde_json::json!("00")),
            ("schema_version", serde_json::json!(40_000)),
            ("batch_size", serde_json::json!(3_000_000_000_u32)),
            ("description", serde_json::json!("a\0b")),
            ("related_id", serde_json::json!("67e55044-10b1-426f-9247-bb680e5fe0c8")),
        ] {
            let mut changed = entry.clone();
            changed[field] = value;
            assert_eq!(read(&changed).expect_err(field).field, field);
        }
        let mut changed = entry;
        changed["batch_size"] = serde_json::json!(2);
        assert_eq!(read(&changed).expect_err("half a mark").field, "batch_id");
    }
}
