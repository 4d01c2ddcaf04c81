//! What the routes share.

use std::{ops::Deref, sync::Arc, time::Duration};

use ledger_core::Partition;
use ledger_store::{Database, Ledger, StoreError};
use metrics_exporter_prometheus::PrometheusHandle;
use projector::{
    balances::Reader,
    checkpoint::{self, ReadModel},
    publisher::PublisherStatus,
    runner,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout},
};

use tokio_util::task::TaskTracker;

use crate::{
    access::Access, alerts::Alerts, audit::Audit, breaker::Breaker, content::Room, lifetime::Lifetimes, limits::Limits,
    queue::QueueStatus,
};

/// How long a read waits for the read models to hold what was written before it.
const READ_MODEL_PATIENCE: Duration = Duration::from_millis(500);
/// How often such a read looks when nothing in this process tells it of news.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// The running service. Cloning is cheap: every layer of every request does it.
#[derive(Clone)]
pub(crate) struct Service(Arc<Parts>);

impl Deref for Service {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What the service is made of.
pub(crate) struct Parts {
    pub(crate) ledger: Ledger,
    pub(crate) database: Database,
    pub(crate) balances: Reader,
    pub(crate) progress: watch::Receiver<runner::Progress>,
    /// Tells the projector that somebody waits for it.
    pub(crate) hurry: Arc<Notify>,
    pub(crate) publisher: Option<watch::Receiver<PublisherStatus>>,
    /// The commands from NATS, where they are taken.
    pub(crate) queue: Option<watch::Receiver<QueueStatus>>,
    pub(crate) metrics: PrometheusHandle,
    /// Who may call.
    pub(crate) access: Arc<Access>,
    pub(crate) limits: Limits,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) alerts: Alerts,
    pub(crate) audit: Audit,
    pub(crate) breaker: Breaker,
    /// Requests that go on though their callers are gone.
    pub(crate) left: TaskTracker,
    /// How long a request may take, in all.
    pub(crate) deadline: Duration,
    /// The room that bodies may take up in memory, over all connections.
    pub(crate) bodies: Room,
    /// The room for event streams.
    pub(crate) streams: Arc<Semaphore>,
    /// True once the service is to stop: streams end then.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Service {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Waits until the read models hold what this process had committed when this was called, but not for long: read
    /// models may lag, and what they hold is answered then.
    pub(crate) async fn catch_own_writes(&self, partition: Partition) -> Result<(), StoreError> {
        let wanted = self.ledger.committed()[partition.index()];
        let deadline = Instant::now() + READ_MODEL_PATIENCE;
        let mut progress = self.progress.clone();
        while progress.borrow_and_update().positions[partition.index()] < wanted && Instant::now() < deadline {
            self.hurry.notify_one();
            // Another process's projector wakes nobody here, but its checkpoint tells.
            if timeout(LOOK_AGAIN, progress.changed()).await.is_err() {
                let checkpoints = checkpoint::read(&self.database, ReadModel::Freezes).await?;
                if checkpoints[partition.index()].position >= wanted {
                    break;
                }
            }
        }
        Ok(())
    }
}
