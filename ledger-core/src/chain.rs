//! The hash chain of a partition, and the canonical bytes that it runs over.
//!
//! `hash = BLAKE3(previous hash ‖ canonical bytes)`. The canonical bytes are every stored field in a fixed order:
//! numbers big-endian at their full width, texts with their length in bytes (4 bytes) before them, an optional field
//! behind a byte that is 1 when it is there and 0 when it is not. They begin with [`FORMAT_VERSION`].

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    account::{Account, AccountState},
    amount::{Amount, MAX_AMOUNT},
    bare::BareEvent,
    event::{BatchMark, Event, EventType},
    id::{AccountId, POSITION_MAX, TransactionId},
    key::BusinessKey,
    log::{Epoch, Hash, Partition, Position},
    many::Messages,
    timestamp::Timestamp,
};

/// The version of the canonical form.
pub const FORMAT_VERSION: u8 = 1;

/// The hash of `event` as the one that follows `previous`. The event's own `hash` plays no part.
#[must_use]
pub fn link(previous: &Hash, event: &Event) -> Hash {
    // One buffer and one call: BLAKE3 works fastest on contiguous input, and a usual event is some 400 bytes.
    let mut bytes = Vec::with_capacity(640);
    bytes.extend_from_slice(&previous.0);
    write_canonical(&mut bytes, event);
    Hash(*blake3::hash(&bytes).as_bytes())
}

/// The links of many events, made together: see [`Messages`]. Kept, it allocates little.
#[derive(Debug, Default)]
pub struct Links(Messages);

impl Links {
    /// The hash of each event as the one that follows the event before it, as [`link`] gives it; the first follows `previous`.
    /// What comes before an event is the hash that the event there bears, right or wrong.
    pub fn of<'e>(&mut self, previous: &Hash, events: impl IntoIterator<Item = &'e Event>) -> &[Hash] {
        self.0.clear();
        let mut previous = previous;
        for event in events {
            self.0.add(|bytes| {
                bytes.extend_from_slice(&previous.0);
                write_canonical(bytes, event);
            });
            previous = &event.hash;
        }
        self.0.hash()
    }
}

/// Appends the canonical bytes of `event` to `bytes`.
pub fn write_canonical(bytes: &mut Vec<u8>, event: &Event) {
    write_canonical_bare(bytes, &event.bare());
}

/// The same of an event whose texts are borrowed.
pub fn write_canonical_bare(bytes: &mut Vec<u8>, event: &BareEvent<'_>) {
    // Every field by name: a field that is added to the event does not compile until it has its place here.
    let BareEvent {
        partition,
        epoch,
        position,
        previous_position,
        transaction_id,
        event_type,
        schema_version,
        account_id,
        user_id,
        credit_type,
        amount,
        released,
        related_id,
        remaining,
        after,
        business_code,
        business_id,
        operation_id,
        request_id,
        actor,
        description,
        metadata,
        expires_at,
        recorded_at,
        batch,
        hash: _,
    } = event;
    bytes.push(FORMAT_VERSION);
    bytes.push(partition.number());
    bytes.extend_from_slice(&epoch.0.to_be_bytes());
    bytes.extend_from_slice(&position.0.to_be_bytes());
    bytes.extend_from_slice(&previous_position.0.to_be_bytes());
    bytes.extend_from_slice(&schema_version.to_be_bytes());
    bytes.push(*event_type as u8);
    bytes.extend_from_slice(transaction_id.uuid().as_bytes());
    bytes.extend_from_slice(account_id.uuid().as_bytes());
    text(bytes, user_id);
    text(bytes, credit_type);
    optional(bytes, amount.map(|amount| amount.units()), number);
    number(bytes, *released);
    optional(bytes, *related_id, |bytes, id| bytes.extend_from_slice(id.uuid().as_bytes()));
    optional(bytes, *remaining, number);
    number(bytes, after.balance);
    number(bytes, after.frozen);
    bytes.push(u8::from(after.locked));
    number(bytes, after.version);
    text(bytes, business_code);
    text(bytes, business_id);
    bytes.extend_from_slice(operation_id.as_bytes());
    text(bytes, request_id);
    text(bytes, actor);
    optional(bytes, *description, text);
    optional(bytes, *metadata, text);
    optional(bytes, *expires_at, |bytes, at| bytes.extend_from_slice(&at.micros().to_be_bytes()));
    bytes.extend_from_slice(&recorded_at.micros().to_be_bytes());
    optional(bytes, *batch, |bytes, mark| {
        bytes.extend_from_slice(mark.id.as_bytes());
        bytes.extend_from_slice(&mark.size.to_be_bytes());
        bytes.extend_from_slice(&mark.index.to_be_bytes());
    });
}

