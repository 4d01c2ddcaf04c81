//! A restore on PostgreSQL: one transaction that makes the tables in a schema of their own, fills them by binary COPY, and
//! at its end puts them in the place of those that are there.
//!
//! The tables are made by the same transaction that fills them, so rows can be written as frozen: whoever reads them first
//! need not mark each as committed. See <https://www.postgresql.org/docs/current/sql-copy.html>, FREEZE.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_core::{Head, PARTITIONS, Partition, Timestamp};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgCopyIn},
};

use super::{MIGRATIONS, Postgres, copy, describe, options, tables, version};
use crate::{
    StoreError,
    index::{IndexEntries, key_run, stored_hash},
    operations,
    restore::{Found, Log, Part, Parts, RestoreError, RestorePoint, Restored, Rows, Target, made_from_log},
    row::{self, COLUMNS, stored},
    schema,
};

mod places;

use places::{change_places, each_function, each_table, each_type};

/// Where the tables are made.
const NEXT: &str = "ledger_restoring";
/// One restore at a time ("ledger", 8).
const RESTORE_LOCK: &str = "select pg_try_advisory_lock(x'6c656467657208'::bigint)";
const LOCK_WAIT: Duration = Duration::from_secs(15);
const LOCK_LOOK: Duration = Duration::from_millis(200);

impl Postgres {
    /// Looks what the database holds.
    pub(crate) async fn look(url: &str) -> Result<Found, StoreError> {
        let (mut connection, place) = connect(url).await?;
        let found = look(&mut connection, &place).await?;
        connection.close().await?;
        Ok(found)
    }

    /// Puts a log into the database.
    pub(crate) async fn restore(url: &str, target: Target, log: Arc<Log>) -> Result<Restored, RestoreError> {
        let (mut connection, place) = connect(url).await?;
        super::refuse_to_lose(&mut connection, &place).await?;
        be_alone(&mut connection, &place).await?;
        // What is to be replaced may be damaged beyond recognition.
        if target == Target::Empty && look(&mut connection, &place).await? == Found::Ledger {
            return Err(RestoreError::NotEmpty(place));
        }
        let restored = fill(&mut connection, target, &log, &place).await?;
        // So that the first look-ups are planned well; without it they are only slower for a while.
        let analyzed = sqlx::query("analyze").execute(&mut connection).await;
        if let Err(error) = analyzed {
            tracing::warn!(%error, "the restored tables were not analyzed");
        }
        connection.close().await?;
        Ok(restored)
    }

    /// See [`crate::restore::wait_for_others`].
    pub(crate) async fn wait_for_other_restores(url: &str) -> Result<(), RestoreError> {
        let (mut connection, place) = connect(url).await?;
        be_alone(&mut connection, &place).await?;
        // The lock goes with the session.
        connection.close().await?;
        Ok(())
    }

    /// See [`crate::restore::standing`].
    pub(crate) async fn standing(&self) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(standing_in("partition_heads"))).fetch_one(self.pool()).await
    }

    pub(crate) async fn restore_points(&self) -> Result<Vec<RestorePoint>, StoreError> {
        let sql = "select partition, epoch, position, hash, (extract(epoch from restored_at) * 1000000)::bigint, archive_id \
            from restores order by epoch, partition";
        let rows = sqlx::query(sql).fetch_all(self.pool()).await?;
        rows.iter()
            .map(|row| {
                let (number, epoch, position): (i16, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                row::restore_point(
                    number.into(),
                    epoch,
                    position,
                    row.try_get(3)?,
                    row.try_get(5)?,
                    Timestamp::from_micros(row.try_get(4)?),
                )
            })
            .collect()
    }

    /// Removes a ledger that is no longer wanted, and nothing else.
    pub(crate) async fn remove_ledger(&self) -> Result<(), StoreError> {
        let mut connection = self.session().await?;
        let mut transaction = connection.begin().await?;
        let next = make_tables(&mut transaction).await.map_err(|error| match error {
            RestoreError::Store(error) => error,
            other => StoreError::Inconsistent(other.to_string()),
        })?;
        let all_made = format!("select relname from pg_class where relnamespace = '{NEXT}'::regnamespace");
        let script = format!(
            "do $$ begin {} {} {} end $$; drop schema {NEXT} cascade",
            each_table(&next.served, &all_made, "execute format('drop table %s', served);"),
            each_function(&next.served, "execute format('drop function %s', served);"),
            each_type(&next.served, "execute format('drop type %s', served);"),
        );
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }
}

