//! The freezes that are due, by the order in which they are: for whoever releases them.
//!
//! What is found here is a place to look at, never a reason to release: the read model may lag, and the event says when
//! its freeze expires.

use chrono::{DateTime, Utc};
use ledger_core::{PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{Database, StoreError, sqlite::ROWS_MAX};
use sqlx::{PgPool, SqlitePool};

use crate::{postgres, row::stored, sqlite};

/// Up to where the freezes of a partition were looked at, in the order of (expiry, position).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub expires_at: Timestamp,
    /// 0 stands before all that expire at that instant.
    pub position: Position,
}

/// A freeze whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub partition: Partition,
    pub position: Position,
    pub expires_at: Timestamp,
    /// Whether the read model knows of a rest.
    pub is_open: bool,
}

impl Due {
    /// Where the freeze stands in the order of its partition.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        Cursor { expires_at: self.expires_at, position: self.position }
    }
}

/// One lateral look into the index for each partition: a bounded piece of it, however much of it is settled.
const PAGE_ON_POSTGRES: &str = "select t.partition, t.position, t.expires_at, t.remaining > 0 \
     from unnest($1::smallint[], $2::timestamptz[], $3::bigint[]) as w (partition, expires_at, position) \
     cross join lateral (select partition, position, expires_at, remaining from freezes f \
         where f.partition = w.partition and f.expires_at is not null and f.expires_at <= $4 \
         and (f.expires_at, f.position) > (w.expires_at, w.position) \
         order by f.expires_at, f.position limit $5) t";
const PAGE_ON_SQLITE: &str = "select partition, position, expires_at, remaining > 0 from freezes \
     where partition = ?1 and expires_at is not null and expires_at <= ?4 and (expires_at, position) > (?2, ?3) \
     order by expires_at, position limit ?5";

/// The freezes of each partition after its cursor that expire up to `now`, settled ones too: at most `limit` a partition, each
/// partition's in order.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn page(
    database: &Database,
    after: &[Cursor; PARTITIONS],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Due>, StoreError> {
    match database {
        Database::Postgres(database) => page_on_postgres(database.pool(), after, now, limit).await,
        Database::Sqlite(database) => page_on_sqlite(database.readers(), after, now, limit).await,
    }
}

