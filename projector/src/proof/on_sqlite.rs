//! Rows on SQLite.

use futures::TryStreamExt;
use ledger_core::Partition;
use ledger_store::StoreError;
use serde_json::json;
use sqlx::{AssertSqlSafe, SqlitePool};

use super::rows::{Kept, Wanted};
use crate::{
    checkpoint::ReadModel,
    row::{BALANCE_COLUMNS, FREEZE_COLUMNS},
    snapshot::CheckpointRow,
    sqlite::{balance_row, checkpoint_row, freeze_row},
};

pub(super) async fn checkpoints(
    pool: &SqlitePool,
    partition: Partition,
) -> Result<[Option<CheckpointRow>; 2], StoreError> {
    let mut connection = pool.acquire().await?;
    Ok([
        checkpoint_row(&mut connection, ReadModel::Balances, partition).await?,
        checkpoint_row(&mut connection, ReadModel::Freezes, partition).await?,
    ])
}

/// Rows and checkpoints from one read transaction.
pub(super) async fn read(
    pool: &SqlitePool,
    partition: Partition,
    wanted: &Wanted,
    mut kept: Kept,
) -> Result<([Option<CheckpointRow>; 2], Kept), StoreError> {
    let number = i64::from(partition.number());
    let mut transaction = pool.begin().await?;
    let at = [
        checkpoint_row(&mut transaction, ReadModel::Balances, partition).await?,
        checkpoint_row(&mut transaction, ReadModel::Freezes, partition).await?,
    ];
    match wanted {
        Wanted::Slice(from, to) => {
            let slice = "partition = ?1 and (?2 is null or account_id >= ?2) and (?3 is null or account_id < ?3)";
            let (from, to) = (from.map(|id| id.to_string()), to.map(|id| id.to_string()));
            let sql = format!("select {BALANCE_COLUMNS} from balances where {slice}");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).bind(&from).bind(&to).fetch(&mut *transaction);
            while let Some(row) = rows.try_next().await? {
                kept.add_balance(balance_row(&row)?);
            }
            drop(rows);
            let sql = format!("select {FREEZE_COLUMNS} from freezes where {slice}");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).bind(from).bind(to).fetch(&mut *transaction);
            while let Some(row) = rows.try_next().await? {
                kept.add_freeze(freeze_row(&row)?);
            }
        }
        Wanted::These(ids, positions) => {
            let sql = format!(
                "select {BALANCE_COLUMNS} from balances where partition = ? \
                 and account_id in (select value from json_each(?))"
            );
            let rows = sqlx::query(AssertSqlSafe(sql)).bind(number).bind(json!(ids).to_string());
            for row in rows.fetch_all(&mut *transaction).await? {
                kept.add_balance(balance_row(&row)?);
            }
            let sql = format!(
                "select {FREEZE_COLUMNS} from freezes where partition = ? \
                 and (account_id in (select value from json_each(?)) or position in (select value from json_each(?))) \
                 order by position"
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(number)
                .bind(json!(ids).to_string())
                .bind(json!(positions).to_string());
            for row in rows.fetch_all(&mut *transaction).await? {
                kept.add_freeze(freeze_row(&row)?);
            }
        }
    }
    transaction.rollback().await?;
    Ok((at, kept))
}
