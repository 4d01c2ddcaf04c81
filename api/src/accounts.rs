//! `/v1/accounts/{user_id}/{credit_type}`: the account, its transactions, lock and unlock.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::DateTime;
use ledger_core::{
    Account, AccountId, Action, Balance, BusinessKey, Command, Event, EventType, Partition, Position, Provenance,
    Timestamp, json::Transaction, text,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    body, commands, content,
    cursor::Cursor,
    problem::Problem,
    request::{self, Origin, Path, Query, if_match},
    service::Service,
};

/// How long a read with `min_version` waits for the read model.
const READ_MODEL_PATIENCE: Duration = Duration::from_secs(2);
/// How often such a read looks when nothing in this process tells it of news: another process may run the projector.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// `GET …`: from the read model, from the newest event, or the past.
pub(crate) async fn read(
    State(service): State<Service>,
    path: Path,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.only(&["min_version", "consistency", "at", "at_version"])?;
    let account = path.account()?;
    let at = query.get("at").map(parse_time).transpose()?;
    let at_version = query.number("at_version", 0..=ledger_core::MAX_AMOUNT)?;
    let min_version = query.number("min_version", 0..=ledger_core::MAX_AMOUNT)?;
    let strong = match query.get("consistency") {
        None | Some("eventual") => false,
        Some("strong") => true,
        Some(_) => return Err(Problem::invalid("consistency", "must be strong or eventual")),
    };
    if at.is_some() && at_version.is_some() {
        return Err(Problem::invalid("at_version", "and at exclude each other"));
    }
    if (at.is_some() || at_version.is_some()) && (strong || min_version.is_some()) {
        let field = if strong { "consistency" } else { "min_version" };
        return Err(Problem::invalid(field, "speaks of the present: leave it out with at and at_version"));
    }
    let balance = if let Some(version) = at_version {
        past(&service, &account, service.ledger.at_version(&account, version).await?).await?
    } else if let Some(at) = at {
        let event = match at {
            Some(at) => service.ledger.at_time(&account, at).await?,
            None => None,
        };
        past(&service, &account, event).await?
    } else if strong {
        let newest = service.ledger.newest(&account).await?.ok_or_else(|| unknown(&account))?;
        after(&newest)
    } else {
        served(&service, &account, min_version.unwrap_or(0)).await?
    };
    if let (true, Some(min_version)) = (strong, min_version)
        && balance.state.version < min_version
    {
        return Err(Problem::read_model_behind(min_version, balance.state.version));
    }
    let etag = format!("\"{}\"", balance.state.version);
    let etag_value = HeaderValue::from_str(&etag).expect("a number in quotes");
    let mut response = if headers.get_all(header::IF_NONE_MATCH).iter().any(|known| names(known, &etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        request::json(StatusCode::OK, document(&balance))
    };
    response.headers_mut().insert(header::ETAG, etag_value);
    Ok(response)
}

/// Whether an `If-None-Match` names the tag; a weak one is as good as a strong one (RFC 9110 §13.1.2).
fn names(known: &HeaderValue, etag: &str) -> bool {
    let mut tags = known.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The time that `at` names; `None` is one before every ledger's first event.
fn parse_time(text: &str) -> Result<Option<Timestamp>, Problem> {
    // In a query a plus is a space, so `+02:00` may come as ` 02:00`.
    let text = text.replace(' ', "+");
    match DateTime::parse_from_rfc3339(&text) {
        Ok(_) => Ok(Timestamp::parse(&text)),
        Err(_) => Err(Problem::invalid("at", "must be a time such as 2026-11-20T12:00:00Z (RFC 3339)")),
    }
}

async fn past(service: &Service, account: &Account, event: Option<std::sync::Arc<Event>>) -> Result<Balance, Problem> {
    if let Some(event) = event {
        return Ok(after(&event));
    }
    // Never credited is another answer than not yet, or not any more.
    match service.ledger.newest(account).await? {
        None => Err(unknown(account)),
        Some(newest) => Err(Problem::not_found(
            "version_not_found",
            format!("the account has versions 1 to {}, and none at that point", newest.after.version),
        )),
    }
}

/// What this process remembers of the account, while nobody else has written. Otherwise the read model's row, or what
/// this process committed since: whoever wrote here reads what was written. An account that neither has is as its newest
/// event left it: that there is none only the log can say.
async fn served(service: &Service, account: &Account, min_version: u64) -> Result<Balance, Problem> {
    if let Some(balance) = service.ledger.fresh(account)
        && balance.state.version >= min_version
    {
        return Ok(balance);
    }
    let deadline = Instant::now() + READ_MODEL_PATIENCE;
    let mut progress = service.progress.clone();
    loop {
        progress.mark_unchanged();
        let row = service.balances.find(account).await?;
        let newest =
            [row, service.ledger.recent(account)].into_iter().flatten().max_by_key(|balance| balance.state.version);
        match newest {
            Some(balance) if balance.state.version >= min_version => return Ok(balance),
            None if min_version == 0 => {
                let newest = service.ledger.newest(account).await?;
                return newest.map(|newest| after(&newest)).ok_or_else(|| unknown(account));
            }
            newest => {
                if Instant::now() >= deadline {
                    let version = newest.map_or(0, |balance| balance.state.version);
                    return Err(Problem::read_model_behind(min_version, version));
                }
            }
        }
        service.hurry.notify_one();
        // Whether it was told or not, it looks again.
        let _ = tokio::time::timeout(LOOK_AGAIN, progress.changed()).await;
    }
}

fn unknown(account: &Account) -> Problem {
    Problem::account_not_found(account.user_id(), account.credit_type())
}

fn after(event: &Event) -> Balance {
    Balance {
        account: event.account.clone(),
        state: event.after,
        position: event.position,
        updated_at: event.recorded_at,
    }
}

/// An account as the contract has it.
#[derive(serde::Serialize)]
struct AccountDocument<'b> {
    user_id: &'b str,
    credit_type: &'b str,
    account_id: AccountId,
    balance: u64,
    frozen: u64,
    available: u64,
    version: u64,
    status: &'static str,
    updated_at: Timestamp,
    partition: Partition,
    position: Position,
}

fn document(balance: &Balance) -> String {
    let (account, state) = (&balance.account, &balance.state);
    let document = AccountDocument {
        user_id: account.user_id(),
        credit_type: account.credit_type(),
        account_id: account.id(),
        balance: state.balance,
        frozen: state.frozen,
        available: state.available(),
        version: state.version,
        status: balance.status(),
        updated_at: balance.updated_at,
        partition: account.partition(),
        position: balance.position,
    };
    serde_json::to_string(&document).expect("an account is JSON")
}

/// `GET …/transactions`: newest first.
pub(crate) async fn transactions(
    State(service): State<Service>,
    path: Path,
    query: Query,
) -> Result<Response, Problem> {
    let query = query.only(&["type", "limit", "cursor"])?;
    let account = path.account()?;
    let event_type = match query.get("type") {
        None => None,
        Some(name) => Some(EventType::of_name(name).ok_or_else(|| {
            Problem::invalid("type", "must be credited, deducted, frozen, unfrozen, refunded, locked or unlocked")
        })?),
    };
    let limit = query.limit()?;
    let before = Cursor::of_query(&query, account.partition())?;
    let (events, next) = service.ledger.history(&account, before, limit, event_type).await?;
    if events.is_empty() && before.is_none() && service.ledger.newest(&account).await?.is_none() {
        return Err(unknown(&account));
    }
    let items: Vec<_> = events.iter().map(Transaction::from).collect();
    let page = Page { items, next_cursor: next.map(|position| Cursor::new(account.partition(), position)) };
    Ok(request::json(StatusCode::OK, serde_json::to_string(&page).expect("events are JSON")))
}

/// A page of a list.
#[derive(serde::Serialize)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next_cursor: Option<Cursor>,
}

