//! Publishes the log to NATS JetStream: one more projector, whose read model is a stream.
//!
//! The log is the outbox. Each message is sent with the sequence that the stream must have before it
//! (`Nats-Expected-Last-Sequence`), and those of a window, which are sent before their acknowledgements are waited for, with
//! the id of the message before them (`Nats-Expected-Last-Msg-Id`): the sequence alone would let one pass whose predecessors
//! were refused, once others have stored as many. So the stream holds each event once and in order whatever is lost,
//! repeated or raced, and however many publish: a message that was stored although its acknowledgement never came makes
//! every later one fail, and then the stream itself is read to find out. The checkpoint only says from where to read it.
//!
//! After a restore the log and the stream have a common beginning: publishing goes on after it, and one message before the
//! first event of the new epoch says what is void (see [`restored`]).

mod checkpoint;
mod message;
pub mod restored;
mod session;
mod view;

use std::time::Duration;

use ledger_core::{PARTITIONS, Position};
use ledger_store::Database;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

pub use message::place;
use session::{Session, SessionError};

/// The stream's name.
pub const STREAM: &str = "CREDIT";
/// The subjects of the stream, one by one, so that it never overlaps with others under `credit.`.
pub const SUBJECTS: [&str; 8] = [
    "credit.credited",
    "credit.deducted",
    "credit.frozen",
    "credit.unfrozen",
    "credit.refunded",
    "credit.account.locked",
    "credit.account.unlocked",
    restored::SUBJECT,
];
/// The pause after a failure, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a publisher that nobody wakes waits before it looks for itself.
const POLL: Duration = Duration::from_millis(500);
/// How often a publisher that is not elected looks whether it is its turn now.
const STAND_BY: Duration = Duration::from_secs(1);
/// How long a publisher that stopped with an alert waits before it looks whether a person has mended it.
const ALERT_PAUSE: Duration = Duration::from_secs(10);

/// Where to publish. Not to be printed: the address may hold a password.
#[derive(Clone)]
pub struct PublisherOptions {
    /// `nats://HOST:PORT`, with user and password in it where the server wants them.
    pub nats_url: String,
    /// How long the server remembers message ids: only the second guard, see the module's text.
    pub duplicate_window: Duration,
}

impl PublisherOptions {
    /// The usual: two minutes of remembered message ids.
    #[must_use]
    pub const fn new(nats_url: String) -> Self {
        Self { nats_url, duplicate_window: Duration::from_secs(120) }
    }
}

/// How far the stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherStatus {
    pub connected: bool,
    /// What is known to be in the stream, by partition.
    pub published: [Position; PARTITIONS],
    /// What is in the log, by partition.
    pub heads: [Position; PARTITIONS],
    /// Why nothing is published at the moment.
    pub trouble: Option<String>,
}

impl PublisherStatus {
    /// How many events are not known to be in the stream yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.lag_behind(&self.heads)
    }

    /// How many events up to some positions are not known to be in the stream yet.
    #[must_use]
    pub fn lag_behind(&self, heads: &[Position; PARTITIONS]) -> u64 {
        heads.iter().zip(&self.published).map(|(head, published)| head.0.saturating_sub(published.0)).sum()
    }
}

/// The handle on a running publisher.
#[derive(Debug)]
pub struct Publisher {
    status: watch::Receiver<PublisherStatus>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Publisher {
    /// Starts a publisher. NATS may be away: it is tried for ever, and commands never wait for it.
    #[must_use]
    pub fn start(database: Database, options: PublisherOptions, wake: Option<watch::Receiver<u64>>) -> Self {
        let nothing = PublisherStatus {
            connected: false,
            published: [Position::ZERO; PARTITIONS],
            heads: [Position::ZERO; PARTITIONS],
            trouble: None,
        };
        let (show, status) = watch::channel(nothing);
        let (stop, stopped) = watch::channel(false);
        let publishing = Publishing { database, options, wake, stop: stopped, show };
        Self { status, stop, task: tokio::spawn(publishing.run()) }
    }

    /// How far the stream is, as it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<PublisherStatus> {
        self.status.clone()
    }

