//! Reads the log in bulk: pages come by COPY in its binary format and are decoded by hand, which costs a fraction of what a
//! query with a result row of 32 columns does (<https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY>).

use futures::TryStreamExt;
use ledger_core::{Event, Partition, Position, Timestamp};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolCopyExt, PgPoolOptions},
};
use uuid::Uuid;

use super::{ACQUIRE_TIMEOUT, Postgres, copy::YEAR_2000_MICROS};
use crate::{
    DamagedRow, StoreError,
    row::{COLUMN_COUNT, Damage, EventRow, Texts},
    scan::Rows,
};

/// Before the first row: the signature, flags, and the length of an extension that there is not.
const HEADER_BYTES: usize = 19;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// After the last row.
const TRAILER: &[u8] = &[0xff, 0xff];

/// Pages are read by the primary key, whatever the planner thinks of a partition's rows: they lie all over the table, and
/// it would sort the whole partition for each page.
const BY_PRIMARY_KEY: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("enable_bitmapscan", "off"), ("enable_sort", "off")];
/// One for each partition that is read at a time.
const CONNECTIONS_MAX: u32 = 8;

/// Connections that read in bulk.
pub(super) fn pool(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(options.clone().options(BY_PRIMARY_KEY))
}

/// Reads page after page.
#[derive(Debug)]
pub(crate) struct Reader {
    pool: PgPool,
    /// Without the partition: it is the one that was asked for.
    columns: String,
    texts: Texts,
}

impl Postgres {
    /// A reader of these columns, in the place of [`COLUMNS`](crate::row::COLUMNS).
    pub(crate) fn reader(&self, columns: String) -> Reader {
        let columns = columns.trim_start_matches("partition, ").to_owned();
        Reader { pool: self.bulk.clone(), columns, texts: Texts::default() }
    }
}

impl Reader {
    /// At most `limit` rows after `after`, up to and with `to`, in order.
    pub(crate) async fn page(
        &mut self,
        partition: Partition,
        after: Position,
        to: Position,
        limit: usize,
    ) -> Result<Rows, StoreError> {
        let to = i64::try_from(to.0).unwrap_or(i64::MAX);
        let columns = &self.columns;
        let copy = format!(
            "copy (select {columns} from events where partition = {partition} and position > {after} and position <= {to} \
             order by position limit {limit}) to stdout (format binary)"
        );
        let mut messages = self.pool.copy_out_raw(&copy).await?;
        let mut rows =
            Vec::with_capacity(limit.min(1 + usize::try_from(to.saturating_sub_unsigned(after.0)).unwrap_or(0)));
        let mut is_first = true;
        // The protocol sends each row in a message of its own; the header comes with the first of them.
        while let Some(message) = messages.try_next().await? {
            let mut bytes = &*message;
            if std::mem::take(&mut is_first) && bytes.starts_with(SIGNATURE) {
                bytes = bytes.get(HEADER_BYTES..).ok_or_else(malformed)?;
            }
            if !bytes.is_empty() && bytes != TRAILER {
                rows.push(read(bytes, partition, &mut self.texts)?);
            }
        }
        Ok(rows)
    }
}

fn malformed() -> StoreError {
    StoreError::Inconsistent("the database sent a copy of events that cannot be read".to_owned())
}

