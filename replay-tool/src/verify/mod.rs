//! `verify`: the whole log is replayed, partition by partition, and everything is compared with everything.

mod account;
mod batches;
mod compensations;
mod doubt;
mod indexes;
mod log;
mod partition;
mod places;
mod read_models;
mod relations;
mod report;
mod show;
mod stored;
mod stream;
mod swept;

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ledger_core::{Account, Hash, PARTITIONS, Partition, Position, Timestamp, digest};
use ledger_store::{Database, StoreError, sweep::READERS_MAX};
use tokio::task::JoinSet;

use crate::{
    anchor::Anchor,
    argument::{parse_account, parse_time},
    context::{Context, Failure, Outcome},
    finding::Findings,
    progress::Progress,
    report::Place,
};
pub(crate) use log::Depth;
use partition::{Around, Part};

/// Replays every event and proves that what is served is what happened.
///
/// Checked are: gaps, the hash chain and the order of the log; ids; each account's versions and its state, folded from the
/// amounts alone; each capture, release and refund against its original; business keys; atomic batches; heads, epochs and
/// restores; the indexes and the states sealed in them; the rows of compensations; the balances and freezes, each at its
/// own checkpoint, so that lag is no inconsistency; and that the table's rows are those that its primary key names. Each
/// finding says what, where, what was expected, what was found, and what mends it. Damage is named once: what follows from
/// it is only counted.
///
/// A log whose end was cut off, or that was written anew with new hashes, agrees with itself: it is found out against
/// heads that were kept elsewhere (--anchor, --nats-url).
///
///     replay-tool --database-url postgres://… verify --anchor heads-2026-11-21.json --report verified.html
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this account, along its own events: quick, and says what it does not check. The credit type is what stands
    /// after the last slash.
    #[arg(long, value_name = "USER/CREDIT_TYPE", value_parser = parse_account,
          conflicts_with_all = ["partition", "since", "anchor", "digest_only"])]
    account: Option<Account>,
    /// Only this partition, 0 to 63.
    #[arg(long, value_name = "N", value_parser = partition_of)]
    partition: Option<Partition>,
    /// Only events recorded from this time on (RFC 3339, such as 2026-11-20T12:00:00Z). The states that the events before
    /// it carry are taken for granted.
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "digest_only")]
    since: Option<Timestamp>,
    /// Write a report that can be read and kept without this tool: one HTML file.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Compare the log with heads that were kept elsewhere: a file of `replay-tool heads`, or the manifest of an archive.
    /// May be given more than once.
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// Compare the log with the newest messages of the stream CREDIT on this NATS server. (--account and --digest-only
    /// compare nothing with it.)
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    nats_url: Option<String>,
    /// Only fold balances and freezes and print their digest: the quickest way to compare two databases.
    #[arg(long, conflicts_with_all = ["anchor"])]
    digest_only: bool,
}

/// What is verified, and against what.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Absent: every partition.
    pub(crate) partition: Option<Partition>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) depth: Depth,
    pub(crate) anchors: Vec<Anchor>,
}

impl Default for Options {
    fn default() -> Self {
        Self { partition: None, since: None, depth: Depth::Full, anchors: Vec::new() }
    }
}

/// What verification came to.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) events: u64,
    pub(crate) accounts: u64,
    pub(crate) freezes: u64,
    /// Of the replayed balances and freezes.
    pub(crate) digest: Hash,
    /// All of the log was replayed: the digest is the ledger's.
    pub(crate) is_whole: bool,
    pub(crate) findings: Findings,
    /// What a verification of a part of the ledger leaves out.
    pub(crate) not_checked: Vec<&'static str>,
    /// Events of each partition that was looked at.
    pub(crate) partitions: Vec<(Partition, u64)>,
    pub(crate) took: Duration,
}

impl Verified {
    pub(crate) const fn is_consistent(&self) -> bool {
        self.findings.count == 0
    }

