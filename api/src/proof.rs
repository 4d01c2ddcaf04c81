//! The continuous proof: in the background, one partition after the other is replayed and compared with its read models.
//!
//! What differs is written down and told. A small difference is mended; a large one locks the account for all that takes
//! value, and a person is called. A damaged log is told and left alone: nothing can be concluded from it.

use std::{num::NonZeroU32, time::Duration};

use chrono::Utc;
use ledger_core::{Partition, Timestamp};
use ledger_store::{StoreError, error::chain};
use projector::{
    election::{Election, Office},
    inconsistencies,
    proof::{self, Due, Outcome, Proof, ProofError},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{service::Service, settings::Settings};

mod answer;
mod tell;

use tell::Told;

/// How often it looks whether something is to be proved at once, because a projector stopped.
const LOOK: Duration = Duration::from_secs(2);
/// How often a process that is not elected looks whether it is its turn now.
const STAND_BY: Duration = Duration::from_secs(5);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);
/// A partition that fails so often in a row is left for its next turn, so that the others get theirs.
const FAILURES_MAX: u32 = 3;
/// The part of its time in a round that a partition's proof takes at most, unless that would be too slow: what is read gently is not
/// in the way of commands, and a large partition may need more passes than one.
const PART_OF_SLOT: u32 = 4;
/// No proof is slower than so many events a second, so that it comes to its end between two starts of the service.
const RATE_MIN: u32 = 2_000;
/// How long a row that is being mended is waited for when the service stops.
const MEND_PATIENCE: Duration = Duration::from_secs(10);

/// How the proof goes about it.
#[derive(Debug, Clone)]
struct Manner {
    round: Duration,
    max_rate: Option<NonZeroU32>,
    mends_up_to: u64,
}

/// The proof that is under way, for who stops the service.
pub(crate) struct Prover(JoinHandle<()>);

impl Prover {
    /// Starts proving, unless the settings say not to.
    pub(crate) fn start(service: Service, settings: &Settings) -> Option<Self> {
        let manner = Manner {
            round: Duration::from_secs(settings.proof_round),
            max_rate: NonZeroU32::new(settings.proof_rate),
            mends_up_to: settings.proof_mends_up_to,
        };
        if manner.round.is_zero() {
            return None;
        }
        let stopping = service.stopping.clone();
        let turns = Turns { service, manner, stopping, failures: 0 };
        Some(Self(tokio::spawn(turns.run())))
    }

    /// Waits for the end, which comes soon once the service is told to stop.
    pub(crate) async fn stopped(self) {
        // A task that panicked has ended, too.
        let _ = self.0.await;
    }
}

struct Turns {
    service: Service,
    manner: Manner,
    stopping: watch::Receiver<bool>,
    /// How often the partition whose turn it is could not be proved.
    failures: u32,
}

impl Turns {
    async fn run(mut self) {
        while !*self.stopping.borrow() {
            if let Err(error) = self.serve().await {
                self.failures += 1;
                tracing::warn!(error = %chain(&error), "the read models cannot be proved; trying again");
                self.wait(PAUSE).await;
            }
        }
    }

    /// Waits to be elected, then proves one partition after the other until something fails.
    async fn serve(&mut self) -> Result<(), StoreError> {
        let mut election = Election::stand(&self.service.database, Office::Proof).await?;
        while !*self.stopping.borrow() {
            if !election.won().await? {
                self.wait(STAND_BY).await;
                continue;
            }
            let database = &self.service.database;
            let due = database.step(proof::next_due(database, self.manner.round, now())).await?;
            if let Some(oldest) = due.oldest {
                metrics::gauge!("ledger_proof_round_seconds").set(oldest.as_secs_f64());
            }
            let open = inconsistencies::count_open(&self.service.database).await?;
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!("ledger_inconsistencies_open").set(open as f64);
            if due.wait.is_zero() {
                self.turn(&due).await?;
                self.failures = 0;
            } else {
                self.wait(due.wait.min(LOOK)).await;
            }
        }
        Ok(())
    }

