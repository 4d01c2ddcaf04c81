//! The log on PostgreSQL: append, heads, events.

use std::{io, time::Duration};

use chrono::{DateTime, Utc};
use ledger_core::{Epoch, Event, Head, PARTITIONS, Partition, Position, operation};
use sqlx::{
    AssertSqlSafe, PgConnection, Row,
    error::BoxDynError,
    postgres::{PgArguments, PgBindIterExt, PgRow, types::PgRecordEncoder},
    query::Query,
};
use tokio::sync::OwnedMutexGuard;

use super::{
    Postgres, copy,
    record::{Record, records},
    rows,
};
use crate::{
    DamagedRow, StoreError,
    append::{Append, Appended},
    database::Bound,
    limit::within,
    operations,
    row::{self, COLUMNS, JOINED_COLUMNS, stored},
};

/// How long a commit may take before it counts as failed and its end as unknown: a server that does not answer at all must
/// not hold the writer for ever.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for letting go of the heads, which waits for nobody.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Before any head: see `append_events`.
const LOCK: &str = "select pg_advisory_xact_lock(x'6c656467657207'::bigint)";
/// From so many events on they are copied. That takes four more round trips, and fewer events are not worth them: see decision 0015.
const COPY_EVENTS_MIN: usize = 1_000;
/// So many events are sent at a time: some 300 KB.
const COPY_PIECE: usize = 512;

/// What `append_events` fails with when a head is not what was believed.
const FENCE_LOST: &str = "LG001";

const HEADS: &str = "select partition, epoch, position, hash from partition_heads order by partition";

/// A transaction in which the heads are locked, for a writer that lost a race. Dropping it closes the connection, and
/// PostgreSQL rolls back.
#[derive(Debug)]
pub(crate) struct LockedHeads {
    slot: OwnedMutexGuard<Option<PgConnection>>,
    connection: PgConnection,
    is_of_new_session: bool,
}

impl Postgres {
    /// Commits a batch in one statement, which is one round trip and one transaction. Without a connection it fails: in a
    /// server that was connected to since, what was flushed has to be looked for first, and only a recovery does that.
    pub(crate) async fn append(&self, append: &Append) -> Result<Appended, StoreError> {
        within(COMMIT_TIMEOUT, self.append_now(append)).await
    }

    async fn append_now(&self, append: &Append) -> Result<Appended, StoreError> {
        let mut slot = self.writer.clone().lock_owned().await;
        let mut connection = slot.take().ok_or_else(not_connected)?;
        let done = if append.only_compares() {
            // Nothing to write: one statement reads the heads in a snapshot that began after the commands came.
            let heads = heads_of(sqlx::query(HEADS).fetch_all(&mut connection).await?)?;
            let agree = append.judged.iter().all(|(partition, head)| heads[partition.index()] == *head);
            if agree { Appended::Done } else { Appended::FenceLost }
        } else if append.events.len() < COPY_EVENTS_MIN && append.compensations.is_empty() {
            write(&mut connection, append).await?
        } else {
            sqlx::query("begin").execute(&mut connection).await?;
            let done = copy(&mut connection, append).await?;
            end(&mut connection, done).await?
        };
        // Only a connection that answered properly is used again.
        *slot = Some(connection);
        Ok(done)
    }

    /// Begins a transaction and locks the heads, so that the next append cannot lose a race. It connects where there is no
    /// connection.
    pub(crate) async fn lock_heads(&self) -> Result<(LockedHeads, [Head; PARTITIONS]), StoreError> {
        within(COMMIT_TIMEOUT, self.lock_heads_now()).await
    }

