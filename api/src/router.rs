//! Which path is answered by what.

use axum::{
    Router,
    routing::{get, post},
};

use crate::{
    accounts, batches, commands, docs, events, freezes, health, request, service::Service, stream, transactions,
};

/// The routes of the contract.
pub(crate) fn routes(service: Service) -> Router {
    Router::new()
        .route("/v1/credits", post(commands::credit))
        .route("/v1/debits", post(commands::debit))
        .route("/v1/freezes", post(commands::freeze))
        .route("/v1/unfreezes", post(commands::unfreeze))
        .route("/v1/refunds", post(commands::refund))
        .route("/v1/batches", post(batches::run))
        .route("/v1/accounts/{user_id}/{credit_type}", get(accounts::read))
        .route("/v1/accounts/{user_id}/{credit_type}/transactions", get(accounts::transactions))
        .route("/v1/accounts/{user_id}/{credit_type}/freezes", get(freezes::of_account))
        .route("/v1/accounts/{user_id}/{credit_type}/lock", post(accounts::lock))
        .route("/v1/accounts/{user_id}/{credit_type}/unlock", post(accounts::unlock))
        .route("/v1/freezes/{freeze_id}", get(freezes::read))
        .route("/v1/transactions", get(transactions::find))
        .route("/v1/transactions/{transaction_id}", get(transactions::read))
        .route("/v1/events", get(events::read))
        .route("/v1/events/stream", get(stream::stream))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page))
        .method_not_allowed_fallback(request::method_not_allowed)
        .fallback(request::no_such_route)
        .with_state(service)
}
