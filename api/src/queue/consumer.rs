//! Takes messages from the queue, as many as are handled at once.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    Context,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    stream::{self, Stream},
};
use futures::StreamExt;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{ACK_WAIT, DRAIN, DURABLE, IN_FLIGHT_MAX, STREAM, SUBJECTS, Shared, dead::DeadLetters, message::Received};
use crate::{backoff, nats};

/// How long the server keeps a request for messages, and how much later its end must have been heard of.
const PULL: Duration = Duration::from_secs(1);
const PULL_LATE: Duration = Duration::from_secs(2);
/// Messages are asked for when so many can be taken.
const ROOM_MIN: usize = 64;
/// How often the queue's length is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The pause after a failure, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

pub(super) struct Consumer {
    shared: Arc<Shared>,
    /// The messages that are being handled.
    in_flight: JoinSet<()>,
    /// Whether the last request for messages ended without one.
    was_given_nothing: bool,
}

impl Consumer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, in_flight: JoinSet::new(), was_given_nothing: false }
    }

    pub(super) async fn run(mut self, nats_url: String) {
        let mut stop = self.shared.stop.clone();
        let client = tokio::select! {
            client = nats::connect(&nats_url, "ledger commands") => client,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let context = nats::jetstream(client.clone());
        let dead = Arc::new(DeadLetters::new(context.clone()));
        let mut failures = 0;
        while !self.shared.is_stopping() {
            let served = tokio::select! {
                served = self.serve(&context, &dead) => served,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let Err(why) = served else { break };
            failures = if self.shared.show.borrow().connected { 1 } else { failures + 1 };
            if failures == 1 {
                tracing::warn!(why, "commands cannot be taken from NATS; trying again");
            }
            self.shared.show.send_modify(|status| {
                status.connected = false;
                status.trouble = Some(why);
            });
            self.shared.pause(backoff::pause(failures, PAUSE, PAUSE_MAX)).await;
        }
        let rest = async { while self.in_flight.join_next().await.is_some() {} };
        if timeout(DRAIN, rest).await.is_err() {
            tracing::warn!("some commands from NATS did not end in time: they come again");
        }
        self.in_flight.shutdown().await;
        // What was acknowledged has to leave this process; lost, it comes again.
        let _ = timeout(PULL_LATE, client.flush()).await;
    }

    /// Opens the queue and takes messages from it, until something fails.
    async fn serve(&mut self, context: &Context, dead: &Arc<DeadLetters>) -> Result<(), String> {
        let (stream, consumer) = open(context).await?;
        dead.catch_up(&stream.cached_info().state).await?;
        self.shared.show.send_modify(|status| {
            status.connected = true;
            status.trouble = None;
        });
        let mut looked = Instant::now() - LOOK;
        let mut wound = None;
        loop {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                let now = self.look(&stream).await?;
                if now.is_some() && now == wound {
                    renew(&stream).await?;
                    return Err(
                        "the queue and its consumer disagree since nats-server crashed: the consumer is made anew"
                            .to_owned(),
                    );
                }
                wound = now;
            }
            self.shared.until_well().await;
            while self.in_flight.try_join_next().is_some() {}
            while self.in_flight.len() > IN_FLIGHT_MAX - ROOM_MIN {
                // A task that panicked left its message unacknowledged: it comes again.
                let _ = self.in_flight.join_next().await;
            }
            if self.shared.is_stopping() {
                return Ok(());
            }
            self.pull(context, &consumer, dead).await?;
        }
    }

    /// Takes what there is room for. The order of the queue is kept as far as this: each command is put into the ledger's
    /// own queue before the next one is looked at.
    async fn pull(
        &mut self,
        context: &Context,
        consumer: &PullConsumer,
        dead: &Arc<DeadLetters>,
    ) -> Result<(), String> {
        let room = IN_FLIGHT_MAX - self.in_flight.len();
        let deadline = Instant::now() + PULL + PULL_LATE;
        let asked = consumer.batch().max_messages(room).expires(PULL).messages().await;
        let mut messages = asked.map_err(|error| error.to_string())?;
        self.was_given_nothing = true;
        loop {
            match timeout_at(deadline, messages.next()).await {
                Err(_) => return Err("the server does not answer".to_owned()),
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(Some(Ok(message))) => {
                    self.was_given_nothing = false;
                    let Some(received) = Received::new(context.client(), message) else {
                        return Err("what was received does not come from JetStream".to_owned());
                    };
                    let (shared, dead) = (self.shared.clone(), dead.clone());
                    let mut handling = Box::pin(async move { shared.handle(received, &dead).await });
                    if futures::poll!(&mut handling).is_pending() {
                        self.in_flight.spawn(handling);
                    }
                }
            }
        }
    }

    /// Tells how long the queue is, and whether its consumer looks broken.
    async fn look(&self, stream: &Stream) -> Result<Option<Wound>, String> {
        let consumer = stream.consumer_info(DURABLE).await.map_err(|error| error.to_string())?;
        // Asked for second: whatever the consumer had passed by then has to be gone.
        let state = stream.get_info().await.map_err(|error| error.to_string())?.state;
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("ledger_nats_commands_pending").set(state.messages as f64);
        self.shared.show.send_modify(|status| status.pending = state.messages);
        let (first, floor) = (state.first_sequence, consumer.ack_floor.stream_sequence);
        // What is there although the consumer has passed it is never given; what the consumer still wants to give although it
        // is gone holds up the others.
        let is_passed = state.messages > 0 && first <= floor;
        let is_gone = consumer.num_ack_pending > 0 && first > floor + 1;
        let is_ahead = consumer.delivered.stream_sequence > state.last_sequence;
        if is_passed || is_gone || is_ahead {
            return Ok(Some(Wound { first, floor, delivered: 0 }));
        }
        let is_stalled = self.was_given_nothing && consumer.num_pending > 0;
        Ok(is_stalled.then_some(Wound { first, floor, delivered: consumer.delivered.consumer_sequence }))
    }
}

/// A state of the queue and its consumer that does not last in good health: a nats-server that crashed kept newer state of
/// the one than of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wound {
    first: u64,
    floor: u64,
    delivered: u64,
}

/// Makes the consumer anew, so that it begins with the first message that the queue still has. What was done already is a
/// replay, and what has a letter is not done.
async fn renew(stream: &Stream) -> Result<(), String> {
    metrics::counter!("ledger_nats_consumer_renewed_total").increment(1);
    stream.delete_consumer(DURABLE).await.map(|_| ()).map_err(|error| error.to_string())
}

/// Opens the queue and the consumer that all processes share, or makes them.
async fn open(context: &Context) -> Result<(Stream, PullConsumer), String> {
    let queue = stream::Config {
        name: STREAM.to_owned(),
        description: Some("Commands for the credit ledger".to_owned()),
        subjects: SUBJECTS.map(str::to_owned).to_vec(),
        retention: stream::RetentionPolicy::WorkQueue,
        storage: stream::StorageType::File,
        ..stream::Config::default()
    };
    let stream = nats::open_stream(context, queue).await?;
    let config = pull::Config {
        durable_name: Some(DURABLE.to_owned()),
        description: Some("The processes of the credit ledger".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // How often a message may come is the ledger's to judge.
        max_deliver: -1,
        // Those that wait to come again count as well, and must not keep out the others.
        max_ack_pending: -1,
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer(DURABLE, config).await;
    let consumer = consumer.map_err(|error| format!("the consumer {DURABLE} cannot be opened: {error}"))?;
    Ok((stream, consumer))
}
