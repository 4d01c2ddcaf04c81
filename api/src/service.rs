//! What the routes share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_core::Partition;
use ledger_store::{Database, Ledger, StoreError};
use metrics_exporter_prometheus::PrometheusHandle;
use projector::{
    checkpoint::{self, ReadModel},
    publisher::PublisherStatus,
    runner,
};
use tokio::sync::{Semaphore, watch};

/// The parts of the running service. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) ledger: Ledger,
    pub(crate) database: Database,
    pub(crate) progress: watch::Receiver<runner::Progress>,
    pub(crate) publisher: Option<watch::Receiver<PublisherStatus>>,
    pub(crate) metrics: PrometheusHandle,
    /// How long a request may take, in all.
    pub(crate) deadline: Duration,
    /// The bytes of bodies that may be in memory at once, over all connections.
    pub(crate) body_bytes: Arc<Semaphore>,
    /// True once the service is to stop: streams end then.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Service {
    /// Waits until the read models hold what this process had committed when this was called, but not for long: read
    /// models may lag, and what they hold is answered then.
    pub(crate) async fn catch_own_writes(&self, partition: Partition) -> Result<(), StoreError> {
        const PATIENCE: Duration = Duration::from_millis(500);
        /// Another process may run the projector: then its checkpoint tells, not this process's progress.
        const LOOK_AGAIN: Duration = Duration::from_millis(20);
        let wanted = self.ledger.committed()[partition.index()];
        let began = Instant::now();
        let mut progress = self.progress.clone();
        loop {
            if progress.borrow_and_update().positions[partition.index()] >= wanted {
                return Ok(());
            }
            // Told or not, the checkpoint is looked at.
            let _ = tokio::time::timeout(LOOK_AGAIN, progress.changed()).await;
            let checkpoint = checkpoint::read(&self.database, ReadModel::Freezes).await?;
            if checkpoint[partition.index()].position >= wanted || began.elapsed() >= PATIENCE {
                return Ok(());
            }
        }
    }
}
