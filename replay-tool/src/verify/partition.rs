//! The verification of one partition: its log is read once, and all that is compared with it waits beside.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use ledger_core::{AccountId, BusinessKey, Event, Freeze, Hash, Head, Partition, Position, Timestamp};
use ledger_store::{DamagedRow, Database, StoreError};
use projector::snapshot::{self, CheckpointRow, Whose};

use super::{
    batches::Sums,
    compensations,
    indexes::Indexes,
    log::{Depth, Replay, key_digest},
    places::{self, INDEXES, PUBLISHER, Places, Witness},
    read_models::ReadModels,
    stored::{self, Restore, Stand},
};
use crate::{
    anchor::Anchor,
    finding::{Finding, Findings, Kind},
    progress::Progress,
};

/// Rows past a head, or before the first position, that are named.
const STRAY_ROWS_MAX: usize = 1_000;

/// What every partition is compared with, read once.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) depth: Depth,
    /// Only events recorded from then on.
    pub(super) since: Option<Timestamp>,
    /// What the rows of compensations came to when the heads were these.
    pub(super) compensations: compensations::Sums,
    pub(super) heads: Vec<Stand>,
    pub(super) indexes: Vec<Stand>,
    pub(super) published: Vec<Stand>,
    pub(super) restores: Vec<Vec<Result<Restore, String>>>,
    pub(super) anchors: Vec<Anchor>,
    /// What is past its expiry is past it now.
    pub(super) now: Timestamp,
}

/// What a partition came to.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) partition: Partition,
    pub(super) events: u64,
    pub(super) accounts: u64,
    pub(super) freezes: u64,
    pub(super) digest: (Hash, Hash),
    pub(super) batches: Sums,
    pub(super) compensations: compensations::Sums,
    pub(super) findings: Findings,
}

/// What is compared on the way.
pub(super) struct Beside {
    pub(super) places: Places,
    pub(super) read_models: ReadModels,
    pub(super) indexes: Option<Indexes>,
    batches: Sums,
    compensations: compensations::Sums,
    /// An atomic batch is one commit, so at one vector of heads it is whole or absent.
    pub(super) head: Position,
    /// The newest position of which there is a row.
    newest: Position,
}

pub(super) async fn verify(
    database: Database,
    partition: Partition,
    around: Arc<Around>,
    progress: Progress,
) -> Result<Part, StoreError> {
    let mut findings = Findings::default();
    let (mut beside, end) = prepare(&database, partition, &around, &mut findings).await?;
    let mut replay = begin(&database, partition, &around, end).await?;
    replay.expect(end.0.saturating_sub(replay.position().0));
    replay.findings = findings;
    let is_whole = replay.position() == Position::ZERO;
    beside.places.begin_after(replay.position());
    beside.reach(Position::ZERO, &mut replay);
    let mut scan = match around.depth {
        Depth::Full => database.scan(partition, replay.position(), end),
        Depth::Fold => database.scan_for_fold(partition, replay.position(), end),
    };
    loop {
        let rows = scan.next().await?;
        if rows.is_empty() {
            break;
        }
        if !is_whole {
            seed(&database, partition, &rows, &mut replay).await?;
        }
        for row in &rows {
            beside.pass(row, &mut replay);
        }
        progress.advance(rows.len() as u64);
    }
    // Positions that the head promises and that are not there.
    replay.skip_to(end.next());
    beside.reach(end, &mut replay);
    finish(&database, partition, &around, replay, beside).await
}

