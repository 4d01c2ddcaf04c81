//! The read models on PostgreSQL: what is written.

use std::time::Duration;

use chrono::{DateTime, Utc};
use foldhash::HashMap;
use ledger_core::{AccountId, Balance, Freeze};
use ledger_store::{
    StoreError,
    postgres::record::{Record, records},
};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, error::BoxDynError, postgres::types::PgRecordEncoder};
use tokio::time::sleep;

use crate::{
    checkpoint::{ReadModel, Step},
    fold::Changes,
    row::{BALANCE_COLUMNS, FREEZE_COLUMNS, stored},
};

/// Rows of one statement.
const ROWS: usize = 10_000;
/// A round of so many rows or fewer is written some at a time with pauses between them: the commands' tasks and sessions
/// want the cores, too, and would wait for the whole of it. A larger one is a backlog, which ought to end.
const CALM_ROWS: usize = 2_500;
/// Rows of one statement of such a round: a millisecond's work.
const CALM_STATEMENT_ROWS: usize = 96;
/// The pause after each of them. Timers tick in milliseconds.
const CALM_PAUSE: Duration = Duration::from_millis(1);

/// A read model can be made again from the log: its commits need not wait for the disk, only keep their order. And each row is
/// looked up by its primary key, in the order of the parameters, whatever the planner thinks of the table's size.
const SETTINGS: &str = "select set_config('synchronous_commit', 'off', true), set_config('enable_hashjoin', 'off', true), \
    set_config('enable_mergejoin', 'off', true), set_config('enable_seqscan', 'off', true), \
    set_config('enable_bitmapscan', 'off', true)";

/// Writes a round: rows and checkpoints in one transaction. False when a checkpoint is not where the round began.
pub(crate) async fn commit(pool: &PgPool, changes: &Changes) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    sqlx::query(SETTINGS).execute(&mut *transaction).await?;
    if !take_steps(&mut transaction, &changes.steps).await? {
        transaction.rollback().await?;
        return Ok(false);
    }
    let mut balances: Vec<_> = changes.balances.iter().collect();
    balances.sort_unstable_by_key(|balance| balance.account.id());
    let (opened, there): (Vec<_>, Vec<_>) =
        balances.into_iter().partition(|balance| changes.opened.contains(&balance.account.id()));
    let freezes = in_order(&changes.freezes);
    let is_calm = there.len() + opened.len() + freezes.len() <= CALM_ROWS;
    let rows = if is_calm { CALM_STATEMENT_ROWS } else { ROWS };
    for rows in there.chunks(rows) {
        if !update_balances(&mut transaction, rows, changes.believed.as_ref()).await? {
            transaction.rollback().await?;
            return Ok(false);
        }
        pause(is_calm).await;
    }
    for rows in opened.chunks(rows) {
        if changes.believed.is_none() {
            write_balances(&mut transaction, "balances", rows).await?;
        } else if !open_balances(&mut transaction, rows).await? {
            transaction.rollback().await?;
            return Ok(false);
        }
        pause(is_calm).await;
    }
    for rows in freezes.chunks(rows) {
        write_freezes(&mut transaction, "freezes", rows).await?;
        pause(is_calm).await;
    }
    transaction.commit().await?;
    Ok(true)
}

async fn pause(is_calm: bool) {
    if is_calm {
        sleep(CALM_PAUSE).await;
    }
}

/// Moves each checkpoint by compare-and-set, one read model after the other and each in ascending order of partitions.
pub(crate) async fn take_steps(connection: &mut PgConnection, steps: &[Step]) -> Result<bool, StoreError> {
    for model in ReadModel::ALL {
        let mut steps: Vec<_> = steps.iter().filter(|step| step.model == model).collect();
        steps.sort_unstable_by_key(|step| step.partition);
        let partitions: Vec<_> = steps.iter().map(|step| i16::from(step.partition.number())).collect();
        // Locked in order first: the update alone would lock in any order, and two projectors could block each other.
        sqlx::query(
            "select 1 from projection_checkpoints where projection = $1 and partition = any($2) \
             order by partition for update",
        )
        .bind(model.name())
        .bind(&partitions)
        .execute(&mut *connection)
        .await?;
        let moved = sqlx::query(
            "update projection_checkpoints c set epoch = s.to_epoch, position = s.to_position, hash = s.to_hash \
             from unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[], $8::bytea[]) \
             as s (partition, epoch, position, hash, to_epoch, to_position, to_hash) \
             where c.projection = $1 and c.partition = s.partition and c.epoch = s.epoch \
             and c.position = s.position and c.hash = s.hash",
        )
        .bind(model.name())
        .bind(&partitions)
        .bind(steps.iter().map(|step| i64::from(step.from.epoch.0)).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| stored(step.from.position.0)).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| step.from.hash.0.to_vec()).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| i64::from(step.to.epoch.0)).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| stored(step.to.position.0)).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| step.to.hash.0.to_vec()).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
        if moved.rows_affected() != steps.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes rows of `balances` that are there already, in the order of their ids. False when a row is not what was believed, or
