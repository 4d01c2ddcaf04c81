//! Events as PostgreSQL keeps them.

use chrono::{DateTime, Utc};
use ledger_core::{Event, Partition, Position, Timestamp};
use sqlx::{Postgres, Row, postgres::PgRow};

use crate::{
    DamagedRow, StoreError,
    row::{Damage, EventRow},
};

/// Reads a row of the columns [`crate::row::COLUMNS`].
pub(super) fn read(row: &PgRow) -> Result<Result<Event, DamagedRow>, StoreError> {
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
            expires_at: get::<Option<DateTime<Utc>>>(row, 10, "expires_at")?
                .map(|at| time("expires_at", at))
                .transpose()?,
            recorded_at: time("recorded_at", get(row, 11, "recorded_at")?)?,
            transaction_id: get(row, 12, "transaction_id")?,
            account_id: get(row, 13, "account_id")?,
            related_id: get(row, 14, "related_id")?,
            operation_id: get(row, 15, "operation_id")?,
            batch_id: get(row, 16, "batch_id")?,
            batch_size: get::<Option<i32>>(row, 17, "batch_size")?.map(i64::from),
            batch_index: get::<Option<i32>>(row, 18, "batch_index")?.map(i64::from),
            schema_version: get::<i16>(row, 20, "schema_version")?.into(),
            locked: get(row, 21, "locked")?,
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

fn place(row: &PgRow) -> Result<(Partition, Position), StoreError> {
    let partition: i16 = row.try_get(19)?;
    let position: i64 = row.try_get(0)?;
    let partition = u8::try_from(partition).ok().and_then(Partition::new);
    match (partition, u64::try_from(position)) {
        (Some(partition), Ok(position)) => Ok((partition, Position(position))),
        _ => Err(StoreError::Inconsistent(format!("events holds a row at position {position} of no partition"))),
    }
}

fn get<'r, T>(row: &'r PgRow, index: usize, column: &'static str) -> Result<T, Damage>
where
    T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    row.try_get(index).map_err(|error| (column, format!("cannot be read: {error}")))
}

fn time(column: &'static str, at: DateTime<Utc>) -> Result<Timestamp, Damage> {
    Timestamp::from_micros(at.timestamp_micros())
        .ok_or_else(|| (column, format!("is {at}, outside the years 1970 to 9999")))
}