async fn page_on_postgres(
    pool: &PgPool,
    after: &[Cursor; PARTITIONS],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Due>, StoreError> {
    let rows: Vec<(i16, i64, DateTime<Utc>, bool)> = sqlx::query_as(PAGE_ON_POSTGRES)
        .bind(Partition::all().map(|partition| i16::from(partition.number())).collect::<Vec<_>>())
        .bind(after.iter().map(|cursor| DateTime::<Utc>::from(cursor.expires_at)).collect::<Vec<_>>())
        .bind(after.iter().map(|cursor| stored(cursor.position.0)).collect::<Vec<_>>())
        .bind(DateTime::<Utc>::from(now))
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?;
    let rows = rows.into_iter().filter_map(|(partition, position, expires_at, is_open)| {
        due(partition.into(), position, Timestamp::from_micros(expires_at.timestamp_micros()), is_open)
    });
    Ok(rows.collect())
}

async fn page_on_sqlite(
    pool: &SqlitePool,
    after: &[Cursor; PARTITIONS],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Due>, StoreError> {
    let mut connection = pool.acquire().await?;
    let now = now.to_string();
    let mut found = Vec::new();
    for (partition, cursor) in Partition::all().zip(after) {
        let rows: Vec<(i64, i64, String, bool)> = sqlx::query_as(PAGE_ON_SQLITE)
            .bind(i64::from(partition.number()))
            .bind(cursor.expires_at.to_string())
            .bind(stored(cursor.position.0))
            .bind(&now)
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
        found.extend(rows.into_iter().filter_map(|(partition, position, expires_at, is_open)| {
            due(partition, position, Timestamp::parse(&expires_at), is_open)
        }));
    }
    Ok(found)
}

/// A row that cannot be read holds up no other one; verification names it, and a rebuild mends it.
fn due(partition: i64, position: i64, expires_at: Option<Timestamp>, is_open: bool) -> Option<Due> {
    let read = || {
        Some(Due {
            partition: u8::try_from(partition).ok().and_then(Partition::new)?,
            position: Position(u64::try_from(position).ok()?),
            expires_at: expires_at?,
            is_open,
        })
    };
    let due = read();
    if due.is_none() {
        tracing::warn!(partition, position, "a row of freezes cannot be read: run replay-tool verify");
    }
    due
}

const COUNT_ON_POSTGRES: &str = "select count(*) from unnest($1::smallint[], $2::timestamptz[], $3::bigint[]) as w (partition, expires_at, position) \
     cross join lateral (select remaining from freezes f \
         where f.partition = w.partition and f.expires_at is not null and f.expires_at <= $4 \
         and (f.expires_at, f.position) > (w.expires_at, w.position) \
         order by f.expires_at, f.position limit $5) t where t.remaining > 0";
const COUNT_ON_SQLITE: &str = "select count(*) from (select remaining from freezes \
     where partition = ?1 and expires_at is not null and expires_at <= ?4 and (expires_at, position) > (?2, ?3) \
     order by expires_at, position limit ?5) where remaining > 0";

/// How many freezes with a rest stand after the cursors and expire up to `now`; of each partition at most `limit` rows are
/// looked at.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn count(
    database: &Database,
    after: &[Cursor; PARTITIONS],
    now: Timestamp,
    limit: u32,
) -> Result<u64, StoreError> {
    let counted: i64 = match database {
        Database::Postgres(database) => {
            sqlx::query_scalar(COUNT_ON_POSTGRES)
                .bind(Partition::all().map(|partition| i16::from(partition.number())).collect::<Vec<_>>())
                .bind(after.iter().map(|cursor| DateTime::<Utc>::from(cursor.expires_at)).collect::<Vec<_>>())
                .bind(after.iter().map(|cursor| stored(cursor.position.0)).collect::<Vec<_>>())
                .bind(DateTime::<Utc>::from(now))
                .bind(i64::from(limit))
                .fetch_one(database.pool())
                .await?
        }
        Database::Sqlite(database) => {
            let mut connection = database.readers().acquire().await.map_err(StoreError::from)?;
            let mut sum = 0;
            for (partition, cursor) in Partition::all().zip(after) {
                sum += sqlx::query_scalar::<_, i64>(COUNT_ON_SQLITE)
                    .bind(i64::from(partition.number()))
                    .bind(cursor.expires_at.to_string())
                    .bind(stored(cursor.position.0))
                    .bind(now.to_string())
                    .bind(i64::from(limit))
                    .fetch_one(&mut *connection)
                    .await?;
            }
            sum
        }
    };
    Ok(u64::try_from(counted).unwrap_or(0))
}

/// Those of some places whose freeze still has a rest, as far as the read model knows.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn still_open(
    database: &Database,
    places: &[(Partition, Position)],
) -> Result<Vec<(Partition, Position)>, StoreError> {
    let mut open = Vec::with_capacity(places.len());
    for places in places.chunks(ROWS_MAX) {
        let rows = match database {
            Database::Postgres(database) => postgres::freezes(database.pool(), "freezes", places).await?,
            Database::Sqlite(database) => sqlite::freezes(database.readers(), "freezes", places).await?,
        };
        // A row that cannot be read tells nothing: its event will.
        let settled = rows.into_iter().flatten().filter(|freeze| freeze.remaining == 0);
        let settled: Vec<_> = settled.map(|freeze| (freeze.account.partition(), freeze.position)).collect();
        open.extend(places.iter().filter(|place| !settled.contains(place)));
    }
    Ok(open)
}

/// A number that changes when another table takes the place of `freezes`: rows may be in it that were not in the old one.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn generation(database: &Database) -> Result<i64, StoreError> {
    Ok(match database {
        Database::Postgres(database) => {
            sqlx::query_scalar("select 'freezes'::regclass::oid::bigint").fetch_one(database.pool()).await?
        }
        // It counts every change of the schema, which is more than enough.
        Database::Sqlite(database) => sqlx::query_scalar("pragma schema_version").fetch_one(database.readers()).await?,
    })
}
