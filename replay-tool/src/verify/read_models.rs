//! The read models against the replay, each at its own checkpoint: lag is no inconsistency.

use foldhash::{HashMap, HashSet};
use ledger_core::{AccountId, Balance, Freeze, Partition, Position};
use projector::snapshot::DamagedModelRow;

use super::{doubt::Doubts, log::Replay};
use crate::finding::{Finding, Findings, Kind};

type Rows<T> = Vec<Result<T, DamagedModelRow>>;

/// The rows that are compared once the replay has come to their checkpoint. Without a checkpoint there is nothing to
/// compare them with.
#[derive(Debug)]
pub(super) struct ReadModels {
    partition: Partition,
    pub(super) balances: Option<(Position, Rows<Balance>)>,
    pub(super) freezes: Option<(Position, Rows<Freeze>)>,
}

impl ReadModels {
    pub(super) fn new(
        partition: Partition,
        balances: Option<(Position, Rows<Balance>)>,
        freezes: Option<(Position, Rows<Freeze>)>,
    ) -> Self {
        Self { partition, balances, freezes }
    }

    /// The furthest checkpoint.
    pub(super) fn furthest(&self) -> Position {
        let balances = self.balances.as_ref().map(|(at, _)| *at);
        let freezes = self.freezes.as_ref().map(|(at, _)| *at);
        balances.max(freezes).unwrap_or_default()
    }

    /// Compares the rows whose checkpoint is `position` or before, where the replay stands.
    pub(super) fn at(&mut self, position: Position, replay: &mut Replay) {
        if let Some((_, rows)) = self.balances.take_if(|(at, _)| *at <= position) {
            compare_balances(self.partition, rows, &replay.accounts, &mut replay.findings);
        }
        if let Some((_, rows)) = self.freezes.take_if(|(at, _)| *at <= position) {
            let mut findings = std::mem::take(&mut replay.findings);
            compare_freezes(self.partition, rows, replay.freezes(), &replay.doubts, &mut findings);
            replay.findings = findings;
        }
    }
}

pub(super) fn compare_balances(
    partition: Partition,
    rows: Rows<Balance>,
    accounts: &HashMap<AccountId, Balance>,
    findings: &mut Findings,
) {
    let mut seen = 0;
    let mut there = HashSet::default();
    let mut damaged_keys = HashSet::default();
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(damage) => {
                findings.push(damaged(Kind::BalanceMismatch, partition, &damage));
                damaged_keys.insert(damage.key);
                continue;
            }
        };
        let Some(replayed) = accounts.get(&row.account.id()) else {
            let found = in_words(&row);
            let finding = Finding::at(Kind::BalanceUnexpected, partition, row.position, "no row", found);
            findings.push(finding.owned_by(&row.account));
            continue;
        };
        seen += 1;
        there.insert(row.account.id());
        if *replayed != row {
            let (expected, found) = (in_words(replayed), in_words(&row));
            let finding = Finding::at(Kind::BalanceMismatch, partition, replayed.position, expected, found);
            findings.push(finding.owned_by(&row.account));
        }
    }
    if seen == accounts.len() {
        return;
    }
    let mut missing: Vec<_> = accounts.values().filter(|balance| !there.contains(&balance.account.id())).collect();
    missing.sort_unstable_by_key(|balance| balance.position);
    for replayed in missing {
        // Its row is there, and damaged.
        if !damaged_keys.contains(&format!("{}/{}", replayed.account.user_id(), replayed.account.credit_type())) {
            let expected = in_words(replayed);
            let finding = Finding::at(Kind::BalanceMissing, partition, replayed.position, expected, "no row");
            findings.push(finding.owned_by(&replayed.account));
        }
    }
}

fn in_words(balance: &Balance) -> String {
    let state = &balance.state;
    format!(
        "balance {} frozen {} {} version {} position {} updated_at {}",
        state.balance,
        state.frozen,
        balance.status(),
        state.version,
        balance.position,
        balance.updated_at
    )
}

/// Both ascend by position.
pub(super) fn compare_freezes(
    partition: Partition,
    rows: Rows<Freeze>,
    freezes: &[Freeze],
    doubts: &Doubts,
    findings: &mut Findings,
) {
    let mut replayed = freezes.iter().peekable();
    let missing = |freeze: &Freeze, findings: &mut Findings| {
        let expected = freeze_in_words(freeze);
        findings.push(Finding::of_freeze(Kind::FreezeMissing, partition, freeze, expected, "no row"));
    };
    for row in rows {
        let position = match &row {
            Ok(row) => row.position,
            Err(damage) => Position(u64::try_from(damage.position).unwrap_or(0)),
        };
        while let Some(freeze) = replayed.next_if(|freeze| freeze.position < position) {
            missing(freeze, findings);
        }
        let known = replayed.next_if(|freeze| freeze.position == position);
        match (row, known) {
            (Err(damage), _) => findings.push(damaged(Kind::FreezeMismatch, partition, &damage)),
            // The event that made it is lost, and named as that.
            (Ok(row), None) if doubts.covers(row.position) => findings.consequences += 1,
            (Ok(row), None) => {
                let found = freeze_in_words(&row);
                findings.push(Finding::of_freeze(Kind::FreezeUnexpected, partition, &row, "no row", found));
            }
            (Ok(row), Some(known)) if *known != row => {
                let (expected, found) = (freeze_in_words(known), freeze_in_words(&row));
                findings.push(Finding::of_freeze(Kind::FreezeMismatch, partition, known, expected, found));
            }
            (Ok(_), Some(_)) => {}
        }
    }
    replayed.for_each(|freeze| missing(freeze, findings));
}

fn freeze_in_words(freeze: &Freeze) -> String {
    format!(
        "freeze {} of {}/{}: amount {} remaining {} captured {} released {} key {} {} created_at {} expires_at {}",
        freeze.freeze_id,
        freeze.account.user_id(),
        freeze.account.credit_type(),
        freeze.amount,
        freeze.remaining,
        freeze.captured,
        freeze.released,
        freeze.key.code(),
        freeze.key.id(),
        freeze.created_at,
        freeze.expires_at.map_or("never".to_owned(), |at| at.to_string()),
    )
}

fn damaged(kind: Kind, partition: Partition, damage: &DamagedModelRow) -> Finding {
    let mut finding = Finding::of_partition(kind, partition, "what the replay makes", damage.to_string());
    finding.position = u64::try_from(damage.position).ok().map(Position);
    if damage.table == "balances" {
        let (user_id, credit_type) = damage.key.split_once('/').unwrap_or((&damage.key, ""));
        finding.user_id = Some(user_id.to_owned());
        finding.credit_type = Some(credit_type.to_owned());
    } else {
        finding.transaction_id = Some(damage.key.clone());
    }
    finding
}