    async fn lock_heads_now(&self) -> Result<(LockedHeads, [Head; PARTITIONS]), StoreError> {
        let mut slot = self.writer.clone().lock_owned().await;
        let is_of_new_session = slot.is_none();
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => {
                let connection = self.session().await?;
                self.doubt.arise();
                connection
            }
        };
        sqlx::query("begin").execute(&mut connection).await?;
        sqlx::query(LOCK).execute(&mut connection).await?;
        let rows =
            sqlx::query("select partition, epoch, position, hash from partition_heads order by partition for update")
                .fetch_all(&mut connection)
                .await?;
        let heads = heads_of(rows)?;
        Ok((LockedHeads { slot, connection, is_of_new_session }, heads))
    }

    /// Reads every head.
    pub(crate) async fn heads(&self) -> Result<[Head; PARTITIONS], StoreError> {
        heads_of(sqlx::query(HEADS).fetch_all(self.pool()).await?)
    }

    /// Reads at most `limit` events of a partition after a position.
    pub(crate) async fn rows_after(
        &self,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Result<Event, DamagedRow>>, StoreError> {
        let sql =
            format!("select {COLUMNS} from events where partition = $1 and position > $2 order by position limit $3");
        sqlx::query(AssertSqlSafe(sql))
            .bind(i16::from(partition.number()))
            .bind(stored(after.0))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self.pool())
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
        let (partitions, positions): (Vec<i16>, Vec<i64>) =
            places.iter().map(|(partition, position)| (i16::from(partition.number()), stored(position.0))).unzip();
        // The lateral join keeps the look-up by primary key whatever the planner thinks of the table's size.
        let sql = format!(
            "select {JOINED_COLUMNS} from unnest($1::smallint[], $2::bigint[]) as w (partition, position) \
             cross join lateral (select * from events where partition = w.partition and position = w.position offset 0) e"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(partitions).bind(positions).fetch_all(self.pool()).await?;
        rows.iter().map(rows::read).collect()
    }

    /// The positions of rows that stand before the first place: the ledger writes none there.
    pub(crate) async fn positions_before_first(&self, partition: Partition) -> Result<Vec<i64>, StoreError> {
        let sql = "select position from events where partition = $1 and position < 1 order by position limit 1000";
        Ok(sqlx::query_scalar(sql).bind(i16::from(partition.number())).fetch_all(self.pool()).await?)
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
                 select position, previous_position, version, ({within} <= $3)::int::bigint from events \
                 where partition = $1 and position = $2 \
                 union all \
                 select e.position, e.previous_position, e.version, w.found + (e.{within} <= $3)::int \
                 from walk w cross join lateral (select * from events \
                     where partition = $1 and position = w.previous_position offset 0) e \
                 where w.found < $4 and w.previous_position < w.position and e.version = w.version - 1) \
             select {JOINED_COLUMNS} from walk w cross join lateral (select * from events \
                 where partition = $1 and position = w.position offset 0) e \
             where w.found > 0 order by e.position desc"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(i16::from(partition.number()))
            .bind(stored(from.0))
            .bind(stored(bound.value()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(|row| Ok(rows::read(row)??)).collect()
    }
}

impl LockedHeads {
    pub(crate) const fn is_of_new_session(&self) -> bool {
        self.is_of_new_session
    }

    /// Writes the batch and commits; the heads were locked, so only a writer that decided on other heads can lose.
    pub(crate) async fn append(self, append: &Append) -> Result<Appended, StoreError> {
        within(COMMIT_TIMEOUT, self.append_now(append)).await
    }

    async fn append_now(mut self, append: &Append) -> Result<Appended, StoreError> {
        let done = if append.only_compares() {
            Appended::Done
        } else if append.events.len() < COPY_EVENTS_MIN && append.compensations.is_empty() {
            write(&mut self.connection, append).await?
        } else {
            copy(&mut self.connection, append).await?
        };
        let done = end(&mut self.connection, done).await?;
        *self.slot = Some(self.connection);
        Ok(done)
    }

    /// Commits something that changes nothing: whether a commit comes through at all.
    pub(crate) async fn touch(self) -> Result<(), StoreError> {
        within(COMMIT_TIMEOUT, self.touch_now()).await
    }

    async fn touch_now(mut self) -> Result<(), StoreError> {
        let touch = "update partition_heads set position = position where partition = 0";
        sqlx::query(touch).execute(&mut self.connection).await?;
        end(&mut self.connection, Appended::Done).await?;
        *self.slot = Some(self.connection);
        Ok(())
    }

    /// Lets go without having written. A connection that does not answer is dropped, and PostgreSQL rolls back.
    pub(crate) async fn release(mut self) {
        let rolled_back =
            tokio::time::timeout(ROLLBACK_TIMEOUT, sqlx::query("rollback").execute(&mut self.connection)).await;
        if matches!(rolled_back, Ok(Ok(_))) {
            *self.slot = Some(self.connection);
        }
    }
}

fn not_connected() -> sqlx::Error {
    sqlx::Error::Io(io::ErrorKind::NotConnected.into())
}

/// A head that an append judges by, and what it moves to, if it does: a row of `head_step`.
#[derive(Debug)]
struct HeadStep<'h> {
    partition: Partition,
    before: &'h Head,
    after: Option<&'h Head>,
}

impl Record for HeadStep<'_> {
    const TYPE: &'static str = "head_step";

    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        row.encode(i16::from(self.partition.number()))?
            .encode(i64::from(self.before.epoch.0))?
            .encode(stored(self.before.position.0))?
            .encode(&self.before.hash.0[..])?
            .encode(self.after.map(|head| stored(head.position.0)))?
            .encode(self.after.map(|head| &head.hash.0[..]))?;
        Ok(())
    }
}

