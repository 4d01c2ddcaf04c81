//! Tables beside the log in bulk: the rows of several tables and several partitions, from one consistent read. Whichever
//! database they come from, they have the form of PostgreSQL's COPY, so that they are read where they lie and nothing is
//! allocated for them.

use std::ops::RangeInclusive;

use ledger_core::Partition;

use crate::{
    Database, StoreError,
    copied::{As, Row},
};

/// A table, and what of it is read.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub name: &'static str,
    /// The first is `partition`.
    pub columns: &'static [(&'static str, As)],
    /// The columns of the primary key, which is led by the partition.
    pub order: &'static str,
}

impl Table {
    fn columns(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The rows of these partitions, in order.
    pub(crate) fn select(&self, partitions: &RangeInclusive<Partition>) -> String {
        let (columns, Self { name, order, .. }) = (self.columns(), self);
        let (first, last) = (partitions.start(), partitions.end());
        format!("select {columns} from {name} where partition between {first} and {last} order by {order}")
    }

    /// As many rows as there are none: it fails as the other would.
    pub(crate) fn select_nothing(&self) -> String {
        format!("select {} from {} limit 0", self.columns(), self.name)
    }
}

impl Database {
    /// Reads these partitions' rows, table by table, in one short transaction. `each` is told which table a row is of; of a
    /// row that cannot be read only the partition comes.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn bulk<T: Send + 'static>(
        &self,
        tables: &'static [Table],
        partitions: RangeInclusive<Partition>,
        into: T,
        each: fn(&mut T, usize, Row<'_>),
    ) -> Result<T, StoreError> {
        match self {
            Self::Postgres(database) => database.bulk(tables, partitions, into, each).await,
            Self::Sqlite(database) => database.bulk(tables, partitions, into, each).await,
        }
    }
}
