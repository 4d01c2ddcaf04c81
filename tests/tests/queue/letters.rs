//! What is not done: its letter, its alert, and how it is put back.

use serde_json::{Value, json};
use tests::{Nats, Service, on_both_databases, store::NewDatabase, verify_consistent};

use super::{Stored, account, jetstream, publish, send, stored, until_empty};

on_both_databases!(
    a_letter_has_the_body_as_it_came_and_says_why,
    a_letter_that_is_put_back_is_done_once,
    a_command_does_what_the_route_does,
);

fn problem(letter: &Stored) -> Value {
    serde_json::from_str(letter.header("Ledger-Problem")).expect("JSON")
}

async fn a_letter_has_the_body_as_it_came_and_says_why(database: NewDatabase) {
    let nats = Nats::start();
    let service = Service::start(&database.url, &["--nats-url", &nats.url(), "--nats-commands"]);
    let context = jetstream(&nats).await;
    service.credit("ann", 5, "seed").await;
    let small = r#"{ "user_id":"ann",  "credit_type":"points","amount":7,"business_code":"a","business_id":"é🪙" }"#;
    let field =
        r#"{"user_id":"ann","credit_type":"points","amount":1,"business_code":"a","business_id":"f","amonut":1}"#;
    let unknown = r#"{"freeze_id":"0190d5a6-5d2c-8f3e-9a63-0c2b6f6f2d11","business_code":"a","business_id":"u"}"#;
    let conflict =
        r#"{"user_id":"ann","credit_type":"points","amount":6,"business_code":"test.credit","business_id":"seed"}"#;
    let large = vec![b' '; 64 * 1024 + 1];
    let bodies: [(&str, &[u8], &str, u64); 7] = [
        ("debit", small.as_bytes(), "insufficient_balance", 422),
        ("credit", field.as_bytes(), "invalid_request", 400),
        ("unfreeze", unknown.as_bytes(), "freeze_not_found", 404),
        ("credit", conflict.as_bytes(), "idempotency_conflict", 409),
        ("freeze", b"no JSON", "invalid_request", 400),
        ("refund", b"\xff\x00\xfe", "invalid_request", 400),
        ("credit", &large, "body_too_large", 413),
    ];
    for (number, (kind, body, ..)) in bodies.iter().enumerate() {
        publish(&context, kind, &number.to_string(), body.to_vec()).await;
    }
    let letters = stored(&context, "CREDIT_DEAD", bodies.len()).await;
    until_empty(&context).await;
    assert_eq!(letters.len(), bodies.len());
    for (kind, body, code, status) in bodies {
        let mut found = letters.iter().filter(|letter| letter.payload == body);
        let letter = found.next().unwrap_or_else(|| panic!("a letter about {code}"));
        assert!(found.next().is_none(), "one letter about {code}");
        assert_eq!(letter.subject, format!("credit.dead.{kind}"));
        assert_eq!(letter.header("Ledger-Subject"), format!("credit.commands.{kind}"));
        assert_eq!(letter.header("Ledger-Attempts"), "1");
        assert_eq!(letter.header("Ledger-Code"), code);
        let sequence: u64 = letter.header("Ledger-Sequence").parse().expect("a number");
        assert!((1..=7).contains(&sequence), "{sequence}");
        assert_eq!(letter.header("X-Request-Id"), format!("CREDIT_COMMANDS-{sequence}"));
        assert!(letter.header("Ledger-Published-At").ends_with('Z'));
        let problem = problem(letter);
        assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some(code), Some(status)), "{problem}");
        assert_eq!(problem["request_id"], letter.header("X-Request-Id"));
    }
    // Each was told to a person, too.
    let alerts = stored(&context, "CREDIT_ALERTS", 7).await;
    assert_eq!(alerts.len(), 7);
    let alert = alerts.iter().map(Stored::json).find(|alert| alert["figures"]["code"] == "insufficient_balance");
    let alert = alert.expect("an alert about the debit");
    assert_eq!((alert["kind"].as_str(), alert["user_id"].as_str()), (Some("command_dead"), Some("ann")), "{alert}");
    assert_eq!(alert["figures"]["business_id"], "é🪙");
    assert_eq!(alert["figures"]["subject"], "credit.commands.debit");
    let metrics = service.get("/metrics").await.body.to_string();
    assert!(metrics.contains(r#"ledger_nats_commands_total{outcome=\"dead\"} 7"#), "{metrics}");
    assert_eq!(service.holdings("ann").await, (5, 0, 5));
}

async fn a_letter_that_is_put_back_is_done_once(database: NewDatabase) {
    let nats = Nats::start();
    let service = Service::start(&database.url, &["--nats-url", &nats.url(), "--nats-commands"]);
    let context = jetstream(&nats).await;
    send(&context, "debit", &account("ann", 7, "1")).await;
    let letters = stored(&context, "CREDIT_DEAD", 1).await;
    assert_eq!(problem(&letters[0])["code"], "account_not_found");
    service.credit("ann", 10, "seed").await;
    for id in ["again", "and again"] {
        let kind = letters[0].header("Ledger-Subject").trim_start_matches("credit.commands.").to_owned();
        publish(&context, &kind, id, letters[0].payload.clone()).await;
    }
    until_empty(&context).await;
    assert_eq!(service.holdings("ann").await, (3, 0, 3));
    assert_eq!(stored(&context, "CREDIT_DEAD", 1).await.len(), 1);
    drop(service);
    verify_consistent(&database.url);
}

async fn a_command_does_what_the_route_does(database: NewDatabase) {
    let nats = Nats::start();
    let service =
        Service::start(&database.url, &["--nats-url", &nats.url(), "--nats-commands", "--freeze-lifetime", "3600"]);
    let context = jetstream(&nats).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X-Request-Id", "checkout-17");
    let mut command = account("ann", 30, "1");
    command["metadata"] = json!({ "order": 5 });
    super::until("the queue takes a message", || async {
        let payload = command.to_string().into_bytes();
        let sent = context.publish_with_headers("credit.commands.credit", headers.clone(), payload.into());
        sent.await.ok()?.await.ok()
    })
    .await;
    // Sent right after each other, and taken in this order by one process.
    for number in 2..=40 {
        send(&context, "debit", &account("ann", 1, &number.to_string())).await;
        send(&context, "credit", &account("ann", 1, &format!("back-{number}"))).await;
    }
    until_empty(&context).await;
    let of = async |id: &str| {
        let path = format!("/v1/transactions?business_code=queue&business_id={id}&user_id=ann&credit_type=points");
        service.get(&path).await.expect(200)["items"][0].clone()
    };
    let first = of("1").await;
    assert_eq!((first["type"].as_str(), first["amount"].as_u64()), (Some("credited"), Some(30)));
    assert_eq!(
        (first["request_id"].as_str(), first["metadata"].to_string()),
        (Some("checkout-17"), r#"{"order":5}"#.to_owned())
    );
    assert_eq!(of("2").await["request_id"], "CREDIT_COMMANDS-2");
    let partition = &first["partition"];
    let log = service.get(&format!("/v1/events?partition={partition}&after=0")).await.expect(200);
    assert_eq!(log["items"][0]["actor"], "nats", "{log}");
    // What a setting adds to freezes it adds here, too; and the audit knows of each.
    send(&context, "freeze", &account("ann", 1, "held")).await;
    until_empty(&context).await;
    assert!(of("held").await["expires_at"].is_string());
    let audited = super::until("the audit has it", || async {
        let audit = service.get("/v1/audit?request_id=checkout-17").await.expect(200);
        audit["items"].as_array().and_then(|items| items.first()).cloned()
    })
    .await;
    assert_eq!((&audited["action"], &audited["actor"]), (&json!("credit"), &json!("nats")), "{audited}");
    // The same over HTTP is a replay, and what is over there is one here.
    let again = service.post("/v1/credits", &command).await;
    assert_eq!((again.status.as_u16(), &again.body["transaction_id"]), (200, &first["transaction_id"]));
    assert_eq!(service.holdings("ann").await, (30, 1, 29));
}
