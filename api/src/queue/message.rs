//! What a message of the queue says.

use std::time::Duration;

use async_nats::{
    datetime::DateTime,
    jetstream::{self, AckKind},
};
use bytes::Bytes;
use ledger_core::Timestamp;

use super::STREAM;
use crate::{
    access::Caller,
    commands::{COMMAND_BYTES_MAX, Kind},
    problem::Problem,
    request::{Origin, RequestId},
};

/// The kind of a message whose subject names none.
pub(super) const UNKNOWN: &str = "unknown";

/// A message as it was received.
pub(super) struct Received {
    pub(super) subject: String,
    pub(super) payload: Bytes,
    pub(super) request_id: RequestId,
    /// Its number in the queue's stream.
    pub(super) sequence: u64,
    pub(super) published: DateTime,
    /// Which delivery of it this is, here or elsewhere; from 1.
    pub(super) delivered: i64,
    client: async_nats::Client,
    /// Where the server hears what became of it.
    reply: async_nats::Subject,
}

impl Received {
    /// Reads what the server says of a message; `None` when it does not come from JetStream.
    pub(super) fn new(client: async_nats::Client, message: jetstream::Message) -> Option<Self> {
        let info = message.info().ok()?;
        let (sequence, published, delivered) = (info.stream_sequence, info.published, info.delivered);
        let message = message.message;
        let given = message.headers.as_ref().and_then(|headers| headers.get("X-Request-Id"));
        let request_id = RequestId::given(given.map(async_nats::HeaderValue::as_str))
            .unwrap_or_else(|| RequestId(format!("{STREAM}-{sequence}").into()));
        let subject = message.subject.to_string();
        let reply = message.reply?;
        Some(Self { subject, payload: message.payload, request_id, sequence, published, delivered, client, reply })
    }

    /// What sets it apart from every other message, also of a stream that was made anew.
    pub(super) fn id(&self) -> String {
        format!("{}-{}", self.sequence, self.published.unix_timestamp_nanos())
    }

    /// Whether it was delivered before.
    pub(super) const fn is_repeated(&self) -> bool {
        self.delivered > 1
    }

    pub(super) fn published_at(&self) -> String {
        let micros = i64::try_from(self.published.unix_timestamp_nanos() / 1_000).ok();
        micros.and_then(Timestamp::from_micros).map(|time| time.to_string()).unwrap_or_default()
    }

    /// What its subject asks for.
    pub(super) fn kind(&self) -> Result<Kind, Problem> {
        let name = self.subject.strip_prefix("credit.commands.").unwrap_or_default();
        Kind::of_name(name).ok_or_else(|| {
            Problem::invalid("subject", "must be credit.commands. and credit, debit, freeze, unfreeze or refund")
        })
    }

    pub(super) fn kind_name(&self) -> &'static str {
        self.kind().map_or(UNKNOWN, Kind::name)
    }

    /// Its body, as large as a request's may be.
    pub(super) fn body(&self) -> Result<&[u8], Problem> {
        if self.payload.len() > COMMAND_BYTES_MAX {
            return Err(Problem::body_too_large(COMMAND_BYTES_MAX));
        }
        Ok(&self.payload)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { id: self.request_id.clone(), caller: Caller::queue() }
    }

    /// Takes it from the queue. An acknowledgement that is lost only makes it come again.
    pub(super) async fn acknowledge(&self) {
        self.say(AckKind::Ack).await;
    }

    /// Says that it is still worked on.
    pub(super) async fn progress(&self) {
        self.say(AckKind::Progress).await;
    }

    /// Puts it back, to come again after a pause.
    pub(super) async fn put_back(&self, pause: Duration) {
        self.say(AckKind::Nak(Some(pause))).await;
    }

    async fn say(&self, kind: AckKind) {
        if let Err(error) = self.client.publish(self.reply.clone(), kind.into()).await {
            tracing::debug!(%error, sequence = self.sequence, "an acknowledgement was not sent");
        }
    }

    /// Takes it from the queue, and knows that it is.
    pub(super) async fn acknowledge_surely(&self) -> Result<(), String> {
        let answered = self.client.request(self.reply.clone(), Bytes::from_static(b"+ACK")).await;
        answered.map(|_| ()).map_err(|error| error.to_string())
    }
}
