//! A row of events as PostgreSQL's COPY writes it in its binary format: how many columns there are (2 bytes), and of each its
//! length (4 bytes, -1 for null) and its bytes (<https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY>).
//! Rows of a sweep are kept like this whichever database they come from.
//!
//! Each column is read by a call of its own, in the order of the columns; where it cannot be read, the error names it and
//! says why.

use ledger_core::{Partition, Position, Timestamp};
use uuid::Uuid;

use crate::row::{Damage, EventRow};

/// Before the first row: the signature, flags, and the length of an extension that there is not.
const HEADER_BYTES: usize = 19;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// After the last row.
const TRAILER: &[u8] = &[0xff, 0xff];

/// The row in a message of PostgreSQL's protocol, which sends each row in one of its own; the header comes with the first
/// of them. None in a message without a row.
#[must_use]
pub fn rows(message: &[u8]) -> Option<&[u8]> {
    let row = match message.strip_prefix(SIGNATURE) {
        Some(_) => message.get(HEADER_BYTES..).unwrap_or_default(),
        None => message,
    };
    (!row.is_empty() && row != TRAILER).then_some(row)
}

/// PostgreSQL counts microseconds from 2000-01-01T00:00:00Z.
pub(crate) const YEAR_2000_MICROS: i64 = 946_684_800_000_000;

/// How COPY writes a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// A `bigint`.
    Number,
    /// An `integer`.
    Integer,
    /// A `smallint`.
    Small,
    /// A `boolean`.
    Boolean,
    /// A `uuid`.
    Id,
    /// A `timestamptz`.
    Time,
    /// A `text`.
    Text,
    /// A `bytea`.
    Bytes,
}

/// The columns that a fold of balances and freezes needs. What only some events are asked for is null in the others: the
/// names of an account come with its first event, what a freeze is made of with events that leave something frozen.
pub(crate) const COLUMNS_OF_A_FOLD: &str = "partition, position, previous_position, version, amount, released, \
     remaining, balance, frozen, recorded_at, account_id, related_id, locked, type, \
     case when version = 1 then user_id end, case when version = 1 then credit_type end, \
     case when frozen > 0 then expires_at end, case when frozen > 0 then transaction_id end, \
     case when frozen > 0 then business_code end, case when frozen > 0 then business_id end";
/// How many they are.
pub(crate) const COLUMNS_OF_A_FOLD_COUNT: usize = 20;

/// The columns of a row that were not read yet.
#[derive(Debug)]
pub struct Row<'r>(&'r [u8]);

impl<'r> Row<'r> {
    /// A row of which nothing was read.
    #[must_use]
    pub const fn new(bytes: &'r [u8]) -> Self {
        Self(bytes)
    }

    /// How many columns there are: what a row begins with.
    pub fn columns(&mut self) -> Option<usize> {
        self.take().map(|columns| usize::from(u16::from_be_bytes(columns)))
    }

    /// The next column, as a partition.
    pub(crate) fn partition(&mut self) -> Option<Partition> {
        let number = self.required("partition", small).ok()?;
        u8::try_from(number).ok().and_then(Partition::new)
    }

    /// The next column, as a position.
    pub(crate) fn position(&mut self) -> Option<Position> {
        self.number("position").ok().and_then(|position| u64::try_from(position).ok()).map(Position)
    }

