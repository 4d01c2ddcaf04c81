//! `GET /v1/events/stream`: server-sent events of all partitions, in order within each.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event as Message, KeepAlive, Sse},
    },
};
use futures::stream;
use ledger_core::{Epoch, Event, Head, PARTITIONS, Partition, Position, json::LogEntry};
use ledger_store::{StoreError, error::chain};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{cursor::StreamCursor, problem::Problem, request::Query, service::Service};

/// Streams that are served at once: each looks at the log every second.
pub(crate) const STREAMS_MAX: usize = 256;
/// Events that a stream holds at most: there are many streams, and not every client reads.
const STREAM_PAGE: usize = 200;
/// How long a stream waits before it looks for what other processes wrote.
const STREAM_POLL: Duration = Duration::from_secs(1);
/// How often a silent stream shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a client is to come back when its stream ends.
const COME_BACK: Duration = Duration::from_secs(1);

pub(crate) async fn stream(
    State(service): State<Service>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.only(&["from"])?;
    let permit = service.streams.clone().try_acquire_owned().map_err(|_| Problem::overloaded())?;
    let heads = service.database.heads().await?;
    let epoch = heads.iter().map(|head| head.epoch).max().unwrap_or(Epoch::FIRST);
    // A browser that comes back asks by the same address and with the last id that it saw: the id is what it means.
    let positions = match (headers.get("last-event-id"), query.get("from")) {
        (Some(text), _) => {
            let cursor = StreamCursor::parse(text.to_str().unwrap_or_default())
                .ok_or_else(|| Problem::invalid("Last-Event-ID", "must be the id of a message of this stream"))?;
            if was_undone(&service, &cursor, epoch, &heads).await? {
                return Err(Problem::invalid(
                    "Last-Event-ID",
                    "is of events that a restore of the database undid; begin again with ?from=start",
                ));
            }
            cursor.positions
        }
        (None, Some("start")) => [Position::ZERO; PARTITIONS],
        (None, None | Some("now")) => heads.map(|head| head.position),
        (None, Some(_)) => return Err(Problem::invalid("from", "must be start or now")),
    };
    let commits = service.ledger.commits();
    let cursor = StreamCursor { epoch, positions };
    let pending = VecDeque::new();
    let state = Streamed { service, commits, cursor, pending, first: 0, is_new: true, _permit: permit };
    let messages = stream::unfold(state, |mut state| async move {
        let message = state.next().await?;
        Some((Ok::<_, Infallible>(message), state))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Whether the cursor is of events that the log no longer holds: who has seen them must not go on as if nothing had
/// happened.
async fn was_undone(
    service: &Service,
    cursor: &StreamCursor,
    epoch: Epoch,
    heads: &[Head; PARTITIONS],
) -> Result<bool, StoreError> {
    let is_ahead = cursor.positions.iter().zip(heads).any(|(position, head)| *position > head.position);
    if is_ahead || cursor.epoch > epoch {
        return Ok(true);
    }
    if cursor.epoch == epoch {
        return Ok(false);
    }
    // Restored since: what stands at the cursor's places must be of the cursor's epoch, or older.
    let places: Vec<_> = Partition::all()
        .map(|partition| (partition, cursor.positions[partition.index()]))
        .filter(|(_, position)| *position > Position::ZERO)
        .collect();
    let events = service.database.events_at(&places).await?;
    Ok(events.len() < places.len() || events.iter().any(|event| event.epoch > cursor.epoch))
}

struct Streamed {
    service: Service,
    commits: watch::Receiver<u64>,
    /// Its epoch is the one in which the stream began: the stream does not outlive it.
    cursor: StreamCursor,
    pending: VecDeque<Event>,
    /// The partition that is read first, by its index.
    first: usize,
    is_new: bool,
    _permit: OwnedSemaphorePermit,
}

/// What there was when a stream looked for more.
enum Found {
    Events,
    Nothing,
    /// The log is another one than the stream began with.
    Restored,
}

impl Streamed {
    /// The next message; the end when the service stops, the log was restored or cannot be read: the client comes back with
    /// its cursor.
    async fn next(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.is_new) {
            // An id without data is no event to a client, but moves its place: it may have to come back before the first.
            return Some(Message::default().retry(COME_BACK).id(self.cursor.to_string()));
        }
        loop {
            if let Some(event) = self.pending.pop_front() {
                self.cursor.positions[event.partition.index()] = event.position;
                let data = serde_json::to_string(&LogEntry(&event)).expect("an event is JSON");
                let message = Message::default().id(self.cursor.to_string()).event(event.event_type.name());
                return Some(message.data(data));
            }
            if *self.service.stopping.borrow() {
                return None;
            }
            self.commits.mark_unchanged();
            match self.read().await {
                Ok(Found::Events) => continue,
                Ok(Found::Nothing) => {}
                Ok(Found::Restored) => {
                    tracing::info!("a stream ends: the log was restored");
                    return None;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "a stream ends: the log cannot be read");
                    return None;
                }
            }
            let mut stopping = self.service.stopping.clone();
            tokio::select! {
                // News, or time to look all the same.
                _ = tokio::time::timeout(STREAM_POLL, self.commits.changed()) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
    }

    /// Reads on once everything that was read is handed out.
    ///
    /// After a restore other events may stand at the positions that the client has seen. To go on would pass over them, and
    /// give the client a cursor that nobody could tell from one of the new epoch: whether it may keep what it has is judged
    /// when it comes back.
    async fn read(&mut self) -> Result<Found, StoreError> {
        let heads = self.service.database.heads().await?;
        if heads.iter().any(|head| head.epoch > self.cursor.epoch) {
            return Ok(Found::Restored);
        }
        for partition in all_from(self.first) {
            let after = self.cursor.positions[partition.index()];
            if heads[partition.index()].position > after {
                let room = STREAM_PAGE - self.pending.len();
                self.pending.extend(self.service.database.events_after(partition, after, room).await?);
            }
            if self.pending.len() >= STREAM_PAGE {
                // The others have their turn before this one goes on.
                self.first = partition.index() + 1;
                break;
            }
        }
        // The restore may have come after the heads.
        if self.pending.iter().any(|event| event.epoch > self.cursor.epoch) {
            self.pending.clear();
            return Ok(Found::Restored);
        }
        Ok(if self.pending.is_empty() { Found::Nothing } else { Found::Events })
    }
}

/// Every partition once, from one on.
fn all_from(first: usize) -> impl Iterator<Item = Partition> {
    Partition::all().cycle().skip(first).take(PARTITIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_its_turn_wherever_a_round_begins() {
        for first in 0..=PARTITIONS {
            let mut round: Vec<_> = all_from(first).map(Partition::index).collect();
            assert_eq!(round[0], first % PARTITIONS);
            round.sort_unstable();
            assert!(round.into_iter().eq(0..PARTITIONS), "from {first}");
        }
    }
}
