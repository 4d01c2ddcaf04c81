//! The table `audit` on both databases.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ledger_core::{Account, Partition, Timestamp, TransactionId};
use ledger_store::{Database, StoreError, postgres::copy::Rows, sqlite};
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::{sync::Semaphore, time::sleep};
use uuid::Uuid;

use super::{Entry, Outcome};

/// Rows that are written to SQLite in one turn: commands wait for it.
pub(super) const ROWS_OF_A_TURN: usize = 64;
/// Rows that are sent to PostgreSQL at once, a millisecond's work, and the pause after them: commands want the cores, too.
const ROWS_OF_A_STEP: usize = 128;
const PAUSE: Duration = Duration::from_millis(1);
/// Rows that are deleted at once.
const SLICE: i64 = 1_000;

pub(crate) const COLUMNS: &str = "partition, audit_id, recorded_at, action, outcome, actor, address, request_id, user_id, \
     credit_type, transaction_id, details";

/// A row, as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) partition: i16,
    pub(crate) id: Uuid,
    pub(crate) at: Timestamp,
    pub(crate) action: String,
    pub(crate) outcome: String,
    pub(crate) actor: String,
    pub(crate) address: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) credit_type: Option<String>,
    pub(crate) transaction_id: Option<Uuid>,
    pub(crate) details: Option<String>,
}

impl Row {
    pub(crate) fn of(at: Timestamp, entry: Entry) -> Self {
        let random = *Uuid::new_v4().as_bytes();
        let [.., a, b, c, d, e, f, g, h, i, j] = random;
        let event = match &entry.outcome {
            Outcome::Recorded(event) | Outcome::Replayed(event) => Some(event),
            Outcome::Refused(_) | Outcome::Done => None,
        };
        let account = event.map(|event| &event.account).or(entry.account.as_ref());
        let outcome = match &entry.outcome {
            Outcome::Recorded(_) => "recorded",
            Outcome::Replayed(_) => "replayed",
            Outcome::Refused(code) => code,
            Outcome::Done => "done",
        };
        Self {
            // What is no account's is spread by chance.
            partition: account.map_or(i16::from(j % 64), |account| i16::from(account.partition().number())),
            id: id_at(at.micros() / 1_000, [a, b, c, d, e, f, g, h, i, j]),
            at,
            action: entry.action.to_owned(),
            outcome: outcome.to_owned(),
            actor: entry.actor.to_string(),
            address: entry.address.as_deref().map(str::to_owned),
            request_id: entry.request_id.as_deref().map(str::to_owned),
            user_id: account.map(|account| account.user_id().to_string()),
            credit_type: account.map(|account| account.credit_type().to_string()),
            transaction_id: event.map(|event| event.transaction_id.uuid()),
            details: entry.details.map(|details: Box<Map<String, Value>>| Value::Object(*details).to_string()),
        }
    }

    pub(crate) fn transaction(&self) -> Option<TransactionId> {
        self.transaction_id.and_then(TransactionId::from_uuid)
    }
}

/// A UUID of version 7.
pub(crate) fn id_at(millis: i64, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(millis).unwrap_or(0), &random).into_uuid()
}

/// Whether some of the rows may be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    First,
    /// An earlier attempt failed, and may have written them all the same.
    Again,
}

/// Writes rows, which need not wait for the disk. Those that are there already stay.
pub(crate) async fn insert(database: &Database, rows: &[Row], attempt: Attempt) -> Result<(), StoreError> {
    // In the order of the key, so that few pages are touched at a time.
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_unstable_by_key(|row| (row.partition, row.id));
    match database {
        Database::Postgres(database) => {
            let mut transaction = database.pool().begin().await?;
            sqlx::query("set local synchronous_commit = off").execute(&mut *transaction).await?;
            match attempt {
                Attempt::First => copy(&mut transaction, &rows).await?,
                Attempt::Again => insert_absent(&mut transaction, &rows).await?,
            }
            transaction.commit().await?;
        }
        Database::Sqlite(database) => {
            for some in rows.chunks(ROWS_OF_A_TURN) {
                let sql = format!(
                    "insert or ignore into audit ({COLUMNS}) select * from ({}) where column1 is not null",
                    sqlite::values(sqlite::padded(some.len()), 12)
                );
                let mut insert = sqlx::query(AssertSqlSafe(sql));
                for row in some {
                    insert = insert
                        .bind(i64::from(row.partition))
                        .bind(row.id.to_string())
                        .bind(row.at.to_string())
                        .bind(&row.action)
                        .bind(&row.outcome)
                        .bind(&row.actor)
                        .bind(&row.address)
                        .bind(&row.request_id)
                        .bind(&row.user_id)
                        .bind(&row.credit_type)
                        .bind(row.transaction_id.map(|id| id.to_string()))
                        .bind(&row.details);
                }
                let mut turn = database.relaxed_turn().await?;
                insert.execute(turn.connection()).await?;
            }
        }
    }
    Ok(())
}

