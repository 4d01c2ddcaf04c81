//! The next tables on SQLite.
//!
//! A SQLite file has one writer at a time, and a service in another process waits for it by sleeping and trying again. So
//! everything but the switch is written in transactions of some milliseconds, with a pause after each while others write.

use std::{
    fs::{File, TryLockError},
    time::{Duration, Instant},
};

use chrono::Utc;
use futures::TryStreamExt;
use ledger_core::{Balance, Event, Freeze, Hash, Head, PARTITIONS, Partition, Timestamp, digest::PartitionDigest};
use ledger_store::{
    StoreError,
    sqlite::{RelaxedTurn, Sqlite},
};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{NextTables, RebuildError, fill::Tables, on_postgres::differs, replay::Folded, sound};
use crate::{
    checkpoint::ReadModel,
    fold::{self, Changes, Rows},
    row::{BALANCE_COLUMNS, FREEZE_COLUMNS, stored},
    sqlite,
};

/// Rows of one transaction: commands of other processes wait meanwhile.
const ROWS: usize = 1_000;
/// How often it is tried to begin a transaction while others write, and for how long.
const LOOK: Duration = Duration::from_millis(1);
const BEGIN_WAIT: Duration = Duration::from_secs(60);
/// How long the connection waits otherwise, in milliseconds.
const USUAL_TIMEOUT: &str = "pragma busy_timeout = 10000";
const SQLITE_BUSY: u32 = 5;
/// The indexes of `freezes`: their first names, and what they are on.
const FREEZES_INDEXES: [(&str, &str); 2] = [
    ("freezes_of_account", "(partition, account_id, position)"),
    ("freezes_due", "(partition, expires_at, position) where expires_at is not null"),
];
/// The least pause while others write.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// The next tables, and the lock on a file beside the database: when the process ends, another rebuild may run.
pub(super) struct Next<'d> {
    database: &'d Sqlite,
    models: Vec<ReadModel>,
    /// Held from the beginning of the switch to its end.
    turn: Option<RelaxedTurn<'d>>,
    _lock: File,
}

impl<'d> Next<'d> {
    pub(super) async fn create(database: &'d Sqlite, models: &[ReadModel]) -> Result<Self, RebuildError> {
        let lock = File::create(format!("{}-rebuild.lock", database.file())).map_err(sqlx::Error::Io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RebuildError::AlreadyRunning),
            Err(TryLockError::Error(error)) => return Err(sqlx::Error::Io(error).into()),
        }
        // Left over from a rebuild that was killed.
        discard_all(database).await?;
        let mut turn = database.relaxed_turn().await?;
        let connection = turn.connection();
        begin_soon(connection).await?;
        let created = create_tables(connection, models).await;
        sqlite::end(connection, created).await?;
        drop(turn);
        Ok(Self { database, models: models.to_vec(), turn: None, _lock: lock })
    }
}

