//! One account, along its own events: from the newest back along `previous_position`, and then folded forward.

use std::time::{Duration, Instant};

use foldhash::HashMap;
use ledger_core::{Account, Event, Hash, Head, Partition, Position};
use ledger_store::{DamagedRow, Database, StoreError};
use projector::snapshot::{self, Whose};
use sqlx::AssertSqlSafe;

use super::{
    Verified,
    log::{Depth, Replay},
    places,
    read_models::ReadModels,
    stored,
};
use crate::{
    context::Failure,
    finding::{Finding, Findings, Kind},
    progress::Progress,
};

/// Steps of one statement that walks back.
const STEPS: usize = 5_000;
/// Events that are read at once, each with the one before it.
const AT_ONCE: usize = 500;

/// What this leaves out.
const NOT_CHECKED: [&str; 5] = [
    "other accounts",
    "gaps in the log, heads, epochs and atomic batches",
    "events of the account that neither the indexes nor its own events name",
    "the key, relation and history indexes, and what the account's row in account_positions says besides its position",
    "compensations",
];

pub(super) async fn verify(database: &Database, account: &Account, progress: &Progress) -> Result<Verified, Failure> {
    let began = Instant::now();
    let partition = account.partition();
    // The rows first: what is read of the log after them covers at least as much.
    let rows = snapshot::stored_rows(database, Whose::One(account.clone())).await?;
    let head = database.heads().await?[partition.index()];
    let mut findings = Findings::default();
    let mut checkpoint = |row, name| {
        let kinds = (Kind::CheckpointMissing, Kind::CheckpointMismatch);
        places::check_stand(partition, &stored::stand_of(row), kinds, name, &mut findings).map(|head| head.position)
    };
    let balances_at = checkpoint(rows.balances_at, "balances");
    let freezes_at = checkpoint(rows.freezes_at, "freezes");
    let mut read_models =
        ReadModels::new(partition, balances_at.map(|at| (at, rows.balances)), freezes_at.map(|at| (at, rows.freezes)));
    let positions = find(database, account, &head, &mut findings).await?;
    if positions.is_empty() && read_models.furthest() == Position::ZERO && head.position == Position::ZERO {
        return Err(Failure::new(unknown(account)));
    }
    let mut replay = Replay::new(partition, Depth::Full);
    replay.findings = findings;
    progress.expect(positions.len() as u64);
    begin_after_break(database, partition, positions.first().copied(), &mut replay).await?;
    for chunk in positions.chunks(AT_ONCE) {
        let rows = rows_with_neighbours(database, partition, chunk).await?;
        for position in chunk {
            let Some(row) = rows.get(position) else { continue };
            if let Ok(event) = row
                && event.account != *account
            {
                let expected = format!("an event of {}/{}", account.user_id(), account.credit_type());
                let found = "an event of another account";
                replay.findings.push(Finding::of(Kind::VersionMismatch, event, expected, found));
                continue;
            }
            read_models.at(Position(position.0.saturating_sub(1)), &mut replay);
            let before = Position(position.0.saturating_sub(1));
            let hash = match rows.get(&before) {
                Some(Ok(event)) => Some(event.hash),
                Some(Err(_)) => None,
                None => (before == Position::ZERO).then_some(Hash::ZERO),
            };
            replay.take_alone(row, hash);
        }
        progress.advance(chunk.len() as u64);
    }
    read_models.at(head.position.max(read_models.furthest()), &mut replay);
    if positions.is_empty() && replay.findings.count == 0 {
        return Err(Failure::new(unknown(account)));
    }
    if replay.findings.log_is_damaged() {
        replay.findings.of_damaged_log();
    }
    let mut findings = std::mem::take(&mut replay.findings);
    findings.settle();
    Ok(Verified {
        events: replay.events,
        accounts: replay.accounts.len() as u64,
        freezes: replay.freezes().len() as u64,
        digest: Hash::ZERO,
        is_whole: false,
        findings,
        not_checked: NOT_CHECKED.into_iter().chain([super::key_not_compared(database)]).collect(),
        partitions: vec![(partition, replay.events)],
        took: began.elapsed().max(Duration::from_nanos(1)),
    })
}

fn unknown(account: &Account) -> String {
    format!(
        "--account: the ledger holds no account {}/{}; write USER/CREDIT_TYPE as in its commands",
        account.user_id(),
        account.credit_type()
    )
}

/// The positions of the account's events, ascending: back from the newest one that the index names, and those that came
/// after the index's checkpoint. Where the index cannot be believed, the whole partition is looked through.
async fn find(
    database: &Database,
    account: &Account,
    head: &Head,
    findings: &mut Findings,
) -> Result<Vec<Position>, StoreError> {
    let partition = account.partition();
    let stand = stored::index_checkpoints(database).await?.swap_remove(partition.index());
    let kinds = (Kind::CheckpointMissing, Kind::CheckpointMismatch);
    let checkpoint = places::check_stand(partition, &stand, kinds, places::INDEXES, findings);
    let indexed = newest_indexed(database, account).await?;
    let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.position <= head.position) else {
        return filter(database, account, Position::ZERO, head.position).await;
    };
    let mut positions = Vec::new();
    if let Some(indexed) = indexed {
        let named = database.rows_at(&[(partition, indexed)]).await?.pop();
        let is_own = |row: &Result<Event, DamagedRow>| row.as_ref().map_or(true, |event| event.account == *account);
        if !named.as_ref().is_some_and(is_own) {
            let expected = "the account's newest event in account_positions";
            let found = format!("position {indexed}, which is not one of its events");
            findings.push(Finding::at(Kind::IndexMismatch, partition, indexed, expected, found).owned_by(account));
            return filter(database, account, Position::ZERO, head.position).await;
        }
        positions = walk_back(database, partition, indexed).await?;
    }
    let newest = positions.last().copied().unwrap_or_default();
    positions.extend(filter(database, account, newest.max(checkpoint.position), head.position).await?);
    Ok(positions)
}

