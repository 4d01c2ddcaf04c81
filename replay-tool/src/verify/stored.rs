//! The small tables that say how far something goes – heads, checkpoints, restores –, read so that a row that is missing
//! or damaged is a finding and not the end of the verification.

use futures::TryStreamExt;
use ledger_core::{Epoch, Hash, Head, PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{Database, StoreError, sqlite::id_of};
use sqlx::AssertSqlSafe;

use super::compensations::Sums;

/// What a table says about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stand {
    At(Head),
    Missing,
    /// The row is no head; why.
    Damaged(String),
}

impl Stand {
    pub(super) const fn head(&self) -> Option<&Head> {
        match self {
            Self::At(head) => Some(head),
            Self::Missing | Self::Damaged(_) => None,
        }
    }
}

/// (partition, epoch, position, hash), as both databases can give them.
type Row = (i64, i64, i64, Vec<u8>);

/// A partition's restore: where the log stood when `epoch` began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Restore {
    pub(super) epoch: Epoch,
    pub(super) position: Position,
    pub(super) hash: Hash,
}

/// The heads of the log.
pub(super) async fn heads(database: &Database) -> Result<Vec<Stand>, StoreError> {
    Ok(by_partition(rows(database, "partition_heads where true").await?))
}

/// The heads, and what the rows of compensations come to that reversed anything: both as one commit left them.
pub(super) async fn heads_and_compensations(database: &Database) -> Result<(Vec<Stand>, Sums), StoreError> {
    const HEADS: &str = "select partition::bigint, epoch, position, hash from partition_heads";
    // The times of PostgreSQL are times.
    const ROWS: &str = "select partition::bigint, operation_id::text, reversals::bigint, null::text from compensations";
    let mut sums = Sums::default();
    let mut add = |(partition, operation, reversals, at): (i64, String, i64, Option<String>)| {
        let is_time = at.is_none_or(|at| Timestamp::parse(&at).is_some());
        match id_of(&operation) {
            Some(operation) if is_time && reversals > 0 => sums.add(partition, operation, reversals),
            Some(_) if is_time && reversals == 0 => {}
            _ => sums.add_damaged(),
        }
    };
    let heads: Vec<Row> = match database {
        Database::Postgres(database) => {
            let mut transaction = database.pool().begin_with("begin isolation level repeatable read read only").await?;
            let heads = sqlx::query_as(HEADS).fetch_all(&mut *transaction).await?;
            let mut rows = sqlx::query_as(ROWS).fetch(&mut *transaction);
            while let Some(row) = rows.try_next().await? {
                add(row);
            }
            drop(rows);
            transaction.rollback().await?;
            heads
        }
        Database::Sqlite(database) => {
            let without_casts =
                |sql: &str| sql.replace("null::text", "compensated_at").replace("::bigint", "").replace("::text", "");
            let mut transaction = database.readers().begin().await?;
            let heads = sqlx::query_as(AssertSqlSafe(without_casts(HEADS))).fetch_all(&mut *transaction).await?;
            let mut rows = sqlx::query_as(AssertSqlSafe(without_casts(ROWS))).fetch(&mut *transaction);
            while let Some(row) = rows.try_next().await? {
                add(row);
            }
            drop(rows);
            transaction.rollback().await?;
            heads
        }
    };
    Ok((by_partition(heads), sums))
}

/// How far the indexes behind the log go.
pub(super) async fn index_checkpoints(database: &Database) -> Result<Vec<Stand>, StoreError> {
    Ok(by_partition(rows(database, "index_checkpoints where true").await?))
}

/// How far the log was published, if it was.
pub(super) async fn published(database: &Database) -> Result<Vec<Stand>, StoreError> {
    Ok(by_partition(rows(database, "publisher_checkpoints where stream = 'CREDIT'").await?))
}

/// The restores of every partition by ascending epoch, and what is wrong with rows that are none.
pub(super) async fn restores(database: &Database) -> Result<[Vec<Result<Restore, String>>; PARTITIONS], StoreError> {
    let mut restores = [const { Vec::new() }; PARTITIONS];
    let mut rows = rows(database, "restores where true").await?;
    rows.sort_by_key(|row| (row.0, row.1));
    for row in rows {
        if let Some(partition) = partition_of(row.0) {
            let restore =
                head_of(&row).map(|head| Restore { epoch: head.epoch, position: head.position, hash: head.hash });
            restores[partition.index()].push(restore);
        }
    }
    if let Database::Sqlite(database) = database {
        // The times of PostgreSQL are times.
        let times: Vec<(i64, String)> =
            sqlx::query_as("select partition, restored_at from restores").fetch_all(database.readers()).await?;
        for (number, at) in times {
            if let Some(partition) = partition_of(number)
                && Timestamp::parse(&at).is_none()
            {
                restores[partition.index()].push(Err(format!("the time `{at}`")));
            }
        }
    }
    Ok(restores)
}

