//! `/v1/freezes/{freeze_id}` and an account's freezes.

use axum::{extract::State, http::StatusCode, response::Response};
use ledger_core::{EventType, Freeze, TransactionId};
use projector::freezes::{self, Status};
use serde_json::{Value, json};

use crate::{
    accounts::Page,
    body,
    cursor::Cursor,
    problem::Problem,
    request::{self, Path, Query},
    service::Service,
};

/// `GET /v1/freezes/{freeze_id}`.
pub(crate) async fn read(State(service): State<Service>, path: Path, query: Query) -> Result<Response, Problem> {
    query.only(&[])?;
    let text = path.get("freeze_id");
    let not_found = || Problem::unknown_id("freeze_not_found", "freeze_id", text);
    let uuid = body::uuid(text).ok_or_else(|| Problem::invalid("freeze_id", "must be a freeze's transaction_id"))?;
    let id = TransactionId::from_uuid(uuid).ok_or_else(not_found)?;
    service.catch_own_writes(id.locate().0).await?;
    let Some(freeze) = freezes::find(&service.database, id).await? else {
        // That there is none only the log can say.
        let event = service.ledger.transaction(id).await?;
        let is_behind = event.is_some_and(|event| event.event_type == EventType::Frozen);
        return Err(if is_behind { Problem::freeze_behind(id) } else { not_found() });
    };
    Ok(request::json(StatusCode::OK, document(&freeze).to_string()))
}

/// `GET /v1/accounts/{user_id}/{credit_type}/freezes`: newest first.
pub(crate) async fn of_account(State(service): State<Service>, path: Path, query: Query) -> Result<Response, Problem> {
    let query = query.only(&["status", "limit", "cursor"])?;
    let account = path.account()?;
    let status = match query.get("status") {
        None => None,
        Some("open") => Some(Status::Open),
        Some("settled") => Some(Status::Settled),
        Some(_) => return Err(Problem::invalid("status", "must be open or settled")),
    };
    let limit = query.limit()?;
    let before = Cursor::of_query(&query, account.partition())?;
    service.catch_own_writes(account.partition()).await?;
    let (found, next) = freezes::of_account(&service.database, &account, status, before, limit).await?;
    if found.is_empty() && before.is_none() && service.ledger.newest(&account).await?.is_none() {
        return Err(Problem::account_not_found(account.user_id(), account.credit_type()));
    }
    let items: Vec<_> = found.iter().map(document).collect();
    let page = Page { items, next_cursor: next.map(|position| Cursor::new(account.partition(), position)) };
    Ok(request::json(StatusCode::OK, serde_json::to_string(&page).expect("freezes are JSON")))
}

fn document(freeze: &Freeze) -> Value {
    json!({
        "freeze_id": freeze.freeze_id,
        "account_id": freeze.account.id(),
        "user_id": **freeze.account.user_id(),
        "credit_type": **freeze.account.credit_type(),
        "amount": freeze.amount,
        "remaining": freeze.remaining,
        "captured": freeze.captured,
        "released": freeze.released,
        "status": freeze.status(),
        "expires_at": freeze.expires_at,
        "business_code": **freeze.key.code(),
        "business_id": **freeze.key.id(),
        "created_at": freeze.created_at,
    })
}
