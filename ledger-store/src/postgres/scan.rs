//! Reads the log in bulk: pages come by COPY in its binary format and are decoded by hand, which costs a fraction of what a
//! query with a result row of 32 columns does (<https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY>).

use futures::TryStreamExt;
use ledger_core::{Event, Partition, Position};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolCopyExt},
};

use super::{Postgres, doubt::Doubt};
use crate::{
    DamagedRow, StoreError,
    copied::{self, Row},
    row::{COLUMN_COUNT, Texts},
    scan::Rows,
    sweep::READERS_MAX,
};

/// Pages are read by the primary key, whatever the planner thinks of a partition's rows: they lie all over the table, and
/// it would sort the whole partition for each page.
///
/// Several connections read at a time: workers besides would only stand in each other's way.
const BY_PRIMARY_KEY: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("max_parallel_workers_per_gather", "0"),
];
/// Readers of a sweep keep theirs to its end; some are left for who reads beside them.
const CONNECTIONS_MAX: u32 = 8;
const _: () = assert!(READERS_MAX + 2 <= CONNECTIONS_MAX as usize);

/// Connections that read in bulk.
pub(super) fn pool(options: &PgConnectOptions, doubt: &Doubt) -> PgPool {
    super::pool(CONNECTIONS_MAX, options, doubt).connect_lazy_with(options.clone().options(BY_PRIMARY_KEY))
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
        let columns = columns.replace(", partition", "");
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
        while let Some(message) = messages.try_next().await? {
            if let Some(row) = copied::rows(&message) {
                rows.push(read(row, partition, &mut self.texts)?);
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
    let mut row = Row::new(bytes);
    if row.columns() != Some(COLUMN_COUNT - 1) {
        return Err(malformed());
    }
    let position = row.position().ok_or_else(malformed)?;
    let fields = row.event(position, Some(partition));
    Ok(fields
        .map_err(|(column, reason)| DamagedRow { partition, position, column, reason })
        .and_then(|row| row.into_event_sharing(texts)))
}
