//! `/v1/inconsistencies`: what was found that cannot be, and what people say of it.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use ledger_core::{Account, Action, BusinessKey, Command, Partition, Provenance, text};
use projector::inconsistencies::{self, Inconsistency, Status};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    audit::{Outcome, about::Did},
    body, commands, content,
    problem::Problem,
    request::{self, Origin, Path, Query},
    service::Service,
};

/// The outcome of an inconsistency that locked its account.
const LOCKED: &str = "locked";

#[derive(Serialize)]
struct Page {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

/// `GET /v1/inconsistencies`: newest first.
pub(crate) async fn list(State(service): State<Service>, query: Query) -> Result<Response, Problem> {
    let query = query.only(&["status", "limit", "cursor"])?;
    let status = match query.get("status") {
        None => None,
        Some("open") => Some(Status::Open),
        Some("resolved") => Some(Status::Resolved),
        Some(_) => return Err(Problem::invalid("status", "must be open or resolved")),
    };
    let limit = query.limit()?;
    let before = read_cursor(&query)?;
    let mut found = inconsistencies::list(&service.database, status, before, limit + 1).await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| has_more).map(|last| cursor(last.id));
    let page = Page { items: found.iter().map(document).collect(), next_cursor };
    Ok(request::json(StatusCode::OK, serde_json::to_string(&page).expect("inconsistencies are JSON")))
}

/// A place in a list in the order of ids.
pub(crate) fn cursor(id: Uuid) -> String {
    format!("i{}", id.simple())
}

/// The query's `cursor`, in its one spelling.
pub(crate) fn read_cursor(query: &Query) -> Result<Option<Uuid>, Problem> {
    let Some(given) = query.get("cursor") else { return Ok(None) };
    let id = given.strip_prefix('i').and_then(|digits| Uuid::try_parse(digits).ok());
    id.filter(|id| cursor(*id) == given)
        .map(Some)
        .ok_or_else(|| Problem::invalid("cursor", "must be the next_cursor of an earlier answer to the same request"))
}

/// `POST /v1/inconsistencies/{inconsistency_id}/resolve`: a person's word, which stands.
pub(crate) async fn resolve(
    State(service): State<Service>,
    origin: Origin,
    path: Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let given = path.get("inconsistency_id");
    let id = body::uuid(given).ok_or_else(|| Problem::invalid("inconsistency_id", "must be an inconsistency's id"))?;
    let content = content::read(&service.bodies, &headers, body, commands::COMMAND_BYTES_MAX).await?;
    let fields = body::read(&content, &["note", "unlock"])?;
    let note = fields.required_string("note")?;
    if note.trim().is_empty() {
        return Err(Problem::invalid("note", "must say what was found out"));
    }
    let note = text::description(&note).map_err(|invalid| Problem::invalid("note", invalid.reason))?;
    let unlock = fields.boolean("unlock")?.unwrap_or(false);
    drop(content);

    let unknown = || Problem::unknown_id("inconsistency_not_found", "inconsistency_id", given);
    let found = inconsistencies::find(&service.database, id).await?.ok_or_else(unknown)?;
    let account = match (&found.user_id, &found.credit_type, found.outcome.as_deref()) {
        (Some(user_id), Some(credit_type), Some(LOCKED)) => Account::new(user_id, credit_type).ok(),
        _ => None,
    };
    if unlock && account.is_none() {
        return Err(Problem::invalid("unlock", "is for an inconsistency whose outcome is locked"));
    }
    let partition = u8::try_from(found.partition).ok().and_then(Partition::new).ok_or_else(Problem::internal)?;
    inconsistencies::resolve(&service.database, partition, id, &origin.caller.actor, &note).await?;
    let resolved = inconsistencies::find(&service.database, id).await?.ok_or_else(unknown)?;
    if resolved.note.as_deref() != Some(&*note) {
        return Err(Problem::already_resolved(document(&resolved)));
    }
    let (about, origin_note) = (account.clone(), note.clone());
    let mut unlocked = None;
    if let (true, Some(account)) = (unlock, account) {
        let named = commands::Named::of_account(&account);
        let command = unlocking(account, id, &origin, note);
        unlocked = Some(service.ledger.execute(command).await.map_err(|error| named.problem(&error))?);
    }
    let mut response = request::json(StatusCode::OK, document(&resolved).to_string());
    let details = serde_json::Map::from_iter([
        ("inconsistency_id".to_owned(), json!(id)),
        ("note".to_owned(), json!(&*origin_note)),
        ("unlock".to_owned(), json!(unlock)),
    ]);
    let outcome = unlocked.map_or(Outcome::Done, |recorded| {
        if recorded.replayed { Outcome::Replayed(recorded.event) } else { Outcome::Recorded(recorded.event) }
    });
    response.extensions_mut().insert(Did { outcome, account: about, details: Some(Box::new(details)) });
    Ok(response)
}

/// The command that takes the lock back, once.
fn unlocking(account: Account, id: Uuid, origin: &Origin, note: std::sync::Arc<str>) -> Command {
    Command {
        action: Action::Unlock { account },
        key: BusinessKey::reserved("system.guard", &format!("{id}.unlock")).expect("a short code and an id"),
        expected_version: None,
        provenance: Provenance {
            operation_id: None,
            request_id: origin.id.0.clone(),
            actor: origin.caller.actor.clone(),
            description: Some(note),
            metadata: None,
        },
    }
}

fn document(inconsistency: &Inconsistency) -> Value {
    json!({
        "inconsistency_id": inconsistency.id,
        "kind": inconsistency.kind,
        "read_model": inconsistency.projection,
        "partition": inconsistency.partition,
        "position": inconsistency.position,
        "user_id": inconsistency.user_id,
        "credit_type": inconsistency.credit_type,
        "expected": inconsistency.expected,
        "found": inconsistency.found,
        "size": inconsistency.size,
        "outcome": inconsistency.outcome,
        "found_at": inconsistency.found_at,
        "resolved_at": inconsistency.resolved_at,
        "resolved_by": inconsistency.resolved_by,
        "note": inconsistency.note,
    })
}
