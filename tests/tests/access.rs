//! API keys: who gets in, where, and what is never told.

use std::{fmt::Write as _, process::Command};

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Service, on_both_databases, service::program, store::NewDatabase};
use uuid::Uuid;

on_both_databases!(
    each_route_asks_for_its_own_scope,
    without_keys_everything_is_open_and_with_the_first_one_nothing,
    a_key_is_revoked_while_the_service_runs,
    a_batch_is_judged_command_by_command,
    a_key_that_may_not_read_is_shown_no_transactions,
    the_label_of_a_key_is_the_actor_of_its_events,
    no_secret_is_repeated,
);

const SCOPES: [&str; 6] = ["credit", "debit", "freeze", "refund", "read", "admin"];

/// Runs `api keys …` and gives what it printed, or its one line of complaint.
fn keys(database: &NewDatabase, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program("api"))
        .args(["--database-url", &database.url, "keys"])
        .args(arguments)
        .output()
        .expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn create(database: &NewDatabase, label: &str, scopes: &str) -> String {
    keys(database, &["create", "--label", label, "--scopes", scopes]).expect("a key")
}

fn prefix(key: &str) -> &str {
    key.split('_').nth(1).expect("lk_PREFIX_SECRET")
}

/// Every (method, path, scopes) that the service says it has, with something in the place of the path's parameters.
async fn routes(service: &Service) -> Vec<(Method, String, Option<String>)> {
    let document = service.get("/openapi.json").await.expect(200);
    let mut routes = Vec::new();
    for (path, calls) in document["paths"].as_object().expect("paths") {
        for (verb, call) in calls.as_object().expect("calls") {
            let method = verb.to_uppercase().parse().expect("a method");
            let path = path
                .split('/')
                .map(|part| if part.starts_with('{') { "39000000-0100-8000-8000-0007c04f2e1a" } else { part })
                .collect::<Vec<_>>()
                .join("/");
            routes.push((method, path, call["x-scope"].as_str().map(str::to_owned)));
        }
    }
    assert!(routes.len() > 15);
    routes
}

async fn each_route_asks_for_its_own_scope(database: NewDatabase) {
    let expired = create(&database, "expired", "credit,debit,freeze,refund,read,admin");
    let revoked = create(&database, "revoked", "credit,debit,freeze,refund,read,admin");
    let by_scope: Vec<_> = SCOPES.iter().map(|scope| (*scope, create(&database, scope, scope))).collect();
    keys(&database, &["revoke", prefix(&revoked)]).expect("revoked");
    expire(&database, prefix(&expired)).await;
    let wrong = format!("{}{}", &revoked[..revoked.len() - 1], if revoked.ends_with('0') { '1' } else { '0' });
    let unknown = format!("lk_{}_{}", "0".repeat(12), "0".repeat(64));
    let service = Service::start(&database.url, &[]);
    let mut tried = 0;
    for (method, path, scope) in routes(&service).await {
        let body = (method == Method::POST).then(|| json!({}).to_string());
        let strangers = [
            None,
            Some("Basic YTpi".to_owned()),
            Some("Bearer nonsense".to_owned()),
            Some(format!("Bearer {unknown}")),
            Some(format!("Bearer {wrong}")),
            Some(format!("Bearer {revoked}")),
            Some(format!("Bearer {expired}")),
        ];
        for stranger in strangers {
            let answer = service.send_as(stranger.as_deref(), method.clone(), &path, body.clone()).await;
            tried += 1;
            if scope.is_none() {
                assert_ne!(answer.status, 401, "{method} {path}");
                continue;
            }
            assert_eq!(answer.status, 401, "{method} {path} {stranger:?}: {}", answer.body);
            assert_eq!(answer.text("code"), "unauthenticated");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
        for (name, key) in &by_scope {
            let answer = service.send_as(Some(&format!("Bearer {key}")), method.clone(), &path, body.clone()).await;
            tried += 1;
            let may = scope.as_ref().is_none_or(|scope| scope.split(',').any(|scope| scope == *name));
            if may {
                assert!(![401, 403].contains(&answer.status.as_u16()), "{method} {path} as {name}: {}", answer.body);
            } else {
                assert_eq!(answer.status, 403, "{method} {path} as {name}: {}", answer.body);
                assert_eq!(answer.text("code"), "scope_missing");
                assert_eq!(answer.body["scope"], json!(scope));
            }
        }
    }
    println!("{tried} requests");
}

/// Lets a key's time be over.
async fn expire(database: &NewDatabase, prefix: &str) {
    use sqlx::{AssertSqlSafe, Connection};
    let sql = format!("update api_keys set expires_at = '2020-01-01T00:00:00+00:00' where prefix = '{prefix}'");
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.expect("updated");
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.expect("updated");
    }
}