/// Reads a row of the columns [`COLUMNS`](crate::row::COLUMNS) but the partition.
fn read(bytes: &[u8], partition: Partition, texts: &mut Texts) -> Result<Result<Event, DamagedRow>, StoreError> {
    let mut row = Row(bytes);
    let columns: [u8; 2] = row.take().ok_or_else(malformed)?;
    if usize::from(u16::from_be_bytes(columns)) != COLUMN_COUNT - 1 {
        return Err(malformed());
    }
    let position =
        row.number("position").ok().and_then(|position| u64::try_from(position).ok()).ok_or_else(malformed)?;
    let position = Position(position);
    let fields = |row: &mut Row<'_>, texts: &mut Texts| -> Result<Result<Event, DamagedRow>, Damage> {
        // In the order of the columns.
        Ok(EventRow {
            partition,
            position,
            previous_position: row.number("previous_position")?,
            epoch: row.number("epoch")?,
            version: row.number("version")?,
            amount: row.optional("amount", number)?,
            released: row.number("released")?,
            remaining: row.optional("remaining", number)?,
            balance: row.number("balance")?,
            frozen: row.number("frozen")?,
            expires_at: row.optional("expires_at", time)?,
            recorded_at: row.required("recorded_at", time)?,
            transaction_id: row.required("transaction_id", uuid)?,
            account_id: row.required("account_id", uuid)?,
            related_id: row.optional("related_id", uuid)?,
            operation_id: row.required("operation_id", uuid)?,
            batch_id: row.optional("batch_id", uuid)?,
            batch_size: row.optional("batch_size", integer)?,
            batch_index: row.optional("batch_index", integer)?,
            schema_version: row.required("schema_version", small)?,
            locked: row.required("locked", boolean)?,
            event_type: row.required("type", text)?,
            user_id: row.required("user_id", text)?,
            credit_type: row.required("credit_type", text)?,
            business_code: row.required("business_code", text)?,
            business_id: row.required("business_id", text)?,
            request_id: row.required("request_id", text)?,
            actor: row.required("actor", text)?,
            description: row.optional("description", text)?,
            metadata: row.optional("metadata", text)?,
            hash: row.required("hash", |_, bytes| Ok(bytes))?,
            available: row.number("available")?,
        }
        .into_event_sharing(texts))
    };
    Ok(fields(&mut row, texts)
        .unwrap_or_else(|(column, reason)| Err(DamagedRow { partition, position, column, reason })))
}

/// The columns of a row that were not read yet: each its length (4 bytes, -1 for null) and its bytes.
struct Row<'r>(&'r [u8]);

type Read<'r, T> = fn(&'static str, &'r [u8]) -> Result<T, Damage>;

impl<'r> Row<'r> {
    fn take<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// The next column; none when it is null.
    fn value(&mut self, column: &'static str) -> Result<Option<&'r [u8]>, Damage> {
        let cut_off = || (column, "cannot be read: the row ends before it".to_owned());
        let length = i32::from_be_bytes(self.take().ok_or_else(cut_off)?);
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let (value, rest) = self.0.split_at_checked(length).ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(Some(value))
    }

    fn optional<T>(&mut self, column: &'static str, read: Read<'r, T>) -> Result<Option<T>, Damage> {
        self.value(column)?.map(|value| read(column, value)).transpose()
    }

    fn required<T>(&mut self, column: &'static str, read: Read<'r, T>) -> Result<T, Damage> {
        self.optional(column, read)?.ok_or_else(|| (column, "cannot be read: it is null".to_owned()))
    }

    fn number(&mut self, column: &'static str) -> Result<i64, Damage> {
        self.required(column, number)
    }
}

fn fixed<const BYTES: usize>(column: &'static str, bytes: &[u8]) -> Result<[u8; BYTES], Damage> {
    bytes.try_into().map_err(|_| (column, format!("cannot be read: it has {} bytes instead of {BYTES}", bytes.len())))
}

fn number(column: &'static str, bytes: &[u8]) -> Result<i64, Damage> {
    Ok(i64::from_be_bytes(fixed(column, bytes)?))
}

fn integer(column: &'static str, bytes: &[u8]) -> Result<i64, Damage> {
    Ok(i32::from_be_bytes(fixed(column, bytes)?).into())
}

fn small(column: &'static str, bytes: &[u8]) -> Result<i64, Damage> {
    Ok(i16::from_be_bytes(fixed(column, bytes)?).into())
}

fn boolean(column: &'static str, bytes: &[u8]) -> Result<bool, Damage> {
    Ok(fixed::<1>(column, bytes)? != [0])
}

fn uuid(column: &'static str, bytes: &[u8]) -> Result<Uuid, Damage> {
    Ok(Uuid::from_bytes(fixed(column, bytes)?))
}

fn time(column: &'static str, bytes: &[u8]) -> Result<Timestamp, Damage> {
    let micros = number(column, bytes)?;
    micros
        .checked_add(YEAR_2000_MICROS)
        .and_then(Timestamp::from_micros)
        .ok_or_else(|| (column, format!("is {micros} microseconds from the year 2000, outside the years 1970 to 9999")))
}

fn text<'r>(column: &'static str, bytes: &'r [u8]) -> Result<&'r str, Damage> {
    std::str::from_utf8(bytes).map_err(|error| (column, format!("cannot be read: {error}")))
}
