//! Rows on PostgreSQL.

use futures::TryStreamExt;
use ledger_core::Partition;
use ledger_store::StoreError;
use sqlx::{AssertSqlSafe, PgPool};

use super::rows::{Kept, Wanted};
use crate::{
    checkpoint::ReadModel,
    postgres::{balance_row, begin_to_read, checkpoint_row, freeze_row},
    row::{BALANCE_COLUMNS, FREEZE_COLUMNS, stored},
    snapshot::CheckpointRow,
};

pub(super) async fn checkpoints(pool: &PgPool, partition: Partition) -> Result<[Option<CheckpointRow>; 2], StoreError> {
    let mut connection = pool.acquire().await?;
    Ok([
        checkpoint_row(&mut connection, ReadModel::Balances, partition).await?,
        checkpoint_row(&mut connection, ReadModel::Freezes, partition).await?,
    ])
}

/// Rows and checkpoints from one snapshot of the database.
pub(super) async fn read(
    pool: &PgPool,
    partition: Partition,
    wanted: &Wanted,
    mut kept: Kept,
) -> Result<([Option<CheckpointRow>; 2], Kept), StoreError> {
    let number = i16::from(partition.number());
    let mut transaction = begin_to_read(pool).await?;
    let at = [
        checkpoint_row(&mut transaction, ReadModel::Balances, partition).await?,
        checkpoint_row(&mut transaction, ReadModel::Freezes, partition).await?,
    ];
    match wanted {
        Wanted::Slice(from, to) => {
            let slice =
                "partition = $1 and ($2::uuid is null or account_id >= $2) and ($3::uuid is null or account_id < $3)";
            let (from, to) = (from.map(|id| id.uuid()), to.map(|id| id.uuid()));
            let sql = format!("select {BALANCE_COLUMNS} from balances where {slice}");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).bind(from).bind(to).fetch(&mut *transaction);
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
            let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
            let sql = format!("select {BALANCE_COLUMNS} from balances where partition = $1 and account_id = any($2)");
            for row in sqlx::query(AssertSqlSafe(sql)).bind(number).bind(&ids).fetch_all(&mut *transaction).await? {
                kept.add_balance(balance_row(&row)?);
            }
            let positions: Vec<_> = positions.iter().map(|position| stored(position.0)).collect();
            let sql = format!(
                "select {FREEZE_COLUMNS} from freezes where partition = $1 \
                 and (account_id = any($2) or position = any($3)) order by position"
            );
            let rows = sqlx::query(AssertSqlSafe(sql)).bind(number).bind(&ids).bind(positions);
            for row in rows.fetch_all(&mut *transaction).await? {
                kept.add_freeze(freeze_row(&row)?);
            }
        }
    }
    transaction.rollback().await?;
    Ok((at, kept))
}
