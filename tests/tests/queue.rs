//! Commands over NATS: each done once, whatever is killed; what is not done is told of. And alerts.

#[path = "queue/alerts.rs"]
mod alerts;
#[path = "queue/crashes.rs"]
mod crashes;
#[path = "queue/letters.rs"]
mod letters;
#[path = "queue/waiting.rs"]
mod waiting;

use std::{future::Future, time::Duration};

use async_nats::{HeaderMap, jetstream::Context};
use futures::StreamExt;
use serde_json::{Value, json};
use tests::Nats;

/// A message of one of the streams.
struct Stored {
    subject: String,
    headers: HeaderMap,
    payload: Vec<u8>,
}

impl Stored {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(async_nats::HeaderValue::as_str).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).expect("JSON")
    }
}

async fn jetstream(nats: &Nats) -> Context {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(nats.url()).await;
    async_nats::jetstream::new(client.expect("a valid address"))
}

/// Polls until something is so.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let seconds = if messages() > MESSAGES { 1_200 } else { 60 };
    tokio::time::timeout(Duration::from_secs(seconds), found).await.unwrap_or_else(|_| panic!("in time: {what}"))
}

/// How many messages the test of crashes sends.
const MESSAGES: usize = 3_000;

fn messages() -> usize {
    std::env::var("LEDGER_QUEUE_MESSAGES").map_or(MESSAGES, |count| count.parse().expect("a number"))
}

/// Publishes until the queue has it. `id` tells the server that it is the same message.
async fn publish(context: &Context, kind: &str, id: &str, payload: Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    until("the queue takes a message", || async {
        let subject = format!("credit.commands.{kind}");
        let sent = context.publish_with_headers(subject, headers.clone(), payload.clone().into());
        sent.await.ok()?.await.ok()
    })
    .await;
}

async fn send(context: &Context, kind: &str, command: &Value) {
    publish(context, kind, &uuid::Uuid::new_v4().to_string(), command.to_string().into_bytes()).await;
}

/// How many messages a stream holds; `None` while it cannot be told.
async fn length(context: &Context, stream: &str) -> Option<u64> {
    Some(context.get_stream(stream).await.ok()?.get_info().await.ok()?.state.messages)
}

async fn until_empty(context: &Context) {
    until("the queue is empty", || async { (length(context, "CREDIT_COMMANDS").await? == 0).then_some(()) }).await;
}

/// Waits until a stream holds so many messages, and gives them.
async fn stored(context: &Context, stream: &str, count: usize) -> Vec<Stored> {
    until(stream, || async {
        let stream = context.get_stream(stream).await.ok()?;
        let state = stream.get_info().await.ok()?.state;
        if state.messages < count as u64 {
            return None;
        }
        let stream = &stream;
        let messages = futures::stream::iter(state.first_sequence..=state.last_sequence).map(|sequence| async move {
            let message = stream.get_raw_message(sequence).await.ok()?;
            let (subject, headers) = (message.subject.to_string(), message.headers);
            Some(Stored { subject, headers, payload: message.payload.to_vec() })
        });
        messages.buffered(64).collect::<Vec<_>>().await.into_iter().collect()
    })
    .await
}

fn account(user: &str, amount: u64, id: &str) -> Value {
    json!({ "user_id": user, "credit_type": "points", "amount": amount, "business_code": "queue", "business_id": id })
}