/// Where the log stands, whatever the heads hold.
fn standing_in(heads: &str) -> String {
    format!("select string_agg(h::text, ',' order by h::text) from {heads} h")
}

/// Waits for the lock for a while: the session of a restore that was killed lives until the server notices it.
async fn be_alone(connection: &mut PgConnection, place: &str) -> Result<(), RestoreError> {
    let began = Instant::now();
    loop {
        let alone: bool = sqlx::query_scalar(RESTORE_LOCK).fetch_one(&mut *connection).await?;
        if alone {
            return Ok(());
        }
        if began.elapsed() > LOCK_WAIT {
            return Err(RestoreError::InUse(format!("another restore into {place} is running; wait for it")));
        }
        tokio::time::sleep(LOCK_LOOK).await;
    }
}

/// Reading the archive may take its time between two statements.
pub(super) fn without_idle_limit(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("idle_in_transaction_session_timeout", "0")])
}

async fn connect(url: &str) -> Result<(PgConnection, String), StoreError> {
    let options = without_idle_limit(options(url)?);
    let place = describe(&options);
    let connection = super::connect(&options, &place).await?;
    Ok((connection, place))
}

async fn look(connection: &mut PgConnection, place: &str) -> Result<Found, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class \
         where relnamespace = (select oid from pg_namespace where nspname = current_schema()) and relname = any($1)",
    )
    .bind(made_from_log().collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    if names.is_empty() {
        // Of another program there may be some by the same names as those that are taken along.
        let tables = tables(connection).await?;
        if schema::is_new(&version(connection).await) {
            schema::refuse_tables(&tables, place, schema::OTHER_DATABASE)?;
        }
        return Ok(Found::Nothing);
    }
    if !["events", "partition_heads"].iter().all(|name| names.iter().any(|found| found == name)) {
        return Err(StoreError::Schema(format!(
            "{place} holds a table {} which is not a ledger's; name another database",
            names[0]
        )));
    }
    // A ledger of another version may be replaced, but is not taken for an empty one.
    if schema::check(version(connection).await, &MIGRATIONS, place).is_err() {
        return Ok(Found::Ledger);
    }
    Ok(if has_events(connection, "events").await? { Found::Ledger } else { Found::EmptyLedger })
}

async fn has_events(connection: &mut PgConnection, table: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!("select exists (select from {table})"))).fetch_one(connection).await
}

/// Everything, in one transaction.
async fn fill(
    connection: &mut PgConnection,
    target: Target,
    log: &Arc<Log>,
    place: &str,
) -> Result<Restored, RestoreError> {
    let mut transaction = connection.begin().await?;
    let next = make_tables(&mut transaction).await?;
    let mut parts = {
        let mut encoder = Encoder::default();
        Parts::start(log.clone(), move |part, hand_on| encoder.encode(part, hand_on))
    };
    let keys = drop_index_of_keys(&mut transaction).await?;
    let copied = copy_all(&mut transaction, &mut parts).await;
    let produced = match copied {
        Ok(()) => parts.end().await?,
        Err(error) => {
            // Why nothing more came says more than that nothing came.
            parts.end().await?;
            return Err(error.into());
        }
    };
    sqlx::raw_sql(AssertSqlSafe(keys)).execute(&mut *transaction).await?;
    write_heads(&mut transaction, &log.next_heads()).await?;
    let points: Vec<_> = produced.points.into_iter().chain(log.points()).collect();
    write_points(&mut transaction, &points).await?;
    let left_out = left_out(&mut transaction, &next).await?;
    let kept = change_places(&mut transaction, target, log, &next, place).await?;
    // By now the tables of the database that is served are in the search path, those that were taken along among them.
    let compensations: Vec<_> = produced.compensations.into_values().collect();
    operations::restore_on_postgres(&mut transaction, &compensations).await?;
    transaction.commit().await?;
    Ok(Restored { events: produced.events, kept, left_out })
}

