//! `replay-tool reconcile` compares orders with the ledger and settles what it may.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use ledger_core::{Account, Action, Amount};
use ledger_store::{Database, Ledger, LedgerOptions};
use serde_json::{Value, json};
use tests::{
    Service, children, on_both_databases, replay_tool,
    shop::{debit, freeze, step, then, with},
    store::{NewDatabase, command},
    tool::{self, file, run, text},
    verify_consistent,
};

on_both_databases!(
    every_kind_of_mismatch_is_found_and_the_safe_ones_are_settled_once,
    a_settlement_that_is_killed_goes_on_where_it_stood,
    what_a_settlement_leaves_remains_in_every_run,
    a_line_that_cannot_be_read_ends_the_run_before_anything_is_settled,
    a_report_that_cannot_be_written_ends_the_run_before_anything_is_done,
    orders_and_entries_outside_the_range_are_left_alone,
);

async fn every_kind_of_mismatch_is_found_and_the_safe_ones_are_settled_once(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 10_000, "seed").await;
    // What both sides agree about: by the order's id alone, or by relation.
    freeze(&service, "A-PENDING", 100).await;
    let paid = freeze(&service, "A-PAID", 100).await;
    then(&service, "/v1/debits", &paid, "order.payment", "PAY-1").await;
    let cancelled = freeze(&service, "A-CANCELLED", 100).await;
    then(&service, "/v1/unfreezes", &cancelled, "order.cancel", "A-CANCELLED").await;
    let refunded = debit(&service, "A-REFUNDED", 100).await;
    then(&service, "/v1/refunds", &refunded, "order.refund", "RMA-1").await;
    // What they do not.
    freeze(&service, "M-COMPLETED-FROZEN", 100).await;
    freeze(&service, "M-CANCELLED-FROZEN", 100).await;
    debit(&service, "M-CANCELLED-DEDUCTED", 100).await;
    debit(&service, "M-REFUNDED-DEDUCTED", 100).await;
    let released = freeze(&service, "M-COMPLETED-RELEASED", 100).await;
    then(&service, "/v1/unfreezes", &released, "order.cancel", "M-COMPLETED-RELEASED").await;
    debit(&service, "M-AMOUNT", 90).await;
    debit(&service, "M-TWICE", 100).await;
    freeze(&service, "M-NO-ORDER", 100).await;
    // Not of an order: no order is missed.
    let coupon = with(json!({ "user_id": "ann", "credit_type": "points", "amount": 5 }), step("coupon", "C1"));
    service.post("/v1/debits", &coupon).await.expect(201);
    let orders = "order_id,user_id,points,status\nA-PENDING,ann,100,pending\nA-PAID,ann,100,paid\n\
        A-CANCELLED,ann,100,cancelled\nA-REFUNDED,ann,100,refunded\nA-NEVER-PAID,ann,100,cancelled\nA-NO-POINTS,ann,0,completed\n\
        M-COMPLETED-FROZEN,ann,100,completed\nM-CANCELLED-FROZEN,ann,100,Canceled\nM-CANCELLED-DEDUCTED,ann,100,cancelled\n\
        M-REFUNDED-DEDUCTED,ann,100,refunded\nM-COMPLETED-RELEASED,ann,100,delivered\nM-AMOUNT,ann,100,shipped\n\
        M-MISSING,ann,100,completed\nM-TWICE,ann,100,paid\nM-TWICE,ann,100,paid\n";
    let (folder, path) = file("orders.csv", orders);
    let (out, page) = (folder.path().join("lists"), folder.path().join("report.html"));
    let (out_text, page_text) = (out.to_str().expect("plain"), page.to_str().expect("plain"));
    let arguments = ["reconcile", "--orders", &path, "--out", out_text, "--report", page_text];

    let (code, found) = replay_tool(&database.url, &arguments);
    assert_eq!(code, 1, "{found:#}");
    let kinds = |found: &Value| -> BTreeMap<String, String> {
        let mismatches = found["mismatches"].as_array().expect("a list").iter();
        mismatches.map(|mismatch| (text(&mismatch["order_id"]), text(&mismatch["kind"]))).collect()
    };
    let expected = [
        ("M-AMOUNT", "amount_mismatch"),
        ("M-CANCELLED-DEDUCTED", "status_mismatch"),
        ("M-CANCELLED-FROZEN", "status_mismatch"),
        ("M-COMPLETED-FROZEN", "status_mismatch"),
        ("M-COMPLETED-RELEASED", "status_mismatch"),
        ("M-MISSING", "missing_credit_transaction"),
        ("M-NO-ORDER", "ledger_entry_without_order"),
        ("M-REFUNDED-DEDUCTED", "status_mismatch"),
        ("M-TWICE", "duplicate_order"),
    ];
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(order, kind)| ((*order).to_owned(), (*kind).to_owned())).collect();
    assert_eq!(kinds(&found), expected);
    assert_eq!((&found["mismatches_count"], &found["settleable"]), (&json!(9), &json!(4)), "{found:#}");
    assert_eq!((&found["orders"], &found["orders_untouched"]), (&json!(15), &json!(2)));
    assert_eq!(found["counts"]["status_mismatch"], 5);
    let of = |order: &str| {
        let mismatches = found["mismatches"].as_array().expect("a list");
        mismatches.iter().find(|mismatch| mismatch["order_id"] == order).expect("found").clone()
    };
    let frozen = of("M-COMPLETED-FROZEN");
    assert_eq!(
        (&frozen["expected"], &frozen["found"]),
        (&json!("completed: 100 deducted, nothing frozen"), &json!("100 frozen"))
    );
    assert_eq!(
        (&frozen["line"], &frozen["order_points"], &frozen["credit_status"]),
        (&json!(8), &json!(100), &json!("frozen"))
    );
    let lines = fs::read_to_string(out.join("mismatches.ndjson")).expect("written");
    let listed = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let listed: BTreeMap<_, _> = listed.map(|line| (text(&line["order_id"]), text(&line["kind"]))).collect();
    assert_eq!(listed, expected);
    let csv = fs::read_to_string(out.join("mismatches.csv")).expect("written");
    assert!(
        csv.starts_with("kind,order_id,user_id,")
            && csv.contains("\nmissing_credit_transaction,M-MISSING,ann,points,14,"),
        "{csv}"
    );
    let report = fs::read_to_string(&page).expect("written");
    assert!(
        report.contains("Orders and ledger disagree: 9 mismatches remain") && report.contains("M-CANCELLED-FROZEN")
    );
    assert!(!report.contains("<script") && !report.contains("http-equiv=\"refresh\""));

    // A command that is shown is one that the service takes, and then the mismatch is gone.
    let missing = of("M-MISSING");
    let by_hand = &missing["commands"][0];
    assert_eq!((&missing["outcome"], &by_hand["path"]), (&json!("needs_a_person"), &json!("/v1/debits")));
    service.post(by_hand["path"].as_str().expect("a path"), &by_hand["body"]).await.expect(201);
    let shell = Command::new("sh")
        .arg("-c")
        .arg(text(&of("M-AMOUNT")["commands"][0]["curl"]).replace("http://127.0.0.1:8080", &service.url))
        .output()
        .expect("a shell");
    assert!(String::from_utf8_lossy(&shell.stdout).contains("\"transaction_id\""), "{shell:?}");

    let before = service.holdings("ann").await;
    let careful = ["reconcile", "--orders", &path, "--settle", "--quiet-seconds", "3600"];
    let (code, young) = replay_tool(&database.url, &careful);
    assert_eq!(
        (code, &young["settled"], &young["settleable"]),
        (1, &json!(0), &json!(4)),
        "orders on their way are left alone"
    );
    assert_eq!(service.holdings("ann").await, before);
    let settle = ["reconcile", "--orders", &path, "--settle", "--actor", "night shift"];
    let (code, settled) = replay_tool(&database.url, &settle);
    assert_eq!((code, &settled["settled"], &settled["remaining"]), (1, &json!(4), &json!(3)), "{settled:#}");
    let after = service.holdings("ann").await;
    // Two refunds of 100 came back, 100 were captured, and two freezes are gone.
    assert_eq!((after.0, after.1), (before.0 + 200 - 100, before.1 - 200));
    let (code, again) = replay_tool(&database.url, &settle);
    assert_eq!((code, &again["settled"], &again["remaining"]), (1, &json!(0), &json!(3)), "{again:#}");
    assert_eq!(service.holdings("ann").await, after, "nothing moves twice");
    let left = ["M-COMPLETED-RELEASED", "M-NO-ORDER", "M-TWICE"].map(str::to_owned);
    assert_eq!(kinds(&again).into_keys().collect::<Vec<_>>(), left);
    // Who settled what is in the ledger for good.
    let capture = frozen["transactions"][0].as_str().expect("an id");
    let key = format!("business_code=system.settlement&business_id=capture:{capture}&user_id=ann&credit_type=points");
    let event = service.get(&format!("/v1/transactions?{key}")).await.expect(200);
    assert_eq!(event["items"][0]["metadata"]["order_id"], "M-COMPLETED-FROZEN", "{event:#}");
    assert_eq!(event["items"][0]["description"], "reconciliation: completed: 100 deducted, nothing frozen");
    drop(service);
    verify_consistent(&database.url);
}

