//! The read models against the replay, at their own checkpoints.

use std::collections::HashMap;

use ledger_core::{AccountId, Balance, Event, Freeze, Head, Partition, Position};
use projector::snapshot::{DamagedModelRow, Snapshot};

use crate::finding::{Finding, Findings, Kind};

/// What is compared once the replay stands at a checkpoint.
#[derive(Debug)]
pub(crate) struct Comparison {
    partition: Partition,
    balances: Option<(Head, Vec<Result<Balance, DamagedModelRow>>)>,
    freezes: Option<(Head, Vec<Result<Freeze, DamagedModelRow>>)>,
}

impl Comparison {
    pub(crate) fn new(partition: Partition, snapshot: Snapshot) -> Self {
        Self {
            partition,
            balances: Some((snapshot.balances_at, snapshot.balances)),
            freezes: Some((snapshot.freezes_at, snapshot.freezes)),
        }
    }

    /// The furthest checkpoint.
    pub(crate) fn furthest(&self) -> Position {
        let balances = self.balances.as_ref().map(|(at, _)| at.position);
        let freezes = self.freezes.as_ref().map(|(at, _)| at.position);
        balances.max(freezes).unwrap_or_default()
    }

    /// Compares what stands at `position`, the replay's own, `newest` being its newest event.
    pub(crate) fn at(
        &mut self,
        position: Position,
        newest: Option<&Event>,
        accounts: &HashMap<AccountId, Balance>,
        freezes: &HashMap<Position, Freeze>,
        findings: &mut Findings,
    ) {
        if let Some((at, rows)) = self.balances.take_if(|(at, _)| at.position <= position) {
            check_checkpoint("balances", self.partition, &at, newest, findings);
            compare_balances(self.partition, rows, accounts, findings);
        }
        if let Some((at, rows)) = self.freezes.take_if(|(at, _)| at.position <= position) {
            check_checkpoint("freezes", self.partition, &at, newest, findings);
            compare_freezes(self.partition, rows, freezes, findings);
        }
    }

    /// At the end of the log nothing may be left: a checkpoint is never ahead of it.
    pub(crate) fn finish(self, end: Position, findings: &mut Findings) {
        let left = [
            ("balances", self.balances.map(|(at, _)| at.position)),
            ("freezes", self.freezes.map(|(at, _)| at.position)),
        ];
        for (name, at) in left {
            if let Some(at) = at {
                let expected = format!("a checkpoint of {name} at {end} or before");
                findings.push(Finding::at(Kind::CheckpointMismatch, self.partition, at, expected, at.to_string()));
            }
        }
    }
}

fn check_checkpoint(name: &str, partition: Partition, at: &Head, newest: Option<&Event>, findings: &mut Findings) {
    let log = match newest.filter(|event| event.position == at.position) {
        Some(event) => event.head(),
        // Before the first event the epoch says nothing, but the hash must be that of nothing.
        None if at.position == Position::ZERO => Head { epoch: at.epoch, ..Head::EMPTY },
        None => return,
    };
    if log != *at {
        let expected = format!("checkpoint of {name} with epoch {} hash {}", log.epoch.0, log.hash);
        let found = format!("epoch {} hash {}", at.epoch.0, at.hash);
        findings.push(Finding::at(Kind::CheckpointMismatch, partition, at.position, expected, found));
    }
}

fn compare_balances(
    partition: Partition,
    rows: Vec<Result<Balance, DamagedModelRow>>,
    accounts: &HashMap<AccountId, Balance>,
    findings: &mut Findings,
) {
    let mut missing: HashMap<&AccountId, &Balance> = accounts.iter().collect();
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(damage) => {
                findings.push(damaged(Kind::BalanceMismatch, partition, &damage));
                // Its account is not missing: its row is damaged.
                missing.retain(|_, balance| {
                    format!("{}/{}", balance.account.user_id(), balance.account.credit_type()) != damage.key
                });
                continue;
            }
        };
        match missing.remove(&row.account.id()) {
            None => {
                let found = format!("a row of balance {}", row.state.balance);
                let finding = Finding::at(Kind::BalanceUnexpected, partition, row.position, "no row", found);
                findings.push(finding.owned_by(&row.account));
            }
            Some(replayed) if *replayed != row => {
                let finding = Finding::at(
                    Kind::BalanceMismatch,
                    partition,
                    replayed.position,
                    in_words(replayed),
                    in_words(&row),
                );
                findings.push(finding.owned_by(&row.account));
            }
            Some(_) => {}
        }
    }
    for replayed in missing.into_values() {
        let finding = Finding::at(Kind::BalanceMissing, partition, replayed.position, in_words(replayed), "no row");
        findings.push(finding.owned_by(&replayed.account));
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

fn compare_freezes(
    partition: Partition,
    rows: Vec<Result<Freeze, DamagedModelRow>>,
    freezes: &HashMap<Position, Freeze>,
    findings: &mut Findings,
) {
    let mut missing: HashMap<&Position, &Freeze> = freezes.iter().collect();
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(damage) => {
                findings.push(damaged(Kind::FreezeMismatch, partition, &damage));
                missing.retain(|_, freeze| freeze.freeze_id.to_string() != damage.key);
                continue;
            }
        };
        match missing.remove(&row.position) {
            None => findings.push(of_freeze(Kind::FreezeUnexpected, partition, &row, "no row", freeze_in_words(&row))),
            Some(replayed) if *replayed != row => {
                let (expected, found) = (freeze_in_words(replayed), freeze_in_words(&row));
                findings.push(of_freeze(Kind::FreezeMismatch, partition, replayed, expected, found));
            }
            Some(_) => {}
        }
    }
    for replayed in missing.into_values() {
        findings.push(of_freeze(Kind::FreezeMissing, partition, replayed, freeze_in_words(replayed), "no row"));
    }
}

fn freeze_in_words(freeze: &Freeze) -> String {
    format!(
        "freeze {} of {}/{}: amount {} remaining {} captured {} released {} key {} {} created_at {}",
        freeze.freeze_id,
        freeze.account.user_id(),
        freeze.account.credit_type(),
        freeze.amount,
        freeze.remaining,
        freeze.captured,
        freeze.released,
        freeze.key.code(),
        freeze.key.id(),
        freeze.created_at
    )
}

fn of_freeze(
    kind: Kind,
    partition: Partition,
    freeze: &Freeze,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Finding {
    let mut finding = Finding::at(kind, partition, freeze.position, expected, found).owned_by(&freeze.account);
    finding.transaction_id = Some(freeze.freeze_id.to_string());
    finding
}

fn damaged(kind: Kind, partition: Partition, damage: &DamagedModelRow) -> Finding {
    let mut finding = Finding::at(kind, partition, Position::ZERO, "what the replay makes", damage.to_string());
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
