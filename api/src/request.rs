//! What every request brings: its id, its path, its query, its body.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequestParts, MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures::{FutureExt, future::BoxFuture};
use ledger_core::Account;
use percent_encoding::percent_decode_str;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    access::{Caller, Needs},
    audit::about::About,
    problem::Problem,
    router::Routes,
    service::Service,
};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Whose connection a request came by: address and port.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub(crate) Arc<str>);

/// The longest request id that is taken from a caller, in characters.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// The request's id: the caller's where it is visible ASCII, or made.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        Self::given(given).unwrap_or_else(|| Self(Uuid::new_v4().to_string().into()))
    }

    /// The caller's, where it is taken.
    pub(crate) fn given(id: Option<&str>) -> Option<Self> {
        let is_taken = |id: &&str| {
            (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        id.filter(is_taken).map(|id| Self(id.into()))
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(Problem::internal)
    }
}

/// What stands around every route: gives the request its id and its deadline, catches what must not happen, and writes
/// problems. (As a layer of the router it would be copied with every layer above and below for each request.)
pub(crate) async fn serve(service: Service, routes: Routes, mut request: Request) -> Response {
    let id = RequestId::of(request.headers());
    // A span for every request would cost a good part of it; who traces gets one.
    let span = match trace_id(request.headers()) {
        Some(trace_id) => tracing::info_span!("request", request_id = %id.0, trace_id),
        None => tracing::debug_span!("request", request_id = %id.0),
    };
    request.extensions_mut().insert(id.clone());
    let streams = request.uri().path() == "/v1/events/stream";
    let run = std::panic::AssertUnwindSafe(answer(&service, &routes, request)).catch_unwind().instrument(span.clone());
    let outcome = if streams {
        run.await
    } else {
        match timeout(service.deadline, run).await {
            Ok(outcome) => outcome,
            // What was begun goes on in the writer; the key tells its end.
            Err(_) => Ok(Problem::store_unavailable().into_response()),
        }
    };
    let mut response = match outcome {
        Ok(response) => response,
        Err(_) => {
            span.in_scope(|| tracing::error!(request_id = %id.0, "a request panicked"));
            Problem::internal().into_response()
        }
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        span.in_scope(|| {
            if problem.is_ours() {
                tracing::warn!(request_id = %id.0, code = problem.code(), "a request could not be served");
            } else {
                tracing::debug!(request_id = %id.0, code = problem.code(), "refused");
            }
        });
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

/// Lets a request through to its route, when the caller may use it and the database is not known to be away.
async fn answer(service: &Service, routes: &Routes, mut request: Request) -> Response {
    // What leads to no route says so to everybody: the document lists the routes anyway.
    let needs = routes.needs(request.method(), request.uri().path());
    match service.access.admit(request.headers(), needs.unwrap_or(Needs::Nothing)).await {
        Ok(caller) => drop(request.extensions_mut().insert(caller)),
        Err(problem) => return problem.into_response(),
    }
    // What leads nowhere asks for nothing.
    let about = needs.and_then(|_| About::of(service, &request));
    let asks_database = needs.is_some_and(|needs| needs != Needs::Nothing) && request.uri().path() != "/metrics";
    if asks_database && let Err(wait) = service.breaker.admit() {
        return Problem::store_resting(wait).into_response();
    }
    let run = routes.router().oneshot(request).map(|outcome| match outcome {
        Ok(response) => response,
        Err(never) => match never {},
    });
    let response = match about {
        None => run.await,
        Some(about) => {
            let (service, left) = (service.clone(), service.left.clone());
            let run = run.map(move |response| {
                about.record(&service, &response);
                response
            });
            ToTheEnd { run: Some(run.boxed()), left }.await
        }
    };
    if asks_database {
        match response.extensions().get::<Problem>() {
            Some(problem) if problem.is_store_away() => service.breaker.failed(),
            _ => service.breaker.succeeded(),
        }
    }
    response
}

/// A request that is brought to its end, also when its caller hangs up or its deadline passes: what it asked for may be done by
/// then, and is to be written down.
struct ToTheEnd {
    run: Option<BoxFuture<'static, Response>>,
    left: TaskTracker,
}

/// How long it may take after that: what takes longer waits for somebody who is gone, and keeps a connection.
const LEFT_MAX: Duration = Duration::from_secs(20);

impl Future for ToTheEnd {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        // One that panics is gone then, and not run again.
        let Some(mut run) = self.run.take() else { return Poll::Pending };
        let polled = run.poll_unpin(context);
        if polled.is_pending() {
            self.run = Some(run);
        }
        polled
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        if let Some(run) = self.run.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let run = async move { drop(timeout(LEFT_MAX, run).await) };
            self.left.spawn_on(run.in_current_span(), &runtime);
        }
    }
}

/// Where a command comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) id: RequestId,
    pub(crate) caller: Caller,
}

impl<S: Sync> FromRequestParts<S> for Origin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = RequestId::from_request_parts(parts, state).await?;
        Ok(Self { id, caller: Caller::from_request_parts(parts, state).await? })
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(Problem::internal)
    }
}

