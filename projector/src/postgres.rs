//! The read models on PostgreSQL: what is read of them. See [`write`].

mod write;

pub(crate) use write::{commit, in_order, take_steps, write_balances, write_freezes};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use ledger_core::{AccountId, Balance, Freeze, Head, PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{StoreError, copied};
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Postgres as Driver, Row, Transaction, postgres::PgRow};

use crate::{
    checkpoint::ReadModel,
    row::{self, BALANCE_COLUMNS, BalanceRow, FREEZE_COLUMNS, FreezeRow, stored},
    snapshot::{CheckpointRow, DamagedModelRow, PartitionRows, Snapshot, StoredRows, Whose},
};

/// A read model's checkpoint in every partition.
pub(crate) async fn checkpoints<'c>(
    connection: impl Executor<'c, Database = Driver>,
    model: ReadModel,
) -> Result<[Head; PARTITIONS], StoreError> {
    let rows: Vec<(i16, i64, i64, Vec<u8>)> = sqlx::query_as(
        "select partition, epoch, position, hash from projection_checkpoints where projection = $1 order by partition",
    )
    .bind(model.name())
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter().map(|(partition, epoch, position, hash)| (partition.into(), epoch, position, hash));
    row::heads(model.name(), rows.collect())
}

/// The rows of some accounts in `table`, which is `balances` or the one that will take its place.
pub(crate) async fn balances<'c>(
    connection: impl Executor<'c, Database = Driver>,
    table: &str,
    accounts: &[AccountId],
) -> Result<Vec<Result<Balance, DamagedModelRow>>, StoreError> {
    let sql = format!(
        "select {} from unnest($1::smallint[], $2::uuid[]) as w (partition, account_id) \
         cross join lateral (select * from {table} \
             where partition = w.partition and account_id = w.account_id offset 0) t",
        of_table(BALANCE_COLUMNS)
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(accounts.iter().map(|id| i16::from(id.partition().number())).collect::<Vec<_>>())
        .bind(accounts.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    rows.iter().map(balance).collect()
}

/// The rows of the freezes at some places in `table`, likewise.
pub(crate) async fn freezes<'c>(
    connection: impl Executor<'c, Database = Driver>,
    table: &str,
    places: &[(Partition, Position)],
) -> Result<Vec<Result<Freeze, DamagedModelRow>>, StoreError> {
    let sql = format!(
        "select {} from unnest($1::smallint[], $2::bigint[]) as w (partition, position) \
         cross join lateral (select * from {table} \
             where partition = w.partition and position = w.position offset 0) t",
        of_table(FREEZE_COLUMNS)
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(places.iter().map(|(partition, _)| i16::from(partition.number())).collect::<Vec<_>>())
        .bind(places.iter().map(|(_, position)| stored(position.0)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    rows.iter().map(freeze).collect()
}

/// An account's freezes before a position, newest first.
pub(crate) async fn freezes_of(
    pool: &PgPool,
    account: AccountId,
    status: Option<&'static str>,
    before: i64,
    limit: i64,
) -> Result<Vec<Result<Freeze, DamagedModelRow>>, StoreError> {
    let sql = format!(
        "select {FREEZE_COLUMNS} from freezes where partition = $1 and account_id = $2 and position < $3 \
         and ($4::text is null or status = $4) order by position desc limit $5"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(i16::from(account.partition().number()))
        .bind(account.uuid())
        .bind(before)
        .bind(status)
        .bind(limit)
        .fetch_all(pool)
        .await?;
    rows.iter().map(freeze).collect()
}

/// Begins to read the read models from one snapshot of the database.
///
/// The tables are locked before the first look, which is what the snapshot is taken for: one that waited behind a rebuild's
/// switch afterwards would find the new tables empty. The order is the one in which everybody locks them.
pub(crate) async fn begin_to_read(pool: &PgPool) -> Result<Transaction<'static, Driver>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    for statement in [
        "set transaction isolation level repeatable read read only",
        "lock table projection_checkpoints, balances, freezes in access share mode",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await?;
    }
    Ok(transaction)
}

/// One partition's rows and checkpoints, from one snapshot of the database.
pub(crate) async fn snapshot(pool: &PgPool, partition: Partition) -> Result<Snapshot, StoreError> {
    let mut transaction = begin_to_read(pool).await?;
    let balances_at = checkpoints(&mut *transaction, ReadModel::Balances).await?[partition.index()];
    let freezes_at = checkpoints(&mut *transaction, ReadModel::Freezes).await?[partition.index()];
    let (balances, freezes) = partition_rows(&mut transaction, "balances", "freezes", partition).await?;
    transaction.rollback().await?;
    Ok(Snapshot { balances_at, freezes_at, balances, freezes })
}

/// Rows and their checkpoints as they are, from one consistent read.
pub(crate) async fn stored_rows(pool: &PgPool, whose: &Whose) -> Result<StoredRows, StoreError> {
    let mut transaction = begin_to_read(pool).await?;
    let partition = match whose {
        Whose::All(partition) => *partition,
        Whose::One(account) => account.partition(),
    };
    let balances_at = checkpoint_row(&mut transaction, ReadModel::Balances, partition).await?;
    let freezes_at = checkpoint_row(&mut transaction, ReadModel::Freezes, partition).await?;
    let (balances, freezes) = match whose {
        Whose::All(partition) => partition_rows(&mut transaction, "balances", "freezes", *partition).await?,
        Whose::One(account) => {
            let sql = format!(
                "select {FREEZE_COLUMNS} from freezes where partition = $1 and account_id = $2 order by position"
            );
            let freezes = sqlx::query(AssertSqlSafe(sql))
                .bind(i16::from(partition.number()))
                .bind(account.id().uuid())
                .fetch_all(&mut *transaction)
                .await?;
            (
                balances(&mut *transaction, "balances", &[account.id()]).await?,
                freezes.iter().map(freeze).collect::<Result<_, _>>()?,
            )
        }
    };
    transaction.rollback().await?;
    Ok(StoredRows { balances_at, freezes_at, balances, freezes })
}

pub(crate) async fn checkpoint_row(
    connection: &mut PgConnection,
    model: ReadModel,
    partition: Partition,
) -> Result<Option<CheckpointRow>, StoreError> {
    let sql = "select epoch, position, hash from projection_checkpoints where projection = $1 and partition = $2";
    let row = sqlx::query_as(sql).bind(model.name()).bind(i16::from(partition.number()));
    Ok(row.fetch_optional(connection).await?)
}

/// All rows of a partition, balances ascending by account id and freezes by position.
pub(crate) async fn partition_rows(
    connection: &mut PgConnection,
    balances: &str,
    freezes: &str,
    partition: Partition,
) -> Result<PartitionRows, StoreError> {
    let number = i16::from(partition.number());
    // A COPY that is refused leaves sqlx's connection out of step, so it is asked in another way whether the table is there.
    // It stays until the transaction ends.
    let sql = format!("select {BALANCE_COLUMNS} from {balances} limit 0");
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    // There is one for each account: copied, a row costs a fifth of what it does otherwise.
    let sql = format!(
        "copy (select {BALANCE_COLUMNS} from {balances} where partition = {number} order by account_id) \
         to stdout (format binary)"
    );
    let mut messages = connection.copy_out_raw(&sql).await?;
    let mut balances = Vec::new();
    while let Some(message) = messages.try_next().await? {
        if let Some(row) = copied::rows(&message) {
            balances.push(copied_balance(row).ok_or_else(|| {
                StoreError::Inconsistent("the database sent a copy of balances that cannot be read".to_owned())
            })?);
        }
    }
    drop(messages);
    let sql = format!("select {FREEZE_COLUMNS} from {freezes} where partition = $1 order by position");
    let freezes = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch_all(connection).await?;
    Ok((balances, freezes.iter().map(freeze).collect::<Result<_, _>>()?))
}

/// A row of the columns [`BALANCE_COLUMNS`] as COPY sends it; nothing when it has others.
fn copied_balance(row: &[u8]) -> Option<Result<Balance, DamagedModelRow>> {
    let mut row = copied::Row::new(row);
    if row.columns() != Some(11) {
        return None;
    }
    let row = BalanceRow {
        partition: row.small("partition").ok()?,
        account_id: Some(row.uuid("account_id").ok()?),
        position: row.number("position").ok()?,
        version: row.number("version").ok()?,
        balance: row.number("balance").ok()?,
        frozen: row.number("frozen").ok()?,
        available: row.number("available").ok()?,
        updated_at: row.time("updated_at").ok(),
        status: row.text("status").ok()?,
        user_id: row.text("user_id").ok()?,
        credit_type: row.text("credit_type").ok()?,
    };
    Some(row.read())
}

/// The heads of the log, read with this connection.
pub(crate) async fn heads(connection: &mut PgConnection) -> Result<[Head; PARTITIONS], StoreError> {
    let rows: Vec<(i16, i64, i64, Vec<u8>)> =
        sqlx::query_as("select partition, epoch, position, hash from partition_heads order by partition")
            .fetch_all(connection)
            .await?;
    let rows =
        rows.into_iter().map(|(partition, epoch, position, hash)| (partition.into(), epoch, position, hash)).collect();
    row::heads("the log", rows)
}

fn of_table(columns: &str) -> String {
    columns.split(", ").map(|column| format!("t.{}", column.trim())).collect::<Vec<_>>().join(", ")
}

pub(crate) fn balance(row: &PgRow) -> Result<Result<Balance, DamagedModelRow>, StoreError> {
    Ok(balance_row(row)?.read())
}

pub(crate) fn balance_row(row: &PgRow) -> Result<BalanceRow, StoreError> {
    Ok(BalanceRow {
        partition: row.try_get::<i16, _>(0)?.into(),
        account_id: Some(row.try_get(1)?),
        position: row.try_get(2)?,
        version: row.try_get(3)?,
        balance: row.try_get(4)?,
        frozen: row.try_get(5)?,
        available: row.try_get(6)?,
        updated_at: time(row.try_get(7)?),
        status: row.try_get(8)?,
        user_id: row.try_get(9)?,
        credit_type: row.try_get(10)?,
    })
}

pub(crate) fn freeze(row: &PgRow) -> Result<Result<Freeze, DamagedModelRow>, StoreError> {
    Ok(freeze_row(row)?.read())
}

pub(crate) fn freeze_row(row: &PgRow) -> Result<FreezeRow, StoreError> {
    Ok(FreezeRow {
        partition: row.try_get::<i16, _>(0)?.into(),
        position: row.try_get(1)?,
        amount: row.try_get(2)?,
        remaining: row.try_get(3)?,
        captured: row.try_get(4)?,
        released: row.try_get(5)?,
        expires_at: row.try_get::<Option<_>, _>(6)?.map_or(Some(None), |at| time(at).map(Some)),
        created_at: time(row.try_get(7)?),
        freeze_id: Some(row.try_get(8)?),
        account_id: Some(row.try_get(9)?),
        status: row.try_get(10)?,
        user_id: row.try_get(11)?,
        credit_type: row.try_get(12)?,
        business_code: row.try_get(13)?,
        business_id: row.try_get(14)?,
    })
}

fn time(at: DateTime<Utc>) -> Option<Timestamp> {
    Timestamp::from_micros(at.timestamp_micros())
}
