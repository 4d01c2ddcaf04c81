//! Alerts as messages of a JetStream stream, so that those who subscribe later see them, too.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{Context, stream},
};
use tokio::sync::mpsc;

use super::{Raised, delivered};
use crate::{backoff, nats};

pub(super) const TARGET: &str = "nats";
const STREAM: &str = "CREDIT_ALERTS";
const SUBJECT: &str = "credit.alerts";
/// The stream keeps so many, the newest; an operator may change it.
const KEPT_MAX: i64 = 100_000;
/// An alert that was stored although nobody heard so is not stored again within this time.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
/// The pause after a failure, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Publishes each alert until the stream holds it. NATS may be away for any time; past the bound of the queue the newest
/// alerts are only in the log.
pub(super) async fn deliver(url: String, mut alerts: mpsc::Receiver<Arc<Raised>>) {
    let context = nats::jetstream(nats::connect(&url, "ledger alerts").await);
    open(&context).await;
    while let Some(alert) = alerts.recv().await {
        let mut failures = 0;
        while let Err(why) = publish(&context, &alert).await {
            failures += 1;
            if failures == 1 {
                tracing::warn!(alert_id = %alert.id, why, "an alert cannot be published to NATS; trying again");
            }
            tokio::time::sleep(backoff::pause(failures, PAUSE, PAUSE_MAX)).await;
            open(&context).await;
        }
        delivered(TARGET);
    }
}

/// Waits until the stream is there.
async fn open(context: &Context) {
    let config = stream::Config {
        name: STREAM.to_owned(),
        description: Some("What a person should look at, in the credit ledger".to_owned()),
        subjects: vec![SUBJECT.to_owned()],
        retention: stream::RetentionPolicy::Limits,
        storage: stream::StorageType::File,
        max_messages: KEPT_MAX,
        duplicate_window: DUPLICATE_WINDOW,
        ..stream::Config::default()
    };
    let mut failures = 0;
    while let Err(why) = nats::open_stream(context, config.clone()).await {
        failures += 1;
        if failures == 1 {
            tracing::warn!(why, "alerts cannot be published to NATS; trying again");
        }
        tokio::time::sleep(backoff::pause(failures, PAUSE, PAUSE_MAX)).await;
    }
}

async fn publish(context: &Context, alert: &Raised) -> Result<(), String> {
    let mut headers = HeaderMap::new();
    headers.insert("ce-specversion", "1.0");
    headers.insert("ce-id", alert.id.to_string());
    headers.insert("ce-source", "/ledger");
    headers.insert("ce-type", "credit.alert");
    headers.insert("ce-time", alert.raised_at.as_str());
    headers.insert("content-type", "application/json");
    headers.insert("Nats-Msg-Id", alert.id.to_string());
    let sent = context.publish_with_headers(SUBJECT, headers, alert.body.clone()).await;
    let acknowledged = match sent {
        Ok(acknowledgement) => acknowledgement.await,
        Err(error) => Err(error),
    };
    acknowledged.map(|_| ()).map_err(|error| error.to_string())
}
