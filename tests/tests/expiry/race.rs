//! Captures that come at the moment at which their freezes expire.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Service, on_both_databases, store::NewDatabase, verify_consistent};

use crate::{freeze, id, is_settled, number, releases, served, time_from_now, until};

on_both_databases!(a_capture_at_the_moment_of_expiry_wins_or_is_told);

const FREEZES: usize = 400;

async fn capture(service: &Service, freeze: &Value) -> bool {
    let command = json!({ "freeze_id": id(freeze), "business_code": "order.payment", "business_id": id(freeze) });
    let answer = service.post("/v1/debits", &command).await;
    match answer.status.as_u16() {
        201 => true,
        422 => {
            assert_eq!((answer.text("code"), &answer.body["remaining"]), ("insufficient_frozen", &json!(0)));
            false
        }
        _ => panic!("{}: {}", answer.status, answer.body),
    }
}

async fn a_capture_at_the_moment_of_expiry_wins_or_is_told(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    for user in 0..20 {
        service.credit(&format!("user-{user}"), 1_000, "seed").await;
    }
    let moment = Duration::from_secs(12);
    let (began, expires_at) = (tokio::time::Instant::now(), time_from_now(moment));
    let mut freezes = Vec::with_capacity(FREEZES);
    for order in 0..FREEZES {
        let user = format!("user-{}", order % 20);
        freezes.push(freeze(&service, &user, 5, &order.to_string(), json!({ "expires_at": expires_at })).await);
    }
    assert!(began.elapsed() < moment, "the machine is too slow for this test");
    // The first are captured in time, the others within the second in which they are released.
    let (early, others) = freezes.split_at(20);
    let mut captured = Vec::with_capacity(FREEZES);
    for freeze in early {
        captured.push(capture(&service, freeze).await);
    }
    assert!(captured.iter().all(|captured| *captured));
    let (racing, late) = others.split_at(FREEZES - 40);
    let race = racing.iter().enumerate().map(|(number, freeze)| {
        let (service, when) = (&service, began + moment + Duration::from_millis(number as u64 * 2));
        async move {
            tokio::time::sleep_until(when).await;
            capture(service, freeze).await
        }
    });
    captured.extend(futures::future::join_all(race).await);
    for freeze in late {
        until("the release", || is_settled(&service, freeze)).await;
        captured.push(capture(&service, freeze).await);
    }
    let (won, told) = (captured.iter().filter(|won| **won).count(), captured.iter().filter(|won| !**won).count());
    println!("{won} captured, {told} released");
    assert!(told >= late.len());
    for (freeze, captured) in freezes.iter().zip(&captured) {
        until("the end of each", || is_settled(&service, freeze)).await;
        let freeze = served(&service, freeze).await;
        let expected = if *captured { (&json!(5), &json!(0)) } else { (&json!(0), &json!(5)) };
        assert_eq!((&freeze["captured"], &freeze["released"]), expected);
    }
    assert_eq!(releases(&database).await, i64::try_from(told).expect("few"));
    let sum = number(&database, "select cast(sum(balance) as bigint) from balances").await;
    assert_eq!(sum, 20_000 - 5 * i64::try_from(won).expect("few"));
    assert_eq!(number(&database, "select cast(sum(frozen) as bigint) from balances").await, 0);
    verify_consistent(&database.url);
}
