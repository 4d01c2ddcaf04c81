//! An order service: orders are created, paid, cancelled, or time out.
//!
//! It keeps orders in memory, and everything about points in the ledger. An order freezes its price for some time; payment
//! captures the freeze; cancellation lets the ledger take the whole operation back; an order that nobody pays is released by
//! the ledger itself. None of these can happen twice or against each other, however often and from wherever they are asked.
//!
//!     cargo run -p api -- --order-status-url 'http://127.0.0.1:8090/status/{business_id}' &
//!     cargo run -p examples --bin order-service &
//!     curl -s -X POST localhost:8090/orders -H 'content-type: application/json' -d '{"user_id":"ann","price":100}'
//!     curl -s -X POST localhost:8090/orders/ID/pay
//!     curl -s -X POST localhost:8090/orders/ID/cancel
//!     curl -s localhost:8090/orders/ID

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use clap::Parser;
use examples::Ledger;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// Takes orders, and keeps their points in a ledger.
#[derive(Parser)]
struct Settings {
    /// The ledger.
    #[arg(long, env = "LEDGER_URL", default_value = "http://127.0.0.1:8080")]
    ledger: String,
    /// An API key with the scopes debit, freeze, refund and read, where the ledger asks for one.
    #[arg(long, env = "LEDGER_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Where to listen.
    #[arg(long, env, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// How long an order may wait for its payment, in seconds.
    #[arg(long, default_value_t = 1_800)]
    patience: u64,
}

#[derive(Clone)]
struct Shop {
    ledger: Ledger,
    patience: u64,
    orders: Arc<Mutex<HashMap<Uuid, Order>>>,
}

#[derive(Clone)]
struct Order {
    user_id: String,
    price: u64,
    /// The ledger's freeze.
    freeze_id: Value,
    status: &'static str,
}

type Answer = (StatusCode, Json<Value>);

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    let ledger = match Ledger::new(&settings.ledger, settings.key.as_deref()) {
        Ok(ledger) => ledger,
        Err(why) => {
            eprintln!("order-service: {why}");
            return ExitCode::FAILURE;
        }
    };
    let shop = Shop { ledger, patience: settings.patience, orders: Arc::default() };
    let routes = Router::new()
        .route("/orders", post(create))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/pay", post(pay))
        .route("/orders/{id}/cancel", post(cancel))
        .route("/status/{id}", get(status))
        .with_state(shop);
    let served = async {
        let listener = tokio::net::TcpListener::bind(settings.listen).await?;
        println!("listening on http://{}", listener.local_addr()?);
        axum::serve(listener, routes).await
    };
    match served.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("order-service: {}: {why}", settings.listen);
            ExitCode::FAILURE
        }
    }
}

#[derive(Deserialize)]
struct NewOrder {
    user_id: String,
    price: u64,
    /// How long this one may wait, in seconds.
    patience: Option<u64>,
}

/// Freezes the price for as long as the order may wait.
async fn create(State(shop): State<Shop>, Json(new): Json<NewOrder>) -> Answer {
    let id = Uuid::new_v4();
    let freeze = json!({ "user_id": new.user_id, "credit_type": "points", "amount": new.price,
        "expires_in_seconds": new.patience.unwrap_or(shop.patience), "business_code": "order.create", "business_id": id, "operation_id": id });
    let decided = shop.ledger.post("/v1/freezes", &freeze).await;
    shop.decided(decided, |frozen| {
        let order = Order {
            user_id: new.user_id.clone(),
            price: new.price,
            freeze_id: frozen["transaction_id"].clone(),
            status: "waiting",
        };
        shop.lock().insert(id, order);
        json!({ "order_id": id, "status": "waiting" })
    })
}

/// Captures the freeze. When the order timed out or was cancelled a moment ago the ledger says so.
async fn pay(State(shop): State<Shop>, Path(id): Path<Uuid>) -> Answer {
    let Some(order) = shop.order(id) else { return unknown() };
    let capture =
        json!({ "freeze_id": order.freeze_id, "business_code": "order.pay", "business_id": id, "operation_id": id });
    let decided = shop.ledger.post("/v1/debits", &capture).await;
    shop.decided(decided, |_| {
        shop.set(id, "paid");
        json!({ "order_id": id, "status": "paid" })
    })
}

/// Takes back whatever was done for the order: releases what is frozen, refunds what was paid.
async fn cancel(State(shop): State<Shop>, Path(id): Path<Uuid>) -> Answer {
    if shop.order(id).is_none() {
        return unknown();
    }
    let path = format!("/v1/operations/{id}/compensate");
    let decided = shop.ledger.post(&path, &json!({ "reason": "the order was cancelled" })).await;
    shop.decided(decided, |_| {
        shop.set(id, "cancelled");
        json!({ "order_id": id, "status": "cancelled" })
    })
}

/// The order, and what the ledger has of it.
async fn show(State(shop): State<Shop>, Path(id): Path<Uuid>) -> Answer {
    let Some(order) = shop.order(id) else { return unknown() };
    let decided = shop.ledger.get(&format!("/v1/operations/{id}")).await;
    shop.decided(decided, |operation| {
        json!({ "order_id": id, "user_id": order.user_id, "price": order.price, "status": order.status,
            "ledger": { "status": operation["status"], "transactions": operation["transactions"] } })
    })
}

/// What the ledger asks before it releases a freeze that is due.
async fn status(State(shop): State<Shop>, Path(id): Path<Uuid>) -> Answer {
    match shop.order(id) {
        Some(order) => (StatusCode::OK, Json(json!({ "status": order.status }))),
        None => unknown(),
    }
}

fn unknown() -> Answer {
    (StatusCode::NOT_FOUND, Json(json!({ "error": "there is no such order" })))
}

impl Shop {
    /// What the ledger decided, for the caller: `done` makes the answer of what it did.
    fn decided(
        &self,
        decided: Result<(StatusCode, Value), examples::Unreachable>,
        done: impl FnOnce(&Value) -> Value,
    ) -> Answer {
        match decided {
            Ok((status, transaction)) if status.is_success() => (StatusCode::OK, Json(done(&transaction))),
            Ok((status, problem)) => (status, Json(json!({ "error": problem["code"], "detail": problem["detail"] }))),
            // The same request again finds out.
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": why.to_string() }))),
        }
    }

    fn order(&self, id: Uuid) -> Option<Order> {
        self.lock().get(&id).cloned()
    }

    fn set(&self, id: Uuid, status: &'static str) {
        if let Some(order) = self.lock().get_mut(&id) {
            order.status = status;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