/// A row of `event_row`.
impl Record for Event {
    const TYPE: &'static str = "event_row";

    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        let state = &self.after;
        row.encode(stored(self.position.0))?
            .encode(stored(self.previous_position.0))?
            .encode(i64::from(self.epoch.0))?
            .encode(stored(state.version))?
            .encode(self.amount.map(|amount| stored(amount.units())))?
            .encode(stored(self.released))?
            .encode(self.remaining.map(stored))?
            .encode(stored(state.balance))?
            .encode(stored(state.frozen))?
            .encode(stored(state.available()))?
            .encode(self.expires_at.map(DateTime::<Utc>::from))?
            .encode(DateTime::<Utc>::from(self.recorded_at))?
            .encode(self.transaction_id.uuid())?
            .encode(self.account.id().uuid())?
            .encode(self.related_id.map(|id| id.uuid()))?
            .encode(self.operation_id)?
            .encode(self.batch.map(|mark| mark.id))?
            .encode(self.batch.map(|mark| i32::try_from(mark.size)).transpose()?)?
            .encode(self.batch.map(|mark| i32::try_from(mark.index)).transpose()?)?
            .encode(i16::from(self.partition.number()))?
            .encode(i16::try_from(self.schema_version)?)?
            .encode(state.locked)?
            .encode(self.event_type.name())?
            .encode(&**self.account.user_id())?
            .encode(&**self.account.credit_type())?
            .encode(&**self.key.code())?
            .encode(&**self.key.id())?
            .encode(&*self.request_id)?
            .encode(&*self.actor)?
            .encode(self.description.as_deref())?
            .encode(self.metadata.as_deref())?
            .encode(&self.hash.0[..])?;
        Ok(())
    }
}

/// Ends a transaction as `done` says.
async fn end(connection: &mut PgConnection, done: Appended) -> Result<Appended, StoreError> {
    let end = if done == Appended::Done { "commit" } else { "rollback" };
    sqlx::query(end).execute(connection).await?;
    Ok(done)
}

/// Advances the heads and copies the events, in a transaction that has begun.
async fn copy(connection: &mut PgConnection, append: &Append) -> Result<Appended, StoreError> {
    let advance = sqlx::query("select advance_heads($1, $2, $3)");
    let advanced = outcome(bind_heads(advance, append).execute(&mut *connection).await.map(drop))?;
    if advanced == Appended::FenceLost {
        return Ok(advanced);
    }
    if !append.compensations.is_empty() {
        operations::insert_on_postgres(connection, &append.compensations).await?;
    }
    if append.events.is_empty() {
        return Ok(Appended::Done);
    }
    let mut into = connection.copy_in_raw(&format!("copy events ({COLUMNS}) from stdin (format binary)")).await?;
    let mut rows = copy::Rows::new(COPY_PIECE);
    for piece in append.events.chunks(COPY_PIECE) {
        for event in piece {
            rows.add(event);
        }
        // The server inserts these rows while the next ones are written out.
        into.send(std::mem::replace(&mut rows, copy::Rows::more(COPY_PIECE)).into_bytes()).await?;
    }
    into.send(rows.end()).await?;
    into.finish().await?;
    Ok(Appended::Done)
}

/// What `advance_heads` came to.
fn outcome(done: Result<(), sqlx::Error>) -> Result<Appended, StoreError> {
    match done {
        Ok(()) => Ok(Appended::Done),
        Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some(FENCE_LOST) => Ok(Appended::FenceLost),
        Err(error) => Err(error.into()),
    }
}

type Statement<'q> = Query<'q, sqlx::Postgres, PgArguments>;

/// Binds the parameters of `advance_heads`.
fn bind_heads<'q>(query: Statement<'q>, append: &'q Append) -> Statement<'q> {
    let advances = append.advances.iter().map(|(partition, before, after)| HeadStep {
        partition: *partition,
        before,
        after: Some(after),
    });
    let judged =
        append.judged.iter().map(|(partition, head)| HeadStep { partition: *partition, before: head, after: None });
    let operations = append.operations.iter().map(|id| i16::from(operation::partition(*id).number()));
    query.bind(records(advances.chain(judged))).bind(operations.bind_iter()).bind(append.operations.as_slice())
}

/// Advances the heads and inserts the events, in one statement.
async fn write(connection: &mut PgConnection, append: &Append) -> Result<Appended, StoreError> {
    let appended = sqlx::query("select append_events($1, $2, $3, $4)");
    let events = append.events.iter().map(|event| &**event);
    let appended = bind_heads(appended, append).bind(records(events)).execute(connection).await;
    outcome(appended.map(drop))
}

/// Heads or checkpoints of every partition, from rows of (partition, epoch, position, hash) in order.
pub(super) fn heads_of(rows: Vec<PgRow>) -> Result<[Head; PARTITIONS], StoreError> {
    let mut heads = Vec::with_capacity(PARTITIONS);
    for (index, row) in rows.iter().enumerate() {
        let damaged = |reason: String| StoreError::Inconsistent(format!("the head of partition {index} {reason}"));
        let partition: i16 = row.try_get(0)?;
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
