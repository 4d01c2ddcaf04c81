//! One connection to JetStream, from finding out what the stream holds to the first thing that goes wrong.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self, Context,
    context::{PublishAckFuture, PublishErrorKind},
    stream::{self, LastRawMessageErrorKind, Stream},
};
use futures::{FutureExt, StreamExt, stream::FuturesOrdered};
use ledger_core::{Event, Head, PARTITIONS, Partition, Position};
use ledger_store::{Database, StoreError, error::chain};

use super::{
    PublisherOptions, Publishing, STREAM, SUBJECTS,
    checkpoint::{self, Checkpoint},
    message,
    restored::{self, Restored},
    view::{Segment, View},
};
use crate::election::{Election, Office};

/// Messages that are sent before their acknowledgements are waited for.
const WINDOW: usize = 1_024;
/// Messages of one partition in a window, so that none waits behind another's flood.
const PARTITION_SHARE: usize = 256;
/// Messages that are read at once to find out what the stream holds.
const READ_WINDOW: usize = 128;
/// The checkpoint is kept this often: it bounds what has to be read at the next start.
const KEEP_MESSAGES: u64 = 4_096;
const KEEP_EVERY: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// What a person does about a stream that lacks what it should hold.
const REMEDY: &str =
    "restore the stream, or delete the stream and its rows in publisher_checkpoints to publish everything again";

/// Why a session ended.
#[derive(Debug)]
pub(super) enum SessionError {
    /// Another publisher is elected.
    NotElected,
    /// NATS is away, or did not answer as expected: find out anew.
    Lost(String),
    /// The stream and the log contradict each other: a person must look.
    Alert(String),
    Store(StoreError),
}

impl SessionError {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::NotElected => "another process publishes".to_owned(),
            Self::Lost(why) | Self::Alert(why) => why.clone(),
            Self::Store(error) => chain(error),
        }
    }
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(super) struct Session {
    context: Context,
    database: Database,
    election: Election,
    at: Checkpoint,
    heads: [Head; PARTITIONS],
    kept: u64,
    kept_when: Instant,
    /// The partition that comes first in the next window.
    first: usize,
}

impl Session {
    /// Is elected, connects, and finds out what the stream holds.
    pub(super) async fn open(publishing: &Publishing) -> Result<Self, SessionError> {
        let database = publishing.database.clone();
        let mut election = Election::stand(&database, Office::Publisher).await?;
        if !election.won().await? {
            return Err(SessionError::NotElected);
        }
        let client = async_nats::ConnectOptions::new()
            .connection_timeout(CONNECT_TIMEOUT)
            // A client that comes back later than its session would send what it still has queued beside the next
            // session's messages: after one quick attempt it is given up, and the stream is read anew.
            .max_reconnects(1)
            .name("ledger")
            .connect(&publishing.options.nats_url)
            .await
            .map_err(|error| SessionError::Lost(format!("NATS cannot be reached: {error}")))?;
        let context = jetstream::context::ContextBuilder::new().timeout(ACK_TIMEOUT).build(client);
        let mut stream = open_stream(&context, &publishing.options).await?;
        // Each of these is a step of its own: a long stream takes longer to read than any step may.
        let kept = database.step(checkpoint::read(&database)).await?;
        let restores = database.step(restored::read_all(&database)).await?;
        let (sequence, view) = read_stream(&mut stream, &kept, !restores.is_empty()).await?;
        let heads = database.step(database.heads()).await?;
        // One that came while the stream was read is in these heads already: nothing would ever tell of it.
        if database.step(restored::read_all(&database)).await? != restores {
            return Err(restored_meanwhile());
        }
        let published = database.step(agree_with_log(&database, &view, &heads)).await?;
        let at = Checkpoint { sequence, published };
        let (kept, kept_when) = (at.sequence, Instant::now());
        database.step(checkpoint::write(&database, &at)).await?;
        let mut session = Self { context, database, election, at, heads, kept, kept_when, first: 0 };
        session.tell_restores(&stream, &view, &restores).await?;
        Ok(session)
    }

