//! Reconciliation of many orders: every planted mismatch is found, nothing else, in bounded memory. `ORDERS` says how many.

use std::{collections::BTreeSet, fmt::Write as _, fs, io::Write as _, path::Path};

use ledger_core::{Account, Action, Amount, NamedAccount, TransactionId};
use ledger_store::{Database, Ledger, LedgerOptions};
use serde_json::{Value, json};
use tests::{
    on_both_databases,
    store::{NewDatabase, command},
    tool::{run, text},
};

on_both_databases!(every_planted_mismatch_among_many_orders_is_found_and_nothing_else);

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

/// Every mismatch in the full list: (order, kind).
fn listed(folder: &Path) -> BTreeSet<(String, String)> {
    let lines = fs::read_to_string(folder.join("mismatches.ndjson")).expect("the list is there");
    let mismatches = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let found: Vec<_> = mismatches.map(|mismatch| (text(&mismatch["order_id"]), text(&mismatch["kind"]))).collect();
    let set: BTreeSet<_> = found.iter().cloned().collect();
    assert_eq!(set.len(), found.len(), "a mismatch is told twice");
    set
}
