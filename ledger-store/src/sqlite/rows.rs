//! Events as SQLite keeps them: ids and times are texts, hashes are blobs.

use std::{ops::Range, sync::Arc};

use chrono::NaiveDate;
use ledger_core::{Event, Partition, Position, Timestamp};
use sqlx::{
    Row, Sqlite,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};
use uuid::Uuid;

use crate::{
    DamagedRow, StoreError,
    row::{Damage, EventRow, stored},
};

/// Reads a row of the columns [`crate::row::COLUMNS`].
pub(super) fn read(row: &SqliteRow) -> Result<Result<Event, DamagedRow>, StoreError> {
    let (partition, position) = place(row)?;
    let fields = || -> Result<EventRow<'_>, Damage> {
        Ok(EventRow {
            partition,
            position,
            previous_position: get(row, 1, "previous_position")?,
            epoch: get(row, 2, "epoch")?,
            version: get(row, 3, "version")?,
            amount: get(row, 4, "amount")?,
            released: get(row, 5, "released")?,
            remaining: get(row, 6, "remaining")?,
            balance: get(row, 7, "balance")?,
            frozen: get(row, 8, "frozen")?,
            expires_at: get::<Option<&str>>(row, 10, "expires_at")?.map(|text| time("expires_at", text)).transpose()?,
            recorded_at: time("recorded_at", get(row, 11, "recorded_at")?)?,
            transaction_id: uuid("transaction_id", get(row, 12, "transaction_id")?)?,
            account_id: uuid("account_id", get(row, 13, "account_id")?)?,
            related_id: get::<Option<&str>>(row, 14, "related_id")?.map(|text| uuid("related_id", text)).transpose()?,
            operation_id: uuid("operation_id", get(row, 15, "operation_id")?)?,
            batch_id: get::<Option<&str>>(row, 16, "batch_id")?.map(|text| uuid("batch_id", text)).transpose()?,
            batch_size: get(row, 17, "batch_size")?,
            batch_index: get(row, 18, "batch_index")?,
            schema_version: get(row, 20, "schema_version")?,
            locked: boolean("locked", get(row, 21, "locked")?)?,
            event_type: get(row, 22, "type")?,
            user_id: get(row, 23, "user_id")?,
            credit_type: get(row, 24, "credit_type")?,
            business_code: get(row, 25, "business_code")?,
            business_id: get(row, 26, "business_id")?,
            request_id: get(row, 27, "request_id")?,
            actor: get(row, 28, "actor")?,
            description: get(row, 29, "description")?,
            metadata: get(row, 30, "metadata")?,
            hash: get(row, 31, "hash")?,
            available: get(row, 9, "available")?,
        })
    };
    Ok(fields()
        .map_err(|(column, reason)| DamagedRow { partition, position, column, reason })
        .and_then(EventRow::into_event))
}

fn place(row: &SqliteRow) -> Result<(Partition, Position), StoreError> {
    let partition: i64 = row.try_get(19)?;
    let position: i64 = row.try_get(0)?;
    let partition = u8::try_from(partition).ok().and_then(Partition::new);
    match (partition, u64::try_from(position)) {
        (Some(partition), Ok(position)) => Ok((partition, Position(position))),
        _ => Err(StoreError::Inconsistent(format!("events holds a row at position {position} of no partition"))),
    }
}

fn get<'r, T>(row: &'r SqliteRow, index: usize, column: &'static str) -> Result<T, Damage>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(index).map_err(|error| (column, format!("cannot be read: {error}")))
}

pub(super) fn boolean(column: &'static str, stored: i64) -> Result<bool, Damage> {
    match stored {
        0 => Ok(false),
        1 => Ok(true),
        other => Err((column, format!("is {other}, not 0 or 1"))),
    }
}

/// Only the one way in which the ledger writes an instant: the same instant written otherwise is an edited row.
pub(super) fn time(column: &'static str, text: &str) -> Result<Timestamp, Damage> {
    time_of(text).ok_or_else(|| (column, format!("is `{text}`, not a time as the ledger writes it")))
}

/// The instant that a text is in the one form in which the ledger writes it. Another form of the same instant stands in another
/// place among texts.
#[must_use]
pub fn time_of(text: &str) -> Option<Timestamp> {
    instant(text.as_bytes())
}