/// Writes rows of which none is there: at half of what an insert costs that looks first.
async fn copy(connection: &mut PgConnection, rows: &[&Row]) -> Result<(), StoreError> {
    let mut into = connection.copy_in_raw(&format!("copy audit ({COLUMNS}) from stdin (format binary)")).await?;
    let mut binary = Rows::new(ROWS_OF_A_STEP);
    for rows in rows.chunks(ROWS_OF_A_STEP) {
        for row in rows {
            binary
                .row(12)
                .small(row.partition)
                .uuid(row.id)
                .time(row.at)
                .text(&row.action)
                .text(&row.outcome)
                .text(&row.actor)
                .optional(row.address.as_deref(), Rows::text)
                .optional(row.request_id.as_deref(), Rows::text)
                .optional(row.user_id.as_deref(), Rows::text)
                .optional(row.credit_type.as_deref(), Rows::text)
                .optional(row.transaction_id, Rows::uuid)
                .optional(row.details.as_deref(), Rows::text);
        }
        into.send(std::mem::replace(&mut binary, Rows::more(ROWS_OF_A_STEP)).into_bytes()).await?;
        sleep(PAUSE).await;
    }
    into.send(binary.end()).await?;
    into.finish().await?;
    Ok(())
}

async fn insert_absent(connection: &mut PgConnection, rows: &[&Row]) -> Result<(), StoreError> {
    let sql = format!(
        "insert into audit ({COLUMNS}) select * from unnest($1::smallint[], $2::uuid[], $3::timestamptz[], $4::text[], \
             $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::uuid[], $12::text[]) \
         on conflict do nothing"
    );
    for rows in rows.chunks(ROWS_OF_A_STEP) {
        let texts = |of: fn(&Row) -> Option<&str>| rows.iter().map(|row| of(row)).collect::<Vec<_>>();
        sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(rows.iter().map(|row| row.partition).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| DateTime::<Utc>::from(row.at)).collect::<Vec<_>>())
            .bind(texts(|row| Some(&row.action)))
            .bind(texts(|row| Some(&row.outcome)))
            .bind(texts(|row| Some(&row.actor)))
            .bind(texts(|row| row.address.as_deref()))
            .bind(texts(|row| row.request_id.as_deref()))
            .bind(texts(|row| row.user_id.as_deref()))
            .bind(texts(|row| row.credit_type.as_deref()))
            .bind(rows.iter().map(|row| row.transaction_id).collect::<Vec<_>>())
            .bind(texts(|row| row.details.as_deref()))
            .execute(&mut *connection)
            .await?;
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Deletes what is older than an id, slice by slice.
pub(super) async fn prune(database: &Database, before: Uuid) -> Result<(), StoreError> {
    for partition in Partition::all() {
        loop {
            let deleted = match database {
                Database::Postgres(database) => sqlx::query(
                    "delete from audit where partition = $1 and audit_id in (select audit_id from audit \
                         where partition = $1 and audit_id < $2 order by audit_id limit $3)",
                )
                .bind(i16::from(partition.number()))
                .bind(before)
                .bind(SLICE)
                .execute(database.pool())
                .await?
                .rows_affected(),
                Database::Sqlite(database) => {
                    let mut turn = database.relaxed_turn().await?;
                    sqlx::query(
                        "delete from audit where partition = ?1 and audit_id in (select audit_id from audit \
                             where partition = ?1 and audit_id < ?2 order by audit_id limit ?3)",
                    )
                    .bind(i64::from(partition.number()))
                    .bind(before.to_string())
                    .bind(SLICE)
                    .execute(turn.connection())
                    .await?
                    .rows_affected()
                }
            };
            if deleted < SLICE.unsigned_abs() {
                break;
            }
        }
    }
    Ok(())
}

/// What is searched for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) account: Option<Account>,
    pub(super) actor: Option<String>,
    pub(super) action: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) from: Uuid,
    pub(super) before: Uuid,
    pub(super) limit: i64,
}

/// Rows that one search looks at, in all.
const LOOKS_MAX: i64 = 320_000;
/// Searches of one process at a time: each may read for seconds, by connections that all other reads need, too.
static SEARCHES: Semaphore = Semaphore::const_new(4);

