//! The read models on SQLite.

use std::time::Instant;

use foldhash::HashMap;
use ledger_core::{AccountId, Balance, Freeze, Head, PARTITIONS, Partition, Position};
use ledger_store::{
    StoreError,
    sqlite::{ROWS_MAX, Sqlite, id_of, padded, time_of, values},
};
use serde_json::json;
use sqlx::{Acquire, AssertSqlSafe, Executor, Row, Sqlite as Driver, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use crate::{
    checkpoint::{ReadModel, Step},
    fold::Changes,
    row::{self, BALANCE_COLUMNS, BalanceRow, FREEZE_COLUMNS, FreezeRow, stored},
    snapshot::{CheckpointRow, DamagedModelRow, PartitionRows, Snapshot, StoredRows, Whose},
};

/// A read model's checkpoint in every partition.
pub(crate) async fn checkpoints<'c>(
    connection: impl Executor<'c, Database = Driver>,
    model: ReadModel,
) -> Result<[Head; PARTITIONS], StoreError> {
    let rows = sqlx::query_as(
        "select partition, epoch, position, hash from projection_checkpoints where projection = ? order by partition",
    )
    .bind(model.name())
    .fetch_all(connection)
    .await?;
    row::heads(model.name(), rows)
}

/// The rows of some accounts in `table`, which is `balances` or the one that will take its place.
pub(crate) async fn balances<'c>(
    connection: impl Acquire<'c, Database = Driver>,
    table: &str,
    accounts: &[AccountId],
) -> Result<Vec<Result<Balance, DamagedModelRow>>, StoreError> {
    let mut connection = connection.acquire().await?;
    let mut found = Vec::with_capacity(accounts.len());
    for chunk in accounts.chunks(ROWS_MAX) {
        let sql = format!(
            "select {} from ({}) w cross join {table} t on t.partition = w.column1 and t.account_id = w.column2",
            of_table(BALANCE_COLUMNS),
            values(padded(chunk.len()), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for id in chunk {
            query = query.bind(i64::from(id.partition().number())).bind(id.to_string());
        }
        for row in query.fetch_all(&mut *connection).await? {
            found.push(balance(&row)?);
        }
    }
    Ok(found)
}

/// The rows of the freezes at some places in `table`, likewise.
pub(crate) async fn freezes<'c>(
    connection: impl Acquire<'c, Database = Driver>,
    table: &str,
    places: &[(Partition, Position)],
) -> Result<Vec<Result<Freeze, DamagedModelRow>>, StoreError> {
    let mut connection = connection.acquire().await?;
    let mut found = Vec::with_capacity(places.len());
    for chunk in places.chunks(ROWS_MAX) {
        let sql = format!(
            "select {} from ({}) w cross join {table} t on t.partition = w.column1 and t.position = w.column2",
            of_table(FREEZE_COLUMNS),
            values(padded(chunk.len()), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (partition, position) in chunk {
            query = query.bind(i64::from(partition.number())).bind(stored(position.0));
        }
        for row in query.fetch_all(&mut *connection).await? {
            found.push(freeze(&row)?);
        }
    }
    Ok(found)
}

/// An account's freezes before a position, newest first.
pub(crate) async fn freezes_of(
    pool: &SqlitePool,
    account: AccountId,
    status: Option<&'static str>,
    before: i64,
    limit: i64,
) -> Result<Vec<Result<Freeze, DamagedModelRow>>, StoreError> {
    let sql = format!(
        "select {FREEZE_COLUMNS} from freezes where partition = ?1 and account_id = ?2 and position < ?3 \
         and (?4 is null or status = ?4) order by position desc limit ?5"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(i64::from(account.partition().number()))
        .bind(account.to_string())
        .bind(before)
        .bind(status)
        .bind(limit)
        .fetch_all(pool)
        .await?;
    rows.iter().map(freeze).collect()
}

/// One partition's rows and checkpoints, from one read transaction.
pub(crate) async fn snapshot(pool: &SqlitePool, partition: Partition) -> Result<Snapshot, StoreError> {
    let mut transaction = pool.begin().await?;
    let balances_at = checkpoints(&mut *transaction, ReadModel::Balances).await?[partition.index()];
    let freezes_at = checkpoints(&mut *transaction, ReadModel::Freezes).await?[partition.index()];
    let (balances, freezes) = partition_rows(&mut transaction, "balances", "freezes", partition).await?;
    transaction.rollback().await?;
    Ok(Snapshot { balances_at, freezes_at, balances, freezes })
}

/// Rows and their checkpoints as they are, from one consistent read.
pub(crate) async fn stored_rows(pool: &SqlitePool, whose: &Whose) -> Result<StoredRows, StoreError> {
    let mut transaction = pool.begin().await?;
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
                "select {FREEZE_COLUMNS} from freezes where partition = ? and account_id = ? order by position"
            );
            let freezes = sqlx::query(AssertSqlSafe(sql))
                .bind(i64::from(partition.number()))
                .bind(account.id().to_string())
                .fetch_all(&mut *transaction)
                .await?;
            let sql = format!("select {BALANCE_COLUMNS} from balances where partition = ? and account_id = ?");
            let balances = sqlx::query(AssertSqlSafe(sql))
                .bind(i64::from(partition.number()))
                .bind(account.id().to_string())
                .fetch_all(&mut *transaction)
                .await?;
            (
                balances.iter().map(balance).collect::<Result<_, _>>()?,
                freezes.iter().map(freeze).collect::<Result<_, _>>()?,
            )
        }
    };
    transaction.rollback().await?;
    Ok(StoredRows { balances_at, freezes_at, balances, freezes })
}

pub(crate) async fn checkpoint_row(
    connection: &mut SqliteConnection,
    model: ReadModel,
    partition: Partition,
) -> Result<Option<CheckpointRow>, StoreError> {
    let sql = "select epoch, position, hash from projection_checkpoints where projection = ? and partition = ?";
    let row = sqlx::query_as(sql).bind(model.name()).bind(i64::from(partition.number()));
    Ok(row.fetch_optional(connection).await?)
}

/// All rows of a partition, balances ascending by account id and freezes by position.
pub(crate) async fn partition_rows(
    connection: &mut SqliteConnection,
    balances: &str,
    freezes: &str,
    partition: Partition,
) -> Result<PartitionRows, StoreError> {
    let number = i64::from(partition.number());
    let sql = format!("select {BALANCE_COLUMNS} from {balances} where partition = ? order by account_id");
    let balances = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch_all(&mut *connection).await?;
    let sql = format!("select {FREEZE_COLUMNS} from {freezes} where partition = ? order by position");
    let freezes = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch_all(connection).await?;
    Ok((balances.iter().map(balance).collect::<Result<_, _>>()?, freezes.iter().map(freeze).collect::<Result<_, _>>()?))
}

/// The heads of the log, read with this connection.
pub(crate) async fn heads(connection: &mut SqliteConnection) -> Result<[Head; PARTITIONS], StoreError> {
    let rows = sqlx::query_as("select partition, epoch, position, hash from partition_heads order by partition")
        .fetch_all(connection)
        .await?;

    row::heads("the log", rows)
}

/// Rows that are written in one turn. Commands wait for a turn: the fewer rows, the shorter. While commits of commands
/// are large there are as many more as fit into what one of those takes.
const ROWS_OF_A_TURN: usize = 64;
/// What a small turn is counted as, in pages: too many, so that the log's length is rather asked for too early.
const PAGES_OF_A_TURN: usize = 400;

/// Whether rows of `balances` are as they are believed to be, and some accounts have none.
///
/// They are looked at before the round's transactions: only a projector changes them, which then moves the checkpoints,
/// and those are compared within.
async fn is_as_believed(
    readers: &SqlitePool,
    believed: &HashMap<AccountId, Balance>,
    changes: &Changes,
) -> Result<bool, StoreError> {
    let is_opened = |balance: &&Balance| changes.opened.contains(&balance.account.id());
    let (opened, there): (Vec<_>, Vec<_>) = changes.balances.iter().partition(is_opened);
    let Some(there) = there.iter().map(|row| believed.get(&row.account.id())).collect::<Option<Vec<_>>>() else {
        return Ok(false);
    };
    for rows in there.chunks(ROWS_MAX) {
        let sql = format!(
            "select count(*) from ({}) w cross join balances t on t.partition = w.column1 and t.account_id = w.column2 \
             where (t.position, t.version, t.balance, t.frozen, t.available, t.status, t.user_id, t.credit_type) \
             = (w.column3, w.column4, w.column5, w.column6, w.column5 - w.column6, w.column7, w.column8, w.column9)",
            values(padded(rows.len()), 9)
        );
        let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
        for Balance { account, state, position, .. } in rows {
            query = query
                .bind(i64::from(account.partition().number()))
                .bind(account.id().to_string())
                .bind(stored(position.0))
                .bind(stored(state.version))
                .bind(stored(state.balance))
                .bind(stored(state.frozen))
                .bind(if state.locked { "locked" } else { "active" })
                .bind(account.user_id().clone())
                .bind(account.credit_type().clone());
        }
        let as_believed: i64 = query.fetch_one(readers).await?;
        if u64::try_from(as_believed) != Ok(rows.len() as u64) {
            return Ok(false);
        }
    }
    for rows in opened.chunks(ROWS_MAX) {
        let sql = format!(
            "select count(*) from ({}) w cross join balances t on t.partition = w.column1 and t.account_id = w.column2",
            values(padded(rows.len()), 2)
        );
        let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
        for balance in rows {
            query = query.bind(i64::from(balance.account.partition().number())).bind(balance.account.id().to_string());
        }
        if query.fetch_one(readers).await.map(|there: i64| there > 0)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a round, some partitions at a time: each partition's rows and checkpoints in one transaction, by compare-and-set.
/// False when another runner was faster somewhere; what was written before that stands.
pub(crate) async fn commit(database: &Sqlite, mut changes: Changes) -> Result<bool, StoreError> {
    changes.balances.sort_unstable_by_key(|balance| balance.account.id());
    if let Some(believed) = &changes.believed
        && !is_as_believed(database.readers(), believed, &changes).await?
    {
        return Ok(false);
    }
    changes.freezes.sort_unstable_by_key(|freeze| (freeze.account.partition(), freeze.position));
    changes.steps.sort_unstable_by_key(|step| step.partition);
    let (mut balances, mut freezes, mut steps) = (&*changes.balances, &*changes.freezes, &*changes.steps);
    while let Some(first) = steps.first() {
        // At least one partition, and more as long as the turn stays short.
        let rows_of_a_turn = database.fair_rows().max(ROWS_OF_A_TURN);
        let mut last = first.partition;
        let upto = |last: Partition| {
            (
                balances.partition_point(|balance| balance.account.partition() <= last),
                freezes.partition_point(|freeze| freeze.account.partition() <= last),
                steps.partition_point(|step| step.partition <= last),
            )
        };
        for step in steps {
            let (some, others, _) = upto(step.partition);
            if some + others <= rows_of_a_turn {
                last = step.partition;
            }
        }
        let (some, others, these) = upto(last);
        if !commit_some(database, &steps[..these], &balances[..some], &freezes[..others]).await? {
            return Ok(false);
        }
        (balances, freezes, steps) = (&balances[some..], &freezes[others..], &steps[these..]);
    }
    Ok(true)
}

async fn commit_some(
    database: &Sqlite,
    steps: &[Step],
    balances: &[Balance],
    freezes: &[Freeze],
) -> Result<bool, StoreError> {
    // A freeze is in the table and in up to two indexes.
    let mut turn = database.relaxed_turn_for(PAGES_OF_A_TURN.max(balances.len() + 3 * freezes.len())).await?;
    let connection = turn.connection();
    begin(connection).await?;
    let began = Instant::now();
    let written = async {
        if !take_steps(connection, steps).await? {
            return Ok(false);
        }
        write_balances(connection, "balances", balances).await?;
        write_freezes(connection, "freezes", freezes).await?;
        Ok::<_, StoreError>(true)
    }
    .await;
    let committed = end(connection, written).await?;
    database.wrote(balances.len() + freezes.len(), began.elapsed());
    Ok(committed)
}

pub(crate) async fn begin(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    if let Err(error) = sqlx::query("begin immediate").execute(&mut *connection).await {
        // What an earlier failure left open must not swallow this transaction.
        let _ = sqlx::query("rollback").execute(connection).await;
        return Err(error.into());
    }
    Ok(())
}

pub(crate) async fn end(connection: &mut SqliteConnection, done: Result<bool, StoreError>) -> Result<bool, StoreError> {
    if matches!(done, Ok(true)) {
        let committed = sqlx::query("commit").execute(&mut *connection).await;
        if committed.is_ok() {
            return done;
        }
        let _ = sqlx::query("rollback").execute(connection).await;
        return Err(committed.map(drop).map_or_else(Into::into, |()| unreachable!("checked above")));
    }
    let _ = sqlx::query("rollback").execute(connection).await;
    done
}

/// Moves each checkpoint by compare-and-set.
pub(crate) async fn take_steps(connection: &mut SqliteConnection, steps: &[Step]) -> Result<bool, StoreError> {
    let rows: Vec<_> = steps
        .iter()
        .map(|step| {
            let (from, to) = (step.from, step.to);
            let partition = step.partition.number();
            (step.model.name(), partition, from.epoch.0, from.position, from.hash, to.epoch.0, to.position, to.hash)
        })
        .collect();
    let moved = sqlx::query(
        "update projection_checkpoints as c set epoch = s.value ->> 5, position = s.value ->> 6, \
             hash = unhex(s.value ->> 7) \
         from json_each(?) s where c.projection = s.value ->> 0 and c.partition = s.value ->> 1 \
         and c.epoch = s.value ->> 2 and c.position = s.value ->> 3 and c.hash = unhex(s.value ->> 4)",
    )
    .bind(json!(rows).to_string())
    .execute(connection)
    .await?;
    Ok(moved.rows_affected() == steps.len() as u64)
}

/// Inserts or replaces rows of `table`, which is `balances` or the one that will take its place.
pub(crate) async fn write_balances(
    connection: &mut SqliteConnection,
    table: &str,
    balances: &[Balance],
) -> Result<(), StoreError> {
    let mut sorted: Vec<_> = balances.iter().collect();
    sorted.sort_unstable_by_key(|balance| balance.account.id());
    for rows in sorted.chunks(ROWS_MAX) {
        let mut query = sqlx::query(AssertSqlSafe(upsert(table, BALANCE_COLUMNS, rows.len())));
        for balance in rows {
            let (account, state) = (&balance.account, &balance.state);
            query = query
                .bind(i64::from(account.partition().number()))
                .bind(account.id().to_string())
                .bind(stored(balance.position.0))
                .bind(stored(state.version))
                .bind(stored(state.balance))
                .bind(stored(state.frozen))
                .bind(stored(state.available()))
                .bind(balance.updated_at.to_string())
                .bind(balance.status())
                .bind(account.user_id().clone())
                .bind(account.credit_type().clone());
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

pub(crate) async fn write_freezes(
    connection: &mut SqliteConnection,
    table: &str,
    freezes: &[Freeze],
) -> Result<(), StoreError> {
    let mut sorted: Vec<_> = freezes.iter().collect();
    sorted.sort_unstable_by_key(|freeze| (freeze.account.partition(), freeze.position));
    for rows in sorted.chunks(ROWS_MAX) {
        let mut query = sqlx::query(AssertSqlSafe(upsert(table, FREEZE_COLUMNS, rows.len())));
        for freeze in rows {
            let account = &freeze.account;
            query = query
                .bind(i64::from(account.partition().number()))
                .bind(stored(freeze.position.0))
                .bind(stored(freeze.amount))
                .bind(stored(freeze.remaining))
                .bind(stored(freeze.captured))
                .bind(stored(freeze.released))
                .bind(freeze.expires_at.map(|at| at.to_string()))
                .bind(freeze.created_at.to_string())
                .bind(freeze.freeze_id.to_string())
                .bind(account.id().to_string())
                .bind(freeze.status())
                .bind(account.user_id().clone())
                .bind(account.credit_type().clone())
                .bind(freeze.key.code().clone())
                .bind(freeze.key.id().clone());
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

fn upsert(table: &str, columns: &str, rows: usize) -> String {
    let rows = values(padded(rows), columns.split(',').count());
    format!("insert or replace into {table} ({columns}) select * from ({rows}) where column1 is not null")
}

fn of_table(columns: &str) -> String {
    columns.split(", ").map(|column| format!("t.{}", column.trim())).collect::<Vec<_>>().join(", ")
}

pub(crate) fn balance(row: &SqliteRow) -> Result<Result<Balance, DamagedModelRow>, StoreError> {
    Ok(balance_row(row)?.read())
}

pub(crate) fn balance_row(row: &SqliteRow) -> Result<BalanceRow, StoreError> {
    Ok(BalanceRow {
        partition: row.try_get(0)?,
        account_id: id_of(row.try_get(1)?),
        position: row.try_get(2)?,
        version: row.try_get(3)?,
        balance: row.try_get(4)?,
        frozen: row.try_get(5)?,
        available: row.try_get(6)?,
        updated_at: time_of(row.try_get(7)?),
        status: row.try_get(8)?,
        user_id: row.try_get(9)?,
        credit_type: row.try_get(10)?,
    })
}

pub(crate) fn freeze(row: &SqliteRow) -> Result<Result<Freeze, DamagedModelRow>, StoreError> {
    Ok(freeze_row(row)?.read())
}

pub(crate) fn freeze_row(row: &SqliteRow) -> Result<FreezeRow, StoreError> {
    Ok(FreezeRow {
        partition: row.try_get(0)?,
        position: row.try_get(1)?,
        amount: row.try_get(2)?,
        remaining: row.try_get(3)?,
        captured: row.try_get(4)?,
        released: row.try_get(5)?,
        expires_at: match row.try_get::<Option<&str>, _>(6)? {
            None => Some(None),
            Some(text) => time_of(text).map(Some),
        },
        created_at: time_of(row.try_get(7)?),
        freeze_id: id_of(row.try_get(8)?),
        account_id: id_of(row.try_get(9)?),
        status: row.try_get(10)?,
        user_id: row.try_get(11)?,
        credit_type: row.try_get(12)?,
        business_code: row.try_get(13)?,
        business_id: row.try_get(14)?,
    })
}