    async fn wait(&mut self, longest: Duration) {
        let _ = timeout(longest, self.stopping.wait_for(|stop| *stop)).await;
    }

    /// Proves a partition, and does what is to be done about what is found.
    async fn turn(&mut self, due: &Due) -> Result<(), StoreError> {
        let (began, partition) = (now(), due.partition);
        let gentle_rate = if due.is_urgent {
            None
        } else {
            let events = self.service.database.heads().await?[partition.index()].position.0;
            Some(gentle_rate(events, proof::slot(self.manner.round)))
        };
        let mut stopping = self.stopping.clone();
        let proved = tokio::select! {
            proved = self.prove(partition, gentle_rate) => proved,
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        };
        let (outcome, position) = match proved {
            Ok(proof) => {
                let outcome = match (&proof.damage, proof.differences.is_empty()) {
                    (Some(_), _) => Outcome::Damaged,
                    (None, true) => Outcome::Sound,
                    (None, false) => Outcome::Drift,
                };
                let position = proof.position;
                self.answer(proof, began).await?;
                (outcome, position)
            }
            Err(error) => match error.finding() {
                Some(finding) => {
                    let mut told = Told::default();
                    tell::damage(&self.service, &finding, &mut told).await?;
                    (Outcome::Damaged, ledger_core::Position::ZERO)
                }
                None if self.failures + 1 >= FAILURES_MAX => {
                    tracing::error!(%partition, %error, "a partition cannot be proved; the others go on");
                    (Outcome::Failed, ledger_core::Position::ZERO)
                }
                None => {
                    return Err(match error {
                        ProofError::Store(error) => error,
                        restless => StoreError::Inconsistent(restless.to_string()),
                    });
                }
            },
        };
        metrics::counter!("ledger_proof_partitions_total", "outcome" => outcome.name()).increment(1);
        proof::write_down(&self.service.database, partition, began, now(), position, outcome).await
    }

    /// A log that seems damaged is read once more: it may just have been restored.
    async fn prove(&self, partition: Partition, gentle_rate: Option<NonZeroU32>) -> Result<Proof, ProofError> {
        let max_rate = self.manner.max_rate;
        let gentle_rate = gentle_rate.into_iter().chain(max_rate).min();
        let options = proof::Options { max_rate, gentle_rate, ..proof::Options::default() };
        let proved = proof::prove(&self.service.database, partition, &options).await;
        let is_damaged = match &proved {
            Ok(proof) => proof.damage.is_some(),
            Err(error) => error.finding().is_some(),
        };
        if is_damaged { proof::prove(&self.service.database, partition, &options).await } else { proved }
    }
}

/// The rate at which so many events take no more than a part of the slot.
fn gentle_rate(events: u64, slot: Duration) -> NonZeroU32 {
    let millis = u64::try_from((slot / PART_OF_SLOT).as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = u32::try_from(events.saturating_mul(1_000).div_ceil(millis)).unwrap_or(u32::MAX);
    NonZeroU32::new(rate.max(RATE_MIN)).unwrap_or(NonZeroU32::MIN)
}

fn now() -> Timestamp {
    Timestamp::from_micros(Utc::now().timestamp_micros())
        .expect("the system's clock is set to a year from 1970 to 9999")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_takes_a_quarter_of_its_slot_unless_that_is_too_slow() {
        let day = proof::slot(Duration::from_secs(86_400));
        assert_eq!(day, Duration::from_millis(1_282_500));
        assert_eq!(gentle_rate(0, day).get(), RATE_MIN);
        assert_eq!(gentle_rate(312_500, day).get(), RATE_MIN);
        // Two billion events: 31,250,000 in a partition, in 320.625 s.
        assert_eq!(gentle_rate(31_250_000, day).get(), 97_466);
        assert_eq!(gentle_rate(100, proof::slot(Duration::from_secs(1))).get(), 33_334);
        assert_eq!(gentle_rate(u64::MAX, Duration::ZERO).get(), u32::MAX);
    }
}