/// Digit by digit: a replay reads every event's time, and a parser that takes every form of RFC 3339 takes ten times as
/// long.
fn instant(text: &[u8]) -> Option<Timestamp> {
    const FORM: &[u8; 27] = b"0000-00-00T00:00:00.000000Z";
    let text: &[u8; 27] = text.try_into().ok()?;
    let fits = |(found, form): (&u8, &u8)| if *form == b'0' { found.is_ascii_digit() } else { found == form };
    if !text.iter().zip(FORM).all(fits) {
        return None;
    }
    let field =
        |place: Range<usize>| text[place].iter().fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    let date = NaiveDate::from_ymd_opt(i32::try_from(field(0..4)).ok()?, field(5..7), field(8..10))?;
    let time = date.and_hms_micro_opt(field(11..13), field(14..16), field(17..19), field(20..26))?;
    Timestamp::from_micros(time.and_utc().timestamp_micros())
}

/// Only the one way in which the ledger writes an id.
pub(super) fn uuid(column: &'static str, text: &str) -> Result<Uuid, Damage> {
    id_of(text).ok_or_else(|| (column, format!("is `{text}`, not an id as the ledger writes it")))
}

/// The id that a text is in the one form in which the ledger writes it. Ids are looked up as texts: in another form the same id
/// is found by nobody.
#[must_use]
pub fn id_of(text: &str) -> Option<Uuid> {
    let is_canonical = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    Uuid::try_parse(text).ok().filter(|_| is_canonical)
}

/// Binds an event's columns, in the order of [`crate::row::COLUMNS`].
pub(super) fn bind<'q>(query: Query<'q, Sqlite, SqliteArguments>, event: &Event) -> Query<'q, Sqlite, SqliteArguments> {
    let transaction_id = text(event.transaction_id.uuid());
    let operation_id = match event.operation_id == event.transaction_id.uuid() {
        true => transaction_id.clone(),
        false => text(event.operation_id),
    };
    query
        .bind(stored(event.position.0))
        .bind(stored(event.previous_position.0))
        .bind(i64::from(event.epoch.0))
        .bind(stored(event.after.version))
        .bind(event.amount.map(|amount| stored(amount.units())))
        .bind(stored(event.released))
        .bind(event.remaining.map(stored))
        .bind(stored(event.after.balance))
        .bind(stored(event.after.frozen))
        .bind(stored(event.after.available()))
        .bind(event.expires_at.map(|at| at.to_string()))
        .bind(event.recorded_at.to_string())
        .bind(transaction_id)
        .bind(text(event.account.id().uuid()))
        .bind(event.related_id.map(|id| text(id.uuid())))
        .bind(operation_id)
        .bind(event.batch.map(|mark| text(mark.id)))
        .bind(event.batch.map(|mark| i64::from(mark.size)))
        .bind(event.batch.map(|mark| i64::from(mark.index)))
        .bind(i64::from(event.partition.number()))
        .bind(i64::from(event.schema_version))
        .bind(i64::from(event.after.locked))
        .bind(event.event_type.name())
        .bind(event.account.user_id().clone())
        .bind(event.account.credit_type().clone())
        .bind(event.key.code().clone())
        .bind(event.key.id().clone())
        .bind(event.request_id.clone())
        .bind(event.actor.clone())
        .bind(event.description.clone())
        .bind(event.metadata.clone())
        .bind(event.hash.0.to_vec())
}

/// An id as the ledger writes it.
fn text(id: Uuid) -> Arc<str> {
    Arc::from(&*id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_one_form() {
        for micros in [0, 1, 951_782_400_123_456, 1_700_000_000_000_000, 253_402_300_799_999_999] {
            let time = Timestamp::from_micros(micros).expect("in range");
            assert_eq!(instant(time.to_string().as_bytes()), Some(time));
        }
        for text in [
            "2026-11-20T12:00:00Z",
            "2026-11-20T12:00:00.000000+00:00",
            "2026-11-20t12:00:00.000000Z",
            "2026-02-30T12:00:00.000000Z",
            "2026-11-20T12:00:60.000000Z",
            "2026-11-20T24:00:00.000000Z",
            "1969-11-20T12:00:00.000000Z",
            "",
        ] {
            assert_eq!(instant(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_id_has_one_form() {
        let text = "00c1bb77-7c3a-8000-8fff-ffffffffffff";
        assert_eq!(uuid("id", text).expect("an id").to_string(), text);
        for other in [text.to_uppercase(), text.replace('-', ""), format!("{{{text}}}"), format!("urn:uuid:{text}")] {
            assert!(uuid("id", &other).is_err(), "{other}");
        }
    }
}
