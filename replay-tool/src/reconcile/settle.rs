//! Settling what can be settled without a person.

use std::sync::Arc;

use chrono::Utc;
use futures::{StreamExt, stream};
use ledger_core::{Action, Amount, BusinessKey, Command, InvalidField, NamedAccount, Provenance, Timestamp};
use ledger_store::{BatchError, Database, Ledger, LedgerOptions};
use serde_json::json;
use uuid::Uuid;

use super::mismatch::{Mismatch, Outcome, Step};
use crate::context::Failure;

/// The business code of what the replay-tool settles.
pub(crate) const SETTLEMENT_CODE: &str = "system.settlement";
/// Orders that are settled at once: their commands share commits.
const AT_ONCE: usize = 256;

/// Who settles what.
#[derive(Debug, Clone)]
pub(crate) struct Mandate {
    pub(crate) actor: String,
    /// Orders that the ledger did something for within so many seconds are left to their own flow.
    pub(crate) quiet_seconds: u64,
}

/// Sends settlements to the ledger.
pub(crate) struct Settler {
    ledger: Ledger,
    actor: Arc<str>,
    /// What the ledger did later than this may be followed by more.
    quiet_since: Option<Timestamp>,
    /// One for all that a run settles.
    operation: Uuid,
}

impl Settler {
    pub(crate) async fn start(database: &Database, mandate: &Mandate) -> Result<Self, Failure> {
        let ledger = Ledger::start(database.clone(), LedgerOptions::default()).await?;
        let quiet_micros = i64::try_from(mandate.quiet_seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        // A time before 1970 leaves nothing that is old enough.
        let quiet_since = Timestamp::from_micros(Utc::now().timestamp_micros().saturating_sub(quiet_micros));
        Ok(Self { ledger, actor: mandate.actor.as_str().into(), quiet_since, operation: Uuid::new_v4() })
    }

    fn may_settle(&self, mismatch: &Mismatch) -> bool {
        mismatch.settlement.automatic && mismatch.newest_at <= self.quiet_since
    }

    /// Settles those of the mismatches that need no person; all steps of an order are done together, or none.
    pub(crate) async fn settle(&self, mismatches: &mut [Mismatch]) -> Result<(), Failure> {
        let settled = stream::iter(mismatches.iter_mut().filter(|mismatch| self.may_settle(mismatch)))
            .map(|mismatch| async move {
                mismatch.outcome = self.settle_one(mismatch).await?;
                Ok::<_, Failure>(())
            })
            .buffer_unordered(AT_ONCE);
        let outcomes: Vec<_> = settled.collect().await;
        outcomes.into_iter().collect()
    }

    pub(crate) async fn stop(self) {
        self.ledger.stop().await;
    }

    async fn settle_one(&self, mismatch: &Mismatch) -> Result<Outcome, Failure> {
        let commands = mismatch.settlement.steps.iter().map(|step| self.command(mismatch, step));
        let commands = commands.collect::<Result<Vec<_>, _>>();
        let commands = commands.map_err(|invalid| Failure::new(format!("order {}: {invalid}", mismatch.order_id)))?;
        match self.ledger.execute_atomic(commands).await {
            Ok(recorded) => {
                Ok(Outcome::Settled(recorded.iter().map(|recorded| recorded.event.transaction_id).collect()))
            }
            Err(BatchError::Rejected { rejection, .. }) => {
                Ok(Outcome::Refused { code: rejection.code(), detail: rejection.to_string() })
            }
            Err(BatchError::Unavailable(unavailable)) => {
                Err(Failure::new(format!("{unavailable}; what was settled stays settled: run the same command again")))
            }
        }
    }

    /// The amount is the one that was seen: if the order has gone on meanwhile the ledger refuses, and nothing is guessed.
    fn command(&self, mismatch: &Mismatch, step: &Step) -> Result<Command, InvalidField> {
        let named = || NamedAccount {
            user_id: Some(mismatch.account.user_id().clone()),
            credit_type: Some(mismatch.account.credit_type().clone()),
        };
        let account = || mismatch.account.clone();
        let action = match *step {
            Step::Capture { freeze, amount } => {
                Action::Capture { freeze, named: named(), amount: Some(Amount::new(amount)?), release_remainder: None }
            }
            Step::Release { freeze, amount } => {
                Action::Unfreeze { freeze, named: named(), amount: Some(Amount::new(amount)?) }
            }
            Step::Refund { deduction, amount } => {
                Action::Refund { debit: deduction, named: named(), amount: Some(Amount::new(amount)?) }
            }
            Step::Debit { amount } => Action::Debit { account: account(), amount: Amount::new(amount)? },
            Step::Freeze { amount } => {
                Action::Freeze { account: account(), amount: Amount::new(amount)?, expiry: None }
            }
        };
        let status = mismatch.order_status.as_deref().unwrap_or("not known");
        let metadata = json!({ "order_id": &*mismatch.order_id, "order_status": status, "line": mismatch.line });
        Ok(Command {
            action,
            key: BusinessKey::reserved(SETTLEMENT_CODE, &step.business_id(&mismatch.order_id))?,
            expected_version: None,
            provenance: Provenance {
                operation_id: Some(self.operation),
                request_id: self.operation.to_string().into(),
                actor: self.actor.clone(),
                description: Some(format!("reconciliation: {}", mismatch.expected).into()),
                // A status is as long as an order system makes it; metadata is not.
                metadata: Some(metadata.to_string()).filter(|text| text.len() <= 4096).map(Into::into),
            },
        })
    }
}
