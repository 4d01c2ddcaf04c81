//! What a person should hear of: told in the log, counted in the metrics, and handed on to whoever delivers it.

use serde_json::{Map, Value};
use tokio::sync::mpsc;

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

/// Raises alerts. Cloning is cheap; nobody waits for a delivery.
#[derive(Debug, Clone)]
pub(crate) struct Alerts {
    waiting: mpsc::Sender<Alert>,
}

impl Alerts {
    /// The handle, and what it hands on.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Alert>) {
        let (waiting, alerts) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, alerts)
    }

    /// Tells of something that a person should look at.
    pub(crate) fn raise(&self, alert: Alert) {
        let (user_id, credit_type) = alert.account.clone().unwrap_or_default();
        let figures = Value::Object(alert.figures.clone());
        tracing::error!(kind = alert.kind, user_id, credit_type, %figures, remedy = alert.remedy, "{}", alert.message);
        metrics::counter!("ledger_alerts_total", "kind" => alert.kind).increment(1);
        if self.waiting.try_send(alert).is_err() {
            metrics::counter!("ledger_alerts_undelivered_total").increment(1);
        }
    }
}
