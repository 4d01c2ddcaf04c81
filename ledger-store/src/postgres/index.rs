//! The indexes behind the log on PostgreSQL: look-ups, and the flush that writes them.

use std::time::Duration;

use ledger_core::{AccountId, AccountState, Head, PARTITIONS, Partition, Position};
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres as Driver, Row,
    error::BoxDynError,
    postgres::{PgArguments, types::PgRecordEncoder},
    query::Query,
};
use uuid::Uuid;

use super::{
    Postgres, copy,
    log::heads_of,
    record::{Record, records},
};
use crate::{
    StoreError,
    database::Bound,
    index::{IndexEntries, IndexedAccount, KEY_RUN_BITS, KeyHash, key_run, seal, stored_hash, unseal},
    limit::within,
    row::stored,
};

/// Rows of one statement of a flush: to encode them takes the thread half a millisecond, for which nothing else runs on it.
const FLUSH_ROWS: usize = 2_000;
/// Keys that are copied at once, likewise.
const FLUSH_KEYS: usize = 8_000;

/// How long a flush may take, some seconds mostly: one that takes longer hangs.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

const CHECKPOINTS: &str = "select partition, epoch, position, hash from index_checkpoints order by partition";

impl Postgres {
    /// Up to where the indexes hold the log.
    pub(crate) async fn index_checkpoints(&self) -> Result<[Head; PARTITIONS], StoreError> {
        heads_of(sqlx::query(CHECKPOINTS).fetch_all(self.pool()).await?)
    }

    /// Some accounts as the index knows them.
    pub(crate) async fn indexed_accounts(&self, accounts: &[AccountId]) -> Result<Vec<IndexedAccount>, StoreError> {
        let rows: Vec<(Uuid, i64, i64, i64, i64, bool, i64)> = sqlx::query_as(
            "select a.account_id, a.position, a.balance, a.frozen, a.version, a.locked, a.seal \
             from unnest($1::smallint[], $2::uuid[]) as w (partition, account_id) \
             cross join lateral (select * from account_positions \
                 where partition = w.partition and account_id = w.account_id offset 0) a",
        )
        .bind(partitions(accounts.iter().map(|id| id.partition())))
        .bind(accounts.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|(id, position, balance, frozen, version, locked, sealed)| {
                let id = AccountId::stored(id).ok_or_else(|| no_account(&id))?;
                let position = place(id.partition(), position)?;
                let state = unseal(id, position, [balance, frozen, version], locked, sealed);
                Ok(IndexedAccount { id, position, state })
            })
            .collect()
    }