async fn without_keys_everything_is_open_and_with_the_first_one_nothing(database: NewDatabase) {
    let refused = Service::try_start(&database.url, &["--listen", "0.0.0.0:0"]).expect_err("no keys, no stranger");
    assert!(refused.contains("--listen 0.0.0.0:0") && refused.contains("api keys create"), "{refused}");
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 5, "1").await;
    let key = create(&database, "shop", "read");
    // Known within a second or two.
    let path = "/v1/accounts/ann/points";
    let mut open = true;
    for _ in 0..100 {
        open = service.get(path).await.status == 200;
        if !open {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!open, "a service with keys is closed");
    let bearer = format!("bearer {key}");
    assert_eq!(service.send_as(Some(&bearer), Method::GET, path, None).await.status, 200);
    drop(service);
    let service = Service::try_start(&database.url, &["--listen", "0.0.0.0:0"]).expect("a key opens other addresses");
    assert_eq!(service.get(path).await.status, 401);
}

async fn a_key_is_revoked_while_the_service_runs(database: NewDatabase) {
    let (stays, goes) = (create(&database, "stays", "read"), create(&database, "goes", "read"));
    let service = Service::start(&database.url, &[]);
    let late = create(&database, "late", "read");
    let get = async |key: &str| {
        let bearer = format!("Bearer {key}");
        service.send_as(Some(&bearer), Method::GET, "/v1/events?partition=1", None).await.status.as_u16()
    };
    // The first request with a key that was made since makes the keys be read again.
    assert_eq!((get(&late).await, get(&goes).await), (200, 200));
    assert_eq!(keys(&database, &["revoke", &goes]).expect("revoked"), format!("revoked {}", prefix(&goes)));
    let refused = async || {
        while get(&goes).await != 401 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), refused()).await.expect("within seconds");
    assert_eq!(get(&stays).await, 200);
    let again = keys(&database, &["revoke", prefix(&goes)]).expect_err("only once");
    assert!(again.contains("no active key"), "{again}");
    let listed = keys(&database, &["list"]).expect("a list");
    assert!(listed.lines().any(|line| line.starts_with(prefix(&goes)) && line.contains("revoked")), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with(prefix(&stays)) && line.contains("active")), "{listed}");
}

async fn a_batch_is_judged_command_by_command(database: NewDatabase) {
    let key = create(&database, "credits only", "credit");
    let service = Service::start(&database.url, &[]);
    let bearer = format!("Bearer {key}");
    let of = |kind: &str, id: &str| json!({ "type": kind, "user_id": "ann", "credit_type": "points", "amount": 5, "business_code": "c", "business_id": id });
    let post =
        async |body: Value| service.send_as(Some(&bearer), Method::POST, "/v1/batches", Some(body.to_string())).await;
    let atomic = post(json!({ "commands": [of("credit", "1"), of("freeze", "2")] })).await;
    assert_eq!((atomic.status.as_u16(), atomic.text("code")), (403, "scope_missing"), "{}", atomic.body);
    let each = post(json!({ "atomic": false, "commands": [of("credit", "1"), of("freeze", "2")] })).await.expect(200);
    assert_eq!(each["results"][0]["type"], "credited");
    assert_eq!(each["results"][0]["replayed"], false, "the atomic batch did nothing");
    assert_eq!(each["results"][1]["code"], "scope_missing");
}

