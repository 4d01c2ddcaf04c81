//! Rows of the read models as PostgreSQL's COPY takes them in its binary format
//! (<https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY>).

use ledger_core::{Balance, Freeze, Timestamp};
use uuid::Uuid;

use crate::row::stored;

/// Before the first row: the signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// PostgreSQL counts microseconds from 2000-01-01T00:00:00Z.
const YEAR_2000_MICROS: i64 = 946_684_800_000_000;

/// Rows in the making.
pub(super) struct Rows(Vec<u8>);

impl Rows {
    pub(super) fn begin() -> Self {
        Self(HEADER.to_vec())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What was written so far; more may follow.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// The rest, with the end of the copy.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&(-1_i16).to_be_bytes());
        self.0
    }

    /// Adds a row of [`crate::row::BALANCE_COLUMNS`].
    pub(super) fn add_balance(&mut self, balance: &Balance) {
        let (account, state) = (&balance.account, &balance.state);
        self.columns(11)
            .bytes(&i16::from(account.partition().number()).to_be_bytes())
            .uuid(account.id().uuid())
            .number(balance.position.0)
            .number(state.version)
            .number(state.balance)
            .number(state.frozen)
            .number(state.available())
            .time(balance.updated_at)
            .text(balance.status())
            .text(account.user_id())
            .text(account.credit_type());
    }

    /// Adds a row of [`crate::row::FREEZE_COLUMNS`].
    pub(super) fn add_freeze(&mut self, freeze: &Freeze) {
        let account = &freeze.account;
        let row = self
            .columns(15)
            .bytes(&i16::from(account.partition().number()).to_be_bytes())
            .number(freeze.position.0)
            .number(freeze.amount)
            .number(freeze.remaining)
            .number(freeze.captured)
            .number(freeze.released);
        match freeze.expires_at {
            Some(at) => row.time(at),
            None => row.null(),
        }
        .time(freeze.created_at)
        .uuid(freeze.freeze_id.uuid())
        .uuid(account.id().uuid())
        .text(freeze.status())
        .text(account.user_id())
        .text(account.credit_type())
        .text(freeze.key.code())
        .text(freeze.key.id());
    }

    fn columns(&mut self, count: i16) -> &mut Self {
        self.0.extend_from_slice(&count.to_be_bytes());
        self
    }

    fn null(&mut self) -> &mut Self {
        self.0.extend_from_slice(&(-1_i32).to_be_bytes());
        self
    }

    fn number(&mut self, value: u64) -> &mut Self {
        self.bytes(&stored(value).to_be_bytes())
    }

    fn time(&mut self, time: Timestamp) -> &mut Self {
        self.bytes(&(time.micros() - YEAR_2000_MICROS).to_be_bytes())
    }

    fn uuid(&mut self, id: Uuid) -> &mut Self {
        self.bytes(id.as_bytes())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A value's length and its bytes.
    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let length = i32::try_from(value.len()).expect("values are far below 2 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }
}