/// Tables that are taken along and that the ledger which is there has not any more: empty ones stand in for them.
async fn left_out(connection: &mut PgConnection, next: &Next) -> Result<Vec<String>, sqlx::Error> {
    let sql = format!(
        "select c.relname::text from pg_class c \
         where c.relnamespace = '{NEXT}'::regnamespace and c.relkind = 'r' \
             and c.relname <> '_sqlx_migrations' and (c.relname = 'restores' or c.relname <> all($2)) \
             and to_regclass(format('%s.%I', $1, c.relname)) is null \
             and exists (select from unnest($2) as made (name) where to_regclass(format('%s.%I', $1, name)) is not null) \
         order by c.relname"
    );
    let missing = sqlx::query_scalar(AssertSqlSafe(sql)).bind(&next.served).bind(made_from_log().collect::<Vec<_>>());
    missing.fetch_all(connection).await
}

/// The schema that is served, quoted.
struct Next {
    served: String,
}

/// Makes the tables in a schema of their own.
async fn make_tables(connection: &mut PgConnection) -> Result<Next, RestoreError> {
    let served: Option<String> =
        sqlx::query_scalar("select quote_ident(current_schema())").fetch_one(&mut *connection).await?;
    let served = served.ok_or_else(|| {
        StoreError::Schema("the database has no schema to make tables in; create the schema public".to_owned())
    })?;
    let script = format!("create schema {NEXT}; set local search_path = {NEXT}");
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await?;
    schema::migrator(&MIGRATIONS).run(&mut *connection).await?;
    Ok(Next { served })
}

/// Drops the primary key of the key index, and gives the statement that makes it again: to make it of all rows at once costs
/// half of what it does row by row. (Of the events it costs more: they would be read again for it.)
async fn drop_index_of_keys(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let sql = "select quote_ident(conname), pg_get_constraintdef(oid) from pg_constraint \
        where conrelid = 'key_positions'::regclass and contype = 'p'";
    let (name, definition): (String, String) = sqlx::query_as(sql).fetch_one(&mut *connection).await?;
    let drop = format!("alter table key_positions drop constraint {name}");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(connection).await?;
    Ok(format!("alter table key_positions add constraint {name} {definition}"))
}

/// What is sent to the server.
enum Encoded {
    /// Rows for a COPY.
    Copy {
        statement: &'static str,
        rows: Vec<u8>,
    },
    Beside(Box<dyn Rows>),
}

const KEYS: &str =
    "copy key_positions (partition, business_hash, account_short, position, run) from stdin (format binary, freeze)";
const ACCOUNTS: &str = "copy account_positions (partition, account_id, position) from stdin (format binary, freeze)";
const RELATED: &str =
    "copy related_positions (partition, original_position, position) from stdin (format binary, freeze)";
const HISTORY: &str =
    "copy history_positions (partition, account_id, version, position) from stdin (format binary, freeze)";
/// Without the columns, which are named where it is sent.
const EVENTS: &str = "events";

/// Rows of the indexes that wait until they are worth a COPY, in bytes: to change from one table to another costs some round
/// trips, and a ledger has many partitions.
const WAITING_BYTES: usize = 8 << 20;

/// Encodes rows; those of the indexes are kept back until there are many.
#[derive(Default)]
struct Encoder {
    keys: Vec<u8>,
    accounts: Vec<u8>,
    related: Vec<u8>,
    history: Vec<u8>,
}

impl Encoder {
    fn encode(&mut self, part: Part, hand_on: &mut dyn FnMut(Encoded)) {
        match part {
            Part::Events(events) => {
                let mut rows = copy::Rows::more(events.len());
                events.iter().for_each(|event| rows.add(event));
                hand_on(Encoded::Copy { statement: EVENTS, rows: rows.into_bytes() });
            }
            Part::Indexes(entries) => {
                self.add(&entries);
                let waiting = self.keys.len() + self.accounts.len() + self.related.len() + self.history.len();
                if waiting > WAITING_BYTES {
                    self.hand_on_all(hand_on);
                }
            }
            Part::Beside(rows) => hand_on(Encoded::Beside(rows)),
            Part::End => self.hand_on_all(hand_on),
        }
    }

    fn hand_on_all(&mut self, hand_on: &mut dyn FnMut(Encoded)) {
        let Self { keys, accounts, related, history } = std::mem::take(self);
        for (statement, rows) in [(KEYS, keys), (ACCOUNTS, accounts), (RELATED, related), (HISTORY, history)] {
            if !rows.is_empty() {
                hand_on(Encoded::Copy { statement, rows });
            }
        }
    }

