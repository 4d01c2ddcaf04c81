//! What roles, databases and schemas of PostgreSQL are set to, and who has its connections.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use futures::future::join_all;
use ledger_core::{Epoch, Head, PARTITIONS, Timestamp};
use ledger_store::{
    Database, Ledger, LedgerOptions, StoreError,
    restore::{Log, RestoreError, Target, restore},
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tests::{
    Postgres, Service, replay_tool,
    store::{credit, sqlite},
    verify_consistent,
};

/// The continuous proof would read, and mend, what these tests are about.
const UNPROVED: &[&str] = &["--proof-round", "0"];

/// A new database, which belongs to a new role: its name, and its address for that role.
fn owned_by(role: &str) -> (String, String) {
    let cluster = Postgres::shared();
    cluster.psql("postgres", &format!("create role {role} login"));
    another_owned_by(role)
}

/// One more database of that role.
fn another_owned_by(role: &str) -> (String, String) {
    let (name, url) = new_database();
    Postgres::shared().psql("postgres", &format!("alter database {name} owner to {role}"));
    (name, url.replace("postgres@", &format!("{role}@")))
}

/// A new database: its name and its address.
fn new_database() -> (String, String) {
    let url = Postgres::shared().database();
    (url.rsplit('/').next().expect("its name").to_owned(), url)
}

async fn start(url: &str) -> Ledger {
    let database = Database::open(url).await.expect("it opens");
    Ledger::start(database, LedgerOptions::default()).await.expect("the ledger starts")
}

/// Waits for something, a minute at most.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An archive of one event, in a folder that is gone with the value.
async fn archive() -> (TempDir, String) {
    let (source, folder) = (sqlite(), tempfile::tempdir().expect("a temporary folder"));
    let ledger = start(&source.url).await;
    ledger.execute(credit("ann", 5, "1")).await.expect("credited");
    ledger.stop().await;
    let path = folder.path().join("archive").to_str().expect("a plain path").to_owned();
    let (code, exported) = replay_tool(&source.url, &["export", "--out", &path]);
    assert_eq!(code, 0, "{exported:#}");
    (folder, path)
}

/// A role's time-outs end nothing, and its isolation does not make two writers fail again and again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_is_set_to_changes_nothing() {
    let cluster = Postgres::shared();
    let (name, url) = owned_by("hurried");
    cluster.psql("postgres", "alter role hurried set default_transaction_isolation = 'serializable'");
    cluster.psql("postgres", "alter role hurried set statement_timeout = '1ms'");
    for limit in ["idle_session_timeout", "transaction_timeout"] {
        let known = cluster.psql("postgres", &format!("select count(*) from pg_settings where name = '{limit}'"));
        if known == "1" {
            cluster.psql("postgres", &format!("alter role hurried set {limit} = '1h'"));
        }
    }
    let database = Database::open(&url).await.expect("it opens");
    let Database::Postgres(postgres) = &database else { panic!("it is a database of PostgreSQL") };
    let mut session = postgres.session().await.expect("it connects");
    for (setting, value) in [
        ("transaction_isolation", "read committed"),
        ("statement_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("transaction_timeout", "0"),
    ] {
        let ask =
            || sqlx::query_scalar::<sqlx::Postgres, Option<String>>("select current_setting($1, true)").bind(setting);
        for set in [ask().fetch_one(postgres.pool()).await, ask().fetch_one(&mut session).await] {
            let set = set.expect("it is told");
            assert!(set.as_ref().is_none_or(|set| set == value), "{setting}: {set:?}");
        }
    }
    database.close().await;

    let (one, other) = (start(&url).await, start(&url).await);
    let credits = async |ledger: &Ledger, name: &str| {
        for number in 0..50 {
            ledger.execute(credit("ann", 1, &format!("{name}.{number}"))).await.expect("credited");
        }
    };
    tokio::join!(credits(&one, "one"), credits(&other, "other"));
    one.stop().await;
    other.stop().await;
    assert_eq!(cluster.psql(&name, "select max(position) from index_checkpoints"), "100", "the indexes are written");

    let (_folder, archive) = archive().await;
    let (_, url) = another_owned_by("hurried");
    let (code, imported) = replay_tool(&url, &["import", "--from", &archive]);
    assert_eq!(code, 0, "{imported:#}");
    verify_consistent(&url);
}

/// Who restores into an empty ledger looks once more when nobody can write any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_done_while_an_archive_is_read_is_not_removed() {
    let (name, url) = owned_by("careful");
    Postgres::shared().psql("postgres", "alter role careful set default_transaction_isolation = 'repeatable read'");
    let ledger = start(&url).await;
    let ((tell, told), (go, wait)) = (mpsc::channel(), mpsc::channel::<()>());
    let wait = Mutex::new(wait);
    let log = Log {
        archive_id: "test".to_owned(),
        appends_are_held: false,
        standing: None,
        epoch: Epoch(7),
        heads: [Head::EMPTY; PARTITIONS],
        restored_at: Timestamp::from_micros(1_700_000_000_000_000).expect("a time"),
        events: Box::new(move |partition| {
            if partition.number() == 0 {
                tell.send(()).expect("the test waits");
                wait.lock().expect("nobody panics").recv().expect("the test goes on");
            }
            Box::new(std::iter::empty())
        }),
        fold: None,
        progress: Box::new(|_| {}),
    };
    let meanwhile = async {
        tokio::task::spawn_blocking(move || told.recv()).await.expect("no panic").expect("the archive is read");
        ledger.execute(credit("ann", 5, "1")).await.expect("credited");
        go.send(()).expect("the archive waits");
    };
    let (restored, ()) = tokio::join!(restore(&url, Target::Empty, log), meanwhile);
    assert!(matches!(restored, Err(RestoreError::NotEmpty(_))), "{restored:?}");
    assert_eq!(Postgres::shared().psql(&name, "select count(*) from events"), "1");
    ledger.stop().await;
}

