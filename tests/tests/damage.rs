//! `replay-tool verify` finds what was done to a database by hand, and `rebuild` mends what can be mended.

use serde_json::{Value, json};
use tests::{Load, Service, on_both_databases, replay_tool, store::NewDatabase, verify_consistent};

on_both_databases!(
    verify_names_each_damage_that_is_done_by_hand,
    rebuild_mends_the_read_models_while_commands_go_on,
    what_is_no_ledger_is_refused_in_one_line,
);

/// Runs SQL as a vandal would: with the triggers switched off, and on again.
async fn vandalise(database: &NewDatabase, statements: &[String]) {
    use sqlx::{AssertSqlSafe, Connection, Row};
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        let triggers = sqlx::query("select name, sql from sqlite_master where type = 'trigger'")
            .fetch_all(&mut connection)
            .await
            .expect("triggers are listed");
        for trigger in &triggers {
            let name: String = trigger.get(0);
            sqlx::query(AssertSqlSafe(format!("drop trigger {name}"))).execute(&mut connection).await.expect("dropped");
        }
        for statement in statements {
            sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut connection).await.expect("the damage is done");
        }
        for trigger in &triggers {
            sqlx::query(AssertSqlSafe(trigger.get::<String, _>(1))).execute(&mut connection).await.expect("made again");
        }
        connection.close().await.expect("closed");
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query("alter table events disable trigger all").execute(&mut connection).await.expect("switched off");
        for statement in statements {
            sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut connection).await.expect("the damage is done");
        }
        sqlx::query("alter table events enable always trigger all").execute(&mut connection).await.ok();
    }
}

/// A ledger with an order in it, stopped: the partition of ann, whose events are 1 to 5 there, and the digest.
async fn ledger(database: &NewDatabase) -> (u64, Value) {
    let mut service = Service::start(&database.url, &[]);
    let credited = service.credit("ann", 1000, "seed").await;
    let of = |amount: u64, id: &str| json!({ "user_id": "ann", "credit_type": "points", "amount": amount, "business_code": "order", "business_id": id });
    let frozen = service.post("/v1/freezes", &of(500, "1")).await.expect(201);
    let capture =
        json!({ "freeze_id": frozen["transaction_id"], "amount": 200, "business_code": "pay", "business_id": "1" });
    let paid = service.post("/v1/debits", &capture).await.expect(201);
    let refund =
        json!({ "debit_id": paid["transaction_id"], "amount": 50, "business_code": "back", "business_id": "1" });
    service.post("/v1/refunds", &refund).await.expect(201);
    service.post("/v1/debits", &of(10, "2")).await.expect(201);
    service.get("/v1/accounts/ann/points?min_version=5").await.expect(200);
    service.get(&format!("/v1/freezes/{}", frozen["transaction_id"].as_str().expect("an id"))).await.expect(200);
    service.terminate();
    let verified = verify_consistent(&database.url);
    (credited["partition"].as_u64().expect("a number"), verified["digest"].clone())
}

/// What was done, by which statements, how it is undone, and the kind and position of the finding.
type Case = (&'static str, Vec<String>, Vec<String>, &'static str, u64);

