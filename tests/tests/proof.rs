//! The continuous proof: what differs from the log is found without anybody asking, told, and mended or locked.

use std::time::Duration;

use ledger_core::Partition;
use ledger_store::Database;
use projector::proof::{Options, prove};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection};
use tests::{Load, Service, on_both_databases, replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent};

on_both_databases!(
    a_small_difference_is_mended_by_itself,
    a_large_difference_locks_the_account_until_a_person_resolves_it,
    rows_of_freezes_that_are_edited_deleted_or_added_are_mended,
    a_partition_whose_projector_stopped_is_mended_at_once,
    under_a_load_nothing_is_found_that_is_not_there,
    every_partition_is_proved_within_the_round,
    a_damaged_log_is_told_and_nothing_is_concluded_from_it,
    a_list_is_read_page_by_page_and_a_word_stands,
    a_partition_too_large_for_memory_is_proved_in_slices,
);

/// A round in a few seconds.
const QUICK: &[&str] = &["--proof-round", "4"];
/// How long anything is waited for: many rounds, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(45);

async fn execute(database: &NewDatabase, statement: &str) -> u64 {
    let statement = AssertSqlSafe(statement.to_owned());
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("it is done").rows_affected();
        connection.close().await.expect("closed");
        done
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("it is done").rows_affected();
        connection.close().await.expect("closed");
        done
    }
}

/// Waits until every event is in the read models.
async fn projected(service: &Service) {
    until("the projector catches up", async || {
        let ready = service.get("/readyz").await.body;
        (ready["projector"]["lag_positions"] == 0 && ready["projector"]["halted_partitions"] == json!([])).then_some(())
    })
    .await;
}

/// Asks again and again until there is something.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

async fn listed(service: &Service, query: &str) -> Vec<Value> {
    let list = service.get(&format!("/v1/inconsistencies?limit=500{query}")).await.expect(200);
    list["items"].as_array().expect("items").clone()
}

/// The first inconsistency about a user with that outcome.
async fn found(service: &Service, user: &str, outcome: &str) -> Value {
    until(&format!("{user} is {outcome}"), async || {
        let items = listed(service, "").await;
        items.into_iter().find(|item| item["user_id"] == user && item["outcome"] == outcome)
    })
    .await
}