/// The newest position of a partition that there is a row of.
pub(super) async fn newest_position(database: &Database, partition: Partition) -> Result<Position, StoreError> {
    let sql = format!("select max(position) from events where partition = {partition}");
    let newest: Option<i64> = match database {
        Database::Postgres(database) => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(database.pool()).await?,
        Database::Sqlite(database) => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(database.readers()).await?,
    };
    Ok(Position(newest.and_then(|newest| u64::try_from(newest).ok()).unwrap_or(0)))
}

/// The first and the newest position of each partition that there is a row of, where there is any.
pub(super) async fn outermost_positions(database: &Database) -> Result<Vec<Option<(i64, i64)>>, StoreError> {
    let numbers = Partition::all().map(|partition| format!("({partition})")).collect::<Vec<_>>().join(", ");
    // One row is looked for at each end of each partition, by the primary key.
    let sql = format!(
        "select (select min(position) from events where partition = p.column1), \
         (select max(position) from events where partition = p.column1) \
         from (values {numbers}) as p order by p.column1"
    );
    let rows: Vec<(Option<i64>, Option<i64>)> = match database {
        Database::Postgres(database) => sqlx::query_as(AssertSqlSafe(sql)).fetch_all(database.pool()).await?,
        Database::Sqlite(database) => sqlx::query_as(AssertSqlSafe(sql)).fetch_all(database.readers()).await?,
    };
    Ok(rows.into_iter().map(|(first, newest)| first.zip(newest)).collect())
}

async fn rows(database: &Database, table: &str) -> Result<Vec<Row>, StoreError> {
    Ok(match database {
        Database::Postgres(database) => {
            let sql = format!("select partition::bigint, epoch, position, hash from {table}");
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(database.pool()).await?
        }
        Database::Sqlite(database) => {
            let sql = format!("select partition, epoch, position, hash from {table}");
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(database.readers()).await?
        }
    })
}

/// A checkpoint's row, which may not be there.
pub(super) fn stand_of(row: Option<(i64, i64, Vec<u8>)>) -> Stand {
    match row.map(|(epoch, position, hash)| head_of(&(0, epoch, position, hash))) {
        None => Stand::Missing,
        Some(Ok(head)) => Stand::At(head),
        Some(Err(why)) => Stand::Damaged(why),
    }
}

fn partition_of(number: i64) -> Option<Partition> {
    u8::try_from(number).ok().and_then(Partition::new)
}

fn by_partition(rows: Vec<Row>) -> Vec<Stand> {
    let mut stands = vec![Stand::Missing; PARTITIONS];
    for row in rows {
        if let Some(partition) = partition_of(row.0) {
            stands[partition.index()] = match head_of(&row) {
                Ok(head) => Stand::At(head),
                Err(why) => Stand::Damaged(why),
            };
        }
    }
    stands
}

/// A row as a head, or why it is none.
fn head_of((_, epoch, position, hash): &Row) -> Result<Head, String> {
    let epoch = u32::try_from(*epoch).map_err(|_| format!("epoch {epoch}"))?;
    let position = u64::try_from(*position).map_err(|_| format!("position {position}"))?;
    let hash = <[u8; 32]>::try_from(hash.as_slice()).map_err(|_| format!("a hash of {} bytes", hash.len()))?;
    Ok(Head { epoch: Epoch(epoch), position: Position(position), hash: Hash(hash) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_missing_or_damaged_stands_alone() {
        let rows =
            vec![(0, 1, 5, vec![7; 32]), (2, -1, 5, vec![7; 32]), (3, 1, -5, vec![7; 32]), (4, 1, 5, vec![7; 3])];
        let stands = by_partition(rows);
        let head = Head { epoch: Epoch(1), position: Position(5), hash: Hash([7; 32]) };
        assert_eq!(stands[0], Stand::At(head));
        assert_eq!(stands[1], Stand::Missing);
        for (partition, why) in [(2, "epoch -1"), (3, "position -5"), (4, "a hash of 3 bytes")] {
            assert_eq!(stands[partition], Stand::Damaged(why.to_owned()));
        }
    }
}
