//! The release of some freezes that are due.

use std::time::{Duration, Instant};

use futures::future::join_all;
use ledger_core::{
    Action, Amount, BusinessKey, Command, Event, EventType, NamedAccount, Partition, Provenance, Rejection, Timestamp,
};
use ledger_store::{CommandError, Database, Ledger, Recorded, StoreError, Unavailable};
use serde_json::{Map, Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    order_status::{Order, OrderStatus},
    waiting::{Place, Waiting, Why},
};
use crate::{
    alerts::{Alert, Alerts},
    backoff, commands,
};

/// The code of a release's key; its id is the freeze's.
const CODE: &str = "system.auto_unfreeze";
const ACTOR: &str = "system";
/// The least pause after a batch, and how many times as long as the batch took it is otherwise: callers' commands come first.
const PAUSE: Duration = Duration::from_millis(12);
const PAUSE_SHARE: f64 = 0.5;
/// The pause when the writer takes no more.
const BUSY: Duration = Duration::from_secs(1);
/// So often in a row a batch may fail before its freezes are tried one by one: one of them may be damaged.
const BATCH_FAILURES: u32 = 3;
/// Orders that are asked about at once.
const ASKED_AT_ONCE: usize = 16;
/// After so many orders in a row that nothing was found out about, the order system is let alone for a while.
const UNKNOWN_IN_A_ROW: usize = 2 * ASKED_AT_ONCE;
const REST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);
/// A person is told after so many tries of one freeze, or so many rests.
const TOLD_AFTER: u32 = 5;
const TOLD_AFTER_RESTS: u32 = 3;

/// Releases freezes, and remembers those that it could not release.
pub(super) struct Releaser {
    ledger: Ledger,
    database: Database,
    alerts: Alerts,
    orders: Option<OrderStatus>,
    pub(super) waiting: Waiting,
    /// Freezes that there was no room to remember: their partition, and when they expired.
    pub(super) crowded_out: Vec<(Partition, Timestamp)>,
    batch_failures: u32,
    /// Orders in a row that nothing was found out about.
    unknown: usize,
    rests: u32,
    rest_until: Option<Instant>,
    /// That the order system cannot be reached was told since it answered last.
    unreachable_told: bool,
    crowded_told: bool,
}

impl Releaser {
    pub(super) fn new(ledger: Ledger, database: Database, alerts: Alerts, orders: Option<OrderStatus>) -> Self {
        Self {
            ledger,
            database,
            alerts,
            orders,
            waiting: Waiting::default(),
            crowded_out: Vec::new(),
            batch_failures: 0,
            unknown: 0,
            rests: 0,
            rest_until: None,
            unreachable_told: false,
            crowded_told: false,
        }
    }

    /// Whether the order system is let alone for now.
    pub(super) fn is_resting(&self) -> bool {
        self.rest_until.is_some_and(|until| Instant::now() < until)
    }

    /// Releases the freezes at some places, or remembers them; then pauses. False when that cannot be said of all: then they
    /// are to be dealt with again.
    pub(super) async fn deal(&mut self, places: &[Place], now: Timestamp) -> Result<bool, StoreError> {
        if places.is_empty() {
            return Ok(true);
        }
        let began = Instant::now();
        let due = self.read(places, now).await?;
        let (due, asked_all) = self.without_paid(due).await;
        let took_from = Instant::now();
        let released_all = due.is_empty() || self.release(&due).await;
        let took = if self.orders.is_some() { took_from.elapsed() } else { began.elapsed() };
        sleep(took.mul_f64(PAUSE_SHARE).max(PAUSE)).await;
        Ok(asked_all && released_all)
    }

    /// The freezes at some places, as their events say, as far as these say that they are due.
    async fn read(&mut self, places: &[Place], now: Timestamp) -> Result<Vec<Event>, StoreError> {
        let rows = self.database.rows_at(places).await?;
        let events: Vec<_> = rows.into_iter().flatten().collect();
        for place in places {
            let found = events.iter().find(|event| (event.partition, event.position) == *place);
            if found.is_none_or(|event| !is_due(event, now)) {
                // The read model and the log do not agree: the log is right, and there is nothing to release.
                self.postpone(*place, Why::Failed, Timestamp::EPOCH);
                self.failed_read(*place);
            }
        }
        Ok(events.into_iter().filter(|event| is_due(event, now)).collect())
    }

