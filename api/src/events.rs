//! `/v1/events`: the log of one partition, and the stream over all.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event as Message, KeepAlive, Sse},
    },
};
use futures::stream;
use ledger_core::{Event, PARTITIONS, Partition, Position, json::LogEntry};
use ledger_store::{StoreError, error::chain};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    body::missing,
    cursor::StreamCursor,
    problem::Problem,
    request::{self, Query},
    service::Service,
};

/// Events that a stream reads from a partition at once.
const STREAM_PAGE: usize = 200;
/// How long a stream waits before it looks for what other processes wrote.
const STREAM_POLL: Duration = Duration::from_secs(1);
/// How often a silent stream shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Serialize)]
struct Log<'a> {
    items: Vec<LogEntry<'a>>,
    /// The newest position of the partition.
    head: Position,
}

/// `GET /v1/events?partition=&after=&limit=`.
pub(crate) async fn read(State(service): State<Service>, query: Query) -> Result<Response, Problem> {
    let query = query.only(&["partition", "after", "limit"])?;
    let number = query.number("partition", 0..=PARTITIONS as u64 - 1)?.ok_or_else(|| missing("partition"))?;
    let partition = u8::try_from(number).ok().and_then(Partition::new).ok_or_else(Problem::internal)?;
    let after = Position(query.number("after", 0..=ledger_core::id::POSITION_MAX)?.unwrap_or(0));
    let limit = query.limit()?;
    // The head first: what is read after it reaches at least as far.
    let head = service.database.heads().await?[partition.index()].position;
    let events = service.database.events_after(partition, after, limit).await?;
    let head = events.last().map_or(head, |last| last.position.max(head));
    let log = Log { items: events.iter().map(LogEntry).collect(), head };
    Ok(request::json(StatusCode::OK, serde_json::to_string(&log).expect("events are JSON")))
}

/// `GET /v1/events/stream`: server-sent events, in order within each partition.
pub(crate) async fn stream(
    State(service): State<Service>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.only(&["from"])?;
    let heads = service.database.heads().await?.map(|head| head.position);
    let last_id = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default());
    let from = match (last_id, query.get("from")) {
        (Some(text), _) => {
            let cursor = StreamCursor::parse(text)
                .ok_or_else(|| Problem::invalid("Last-Event-ID", "must be the id of a message of this stream"))?;
            if cursor.0.iter().zip(&heads).any(|(position, head)| position > head) {
                return Err(Problem::invalid(
                    "Last-Event-ID",
                    "is ahead of the log: the database was rewound; begin with ?from=start",
                ));
            }
            cursor
        }
        (None, Some("start")) => StreamCursor([Position::ZERO; PARTITIONS]),
        (None, None | Some("now")) => StreamCursor(heads),
        (None, Some(_)) => return Err(Problem::invalid("from", "must be start or now")),
    };
    let commits = service.ledger.commits();
    let state = Streamed { service, commits, cursor: from, pending: VecDeque::new() };
    let messages = stream::unfold(state, |mut state| async move {
        let message = state.next().await?;
        Some((Ok::<_, Infallible>(message), state))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Streamed {
    service: Service,
    commits: watch::Receiver<u64>,
    cursor: StreamCursor,
    pending: VecDeque<Event>,
}

impl Streamed {
    /// The next message; the end when the service stops or the log cannot be read: the client comes back with its cursor.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                self.cursor.0[event.partition.index()] = event.position;
                let data = serde_json::to_string(&LogEntry(&event)).expect("an event is JSON");
                let message = Message::default().id(self.cursor.to_string()).event(event.event_type.name());
                return Some(message.data(data));
            }
            if *self.service.stopping.borrow() {
                return None;
            }
            self.commits.mark_unchanged();
            match self.read().await {
                Ok(true) => continue,
                Ok(false) => {}
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

    async fn read(&mut self) -> Result<bool, StoreError> {
        let heads = self.service.database.heads().await?;
        for partition in Partition::all() {
            let after = self.cursor.0[partition.index()];
            if heads[partition.index()].position > after {
                self.pending.extend(self.service.database.events_after(partition, after, STREAM_PAGE).await?);
            }
        }
        Ok(!self.pending.is_empty())
    }
}
