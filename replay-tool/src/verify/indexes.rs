//! The indexes behind the log: what they hold of it up to their checkpoint is what the log makes of them.
//!
//! Of the key index, which has a row for each event, only a sum for each run is kept; where it differs, the run is looked
//! at row by row. What is written after the checkpoint, while others look, is compared with its own events.

use foldhash::{HashMap, HashSet};
use ledger_core::{AccountId, AccountState, Event, Partition, Position};
use ledger_store::{
    Database, StoreError,
    index_rows::{AccountRow, HISTORY_STRIDE, IndexRows, KeyRow, key_rows_of, key_run, positions_of},
};
use uuid::Uuid;

use super::{doubt::Doubts, log::Replay, places::INDEXES};
use crate::finding::{self, Finding, Findings, Kind};

/// Rows after the checkpoint that are compared with their events; there are more only for a moment.
const NEWER_MAX: usize = 20_000;
/// Rows that are compared with their events at once.
const NEWER_AT_ONCE: usize = 500;

/// What some rows of a run add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    rows: u64,
    sum: u64,
}

impl Sum {
    pub(super) const fn add(&mut self, row: &KeyRow) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let place = row.position.cast_unsigned();
        let mixed = (row.business ^ place.wrapping_mul(ODD)).wrapping_mul(ODD | 2);
        let mixed = (mixed ^ mixed >> 29 ^ row.account.wrapping_mul(ODD)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.rows += 1;
        self.sum = self.sum.wrapping_add(mixed ^ mixed >> 32);
    }

    pub(super) const fn absorb(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// What the log makes of a partition's indexes, and what they are.
#[derive(Debug)]
pub(super) struct Indexes {
    partition: Partition,
    /// Up to where they must hold the log.
    checkpoint: Position,
    /// Until they are compared.
    rows: Option<IndexRows>,
    newest_about: HashMap<Position, Position>,
    history: HashMap<(AccountId, u64), Position>,
    runs: Vec<Sum>,
    /// Rows that name a place after the checkpoint.
    newer: Vec<(Position, Newer)>,
}

/// What the event at such a place must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Newer {
    Account(Uuid, Option<AccountState>),
    About(Position),
    History(Uuid, i64),
    Key(KeyRow),
}

impl Indexes {
    pub(super) fn new(partition: Partition, checkpoint: Position, rows: IndexRows) -> Self {
        let runs = usize::try_from(key_run(checkpoint)).unwrap_or(0).min(1 << 16);
        Self {
            partition,
            checkpoint,
            rows: Some(rows),
            newest_about: HashMap::default(),
            history: HashMap::default(),
            runs: Vec::with_capacity(runs + 1),
            newer: Vec::new(),
        }
    }

    /// Up to where the rows are compared with the log.
    pub(super) const fn checkpoint(&self) -> Position {
        self.checkpoint
    }

    /// Adds an event. Those after the checkpoint are passed over.
    pub(super) fn take(&mut self, event: &Event) {
        if event.position > self.checkpoint {
            return;
        }
        let run = key_run(event.position) as usize;
        if self.runs.len() <= run {
            self.runs.resize(run + 1, Sum::default());
        }
        key_rows_of(event).for_each(|row| self.runs[run].add(&row));
        if let Some(id) = event.related_id {
            self.newest_about.insert(id.locate().2, event.position);
        }
        if event.after.version.is_multiple_of(HISTORY_STRIDE) {
            self.history.insert((event.account.id(), event.after.version), event.position);
        }
    }

    /// Compares all but the keys once the replay has come to the checkpoint.
    pub(super) fn at(&mut self, position: Position, replay: &mut Replay) {
        if self.checkpoint > position {
            return;
        }
        let Some(rows) = self.rows.take() else { return };
        let mut findings = std::mem::take(&mut replay.findings);
        self.compare_accounts(rows.accounts, replay, &mut findings);
        self.compare_related(rows.related, &replay.doubts, &mut findings);
        self.compare_history(rows.history, &replay.doubts, &mut findings);
        replay.findings = findings;
    }

