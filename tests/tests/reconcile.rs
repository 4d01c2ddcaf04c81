//! `replay-tool reconcile` compares orders with the ledger and settles what it may; `explain` takes a balance apart;
//! `correct` adjusts one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ledger_core::{Account, Action, Amount, NamedAccount, TransactionId};
use ledger_store::{Database, Ledger, LedgerOptions};
use serde_json::{Value, json};
use tests::{
    Service, children, on_both_databases, replay_tool,
    store::{NewDatabase, command},
    verify_consistent,
};

on_both_databases!(
    every_kind_of_mismatch_is_found_and_the_safe_ones_are_settled_once,
    every_planted_mismatch_among_many_orders_is_found_and_nothing_else,
    a_settlement_that_is_killed_goes_on_where_it_stood,
    a_line_that_cannot_be_read_ends_the_run_before_anything_is_settled,
    orders_and_entries_outside_the_range_are_left_alone,
    an_account_is_taken_apart_down_to_its_orders,
    a_correction_is_an_event_of_its_own_and_is_done_once,
);

// --- the programs -------------------------------------------------------------------------------------------------------

/// What a run of the replay-tool came to.
struct Ran {
    code: i32,
    out: String,
    err: String,
    memory_kib: u64,
    took: Duration,
}

fn program() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows itself");
    this.parent().and_then(Path::parent).expect("target/PROFILE/deps").join("replay-tool")
}

/// Runs the replay-tool as a person does, without `--json`, and watches its memory.
fn run(database: &NewDatabase, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program());
    command.args(["--database-url", &database.url]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = children::spawn(command);
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let read = thread::spawn(move || {
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).expect("UTF-8");
        stderr.read_to_string(&mut err).expect("UTF-8");
        (out, err)
    });
    let mut memory_kib = 0;
    let status = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
        memory_kib = memory_kib.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        // The peak is the kernel's own; looking for it often only costs.
        thread::park_timeout(Duration::from_millis(5));
    };
    let (out, err) = read.join().expect("no panic");
    Ran { code: status.code().unwrap_or(-1), out, err, memory_kib, took: began.elapsed() }
}

/// A file in a folder that is gone with the value.
fn file(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("a plain path").to_owned();
    (folder, path)
}

/// Every mismatch in the full list: (order, kind).
fn listed(folder: &Path) -> BTreeSet<(String, String)> {
    let lines = fs::read_to_string(folder.join("mismatches.ndjson")).expect("the list is there");
    let mismatches = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let found: Vec<_> = mismatches.map(|mismatch| (text(&mismatch["order_id"]), text(&mismatch["kind"]))).collect();
    let set: BTreeSet<_> = found.iter().cloned().collect();
    assert_eq!(set.len(), found.len(), "a mismatch is told twice");
    set
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

// --- orders over HTTP ---------------------------------------------------------------------------------------------------

fn step(code: &str, order: &str) -> Value {
    json!({ "business_code": code, "business_id": order })
}

fn with(mut command: Value, fields: Value) -> Value {
    let fields = fields.as_object().expect("an object").clone();
    command.as_object_mut().expect("an object").extend(fields);
    command
}

async fn freeze(service: &Service, order: &str, amount: u64) -> Value {
    let account = json!({ "user_id": "ann", "credit_type": "points", "amount": amount });
    service.post("/v1/freezes", &with(account, step("order.create", order))).await.expect(201)
}

async fn debit(service: &Service, order: &str, amount: u64) -> Value {
    let account = json!({ "user_id": "ann", "credit_type": "points", "amount": amount });
    service.post("/v1/debits", &with(account, step("order.payment", order))).await.expect(201)
}

/// The order's next step. Its own business id is the payment's, not the order's: the relation says whose it is.
async fn then(service: &Service, path: &str, original: &Value, code: &str, id: &str) -> Value {
    let field = if path == "/v1/refunds" { "debit_id" } else { "freeze_id" };
    let command = with(json!({ field: original["transaction_id"] }), step(code, id));
    service.post(path, &command).await.expect(201)
}

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
    let written = listed(&out);
    assert_eq!(written, expected.iter().map(|(order, kind)| (order.clone(), kind.clone())).collect());
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

// --- many orders --------------------------------------------------------------------------------------------------------

/// How many orders the generated set has.
fn size() -> usize {
    std::env::var("ORDERS").ok().and_then(|orders| orders.parse().ok()).unwrap_or(50_000)
}

const ORDERS_OF_A_USER: usize = 10;
const ONE_IN: usize = 100;

/// What the ledger does for an order.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Nothing,
    Freeze,
    FreezeAndCapture,
    FreezeAndRelease,
    Debit,
    DebitAndRefund,
}

