//! Rows against what the log makes.

use std::collections::BTreeSet;

use foldhash::{HashMap, HashSet};
use ledger_core::{Account, AccountId, Balance, Freeze, Partition, Position};
use uuid::Uuid;

use super::{fold::Fold, rows::Rows};
use crate::{
    checkpoint::ReadModel,
    inconsistencies::Finding,
    row::{BalanceRow, FreezeRow},
};

/// What is wrong with one account's rows.
#[derive(Debug)]
pub struct Difference {
    /// Whose rows they are; none for rows that are no account's.
    pub account: Option<Account>,
    /// Whether the log knows the account.
    pub has_events: bool,
    /// One for each row.
    pub findings: Vec<Finding>,
}

impl Difference {
    /// The largest difference of an amount, in units.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.findings.iter().filter_map(|finding| finding.size).max().unwrap_or(0)
    }
}

/// The accounts whose rows are not what the log makes.
pub(super) fn suspects(fold: &Fold, rows: &Rows) -> BTreeSet<AccountId> {
    let mut suspects = BTreeSet::new();
    let mut seen = HashSet::default();
    for (id, fingerprint) in &rows.kept.balances {
        seen.insert(*id);
        if fold.balances.get(id).map(|balance| fold.fingerprints.of_balance(balance)) != Some(*fingerprint) {
            suspects.insert(*id);
        }
    }
    suspects.extend(fold.balances.keys().filter(|id| !seen.contains(id)));
    let mut seen = HashSet::default();
    for (position, owner, fingerprint) in &rows.kept.freezes {
        seen.insert(*position);
        if fold.fingerprint_of_freeze(*position) != Some(*fingerprint) {
            suspects.insert(*owner);
            suspects.extend(fold.owner_of_freeze(*position));
        }
    }
    let positions = fold.open.keys().chain(fold.settled.keys());
    suspects.extend(positions.filter(|at| !seen.contains(at)).filter_map(|at| fold.owner_of_freeze(*at)));
    suspects.extend(rows.kept.full_balances.iter().filter_map(|row| owner(fold.partition, row.account_id)));
    for row in &rows.kept.full_freezes {
        suspects.extend(owner(fold.partition, row.account_id));
        suspects.extend(u64::try_from(row.position).ok().and_then(|at| fold.owner_of_freeze(Position(at))));
    }
    // A damaged row may bear an id outside of the slice.
    suspects.retain(|id| fold.whose.holds(*id));
    suspects
}

/// The account of a row, if an account of the partition can have that id.
fn owner(partition: Partition, id: Option<Uuid>) -> Option<AccountId> {
    AccountId::stored(id?).filter(|id| id.partition() == partition)
}

/// Damaged rows that bear no account's id: nobody is served them, and no account can be mended.
pub(super) fn strays(partition: Partition, rows: &Rows) -> Vec<Difference> {
    let stray = |model: ReadModel, kind, subject: String, found: String| Difference {
        account: None,
        has_events: false,
        findings: vec![Finding {
            partition,
            projection: model.name(),
            kind,
            subject,
            position: 0,
            account: None,
            expected: "no row".to_owned(),
            found,
            size: None,
        }],
    };
    let balances = rows.kept.full_balances.iter().filter(|row| owner(partition, row.account_id).is_none());
    let freezes = rows.kept.full_freezes.iter().filter(|row| owner(partition, row.account_id).is_none());
    let balances = balances.map(|row| {
        let subject = format!("row {}/{}", row.user_id, row.credit_type);
        stray(ReadModel::Balances, "balance_unexpected", subject, balance_row_in_words(row))
    });
    let freezes = freezes.map(|row| {
        let subject = format!("row at {}", row.position);
        stray(ReadModel::Freezes, "freeze_unexpected", subject, freeze_row_in_words(row))
    });
    balances.chain(freezes).collect()
}

/// What differs, account by account, once their rows were read in full.
pub(super) fn differences(fold: &Fold, rows: &Rows) -> Vec<Difference> {
    let super::fold::Whose::These(ids) = &fold.whose else { return Vec::new() };
    let mut freezes_of: HashMap<AccountId, Vec<&Freeze>> = HashMap::default();
    for freeze in fold.open.values() {
        freezes_of.entry(freeze.account.id()).or_default().push(freeze);
    }
    let differences = ids.iter().filter_map(|id| {
        let balance = fold.balances.get(id);
        let mut findings = Vec::new();
        let stored: Vec<_> =
            rows.kept.full_balances.iter().filter(|row| owner(fold.partition, row.account_id) == Some(*id)).collect();
        let account = match (balance, stored.first()) {
            (Some(balance), _) => Some(balance.account.clone()),
            (None, Some(row)) => Some(named(*id, &row.user_id, &row.credit_type)),
            (None, None) => None,
        };
        findings.extend(balance_finding(fold.partition, *id, balance, stored.first().copied()));
        let freezes = freezes_of.remove(id).unwrap_or_default();
        let (account, found) = freeze_findings(fold.partition, *id, account, &freezes, rows);
        findings.extend(found);
        let account = account?;
        for finding in &mut findings {
            finding.account = Some(account.clone());
        }
        let has_events = balance.is_some();
        (!findings.is_empty()).then_some(Difference { account: Some(account), has_events, findings })
    });
    differences.collect()
}

fn named(id: AccountId, user_id: &str, credit_type: &str) -> Account {
    Account::stored(id, user_id.into(), credit_type.into())
}