    /// The other columns of [`COLUMNS`](crate::row::COLUMNS), in their order; the partition is not among them where it is
    /// known.
    #[inline(always)]
    pub(crate) fn event(&mut self, position: Position, known: Option<Partition>) -> Result<EventRow<'r>, Damage> {
        Ok(EventRow {
            position,
            previous_position: self.number("previous_position")?,
            epoch: self.number("epoch")?,
            version: self.number("version")?,
            amount: self.optional("amount", number)?,
            released: self.number("released")?,
            remaining: self.optional("remaining", number)?,
            balance: self.number("balance")?,
            frozen: self.number("frozen")?,
            available: self.number("available")?,
            expires_at: self.optional("expires_at", time)?,
            recorded_at: self.required("recorded_at", time)?,
            transaction_id: self.required("transaction_id", uuid)?,
            account_id: self.required("account_id", uuid)?,
            related_id: self.optional("related_id", uuid)?,
            operation_id: self.required("operation_id", uuid)?,
            batch_id: self.optional("batch_id", uuid)?,
            batch_size: self.optional("batch_size", integer)?,
            batch_index: self.optional("batch_index", integer)?,
            partition: match known {
                Some(partition) => partition,
                None => self.partition().ok_or(("partition", "is none".to_owned()))?,
            },
            schema_version: self.required("schema_version", small)?,
            locked: self.required("locked", boolean)?,
            event_type: self.required("type", text)?,
            user_id: self.required("user_id", text)?,
            credit_type: self.required("credit_type", text)?,
            business_code: self.required("business_code", text)?,
            business_id: self.required("business_id", text)?,
            request_id: self.required("request_id", text)?,
            actor: self.required("actor", text)?,
            description: self.optional("description", text)?,
            metadata: self.optional("metadata", text)?,
            hash: self.required("hash", |_, bytes| Ok(bytes))?,
        })
    }

    /// The other columns of [`COLUMNS_OF_A_FOLD`], in their order. What is not among them is empty, or what it must be.
    pub(crate) fn event_of_a_fold(&mut self, partition: Partition, position: Position) -> Result<EventRow<'r>, Damage> {
        let previous_position = self.number("previous_position")?;
        let version = self.number("version")?;
        let amount = self.optional("amount", number)?;
        let released = self.number("released")?;
        let remaining = self.optional("remaining", number)?;
        let (balance, frozen) = (self.number("balance")?, self.number("frozen")?);
        let recorded_at = self.required("recorded_at", time)?;
        let account_id = self.required("account_id", uuid)?;
        let related_id = self.optional("related_id", uuid)?;
        let locked = self.required("locked", boolean)?;
        let event_type = self.required("type", text)?;
        let user_id = self.optional("user_id", text)?.unwrap_or_default();
        let credit_type = self.optional("credit_type", text)?.unwrap_or_default();
        let expires_at = self.optional("expires_at", time)?;
        let transaction_id = self.optional("transaction_id", uuid)?.unwrap_or(account_id);
        let business_code = self.optional("business_code", text)?.unwrap_or_default();
        let business_id = self.optional("business_id", text)?.unwrap_or_default();
        Ok(EventRow {
            partition,
            position,
            previous_position,
            epoch: 0,
            version,
            amount,
            released,
            remaining,
            balance,
            frozen,
            expires_at,
            recorded_at,
            transaction_id,
            account_id,
            related_id,
            operation_id: transaction_id,
            batch_id: None,
            batch_size: None,
            batch_index: None,
            schema_version: 0,
            locked,
            event_type,
            user_id,
            credit_type,
            business_code,
            business_id,
            request_id: "",
            actor: "",
            description: None,
            metadata: None,
            hash: &[0; 32],
            available: balance.saturating_sub(frozen),
        })
    }

    /// Passes over some columns.
    pub(crate) fn skip(&mut self, columns: usize) -> Option<()> {
        (0..columns).try_for_each(|_| self.value("").map(drop)).ok()
    }

    fn take<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// The next column; none when it is null. Inlined with what reads it: a row has thirty columns, and a replay millions of
    /// rows.
    #[inline(always)]
    fn value(&mut self, column: &'static str) -> Result<Option<&'r [u8]>, Damage> {
        let cut_off = || (column, "cannot be read: the row ends before it".to_owned());
        let length = i32::from_be_bytes(self.take().ok_or_else(cut_off)?);
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let (value, rest) = self.0.split_at_checked(length).ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(Some(value))
    }

    #[inline(always)]
    fn optional<T>(
        &mut self,
        column: &'static str,
        read: impl Fn(&'static str, &'r [u8]) -> Result<T, Damage>,
    ) -> Result<Option<T>, Damage> {
        match self.value(column)? {
            Some(value) => read(column, value).map(Some),
            None => Ok(None),
        }
    }

    #[inline(always)]
    fn required<T>(
        &mut self,
        column: &'static str,
        read: impl Fn(&'static str, &'r [u8]) -> Result<T, Damage>,
    ) -> Result<T, Damage> {
        match self.value(column)? {
            Some(value) => read(column, value),
            None => Err((column, "cannot be read: it is null".to_owned())),
        }
    }

    /// The next column, a `bigint`.
    #[inline(always)]
    pub fn number(&mut self, column: &'static str) -> Result<i64, Damage> {
        self.required(column, number)
    }

    /// The next column, a `smallint`.
    pub fn small(&mut self, column: &'static str) -> Result<i64, Damage> {
        self.required(column, small)
    }

    /// The next column, a `boolean`.
    pub fn boolean(&mut self, column: &'static str) -> Result<bool, Damage> {
        self.required(column, boolean)
    }

    /// The next column, a `uuid`.
    pub fn uuid(&mut self, column: &'static str) -> Result<Uuid, Damage> {
        self.required(column, uuid)
    }

    /// The next column, a `timestamptz` of the years 1970 to 9999.
    pub fn time(&mut self, column: &'static str) -> Result<Timestamp, Damage> {
        self.required(column, time)
    }

    /// The next column, a `timestamptz` that may be null.
    pub fn optional_time(&mut self, column: &'static str) -> Result<Option<Timestamp>, Damage> {
        self.optional(column, time)
    }

    /// The next column, a `text`.
    pub fn text(&mut self, column: &'static str) -> Result<&'r str, Damage> {
        self.required(column, text)
    }

    /// The next column, a `bytea`.
    pub fn bytes(&mut self, column: &'static str) -> Result<&'r [u8], Damage> {
        self.required(column, |_, bytes| Ok(bytes))
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
