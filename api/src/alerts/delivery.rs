//! Hands each alert to every target. Each target has a queue and a task of its own, so that one that is dead holds up no other.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{Raised, WAITING_MAX, Webhook, jetstream, undelivered};

/// How long a stop waits for what is not delivered yet.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Where alerts go.
pub(crate) struct Targets {
    /// A NATS server, by its address. Not to be printed: it may hold a password.
    pub(crate) nats_url: Option<String>,
    pub(crate) webhook: Option<Webhook>,
}

/// The handle on the running deliveries.
pub(crate) struct Delivery {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Delivery {
    pub(crate) fn start(raised: mpsc::Receiver<Arc<Raised>>, targets: Targets) -> Self {
        let (stop, stopping) = watch::channel(false);
        Self { stop, task: tokio::spawn(distribute(raised, targets, stopping)) }
    }

    /// Delivers what was raised before, as far as that is quick.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}

async fn distribute(mut raised: mpsc::Receiver<Arc<Raised>>, targets: Targets, mut stop: watch::Receiver<bool>) {
    let mut deliveries = JoinSet::new();
    let mut queues: Vec<(&'static str, mpsc::Sender<Arc<Raised>>)> = Vec::new();
    if let Some(url) = targets.nats_url {
        let (queue, alerts) = mpsc::channel(WAITING_MAX);
        queues.push((jetstream::TARGET, queue));
        deliveries.spawn(jetstream::deliver(url, alerts));
    }
    if let Some(webhook) = targets.webhook {
        let (queue, alerts) = mpsc::channel(WAITING_MAX);
        queues.push((super::webhook::TARGET, queue));
        deliveries.spawn(webhook.deliver(alerts));
    }
    let hand_out = |alert: &Arc<Raised>| {
        for (target, queue) in &queues {
            if queue.try_send(alert.clone()).is_err() {
                undelivered(target);
            }
        }
    };
    loop {
        tokio::select! {
            Some(alert) = raised.recv() => hand_out(&alert),
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    while let Ok(alert) = raised.try_recv() {
        hand_out(&alert);
    }
    drop(queues);
    let rest = async { while deliveries.join_next().await.is_some() {} };
    if timeout(LAST_WORDS, rest).await.is_err() {
        tracing::warn!("some alerts were not delivered before the end: the log has them");
    }
}
