//! `GET /v1/events`: the log of one partition.

use axum::{extract::State, http::StatusCode, response::Response};
use ledger_core::{PARTITIONS, Partition, Position, json::LogEntry};
use serde::Serialize;

use crate::{
    body::missing,
    problem::Problem,
    request::{self, Query},
    service::Service,
};

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
