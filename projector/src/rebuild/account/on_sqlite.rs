//! The transaction on SQLite: nobody else writes while it is open.

use chrono::Utc;
use ledger_core::{Account, Event, Head, Partition, Position, Timestamp};
use ledger_store::{
    StoreError,
    sqlite::{RelaxedTurn, Sqlite},
};
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::{Held, OldRows, RebuildError};
use crate::{
    checkpoint::ReadModel,
    fold::{self, Changes, Rows},
    row::{self, BALANCE_COLUMNS, FREEZE_COLUMNS},
    sqlite,
};

pub(super) struct Turn<'d>(RelaxedTurn<'d>);

impl<'d> Turn<'d> {
    pub(super) async fn begin(database: &'d Sqlite) -> Result<Self, RebuildError> {
        let mut turn = database.relaxed_turn().await?;
        sqlite::begin(turn.connection()).await?;
        Ok(Self(turn))
    }
}

/// Where projectors stopped and were not mended yet.
pub(super) async fn stopped_at(database: &Sqlite, partition: Partition) -> Result<Vec<i64>, RebuildError> {
    let sql = "select distinct position from inconsistencies where partition = ? and resolved_at is null limit 10000";
    Ok(sqlx::query_scalar(sql).bind(i64::from(partition.number())).fetch_all(database.readers()).await?)
}

fn positions(positions: &[Position]) -> String {
    json!(positions).to_string()
}

impl super::Turn for Turn<'_> {
    async fn hold(&mut self, account: &Account) -> Result<Held, RebuildError> {
        let index = account.partition().index();
        let mut at = [Head::EMPTY; 2];
        for (at, model) in at.iter_mut().zip(ReadModel::ALL) {
            *at = sqlite::checkpoints(self.0.connection(), model).await?[index];
        }
        let head = sqlite::heads(self.0.connection()).await?[index].position;
        Ok(Held { balances_at: at[0], freezes_at: at[1], head })
    }

    async fn remove(&mut self, account: &Account, freezes: &[Position]) -> Result<OldRows, RebuildError> {
        let number = i64::from(account.partition().number());
        let sql = format!("delete from balances where partition = ? and account_id = ? returning {BALANCE_COLUMNS}");
        let balances = sqlx::query(AssertSqlSafe(sql))
            .bind(number)
            .bind(account.id().to_string())
            .fetch_all(self.0.connection())
            .await?;
        let sql = format!(
            "delete from freezes where partition = ?1 and (account_id = ?2 or position in (select value from json_each(?3))) \
             returning {FREEZE_COLUMNS}"
        );
        let freezes = sqlx::query(AssertSqlSafe(sql))
            .bind(number)
            .bind(account.id().to_string())
            .bind(positions(freezes))
            .fetch_all(self.0.connection())
            .await?;
        let balances = balances.iter().map(sqlite::balance).collect::<Result<_, StoreError>>()?;
        let freezes = freezes.iter().map(sqlite::freeze).collect::<Result<_, StoreError>>()?;
        Ok((balances, freezes))
    }

    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError> {
        let (accounts, places) = (fold::accounts_of(events.iter()), fold::freezes_of(events.iter()));
        let balances = sqlite::balances(self.0.connection(), "balances", &accounts).await?;
        let freezes = sqlite::freezes(self.0.connection(), "freezes", &places).await?;
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
        let connection = self.0.connection();
        let written = async {
            if !sqlite::take_steps(connection, &changes.steps).await? {
                return Err(row::moved());
            }
            sqlite::write_balances(connection, "balances", &changes.balances).await?;
            sqlite::write_freezes(connection, "freezes", &changes.freezes).await?;
            let resolved = sqlx::query(
                "update inconsistencies set resolved_at = ?1, resolved_by = ?6, outcome = coalesce(outcome, 'mended') \
                 where partition = ?2 and resolved_at is null and projection in ('balances', 'freezes') \
                 and (position in (select value from json_each(?3)) and user_id is null \
                     or user_id = ?4 and credit_type = ?5)",
            )
            .bind(Timestamp::from_micros(Utc::now().timestamp_micros()).map(|now| now.to_string()))
            .bind(i64::from(account.partition().number()))
            .bind(positions(its_own))
            .bind(&**account.user_id())
            .bind(&**account.credit_type())
            .bind(by)
            .execute(&mut *connection)
            .await?;
            Ok(resolved.rows_affected())
        }
        .await;
        let (done, resolved) = match written {
            Ok(resolved) => (Ok(true), resolved),
            Err(error) => (Err(error), 0),
        };
        sqlite::end(self.0.connection(), done).await?;
        Ok(resolved)
    }

    async fn let_go(mut self) -> Result<(), RebuildError> {
        sqlite::end(self.0.connection(), Ok(false)).await?;
        Ok(())
    }
}
