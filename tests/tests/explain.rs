//! `replay-tool explain` takes a balance apart, `correct` adjusts one.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tests::{
    Service, on_both_databases, replay_tool,
    shop::{debit, freeze, step, then, with},
    store::NewDatabase,
    tool::{Ran, run, text},
    verify_consistent,
};

on_both_databases!(an_account_is_taken_apart_down_to_its_orders, a_correction_is_an_event_of_its_own_and_is_done_once,);

async fn an_account_is_taken_apart_down_to_its_orders(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    let held = freeze(&service, "O1", 300).await;
    let capture = with(json!({ "freeze_id": held["transaction_id"], "amount": 100 }), step("order.payment", "O1"));
    let captured = service.post("/v1/debits", &capture).await.expect(201);
    let direct = debit(&service, "O2", 50).await;
    let refund = with(json!({ "debit_id": direct["transaction_id"], "amount": 20 }), step("order.refund", "O2"));
    service.post("/v1/refunds", &refund).await.expect(201);
    let gone = freeze(&service, "O3", 10).await;
    then(&service, "/v1/unfreezes", &gone, "order.cancel", "O3").await;
    service.credit("bob", 5, "other").await;
    service.get("/v1/accounts/ann/points?min_version=7").await.expect(200);
    wait_for_freezes(&service, gone["transaction_id"].as_str().expect("an id")).await;

    let (code, told) = replay_tool(&database.url, &["explain", "ann/points"]);
    assert_eq!(code, 0, "{told:#}");
    let figures =
        |told: &Value| [&told["balance"], &told["frozen"], &told["available"], &told["version"]].map(Value::clone);
    assert_eq!(figures(&told), [870, 200, 670, 7].map(|figure| json!(figure)));
    assert_eq!(told["read_model"], "agrees", "{told:#}");
    let balances: Vec<_> =
        told["events"].as_array().expect("a list").iter().map(|event| event["balance"].clone()).collect();
    assert_eq!(balances, [870, 870, 870, 850, 900, 1_000, 1_000].map(|balance| json!(balance)), "newest first");
    let open = told["open_freezes"].as_array().expect("a list");
    assert_eq!(open.len(), 1, "{told:#}");
    assert_eq!(
        (&open[0]["freeze_id"], &open[0]["remaining"], &open[0]["captured"], &open[0]["business_id"]),
        (&held["transaction_id"], &json!(200), &json!(100), &json!("O1"))
    );
    let refunds = told["refunds_possible"].as_array().expect("a list").iter();
    let refunds: Vec<_> = refunds.map(|refund| (refund["debit_id"].clone(), refund["refundable"].clone())).collect();
    assert_eq!(
        refunds,
        [(direct["transaction_id"].clone(), json!(30)), (captured["transaction_id"].clone(), json!(100))],
        "newest first"
    );
    assert_eq!(
        (&told["refundable"], &told["moved"]["deducted"]),
        (&json!(130), &json!({ "events": 2, "amount": 150 }))
    );

    // The past, and page by page.
    let (code, past) = replay_tool(&database.url, &["explain", "ann/points", "--at", &text(&captured["recorded_at"])]);
    assert_eq!((code, figures(&past), &past["read_model"]), (0, [900, 200, 700, 3].map(|f| json!(f)), &Value::Null));
    let (_, page) = replay_tool(&database.url, &["explain", "ann/points", "--limit", "2", "--before", "6"]);
    let versions: Vec<_> =
        page["events"].as_array().expect("a list").iter().map(|event| event["version"].clone()).collect();
    assert_eq!((versions, &page["next_before"]), (vec![json!(5), json!(4)], &json!(4)));

    // For people, too.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let page = folder.path().join("ann.html");
    let ran = run(&database, &["explain", "ann/points", "--report", page.to_str().expect("plain")]);
    let report = fs::read_to_string(&page).expect("written");
    assert!(
        report.contains("the read model agrees") && report.contains("<polyline") && report.contains("order.create O1")
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    for line in [
        "balance    870",
        "open freezes",
        "200 of 300  order.create O1",
        "refunds that are still possible: 130 of 2",
        "read model agrees",
    ] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
    let ran = run(&database, &["explain", "nobody/points"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("there is no account nobody/points"), "{}", ran.err);

    // What is served and what happened are two things.
    drop(service);
    for (damage, says) in [
        (
            "update balances set balance = balance + 1, available = available + 1 where user_id = 'ann'",
            "balances: balance 871",
        ),
        ("update balances set balance = balance - 1, available = available - 1 where user_id = 'ann'", ""),
        ("update freezes set remaining = remaining + 1, captured = captured - 1 where business_id = 'O1'", "freezes: "),
    ] {
        execute(&database, damage).await;
        let (code, told) = replay_tool(&database.url, &["explain", "ann/points"]);
        assert_eq!(code, i32::from(!says.is_empty()), "{damage}: {told:#}");
        assert!(told["read_model_differences"].to_string().contains(says), "{damage}: {told:#}");
    }
    let (code, _) = replay_tool(&database.url, &["explain", "bob/points"]);
    assert_eq!(code, 0, "another account is not concerned");

    // A log that was tampered with contradicts itself.
    let switch_off = if database.url.starts_with("sqlite") {
        ["drop trigger events_are_not_updated", "drop trigger events_are_not_deleted"]
    } else {
        ["alter table events disable trigger all", "select 1"]
    };
    for statement in switch_off {
        execute(&database, statement).await;
    }
    execute(&database, "update events set amount = 60 where user_id = 'ann' and version = 4").await;
    let (code, told) = replay_tool(&database.url, &["explain", "ann/points"]);
    assert_eq!((code, &told["contradictions"][0]["position"]), (1, &direct["position"]), "{told:#}");
    execute(&database, "delete from events where user_id = 'ann' and version = 7").await;
    let (code, told) = replay_tool(&database.url, &["explain", "ann/points"]);
    assert_eq!(code, 1);
    assert!(told["unreadable"].to_string().contains("the event is missing"), "{told:#}");
}

async fn wait_for_freezes(service: &Service, freeze: &str) {
    let settled = async {
        while service.get(&format!("/v1/freezes/{freeze}")).await.body["status"] != "settled" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), settled).await.expect("the projector catches up");
}

async fn execute(database: &NewDatabase, sql: &'static str) {
    use sqlx::Connection;
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        sqlx::query(sql).execute(&mut connection).await.expect("done");
        connection.close().await.expect("closed");
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query(sql).execute(&mut connection).await.expect("done");
    }
}