    /// Leaves out the freezes whose orders are paid, or are not known about. False when the order system was let alone before
    /// all were asked about.
    async fn without_paid(&mut self, due: Vec<Event>) -> (Vec<Event>, bool) {
        if self.orders.is_none() {
            return (due, true);
        }
        let mut released = Vec::with_capacity(due.len());
        let mut left = due.into_iter().peekable();
        while left.peek().is_some() {
            if self.is_resting() {
                return (released, false);
            }
            let some: Vec<_> = left.by_ref().take(ASKED_AT_ONCE).collect();
            let mut last = None;
            for (event, order) in some.iter().zip(self.ask(&some).await) {
                match order {
                    Order::NotPaid => {
                        self.answered();
                        released.push(event.clone());
                    }
                    Order::Paid(status) => {
                        self.answered();
                        self.keep(event, &status);
                    }
                    Order::Unknown(why) => {
                        self.not_known(event, &why);
                        last = Some((event, why));
                    }
                }
            }
            if let Some((event, why)) = last
                && self.unknown >= UNKNOWN_IN_A_ROW
            {
                self.rests += 1;
                self.rest_until = Some(Instant::now() + backoff::pause(self.rests, REST, REST_MAX));
                if self.rests >= TOLD_AFTER_RESTS {
                    self.tell_unreachable(event, &why);
                }
            }
        }
        (released, true)
    }

    async fn ask(&self, events: &[Event]) -> Vec<Order> {
        let Some(orders) = &self.orders else { return Vec::new() };
        join_all(events.iter().map(|event| orders.ask(event))).await
    }

    fn answered(&mut self) {
        if self.rests > 0 {
            // Whoever waits for it need not wait for its own pause.
            self.waiting.hasten(Why::Unknown);
        }
        (self.unknown, self.rests, self.rest_until, self.unreachable_told) = (0, 0, None, false);
    }

    fn keep(&mut self, event: &Event, status: &str) {
        let place = (event.partition, event.position);
        self.postpone(place, Why::Kept, expiry(event));
        if self.waiting.is_to_be_told(place, Why::Kept) {
            let mut figures = figures(event);
            figures.insert("order_status".to_owned(), status.into());
            self.alerts.raise(Alert {
                kind: "freeze_kept",
                account: Some(account(event)),
                figures,
                message: format!("the freeze has expired and is kept: its order is {status}"),
                remedy: "capture the freeze; if the order is not paid after all, correct its status and the freeze is \
                         released within the hour"
                    .to_owned(),
            });
        }
    }

    fn not_known(&mut self, event: &Event, why: &str) {
        self.unknown += 1;
        metrics::counter!("ledger_expiry_failures_total", "reason" => "order_status").increment(1);
        let place = (event.partition, event.position);
        let tries = self.postpone(place, Why::Unknown, expiry(event));
        if tries.is_some_and(|tries| tries >= TOLD_AFTER) && self.waiting.is_to_be_told(place, Why::Unknown) {
            self.tell_unreachable(event, why);
        }
    }

    /// Once until the order system answers again, whatever about.
    fn tell_unreachable(&mut self, event: &Event, why: &str) {
        if std::mem::replace(&mut self.unreachable_told, true) {
            return;
        }
        let mut figures = figures(event);
        figures.insert("reason".to_owned(), why.into());
        self.alerts.raise(Alert {
            kind: "order_status_unreachable",
            account: Some(account(event)),
            figures,
            message: format!("what became of an order cannot be found out, so its freeze stays: {why}"),
            remedy: "check the order system and --order-status-url; it is asked again by itself".to_owned(),
        });
    }

    /// Sends the releases. False when they are to be sent again.
    async fn release(&mut self, due: &[Event]) -> bool {
        let request_id = Uuid::new_v4().to_string();
        let commands = due.iter().map(|event| command(event, &request_id)).collect();
        let outcomes = self.ledger.execute_each(commands).await;
        let mut released = 0;
        let mut unavailable = None;
        for (event, outcome) in due.iter().zip(outcomes) {
            if let Err(CommandError::Unavailable(why)) = outcome {
                unavailable = Some(why);
            } else {
                released += u64::from(self.settle(event, outcome));
            }
        }
        count(released);
        match unavailable {
            None => {
                self.batch_failures = 0;
                true
            }
            Some(Unavailable::Store | Unavailable::Damaged) if self.ledger.trouble().is_none() => {
                self.batch_failures += 1;
                if self.batch_failures < BATCH_FAILURES {
                    sleep(BUSY).await;
                    return false;
                }
                self.release_one_by_one(due, &request_id).await
            }
            Some(_) => {
                metrics::counter!("ledger_expiry_failures_total", "reason" => "busy").increment(1);
                sleep(BUSY).await;
                false
            }
        }
    }