/// The newest rows that are searched for, and down to where was looked, when that was not to the end.
pub(super) async fn search(database: &Database, wanted: &Wanted) -> Result<(Vec<Row>, Option<Uuid>), StoreError> {
    let _turn = SEARCHES.acquire().await.expect("it is never closed");
    let partitions: Vec<_> = match &wanted.account {
        Some(account) => vec![account.partition()],
        None => Partition::all().collect(),
    };
    let looks = LOOKS_MAX / i64::try_from(partitions.len()).unwrap_or(1);
    let each = |part: &dyn Fn(Partition) -> String| {
        partitions.iter().map(|partition| part(*partition)).collect::<Vec<_>>().join(" union all ")
    };
    let rows = each(&|partition| {
        format!(
            "select * from (select * from (select {COLUMNS} from audit where partition = {partition} and audit_id < $1 \
                 and audit_id >= $2 order by audit_id desc limit {looks}) l{partition} \
             where ($3 is null or actor = $3) and ($4 is null or action = $4) and ($5 is null or request_id = $5) \
             and ($6 is null or user_id = $6) and ($7 is null or credit_type = $7) limit $8) p{partition}"
        )
    });
    let rows = format!("select * from ({rows}) merged order by audit_id desc limit $8");
    let ends = each(&|partition| {
        format!(
            "select * from (select audit_id from audit where partition = {partition} and audit_id < $1 and audit_id >= $2 \
             order by audit_id desc limit 1 offset {}) e{partition}",
            looks - 1
        )
    });
    let names =
        wanted.account.as_ref().map(|account| (account.user_id().to_string(), account.credit_type().to_string()));
    let (user_id, credit_type) = names.unzip();
    let (found, ends): (Vec<Row>, Vec<Uuid>) = match database {
        Database::Postgres(database) => {
            let rows =
                rows.replace("$3 is", "$3::text is").replace("$4 is", "$4::text is").replace("$5 is", "$5::text is");
            let rows = rows.replace("$6 is", "$6::text is").replace("$7 is", "$7::text is");
            let found = sqlx::query(AssertSqlSafe(rows))
                .bind(wanted.before)
                .bind(wanted.from)
                .bind(&wanted.actor)
                .bind(&wanted.action)
                .bind(&wanted.request_id)
                .bind(user_id)
                .bind(credit_type)
                .bind(wanted.limit)
                .fetch_all(database.pool())
                .await?;
            let found = found.iter().map(of_postgres).collect::<Result<_, StoreError>>()?;
            let ends = sqlx::query_scalar(AssertSqlSafe(ends)).bind(wanted.before).bind(wanted.from);
            (found, ends.fetch_all(database.pool()).await?)
        }
        Database::Sqlite(database) => {
            let found = sqlx::query(AssertSqlSafe(rows))
                .bind(wanted.before.to_string())
                .bind(wanted.from.to_string())
                .bind(&wanted.actor)
                .bind(&wanted.action)
                .bind(&wanted.request_id)
                .bind(user_id)
                .bind(credit_type)
                .bind(wanted.limit)
                .fetch_all(database.readers())
                .await?;
            let found = found.iter().map(of_sqlite).collect::<Result<_, StoreError>>()?;
            let ends = sqlx::query_scalar(AssertSqlSafe(ends))
                .bind(wanted.before.to_string())
                .bind(wanted.from.to_string())
                .fetch_all(database.readers())
                .await?;
            (found, ends.iter().map(|id: &String| uuid(id)).collect::<Result<_, _>>()?)
        }
    };
    // Below the highest of these, some partition was not looked at.
    Ok((found, ends.into_iter().max()))
}

fn uuid(text: &str) -> Result<Uuid, StoreError> {
    Uuid::try_parse(text).map_err(|_| StoreError::Inconsistent(format!("audit holds the id {text}, which is none")))
}

fn unreadable() -> StoreError {
    StoreError::Inconsistent("audit holds a time that is none".to_owned())
}

fn of_postgres(row: &sqlx::postgres::PgRow) -> Result<Row, StoreError> {
    let at: DateTime<Utc> = row.try_get(2)?;
    Ok(Row {
        partition: row.try_get(0)?,
        id: row.try_get(1)?,
        at: Timestamp::from_micros(at.timestamp_micros()).ok_or_else(unreadable)?,
        action: row.try_get(3)?,
        outcome: row.try_get(4)?,
        actor: row.try_get(5)?,
        address: row.try_get(6)?,
        request_id: row.try_get(7)?,
        user_id: row.try_get(8)?,
        credit_type: row.try_get(9)?,
        transaction_id: row.try_get(10)?,
        details: row.try_get(11)?,
    })
}

fn of_sqlite(row: &sqlx::sqlite::SqliteRow) -> Result<Row, StoreError> {
    Ok(Row {
        partition: row.try_get(0)?,
        id: uuid(row.try_get(1)?)?,
        at: Timestamp::parse(row.try_get(2)?).ok_or_else(unreadable)?,
        action: row.try_get(3)?,
        outcome: row.try_get(4)?,
        actor: row.try_get(5)?,
        address: row.try_get(6)?,
        request_id: row.try_get(7)?,
        user_id: row.try_get(8)?,
        credit_type: row.try_get(9)?,
        transaction_id: row.try_get::<Option<&str>, _>(10)?.map(uuid).transpose()?,
        details: row.try_get(11)?,
    })
}
