//! What the routes share.

use std::{sync::Arc, time::Duration};

use ledger_core::{PARTITIONS, Position};
use ledger_store::{Database, Ledger};
use metrics_exporter_prometheus::PrometheusHandle;
use projector::{publisher::PublisherStatus, runner};
use tokio::sync::{Semaphore, watch};

use crate::content::Room;

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
    /// The room that bodies may take up in memory, over all connections.
    pub(crate) bodies: Room,
    /// The room for event streams.
    pub(crate) streams: Arc<Semaphore>,
    /// True once the service is to stop: streams end then.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Service {
    /// Waits until the read models hold what this process had committed when this was called, but not for long: read
    /// models may lag, and what they hold is answered then.
    pub(crate) async fn catch_own_writes(&self, partition: ledger_core::Partition) {
        const PATIENCE: Duration = Duration::from_millis(250);
        let committed: [Position; PARTITIONS] = self.ledger.committed();
        let wanted = committed[partition.index()];
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| progress.positions[partition.index()] >= wanted);
        // Whether it was reached or not, the read model is read.
        let _ = tokio::time::timeout(PATIENCE, reached).await;
    }
}
