//! What every request brings: its id, its path, its query, its body.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, RawPathParams, Request, State, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use http_body_util::BodyExt;
use ledger_core::Account;
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use crate::{problem::Problem, service::Service};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken from a caller, in characters.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// The request's id: the caller's, or made.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        match given.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_CHARS_MAX) {
            Some(id) => Self(id.into()),
            None => Self(Uuid::new_v4().to_string().into()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(Problem::internal)
    }
}

/// The outermost layer: gives the request its id and its deadline, catches what must not happen, and writes problems.
pub(crate) async fn identify(State(service): State<Service>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let trace = trace_id(request.headers()).unwrap_or_default().to_owned();
    request.extensions_mut().insert(id.clone());
    let streams = request.uri().path() == "/v1/events/stream";
    let run = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind();
    let outcome = if streams {
        run.await
    } else {
        match tokio::time::timeout(service.deadline, run).await {
            Ok(outcome) => outcome,
            // What was begun goes on in the writer; the key tells its end.
            Err(_) => Ok(Problem::store_unavailable().into_response()),
        }
    };
    let mut response = outcome.unwrap_or_else(|_| {
        tracing::error!(request_id = %id.0, trace_id = trace, "a request panicked");
        Problem::internal().into_response()
    });
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        tracing::debug!(request_id = %id.0, trace_id = trace, code = problem.code(), "refused");
        metrics::counter!("ledger_problems_total", "code" => problem.code()).increment(1);
        response = match response.headers_mut().remove(header::ALLOW) {
            Some(allow) => problem.allowing(allow).respond(&id.0),
            None => problem.respond(&id.0),
        };
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The trace that the caller is in, from W3C `traceparent`: `00-<trace id>-<parent id>-<flags>`.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let parent = headers.get("traceparent")?.to_str().ok()?;
    let trace = parent.split('-').nth(1)?;
    (trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(trace)
}

/// The path's parameters, decoded.
pub(crate) struct Path(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match RawPathParams::from_request_parts(parts, state).await {
            Ok(parameters) => {
                Ok(Self(parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
            }
            Err(RawPathParamsRejection::InvalidUtf8InPathParam(invalid)) => Err(Problem::invalid(
                invalid.to_string().split('`').nth(1).unwrap_or("path"),
                "must be percent-encoded UTF-8",
            )),
            Err(_) => Err(Problem::internal()),
        }
    }
}

impl Path {
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The account that the path names.
    pub(crate) fn account(&self) -> Result<Account, Problem> {
        Ok(Account::new(self.get("user_id"), self.get("credit_type"))?)
    }
}

/// The query's parameters, decoded; each may be there once, and only those that the route knows.
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| Problem::invalid("query", "must be percent-encoded UTF-8"))?;
            let value = decode(value).ok_or_else(|| Problem::invalid(&*name, "must be percent-encoded UTF-8"))?;
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Problem::invalid(name, "is there twice"));
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }
}

/// Decodes as HTML forms do: a plus is a space.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Cow::into_owned)
}

impl Query {
    /// Refuses a parameter that the route does not know.
    pub(crate) fn only(self, names: &[&str]) -> Result<Self, Problem> {
        match self.0.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => {
                let reason = if names.is_empty() {
                    "is not a parameter of this".to_owned()
                } else {
                    format!("is not a parameter of this; there are {}", names.join(", "))
                };
                Err(Problem::invalid(name.chars().take(64).collect::<String>(), reason))
            }
            None => Ok(self),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A whole number within a range, or nothing.
    pub(crate) fn number(&self, name: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let refused =
            || Problem::invalid(name, format!("must be a whole number from {} to {}", range.start(), range.end()));
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        text.parse().ok().filter(|number| range.contains(number)).map(Some).ok_or_else(refused)
    }

    /// How many items a page has.
    pub(crate) fn limit(&self) -> Result<usize, Problem> {
        const LIMIT: u64 = 50;
        const LIMIT_MAX: u64 = 500;
        let limit = self.number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT);
        Ok(usize::try_from(limit).expect("a page's limit is small"))
    }
}

/// Reads a JSON body of at most `bytes_max`, within its share of the memory that bodies may take.
pub(crate) async fn json_body(
    service: &Service,
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<String, Problem> {
    /// How long a caller may take to send its body.
    const ARRIVAL: Duration = Duration::from_secs(20);
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let refusal = if !essence.eq_ignore_ascii_case("application/json") {
        Some(Problem::unsupported_media_type())
    } else if announced.is_some_and(|bytes| bytes > bytes_max) {
        Some(Problem::body_too_large(bytes_max))
    } else {
        None
    };
    // Counted until the command is parsed; past that the writer's own queue has its bound.
    let share = u32::try_from(announced.unwrap_or(bytes_max)).unwrap_or(u32::MAX);
    let share = match refusal {
        Some(_) => None,
        None => Some(service.body_bytes.clone().try_acquire_many_owned(share).map_err(|_| Problem::overloaded())?),
    };
    let keep_max = if refusal.is_some() { 0 } else { bytes_max };
    let arrived = tokio::time::timeout(ARRIVAL, receive(body, keep_max)).await;
    let outcome = match (refusal, arrived) {
        (Some(problem), _) => Err(problem),
        (None, Ok(Ok(bytes))) => String::from_utf8(bytes).map_err(|_| Problem::invalid("body", "must be UTF-8")),
        (None, Ok(Err(Unreceived::TooLarge))) => Err(Problem::body_too_large(bytes_max)),
        (None, Ok(Err(Unreceived::Broken))) => Err(Problem::invalid("body", "did not arrive whole")),
        (None, Err(_)) => Err(Problem::invalid("body", "did not arrive in time")),
    };
    drop(share);
    outcome
}

/// Why a body is not there.
enum Unreceived {
    TooLarge,
    Broken,
}

/// Receives a body of at most `bytes_max`. What is sent past that is read and thrown away, within a bound: a client that
/// is cut off while it still writes sees a broken connection instead of the answer.
async fn receive(mut body: Body, bytes_max: usize) -> Result<Vec<u8>, Unreceived> {
    const THROWN_AWAY_MAX: usize = 128 * 1024 * 1024;
    let mut bytes = Vec::new();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unreceived::Broken)?;
        let Some(data) = frame.data_ref() else { continue };
        received += data.len();
        if received <= bytes_max {
            bytes.extend_from_slice(data);
        } else if received > THROWN_AWAY_MAX {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if received > bytes_max { Err(Unreceived::TooLarge) } else { Ok(bytes) }
}

/// The version that `If-Match` insists on: `"7"`, as an account's `ETag` says it.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let refused = || Problem::invalid("If-Match", "must be an account's ETag, such as \"7\"");
    let text = value.to_str().map_err(|_| refused())?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    text.parse().map(Some).map_err(|_| refused())
}

/// No such route.
pub(crate) async fn no_such_route() -> Problem {
    Problem::no_such_route()
}

/// A route that does not take the method. The router adds which it takes.
pub(crate) async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed()
}

/// JSON that is written already.
pub(crate) fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