/// A figure of `/metrics`, summed over its labels.
async fn metric(service: &Service, name: &str) -> f64 {
    let text = service.get("/metrics").await.body;
    let lines = text.as_str().expect("text").lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn freeze(service: &Service, user: &str, amount: u64, id: &str) -> Value {
    let command = json!({ "user_id": user, "credit_type": "points", "amount": amount,
        "business_code": "test.freeze", "business_id": id });
    service.post("/v1/freezes", &command).await.expect(201)
}

async fn balance(service: &Service, user: &str) -> Value {
    service.get(&format!("/v1/accounts/{user}/points")).await.expect(200)["balance"].clone()
}

async fn a_small_difference_is_mended_by_itself(database: NewDatabase) {
    let service = Service::start(&database.url, QUICK);
    for user in ["ann", "bob", "cid", "dan"] {
        service.credit(user, 1_000, "1").await;
    }
    projected(&service).await;
    for damage in [
        "update balances set balance = balance + 50, available = available + 50 where user_id = 'ann'",
        // Not even available is what balance and frozen make of it.
        "update balances set balance = balance - 99 where user_id = 'bob'",
        "update balances set status = 'locked', version = 7 where user_id = 'cid'",
        // A row that no event made.
        "insert into balances select 5, account_id, 1, 1, 10, 0, 10, updated_at, status, user_id, credit_type \
         from balances where user_id = 'dan' and partition <> 5",
    ] {
        assert!(execute(&database, damage).await <= 1);
    }
    for (user, size) in [("ann", 50), ("bob", 99), ("cid", 0)] {
        let mended = found(&service, user, "mended").await;
        assert_eq!((&mended["size"], &mended["kind"]), (&json!(size), &json!("balance_mismatch")), "{mended:#}");
        assert_eq!((&mended["read_model"], &mended["resolved_by"]), (&json!("balances"), &json!("system.proof")));
        assert!(mended["resolved_at"].is_string() && mended["credit_type"] == "points", "{mended:#}");
        assert!(mended["expected"].as_str().is_some_and(|text| text.starts_with("balance 1000 ")), "{mended:#}");
        assert_eq!(balance(&service, user).await, 1_000);
    }
    let log = service.log();
    assert!(log.contains("a row of balances is not what the log makes of it"), "{log}");
    // Nobody is locked.
    let debit =
        json!({ "user_id": "ann", "credit_type": "points", "amount": 1, "business_code": "d", "business_id": "1" });
    service.post("/v1/debits", &debit).await.expect(201);
    // What came back is another inconsistency.
    projected(&service).await;
    execute(&database, "update balances set balance = balance + 1, available = available + 1 where user_id = 'ann'")
        .await;
    until("it is found again", async || {
        let again = listed(&service, "&status=resolved").await;
        (again.iter().filter(|item| item["user_id"] == "ann").count() == 2).then_some(())
    })
    .await;
    // The row of no account stays for a person.
    if execute(&database, "delete from balances where user_id = 'dan' and partition = 5 and balance = 10").await == 1 {
        until("it is gone", async || listed(&service, "&status=open").await.is_empty().then_some(())).await;
    }
    verify_consistent(&database.url);
}

async fn a_large_difference_locks_the_account_until_a_person_resolves_it(database: NewDatabase) {
    let service = Service::start(&database.url, QUICK);
    for user in ["ann", "bob"] {
        service.credit(user, 10_000, "1").await;
    }
    let held = freeze(&service, "bob", 400, "1").await;
    projected(&service).await;
    execute(&database, "update balances set balance = 10100, available = 10100 where user_id = 'ann'").await;
    execute(&database, "delete from freezes where user_id = 'bob'").await;
    let locked = found(&service, "ann", "locked").await;
    assert_eq!((&locked["size"], &locked["resolved_at"]), (&json!(100), &Value::Null), "{locked:#}");
    let missing = found(&service, "bob", "locked").await;
    assert_eq!((&missing["size"], &missing["kind"]), (&json!(400), &json!("freeze_missing")), "{missing:#}");

    let command = |id: &str| json!({ "user_id": "ann", "credit_type": "points", "amount": 1, "business_code": "c", "business_id": id });
    let refused = service.post("/v1/debits", &command("1")).await;
    assert_eq!((refused.status.as_u16(), refused.text("code")), (423, "account_locked"), "{}", refused.body);
    assert_eq!(service.post("/v1/freezes", &command("2")).await.status, 423);
    service.post("/v1/credits", &command("3")).await.expect(201);
    let release = json!({ "freeze_id": held["transaction_id"], "business_code": "c", "business_id": "4" });
    assert_eq!(service.post("/v1/unfreezes", &release).await.status, 201, "value may return");
    let log = service.log();
    assert!(log.contains("ann/points is locked: what is served of it is off by 100 units"), "{log}");

    // It stands for rounds, and is told and locked once.
    let rounds = metric(&service, "ledger_proof_partitions_total").await + 130.0;
    until("two more rounds", async || (metric(&service, "ledger_proof_partitions_total").await > rounds).then_some(()))
        .await;
    let log = service.log();
    assert_eq!(log.matches("kind=\"account_locked\"").count(), 2, "{log}");
    let transactions = service.get("/v1/accounts/ann/points/transactions?type=locked").await.expect(200);
    let items = transactions["items"].as_array().expect("items");
    assert_eq!(items.len(), 1, "{transactions:#}");
    assert_eq!(
        (&items[0]["business_code"], &items[0]["business_id"]),
        (&json!("system.guard"), &locked["inconsistency_id"])
    );
    assert_eq!(listed(&service, "&status=open").await.iter().filter(|item| item["user_id"] == "ann").count(), 1);

    // A person mends the row, says so, and lets value out again.
    assert_eq!(replay_tool(&database.url, &["rebuild", "--account", "ann/points"]).0, 0);
    let path = format!("/v1/inconsistencies/{}/resolve", locked["inconsistency_id"].as_str().expect("an id"));
    let resolved = service.post(&path, &json!({ "note": "an edit by hand", "unlock": true })).await.expect(200);
    assert_eq!(
        (&resolved["note"], &resolved["outcome"]),
        (&json!("an edit by hand"), &json!("locked")),
        "{resolved:#}"
    );
    assert!(resolved["resolved_at"].is_string(), "{resolved:#}");
    service.post("/v1/debits", &command("1")).await.expect(201);
    let again = service.post(&path, &json!({ "note": "an edit by hand", "unlock": true })).await.expect(200);
    assert_eq!(again, resolved, "the same answer again");
    let other = service.post(&path, &json!({ "note": "something else" })).await;
    assert_eq!((other.status.as_u16(), other.text("code")), (409, "already_resolved"), "{}", other.body);
    let unlocks = service.get("/v1/accounts/ann/points/transactions?type=unlocked").await.expect(200);
    assert_eq!(unlocks["items"].as_array().expect("items").len(), 1, "{unlocks:#}");

    assert_eq!(replay_tool(&database.url, &["rebuild", "--account", "bob/points"]).0, 0);
    projected(&service).await;
    verify_consistent(&database.url);
}

async fn rows_of_freezes_that_are_edited_deleted_or_added_are_mended(database: NewDatabase) {
    let service = Service::start(&database.url, QUICK);
    for user in ["ann", "bob", "cid", "dan"] {
        service.credit(user, 1_000, "1").await;
        let held = freeze(&service, user, 90, "1").await;
        freeze(&service, user, 80, "2").await;
        let capture =
            json!({ "freeze_id": held["transaction_id"], "amount": 90, "business_code": "c", "business_id": "1" });
        service.post("/v1/debits", &capture).await.expect(201);
    }
    projected(&service).await;
    let columns = "amount, remaining, captured, released, expires_at, created_at, freeze_id, account_id, status, user_id, \
                   credit_type, business_code, business_id";
    for damage in [
        "update freezes set remaining = 79, released = 1 where user_id = 'ann' and business_id = '2'".to_owned(),
        // A settled one.
        "update freezes set captured = 80, released = 10 where user_id = 'bob' and business_id = '1'".to_owned(),
        "delete from freezes where user_id = 'cid' and business_id = '2'".to_owned(),
        format!(
            "insert into freezes (partition, position, {columns}) select partition, 1000000, {columns} \
             from freezes where user_id = 'dan' and business_id = '2'"
        ),
    ] {
        assert_eq!(execute(&database, &damage).await, 1, "{damage}");
    }
    for (user, kind, size) in [
        ("ann", "freeze_mismatch", 1),
        ("bob", "freeze_mismatch", 10),
        ("cid", "freeze_missing", 80),
        ("dan", "freeze_unexpected", 80),
    ] {
        let mended = found(&service, user, "mended").await;
        assert_eq!((&mended["kind"], &mended["size"]), (&json!(kind), &json!(size)), "{mended:#}");
        assert_eq!(mended["read_model"], "freezes");
    }
    verify_consistent(&database.url);
}

async fn a_partition_whose_projector_stopped_is_mended_at_once(database: NewDatabase) {
    // Its turn would come after hours.
    let service = Service::start(&database.url, &["--proof-round", "86400"]);
    service.credit("ann", 100, "1").await;
    projected(&service).await;
    execute(&database, "update balances set balance = 77, available = 77 where user_id = 'ann'").await;
    service.credit("ann", 100, "2").await;
    let mended = found(&service, "ann", "mended").await;
    assert_eq!(mended["size"], 23, "{mended:#}");
    projected(&service).await;
    assert_eq!(balance(&service, "ann").await, 200);
    until("what the projector wrote down is resolved, too", async || {
        listed(&service, "&status=open").await.is_empty().then_some(())
    })
    .await;
    verify_consistent(&database.url);
}

async fn under_a_load_nothing_is_found_that_is_not_there(database: NewDatabase) {
    let service = Service::start(&database.url, &["--proof-round", "1"]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    let rounds = async {
        until("ten rounds", async || {
            (metric(&service, "ledger_proof_partitions_total").await >= 640.0 && load.acknowledged() > 300)
                .then_some(())
        })
        .await;
        load.stop();
    };
    let services = [&service];
    tokio::join!(load.run(&services, 4), rounds);
    assert_eq!(listed(&service, "").await, Vec::<Value>::new());
    assert!(metric(&service, "ledger_proof_partitions_total{outcome=\"sound\"}").await >= 640.0);
    load.check(&service).await;
}

async fn every_partition_is_proved_within_the_round(database: NewDatabase) {
    let mut service = Service::start(&database.url, &["--proof-round", "0"]);
    let credit = |number: u32| {
        json!({ "type": "credit", "user_id": format!("user-{number}"), "credit_type": "points",
        "amount": 5, "business_code": "c", "business_id": "1" })
    };
    let commands: Vec<_> = (0..600).map(credit).collect();
    service.post("/v1/batches", &json!({ "commands": commands })).await.expect(201);
    projected(&service).await;
    service.terminate();
    // One row in each partition.
    let damage = "update balances set balance = balance + 1, available = available + 1 \
                  where (partition, position) in (select partition, min(position) from balances group by partition)";
    assert_eq!(execute(&database, damage).await, 64);
    let round = 12;
    let mut service = Service::start(&database.url, &["--proof-round", &round.to_string()]);
    // A service that starts anew goes on with the round.
    until("some are proved", async || (listed(&service, "").await.len() >= 10).then_some(())).await;
    service.terminate();
    let service = Service::start(&database.url, &["--proof-round", &round.to_string()]);
    until("all are mended", async || {
        let mended = listed(&service, "&status=resolved").await;
        (mended.iter().filter(|item| item["outcome"] == "mended").count() == 64).then_some(())
    })
    .await;
    assert!(metric(&service, "ledger_proof_partitions_total").await <= 60.0, "the round went on where it was");
    let took = until("a round is over", async || {
        let seconds = metric(&service, "ledger_proof_round_seconds").await;
        (seconds > 0.0).then_some(seconds)
    })
    .await;
    assert!(took < f64::from(round) * 2.0, "a round took {took} s");
    verify_consistent(&database.url);
}

async fn a_damaged_log_is_told_and_nothing_is_concluded_from_it(database: NewDatabase) {
    let mut service = Service::start(&database.url, &["--proof-round", "0"]);
    for user in ["ann", "bob"] {
        service.credit(user, 500, "1").await;
        service.credit(user, 500, "2").await;
    }
    projected(&service).await;
    service.terminate();
    Vandal::arrive(&database.url)
        .await
        .run(&[
            "update events set amount = 499 where user_id = 'ann' and business_id = '1'",
            "update balances set balance = 1001, available = 1001 where user_id = 'ann'",
            "update balances set balance = 1001, available = 1001 where user_id = 'bob'",
        ])
        .await;
    let service = Service::start(&database.url, QUICK);
    // Another partition goes on.
    let mended = found(&service, "bob", "mended").await;
    // It is written down first and told then: what was done about it comes a moment later.
    let damaged = until("the log is told", async || {
        let is_told = |item: &Value| item["kind"] == "log_damaged" && item["outcome"] != Value::Null;
        listed(&service, "&status=open").await.into_iter().find(is_told)
    })
    .await;
    assert_ne!(damaged["partition"], mended["partition"]);
    assert_eq!((&damaged["read_model"], &damaged["outcome"]), (&json!("events"), &json!("reported")), "{damaged:#}");
    assert_eq!((&damaged["user_id"], &damaged["size"]), (&Value::Null, &Value::Null));
    let rounds = metric(&service, "ledger_proof_partitions_total").await + 70.0;
    until("another round", async || (metric(&service, "ledger_proof_partitions_total").await > rounds).then_some(()))
        .await;
    let log = service.log();
    assert_eq!(log.matches("kind=\"log_damaged\"").count(), 1, "{log}");
    assert!(!log.contains("account_locked"), "{log}");
    assert_eq!(balance(&service, "ann").await, 1_001, "nothing was mended");
    assert_eq!(listed(&service, "&status=open").await.len(), 1);
}

async fn a_list_is_read_page_by_page_and_a_word_stands(database: NewDatabase) {
    let service = Service::start(&database.url, &["--proof-round", "0"]);
    let of_database = |postgres: &str, sqlite: &str| {
        if database.url.starts_with("sqlite") { sqlite.to_owned() } else { postgres.to_owned() }
    };
    for number in 0..25 {
        let id = format!("019a0000-0000-7000-8000-0000000000{number:02}");
        let found_at = of_database("now()", "'2026-11-21T12:00:00.000000Z'");
        execute(&database, &format!(
            "insert into inconsistencies (partition, inconsistency_id, position, projection, kind, subject, expected, found, found_at) \
             values ({}, '{id}', {number}, 'balances', 'balance_mismatch', 's{number}', 'a', 'b', {found_at})", number % 4
        )).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/inconsistencies?status=open&limit=10{cursor}")).await.expect(200);
        seen.extend(
            page["items"].as_array().expect("items").iter().map(|item| item["position"].as_u64().expect("a number")),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..25).rev().collect::<Vec<_>>(), "newest first, each once");
    let path = "/v1/inconsistencies/019a0000-0000-7000-8000-000000000007/resolve";
    for (body, field) in [
        (json!({}), "note"),
        (json!({ "note": " " }), "note"),
        (json!({ "note": "x".repeat(513) }), "note"),
        (json!({ "note": 7 }), "note"),
        (json!({ "note": "x", "unlock": 1 }), "unlock"),
        (json!({ "note": "x", "lock": true }), "lock"),
        // Nobody's account is locked by it.
        (json!({ "note": "x", "unlock": true }), "unlock"),
    ] {
        let refused = service.post(path, &body).await;
        assert_eq!((refused.status.as_u16(), refused.text("field")), (400, field), "{body}: {}", refused.body);
    }
    let resolved = service.post(path, &json!({ "note": "seen" })).await.expect(200);
    assert_eq!(
        (&resolved["outcome"], &resolved["resolved_by"]),
        (&json!("resolved"), &json!("anonymous")),
        "{resolved:#}"
    );
    assert_eq!(service.post(path, &json!({ "note": "seen" })).await.expect(200), resolved);
    assert_eq!(listed(&service, "&status=open").await.len(), 24);
    assert_eq!(listed(&service, "&status=resolved").await, [resolved]);
    for (path, status) in [
        ("/v1/inconsistencies/019a0000-0000-7000-8000-0000000000ff/resolve", 404),
        ("/v1/inconsistencies/nothing/resolve", 400),
    ] {
        assert_eq!(service.post(path, &json!({ "note": "x" })).await.status, status, "{path}");
    }
    for query in ["status=all", "limit=0", "limit=501", "cursor=x", "user=ann"] {
        let refused =
            service.send(Method::GET, &format!("/v1/inconsistencies?{query}"), None).await.expect("an answer");
        assert_eq!(refused.status, 400, "{query}");
    }
}

async fn a_partition_too_large_for_memory_is_proved_in_slices(database: NewDatabase) {
    let service = Service::start(&database.url, &["--proof-round", "0"]);
    let credit = |number: u32| {
        json!({ "type": "credit", "user_id": format!("user-{number}"), "credit_type": "points",
        "amount": 50, "business_code": "c", "business_id": "1" })
    };
    let commands: Vec<_> = (0..2_000).map(credit).collect();
    service.post("/v1/batches", &json!({ "commands": commands })).await.expect(201);
    for user in 0..20 {
        freeze(&service, &format!("user-{user}"), 7, "1").await;
    }
    projected(&service).await;
    drop(service);
    let edit = "update balances set balance = balance + 1 where user_id in ('user-3', 'user-1999')";
    assert_eq!(execute(&database, edit).await, 2);
    let opened = Database::open_existing(&database.url).await.expect("a ledger");
    let options = Options { memory_bytes: 2_000, ..Options::default() };
    let (mut accounts, mut freezes, mut differ) = (0, 0, Vec::new());
    for partition in Partition::all() {
        let proof = prove(&opened, partition, &options).await.expect("proved");
        assert!(proof.slices > 1, "{proof:?}");
        accounts += proof.accounts;
        freezes += proof.freezes;
        let names = proof.differences.iter().filter_map(|difference| difference.account.as_ref());
        differ.extend(names.map(|account| account.user_id().to_string()));
    }
    differ.sort_unstable();
    assert_eq!((accounts, freezes), (2_000, 20), "each once");
    assert_eq!(differ, ["user-1999", "user-3"]);
    opened.close().await;
}