/// went away.
async fn update_balances(
    connection: &mut PgConnection,
    balances: &[&Balance],
    believed: Option<&HashMap<AccountId, Balance>>,
) -> Result<bool, StoreError> {
    const UPDATE: &str = "update balances t set position = n.position, version = n.version, balance = n.balance, \
             frozen = n.frozen, available = n.available, updated_at = n.updated_at, status = n.status \
         from unnest($1) as n where (t.partition, t.account_id) = (n.partition, n.account_id)";
    const AS_BELIEVED: &str = " and (t.position, t.version, t.balance, t.frozen, t.available, t.status, t.user_id, t.credit_type) \
         = (n.old_position, n.old_version, n.old_balance, n.old_frozen, n.old_balance - n.old_frozen, n.old_status, \
            n.user_id, n.credit_type)";
    let sql = format!("{UPDATE}{}", if believed.is_some() { AS_BELIEVED } else { "" });
    for rows in balances.chunks(ROWS) {
        let rows = rows.iter().map(|row| match believed {
            Some(believed) => believed.get(&row.account.id()).map(|old| BalanceRow { row, old: Some(old) }),
            None => Some(BalanceRow { row, old: None }),
        });
        let Some(rows) = rows.collect::<Option<Vec<_>>>() else { return Ok(false) };
        let count = rows.len() as u64;
        let update = sqlx::query(AssertSqlSafe(sql.clone())).bind(records(rows.into_iter()));
        if update.execute(&mut *connection).await?.rows_affected() != count {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A row of `balance_row`: one of `balances`, and what is believed to be in its place.
struct BalanceRow<'b> {
    row: &'b Balance,
    old: Option<&'b Balance>,
}

impl Record for BalanceRow<'_> {
    const TYPE: &'static str = "balance_row";

    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        let Self { row: balance, old } = self;
        row.encode(i16::from(balance.account.partition().number()))?
            .encode(balance.account.id().uuid())?
            .encode(stored(balance.position.0))?
            .encode(stored(balance.state.version))?
            .encode(stored(balance.state.balance))?
            .encode(stored(balance.state.frozen))?
            .encode(stored(balance.state.available()))?
            .encode(DateTime::<Utc>::from(balance.updated_at))?
            .encode(balance.status())?
            .encode(&**balance.account.user_id())?
            .encode(&**balance.account.credit_type())?
            .encode(old.map(|old| stored(old.position.0)))?
            .encode(old.map(|old| stored(old.state.version)))?
            .encode(old.map(|old| stored(old.state.balance)))?
            .encode(old.map(|old| stored(old.state.frozen)))?
            .encode(old.map(Balance::status))?;
        Ok(())
    }
}

/// Inserts rows of `balances` for accounts that have none. False when one has.
async fn open_balances(connection: &mut PgConnection, balances: &[&Balance]) -> Result<bool, StoreError> {
    let inserted = insert_balances(connection, "balances", balances, "do nothing").await?;
    Ok(inserted == balances.len() as u64)
}

/// Inserts or replaces rows of `table`, which is `balances` or the one that will take its place, in the order of their ids.
pub(crate) async fn write_balances(
    connection: &mut PgConnection,
    table: &str,
    balances: &[&Balance],
) -> Result<(), StoreError> {
    let replace = "do update set position = excluded.position, version = excluded.version, balance = excluded.balance, \
         frozen = excluded.frozen, available = excluded.available, updated_at = excluded.updated_at, \
         status = excluded.status";
    insert_balances(connection, table, balances, replace).await?;
    Ok(())
}

/// Inserts rows, and does as it is told where there is one; gives how many were written.
async fn insert_balances(
    connection: &mut PgConnection,
    table: &str,
    balances: &[&Balance],
    on_conflict: &str,
) -> Result<u64, StoreError> {
    let sql = format!(
        "insert into {table} as t ({BALANCE_COLUMNS}) select {BALANCE_COLUMNS} from unnest($1) \
         on conflict (partition, account_id) {on_conflict}"
    );
    let mut written = 0;
    for rows in balances.chunks(ROWS) {
        let rows = rows.iter().map(|row| BalanceRow { row, old: None });
        let insert = sqlx::query(AssertSqlSafe(sql.clone())).bind(records(rows));
        written += insert.execute(&mut *connection).await?.rows_affected();
    }
    Ok(written)
}

/// Freezes in the order of their places.
pub(crate) fn in_order(freezes: &[Freeze]) -> Vec<&Freeze> {
    let mut freezes: Vec<_> = freezes.iter().collect();
    freezes.sort_unstable_by_key(|freeze| (freeze.account.partition(), freeze.position));
    freezes
}

/// Inserts or replaces rows of `table`, which is `freezes` or the one that will take its place, in the order of their places.
pub(crate) async fn write_freezes(
    connection: &mut PgConnection,
    table: &str,
    freezes: &[&Freeze],
) -> Result<(), StoreError> {
    let sql = format!(
        "insert into {table} as t ({FREEZE_COLUMNS}) select * from unnest($1) \
         on conflict (partition, position) do update set remaining = excluded.remaining, \
             captured = excluded.captured, released = excluded.released, status = excluded.status"
    );
    for rows in freezes.chunks(ROWS) {
        let rows = rows.iter().map(|row| FreezeRow(row));
        sqlx::query(AssertSqlSafe(sql.clone())).bind(records(rows)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// A row of `freeze_row`: one of `freezes`.
struct FreezeRow<'f>(&'f Freeze);

impl Record for FreezeRow<'_> {
    const TYPE: &'static str = "freeze_row";

    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        let freeze = self.0;
        row.encode(i16::from(freeze.account.partition().number()))?
            .encode(stored(freeze.position.0))?
            .encode(stored(freeze.amount))?
            .encode(stored(freeze.remaining))?
            .encode(stored(freeze.captured))?
            .encode(stored(freeze.released))?
            .encode(freeze.expires_at.map(DateTime::<Utc>::from))?
            .encode(DateTime::<Utc>::from(freeze.created_at))?
            .encode(freeze.freeze_id.uuid())?
            .encode(freeze.account.id().uuid())?
            .encode(freeze.status())?
            .encode(&**freeze.account.user_id())?
            .encode(&**freeze.account.credit_type())?
            .encode(&**freeze.key.code())?
            .encode(&**freeze.key.id())?;
        Ok(())
    }
}
