//! The table from its first row to its last, in the order in which rows were written.

use std::sync::Arc;

use ledger_core::Timestamp;
use rusqlite::{Connection, Row, types::ValueRef};

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
    sweep::{Chunk, Extent},
};

/// Row numbers of one chunk: some milliseconds of reading.
const ROWS: u64 = 4_096;

/// Reads chunk after chunk by one connection.
#[derive(Debug)]
pub(crate) struct Sweeper {
    file: Arc<str>,
    /// Opened when it is needed first.
    connection: Option<Connection>,
    extent: Extent,
}

impl Sqlite {
    /// How many chunks the table has by now.
    pub(crate) async fn sweep_chunks(&self) -> Result<u64, StoreError> {
        let last: Option<i64> = sqlx::query_scalar("select max(rowid) from events").fetch_one(self.readers()).await?;
        Ok(last.map_or(0, |last| u64::try_from(last).unwrap_or(0) / ROWS + 1))
    }

    pub(crate) fn sweeper(&self, extent: Extent) -> Sweeper {
        Sweeper { file: self.file.clone(), connection: None, extent }
    }
}

impl Sweeper {
    /// Adds the rows of a chunk.
    pub(crate) async fn read(&mut self, number: u64, chunk: &mut Chunk) -> Result<(), StoreError> {
        let (file, connection, extent) = (self.file.clone(), self.connection.take(), self.extent);
        let (mut bytes, mut ends) = (std::mem::take(&mut chunk.bytes), std::mem::take(&mut chunk.ends));
        let task = tokio::task::spawn_blocking(move || {
            let connection = connection.map_or_else(|| open(&file, SMALL_CACHE_KIB), Ok)?;
            read(&connection, extent, number, &mut bytes, &mut ends)?;
            Ok::<_, rusqlite::Error>((connection, bytes, ends))
        });
        let lost = |_| StoreError::Inconsistent("reading the log ended early".to_owned());
        let (connection, bytes, ends) = task.await.map_err(lost)?.map_err(failed)?;
        self.connection = Some(connection);
        (chunk.bytes, chunk.ends) = (bytes, ends);
        Ok(())
    }
}

fn read(
    connection: &Connection,
    extent: Extent,
    number: u64,
    bytes: &mut Vec<u8>,
    ends: &mut Vec<usize>,
) -> rusqlite::Result<()> {
    // Row numbers below 1 are not given by the ledger, which never writes any: such a row is missed as a gap is.
    let sql = format!("select {} from events where rowid >= ? and rowid < ?", extent.columns());
    let mut statement = connection.prepare(&sql)?;
    let columns = statement.column_count();
    let mut found = statement.query((stored(number * ROWS), stored((number + 1) * ROWS)))?;
    while let Some(row) = found.next()? {
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
    Ok(())
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
        let (partition, position) = match extent {
            Extent::Whole => (WHOLE_PARTITION, 0),
            Extent::Fold => (0, 1),
        };
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