async fn create_tables(connection: &mut SqliteConnection, models: &[ReadModel]) -> Result<bool, StoreError> {
    for model in models {
        let table = model.name();
        let served: String = sqlx::query_scalar("select sql from sqlite_master where type = 'table' and name = ?")
            .bind(table)
            .fetch_one(&mut *connection)
            .await?;
        let columns = served.find('(').map(|start| &served[start..]).unwrap_or_default();
        sqlx::query(AssertSqlSafe(format!("create table {table}_next {columns}"))).execute(&mut *connection).await?;
    }
    if models.contains(&ReadModel::Freezes) {
        // Made at once, not after the tables were filled: that would be one long transaction.
        for (index, on) in FREEZES_INDEXES {
            // SQLite cannot rename an index, so two names take turns.
            let is_taken: bool =
                sqlx::query_scalar("select exists (select 1 from sqlite_master where type = 'index' and name = ?)")
                    .bind(index)
                    .fetch_one(&mut *connection)
                    .await?;
            let turn = if is_taken { "_b" } else { "" };
            sqlx::query(AssertSqlSafe(format!("create index {index}{turn} on freezes_next {on}")))
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(true)
}

/// Begins a transaction in the first moment in which no other process writes. SQLite itself would look again after ever
/// longer pauses, and would hardly ever meet one beside a busy service.
async fn begin_soon(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let deadline = Instant::now() + BEGIN_WAIT;
    sqlx::query("pragma busy_timeout = 0").execute(&mut *connection).await?;
    let begun = loop {
        match sqlite::begin(connection).await {
            Err(error) if is_busy(&error) && Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            begun => break begun,
        }
    };
    sqlx::query(USUAL_TIMEOUT).execute(connection).await?;
    begun
}

fn is_busy(error: &StoreError) -> bool {
    // The low byte is the primary result code: https://sqlite.org/rescode.html
    let code = |error: &dyn sqlx::error::DatabaseError| error.code().and_then(|code| code.parse::<u32>().ok());
    match error {
        StoreError::Database(sqlx::Error::Database(refusal)) => {
            code(&**refusal).is_some_and(|code| code & 0xff == SQLITE_BUSY)
        }
        _ => false,
    }
}

/// Drops what no one is served from.
async fn discard_all(database: &Sqlite) -> Result<(), RebuildError> {
    for model in ReadModel::ALL {
        for which in ["next", "old"] {
            discard(database, &format!("{}_{which}", model.name())).await?;
        }
    }
    Ok(())
}

/// Drops a table that nobody reads any more, if it is there: emptied in pieces first, because to free the pages of a large
/// table at once would keep commands waiting.
async fn discard(database: &Sqlite, table: &str) -> Result<(), RebuildError> {
    let mut filler = Filler::new(database);
    let is_there: bool =
        sqlx::query_scalar("select exists (select 1 from sqlite_master where type = 'table' and name = ?)")
            .bind(table)
            .fetch_one(database.readers())
            .await?;
    if !is_there {
        return Ok(());
    }
    let key = if table.starts_with(ReadModel::Balances.name()) { "account_id" } else { "position" };
    let some =
        format!("delete from {table} where (partition, {key}) in (select partition, {key} from {table} limit {ROWS})");
    loop {
        let mut turn = database.relaxed_turn().await?;
        let connection = turn.connection();
        begin_soon(connection).await?;
        let began = Instant::now();
        let emptied = async {
            let deleted = sqlx::query(AssertSqlSafe(some.clone())).execute(&mut *connection).await?.rows_affected();
            if deleted < ROWS as u64 {
                sqlx::query(AssertSqlSafe(format!("drop table {table}"))).execute(&mut *connection).await?;
            }
            Ok::<_, StoreError>(deleted < ROWS as u64)
        };
        let emptied = emptied.await;
        let is_last = *emptied.as_ref().unwrap_or(&true);
        sqlite::end(turn.connection(), emptied.map(|_| true)).await?;
        if is_last {
            return Ok(());
        }
        filler.let_others_write(&mut turn, began.elapsed()).await?;
    }
}

impl NextTables for Next<'_> {
    async fn index(&mut self) -> Result<(), RebuildError> {
        Ok(())
    }

    async fn write(&mut self, changes: &Changes) -> Result<(), RebuildError> {
        match &mut self.turn {
            Some(turn) => {
                sqlite::write_balances(turn.connection(), "balances_next", &changes.balances).await?;
                sqlite::write_freezes(turn.connection(), "freezes_next", &changes.freezes).await?;
                Ok(())
            }
            None => Filler::new(self.database).write(&changes.balances, &changes.freezes).await,
        }
    }

    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError> {
        let mut rows = Rows::default();
        if self.models.contains(&ReadModel::Balances) {
            let accounts = fold::accounts_of(events.iter());
            let balances = match &mut self.turn {
                Some(turn) => sqlite::balances(turn.connection(), "balances_next", &accounts).await?,
                None => sqlite::balances(self.database.readers(), "balances_next", &accounts).await?,
            };
            rows.balances = Rows::of(sound(balances)?, []).balances;
        }
        if self.models.contains(&ReadModel::Freezes) {
            let places = fold::freezes_of(events.iter());
            let freezes = match &mut self.turn {
                Some(turn) => sqlite::freezes(turn.connection(), "freezes_next", &places).await?,
                None => sqlite::freezes(self.database.readers(), "freezes_next", &places).await?,
            };
            rows.freezes = Rows::of([], sound(freezes)?).freezes;
        }
        Ok(rows)
    }

    async fn hold(&mut self) -> Result<[Head; PARTITIONS], RebuildError> {
        let mut turn = self.database.relaxed_turn().await?;
        begin_soon(turn.connection()).await?;
        let heads = sqlite::heads(turn.connection()).await;
        self.turn = Some(turn);
        Ok(heads?)
    }

    async fn let_go(&mut self) -> Result<(), RebuildError> {
        if let Some(mut turn) = self.turn.take() {
            sqlite::end(turn.connection(), Ok(false)).await?;
        }
        Ok(())
    }

    async fn switch(&mut self, at: &[Head; PARTITIONS]) -> Result<u64, RebuildError> {
        let Some(mut turn) = self.turn.take() else { unreachable!("the switch follows the hold") };
        let connection = turn.connection();
        let switched = switch(connection, &self.models, at).await;
        let (done, resolved) = match switched {
            Ok(resolved) => (Ok(true), resolved),
            Err(error) => (Err(error), 0),
        };
        sqlite::end(connection, done).await?;
        Ok(resolved)
    }

    async fn discard(&mut self) -> Result<(), RebuildError> {
        discard_all(self.database).await
    }
}

async fn switch(
    connection: &mut SqliteConnection,
    models: &[ReadModel],
    at: &[Head; PARTITIONS],
) -> Result<u64, StoreError> {
    let now = Timestamp::from_micros(Utc::now().timestamp_micros()).map(|now| now.to_string());
    let mut resolved = 0;
    for model in models {
        let table = model.name();
        // Whatever is there: a row may be missing, or unreadable.
        sqlx::query("delete from projection_checkpoints where projection = ?")
            .bind(table)
            .execute(&mut *connection)
            .await?;
        for (partition, head) in Partition::all().zip(at) {
            sqlx::query(
                "insert into projection_checkpoints (projection, partition, epoch, position, hash) values (?, ?, ?, ?, ?)",
            )
            .bind(table)
            .bind(i64::from(partition.number()))
            .bind(i64::from(head.epoch.0))
            .bind(stored(head.position.0))
            .bind(head.hash.0.to_vec())
            .execute(&mut *connection)
            .await?;
        }
        resolved += sqlx::query(
            "update inconsistencies set resolved_at = ?, resolved_by = 'replay-tool rebuild', \
                     outcome = coalesce(outcome, 'mended') where projection = ? and resolved_at is null",
        )
        .bind(&now)
        .bind(table)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        for rename in [
            format!("alter table {table} rename to {table}_old"),
            format!("alter table {table}_next rename to {table}"),
        ] {
            sqlx::query(AssertSqlSafe(rename)).execute(&mut *connection).await?;
        }
    }
    Ok(resolved)
}

/// Writes beside the commits.
pub(super) struct Filler {
    database: Sqlite,
    /// Rows of partitions that were too small for a transaction of their own.
    waiting: Folded,
    /// What SQLite counts others' commits by, as it was seen last.
    version: i64,
}

impl Filler {
    pub(super) fn new(database: &Sqlite) -> Self {
        Self { database: database.clone(), waiting: Folded::default(), version: 0 }
    }

    /// Writes rows of a partition, those that fill a transaction at once and the rest with others'. A read model that is not
    /// rebuilt has none.
    pub(super) async fn fill(&mut self, folded: Folded) -> Result<(), RebuildError> {
        self.waiting.balances.extend(folded.balances);
        self.waiting.freezes.extend(folded.freezes);
        if self.waiting.balances.len() + self.waiting.freezes.len() >= ROWS { self.finish().await } else { Ok(()) }
    }

    /// Writes what waits.
    pub(super) async fn finish(&mut self) -> Result<(), RebuildError> {
        let Folded { balances, freezes } = std::mem::take(&mut self.waiting);
        self.write(&balances, &freezes).await
    }

    async fn write(&mut self, balances: &[Balance], freezes: &[Freeze]) -> Result<(), RebuildError> {
        let database = self.database.clone();
        let (mut balances, mut freezes) = (balances.chunks(ROWS), freezes.chunks(ROWS));
        loop {
            let (some, others) = (balances.next().unwrap_or_default(), freezes.next().unwrap_or_default());
            if some.is_empty() && others.is_empty() {
                return Ok(());
            }
            let mut turn = database.relaxed_turn().await?;
            let connection = turn.connection();
            begin_soon(connection).await?;
            let began = Instant::now();
            let written = async {
                sqlite::write_balances(connection, "balances_next", some).await?;
                sqlite::write_freezes(connection, "freezes_next", others).await?;
                Ok(true)
            };
            let written = written.await;
            sqlite::end(turn.connection(), written).await?;
            self.let_others_write(&mut turn, began.elapsed()).await?;
        }
    }

    /// Pauses as long as the last transaction took, if another process wrote meanwhile. The turn is kept, so that no
    /// other worker of this process uses the pause.
    async fn let_others_write(&mut self, turn: &mut RelaxedTurn<'_>, took: Duration) -> Result<(), RebuildError> {
        let version: i64 = sqlx::query_scalar("pragma data_version").fetch_one(turn.connection()).await?;
        if std::mem::replace(&mut self.version, version) != version {
            tokio::time::sleep(took.max(PAUSE_MIN)).await;
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
        let number = i64::from(partition.number());
        let mut digest = PartitionDigest::default();
        if models.contains(&ReadModel::Balances) {
            let table = tables.of(ReadModel::Balances);
            let sql = format!("select {BALANCE_COLUMNS} from {table} where partition = ? order by account_id");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch(self.database.readers());
            while let Some(row) = rows.try_next().await? {
                digest.add_balance(&sqlite::balance(&row)?.map_err(differs(partition))?);
            }
        }
        if models.contains(&ReadModel::Freezes) {
            let table = tables.of(ReadModel::Freezes);
            let sql = format!("select {FREEZE_COLUMNS} from {table} where partition = ? order by position");
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(number).fetch(self.database.readers());
            while let Some(row) = rows.try_next().await? {
                digest.add_freeze(&sqlite::freeze(&row)?.map_err(differs(partition))?);
            }
        }
        Ok(digest.finish())
    }
}