async fn a_correction_is_an_event_of_its_own_and_is_done_once(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    freeze(&service, "O1", 900).await;
    let correct = |amount: &str, more: &[&str]| {
        let fixed =
            ["correct", "ann/points", "--amount", amount, "--reason", "ticket 7: lost in the move", "--actor", "bob"];
        run(&database, &[&["--json"], &fixed[..], more].concat())
    };
    let json = |ran: &Ran| serde_json::from_str::<Value>(&ran.out).expect("JSON");
    let added = correct("+500", &[]);
    assert_eq!(added.code, 0, "{}", added.err);
    let first = json(&added);
    let transaction = &first["transaction"];
    assert_eq!((&first["corrected"], &transaction["type"]), (&json!(true), &json!("credited")));
    assert_eq!(
        (&transaction["business_code"], &transaction["business_id"]),
        (&json!("system.correction"), &first["id"])
    );
    assert_eq!(
        (&transaction["description"], &transaction["balance"]),
        (&json!("ticket 7: lost in the move"), &json!(1_500))
    );
    assert_eq!(added.err, "", "what was done is told on the other stream");
    let entry =
        format!("/v1/events?partition={}&after={}&limit=1", transaction["partition"], position_before(transaction));
    assert_eq!(service.get(&entry).await.expect(200)["items"][0]["actor"], "bob");
    // The same again is the same correction; with another id it is another one.
    let again = json(&correct("+500", &[]));
    assert_eq!(
        (&again["corrected"], &again["transaction"]["transaction_id"]),
        (&json!(false), &transaction["transaction_id"])
    );
    let other = json(&correct("+500", &["--id", "ticket-8"]));
    assert_eq!(
        (&other["corrected"], &other["id"], &other["transaction"]["balance"]),
        (&json!(true), &json!("ticket-8"), &json!(2_000))
    );
    let taken = json(&correct("-300", &[]));
    assert_eq!((&taken["transaction"]["type"], &taken["transaction"]["balance"]), (&json!("deducted"), &json!(1_700)));
    // What the ledger refuses is refused with the figures, and nothing is done.
    let refused = correct("-801", &[]);
    assert_eq!((refused.code, refused.out.as_str()), (2, ""));
    assert!(
        refused.err.contains("insufficient_balance: 801 needed, 800 available; nothing was done"),
        "{}",
        refused.err
    );
    let conflict = correct("-5", &["--id", "ticket-8"]);
    assert_eq!(conflict.code, 2);
    assert!(conflict.err.contains("idempotency_conflict"), "{}", conflict.err);
    for (account, amount, says) in [
        ("ann/points", "500", "write the sign"),
        ("ann/points", "+0", "whole number from 1"),
        ("ann", "+5", "USER/CREDIT_TYPE"),
        ("amn/points", "+5", "there is no account amn/points"),
    ] {
        let ran = run(&database, &["correct", account, "--amount", amount, "--reason", "r", "--actor", "a"]);
        assert_eq!(ran.code, 2, "{account} {amount}");
        assert!(ran.err.contains(says), "{account} {amount}: {}", ran.err);
    }
    let opened =
        run(&database, &["correct", "amn/points", "--amount", "+5", "--reason", "r", "--actor", "a", "--open-account"]);
    assert_eq!((opened.code, opened.out.contains("corrected")), (0, true), "{}", opened.err);
    assert_eq!(service.holdings("ann").await, (1_700, 900, 800));
    // The service goes on after the events that it did not write.
    let (balance, ..) = {
        service.credit("ann", 1, "after").await;
        service.holdings("ann").await
    };
    assert_eq!(balance, 1_701);
    drop(service);
    verify_consistent(&database.url);
}

fn position_before(transaction: &Value) -> u64 {
    transaction["position"].as_u64().expect("a number") - 1
}