/// Whose the tables of a database are.
fn owners(name: &str) -> String {
    let sql = "select string_agg(distinct pg_get_userbyid(relowner), ',') from pg_class \
        where relnamespace = 'public'::regnamespace and relkind = 'r'";
    Postgres::shared().psql(name, sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn read_models_that_another_role_makes_anew_stay_the_services() {
    let cluster = Postgres::shared();
    let (name, url) = owned_by("keeper");
    let service = Service::start(&url, UNPROVED);
    service.credit("ann", 5, "1").await;
    let (code, rebuilt) = replay_tool(&url.replace("keeper@", "postgres@"), &["rebuild"]);
    assert_eq!(code, 0, "{rebuilt:#}");
    assert_eq!(owners(&name), "keeper");
    service.credit("ann", 5, "2").await;
    drop(service);
    let service = Service::start(&url, UNPROVED);
    service.get("/v1/accounts/ann/points?min_version=2").await.expect(200);
    service.credit("ann", 5, "3").await;

    // Who may not give them away makes none.
    cluster.psql("postgres", "create role stranger login");
    cluster.psql(&name, "grant usage, create on schema public to stranger");
    cluster.psql(&name, "grant all on all tables in schema public to stranger");
    let (code, rebuilt) = replay_tool(&url.replace("keeper@", "stranger@"), &["rebuild"]);
    assert_eq!(code, 2, "{rebuilt:#}");
    assert_eq!(owners(&name), "keeper");
    assert_eq!(cluster.psql(&name, "select count(*) from pg_class where relname like '%\\_next'"), "0");
    service.get("/v1/accounts/ann/points?min_version=3").await.expect(200);
    verify_consistent(&url);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missing_belongs_after_a_restore_to_whom_the_rest_belongs() {
    let cluster = Postgres::shared();
    let (name, url) = owned_by("heir");
    Database::open(&url).await.expect("the schema is made").close().await;
    cluster.psql(&name, "drop table history_positions; drop type freeze_row");
    let (_folder, archive) = archive().await;
    let (code, imported) = replay_tool(&url.replace("heir@", "postgres@"), &["import", "--from", &archive]);
    assert_eq!(code, 0, "{imported:#}");
    assert_eq!(owners(&name), "heir");
    let functions = "select string_agg(distinct pg_get_userbyid(proowner), ',') from pg_proc \
        where pronamespace = 'public'::regnamespace";
    assert_eq!(cluster.psql(&name, functions), "heir");
    let types = "select string_agg(relname || ' ' || relnamespace::regnamespace || ' ' || pg_get_userbyid(relowner), ', ' \
        order by relname) from pg_class where relkind = 'c' and relname ~ '_(row|step)$'";
    let whole = ["account_row", "balance_row", "event_row", "freeze_row", "head_step"]
        .map(|name| format!("{name} public heir"));
    assert_eq!(cluster.psql(&name, types), whole.join(", "));
    let service = Service::start(&url, UNPROVED);
    service.credit("ann", 5, "2").await;
    drop(service);
    verify_consistent(&url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_hold_every_text_is_refused() {
    let cluster = Postgres::shared();
    let (_, url) = new_database();
    let (server, _) = url.rsplit_once('/').expect("a name");
    let create = |name: &str, encoding: &str| {
        let from = "template template0 lc_collate 'C' lc_ctype 'C'";
        cluster.psql("postgres", &format!("create database {name} encoding '{encoding}' {from}"));
        format!("{server}/{name}")
    };
    let western = create("western", "LATIN1");
    match Database::open(&western).await {
        Err(StoreError::Address(why)) => {
            assert!(why.contains("LATIN1") && why.contains("template0") && !why.contains('\n'), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let (_folder, archive) = archive().await;
    assert_eq!(replay_tool(&western, &["import", "--from", &archive]).0, 2);
    assert_eq!(cluster.psql("western", "select count(*) from pg_class where relname = 'events'"), "0");
    // What is not converted is kept as it is.
    let bytes = create("bytes", "SQL_ASCII");
    let service = Service::start(&bytes, UNPROVED);
    let command = json!({ "user_id": "ännchen", "credit_type": "points", "amount": 1, "business_code": "test.credit",
        "business_id": "1", "description": "2 € 😀" });
    let credited = service.post("/v1/credits", &command).await.expect(201);
    let id = credited["transaction_id"].as_str().expect("an id");
    let stored = service.get(&format!("/v1/transactions/{id}")).await.expect(200);
    assert_eq!((&stored["user_id"], &stored["description"]), (&json!("ännchen"), &json!("2 € 😀")));
    verify_consistent(&bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgers_in_two_schemas_of_a_database_do_not_wait_for_each_other() {
    let cluster = Postgres::shared();
    let (name, url) = new_database();
    let mut services = Vec::new();
    for role in ["north", "south"] {
        cluster.psql(&name, &format!("create role {role} login; create schema authorization {role}"));
        cluster.psql(&name, &format!("alter role {role} in database {name} set search_path = {role}"));
        services.push(Service::start(&url.replace("postgres@", &format!("{role}@")), UNPROVED));
    }
    for (service, role) in services.iter().zip(["north", "south"]) {
        service.credit("ann", 5, "1").await;
        let rows = format!("select count(*) from {role}.balances");
        until("the read models follow", async || cluster.psql(&name, &rows) == "1").await;
        service.get("/v1/accounts/ann/points?min_version=1").await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_go_on_while_reads_have_all_their_connections() {
    let (_, url) = new_database();
    let database = Database::open(&url).await.expect("it opens");
    let ledger = Ledger::start(database.clone(), LedgerOptions::default()).await.expect("the ledger starts");
    let Database::Postgres(postgres) = &database else { panic!("it is a database of PostgreSQL") };
    let mut taken = Vec::new();
    for _ in 0..postgres.pool().options().get_max_connections() {
        taken.push(postgres.pool().acquire().await.expect("one is free"));
    }
    // Nothing is known of the account, so it is looked up.
    ledger.execute(credit("ann", 5, "1")).await.expect("credited");
    drop(taken);
    ledger.stop().await;
    database.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_of_the_audit_leave_connections_to_other_reads() {
    let cluster = Postgres::shared();
    let (name, url) = new_database();
    let service = Arc::new(Service::start(&url, &["--proof-round", "0", "--audit", "off"]));
    service.credit("ann", 5, "1").await;
    // As long as this is held every search waits.
    let mut holder = PgConnection::connect(&url).await.expect("the server runs");
    holder.execute("begin; lock table audit in access exclusive mode").await.expect("held");
    let search = |_| {
        let service = service.clone();
        tokio::spawn(async move { service.get("/v1/audit").await })
    };
    let searches = join_all((0..20).map(search));
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
        and wait_event_type = 'Lock' and query like 'select %from audit %'";
    until("four of them wait", async || cluster.psql(&name, waiting) == "4").await;
    for _ in 0..20 {
        service.get("/v1/accounts/ann/points?consistency=strong").await.expect(200);
        let count: u32 = cluster.psql(&name, waiting).parse().expect("a number");
        assert!(count <= 4, "{count} searches at a time");
    }
    holder.execute("rollback").await.expect("let go");
    for answer in searches.await {
        // One that waited for longer than locks are waited for is told so.
        let answer = answer.expect("no panic");
        assert!([200, 503].contains(&answer.status.as_u16()), "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_the_database_is_encrypted_and_goes_to_whom_the_certificate_names() {
    let cluster = Postgres::start();
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    // The server takes a key only that nobody else may read.
    for (name, pem) in [("server.crt", cert.pem()), ("server.key", signing_key.serialize_pem())] {
        let lines = format!("select unnest(string_to_array('{pem}', E'\\n'))");
        cluster.psql("postgres", &format!("copy ({lines}) to program 'umask 077; cat > {name}'"));
    }
    cluster.psql("postgres", "alter system set ssl = on");
    cluster.psql("postgres", "select pg_reload_conf()");
    until("it encrypts", async || cluster.psql("postgres", "show ssl") == "on").await;
    let folder = TempDir::new().expect("a temporary folder");
    let root = folder.path().join("root.pem");
    std::fs::write(&root, cert.pem()).expect("there is room");

    let by_address = cluster.database();
    let database = by_address.rsplit('/').next().expect("its name").to_owned();
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let verified = format!("sslmode=verify-full&sslrootcert={}", root.display());
    let service = Service::start(&format!("{by_name}?{verified}"), &[]);
    service.credit("ann", 1, "1").await;
    let sessions = "from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'ledger'";
    assert_eq!(cluster.psql(&database, &format!("select count(*) > 0 and bool_and(ssl) {sessions}")), "t");
    for refused in [format!("{by_address}?{verified}"), format!("{by_name}?sslmode=verify-full")] {
        let why = Database::open(&refused).await.expect_err(&refused).to_string();
        assert!(why.contains("certificate"), "{why}");
    }
    let plain = format!("{}?sslmode=require", Postgres::shared().database());
    let why = Database::open(&plain).await.expect_err("the server does not encrypt").to_string();
    assert!(why.contains("TLS") || why.contains("SSL"), "{why}");
}