/// An order: what the ledger does, what the order system says (`None`: it says nothing), and the mismatch that this makes.
struct Planned {
    flow: Flow,
    says: Option<(&'static str, u64)>,
    lines: usize,
    mismatch: Option<&'static str>,
}

fn plan(number: usize) -> Planned {
    let points = points(number);
    let agreed = |flow, status| Planned { flow, says: Some((status, points)), lines: 1, mismatch: None };
    if number % ONE_IN != 7 {
        return match number % 5 {
            0 => agreed(Flow::Freeze, "pending"),
            1 => agreed(Flow::FreezeAndCapture, "completed"),
            2 => agreed(Flow::FreezeAndRelease, "cancelled"),
            3 => agreed(Flow::Debit, "paid"),
            _ => agreed(Flow::DebitAndRefund, "refunded"),
        };
    }
    let planted =
        |flow, status, points, kind| Planned { flow, says: Some((status, points)), lines: 1, mismatch: Some(kind) };
    match number / ONE_IN % 10 {
        0 => planted(Flow::Nothing, "completed", points, "missing_credit_transaction"),
        1 => planted(Flow::FreezeAndCapture, "completed", points + 1, "amount_mismatch"),
        2 => planted(Flow::Freeze, "pending", points - 1, "amount_mismatch"),
        3 => planted(Flow::Freeze, "completed", points, "status_mismatch"),
        4 => planted(Flow::Debit, "cancelled", points, "status_mismatch"),
        5 => planted(Flow::Freeze, "cancelled", points, "status_mismatch"),
        6 => planted(Flow::FreezeAndCapture, "refunded", points, "status_mismatch"),
        7 => planted(Flow::FreezeAndRelease, "completed", points, "status_mismatch"),
        8 => Planned { lines: 2, mismatch: Some("duplicate_order"), ..agreed(Flow::Debit, "shipped") },
        _ => Planned { says: None, mismatch: Some("ledger_entry_without_order"), ..agreed(Flow::Debit, "paid") },
    }
}

fn points(number: usize) -> u64 {
    10 + (number % 90) as u64
}

fn order_id(number: usize) -> String {
    format!("ORDER{number:08}")
}

fn user(number: usize) -> String {
    format!("user{}", number / ORDERS_OF_A_USER)
}

/// Does what is planned, in large batches: `chunk` orders of each step at once.
async fn fill(database: &NewDatabase, orders: usize) {
    let ledger = Database::open(&database.url).await.expect("opens");
    let ledger = Ledger::start(ledger, LedgerOptions::default()).await.expect("starts");
    let amount = |units| Amount::new(units).expect("valid");
    let account = |number: usize| Account::new(&user(number), "points").expect("valid");
    let all: Vec<_> = (0..orders).collect();
    for numbers in all.chunks(5_000) {
        let credits = numbers.iter().filter(|number| **number % ORDERS_OF_A_USER == 0).map(|number| {
            command(Action::Credit { account: account(*number), amount: amount(100_000) }, "seed", &user(*number))
        });
        done(&ledger, credits.collect()).await;
        let first = numbers.iter().filter(|number| plan(**number).flow != Flow::Nothing).copied();
        let first: Vec<_> = first.collect();
        let commands = first.iter().map(|number| match plan(*number).flow {
            Flow::Debit | Flow::DebitAndRefund => {
                let action = Action::Debit { account: account(*number), amount: amount(points(*number)) };
                command(action, "order.payment", &order_id(*number))
            }
            _ => {
                let action =
                    Action::Freeze { account: account(*number), amount: amount(points(*number)), expiry: None };
                command(action, "order.create", &order_id(*number))
            }
        });
        let made = done(&ledger, commands.collect()).await;
        let second = first.iter().zip(made).filter_map(|(number, id)| {
            let named = NamedAccount::default();
            let (action, code) = match plan(*number).flow {
                Flow::FreezeAndCapture => {
                    (Action::Capture { freeze: id, named, amount: None, release_remainder: None }, "order.payment")
                }
                Flow::FreezeAndRelease => (Action::Unfreeze { freeze: id, named, amount: None }, "order.cancel"),
                Flow::DebitAndRefund => (Action::Refund { debit: id, named, amount: None }, "order.refund"),
                Flow::Nothing | Flow::Freeze | Flow::Debit => return None,
            };
            Some(command(action, code, &order_id(*number)))
        });
        done(&ledger, second.collect()).await;
    }
    ledger.stop().await;
}

async fn done(ledger: &Ledger, commands: Vec<ledger_core::Command>) -> Vec<TransactionId> {
    let outcomes = ledger.execute_each(commands).await;
    outcomes.into_iter().map(|outcome| outcome.expect("it is not refused").event.transaction_id).collect()
}

/// The order system's file: NDJSON, or CSV in another order of columns.
fn write_orders(folder: &Path, orders: usize, ndjson: bool) -> String {
    let path = folder.join(if ndjson { "orders.ndjson" } else { "orders.csv" });
    let mut file = std::io::BufWriter::new(fs::File::create(&path).expect("a file"));
    if !ndjson {
        file.write_all(b"status,order_id,points,user_id,shop\n").expect("written");
    }
    // Not in the order in which the ledger has them: a step that is coprime to the number visits each of them once.
    let step = (1..).map(|k| 7_919 + k).find(|step| gcd(*step, orders) == 1).expect("there is one");
    let mut line = String::new();
    for turn in 0..orders {
        let number = turn * step % orders;
        let Planned { says: Some((status, points)), lines, .. } = plan(number) else { continue };
        line.clear();
        let (order, user) = (order_id(number), user(number));
        if ndjson {
            writeln!(line, "{}", json!({ "order_id": order, "user_id": user, "points": points, "status": status }))
                .expect("a text");
        } else {
            writeln!(line, "{status},{order},{points},{user},\"Berlin, 1\"").expect("a text");
        }
        file.write_all(line.repeat(lines).as_bytes()).expect("written");
    }
    file.flush().expect("written");
    path.to_str().expect("a plain path").to_owned()
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

async fn every_planted_mismatch_among_many_orders_is_found_and_nothing_else(database: NewDatabase) {
    let orders = size();
    fill(&database, orders).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write_orders(folder.path(), orders, database.url.starts_with("postgres"));
    let out = folder.path().join("out");
    let ran = run(&database, &["reconcile", "--orders", &path, "--out", out.to_str().expect("plain")]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    let planted: BTreeSet<_> =
        (0..orders).filter_map(|number| Some((order_id(number), plan(number).mismatch?.to_owned()))).collect();
    let found = listed(&out);
    let (missed, wrong): (Vec<_>, Vec<_>) =
        (planted.difference(&found).take(5).collect(), found.difference(&planted).take(5).collect());
    println!(
        "{orders} orders, {} planted: {} found, {} false, {:.1} s, {} MiB",
        planted.len(),
        planted.intersection(&found).count(),
        found.difference(&planted).count(),
        ran.took.as_secs_f64(),
        ran.memory_kib / 1024
    );
    assert!(missed.is_empty() && wrong.is_empty(), "not found: {missed:?}; false: {wrong:?}");
    assert_eq!(planted.len(), orders / ONE_IN);
    assert!(ran.memory_kib < 300 * 1024, "{} KiB", ran.memory_kib);
    // For people: figures, the first of the mismatches, and where the others are.
    assert!(
        ran.out.contains("mismatches.csv") && ran.out.contains("needs") | ran.out.contains("remedy"),
        "{}",
        ran.out
    );
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
        let mut command = Command::new(program());
        command.args(["--database-url", &database.url]).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
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
    let ran = run(&database, &["explain", "ann/points"]);
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
    assert_eq!(added.err.trim_end(), format!("correction {}", text(&first["id"])), "its id is told before it is done");
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
