//! Orders, as a shop sends them.

use serde_json::{Value, json};

use crate::Service;

/// The key of an order's step.
#[must_use]
pub fn step(code: &str, order: &str) -> Value {
    json!({ "business_code": code, "business_id": order })
}

/// A command with further fields.
///
/// # Panics
///
/// When one of them is no object.
#[must_use]
pub fn with(mut command: Value, fields: Value) -> Value {
    let fields = fields.as_object().expect("an object").clone();
    command.as_object_mut().expect("an object").extend(fields);
    command
}

/// Freezes points of ann for an order.
///
/// # Panics
///
/// When that is refused.
pub async fn freeze(service: &Service, order: &str, amount: u64) -> Value {
    let account = json!({ "user_id": "ann", "credit_type": "points", "amount": amount });
    service.post("/v1/freezes", &with(account, step("order.create", order))).await.expect(201)
}

/// Deducts points of ann for an order.
///
/// # Panics
///
/// When that is refused.
pub async fn debit(service: &Service, order: &str, amount: u64) -> Value {
    let account = json!({ "user_id": "ann", "credit_type": "points", "amount": amount });
    service.post("/v1/debits", &with(account, step("order.payment", order))).await.expect(201)
}

/// An order's next step: its business id may be another one than the order's, as the relation says whose it is.
///
/// # Panics
///
/// When that is refused.
pub async fn then(service: &Service, path: &str, original: &Value, code: &str, id: &str) -> Value {
    let field = if path == "/v1/refunds" { "debit_id" } else { "freeze_id" };
    let command = with(json!({ field: original["transaction_id"] }), step(code, id));
    service.post(path, &command).await.expect(201)
}
