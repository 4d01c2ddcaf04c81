//! `/livez`, `/readyz`, `/metrics`.

use axum::{extract::State, http::StatusCode, response::Response};
use serde_json::json;

use crate::{request, service::Service};

/// The process runs.
pub(crate) async fn live() -> Response {
    request::json(StatusCode::OK, json!({ "status": "live" }).to_string())
}

/// Commands can be served. NATS being away, or read models behind, is told but does not count.
pub(crate) async fn ready(State(service): State<Service>) -> Response {
    let trouble = service.ledger.trouble();
    // What this process committed a moment ago may be news to the others.
    let committed = service.ledger.committed();
    let progress = service.progress.borrow().clone();
    let nats = service.publisher.as_ref().map(|publisher| {
        let status = publisher.borrow().clone();
        json!({ "connected": status.connected, "lag_positions": status.lag_behind(&committed), "trouble": status.trouble })
    });
    let queue = service.queue.as_ref().map(|queue| {
        let status = queue.borrow().clone();
        json!({ "connected": status.connected, "pending": status.pending, "trouble": status.trouble })
    });
    let status = if trouble.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": if trouble.is_none() { "ready" } else { "unavailable" },
        "trouble": trouble,
        "database": service.database.describe(),
        "breaker": service.breaker.position().name(),
        "projector": {
            "lag_positions": progress.lag_behind(&committed),
            "behind_since": progress.behind_since,
            "halted_partitions": progress.halted,
        },
        "nats": nats,
        "nats_commands": queue,
    });
    let mut response = request::json(status, body.to_string());
    if trouble.is_some() {
        response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("1"));
    }
    response
}

/// Prometheus' text format.
pub(crate) async fn metrics(State(service): State<Service>) -> Response {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    metrics::gauge!("ledger_queue_room_commands").set(service.ledger.room() as f64);
    let mut response = Response::new(service.metrics.render().into());
    response.headers_mut().insert(
        axum::http::header::CONTENT_TYPE,
        axum::http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
