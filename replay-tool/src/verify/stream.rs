//! The heads that the stream on NATS knows: the newest message of each partition, as an anchor.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    stream::Stream,
};
use futures::StreamExt;
use ledger_core::{Head, PARTITIONS, Partition};
use projector::publisher::{self, STREAM};

use crate::{anchor::Anchor, context::Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a message is waited for.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that are read at first from the stream's end; each time that is not enough, twice as many.
const FIRST_WINDOW: u64 = 4_096;

/// Reads the stream from its end backwards, headers only, until every partition in `wanted` was met or all was read.
pub(super) async fn heads(nats_url: &str, wanted: &[Partition]) -> Result<Anchor, Failure> {
    let failed =
        |why: String| Failure::new(format!("--nats-url: {why}; give the server that holds the stream {STREAM}"));
    let client = async_nats::ConnectOptions::new()
        .connection_timeout(CONNECT_TIMEOUT)
        .max_reconnects(1)
        .name("replay-tool")
        .connect(nats_url)
        .await
        .map_err(|error| failed(format!("NATS cannot be reached: {error}")))?;
    let mut stream = jetstream::new(client)
        .get_stream(STREAM)
        .await
        .map_err(|error| failed(format!("the stream {STREAM} cannot be read: {error}")))?;
    let state = stream.info().await.map_err(|error| failed(error.to_string()))?.state.clone();
    let mut newest: [Option<Head>; PARTITIONS] = [None; PARTITIONS];
    let mut window = FIRST_WINDOW;
    let mut end = state.last_sequence.saturating_add(1);
    let first = state.first_sequence.max(1);
    while end > first && wanted.iter().any(|partition| newest[partition.index()].is_none()) {
        let begin = end.saturating_sub(window).max(first);
        let found = read(&stream, begin, end).await.map_err(failed)?;
        for (newest, found) in newest.iter_mut().zip(found) {
            *newest = newest.or(found);
        }
        (end, window) = (begin, window.saturating_mul(2));
    }
    let heads = Partition::all().zip(newest).filter_map(|(partition, head)| Some((partition, head?))).collect();
    Ok(Anchor { source: format!("the stream {STREAM}"), heads })
}

/// The newest place of each partition in the messages from `begin` on and before `end`.
async fn read(stream: &Stream, begin: u64, end: u64) -> Result<[Option<Head>; PARTITIONS], String> {
    let config = pull::OrderedConfig {
        headers_only: true,
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: begin },
        ..pull::OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| error.to_string())?;
    let mut newest = [None; PARTITIONS];
    // All of them may have been deleted from the stream.
    if consumer.cached_info().num_pending == 0 {
        return Ok(newest);
    }
    let mut messages = consumer.messages().await.map_err(|error| error.to_string())?;
    loop {
        let message = tokio::time::timeout(MESSAGE_TIMEOUT, messages.next())
            .await
            .map_err(|_| format!("no message came within {} s", MESSAGE_TIMEOUT.as_secs()))?
            .ok_or("the messages ended early")?
            .map_err(|error| error.to_string())?;
        let (sequence, pending) =
            message.info().map(|info| (info.stream_sequence, info.pending)).map_err(|error| error.to_string())?;
        // A message that was deleted from the stream may have been the last of them, and of all.
        if sequence >= end {
            return Ok(newest);
        }
        if let Some((partition, head)) = message.headers.as_ref().and_then(publisher::place) {
            newest[partition.index()] = Some(head);
        }
        if sequence + 1 >= end || pending == 0 {
            return Ok(newest);
        }
    }
}
