//! `GET /v1/audit`: newest first.

use axum::{extract::State, http::StatusCode, response::Response};
use chrono::DateTime;
use foldhash::HashMap;
use ledger_core::{Account, AccountState, Event, Partition, Position, TransactionId};
use serde_json::{Value, json};
use uuid::Uuid;

use super::table::{self, Row, Wanted};
use crate::{
    inconsistencies::{cursor, read_cursor},
    problem::Problem,
    request::{self, Query},
    service::Service,
};

pub(crate) async fn search(State(service): State<Service>, query: Query) -> Result<Response, Problem> {
    let names = ["actor", "user_id", "credit_type", "action", "request_id", "from", "to", "limit", "cursor"];
    let query = query.only(&names)?;
    let account = match (query.get("user_id"), query.get("credit_type")) {
        (Some(user_id), Some(credit_type)) => Some(Account::new(user_id, credit_type)?),
        (None, None) => None,
        (Some(_), None) => return Err(Problem::invalid("credit_type", "is required with user_id")),
        (None, Some(_)) => return Err(Problem::invalid("user_id", "is required with credit_type")),
    };
    let limit = query.limit()?;
    let to = time(&query, "to")?.unwrap_or(Uuid::max());
    let wanted = Wanted {
        account,
        actor: text(&query, "actor")?,
        action: text(&query, "action")?,
        request_id: text(&query, "request_id")?,
        from: time(&query, "from")?.unwrap_or(Uuid::nil()),
        before: read_cursor(&query)?.unwrap_or(Uuid::max()).min(to),
        limit: i64::try_from(limit).unwrap_or(i64::MAX),
    };
    let (mut rows, end) = table::search(&service.database, &wanted).await?;
    let is_full = rows.len() >= limit;
    if let Some(end) = end {
        // What is below may not be all that there is: the next page has it.
        rows.retain(|row| row.id >= end);
    }
    let next = if is_full && rows.len() >= limit { rows.last().map(|row| row.id) } else { end };
    let states = States::read(&service, &rows).await?;
    let items: Vec<_> = rows.iter().map(|row| document(row, &states)).collect();
    let page = json!({ "items": items, "next_cursor": next.map(cursor) });
    Ok(request::json(StatusCode::OK, page.to_string()))
}

/// A text that a row may have: PostgreSQL has NUL in none, and cannot be asked for it.
fn text(query: &Query, name: &'static str) -> Result<Option<String>, Problem> {
    match query.get(name) {
        Some(text) if text.contains('\0') => Err(Problem::invalid(name, "must not contain NUL")),
        text => Ok(text.map(str::to_owned)),
    }
}

/// The first id of a time, to the millisecond.
fn time(query: &Query, name: &'static str) -> Result<Option<Uuid>, Problem> {
    let Some(text) = query.get(name) else { return Ok(None) };
    // In a query a plus is a space.
    let at = DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
        .map_err(|_| Problem::invalid(name, "must be a time such as 2026-11-20T12:00:00Z (RFC 3339)"))?;
    Ok(Some(table::id_at(at.timestamp_millis(), [0; 10])))
}

/// What accounts were before and after some transactions: the events say so.
struct States(HashMap<(Partition, Position), Event>);

impl States {
    async fn read(service: &Service, rows: &[Row]) -> Result<Self, Problem> {
        let place = |id: TransactionId| {
            let (partition, _, position) = id.locate();
            (partition, position)
        };
        let places: Vec<_> = rows.iter().filter_map(Row::transaction).map(place).collect();
        let mut events = HashMap::default();
        // A damaged event has no state to tell; the others have.
        for event in service.database.rows_at(&places).await?.into_iter().flatten() {
            events.insert((event.partition, event.position), event);
        }
        let before: Vec<_> = events
            .values()
            .map(|event| (event.partition, event.previous_position))
            .filter(|place| place.1 > Position::ZERO && !events.contains_key(place))
            .collect();
        for event in service.database.rows_at(&before).await?.into_iter().flatten() {
            events.insert((event.partition, event.position), event);
        }
        Ok(Self(events))
    }

    fn of(&self, id: TransactionId) -> (Value, Value) {
        let (partition, _, position) = id.locate();
        let Some(event) = self.0.get(&(partition, position)).filter(|event| event.transaction_id == id) else {
            return (Value::Null, Value::Null);
        };
        let before = self.0.get(&(partition, event.previous_position));
        (before.map_or(Value::Null, |before| state(&before.after)), state(&event.after))
    }
}

fn state(state: &AccountState) -> Value {
    json!({
        "balance": state.balance,
        "frozen": state.frozen,
        "available": state.available(),
        "version": state.version,
        "status": if state.locked { "locked" } else { "active" },
    })
}

fn document(row: &Row, states: &States) -> Value {
    let (before, after) = row.transaction().map_or((Value::Null, Value::Null), |id| states.of(id));
    let details = row.details.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({
        "audit_id": row.id,
        "recorded_at": row.at,
        "action": row.action,
        "outcome": row.outcome,
        "actor": row.actor,
        "address": row.address,
        "request_id": row.request_id,
        "user_id": row.user_id,
        "credit_type": row.credit_type,
        "transaction_id": row.transaction_id,
        "details": details,
        "before": before,
        "after": after,
    })
}