    /// Ends after what is under way is acknowledged, and keeps the checkpoint.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}

pub(crate) struct Publishing {
    pub(crate) database: Database,
    pub(crate) options: PublisherOptions,
    wake: Option<watch::Receiver<u64>>,
    stop: watch::Receiver<bool>,
    show: watch::Sender<PublisherStatus>,
}

impl Publishing {
    async fn run(mut self) {
        let mut pause = PAUSE;
        while !self.is_stopping() {
            let outcome = self.serve(&mut pause).await;
            let alert = matches!(outcome, Err(SessionError::Alert(_)));
            if matches!(outcome, Err(SessionError::NotElected)) {
                self.stand_by().await;
                continue;
            }
            if let Err(error) = outcome {
                let trouble = error.describe();
                if alert {
                    tracing::error!(%trouble, "publishing stops until a person has looked");
                    metrics::counter!("ledger_publisher_alerts_total").increment(1);
                } else {
                    tracing::warn!(%trouble, "publishing is interrupted; trying again");
                }
                self.show.send_modify(|status| {
                    status.connected = false;
                    status.trouble = Some(trouble);
                });
                self.show_lag().await;
                self.wait(if alert { ALERT_PAUSE } else { pause }, false).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Connects, finds out what the stream holds, and publishes until something fails or it is told to stop. Once it is
    /// connected the pause before the next attempt begins anew.
    async fn serve(&mut self, pause: &mut Duration) -> Result<(), SessionError> {
        let mut session = Session::open(self).await?;
        *pause = PAUSE;
        self.show.send_modify(|status| {
            status.connected = true;
            status.trouble = None;
        });
        while !self.is_stopping() {
            let sent = self.database.step(session.publish_some(&self.database)).await?;
            self.show.send_modify(|status| {
                status.published = session.published();
                status.heads = session.heads();
            });
            self.show_lag().await;
            if !sent {
                self.wait(POLL, true).await;
            }
        }
        session.close().await
    }

    /// Another process publishes: its checkpoint tells how far it is.
    async fn stand_by(&mut self) {
        if let Ok(kept) = self.database.step(checkpoint::read(&self.database)).await {
            self.show.send_modify(|status| {
                status.connected = true;
                status.trouble = None;
                status.published = kept.published.map(|head| head.position);
            });
        }
        self.show_lag().await;
        self.wait(STAND_BY, false).await;
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    async fn wait(&mut self, longest: Duration, for_news: bool) {
        let news = async {
            if let Some(wake) = self.wake.as_mut().filter(|_| for_news) {
                if wake.changed().await.is_ok() {
                    return;
                }
                // The writer is gone: only the clock wakes now.
                self.wake = None;
            }
            std::future::pending::<()>().await;
        };
        let mut stop = self.stop.clone();
        tokio::select! {
            // Whether it ran out or was woken: the next round looks.
            _ = timeout(longest, news) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// The lag as metrics, also while NATS is away.
    async fn show_lag(&self) {
        if let Ok(heads) = self.database.step(self.database.heads()).await {
            self.show.send_modify(|status| status.heads = heads.map(|head| head.position));
        }
        let (lag, oldest) = {
            let status = self.show.borrow();
            let oldest: Vec<_> = ledger_core::Partition::all()
                .filter(|partition| status.published[partition.index()] < status.heads[partition.index()])
                .map(|partition| (partition, status.published[partition.index()].next()))
                .collect();
            (status.lag(), oldest)
        };
        let recorded = self.database.step(self.database.events_at(&oldest)).await.unwrap_or_default();
        let since = recorded.iter().map(|event| event.recorded_at.micros()).min();
        let now = chrono::Utc::now().timestamp_micros();
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            metrics::gauge!("ledger_publisher_lag_positions").set(lag as f64);
            let age_micros = since.map_or(0, |since| now.saturating_sub(since));
            metrics::gauge!("ledger_publisher_lag_seconds").set(age_micros as f64 / 1e6);
        }
    }
}
