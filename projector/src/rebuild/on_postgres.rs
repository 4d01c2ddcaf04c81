//! The next tables on PostgreSQL.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use ledger_core::{Event, Hash, Head, PARTITIONS, Partition, digest::PartitionDigest};
use ledger_store::postgres::Postgres;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{NextTables, RebuildError, copy, fill::Tables, replay::Folded, sound};
use crate::{
    checkpoint::ReadModel,
    election::{LOCK_BASE, TRY_LOCK},
    fold::{self, Changes, Rows},
    postgres,
    row::{BALANCE_COLUMNS, FREEZE_COLUMNS, stored},
};

/// The advisory lock that lets one rebuild run at a time.
const REBUILD_LOCK: i64 = LOCK_BASE + 2;
/// How long it is waited for: the session of a rebuild that was killed lives until the server notices it.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_LOOK: Duration = Duration::from_millis(100);
/// Bytes of one message of a copy.
const MESSAGE: usize = 256 * 1024;

/// The tables are filled without indexes: to sort once is a fraction of the work.
const CREATE: [(ReadModel, &str); 2] = [
    (
        ReadModel::Balances,
        "create table balances_next (like balances including defaults including constraints);
         alter table balances_next set (fillfactor = 80);",
    ),
    (
        ReadModel::Freezes,
        "create table freezes_next (like freezes including defaults including constraints);
         alter table freezes_next set (fillfactor = 80);",
    ),
];
const INDEX: [(ReadModel, &str); 2] = [
    (
        ReadModel::Balances,
        "alter table balances_next add constraint balances_next_pkey primary key (partition, account_id);
         analyze balances_next;",
    ),
    (
        ReadModel::Freezes,
        "alter table freezes_next add constraint freezes_next_pkey primary key (partition, position);
         create index freezes_next_of_account on freezes_next (partition, account_id, position);
         create index freezes_next_due on freezes_next (partition, expires_at, position) where expires_at is not null;
         analyze freezes_next;",
    ),
];
/// What was served keeps its rows until the switch is committed: to drop a large table takes a moment, and readers would
/// wait for it.
const SWITCH: [(ReadModel, &str); 2] = [
    (
        ReadModel::Balances,
        "alter table balances rename to balances_old;
         alter index if exists balances_pkey rename to balances_old_pkey;
         alter table balances_next rename to balances;
         alter index balances_next_pkey rename to balances_pkey;",
    ),
    (
        ReadModel::Freezes,
        "alter table freezes rename to freezes_old;
         alter index if exists freezes_pkey rename to freezes_old_pkey;
         alter index if exists freezes_of_account rename to freezes_old_of_account;
         alter index if exists freezes_due rename to freezes_old_due;
         alter table freezes_next rename to freezes;
         alter index freezes_next_pkey rename to freezes_pkey;
         alter index freezes_next_of_account rename to freezes_of_account;
         alter index freezes_next_due rename to freezes_due;",
    ),
];
const DISCARD: &str = "drop table if exists balances_next, freezes_next, balances_old, freezes_old";

/// Whoever serves the table serves the next one, whoever makes it: it gets the same owner, and whoever may use the one may
/// use the other.
const HAND_OVER: &str = "do $$
    declare
        served record;
        given record;
    begin
        for served in
            select c.relname, pg_get_userbyid(c.relowner) as owner from pg_class c
            where c.oid in ('balances'::regclass, 'freezes'::regclass) and to_regclass(c.relname || '_next') is not null
        loop
            if served.owner <> current_user then
                begin
                    execute format('alter table %I owner to %I', served.relname || '_next', served.owner);
                exception when insufficient_privilege then
                    raise exception 'the table % belongs to the role % (%); run this as that role',
                        served.relname, served.owner, sqlerrm using errcode = 'insufficient_privilege';
                end;
            end if;
        end loop;
        for given in
            select c.relname, a.privilege_type, a.grantee::regrole as grantee
            from pg_class c cross join lateral aclexplode(c.relacl) a
            where c.oid in ('balances'::regclass, 'freezes'::regclass) and a.grantee <> 0
                and to_regclass(c.relname || '_next') is not null
        loop
            execute format('grant %s on %I to %s', given.privilege_type, given.relname || '_next', given.grantee);
        end loop;
    end
    $$";

/// The next tables, and the session that holds the lock: when it ends, however it ends, another rebuild may run.
pub(super) struct Next {
    connection: PgConnection,
    models: Vec<ReadModel>,
}

