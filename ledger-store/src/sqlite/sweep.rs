//! The table from its first row to its last, in the order in which rows were written.

use std::sync::Arc;

use ledger_core::{PARTITIONS, Partition, Position, Timestamp};
use rusqlite::{Connection, ErrorCode, Row, types::ValueRef};

use super::{
    Sqlite, rows,
    scan::{SMALL_CACHE_KIB, failed, open},
};
use crate::{
    StoreError,
    copied::{
        As::{self, Boolean, Bytes, Id, Integer, Number, Small, Text, Time},
        YEAR_2000_MICROS,
    },
    row::{Damage, stored},
    sweep::{Chunk, Extent, PlaceSum, PlaceSums, Table},
};

/// Row numbers of one chunk: some milliseconds of reading. Each reader has a chunk and what was checked of it in memory.
const ROWS: u64 = 1_024;
/// Rows are numbered one after another. Chunks beyond twice as many as the heads promise and these are not looked for: by one row of
/// a huge number there would be no end of empty ones.
const CHUNKS_BESIDES: u64 = 16_384;

/// Reads chunk after chunk by one connection.
#[derive(Debug)]
pub(crate) struct Sweeper {
    file: Arc<str>,
    /// Opened when it is needed first.
    connection: Option<Connection>,
    extent: Extent,
    /// Up to where places are added up.
    to: Option<Arc<[Position; PARTITIONS]>>,
}

/// Where an index says that the rows of a partition are, or why it cannot be read.
type Indexed = (Partition, Result<PlaceSum, String>);

impl Sqlite {
    /// The table and how many chunks it has by now; none where rows lie too far apart.
    pub(crate) async fn table_to_sweep(&self) -> Result<Table, StoreError> {
        // A `vacuum`, which may number rows anew, changes the schema's version.
        let sql = "select (select min(rowid) from events), (select max(rowid) from events), \
                   (select total(position) from partition_heads), (select schema_version from pragma_schema_version)";
        let (first, last, promised, version): (Option<i64>, Option<i64>, f64, i64) =
            sqlx::query_as(sql).fetch_one(self.readers()).await?;
        let chunks = u64::try_from(last.unwrap_or(0)).unwrap_or(0) / ROWS + 1;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a damaged head may promise anything"
        )]
        let expected = promised as u64 / ROWS;
        let is_far = first.is_some_and(|first| first < -stored(ROWS))
            || chunks > expected.saturating_mul(2).saturating_add(CHUNKS_BESIDES);
        Ok(Table { chunks: if is_far { 0 } else { chunks }, version })
    }

    pub(crate) fn sweeper(&self, extent: Extent, to: Option<Arc<[Position; PARTITIONS]>>) -> Sweeper {
        Sweeper { file: self.file.clone(), connection: None, extent, to }
    }

    /// Where the index of the primary key says that the rows of some partitions are, each up to and with a position.
    pub(crate) async fn indexed_places(&self, of: Vec<(Partition, Position)>) -> Result<Vec<Indexed>, StoreError> {
        self.read(move |connection| {
            of.into_iter()
                .map(|(partition, to)| match indexed_places(connection, partition, to) {
                    Err(rusqlite::Error::SqliteFailure(error, _)) if error.code != ErrorCode::DatabaseCorrupt => {
                        Err(rusqlite::Error::SqliteFailure(error, None))
                    }
                    read => Ok((partition, read.map_err(|error| error.to_string()))),
                })
                .collect()
        })
        .await
    }
}

/// All that is asked for is in the index, so the table is not looked at.
const INDEXED_PLACES: &str = "select position, rowid from events indexed by sqlite_autoindex_events_1 \
                              where partition = ? and position <= ?";

fn indexed_places(connection: &Connection, partition: Partition, to: Position) -> rusqlite::Result<PlaceSum> {
    let mut statement = connection.prepare(INDEXED_PLACES)?;
    let mut found = statement.query((partition.number(), stored(to.0)))?;
    let mut sum = PlaceSum::default();
    while let Some(row) = found.next()? {
        sum.add(row.get(0)?, row.get(1)?);
    }
    Ok(sum)
}

impl Sweeper {
    /// Adds the rows of a chunk. Tells where they are, as far as that is wanted.
    pub(crate) async fn read(&mut self, number: u64, chunk: &mut Chunk) -> Result<Box<PlaceSums>, StoreError> {
        let (file, connection, extent, to) = (self.file.clone(), self.connection.take(), self.extent, self.to.clone());
        let (mut bytes, mut ends) = (std::mem::take(&mut chunk.bytes), std::mem::take(&mut chunk.ends));
        let task = tokio::task::spawn_blocking(move || {
            let connection = connection.map_or_else(|| open(&file, SMALL_CACHE_KIB), Ok)?;
            let places = read(&connection, extent, to.as_deref(), number, (&mut bytes, &mut ends))?;
            Ok::<_, rusqlite::Error>((connection, bytes, ends, places))
        });
        let lost = |_| StoreError::Inconsistent("reading the log ended early".to_owned());
        let (connection, bytes, ends, places) = task.await.map_err(lost)?.map_err(failed)?;
        self.connection = Some(connection);
        (chunk.bytes, chunk.ends) = (bytes, ends);
        Ok(places)
    }
}

