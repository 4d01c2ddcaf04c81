//! What must hold of the code and of the database before anything is served.

use std::process::Command;

use ledger_store::{Database, StoreError};
use sqlx::{Connection, Executor};
use tests::{Postgres, Service, store::sqlite};

#[test]
fn the_domain_depends_on_no_runtime_no_database_and_no_server() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", "ledger-core", "--edges", "normal", "--prefix", "none", "--offline"])
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8(tree.stdout).expect("cargo prints UTF-8");
    assert!(tree.contains("blake3"), "{tree}");
    for forbidden in ["tokio", "sqlx", "axum", "async-nats", "hyper"] {
        assert!(!tree.lines().any(|line| line.starts_with(forbidden)), "{forbidden}: {tree}");
    }
}

#[test]
fn no_decision_reads_a_read_model() {
    // The writer's crate knows no table of the read models, so no decision can read one.
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../ledger-store/src");
    let mut folders = vec![std::path::PathBuf::from(sources)];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(folder).expect("the sources are there").map(|entry| entry.expect("readable").path())
        {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let text = std::fs::read_to_string(&entry).expect("readable");
            for table in ["from balances", "join balances", "from freezes", "join freezes", "projection_checkpoints"] {
                assert!(!text.contains(table), "{} names {table}", entry.display());
            }
            read += 1;
        }
    }
    assert!(read > 10, "only {read} files were read");
}

#[tokio::test]
async fn a_database_that_would_lose_commands_is_refused() {
    let cluster = Postgres::shared();
    for (setting, undo) in [("synchronous_commit = off", "reset synchronous_commit")] {
        let url = cluster.database();
        let name = url.rsplit('/').next().expect("a name").to_owned();
        cluster.psql("postgres", &format!("alter database {name} set {setting}"));
        match Database::open(&url).await {
            Err(StoreError::NotDurable(why)) => assert!(why.contains(setting) && !why.contains('\n'), "{why}"),
            other => panic!("{setting}: {other:?}"),
        }
        cluster.psql("postgres", &format!("alter database {name} {undo}"));
        Database::open(&url).await.expect("opens").close().await;
    }
    let mut lossy = Postgres::start();
    let url = lossy.database();
    lossy.psql("postgres", "alter system set fsync = off");
    lossy.stop_immediately();
    lossy.run();
    match Database::open(&url).await {
        Err(StoreError::NotDurable(why)) => assert!(why.contains("fsync = off"), "{why}"),
        other => panic!("fsync: {other:?}"),
    }
    assert!(matches!(Database::open("sqlite://:memory:").await, Err(StoreError::NotDurable(_))));
}

#[tokio::test]
async fn a_role_that_may_only_insert_events_is_enough_to_serve() {
    let cluster = Postgres::shared();
    let url = cluster.database();
    let name = url.rsplit('/').next().expect("a name").to_owned();
    Database::open(&url).await.expect("the owner migrates").close().await;
    cluster.psql("postgres", "create role ledger_service login");
    let grants = include_str!("../../migrations/postgres/service-role.sql").replace(":service", "ledger_service");
    cluster.psql(&name, &grants);
    let service_url = url.replace("postgres@", "ledger_service@");
    let service = Service::start(&service_url, &[]);
    service.credit("ann", 5, "seed").await;
    service.get("/v1/accounts/ann/points?min_version=1").await.expect(200);
    tests::verify_consistent(&service_url);
    let mut connection = sqlx::PgConnection::connect(&service_url).await.expect("connects");
    for statement in ["update events set amount = 6", "delete from events", "truncate events", "drop table events"] {
        let refused = connection.execute(statement).await.expect_err(statement).to_string();
        assert!(refused.contains("permission denied") || refused.contains("must be owner"), "{statement}: {refused}");
    }
    drop(service);
    cluster.psql("postgres", &format!("drop database {name} with (force)"));
    cluster.psql("postgres", "drop role ledger_service");
}

#[tokio::test]
async fn events_are_neither_updated_nor_deleted_nor_replaced() {
    let database = sqlite();
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 5, "seed").await;
    let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("opens");
    for statement in
        ["update events set amount = 6", "delete from events", "insert or replace into events select * from events"]
    {
        let refused = connection.execute(statement).await.expect_err(statement).to_string();
        assert!(refused.contains("append-only"), "{statement}: {refused}");
    }
    let cluster = Postgres::shared();
    let url = cluster.database();
    let service = Service::start(&url, &[]);
    service.credit("ann", 5, "seed").await;
    let mut connection = sqlx::PgConnection::connect(&url).await.expect("opens");
    for statement in ["update events set amount = 6", "delete from events", "truncate events"] {
        let refused = connection.execute(statement).await.expect_err(statement).to_string();
        assert!(refused.contains("append-only"), "{statement}: {refused}");
    }
}