    /// The ledger's digest, when all of the log was replayed.
    pub(crate) fn whole_digest(&self) -> Option<Hash> {
        self.is_whole.then_some(self.digest)
    }
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let page = Place::new(arguments.report.as_deref())?;
    let mut anchors = Vec::new();
    for path in &arguments.anchor {
        anchors.push(Anchor::read(path)?);
    }
    let database = context.open().await?;
    let progress = Progress::new("verifying");
    let verified = match &arguments.account {
        Some(account) => account::verify(&database, account, &progress).await,
        None => {
            if let Some(nats_url) = arguments.nats_url.as_ref().filter(|_| !arguments.digest_only) {
                let wanted = match arguments.partition {
                    Some(partition) => vec![partition],
                    None => written(&database).await?,
                };
                anchors.push(stream::heads(nats_url, &wanted).await?);
            }
            let options = Options {
                partition: arguments.partition,
                since: arguments.since,
                depth: if arguments.digest_only { Depth::Fold } else { Depth::Full },
                anchors,
            };
            verify_part(&database, &options, &progress).await.map_err(Failure::from)
        }
    };
    progress.finish();
    let place = database.describe();
    database.close().await;
    let verified = verified?;
    let outcome = show::show(&verified, context.json);
    page.write(|| report::page(&verified, &place))?;
    Ok(outcome)
}

/// Replays the log as it stands now. A service may go on writing: what it writes meanwhile is not looked at.
///
/// # Errors
///
/// When the database cannot be read.
pub(crate) async fn verify(database: &Database, progress: &Progress) -> Result<Verified, StoreError> {
    verify_part(database, &Options::default(), progress).await
}

/// The same, as the options say.
///
/// # Errors
///
/// When the database cannot be read.
pub(crate) async fn verify_part(
    database: &Database,
    options: &Options,
    progress: &Progress,
) -> Result<Verified, StoreError> {
    let began = Instant::now();
    let around = Arc::new(look_around(database, options).await?);
    let head = |partition: Partition| around.heads[partition.index()].head().map_or(0, |head| head.position.0);
    let partitions: Vec<_> = match options.partition {
        Some(partition) => vec![partition],
        None => Partition::all().collect(),
    };
    progress.expect(partitions.iter().fold(0, |sum: u64, partition| sum.saturating_add(head(*partition))));
    // Quickly as far as everything agrees; what does not is looked at partition by partition.
    let swept::Swept { mut parts, doubtful: partitions, table } =
        if options.partition.is_none() && options.since.is_none() {
            let swept = swept::verify(database, &around, progress).await?;
            tracing::info!(doubtful = swept.doubtful.len(), "swept");
            swept
        } else {
            swept::Swept { doubtful: partitions, ..swept::Swept::default() }
        };
    let mut tasks = JoinSet::new();
    let mut waiting = partitions.into_iter();
    loop {
        while tasks.len() < at_once()
            && let Some(partition) = waiting.next()
        {
            tasks.spawn(partition::verify(database.clone(), partition, around.clone(), progress.clone()));
        }
        let Some(part) = tasks.join_next().await else { break };
        parts.push(
            part.map_err(|error| {
                StoreError::Inconsistent(format!("a partition's verification ended early: {error}"))
            })??,
        );
    }
    parts.sort_by_key(|part| part.partition);
    let is_key_compared = table.is_compared;
    table.name(&mut parts);
    let mut verified = sum_up(parts, options, database, &around).await?;
    if !is_key_compared {
        verified.not_checked.push(key_not_compared(database));
    }
    verified.took = began.elapsed();
    Ok(verified)
}

/// How many partitions are looked at at once: as many as there are cores, up to what the database reads at once. Each has its
/// accounts and freezes in memory.
fn at_once() -> usize {
    within(thread::available_parallelism().map_or(2, usize::from), 0)
}

/// Readers for so many cores and `besides`.
fn within(cores: usize, besides: usize) -> usize {
    cores.saturating_add(besides).min(READERS_MAX)
}