    fn add(&mut self, entries: &IndexEntries) {
        let mut rows = copy::Rows::more(0);
        for (key, at) in &entries.keys {
            rows.row(5)
                .small(key.partition.number().into())
                .number(stored_hash(key.business))
                .number(stored_hash(key.account))
                .number(stored(at.0))
                .integer(key_run(*at));
        }
        self.keys.append(&mut rows.into_bytes());
        let mut rows = copy::Rows::more(0);
        for (id, at) in &entries.accounts {
            rows.row(3).small(id.partition().number().into()).uuid(id.uuid()).number(stored(at.0));
        }
        self.accounts.append(&mut rows.into_bytes());
        let mut rows = copy::Rows::more(0);
        for (partition, original, at) in &entries.related {
            rows.row(3).small(partition.number().into()).number(stored(original.0)).number(stored(at.0));
        }
        self.related.append(&mut rows.into_bytes());
        let mut rows = copy::Rows::more(0);
        for (id, version, at) in &entries.history {
            rows.row(4)
                .small(id.partition().number().into())
                .uuid(id.uuid())
                .number(stored(*version))
                .number(stored(at.0));
        }
        self.history.append(&mut rows.into_bytes());
    }
}

/// Copies what comes; successive rows of one table go into one COPY.
async fn copy_all(connection: &mut PgConnection, parts: &mut Parts<Encoded>) -> Result<(), StoreError> {
    let mut next = parts.parts.recv().await;
    while let Some(encoded) = next {
        let (statement, rows) = match encoded {
            Encoded::Copy { statement, rows } => (statement, rows),
            Encoded::Beside(rows) => {
                rows.write_on_postgres(connection).await?;
                next = parts.parts.recv().await;
                continue;
            }
        };
        let mut into = if statement == EVENTS {
            connection.copy_in_raw(&format!("copy events ({COLUMNS}) from stdin (format binary, freeze)")).await?
        } else {
            connection.copy_in_raw(statement).await?
        };
        into.send(copy::HEADER).await?;
        into.send(rows).await?;
        next = copy_more(&mut into, statement, parts).await?;
        into.send(copy::TRAILER).await?;
        into.finish().await?;
    }
    Ok(())
}

/// Sends rows on until some of another table come.
async fn copy_more(
    into: &mut PgCopyIn<&mut PgConnection>,
    statement: &'static str,
    parts: &mut Parts<Encoded>,
) -> Result<Option<Encoded>, sqlx::Error> {
    while let Some(encoded) = parts.parts.recv().await {
        match encoded {
            Encoded::Copy { statement: same, rows } if same == statement => drop(into.send(rows).await?),
            other => return Ok(Some(other)),
        }
    }
    Ok(None)
}

async fn write_heads(connection: &mut PgConnection, heads: &[Head; PARTITIONS]) -> Result<(), RestoreError> {
    for table in ["partition_heads", "index_checkpoints"] {
        let sql = format!(
            "update {table} h set epoch = n.epoch, position = n.position, hash = n.hash \
             from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bytea[]) as n (partition, epoch, position, hash) \
             where h.partition = n.partition"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(Partition::all().map(|partition| i16::from(partition.number())).collect::<Vec<_>>())
            .bind(heads.iter().map(|head| i64::from(head.epoch.0)).collect::<Vec<_>>())
            .bind(heads.iter().map(|head| stored(head.position.0)).collect::<Vec<_>>())
            .bind(heads.iter().map(|head| &head.hash.0[..]).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn write_points(connection: &mut PgConnection, points: &[RestorePoint]) -> Result<(), RestoreError> {
    sqlx::query(
        "insert into restores (partition, epoch, position, hash, restored_at, archive_id) \
         select * from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::timestamptz[], $6::text[]) \
         on conflict (partition, epoch) do nothing",
    )
    .bind(points.iter().map(|point| i16::from(point.partition.number())).collect::<Vec<_>>())
    .bind(points.iter().map(|point| i64::from(point.head.epoch.0)).collect::<Vec<_>>())
    .bind(points.iter().map(|point| stored(point.head.position.0)).collect::<Vec<_>>())
    .bind(points.iter().map(|point| &point.head.hash.0[..]).collect::<Vec<_>>())
    .bind(points.iter().map(|point| point.restored_at.into()).collect::<Vec<chrono::DateTime<chrono::Utc>>>())
    .bind(points.iter().map(|point| &*point.archive_id).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