fn read(
    connection: &Connection,
    extent: Extent,
    to: Option<&[Position; PARTITIONS]>,
    number: u64,
    (bytes, ends): (&mut Vec<u8>, &mut Vec<usize>),
) -> rusqlite::Result<Box<PlaceSums>> {
    let sql = format!("select {}, rowid from events where rowid >= ? and rowid < ?", extent.columns());
    let mut statement = connection.prepare(&sql)?;
    let columns = statement.column_count() - 1;
    // Row numbers below 1 are not given by the ledger, and there are few if any.
    let first = if number == 0 { i64::MIN } else { stored(number * ROWS) };
    let mut found = statement.query((first, stored((number + 1) * ROWS)))?;
    let mut places = Box::new([PlaceSum::default(); PARTITIONS]);
    while let Some(row) = found.next()? {
        if let Some(to) = to {
            let (partition, position) = extent.place_columns();
            let partition = row.get_ref(partition)?.as_i64().ok().and_then(|number| usize::try_from(number).ok());
            let position = row.get_ref(position)?.as_i64().ok();
            if let Some((partition, position)) = partition.filter(|number| *number < PARTITIONS).zip(position)
                && position <= stored(to[partition].0)
            {
                places[partition].add(position, row.get(columns)?);
            }
        }
        let start = bytes.len();
        let mut copy = Copy(bytes);
        copy.columns(columns);
        if copy.row(row, extent).is_err() {
            // A row that is no event: where it stands is all that is said of it.
            bytes.truncate(start);
            let mut copy = Copy(bytes);
            copy.columns(2);
            let _ = copy.place(row, extent);
        }
        ends.push(bytes.len());
    }
    Ok(places)
}

impl Extent {
    /// Where the partition and the position stand among the columns.
    const fn place_columns(self) -> (usize, usize) {
        match self {
            Self::Whole => (WHOLE_PARTITION, 0),
            Self::Fold => (0, 1),
        }
    }
}

/// A row in the making, in the form of PostgreSQL's COPY.
pub(super) struct Copy<'b>(pub(super) &'b mut Vec<u8>);

/// Those of [`COLUMNS`](crate::row::COLUMNS).
const WHOLE: [As; 32] = [
    Number, Number, Number, Number, Number, Number, Number, Number, Number, Number, Time, Time, Id, Id, Id, Id, Id,
    Integer, Integer, Small, Small, Boolean, Text, Text, Text, Text, Text, Text, Text, Text, Text, Bytes,
];
/// Which of them is the partition.
const WHOLE_PARTITION: usize = 19;
/// Those of [`COLUMNS_OF_A_FOLD`](crate::copied::COLUMNS_OF_A_FOLD).
const FOLD: [As; 20] = [
    Small, Number, Number, Number, Number, Number, Number, Number, Number, Time, Id, Id, Boolean, Text, Text, Text,
    Time, Id, Text, Text,
];

impl Copy<'_> {
    pub(super) fn columns(&mut self, count: usize) {
        self.0.extend_from_slice(&u16::try_from(count).unwrap_or(0).to_be_bytes());
    }

    fn row(&mut self, row: &Row<'_>, extent: Extent) -> Result<(), Damage> {
        let columns: &[As] = match extent {
            Extent::Whole => &WHOLE,
            Extent::Fold => &FOLD,
        };
        columns.iter().enumerate().try_for_each(|(index, column)| self.column(row, index, *column))
    }

    fn place(&mut self, row: &Row<'_>, extent: Extent) -> Result<(), Damage> {
        let (partition, position) = extent.place_columns();
        self.column(row, partition, Small)?;
        self.column(row, position, Number)
    }

    pub(super) fn column(&mut self, row: &Row<'_>, index: usize, form: As) -> Result<(), Damage> {
        // Which column it is matters to nobody: whoever finds the row damaged reads it again.
        let damaged = |_| ("events", "cannot be read".to_owned());
        let out_of_range = |_| ("events", "is out of range".to_owned());
        let value = row.get_ref(index).map_err(|_| ("events", "is not there".to_owned()))?;
        if value == ValueRef::Null {
            self.0.extend_from_slice(&(-1_i32).to_be_bytes());
            return Ok(());
        }
        match form {
            Number => self.value(&value.as_i64().map_err(damaged)?.to_be_bytes()),
            Integer => {
                let number = i32::try_from(value.as_i64().map_err(damaged)?).map_err(out_of_range)?;
                self.value(&number.to_be_bytes());
            }
            Small => {
                let number = i16::try_from(value.as_i64().map_err(damaged)?).map_err(out_of_range)?;
                self.value(&number.to_be_bytes());
            }
            Boolean => {
                let is_so = rows::boolean("events", value.as_i64().map_err(damaged)?)?;
                self.value(&[u8::from(is_so)]);
            }
            Id => self.value(rows::uuid("events", value.as_str().map_err(damaged)?)?.as_bytes()),
            Time => {
                let time: Timestamp = rows::time("events", value.as_str().map_err(damaged)?)?;
                self.value(&(time.micros() - YEAR_2000_MICROS).to_be_bytes());
            }
            Text => self.value(value.as_str().map_err(damaged)?.as_bytes()),
            Bytes => self.value(value.as_blob().map_err(damaged)?),
        }
        Ok(())
    }

    fn value(&mut self, bytes: &[u8]) {
        let length = i32::try_from(bytes.len()).expect("values are far below 2 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_in_the_index_are_told_by_the_index_alone() {
        let connection = Connection::open_in_memory().expect("SQLite");
        connection.execute_batch(include_str!("../../../migrations/sqlite/0001_ledger.sql")).expect("the schema");
        let plan: String = connection
            .query_row(&format!("explain query plan {INDEXED_PLACES}"), (1, 2), |row| row.get(3))
            .expect("a plan");
        assert_eq!(plan, "SEARCH events USING COVERING INDEX sqlite_autoindex_events_1 (partition=? AND position<?)");
    }
}
