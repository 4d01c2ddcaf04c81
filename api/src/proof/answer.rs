//! What is done about what a proof found.

use ledger_core::{Account, Action, BusinessKey, Command, Provenance, Timestamp};
use ledger_store::StoreError;
use projector::{
    inconsistencies::{self, BY_PROOF, Finding, Known},
    proof::{Difference, Proof},
    rebuild::{self, RebuildError},
};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{MEND_PATIENCE, Turns, tell, tell::Told};
use crate::audit::{Entry, Outcome};

/// Accounts that are mended after one proof: each is a replay of its partition. Where more differ, a whole rebuild is the
/// remedy; the proof goes on with the others in its next turn.
const MENDS_MAX: usize = 50;
/// The business code of a lock that the proof sets.
const GUARD: &str = "system.guard";

impl Turns {
    pub(super) async fn answer(&self, proof: Proof, began: Timestamp) -> Result<(), StoreError> {
        let database = &self.service.database;
        let (partition, position, has_more) = (proof.partition, proof.position, proof.has_more);
        let mut standing = Vec::new();
        let mut told = Told::default();
        if let Some(damage) = &proof.damage {
            let finding = Finding::log_damaged(partition, damage);
            standing.push(tell::damage(&self.service, &finding, &mut told).await?);
        }
        let mut mends = 0;
        for difference in &proof.differences {
            let mut known = Vec::with_capacity(difference.findings.len());
            for finding in &difference.findings {
                let found = inconsistencies::record(database, finding).await?;
                standing.push(found.id);
                if found.is_new {
                    metrics::counter!("ledger_inconsistencies_total", "read_model" => finding.projection).increment(1);
                }
                known.push(found);
            }
            let is_small = difference.size() <= self.manner.mends_up_to;
            let done = match &difference.account {
                // From a damaged log nothing follows for an account.
                _ if proof.damage.is_some() => Some("reported"),
                Some(account) if is_small && mends < MENDS_MAX => {
                    mends += 1;
                    self.mend(account).await
                }
                Some(_) if is_small => None,
                Some(account) if difference.has_events => self.lock(account, difference, &known).await,
                _ => Some("reported"),
            };
            for (finding, known) in difference.findings.iter().zip(&known) {
                let already = known.outcome.as_deref();
                if let Some(done) = done
                    && already != Some(done)
                    && already != Some("locked")
                {
                    inconsistencies::set_outcome(database, partition, known.id, done, done == "mended").await?;
                }
                if already.is_none() && (known.is_new || done.is_some()) {
                    tell::drift(&self.service, finding, known.id, done, &mut told);
                }
            }
        }
        if !has_more {
            inconsistencies::resolve_gone(database, partition, began, position.0, &standing).await?;
        }
        Ok(())
    }

    /// Makes an account's rows anew. Nothing is said of it when that did not come about: the next proof tries again.
    async fn mend(&self, account: &Account) -> Option<&'static str> {
        let (database, mended) = (self.service.database.clone(), account.clone());
        let options = rebuild::Options { max_rate: self.manner.max_rate, by: BY_PROOF, ..rebuild::Options::default() };
        // On a thread of its own: whatever becomes of this task, the transaction comes to its end.
        let mending = tokio::task::spawn_blocking(move || {
            Handle::current().block_on(rebuild::mend_account(&database, &mended, &options, &mut |_| {}))
        });
        let mut stopping = self.stopping.clone();
        let stop = async {
            let _ = stopping.wait_for(|stop| *stop).await;
            tokio::time::sleep(MEND_PATIENCE).await;
        };
        let mended = tokio::select! {
            mended = mending => mended,
            () = stop => return None,
        };
        let (user_id, credit_type) = (account.user_id(), account.credit_type());
        match mended {
            Ok(Ok(mended)) => {
                tracing::warn!(%user_id, %credit_type, rows = mended.rows_mended, "rows of a read model were mended");
                metrics::counter!("ledger_proof_mended_rows_total").increment(mended.rows_mended);
                self.record("mend", account, Outcome::Done, json!({ "rows_mended": mended.rows_mended }));
                Some("mended")
            }
            Ok(Err(RebuildError::Contradiction { contradiction, .. })) => {
                tracing::error!(%user_id, %credit_type, %contradiction, "rows cannot be mended: the log is damaged");
                Some("reported")
            }
            Ok(Err(error)) => {
                tracing::warn!(%user_id, %credit_type, %error, "rows could not be mended; trying again");
                None
            }
            Err(_) => None,
        }
    }

    /// Writes down what the ledger did by itself.
    fn record(&self, action: &'static str, account: &Account, outcome: Outcome, details: Value) {
        let Value::Object(details) = details else { return };
        self.service.audit.record(Entry {
            action,
            actor: BY_PROOF.into(),
            address: None,
            request_id: None,
            account: Some(account.clone()),
            outcome,
            details: Some(Box::new(details)),
        });
    }

    /// Locks an account for all that takes value. Each inconsistency locks once: who unlocks the account meanwhile has
    /// reasons.
    async fn lock(&self, account: &Account, difference: &Difference, known: &[Known]) -> Option<&'static str> {
        let id = known.iter().find(|known| known.outcome.is_none()).map(|known| known.id);
        // All of them stood before, and were answered then.
        let Some(id) = id else { return Some("locked") };
        match self.service.ledger.newest(account).await {
            Ok(Some(newest)) if newest.after.locked => return Some("locked"),
            Ok(_) => {}
            Err(_) => return None,
        }
        match self.service.ledger.execute(guard(account, id, difference.size())).await {
            Ok(recorded) => {
                tell::locked(&self.service, account, id, difference.size(), &recorded.event);
                let details = json!({ "inconsistency_id": id, "size": difference.size() });
                self.record("guard", account, Outcome::Recorded(recorded.event), details);
                Some("locked")
            }
            Err(error) => {
                let (user_id, credit_type) = (account.user_id(), account.credit_type());
                tracing::error!(%user_id, %credit_type, %error, "an account could not be locked; trying again");
                None
            }
        }
    }
}

/// The command that locks an account: the same inconsistency gives the same key.
fn guard(account: &Account, id: Uuid, size: u64) -> Command {
    let description = format!("a read model differs from the log by {size} units: inconsistency {id}");
    Command {
        action: Action::Lock { account: account.clone() },
        key: BusinessKey::reserved(GUARD, &id.to_string()).expect("a short code and an id"),
        expected_version: None,
        provenance: Provenance {
            operation_id: None,
            request_id: id.to_string().into(),
            actor: BY_PROOF.into(),
            description: Some(description.into()),
            metadata: None,
        },
    }
}