    /// Tells of the restores that the stream does not tell of yet, before any event of their epochs.
    async fn tell_restores(&mut self, stream: &Stream, view: &View, restores: &[Restored]) -> Result<(), SessionError> {
        if restores.is_empty() {
            return Ok(());
        }
        let told = match stream.get_last_raw_message_by_subject(restored::SUBJECT).await {
            Ok(message) => Restored::read(&message.payload).map(|restored| restored.epoch),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(unreadable(&error.to_string())),
        };
        // The message may be too old to be kept any more; the events of its epoch came after it.
        let told = told.max(view.newest_epoch());
        for restored in restores.iter().filter(|restored| told.is_none_or(|told| restored.epoch > told)) {
            let (headers, payload) = restored.message(self.at.sequence);
            let sent = self.context.publish_with_headers(restored::SUBJECT, headers, payload).await;
            let acknowledged = match sent {
                Ok(acknowledgement) => acknowledgement.await,
                Err(error) => Err(error),
            };
            let acknowledged =
                acknowledged.map_err(|error| SessionError::Lost(format!("a message was not acknowledged: {error}")))?;
            if acknowledged.duplicate || acknowledged.sequence != self.at.sequence + 1 {
                let (found, expected) = (acknowledged.sequence, self.at.sequence + 1);
                return Err(SessionError::Lost(format!("the stream is at sequence {found}, not {expected}")));
            }
            self.at.sequence = acknowledged.sequence;
            tracing::info!(epoch = restored.epoch.0, "the stream tells that the log was restored");
        }
        self.keep(true).await
    }

    pub(super) fn published(&self) -> [Position; PARTITIONS] {
        self.at.published.map(|head| head.position)
    }

    pub(super) fn heads(&self) -> [Position; PARTITIONS] {
        self.heads.map(|head| head.position)
    }

    /// Publishes what is new, up to a window of it. False when there was nothing.
    pub(super) async fn publish_some(&mut self, database: &Database) -> Result<bool, SessionError> {
        if !self.election.won().await? {
            return Err(SessionError::NotElected);
        }
        let heads = database.heads().await?;
        if heads.iter().zip(&self.heads).any(|(now, before)| now.epoch != before.epoch) {
            return Err(restored_meanwhile());
        }
        self.heads = heads;
        let events = self.news(database).await?;
        if events.is_empty() {
            self.keep(false).await?;
            return Ok(false);
        }
        let sent = self.send(&events).await;
        // What is acknowledged stays acknowledged, whatever went wrong after it.
        self.keep(sent.is_err()).await?;
        sent.map(|()| true)
    }

    /// The next events of each partition, the partitions taking turns at being first.
    async fn news(&mut self, database: &Database) -> Result<Vec<Event>, SessionError> {
        let mut events: Vec<Event> = Vec::new();
        let order = Partition::all().cycle().skip(self.first).take(PARTITIONS);
        self.first = (self.first + 1) % PARTITIONS;
        for partition in order {
            let published = self.at.published[partition.index()];
            let room = (WINDOW - events.len()).min(PARTITION_SHARE);
            if room > 0 && published.position < self.heads[partition.index()].position {
                events.extend(database.events_after(partition, published.position, room).await?);
            }
        }
        Ok(events)
    }

