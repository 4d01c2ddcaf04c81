//! Reading the log in bulk, partition by partition, in short transactions.
//!
//! Nothing is held in the database between pages: a replay of hours pins no row version and no write-ahead log. While a
//! page is looked at, the next one is read.

use ledger_core::{Event, Partition, Position};
use tokio::task::JoinHandle;

use crate::{
    DamagedRow, Database, StoreError, postgres,
    row::{COLUMNS, columns_of_a_fold},
    sqlite,
};

/// Rows of one page: some milliseconds of reading, some megabytes of memory.
const PAGE: usize = 8_000;

/// A reading of one partition's log in order, page by page.
#[derive(Debug)]
pub struct Scan {
    partition: Partition,
    after: Position,
    to: Position,
    /// Rows of one page.
    page: usize,
    next: Next,
}

/// Rows of a page, events and damages in order.
pub(crate) type Rows = Vec<Result<Event, DamagedRow>>;

#[derive(Debug)]
enum Next {
    /// Not asked for yet.
    Unread(Reader),
    /// Being read.
    Ahead(JoinHandle<Result<(Rows, Reader), StoreError>>),
    /// There is none, or the database failed.
    Ended,
}

#[derive(Debug)]
enum Reader {
    Postgres(postgres::Reader),
    Sqlite(sqlite::Reader),
}

impl Database {
    /// Reads the rows of a partition after `after`, up to and with `to`.
    #[must_use]
    pub fn scan(&self, partition: Partition, after: Position, to: Position) -> Scan {
        self.scan_columns(COLUMNS.to_owned(), partition, after, to)
    }

    /// The same for a fold of balances and freezes, which is quicker: what such a fold needs of each event, and its hash as
    /// it is stored. Operation, request, actor, description, metadata and batch are not the event's, and so its hash is not
    /// the one of its content.
    #[must_use]
    pub fn scan_for_fold(&self, partition: Partition, after: Position, to: Position) -> Scan {
        self.scan_columns(columns_of_a_fold(), partition, after, to)
    }

    fn scan_columns(&self, columns: String, partition: Partition, after: Position, to: Position) -> Scan {
        let reader = match self {
            Self::Postgres(database) => Reader::Postgres(database.reader(columns)),
            Self::Sqlite(database) => Reader::Sqlite(database.reader(columns)),
        };
        Scan { partition, after, to, page: PAGE, next: Next::Unread(reader) }
    }
}

impl Scan {
    /// The same in pages of so many rows, before the first is read: for who must not be in the way of others.
    #[must_use]
    pub fn in_pages_of(mut self, rows: usize) -> Self {
        self.page = rows;
        self
    }

    /// The next rows in order, damaged ones among them; none at the end.
    ///
    /// # Errors
    ///
    /// When the database cannot be read. Nothing more comes then.
    pub async fn next(&mut self) -> Result<Rows, StoreError> {
        let reading = match std::mem::replace(&mut self.next, Next::Ended) {
            Next::Unread(reader) if self.after < self.to => self.read(reader),
            Next::Unread(_) | Next::Ended => return Ok(Vec::new()),
            Next::Ahead(reading) => reading,
        };
        let lost = |_| StoreError::Inconsistent("reading the log ended early".to_owned());
        let (rows, reader) = reading.await.map_err(lost)??;
        let position = |row: &Result<Event, DamagedRow>| {
            row.as_ref().map_or_else(|damage| damage.position, |event| event.position)
        };
        if rows.len() == self.page {
            self.after = rows.last().map_or(self.to, position);
        } else {
            self.after = self.to;
        }
        if self.after < self.to {
            self.next = Next::Ahead(self.read(reader));
        }
        Ok(rows)
    }

    /// Begins to read a page.
    fn read(&self, reader: Reader) -> JoinHandle<Result<(Rows, Reader), StoreError>> {
        let (partition, after, to, page) = (self.partition, self.after, self.to, self.page);
        match reader {
            Reader::Postgres(mut reader) => tokio::spawn(async move {
                let rows = reader.page(partition, after, to, page).await?;
                Ok((rows, Reader::Postgres(reader)))
            }),
            Reader::Sqlite(mut reader) => tokio::task::spawn_blocking(move || {
                let rows = reader.page(partition, after, to, page)?;
                Ok((rows, Reader::Sqlite(reader)))
            }),
        }
    }
}
