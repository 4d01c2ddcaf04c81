//! Whether what is served agrees with the log.

use std::collections::{BTreeMap, HashMap};

use ledger_core::{Account, Balance, Freeze, Position, TransactionId};
use ledger_store::{Database, error::chain};
use projector::{
    balances::Reader,
    checkpoint::{self, ReadModel},
    freezes,
};

use crate::context::Failure;

/// Open freezes of one read.
const FREEZES: usize = 1_000;

/// The read models as they were before the log was read.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) balance: Option<Balance>,
    pub(super) balances_at: Position,
    freezes: HashMap<TransactionId, u64>,
    freezes_at: Position,
    /// Freezes that the read model has open and that the log settles: where.
    settled: HashMap<TransactionId, Position>,
    pub(super) differences: Vec<String>,
    behind: bool,
}

impl Served {
    /// The checkpoints are read before the rows: whatever they promise is there.
    pub(super) async fn read(database: &Database, account: &Account) -> Result<Self, Failure> {
        let at = account.partition().index();
        let balances_at = checkpoint::read(database, ReadModel::Balances).await?[at].position;
        let mut differences = Vec::new();
        let balance = Reader::start(database.clone()).find(account).await.unwrap_or_else(|error| {
            differences.push(format!("balances: {error}"));
            None
        });
        let freezes_at = checkpoint::read(database, ReadModel::Freezes).await?[at].position;
        let mut open = HashMap::new();
        let mut before = None;
        loop {
            match freezes::of_account(database, account, Some(freezes::Status::Open), before, FREEZES).await {
                Ok((rows, next)) => {
                    open.extend(rows.into_iter().map(|freeze| (freeze.freeze_id, freeze.remaining)));
                    before = next;
                }
                Err(error) => differences.push(format!("freezes: {}", chain(&error))),
            }
            if before.is_none() || !differences.is_empty() {
                break;
            }
        }
        Ok(Self {
            balance,
            balances_at,
            freezes: open,
            freezes_at,
            settled: HashMap::new(),
            differences,
            behind: false,
        })
    }

    /// The log settles a freeze.
    pub(super) fn settle(&mut self, freeze: TransactionId, at: Position) {
        if self.freezes.contains_key(&freeze) {
            self.settled.insert(freeze, at);
        }
    }

    pub(super) fn compare_balance(&mut self, at_served: Option<&Balance>, promised: Position, newest: &Balance) {
        match (&self.balance, at_served) {
            (None, _) if promised > Position::ZERO => {
                self.differences.push(format!("balances: no row, where the log has position {promised}"));
            }
            (None, _) => self.behind = true,
            (Some(row), Some(replayed)) if row == replayed => {
                if row.position < promised {
                    let stands = row.position;
                    self.differences.push(format!("balances: the row stands at position {stands}, not at {promised}"));
                }
                self.behind |= row.position < newest.position;
            }
            (Some(row), Some(replayed)) => self.differences.push(format!(
                "balances: balance {}, frozen {}, version {} where the log makes {}, {}, {}",
                row.state.balance,
                row.state.frozen,
                row.state.version,
                replayed.state.balance,
                replayed.state.frozen,
                replayed.state.version
            )),
            (Some(row), None) if row.position <= newest.position => {
                let stands = row.position;
                self.differences
                    .push(format!("balances: the row stands at position {stands}, which is no event of it"));
            }
            // The projector went on after the heads were read.
            (Some(_), None) => {}
        }
    }

    /// Rows may be further than the checkpoint that was read before them; then nothing is said of them.
    pub(super) fn compare_freezes(&mut self, open: &BTreeMap<Position, Freeze>, touched: &HashMap<Position, Position>) {
        let mut rows = std::mem::take(&mut self.freezes);
        for (position, freeze) in open {
            let row = rows.remove(&freeze.freeze_id);
            if touched.get(position).is_some_and(|newest| *newest > self.freezes_at) {
                self.behind = true;
            } else if row != Some(freeze.remaining) {
                let found = row.map_or_else(|| "not open".to_owned(), |remaining| format!("{remaining} remaining"));
                let (id, remaining) = (freeze.freeze_id, freeze.remaining);
                self.differences.push(format!("freezes: {id} is {found} where the log makes {remaining} remaining"));
            }
        }
        for (id, remaining) in rows {
            match self.settled.get(&id) {
                Some(settled) if *settled > self.freezes_at => self.behind = true,
                _ if id.locate().2 > self.freezes_at => {}
                _ => self
                    .differences
                    .push(format!("freezes: {id} is open with {remaining} where the log has settled it")),
            }
        }
    }

    /// In a word.
    pub(super) const fn verdict(&self) -> &'static str {
        match (self.differences.is_empty(), self.behind) {
            (false, _) => "differs",
            (true, true) => "behind",
            (true, false) => "agrees",
        }
    }
}