async fn look_around(database: &Database, options: &Options) -> Result<Around, StoreError> {
    let is_full = options.depth == Depth::Full;
    // The checkpoints first: heads only grow, so heads that are read later are never behind them.
    let indexes = if is_full { stored::index_checkpoints(database).await? } else { Vec::new() };
    let published = if is_full { stored::published(database).await? } else { Vec::new() };
    let restores = if is_full { stored::restores(database).await?.into() } else { Vec::new() };
    let (heads, compensations) = stored::heads_and_compensations(database).await?;
    Ok(Around {
        depth: options.depth,
        since: options.since,
        indexes,
        published,
        restores,
        compensations,
        heads,
        anchors: options.anchors.clone(),
        now: now(),
    })
}

async fn sum_up(
    parts: Vec<Part>,
    options: &Options,
    database: &Database,
    around: &Around,
) -> Result<Verified, StoreError> {
    let mut verified = Verified {
        events: 0,
        accounts: 0,
        freezes: 0,
        digest: Hash::ZERO,
        is_whole: options.partition.is_none() && options.since.is_none(),
        findings: Findings::default(),
        not_checked: not_checked(options),
        partitions: Vec::new(),
        took: Duration::ZERO,
    };
    let mut batches = batches::Sums::default();
    let mut compensated = compensations::Sums::default();
    let mut digests = [(Hash::ZERO, Hash::ZERO); PARTITIONS];
    for part in parts {
        verified.events += part.events;
        verified.accounts += part.accounts;
        verified.freezes += part.freezes;
        verified.partitions.push((part.partition, part.events));
        verified.findings.absorb(part.findings);
        batches.absorb(&part.batches);
        compensated.absorb(part.compensations);
        digests[part.partition.index()] = part.digest;
    }
    verified.digest = digest::combine(&digests);
    if verified.is_whole && options.depth == Depth::Full {
        let heads =
            std::array::from_fn(|index| around.heads[index].head().map_or(Position::ZERO, |head| head.position));
        batches::find(database, &batches, &heads, &mut verified.findings).await?;
        compensations::find(database, &compensated, &around.compensations, &mut verified.findings).await?;
    }
    verified.findings.settle();
    Ok(verified)
}

/// What these options leave out.
fn not_checked(options: &Options) -> Vec<&'static str> {
    let mut left_out = Vec::new();
    if options.partition.is_some() {
        left_out.extend(["the other partitions", "atomic batches and compensations, which cross partitions"]);
    }
    if options.since.is_some() {
        left_out.extend([
            "events recorded before --since, and the states that they carry",
            "business keys that they bound, and how much of their freezes and deductions was left",
            "the indexes and the read models",
        ]);
        if options.partition.is_none() {
            left_out.push("atomic batches and compensations");
        }
    }
    if options.depth == Depth::Fold {
        left_out.extend([
            "hashes, ids, business keys, refunds' originals, atomic batches and compensations",
            "the indexes and the read models",
        ]);
    }
    left_out
}

/// That the index through which everybody reads the log was not compared with it, and what does that.
const fn key_not_compared(database: &Database) -> &'static str {
    match database {
        Database::Postgres(_) => {
            "the index of the primary key of events against the table: `pg_amcheck --heapallindexed --table events` does that"
        }
        Database::Sqlite(_) => "the index of the primary key of events against the table",
    }
}

/// The partitions that have events.
async fn written(database: &Database) -> Result<Vec<Partition>, StoreError> {
    let heads = stored::heads(database).await?;
    let has_events = |head: &stored::Stand| head.head().is_none_or(|head| head.position > Position::ZERO);
    Ok(Partition::all().zip(&heads).filter(|(_, head)| has_events(head)).map(|(partition, _)| partition).collect())
}

fn now() -> Timestamp {
    let micros = chrono::Utc::now().timestamp_micros();
    Timestamp::from_micros(micros).unwrap_or_else(|| Timestamp::from_micros(0).expect("1970 is a time"))
}

fn partition_of(text: &str) -> Result<Partition, String> {
    let number = text.parse().ok().and_then(Partition::new);
    number.ok_or_else(|| format!("write a whole number from 0 to {}", PARTITIONS - 1))
}