    /// A row's position, if it is one up to the checkpoint; else the row is kept for later.
    fn due(&mut self, position: i64, newer: impl FnOnce() -> Newer) -> Option<Position> {
        // A position below 0 names no event, and differs from whatever is expected.
        let position = Position(u64::try_from(position).unwrap_or(0));
        if position <= self.checkpoint {
            return Some(position);
        }
        if self.newer.len() < NEWER_MAX {
            self.newer.push((position, newer()));
        }
        None
    }

    fn compare_accounts(&mut self, rows: Vec<AccountRow>, replay: &Replay, findings: &mut Findings) {
        let mut seen: HashSet<AccountId> = HashSet::default();
        for AccountRow { id, position: found, state } in rows {
            let known = id.and_then(AccountId::stored).and_then(|id| replay.accounts.get(&id));
            if let Some(known) = known {
                seen.insert(known.account.id());
            }
            let Some(found) = self.due(found, || Newer::Account(id.unwrap_or_default(), state)) else { continue };
            let expected = known.map(|known| known.position);
            if let (Some(known), Some(state)) = (known, state)
                && known.position == found
                && known.state != state
            {
                // A row whose seal is broken is worth its position alone. This one is believed as it stands.
                if replay.doubts.covers(found) {
                    findings.consequences += 1;
                    continue;
                }
                let (expected, found_text) = (sealed(&known.state), sealed(&state));
                let finding = Finding::at(Kind::IndexMismatch, self.partition, found, expected, found_text);
                findings.push(finding.owned_by(&known.account));
                continue;
            }
            if let Some(finding) = self.differs("account_positions", expected, Some(found), &replay.doubts, findings) {
                let whose = id.map_or_else(|| "an account_id that is none".to_owned(), |id| format!("account {id}"));
                findings.push(match known {
                    Some(known) => finding.owned_by(&known.account),
                    None => Finding { found: format!("{} of {whose}", finding.found), ..finding },
                });
            }
        }
        if seen.len() < replay.accounts.len() {
            for known in replay.accounts.values().filter(|known| !seen.contains(&known.account.id())) {
                let expected = Some(known.position);
                if let Some(finding) = self.differs("account_positions", expected, None, &replay.doubts, findings) {
                    findings.push(finding.owned_by(&known.account));
                }
            }
        }
    }

    fn compare_related(&mut self, rows: Vec<(i64, i64)>, doubts: &Doubts, findings: &mut Findings) {
        let mut expected = std::mem::take(&mut self.newest_about);
        for (original, found) in rows {
            let original = Position(u64::try_from(original).unwrap_or(0));
            let known = expected.remove(&original);
            let Some(found) = self.due(found, || Newer::About(original)) else { continue };
            let differs = self.differs("related_positions", known, Some(found), doubts, findings);
            findings.extend(differs.map(|finding| about(finding, original)));
        }
        for (original, known) in expected {
            let differs = self.differs("related_positions", Some(known), None, doubts, findings);
            findings.extend(differs.map(|finding| about(finding, original)));
        }
    }

    fn compare_history(&mut self, rows: Vec<(Option<Uuid>, i64, i64)>, doubts: &Doubts, findings: &mut Findings) {
        let mut expected = std::mem::take(&mut self.history);
        let of = |finding: Finding, version: &dyn std::fmt::Display, id: Option<Uuid>| Finding {
            expected: format!("{} for version {version}", finding.expected),
            found: id.map_or_else(|| finding.found.clone(), |id| format!("{} of account {id}", finding.found)),
            ..finding
        };
        for (id, version, found) in rows {
            let key = id.and_then(AccountId::stored).zip(u64::try_from(version).ok());
            let known = key.and_then(|key| expected.remove(&key));
            let Some(found) = self.due(found, || Newer::History(id.unwrap_or_default(), version)) else { continue };
            let differs = self.differs("history_positions", known, Some(found), doubts, findings);
            findings.extend(differs.map(|finding| of(finding, &version, id)));
        }
        for ((id, version), known) in expected {
            let differs = self.differs("history_positions", Some(known), None, doubts, findings);
            findings.extend(differs.map(|finding| of(finding, &version, Some(id.uuid()))));
        }
    }

