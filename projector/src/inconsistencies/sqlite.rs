//! On SQLite.

use ledger_core::{Partition, Timestamp};
use ledger_store::{StoreError, error::end_on_lost_sync, sqlite::Sqlite};
use serde_json::json;
use sqlx::{AssertSqlSafe, Row, sqlite::SqliteRow};
use uuid::Uuid;

use super::{BY_PROOF, COLUMNS, Finding, Inconsistency, Status, merged};

pub(super) async fn record(
    database: &Sqlite,
    finding: &Finding,
    id: Uuid,
    at: Timestamp,
) -> Result<(Uuid, Option<String>), StoreError> {
    let account = finding.account.as_ref();
    let mut turn = database.relaxed_turn().await?;
    let (known, outcome): (String, Option<String>) = sqlx::query_as(
        "insert into inconsistencies (partition, inconsistency_id, position, projection, kind, subject, expected, found, \
             user_id, credit_type, size, found_at) \
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         on conflict (partition, projection, subject) where resolved_at is null \
         do update set expected = excluded.expected, found = excluded.found, size = excluded.size \
         returning inconsistency_id, outcome",
    )
    .bind(i64::from(finding.partition.number()))
    .bind(id.to_string())
    .bind(finding.position)
    .bind(finding.projection)
    .bind(finding.kind)
    .bind(&finding.subject)
    .bind(&finding.expected)
    .bind(&finding.found)
    .bind(account.map(|account| account.user_id().to_string()))
    .bind(account.map(|account| account.credit_type().to_string()))
    .bind(finding.size.map(|size| i64::try_from(size).unwrap_or(i64::MAX)))
    .bind(at.to_string())
    .fetch_one(turn.connection())
    .await?;
    Ok((parse(&known)?, outcome))
}

pub(super) async fn set_outcome(
    database: &Sqlite,
    partition: Partition,
    id: Uuid,
    outcome: &str,
    resolved: Option<Timestamp>,
) -> Result<(), StoreError> {
    let mut turn = database.relaxed_turn().await?;
    sqlx::query(
        "update inconsistencies set outcome = ?3, resolved_at = coalesce(resolved_at, ?4), \
             resolved_by = case when ?4 is null then resolved_by else coalesce(resolved_by, ?5) end \
         where partition = ?1 and inconsistency_id = ?2",
    )
    .bind(i64::from(partition.number()))
    .bind(id.to_string())
    .bind(outcome)
    .bind(resolved.map(|at| at.to_string()))
    .bind(BY_PROOF)
    .execute(turn.connection())
    .await?;
    Ok(())
}

pub(super) async fn resolve_gone(
    database: &Sqlite,
    partition: Partition,
    began: Timestamp,
    up_to: i64,
    standing: &[Uuid],
    at: Timestamp,
) -> Result<u64, StoreError> {
    let open: bool =
        sqlx::query_scalar("select exists (select 1 from inconsistencies where partition = ? and resolved_at is null)")
            .bind(i64::from(partition.number()))
            .fetch_one(database.readers())
            .await?;
    if !open {
        // Nobody's turn to write is taken for nothing.
        return Ok(0);
    }
    let mut turn = database.relaxed_turn().await?;
    let resolved = sqlx::query(
        "update inconsistencies set resolved_at = ?5, resolved_by = ?6, outcome = coalesce(outcome, 'gone') \
         where partition = ?1 and resolved_at is null and found_at < ?2 and (position <= ?3 or user_id is not null) \
         and inconsistency_id not in (select value from json_each(?4))",
    )
    .bind(i64::from(partition.number()))
    .bind(began.to_string())
    .bind(up_to)
    .bind(json!(standing).to_string())
    .bind(at.to_string())
    .bind(BY_PROOF)
    .execute(turn.connection())
    .await?;
    Ok(resolved.rows_affected())
}

pub(super) async fn resolve(
    database: &Sqlite,
    partition: Partition,
    id: Uuid,
    by: &str,
    note: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    let mut turn = database.relaxed_turn().await?;
    // A person's word cannot be made again from the log, so this turn waits for the disk.
    sqlx::query("pragma synchronous = full").execute(turn.connection()).await?;
    let resolve = sqlx::query(
        "update inconsistencies set note = ?4, resolved_at = coalesce(resolved_at, ?5), \
             resolved_by = coalesce(resolved_by, ?3), outcome = coalesce(outcome, 'resolved') \
         where partition = ?1 and inconsistency_id = ?2 and note is null",
    )
    .bind(i64::from(partition.number()))
    .bind(id.to_string())
    .bind(by)
    .bind(note)
    .bind(at.to_string());
    resolve.execute(turn.connection()).await.map_err(|error| end_on_lost_sync(error.into()))?;
    Ok(())
}

pub(super) async fn find(database: &Sqlite, id: Uuid) -> Result<Option<Inconsistency>, StoreError> {
    // The id does not say the partition: each one's index is asked.
    let sql = format!(
        "select {COLUMNS} from inconsistencies where partition in (select value from generated) and inconsistency_id = ?"
    );
    let sql = format!(
        "with recursive generated (value) as (select 0 union all select value + 1 from generated where value < 63) {sql}"
    );
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(database.readers()).await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn list(
    database: &Sqlite,
    status: Option<Status>,
    before: Uuid,
    limit: i64,
) -> Result<Vec<Inconsistency>, StoreError> {
    let sql = merged("inconsistencies", COLUMNS, Status::condition(status));
    let rows =
        sqlx::query(AssertSqlSafe(sql)).bind(before.to_string()).bind(limit).fetch_all(database.readers()).await?;
    rows.iter().map(read).collect()
}

fn parse(id: &str) -> Result<Uuid, StoreError> {
    Uuid::try_parse(id)
        .map_err(|_| StoreError::Inconsistent(format!("inconsistencies holds the id {id}, which is none")))
}

fn read(row: &SqliteRow) -> Result<Inconsistency, StoreError> {
    let time = |text: &str| {
        let unreadable = || StoreError::Inconsistent(format!("inconsistencies holds the time {text}, which is none"));
        Timestamp::parse(text).ok_or_else(unreadable)
    };
    Ok(Inconsistency {
        partition: row.try_get(0)?,
        id: parse(row.try_get(1)?)?,
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
        resolved_at: row.try_get::<Option<&str>, _>(13)?.map(time).transpose()?,
        resolved_by: row.try_get(14)?,
        note: row.try_get(15)?,
    })
}
