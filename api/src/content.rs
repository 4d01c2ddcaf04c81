//! The bytes of a request's body, within bounds.

use std::{ops::Deref, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::problem::Problem;

/// How long a caller may take at most to send its body, one that is refused too.
const ARRIVAL: Duration = Duration::from_secs(20);
/// How much of a body that is refused is still read and thrown away: a client that is cut off while it still writes sees
/// a broken connection instead of the answer.
const THROWN_AWAY_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The room that the bodies of all connections share, in bytes, and the time that each of them has.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    arrival: Duration,
}

impl Room {
    /// Room for requests that may take as long as `deadline` in all. A body has two thirds of that at most: whoever sends
    /// too slowly is to hear so, and not that the service could not answer.
    pub(crate) fn new(bytes: usize, deadline: Duration) -> Self {
        Self { bytes: Arc::new(Semaphore::new(bytes)), arrival: ARRIVAL.min(deadline * 2 / 3) }
    }

    /// Takes room for what has arrived. What was only announced takes none: callers who announce much and send nothing
    /// would keep the others out.
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let bytes = u32::try_from(bytes).map_err(|_| Problem::overloaded())?;
        self.bytes.clone().try_acquire_many_owned(bytes).map_err(|_| Problem::overloaded())
    }
}

/// A whole body. It takes up its room until it is dropped.
#[derive(Debug)]
pub(crate) struct Content {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a JSON body of at most `bytes_max`.
pub(crate) async fn read(room: &Room, headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Content, Problem> {
    read_until(Instant::now() + room.arrival, room, headers, body, bytes_max).await
}

async fn read_until(
    deadline: Instant,
    room: &Room,
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
) -> Result<Content, Problem> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let outcome = if !is_json(headers) {
        Err(Problem::unsupported_media_type())
    } else if announced.is_some_and(|bytes| bytes > bytes_max) {
        Err(Problem::body_too_large(bytes_max))
    } else {
        match timeout_at(deadline, receive(room, &mut body, bytes_max)).await {
            Ok(outcome) => outcome,
            // Nothing more is waited for: the request's own deadline would come before the answer.
            Err(_) => return Err(Problem::invalid("body", "did not arrive in time")),
        }
    };
    // Who waits for a go-ahead has sent nothing yet, and reading would give it.
    if outcome.is_err() && !headers.contains_key(header::EXPECT) {
        // Whoever is slower than that does not get to hear why.
        let _ = timeout_at(deadline, throw_away(body)).await;
    }
    outcome
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

async fn receive(room: &Room, body: &mut Body, bytes_max: usize) -> Result<Content, Problem> {
    let (mut whole, mut joined) = (Bytes::new(), Vec::new());
    let mut taken: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::invalid("body", "did not arrive whole"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len().max(joined.len()) + data.len() > bytes_max {
            return Err(Problem::body_too_large(bytes_max));
        }
        let permit = room.take(data.len())?;
        match &mut taken {
            Some(taken) => taken.merge(permit),
            None => taken = Some(permit),
        }
        if whole.is_empty() && joined.is_empty() {
            // Nearly every body arrives in one piece, and is not copied then.
            whole = data;
        } else {
            if joined.is_empty() {
                joined = std::mem::take(&mut whole).into();
            }
            joined.extend_from_slice(&data);
        }
    }
    let bytes = if joined.is_empty() { whole } else { joined.into() };
    Ok(Content { bytes, _room: taken })
}

async fn throw_away(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > THROWN_AWAY_BYTES_MAX {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: usize) -> Room {
        Room::new(bytes, Duration::from_secs(30))
    }

    #[test]
    fn a_body_has_arrived_before_its_request_is_over() {
        for (deadline, arrival) in [(3, 2), (30, 20), (600, 20)] {
            assert_eq!(Room::new(1, Duration::from_secs(deadline)).arrival, Duration::from_secs(arrival));
        }
    }

    fn headers(content_type: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().expect("valid"))])
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_joined_and_its_room_given_back() {
        let room = room(100);
        let pieces = ["{\"a\"", "", ":", "1}"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let body = Body::from_stream(futures::stream::iter(pieces));
        let content = read(&room, &headers("application/json; charset=utf-8"), body, 7).await.expect("taken");
        assert_eq!(&*content, b"{\"a\":1}");
        assert_eq!(room.bytes.available_permits(), 93);
        drop(content);
        assert_eq!(room.bytes.available_permits(), 100);
    }

    #[tokio::test]
    async fn a_body_past_the_limit_is_refused_whether_or_not_it_says_so() {
        let room = room(100);
        let silent = headers("application/json");
        let mut announced = silent.clone();
        announced.insert(header::CONTENT_LENGTH, 11.into());
        for headers in [silent, announced] {
            let problem = read(&room, &headers, Body::from("01234567890"), 10).await.expect_err("too large");
            assert_eq!(problem.code(), "body_too_large");
        }
        assert_eq!(room.bytes.available_permits(), 100);
    }

    #[tokio::test]
    async fn only_json_is_taken() {
        let room = room(100);
        for content_type in ["text/plain", "", "application/jsonx", "application/x-www-form-urlencoded"] {
            let problem = read(&room, &headers(content_type), Body::from("{}"), 10).await.expect_err("no JSON");
            assert_eq!(problem.code(), "unsupported_media_type", "{content_type}");
        }
        assert!(read(&room, &headers("Application/JSON"), Body::from("{}"), 10).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_stops_arriving_is_waited_for_only_once() {
        let room = room(100);
        let stalled = || Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        for (headers, code) in
            [(headers("application/json"), "invalid_request"), (headers("text/plain"), "unsupported_media_type")]
        {
            let deadline = Instant::now() + Duration::from_millis(50);
            let answer = read_until(deadline, &room, &headers, stalled(), 10);
            let answer = timeout_at(deadline + ARRIVAL / 2, answer).await.expect("no second wait");
            assert_eq!(answer.expect_err("nothing arrived").code(), code);
        }
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_told_to_come_back() {
        let room = room(5);
        let first = read(&room, &headers("application/json"), Body::from("[1,2]"), 10).await.expect("there is room");
        let problem = read(&room, &headers("application/json"), Body::from("[3]"), 10).await.expect_err("no room");
        assert_eq!(problem.code(), "overloaded");
        drop(first);
        assert!(read(&room, &headers("application/json"), Body::from("[3]"), 10).await.is_ok());
    }
}