    /// The indexed events under some key hashes: where they are.
    pub(crate) async fn key_positions(&self, keys: &[KeyHash]) -> Result<Vec<(Partition, Position)>, StoreError> {
        let query = sqlx::query(
            "select k.partition, k.position \
             from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as w (partition, business_hash, account_short) \
             join index_checkpoints c using (partition) \
             cross join lateral generate_series(0, c.position >> $4) as r (run) \
             cross join lateral (select * from key_positions where partition = w.partition and run = r.run \
                 and business_hash = w.business_hash and account_short = w.account_short offset 0) k",
        )
        .bind(partitions(keys.iter().map(|key| key.partition)))
        .bind(keys.iter().map(|key| stored_hash(key.business)).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| stored_hash(key.account)).collect::<Vec<_>>())
        .bind(KEY_RUN_BITS.cast_signed());
        self.places(query).await
    }

    /// The keys of a run after `after`, as two arrays: a row for each key would cost ten times as much.
    pub(crate) async fn keys_after(
        &self,
        partition: Partition,
        run: u32,
        after: (i64, i64),
        limit: usize,
    ) -> Result<Vec<(u64, u64)>, StoreError> {
        let (business, accounts): (Vec<i64>, Vec<i64>) = sqlx::query_as(
            "select coalesce(array_agg(business_hash), '{}'), coalesce(array_agg(account_short), '{}') from ( \
                 select business_hash, account_short from key_positions \
                 where partition = $1 and run = $2 and (business_hash, account_short) > ($3, $4) \
                 order by business_hash, account_short limit $5) k",
        )
        .bind(i16::from(partition.number()))
        .bind(run.cast_signed())
        .bind(after.0)
        .bind(after.1)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_one(self.pool())
        .await?;
        Ok(business.into_iter().zip(accounts).map(|(a, b)| (a.cast_unsigned(), b.cast_unsigned())).collect())
    }

    /// The indexed events of every account under a business key's hash: where they are, or at most `limit` of them are.
    pub(crate) async fn business_positions(
        &self,
        business: u64,
        limit: i64,
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let query = sqlx::query(
            "select k.partition, k.position from index_checkpoints c \
             cross join lateral generate_series(0, c.position >> $2) as r (run) \
             cross join lateral (select * from key_positions \
                 where partition = c.partition and run = r.run and business_hash = $1 offset 0) k limit $3",
        )
        .bind(stored_hash(business))
        .bind(KEY_RUN_BITS.cast_signed())
        .bind(limit);
        self.places(query).await
    }

    /// The newest indexed events about some originals: where they are.
    pub(crate) async fn related_positions(
        &self,
        originals: &[(Partition, Position)],
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let query = sqlx::query(
            "select r.partition, r.position from unnest($1::smallint[], $2::bigint[]) as w (partition, original_position) \
             cross join lateral (select * from related_positions \
                 where partition = w.partition and original_position = w.original_position offset 0) r",
        )
        .bind(partitions(originals.iter().map(|(partition, _)| *partition)))
        .bind(originals.iter().map(|(_, position)| stored(position.0)).collect::<Vec<_>>());
        self.places(query).await
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
            "select position from history_positions where partition = $1 and account_id = $2 and {column} >= $3 \
             order by version limit 1"
        );
        let position: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(i16::from(account.partition().number()))
            .bind(account.uuid())
            .bind(stored(bound.value()))
            .fetch_optional(self.pool())
            .await?;
        position.map(|position| place(account.partition(), position)).transpose()
    }

    async fn places(&self, query: Query<'_, Driver, PgArguments>) -> Result<Vec<(Partition, Position)>, StoreError> {
        let rows = query.fetch_all(self.pool()).await?;
        rows.iter().map(|row| indexed_place(row.try_get(0)?, row.try_get(1)?)).collect()
    }

    /// Writes entries, which follow `from`, to the indexes and moves the checkpoints to `to` where they are not past it.
    pub(crate) async fn flush_indexes(
        &self,
        entries: &IndexEntries,
        from: &[Head; PARTITIONS],
        to: &[Head; PARTITIONS],
    ) -> Result<(), StoreError> {
        match within(FLUSH_TIMEOUT, self.flush_once(entries, Some(from), to)).await {
            // Some key is there although the checkpoint says that it cannot be: then each is looked at.
            Err(StoreError::Database(sqlx::Error::Database(refusal))) if refusal.is_unique_violation() => {
                within(FLUSH_TIMEOUT, self.flush_once(entries, None, to)).await
            }
            flushed => flushed,
        }
    }

    /// The same, in one transaction; without `from` nothing is taken for granted of what is there.
    async fn flush_once(
        &self,
        entries: &IndexEntries,
        from: Option<&[Head; PARTITIONS]>,
        to: &[Head; PARTITIONS],
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool().begin().await?;
        let connection: &mut PgConnection = &mut transaction;
        // Unlike read models this waits for the disk: the writer forgets what the indexes hold, and a server that crashed
        // would come back without the last commits that nobody waited for.
        // First, and in ascending order: the rows' locks let one flush pass at a time.
        let locked = format!("{CHECKPOINTS} for update");
        let checkpoints = heads_of(sqlx::query(AssertSqlSafe(locked)).fetch_all(&mut *connection).await?)?;
        refuse_newer_epochs(&checkpoints, to)?;
        if let Some(from) = from {
            refuse_lost_flush(&checkpoints, from)?;
        }
        for (accounts, states) in entries.accounts.chunks(FLUSH_ROWS).zip(entries.states.chunks(FLUSH_ROWS)) {
            upsert_accounts(connection, accounts, states).await?;
        }
        if from == Some(&checkpoints) {
            // Rows and checkpoints are written together, so none of these keys is there.
            copy_keys(connection, &entries.keys).await?;
        } else {
            insert_keys(connection, &entries.keys).await?;
        }
        for chunk in entries.related.chunks(FLUSH_ROWS) {
            sqlx::query(
                "insert into related_positions (partition, original_position, position) \
                 select * from unnest($1::smallint[], $2::bigint[], $3::bigint[]) \
                 on conflict (partition, original_position) \
                 do update set position = greatest(related_positions.position, excluded.position)",
            )
            .bind(partitions(chunk.iter().map(|(partition, ..)| *partition)))
            .bind(chunk.iter().map(|(_, original, _)| stored(original.0)).collect::<Vec<_>>())
            .bind(chunk.iter().map(|(.., at)| stored(at.0)).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        for chunk in entries.history.chunks(FLUSH_ROWS) {
            sqlx::query(
                "insert into history_positions (partition, account_id, version, position) \
                 select * from unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[]) on conflict do nothing",
            )
            .bind(partitions(chunk.iter().map(|(id, ..)| id.partition())))
            .bind(chunk.iter().map(|(id, ..)| id.uuid()).collect::<Vec<_>>())
            .bind(chunk.iter().map(|(_, version, _)| stored(*version)).collect::<Vec<_>>())
            .bind(chunk.iter().map(|(.., at)| stored(at.0)).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        sqlx::query(
            "update index_checkpoints c set epoch = n.epoch, position = n.position, hash = n.hash \
             from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bytea[]) as n (partition, epoch, position, hash) \
             where c.partition = n.partition and (c.epoch, c.position) < (n.epoch, n.position)",
        )
        .bind(partitions(Partition::all()))
        .bind(to.iter().map(|head| i64::from(head.epoch.0)).collect::<Vec<_>>())
        .bind(to.iter().map(|head| stored(head.position.0)).collect::<Vec<_>>())
        .bind(to.iter().map(|head| &head.hash.0[..]).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// A restore puts other tables in the place of those that a running service knows. Its events may not be in their log any
/// more, so nothing of it may get into their indexes.
fn refuse_newer_epochs(stored: &[Head; PARTITIONS], known: &[Head; PARTITIONS]) -> Result<(), StoreError> {
    for (partition, (stored, known)) in Partition::all().zip(stored.iter().zip(known)) {
        if stored.epoch > known.epoch {
            return Err(StoreError::Inconsistent(format!(
                "partition {partition}: the indexes are in epoch {}, this process knew epoch {}: the database was restored; \
                 restart every process that uses it",
                stored.epoch.0, known.epoch.0
            )));
        }
    }
    Ok(())
}

/// Whoever writes entries after a gap would hide for ever that those before it are missing.
fn refuse_lost_flush(stored: &[Head; PARTITIONS], known: &[Head; PARTITIONS]) -> Result<(), StoreError> {
    for (partition, (stored, known)) in Partition::all().zip(stored.iter().zip(known)) {
        if stored.position < known.position {
            return Err(StoreError::Inconsistent(format!(
                "partition {partition}: the indexes hold the log up to {}, this process had written them up to {}: the server \
                 lost a commit",
                stored.position, known.position
            )));
        }
    }
    Ok(())
}

/// Writes accounts; a row that another process wrote from a newer event stays.
async fn upsert_accounts(
    connection: &mut PgConnection,
    accounts: &[(AccountId, Position)],
    states: &[AccountState],
) -> Result<(), StoreError> {
    let rows = accounts.iter().zip(states).map(|((id, at), state)| AccountRow { id: *id, at: *at, state });
    sqlx::query(
        "insert into account_positions as a (partition, account_id, position, balance, frozen, version, locked, seal) \
         select * from unnest($1) \
         on conflict (partition, account_id) do update set position = excluded.position, balance = excluded.balance, \
             frozen = excluded.frozen, version = excluded.version, locked = excluded.locked, seal = excluded.seal \
         where excluded.position >= a.position",
    )
    .bind(records(rows))
    .execute(connection)
    .await?;
    Ok(())
}

/// A row of `account_row`.
struct AccountRow<'s> {
    id: AccountId,
    at: Position,
    state: &'s AccountState,
}

impl Record for AccountRow<'_> {
    const TYPE: &'static str = "account_row";

    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        row.encode(i16::from(self.id.partition().number()))?
            .encode(self.id.uuid())?
            .encode(stored(self.at.0))?
            .encode(stored(self.state.balance))?
            .encode(stored(self.state.frozen))?
            .encode(stored(self.state.version))?
            .encode(self.state.locked)?
            .encode(seal(self.id, self.at, self.state))?;
        Ok(())
    }
}

/// Writes keys of which another process may have written some.
async fn insert_keys(connection: &mut PgConnection, keys: &[(KeyHash, Position)]) -> Result<(), StoreError> {
    for chunk in keys.chunks(FLUSH_ROWS) {
        sqlx::query(
            "insert into key_positions (partition, business_hash, account_short, position, run) \
             select * from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[]) \
             on conflict do nothing",
        )
        .bind(partitions(chunk.iter().map(|(key, _)| key.partition)))
        .bind(chunk.iter().map(|(key, _)| stored_hash(key.business)).collect::<Vec<_>>())
        .bind(chunk.iter().map(|(key, _)| stored_hash(key.account)).collect::<Vec<_>>())
        .bind(chunk.iter().map(|(_, at)| stored(at.0)).collect::<Vec<_>>())
        .bind(chunk.iter().map(|(_, at)| key_run(*at).cast_signed()).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Writes keys that are not there.
async fn copy_keys(connection: &mut PgConnection, keys: &[(KeyHash, Position)]) -> Result<(), StoreError> {
    let mut into = connection
        .copy_in_raw(
            "copy key_positions (partition, business_hash, account_short, position, run) from stdin (format binary)",
        )
        .await?;
    let mut rows = copy::Rows::new(0);
    for keys in keys.chunks(FLUSH_KEYS) {
        for (key, at) in keys {
            rows.row(5)
                .small(key.partition.number().into())
                .number(stored_hash(key.business))
                .number(stored_hash(key.account))
                .number(stored(at.0))
                .integer(key_run(*at));
        }
        into.send(std::mem::replace(&mut rows, copy::Rows::more(0)).into_bytes()).await?;
    }
    into.send(rows.end()).await?;
    into.finish().await?;
    Ok(())
}

fn partitions(partitions: impl Iterator<Item = Partition>) -> Vec<i16> {
    partitions.map(|partition| partition.number().into()).collect()
}

fn no_account(id: &impl std::fmt::Display) -> StoreError {
    StoreError::Inconsistent(format!("account_positions names account {id}, which there cannot be"))
}

fn indexed_place(number: i16, position: i64) -> Result<(Partition, Position), StoreError> {
    let partition = u8::try_from(number)
        .ok()
        .and_then(Partition::new)
        .ok_or_else(|| StoreError::Inconsistent(format!("an index names partition {number}, which there is not")))?;
    Ok((partition, place(partition, position)?))
}

fn place(partition: Partition, position: i64) -> Result<Position, StoreError> {
    u64::try_from(position)
        .map(Position)
        .map_err(|_| StoreError::Inconsistent(format!("an index names position {position} of partition {partition}")))
}