    /// What is wrong when a row of `table` names `found` and the log `expected`.
    fn differs(
        &self,
        table: &str,
        expected: Option<Position>,
        found: Option<Position>,
        doubts: &Doubts,
        findings: &mut Findings,
    ) -> Option<Finding> {
        if expected == found {
            return None;
        }
        if [expected, found].into_iter().flatten().any(|position| doubts.covers(position)) {
            findings.consequences += 1;
            return None;
        }
        let kind = match (expected, found) {
            (Some(_), Some(_)) => Kind::IndexMismatch,
            (Some(_), None) => Kind::IndexMissing,
            _ => Kind::IndexUnexpected,
        };
        let say = |position: Option<Position>| {
            position.map_or("no row".to_owned(), |position| format!("position {position}"))
        };
        let (expected_text, found_text) = (format!("{} in {table}", say(expected)), say(found));
        let at = expected.or(found).unwrap_or_default();
        Some(Finding::at(kind, self.partition, at, expected_text, found_text))
    }

    /// Compares the keys, run by run, and what was written after the checkpoint.
    pub(super) async fn finish(mut self, database: &Database, replay: &mut Replay) -> Result<(), StoreError> {
        // The log ends before the checkpoint, so that no row was compared: where nothing says so yet, this does.
        if self.rows.is_some() && replay.findings.count == 0 {
            let expected = format!("a checkpoint of {INDEXES} at {} or before", replay.position());
            let found = format!("position {}", self.checkpoint);
            let finding = Finding::at(Kind::CheckpointMismatch, self.partition, self.checkpoint, expected, found);
            replay.findings.push(finding.mended_by(finding::INDEXES));
        }
        // A checkpoint may name any place: what it promises past the log is looked for as rows, not run by run.
        let last = key_run(self.checkpoint.min(replay.position()));
        for run in 0..=last {
            let mut sum = Sum::default();
            let rows = database.key_rows(self.partition, run).await?;
            let mut due = Vec::new();
            for row in rows {
                if self.due(row.position, || Newer::Key(row)).is_some() {
                    sum.add(&row);
                    due.push(row);
                }
            }
            let expected = self.runs.get(run as usize).copied().unwrap_or_default();
            if sum != expected {
                self.compare_run(database, run, due, replay).await?;
            }
        }
        for row in database.key_rows_past(self.partition, last, NEWER_MAX).await? {
            if self.due(row.position, || Newer::Key(row)).is_some() {
                self.unexpected_key(&row, replay);
            }
        }
        self.compare_newer(database, replay).await
    }

    /// Compares `later` rows of the key index that name places after the checkpoint with their events. Tells whether so many
    /// were found where they belong.
    pub(super) async fn compare_later(
        database: &Database,
        partition: Partition,
        checkpoint: Position,
        later: u64,
        replay: &mut Replay,
    ) -> Result<bool, StoreError> {
        let last = key_run(checkpoint);
        let mut rows = database.key_rows(partition, last).await?;
        rows.extend(database.key_rows_past(partition, last, NEWER_MAX).await?);
        let mut indexes = Self::new(partition, checkpoint, IndexRows::default());
        for row in rows {
            // Those up to the checkpoint are compared already.
            indexes.due(row.position, || Newer::Key(row));
        }
        let found = indexes.newer.len();
        indexes.compare_newer(database, replay).await?;
        Ok(found == NEWER_MAX || found as u64 >= later)
    }

    /// The rows of a run one by one, against the events of its positions.
    async fn compare_run(
        &self,
        database: &Database,
        run: u32,
        rows: Vec<KeyRow>,
        replay: &mut Replay,
    ) -> Result<(), StoreError> {
        let (first, last) = positions_of(run);
        let after = Position(first.0.saturating_sub(1));
        let mut scan = database.scan(self.partition, after, last.min(self.checkpoint));
        let mut there: HashSet<KeyRow> = rows.into_iter().collect();
        loop {
            let events = scan.next().await?;
            if events.is_empty() {
                break;
            }
            for event in events.iter().flatten() {
                for (index, row) in key_rows_of(event).enumerate() {
                    if there.remove(&row) || replay.doubts.covers(event.position) {
                        continue;
                    }
                    let what = match index {
                        0 => format!("{} {}", event.key.code(), event.key.id()),
                        _ => format!("operation {}", event.operation_id),
                    };
                    let expected = format!("a row of key_positions for {what}");
                    replay.findings.push(Finding::of(Kind::IndexMissing, event, expected, "no row"));
                }
            }
        }
        for row in there {
            self.unexpected_key(&row, replay);
        }
        Ok(())
    }

