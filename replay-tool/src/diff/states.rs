//! Two states of a partition: accounts and freezes.

use std::{collections::BTreeMap, time::Duration};

use ledger_core::{Balance, Freeze, Head, Partition};
use ledger_store::Database;
use projector::snapshot::{self, DamagedModelRow, Snapshot};
use serde::Serialize;

use super::Difference;
use crate::{archive::PartitionState, context::Failure};

/// Accounts or freezes of a partition that are shown; the others are counted.
const SHOWN_MAX: usize = 20;
/// How long read models that do not stand where the log ends are waited for, in all partitions together, and the pause
/// between two looks: a projector that runs is there by then, and one that does not run never will be.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// What is left of the time to wait for read models.
pub(super) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(PATIENCE)
    }
}

/// Things that are not the same in both.
#[derive(Debug, Default, Serialize)]
pub(super) struct Differences {
    pub(super) count: u64,
    pub(super) shown: Vec<One>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub(super) struct One {
    pub(super) whose: String,
    pub(super) a: String,
    pub(super) b: String,
}

impl Differences {
    pub(super) const fn is_none(&self) -> bool {
        self.count == 0
    }

    /// Compares rows by their keys.
    fn of<K: Ord, T: PartialEq>(
        one: BTreeMap<K, T>,
        mut other: BTreeMap<K, T>,
        whose: impl Fn(&T) -> String,
        show: impl Fn(&T) -> String,
    ) -> Self {
        let mut differences = Self::default();
        let mut add = |a: Option<&T>, b: Option<&T>| {
            differences.count += 1;
            if differences.shown.len() < SHOWN_MAX {
                let text = |row: Option<&T>| row.map_or_else(|| "none".to_owned(), &show);
                let whose = a.or(b).map(&whose).unwrap_or_default();
                differences.shown.push(One { whose, a: text(a), b: text(b) });
            }
        };
        for (key, a) in &one {
            let b = other.remove(key);
            if b.as_ref() != Some(a) {
                add(Some(a), b.as_ref());
            }
        }
        for b in other.values() {
            add(None, Some(b));
        }
        differences
    }
}

/// Compares what follows from two logs.
pub(super) fn compare(one: &PartitionState, other: &PartitionState) -> (Differences, Differences) {
    let balances = |state: &PartitionState| state.balances.iter().map(|(id, row)| (*id, row.clone())).collect();
    let freezes = |state: &PartitionState| state.freezes.clone();
    (
        Differences::of(balances(one), balances(other), whose_balance, show_balance),
        Differences::of(freezes(one), freezes(other), whose_freeze, show_freeze),
    )
}

/// Compares the rows of the read models.
pub(super) async fn compare_read_models(
    databases: [&Database; 2],
    partition: Partition,
    patience: &mut Patience,
    difference: &mut Difference,
) -> Result<(), Failure> {
    let (one, other) = alike(databases, partition, patience).await?;
    for (model, a, b) in
        [("balances", one.balances_at, other.balances_at), ("freezes", one.freezes_at, other.freezes_at)]
    {
        // Where the logs differ, so do the places.
        if difference.log.is_none() && !same_place(&a, &b) {
            difference
                .checkpoints
                .push(format!("the read model {model} stands at position {} in A and {} in B", a.position, b.position));
        }
    }
    let balances = |snapshot: &Snapshot| {
        snapshot
            .balances
            .iter()
            .enumerate()
            .map(|(index, row)| (key(row, index, |row| row.account.id()), row.clone()))
            .collect()
    };
    let freezes = |snapshot: &Snapshot| {
        snapshot
            .freezes
            .iter()
            .enumerate()
            .map(|(index, row)| (key(row, index, |row| row.position), row.clone()))
            .collect()
    };
    difference.accounts = Differences::of(
        balances(&one),
        balances(&other),
        |row| row.as_ref().map_or_else(whose_damaged, whose_balance),
        |row| row.as_ref().map_or_else(ToString::to_string, show_balance),
    );
    difference.freezes = Differences::of(
        freezes(&one),
        freezes(&other),
        |row| row.as_ref().map_or_else(whose_damaged, whose_freeze),
        |row| row.as_ref().map_or_else(ToString::to_string, show_freeze),
    );
    Ok(())
}

/// By what two rows are the same; a damaged row has only its place among the others.
fn key<T, K>(row: &Result<T, DamagedModelRow>, index: usize, of: impl Fn(&T) -> K) -> (Option<K>, usize) {
    match row {
        Ok(row) => (Some(of(row)), 0),
        Err(_) => (None, index),
    }
}

/// Both partitions' read models; one that a projector is still working on is waited for.
async fn alike(
    databases: [&Database; 2],
    partition: Partition,
    patience: &mut Patience,
) -> Result<(Snapshot, Snapshot), Failure> {
    loop {
        let one = snapshot::read(databases[0], partition).await?;
        let other = snapshot::read(databases[1], partition).await?;
        let are_alike =
            same_place(&one.balances_at, &other.balances_at) && same_place(&one.freezes_at, &other.freezes_at);
        let mut is_behind = false;
        for (database, snapshot) in databases.into_iter().zip([&one, &other]) {
            let head = database.heads().await?[partition.index()].position;
            is_behind |= snapshot.balances_at.position < head || snapshot.freezes_at.position < head;
        }
        if are_alike || !is_behind || patience.0.is_zero() {
            return Ok((one, other));
        }
        patience.0 = patience.0.saturating_sub(PAUSE);
        tokio::time::sleep(PAUSE).await;
    }
}

fn same_place(a: &Head, b: &Head) -> bool {
    a.position == b.position && a.hash == b.hash
}

fn whose_damaged(damage: &DamagedModelRow) -> String {
    damage.key.clone()
}

fn whose_balance(balance: &Balance) -> String {
    format!("{}/{}", balance.account.user_id(), balance.account.credit_type())
}

fn show_balance(balance: &Balance) -> String {
    let Balance { state, position, updated_at, .. } = balance;
    let locked = if state.locked { ", locked" } else { "" };
    format!(
        "balance {}, frozen {}{locked}, version {} at position {position} of {updated_at}",
        state.balance, state.frozen, state.version
    )
}

fn whose_freeze(freeze: &Freeze) -> String {
    format!("{} of {}/{}", freeze.freeze_id, freeze.account.user_id(), freeze.account.credit_type())
}

fn show_freeze(freeze: &Freeze) -> String {
    format!(
        "amount {}, remaining {}, captured {}, released {}",
        freeze.amount, freeze.remaining, freeze.captured, freeze.released
    )
}
