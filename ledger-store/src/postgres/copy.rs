//! Rows as PostgreSQL's COPY takes them in its binary format
//! (<https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY>): half the server's work of an insert.

use ledger_core::{Event, Timestamp};
use uuid::Uuid;

use crate::{
    copied::YEAR_2000_MICROS,
    row::{COLUMN_COUNT, stored},
};

/// Before the first row: the signature, no flags, no extension.
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// After the last row.
pub(super) const TRAILER: &[u8] = &(-1_i16).to_be_bytes();
/// Most events are no longer than this as a row.
const EVENT_BYTES: usize = 640;

/// Rows in the making. Their values are written one after the other, in the order of the COPY's columns.
#[derive(Debug)]
pub struct Rows(Vec<u8>);

impl Rows {
    /// No rows yet, with room for so many as long as events.
    #[must_use]
    pub fn new(events: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER.len() + events * EVENT_BYTES);
        bytes.extend_from_slice(HEADER);
        Self(bytes)
    }

    /// More rows of a COPY whose header is sent already.
    #[must_use]
    pub fn more(events: usize) -> Self {
        Self(Vec::with_capacity(events * EVENT_BYTES))
    }

    /// What is to be sent now; more follows.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Begins a row of so many columns.
    ///
    /// # Panics
    ///
    /// When there are more columns than any table has.
    pub fn row(&mut self, columns: usize) -> &mut Self {
        let columns = i16::try_from(columns).expect("tables have few columns");
        self.0.extend_from_slice(&columns.to_be_bytes());
        self
    }

    /// What is to be sent, with the end of the COPY.
    #[must_use]
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(TRAILER);
        self.0
    }

    /// Adds an event, in the order of [`crate::row::COLUMNS`].
    pub(super) fn add(&mut self, event: &Event) {
        let state = &event.after;
        self.row(COLUMN_COUNT)
            .number(stored(event.position.0))
            .number(stored(event.previous_position.0))
            .number(event.epoch.0.into())
            .number(stored(state.version))
            .optional(event.amount, |row, amount| row.number(stored(amount.units())))
            .number(stored(event.released))
            .optional(event.remaining, |row, remaining| row.number(stored(remaining)))
            .number(stored(state.balance))
            .number(stored(state.frozen))
            .number(stored(state.available()))
            .optional(event.expires_at, Self::time)
            .time(event.recorded_at)
            .uuid(event.transaction_id.uuid())
            .uuid(event.account.id().uuid())
            .optional(event.related_id, |row, id| row.uuid(id.uuid()))
            .uuid(event.operation_id)
            .optional(event.batch, |row, mark| row.uuid(mark.id))
            .optional(event.batch, |row, mark| row.integer(mark.size))
            .optional(event.batch, |row, mark| row.integer(mark.index))
            .small(event.partition.number().into())
            .small(i16::try_from(event.schema_version).expect("schema versions are small"))
            .bytes(&[state.locked.into()])
            .text(event.event_type.name())
            .text(event.account.user_id())
            .text(event.account.credit_type())
            .text(event.key.code())
            .text(event.key.id())
            .text(&event.request_id)
            .text(&event.actor)
            .optional(event.description.as_deref(), Self::text)
            .optional(event.metadata.as_deref(), Self::text)
            .bytes(&event.hash.0);
    }

    /// A `smallint`.
    pub fn small(&mut self, value: i16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn integer(&mut self, value: u32) -> &mut Self {
        self.bytes(&i32::try_from(value).expect("a batch's size fits an integer").to_be_bytes())
    }

    /// A `bigint`.
    pub fn number(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A `timestamptz`.
    pub fn time(&mut self, time: Timestamp) -> &mut Self {
        self.number(time.micros() - YEAR_2000_MICROS)
    }

    /// A `uuid`.
    pub fn uuid(&mut self, id: Uuid) -> &mut Self {
        self.bytes(id.as_bytes())
    }

    /// A `text`.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A value as `write` writes it, or null.
    pub fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T) -> &mut Self) -> &mut Self {
        match value {
            Some(value) => write(self, value),
            None => {
                self.0.extend_from_slice(&(-1_i32).to_be_bytes());
                self
            }
        }
    }

    /// A value's length and its bytes.
    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let length = i32::try_from(value.len()).expect("values are far below 2 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }
}
