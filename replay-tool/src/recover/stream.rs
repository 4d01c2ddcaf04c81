//! What the stream on NATS holds beyond the archive.

use std::time::Duration;

use async_nats::{
    ConnectErrorKind,
    jetstream::{self, consumer::pull::OrderedConfig, context::GetStreamErrorKind},
};
use futures::StreamExt;
use ledger_core::{Epoch, Head, PARTITIONS, Partition, Position, json};
use projector::publisher::{
    self, STREAM,
    restored::{self, Restored},
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    base::Base,
    candidates::{Source, Writers},
    tail::Refusals,
};
use crate::{context::Failure, progress::Progress};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may be silent while it still has messages to send.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) messages: u64,
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    /// Where the events of each partition end, by what the stream says itself: void events do not count.
    pub(super) newest: [Option<Head>; PARTITIONS],
    pub(super) newest_epoch: Epoch,
    /// The restores that it tells of, oldest first.
    pub(super) restores: Vec<Restored>,
    /// Partitions in which stream and archive have the archive's newest event in common, and in which they do not.
    pub(super) agree: usize,
    pub(super) differ: usize,
}

/// Reads the whole stream once and keeps every event that may follow the archive. An event's place in the stream says
/// nothing about the archive's end, so nothing can be left out.
pub(super) async fn read(
    url: &str,
    base: &Base,
    candidates: &mut Writers,
    refused: &mut Refusals,
) -> Result<Read, Failure> {
    let gone = |why: String| {
        Failure::new(format!(
            "{why}; start NATS and run this again, or leave --nats-url out if its stream is lost, too"
        ))
    };
    let client = async_nats::ConnectOptions::new()
        .connection_timeout(CONNECT_TIMEOUT)
        .name("replay-tool recover")
        .connect(url)
        .await
        .map_err(|error| match error.kind() {
            ConnectErrorKind::ServerParse => {
                Failure::new(format!("--nats-url is no address of a NATS server ({error}); write nats://HOST:PORT"))
            }
            ConnectErrorKind::TimedOut => gone(format!("NATS cannot be reached: {error}")).or_passing(),
            _ => gone(format!("NATS cannot be reached: {error}")),
        })?;
    let stream = jetstream::new(client).get_stream(STREAM).await.map_err(|error| {
        let failure = gone(format!("the stream {STREAM} cannot be opened: {error}"));
        // No answer in time, or JetStream still reads its files.
        if error.kind() == GetStreamErrorKind::Request { failure.or_passing() } else { failure }
    })?;
    // It was there a moment ago.
    let unreadable = |why: String| gone(format!("the stream {STREAM} cannot be read: {why}")).or_passing();
    let state = stream.get_info().await.map_err(|error| unreadable(error.to_string()))?.state;
    let mut read = Read {
        messages: 0,
        first_sequence: state.first_sequence,
        last_sequence: state.last_sequence,
        newest: [None; PARTITIONS],
        newest_epoch: Epoch(0),
        restores: Vec::new(),
        agree: 0,
        differ: 0,
    };
    if state.messages == 0 {
        return Ok(read);
    }
    let consumer =
        stream.create_consumer(OrderedConfig::default()).await.map_err(|error| unreadable(error.to_string()))?;
    let mut messages = consumer.messages().await.map_err(|error| unreadable(error.to_string()))?;
    let bar = Progress::new("reading the stream");
    bar.expect(state.messages);
    loop {
        let message = timeout(SILENCE_MAX, messages.next())
            .await
            .map_err(|_| unreadable(format!("it was silent for {} s", SILENCE_MAX.as_secs())))?
            .ok_or_else(|| unreadable("it ended early".to_owned()))?
            .map_err(|error| unreadable(error.to_string()))?;
        let (sequence, pending) = message
            .info()
            .map(|info| (info.stream_sequence, info.pending))
            .map_err(|error| unreadable(error.to_string()))?;
        if sequence > state.last_sequence {
            break;
        }
        read.messages += 1;
        take(&message, sequence, base, &mut read, candidates, refused)?;
        bar.advance(1);
        if sequence == state.last_sequence || pending == 0 {
            break;
        }
    }
    bar.finish();
    // An end that comes too soon would pass for lost events.
    if read.messages != state.messages {
        return Err(unreadable(format!("it gave {} of {} messages", read.messages, state.messages)));
    }
    for partition in Partition::all() {
        let newest = &mut read.newest[partition.index()];
        let point = |restored: &Restored| restored.heads[partition.index()];
        for restored in &read.restores {
            *newest = newest
                .map(|head| if restored.voids(partition, head.epoch, head.position) { point(restored) } else { head });
        }
    }
    Ok(read)
}

fn take(
    message: &jetstream::Message,
    sequence: u64,
    base: &Base,
    read: &mut Read,
    candidates: &mut Writers,
    refused: &mut Refusals,
) -> Result<(), Failure> {
    if &*message.subject == restored::SUBJECT {
        match Restored::read(&message.payload) {
            Some(restored) => {
                read.newest_epoch = read.newest_epoch.max(restored.epoch);
                read.restores.push(restored);
                read.restores.sort_by_key(|restored| restored.epoch);
            }
            None => refused.push(
                || json!({ "source": "stream", "sequence": sequence, "why": "cannot be read as a credit.log.restored" }),
            ),
        }
        return Ok(());
    }
    // The headers say cheaply which messages the archive has; what is taken is judged by its content alone.
    let told = message.headers.as_ref().and_then(publisher::place);
    if let Some((partition, head)) = told {
        let end = base.heads[partition.index()];
        if head.position < end.position && head.epoch <= end.epoch {
            return Ok(());
        }
    }
    let event = match json::read_log_entry(&message.payload) {
        Ok(event) => event,
        Err(error) => {
            refused.push(|| json!({ "source": "stream", "sequence": sequence, "why": error.to_string() }));
            return Ok(());
        }
    };
    let (end, index) = (base.heads[event.partition.index()], event.partition.index());
    read.newest_epoch = read.newest_epoch.max(event.epoch);
    if read.newest[index].is_none_or(|newest| (newest.epoch, newest.position) < (event.epoch, event.position)) {
        read.newest[index] = Some(event.head());
    }
    if event.position == end.position && event.epoch <= end.epoch && end.position > Position::ZERO {
        if event.hash == end.hash {
            read.agree += 1;
        } else {
            read.differ += 1;
        }
    }
    if event.position > end.position || event.epoch > end.epoch {
        candidates.push(Source::Stream, &event, &message.payload)?;
    }
    Ok(())
}
