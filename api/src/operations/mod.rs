//! `/v1/operations`: what became of the commands that a caller grouped under one id.

mod compensate;
mod flow;

pub(crate) use compensate::compensate;
pub(crate) use flow::{open, step};

use std::collections::HashSet;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::Utc;
use ledger_core::{Timestamp, json::Transaction};
use ledger_store::{
    operations::{Compensation, Operation},
    refusals::Refusal,
};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

use crate::{
    access::{Caller, Scope},
    audit::{Outcome, about::Did},
    body,
    problem::Problem,
    request::{self, Path, Query},
    service::Service,
};

/// Transactions of one answer; an operation may have more, and their number is told.
const TRANSACTIONS_MAX: usize = 1_000;

/// `GET /v1/operations/{operation_id}`.
pub(crate) async fn read(
    State(service): State<Service>,
    caller: Caller,
    path: Path,
    query: Query,
) -> Result<Response, Problem> {
    query.only(&[])?;
    let operation = known(&service, id(&path)?).await?;
    Ok(request::json(StatusCode::OK, document(&operation, &caller)))
}

/// The operation that the path names.
fn id(path: &Path) -> Result<Uuid, Problem> {
    let text = path.get("operation_id");
    body::uuid(text).ok_or_else(|| Problem::invalid("operation_id", "must be an operation's id: a UUID"))
}

/// An operation of which something is known.
async fn known(service: &Service, id: Uuid) -> Result<Operation, Problem> {
    let operation = service.ledger.operation(id).await?;
    if operation.is_unknown() {
        return Err(Problem::unknown_id("operation_not_found", "operation_id", &id.to_string()));
    }
    Ok(operation)
}

/// An answer, or a refusal, from which the audit knows what was asked for.
fn told(outcome: Result<Response, Problem>, details: Map<String, Value>) -> Response {
    let mut response = outcome.unwrap_or_else(IntoResponse::into_response);
    response.extensions_mut().insert(Did { details: Some(Box::new(details)), ..Did::of(Outcome::Done) });
    response
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Completed,
    Failed,
    InProgress,
    Compensated,
}

/// A flow says by its steps how far it is. Without one an operation failed when a command of it was refused and did not
/// succeed later under the same key.
fn status(operation: &Operation, flow: Option<&flow::Flow<'_>>) -> Status {
    if operation.compensation.is_some() {
        return Status::Compensated;
    }
    if let Some(flow) = flow {
        return flow.status();
    }
    let keys = operation.refusals.iter();
    let keys = keys.map(|refusal| (&*refusal.business_code, &*refusal.business_id, refusal.account_id));
    let mut refused: HashSet<_> = keys.collect();
    // There may be very many events: each is looked at once.
    for event in &operation.events {
        if refused.is_empty() {
            break;
        }
        let (code, id) = (&**event.key.code(), &**event.key.id());
        // A refusal without an account goes by its key alone.
        for account in [None, Some(event.account.id().uuid())] {
            refused.remove(&(code, id, account));
        }
    }
    if refused.is_empty() { Status::Completed } else { Status::Failed }
}

#[derive(Serialize)]
struct Document<'a> {
    operation_id: Uuid,
    status: Status,
    /// Since when it has been going on, while it is.
    elapsed_seconds: Option<f64>,
    started_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
    name: Option<&'a str>,
    steps: Vec<flow::Step<'a>>,
    transactions: Vec<Transaction<'a>>,
    transactions_total: usize,
    refusals: Vec<RefusalDocument<'a>>,
    compensation: Option<CompensationDocument<'a>>,
}

/// A refusal as it is answered.
#[derive(Serialize)]
pub(crate) struct RefusalDocument<'a> {
    #[serde(rename = "type")]
    command: &'a str,
    code: &'a str,
    message: &'a str,
    figures: Value,
    user_id: Option<&'a str>,
    credit_type: Option<&'a str>,
    amount: Option<u64>,
    related_id: Option<Uuid>,
    business_code: &'a str,
    business_id: &'a str,
    operation_id: Option<Uuid>,
    request_id: &'a str,
    actor: &'a str,
    refused_at: Timestamp,
}

impl<'a> From<&'a Refusal> for RefusalDocument<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        Self {
            command: &refusal.command,
            code: &refusal.code,
            message: &refusal.message,
            // Figures that are no JSON can only come from tampering; they are shown as they are.
            figures: serde_json::from_str(&refusal.figures).unwrap_or_else(|_| refusal.figures.clone().into()),
            user_id: refusal.user_id.as_deref(),
            credit_type: refusal.credit_type.as_deref(),
            amount: refusal.amount,
            related_id: refusal.related_id,
            business_code: &refusal.business_code,
            business_id: &refusal.business_id,
            operation_id: refusal.operation_id,
            request_id: &refusal.request_id,
            actor: &refusal.actor,
            refused_at: refusal.refused_at.0,
        }
    }
}

#[derive(Serialize)]
struct CompensationDocument<'a> {
    compensated_at: Timestamp,
    reason: &'a str,
    actor: &'a str,
    request_id: &'a str,
}

impl<'a> From<&'a Compensation> for CompensationDocument<'a> {
    fn from(compensation: &'a Compensation) -> Self {
        Self {
            compensated_at: compensation.compensated_at.0,
            reason: &compensation.reason,
            actor: &compensation.actor,
            request_id: &compensation.request_id,
        }
    }
}

/// The operation as JSON. Who may not read is told how far it is, but not its transactions and refusals.
fn document(operation: &Operation, caller: &Caller) -> String {
    let flow = flow::Flow::of(operation);
    let status = status(operation, flow.as_ref());
    let events = operation.events.iter().map(|event| event.recorded_at);
    let refusals = operation.refusals.iter().map(|refusal| refusal.refused_at.0);
    let records = operation.records.iter().map(|record| record.recorded_at.0);
    let compensated = operation.compensation.iter().map(|compensation| compensation.compensated_at.0);
    let times: Vec<_> = events.chain(refusals).chain(records).chain(compensated).collect();
    let started_at = times.iter().min().copied();
    let elapsed = || started_at.map(|since| seconds_between(since.micros(), Utc::now().timestamp_micros()));
    let may_read = caller.require(Scope::Read).is_ok();
    let (transactions, refusals) =
        if may_read { (&*operation.events, &*operation.refusals) } else { Default::default() };
    let document = Document {
        operation_id: operation.id,
        status,
        elapsed_seconds: (status == Status::InProgress).then(elapsed).flatten(),
        started_at,
        updated_at: times.iter().max().copied(),
        name: flow.as_ref().map(|flow| flow.name),
        steps: flow.map(|flow| flow.steps).unwrap_or_default(),
        transactions: transactions.iter().take(TRANSACTIONS_MAX).map(Transaction::from).collect(),
        transactions_total: operation.events.len(),
        refusals: refusals.iter().map(Into::into).collect(),
        compensation: operation.compensation.as_ref().map(Into::into),
    };
    serde_json::to_string(&document).expect("an operation is JSON")
}

#[expect(clippy::cast_precision_loss, reason = "seconds with a fraction are a float")]
fn seconds_between(from_micros: i64, to_micros: i64) -> f64 {
    to_micros.saturating_sub(from_micros).max(0) as f64 / 1e6
}

/// A stored text as the JSON that it came as; as a JSON string if it was tampered with.
fn verbatim(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned())
        .unwrap_or_else(|_| serde_json::value::to_raw_value(text).expect("a text is JSON"))
}
