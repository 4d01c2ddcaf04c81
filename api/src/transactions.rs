//! `/v1/transactions`: by id, and by business key.

use axum::{extract::State, http::StatusCode, response::Response};
use ledger_core::{Account, BusinessKey, Event, TransactionId, json::Transaction};
use serde::Serialize;

use crate::{
    body::{self, missing},
    operations::RefusalDocument,
    problem::Problem,
    request::{self, Path, Query},
    service::Service,
};

/// Transactions of one answer: a key may be bound in every account there is.
const TRANSACTIONS_MAX: usize = 1_000;

#[derive(Serialize)]
struct Items<'a> {
    items: Vec<Transaction<'a>>,
    /// Of all accounts' there may be more than are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    has_more: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refusals: Vec<RefusalDocument<'a>>,
}

/// `GET /v1/transactions/{transaction_id}`.
pub(crate) async fn read(State(service): State<Service>, path: Path, query: Query) -> Result<Response, Problem> {
    query.only(&[])?;
    let text = path.get("transaction_id");
    let not_found = || Problem::unknown_id("transaction_not_found", "transaction_id", text);
    let uuid = body::uuid(text).ok_or_else(|| Problem::invalid("transaction_id", "must be a transaction's id"))?;
    let id = TransactionId::from_uuid(uuid).ok_or_else(not_found)?;
    let event = service.ledger.transaction(id).await?.ok_or_else(not_found)?;
    Ok(request::json(StatusCode::OK, serde_json::to_string(&Transaction::from(&event)).expect("an event is JSON")))
}

/// `GET /v1/transactions?business_code=&business_id=`: of one account exact, of all as far as is known.
pub(crate) async fn find(State(service): State<Service>, query: Query) -> Result<Response, Problem> {
    let query = query.only(&["business_code", "business_id", "user_id", "credit_type"])?;
    let code = query.get("business_code").ok_or_else(|| missing("business_code"))?;
    let id = query.get("business_id").ok_or_else(|| missing("business_id"))?;
    // The ledger's own keys may be looked up, too.
    let key = BusinessKey::reserved(code, id)?;
    let (mut has_more, mut refusals) = (None, Vec::new());
    let events: Vec<Event> = match (query.get("user_id"), query.get("credit_type")) {
        (Some(user_id), Some(credit_type)) => {
            let account = Account::new(user_id, credit_type)?;
            let found = service.ledger.find(&account, &key).await?;
            refusals = service.ledger.refusals(&key, Some(&account)).await?;
            found.into_iter().map(|event| (*event).clone()).collect()
        }
        (None, None) => {
            let (found, is_part) = service.ledger.find_all(&key, TRANSACTIONS_MAX).await?;
            has_more = Some(is_part);
            found
        }
        (Some(_), None) => return Err(Problem::invalid("credit_type", "is required with user_id")),
        (None, Some(_)) => return Err(Problem::invalid("user_id", "is required with credit_type")),
    };
    let items = Items {
        items: events.iter().map(Transaction::from).collect(),
        has_more,
        refusals: refusals.iter().map(Into::into).collect(),
    };
    Ok(request::json(StatusCode::OK, serde_json::to_string(&items).expect("events are JSON")))
}
