//! What a caller can send that is wrong, or merely odd.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Service, on_both_databases, store::NewDatabase, verify_consistent};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

on_both_databases!(
    every_wrong_body_is_refused_by_the_name_of_its_field,
    every_wrong_path_and_query_is_refused_by_the_name_of_its_part,
    any_text_comes_back_as_it_was_sent,
    a_body_that_stops_arriving_is_told_so_before_its_request_is_over,
);

const GOOD: &str = r#"{"user_id":"ann","credit_type":"points","amount":5,"business_code":"a","business_id":"b"}"#;

fn with(field: &str, value: &str) -> String {
    let mut pairs = vec![format!("\"{field}\":{value}")];
    for (name, good) in [
        ("user_id", "\"ann\""),
        ("credit_type", "\"points\""),
        ("amount", "5"),
        ("business_code", "\"a\""),
        ("business_id", "\"b\""),
    ] {
        if name != field {
            pairs.push(format!("\"{name}\":{good}"));
        }
    }
    format!("{{{}}}", pairs.join(","))
}

async fn every_wrong_body_is_refused_by_the_name_of_its_field(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let long = |chars: usize| format!("\"{}\"", "x".repeat(chars));
    let mut cases: Vec<(String, &str)> = Vec::new();
    for amount in
        ["0", "-1", "9007199254740992", "5.0", "\"5\"", "1e3", "null", "true", "[5]", "99999999999999999999999", "-0"]
    {
        cases.push((with("amount", amount), "amount"));
    }
    for field in ["user_id", "credit_type", "business_id", "business_code"] {
        let longest = if field == "business_code" { 65 } else { 129 };
        for text in [
            "\"\"".to_owned(),
            long(longest),
            "\"a\\u0001b\"".to_owned(),
            "\"a\\u0000b\"".to_owned(),
            "7".to_owned(),
            "null".to_owned(),
            "\"\\ud800\"".to_owned(),
            "\"\\u0085\"".to_owned(),
        ] {
            cases.push((with(field, &text), field));
        }
    }
    cases.extend([
        (with("colour", "1"), "colour"),
        (with("freeze_id", "\"x\""), "freeze_id"),
        (with("release_remainder", "true"), "release_remainder"),
        (with("expires_in_seconds", "5"), "expires_in_seconds"),
        (with("type", "\"credit\""), "type"),
        (with("business_code", "\"system.lock\""), "business_code"),
        (with("operation_id", "\"x\""), "operation_id"),
        (with("expected_version", "-1"), "expected_version"),
        (with("expected_version", "\"1\""), "expected_version"),
        (with("description", &long(513)), "description"),
        (with("description", "\"\\u0000\""), "description"),
        (with("metadata", "[]"), "metadata"),
        (with("metadata", "\"x\""), "metadata"),
        (with("metadata", &format!("{{\"a\":{}}}", long(4096))), "metadata"),
        (with("metadata", r#"{"a":"\u0000"}"#), "metadata"),
        (with("metadata", r#"{"a":1,"a":2}"#), "metadata"),
        (with("metadata", &format!("{{\"a\":{}1{}}}", "[".repeat(1500), "]".repeat(1500))), "metadata"),
        (GOOD.replace("\"amount\":5", "\"amount\":5,\"amount\":6"), "amount"),
        (GOOD.replace("\"amount\":5,", ""), "amount"),
        (GOOD.replace("\"user_id\":\"ann\",", ""), "user_id"),
        ("[".repeat(30_000), "body"),
        (format!("{}{}", "[".repeat(30_000), "]".repeat(30_000)), "body"),
        (format!("{{\"user_id\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000)), "user_id"),
        (String::new(), "body"),
        ("null".to_owned(), "body"),
        ("{".to_owned(), "body"),
        (format!("{GOOD} x"), "body"),
    ]);
    for (body, field) in &cases {
        let answer = service.post_text("/v1/credits", body.clone()).await;
        let shown: String = body.chars().take(200).collect();
        assert_eq!(answer.status.as_u16(), 400, "{shown}: {}", answer.body);
        assert_eq!(
            (answer.text("code"), answer.text("field")),
            ("invalid_request", *field),
            "{shown}: {}",
            answer.body
        );
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    for (path, body, field) in [
        ("/v1/freezes", with("expires_at", "\"2020-01-01T00:00:00Z\""), "expires_at"),
        ("/v1/freezes", with("expires_at", "\"tomorrow\""), "expires_at"),
        ("/v1/unfreezes", GOOD.to_owned(), "freeze_id"),
        ("/v1/unfreezes", r#"{"business_code":"a","business_id":"b"}"#.to_owned(), "freeze_id"),
        ("/v1/refunds", r#"{"business_code":"a","business_id":"b"}"#.to_owned(), "debit_id"),
        ("/v1/refunds", r#"{"debit_id":"nope","business_code":"a","business_id":"b"}"#.to_owned(), "debit_id"),
    ] {
        service.post_text("/v1/credits", GOOD.replace("\"b\"", "\"seed\"")).await;
        let answer = service.post_text(path, body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.text("field")), (400, field), "{path} {body}: {}", answer.body);
    }

    // Too large, wrongly encoded, of another type.
    let before = service.memory_kib();
    for _ in 0..4 {
        let large = service.post_text("/v1/credits", with("description", &long(5 * 1024 * 1024))).await;
        assert_eq!((large.status.as_u16(), large.text("code")), (413, "body_too_large"));
        let deep = service.post_text("/v1/credits", "[".repeat(100_000)).await;
        assert_eq!((deep.status.as_u16(), deep.text("code")), (413, "body_too_large"));
        let deep = service.post_text("/v1/batches", "[".repeat(100_000)).await;
        assert_eq!((deep.status.as_u16(), deep.text("field")), (400, "body"));
    }
    let grown = service.memory_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "the service grew by {grown} KiB");
    let client = reqwest::Client::new();
    let url = format!("{}/v1/credits", service.url);
    let post = || client.post(&url).header("content-type", "application/json");
    assert_eq!(post().body(b"{\"user_id\":\"\xff\"}".to_vec()).send().await.expect("an answer").status(), 400);
    assert_eq!(client.post(&url).body(GOOD).send().await.expect("an answer").status(), 415);
    verify_consistent(&database.url);
    let accounts = service.get("/v1/accounts/ann/points").await.expect(200);
    assert_eq!(accounts["version"], 1, "only the seed was written");
}

async fn every_wrong_path_and_query_is_refused_by_the_name_of_its_part(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 5, "seed").await;
    for (path, status, code, field) in [
        ("/v1/accounts/..%2fetc/points", 404, "account_not_found", "user_id"),
        ("/v1/accounts/..%2f..%2fetc%2fpasswd/points", 404, "account_not_found", "user_id"),
        ("/v1/accounts/%ff/points", 400, "invalid_request", "user_id"),
        ("/v1/accounts/a%00b/points", 400, "invalid_request", "user_id"),
        ("/v1/accounts/ann/%0a", 400, "invalid_request", "credit_type"),
        ("/v1/accounts/ann/points?at=yesterday", 400, "invalid_request", "at"),
        ("/v1/accounts/ann/points?at_version=x", 400, "invalid_request", "at_version"),
        ("/v1/accounts/ann/points?consistency=weak", 400, "invalid_request", "consistency"),
        ("/v1/accounts/ann/points?colour=red", 400, "invalid_request", "colour"),
        ("/v1/accounts/ann/points/transactions?limit=0", 400, "invalid_request", "limit"),
        ("/v1/accounts/ann/points/transactions?limit=501", 400, "invalid_request", "limit"),
        ("/v1/accounts/ann/points/transactions?cursor=x", 400, "invalid_request", "cursor"),
        ("/v1/accounts/ann/points/transactions?type=stolen", 400, "invalid_request", "type"),
        ("/v1/accounts/ann/points/freezes?status=odd", 400, "invalid_request", "status"),
        ("/v1/freezes/x", 400, "invalid_request", "freeze_id"),
        ("/v1/freezes/67e55044-10b1-826f-9247-bb680e5fe0c8", 404, "freeze_not_found", "freeze_id"),
        ("/v1/transactions/x", 400, "invalid_request", "transaction_id"),
        ("/v1/transactions/67e55044-10b1-426f-9247-bb680e5fe0c8", 404, "transaction_not_found", "transaction_id"),
        ("/v1/transactions", 400, "invalid_request", "business_code"),
        ("/v1/transactions?business_code=a", 400, "invalid_request", "business_id"),
        ("/v1/events", 400, "invalid_request", "partition"),
        ("/v1/events?partition=64", 400, "invalid_request", "partition"),
        ("/v1/events/stream?from=here", 400, "invalid_request", "from"),
        ("/v1/audit?actor=a%00b", 400, "invalid_request", "actor"),
        ("/v1/audit?action=%00", 400, "invalid_request", "action"),
        ("/v1/audit?request_id=%00", 400, "invalid_request", "request_id"),
    ] {
        let answer = service.get(path).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.body);
        assert_eq!((answer.text("code"), answer.text("field")), (code, field), "{path}");
    }
    assert_eq!(service.get("/nowhere").await.expect(404)["code"], "not_found");
    let wrong = service.send(Method::DELETE, "/v1/credits", None).await.expect("an answer");
    assert_eq!((wrong.status.as_u16(), wrong.text("code")), (405, "method_not_allowed"));
    assert_eq!(wrong.headers["allow"], "POST");
}

async fn a_body_that_stops_arriving_is_told_so_before_its_request_is_over(database: NewDatabase) {
    let service = Service::start(&database.url, &["--request-timeout-seconds", "3"]);
    let address = service.url.strip_prefix("http://").expect("its address");
    let mut caller = TcpStream::connect(address).await.expect("it listens");
    let half = format!(
        "POST /v1/credits HTTP/1.1\r\nHost: ledger\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        GOOD.len(),
        &GOOD[..GOOD.len() / 2]
    );
    caller.write_all(half.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let answered =
        async { while !answer.ends_with(b"}") && caller.read_buf(&mut answer).await.expect("an answer") > 0 {} };
    tokio::time::timeout(Duration::from_secs(30), answered).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("\"invalid_request\"") && answer.contains("\"field\":\"body\""), "{answer}");
}

async fn any_text_comes_back_as_it_was_sent(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    for (number, text) in [
        "'; drop table events; --",
        "<script>alert(1)</script>",
        "\"quoted\" \\ back",
        "zoë 💶 ﷽ \u{202e}rtl",
        "../../etc/passwd",
        "%00%0a",
        "{\"a\":1}",
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({ "user_id": text, "credit_type": text, "amount": 5, "business_code": text, "business_id": text,
            "description": format!("{text}\n\ttwo lines") });
        let metadata = r#"{ "z" : 1.50 ,"a":[ 123456789012345678901234567890, "é\n" ]}"#;
        let body = body.to_string();
        let body = format!("{},\"metadata\":{metadata}}}", &body[..body.len() - 1]);
        let answer = service.send(Method::POST, "/v1/credits", Some(body)).await.expect("an answer").expect(201);
        for field in ["user_id", "credit_type", "business_code", "business_id"] {
            assert_eq!(answer[field], *text);
        }
        assert_eq!(answer["description"], format!("{text}\n\ttwo lines"));
        let id = answer["transaction_id"].as_str().expect("an id");
        let raw = reqwest::get(format!("{}/v1/transactions/{id}", service.url)).await.expect("an answer");
        assert!(raw.text().await.expect("text").contains(&format!("\"metadata\":{metadata}")), "case {number}");
    }
    let longest: String = "💶".repeat(128);
    let body =
        json!({ "user_id": longest, "credit_type": "points", "amount": 5, "business_code": "a", "business_id": "b" });
    assert_eq!(service.post("/v1/credits", &body).await.expect(201)["user_id"], Value::String(longest));
    verify_consistent(&database.url);
}