impl Next {
    pub(super) async fn create(database: &Postgres, models: &[ReadModel]) -> Result<Self, RebuildError> {
        let mut connection = database.session().await?;
        be_alone(&mut connection).await?;
        // Left over from a rebuild that was killed. One whose end its server has not noticed yet may still hold them for
        // a moment; then the lock's time-out says so.
        sqlx::raw_sql(DISCARD).execute(&mut connection).await?;
        let mut next = Self { connection, models: models.to_vec() };
        // What cannot be handed over is not made.
        sqlx::query("begin").execute(&mut next.connection).await?;
        next.run(&CREATE).await?;
        sqlx::raw_sql(HAND_OVER).execute(&mut next.connection).await?;
        sqlx::query("commit").execute(&mut next.connection).await?;
        Ok(next)
    }

    /// Runs the statements of the read models that are rebuilt.
    async fn run(&mut self, statements: &[(ReadModel, &'static str)]) -> Result<(), RebuildError> {
        for (_, statements) in statements.iter().filter(|(model, _)| self.models.contains(model)) {
            sqlx::raw_sql(*statements).execute(&mut self.connection).await?;
        }
        Ok(())
    }
}

async fn be_alone(connection: &mut PgConnection) -> Result<(), RebuildError> {
    let began = Instant::now();
    loop {
        let lock = sqlx::query_scalar(TRY_LOCK).bind(REBUILD_LOCK);
        if lock.fetch_one(&mut *connection).await? {
            return Ok(());
        }
        if began.elapsed() > LOCK_WAIT {
            return Err(RebuildError::AlreadyRunning);
        }
        tokio::time::sleep(LOCK_LOOK).await;
    }
}

impl NextTables for Next {
    async fn index(&mut self) -> Result<(), RebuildError> {
        self.run(&INDEX).await
    }

    async fn write(&mut self, changes: &Changes) -> Result<(), RebuildError> {
        let mut balances: Vec<_> = changes.balances.iter().collect();
        balances.sort_unstable_by_key(|balance| balance.account.id());
        postgres::write_balances(&mut self.connection, "balances_next", &balances).await?;
        postgres::write_freezes(&mut self.connection, "freezes_next", &postgres::in_order(&changes.freezes)).await?;
        Ok(())
    }

    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError> {
        let mut rows = Rows::default();
        if self.models.contains(&ReadModel::Balances) {
            let accounts = fold::accounts_of(events.iter());
            let balances = sound(postgres::balances(&mut self.connection, "balances_next", &accounts).await?)?;
            rows.balances = Rows::of(balances, []).balances;
        }
        if self.models.contains(&ReadModel::Freezes) {
            let places = fold::freezes_of(events.iter());
            let freezes = sound(postgres::freezes(&mut self.connection, "freezes_next", &places).await?)?;
            rows.freezes = Rows::of([], freezes).freezes;
        }
        Ok(rows)
    }

    async fn hold(&mut self) -> Result<[Head; PARTITIONS], RebuildError> {
        sqlx::query("begin").execute(&mut self.connection).await?;
        // Readers queue behind the switch while it waits for one of them: not for long.
        sqlx::query("set local lock_timeout = '1s'").execute(&mut self.connection).await?;
        // The whole table, not its rows: a row that is missing cannot be locked.
        sqlx::query("lock table projection_checkpoints in exclusive mode").execute(&mut self.connection).await?;
        Ok(postgres::heads(&mut self.connection).await?)
    }

    async fn let_go(&mut self) -> Result<(), RebuildError> {
        sqlx::query("rollback").execute(&mut self.connection).await?;
        Ok(())
    }

    async fn switch(&mut self, at: &[Head; PARTITIONS]) -> Result<u64, RebuildError> {
        for model in self.models.clone() {
            // Whatever is there: a row may be missing, or unreadable.
            sqlx::query("delete from projection_checkpoints where projection = $1")
                .bind(model.name())
                .execute(&mut self.connection)
                .await?;
            sqlx::query(
                "insert into projection_checkpoints (projection, partition, epoch, position, hash) \
                 select $1, * from unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bytea[])",
            )
            .bind(model.name())
            .bind(Partition::all().map(|partition| i16::from(partition.number())).collect::<Vec<_>>())
            .bind(at.iter().map(|head| i64::from(head.epoch.0)).collect::<Vec<_>>())
            .bind(at.iter().map(|head| stored(head.position.0)).collect::<Vec<_>>())
            .bind(at.iter().map(|head| head.hash.0.to_vec()).collect::<Vec<_>>())
            .execute(&mut self.connection)
            .await?;
        }
        let names: Vec<_> = self.models.iter().map(|model| model.name()).collect();
        let resolved = sqlx::query(
            "update inconsistencies set resolved_at = now(), resolved_by = 'replay-tool rebuild', \
                 outcome = coalesce(outcome, 'mended') \
             where projection = any($1) and resolved_at is null",
        )
        .bind(names)
        .execute(&mut self.connection)
        .await?;
        self.run(&SWITCH).await?;
        sqlx::query("commit").execute(&mut self.connection).await?;
        Ok(resolved.rows_affected())
    }

    async fn discard(&mut self) -> Result<(), RebuildError> {
        sqlx::raw_sql(DISCARD).execute(&mut self.connection).await?;
        Ok(())
    }
}

/// A worker's session.
pub(super) struct Filler {
    connection: PgConnection,
}

impl Filler {
    pub(super) async fn connect(database: &Postgres) -> Result<Self, RebuildError> {
        let mut connection = database.session().await?;
        // The switch's own commit waits for the disk, and with it for all that was written before.
        sqlx::query("set synchronous_commit = off").execute(&mut connection).await?;
        Ok(Self { connection })
    }

    /// Writes all rows of a partition; none of them is there.
    pub(super) async fn fill(&mut self, models: &[ReadModel], folded: &Folded) -> Result<(), RebuildError> {
        if models.contains(&ReadModel::Balances) {
            let into = format!("copy balances_next ({BALANCE_COLUMNS}) from stdin (format binary)");
            copy_rows(&mut self.connection, &into, &folded.balances, copy::Rows::add_balance).await?;
        }
        if models.contains(&ReadModel::Freezes) {
            let into = format!("copy freezes_next ({FREEZE_COLUMNS}) from stdin (format binary)");
            copy_rows(&mut self.connection, &into, &folded.freezes, copy::Rows::add_freeze).await?;
        }
        Ok(())
    }

    /// The digest of a partition's rows, as the tables give them back.
    pub(super) async fn digest(
        &mut self,
        models: &[ReadModel],
        tables: Tables,
        partition: Partition,
    ) -> Result<(Hash, Hash), RebuildError> {
        let number = i16::from(partition.number());
        let mut digest = PartitionDigest::default();
        if models.contains(&ReadModel::Balances) {
            let table = tables.of(ReadModel::Balances);
            let sql = format!("select {BALANCE_COLUMNS} from {table} where partition = $1 order by account_id");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch(&mut self.connection);
            while let Some(row) = rows.try_next().await? {
                digest.add_balance(&postgres::balance(&row)?.map_err(differs(partition))?);
            }
        }
        if models.contains(&ReadModel::Freezes) {
            let table = tables.of(ReadModel::Freezes);
            let sql = format!("select {FREEZE_COLUMNS} from {table} where partition = $1 order by position");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch(&mut self.connection);
            while let Some(row) = rows.try_next().await? {
                digest.add_freeze(&postgres::freeze(&row)?.map_err(differs(partition))?);
            }
        }
        Ok(digest.finish())
    }
}

/// Writes all rows of a partition into tables that the same transaction made.
pub(super) async fn write_all(connection: &mut PgConnection, folded: &Folded) -> Result<(), sqlx::Error> {
    let into = format!("copy balances ({BALANCE_COLUMNS}) from stdin (format binary, freeze)");
    copy_rows(connection, &into, &folded.balances, copy::Rows::add_balance).await?;
    let into = format!("copy freezes ({FREEZE_COLUMNS}) from stdin (format binary, freeze)");
    copy_rows(connection, &into, &folded.freezes, copy::Rows::add_freeze).await
}

async fn copy_rows<T>(
    connection: &mut PgConnection,
    into: &str,
    rows: &[T],
    add: fn(&mut copy::Rows, &T),
) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut into = connection.copy_in_raw(into).await?;
    let mut encoded = copy::Rows::begin();
    for row in rows {
        add(&mut encoded, row);
        if encoded.len() >= MESSAGE {
            into.send(encoded.take()).await?;
        }
    }
    into.send(encoded.end()).await?;
    into.finish().await?;
    Ok(())
}

/// A row that cannot be read is not what was written.
pub(super) fn differs<E: std::error::Error>(partition: Partition) -> impl Fn(E) -> RebuildError {
    move |damage| {
        tracing::error!(%partition, %damage, "a row of the next tables cannot be read back");
        RebuildError::Differs { partition }
    }
}
