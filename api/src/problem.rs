//! Every error that a caller sees: RFC 9457, with the contract's members.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use ledger_core::{Account, InvalidField, Rejection, TransactionId};
use ledger_store::{CommandError, StoreError, Unavailable, error::chain};
use projector::balances::ReadError;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{body::WHOLE, limits::whole_seconds};

/// How long a caller is asked to wait before it tries again, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// An error on its way out. The request's id is added when it is written.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    members: Box<Map<String, Value>>,
    headers: Option<Box<HeaderMap>>,
    /// After how many seconds it is worth trying again, where that is known better than by [`RETRY_AFTER_SECONDS`].
    retry_after: Option<u64>,
    /// Whom the refused command was about.
    account: Option<Box<Account>>,
    /// It says nothing of other requests: the database as a whole works.
    is_local: bool,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            members: Box::default(),
            headers: None,
            retry_after: None,
            account: None,
            is_local: false,
        }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// A field that cannot be taken; `reason` goes on after the field's name.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl AsRef<str>) -> Self {
        let field = field.into();
        let detail = format!("{field} {}", reason.as_ref());
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail).with("field", field)
    }

    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// The account was never credited, or there is none by that name.
    pub(crate) fn account_not_found(user_id: &str, credit_type: &str) -> Self {
        Self::not_found("account_not_found", "the account was never credited; a credit opens it")
            .with("field", "user_id")
            .with("user_id", user_id)
            .with("credit_type", credit_type)
    }

    /// An id in `field` that names nothing here.
    pub(crate) fn unknown_id(code: &'static str, field: &'static str, id: &str) -> Self {
        Self::not_found(code, format!("{field} {id} names nothing here")).with("field", field).with(field, id)
    }

    /// An inconsistency that somebody resolved with other words, which stand.
    pub(crate) fn already_resolved(inconsistency: Value) -> Self {
        let detail = "the inconsistency was resolved with another note, which stands";
        Self::new(StatusCode::CONFLICT, "already_resolved", detail)
            .with("field", "note")
            .with("inconsistency", inconsistency)
    }

    pub(crate) fn no_such_route() -> Self {
        let detail = "there is nothing at this path; /openapi.json lists what there is";
        Self::not_found("not_found", detail).with("field", "path")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
    }

    /// Names the methods that the path takes.
    pub(crate) fn allowing(self, allow: HeaderValue) -> Self {
        self.with_headers(HeaderMap::from_iter([(header::ALLOW, allow)]))
    }

    /// Says whom the refused command was about.
    pub(crate) fn about(mut self, account: Option<&Account>) -> Self {
        self.account = account.cloned().map(Box::new);
        self
    }

    pub(crate) fn account(&self) -> Option<&Account> {
        self.account.as_deref()
    }

    /// Whether it is for what the ledger holds, or for who asks, that this is refused: the request itself was sound.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.status.as_u16(), 403 | 404 | 409 | 412 | 422 | 423)
    }

    /// Whether something that was named is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Adds headers to the answer.
    pub(crate) fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers.get_or_insert_default().extend(headers);
        self
    }

    /// Nobody knows who this is.
    pub(crate) fn unauthenticated(detail: &str) -> Self {
        let challenge = HeaderMap::from_iter([(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))]);
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
            .with("field", "Authorization")
            .with_headers(challenge)
    }

    /// The key is sound and not made for this.
    pub(crate) fn scope_missing(scope: &str) -> Self {
        let detail = format!("the API key has not the scope {scope}; `api keys create --scopes …` makes one that has");
        Self::new(StatusCode::FORBIDDEN, "scope_missing", detail).with("scope", scope)
    }

    /// Too many commands; `wait` is how long until they would pass.
    pub(crate) fn rate_limited(detail: impl Into<String>, wait: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).again_after(wait)
    }

    fn again_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(whole_seconds(wait).max(1));
        self
    }

    pub(crate) fn body_too_large(bytes_max: usize) -> Self {
        let detail = format!("the body is larger than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).with("bytes_max", bytes_max)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        let detail = "the body must be JSON: send Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail).with("field", "Content-Type")
    }

    pub(crate) fn read_model_behind(min_version: u64, version: u64) -> Self {
        let detail = format!("the read model stands at version {version}; ask again, or with consistency=strong");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "read_model_behind", detail)
            .with("min_version", min_version)
            .with("version", version)
    }

    /// The freeze is in the log, and the read model has not come to it.
    pub(crate) fn freeze_behind(id: TransactionId) -> Self {
        let detail = "the read model has not come to the freeze yet; ask again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "read_model_behind", detail).with("freeze_id", id.to_string())
    }

    pub(crate) fn overloaded() -> Self {
        let detail = "too much is waiting; nothing was done";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail)
    }

    pub(crate) fn store_unavailable() -> Self {
        let detail = "the database did not answer; nothing was done, or the same business key finds out";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail)
    }

    /// The database answers, but not with what must be there.
    fn store_damaged() -> Self {
        let detail = "what this needs is damaged in the database; nothing was done, or the same business key finds out: \
                      ask the operator to run replay-tool verify";
        Self { is_local: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail) }
    }

    /// The same, told at once: the database failed too often a moment ago to be asked again before `wait` is over.
    pub(crate) fn store_resting(wait: Duration) -> Self {
        Self::store_unavailable().again_after(wait)
    }

    /// A defect of the service; the log has the rest.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the service failed; its log says why")
    }

    /// An atomic batch in which `index` is the first command that is refused.
    pub(crate) fn batch_rejected(index: usize, problem: &Self, request_id: &str) -> Self {
        let detail = format!("command {index} is refused, so nothing of the batch was done");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "batch_rejected", detail)
            .with("index", index)
            .with("problem", problem.document(request_id))
    }

    /// An operation that cannot be reversed as a whole: what is in the way, transaction by transaction.
    pub(crate) fn compensation_refused(problems: impl IntoIterator<Item = Value>) -> Self {
        let detail =
            "not all of the operation can be reversed, so nothing of it was; problems names what is in the way";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "compensation_refused", detail)
            .with("problems", problems.into_iter().collect::<Vec<_>>())
    }

    /// Nothing more happens under an operation that was reversed.
    pub(crate) fn operation_compensated(operation_id: Uuid) -> Self {
        Self::rejected(&Rejection::OperationCompensated { operation_id }, None, None)
    }

    /// A flow under this id was opened with another name or other steps.
    pub(crate) fn operation_conflict(operation_id: Uuid) -> Self {
        let detail = "a flow with another name or other steps was opened under this operation_id; choose another id";
        Self::new(StatusCode::CONFLICT, "idempotency_conflict", detail)
            .with("field", "operation_id")
            .with("operation_id", operation_id.to_string())
    }

    pub(crate) fn step_not_found(name: &str, names: &str) -> Self {
        Self::not_found("step_not_found", format!("the flow has no step {name}; there are {names}"))
            .with("field", "name")
            .with("name", name)
    }

    /// A step that is completed stays so.
    pub(crate) fn step_conflict(name: &str) -> Self {
        let detail = format!("the step {name} is completed already, with other data or for another status");
        Self::new(StatusCode::CONFLICT, "step_conflict", detail).with("field", "status").with("name", name)
    }

    /// The same problem of a command inside a batch: its field is named from the top.
    pub(crate) fn inside(mut self, index: usize) -> Self {
        let field = match self.field() {
            Some(WHOLE) | None => format!("commands[{index}]"),
            Some(field) => format!("commands[{index}].{field}"),
        };
        self.members.insert("field".to_owned(), field.into());
        self
    }

    /// The field that is at fault, where there is one.
    pub(crate) fn field(&self) -> Option<&str> {
        self.members.get("field").and_then(Value::as_str)
    }

    pub(crate) const fn code(&self) -> &'static str {
        self.code
    }

    /// The refusal of a command, with what the caller named.
    pub(crate) fn rejected(rejection: &Rejection, user_id: Option<&str>, credit_type: Option<&str>) -> Self {
        let status = match rejection {
            Rejection::IdempotencyConflict { .. } | Rejection::OperationCompensated { .. } => StatusCode::CONFLICT,
            Rejection::FreezeNotFound { .. } | Rejection::DebitNotFound { .. } | Rejection::AccountNotFound => {
                StatusCode::NOT_FOUND
            }
            Rejection::AccountMismatch { .. } | Rejection::ExpiryNotInFuture => StatusCode::BAD_REQUEST,
            Rejection::VersionConflict { .. } => StatusCode::PRECONDITION_FAILED,
            Rejection::AccountLocked => StatusCode::LOCKED,
            Rejection::InsufficientFrozen { .. }
            | Rejection::RefundExceedsDebit { .. }
            | Rejection::InsufficientBalance { .. }
            | Rejection::BalanceLimitExceeded { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let mut problem = Self::new(status, rejection.code(), rejection.to_string());
        match rejection {
            Rejection::AccountNotFound => {
                return Self::account_not_found(user_id.unwrap_or_default(), credit_type.unwrap_or_default());
            }
            Rejection::FreezeNotFound { .. } => problem = problem.with("field", "freeze_id"),
            Rejection::DebitNotFound { .. } => problem = problem.with("field", "debit_id"),
            Rejection::OperationCompensated { .. } => problem = problem.with("field", "operation_id"),
            _ => {}
        }
        problem.members.extend(rejection.figures());
        problem
    }

    /// What became of a command that has no event.
    pub(crate) fn command(error: &CommandError, user_id: Option<&str>, credit_type: Option<&str>) -> Self {
        match error {
            CommandError::Rejected(rejection) => Self::rejected(rejection, user_id, credit_type),
            CommandError::Unavailable(unavailable) => unavailable.clone().into(),
        }
    }

    /// After what time it is worth trying again, where that is known.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.retry_after.map(Duration::from_secs)
    }

    /// Whether the caller saw a version that the account has not come to.
    pub(crate) fn is_ahead(&self) -> bool {
        let version = |name: &str| self.members.get(name).and_then(Value::as_u64);
        version("expected") > version("current")
    }

    /// Whether the database did not answer.
    pub(crate) fn is_store_away(&self) -> bool {
        self.code == "store_unavailable" && !self.is_local
    }

    /// Whether it is the service that failed, not the caller.
    pub(crate) fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    fn retryable(&self) -> bool {
        matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
    }

    /// The JSON that tells it.
    pub(crate) fn document(&self, request_id: &str) -> Value {
        let mut document = json!({
            "type": format!("/problems/{}", self.code),
            "title": title(self.code),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
            "retryable": self.retryable(),
        });
        if let Value::Object(object) = &mut document {
            object.extend((*self.members).clone());
        }
        document
    }

    /// The answer itself.
    pub(crate) fn respond(&self, request_id: &str) -> Response {
        let mut response = Response::new(Body::from(self.document(request_id).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.retryable() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after.unwrap_or(RETRY_AFTER_SECONDS)));
        }
        if let Some(more) = &self.headers {
            headers.extend((**more).clone());
        }
        response
    }
}

/// `insufficient_balance` → `Insufficient balance`.
fn title(code: &str) -> String {
    let mut title = code.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

/// The answer is left to the outermost layer, which knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InvalidField> for Problem {
    fn from(invalid: InvalidField) -> Self {
        Self::invalid(invalid.field, invalid.reason)
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        match unavailable {
            Unavailable::Overloaded => Self::overloaded(),
            Unavailable::Store | Unavailable::Stopping => Self::store_unavailable(),
            Unavailable::Damaged => Self::store_damaged(),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable => Self::store_unavailable(),
            ReadError::Damaged(damage) => StoreError::Inconsistent(damage).into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if let StoreError::Damaged(_) | StoreError::Inconsistent(_) = error {
            // Asking again does not help.
            tracing::error!(error = %chain(&error), "what is stored cannot be read: run replay-tool verify");
            return Self::internal();
        }
        tracing::warn!(error = %chain(&error), "a read failed");
        Self::store_unavailable()
    }
}
