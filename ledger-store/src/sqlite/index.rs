//! The indexes behind the log on SQLite: look-ups, and the flush that writes them.

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use ledger_core::{AccountId, Head, PARTITIONS, Partition, Position};
use sqlx::{AssertSqlSafe, Row, Sqlite as Driver, SqliteConnection, query::Query, sqlite::SqliteArguments};
use uuid::Uuid;

use super::{ROWS_MAX, Sqlite, log::heads_of, padded, values};
use crate::{
    StoreError,
    database::Bound,
    index::{IndexEntries, IndexedAccount, KEY_RUN_BITS, KeyHash, key_run, seal, stored_hash, unseal},
    row::stored,
};

/// Rows of one statement of a flush: some milliseconds, because commands wait for the end of the turn.
const FLUSH_ROWS: usize = 256;

const CHECKPOINTS: &str = "select partition, epoch, position, hash from index_checkpoints order by partition";

/// Every run of the key index that its checkpoint says is there.
static RUNS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "with recursive runs (run) as (select 0 union all \
         select run + 1 from runs where run < (select max(position) >> {KEY_RUN_BITS} from index_checkpoints))"
    )
});

impl Sqlite {
    /// Up to where the indexes hold the log.
    pub(crate) async fn index_checkpoints(&self) -> Result<[Head; PARTITIONS], StoreError> {
        heads_of(sqlx::query(CHECKPOINTS).fetch_all(self.readers()).await?)
    }

    /// Some accounts as the index knows them.
    pub(crate) async fn indexed_accounts(&self, accounts: &[AccountId]) -> Result<Vec<IndexedAccount>, StoreError> {
        let mut indexed = Vec::with_capacity(accounts.len());
        for chunk in accounts.chunks(ROWS_MAX) {
            let sql = format!(
                "select a.account_id, a.position, a.balance, a.frozen, a.version, a.locked, a.seal from ({}) w \
                 cross join account_positions a on a.partition = w.column1 and a.account_id = w.column2",
                values(padded(chunk.len()), 2)
            );
            let query = chunk.iter().fold(sqlx::query_as(AssertSqlSafe(sql)), |query, id| {
                query.bind(i64::from(id.partition().number())).bind(id.to_string())
            });
            let rows: Vec<(String, i64, i64, i64, i64, i64, i64)> = query.fetch_all(self.readers()).await?;
            for (id, position, balance, frozen, version, locked, sealed) in rows {
                let id = Uuid::try_parse(&id).ok().and_then(AccountId::stored).ok_or_else(|| {
                    StoreError::Inconsistent(format!("account_positions names account {id}, which there cannot be"))
                })?;
                let position = place(id.partition(), position)?;
                let state = unseal(id, position, [balance, frozen, version], locked != 0, sealed);
                indexed.push(IndexedAccount { id, position, state });
            }
        }
        Ok(indexed)
    }

    /// The indexed events under some key hashes: where they are.
    pub(crate) async fn key_positions(&self, keys: &[KeyHash]) -> Result<Vec<(Partition, Position)>, StoreError> {
        let runs = RUNS.as_str();
        let sql = |values| {
            format!(
                "{runs} select k.partition, k.position from ({values}) w cross join runs r \
                 cross join key_positions k on k.partition = w.column1 and k.run = r.run \
                 and k.business_hash = w.column2 and k.account_short = w.column3"
            )
        };
        self.places(keys, 3, sql, |query, key| {
            query.bind(i64::from(key.partition.number())).bind(stored_hash(key.business)).bind(stored_hash(key.account))
        })
        .await
    }

    /// The keys of a run after `after`, by a connection that lends each row: after a start all of them are read, beside the commands.
    pub(crate) async fn keys_after(
        &self,
        partition: Partition,
        run: u32,
        after: (i64, i64),
        limit: usize,
    ) -> Result<Vec<(u64, u64)>, StoreError> {
        let rows = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |connection| {
            let mut statement = connection.prepare(
                "select business_hash, account_short from key_positions \
                 where partition = ? and run = ? and (business_hash, account_short) > (?, ?) \
                 order by business_hash, account_short limit ?",
            )?;
            let mut found = statement.query((partition.number(), run, after.0, after.1, rows))?;
            let mut keys = Vec::with_capacity(limit);
            while let Some(row) = found.next()? {
                keys.push((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()));
            }
            Ok(keys)
        })
        .await
    }

    /// The indexed events of every account under a business key's hash: where they are, or at most `limit` of them are.
    pub(crate) async fn business_positions(
        &self,
        business: u64,
        limit: i64,
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let runs = RUNS.as_str();
        let sql = |values| {
            format!(
                "{runs} select k.partition, k.position from ({values}) w cross join runs r \
                 cross join key_positions k on k.partition = w.column1 and k.run = r.run and k.business_hash = w.column2 \
                 limit {limit}"
            )
        };
        let partitions: Vec<_> = Partition::all().collect();
        self.places(&partitions, 2, sql, |query, partition| {
            query.bind(i64::from(partition.number())).bind(stored_hash(business))
        })
        .await
    }

    /// The newest indexed events about some originals: where they are.
    pub(crate) async fn related_positions(
        &self,
        originals: &[(Partition, Position)],
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let sql = |values| {
            format!(
                "select r.partition, r.position from ({values}) w \
                 cross join related_positions r on r.partition = w.column1 and r.original_position = w.column2"
            )
        };
        self.places(originals, 2, sql, |query, (partition, position)| {
            query.bind(i64::from(partition.number())).bind(stored(position.0))
        })
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

    async fn places<T>(
        &self,
        wanted: &[T],
        columns: usize,
        sql: impl Fn(String) -> String,
        bind: impl Fn(Statement, &T) -> Statement,
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let mut places = Vec::new();
        for chunk in wanted.chunks(ROWS_MAX) {
            let sql = sql(values(padded(chunk.len()), columns));
            let query = chunk.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
            for row in query.fetch_all(self.readers()).await? {
                places.push(indexed_place(row.try_get(0)?, row.try_get(1)?)?);
            }
        }
        Ok(places)
    }

    /// Writes entries to the indexes and moves the checkpoints to `to` where they are not past it. Every row is written
    /// so that writing it again changes nothing: a flush that is cut short is simply done again.
    pub(crate) async fn flush_indexes(
        &self,
        entries: &IndexEntries,
        to: &[Head; PARTITIONS],
    ) -> Result<(), StoreError> {
        // Short turns: commands are committed between them.
        let mut slices = slices(entries).peekable();
        while slices.peek().is_some() {
            let (share, mut turn, began) = (self.share.fair() / 2, self.relaxed_turn().await?, Instant::now());
            for slice in slices.by_ref() {
                slice.execute(turn.connection()).await?;
                self.written.add(FLUSH_ROWS);
                if began.elapsed() >= share {
                    break;
                }
            }
        }
        // Last, so that the checkpoint never speaks of rows that are not there.
        let mut turn = self.relaxed_turn().await?;
        move_checkpoints(turn.connection(), to).await
    }
}

