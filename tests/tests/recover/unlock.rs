//! Locks of the ledger's own.

use ledger_core::{Account, Action, BusinessKey, Command};
use ledger_store::{Database, Ledger, LedgerOptions};
use serde_json::{Value, json};
use tests::{
    store::{self, NewDatabase},
    verify_consistent,
};

use super::Desk;

fn lock(user: &str, code: &str) -> Command {
    let account = Account::new(user, "points").expect("a valid account");
    Command {
        key: BusinessKey::reserved(code, user).expect("a valid key"),
        ..store::command(Action::Lock { account }, "test.lock", user)
    }
}

pub(crate) async fn the_ledgers_own_old_locks_are_lifted_and_no_others(database: NewDatabase) {
    let desk = Desk::new();
    // Years ago, by this clock.
    let opened = Database::open(&database.url).await.expect("a database");
    let ledger = Ledger::start(opened.clone(), store::ticking_clock()).await.expect("a ledger");
    for user in ["idle", "busy", "admin", "keyless", "young", "again"] {
        ledger.execute(store::credit(user, 100, "seed")).await.expect("credited");
    }
    ledger.execute(store::freeze("busy", 40, "order-1")).await.expect("frozen");
    for user in ["idle", "busy", "again"] {
        ledger.execute(lock(user, "system.guard")).await.expect("locked");
    }
    ledger.execute(lock("admin", "support.lock")).await.expect("locked");
    // An administrator who gave no key of their own: the service made one.
    ledger.execute(lock("keyless", "system.lock")).await.expect("locked");
    // An administrator locked it again, after the ledger did.
    ledger.execute(lock("again", "support.lock")).await.expect("locked");
    // What comes in meanwhile is no reason to keep a lock.
    ledger.execute(store::credit("idle", 5, "later")).await.expect("credited");
    ledger.stop().await;
    let ledger = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("a ledger");
    ledger.execute(lock("young", "system.guard")).await.expect("locked");
    ledger.stop().await;
    opened.close().await;
    let archive = desk.export(&database.url, "archive");

    let (code, report) = desk.recover(&database.url, &archive, "report", &[]);
    assert_eq!(code, 0, "{report:#}");
    // No projector had followed the log.
    assert_eq!(report["action"], "rebuilt");
    let users = |field: &str| -> Vec<Value> {
        let list = report["locks"][field].as_array().expect("a list");
        list.iter().map(|account| account["user_id"].clone()).collect()
    };
    assert_eq!(users("unlocked_accounts"), [json!("idle")], "{report:#}");
    assert_eq!(users("open_work_accounts"), [json!("busy")]);
    let busy = &report["locks"]["open_work_accounts"][0];
    assert_eq!((&busy["frozen"], &busy["freezes"][0]["business_id"]), (&json!(40), &json!("order-1")));
    assert_eq!((&report["locks"]["by_administrator"], &report["locks"]["young"]), (&json!(3), &json!(1)));
    let verified = verify_consistent(&database.url);

    // Once is enough.
    let (code, report) = desk.recover(&database.url, &archive, "again", &[]);
    assert_eq!((code, &report["locks"]["unlocked"]), (0, &json!(0)), "{report:#}");
    assert_eq!(verify_consistent(&database.url)["events"], verified["events"]);
}
