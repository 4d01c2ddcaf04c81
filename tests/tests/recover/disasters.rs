//! Days that are worse than one lost database.

use std::fs;

use serde_json::{Value, json};
use sqlx::Connection;
use tests::{Nats, Service, store::NewDatabase, verify_consistent};

use super::{
    Desk, archived_and_gone_on, batches, destroy, heads,
    messages::{Messages, whole_batches},
    text, wait_until_published,
};

pub(crate) async fn what_was_not_published_when_all_was_destroyed_is_lost_by_whole_batches(database: NewDatabase) {
    let (mut nats, desk) = (Nats::start(), Desk::new());
    let nats_url = nats.url();
    let mut service = Service::start(&database.url, &["--nats-url", &nats_url]);
    batches(&service, 0, 4, 10).await;
    let archive = desk.export(&database.url, "archive");
    let archived = heads(&service).await;
    // The stream is lost sight of while the publisher is at work, wherever it is in a batch; commands go on.
    let working = batches(&service, 4, 60, 100);
    let outage = async {
        let begun = async {
            while heads(&service).await.values().sum::<u64>() < 1_000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), begun).await.expect("commands are done");
        nats.kill9();
    };
    tokio::join!(working, outage);
    let committed: u64 = heads(&service).await.values().sum();
    service.kill9();
    destroy(&database).await;
    nats.run();
    let before = Messages::read(&nats_url).await;
    let expected = whole_batches(&before, &std::collections::BTreeSet::new(), &archived);
    let expected: std::collections::BTreeMap<u64, u64> = archived
        .keys()
        .chain(expected.keys())
        .map(|partition| {
            let end = expected.get(partition).copied().unwrap_or(0).max(archived.get(partition).copied().unwrap_or(0));
            (*partition, end)
        })
        .filter(|(_, end)| *end > 0)
        .collect();
    let kept: u64 = expected.values().sum();
    assert!(kept < committed, "the outage came in time: {kept} of {committed}");

    let (code, report) = desk.recover(&database.url, &archive, "report", &["--nats-url", &nats_url]);
    // What the stream never told of is not known to be lost.
    assert_eq!(code, i32::from(report["lost"]["positions"] != 0), "{report:#}");
    assert_eq!(report["recovered"], report["lost"]["positions"] == 0);
    assert!(report["lost"]["cannot_know"].as_str().expect("said").contains("not published"), "{report:#}");
    assert_eq!(verify_consistent(&database.url)["events"], kept);
    let service = Service::start(&database.url, &["--nats-url", &nats_url]);
    assert_eq!(heads(&service).await, expected);
    batches(&service, 200, 3, 20).await;
    wait_until_published(&service).await;
    Messages::read(&nats_url).await.valid_ones_are_the_log_of(&service).await;
}

pub(crate) async fn several_restores_in_a_row_are_told_apart(database: NewDatabase) {
    let (nats, desk) = (Nats::start(), Desk::new());
    let nats_url = nats.url();
    let mut service = Service::start(&database.url, &["--nats-url", &nats_url]);
    batches(&service, 0, 4, 10).await;
    let archive = desk.export(&database.url, "archive");
    let mut epochs = vec![1];
    let mut void = 0;
    for round in 1..=3_u64 {
        batches(&service, round * 100, 8, 6).await;
        wait_until_published(&service).await;
        service.terminate();
        destroy(&database).await;
        // One event of this round is not on the stream: its batch, and what follows in those partitions, is void.
        Messages::read(&nats_url).await.lose(&nats_url, &[(round * 100 + 5, 2)]).await;
        let name = format!("report-{round}");
        let (code, report) = desk.recover(&database.url, &archive, &name, &["--nats-url", &nats_url]);
        assert_eq!(code, 1, "{report:#}");
        let epoch = report["epoch"].as_u64().expect("a number");
        assert!(epoch > *epochs.last().expect("the first"), "{report:#}");
        epochs.push(epoch);
        service = Service::start(&database.url, &["--nats-url", &nats_url]);
        batches(&service, round * 100 + 50, 2, 6).await;
        wait_until_published(&service).await;
        let messages = Messages::read(&nats_url).await;
        let told: Vec<_> = messages.restored.iter().map(|restored| restored["epoch"].as_u64()).collect();
        assert_eq!(told, epochs[1..].iter().map(|epoch| Some(*epoch)).collect::<Vec<_>>());
        // Each restore voids some more, and what an earlier one voided stays void.
        assert!(messages.void_count() > void, "round {round}");
        void = messages.void_count();
        messages.valid_ones_are_the_log_of(&service).await;
    }
    let verified = verify_consistent(&database.url);
    drop(service);
    // With all of the stream there again, from the first archive: four epochs of events, and none lost.
    destroy(&database).await;
    let (code, report) = desk.recover(&database.url, &archive, "all", &["--nats-url", &nats_url]);
    assert_eq!((code, &report["digest"]["after"]), (0, &verified["digest"]), "{report:#}");
}

