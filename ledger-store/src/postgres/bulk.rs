//! Tables beside the log in bulk, by COPY.

use std::ops::RangeInclusive;

use futures::TryStreamExt;
use ledger_core::Partition;
use sqlx::AssertSqlSafe;

use super::Postgres;
use crate::{
    StoreError,
    bulk::Table,
    copied::{self, Row},
};

impl Postgres {
    pub(crate) async fn bulk<T>(
        &self,
        tables: &[Table],
        partitions: RangeInclusive<Partition>,
        mut into: T,
        each: fn(&mut T, usize, Row<'_>),
    ) -> Result<T, StoreError> {
        // These connections take rows by the primary key: no rows need to be sorted then.
        let mut transaction = self.bulk.begin_with("begin isolation level repeatable read read only").await?;
        // Before the first look, which is what the snapshot is taken for: one that waited afterwards until others have put new
        // tables in place would find those empty.
        let names = tables.iter().map(|table| table.name).collect::<Vec<_>>().join(", ");
        let lock = format!("lock table {names} in access share mode");
        sqlx::query(AssertSqlSafe(lock)).execute(&mut *transaction).await?;
        // A COPY that is refused leaves sqlx's connection out of step, so it is asked in another way whether the tables are
        // there. They stay until the transaction ends.
        let nothing: Vec<_> = tables.iter().map(|table| format!("exists ({})", table.select_nothing())).collect();
        sqlx::query(AssertSqlSafe(format!("select {}", nothing.join(", ")))).execute(&mut *transaction).await?;
        for (index, table) in tables.iter().enumerate() {
            let copy = format!("copy ({}) to stdout (format binary)", table.select(&partitions));
            let mut messages = transaction.copy_out_raw(&copy).await?;
            while let Some(message) = messages.try_next().await? {
                if let Some(row) = copied::rows(&message) {
                    each(&mut into, index, Row::new(row));
                }
            }
        }
        transaction.rollback().await?;
        Ok(into)
    }
}