async fn a_key_that_may_not_read_is_shown_no_transactions(database: NewDatabase) {
    let owner = create(&database, "owner", "credit,debit,refund,read");
    let (refunder, stranger) = (create(&database, "refunder", "refund"), create(&database, "stranger", "credit"));
    let service = Service::start(&database.url, &[]);
    let post = async |key: &str, path: &str, body: &Value| {
        let bearer = format!("Bearer {key}");
        service.send_as(Some(&bearer), Method::POST, path, Some(body.to_string())).await
    };
    let id = Uuid::new_v4();
    let body = |amount: u64, business_id: &str, operation: Uuid| {
        json!({ "user_id": "ann", "credit_type": "points", "amount": amount, "business_code": "order",
            "business_id": business_id, "operation_id": operation })
    };
    post(&owner, "/v1/credits", &body(10, "1", Uuid::new_v4())).await.expect(201);
    post(&owner, "/v1/debits", &body(4, "2", id)).await.expect(201);
    post(&owner, "/v1/debits", &body(1_000, "3", id)).await.expect(422);
    let shown = |answer: &Value| {
        let count = |field: &str| answer[field].as_array().expect("a list").len();
        (count("transactions"), answer["transactions_total"].clone(), count("refusals"))
    };

    let flow = json!({ "operation_id": id, "name": "order", "steps": ["pay"] });
    let opened = post(&stranger, "/v1/operations", &flow).await.expect(201);
    assert_eq!((shown(&opened), &opened["status"]), ((0, json!(1), 0), &json!("in_progress")));
    let step = format!("/v1/operations/{id}/steps/pay");
    let told = post(&stranger, &step, &json!({ "status": "started" })).await.expect(201);
    assert_eq!(shown(&told), (0, json!(1), 0));
    let opened = post(&owner, "/v1/operations", &flow).await.expect(200);
    assert_eq!(shown(&opened), (1, json!(1), 1));

    // Whether or not it was compensated before.
    let compensate = format!("/v1/operations/{id}/compensate");
    for key in [&owner, &refunder] {
        let refused = post(&stranger, &compensate, &json!({})).await.expect(403);
        assert_eq!((&refused["code"], &refused["scope"]), (&json!("scope_missing"), &json!("refund")));
        let compensated = post(key, &compensate, &json!({})).await.expect(200);
        assert_eq!(compensated["status"], "compensated");
        let expected = if *key == owner { (2, json!(2), 1) } else { (0, json!(2), 0) };
        assert_eq!(shown(&compensated), expected);
    }
}

async fn the_label_of_a_key_is_the_actor_of_its_events(database: NewDatabase) {
    let key = create(&database, "order service", "credit,read,admin");
    let service = Service::start(&database.url, &[]);
    let bearer = format!("Bearer {key}");
    let credit =
        json!({ "user_id": "ann", "credit_type": "points", "amount": 5, "business_code": "c", "business_id": "1" });
    let done = service.send_as(Some(&bearer), Method::POST, "/v1/credits", Some(credit.to_string())).await.expect(201);
    let lock = json!({ "reason": "stolen" }).to_string();
    service.send_as(Some(&bearer), Method::POST, "/v1/accounts/ann/points/lock", Some(lock)).await.expect(201);
    let events = format!("/v1/events?partition={}&after=0", done["partition"]);
    let events = service.send_as(Some(&bearer), Method::GET, &events, None).await.expect(200);
    let actors: Vec<_> = events["items"].as_array().expect("items").iter().map(|item| &item["actor"]).collect();
    assert_eq!(actors, ["order service", "order service"]);
}

async fn no_secret_is_repeated(database: NewDatabase) {
    let key = create(&database, "shop", "credit,read");
    let service = Service::start(&database.url, &[]);
    let bearer = format!("Bearer {key}");
    let mut seen = String::new();
    for (method, path, body) in [
        (Method::GET, "/v1/accounts/ann/points", None),
        (Method::POST, "/v1/credits", Some("{}".to_owned())),
        (Method::POST, "/v1/debits", Some("{}".to_owned())),
        (Method::GET, "/metrics", None),
        (Method::GET, "/readyz", None),
    ] {
        let answer = service.send_as(Some(&bearer), method, path, body).await;
        write!(seen, "{}{:?}", answer.body, answer.headers).expect("a string");
    }
    seen.push_str(&service.log());
    seen.push_str(&std::fs::read_to_string(format!("/proc/{}/cmdline", service.pid())).expect("it runs"));
    seen.push_str(&keys(&database, &["list"]).expect("a list"));
    let secret = key.rsplit('_').next().expect("a secret");
    assert!(!seen.contains(secret), "{seen}");
    assert_eq!(secret.len(), 64, "256 bits");
    for bad in [&["create", "--label", "x"][..], &["create", "--label", "x", "--scopes", "all"], &["revoke", "nothing"]]
    {
        let why = keys(&database, bad).expect_err("refused");
        assert!(why.starts_with("api: ") && why.lines().count() == 1, "{why}");
    }
}