    /// Sends messages in a row and advances over those that are acknowledged without a gap.
    ///
    /// The server judges each on its own. Had others stored some messages meanwhile, as many of these would be refused, and
    /// the next one would find the very sequence that it expects: so each names the one before it, too. The first needs
    /// no such name, as what stands before it is known, and a server that was started anew may have forgotten its id.
    async fn send(&mut self, events: &[Event]) -> Result<(), SessionError> {
        let mut acknowledgements: FuturesOrdered<Pin<Box<dyn Future<Output = _> + Send>>> = FuturesOrdered::new();
        let mut failure = None;
        let mut sent_before = None;
        let mut next = self.at.published;
        for (event, sequence) in events.iter().zip(self.at.sequence..) {
            let before = &mut next[event.partition.index()];
            if event.position != before.position.next() {
                failure = Some(SessionError::Alert(format!(
                    "partition {}: position {} follows {} in the log: run replay-tool verify",
                    event.partition, event.position, before.position
                )));
                break;
            }
            if event.epoch > self.heads[event.partition.index()].epoch {
                failure = Some(restored_meanwhile());
                break;
            }
            *before = event.head();
            let (headers, payload) = message::of(event, sequence, sent_before.replace(event));
            match self.context.publish_with_headers(message::subject(event.event_type), headers, payload).await {
                Ok(acknowledgement) => acknowledgements.push_back(boxed(acknowledgement)),
                Err(error) => {
                    failure = Some(SessionError::Lost(format!("a message could not be sent: {error}")));
                    break;
                }
            }
        }
        // Every acknowledgement is waited for, also after a failure: what is still under way must not surprise the next
        // session.
        let mut events = events.iter();
        while let Some(outcome) = acknowledgements.next().await {
            let event = events.next();
            match (outcome, event) {
                (Ok(acknowledged), Some(event))
                    if failure.is_none()
                        && !acknowledged.duplicate
                        && acknowledged.sequence == self.at.sequence + 1 =>
                {
                    self.at.sequence = acknowledged.sequence;
                    self.at.published[event.partition.index()] = event.head();
                    metrics::counter!("ledger_published_total").increment(1);
                }
                (Ok(acknowledged), _) => {
                    let why =
                        format!("the stream is at sequence {}, not {}", acknowledged.sequence, self.at.sequence + 1);
                    failure.get_or_insert(SessionError::Lost(why));
                }
                (Err(error), _) => {
                    let why = match error.kind() {
                        PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => {
                            "the stream holds more than was acknowledged".to_owned()
                        }
                        _ => format!("a message was not acknowledged: {error}"),
                    };
                    failure.get_or_insert(SessionError::Lost(why));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Keeps the checkpoint, now and then or at once.
    async fn keep(&mut self, at_once: bool) -> Result<(), SessionError> {
        let due = self.at.sequence >= self.kept + KEEP_MESSAGES || self.kept_when.elapsed() >= KEEP_EVERY;
        if self.at.sequence > self.kept && (due || at_once) {
            self.database.step(checkpoint::write(&self.database, &self.at)).await?;
            (self.kept, self.kept_when) = (self.at.sequence, Instant::now());
        }
        Ok(())
    }

    pub(super) async fn close(mut self) -> Result<(), SessionError> {
        self.keep(true).await
    }
}

fn boxed(
    acknowledgement: PublishAckFuture,
) -> Pin<Box<dyn Future<Output = Result<jetstream::publish::PublishAck, jetstream::context::PublishError>> + Send>> {
    acknowledgement.into_future().boxed()
}

/// Opens the stream, creates it when it is missing, and adds subjects that it lacks.
async fn open_stream(context: &Context, options: &PublisherOptions) -> Result<Stream, SessionError> {
    let config = stream::Config {
        name: STREAM.to_owned(),
        description: Some("Every event of the credit ledger, in the order of its partitions".to_owned()),
        subjects: SUBJECTS.map(str::to_owned).to_vec(),
        retention: stream::RetentionPolicy::Limits,
        storage: stream::StorageType::File,
        duplicate_window: options.duplicate_window,
        ..stream::Config::default()
    };
    let failed = |error: String| SessionError::Lost(format!("the stream {STREAM} cannot be opened: {error}"));
    let opened = context.get_or_create_stream(config).await.map_err(|error| failed(error.to_string()))?;
    let mut there = opened.cached_info().config.clone();
    let lacking: Vec<_> =
        SUBJECTS.iter().filter(|subject| !there.subjects.iter().any(|known| known == *subject)).collect();
    if !lacking.is_empty() {
        there.subjects.extend(lacking.into_iter().map(|subject| (*subject).to_owned()));
        context.update_stream(&there).await.map_err(|error| failed(error.to_string()))?;
    }
    Ok(opened)
}

fn restored_meanwhile() -> SessionError {
    SessionError::Lost("the log was restored meanwhile: finding out where to go on".to_owned())
}

fn unreadable(why: &str) -> SessionError {
    SessionError::Lost(format!("the stream {STREAM} cannot be read: {why}"))
}

/// What the stream holds, up to which sequence: the checkpoint, and every message after it. After a restore there is no
/// checkpoint, and a stream that does not keep everything is read from where it begins.
async fn read_stream(stream: &mut Stream, kept: &Checkpoint, was_restored: bool) -> Result<(u64, View), SessionError> {
    let state = stream.info().await.map_err(|error| unreadable(&error.to_string()))?.state.clone();
    let mut sequence = kept.sequence;
    let mut view = View::of(&kept.published);
    if state.last_sequence < sequence {
        return Err(SessionError::Alert(format!(
            "the stream {STREAM} ends at sequence {}, but {sequence} was published: it lost messages or was made anew; \
             {REMEDY}",
            state.last_sequence
        )));
    }
    // Whatever was lost may be missing from the stream as well: a hole only means that publishing goes on before it.
    let is_lenient = sequence == 0 && was_restored;
    if is_lenient && state.first_sequence > 1 {
        sequence = state.first_sequence - 1;
        view = View::of_a_rest();
    }
    if state.first_sequence > sequence + 1 {
        return Err(SessionError::Alert(format!(
            "the stream {STREAM} begins at sequence {}, but only {sequence} is known to have been published: messages in \
             between were purged, and what they held cannot be told; {REMEDY}",
            state.first_sequence
        )));
    }
    let stream = &*stream;
    if (state.first_sequence.max(1)..=state.last_sequence).contains(&sequence) {
        let message = match stream.get_raw_message(sequence).await {
            // Somebody deleted it: there is nothing to compare, and its sequence stays taken.
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            message => Some(message.map_err(|error| unreadable(&error.to_string()))?),
        };
        if let Some((partition, head)) = message.and_then(|message| message::place(&message.headers))
            // After a restore the log goes on from before what was published; otherwise this is the partition's newest.
            && kept.published[partition.index()].position >= head.position
            && kept.published[partition.index()].epoch == head.epoch
            && kept.published[partition.index()].hash != head.hash
        {
            return Err(SessionError::Alert(format!(
                "the stream {STREAM} holds another event at sequence {sequence} than was published there: it is another \
                 stream",
            )));
        }
    }
    let mut messages = futures::stream::iter(sequence + 1..=state.last_sequence)
        .map(|sequence| async move { (sequence, stream.get_raw_message(sequence).await) })
        .buffered(READ_WINDOW);
    while let Some((sequence, message)) = messages.next().await {
        let message = match message {
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                if is_lenient {
                    continue;
                }
                return Err(SessionError::Alert(format!(
                    "the message at sequence {sequence} of the stream {STREAM} was deleted before it was known to have been \
                     published, and what it held cannot be told; {REMEDY}"
                )));
            }
            message => message.map_err(|error| unreadable(&error.to_string()))?,
        };
        if let Some((partition, head)) = message::place(&message.headers) {
            match view.take(partition, head) {
                Err(gap) if !is_lenient => {
                    return Err(SessionError::Alert(format!(
                        "the stream {STREAM} holds position {} of partition {partition} after {} at sequence {sequence}: \
                         some events are missing there, or it holds some twice; {REMEDY}",
                        head.position, gap.after
                    )));
                }
                _ => {}
            }
        } else if &*message.subject == restored::SUBJECT
            && let Some(restored) = Restored::read(&message.payload)
        {
            view.restore(&restored);
        }
    }
    Ok((sequence.max(state.last_sequence), view))
}

/// Compares what was published with the log, and finds where to go on: after the newest published event, or, after a
/// restore, after the newest that log and stream have in common.
async fn agree_with_log(
    database: &Database,
    view: &View,
    heads: &[Head; PARTITIONS],
) -> Result<[Head; PARTITIONS], SessionError> {
    let newest = |partition| view.segments(partition).last().copied();
    let places: Vec<_> =
        Partition::all().filter_map(|partition| newest(partition).map(|newest| (partition, newest.last))).collect();
    let events = database.events_at(&places).await?;
    let mut published = [Head::EMPTY; PARTITIONS];
    for partition in Partition::all() {
        let Some(newest) = newest(partition) else { continue };
        let (stored, head) = (events.iter().find(|event| event.partition == partition), heads[partition.index()]);
        if let Some(event) = stored.filter(|event| newest.hash == Some(event.hash)) {
            published[partition.index()] = event.head();
            continue;
        }
        let was_changed = newest.hash.is_some() && stored.is_some_and(|event| event.epoch == newest.epoch);
        if head.epoch <= newest.epoch || was_changed {
            return Err(SessionError::Alert(format!(
                "partition {partition}: position {} was published with another hash, or is not in the log (which ends at \
                 {}): the database was rewound behind the stream, or changed; run replay-tool verify",
                newest.last, head.position
            )));
        }
        for segment in view.segments(partition).iter().rev() {
            if let Some(common) = newest_in_common(database, partition, segment, head).await? {
                published[partition.index()] = common;
                break;
            }
        }
    }
    Ok(published)
}

/// The newest event of a run that the log holds, too. An epoch is written once, so the same epoch at the same position is
/// the same event; and epochs never fall along the log, so it is found by bisection.
async fn newest_in_common(
    database: &Database,
    partition: Partition,
    segment: &Segment,
    head: Head,
) -> Result<Option<Head>, SessionError> {
    let (mut low, mut high) = (segment.first.0.saturating_sub(1), segment.last.0.min(head.position.0));
    let mut found = None;
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match database.event_at(partition, Position(middle)).await? {
            Some(event) if event.epoch <= segment.epoch => {
                low = middle;
                found = (event.epoch == segment.epoch).then(|| event.head());
            }
            _ => high = middle - 1,
        }
    }
    Ok(found)
}