/// Reads all that the log is compared with, and finds up to where it is read.
pub(super) async fn prepare(
    database: &Database,
    partition: Partition,
    around: &Around,
    findings: &mut Findings,
) -> Result<(Beside, Position), StoreError> {
    let index = partition.index();
    let is_full = around.depth == Depth::Full;
    let (missing, damaged) = (Kind::HeadMissing, Kind::HeadMismatch);
    let head = places::check_stand(partition, &around.heads[index], (missing, damaged), "partition_heads", findings);
    let mut places = Places::new(partition, head.map(|head| head.epoch));
    places.extend(head.map(|head| (head, Witness::Head)));
    let mut read_models = ReadModels::new(partition, None, None);
    let mut indexes = None;
    if is_full {
        find_before_first(database, partition, findings).await?;
        add_witnesses(partition, around, &mut places, findings);
        if around.since.is_none() {
            read_models = read_read_models(database, partition, &mut places, findings).await?;
            indexes = read_indexes(database, partition, around, &mut places, findings).await?;
        }
    }
    let newest = stored::newest_position(database, partition).await?;
    // What is compared may be further than the heads that were read before it; then the replay goes as far as that.
    let now = stored::heads(database).await?.swap_remove(index).head().map(|head| head.position);
    let furthest = read_models.furthest().max(indexes.as_ref().map_or(Position::ZERO, Indexes::checkpoint));
    let end = match (head, now) {
        (Some(head), Some(now)) => head.position.max(furthest.min(now)),
        _ => newest,
    };
    if let Some(now) = now
        && is_full
        && newest > now.max(end)
    {
        find_beyond_head(database, partition, now.max(end), findings).await?;
    }
    let head = head.map_or(end, |head| head.position);
    let (batches, compensations) = (Sums::default(), compensations::Sums::default());
    Ok((Beside { places, read_models, indexes, batches, compensations, head, newest }, end))
}

/// What others have seen of the partition: the publisher, restores, anchors.
pub(super) fn add_witnesses(partition: Partition, around: &Around, places: &mut Places, findings: &mut Findings) {
    let index = partition.index();
    let restores: Vec<_> = around.restores[index].iter().flatten().cloned().collect();
    for why in around.restores[index].iter().filter_map(|restore| restore.as_ref().err()) {
        let expected = "an epoch, a position, a hash and a time in restores";
        findings.push(Finding::of_partition(Kind::RestoreMismatch, partition, expected, why.as_str()));
    }
    let (published, kinds) = (&around.published[index], (Kind::CheckpointMissing, Kind::CheckpointMismatch));
    // Where the ledger never published there is no row.
    if *published != Stand::Missing
        && let Some(published) = places::check_stand(partition, published, kinds, PUBLISHER, findings)
        && places::voided_by(&published, &restores).is_none()
    {
        places.add(published, Witness::Checkpoint(PUBLISHER));
    }
    for restore in &restores {
        let at = Head { epoch: restore.epoch, position: restore.position, hash: restore.hash };
        // A later restore may have gone back behind it.
        if places::voided_by(&at, &restores).is_none() {
            places.add(at, Witness::Restore(restore.epoch));
        }
    }
    for anchor in &around.anchors {
        for (_, at) in anchor.heads.iter().filter(|(of, _)| *of == partition) {
            match places::voided_by(at, &restores) {
                Some(restore) => {
                    findings.notice(places::lost_in_restore(partition, at, &anchor.source, restore));
                }
                None => places.add(*at, Witness::Anchor(anchor.source.clone())),
            }
        }
    }
}

async fn read_read_models(
    database: &Database,
    partition: Partition,
    places: &mut Places,
    findings: &mut Findings,
) -> Result<ReadModels, StoreError> {
    let rows = snapshot::stored_rows(database, Whose::All(partition)).await?;
    let mut checkpoint = |row: Option<CheckpointRow>, name: &'static str| {
        let kinds = (Kind::CheckpointMissing, Kind::CheckpointMismatch);
        let head = places::check_stand(partition, &stored::stand_of(row), kinds, name, findings);
        places.extend(head.map(|head| (head, Witness::Checkpoint(name))));
        head.map(|head| head.position)
    };
    let balances = checkpoint(rows.balances_at, "balances").map(|at| (at, rows.balances));
    let freezes = checkpoint(rows.freezes_at, "freezes").map(|at| (at, rows.freezes));
    Ok(ReadModels::new(partition, balances, freezes))
}

async fn read_indexes(
    database: &Database,
    partition: Partition,
    around: &Around,
    places: &mut Places,
    findings: &mut Findings,
) -> Result<Option<Indexes>, StoreError> {
    let kinds = (Kind::CheckpointMissing, Kind::CheckpointMismatch);
    let stand = &around.indexes[partition.index()];
    let Some(head) = places::check_stand(partition, stand, kinds, INDEXES, findings) else { return Ok(None) };
    places.add(head, Witness::Checkpoint(INDEXES));
    let rows = database.index_rows(partition).await?;
    // It only moves forward: what is in the rows is at least what it promised before.
    let Some(checkpoint) = rows.checkpoint.and_then(|position| u64::try_from(position).ok()) else { return Ok(None) };
    Ok(Some(Indexes::new(partition, Position(checkpoint), rows)))
}

