//! Reads the log in bulk, by a connection of its own that lends each column as it lies in the page: the driver for all
//! else copies every column of every row and hands it to another thread, which costs several times the reading.

use ledger_core::{Event, Partition, Position};
use rusqlite::{Connection, OpenFlags, types::ValueRef};
use uuid::Uuid;

use super::{BUSY_TIMEOUT, Sqlite, rows};
use crate::{
    DamagedRow, StoreError,
    row::{Damage, EventRow, Texts, stored},
    scan::Rows,
};

/// What the connection keeps of the file in memory. Enough for the inner pages of a
/// large table and its index; of the others, each is visited once for each partition.
const CACHE_KIB: i64 = 16_384;
/// For who reads rows one after another as they lie, and comes to no page twice but for those above them.
pub(super) const SMALL_CACHE_KIB: i64 = 1_024;

/// Reads page after page.
#[derive(Debug)]
pub(crate) struct Reader {
    file: std::sync::Arc<str>,
    /// Opened when it is needed first.
    connection: Option<Connection>,
    columns: String,
    texts: Texts,
}

impl Sqlite {
    /// A reader of these columns, in the place of [`COLUMNS`](crate::row::COLUMNS).
    pub(crate) fn reader(&self, columns: String) -> Reader {
        Reader { file: self.file.clone(), connection: None, columns, texts: Texts::default() }
    }
}

impl Reader {
    /// At most `limit` rows after `after`, up to and with `to`, in order. Blocks.
    pub(crate) fn page(
        &mut self,
        partition: Partition,
        after: Position,
        to: Position,
        limit: usize,
    ) -> Result<Rows, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => open(&self.file, CACHE_KIB).map_err(failed)?,
        };
        let page = self.read(&connection, partition, after, to, limit);
        self.connection = Some(connection);
        page
    }

    fn read(
        &mut self,
        connection: &Connection,
        partition: Partition,
        after: Position,
        to: Position,
        limit: usize,
    ) -> Result<Rows, StoreError> {
        let sql = format!(
            "select {} from events where partition = ? and position > ? and position <= ? order by position limit ?",
            self.columns
        );
        let mut statement = connection.prepare(&sql).map_err(failed)?;
        let (to, limit) = (i64::try_from(to.0).unwrap_or(i64::MAX), i64::try_from(limit).unwrap_or(i64::MAX));
        let mut found = statement.query((partition.number(), stored(after.0), to, limit)).map_err(failed)?;
        let mut rows = Vec::new();
        while let Some(row) = found.next().map_err(failed)? {
            rows.push(read(row, partition, &mut self.texts)?);
        }
        Ok(rows)
    }
}

pub(super) fn open(file: &str, cache_kib: i64) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "query_only", true)?;
    // Negative, as SQLite tells KiB from pages.
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    Ok(connection)
}

pub(super) fn failed(error: rusqlite::Error) -> StoreError {
    error.into()
}

/// Reads a row of the columns [`COLUMNS`](crate::row::COLUMNS).
fn read(
    row: &rusqlite::Row<'_>,
    partition: Partition,
    texts: &mut Texts,
) -> Result<Result<Event, DamagedRow>, StoreError> {
    let position: i64 = row.get(0).map_err(failed)?;
    let position = u64::try_from(position)
        .map(Position)
        .map_err(|_| StoreError::Inconsistent(format!("events holds a row at position {position} of no partition")))?;
    let fields = |texts: &mut Texts| -> Result<Result<Event, DamagedRow>, Damage> {
        Ok(EventRow {
            partition,
            position,
            previous_position: required(row, 1, "previous_position", number)?,
            epoch: required(row, 2, "epoch", number)?,
            version: required(row, 3, "version", number)?,
            amount: optional(row, 4, "amount", number)?,
            released: required(row, 5, "released", number)?,
            remaining: optional(row, 6, "remaining", number)?,
            balance: required(row, 7, "balance", number)?,
            frozen: required(row, 8, "frozen", number)?,
            expires_at: optional(row, 10, "expires_at", text)?
                .map(|text| rows::time("expires_at", text))
                .transpose()?,
            recorded_at: rows::time("recorded_at", required(row, 11, "recorded_at", text)?)?,
            transaction_id: required(row, 12, "transaction_id", uuid)?,
            account_id: required(row, 13, "account_id", uuid)?,
            related_id: optional(row, 14, "related_id", uuid)?,
            operation_id: required(row, 15, "operation_id", uuid)?,
            batch_id: optional(row, 16, "batch_id", uuid)?,
            batch_size: optional(row, 17, "batch_size", number)?,
            batch_index: optional(row, 18, "batch_index", number)?,
            schema_version: required(row, 20, "schema_version", number)?,
            locked: rows::boolean("locked", required(row, 21, "locked", number)?)?,
            event_type: required(row, 22, "type", text)?,
            user_id: required(row, 23, "user_id", text)?,
            credit_type: required(row, 24, "credit_type", text)?,
            business_code: required(row, 25, "business_code", text)?,
            business_id: required(row, 26, "business_id", text)?,
            request_id: required(row, 27, "request_id", text)?,
            actor: required(row, 28, "actor", text)?,
            description: optional(row, 29, "description", text)?,
            metadata: optional(row, 30, "metadata", text)?,
            hash: required(row, 31, "hash", blob)?,
            available: required(row, 9, "available", number)?,
        }
        .into_event_sharing(texts))
    };
    Ok(fields(texts).unwrap_or_else(|(column, reason)| Err(DamagedRow { partition, position, column, reason })))
}

type Read<'r, T> = fn(&'static str, ValueRef<'r>) -> Result<T, Damage>;

fn optional<'r, T>(
    row: &'r rusqlite::Row<'_>,
    index: usize,
    column: &'static str,
    read: Read<'r, T>,
) -> Result<Option<T>, Damage> {
    match row.get_ref(index) {
        Ok(ValueRef::Null) => Ok(None),
        Ok(value) => read(column, value).map(Some),
        Err(error) => Err((column, format!("cannot be read: {error}"))),
    }
}

fn required<'r, T>(
    row: &'r rusqlite::Row<'_>,
    index: usize,
    column: &'static str,
    read: Read<'r, T>,
) -> Result<T, Damage> {
    optional(row, index, column, read)?.ok_or_else(|| (column, "cannot be read: it is null".to_owned()))
}

fn number(column: &'static str, value: ValueRef<'_>) -> Result<i64, Damage> {
    value.as_i64().map_err(|error| (column, format!("cannot be read: {error}")))
}

fn text<'r>(column: &'static str, value: ValueRef<'r>) -> Result<&'r str, Damage> {
    value.as_str().map_err(|error| (column, format!("cannot be read: {error}")))
}

fn blob<'r>(column: &'static str, value: ValueRef<'r>) -> Result<&'r [u8], Damage> {
    value.as_blob().map_err(|error| (column, format!("cannot be read: {error}")))
}

fn uuid(column: &'static str, value: ValueRef<'_>) -> Result<Uuid, Damage> {
    rows::uuid(column, text(column, value)?)
}
