//! Fills the next tables, and compares what they hold, several partitions at a time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use ledger_core::{Hash, Head, PARTITIONS, Partition, Position};
use ledger_store::{Database, StoreError};
use tokio::task::JoinSet;

use super::{
    Options, PartitionDigest, RebuildError, on_postgres, on_sqlite,
    pace::Pace,
    replay::{self, Folded, Replay},
};
use crate::checkpoint::ReadModel;

/// Partitions that are in memory at a time, at most: more cores would need more memory.
const WORKERS_MAX: usize = 4;

/// What the workers share.
#[derive(Debug)]
pub(super) struct Shared {
    database: Database,
    models: Vec<ReadModel>,
    heads: [Head; PARTITIONS],
    tables: Tables,
    pace: Pace,
    done: AtomicU64,
    /// A worker failed: the others need not go on.
    failed: AtomicBool,
}

/// Which tables are meant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tables {
    /// Those that will take the served ones' place.
    Next,
    Served,
}

impl Tables {
    pub(super) fn of(self, model: ReadModel) -> String {
        match self {
            Self::Next => format!("{}_next", model.name()),
            Self::Served => model.name().to_owned(),
        }
    }
}

/// What a partition's tables hold.
#[derive(Debug, Clone)]
pub(super) struct Filled {
    pub(super) at: Head,
    pub(super) digest: (Hash, Hash),
    pub(super) accounts: u64,
    pub(super) freezes: u64,
}

impl Filled {
    pub(super) fn of(folded: &Folded, at: Head) -> Self {
        let (accounts, freezes) = (folded.balances.len() as u64, folded.freezes.len() as u64);
        Self { at, digest: digest_of(folded), accounts, freezes }
    }
}

impl Shared {
    pub(super) fn new(database: &Database, options: &Options, heads: [Head; PARTITIONS], tables: Tables) -> Self {
        Self {
            database: database.clone(),
            models: options.models.clone(),
            heads,
            tables,
            pace: Pace::new(options.max_rate),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn set_done(&self, events: u64) {
        self.done.store(events, Ordering::Relaxed);
    }

    pub(super) fn add_done(&self, events: usize) {
        self.done.fetch_add(events as u64, Ordering::Relaxed);
    }
}

/// A worker's way into the next tables.
enum Filler {
    Postgres(on_postgres::Filler),
    Sqlite(on_sqlite::Filler),
}

impl Filler {
    async fn connect(shared: &Shared) -> Result<Self, RebuildError> {
        Ok(match &shared.database {
            Database::Postgres(database) => Self::Postgres(on_postgres::Filler::connect(database).await?),
            Database::Sqlite(database) => Self::Sqlite(on_sqlite::Filler::new(database)),
        })
    }

    async fn fill(&mut self, models: &[ReadModel], folded: Folded) -> Result<(), RebuildError> {
        match self {
            Self::Postgres(filler) => filler.fill(models, &folded).await,
            Self::Sqlite(filler) => filler.fill(folded).await,
        }
    }

    /// Writes what was not written yet.
    async fn finish(&mut self) -> Result<(), RebuildError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(filler) => filler.finish().await,
        }
    }

    async fn digest(
        &mut self,
        models: &[ReadModel],
        tables: Tables,
        partition: Partition,
    ) -> Result<(Hash, Hash), RebuildError> {
        match self {
            Self::Postgres(filler) => filler.digest(models, tables, partition).await,
            Self::Sqlite(filler) => filler.digest(models, tables, partition).await,
        }
    }
}

/// Replays every partition up to where the log stood, and writes what that makes.
pub(super) async fn fill(shared: &Arc<Shared>) -> Result<[Filled; PARTITIONS], RebuildError> {
    let filled = in_parallel(shared, |shared, mut filler, partition| async move {
        let filled = fill_partition(&shared, &mut filler, partition).await?;
        Ok((filler, filled))
    });
    let mut filled = filled.await?;
    filled.sort_unstable_by_key(|(partition, _)| *partition);
    let filled: Vec<_> = filled.into_iter().map(|(_, filled)| filled).collect();
    filled.try_into().map_err(|_| StoreError::Inconsistent("a partition was left out".to_owned()).into())
}

/// Compares what the tables hold with what the replay made.
pub(super) async fn compare(shared: &Arc<Shared>, filled: &[Filled; PARTITIONS]) -> Result<(), RebuildError> {
    let expected = Arc::new(filled.each_ref().map(|filled| filled.digest));
    let compared = in_parallel(shared, move |shared, mut filler, partition| {
        let expected = expected.clone();
        async move {
            if filler.digest(&shared.models, shared.tables, partition).await? != expected[partition.index()] {
                return Err(RebuildError::Differs { partition });
            }
            Ok((filler, ()))
        }
    });
    compared.await?;
    Ok(())
}

/// Runs the same work for each partition, as many at a time as there are cores. A worker that has begun with a partition
/// comes to its end: a transaction that is dropped half way would stay open.
async fn in_parallel<T, W, F>(shared: &Arc<Shared>, work: W) -> Result<Vec<(Partition, T)>, RebuildError>
where
    T: Send + 'static,
    W: Fn(Arc<Shared>, Filler, Partition) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(Filler, T), RebuildError>> + Send,
{
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKERS_MAX));
    let next = Arc::new(AtomicU8::new(0));
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (shared, next, work) = (shared.clone(), next.clone(), work.clone());
        running.spawn(async move {
            let mut done = Vec::new();
            let mut filler = Filler::connect(&shared).await?;
            while !shared.failed.load(Ordering::Relaxed)
                && let Some(partition) = Partition::new(next.fetch_add(1, Ordering::Relaxed))
            {
                let made = work(shared.clone(), filler, partition).await;
                let (same, made) = made.inspect_err(|_| shared.failed.store(true, Ordering::Relaxed))?;
                filler = same;
                done.push((partition, made));
            }
            filler.finish().await?;
            Ok::<_, RebuildError>(done)
        });
    }
    let (mut all, mut failed) = (Vec::new(), None);
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(Ok(done)) => all.extend(done),
            Ok(Err(error)) => failed = failed.or(Some(error)),
            Err(_) => failed = Some(StoreError::Inconsistent("a part of the rebuild ended early".to_owned()).into()),
        }
    }
    failed.map_or(Ok(all), Err)
}

async fn fill_partition(shared: &Shared, filler: &mut Filler, partition: Partition) -> Result<Filled, RebuildError> {
    let head = shared.heads[partition.index()];
    let mut replay = Replay::new(partition, &shared.models);
    let mut scan = shared.database.scan(partition, Position::ZERO, head.position);
    while replay.at.position < head.position {
        let rows = scan.next().await?;
        if rows.is_empty() {
            return Err(replay::gap(partition, replay.at.position));
        }
        let events = rows.len();
        replay.take(rows)?;
        shared.add_done(events);
        shared.pace.pay(events).await;
    }
    // No events: the partition's own beginning, which a restore may have put into a later epoch.
    let at = if head.position == Position::ZERO { head } else { replay.at };
    let folded = replay.finish();
    let filled = Filled::of(&folded, at);
    filler.fill(&shared.models, folded).await?;
    Ok(filled)
}

fn digest_of(folded: &Folded) -> (Hash, Hash) {
    let mut digest = PartitionDigest::default();
    folded.balances.iter().for_each(|balance| digest.add_balance(balance));
    folded.freezes.iter().for_each(|freeze| digest.add_freeze(freeze));
    digest.finish()
}
