//! `POST /v1/operations/{operation_id}/compensate`: the ledger reverses an operation by itself.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use chrono::Utc;
use ledger_core::{
    Action, Rejection, Timestamp,
    operation::{self, Reversal},
    text,
};
use ledger_store::{
    Unavailable,
    operations::{Asked, Compensated, Operation, REVERSALS_MAX},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{document, id, known, told};
use crate::{
    access::{Caller, Scope},
    body, commands, content,
    problem::Problem,
    request::{Origin, Path, json},
    service::Service,
};

/// How often an operation that goes on meanwhile is read again before the caller is asked to come back.
const ATTEMPTS: usize = 100;
/// Why, where the caller does not say.
const NO_REASON: &str = "compensation was asked for";

pub(crate) async fn compensate(
    service: State<Service>,
    origin: Origin,
    path: Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = id(&path)?;
    let asked = Asked {
        request_id: origin.id.0.clone(),
        actor: origin.caller.actor.clone(),
        reason: reason(&service, &headers, body).await?.into(),
        at: Timestamp::from_micros(Utc::now().timestamp_micros()).ok_or_else(Problem::internal)?,
    };
    let mut details =
        Map::from_iter([("operation_id".to_owned(), json!(id)), ("reason".to_owned(), json!(&*asked.reason))]);
    let outcome = reverse(&service, &origin.caller, id, &asked).await.map(|(operation, before)| {
        let reversals = operation.compensation.as_ref().map(|compensation| compensation.reversals);
        details.insert("transactions".to_owned(), json!(reversals));
        details.insert("before".to_owned(), json!(before));
        json(StatusCode::OK, document(&operation, &origin.caller))
    });
    Ok(told(outcome, details))
}

/// Reverses an operation, however it goes on meanwhile. Gives it as it is then, and whether it was reversed before.
async fn reverse(service: &Service, caller: &Caller, id: Uuid, asked: &Asked) -> Result<(Operation, bool), Problem> {
    for _ in 0..ATTEMPTS {
        let operation = known(service, id).await?;
        match attempt(service, caller, &operation, asked).await? {
            Compensated::Now(_) => return Ok((known(service, id).await?, false)),
            Compensated::Before => return Ok((known(service, id).await?, true)),
            Compensated::ReadAgain => {}
            Compensated::Refused(_) => return Err(Problem::internal()),
        }
    }
    Err(Unavailable::Overloaded.into())
}

/// What the caller says why; a body may be left out.
async fn reason(service: &Service, headers: &HeaderMap, body: Body) -> Result<String, Problem> {
    let empty = !headers.contains_key(header::CONTENT_TYPE) && axum::body::HttpBody::is_end_stream(&body);
    if empty {
        return Ok(NO_REASON.to_owned());
    }
    let content = content::read(&service.bodies, headers, body, commands::COMMAND_BYTES_MAX).await?;
    let fields = body::read(&content, &["reason"])?;
    let reason = fields.string("reason")?.filter(|reason| !reason.trim().is_empty());
    let reason = reason.map(|reason| text::description(&reason)).transpose();
    let reason = reason.map_err(|invalid| Problem::invalid("reason", invalid.reason))?;
    Ok(reason.map_or_else(|| NO_REASON.to_owned(), |reason| reason.to_string()))
}

/// One attempt on the operation as it was read. What is refused is a problem.
async fn attempt(
    service: &Service,
    caller: &Caller,
    operation: &Operation,
    asked: &Asked,
) -> Result<Compensated, Problem> {
    let reversals = operation::reversals(&operation.events);
    if operation.compensation.is_some() {
        // Nothing was recorded under it since: these are what it was reversed by.
        may_reverse(caller, reversals.as_deref().unwrap_or_default())?;
        return Ok(Compensated::Before);
    }
    let reversals = reversals.map_err(|irreversible| {
        Problem::compensation_refused(irreversible.iter().map(|irreversible| {
            json!({
                "transaction_id": irreversible.transaction_id,
                "code": "not_reversible",
                "detail": format!("a transaction of type {} cannot be reversed", irreversible.event_type.name()),
            })
        }))
    })?;
    if reversals.len() > REVERSALS_MAX {
        return Err(Problem::compensation_refused([json!({
            "code": "too_many_transactions",
            "detail": format!("more than {REVERSALS_MAX} transactions would have to be reversed at once"),
            "transactions": reversals.len(),
        })]));
    }
    may_reverse(caller, &reversals)?;
    match service.ledger.compensate(operation, &reversals, asked).await? {
        Compensated::Refused(refused) => {
            Err(Problem::compensation_refused(refused.iter().map(|(index, rejection)| {
                let reversal = &reversals[*index];
                let mut problem = problem_of(rejection);
                problem["transaction_id"] = json!(reversal.reversed);
                problem["user_id"] = json!(reversal.account.user_id());
                problem["credit_type"] = json!(reversal.account.credit_type());
                problem
            })))
        }
        compensated => Ok(compensated),
    }
}

/// Refuses a caller without the scope of one of the reversals. Where nothing is reversed any command's scope will do, as for
/// the opening of a flow.
fn may_reverse(caller: &Caller, reversals: &[Reversal]) -> Result<(), Problem> {
    reversals.iter().try_for_each(|reversal| {
        caller.require(match reversal.action {
            Action::Unfreeze { .. } => Scope::Freeze,
            Action::Refund { .. } => Scope::Refund,
            _ => Scope::Debit,
        })
    })
}

/// What is in the way of one reversal, with its figures.
fn problem_of(rejection: &Rejection) -> Value {
    let mut problem = rejection.figures();
    problem.insert("code".to_owned(), rejection.code().into());
    problem.insert("detail".to_owned(), rejection.to_string().into());
    Value::Object(problem)
}
