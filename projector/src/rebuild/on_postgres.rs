//! The next tables on PostgreSQL.

use ledger_core::{Balance, Event, Freeze, Head, PARTITIONS, Partition};
use ledger_store::{StoreError, postgres::Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{NextTables, RebuildError, sound};
use crate::{
    checkpoint::ReadModel,
    election::LOCK_BASE,
    fold::{self, Changes, Rows},
    postgres,
    row::stored,
};

/// The advisory lock that lets one rebuild run at a time.
const REBUILD_LOCK: i64 = LOCK_BASE + 2;

/// The next tables, and the session that holds the lock: when it ends, however it ends, another rebuild may run.
pub(super) struct Next {
    connection: PgConnection,
}

impl Next {
    pub(super) async fn create(database: &Postgres) -> Result<Self, RebuildError> {
        let mut connection = PgConnection::connect_with(database.connect_options()).await?;
        let alone: bool =
            sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(REBUILD_LOCK).fetch_one(&mut connection).await?;
        if !alone {
            return Err(RebuildError::AlreadyRunning);
        }
        // Left over from a rebuild that was killed.
        sqlx::raw_sql(
            "drop table if exists balances_next, freezes_next;
             create table balances_next (like balances including defaults including constraints);
             alter table balances_next add constraint balances_next_pkey primary key (partition, account_id);
             alter table balances_next set (fillfactor = 80);
             create table freezes_next (like freezes including defaults including constraints);
             alter table freezes_next add constraint freezes_next_pkey primary key (partition, position);
             alter table freezes_next set (fillfactor = 80);
             create index freezes_next_of_account on freezes_next (partition, account_id, position);
             do $$
             declare
                 given record;
             begin
                 for given in
                     select c.relname, a.privilege_type, a.grantee::regrole as grantee
                     from pg_class c cross join lateral aclexplode(c.relacl) a
                     where c.oid in ('balances'::regclass, 'freezes'::regclass) and a.grantee <> 0
                 loop
                     execute format('grant %s on %I to %s', given.privilege_type, given.relname || '_next', given.grantee);
                 end loop;
             end
             $$;",
        )
        .execute(&mut connection)
        .await?;
        Ok(Self { connection })
    }
}

impl NextTables for Next {
    async fn write(&mut self, changes: &Changes) -> Result<(), RebuildError> {
        let mut balances: Vec<_> = changes.balances.iter().collect();
        balances.sort_unstable_by_key(|balance| balance.account.id());
        postgres::write_balances(&mut self.connection, "balances_next", &balances).await?;
        postgres::write_freezes(&mut self.connection, "freezes_next", &changes.freezes).await?;
        Ok(())
    }

    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError> {
        let (accounts, places) = (fold::accounts_of(events.iter()), fold::freezes_of(events.iter()));
        let balances = sound(postgres::balances(&mut self.connection, "balances_next", &accounts).await?)?;
        let freezes = sound(postgres::freezes(&mut self.connection, "freezes_next", &places).await?)?;
        Ok(Rows::of(balances, freezes))
    }

    async fn all(&mut self, partition: Partition) -> Result<(Vec<Balance>, Vec<Freeze>), RebuildError> {
        let (balances, freezes) =
            postgres::partition_rows(&mut self.connection, "balances_next", "freezes_next", partition).await?;
        Ok((sound(balances)?, sound(freezes)?))
    }

    async fn hold(&mut self) -> Result<[Head; PARTITIONS], RebuildError> {
        sqlx::query("begin").execute(&mut self.connection).await?;
        // Readers queue behind the switch while it waits for one of them: not for long.
        sqlx::query("set local lock_timeout = '1s'").execute(&mut self.connection).await?;
        sqlx::query("select 1 from projection_checkpoints order by projection, partition for update")
            .execute(&mut self.connection)
            .await?;
        Ok(postgres::heads(&mut self.connection).await?)
    }

    async fn let_go(&mut self) -> Result<(), RebuildError> {
        sqlx::query("rollback").execute(&mut self.connection).await?;
        Ok(())
    }

    async fn switch(&mut self, at: &[Head; PARTITIONS]) -> Result<(), RebuildError> {
        let connection = &mut self.connection;
        for model in ReadModel::ALL {
            sqlx::query(
                "update projection_checkpoints c set epoch = n.epoch, position = n.position, hash = n.hash \
                 from unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bytea[]) as n (partition, epoch, position, hash) \
                 where c.projection = $1 and c.partition = n.partition",
            )
            .bind(model.name())
            .bind(Partition::all().map(|partition| i16::from(partition.number())).collect::<Vec<_>>())
            .bind(at.iter().map(|head| i64::from(head.epoch.0)).collect::<Vec<_>>())
            .bind(at.iter().map(|head| stored(head.position.0)).collect::<Vec<_>>())
            .bind(at.iter().map(|head| head.hash.0.to_vec()).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        sqlx::raw_sql(
            "drop table balances, freezes;
             alter table balances_next rename to balances;
             alter index balances_next_pkey rename to balances_pkey;
             alter table freezes_next rename to freezes;
             alter index freezes_next_pkey rename to freezes_pkey;
             alter index freezes_next_of_account rename to freezes_of_account;
             commit",
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query(AssertSqlSafe("analyze balances, freezes".to_owned()))
            .execute(connection)
            .await
            .map_err(StoreError::from)?;
        Ok(())
    }
}
