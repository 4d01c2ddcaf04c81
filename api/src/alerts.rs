//! What a person should hear of: told in the log, counted in the metrics, and delivered to NATS and to a webhook.
//!
//! The log has every alert; a delivery is tried again and again, but not beyond this process's life.

mod delivery;
mod jetstream;
mod webhook;

use std::sync::Arc;

use bytes::Bytes;
use ledger_core::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

pub(crate) use delivery::{Delivery, Targets};
pub(crate) use webhook::Webhook;

/// Alerts that may wait to be delivered; the log and the metrics have the others, too.
const WAITING_MAX: usize = 10_000;

/// Something that a person should look at.
#[derive(Debug, Clone)]
pub(crate) struct Alert {
    /// What happened, as a name that does not change: `freeze_kept`, `drift`, `command_dead` …
    pub(crate) kind: &'static str,
    /// Whose account it is about, as user and credit type.
    pub(crate) account: Option<(String, String)>,
    /// The figures and ids, by the contract's names.
    pub(crate) figures: Map<String, Value>,
    /// What happened, in a sentence.
    pub(crate) message: String,
    /// What to do.
    pub(crate) remedy: String,
}

/// An alert on its way: the same bytes go everywhere.
#[derive(Debug)]
pub(crate) struct Raised {
    id: Uuid,
    raised_at: String,
    body: Bytes,
}

impl Raised {
    fn new(alert: &Alert) -> Self {
        let id = Uuid::new_v4();
        let raised_at = now();
        let (user_id, credit_type) = alert.account.as_ref().map(|(user, credit)| (user, credit)).unzip();
        let body = json!({
            "alert_id": id,
            "kind": alert.kind,
            "user_id": user_id,
            "credit_type": credit_type,
            "figures": alert.figures,
            "message": alert.message,
            "remedy": alert.remedy,
            "raised_at": raised_at,
        });
        Self { id, raised_at, body: body.to_string().into() }
    }
}

fn now() -> String {
    Timestamp::from_micros(chrono::Utc::now().timestamp_micros()).map(|now| now.to_string()).unwrap_or_default()
}

/// Raises alerts. Cloning is cheap; nobody waits for a delivery.
#[derive(Debug, Clone)]
pub(crate) struct Alerts {
    waiting: mpsc::Sender<Arc<Raised>>,
}

impl Alerts {
    /// The handle, and what it hands on.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Arc<Raised>>) {
        let (waiting, alerts) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, alerts)
    }

    /// Tells of something that a person should look at.
    pub(crate) fn raise(&self, alert: Alert) {
        let raised = Raised::new(&alert);
        let (user_id, credit_type) = alert.account.unwrap_or_default();
        let figures = Value::Object(alert.figures);
        tracing::error!(
            kind = alert.kind, alert_id = %raised.id, user_id, credit_type, %figures, remedy = alert.remedy,
            "{}", alert.message
        );
        metrics::counter!("ledger_alerts_total", "kind" => alert.kind).increment(1);
        if self.waiting.try_send(Arc::new(raised)).is_err() {
            undelivered("any");
        }
    }
}

/// Counts an alert that does not get to a target.
fn undelivered(target: &'static str) {
    metrics::counter!("ledger_alerts_undelivered_total", "target" => target).increment(1);
}

/// Counts an alert that got to a target.
fn delivered(target: &'static str) {
    metrics::counter!("ledger_alerts_delivered_total", "target" => target).increment(1);
}
