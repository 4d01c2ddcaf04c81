//! Commands over NATS: a JetStream work queue, done by the very code of the HTTP routes.
//!
//! A message is taken from the queue only after its command is committed, or its dead letter stored. Whatever is killed in
//! between comes again, and the business key makes it a replay: done once. What is refused, or fails again and again, goes
//! to the dead letters; what only has to wait (a rate limit, a database that is away) waits without using up an attempt.

mod attempts;
mod consumer;
mod dead;
mod handle;
mod message;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use crate::service::Service;
use attempts::Attempts;
use consumer::Consumer;

/// The work queue, its subjects one by one, so that it never overlaps with others under `credit.`.
const STREAM: &str = "CREDIT_COMMANDS";
const SUBJECTS: [&str; 5] = [
    "credit.commands.credit",
    "credit.commands.debit",
    "credit.commands.freeze",
    "credit.commands.unfreeze",
    "credit.commands.refund",
];
/// The consumer that all processes share.
const DURABLE: &str = "ledger";
/// A message that nobody acknowledged, or said to be still at work on, comes again after this time.
const ACK_WAIT: Duration = Duration::from_secs(6);
/// How often it is said of a message that it is still worked on.
const PROGRESS: Duration = Duration::from_secs(2);
/// Commands under way at once: as many as make good batches.
const IN_FLIGHT_MAX: usize = 512;
/// How long a stop waits for those under way; what is not done by then comes again.
const DRAIN: Duration = Duration::from_secs(10);

/// What is told of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueueStatus {
    pub(crate) connected: bool,
    /// Commands that are in the queue, those under way too.
    pub(crate) pending: u64,
    /// Why nothing is taken from it at the moment.
    pub(crate) trouble: Option<String>,
}

/// What the parts of it share.
struct Shared {
    service: Service,
    attempts: Attempts,
    show: watch::Sender<QueueStatus>,
    stop: watch::Receiver<bool>,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits, but not beyond the stop.
    async fn pause(&self, longest: Duration) {
        let mut stop = self.stop.clone();
        // Whether it ran out or was told to stop: the caller looks.
        let _ = tokio::time::timeout(longest, stop.wait_for(|stop| *stop)).await;
    }
}

/// The handle on the running queue.
pub(crate) struct Queue {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Queue {
    /// Starts to take commands from the queue. NATS may be away: it is tried for ever.
    pub(crate) fn start(service: Service, nats_url: String, attempts: u32, show: watch::Sender<QueueStatus>) -> Self {
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared { service, attempts: Attempts::new(attempts), show, stop: stopping });
        Self { stop, task: tokio::spawn(Consumer::new(shared).run(nats_url)) }
    }

    /// Takes nothing more and ends what is under way.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}
