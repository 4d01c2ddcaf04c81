//! Crashes of the service and of the database, under load.

use std::time::Duration;

use tests::{Load, Postgres, Service, on_both_databases, store::NewDatabase, verify_consistent};

on_both_databases!(what_was_acknowledged_is_there_once_after_each_kill);

/// How often the service is killed: `CRASHES` says otherwise.
fn crashes() -> u64 {
    std::env::var("CRASHES").ok().and_then(|crashes| crashes.parse().ok()).unwrap_or(8)
}

/// An irregular number of milliseconds, the same in every run.
fn moment(crash: u64) -> Duration {
    Duration::from_millis(
        20 + crash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) % 400,
    )
}

async fn what_was_acknowledged_is_there_once_after_each_kill(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    for crash in 0..crashes() {
        let before = load.acknowledged();
        let killer = async {
            // At a random moment, but not before something was acknowledged.
            tokio::time::timeout(Duration::from_secs(30), async {
                while load.acknowledged() < before + 50 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("the load is served");
            tokio::time::sleep(moment(crash)).await;
            service.signal("KILL");
        };
        let services = [&service];
        tokio::join!(load.run(&services, 32), killer);
        drop(service);
        service = Service::start(&database.url, &[]);
    }
    assert!(load.acknowledged() > 50 * usize::try_from(crashes()).expect("few"));
    load.check(&service).await;
    verify_consistent(&database.url);
    service.terminate();
    verify_consistent(&database.url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_under_load_is_told_and_survived() {
    let mut cluster = Postgres::start();
    let url = cluster.database();
    let service = Service::start(&url, &[]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    for _ in 0..3 {
        load.go_on();
        let before = load.acknowledged();
        let crash = async {
            while load.acknowledged() < before + 200 {
                tokio::task::yield_now().await;
            }
            cluster.stop_immediately();
            // The service says so and goes on answering.
            let refused = loop {
                let ready = service.get("/readyz").await;
                if ready.status == 503 {
                    break ready;
                }
            };
            assert!(refused.headers.contains_key("retry-after"));
            let answer = service
                .post(
                    "/v1/credits",
                    &serde_json::json!({ "user_id": "ann", "credit_type": "points", "amount": 1,
                    "business_code": "while.down", "business_id": before.to_string() }),
                )
                .await;
            assert_eq!((answer.status.as_u16(), answer.text("code")), (503, "store_unavailable"));
            assert_eq!(answer.body["retryable"], true);
            cluster.run();
            // It recovers by itself.
            tokio::time::timeout(Duration::from_secs(30), async {
                let again = load.acknowledged();
                while load.acknowledged() < again + 100 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("commands are served again");
            load.stop();
        };
        let services = [&service];
        tokio::join!(load.run(&services, 16), crash);
    }
    load.check(&service).await;
    verify_consistent(&url);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_at_full_load_on_the_same_accounts_lose_and_repeat_nothing() {
    let database = tests::store::postgres();
    let (one, other) = (Service::start(&database.url, &[]), Service::start(&database.url, &[]));
    Load::open_accounts(&one).await;
    let load = Load::default();
    let end = async {
        tokio::time::timeout(Duration::from_secs(60), async {
            while load.acknowledged() < 6_000 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("both serve");
        load.stop();
    };
    let services = [&one, &other];
    tokio::join!(load.run(&services, 64), end);
    load.check(&other).await;
    verify_consistent(&database.url);
}