    /// What keeps failing while the database is well is damaged: each freeze is tried once more alone, and those that fail are
    /// held back.
    async fn release_one_by_one(&mut self, due: &[Event], request_id: &str) -> bool {
        for event in due {
            let outcome = self.ledger.execute(command(event, request_id)).await;
            match outcome {
                Err(CommandError::Unavailable(Unavailable::Store | Unavailable::Damaged))
                    if self.ledger.trouble().is_none() =>
                {
                    self.not_released(event, "a part of the database that it needs is damaged");
                }
                Err(CommandError::Unavailable(_)) => return false,
                outcome => count(u64::from(self.settle(event, outcome))),
            }
        }
        self.batch_failures = 0;
        true
    }

    /// Whether the release was recorded now.
    fn settle(&mut self, event: &Event, outcome: Result<Recorded, CommandError>) -> bool {
        match outcome {
            Ok(recorded) => {
                self.waiting.done((event.partition, event.position));
                !recorded.replayed
            }
            // It was captured or released meanwhile, or its operation was reversed: nothing is left to do.
            Err(CommandError::Rejected(
                Rejection::InsufficientFrozen { .. } | Rejection::OperationCompensated { .. },
            )) => {
                self.waiting.done((event.partition, event.position));
                false
            }
            Err(error) => {
                self.not_released(event, &error.to_string());
                false
            }
        }
    }

    fn not_released(&mut self, event: &Event, why: &str) {
        metrics::counter!("ledger_expiry_failures_total", "reason" => "refused").increment(1);
        let place = (event.partition, event.position);
        self.postpone(place, Why::Failed, expiry(event));
        if self.waiting.is_to_be_told(place, Why::Failed) {
            let mut figures = figures(event);
            figures.insert("reason".to_owned(), why.into());
            self.alerts.raise(Alert {
                kind: "freeze_not_released",
                account: Some(account(event)),
                figures,
                message: format!("an expired freeze cannot be released: {why}"),
                remedy: "run replay-tool verify; it is tried again by itself".to_owned(),
            });
        }
    }

    fn failed_read(&mut self, place: Place) {
        metrics::counter!("ledger_expiry_failures_total", "reason" => "contradiction").increment(1);
        if self.waiting.is_to_be_told(place, Why::Failed) {
            let (partition, position) = place;
            tracing::error!(
                %partition, %position,
                "the read model says that a freeze is due, and its event does not or cannot be read: run replay-tool verify"
            );
        }
    }

    /// Remembers a freeze, or, where there is no room, to look for it again. How often it was tried.
    fn postpone(&mut self, place: Place, why: Why, expires_at: Timestamp) -> Option<u32> {
        let tries = self.waiting.postpone(place, why, Instant::now());
        if tries.is_none() {
            self.crowded_out.push((place.0, expires_at));
            if !std::mem::replace(&mut self.crowded_told, true) {
                self.alerts.raise(Alert {
                    kind: "freezes_held_back",
                    account: None,
                    figures: Map::new(),
                    message: "more expired freezes are held back than can be remembered; further ones are looked at \
                              again now and then, and are not told of one by one"
                        .to_owned(),
                    remedy: "capture the freezes of orders that are paid; see the alerts before this one".to_owned(),
                });
            }
        }
        tries
    }
}

fn is_due(event: &Event, now: Timestamp) -> bool {
    event.event_type == EventType::Frozen && event.expires_at.is_some_and(|at| at <= now)
}

fn expiry(event: &Event) -> Timestamp {
    event.expires_at.unwrap_or(Timestamp::EPOCH)
}

fn command(event: &Event, request_id: &str) -> Command {
    let freeze = event.transaction_id;
    let expired = event.expires_at.map(|at| format!("expired at {at}"));
    Command {
        action: Action::Unfreeze { freeze, named: NamedAccount::default(), amount: None },
        key: BusinessKey::reserved(CODE, &freeze.to_string()).expect("a code and a UUID make a key"),
        expected_version: None,
        provenance: Provenance {
            operation_id: Some(event.operation_id),
            request_id: request_id.into(),
            actor: ACTOR.into(),
            description: expired.map(Into::into),
            metadata: None,
        },
    }
}

fn count(released: u64) {
    if released > 0 {
        metrics::counter!("ledger_expiry_released_total").increment(released);
        commands::count(EventType::Unfrozen, false, released);
    }
}

fn account(event: &Event) -> (String, String) {
    (event.account.user_id().to_string(), event.account.credit_type().to_string())
}

fn figures(event: &Event) -> Map<String, Value> {
    let figures = json!({
        "freeze_id": event.transaction_id,
        "amount": event.amount.map(Amount::units),
        "expires_at": event.expires_at,
        "business_code": **event.key.code(),
        "business_id": **event.key.id(),
    });
    match figures {
        Value::Object(figures) => figures,
        _ => Map::new(),
    }
}
