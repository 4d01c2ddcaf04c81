//! Tables beside the log whose rows go in and come out as JSON, by the names of their columns: the same statements serve
//! both databases, and one `serde` type is the row.

use std::sync::LazyLock;

use ledger_core::PARTITIONS;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{AssertSqlSafe, PgConnection, SqliteConnection};

use crate::{Database, StoreError, error::end_on_lost_sync};

/// Every partition, for a query that is led by it and wants all.
pub(crate) static EVERY_PARTITION: LazyLock<String> = LazyLock::new(|| {
    let numbers = (0..PARTITIONS).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    format!("partition in ({numbers})")
});

/// A table whose rows are `Row`s.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [&'static str],
}

impl Table {
    fn postgres_insert(&self) -> String {
        let columns = self.columns.join(", ");
        format!(
            "insert into {} ({columns}) select {columns} from json_populate_recordset(null::{}, $1::json) \
             on conflict do nothing",
            self.name, self.name
        )
    }

    fn sqlite_insert(&self) -> String {
        let values = self.columns.iter().map(|column| format!("j.value ->> '$.{column}'")).collect::<Vec<_>>();
        format!(
            "insert or ignore into {} ({}) select {} from json_each(?1) as j",
            self.name,
            self.columns.join(", "),
            values.join(", ")
        )
    }

    /// Writes rows in a transaction that has begun; says how many were not there.
    pub(crate) async fn insert_on_postgres(
        &self,
        connection: &mut PgConnection,
        rows: &[impl Serialize],
    ) -> Result<u64, StoreError> {
        let insert = sqlx::query(AssertSqlSafe(self.postgres_insert())).bind(json(rows));
        Ok(insert.execute(connection).await?.rows_affected())
    }

    /// Writes rows in a transaction that has begun; says how many were not there.
    pub(crate) async fn insert_on_sqlite(
        &self,
        connection: &mut SqliteConnection,
        rows: &[impl Serialize],
    ) -> Result<u64, StoreError> {
        let insert = sqlx::query(AssertSqlSafe(self.sqlite_insert())).bind(json(rows));
        Ok(insert.execute(connection).await?.rows_affected())
    }

    /// Writes rows durably, in one statement; says how many were not there.
    pub(crate) async fn insert(&self, database: &Database, rows: &[impl Serialize]) -> Result<u64, StoreError> {
        match database {
            Database::Postgres(database) => {
                let insert = sqlx::query(AssertSqlSafe(self.postgres_insert())).bind(json(rows));
                Ok(insert.execute(database.pool()).await?.rows_affected())
            }
            Database::Sqlite(database) => {
                let mut turn = database.durable_turn().await?;
                sqlx::query("pragma synchronous = full").execute(&mut *turn).await?;
                self.insert_on_sqlite(&mut turn, rows).await.map_err(end_on_lost_sync)
            }
        }
    }

    /// Does `what` (`delete from …`, `update … set …`) to the row of an operation, durably.
    pub(crate) async fn change(
        database: &Database,
        what: &str,
        partition: i64,
        operation: &str,
    ) -> Result<(), StoreError> {
        let change = format!("{what} where partition = $1 and operation_id = $2");
        match database {
            Database::Postgres(database) => {
                let change = sqlx::query(AssertSqlSafe(format!("{change}::uuid")));
                change.bind(partition).bind(operation.to_owned()).execute(database.pool()).await?;
            }
            Database::Sqlite(database) => {
                let mut turn = database.durable_turn().await?;
                sqlx::query("pragma synchronous = full").execute(&mut *turn).await?;
                let change = sqlx::query(AssertSqlSafe(change));
                let change = change.bind(partition).bind(operation.to_owned()).execute(&mut *turn).await;
                change.map_err(|error| end_on_lost_sync(error.into()))?;
            }
        }
        Ok(())
    }

    /// Writes rows without waiting for the disk.
    pub(crate) async fn insert_relaxed(&self, database: &Database, rows: &[impl Serialize]) -> Result<(), StoreError> {
        match database {
            Database::Postgres(database) => {
                let mut transaction = database.pool().begin().await?;
                sqlx::query("set local synchronous_commit = off").execute(&mut *transaction).await?;
                self.insert_on_postgres(&mut transaction, rows).await?;
                transaction.commit().await?;
            }
            Database::Sqlite(database) => {
                let mut turn = database.relaxed_turn().await?;
                self.insert_on_sqlite(turn.connection(), rows).await?;
            }
        }
        Ok(())
    }

    /// The rows that `rest` (`where … order by … limit …`) selects. Its parameters are texts; `{uuid}` after one is the
    /// cast that PostgreSQL needs to compare it with an id.
    pub(crate) async fn select<Row: DeserializeOwned>(
        &self,
        database: &Database,
        rest: &str,
        parameters: &[&str],
    ) -> Result<Vec<Row>, StoreError> {
        let damaged = |error| StoreError::Inconsistent(format!("a row of {} cannot be read: {error}", self.name));
        let rows = self.select_texts(database, rest, parameters).await?;
        rows.iter().map(|row| serde_json::from_str(row).map_err(damaged)).collect()
    }

    /// The same rows as they are stored, each as the text of a JSON object, whether or not they are `Row`s.
    pub(crate) async fn select_texts(
        &self,
        database: &Database,
        rest: &str,
        parameters: &[&str],
    ) -> Result<Vec<String>, StoreError> {
        let columns = self.columns.join(", ");
        Ok(match database {
            Database::Postgres(database) => {
                let rest = rest.replace("{uuid}", "::uuid");
                let sql = format!("select to_json(t)::text from (select {columns} from {} {rest}) t", self.name);
                let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
                for parameter in parameters {
                    query = query.bind((*parameter).to_owned());
                }
                query.fetch_all(database.pool()).await?
            }
            Database::Sqlite(database) => {
                let rest = rest.replace("{uuid}", "");
                let members = self.columns.iter().map(|column| format!("'{column}', {column}")).collect::<Vec<_>>();
                let sql = format!("select json_object({}) from {} {rest}", members.join(", "), self.name);
                let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
                for parameter in parameters {
                    query = query.bind((*parameter).to_owned());
                }
                query.fetch_all(database.readers()).await?
            }
        })
    }
}

fn json(rows: &[impl Serialize]) -> String {
    serde_json::to_string(rows).expect("rows are JSON")
}
