//! The read models of a log that is being restored: folded while it is read, and written in the same step.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures::{FutureExt, future::BoxFuture};
use ledger_core::{Event, Head, PARTITIONS, Partition, digest};
use ledger_store::{
    Database, StoreError,
    restore::{Fold, Rows},
};
use sqlx::{PgConnection, SqliteConnection};

use super::{
    Options, RebuildError, Rebuilt,
    fill::{self, Filled, Shared, Tables},
    on_postgres,
    replay::{Folded, Replay},
};
use crate::{checkpoint::ReadModel, row::stored, sqlite};

/// Rows that are kept back until they are worth being written: to change from one table to another costs round trips, and a
/// ledger has many partitions.
const ROWS_MIN: usize = 50_000;

/// What the partitions came to whose log was restored so far.
#[derive(Debug, Clone, Default)]
pub struct Restoring(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    filled: Vec<(Partition, Filled)>,
    waiting: Whole,
}

impl Restoring {
    /// Begins to fold a partition.
    #[must_use]
    pub fn fold(&self, partition: Partition) -> Box<dyn Fold> {
        Box::new(Folding { partition, replay: Replay::new(partition, &ReadModel::ALL), restoring: self.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares what the tables give back, after the restore, with what was folded.
    ///
    /// # Errors
    ///
    /// [`RebuildError::Differs`] when they hold something else, somebody else's newer events perhaps: a rebuild tells. When the
    /// database cannot be read.
    pub async fn compare(&self, database: &Database) -> Result<Rebuilt, RebuildError> {
        let began = Instant::now();
        let mut filled = self.state().filled.clone();
        filled.sort_unstable_by_key(|(partition, _)| *partition);
        let filled: Vec<_> = filled.into_iter().map(|(_, filled)| filled).collect();
        let filled: [Filled; PARTITIONS] =
            filled.try_into().map_err(|_| StoreError::Inconsistent("a partition was left out".to_owned()))?;
        let heads = filled.each_ref().map(|filled| filled.at);
        let shared = Arc::new(Shared::new(database, &Options::default(), heads, Tables::Served));
        fill::compare(&shared, &filled).await?;
        Ok(Rebuilt {
            events: heads.iter().map(|head| head.position.0).sum(),
            accounts: filled.iter().map(|filled| filled.accounts).sum(),
            freezes: filled.iter().map(|filled| filled.freezes).sum(),
            digest: digest::combine(&filled.each_ref().map(|filled| filled.digest)),
            resolved: 0,
            took: began.elapsed(),
        })
    }
}

/// A partition on its way.
struct Folding {
    partition: Partition,
    replay: Replay,
    restoring: Restoring,
}

impl Fold for Folding {
    fn add(&mut self, event: &Event) -> Result<(), String> {
        self.replay.apply(event).map_err(|contradiction| {
            format!(
                "{} should be {}, the event says {}",
                contradiction.field, contradiction.expected, contradiction.found
            )
        })
    }

    fn finish(self: Box<Self>, at: Head) -> Option<Box<dyn Rows>> {
        let Self { partition, replay, restoring } = *self;
        let mut folded = replay.finish();
        let mut state = restoring.state();
        state.filled.push((partition, Filled::of(&folded, at)));
        let waiting = &mut state.waiting;
        waiting.places.push((partition, at));
        waiting.folded.balances.append(&mut folded.balances);
        waiting.folded.freezes.append(&mut folded.freezes);
        let is_last = partition.index() == PARTITIONS - 1;
        let is_worth_it = waiting.folded.balances.len() + waiting.folded.freezes.len() >= ROWS_MIN;
        (is_last || is_worth_it).then(|| Box::new(std::mem::take(waiting)) as Box<dyn Rows>)
    }
}

/// All rows of some partitions, and where those stand.
#[derive(Debug, Default)]
struct Whole {
    places: Vec<(Partition, Head)>,
    folded: Folded,
}

impl Rows for Whole {
    fn write_on_postgres<'c>(&'c self, connection: &'c mut PgConnection) -> BoxFuture<'c, Result<(), StoreError>> {
        async move {
            on_postgres::write_all(connection, &self.folded).await?;
            sqlx::query(
                "update projection_checkpoints c set epoch = n.epoch, position = n.position, hash = n.hash \
                 from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bytea[]) as n (partition, epoch, position, hash) \
                 where c.partition = n.partition and c.projection = any($5)",
            )
            .bind(self.places.iter().map(|(partition, _)| i16::from(partition.number())).collect::<Vec<_>>())
            .bind(self.places.iter().map(|(_, at)| i64::from(at.epoch.0)).collect::<Vec<_>>())
            .bind(self.places.iter().map(|(_, at)| stored(at.position.0)).collect::<Vec<_>>())
            .bind(self.places.iter().map(|(_, at)| &at.hash.0[..]).collect::<Vec<_>>())
            .bind(ReadModel::ALL.map(ReadModel::name).to_vec())
            .execute(connection)
            .await?;
            Ok(())
        }
        .boxed()
    }

    fn write_on_sqlite<'c>(&'c self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Result<(), StoreError>> {
        async move {
            let [balances, freezes] = ReadModel::ALL.map(ReadModel::name);
            sqlite::write_balances(connection, balances, &self.folded.balances).await?;
            sqlite::write_freezes(connection, freezes, &self.folded.freezes).await?;
            for (partition, at) in &self.places {
                sqlx::query(
                    "update projection_checkpoints set epoch = ?, position = ?, hash = ? \
                     where partition = ? and projection in (?, ?)",
                )
                .bind(i64::from(at.epoch.0))
                .bind(stored(at.position.0))
                .bind(at.hash.0.to_vec())
                .bind(i64::from(partition.number()))
                .bind(balances)
                .bind(freezes)
                .execute(&mut *connection)
                .await?;
            }
            Ok(())
        }
        .boxed()
    }
}
