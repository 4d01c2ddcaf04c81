//! The transaction on PostgreSQL.

use ledger_core::{Account, Event, Head, Partition, Position};
use ledger_store::{StoreError, postgres::Postgres};
use sqlx::{AssertSqlSafe, PgConnection, Postgres as Driver, Transaction};

use super::{Held, OldRows, RebuildError};
use crate::{
    checkpoint::ReadModel,
    fold::{self, Changes, Rows},
    postgres,
    row::{self, BALANCE_COLUMNS, FREEZE_COLUMNS, stored},
};

/// A transaction that is rolled back when it is dropped.
pub(super) struct Turn(Transaction<'static, Driver>);

impl Turn {
    pub(super) async fn begin(database: &Postgres) -> Result<Self, RebuildError> {
        let mut transaction = database.pool().begin().await?;
        sqlx::query("set local lock_timeout = '1s'").execute(&mut *transaction).await?;
        Ok(Self(transaction))
    }

    fn connection(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// Where projectors stopped and were not mended yet.
pub(super) async fn stopped_at(database: &Postgres, partition: Partition) -> Result<Vec<i64>, RebuildError> {
    let sql = "select distinct position from inconsistencies where partition = $1 and resolved_at is null limit 10000";
    Ok(sqlx::query_scalar(sql).bind(i16::from(partition.number())).fetch_all(database.pool()).await?)
}

impl super::Turn for Turn {
    async fn hold(&mut self, account: &Account) -> Result<Held, RebuildError> {
        let partition = account.partition();
        let number = i16::from(partition.number());
        // In the order in which runners lock them.
        for model in ReadModel::ALL {
            sqlx::query("select 1 from projection_checkpoints where projection = $1 and partition = $2 for update")
                .bind(model.name())
                .bind(number)
                .execute(self.connection())
                .await?;
        }
        sqlx::query("select 1 from partition_heads where partition = $1 for share")
            .bind(number)
            .execute(self.connection())
            .await?;
        let mut at = [Head::EMPTY; 2];
        for (at, model) in at.iter_mut().zip(ReadModel::ALL) {
            *at = postgres::checkpoints(self.connection(), model).await?[partition.index()];
        }
        let head = postgres::heads(self.connection()).await?[partition.index()].position;
        Ok(Held { balances_at: at[0], freezes_at: at[1], head })
    }

    async fn remove(&mut self, account: &Account, freezes: &[Position]) -> Result<OldRows, RebuildError> {
        let number = i16::from(account.partition().number());
        let sql = format!("delete from balances where partition = $1 and account_id = $2 returning {BALANCE_COLUMNS}");
        let balances =
            sqlx::query(AssertSqlSafe(sql)).bind(number).bind(account.id().uuid()).fetch_all(self.connection()).await?;
        let sql = format!(
            "delete from freezes where partition = $1 and (account_id = $2 or position = any($3)) \
             returning {FREEZE_COLUMNS}"
        );
        let freezes = sqlx::query(AssertSqlSafe(sql))
            .bind(number)
            .bind(account.id().uuid())
            .bind(freezes.iter().map(|position| stored(position.0)).collect::<Vec<_>>())
            .fetch_all(self.connection())
            .await?;
        let balances = balances.iter().map(postgres::balance).collect::<Result<_, StoreError>>()?;
        let freezes = freezes.iter().map(postgres::freeze).collect::<Result<_, StoreError>>()?;
        Ok((balances, freezes))
    }

    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError> {
        let (accounts, places) = (fold::accounts_of(events.iter()), fold::freezes_of(events.iter()));
        let balances = postgres::balances(self.connection(), "balances", &accounts).await?;
        let freezes = postgres::freezes(self.connection(), "freezes", &places).await?;
        // A damaged row is as good as missing: the fold stops there.
        Ok(Rows::of(balances.into_iter().flatten(), freezes.into_iter().flatten()))
    }

    async fn commit(
        mut self,
        changes: &Changes,
        account: &Account,
        its_own: &[Position],
        by: &str,
    ) -> Result<u64, RebuildError> {
        if !postgres::take_steps(self.connection(), &changes.steps).await? {
            return Err(row::moved().into());
        }
        let mut balances: Vec<_> = changes.balances.iter().collect();
        balances.sort_unstable_by_key(|balance| balance.account.id());
        postgres::write_balances(self.connection(), "balances", &balances).await?;
        postgres::write_freezes(self.connection(), "freezes", &postgres::in_order(&changes.freezes)).await?;
        let resolved = sqlx::query(
            "update inconsistencies set resolved_at = now(), resolved_by = $5, outcome = coalesce(outcome, 'mended') \
             where partition = $1 and resolved_at is null and projection in ('balances', 'freezes') \
             and (position = any($2) and user_id is null or user_id = $3 and credit_type = $4)",
        )
        .bind(i16::from(account.partition().number()))
        .bind(its_own.iter().map(|position| stored(position.0)).collect::<Vec<_>>())
        .bind(&**account.user_id())
        .bind(&**account.credit_type())
        .bind(by)
        .execute(self.connection())
        .await?;
        self.0.commit().await?;
        Ok(resolved.rows_affected())
    }

    async fn let_go(self) -> Result<(), RebuildError> {
        Ok(self.0.rollback().await?)
    }
}
