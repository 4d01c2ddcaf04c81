//! Who did what, from where, with the state before and after.

use std::{process::Command, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection;
use tests::{Service, on_both_databases, service::program, store::NewDatabase};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use uuid::Uuid;

on_both_databases!(
    each_change_is_written_down_with_the_state_before_and_after,
    what_administrators_do_is_written_down_and_found_by_what_they_are,
    what_waits_is_written_when_the_service_stops,
    a_search_is_read_page_by_page_and_bad_parameters_are_named,
    a_level_says_what_is_written_down,
    what_a_caller_who_hung_up_asked_for_is_written_down,
    what_is_asked_of_an_operation_names_it,
);

async fn search(service: &Service, query: &str) -> Vec<Value> {
    let found = service.get(&format!("/v1/audit?limit=500{query}")).await.expect(200);
    found["items"].as_array().expect("items").clone()
}

/// Waits until so many rows are found.
async fn rows(service: &Service, query: &str, count: usize) -> Vec<Value> {
    let asked = async {
        loop {
            let found = search(service, query).await;
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let found =
        tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap_or_else(|_| panic!("{query}: {count}"));
    assert_eq!(found.len(), count, "{query}: {found:#?}");
    found
}

fn command(user: &str, amount: u64, id: &str) -> Value {
    json!({ "user_id": user, "credit_type": "points", "amount": amount, "business_code": "c", "business_id": id })
}

async fn each_change_is_written_down_with_the_state_before_and_after(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let credited = service.post("/v1/credits", &command("ann", 100, "1")).await.expect(201);
    service.post("/v1/credits", &command("ann", 100, "1")).await.expect(200);
    service.post("/v1/freezes", &command("ann", 30, "2")).await.expect(201);
    service.post("/v1/debits", &command("ann", 71, "3")).await.expect(422);
    service.post("/v1/debits", &command("bob", 1, "4")).await.expect(404);
    // What cannot be read asks for nothing.
    service.post("/v1/credits", &command("ann", 0, "5")).await.expect(400);
    let mut credit = command("cid", 5, "6");
    credit["type"] = json!("credit");
    let mut debit = command("cid", 9, "7");
    debit["type"] = json!("debit");
    let batch = json!({ "atomic": false, "commands": [credit, debit] });
    service.post("/v1/batches", &batch).await.expect(200);

    let all = rows(&service, "", 6).await;
    let brief: Vec<_> =
        all.iter().map(|row| format!("{} {}", row["action"], row["outcome"]).replace('"', "")).collect();
    assert_eq!(
        brief,
        [
            "batch done",
            "debit account_not_found",
            "debit insufficient_balance",
            "freeze recorded",
            "credit replayed",
            "credit recorded"
        ]
    );
    let details = &all[0]["details"];
    assert_eq!((&details["commands"], &details["recorded"], &details["refused"]), (&json!(2), &json!(1), &json!(1)));
    let first = all.last().expect("six");
    assert_eq!(first["transaction_id"], credited["transaction_id"]);
    assert_eq!((&first["actor"], &first["request_id"]), (&json!("anonymous"), &credited["request_id"]));
    assert!(first["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1:")), "{first:#}");
    assert_eq!(first["before"], Value::Null);
    let after = json!({ "balance": 100, "frozen": 0, "available": 100, "version": 1, "status": "active" });
    assert_eq!(first["after"], after);
    let frozen = &all[3];
    assert_eq!(frozen["before"], after);
    assert_eq!(
        frozen["after"],
        json!({ "balance": 100, "frozen": 30, "available": 70, "version": 2, "status": "active" })
    );
    assert_eq!(
        (&all[2]["user_id"], &all[2]["transaction_id"], &all[2]["after"]),
        (&json!("ann"), &Value::Null, &Value::Null)
    );

    assert_eq!(search(&service, "&user_id=ann&credit_type=points").await.len(), 4);
    assert_eq!(search(&service, "&user_id=bob&credit_type=points").await.len(), 1);
    assert_eq!(search(&service, "&action=debit").await.len(), 2);
    let request = credited["request_id"].as_str().expect("an id");
    assert_eq!(search(&service, &format!("&request_id={request}")).await, std::slice::from_ref(first));
    assert_eq!(search(&service, "&from=2100-01-01T00:00:00Z").await, Vec::<Value>::new());
    assert_eq!(search(&service, "&to=2000-01-01T00:00:00Z").await, Vec::<Value>::new());
    assert_eq!(search(&service, "&from=2000-01-01T00:00:00Z&to=2100-01-01T00:00:00Z").await.len(), 6);
}

async fn what_administrators_do_is_written_down_and_found_by_what_they_are(database: NewDatabase) {
    let keys = |arguments: &[&str]| {
        let mut run = Command::new(program("api"));
        let run = run.args(["--database-url", &database.url, "keys"]).args(arguments).output().expect("it runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).expect("UTF-8").trim().to_owned()
    };
    let admin = keys(&["create", "--label", "the admin", "--scopes", "credit,read,admin"]);
    let reader = keys(&["create", "--label", "the reader", "--scopes", "read"]);
    let service = Service::start(&database.url, &[]);
    let send = async |key: &str, method: Method, path: &str, body: Option<Value>| {
        let bearer = format!("Bearer {key}");
        service.send_as(Some(&bearer), method, path, body.map(|body| body.to_string())).await
    };
    send(&admin, Method::POST, "/v1/credits", Some(command("ann", 5, "1"))).await.expect(201);
    let reason = json!({ "reason": "stolen" });
    send(&admin, Method::POST, "/v1/accounts/ann/points/lock", Some(reason.clone())).await.expect(201);
    send(&reader, Method::POST, "/v1/accounts/ann/points/unlock", Some(reason)).await.expect(403);
    send(&reader, Method::GET, "/v1/audit", None).await.expect(403);
    // Nobody gets into it by a path that leads nowhere.
    for path in ["/v1/accounts/a/b/c/unlock", "/v1/operationsX", "/v1/inconsistencies/x"] {
        service.send_as(None, Method::POST, path, Some("{}".to_owned())).await.expect(404);
    }
    let prefix = reader.split('_').nth(1).expect("lk_PREFIX_SECRET");
    keys(&["revoke", prefix]);
    let path = "/v1/audit?limit=500";
    let asked = async {
        loop {
            let found = send(&admin, Method::GET, path, None).await.expect(200);
            if found["items"].as_array().is_some_and(|items| items.len() == 5) {
                return found["items"].as_array().expect("items").clone();
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(20), asked).await.expect("five rows");
    let actions: Vec<_> = all.iter().map(|row| row["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions, ["key_revoked", "lock", "credit", "key_created", "key_created"]);
    assert_eq!((&all[1]["actor"], &all[1]["before"]["status"]), (&json!("the admin"), &json!("active")));
    assert_eq!(all[1]["after"]["status"], "locked");
    assert_eq!(all[0]["details"]["prefix"], prefix);
    assert_eq!((&all[4]["details"]["label"], &all[4]["address"]), (&json!("the admin"), &Value::Null));
    assert!(all[4]["actor"].as_str().is_some_and(|actor| actor.starts_with("local:")), "{:#}", all[4]);
    let secret = admin.rsplit('_').next().expect("a secret");
    assert!(!json!(all).to_string().contains(secret), "no secret is written down");
    let by_actor = send(&admin, Method::GET, "/v1/audit?actor=the%20admin", None).await.expect(200);
    assert_eq!(by_actor["items"].as_array().expect("items").len(), 2);
}

async fn what_a_caller_who_hung_up_asked_for_is_written_down(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let body = command("ann", 5, "1").to_string();
    let request = format!(
        "POST /v1/credits HTTP/1.1\r\nHost: ledger\r\nX-Request-Id: hung-up\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let address = service.url.strip_prefix("http://").expect("its address");
    // Nothing is committed for a while.
    let is_sqlite = database.url.starts_with("sqlite");
    let hold = if is_sqlite { "begin immediate" } else { "begin; lock table partition_heads in access exclusive mode" };
    let hang_up = async {
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        caller.write_all(request.as_bytes()).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(caller);
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    if is_sqlite {
        let mut holder = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        sqlx::raw_sql(hold).execute(&mut holder).await.expect("held");
        hang_up.await;
        sqlx::raw_sql("rollback").execute(&mut holder).await.expect("let go");
    } else {
        let mut holder = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::raw_sql(hold).execute(&mut holder).await.expect("held");
        hang_up.await;
        sqlx::raw_sql("rollback").execute(&mut holder).await.expect("let go");
    }
    let written = rows(&service, "&action=credit", 1).await;
    assert_eq!((&written[0]["request_id"], &written[0]["outcome"]), (&json!("hung-up"), &json!("recorded")));
    assert_eq!(service.holdings("ann").await, (5, 0, 5));
}

async fn what_is_asked_of_an_operation_names_it(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let [id, unknown, flow] = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    let mut debit = command("ann", 30, "1");
    debit["operation_id"] = json!(id);
    service.post("/v1/debits", &debit).await.expect(201);
    let compensate = async |id: Uuid, reason: &str| {
        service.post(&format!("/v1/operations/{id}/compensate"), &json!({ "reason": reason })).await
    };
    compensate(id, "out of stock").await.expect(200);
    compensate(id, "again").await.expect(200);
    compensate(unknown, "nonsense").await.expect(404);
    let written = rows(&service, "&action=compensate", 3).await;
    for (outcome, details) in [
        ("done", json!({ "operation_id": id, "reason": "out of stock", "transactions": 1, "before": false })),
        ("done", json!({ "operation_id": id, "reason": "again", "transactions": 1, "before": true })),
        ("operation_not_found", json!({ "operation_id": unknown, "reason": "nonsense" })),
    ] {
        assert!(written.iter().any(|row| row["outcome"] == outcome && row["details"] == details), "{written:#?}");
    }

    let open = async |name: &str| {
        let body = json!({ "operation_id": flow, "name": name, "steps": ["pay"] });
        service.post("/v1/operations", &body).await
    };
    open("order").await.expect(201);
    open("another").await.expect(409);
    let step = async |name: &str| {
        service.post(&format!("/v1/operations/{flow}/steps/{name}"), &json!({ "status": "started" })).await
    };
    step("pay").await.expect(201);
    step("pay").await.expect(200);
    step("ship").await.expect(404);
    let written = rows(&service, "&action=operation", 5).await;
    for (outcome, details) in [
        ("done", json!({ "operation_id": flow, "name": "order", "before": false })),
        ("idempotency_conflict", json!({ "operation_id": flow, "name": "another" })),
        ("done", json!({ "operation_id": flow, "step": "pay", "status": "started", "before": false })),
        ("done", json!({ "operation_id": flow, "step": "pay", "status": "started", "before": true })),
        ("step_not_found", json!({ "operation_id": flow, "step": "ship", "status": "started" })),
    ] {
        assert!(written.iter().any(|row| row["outcome"] == outcome && row["details"] == details), "{written:#?}");
    }
}

async fn what_waits_is_written_when_the_service_stops(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let credit = |number: u32| {
        let service = &service;
        async move { service.credit("ann", 1, &number.to_string()).await }
    };
    futures::future::join_all((0..200).map(credit)).await;
    service.terminate();
    let service = Service::start(&database.url, &[]);
    assert_eq!(search(&service, "&action=credit").await.len(), 200);
}

async fn a_search_is_read_page_by_page_and_bad_parameters_are_named(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    for number in 0..45 {
        service.credit(&format!("user-{number}"), 1, "1").await;
    }
    rows(&service, "", 45).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/audit?limit=10{cursor}")).await.expect(200);
        let items = page["items"].as_array().expect("items");
        seen.extend(items.iter().map(|row| row["user_id"].as_str().unwrap_or_default().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 45);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 45, "each once");
    for (query, field) in [
        ("limit=501", "limit"),
        ("cursor=x", "cursor"),
        ("from=yesterday", "from"),
        ("to=1", "to"),
        ("user_id=ann", "credit_type"),
        ("credit_type=points", "user_id"),
        ("who=ann", "who"),
    ] {
        let refused = service.get(&format!("/v1/audit?{query}")).await;
        assert_eq!((refused.status.as_u16(), refused.text("field")), (400, field), "{}", refused.body);
    }
}

async fn a_level_says_what_is_written_down(database: NewDatabase) {
    for (level, written) in [("admin", 1), ("off", 1)] {
        let mut service = Service::start(&database.url, &["--audit", level]);
        service.credit("ann", 1, level).await;
        service.post("/v1/accounts/ann/points/lock", &json!({ "reason": level })).await.expect(201);
        service.terminate();
        let service = Service::start(&database.url, &[]);
        let found = search(&service, "").await;
        assert_eq!(found.len(), written, "{level}");
        assert_eq!(found[0]["action"], "lock");
    }
}
