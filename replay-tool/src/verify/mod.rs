//! `verify`: the whole log is replayed, partition by partition, and everything is compared with everything.

mod batches;
mod log;
mod read_models;

use std::time::{Duration, Instant};

use ledger_core::{
    Event, Hash, Head, PARTITIONS, Partition, Position,
    digest::{self, PartitionDigest},
};
use ledger_store::{Database, StoreError};
use projector::snapshot;

use crate::{
    finding::{Finding, Findings, Kind},
    progress::Progress,
};
use batches::Batches;
use log::Replay;
use read_models::Comparison;

/// Rows of one read: a short transaction that pins nothing for long.
const PAGE: usize = 5_000;

/// What verification came to.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) events: u64,
    pub(crate) accounts: u64,
    /// Of the replayed balances and freezes.
    pub(crate) digest: Hash,
    pub(crate) findings: Findings,
    pub(crate) took: Duration,
}

/// Replays the log as it stands now. A service may go on writing: what it writes meanwhile is not looked at.
pub(crate) async fn verify(database: &Database, progress: &Progress) -> Result<Verified, StoreError> {
    let began = Instant::now();
    let heads = database.heads().await?;
    progress.expect(heads.iter().fold(0, |sum, head| sum.saturating_add(head.position.0)));
    let mut batches = Batches::new(heads.map(|head| head.position));
    let mut findings = Findings::default();
    let mut digests = [(Hash::ZERO, Hash::ZERO); PARTITIONS];
    let (mut events, mut accounts) = (0, 0);
    for partition in Partition::all() {
        let head = &heads[partition.index()];
        let replay = verify_partition(database, partition, head, &mut batches, &mut findings, progress).await?;
        digests[partition.index()] = digest_of(&replay);
        events += replay.events;
        accounts += replay.accounts.len() as u64;
    }
    batches.finish(&mut findings);
    progress.finish();
    Ok(Verified { events, accounts, digest: digest::combine(&digests), findings, took: began.elapsed() })
}

async fn verify_partition(
    database: &Database,
    partition: Partition,
    head: &Head,
    batches: &mut Batches,
    findings: &mut Findings,
    progress: &Progress,
) -> Result<Replay, StoreError> {
    // The read models may be further than the heads that were read before them; then the replay goes as far as they do.
    let mut comparison = Comparison::new(partition, snapshot::read(database, partition).await?);
    let now = database.heads().await?[partition.index()];
    let end = head.position.max(comparison.furthest().min(now.position));
    let mut replay = Replay::new(partition);
    let mut newest: Option<Event> = None;
    find_before_first(database, partition, findings).await?;
    if head.position == Position::ZERO {
        replay.check_empty_head(head, findings);
    }
    comparison.at(Position::ZERO, None, &replay.accounts, &replay.freezes, findings);
    while replay.position() < end {
        let missing = usize::try_from(end.0 - replay.position().0).unwrap_or(usize::MAX);
        let rows = database.rows_after(partition, replay.position(), missing.min(PAGE)).await?;
        let mut read = 0;
        for row in rows {
            if row.as_ref().map_or_else(|damage| damage.position, |event| event.position) > end {
                break;
            }
            newest = replay.take(row, batches, findings);
            read += 1;
            comparison.at(replay.position(), newest.as_ref(), &replay.accounts, &replay.freezes, findings);
            if replay.position() == head.position {
                replay.check_head(head, newest.as_ref(), findings);
            }
        }
        progress.advance(read);
        if read == 0 {
            break;
        }
    }
    // Positions that the head promises and that are not there.
    replay.skip_to(end.next(), findings);
    comparison.finish(replay.position(), findings);
    find_beyond_head(database, partition, now.position.max(end), findings).await?;
    drop(newest);
    Ok(replay)
}

/// Rows that no read of the log meets, because it begins at position 1.
async fn find_before_first(
    database: &Database,
    partition: Partition,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    for position in database.positions_before_first(partition).await? {
        let found = format!("a row at position {position}");
        findings.push(Finding::at(Kind::DamagedEvent, partition, Position::ZERO, "nothing before position 1", found));
    }
    Ok(())
}

/// Events and heads move together. So whatever is seen past the head must be below a head that is read after it.
async fn find_beyond_head(
    database: &Database,
    partition: Partition,
    head: Position,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let rows = database.rows_after(partition, head, PAGE).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let head = database.heads().await?[partition.index()].position;
    for row in rows {
        let position = row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
        if position > head {
            let expected = format!("nothing after the head at position {head}");
            findings.push(match &row {
                Ok(event) => Finding::of(Kind::BeyondHead, event, expected, "an event"),
                Err(damage) => Finding::at(Kind::BeyondHead, partition, position, expected, damage.to_string()),
            });
        }
    }
    Ok(())
}

fn digest_of(replay: &Replay) -> (Hash, Hash) {
    let mut balances: Vec<_> = replay.accounts.values().collect();
    balances.sort_unstable_by_key(|balance| balance.account.id());
    let mut freezes: Vec<_> = replay.freezes.values().collect();
    freezes.sort_unstable_by_key(|freeze| freeze.position);
    let mut digest = PartitionDigest::default();
    balances.into_iter().for_each(|balance| digest.add_balance(balance));
    freezes.into_iter().for_each(|freeze| digest.add_freeze(freeze));
    digest.finish()
}
