//! Reading the whole log as it lies in the database, partitions mixed: half of what it costs to gather the rows of one
//! partition after another from all over the table.
//!
//! Rows of a partition nearly always come in the order of their positions, because the table only grows; where room was
//! left by rows that never were committed, later ones may lie before earlier ones. What was committed before a sweep began
//! is in it; what is committed meanwhile may or may not be. Each chunk is a short transaction of its own.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ledger_core::{BareEvent, Partition, Position};

use crate::{
    Database, StoreError,
    copied::{COLUMNS_OF_A_FOLD, COLUMNS_OF_A_FOLD_COUNT, Row},
    postgres,
    row::{COLUMN_COUNT, COLUMNS},
    sqlite,
};

/// What of each event is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    Whole,
    /// What a fold of balances and freezes needs. Account names are empty but in an account's first event; id, expiry and
    /// business key are no event's own where nothing is frozen after it; the others are never its own.
    Fold,
}

impl Extent {
    /// The columns in the order in which rows hold them.
    pub(crate) const fn columns(self) -> &'static str {
        match self {
            Self::Whole => COLUMNS,
            Self::Fold => COLUMNS_OF_A_FOLD,
        }
    }
}

/// The most readers at a time, and the most reads of tables beside the log: on PostgreSQL each has one of a few connections
/// for as long as it reads, and whoever finds none waits a few seconds and gives up.
pub const READERS_MAX: usize = 6;

/// Columns of [`COLUMNS`] between the position, which is the first, and the partition.
const COLUMNS_BEFORE_PARTITION: usize = 18;

/// A reading of the whole log, by one reader or several.
#[derive(Debug, Clone)]
pub struct Sweep {
    database: Database,
    extent: Extent,
    /// How many chunks there are.
    chunks: u64,
    next: Arc<AtomicU64>,
}

/// One of several that read: each has a connection of its own.
#[derive(Debug)]
pub struct Sweeper {
    sweep: Sweep,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Postgres(postgres::Sweeper),
    Sqlite(sqlite::Sweeper),
}

/// Some rows as they lie one after another. Kept and filled again, it allocates little.
#[derive(Debug)]
pub struct Chunk {
    extent: Extent,
    pub(crate) bytes: Vec<u8>,
    /// Where each row ends.
    pub(crate) ends: Vec<usize>,
}

/// A row that is no event, and where it stands as far as that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoEvent(pub Option<(Partition, Position)>);

impl Database {
    /// Begins a sweep over what is committed by now.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn sweep(&self, extent: Extent) -> Result<Sweep, StoreError> {
        let chunks = match self {
            Self::Postgres(database) => database.sweep_chunks().await?,
            Self::Sqlite(database) => database.sweep_chunks().await?,
        };
        Ok(Sweep { database: self.clone(), extent, chunks, next: Arc::default() })
    }
}

impl Sweep {
    /// A reader; clones of this sweep share the chunks out among their readers.
    ///
    /// # Errors
    ///
    /// When the database cannot be connected to.
    pub async fn sweeper(&self) -> Result<Sweeper, StoreError> {
        let reader = match &self.database {
            Database::Postgres(database) => Reader::Postgres(database.sweeper(self.extent).await?),
            Database::Sqlite(database) => Reader::Sqlite(database.sweeper(self.extent)),
        };
        Ok(Sweeper { sweep: self.clone(), reader })
    }

    /// A chunk to be filled.
    #[must_use]
    pub const fn chunk(&self) -> Chunk {
        Chunk { extent: self.extent, bytes: Vec::new(), ends: Vec::new() }
    }
}

impl Sweeper {
    /// Fills `chunk` with the next rows that no other reader took, and tells their place among the chunks, from 0 without a
    /// gap; none at the end.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn next(&mut self, chunk: &mut Chunk) -> Result<Option<u64>, StoreError> {
        let number = self.sweep.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.sweep.chunks {
            return Ok(None);
        }
        chunk.bytes.clear();
        chunk.ends.clear();
        match &mut self.reader {
            Reader::Postgres(reader) => reader.read(number, chunk).await?,
            Reader::Sqlite(reader) => reader.read(number, chunk).await?,
        }
        Ok(Some(number))
    }
}

impl Chunk {
    /// The rows as they were read, one by one.
    pub fn raw(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    /// The event in a row of this chunk, or in one that was kept of another chunk of the sweep.
    ///
    /// # Errors
    ///
    /// When the row is none.
    pub fn event<'r>(&self, raw: &'r [u8]) -> Result<BareEvent<'r>, NoEvent> {
        read(self.extent, raw)
    }
}

fn read(extent: Extent, raw: &[u8]) -> Result<BareEvent<'_>, NoEvent> {
    let mut row = Row::new(raw);
    let event = match (extent, row.columns()) {
        (Extent::Whole, Some(COLUMN_COUNT)) => row.position().and_then(|position| row.event(position, None).ok()),
        (Extent::Fold, Some(COLUMNS_OF_A_FOLD_COUNT)) => row
            .partition()
            .zip(row.position())
            .and_then(|(partition, position)| row.event_of_a_fold(partition, position).ok()),
        _ => None,
    };
    event.and_then(|row| row.bare().ok()).ok_or_else(|| NoEvent(place(extent, raw)))
}

/// Where a row stands that is no event, as far as that can be read.
fn place(extent: Extent, raw: &[u8]) -> Option<(Partition, Position)> {
    let mut row = Row::new(raw);
    match (extent, row.columns()) {
        (Extent::Whole, Some(COLUMN_COUNT)) => {
            let position = row.position()?;
            row.skip(COLUMNS_BEFORE_PARTITION)?;
            Some((row.partition()?, position))
        }
        // A row of which nothing else is said begins with its place, too.
        _ => row.partition().zip(row.position()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_stands_where_it_is_looked_for() {
        assert_eq!(COLUMNS.split(", ").position(|column| column == "partition"), Some(1 + COLUMNS_BEFORE_PARTITION));
        assert_eq!(COLUMNS.split(", ").count(), COLUMN_COUNT);
    }
}