/// Where the index says that the account's newest event is.
async fn newest_indexed(database: &Database, account: &Account) -> Result<Option<Position>, StoreError> {
    let number = account.partition().number();
    let position: Option<i64> = match database {
        Database::Postgres(database) => {
            sqlx::query_scalar("select position from account_positions where partition = $1 and account_id = $2")
                .bind(i16::from(number))
                .bind(account.id().uuid())
                .fetch_optional(database.pool())
                .await?
        }
        Database::Sqlite(database) => {
            sqlx::query_scalar("select position from account_positions where partition = ? and account_id = ?")
                .bind(i64::from(number))
                .bind(account.id().to_string())
                .fetch_optional(database.readers())
                .await?
        }
    };
    // One below 0 names no event, like 0.
    Ok(position.map(|position| Position(u64::try_from(position).unwrap_or(0))))
}

/// The positions along `previous_position` from `from` back to the first, ascending.
async fn walk_back(database: &Database, partition: Partition, from: Position) -> Result<Vec<Position>, StoreError> {
    let mut positions = Vec::new();
    let mut next = Some(from);
    while let Some(from) = next {
        let sql = format!(
            "with recursive walk (position, previous_position, step) as ( \
                 select position, previous_position, 1 from events where partition = {partition} and position = {from} \
                 union all \
                 select e.position, e.previous_position, w.step + 1 from walk w \
                 join events e on e.partition = {partition} and e.position = w.previous_position \
                 where w.step < {STEPS} and w.previous_position < w.position) \
             select position, previous_position from walk order by step"
        );
        let steps: Vec<(i64, i64)> = match database {
            Database::Postgres(database) => sqlx::query_as(AssertSqlSafe(sql)).fetch_all(database.pool()).await?,
            Database::Sqlite(database) => sqlx::query_as(AssertSqlSafe(sql)).fetch_all(database.readers()).await?,
        };
        let place = |position: i64| Position(u64::try_from(position).unwrap_or(0));
        positions.extend(steps.iter().map(|(position, _)| place(*position)));
        // A full step may have more behind it; the chain only ever goes down.
        let last = steps.last().filter(|_| steps.len() == STEPS);
        next = last.map(|(_, previous)| place(*previous)).filter(|previous| {
            *previous > Position::ZERO && positions.last().is_some_and(|position| previous < position)
        });
    }
    positions.reverse();
    Ok(positions)
}

/// The positions of the account's events in a part of the log, damaged rows among them: they may be its own.
async fn filter(
    database: &Database,
    account: &Account,
    after: Position,
    to: Position,
) -> Result<Vec<Position>, StoreError> {
    let mut scan = database.scan(account.partition(), after, to);
    let mut positions = Vec::new();
    loop {
        let rows = scan.next().await?;
        if rows.is_empty() {
            return Ok(positions);
        }
        positions.extend(rows.iter().flatten().filter(|event| event.account == *account).map(|event| event.position));
    }
}

/// When the first event that was found is not the account's first, the chain is broken there: that is what is named.
async fn begin_after_break(
    database: &Database,
    partition: Partition,
    first: Option<Position>,
    replay: &mut Replay,
) -> Result<(), StoreError> {
    let Some(first) = first else { return Ok(()) };
    let Some(Ok(event)) = database.rows_at(&[(partition, first)]).await?.pop() else { return Ok(()) };
    let previous = event.previous_position;
    if (Position(1)..first).contains(&previous) {
        let expected = format!("position {previous}, the account's event before position {first}");
        let finding = Finding::at(Kind::Gap, partition, previous, expected, "nothing").owned_by(&event.account);
        replay.findings.push(finding);
        replay.doubts.lose(previous, previous);
    }
    Ok(())
}

/// Rows by position: those that are asked for and the one before each, whose hash they follow.
async fn rows_with_neighbours(
    database: &Database,
    partition: Partition,
    positions: &[Position],
) -> Result<HashMap<Position, Result<Event, DamagedRow>>, StoreError> {
    let with_neighbours = positions.iter().flat_map(|position| [Position(position.0.saturating_sub(1)), *position]);
    let mut places: Vec<_> =
        with_neighbours.filter(|position| *position > Position::ZERO).map(|position| (partition, position)).collect();
    places.dedup();
    let rows = database.rows_at(&places).await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.as_ref().map_or_else(|damage| damage.position, |event| event.position), row))
        .collect())
}
