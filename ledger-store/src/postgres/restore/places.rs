//! The new tables take the place of those that are there.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{NEXT, Next, has_events, standing_in};
use crate::{
    StoreError,
    restore::{Log, RestoreError, Target, made_from_log, read_models, restores_to_take_along},
};

/// How often the tables' places are tried to be changed, and how long each attempt waits for those who use them.
const ATTEMPTS: u32 = 20;
const WAIT: &str = "set local lock_timeout = '5s'";
const PAUSE: Duration = Duration::from_millis(200);
/// What PostgreSQL answers when a lock was not had in time, and when two sessions waited for each other.
const TRY_AGAIN: [&str; 2] = ["55P03", "40P01"];

/// Puts the tables in the place of those that are there. Those who use them are waited for, but not for long at a time:
/// whoever comes after us waits behind us.
pub(super) async fn change_places(
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
        let told = restores_to_take_along(&format!("{NEXT}."), &format!("{served}.restores"), log.epoch);
        let script = format!(
            "do $$
             begin
                 {locks}
                 begin
                     -- What the log itself tells of a restore does not name the archive; the table does.
                     insert into {NEXT}.restores select * from {served}.restores r where {told}
                     on conflict (partition, epoch)
                     do update set restored_at = excluded.restored_at, archive_id = excluded.archive_id
                     where restores.archive_id = '';
                 exception when undefined_table or undefined_column or datatype_mismatch or data_corrupted
                     or index_corrupted then null;
                 end;
                 {hand_over}
                 {tables}
                 {functions}
             end
             $$;",
            locks = locks.collect::<Vec<_>>().join(" "),
            hand_over = hand_over(served, &made_from_log),
            tables = each_table(served, &made_from_log, &make_room),
            functions = each_function(served, &make_room_for_functions),
        );
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await?;
    }
    let script = format!(
        "do $$ begin {} {} {} end $$; drop schema {NEXT}; set local search_path = {served}",
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
        // Those that are there stay: they never change, and sessions know them.
        every_type(&format!(
            "if to_regtype(format('%s.%I', '{served}', name)) is null
             then execute format('alter type %s set schema {served}', made);
             else execute format('drop type %s', made); end if;"
        )),
    );
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await?;
    Ok(is_there && target == Target::Replace)
}

/// A block in PL/pgSQL that leaves everything to whom it belongs, and who may use it as they are. What is not there any more
/// belonged to whoever has the rest.
fn hand_over(served: &str, made_from_log: &str) -> String {
    format!(
        "declare
             given record;
             sibling name := (select pg_get_userbyid(c.relowner) from pg_class c
                 where c.relnamespace = '{served}'::regnamespace and c.relkind = 'r' and c.relname in ({made_from_log})
                 order by c.relname <> 'events', c.relname limit 1);
         begin
             {present}
             if sibling <> current_user then {missing} {functions} {types} end if;
         end;",
        present = each_table(
            served,
            made_from_log,
            "if owner <> current_user then execute format('alter table %s owner to %I', made, owner); end if;
             for given in
                 select a.privilege_type, a.grantee::regrole as grantee from pg_class c
                 cross join lateral aclexplode(c.relacl) a
                 where c.oid = served::regclass and a.grantee <> 0 and a.grantee <> c.relowner
             loop
                 execute format('grant %s on %s to %s', given.privilege_type, made, given.grantee);
             end loop;"
        ),
        missing = every_table(&format!(
            "if to_regclass(format('%s.%I', '{served}', name)) is null
             then execute format('alter table %s owner to %I', made, sibling); end if;"
        )),
        functions = every_function("execute format('alter function %s owner to %I', made, sibling);"),
        types = every_type("execute format('alter type %s owner to %I', made, sibling);"),
    )
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
    every("r", body)
}

/// The same over the types that have columns and no rows.
fn every_type(body: &str) -> String {
    every("c", body)
}

fn every(kind: &str, body: &str) -> String {
    format!(
        "declare made text; name text; begin
             for made, name in
                 select format('{NEXT}.%I', c.relname), c.relname from pg_class c
                 where c.relnamespace = '{NEXT}'::regnamespace and c.relkind = '{kind}' order by c.relname
             loop {body} end loop;
         end;"
    )
}

/// The same over the functions: `identity` is the name with the types of its arguments.
fn every_function(body: &str) -> String {
    format!(
        "declare made text; identity text; begin
             for made, identity in
                 select format('{NEXT}.%I(%s)', p.proname, oidvectortypes(p.proargtypes)),
                     format('%I(%s)', p.proname, oidvectortypes(p.proargtypes))
                 from pg_proc p where p.pronamespace = '{NEXT}'::regnamespace order by p.proname
             loop {body} end loop;
         end;"
    )
}

/// A loop over the tables of a schema with some names: `served` is one, `owner` its owner, `made` the one that takes its
/// place.
pub(super) fn each_table(schema: &str, which: &str, body: &str) -> String {
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

/// A loop over the types of a schema that were made anew.
pub(super) fn each_type(schema: &str, body: &str) -> String {
    let served = format!(
        "if to_regtype(format('{schema}.%I', name)) is not null then served := format('{schema}.%I', name); {body} end if;"
    );
    format!("declare served text; begin {} end;", every_type(&served))
}

/// A loop over the functions of a schema that were made anew.
pub(super) fn each_function(schema: &str, body: &str) -> String {
    format!(
        "declare served text; begin
             for served in
                 select format('{schema}.%I(%s)', p.proname, oidvectortypes(p.proargtypes)) from pg_proc p
                 where p.pronamespace = '{schema}'::regnamespace
                 and (p.proname, oidvectortypes(p.proargtypes)) in (
                     select n.proname, oidvectortypes(n.proargtypes) from pg_proc n
                     where n.pronamespace = '{NEXT}'::regnamespace)
                 order by p.proname
             loop {body} end loop;
         end;"
    )
}
