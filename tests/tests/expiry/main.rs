//! Freezes that expire: released by the ledger itself, once, whatever happens meanwhile.

mod lifetimes;
mod many;
mod orders;
mod processes;
mod race;
mod rebuilt;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection};
use tests::{Service, on_both_databases, store::NewDatabase, verify_consistent};

on_both_databases!(
    the_rest_of_a_freeze_is_released_when_its_time_is_over,
    what_falls_due_while_no_service_runs_is_released_after_the_next_start,
);

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(50);

/// Waits until something holds.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn with(mut command: Value, fields: &Value) -> Value {
    command.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    command
}

/// Freezes points of a user for an order.
async fn freeze(service: &Service, user: &str, amount: u64, order: &str, fields: Value) -> Value {
    let command = json!({ "user_id": user, "credit_type": "points", "amount": amount,
        "business_code": "order.create", "business_id": order });
    service.post("/v1/freezes", &with(command, &fields)).await.expect(201)
}

fn id(transaction: &Value) -> &str {
    transaction["transaction_id"].as_str().expect("an id")
}

/// The freeze, as it is served.
async fn served(service: &Service, freeze: &Value) -> Value {
    service.get(&format!("/v1/freezes/{}", id(freeze))).await.expect(200)
}

async fn is_settled(service: &Service, freeze: &Value) -> bool {
    served(service, freeze).await["status"] == "settled"
}

/// One number.
async fn number(database: &NewDatabase, query: &str) -> i64 {
    let query = AssertSqlSafe(query.to_owned());
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        sqlx::query_scalar(query).fetch_one(&mut connection).await.expect("a number")
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query_scalar(query).fetch_one(&mut connection).await.expect("a number")
    }
}

/// How many releases the ledger made by itself.
async fn releases(database: &NewDatabase) -> i64 {
    number(database, "select count(*) from events where business_code = 'system.auto_unfreeze'").await
}

/// How many freezes they are about.
async fn released_freezes(database: &NewDatabase) -> i64 {
    let query = "select count(distinct related_id) from events where business_code = 'system.auto_unfreeze' \
         and type = 'unfrozen' and remaining = 0";
    number(database, query).await
}

/// The value of a metric, 0 when it is not there.
async fn metric(service: &Service, name: &str) -> u64 {
    let text = service.get("/metrics").await.body;
    let text = text.as_str().expect("text").to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().expect("a whole number"))
}

async fn the_rest_of_a_freeze_is_released_when_its_time_is_over(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    let operation = "01990000-0000-7000-8000-00000000000a";
    let soon = json!({ "expires_in_seconds": 3, "operation_id": operation });
    let expiring = freeze(&service, "ann", 500, "1", soon).await;
    let open = freeze(&service, "ann", 100, "2", json!({})).await;
    let late = freeze(&service, "ann", 50, "3", json!({ "expires_in_seconds": 3_600 })).await;
    let capture =
        json!({ "freeze_id": id(&expiring), "amount": 200, "business_code": "order.part", "business_id": "1" });
    service.post("/v1/debits", &capture).await.expect(201);
    // Value may return to a locked account.
    service.post("/v1/accounts/ann/points/lock", &json!({ "reason": "a check" })).await.expect(201);

    until("the release", || is_settled(&service, &expiring)).await;
    let settled = served(&service, &expiring).await;
    assert_eq!(
        (&settled["captured"], &settled["released"], &settled["remaining"]),
        (&json!(200), &json!(300), &json!(0))
    );
    assert_eq!(service.holdings("ann").await, (800, 150, 650));
    let key =
        format!("business_code=system.auto_unfreeze&business_id={}&user_id=ann&credit_type=points", id(&expiring));
    let found = service.get(&format!("/v1/transactions?{key}")).await.expect(200);
    let release = &found["items"][0];
    assert_eq!(
        (&release["type"], &release["amount"], &release["remaining"], &release["related_id"], &release["operation_id"]),
        (&json!("unfrozen"), &json!(300), &json!(0), &expiring["transaction_id"], &json!(operation))
    );
    let expires_at = expiring["expires_at"].as_str().expect("it has one");
    assert_eq!(release["description"], format!("expired at {expires_at}"));
    assert!(release["recorded_at"].as_str().expect("a time") >= expires_at, "released too early: {release}");
    let by_system = "select count(*) from events where business_code = 'system.auto_unfreeze' and actor = 'system'";
    assert_eq!(number(&database, by_system).await, 1);
    assert_eq!(metric(&service, "ledger_expiry_released_total ").await, 1);
    // Whoever comes late is told.
    let late_capture = json!({ "freeze_id": id(&expiring), "business_code": "order.payment", "business_id": "1" });
    service.post("/v1/accounts/ann/points/unlock", &json!({ "reason": "checked" })).await.expect(201);
    let refused = service.post("/v1/debits", &late_capture).await.expect(422);
    assert_eq!((&refused["code"], &refused["remaining"]), (&json!("insufficient_frozen"), &json!(0)));
    for untouched in [&open, &late] {
        assert_eq!(served(&service, untouched).await["status"], "open");
    }
    assert_eq!(releases(&database).await, 1);
    verify_consistent(&database.url);
}

async fn what_falls_due_while_no_service_runs_is_released_after_the_next_start(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let mut freezes = Vec::new();
    for user in 0..40 {
        let user = format!("user-{user}");
        service.credit(&user, 100, "seed").await;
        freezes.push(freeze(&service, &user, 60, &user, json!({ "expires_in_seconds": 4 })).await);
    }
    service.kill9();
    drop(service);
    let due = freezes.iter().filter_map(|freeze| freeze["expires_at"].as_str()).max().expect("there are some");
    until("the time", || async { now_text().as_str() > due }).await;
    let mut service = Service::start(&database.url, &[]);
    for freeze in &freezes {
        until("the release", || is_settled(&service, freeze)).await;
    }
    assert_eq!((releases(&database).await, released_freezes(&database).await), (40, 40));
    for user in 0..40 {
        assert_eq!(service.holdings(&format!("user-{user}")).await, (100, 0, 100));
    }
    // A start looks at everything again, and finds nothing to do.
    service.terminate();
    let again = Service::start(&database.url, &[]);
    let last = freeze(&again, "user-0", 1, "last", json!({ "expires_in_seconds": 1 })).await;
    until("the last release", || is_settled(&again, &last)).await;
    assert_eq!((releases(&database).await, released_freezes(&database).await), (41, 41));
    assert_eq!(metric(&again, "ledger_expiry_released_total ").await, 1);
    verify_consistent(&database.url);
}

/// The time as the contract writes it.
fn now_text() -> String {
    time_from_now(Duration::ZERO)
}

/// A time to come, as the contract writes it.
fn time_from_now(later: Duration) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let micros = i64::try_from((since + later).as_micros()).expect("in range");
    ledger_core::Timestamp::from_micros(micros).expect("in range").to_string()
}