/// Whatever is gone of a ledger but its events, they are enough.
pub(crate) async fn whatever_table_is_dropped_nothing_is_lost(database: NewDatabase) {
    let desk = Desk::new();
    let (archive, ..) = archived_and_gone_on(&database, &desk, &[]).await;
    let before = verify_consistent(&database.url);
    let dropped = [
        "balances",
        "freezes projection_checkpoints",
        "account_positions",
        "key_positions related_positions history_positions",
        "index_checkpoints restores",
        "partition_heads api_keys",
    ];
    for (round, table) in dropped.into_iter().enumerate() {
        for table in table.split(' ') {
            drop_table(&database.url, table).await;
        }
        let (code, _) = tests::replay_tool(&database.url, &["verify"]);
        assert_ne!(code, 0, "{table} is missed");
        let name = format!("report-{round}");
        let (code, report) = desk.recover(&database.url, &archive, &name, &[]);
        assert_eq!(code, 0, "{table}: {report:#}");
        let after = verify_consistent(&database.url);
        assert_eq!((&after["digest"], &after["events"]), (&before["digest"], &before["events"]), "{table}");
        // What the log does not tell is named.
        let untold: Vec<_> = table.split(' ').filter(|table| ["api_keys", "restores"].contains(table)).collect();
        assert_eq!(report["left_out"], json!(untold), "{report:#}");
    }
    // Without it nobody can tell which version wrote the rest: a person decides.
    drop_table(&database.url, "_sqlx_migrations").await;
    let (code, _) = desk.recover(&database.url, &archive, "undecided", &[]);
    assert_eq!(code, 2);
    let record: Value =
        serde_json::from_slice(&fs::read(desk.path("undecided/steps.json")).expect("written")).expect("JSON");
    assert!(record["why"].as_str().expect("said").contains("--replace"), "{record:#}");
}

async fn drop_table(url: &str, table: &str) {
    let sql = sqlx::AssertSqlSafe(format!("drop table {table}"));
    if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.expect("it opens");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("gone");
        connection.close().await.expect("closed");
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the server runs");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("gone");
    }
}

pub(crate) async fn orders_are_compared_and_what_disagrees_is_told(database: NewDatabase) {
    let desk = Desk::new();
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "first").await;
    let paid = json!({ "user_id": "ann", "credit_type": "points", "amount": 30, "business_code": "order.payment",
        "business_id": "O1" });
    service.post("/v1/debits", &paid).await.expect(201);
    let archive = desk.export(&database.url, "archive");
    service.terminate();
    destroy(&database).await;
    let orders = desk.path("orders.csv");
    fs::write(&orders, "order_id,user_id,points,status\nO1,ann,30,paid\n").expect("written");
    let (code, report) = desk.recover(&database.url, &archive, "agrees", &["--orders", text(&orders)]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["reconciliation"]["mismatches_count"], 0, "{report:#}");
    // An order that was paid after the archive: the ledger is sound, and lacks it.
    fs::write(&orders, "order_id,user_id,points,status\nO1,ann,30,paid\nO2,ann,5,paid\n").expect("written");
    let (code, report) = desk.recover(&database.url, &archive, "lacks", &["--orders", text(&orders)]);
    assert_eq!((code, &report["reconciliation"]["mismatches_count"]), (1, &json!(1)), "{report:#}");
    assert_eq!((&report["recovered"], &report["action"]), (&json!(false), &json!("none")), "{report:#}");
    let verified = verify_consistent(&database.url);
    assert_eq!(verified["events"], 2, "nothing is settled");
    let (code, _) = desk.recover(&database.url, &archive, "nowhere", &["--orders", "/nowhere/orders.csv"]);
    assert_eq!(code, 2);
}
