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
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, postgres::PgCopyIn};

use super::{MIGRATIONS, Postgres, copy, describe, options, version};
use crate::{
    StoreError,
    index::{IndexEntries, key_run, stored_hash},
    operations,
    restore::{Found, Log, Part, Parts, RestoreError, RestorePoint, Restored, Target, made_from_log, read_models},
    row::{self, COLUMNS, stored},
    schema,
};

/// Where the tables are made.
const NEXT: &str = "ledger_restoring";
/// One restore at a time ("ledger", 8).
const RESTORE_LOCK: &str = "select pg_try_advisory_lock(x'6c656467657208'::bigint)";
const LOCK_WAIT: Duration = Duration::from_secs(15);
/// How often the tables' places are tried to be changed, and how long each attempt waits for those who use them.
const ATTEMPTS: u32 = 20;
const WAIT: &str = "set local lock_timeout = '5s'";
const PAUSE: Duration = Duration::from_millis(200);
/// What PostgreSQL answers when a lock was not had in time, and when two sessions waited for each other.
const TRY_AGAIN: [&str; 2] = ["55P03", "40P01"];

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
        if !is_alone(&mut connection).await? {
            return Err(RestoreError::InUse(format!("another restore into {place} is running; wait for it")));
        }
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
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let mut transaction = connection.begin().await?;
        let next = make_tables(&mut transaction).await.map_err(|error| match error {
            RestoreError::Store(error) => error,
            other => StoreError::Inconsistent(other.to_string()),
        })?;
        let all_made = format!("select relname from pg_class where relnamespace = '{NEXT}'::regnamespace");
        let script = format!(
            "do $$ begin {} {} end $$; drop schema {NEXT} cascade",
            each_table(&next.served, &all_made, "execute format('drop table %s', served);"),
            each_function(&next.served, "execute format('drop function %s', served);"),
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
async fn is_alone(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let began = Instant::now();
    loop {
        let alone: bool = sqlx::query_scalar(RESTORE_LOCK).fetch_one(&mut *connection).await?;
        if alone || began.elapsed() > LOCK_WAIT {
            return Ok(alone);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn connect(url: &str) -> Result<(PgConnection, String), StoreError> {
    // Reading the archive may take its time between two statements.
    let options = options(url)?.options([("idle_in_transaction_session_timeout", "0")]);
    let place = describe(&options);
    let connection = PgConnection::connect_with(&options).await.map_err(|error| {
        StoreError::Address(format!(
            "cannot connect to {place}: {}; look at the address, and whether the server runs",
            super::said(&error)
        ))
    })?;
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
    let copied = copy_all(&mut transaction, &mut parts).await;
    let produced = match copied {
        Ok(()) => parts.end().await?,
        Err(error) => {
            // Why nothing more came says more than that nothing came.
            parts.end().await?;
            return Err(error.into());
        }
    };
    write_heads(&mut transaction, &log.next_heads()).await?;
    let points: Vec<_> = produced.points.into_iter().chain(log.points()).collect();
    write_points(&mut transaction, &points).await?;
    let kept = change_places(&mut transaction, target, log, &next, place).await?;
    // By now the tables of the database that is served are in the search path, those that were taken along among them.
    let compensations: Vec<_> = produced.compensations.into_values().collect();
    operations::restore_on_postgres(&mut transaction, &compensations).await?;
    transaction.commit().await?;
    Ok(Restored { events: produced.events, kept })
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

/// Rows for a table, encoded.
struct Encoded {
    statement: &'static str,
    rows: Vec<u8>,
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
                hand_on(Encoded { statement: EVENTS, rows: rows.into_bytes() });
            }
            Part::Indexes(entries) => {
                self.add(&entries);
                let waiting = self.keys.len() + self.accounts.len() + self.related.len() + self.history.len();
                if waiting > WAITING_BYTES {
                    self.hand_on_all(hand_on);
                }
            }
            Part::End => self.hand_on_all(hand_on),
        }
    }

    fn hand_on_all(&mut self, hand_on: &mut dyn FnMut(Encoded)) {
        let Self { keys, accounts, related, history } = std::mem::take(self);
        for (statement, rows) in [(KEYS, keys), (ACCOUNTS, accounts), (RELATED, related), (HISTORY, history)] {
            if !rows.is_empty() {
                hand_on(Encoded { statement, rows });
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
async fn copy_all(connection: &mut PgConnection, parts: &mut Parts<Encoded>) -> Result<(), sqlx::Error> {
    let mut next = parts.parts.recv().await;
    while let Some(Encoded { statement, rows }) = next {
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
        if encoded.statement != statement {
            return Ok(Some(encoded));
        }
        into.send(encoded.rows).await?;
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

/// Puts the tables in the place of those that are there. Those who use them are waited for, but not for long at a time:
/// whoever comes after us waits behind us.
async fn change_places(
    connection: &mut PgConnection,
    target: Target,
    log: &Log,
    next: &Next,
    place: &str,
) -> Result<Option<String>, RestoreError> {
    let before = format!("ledger_before_{}", log.epoch.0);
    let mut attempt = 1;
    loop {
        let mut savepoint = connection.begin().await?;
        match change_places_once(&mut savepoint, target, log, next, &before, place).await {
            Ok(kept) => {
                savepoint.commit().await?;
                return Ok(kept.then_some(before));
            }
            Err(RestoreError::Store(StoreError::Database(sqlx::Error::Database(refusal))))
                if attempt < ATTEMPTS && refusal.code().is_some_and(|code| TRY_AGAIN.contains(&&*code)) =>
            {
                savepoint.rollback().await?;
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
        attempt += 1;
    }
}

/// Whether something was there.
async fn change_places_once(
    connection: &mut PgConnection,
    target: Target,
    log: &Log,
    next: &Next,
    before: &str,
    place: &str,
) -> Result<bool, RestoreError> {
    let served = &next.served;
    sqlx::query(WAIT).execute(&mut *connection).await?;
    // No append is under way from here on.
    if !log.appends_are_held {
        sqlx::query("select pg_advisory_xact_lock(x'6c656467657207'::bigint)").execute(&mut *connection).await?;
    }
    let is_there: bool =
        sqlx::query_scalar("select exists (select from unnest($2::text[]) as t (name) where to_regclass(format('%s.%I', $1, name)) is not null)")
            .bind(served)
            .bind(made_from_log().collect::<Vec<_>>())
            .fetch_one(&mut *connection)
            .await?;
    // In the order in which projectors take them.
    let locks = read_models().map(|table| {
        format!("if to_regclass('{served}.{table}') is not null then lock table {served}.{table} in access exclusive mode; end if;")
    });
    let make_room = match target {
        Target::Empty => "execute format('drop table %s', served);".to_owned(),
        Target::Replace => format!("execute format('alter table %s set schema {before}', served);"),
    };
    let make_room_for_functions = match target {
        Target::Empty => "execute format('drop function %s', served);".to_owned(),
        Target::Replace => format!("execute format('alter function %s set schema {before}', served);"),
    };
    if is_there {
        if target == Target::Empty {
            let locked = format!("lock table {served}.events in access exclusive mode");
            sqlx::query(AssertSqlSafe(locked)).execute(&mut *connection).await?;
            // Somebody may have begun to use it while the archive was read.
            if has_events(connection, &format!("{served}.events")).await? {
                return Err(RestoreError::NotEmpty(place.to_owned()));
            }
        } else {
            refuse_what_went_on(connection, log, served, place).await?;
            let script = format!("create schema {before}");
            sqlx::query(AssertSqlSafe(script)).execute(&mut *connection).await?;
        }
        let made_from_log = made_from_log().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        let script = format!(
            "do $$
             declare
                 given record;
             begin
                 {locks}
                 begin
                     -- What the log itself tells of a restore does not name the archive; the table does.
                     insert into {NEXT}.restores select * from {served}.restores on conflict (partition, epoch)
                     do update set restored_at = excluded.restored_at, archive_id = excluded.archive_id
                     where restores.archive_id = '';
                 exception when undefined_table or undefined_column or datatype_mismatch then null;
                 end;
                 {hand_over}
                 {tables}
                 {functions}
             end
             $$;",
            locks = locks.collect::<Vec<_>>().join(" "),
            hand_over = each_table(
                served,
                &made_from_log,
                "-- To whom it belongs and who may use it stays as it is.
                 if owner <> current_user then execute format('alter table %s owner to %I', made, owner); end if;
                 for given in
                     select a.privilege_type, a.grantee::regrole as grantee from pg_class c
                     cross join lateral aclexplode(c.relacl) a
                     where c.oid = served::regclass and a.grantee <> 0 and a.grantee <> c.relowner
                 loop
                     execute format('grant %s on %s to %s', given.privilege_type, made, given.grantee);
                 end loop;"
            ),
            tables = each_table(served, &made_from_log, &make_room),
            functions = each_function(served, &make_room_for_functions),
        );
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await?;
    }
    let script = format!(
        "do $$ begin {} {} end $$; drop schema {NEXT}; set local search_path = {served}",
        every_table(&format!(
            "if to_regclass(format('%s.%I', '{served}', name)) is null
             then execute format('alter table %s set schema {served}', made);
             else execute format('drop table %s', made); end if;"
        )),
        every_function(&format!(
            "if to_regprocedure(format('%s.%s', '{served}', identity)) is null
             then execute format('alter function %s set schema {served}', made);
             else execute format('drop function %s', made); end if;"
        )),
    );
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await?;
    Ok(is_there && target == Target::Replace)
}

/// Nothing may have been appended since the log was read: who held appends back may have lost the lock without a word.
async fn refuse_what_went_on(
    connection: &mut PgConnection,
    log: &Log,
    served: &str,
    place: &str,
) -> Result<(), RestoreError> {
    let Some(standing) = &log.standing else { return Ok(()) };
    let heads = format!("{served}.partition_heads");
    // Whoever appends now is waited for; whoever comes later waits for us.
    let lock = format!("lock table {heads} in access exclusive mode");
    sqlx::query(AssertSqlSafe(lock)).execute(&mut *connection).await?;
    let now: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(standing_in(&heads))).fetch_one(&mut *connection).await?;
    if now.as_ref() == Some(standing) { Ok(()) } else { Err(RestoreError::WentOn(place.to_owned())) }
}

/// A loop in PL/pgSQL over the tables that were made: `made` is one, `name` its name.
fn every_table(body: &str) -> String {
    format!(
        "declare made text; name text; begin
             for made, name in
                 select format('{NEXT}.%I', c.relname), c.relname from pg_class c
                 where c.relnamespace = '{NEXT}'::regnamespace and c.relkind = 'r' order by c.relname
             loop {body} end loop;
         end;"
    )
}

/// The same over the functions: `identity` is the name with the arguments.
fn every_function(body: &str) -> String {
    format!(
        "declare made text; identity text; begin
             for made, identity in
                 select format('{NEXT}.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
                     format('%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid))
                 from pg_proc p where p.pronamespace = '{NEXT}'::regnamespace order by p.proname
             loop {body} end loop;
         end;"
    )
}

/// A loop over the tables of a schema with some names: `served` is one, `owner` its owner, `made` the one that takes its
/// place.
fn each_table(schema: &str, which: &str, body: &str) -> String {
    format!(
        "declare served text; made text; owner name; begin
             for served, made, owner in
                 select format('{schema}.%I', c.relname), format('{NEXT}.%I', c.relname), pg_get_userbyid(c.relowner)
                 from pg_class c
                 where c.relnamespace = '{schema}'::regnamespace and c.relkind = 'r' and c.relname in ({which})
                 order by c.relname
             loop {body} end loop;
         end;"
    )
}

/// A loop over the functions of a schema that were made anew.
fn each_function(schema: &str, body: &str) -> String {
    format!(
        "declare served text; begin
             for served in
                 select format('{schema}.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) from pg_proc p
                 where p.pronamespace = '{schema}'::regnamespace
                 and (p.proname, pg_get_function_identity_arguments(p.oid)) in (
                     select n.proname, pg_get_function_identity_arguments(n.oid) from pg_proc n
                     where n.pronamespace = '{NEXT}'::regnamespace)
                 order by p.proname
             loop {body} end loop;
         end;"
    )
}