/// The statements that write entries, some rows each.
fn slices(entries: &IndexEntries) -> impl Iterator<Item = Statement> {
    let accounts = entries.accounts.chunks(FLUSH_ROWS).enumerate().map(|(chunk, accounts)| {
        query(&ACCOUNTS, |mut query| {
            for (index, (id, at)) in accounts.iter().enumerate() {
                let state = entries.states.get(chunk * FLUSH_ROWS + index);
                let numbers = state.copied().unwrap_or_default();
                query = query
                    .bind(i64::from(id.partition().number()))
                    .bind(id.to_string())
                    .bind(stored(at.0))
                    .bind(stored(numbers.balance))
                    .bind(stored(numbers.frozen))
                    .bind(stored(numbers.version))
                    .bind(i64::from(numbers.locked))
                    .bind(state.map_or(0, |state| seal(*id, *at, state)));
            }
            query
        })
    });
    let keys = entries.keys.chunks(FLUSH_ROWS).map(|chunk| {
        query(&KEYS, |mut query| {
            for (key, at) in chunk {
                query = query
                    .bind(i64::from(key.partition.number()))
                    .bind(i64::from(key_run(*at)))
                    .bind(stored_hash(key.business))
                    .bind(stored_hash(key.account))
                    .bind(stored(at.0));
            }
            query
        })
    });
    let related = entries.related.chunks(FLUSH_ROWS).map(|chunk| {
        query(&RELATED, |mut query| {
            for (partition, original, at) in chunk {
                query = query.bind(i64::from(partition.number())).bind(stored(original.0)).bind(stored(at.0));
            }
            query
        })
    });
    let history = entries.history.chunks(FLUSH_ROWS).map(|chunk| {
        query(&HISTORY, |mut query| {
            for (id, version, at) in chunk {
                query = query
                    .bind(i64::from(id.partition().number()))
                    .bind(id.to_string())
                    .bind(stored(*version))
                    .bind(stored(at.0));
            }
            query
        })
    });
    accounts.chain(keys).chain(related).chain(history)
}

/// Writes entries to a file that nobody else uses.
pub(super) async fn insert(connection: &mut SqliteConnection, entries: &IndexEntries) -> Result<(), StoreError> {
    for slice in slices(entries) {
        slice.execute(&mut *connection).await?;
    }
    Ok(())
}

/// A statement that writes at most [`FLUSH_ROWS`] rows; those that are not bound are null, and left out.
static ACCOUNTS: LazyLock<Arc<str>> = LazyLock::new(|| {
    // A row that another process wrote from a newer event stays.
    let conflict = "on conflict do update set position = excluded.position, balance = excluded.balance, \
                    frozen = excluded.frozen, version = excluded.version, locked = excluded.locked, seal = excluded.seal \
                    where excluded.position >= position";
    upsert("account_positions (partition, account_id, position, balance, frozen, version, locked, seal)", 8, conflict)
});
static KEYS: LazyLock<Arc<str>> = LazyLock::new(|| {
    let table = "key_positions (partition, run, business_hash, account_short, position)";
    upsert(table, 5, "on conflict do nothing")
});
static RELATED: LazyLock<Arc<str>> = LazyLock::new(|| {
    let conflict = "on conflict do update set position = max(position, excluded.position)";
    upsert("related_positions (partition, original_position, position)", 3, conflict)
});
static HISTORY: LazyLock<Arc<str>> = LazyLock::new(|| {
    upsert("history_positions (partition, account_id, version, position)", 4, "on conflict do nothing")
});

fn upsert(table: &str, columns: usize, conflict: &str) -> Arc<str> {
    let rows = values(FLUSH_ROWS, columns);
    format!("insert into {table} select * from ({rows}) where column1 is not null {conflict}").into()
}

type Statement = Query<'static, Driver, SqliteArguments>;

fn query(sql: &LazyLock<Arc<str>>, bind: impl FnOnce(Statement) -> Statement) -> Statement {
    bind(sqlx::query(AssertSqlSafe(Arc::clone(sql))))
}

fn indexed_place(number: i64, position: i64) -> Result<(Partition, Position), StoreError> {
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