fn number(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

fn text(bytes: &mut Vec<u8>, value: &str) {
    let length = u32::try_from(value.len()).expect("stored texts are far below 4 GiB");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(value.as_bytes());
}

fn optional<T>(bytes: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        None => bytes.push(0),
        Some(value) => {
            bytes.push(1);
            write(bytes, value);
        }
    }
}

/// Bytes that are not the canonical form of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct NotCanonical {
    pub field: &'static str,
    pub reason: &'static str,
}

/// The event whose canonical bytes these are, with the hash that it was given. Strict: every byte is read, and whatever is
/// read is written again as the same bytes, and can be stored on both databases. Whether the hash is right is not looked at:
/// that takes the one before it, see [`link`].
///
/// # Errors
///
/// [`NotCanonical`] names the first field that no event has like this.
pub fn read_canonical(bytes: &[u8], hash: Hash) -> Result<Event, NotCanonical> {
    let mut reader = Reader(bytes);
    if reader.array::<1>("format_version")? != [FORMAT_VERSION] {
        return Err(NotCanonical { field: "format_version", reason: "is not one that this program knows" });
    }
    let [partition] = reader.array("partition")?;
    let partition = Partition::new(partition).ok_or(NotCanonical { field: "partition", reason: "does not exist" })?;
    let event = Event {
        partition,
        epoch: Epoch(u32::from_be_bytes(reader.array("epoch")?)),
        position: reader.position("position")?,
        previous_position: reader.position("previous_position")?,
        schema_version: reader.schema_version()?,
        event_type: reader.event_type()?,
        transaction_id: reader.transaction_id("transaction_id")?,
        account: reader.account(partition)?,
        amount: reader.optional("amount", Reader::amount)?,
        released: reader.units("released")?,
        related_id: reader.optional("related_id", Reader::transaction_id)?,
        remaining: reader.optional("remaining", Reader::units)?,
        after: reader.state()?,
        key: BusinessKey::stored(reader.text("business_code")?, reader.text("business_id")?),
        operation_id: reader.uuid("operation_id")?,
        request_id: reader.text("request_id")?,
        actor: reader.text("actor")?,
        description: reader.optional("description", Reader::text)?,
        metadata: reader.optional("metadata", Reader::text)?,
        expires_at: reader.optional("expires_at", Reader::time)?,
        recorded_at: reader.time("recorded_at")?,
        batch: reader.optional("batch", Reader::batch)?,
        hash,
    };
    if reader.0.is_empty() {
        Ok(event)
    } else {
        Err(NotCanonical { field: "event", reason: "is followed by more bytes" })
    }
}

