//! The indexes behind the log on SQLite: look-ups, and the flush that writes them.

use ledger_core::{AccountId, Head, PARTITIONS, Partition, Position};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::{Sqlite, log::heads_of};
use crate::{
    StoreError,
    database::Bound,
    index::{IndexEntries, KeyHash, stored_hash},
    row::stored,
};

/// Rows of one turn of a flush: some milliseconds, because commands wait for the end of the turn.
const FLUSH_ROWS: usize = 1_000;

const CHECKPOINTS: &str = "select partition, epoch, position, hash from index_checkpoints order by partition";

impl Sqlite {
    /// Up to where the indexes hold the log.
    pub(crate) async fn index_checkpoints(&self) -> Result<[Head; PARTITIONS], StoreError> {
        heads_of(sqlx::query(CHECKPOINTS).fetch_all(self.readers()).await?)
    }

    /// The newest indexed events of some accounts: where they are.
    pub(crate) async fn account_positions(
        &self,
        accounts: &[AccountId],
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let wanted: Vec<_> = accounts.iter().map(|id| (id.partition().number(), id.to_string())).collect();
        self.places(
            "select a.partition, a.position from json_each(?) w \
             cross join account_positions a on a.partition = w.value ->> 0 and a.account_id = w.value ->> 1",
            json!(wanted),
        )
        .await
    }

    /// The indexed events under some key hashes: where they are.
    pub(crate) async fn key_positions(&self, keys: &[KeyHash]) -> Result<Vec<(Partition, Position)>, StoreError> {
        let wanted: Vec<_> = keys
            .iter()
            .map(|key| (key.partition.number(), stored_hash(key.business), stored_hash(key.account)))
            .collect();
        self.places(
            "select k.partition, k.position from json_each(?) w \
             cross join key_positions k on k.partition = w.value ->> 0 and k.business_hash = w.value ->> 1 \
             and k.account_short = w.value ->> 2",
            json!(wanted),
        )
        .await
    }

    /// The indexed events of every account under a business key's hash: where they are.
    pub(crate) async fn business_positions(&self, business: u64) -> Result<Vec<(Partition, Position)>, StoreError> {
        let wanted: Vec<_> = Partition::all().map(|partition| (partition.number(), stored_hash(business))).collect();
        self.places(
            "select k.partition, k.position from json_each(?) w \
             cross join key_positions k on k.partition = w.value ->> 0 and k.business_hash = w.value ->> 1",
            json!(wanted),
        )
        .await
    }

    /// The newest indexed events about some originals: where they are.
    pub(crate) async fn related_positions(
        &self,
        originals: &[(Partition, Position)],
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let wanted: Vec<_> = originals.iter().map(|(partition, position)| (partition.number(), position.0)).collect();
        self.places(
            "select r.partition, r.position from json_each(?) w \
             cross join related_positions r on r.partition = w.value ->> 0 and r.original_position = w.value ->> 1",
            json!(wanted),
        )
        .await
    }

    /// The nearest indexed event of an account from which a walk back reaches `bound`.
    pub(crate) async fn history_anchor(
        &self,
        account: AccountId,
        bound: Bound,
    ) -> Result<Option<Position>, StoreError> {
        let column = match bound {
            Bound::Position(_) => "position",
            Bound::Version(_) => "version",
        };
        let sql = format!(
            "select position from history_positions where partition = ? and account_id = ? and {column} >= ? \
             order by version limit 1"
        );
        let position: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(i64::from(account.partition().number()))
            .bind(account.to_string())
            .bind(stored(bound.value()))
            .fetch_optional(self.readers())
            .await?;
        position.map(|position| place(account.partition(), position)).transpose()
    }

    async fn places(&self, sql: &'static str, wanted: Value) -> Result<Vec<(Partition, Position)>, StoreError> {
        let rows = sqlx::query(sql).bind(wanted.to_string()).fetch_all(self.readers()).await?;
        rows.iter()
            .map(|row| {
                let number: i64 = row.try_get(0)?;
                let partition = u8::try_from(number).ok().and_then(Partition::new);
                let partition = partition.ok_or_else(|| {
                    StoreError::Inconsistent(format!("an index names partition {number}, which there is not"))
                })?;
                Ok((partition, place(partition, row.try_get(1)?)?))
            })
            .collect()
    }

