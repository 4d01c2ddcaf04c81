//! What holds when too much comes at once, and when the database is away.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tests::{Postgres, Service, on_both_databases, store::NewDatabase, verify_consistent};

on_both_databases!(an_account_gets_its_rate_and_others_feel_nothing, each_command_of_a_batch_counts);

fn credit(user: &str, id: &str) -> serde_json::Value {
    json!({ "user_id": user, "credit_type": "points", "amount": 1, "business_code": "c", "business_id": id })
}

async fn an_account_gets_its_rate_and_others_feel_nothing(database: NewDatabase) {
    let service = Service::start(&database.url, &["--rate-limit", "5/10"]);
    let began = Instant::now();
    let (mut passed, mut refused) = (0_u32, 0_u32);
    for number in 0_u32.. {
        if began.elapsed() > Duration::from_secs(4) {
            break;
        }
        let answer = service.post("/v1/credits", &credit("greedy", &number.to_string())).await;
        match answer.status.as_u16() {
            201 => passed += 1,
            429 => {
                refused += 1;
                assert_eq!(answer.text("code"), "rate_limited");
                assert_eq!(answer.body["retryable"], true);
                let wait: u64 = answer.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
                assert_eq!(wait, 1, "the next token is there after 200 ms");
                assert_eq!(answer.headers["ratelimit-limit"], "10");
                assert_eq!(answer.headers["ratelimit-remaining"], "0");
                assert_eq!(answer.headers["ratelimit-policy"], "10;w=2");
            }
            other => panic!("{other}: {}", answer.body),
        }
        if number % 10 == 0 {
            // Another account, each time: its first command always passes.
            let other = service.post("/v1/credits", &credit(&format!("calm{number}"), "1")).await;
            assert_eq!(other.status, 201, "{}", other.body);
            assert_eq!(other.headers["ratelimit-remaining"], "9");
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let due = 10.0 + 5.0 * seconds;
    assert!((f64::from(passed) - due).abs() <= 2.0, "{passed} passed, {due} were due; {refused} refused");
    assert!(refused > 20, "{refused}");
    // What Retry-After said is true.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(service.post("/v1/credits", &credit("greedy", "last")).await.status, 201);
}

async fn each_command_of_a_batch_counts(database: NewDatabase) {
    let service = Service::start(&database.url, &["--rate-limit", "1/10"]);
    let batch = |users: &[&str], first: u32, count: u32, atomic: bool| {
        let commands: Vec<_> = users
            .iter()
            .flat_map(|user| (first..first + count).map(move |number| (user, number)))
            .map(|(user, number)| {
                let mut command = credit(user, &number.to_string());
                command["type"] = "credit".into();
                command
            })
            .collect();
        json!({ "atomic": atomic, "commands": commands })
    };
    let post = async |body: serde_json::Value| service.post("/v1/batches", &body).await;
    let six = post(batch(&["ann", "bob"], 0, 6, true)).await;
    assert_eq!((six.status.as_u16(), &six.headers["ratelimit-remaining"]), (201, &"4".parse().expect("a value")));
    let more = post(batch(&["ann"], 6, 6, true)).await;
    assert_eq!((more.status.as_u16(), more.text("code")), (429, "rate_limited"));
    let each = post(batch(&["bob"], 6, 6, false)).await.expect(200);
    let codes: Vec<_> =
        each["results"].as_array().expect("results").iter().map(|result| result["code"].as_str()).collect();
    assert_eq!(codes.iter().filter(|code| code.is_none()).count(), 4, "{each}");
    assert_eq!(codes.iter().filter(|code| **code == Some("rate_limited")).count(), 2, "{each}");
    // No waiting lets so many pass at once.
    let never = post(batch(&["cid"], 0, 11, true)).await;
    assert_eq!((never.status.as_u16(), never.text("code")), (429, "rate_limited"));
    assert!(never.text("detail").contains("burst of 10"), "{}", never.body);
    assert_eq!(service.get("/v1/accounts/cid/points?consistency=strong").await.status, 404);
    // A capture counts against the account that owns the freeze.
    let freeze =
        json!({ "user_id": "dan", "credit_type": "points", "amount": 1, "business_code": "f", "business_id": "1" });
    assert_eq!(post(batch(&["dan"], 0, 8, true)).await.status, 201);
    let frozen = service.post("/v1/freezes", &freeze).await.expect(201);
    let capture = |id: &str| json!({ "freeze_id": frozen["transaction_id"], "business_code": "d", "business_id": id });
    assert_eq!(service.post("/v1/debits", &capture("1")).await.status, 201);
    assert_eq!(service.post("/v1/debits", &capture("2")).await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_refusals_are_quick_and_nothing_is_lost() {
    let mut postgres = Postgres::start();
    let url = postgres.database();
    let service = Service::start(&url, &[]);
    service.credit("ann", 100, "seed").await;
    postgres.stop_immediately();
    // Some time-outs, until the breaker opens.
    let began = Instant::now();
    let mut number = 0;
    loop {
        number += 1;
        let commands = (0..8).map(|lane| {
            let body = credit("ann", &format!("away{number}-{lane}")).to_string();
            service.send(Method::POST, "/v1/credits", Some(body))
        });
        for answer in futures::future::join_all(commands).await {
            let answer = answer.expect("an answer");
            assert_eq!((answer.status.as_u16(), answer.text("code")), (503, "store_unavailable"));
            assert!(answer.headers.contains_key("retry-after"));
        }
        if service.get("/readyz").await.body["breaker"] == "open" {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "the breaker opens after ten failures");
    }
    let mut took: Vec<Duration> = Vec::new();
    for number in 0..200 {
        let began = Instant::now();
        let answer = match number % 2 {
            0 => service.post("/v1/credits", &credit("ann", &format!("open{number}"))).await,
            _ => service.get("/v1/accounts/ann/points").await,
        };
        took.push(began.elapsed());
        assert_eq!((answer.status.as_u16(), answer.text("code")), (503, "store_unavailable"));
        let wait: u64 = answer.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
        assert!((1..=30).contains(&wait), "{wait}");
    }
    took.sort_unstable();
    // Not a measurement: a time-out would be two seconds.
    assert!(took[190] < Duration::from_millis(500), "{:?}", took[190]);
    assert_eq!(service.get("/readyz").await.status, 503);
    postgres.run();
    let began = Instant::now();
    while service.post("/v1/credits", &credit("ann", "after")).await.status.is_server_error() {
        assert!(began.elapsed() < Duration::from_secs(25), "it recovers before the breaker's time is over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(service.get("/readyz").await.body["breaker"], "closed");
    // Those refused may have been done or not; the same keys find out, once each.
    let mut balance = 101;
    for round in 1..=number {
        for lane in 0..8 {
            service.post("/v1/credits", &credit("ann", &format!("away{round}-{lane}"))).await;
            balance += 1;
        }
    }
    assert_eq!(service.holdings("ann").await.0, balance);
    drop(service);
    verify_consistent(&url);
}
