//! Commands that are not done: each once in a stream of its own, with its body as it came and the problem as a header.

use std::{
    collections::HashSet,
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_nats::{
    HeaderMap,
    datetime::DateTime,
    jetstream::{
        Context,
        consumer::{AckPolicy, DeliverPolicy, pull},
        stream::{self, Stream},
    },
};
use futures::StreamExt;
use tokio::sync::Mutex;

use super::message::Received;
use crate::{nats, problem::Problem};

const STREAM: &str = "CREDIT_DEAD";
const SUBJECTS: [&str; 6] = [
    "credit.dead.credit",
    "credit.dead.debit",
    "credit.dead.freeze",
    "credit.dead.unfreeze",
    "credit.dead.refund",
    "credit.dead.unknown",
];
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// How long the server remembers message ids. Only the second guard: see [`DeadLetters::holds`].
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
/// Room for the headers below the server's largest message, in bytes.
const HEADER_BYTES: usize = 8 * 1024;
/// Letters that are read at once, and how long that may take.
const READ_MAX: u64 = 1_000;
const READ: Duration = Duration::from_secs(2);
/// The servers of a cluster do not have the very same time: letters are looked for from so long before the message.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// A command that is not done.
pub(super) struct Letter<'a> {
    pub(super) received: &'a Received,
    pub(super) problem: &'a Problem,
    pub(super) attempts: u32,
}

impl Letter<'_> {
    fn subject(&self) -> String {
        format!("credit.dead.{}", self.received.kind_name())
    }

    fn headers(&self) -> HeaderMap {
        let Self { received, problem, attempts } = self;
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE_ID, received.id());
        headers.insert("X-Request-Id", &*received.request_id.0);
        headers.insert("Ledger-Subject", received.subject.as_str());
        headers.insert("Ledger-Sequence", received.sequence.to_string());
        headers.insert("Ledger-Published-At", received.published_at());
        headers.insert("Ledger-Attempts", attempts.to_string());
        headers.insert("Ledger-Code", problem.code());
        headers.insert("Ledger-Problem", ascii(&problem.document(&received.request_id.0).to_string()));
        headers
    }
}

/// JSON with nothing but ASCII in it: not every client reads UTF-8 in headers.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("a string takes all");
            }
        }
    }
    text
}

/// The stream of dead letters.
pub(super) struct DeadLetters {
    context: Context,
    known: Mutex<Known>,
    /// What was in the queue up to here may have been handled before this process came to it.
    handled: AtomicU64,
}

/// The letters that were read so far.
#[derive(Default)]
struct Known {
    /// When the stream was made; letters of messages from when on are known; up to which of its sequences it was read.
    created: Option<DateTime>,
    since: Option<DateTime>,
    last: u64,
    ids: HashSet<String>,
}

impl Known {
    fn covers(&self, published: DateTime) -> bool {
        self.since.is_some_and(|since| since <= published)
    }

    /// From where letters were not read yet. While the stream had none it is the time from when on they count as known, which
    /// may be long before that of the message that is asked about.
    fn unread(&self, published: DateTime) -> DeliverPolicy {
        match self.last {
            0 => DeliverPolicy::ByStartTime { start_time: self.since.unwrap_or(published) - CLOCKS_APART },
            last => DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
        }
    }
}

impl DeadLetters {
    pub(super) fn new(context: Context) -> Self {
        Self { context, known: Mutex::default(), handled: AtomicU64::new(0) }
    }

    /// Opens the stream, or makes it.
    pub(super) async fn open(&self) -> Result<Stream, String> {
        let config = stream::Config {
            name: STREAM.to_owned(),
            description: Some("Commands of the credit ledger that were not done, and why".to_owned()),
            subjects: SUBJECTS.map(str::to_owned).to_vec(),
            retention: stream::RetentionPolicy::Limits,
            storage: stream::StorageType::File,
            duplicate_window: DUPLICATE_WINDOW,
            ..stream::Config::default()
        };
        nats::open_stream(&self.context, config).await
    }

