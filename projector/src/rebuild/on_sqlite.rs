//! The next tables on SQLite.

use std::fs::{File, TryLockError};

use ledger_core::{Balance, Event, Freeze, Head, PARTITIONS, Partition};
use ledger_store::{StoreError, sqlite::RelaxedTurn, sqlite::Sqlite};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{NextTables, RebuildError, sound};
use crate::{
    checkpoint::ReadModel,
    fold::{self, Changes, Rows},
    row::stored,
    sqlite,
};

/// Rows of one transaction: commands of other processes wait meanwhile.
const ROWS: usize = 1_000;

/// The next tables, and the lock on a file beside the database: when the process ends, another rebuild may run.
pub(super) struct Next<'d> {
    database: &'d Sqlite,
    /// Held from the beginning of the switch to its end.
    turn: Option<RelaxedTurn<'d>>,
    /// What the served index on freezes is not called; SQLite cannot rename one.
    index: &'static str,
    _lock: File,
}

impl<'d> Next<'d> {
    pub(super) async fn create(database: &'d Sqlite) -> Result<Self, RebuildError> {
        let lock = File::create(format!("{}-rebuild.lock", database.file())).map_err(sqlx::Error::Io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RebuildError::AlreadyRunning),
            Err(TryLockError::Error(error)) => return Err(sqlx::Error::Io(error).into()),
        }
        let mut turn = database.relaxed_turn().await?;
        let connection = turn.connection();
        let served: Option<String> = sqlx::query_scalar(
            "select name from sqlite_master where type = 'index' and tbl_name = 'freezes' and sql is not null",
        )
        .fetch_optional(&mut *connection)
        .await?;
        let index =
            if served.as_deref() == Some("freezes_of_account") { "freezes_of_account_b" } else { "freezes_of_account" };
        sqlite::begin(connection).await?;
        let created = create_tables(connection, index).await;
        sqlite::end(connection, created).await?;
        drop(turn);
        Ok(Self { database, turn: None, index, _lock: lock })
    }
}

async fn create_tables(connection: &mut SqliteConnection, index: &str) -> Result<bool, StoreError> {
    for table in ["balances", "freezes"] {
        // Left over from a rebuild that was killed.
        sqlx::query(AssertSqlSafe(format!("drop table if exists {table}_next"))).execute(&mut *connection).await?;
        let served: String = sqlx::query_scalar("select sql from sqlite_master where type = 'table' and name = ?")
            .bind(table)
            .fetch_one(&mut *connection)
            .await?;
        let columns = served.find('(').map(|start| &served[start..]).unwrap_or_default();
        sqlx::query(AssertSqlSafe(format!("create table {table}_next {columns}"))).execute(&mut *connection).await?;
    }
    sqlx::query(AssertSqlSafe(format!("create index {index} on freezes_next (partition, account_id, position)")))
        .execute(connection)
        .await?;
    Ok(true)
}

impl NextTables for Next<'_> {
    async fn write(&mut self, changes: &Changes) -> Result<(), RebuildError> {
        let mut balances = changes.balances.chunks(ROWS);
        let mut freezes = changes.freezes.chunks(ROWS);
        loop {
            let (some, others) = (balances.next(), freezes.next());
            if some.is_none() && others.is_none() {
                return Ok(());
            }
            let (some, others) = (some.unwrap_or_default(), others.unwrap_or_default());
            if let Some(turn) = &mut self.turn {
                sqlite::write_balances(turn.connection(), "balances_next", some).await?;
                sqlite::write_freezes(turn.connection(), "freezes_next", others).await?;
            } else {
                let mut turn = self.database.relaxed_turn().await?;
                sqlite::write_balances(turn.connection(), "balances_next", some).await?;
                sqlite::write_freezes(turn.connection(), "freezes_next", others).await?;
            }
        }
    }

    async fn rows(&mut self, events: &[Event]) -> Result<Rows, RebuildError> {
        let (accounts, places) = (fold::accounts_of(events.iter()), fold::freezes_of(events.iter()));
        let (balances, freezes) = if let Some(turn) = &mut self.turn {
            (
                sqlite::balances(turn.connection(), "balances_next", &accounts).await?,
                sqlite::freezes(turn.connection(), "freezes_next", &places).await?,
            )
        } else {
            (
                sqlite::balances(self.database.readers(), "balances_next", &accounts).await?,
                sqlite::freezes(self.database.readers(), "freezes_next", &places).await?,
            )
        };
        Ok(Rows::of(sound(balances)?, sound(freezes)?))
    }

    async fn all(&mut self, partition: Partition) -> Result<(Vec<Balance>, Vec<Freeze>), RebuildError> {
        let mut connection = self.database.readers().acquire().await?;
        let (balances, freezes) =
            sqlite::partition_rows(&mut connection, "balances_next", "freezes_next", partition).await?;
        Ok((sound(balances)?, sound(freezes)?))
    }

    async fn hold(&mut self) -> Result<[Head; PARTITIONS], RebuildError> {
        let mut turn = self.database.relaxed_turn().await?;
        sqlite::begin(turn.connection()).await?;
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

    async fn switch(&mut self, at: &[Head; PARTITIONS]) -> Result<(), RebuildError> {
        let Some(mut turn) = self.turn.take() else { unreachable!("the switch follows the hold") };
        let connection = turn.connection();
        let switched = switch(connection, at).await;
        sqlite::end(connection, switched).await?;
        tracing::debug!(index = self.index, "the read models were switched");
        Ok(())
    }
}

async fn switch(connection: &mut SqliteConnection, at: &[Head; PARTITIONS]) -> Result<bool, StoreError> {
    for model in ReadModel::ALL {
        for (partition, head) in Partition::all().zip(at) {
            sqlx::query(
                "update projection_checkpoints set epoch = ?, position = ?, hash = ? where partition = ? and projection = ?",
            )
            .bind(i64::from(head.epoch.0))
            .bind(stored(head.position.0))
            .bind(head.hash.0.to_vec())
            .bind(i64::from(partition.number()))
            .bind(model.name())
            .execute(&mut *connection)
            .await?;
        }
    }
    for statement in [
        "drop table balances",
        "alter table balances_next rename to balances",
        "drop table freezes",
        "alter table freezes_next rename to freezes",
    ] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(true)
}