/// A replay from the beginning, or from the newest event before `since`.
async fn begin(
    database: &Database,
    partition: Partition,
    around: &Around,
    end: Position,
) -> Result<Replay, StoreError> {
    let from_beginning = Replay::new(partition, around.depth);
    let Some(before) = around.since.and_then(|since| Timestamp::from_micros(since.micros() - 1)) else {
        return Ok(from_beginning);
    };
    let found = database.newest_at_or_before(partition, before, end).await;
    let start = match found {
        Ok(start) => start,
        // What is damaged is named by a replay of all of the partition.
        Err(StoreError::Damaged(_)) => return Ok(from_beginning),
        Err(error) => return Err(error),
    };
    let event = database.rows_at(&[(partition, start)]).await?.pop();
    Ok(event.and_then(Result::ok).map_or(from_beginning, |event| Replay::after(&event)))
}

/// Reads the events from before the first that is looked at and that these rows build on.
async fn seed(
    database: &Database,
    partition: Partition,
    rows: &[Result<Event, DamagedRow>],
    replay: &mut Replay,
) -> Result<(), StoreError> {
    let places: Vec<_> = replay.wants(rows).into_iter().map(|position| (partition, position)).collect();
    for places in places.chunks(1_000) {
        database.rows_at(places).await?.iter().flatten().for_each(|event| replay.seed(event));
    }
    Ok(())
}

impl Beside {
    /// Takes a row into the replay, and compares all that is due before it and at it.
    fn pass(&mut self, row: &Result<Event, DamagedRow>, replay: &mut Replay) {
        let position = row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
        self.reach(Position(position.0.saturating_sub(1)), replay);
        replay.take(row);
        if let Ok(event) = row {
            if let Some(mark) = event.batch
                && position <= self.head
            {
                self.batches.add(mark);
            }
            if position <= self.head {
                self.compensations.add_event(event.key.code(), event.operation_id, event.batch);
            }
            if let Some(indexes) = &mut self.indexes {
                indexes.take(event);
            }
        }
        if self.places.are_due(position) {
            self.places.at(position, row.as_ref().ok(), replay);
        }
    }

    /// Compares what is due once the replay stands at `position`.
    fn reach(&mut self, position: Position, replay: &mut Replay) {
        if self.places.are_due(position) {
            self.places.at(position, None, replay);
        }
        self.read_models.at(position, replay);
        if let Some(indexes) = &mut self.indexes {
            indexes.at(position, replay);
        }
    }
}

async fn finish(
    database: &Database,
    partition: Partition,
    around: &Around,
    mut replay: Replay,
    beside: Beside,
) -> Result<Part, StoreError> {
    let Beside { places, indexes, batches, compensations, newest, .. } = beside;
    let index = partition.index();
    let mut findings = std::mem::take(&mut replay.findings);
    places.finish(&replay, newest, &mut findings);
    if around.depth == Depth::Full {
        let restores: Vec<_> = around.restores[index].iter().flatten().cloned().collect();
        let head = &around.heads[index];
        places::check_epochs(partition, &replay.epochs, head, &restores, &replay.doubts, &mut findings);
        note_expired(partition, replay.freezes(), around.now, &mut findings);
    }
    replay.findings = findings;
    let repeated = replay.repeated_keys();
    if !repeated.is_empty() {
        find_repeated_keys(database, partition, &repeated, &mut replay).await?;
    }
    if let Some(indexes) = indexes {
        indexes.finish(database, &mut replay).await?;
    }
    if replay.findings.log_is_damaged() {
        replay.findings.of_damaged_log();
    }
    Ok(Part {
        partition,
        events: replay.events,
        accounts: replay.accounts.len() as u64,
        freezes: replay.freezes().len() as u64,
        digest: replay.digest(),
        batches,
        compensations,
        findings: replay.findings,
    })
}

/// Freezes that the expiry job has not released yet.
pub(super) fn note_expired(partition: Partition, freezes: &[Freeze], now: Timestamp, findings: &mut Findings) {
    for freeze in freezes.iter().filter(|freeze| has_expired(freeze, now)) {
        let at = freeze.expires_at.map(|at| at.to_string()).unwrap_or_default();
        let (expected, found) =
            (format!("released at {at}"), format!("{} of {} still held", freeze.remaining, freeze.amount));
        findings.notice(Finding::of_freeze(Kind::FreezeExpired, partition, freeze, expected, found));
    }
}