/// `POST …/lock`.
pub(crate) async fn lock(
    service: State<Service>,
    origin: Origin,
    path: Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    set_lock(&service, &origin, &path, &headers, body, "system.lock").await
}

/// `POST …/unlock`.
pub(crate) async fn unlock(
    service: State<Service>,
    origin: Origin,
    path: Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    set_lock(&service, &origin, &path, &headers, body, "system.unlock").await
}

async fn set_lock(
    service: &Service,
    origin: &Origin,
    path: &Path,
    headers: &HeaderMap,
    body: Body,
    own_code: &str,
) -> Result<Response, Problem> {
    let account = path.account()?;
    let content = content::read(&service.bodies, headers, body, commands::COMMAND_BYTES_MAX).await?;
    let fields = body::read(&content, &["reason", "business_code", "business_id"])?;
    let reason = fields.required_string("reason")?;
    if reason.trim().is_empty() {
        return Err(Problem::invalid("reason", "must say why"));
    }
    let reason = text::description(&reason).map_err(|invalid| Problem::invalid("reason", invalid.reason))?;
    let key = match (fields.string("business_code")?, fields.string("business_id")?) {
        (Some(code), Some(key)) => BusinessKey::new(&code, &key)?,
        // Without a key of the caller's each request is a command of its own.
        (None, None) => BusinessKey::reserved(own_code, &Uuid::new_v4().to_string())?,
        (Some(_), None) => return Err(Problem::invalid("business_id", "is required with business_code")),
        (None, Some(_)) => return Err(Problem::invalid("business_code", "is required with business_id")),
    };
    let action = if own_code == "system.lock" { Action::Lock { account } } else { Action::Unlock { account } };
    let provenance = Provenance {
        operation_id: None,
        request_id: origin.id.0.clone(),
        actor: origin.caller.actor.clone(),
        description: Some(reason),
        metadata: None,
    };
    let mut command = Command { action, key, expected_version: None, provenance };
    commands::insist(&mut command, if_match(headers)?)?;
    commands::execute(service, command).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_recognized_in_every_form() {
        for (known, is_named) in [
            ("\"7\"", true),
            ("W/\"7\"", true),
            ("\"6\", \"7\"", true),
            ("*", true),
            ("\"77\"", false),
            ("7", false),
            ("", false),
        ] {
            assert_eq!(names(&HeaderValue::from_static(known), "\"7\""), is_named, "{known}");
        }
    }

    #[test]
    fn a_time_is_rfc_3339_whatever_became_of_its_plus_sign() {
        let noon = Timestamp::parse("2026-11-20T12:00:00Z");
        for text in ["2026-11-20T12:00:00Z", "2026-11-20T14:00:00+02:00", "2026-11-20T14:00:00 02:00"] {
            assert_eq!(parse_time(text).expect(text), noon, "{text}");
        }
        assert_eq!(parse_time("1969-07-20T20:17:40Z").expect("a time"), None);
        for text in ["", "yesterday", "2026-11-20", "1700000000", "2026-13-01T00:00:00Z"] {
            assert_eq!(parse_time(text).expect_err(text).field(), Some("at"));
        }
    }
}
