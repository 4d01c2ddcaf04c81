//! What an entry says of a request.

use std::sync::Arc;

use axum::{extract::Request, http::Method, response::Response};
use ledger_core::Account;
use serde_json::{Map, Value};

use super::{Entry, Outcome};
use crate::{
    access::Caller,
    problem::Problem,
    request::{Peer, RequestId},
    service::Service,
};

/// What a handler says of what it did, as an extension of its answer.
#[derive(Debug, Clone)]
pub(crate) struct Did {
    pub(crate) outcome: Outcome,
    pub(crate) account: Option<Account>,
    pub(crate) details: Option<Box<Map<String, Value>>>,
}

impl Did {
    pub(crate) const fn of(outcome: Outcome) -> Self {
        Self { outcome, account: None, details: None }
    }
}

/// Who asks for a change.
pub(crate) struct About {
    action: &'static str,
    actor: Arc<str>,
    address: Option<Arc<str>>,
    request_id: Option<Arc<str>>,
}

impl About {
    /// Of a request whose caller is known; none when it is not written down.
    pub(crate) fn of(service: &Service, request: &Request) -> Option<Self> {
        if request.method() != Method::POST {
            return None;
        }
        let action = action(request.uri().path())?;
        if !service.audit.wants(action) {
            return None;
        }
        let extensions = request.extensions();
        Some(Self {
            action,
            actor: extensions.get::<Caller>()?.actor.clone(),
            address: extensions.get::<Peer>().map(|peer| peer.0.clone()),
            request_id: extensions.get::<RequestId>().map(|id| id.0.clone()),
        })
    }

    /// Records what became of it: what was done, and what was refused for what the ledger holds. What cannot be read, or came
    /// at a bad time, asked for nothing.
    pub(crate) fn record(self, service: &Service, response: &Response) {
        let did = response.extensions().get::<Did>().cloned();
        let did = match response.extensions().get::<Problem>() {
            Some(problem) if problem.is_refusal() => Did {
                outcome: Outcome::Refused(problem.code()),
                account: problem.account().cloned(),
                details: did.and_then(|did| did.details),
            },
            Some(_) => return,
            None => did.unwrap_or(Did::of(Outcome::Done)),
        };
        let Self { action, actor, address, request_id } = self;
        let Did { outcome, account, details } = did;
        service.audit.record(Entry { action, actor, address, request_id, account, outcome, details });
    }
}

/// What a path that is posted to does.
fn action(path: &str) -> Option<&'static str> {
    Some(match path {
        "/v1/credits" => "credit",
        "/v1/debits" => "debit",
        "/v1/freezes" => "freeze",
        "/v1/unfreezes" => "unfreeze",
        "/v1/refunds" => "refund",
        "/v1/batches" => "batch",
        _ if path.starts_with("/v1/accounts/") && path.ends_with("/lock") => "lock",
        _ if path.starts_with("/v1/accounts/") && path.ends_with("/unlock") => "unlock",
        _ if path.starts_with("/v1/inconsistencies/") => "resolve",
        _ if path.starts_with("/v1/operations/") && path.ends_with("/compensate") => "compensate",
        _ if path.starts_with("/v1/operations") => "operation",
        _ => return None,
    })
}
