//! The rows of the indexes on PostgreSQL. They come as arrays: a row for each would cost several times as much.

use ledger_core::{Partition, Position};
use sqlx::{AssertSqlSafe, Executor, Postgres as Driver};
use uuid::Uuid;

use super::Postgres;
use crate::{
    StoreError,
    index_rows::{AccountRow, IndexRows, KeyRow, KeySum, KeySums},
    row::stored,
};

impl Postgres {
    pub(crate) async fn index_rows(&self, partition: Partition) -> Result<IndexRows, StoreError> {
        let number = i16::from(partition.number());
        let mut transaction = self.pool().begin().await?;
        sqlx::query("set transaction isolation level repeatable read read only").execute(&mut *transaction).await?;
        let checkpoint = sqlx::query_scalar("select position from index_checkpoints where partition = $1")
            .bind(number)
            .fetch_optional(&mut *transaction)
            .await?;
        let accounts: AccountColumns = sqlx::query_as(
            "select coalesce(array_agg(account_id), '{}'), coalesce(array_agg(position), '{}'), \
             coalesce(array_agg(balance), '{}'), coalesce(array_agg(frozen), '{}'), \
             coalesce(array_agg(version), '{}'), coalesce(array_agg(locked), '{}'), coalesce(array_agg(seal), '{}') \
             from account_positions where partition = $1",
        )
        .bind(number)
        .fetch_one(&mut *transaction)
        .await?;
        let (originals, newest): (Vec<i64>, Vec<i64>) = sqlx::query_as(
            "select coalesce(array_agg(original_position), '{}'), coalesce(array_agg(position), '{}') \
             from related_positions where partition = $1",
        )
        .bind(number)
        .fetch_one(&mut *transaction)
        .await?;
        let (of, versions, at): (Vec<Uuid>, Vec<i64>, Vec<i64>) = sqlx::query_as(
            "select coalesce(array_agg(account_id), '{}'), coalesce(array_agg(version), '{}'), \
             coalesce(array_agg(position), '{}') from history_positions where partition = $1",
        )
        .bind(number)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        Ok(IndexRows {
            checkpoint,
            accounts: account_rows(accounts),
            related: originals.into_iter().zip(newest).collect(),
            history: of.into_iter().zip(versions).zip(at).map(|((id, version), at)| (Some(id), version, at)).collect(),
        })
    }

    pub(crate) async fn key_rows(&self, partition: Partition, run: u32) -> Result<Vec<KeyRow>, StoreError> {
        let run = run.cast_signed();
        let rows = format!("select * from key_positions where partition = {partition} and run = {run}");
        keys(self.pool(), &rows).await
    }

    pub(crate) async fn key_sums(&self, partitions: &[(Partition, Position)]) -> Result<Vec<KeySums>, StoreError> {
        let (Some((first, _)), Some((last, _))) = (partitions.first(), partitions.last()) else {
            return Ok(Vec::new());
        };
        // To look at each row's position apart costs half as much again, and is seldom needed.
        let whole = self.run_sums(&format!("partition between {first} and {last}")).await?;
        let mut sums = Vec::with_capacity(partitions.len());
        for (partition, to) in partitions {
            let whole = whole.iter().filter(|sum| sum.0 == i64::from(partition.number())).copied().collect::<Vec<_>>();
            if whole.iter().all(|(.., newest)| *newest <= stored(to.0)) {
                sums.push(KeySums { runs: sums_of(whole), later: 0 });
                continue;
            }
            let runs = self.run_sums(&format!("partition = {partition} and position <= {to}")).await?;
            let later = self.run_sums(&format!("partition = {partition} and position > {to}")).await?;
            let later = sums_of(later).into_iter().map(|(_, sum)| sum.rows).sum();
            sums.push(KeySums { runs: sums_of(runs), later });
        }
        Ok(sums)
    }

    /// By the primary key: its order is the one of the runs, and it holds all that is asked for.
    async fn run_sums(&self, which: &str) -> Result<Vec<RunSum>, sqlx::Error> {
        let sql = format!(
            "select partition::bigint, run::bigint, count(*), \
             bit_xor(hashint8extended(business_hash, hashint8extended(account_short, position))), max(position) \
             from key_positions k where {which} group by k.partition, k.run order by k.partition, k.run"
        );
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&self.bulk).await
    }

    pub(crate) async fn key_rows_past(
        &self,
        partition: Partition,
        last: u32,
        limit: usize,
    ) -> Result<Vec<KeyRow>, StoreError> {
        let last = last.cast_signed();
        let rows = |range: &str| {
            format!("(select * from key_positions where partition = {partition} and run {range} limit {limit})")
        };
        let rows = format!("{} union all {}", rows("< 0"), rows(&format!("> {last}")));
        let mut found = keys(self.pool(), &rows).await?;
        found.truncate(limit);
        Ok(found)
    }
}

/// Id, position, balance, frozen, version, lock and seal.
type AccountColumns = (Vec<Uuid>, Vec<i64>, Vec<i64>, Vec<i64>, Vec<i64>, Vec<bool>, Vec<i64>);

fn account_rows((ids, positions, balances, frozen, versions, locked, seals): AccountColumns) -> Vec<AccountRow> {
    let numbers =
        balances.into_iter().zip(frozen).zip(versions).map(|((balance, frozen), version)| [balance, frozen, version]);
    let rows = ids.into_iter().zip(positions).zip(numbers).zip(locked).zip(seals);
    rows.map(|((((id, position), numbers), locked), seal)| AccountRow::new(Some(id), position, numbers, locked, seal))
        .collect()
}

/// Of each run its partition and number, how many rows it has, what they come to, and the largest position.
type RunSum = (i64, i64, i64, i64, i64);

fn sums_of(runs: Vec<RunSum>) -> Vec<(i64, KeySum)> {
    let sum =
        |(_, run, rows, mixed, _): RunSum| (run, KeySum { rows: rows.cast_unsigned(), mixed: mixed.cast_unsigned() });
    runs.into_iter().map(sum).collect()
}

async fn keys<'c>(connection: impl Executor<'c, Database = Driver>, rows: &str) -> Result<Vec<KeyRow>, StoreError> {
    let sql = format!(
        "select coalesce(array_agg(business_hash), '{{}}'), coalesce(array_agg(account_short), '{{}}'), \
         coalesce(array_agg(position), '{{}}') from ({rows}) k"
    );
    let (business, accounts, positions): (Vec<i64>, Vec<i64>, Vec<i64>) =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_one(connection).await?;
    let rows = business.into_iter().zip(accounts).zip(positions);
    Ok(rows
        .map(|((business, account), position)| KeyRow {
            business: business.cast_unsigned(),
            account: account.cast_unsigned(),
            position,
        })
        .collect())
}
