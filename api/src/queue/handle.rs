//! One message: its command is done, or it comes again, or it goes to the dead letters.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use ledger_core::Account;
use ledger_store::Recorded;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, interval_at, timeout};

use super::{
    PROGRESS, Shared,
    attempts::Verdict,
    dead::{DeadLetters, Letter},
    message::Received,
};
use crate::{
    alerts::Alert,
    audit::{Entry, Outcome},
    backoff,
    breaker::Position,
    commands,
    problem::Problem,
};

/// How long the database may take to show that it is well.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How often it is looked at while it is away.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The pause after NATS did not store a dead letter, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often the end of a dead letter's message is told before it is left to come again.
const TOLD_MAX: u32 = 5;

impl Shared {
    /// Handles a message to its end, and keeps the server from giving it to another meanwhile.
    pub(super) async fn handle(&self, received: Received, dead: &DeadLetters) {
        let at_work = async {
            let mut turn = interval_at(Instant::now() + PROGRESS, PROGRESS);
            loop {
                turn.tick().await;
                received.progress().await;
            }
        };
        tokio::select! {
            biased;
            () = self.settle(&received, dead) => {}
            () = at_work => {}
        }
    }

    async fn settle(&self, received: &Received, dead: &DeadLetters) {
        let id = received.id();
        if !self.attempts.put_back_last(&id, received.delivered) {
            match dead.holds(received).await {
                Ok(true) => return self.take_away(received).await,
                Ok(false) => {}
                Err(why) => {
                    tracing::debug!(why, sequence = received.sequence, "the dead letters cannot be read");
                    return;
                }
            }
        }
        let problem = match self.execute(received).await {
            Ok(recorded) => {
                count(if recorded.replayed { "replayed" } else { "recorded" });
                self.attempts.forget(&id);
                self.note(received, commands::outcome(&recorded), None);
                return received.acknowledge().await;
            }
            Err(problem) => problem,
        };
        if self.is_stopping() && problem.is_ours() {
            // Another process, or the next start, does it.
            return received.put_back(Duration::ZERO).await;
        }
        let is_away = problem.is_store_away() && self.is_database_away().await;
        match self.attempts.judge(&id, received.delivered, &problem, is_away) {
            Verdict::Later { pause, is_failure } => {
                count(if is_failure { "retried" } else { "delayed" });
                received.put_back(pause).await;
            }
            Verdict::Dead { attempts } => {
                if problem.is_refusal() {
                    self.note(received, Outcome::Refused(problem.code()), problem.account().cloned());
                }
                self.bury(&Letter { received, problem: &problem, attempts }, dead).await;
                self.attempts.forget(&id);
            }
        }
    }

    /// Writes into the audit what became of a command.
    fn note(&self, received: &Received, outcome: Outcome, account: Option<Account>) {
        let Ok(kind) = received.kind() else { return };
        let origin = received.origin();
        self.service.audit.record(Entry {
            action: kind.name(),
            actor: origin.caller.actor,
            address: None,
            request_id: Some(origin.id.0),
            account,
            outcome,
            details: None,
        });
    }

    /// Does the command as the HTTP route does.
    async fn execute(&self, received: &Received) -> Result<Recorded, Problem> {
        let outcome = AssertUnwindSafe(self.run(received)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(sequence = received.sequence, "a command from NATS panicked");
            Err(Problem::internal())
        });
        match &outcome {
            Err(problem) if problem.is_store_away() => self.service.breaker.failed(),
            _ => self.service.breaker.succeeded(),
        }
        outcome
    }

    async fn run(&self, received: &Received) -> Result<Recorded, Problem> {
        let origin = received.origin();
        let kind = received.kind()?;
        let mut command = commands::read(kind, received.body()?, &origin)?;
        let service = &self.service;
        service.lifetimes.apply(&service.ledger, &mut command).await?;
        service.limits.take(&origin.caller, &service.database, std::slice::from_ref(&command)).await?;
        commands::apply(service, command).await
    }

    /// Whether the database is known not to serve commands, or does not show that it does.
    async fn is_database_away(&self) -> bool {
        self.is_known_away() || !matches!(timeout(SIGN_OF_LIFE, self.service.database.heads()).await, Ok(Ok(_)))
    }

    fn is_known_away(&self) -> bool {
        self.service.breaker.position() != Position::Closed || self.service.ledger.trouble().is_some()
    }

    /// Waits until the database serves commands, or the stop.
    pub(super) async fn until_well(&self) {
        let mut is_told = false;
        while self.is_known_away() && !self.is_stopping() {
            if !is_told {
                is_told = true;
                tracing::warn!("the database is away: commands stay in the queue until it is back");
                self.show.send_modify(|status| status.trouble = Some("the database is away".to_owned()));
            }
            self.pause(LOOK_AGAIN).await;
        }
        if is_told {
            self.show.send_modify(|status| status.trouble = None);
        }
    }

    /// Writes a dead letter, tells a person, and takes the message from the queue, in this order.
    async fn bury(&self, letter: &Letter<'_>, dead: &DeadLetters) {
        let mut failures = 0;
        let is_new = loop {
            match dead.store(letter).await {
                // What was stored although its acknowledgement never came was told to nobody: rather an alert too many.
                Ok(is_new) => break is_new || failures > 0,
                Err(why) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(why, sequence = letter.received.sequence, "a dead letter cannot be stored yet");
                    }
                    self.pause(backoff::pause(failures, PAUSE, PAUSE_MAX)).await;
                    if self.is_stopping() {
                        return;
                    }
                }
            }
        };
        if is_new {
            count("dead");
            let labels = [("type", letter.received.kind_name()), ("code", letter.problem.code())];
            metrics::counter!("ledger_nats_commands_dead_total", &labels).increment(1);
            self.service.alerts.raise(alert(letter));
        }
        self.take_away(letter.received).await;
    }

    /// Takes a message with a dead letter from the queue. Should it come again, the letter is found.
    async fn take_away(&self, received: &Received) {
        for told in 1..=TOLD_MAX {
            let Err(why) = received.acknowledge_surely().await else { return };
            tracing::debug!(why, sequence = received.sequence, "an acknowledgement was not answered");
            self.pause(backoff::pause(told, PAUSE, PAUSE_MAX)).await;
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("ledger_nats_commands_total", "outcome" => outcome).increment(1);
}

fn alert(letter: &Letter<'_>) -> Alert {
    let Letter { received, problem, attempts } = letter;
    let body: Map<String, Value> = serde_json::from_slice(&received.payload).unwrap_or_default();
    let text =
        |name: &str| body.get(name).and_then(Value::as_str).map(|text| text.chars().take(128).collect::<String>());
    let mut figures = Map::new();
    figures.insert("subject".to_owned(), json!(received.subject));
    figures.insert("sequence".to_owned(), json!(received.sequence));
    figures.insert("request_id".to_owned(), json!(received.request_id.0));
    figures.insert("code".to_owned(), json!(problem.code()));
    figures.insert("attempts".to_owned(), json!(attempts));
    figures.insert("business_code".to_owned(), json!(text("business_code")));
    figures.insert("business_id".to_owned(), json!(text("business_id")));
    let kind = received.kind_name();
    Alert {
        kind: "command_dead",
        account: text("user_id").zip(text("credit_type")),
        figures,
        message: format!("a {kind} command from NATS was not done: {}", problem.code()),
        remedy: format!(
            "read its letter on credit.dead.{kind}, mend the cause or the body, and publish it to {} again: a business key is \
             done once",
            received.subject
        ),
    }
}
