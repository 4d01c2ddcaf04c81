//! The table from its first block to its last, by ranges of row places (`ctid`).

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Postgres as Driver, pool::PoolConnection};

use super::Postgres;
use crate::{
    StoreError, copied,
    sweep::{Chunk, Extent, Table},
};

/// Blocks of one chunk: some thousand rows, some milliseconds of reading.
const BLOCKS: u64 = 256;

/// Reads chunk after chunk by one connection.
#[derive(Debug)]
pub(crate) struct Sweeper {
    connection: PoolConnection<Driver>,
    columns: &'static str,
}

impl Postgres {
    /// The table and how many chunks it has by now. What is committed lies in blocks that were added before. Before PostgreSQL 14
    /// each chunk would be looked for in the whole table: there is none then.
    pub(crate) async fn table_to_sweep(&self) -> Result<Table, StoreError> {
        // Whatever puts all rows elsewhere writes another file.
        let sql = "select case when current_setting('server_version_num')::int >= 140000 \
            then pg_relation_size('events') / current_setting('block_size')::bigint else 0 end, \
            coalesce(pg_relation_filenode('events')::bigint, 0)";
        let (blocks, version): (i64, i64) = sqlx::query_as(sql).fetch_one(self.pool()).await?;
        Ok(Table { chunks: u64::try_from(blocks).unwrap_or(0).div_ceil(BLOCKS), version })
    }

    pub(crate) async fn sweeper(&self, extent: Extent) -> Result<Sweeper, StoreError> {
        let (mut connection, columns) = (self.bulk.acquire().await?, extent.columns());
        // A COPY that is refused leaves sqlx's connection out of step, so it is asked in another way whether the table is there.
        let sql = format!("select {columns} from events limit 0");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        Ok(Sweeper { connection, columns })
    }
}

impl Sweeper {
    /// Adds the rows of a chunk.
    pub(crate) async fn read(&mut self, number: u64, chunk: &mut Chunk) -> Result<(), StoreError> {
        let (columns, first) = (self.columns, number * BLOCKS);
        let end = first + BLOCKS;
        let copy = format!(
            "copy (select {columns} from events where ctid >= '({first},0)' and ctid < '({end},0)') \
             to stdout (format binary)"
        );
        let mut messages = self.connection.copy_out_raw(&copy).await?;
        while let Some(message) = messages.try_next().await? {
            if let Some(row) = copied::rows(&message) {
                chunk.bytes.extend_from_slice(row);
                chunk.ends.push(chunk.bytes.len());
            }
        }
        Ok(())
    }
}