async fn a_settlement_that_is_killed_goes_on_where_it_stood(database: NewDatabase) {
    const ORDERS: usize = 600;
    let ledger = Ledger::start(Database::open(&database.url).await.expect("opens"), LedgerOptions::default()).await;
    let ledger = ledger.expect("starts");
    let mut orders = String::from("order_id,user_id,points,status\n");
    let account = |number: usize| Account::new(&format!("u{}", number % 40), "points").expect("valid");
    let amount = |units| Amount::new(units).expect("valid");
    let credits = (0..40).map(|number| {
        command(Action::Credit { account: account(number), amount: amount(1_000) }, "seed", &number.to_string())
    });
    done(&ledger, credits.collect()).await;
    let freezes = (0..ORDERS).map(|number| {
        let _ = writeln!(orders, "O{number},u{},10,cancelled", number % 40);
        let action = Action::Freeze { account: account(number), amount: amount(10), expiry: None };
        command(action, "order.create", &format!("O{number}"))
    });
    done(&ledger, freezes.collect()).await;
    ledger.stop().await;
    let (_folder, path) = file("orders.csv", &orders);
    let arguments = ["reconcile", "--orders", &path, "--settle"];
    for turn in 0..4_u64 {
        let mut command = tool::command(&database, &arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = children::spawn(command);
        thread::park_timeout(Duration::from_millis(60 + 90 * turn));
        children::kill(&mut child);
    }
    let (code, settled) = replay_tool(&database.url, &arguments);
    assert_eq!((code, &settled["remaining"]), (0, &json!(0)), "{settled:#}");
    let (code, again) = replay_tool(&database.url, &arguments);
    assert_eq!((code, &again["mismatches_count"]), (0, &json!(0)), "{again:#}");
    // Each order's freeze was released once: 40 credits, and a freeze and a release of each order.
    assert_eq!(again["events"], 40 + 2 * ORDERS);
    let service = Service::start(&database.url, &[]);
    for number in 0..40 {
        assert_eq!(service.holdings(&format!("u{number}")).await, (1_000, 0, 1_000));
    }
}

async fn what_a_settlement_leaves_remains_in_every_run(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    debit(&service, "PARTLY", 100).await;
    freeze(&service, "PARTLY", 20).await;
    freeze(&service, "CANCELLED", 90).await;
    debit(&service, "REFUNDED", 90).await;
    freeze(&service, "WHOLE", 100).await;
    let orders = "order_id,user_id,points,status,refunded_points\nPARTLY,ann,100,partly_refunded,30\n\
        CANCELLED,ann,100,cancelled,\nREFUNDED,ann,100,refunded,\nWHOLE,ann,100,cancelled,\n";
    let (_folder, path) = file("orders.csv", orders);
    let figures = |arguments: &[&str]| {
        let (code, found) = replay_tool(&database.url, &[&["reconcile", "--orders", &path][..], arguments].concat());
        let figures = ["mismatches_count", "settled", "settleable", "remaining"].map(|name| found[name].as_u64());
        (code, figures.map(|figure| figure.expect("a number")))
    };
    assert_eq!(figures(&[]), (1, [7, 0, 4, 7]));
    assert_eq!(figures(&["--settle"]), (1, [7, 4, 0, 3]));
    assert_eq!(service.holdings("ann").await, (900, 0, 900));
    assert_eq!(figures(&["--settle"]), (1, [3, 0, 0, 3]));
    assert_eq!(service.holdings("ann").await, (900, 0, 900), "nothing moves twice");
}

async fn done(ledger: &Ledger, commands: Vec<ledger_core::Command>) {
    let outcomes = ledger.execute_each(commands).await;
    assert!(outcomes.iter().all(Result::is_ok), "none is refused");
}

async fn a_line_that_cannot_be_read_ends_the_run_before_anything_is_settled(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    freeze(&service, "O1", 100).await;
    let head = "order_id,user_id,points,status\nO1,ann,100,cancelled\n";
    for (name, text, says) in [
        ("orders.csv", format!("{head}O2,ann,100,teleported\n"), "line 3: status \"teleported\" is not known"),
        ("orders.csv", format!("{head}O2,ann\n"), "line 3: there are 2 cells where the first line has 4"),
        ("orders.csv", format!("{head}O2,ann,ten,paid\n"), "line 3: points must be a whole number"),
        (
            "orders.ndjson",
            "{\"order_id\":\"O1\",\"user_id\":\"ann\",\"points\":100,\"status\":\"cancelled\"}\n{".to_owned(),
            "line 2: no order",
        ),
        ("orders.txt", head.to_owned(), "must end in .csv, .ndjson or .jsonl"),
    ] {
        let (_folder, path) = file(name, &text);
        let ran = run(&database, &["reconcile", "--orders", &path, "--settle"]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{text}");
        assert!(ran.err.contains(says), "{text}: {}", ran.err);
        assert_eq!(ran.err.trim_end().lines().count(), 1, "{}", ran.err);
    }
    assert_eq!(service.holdings("ann").await, (1_000, 100, 900), "nothing was settled");
    let line = |status: u16, content: &str, length: usize, body: &str| {
        format!("HTTP/1.1 {status} X\r\ncontent-type: {content}\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    // The order system itself: a whole answer, one that breaks off, one that is an error, and one that is no list.
    for (answer, code, says) in [
        (line(200, "text/csv; charset=utf-8", head.len() + 10, head), 2, "broke off"),
        (line(500, "text/csv", head.len(), head), 2, "it answers 500"),
        (line(200, "text/html", head.len(), head), 2, "it must answer text/csv or application/x-ndjson"),
        (line(200, "text/csv; charset=utf-8", head.len(), head), 0, ""),
    ] {
        let url = serve(answer);
        let ran = run(&database, &["reconcile", "--orders", &format!("{url}/orders?key=SECRET"), "--settle"]);
        assert_eq!(ran.code, code, "{says}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(says) && !ran.err.contains("SECRET"), "{}", ran.err);
    }
    assert_eq!(service.holdings("ann").await, (1_000, 0, 1_000), "the whole answer was settled");
}

async fn a_report_that_cannot_be_written_ends_the_run_before_anything_is_done(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    freeze(&service, "O1", 100).await;
    let (_folder, path) = file("orders.csv", "order_id,user_id,points,status\nO1,ann,100,cancelled\n");
    let nowhere = "/nonexistent/r.html";
    for command in
        [&["reconcile", "--orders", &path, "--settle"][..], &["verify"], &["explain", "ann/points"], &["drill"]]
    {
        let ran = run(&database, &[command, &["--report", nowhere]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{command:?}");
        assert!(ran.err.contains("--report") && ran.err.contains(nowhere), "{command:?}: {}", ran.err);
        assert_eq!(ran.err.trim_end().lines().count(), 1, "{}", ran.err);
    }
    assert_eq!(service.holdings("ann").await, (1_000, 100, 900), "nothing was settled");
}

/// Answers one request with these bytes.
fn serve(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("asked");
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && connection.read(&mut byte).is_ok_and(|read| read == 1) {
            request.push(byte[0]);
        }
        connection.write_all(answer.as_bytes()).expect("answered");
    });
    url
}

async fn orders_and_entries_outside_the_range_are_left_alone(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    // Recorded now; the order system speaks of this day.
    let now = debit(&service, "NOW-WITHOUT-ORDER", 10).await;
    let today = &text(&now["recorded_at"])[..10];
    let orders =
        json!({ "order_id": "OLD", "user_id": "ann", "points": 5, "status": "paid", "created_at": "2001-02-03" });
    let young = json!({ "order_id": "YOUNG", "user_id": "ann", "points": 5, "status": "paid", "created_at": today });
    let (_folder, path) = file("orders.jsonl", &format!("{orders}\n{young}\n"));
    let found = |arguments: &[&str]| {
        let (code, found) = replay_tool(&database.url, &[&["reconcile", "--orders", &path][..], arguments].concat());
        let mut orders: Vec<_> = found["mismatches"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|mismatch| text(&mismatch["order_id"]))
            .collect();
        orders.sort();
        (code, orders.join(" "))
    };
    assert_eq!(found(&[]), (1, "NOW-WITHOUT-ORDER OLD YOUNG".to_owned()));
    assert_eq!(found(&["--from", today]), (1, "NOW-WITHOUT-ORDER YOUNG".to_owned()));
    assert_eq!(found(&["--to", today]), (1, "OLD".to_owned()));
    assert_eq!(found(&["--from", "2001-01-01", "--to", "2001-02-03"]), (0, String::new()));
    assert_eq!(found(&["--code", "shop"]), (1, "OLD YOUNG".to_owned()), "other codes stand for orders");
    let ran = run(&database, &["reconcile", "--orders", &path, "--from", "2002-01-01", "--to", "2001-01-01"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("must lie before"), "{}", ran.err);
}