    fn unexpected_key(&self, row: &KeyRow, replay: &mut Replay) {
        let position = Position(u64::try_from(row.position).unwrap_or(0));
        if replay.doubts.covers(position) {
            replay.findings.consequences += 1;
            return;
        }
        let found = format!(
            "business_hash {} account_short {} position {}",
            row.business.cast_signed(),
            row.account.cast_signed(),
            row.position
        );
        let expected = "no such row of key_positions";
        replay.findings.push(Finding::at(Kind::IndexUnexpected, self.partition, position, expected, found));
    }

    /// Each row that names a place after the checkpoint against the event there.
    async fn compare_newer(&self, database: &Database, replay: &mut Replay) -> Result<(), StoreError> {
        for rows in self.newer.chunks(NEWER_AT_ONCE) {
            let places: Vec<_> = rows.iter().map(|(position, _)| (self.partition, *position)).collect();
            let events = database.rows_at(&places).await?;
            for (position, newer) in rows {
                let event = events.iter().flatten().find(|event| event.position == *position);
                if event.is_some_and(|event| newer.fits(event)) || replay.doubts.covers(*position) {
                    continue;
                }
                let (table, what) = newer.in_words();
                let expected = format!("an event {what}, as a row of {table} says");
                let found =
                    event.map_or("no event".to_owned(), |event| format!("transaction {}", event.transaction_id));
                replay.findings.push(Finding::at(Kind::IndexMismatch, self.partition, *position, expected, found));
            }
        }
        Ok(())
    }
}

impl Newer {
    fn fits(&self, event: &Event) -> bool {
        match self {
            Self::Account(id, state) => {
                event.account.id().uuid() == *id && state.is_none_or(|state| state == event.after)
            }
            Self::About(original) => event.related_id.is_some_and(|id| id.locate().2 == *original),
            Self::History(id, version) => {
                event.account.id().uuid() == *id && u64::try_from(*version) == Ok(event.after.version)
            }
            Self::Key(row) => key_rows_of(event).any(|known| known == *row),
        }
    }

    fn in_words(&self) -> (&'static str, String) {
        match self {
            Self::Account(id, None) => ("account_positions", format!("of account {id}")),
            Self::Account(id, Some(state)) => {
                ("account_positions", format!("of account {id} that left it with {}", in_words(state)))
            }
            Self::About(original) => ("related_positions", format!("about the one at position {original}")),
            Self::History(id, version) => ("history_positions", format!("of account {id} version {version}")),
            Self::Key(row) => ("key_positions", format!("with business_hash {}", row.business.cast_signed())),
        }
    }
}

fn sealed(state: &AccountState) -> String {
    format!("{} in account_positions", in_words(state))
}

fn in_words(state: &AccountState) -> String {
    let AccountState { balance, frozen, version, locked } = state;
    format!("balance {balance} frozen {frozen} version {version}{}", if *locked { " locked" } else { "" })
}

fn about(finding: Finding, original: Position) -> Finding {
    Finding { expected: format!("{} for the original at {original}", finding.expected), ..finding }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_differs_with_each_column_and_not_with_the_order() {
        let rows = [(1, 2, 3), (4, 5, 6), (7, 8, 9)].map(|(business, account, position)| KeyRow {
            business,
            account,
            position,
        });
        let of = |rows: &[KeyRow]| {
            let mut sum = Sum::default();
            rows.iter().for_each(|row| sum.add(row));
            sum
        };
        let whole = of(&rows);
        assert_eq!(of(&[rows[2], rows[0], rows[1]]), whole);
        assert_ne!(of(&rows[..2]), whole);
        for edited in
            [KeyRow { business: 2, ..rows[0] }, KeyRow { account: 3, ..rows[0] }, KeyRow { position: 4, ..rows[0] }]
        {
            assert_ne!(of(&[edited, rows[1], rows[2]]), whole);
        }
        let swapped = [KeyRow { position: 6, ..rows[0] }, KeyRow { position: 3, ..rows[1] }, rows[2]];
        assert_ne!(of(&swapped), whole);
    }
}
