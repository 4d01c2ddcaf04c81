//! The rows of the indexes on SQLite, read by a connection that lends each column as it lies in the page.

use std::sync::Arc;

use ledger_core::{Partition, Position};
use rusqlite::{Connection, OptionalExtension, Params, Row};
use uuid::Uuid;

use super::{Sqlite, id_of, scan};
use crate::{
    StoreError,
    index_rows::{AccountRow, IndexRows, KeyRow, KeySum, KeySums},
};

impl Sqlite {
    pub(crate) async fn index_rows(&self, partition: Partition) -> Result<IndexRows, StoreError> {
        let number = partition.number();
        self.read(move |connection| {
            // Dropping it rolls back: nothing was written.
            let transaction = connection.transaction()?;
            let checkpoint = "select position from index_checkpoints where partition = ?";
            let checkpoint = transaction.query_row(checkpoint, (number,), |row| row.get(0)).optional()?;
            let accounts = "select account_id, position, balance, frozen, version, locked, seal \
                            from account_positions where partition = ?";
            let related = "select original_position, position from related_positions where partition = ?";
            let history = "select account_id, version, position from history_positions where partition = ?";
            Ok(IndexRows {
                checkpoint,
                accounts: all(&transaction, accounts, (number,), account)?,
                related: all(&transaction, related, (number,), |row| Ok((row.get(0)?, row.get(1)?)))?,
                history: all(&transaction, history, (number,), |row| Ok((id(row)?, row.get(1)?, row.get(2)?)))?,
            })
        })
        .await
    }

    pub(crate) async fn key_rows(&self, partition: Partition, run: u32) -> Result<Vec<KeyRow>, StoreError> {
        let number = partition.number();
        let sql = "select business_hash, account_short, position from key_positions where partition = ? and run = ?";
        self.read(move |connection| all(connection, sql, (number, run), key)).await
    }

    pub(crate) async fn key_sums(&self, partitions: &[(Partition, Position)]) -> Result<Vec<KeySums>, StoreError> {
        let partitions = partitions.to_vec();
        self.read(move |connection| {
            partitions.into_iter().map(|(partition, to)| key_sums(connection, partition, to)).collect()
        })
        .await
    }

    pub(crate) async fn key_rows_past(
        &self,
        partition: Partition,
        last: u32,
        limit: usize,
    ) -> Result<Vec<KeyRow>, StoreError> {
        let number = partition.number();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |connection| {
            let rows = "select business_hash, account_short, position from key_positions where partition = ? and run";
            let sql = format!("select * from ({rows} < 0 limit ?) union all select * from ({rows} > ? limit ?)");
            let mut found = all(connection, &sql, (number, limit, number, last, limit), key)?;
            found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            Ok(found)
        })
        .await
    }

    /// Reads with a connection of its own, in a thread that may block.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file: Arc<str> = self.file.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut connection = scan::open(&file, scan::SMALL_CACHE_KIB).map_err(scan::failed)?;
            read(&mut connection).map_err(scan::failed)
        });
        match task.await {
            Ok(read) => read,
            // The runtime ends, and whoever waits here with it.
            Err(ended) if ended.is_cancelled() => std::future::pending().await,
            Err(_) => Err(StoreError::Inconsistent("reading the indexes ended early".to_owned())),
        }
    }
}

fn key_sums(connection: &Connection, partition: Partition, to: Position) -> rusqlite::Result<KeySums> {
    let sql = "select business_hash, account_short, position, run from key_positions where partition = ? order by run";
    let mut statement = connection.prepare(sql)?;
    let mut found = statement.query((partition.number(),))?;
    let mut sums = KeySums::default();
    while let Some(row) = found.next()? {
        let (run, key): (i64, KeyRow) = (row.get(3)?, key(row)?);
        if sums.runs.last().is_none_or(|(last, _)| *last != run) {
            sums.runs.push((run, KeySum::default()));
        }
        let is_later = u64::try_from(key.position).is_ok_and(|position| position > to.0);
        match sums.runs.last_mut() {
            Some((_, sum)) if !is_later => sum.add(&key),
            _ => sums.later += 1,
        }
    }
    Ok(sums)
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare(sql)?;
    let mut found = statement.query(parameters)?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        rows.push(read(row)?);
    }
    Ok(rows)
}

fn account(row: &Row<'_>) -> rusqlite::Result<AccountRow> {
    let numbers = [row.get(2)?, row.get(3)?, row.get(4)?];
    Ok(AccountRow::new(id(row)?, row.get(1)?, numbers, row.get::<_, i64>(5)? != 0, row.get(6)?))
}

fn id(row: &Row<'_>) -> rusqlite::Result<Option<Uuid>> {
    Ok(row.get_ref(0)?.as_str().ok().and_then(id_of))
}

fn key(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
    let (business, account): (i64, i64) = (row.get(0)?, row.get(1)?);
    Ok(KeyRow { business: business.cast_unsigned(), account: account.cast_unsigned(), position: row.get(2)? })
}