/// The trace that the caller is in, from W3C `traceparent`: `00-<trace id>-<parent id>-<flags>`.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let parent = headers.get("traceparent")?.to_str().ok()?;
    let trace = parent.split('-').nth(1)?;
    let is_hex = trace.len() == 32 && trace.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_hex && trace.bytes().any(|byte| byte != b'0')).then_some(trace)
}

/// The path's parameters, decoded. A `%2f` in one is a part of its text.
pub(crate) struct Path(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Path {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let route = parts.extensions.get::<MatchedPath>().ok_or_else(Problem::internal)?;
        let pairs = route.as_str().split('/').zip(parts.uri.path().split('/'));
        let named = pairs.filter_map(|(name, text)| Some((name.strip_prefix('{')?.strip_suffix('}')?, text)));
        let decoded = named.map(|(name, text)| match decode(text) {
            Some(value) => Ok((name.to_owned(), value)),
            None => Err(Problem::invalid(name, "must be percent-encoded UTF-8")),
        });
        Ok(Self(decoded.collect::<Result<_, _>>()?))
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
            let name = decode_form(name).ok_or_else(|| Problem::invalid("query", "must be percent-encoded UTF-8"))?;
            let value = decode_form(value).ok_or_else(|| Problem::invalid(&*name, "must be percent-encoded UTF-8"))?;
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Problem::invalid(name, "is there twice"));
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }
}

/// Decodes as HTML forms do: a plus is a space.
fn decode_form(text: &str) -> Option<String> {
    decode(&text.replace('+', " "))
}

/// Undoes percent-encoding; `None` where a `%` has no two digits after it or the bytes are not UTF-8.
fn decode(text: &str) -> Option<String> {
    let is_sound = text
        .split('%')
        .skip(1)
        .all(|after| after.len() >= 2 && after.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit));
    if !is_sound {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned)
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

/// The version that `If-Match` insists on: `"7"`, as an account's `ETag` says it.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let refused = || Problem::invalid("If-Match", "must be one account's ETag, such as \"7\"");
    let mut values = headers.get_all(header::IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| refused())?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if values.next().is_some() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).expect("valid"))])
    }

    async fn query(text: &str) -> Result<Query, Problem> {
        let request = axum::http::Request::get(format!("/x?{text}")).body(()).expect("valid");
        Query::from_request_parts(&mut request.into_parts().0, &()).await
    }

    #[test]
    fn a_request_id_is_taken_where_it_is_visible_ascii() {
        for id in ["a", "order/42#try=2", &"x".repeat(128)] {
            assert_eq!(&*RequestId::of(&headers("x-request-id", id)).0, id);
        }
        for id in ["", "two words", "tab\there", &"x".repeat(129)] {
            let made = RequestId::of(&headers("x-request-id", id));
            assert!(Uuid::try_parse(&made.0).is_ok(), "{id} became {made:?}");
        }
    }

    #[test]
    fn a_trace_id_is_taken_from_a_valid_traceparent_only() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&headers("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))), Some(trace));
        for text in ["", "00", trace, &format!("00-{}-1-01", "0".repeat(32)), &format!("00-{}-1-01", "G".repeat(32))] {
            assert_eq!(trace_id(&headers("traceparent", text)), None, "{text}");
        }
    }

    #[test]
    fn if_match_is_one_etag() {
        for text in ["\"7\"", "W/\"7\"", "7"] {
            assert_eq!(if_match(&headers("if-match", text)).expect(text), Some(7));
        }
        assert_eq!(if_match(&HeaderMap::new()).expect("none"), None);
        for text in ["", "*", "\"\"", "\"7", "\"7\", \"8\"", "seven", "-7", "99999999999999999999"] {
            assert_eq!(if_match(&headers("if-match", text)).expect_err(text).field(), Some("If-Match"));
        }
    }

    #[test]
    fn percent_encoding_is_undone_strictly() {
        for (text, decoded) in [
            ("caf%C3%A9+1", Some("café+1")),
            ("..%2f..%2Fetc", Some("../../etc")),
            ("%00", Some("\0")),
            ("", Some("")),
            ("%", None),
            ("a%", None),
            ("a%4", None),
            ("%zz", None),
            ("%+1", None),
            ("%é", None),
            ("%ff", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text}");
        }
    }

    #[tokio::test]
    async fn a_bad_parameter_is_named() {
        for (text, field) in [
            ("limit=0", "limit"),
            ("limit=501", "limit"),
            ("limit=", "limit"),
            ("limit=+1", "limit"),
            ("limit=1e2", "limit"),
            ("limit=1&limit=1", "limit"),
            ("limit=%ff", "limit"),
            ("limit=%z1", "limit"),
            ("limt=1", "limt"),
            ("%ff=1", "query"),
        ] {
            let limit = query(text).await.and_then(|query| query.only(&["limit"])).and_then(|query| query.limit());
            let problem = limit.expect_err(text);
            assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(field)), "{text}");
        }
        assert_eq!(query("limit=500&").await.and_then(|query| query.limit()).expect("valid"), 500);
        assert_eq!(query("").await.and_then(|query| query.limit()).expect("valid"), 50);
    }
}
