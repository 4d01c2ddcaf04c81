//! What was found that cannot be: written down once for as long as it stands.
//!
//! Whoever finds something records it under its subject: the row, or the place in the log. While an inconsistency is open
//! the same subject is the same inconsistency, however often it is met; once it is resolved it is another one.

use chrono::Utc;
use ledger_core::{Account, PARTITIONS, Partition, Timestamp, rejection::Contradiction};
use ledger_store::{Database, StoreError};
use uuid::Uuid;

use crate::checkpoint::ReadModel;

mod postgres;
mod sqlite;

/// What the log itself is called where a read model is named.
pub const LOG: &str = "events";
/// What resolves by itself: the continuous proof.
pub const BY_PROOF: &str = "system.proof";

/// Something that cannot be, before it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub partition: Partition,
    /// The read model's table, or [`LOG`].
    pub projection: &'static str,
    pub kind: &'static str,
    /// What it is about: one row, or one place.
    pub subject: String,
    pub position: i64,
    pub account: Option<Account>,
    pub expected: String,
    pub found: String,
    /// The largest difference of an amount, in units; none where it is no matter of amounts.
    pub size: Option<u64>,
}

impl Finding {
    /// Where a projector stopped.
    pub(crate) fn stopped(partition: Partition, model: ReadModel, found: &Contradiction) -> Self {
        Self {
            partition,
            projection: model.name(),
            kind: found.field,
            subject: format!("{} {}", found.position, found.field),
            position: i64::try_from(found.position.0).unwrap_or(i64::MAX),
            account: None,
            expected: found.expected.clone(),
            found: found.found.clone(),
            size: None,
        }
    }

    /// Where the log is damaged.
    #[must_use]
    pub fn log_damaged(partition: Partition, found: &Contradiction) -> Self {
        Self {
            projection: LOG,
            kind: "log_damaged",
            expected: format!("{} {}", found.field, found.expected),
            ..Self::stopped(partition, ReadModel::Balances, found)
        }
    }
}

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub id: Uuid,
    /// It was not open before.
    pub is_new: bool,
    /// What was done about it already.
    pub outcome: Option<String>,
}

/// An inconsistency as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inconsistency {
    pub partition: i64,
    pub id: Uuid,
    pub position: i64,
    pub projection: String,
    pub kind: String,
    pub subject: String,
    pub expected: String,
    pub found: String,
    pub user_id: Option<String>,
    pub credit_type: Option<String>,
    pub size: Option<i64>,
    pub outcome: Option<String>,
    pub found_at: Timestamp,
    pub resolved_at: Option<Timestamp>,
    pub resolved_by: Option<String>,
    pub note: Option<String>,
}

/// The columns, in the order in which both databases read them.
const COLUMNS: &str = "partition, inconsistency_id, position, projection, kind, subject, expected, found, user_id, \
     credit_type, size, outcome, found_at, resolved_at, resolved_by, note";

/// Which inconsistencies are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Open,
    Resolved,
}

impl Status {
    /// The condition that a row of it meets.
    const fn condition(status: Option<Self>) -> &'static str {
        match status {
            None => "true",
            Some(Self::Open) => "resolved_at is null",
            Some(Self::Resolved) => "resolved_at is not null",
        }
    }
}

/// Writes a finding down, if its subject is not open already. What stands is brought up to date.
///
/// # Errors
///
/// When the database failed.
pub async fn record(database: &Database, finding: &Finding) -> Result<Known, StoreError> {
    let id = time_ordered_id();
    let (known, outcome) = match database {
        Database::Postgres(database) => postgres::record(database, finding, id, now()).await?,
        Database::Sqlite(database) => sqlite::record(database, finding, id, now()).await?,
    };
    Ok(Known { id: known, is_new: known == id, outcome })
}

