//! On PostgreSQL.

use chrono::{DateTime, Utc};
use ledger_core::{Partition, Timestamp};
use ledger_store::{StoreError, postgres::Postgres};
use sqlx::{AssertSqlSafe, Row, postgres::PgRow};
use uuid::Uuid;

use super::{BY_PROOF, COLUMNS, Finding, Inconsistency, Status, merged};

pub(super) async fn record(
    database: &Postgres,
    finding: &Finding,
    id: Uuid,
    at: Timestamp,
) -> Result<(Uuid, Option<String>), StoreError> {
    let account = finding.account.as_ref();
    let row = sqlx::query_as(
        "insert into inconsistencies (partition, inconsistency_id, position, projection, kind, subject, expected, found, \
             user_id, credit_type, size, found_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         on conflict (partition, projection, subject) where resolved_at is null \
         do update set expected = excluded.expected, found = excluded.found, size = excluded.size \
         returning inconsistency_id, outcome",
    )
    .bind(i16::from(finding.partition.number()))
    .bind(id)
    .bind(finding.position)
    .bind(finding.projection)
    .bind(finding.kind)
    .bind(&finding.subject)
    .bind(printable(&finding.expected))
    .bind(printable(&finding.found))
    .bind(account.map(|account| account.user_id().to_string()))
    .bind(account.map(|account| account.credit_type().to_string()))
    .bind(finding.size.map(|size| i64::try_from(size).unwrap_or(i64::MAX)))
    .bind(DateTime::<Utc>::from(at))
    .fetch_one(database.pool())
    .await?;
    Ok(row)
}

/// A text that the database takes: no NUL.
fn printable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(super) async fn set_outcome(
    database: &Postgres,
    partition: Partition,
    id: Uuid,
    outcome: &str,
    resolved: Option<Timestamp>,
) -> Result<(), StoreError> {
    sqlx::query(
        "update inconsistencies set outcome = $3, resolved_at = coalesce(resolved_at, $4), \
             resolved_by = case when $4 is null then resolved_by else coalesce(resolved_by, $5) end \
         where partition = $1 and inconsistency_id = $2",
    )
    .bind(i16::from(partition.number()))
    .bind(id)
    .bind(outcome)
    .bind(resolved.map(DateTime::<Utc>::from))
    .bind(BY_PROOF)
    .execute(database.pool())
    .await?;
    Ok(())
}

pub(super) async fn resolve_gone(
    database: &Postgres,
    partition: Partition,
    began: Timestamp,
    up_to: i64,
    standing: &[Uuid],
    at: Timestamp,
) -> Result<u64, StoreError> {
    let resolved = sqlx::query(
        "update inconsistencies set resolved_at = $5, resolved_by = $6, outcome = coalesce(outcome, 'gone') \
         where partition = $1 and resolved_at is null and found_at < $2 and (position <= $3 or user_id is not null) \
         and inconsistency_id <> all($4)",
    )
    .bind(i16::from(partition.number()))
    .bind(DateTime::<Utc>::from(began))
    .bind(up_to)
    .bind(standing)
    .bind(DateTime::<Utc>::from(at))
    .bind(BY_PROOF)
    .execute(database.pool())
    .await?;
    Ok(resolved.rows_affected())
}

pub(super) async fn resolve(
    database: &Postgres,
    partition: Partition,
    id: Uuid,
    by: &str,
    note: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "update inconsistencies set note = $4, resolved_at = coalesce(resolved_at, $5), \
             resolved_by = coalesce(resolved_by, $3), outcome = coalesce(outcome, 'resolved') \
         where partition = $1 and inconsistency_id = $2 and note is null",
    )
    .bind(i16::from(partition.number()))
    .bind(id)
    .bind(by)
    .bind(note)
    .bind(DateTime::<Utc>::from(at))
    .execute(database.pool())
    .await?;
    Ok(())
}

pub(super) async fn find(database: &Postgres, id: Uuid) -> Result<Option<Inconsistency>, StoreError> {
    // The id does not say the partition: each one's index is asked.
    let sql = format!(
        "select {COLUMNS} from inconsistencies where partition = any(array(select generate_series(0, 63)::smallint)) \
         and inconsistency_id = $1"
    );
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_optional(database.pool()).await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn list(
    database: &Postgres,
    status: Option<Status>,
    before: Uuid,
    limit: i64,
) -> Result<Vec<Inconsistency>, StoreError> {
    let sql = merged("inconsistencies", COLUMNS, Status::condition(status));
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(before).bind(limit).fetch_all(database.pool()).await?;
    rows.iter().map(read).collect()
}

fn read(row: &PgRow) -> Result<Inconsistency, StoreError> {
    let unreadable =
        || StoreError::Inconsistent("inconsistencies holds a time outside the years 1970 to 9999".to_owned());
    let time = |at: DateTime<Utc>| Timestamp::from_micros(at.timestamp_micros()).ok_or_else(unreadable);
    Ok(Inconsistency {
        partition: row.try_get::<i16, _>(0)?.into(),
        id: row.try_get(1)?,
        position: row.try_get(2)?,
        projection: row.try_get(3)?,
        kind: row.try_get(4)?,
        subject: row.try_get(5)?,
        expected: row.try_get(6)?,
        found: row.try_get(7)?,
        user_id: row.try_get(8)?,
        credit_type: row.try_get(9)?,
        size: row.try_get(10)?,
        outcome: row.try_get(11)?,
        found_at: time(row.try_get(12)?)?,
        resolved_at: row.try_get::<Option<_>, _>(13)?.map(time).transpose()?,
        resolved_by: row.try_get(14)?,
        note: row.try_get(15)?,
    })
}