fn balance_finding(
    partition: Partition,
    id: AccountId,
    expected: Option<&Balance>,
    found: Option<&BalanceRow>,
) -> Option<Finding> {
    let (kind, size) = match (expected, found) {
        (None, None) => return None,
        (Some(expected), Some(row)) if row.clone().read().as_ref() == Ok(expected) => return None,
        (expected, found) => {
            let kind = match (expected, found) {
                (Some(_), Some(_)) => "balance_mismatch",
                (Some(_), None) => "balance_missing",
                (None, _) => "balance_unexpected",
            };
            let state = expected.map(|balance| balance.state).unwrap_or_default();
            let found = found.map_or([0; 3], |row| [row.balance, row.frozen, row.available]);
            (kind, largest(&[state.balance, state.frozen, state.available()], &found))
        }
    };
    let position = expected.map_or_else(
        || found.map_or(0, |row| row.position),
        |balance| i64::try_from(balance.position.0).unwrap_or(i64::MAX),
    );
    Some(Finding {
        partition,
        projection: ReadModel::Balances.name(),
        kind,
        subject: id.to_string(),
        position,
        account: None,
        expected: expected.map_or("no row".to_owned(), balance_in_words),
        found: found.map_or("no row".to_owned(), balance_row_in_words),
        size: Some(size),
    })
}

/// What differs in an account's freezes; and the account, where only a freeze's row says who it is.
fn freeze_findings(
    partition: Partition,
    id: AccountId,
    mut account: Option<Account>,
    expected: &[&Freeze],
    rows: &Rows,
) -> (Option<Account>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut finding = |kind, expected: Option<&Freeze>, found: Option<&FreezeRow>| {
        let amounts =
            expected.map_or([0; 4], |freeze| [freeze.amount, freeze.remaining, freeze.captured, freeze.released]);
        let stored = found.map_or([0; 4], |row| [row.amount, row.remaining, row.captured, row.released]);
        let position = expected.map_or_else(
            || found.map_or(0, |row| row.position),
            |freeze| i64::try_from(freeze.position.0).unwrap_or(i64::MAX),
        );
        findings.push(Finding {
            partition,
            projection: ReadModel::Freezes.name(),
            kind,
            subject: format!("freeze at {position}"),
            position,
            account: None,
            expected: expected.map_or("no row".to_owned(), freeze_in_words),
            found: found.map_or("no row".to_owned(), freeze_row_in_words),
            size: Some(largest(&amounts, &stored)),
        });
    };
    let by_position: HashMap<i64, &FreezeRow> = rows.kept.full_freezes.iter().map(|row| (row.position, row)).collect();
    let mut own = HashSet::default();
    for freeze in expected {
        let position = i64::try_from(freeze.position.0).unwrap_or(i64::MAX);
        own.insert(position);
        match by_position.get(&position) {
            None => finding("freeze_missing", Some(freeze), None),
            Some(row) if (*row).clone().read().as_ref() == Ok(*freeze) => {}
            Some(row) => finding("freeze_mismatch", Some(freeze), Some(row)),
        }
    }
    for row in &rows.kept.full_freezes {
        if owner(partition, row.account_id) == Some(id) && !own.contains(&row.position) {
            account.get_or_insert_with(|| named(id, &row.user_id, &row.credit_type));
            finding("freeze_unexpected", None, Some(row));
        }
    }
    (account, findings)
}

/// The largest difference between amounts that are right and those that are there.
fn largest<const N: usize>(expected: &[u64; N], found: &[i64; N]) -> u64 {
    let difference = |(expected, found): (&u64, &i64)| {
        u64::try_from((i128::from(*expected) - i128::from(*found)).unsigned_abs()).unwrap_or(u64::MAX)
    };
    expected.iter().zip(found).map(difference).max().unwrap_or(0)
}

fn balance_in_words(balance: &Balance) -> String {
    let state = &balance.state;
    format!(
        "balance {} frozen {} available {} {} version {} position {} updated_at {}",
        state.balance,
        state.frozen,
        state.available(),
        balance.status(),
        state.version,
        balance.position,
        balance.updated_at
    )
}

fn balance_row_in_words(row: &BalanceRow) -> String {
    let updated_at = row.updated_at.map_or("unreadable".to_owned(), |at| at.to_string());
    format!(
        "balance {} frozen {} available {} {} version {} position {} updated_at {updated_at}",
        row.balance, row.frozen, row.available, row.status, row.version, row.position
    )
}

fn freeze_in_words(freeze: &Freeze) -> String {
    format!(
        "freeze {} amount {} remaining {} captured {} released {} {} expires_at {}",
        freeze.freeze_id,
        freeze.amount,
        freeze.remaining,
        freeze.captured,
        freeze.released,
        freeze.status(),
        freeze.expires_at.map_or("never".to_owned(), |at| at.to_string()),
    )
}

fn freeze_row_in_words(row: &FreezeRow) -> String {
    let id = row.freeze_id.map_or("unreadable".to_owned(), |id| id.to_string());
    let expires_at = match row.expires_at {
        Some(Some(at)) => at.to_string(),
        Some(None) => "never".to_owned(),
        None => "unreadable".to_owned(),
    };
    format!(
        "freeze {id} amount {} remaining {} captured {} released {} {} expires_at {expires_at}",
        row.amount, row.remaining, row.captured, row.released, row.status
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_difference_is_that_of_its_largest_amount() {
        assert_eq!(largest(&[100, 0, 100], &[100, 0, 100]), 0);
        assert_eq!(largest(&[100, 10, 90], &[150, 10, 140]), 50);
        assert_eq!(largest(&[100, 10, 90], &[100, -10, 110]), 20);
        assert_eq!(largest(&[0], &[i64::MIN]), 1 << 63);
    }
}
