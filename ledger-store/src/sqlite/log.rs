//! The log on SQLite: append, heads, events.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures::TryStreamExt;
use ledger_core::{Epoch, Event, Head, PARTITIONS, Partition, Position, operation};
use sqlx::{
    AssertSqlSafe, Row, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{ROWS_MAX, Sqlite, Turn, padded, rows, values};
use crate::{
    DamagedRow, StoreError,
    append::{Append, Appended},
    database::Bound,
    error::end_on_lost_sync,
    operations,
    row::{self, COLUMN_COUNT, COLUMNS, JOINED_COLUMNS, stored},
};

/// Rows of one insert statement. 32 columns of 256 rows are 8,192 parameters; SQLite takes 32,766, but larger
/// statements gain nothing more.
const INSERT_ROWS_MAX: usize = 256;

/// A transaction in which the heads are locked, for a writer that lost a race.
#[derive(Debug)]
pub(crate) struct LockedHeads(Turn);

impl Sqlite {
    /// Commits a batch in a transaction of its own.
    pub(crate) async fn append(&self, append: &Append) -> Result<Appended, StoreError> {
        let mut turn = self.durable_turn().await?;
        let connection = &mut *turn;
        if append.only_compares() {
            self.refuse_replaced()?;
            // Nothing to write: one statement reads the heads in a snapshot that began after the commands came.
            return Ok(if agrees(&read_heads(connection).await?, append) {
                Appended::Done
            } else {
                Appended::FenceLost
            });
        }
        self.written.add(append.events.len().min(INSERT_ROWS_MAX) + append.events.len() / 8 + 2);
        let began = Instant::now();
        let done = if append.events.len() <= INSERT_ROWS_MAX && append.compensations.is_empty() {
            append_at_once(connection, append).await
        } else {
            begin(connection).await?;
            let done = write(connection, append).await;
            finish(connection, done).await
        };
        self.share.committed_within(began.elapsed());
        let done = done.map_err(end_on_lost_sync);
        // After the commit: what is acknowledged went into the file that others will find.
        self.refuse_replaced().and(done)
    }

    /// Begins a transaction and locks the heads, so that the next append cannot lose a race.
    pub(crate) async fn lock_heads(&self) -> Result<(LockedHeads, [Head; PARTITIONS]), StoreError> {
        let mut turn = self.durable_turn().await?;
        self.refuse_replaced()?;
        begin(&mut turn).await?;
        match read_heads(&mut turn).await {
            Ok(heads) => Ok((LockedHeads(turn), heads)),
            Err(error) => {
                rollback(&mut turn).await;
                Err(error)
            }
        }
    }

    /// Reads every head.
    pub(crate) async fn heads(&self) -> Result<[Head; PARTITIONS], StoreError> {
        heads_of(sqlx::query(HEADS).fetch_all(self.readers()).await?)
    }

    /// Reads at most `limit` events of a partition after a position.
    pub(crate) async fn rows_after(
        &self,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Result<Event, DamagedRow>>, StoreError> {
        let sql =
            format!("select {COLUMNS} from events where partition = ? and position > ? order by position limit ?");
        sqlx::query(AssertSqlSafe(sql))
            .bind(i64::from(partition.number()))
            .bind(stored(after.0))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self.readers())
            .await?
            .iter()
            .map(rows::read)
            .collect()
    }

    /// Reads the events at some places; places without an event are left out.
    pub(crate) async fn rows_at(
        &self,
        places: &[(Partition, Position)],
    ) -> Result<Vec<Result<Event, DamagedRow>>, StoreError> {
        let mut rows = Vec::with_capacity(places.len());
        for chunk in places.chunks(ROWS_MAX) {
            let sql = format!(
                "select {JOINED_COLUMNS} from ({}) w \
                 cross join events e on e.partition = w.column1 and e.position = w.column2",
                values(padded(chunk.len()), 2)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (partition, position) in chunk {
                query = query.bind(i64::from(partition.number())).bind(stored(position.0));
            }
            for row in query.fetch_all(self.readers()).await? {
                rows.push(rows::read(&row)?);
            }
        }
        Ok(rows)
    }

    /// The positions of rows that stand before the first place: the ledger writes none there.
    pub(crate) async fn positions_before_first(&self, partition: Partition) -> Result<Vec<i64>, StoreError> {
        let sql = "select position from events where partition = ? and position < 1 order by position limit 1000";
        Ok(sqlx::query_scalar(sql).bind(i64::from(partition.number())).fetch_all(self.readers()).await?)
    }

    /// Walks an account's events back from the one at `from`, which is the first that is looked at: those that lie
    /// within `bound`, newest first, at most `limit`. It ends where a row does not lead back to the version before it:
    /// an edited one could lead past versions, or in a circle without end.
    pub(crate) async fn walk_back(
        &self,
        partition: Partition,
        from: Position,
        bound: Bound,
        limit: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let within = match bound {
            Bound::Position(_) => "position",
            Bound::Version(_) => "version",
        };
        let sql = format!(
            "with recursive walk (position, previous_position, version, found) as ( \
                 select position, previous_position, version, {within} <= ?3 from events where partition = ?1 and position = ?2 \
                 union all \
                 select e.position, e.previous_position, e.version, w.found + (e.{within} <= ?3) \
                 from walk w cross join events e on e.partition = ?1 and e.position = w.previous_position \
                 where w.found < ?4 and w.previous_position < w.position and e.version = w.version - 1) \
             select {JOINED_COLUMNS} from walk w cross join events e on e.partition = ?1 and e.position = w.position \
             where w.found > 0 order by e.position desc"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(i64::from(partition.number()))
            .bind(stored(from.0))
            .bind(stored(bound.value()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(|row| Ok(rows::read(row)??)).collect()
    }
}

impl LockedHeads {
    /// Writes the batch and commits; the heads were locked, so only a writer that decided on other heads can lose.
    pub(crate) async fn append(mut self, append: &Append) -> Result<Appended, StoreError> {
        let done = write(&mut self.0, append).await;
        finish(&mut self.0, done).await.map_err(end_on_lost_sync)
    }

    /// Commits something that changes nothing: whether a commit comes through at all.
    pub(crate) async fn touch(mut self) -> Result<(), StoreError> {
        match sqlx::raw_sql(TOUCH).execute(&mut *self.0).await {
            Ok(_) => Ok(()),
            Err(error) => {
                rollback(&mut self.0).await;
                Err(end_on_lost_sync(error.into()))
            }
        }
    }

    /// Lets go without having written.
    pub(crate) async fn release(mut self) {
        rollback(&mut self.0).await;
    }
}

async fn begin(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    // A transaction that an earlier failure left open would make this one part of it.
    if let Err(error) = sqlx::query(BEGIN).execute(&mut *connection).await {
        rollback(connection).await;
        return Err(error.into());
    }
    Ok(())
}

async fn rollback(connection: &mut SqliteConnection) {
    // When there is nothing to roll back SQLite says so, and that is what was wanted.
    let _ = sqlx::query("rollback").execute(connection).await;
}

/// Ends the transaction as `done` says.
async fn finish(connection: &mut SqliteConnection, done: Result<Appended, StoreError>) -> Result<Appended, StoreError> {
    if let Ok(Appended::Done) = done {
        match sqlx::query("commit").execute(&mut *connection).await {
            Ok(_) => return done,
            Err(error) => {
                rollback(connection).await;
                return Err(error.into());
            }
        }
    }
    rollback(connection).await;
    done
}

/// A whole commit in one go: every statement by itself would be a way to the connection's thread and back. The heads
/// are advanced only if all of them are what is believed, and the events are inserted only if the heads were advanced.
async fn append_at_once(connection: &mut SqliteConnection, append: &Append) -> Result<Appended, StoreError> {
    let rows = round_up(append.events.len());
    let heads = if append.advances.len() + append.judged.len() <= rows { rows.min(PARTITIONS) } else { PARTITIONS };
    let mut query = bind_heads(sqlx::query(AssertSqlSafe(append_statements(heads, rows))), append, heads);
    for event in in_order(&append.events) {
        query = rows::bind(query, event);
    }
    // Parameters that are not bound are null: rows that are left out.
    #[expect(
        deprecated,
        reason = "there is no other way to run several statements with parameters in one go; without it, `write` does the same"
    )]
    let results: Result<Vec<_>, _> = query.execute_many(&mut *connection).await.try_collect().await;
    match results {
        Ok(results) => Ok(if results.get(ADVANCE).is_some_and(|result| result.rows_affected() > 0) {
            Appended::Done
        } else {
            Appended::FenceLost
        }),
        Err(error) => {
            rollback(connection).await;
            Err(error.into())
        }
    }
}

/// Which of the statements of [`append_statements`] advances the heads.
const ADVANCE: usize = 2;

/// The statements of a commit that advances or compares at most `heads` heads and inserts at most `rows` events.
fn append_statements(heads: usize, rows: usize) -> Arc<str> {
    static STATEMENTS: Mutex<BTreeMap<(usize, usize), Arc<str>>> = Mutex::new(BTreeMap::new());
    let mut statements = STATEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let statements = statements.entry((heads, rows)).or_insert_with(|| {
        format!("{BEGIN}; {}; {} and changes() > 0; commit", advance_statement(heads), insert_statement(rows)).into()
    });
    statements.clone()
}

/// Advances heads, all or none: none unless all that were advanced or only judged by are what is believed, and no operation
/// was compensated.
fn advance_statement(heads: usize) -> String {
    format!(
        "with n (partition, epoch, position, hash, next_position, next_hash) as materialized ({}) \
         update or rollback partition_heads as h set position = n.next_position, hash = n.next_hash from n \
         where h.partition = n.partition and n.next_position is not null \
         and (select count(*) from n cross join partition_heads b on b.partition = n.partition \
             where b.epoch = n.epoch and b.position = n.position and b.hash = n.hash) \
           = (select count(n.partition) from n) \
         and not {COMPENSATED}",
        values(heads, 6)
    )
}

/// Whether one of some operations, `[[partition, id], …]`, was compensated. Without any it is null, which names none.
const COMPENSATED: &str = "exists (select 1 from json_each(?) as o cross join compensations as c \
     on c.partition = o.value ->> 0 and c.operation_id = o.value ->> 1)";

/// Inserts the rows that are not null.
fn insert_statement(rows: usize) -> String {
    // A failure rolls all of it back, so SQLite need not remember how to undo this statement alone.
    format!(
        "insert or rollback into events ({COLUMNS}) select * from ({}) where column1 is not null",
        values(rows, COLUMN_COUNT)
    )
}

/// The sizes that statements come in: few, so that each is prepared once.
fn round_up(rows: usize) -> usize {
    const SIZES: [usize; 11] = [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192];
    SIZES.into_iter().find(|size| *size >= rows).unwrap_or(INSERT_ROWS_MAX)
}

/// Events in the order of the primary key.
fn in_order(events: &[Arc<Event>]) -> Vec<&Event> {
    let mut events: Vec<&Event> = events.iter().map(|event| &**event).collect();
    events.sort_unstable_by_key(|event| (event.partition, event.position));
    events
}

fn bind_heads<'q>(
    mut query: Query<'q, sqlx::Sqlite, SqliteArguments>,
    append: &Append,
    heads: usize,
) -> Query<'q, sqlx::Sqlite, SqliteArguments> {
    let advances = append.advances.iter().map(|(partition, before, after)| (partition, before, Some(after)));
    let judged = append.judged.iter().map(|(partition, head)| (partition, head, None));
    let mut left = heads;
    for (partition, before, after) in advances.chain(judged) {
        left -= 1;
        query = query
            .bind(i64::from(partition.number()))
            .bind(i64::from(before.epoch.0))
            .bind(stored(before.position.0))
            .bind(before.hash.0.to_vec())
            .bind(after.map(|after| stored(after.position.0)))
            .bind(after.map(|after| after.hash.0.to_vec()));
    }
    for _ in 0..left * 6 {
        query = query.bind(None::<i64>);
    }
    query.bind(operations_of(append))
}

/// The operations of an append, as [`COMPENSATED`] reads them.
fn operations_of(append: &Append) -> Option<String> {
    let named = append.operations.iter().map(|id| format!("[{},\"{id}\"]", operation::partition(*id)));
    let named = named.collect::<Vec<_>>().join(",");
    (!named.is_empty()).then(|| format!("[{named}]"))
}

async fn write(connection: &mut SqliteConnection, append: &Append) -> Result<Appended, StoreError> {
    if append.advances.is_empty() {
        let compensated: bool = sqlx::query_scalar(AssertSqlSafe(format!("select {COMPENSATED}")))
            .bind(operations_of(append))
            .fetch_one(&mut *connection)
            .await?;
        if compensated || !agrees(&read_heads(connection).await?, append) {
            return Ok(Appended::FenceLost);
        }
        operations::insert_on_sqlite(connection, &append.compensations).await?;
        return Ok(Appended::Done);
    }
    let advance = sqlx::query(AssertSqlSafe(advance_statement(PARTITIONS)));
    let moved = bind_heads(advance, append, PARTITIONS).execute(&mut *connection).await?.rows_affected();
    if moved != append.advances.len() as u64 {
        return Ok(Appended::FenceLost);
    }
    if !append.compensations.is_empty() {
        operations::insert_on_sqlite(connection, &append.compensations).await?;
    }
    for chunk in in_order(&append.events).chunks(INSERT_ROWS_MAX) {
        let rows = round_up(chunk.len());
        let mut query = sqlx::query(AssertSqlSafe(insert_statement(rows)));
        for event in chunk {
            query = rows::bind(query, event);
        }
        query.execute(&mut *connection).await?;
    }
    Ok(Appended::Done)
}

/// Inserts events in the order of the primary key, in a transaction that has begun.
pub(super) async fn insert(connection: &mut SqliteConnection, events: &[Event]) -> Result<(), StoreError> {
    for chunk in events.chunks(INSERT_ROWS_MAX) {
        let mut query = sqlx::query(AssertSqlSafe(insert_statement(round_up(chunk.len()))));
        for event in chunk {
            query = rows::bind(query, event);
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

fn agrees(heads: &[Head; PARTITIONS], append: &Append) -> bool {
    append.advances.iter().all(|(partition, before, _)| heads[partition.index()] == *before)
        && append.judged.iter().all(|(partition, head)| heads[partition.index()] == *head)
}

/// There and back, because SQLite does not write a page whose bytes are what they were.
const TOUCH: &str = "update partition_heads set position = position + 1 where partition = 0; \
    update partition_heads set position = position - 1 where partition = 0; commit";

/// Begins a transaction whose commit is durable.
const BEGIN: &str = concat!("pragma synchronous = full", "; begin immediate");

const HEADS: &str = "select partition, epoch, position, hash from partition_heads order by partition";

async fn read_heads(connection: &mut SqliteConnection) -> Result<[Head; PARTITIONS], StoreError> {
    heads_of(sqlx::query(HEADS).fetch_all(connection).await?)
}

/// Heads or checkpoints of every partition, from rows of (partition, epoch, position, hash) in order.
pub(super) fn heads_of(rows: Vec<SqliteRow>) -> Result<[Head; PARTITIONS], StoreError> {
    let mut heads = Vec::with_capacity(PARTITIONS);
    for (index, row) in rows.iter().enumerate() {
        let damaged = |reason: String| StoreError::Inconsistent(format!("the head of partition {index} {reason}"));
        let partition: i64 = row.try_get(0)?;
        if usize::try_from(partition) != Ok(index) {
            return Err(damaged("is missing".to_owned()));
        }
        heads.push(Head {
            epoch: Epoch(row::number("epoch", row.try_get(1)?).map_err(|(_, reason)| damaged(reason))?),
            position: Position(row::number("position", row.try_get(2)?).map_err(|(_, reason)| damaged(reason))?),
            hash: row::hash(row.try_get(3)?).map_err(damaged)?,
        });
    }
    heads.try_into().map_err(|heads: Vec<_>| {
        StoreError::Inconsistent(format!("there are {} heads instead of {PARTITIONS}", heads.len()))
    })
}
