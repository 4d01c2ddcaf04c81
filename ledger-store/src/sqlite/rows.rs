//! Events as SQLite keeps them: ids and times are texts, hashes are blobs.

use std::sync::Arc;

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
            previous_position: get(row, 2, "previous_position")?,
            epoch: get(row, 3, "epoch")?,
            version: get(row, 4, "version")?,
            amount: get(row, 5, "amount")?,
            released: get(row, 6, "released")?,
            remaining: get(row, 7, "remaining")?,
            balance: get(row, 8, "balance")?,
            frozen: get(row, 9, "frozen")?,
            expires_at: get::<Option<&str>>(row, 10, "expires_at")?.map(|text| time("expires_at", text)).transpose()?,
            recorded_at: time("recorded_at", get(row, 11, "recorded_at")?)?,
            transaction_id: uuid("transaction_id", get(row, 12, "transaction_id")?)?,
            account_id: uuid("account_id", get(row, 13, "account_id")?)?,
            related_id: get::<Option<&str>>(row, 14, "related_id")?.map(|text| uuid("related_id", text)).transpose()?,
            operation_id: uuid("operation_id", get(row, 15, "operation_id")?)?,
            batch_id: get::<Option<&str>>(row, 16, "batch_id")?.map(|text| uuid("batch_id", text)).transpose()?,
            batch_size: get(row, 17, "batch_size")?,
            batch_index: get(row, 18, "batch_index")?,
            schema_version: get(row, 19, "schema_version")?,
            locked: match get::<i64>(row, 20, "locked")? {
                0 => false,
                1 => true,
                other => return Err(("locked", format!("is {other}, not 0 or 1"))),
            },
            event_type: get(row, 21, "type")?,
            user_id: get(row, 22, "user_id")?,
            credit_type: get(row, 23, "credit_type")?,
            business_code: get(row, 24, "business_code")?,
            business_id: get(row, 25, "business_id")?,
            request_id: get(row, 26, "request_id")?,
            actor: get(row, 27, "actor")?,
            description: get(row, 28, "description")?,
            metadata: get(row, 29, "metadata")?,
            hash: get(row, 30, "hash")?,
            available: get(row, 31, "available")?,
        })
    };
    Ok(fields()
        .map_err(|(column, reason)| DamagedRow { partition, position, column, reason })
        .and_then(EventRow::into_event))
}

fn place(row: &SqliteRow) -> Result<(Partition, Position), StoreError> {
    let partition: i64 = row.try_get(0)?;
    let position: i64 = row.try_get(1)?;
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

/// Only the one way in which the ledger writes an instant: the same instant written otherwise is an edited row.
fn time(column: &'static str, text: &str) -> Result<Timestamp, Damage> {
    match Timestamp::parse(text) {
        Some(time) if time.to_string() == text => Ok(time),
        _ => Err((column, format!("is `{text}`, not a time as the ledger writes it"))),
    }
}

/// Only the one way in which the ledger writes an id.
fn uuid(column: &'static str, text: &str) -> Result<Uuid, Damage> {
    match Uuid::try_parse(text) {
        Ok(uuid) if uuid.as_hyphenated().to_string() == text => Ok(uuid),
        _ => Err((column, format!("is `{text}`, not an id as the ledger writes it"))),
    }
}

/// Binds an event's columns, in the order of [`crate::row::COLUMNS`].
pub(super) fn bind<'q>(query: Query<'q, Sqlite, SqliteArguments>, event: &Event) -> Query<'q, Sqlite, SqliteArguments> {
    let transaction_id = text(event.transaction_id.uuid());
    let operation_id = match event.operation_id == event.transaction_id.uuid() {
        true => transaction_id.clone(),
        false => text(event.operation_id),
    };
    query
        .bind(i64::from(event.partition.number()))
        .bind(stored(event.position.0))
        .bind(stored(event.previous_position.0))
        .bind(i64::from(event.epoch.0))
        .bind(stored(event.after.version))
        .bind(event.amount.map(|amount| stored(amount.units())))
        .bind(stored(event.released))
        .bind(event.remaining.map(stored))
        .bind(stored(event.after.balance))
        .bind(stored(event.after.frozen))
        .bind(event.expires_at.map(|at| at.to_string()))
        .bind(event.recorded_at.to_string())
        .bind(transaction_id)
        .bind(text(event.account.id().uuid()))
        .bind(event.related_id.map(|id| text(id.uuid())))
        .bind(operation_id)
        .bind(event.batch.map(|mark| text(mark.id)))
        .bind(event.batch.map(|mark| i64::from(mark.size)))
        .bind(event.batch.map(|mark| i64::from(mark.index)))
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
        .bind(stored(event.after.available()))
}

/// An id as the ledger writes it.
fn text(id: Uuid) -> Arc<str> {
    Arc::from(&*id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
}
