//! The ledger that is damaged.

use ledger_core::{Account, Partition};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Service, replay_tool, store::NewDatabase};

/// The newest position of ann's partition.
pub(crate) const NEWEST: u64 = 10;

/// A ledger with orders in it, stopped. In ann's partition: 1 credit, 2 freeze of 500, 3 capture of 200, 4 refund of 50 of it, 5
/// debit of 10; 6 a credit and 7 a freeze of another account; 8 a credit of an atomic batch whose other half is bob's first
/// event; 9 a release of 100 of the freeze; 10 a credit. A third account has 300 events.
pub(crate) struct Ledger {
    pub(crate) partition: Partition,
    /// Bob's.
    pub(crate) other: Partition,
    /// The one of 300 events.
    pub(crate) busy: Partition,
    pub(crate) anchor: String,
    _folder: TempDir,
}

pub(crate) fn account(user: &str) -> Account {
    Account::new(user, "points").expect("a valid account")
}

/// A user whose account is in ann's partition, or in another than all of these.
pub(crate) fn user(is_wanted: impl Fn(Partition) -> bool) -> String {
    let mut users = (0..10_000).map(|number| format!("user-{number}"));
    users.find(|user| is_wanted(account(user).partition())).expect("accounts spread over all partitions")
}

pub(crate) async fn ledger(database: &NewDatabase, arguments: &[&str]) -> Ledger {
    let partition = account("ann").partition();
    let neighbour = user(|of| of == partition);
    let bob = user(|of| of != partition);
    let other = account(&bob).partition();
    let busy = user(|of| of != partition && of != other);
    let mut service = Service::start(&database.url, arguments);
    let of = |user: &str, amount: u64, id: &str| {
        json!({ "user_id": user, "credit_type": "points", "amount": amount,
        "business_code": "order", "business_id": id })
    };
    service.credit("ann", 1000, "seed").await;
    let frozen = service.post("/v1/freezes", &of("ann", 500, "1")).await.expect(201);
    let about = |field: &str, original: &Value, amount: u64, code: &str| {
        json!({
        field: original["transaction_id"], "amount": amount, "business_code": code, "business_id": "1" })
    };
    let paid = service.post("/v1/debits", &about("freeze_id", &frozen, 200, "pay")).await.expect(201);
    service.post("/v1/refunds", &about("debit_id", &paid, 50, "back")).await.expect(201);
    service.post("/v1/debits", &of("ann", 10, "2")).await.expect(201);
    service.credit(&neighbour, 100, "seed").await;
    service.post("/v1/freezes", &of(&neighbour, 40, "1")).await.expect(201);
    let credit = |user: &str, id: &str| {
        let mut command = of(user, 5, id);
        command["type"] = json!("credit");
        command
    };
    let batch = json!({ "commands": [credit("ann", "both"), credit(&bob, "both")] });
    service.post("/v1/batches", &batch).await.expect(201);
    service.post("/v1/unfreezes", &about("freeze_id", &frozen, 100, "free")).await.expect(201);
    service.credit("ann", 7, "last").await;
    let many: Vec<_> = (0..300).map(|number| credit(&busy, &number.to_string())).collect();
    service.post("/v1/batches", &json!({ "atomic": false, "commands": many })).await.expect(200);
    wait_until_projected(&service).await;
    if !arguments.is_empty() {
        wait_until_published(&service).await;
    }
    service.terminate();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let anchor = folder.path().join("heads.json").display().to_string();
    assert_eq!(replay_tool(&database.url, &["heads", "--out", &anchor]).0, 0);
    Ledger { partition, other, busy: account(&busy).partition(), anchor, _folder: folder }
}

pub(crate) async fn wait_until_published(service: &Service) {
    let published = async {
        while service.get("/readyz").await.body["nats"]["lag_positions"] != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), published).await.expect("everything is published");
}

pub(crate) async fn wait_until_projected(service: &Service) {
    let projected = async {
        loop {
            let ready = service.get("/readyz").await.body;
            if ready["projector"]["lag_positions"] == 0 {
                return ready;
            }
        }
    };
    let ready =
        tokio::time::timeout(std::time::Duration::from_secs(30), projected).await.expect("the projector catches up");
    assert_eq!(ready["projector"]["halted_partitions"], json!([]));
}
