//! Tables beside the log in bulk, by a connection that lends each column as it lies in the page.

use std::ops::RangeInclusive;

use ledger_core::Partition;
use rusqlite::Row as Found;

use super::{Sqlite, sweep::Copy};
use crate::{
    StoreError,
    bulk::Table,
    copied::{As, Row},
};

impl Sqlite {
    pub(crate) async fn bulk<T: Send + 'static>(
        &self,
        tables: &'static [Table],
        partitions: RangeInclusive<Partition>,
        mut into: T,
        each: fn(&mut T, usize, Row<'_>),
    ) -> Result<T, StoreError> {
        self.read(move |connection| {
            // Dropping it rolls back: nothing was written.
            let transaction = connection.transaction()?;
            let mut bytes = Vec::new();
            for (index, table) in tables.iter().enumerate() {
                let mut statement = transaction.prepare(&table.select(&partitions))?;
                let mut found = statement.query(())?;
                while let Some(row) = found.next()? {
                    copy(row, table.columns, &mut bytes);
                    each(&mut into, index, Row::new(&bytes));
                }
            }
            Ok(into)
        })
        .await
    }
}

/// Writes a row in the form of COPY, or only its partition if it cannot be read.
fn copy(row: &Found<'_>, columns: &[(&str, As)], bytes: &mut Vec<u8>) {
    for columns in [columns, &columns[..1]] {
        bytes.clear();
        let mut copy = Copy(bytes);
        copy.columns(columns.len());
        if columns.iter().enumerate().try_for_each(|(index, (_, form))| copy.column(row, index, *form)).is_ok() {
            return;
        }
    }
}