/// Says what was done about an inconsistency; `resolved` when that is the end of it.
///
/// # Errors
///
/// When the database failed.
pub async fn set_outcome(
    database: &Database,
    partition: Partition,
    id: Uuid,
    outcome: &str,
    resolved: bool,
) -> Result<(), StoreError> {
    let resolved = resolved.then(now);
    match database {
        Database::Postgres(database) => postgres::set_outcome(database, partition, id, outcome, resolved).await,
        Database::Sqlite(database) => sqlite::set_outcome(database, partition, id, outcome, resolved).await,
    }
}

/// Resolves what a proof of a partition did not meet again: it was found before the proof began, at a place that the proof
/// has passed. Tells how many those are.
///
/// # Errors
///
/// When the database failed.
pub async fn resolve_gone(
    database: &Database,
    partition: Partition,
    began: Timestamp,
    up_to: u64,
    standing: &[Uuid],
) -> Result<u64, StoreError> {
    let up_to = i64::try_from(up_to).unwrap_or(i64::MAX);
    match database {
        Database::Postgres(database) => {
            postgres::resolve_gone(database, partition, began, up_to, standing, now()).await
        }
        Database::Sqlite(database) => sqlite::resolve_gone(database, partition, began, up_to, standing, now()).await,
    }
}

/// Resolves an inconsistency by a person's word, unless that was done: the first word stands. Gives it as it is then.
///
/// # Errors
///
/// When the database failed.
pub async fn resolve(
    database: &Database,
    partition: Partition,
    id: Uuid,
    by: &str,
    note: &str,
) -> Result<(), StoreError> {
    match database {
        Database::Postgres(database) => postgres::resolve(database, partition, id, by, note, now()).await,
        Database::Sqlite(database) => sqlite::resolve(database, partition, id, by, note, now()).await,
    }
}

/// The inconsistency of that id.
///
/// # Errors
///
/// When the database failed.
pub async fn find(database: &Database, id: Uuid) -> Result<Option<Inconsistency>, StoreError> {
    match database {
        Database::Postgres(database) => postgres::find(database, id).await,
        Database::Sqlite(database) => sqlite::find(database, id).await,
    }
}

/// Inconsistencies with smaller ids than `before`, the largest (which is the newest) first.
///
/// # Errors
///
/// When the database failed.
pub async fn list(
    database: &Database,
    status: Option<Status>,
    before: Option<Uuid>,
    limit: usize,
) -> Result<Vec<Inconsistency>, StoreError> {
    let before = before.unwrap_or(Uuid::max());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    match database {
        Database::Postgres(database) => postgres::list(database, status, before, limit).await,
        Database::Sqlite(database) => sqlite::list(database, status, before, limit).await,
    }
}

/// How many are open.
///
/// # Errors
///
/// When the database failed.
pub async fn count_open(database: &Database) -> Result<i64, StoreError> {
    let sql = "select count(*) from inconsistencies where resolved_at is null";
    Ok(match database {
        Database::Postgres(database) => sqlx::query_scalar(sql).fetch_one(database.pool()).await?,
        Database::Sqlite(database) => sqlx::query_scalar(sql).fetch_one(database.readers()).await?,
    })
}

/// The newest rows first of all partitions: each partition's are read in the order of its index, and merged.
fn merged(table: &str, columns: &str, condition: &str) -> String {
    let of_partitions: Vec<_> = (0..PARTITIONS)
        .map(|partition| {
            format!(
                "select * from (select {columns} from {table} where partition = {partition} \
                 and inconsistency_id < $1 and {condition} order by inconsistency_id desc limit $2) p{partition}"
            )
        })
        .collect();
    format!("select * from ({}) merged order by inconsistency_id desc limit $2", of_partitions.join(" union all "))
}

fn time_ordered_id() -> Uuid {
    let random = *Uuid::new_v4().as_bytes();
    let [.., a, b, c, d, e, f, g, h, i, j] = random;
    let millis = u64::try_from(now().micros() / 1_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &[a, b, c, d, e, f, g, h, i, j]).into_uuid()
}

fn now() -> Timestamp {
    Timestamp::from_micros(Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}
