//! Several processes, and a database that goes away.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Postgres, Service, on_both_databases, store::NewDatabase, verify_consistent};

use crate::{freeze, is_settled, metric, number, released_freezes, releases, until};

on_both_databases!(of_two_processes_each_freeze_is_released_by_one_and_the_other_goes_on);

/// Makes freezes that expire soon, through several services in turn.
async fn freezes(services: &[&Service], name: &str, count: usize, seconds: u64) -> Vec<Value> {
    let mut freezes = Vec::with_capacity(count);
    for number in 0..count {
        let (user, order) = (format!("user-{}", number % 16), format!("{name}-{number}"));
        let service = services[number % services.len()];
        freezes.push(freeze(service, &user, 1, &order, json!({ "expires_in_seconds": seconds })).await);
    }
    freezes
}

async fn of_two_processes_each_freeze_is_released_by_one_and_the_other_goes_on(database: NewDatabase) {
    let mut services = [Service::start(&database.url, &[]), Service::start(&database.url, &[])];
    for user in 0..16 {
        services[0].credit(&format!("user-{user}"), 1_000, "seed").await;
    }
    let first = freezes(&[&services[0], &services[1]], "first", 200, 2).await;
    for freeze in &first {
        until("the release", || is_settled(&services[0], freeze)).await;
    }
    assert_eq!((releases(&database).await, released_freezes(&database).await), (200, 200));
    let released = [
        metric(&services[0], "ledger_expiry_released_total ").await,
        metric(&services[1], "ledger_expiry_released_total ").await,
    ];
    assert_eq!(released.iter().sum::<u64>(), 200);
    if database.url.starts_with("postgres") {
        assert!(released.contains(&0), "only one is elected: {released:?}");
    }

    // The one that released is killed while freezes wait for it.
    let elected = usize::from(released[1] > released[0]);
    let second = freezes(&[&services[0], &services[1]], "second", 100, 3).await;
    services[elected].kill9();
    let other = &services[1 - elected];
    for freeze in &second {
        until("the release by the other", || is_settled(other, freeze)).await;
    }
    assert_eq!((releases(&database).await, released_freezes(&database).await), (300, 300));
    assert_eq!(number(&database, "select cast(sum(frozen) as bigint) from balances").await, 0);
    verify_consistent(&database.url);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_due_while_the_database_is_away_is_released_when_it_is_back() {
    let mut cluster = Postgres::start();
    let url = cluster.database();
    let mut service = Service::start(&url, &[]);
    for user in 0..16 {
        service.credit(&format!("user-{user}"), 1_000, "seed").await;
    }
    let due = freezes(&[&service], "away", 50, 2).await;
    cluster.stop_immediately();
    // Long enough to fail again and again.
    let beginning = std::time::Instant::now();
    while beginning.elapsed() < Duration::from_secs(6) {
        let command = json!({ "user_id": "user-0", "credit_type": "points", "amount": 1,
            "business_code": "while.away", "business_id": "1" });
        assert_eq!(service.post("/v1/credits", &command).await.status, 503);
    }
    cluster.run();
    for freeze in &due {
        until("the release", || async {
            let answer = service.get(&format!("/v1/freezes/{}", crate::id(freeze))).await;
            answer.status == 200 && answer.body["status"] == "settled"
        })
        .await;
    }
    let told = service.log().matches("freezes that are due cannot be released").count();
    assert!((1..=3).contains(&told), "told {told} times: {}", service.log());
    assert!(service.log().contains("freezes that are due are released again"), "{}", service.log());
    service.terminate();
    verify_consistent(&url);
}