pub(super) fn has_expired(freeze: &Freeze, now: Timestamp) -> bool {
    freeze.remaining > 0 && freeze.expires_at.is_some_and(|at| at <= now)
}

/// Names the events that bind a key which an earlier event of their account bound. The log is read again for it: which
/// keys there are is not kept, only what they come to in 64 bits.
async fn find_repeated_keys(
    database: &Database,
    partition: Partition,
    repeated: &[u64],
    replay: &mut Replay,
) -> Result<(), StoreError> {
    let repeated: HashSet<_> = repeated.iter().copied().collect();
    let mut bound: HashMap<(AccountId, BusinessKey), Position> = HashMap::default();
    let mut scan = database.scan(partition, Position::ZERO, replay.position());
    loop {
        let rows = scan.next().await?;
        if rows.is_empty() {
            return Ok(());
        }
        for event in rows.iter().flatten().filter(|event| repeated.contains(&key_digest(event))) {
            let first = *bound.entry((event.account.id(), event.key.clone())).or_insert(event.position);
            if first == event.position {
                continue;
            }
            if replay.doubts.covers(event.position) {
                replay.findings.consequences += 1;
                continue;
            }
            let found = format!("{} {} again, which position {first} bound", event.key.code(), event.key.id());
            replay.findings.push(Finding::of(Kind::DuplicateKey, event, "a key that is new to the account", found));
            replay.doubts.change(event.position, None);
        }
    }
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
    let rows = database.rows_after(partition, head, STRAY_ROWS_MAX).await?;
    let heads = stored::heads(database).await?;
    let Some(head) = heads[partition.index()].head().map(|now| now.position.max(head)) else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use ledger_core::{Account, Action, Amount, Command, Provenance};
    use ledger_store::{Ledger, LedgerOptions};
    use sqlx::{Connection, SqliteConnection};

    use super::*;
    use crate::verify::{Options, look_around};

    /// Credits an account; the indexes follow at the end, the read models do not.
    async fn credit(database: &Database, account: &Account, numbers: Range<u32>) {
        let ledger = Ledger::start(database.clone(), LedgerOptions::default()).await.expect("a ledger");
        for number in numbers {
            let command = Command {
                action: Action::Credit { account: account.clone(), amount: Amount::new(5).expect("valid") },
                key: BusinessKey::new("test", &number.to_string()).expect("valid"),
                expected_version: None,
                provenance: Provenance {
                    operation_id: None,
                    request_id: "request".into(),
                    actor: "test".into(),
                    description: None,
                    metadata: None,
                },
            };
            ledger.execute(command).await.expect("not refused");
        }
        ledger.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn indexes_that_are_further_than_the_heads_are_compared_all_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite://{}/ledger.db", folder.path().display());
        let database = Database::open(&url).await.expect("a new ledger");
        let account = Account::new("ann", "points").expect("valid");
        let partition = account.partition();
        credit(&database, &account, 0..3).await;
        let around = Arc::new(look_around(&database, &Options::default()).await.expect("readable"));
        // The service goes on before the partition is looked at.
        credit(&database, &account, 3..6).await;
        assert_eq!(database.index_rows(partition).await.expect("readable").checkpoint, Some(6));
        for (damage, expected) in [
            ("select 1", None),
            ("update account_positions set position = 5", Some(Kind::IndexMismatch)),
            // With a checkpoint past the log there is nothing to compare the rows with.
            ("update index_checkpoints set position = 99", Some(Kind::CheckpointMismatch)),
        ] {
            let mut connection = SqliteConnection::connect(&url).await.expect("the file is there");
            sqlx::raw_sql(damage).execute(&mut connection).await.expect("done");
            connection.close().await.expect("closed");
            let part = verify(database.clone(), partition, around.clone(), Progress::new("verifying")).await;
            let found = part.expect("readable").findings.kinds.into_keys();
            assert_eq!(found.collect::<Vec<_>>(), Vec::from_iter(expected), "{damage}");
        }
        database.close().await;
    }
}
