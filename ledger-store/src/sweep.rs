//! Reading the whole log as it lies in the database, partitions mixed: half of what it costs to gather the rows of one
//! partition after another from all over the table.
//!
//! Rows of a partition nearly always come in the order of their positions, because the table only grows; where room was
//! left by rows that never were committed, later ones may lie before earlier ones. What was committed before a sweep began
//! is in it; what is committed meanwhile may or may not be. Each chunk is a short transaction of its own.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ledger_core::{BareEvent, PARTITIONS, Partition, Position};

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
    table: Table,
    next: Arc<AtomicU64>,
    places: Option<Arc<Places>>,
}

/// The table when a sweep of it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// How many chunks there are; none when it cannot be read as it lies.
    pub(crate) chunks: u64,
    /// Another one once all rows were put elsewhere.
    pub(crate) version: i64,
}

/// Where the rows of a partition lie: how many they are, and what their positions and places come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PlaceSum {
    pub(crate) rows: u64,
    sum: u64,
}

impl PlaceSum {
    #[inline]
    pub(crate) const fn add(&mut self, position: i64, place: i64) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = (position.cast_unsigned().wrapping_mul(ODD) ^ place.cast_unsigned()).wrapping_mul(ODD | 2);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.rows += 1;
        self.sum = self.sum.wrapping_add(mixed ^ mixed >> 32);
    }

    const fn absorb(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// What the rows of each partition come to.
pub(crate) type PlaceSums = [PlaceSum; PARTITIONS];

/// Where all rows lie up to a position of each partition, as far as they were read.
#[derive(Debug)]
struct Places {
    to: Arc<[Position; PARTITIONS]>,
    found: Mutex<PlaceSums>,
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
        let table = match self {
            Self::Postgres(database) => database.table_to_sweep().await?,
            Self::Sqlite(database) => database.table_to_sweep().await?,
        };
        Ok(Sweep { database: self.clone(), extent, table, next: Arc::default(), places: None })
    }
}

impl Sweep {
    /// The same, and the places of rows are added up to these positions, so that the index of the primary key can be compared
    /// with the table afterwards. On PostgreSQL nothing is: there no query tells where an index says that a row is, but by
    /// going there.
    #[must_use]
    pub fn adding_places(mut self, to: [Position; PARTITIONS]) -> Self {
        if let Database::Sqlite(_) = &self.database
            && self.reads_the_table()
        {
            self.places =
                Some(Arc::new(Places { to: Arc::new(to), found: Mutex::new([PlaceSum::default(); PARTITIONS]) }));
        }
        self
    }

    /// Whether the table can be read as it lies. Where it cannot there are no chunks.
    #[must_use]
    pub const fn reads_the_table(&self) -> bool {
        self.table.chunks > 0
    }

    /// Whether every row still is where it was when the sweep began. Where all were put elsewhere meanwhile (`vacuum full`,
    /// SQLite's `vacuum`), some may have come twice or not at all.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn is_of_the_same_table(&self) -> Result<bool, StoreError> {
        let now = match &self.database {
            Database::Postgres(database) => database.table_to_sweep().await?,
            Database::Sqlite(database) => database.table_to_sweep().await?,
        };
        Ok(now.version == self.table.version)
    }

    /// Whether places are added up.
    #[must_use]
    pub const fn adds_places(&self) -> bool {
        self.places.is_some()
    }

    /// How the index of the primary key differs from the table in some partitions, once all of it is read.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn key_differences(&self, partitions: &[Partition]) -> Result<Vec<(Partition, String)>, StoreError> {
        let (Some(places), Database::Sqlite(database)) = (&self.places, &self.database) else { return Ok(Vec::new()) };
        let of = partitions.iter().map(|partition| (*partition, places.to[partition.index()])).collect();
        let indexed = database.indexed_places(of).await?;
        let found = places.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut differences = Vec::new();
        for (partition, indexed) in indexed {
            let table = found[partition.index()];
            match indexed {
                Ok(index) if index == table => {}
                Ok(index) if index.rows == table.rows => {
                    differences.push((partition, format!("{} other rows in the index", index.rows)));
                }
                Ok(index) => differences.push((partition, format!("{} rows in the index", index.rows))),
                Err(why) => differences.push((partition, format!("an index that cannot be read: {why}"))),
            }
        }
        Ok(differences)
    }

    /// A reader; clones of this sweep share the chunks out among their readers.
    ///
    /// # Errors
    ///
    /// When the database cannot be connected to.
    pub async fn sweeper(&self) -> Result<Sweeper, StoreError> {
        let reader = match &self.database {
            Database::Postgres(database) => Reader::Postgres(database.sweeper(self.extent).await?),
            Database::Sqlite(database) => {
                Reader::Sqlite(database.sweeper(self.extent, self.places.as_ref().map(|places| places.to.clone())))
            }
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
        if number >= self.sweep.table.chunks {
            return Ok(None);
        }
        chunk.bytes.clear();
        chunk.ends.clear();
        match &mut self.reader {
            Reader::Postgres(reader) => reader.read(number, chunk).await?,
            Reader::Sqlite(reader) => {
                let read = reader.read(number, chunk).await?;
                if let Some(places) = &self.sweep.places {
                    let mut found = places.found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.iter_mut().zip(read.iter()).for_each(|(found, read)| found.absorb(*read));
                }
            }
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