    /// Writes entries to the indexes and moves the checkpoints to `to` where they are not past it. Every row is written
    /// so that writing it again changes nothing: a flush that is cut short is simply done again.
    pub(crate) async fn flush_indexes(
        &self,
        entries: &IndexEntries,
        to: &[Head; PARTITIONS],
    ) -> Result<(), StoreError> {
        for chunk in entries.accounts.chunks(FLUSH_ROWS) {
            let rows: Vec<_> = chunk.iter().map(|(id, at)| (id.partition().number(), id.to_string(), at.0)).collect();
            self.slice(
                "insert into account_positions (partition, account_id, position) \
                 select value ->> 0, value ->> 1, value ->> 2 from json_each(?) where true \
                 on conflict do update set position = max(position, excluded.position)",
                json!(rows),
            )
            .await?;
        }
        for chunk in entries.keys.chunks(FLUSH_ROWS) {
            let rows: Vec<_> = chunk
                .iter()
                .map(|(key, at)| (key.partition.number(), stored_hash(key.business), stored_hash(key.account), at.0))
                .collect();
            self.slice(
                "insert into key_positions (partition, business_hash, account_short, position) \
                 select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(?) where true \
                 on conflict do nothing",
                json!(rows),
            )
            .await?;
        }
        for chunk in entries.related.chunks(FLUSH_ROWS) {
            let rows: Vec<_> =
                chunk.iter().map(|(partition, original, at)| (partition.number(), original.0, at.0)).collect();
            self.slice(
                "insert into related_positions (partition, original_position, position) \
                 select value ->> 0, value ->> 1, value ->> 2 from json_each(?) where true \
                 on conflict do update set position = max(position, excluded.position)",
                json!(rows),
            )
            .await?;
        }
        for chunk in entries.history.chunks(FLUSH_ROWS) {
            let rows: Vec<_> = chunk
                .iter()
                .map(|(id, version, at)| (id.partition().number(), id.to_string(), *version, at.0))
                .collect();
            self.slice(
                "insert into history_positions (partition, account_id, version, position) \
                 select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(?) where true \
                 on conflict do nothing",
                json!(rows),
            )
            .await?;
        }
        // Last, so that the checkpoint never speaks of rows that are not there.
        let mut turn = self.relaxed_turn().await;
        move_checkpoints(turn.connection(), to).await
    }

    /// One short turn: commands are committed between the slices.
    async fn slice(&self, sql: &'static str, rows: Value) -> Result<(), StoreError> {
        let rows = rows.to_string();
        let mut turn = self.relaxed_turn().await;
        sqlx::query(sql).bind(rows).execute(turn.connection()).await?;
        Ok(())
    }
}

fn place(partition: Partition, position: i64) -> Result<Position, StoreError> {
    u64::try_from(position)
        .map(Position)
        .map_err(|_| StoreError::Inconsistent(format!("an index names position {position} of partition {partition}")))
}

/// Moves each checkpoint forward by predicate: another process may have moved it further.
async fn move_checkpoints(connection: &mut SqliteConnection, to: &[Head; PARTITIONS]) -> Result<(), StoreError> {
    let values = vec!["(?, ?, ?, ?)"; PARTITIONS].join(", ");
    let sql = format!(
        "with n (partition, epoch, position, hash) as (values {values}) \
         update index_checkpoints as c set epoch = n.epoch, position = n.position, hash = n.hash from n \
         where c.partition = n.partition and (c.epoch, c.position) < (n.epoch, n.position)"
    );
    let mut update = sqlx::query(AssertSqlSafe(sql));
    for (partition, head) in Partition::all().zip(to) {
        update = update
            .bind(i64::from(partition.number()))
            .bind(i64::from(head.epoch.0))
            .bind(stored(head.position.0))
            .bind(head.hash.0.to_vec());
    }
    update.execute(connection).await?;
    Ok(())
}