/// What is left to read.
struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take(&mut self, field: &'static str, length: usize) -> Result<&[u8], NotCanonical> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(NotCanonical { field, reason: "ends before its end" })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self, field: &'static str) -> Result<[u8; LENGTH], NotCanonical> {
        let mut array = [0; LENGTH];
        array.copy_from_slice(self.take(field, LENGTH)?);
        Ok(array)
    }

    fn number(&mut self, field: &'static str, max: u64) -> Result<u64, NotCanonical> {
        let number = u64::from_be_bytes(self.array(field)?);
        if number <= max { Ok(number) } else { Err(NotCanonical { field, reason: "is too large" }) }
    }

    fn units(&mut self, field: &'static str) -> Result<u64, NotCanonical> {
        self.number(field, MAX_AMOUNT)
    }

    fn position(&mut self, field: &'static str) -> Result<Position, NotCanonical> {
        self.number(field, POSITION_MAX).map(Position)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, NotCanonical> {
        match self.array(field)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(NotCanonical { field, reason: "is neither 0 nor 1" }),
        }
    }

    fn optional<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Result<T, NotCanonical>,
    ) -> Result<Option<T>, NotCanonical> {
        if self.flag(field)? { read(self, field).map(Some) } else { Ok(None) }
    }

    fn text(&mut self, field: &'static str) -> Result<Arc<str>, NotCanonical> {
        let length = u32::from_be_bytes(self.array(field)?);
        let bytes = self.take(field, usize::try_from(length).unwrap_or(usize::MAX))?;
        match std::str::from_utf8(bytes) {
            // PostgreSQL cannot store it, and no command with one is taken.
            Ok(text) if text.contains('\0') => Err(NotCanonical { field, reason: "contains NUL" }),
            Ok(text) => Ok(text.into()),
            Err(_) => Err(NotCanonical { field, reason: "is not UTF-8" }),
        }
    }

    fn uuid(&mut self, field: &'static str) -> Result<Uuid, NotCanonical> {
        self.array(field).map(Uuid::from_bytes)
    }

    fn transaction_id(&mut self, field: &'static str) -> Result<TransactionId, NotCanonical> {
        TransactionId::from_uuid(self.uuid(field)?)
            .ok_or(NotCanonical { field, reason: "is no id that a ledger gives" })
    }

    fn time(&mut self, field: &'static str) -> Result<Timestamp, NotCanonical> {
        Timestamp::from_micros(i64::from_be_bytes(self.array(field)?))
            .ok_or(NotCanonical { field, reason: "is outside the years 1970 to 9999" })
    }

    fn amount(&mut self, field: &'static str) -> Result<Amount, NotCanonical> {
        Amount::new(self.units(field)?).map_err(|_| NotCanonical { field, reason: "is no amount" })
    }

    fn schema_version(&mut self) -> Result<u16, NotCanonical> {
        let version = u16::from_be_bytes(self.array("schema_version")?);
        // Both databases store a signed number.
        if i16::try_from(version).is_ok() {
            Ok(version)
        } else {
            Err(NotCanonical { field: "schema_version", reason: "is too large" })
        }
    }

    fn event_type(&mut self) -> Result<EventType, NotCanonical> {
        let [number] = self.array("type")?;
        EventType::ALL
            .into_iter()
            .find(|event_type| *event_type as u8 == number)
            .ok_or(NotCanonical { field: "type", reason: "is no type of event" })
    }

    fn account(&mut self, partition: Partition) -> Result<Account, NotCanonical> {
        let field = "account_id";
        let id = AccountId::stored(self.uuid(field)?)
            .ok_or(NotCanonical { field, reason: "is no id that a ledger gives" })?;
        if id.partition() != partition {
            return Err(NotCanonical { field, reason: "belongs to another partition" });
        }
        Ok(Account::stored(id, self.text("user_id")?, self.text("credit_type")?))
    }

    fn state(&mut self) -> Result<AccountState, NotCanonical> {
        let state = AccountState {
            balance: self.units("balance")?,
            frozen: self.units("frozen")?,
            locked: self.flag("locked")?,
            version: self.units("version")?,
        };
        if state.frozen > state.balance {
            return Err(NotCanonical { field: "frozen", reason: "is more than the balance" });
        }
        Ok(state)
    }

    fn batch(&mut self, field: &'static str) -> Result<BatchMark, NotCanonical> {
        let mark = BatchMark {
            id: self.uuid(field)?,
            size: u32::from_be_bytes(self.array(field)?),
            index: u32::from_be_bytes(self.array(field)?),
        };
        if i32::try_from(mark.size).is_err() || i32::try_from(mark.index).is_err() {
            return Err(NotCanonical { field, reason: "has a size or an index that is too large" });
        }
        Ok(mark)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9 .:{}äö€-]{0,40}"
    }

    fn events() -> impl Strategy<Value = Event> {
        let account = ("[a-z]{1,9}", "[a-z]{1,9}").prop_map(|(user, kind)| Account::new(&user, &kind).expect("valid"));
        let numbers = (0..=MAX_AMOUNT, 0..=MAX_AMOUNT, 0..=MAX_AMOUNT, 1..=MAX_AMOUNT, any::<bool>());
        let place = (any::<u32>(), 1..=POSITION_MAX, 0..=POSITION_MAX, 0..i16::MAX.unsigned_abs(), 0..7_usize);
        let times = (0..253_402_300_800_000_000_i64, proptest::option::of(0..253_402_300_800_000_000_i64));
        let others = (
            proptest::option::of(1..=MAX_AMOUNT),
            proptest::option::of(0..=MAX_AMOUNT),
            proptest::option::of(1..=POSITION_MAX),
            proptest::option::of((any::<u128>(), 0..=i32::MAX.unsigned_abs(), 0..=i32::MAX.unsigned_abs())),
            any::<u128>(),
            any::<[u8; 32]>(),
        );
        let words = (texts(), texts(), texts(), texts(), proptest::option::of(texts()), proptest::option::of(texts()));
        (account, numbers, place, times, others, words).prop_map(
            |(account, numbers, place, (recorded_at, expires_at), others, words)| {
                let (a, b, released, version, locked) = numbers;
                let (epoch, position, previous_position, schema_version, event_type) = place;
                let (amount, remaining, related, batch, operation, hash) = others;
                let (code, id, request_id, actor, description, metadata) = words;
                let key = BusinessKey::stored(code.into(), id.into());
                let at = |position| TransactionId::derive(&account, Epoch(epoch), Position(position), &key);
                Event {
                    partition: account.partition(),
                    epoch: Epoch(epoch),
                    position: Position(position),
                    previous_position: Position(previous_position),
                    transaction_id: at(position),
                    event_type: EventType::ALL[event_type],
                    schema_version,
                    amount: amount.map(|units| Amount::new(units).expect("in range")),
                    released,
                    related_id: related.map(at),
                    remaining,
                    after: AccountState { balance: a.max(b), frozen: a.min(b), locked, version },
                    key: key.clone(),
                    operation_id: Uuid::from_u128(operation),
                    request_id: request_id.into(),
                    actor: actor.into(),
                    description: description.map(Arc::from),
                    metadata: metadata.map(Arc::from),
                    expires_at: expires_at.map(|micros| Timestamp::from_micros(micros).expect("in range")),
                    recorded_at: Timestamp::from_micros(recorded_at).expect("in range"),
                    batch: batch.map(|(id, size, index)| BatchMark { id: Uuid::from_u128(id), size, index }),
                    hash: Hash(hash),
                    account,
                }
            },
        )
    }

    fn canonical(event: &Event) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_canonical(&mut bytes, event);
        bytes
    }

    proptest! {
        #[test]
        fn links_made_together_are_those_made_one_by_one(events in prop::collection::vec(events(), 0..40)) {
            let mut links = Links::default();
            for _ in 0..2 {
                let mut previous = Hash([7; 32]);
                for (event, found) in events.iter().zip(links.of(&previous, &events)) {
                    prop_assert_eq!(*found, link(&previous, event));
                    previous = event.hash;
                }
            }
        }

        #[test]
        fn what_is_written_is_read_as_the_same_event(event in events()) {
            prop_assert_eq!(read_canonical(&canonical(&event), event.hash), Ok(event));
        }

        #[test]
        fn each_part_of_an_event_and_anything_longer_is_refused(event in events()) {
            let mut bytes = canonical(&event);
            for length in 0..bytes.len() {
                prop_assert!(read_canonical(&bytes[..length], event.hash).is_err());
            }
            bytes.push(0);
            prop_assert!(read_canonical(&bytes, event.hash).is_err());
        }

        #[test]
        fn damaged_bytes_are_refused_or_make_another_event(event in events(), at: prop::sample::Index, flip in 1_u8..) {
            let mut bytes = canonical(&event);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = read_canonical(&bytes, event.hash) {
                prop_assert_ne!(&other, &event);
                prop_assert_eq!(canonical(&other), bytes);
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_canonical(&bytes, Hash::ZERO);
        }
    }
}