async fn verify_names_each_damage_that_is_done_by_hand(database: NewDatabase) {
    let (partition, digest) = ledger(&database).await;
    let columns: &str = "previous_position, epoch, version, amount, released, remaining, balance, frozen, available, \
        expires_at, recorded_at, transaction_id, account_id, related_id, operation_id, batch_id, batch_size, batch_index, \
        partition, schema_version, locked, type, user_id, credit_type, business_code, business_id, request_id, actor, \
        description, metadata, hash";
    let place = |position: u64| format!("partition = {partition} and position = {position}");
    let update = |set: &str, position: u64| format!("update events set {set} where {}", place(position));
    let cases: Vec<Case> = vec![
        (
            "an amount edited",
            vec![update("amount = amount + 1", 3)],
            vec![update("amount = amount - 1", 3)],
            "hash_mismatch",
            3,
        ),
        ("metadata edited", vec![update("metadata = '{}'", 2)], vec![update("metadata = null", 2)], "hash_mismatch", 2),
        (
            "a row deleted",
            vec![
                format!("create table kept as select * from events where {}", place(3)),
                format!("delete from events where {}", place(3)),
            ],
            vec![
                format!("insert into events ({columns}, position) select {columns}, position from kept"),
                "drop table kept".to_owned(),
            ],
            "gap",
            3,
        ),
        (
            "the newest row deleted",
            vec![
                format!("create table kept as select * from events where {}", place(5)),
                format!("delete from events where {}", place(5)),
            ],
            vec![
                format!("insert into events ({columns}, position) select {columns}, position from kept"),
                "drop table kept".to_owned(),
            ],
            "gap",
            5,
        ),
        (
            "two rows swapped",
            vec![update("position = 999", 3), update("position = 3", 4), update("position = 4", 999)],
            vec![update("position = 999", 3), update("position = 3", 4), update("position = 4", 999)],
            "hash_mismatch",
            3,
        ),
        (
            "a row inserted",
            vec![format!(
                "insert into events ({columns}, position) select {columns}, 6 from events where {}",
                place(5)
            )],
            vec![format!("delete from events where {}", place(6))],
            "beyond_head",
            6,
        ),
        (
            "a row inserted before the first",
            vec![format!(
                "insert into events ({columns}, position) select {columns}, 0 from events where {}",
                place(5)
            )],
            vec![format!("delete from events where {}", place(0))],
            "damaged_event",
            0,
        ),
        (
            "a checkpoint's epoch edited",
            vec![format!(
                "update projection_checkpoints set epoch = epoch + 1 where partition = {partition} and projection = 'balances'"
            )],
            vec![format!(
                "update projection_checkpoints set epoch = epoch - 1 where partition = {partition} and projection = 'balances'"
            )],
            "checkpoint_mismatch",
            5,
        ),
        (
            "a balance edited",
            vec!["update balances set balance = balance + 5, available = available + 5".to_owned()],
            vec!["update balances set balance = balance - 5, available = available - 5".to_owned()],
            "balance_mismatch",
            5,
        ),
        (
            "only the balance edited",
            vec!["update balances set balance = balance + 5".to_owned()],
            vec!["update balances set balance = balance - 5".to_owned()],
            "balance_mismatch",
            5,
        ),
        (
            "the head row edited",
            vec![format!("update partition_heads set position = position + 1 where partition = {partition}")],
            vec![format!("update partition_heads set position = position - 1 where partition = {partition}")],
            "gap",
            6,
        ),
        ("a freeze deleted", vec!["delete from freezes".to_owned()], vec![], "freeze_missing", 2),
    ];
    let tried = cases.len();
    let mut found = 0;
    for (what, damage, repair, kind, position) in cases {
        vandalise(&database, &damage).await;
        let (code, verified) = replay_tool(&database.url, &["verify"]);
        assert_eq!(code, 1, "{what}: {verified:#}");
        assert_eq!(verified["consistent"], false, "{what}");
        let named = verified["findings"].as_array().expect("a list").iter().any(|finding| {
            finding["kind"] == kind && finding["partition"] == partition && finding["position"] == position
        });
        assert!(named, "{what}: {verified:#}");
        found += 1;
        vandalise(&database, &repair).await;
        if !repair.is_empty() {
            verify_consistent(&database.url);
        }
    }
    println!("{found} found of {tried} tried");
    // The last damage is one that a rebuild mends.
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["digest"]), (0, &digest), "{rebuilt:#}");
    assert_eq!(verify_consistent(&database.url)["digest"], digest);
}

async fn rebuild_mends_the_read_models_while_commands_go_on(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    let services = [&service];
    let rebuild = async {
        for _ in 0..3 {
            let statements = ["update balances set balance = balance + 5, available = available + 5 where balance > 0"];
            vandalise(&database, &statements.map(str::to_owned)).await;
            let url = database.url.clone();
            let rebuilt = tokio::task::spawn_blocking(move || replay_tool(&url, &["rebuild"])).await.expect("no panic");
            assert_eq!(rebuilt.0, 0, "{:#}", rebuilt.1);
        }
        let again = load.acknowledged();
        while load.acknowledged() < again + 200 {
            tokio::task::yield_now().await;
        }
        load.stop();
    };
    tokio::join!(load.run(&services, 8), rebuild);
    load.check(&service).await;
    // The service's projector goes on where the rebuilt tables stand, by itself.
    for user in 0..tests::load::ACCOUNTS {
        let strong = service.get(&format!("/v1/accounts/load-{user}/points?consistency=strong")).await.expect(200);
        let version = strong["version"].as_u64().expect("a number");
        let served = service.get(&format!("/v1/accounts/load-{user}/points?min_version={version}")).await.expect(200);
        assert_eq!(served, strong);
    }
    wait_until_projected(&service).await;
    let verified = verify_consistent(&database.url);
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["digest"]), (0, &verified["digest"]));
}

async fn wait_until_projected(service: &Service) {
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

async fn what_is_no_ledger_is_refused_in_one_line(database: NewDatabase) {
    for command in ["verify", "rebuild"] {
        let (code, printed) = replay_tool(&database.url, &[command]);
        assert_eq!((code, printed), (2, Value::Null));
    }
    let (code, _) = replay_tool("mysql://secret@host/db", &["verify"]);
    assert_eq!(code, 2);
}
