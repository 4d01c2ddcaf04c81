//! The two databases behind one seam.

use ledger_core::{Event, Head, PARTITIONS, Partition, Position, TransactionId};

use crate::{DamagedRow, StoreError, postgres::Postgres, sqlite::Sqlite};

/// A database that holds a ledger. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum Database {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

impl Database {
    /// Opens the database at `url` (`sqlite://FILE` or `postgres://…`), creates what is missing of the schema, and
    /// refuses one that would lose acknowledged commands.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let _ = url;
        unimplemented!()
    }

    /// Opens a database that already holds a ledger, and changes nothing about it.
    pub async fn open_existing(url: &str) -> Result<Self, StoreError> {
        let _ = url;
        unimplemented!()
    }

    /// `postgres` or `sqlite`, and where, without secrets: for people.
    #[must_use]
    pub fn describe(&self) -> String {
        unimplemented!()
    }

    /// The newest position of every partition, by partition number.
    pub async fn heads(&self) -> Result<[Head; PARTITIONS], StoreError> {
        unimplemented!()
    }

    /// At most `limit` events of a partition after a position, in order. Fails on the first row that is no event.
    pub async fn events_after(
        &self,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let _ = (partition, after, limit);
        unimplemented!()
    }

    /// Like [`Database::events_after`], but gives a damaged row its place instead of failing: for verification.
    pub async fn rows_after(
        &self,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Result<Event, DamagedRow>>, StoreError> {
        let _ = (partition, after, limit);
        unimplemented!()
    }

    /// The event at a place, if there is one.
    pub async fn event_at(&self, partition: Partition, position: Position) -> Result<Option<Event>, StoreError> {
        let _ = (partition, position);
        unimplemented!()
    }

    /// The event of that id, if there is one: its id says where it is, and all of the id must agree.
    pub async fn transaction(&self, id: TransactionId) -> Result<Option<Event>, StoreError> {
        let _ = id;
        unimplemented!()
    }
}
