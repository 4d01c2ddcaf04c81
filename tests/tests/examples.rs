//! The examples do what they say, on a real ledger.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    Service, children::bound_to_this_process, on_both_databases, service::program, store::NewDatabase,
    verify_consistent,
};

on_both_databases!(
    a_flash_sale_sells_what_there_is_and_not_one_more,
    the_sale_from_the_shell_tells_what_was_sold_and_what_failed,
    an_order_is_paid_cancelled_or_times_out,
);

const BUYERS: usize = 5_000;
const PRICE: u64 = 30;

async fn a_flash_sale_sells_what_there_is_and_not_one_more(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let output = Command::new(program("flash-sale"))
        .args(["--ledger", &service.url, "--sale", "s1", "--connections", "64", "--units", "100"])
        .args(["--buyers", &BUYERS.to_string(), "--price", &PRICE.to_string()])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report, json!({ "sale": "s1", "sold": 100, "sold_out": BUYERS - 100, "stock_left": 0 }));

    let stock = service.get("/v1/accounts/stock:s1/units?consistency=strong").await.expect(200);
    assert_eq!((&stock["balance"], &stock["frozen"], &stock["available"]), (&json!(100), &json!(100), &json!(0)));
    let (mut paid, mut untouched) = (0, 0);
    for number in 0..BUYERS {
        match service.holdings(&format!("s1:buyer-{number}")).await {
            (0, 0, 0) => paid += 1,
            (PRICE, 0, PRICE) => untouched += 1,
            other => panic!("buyer {number} has {other:?}"),
        }
    }
    assert_eq!((paid, untouched), (100, BUYERS - 100));
    let verified = verify_consistent(&database.url);
    assert_eq!(verified["events"], 1 + BUYERS + 2 * 100);
}

async fn the_sale_from_the_shell_tells_what_was_sold_and_what_failed(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/flash-sale.sh");
    let sell = |key: Option<&str>| {
        let mut sale = Command::new(script);
        sale.env("LEDGER_URL", &service.url).env_remove("SALE").env_remove("LEDGER_KEY");
        sale.envs(key.map(|key| ("LEDGER_KEY", key)));
        sale.output().expect("it runs")
    };
    let sold = sell(None);
    let told = String::from_utf8(sold.stdout).expect("UTF-8");
    assert!(sold.status.success(), "{told}{}", String::from_utf8_lossy(&sold.stderr));
    let counts: Vec<_> = told.lines().take(2).map(str::trim).collect();
    assert_eq!(counts, ["5 bought", "45 sold out"]);

    // Whoever may not buy is told so, and not that there is nothing left.
    let mut create = Command::new(program("api"));
    create.args(["--database-url", &database.url, "keys", "create", "--label", "shop", "--scopes", "credit,read"]);
    let created = create.output().expect("it runs");
    let key = String::from_utf8(created.stdout).expect("UTF-8");
    let deadline = Instant::now() + Duration::from_secs(60);
    while service.get("/v1/events?partition=0").await.status != 401 {
        assert!(Instant::now() < deadline, "the service never asks for a key");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = sell(Some(key.trim()));
    let why = String::from_utf8(refused.stderr).expect("UTF-8");
    assert!(!refused.status.success());
    assert_eq!(why.matches("failed: ").count(), 50, "{why}");
    assert!(why.contains("scope_missing"), "{why}");
    assert!(!String::from_utf8_lossy(&refused.stdout).contains("sold out"));
}

async fn an_order_is_paid_cancelled_or_times_out(database: NewDatabase) {
    let ledger = Service::start(&database.url, &[]);
    ledger.credit("ann", 1_000, "seed").await;
    let mut command = bound_to_this_process(program("order-service").to_str().expect("a plain path"), "KILL");
    command.args(["--ledger", &ledger.url, "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut child = tests::children::spawn(command);
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints");
    let shop = line.trim().strip_prefix("listening on ").expect("its address").to_owned();
    let client = reqwest::Client::new();
    let post = async |path: &str, body: Value| -> (u16, Value) {
        let answer = client.post(format!("{shop}{path}")).json(&body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    };
    let order = async || {
        let (status, order) = post("/orders", json!({ "user_id": "ann", "price": 100 })).await;
        assert_eq!(status, 200, "{order}");
        order["order_id"].as_str().expect("an id").to_owned()
    };

    let paid = order().await;
    assert_eq!(post(&format!("/orders/{paid}/pay"), json!({})).await.0, 200);
    assert_eq!(ledger.holdings("ann").await, (900, 0, 900));
    for _ in 0..2 {
        assert_eq!(post(&format!("/orders/{paid}/cancel"), json!({})).await.0, 200);
        assert_eq!(ledger.holdings("ann").await, (1_000, 0, 1_000));
    }
    let late = post(&format!("/orders/{paid}/pay"), json!({})).await;
    assert_eq!(late.0, 200, "a repeat of a payment is answered as the first time: {}", late.1);
    assert_eq!(ledger.holdings("ann").await, (1_000, 0, 1_000));

    let cancelled = order().await;
    assert_eq!(post(&format!("/orders/{cancelled}/cancel"), json!({})).await.0, 200);
    let (status, refused) = post(&format!("/orders/{cancelled}/pay"), json!({})).await;
    assert_eq!((status, &refused["error"]), (409, &json!("operation_compensated")));

    let (status, forgotten) = post("/orders", json!({ "user_id": "ann", "price": 100, "patience": 1 })).await;
    assert_eq!(status, 200, "{forgotten}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while ledger.holdings("ann").await != (1_000, 0, 1_000) {
        assert!(Instant::now() < deadline, "nobody released what is due");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let path = format!("/orders/{}/pay", forgotten["order_id"].as_str().expect("an id"));
    let (status, refused) = post(&path, json!({})).await;
    assert_eq!((status, &refused["error"]), (422, &json!("insufficient_frozen")));

    let poor = post("/orders", json!({ "user_id": "ann", "price": 1_001 })).await;
    assert_eq!((poor.0, &poor.1["error"]), (422, &json!("insufficient_balance")));
    assert_eq!(ledger.holdings("ann").await, (1_000, 0, 1_000));
    tests::children::kill(&mut child);
    verify_consistent(&database.url);
}