    /// Stores a letter. False when it was there before.
    pub(super) async fn store(&self, letter: &Letter<'_>) -> Result<bool, String> {
        let mut headers = letter.headers();
        let mut payload = letter.received.payload.clone();
        let room = self.context.client().server_info().max_payload.saturating_sub(HEADER_BYTES);
        if room > 0 && payload.len() > room {
            headers.insert("Ledger-Payload-Bytes", payload.len().to_string());
            payload.truncate(room);
        }
        let sent = self.context.publish_with_headers(letter.subject(), headers, payload).await;
        let acknowledged = match sent {
            Ok(acknowledgement) => acknowledgement.await,
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(acknowledged) => Ok(!acknowledged.duplicate),
            Err(error) => {
                // The stream may have been lost.
                self.open().await?;
                Err(error.to_string())
            }
        }
    }

    /// Reads the letters of what is in the queue. A nats-server that crashed may have forgotten that messages were taken
    /// from the queue, and that they were delivered at all.
    pub(super) async fn catch_up(&self, queue: &stream::State) -> Result<(), String> {
        self.handled.store(queue.last_sequence, Ordering::Relaxed);
        if queue.messages == 0 {
            return self.open().await.map(|_| ());
        }
        let mut known = self.known.lock().await;
        self.read_on(&mut known, queue.first_timestamp).await
    }

    /// Whether a message has its letter already: whoever wrote it may have been killed before it took the message from
    /// the queue, any time ago. It must not be done any more then.
    pub(super) async fn holds(&self, received: &Received) -> Result<bool, String> {
        let is_old = received.sequence <= self.handled.load(Ordering::Relaxed);
        if !received.is_repeated() && !is_old {
            return Ok(false);
        }
        let mut known = self.known.lock().await;
        if received.is_repeated() || !known.covers(received.published) {
            self.read_on(&mut known, received.published).await?;
        }
        Ok(known.ids.contains(&received.id()))
    }

    /// Reads the letters that came since the last time, so that all are known of messages published at a time or later.
    async fn read_on(&self, known: &mut Known, published: DateTime) -> Result<(), String> {
        let stream = self.open().await?;
        let info = stream.cached_info();
        let is_another = known.created != Some(info.created) || info.state.last_sequence < known.last;
        if is_another || !known.covers(published) {
            *known = Known { created: Some(info.created), since: Some(published), ..Known::default() };
        }
        if known.last < info.state.last_sequence {
            known.ids.extend(read(&stream, known.unread(published)).await?);
            known.last = info.state.last_sequence;
        }
        Ok(())
    }
}

/// The ids of the letters from a place to the end.
async fn read(stream: &Stream, from: DeliverPolicy) -> Result<Vec<String>, String> {
    let config = pull::Config {
        deliver_policy: from,
        ack_policy: AckPolicy::None,
        headers_only: true,
        memory_storage: true,
        inactive_threshold: Duration::from_secs(30),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| error.to_string())?;
    let mut left = consumer.cached_info().num_pending;
    let mut ids = Vec::new();
    while left > 0 {
        let count = usize::try_from(left.min(READ_MAX)).expect("a thousand at most");
        let batch = consumer.batch().max_messages(count).expires(READ).messages().await;
        let mut batch = batch.map_err(|error| error.to_string())?;
        let mut got = 0;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| error.to_string())?;
            got += 1;
            let id = message.headers.as_ref().and_then(|headers| headers.get(MESSAGE_ID));
            ids.extend(id.map(ToString::to_string));
        }
        if got == 0 {
            return Err("the dead letters were not delivered in time".to_owned());
        }
        left = left.saturating_sub(got);
    }
    // It would end by itself soon.
    let _ = stream.delete_consumer(&consumer.cached_info().name).await;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_read_from_as_long_ago_as_they_count_as_known() {
        let at = |seconds| DateTime::UNIX_EPOCH + Duration::from_secs(seconds);
        // There was none when a message was asked about; some came before the next one is.
        let mut known = Known { since: Some(at(1_000)), ..Known::default() };
        assert!(known.covers(at(1_000)) && known.covers(at(5_000)));
        let since = DeliverPolicy::ByStartTime { start_time: at(1_000) - CLOCKS_APART };
        assert_eq!(known.unread(at(5_000)), since);
        known.last = 7;
        assert_eq!(known.unread(at(5_000)), DeliverPolicy::ByStartSequence { start_sequence: 8 });
    }

    #[test]
    fn headers_are_ascii_and_the_same_json() {
        let json = serde_json::json!({ "user_id": "zoë 🪙\n", "amount": 5 });
        let text = ascii(&json.to_string());
        assert!(text.is_ascii() && !text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), json);
    }
}
