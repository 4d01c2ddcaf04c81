//! What the programs say and do when they are started for the first time, in the wrong place or without a right, and what
//! they leave when they stop.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ledger_store::{Database, StoreError, restore};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection};
use tests::{
    Service,
    children::{bound_to_this_process, kill, spawn},
    on_both_databases, replay_tool,
    service::program,
    store::{self, NewDatabase},
    verify_consistent,
};
use tokio::time::{sleep, timeout};

on_both_databases!(
    a_database_that_takes_no_commit_is_told_of_until_it_does,
    a_database_of_another_program_is_left_alone,
    a_schema_of_another_version_says_which_program_to_run,
    keys_are_looked_for_only_where_a_ledger_is,
);

fn is_sqlite(url: &str) -> bool {
    url.starts_with("sqlite")
}

fn file(database: &NewDatabase) -> &str {
    database.url.strip_prefix("sqlite://").expect("a file")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

async fn run(url: &str, sql: &str) {
    let statement = AssertSqlSafe(sql.to_owned());
    if is_sqlite(url) {
        let mut connection = sqlx::SqliteConnection::connect(&format!("{url}?mode=rwc")).await.expect("the file opens");
        sqlx::raw_sql(statement).execute(&mut connection).await.expect(sql);
        connection.close().await.expect("closed");
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the database opens");
        sqlx::raw_sql(statement).execute(&mut connection).await.expect(sql);
        connection.close().await.expect("closed");
    }
}

/// The exit code of a program, and what it said of why it could not go on.
fn said(command: &mut Command) -> (Option<i32>, String) {
    let output = command.env_remove("NATS_URL").output().expect("it runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8").trim_end().to_owned())
}

fn api(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("api"));
    command.args(["--database-url", url]).args(arguments);
    command
}

async fn open(url: &str) -> StoreError {
    Database::open(url).await.map(drop).expect_err("it cannot be opened")
}

/// Waits until the service says that commands can be served.
async fn until_ready(service: &Service) {
    let ready = async {
        while service.get("/readyz").await.status != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), ready).await.expect("it goes on by itself");
}

async fn a_database_that_takes_no_commit_is_told_of_until_it_does(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 5, "seed").await;
    let (no_room, room_again) = if is_sqlite(&database.url) {
        (
            "create trigger no_room before update on partition_heads begin select raise(abort, 'no room'); end",
            "drop trigger no_room",
        )
    } else {
        (
            "create function no_room() returns trigger language plpgsql as 'begin raise exception ''no room''; end';
             create trigger no_room before update on partition_heads for each row execute function no_room()",
            "drop function no_room cascade",
        )
    };
    run(&database.url, no_room).await;
    let credit = json!({ "user_id": "ann", "credit_type": "points", "amount": 7, "business_code": "test.credit",
        "business_id": "none" });
    let refused = service.post("/v1/credits", &credit).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    // Nobody waits any more, and the heads can be locked and read.
    for _ in 0..30 {
        let ready = service.get("/readyz").await.expect(503);
        assert!(ready["trouble"].as_str().is_some_and(|why| why.contains("no room")), "{ready}");
        sleep(Duration::from_millis(100)).await;
    }
    run(&database.url, room_again).await;
    until_ready(&service).await;
    service.credit("ann", 1, "again").await;
    assert_eq!(service.holdings("ann").await, (6, 0, 6));
    verify_consistent(&database.url);
}

async fn a_database_of_another_program_is_left_alone(database: NewDatabase) {
    let theirs = |table: &str| format!("create table {table} (name text); insert into {table} values ('zoe')");
    let still_there = |table: &str| format!("update {table} set name = 'zoë'");
    // A file is replaced as a whole, a table of PostgreSQL only where one of the ledger's has its name.
    let table = if is_sqlite(&database.url) { "users" } else { "api_keys" };
    let (folder, source) = (tempfile::tempdir().expect("a temporary folder"), store::sqlite());
    let archive = folder.path().join("archive");
    let mut service = Service::start(&source.url, &[]);
    service.credit("ann", 5, "1").await;
    service.terminate();
    assert_eq!(replay_tool(&source.url, &["export", "--out", text(&archive)]).0, 0);

    run(&database.url, &theirs(table)).await;
    let told =
        format!("holds tables of another program ({table}): give the ledger a database of its own with --database-url");
    let refused = Service::try_start(&database.url, &[]).expect_err("it is somebody else's");
    assert!(refused.contains(&told) && refused.lines().count() == 1, "{refused}");
    let key = ["keys", "create", "--label", "a", "--scopes", "read"];
    let (code, refused) = said(&mut api(&database.url, &key));
    assert!(code == Some(2) && refused.contains(&told), "{refused}");
    let found = restore::look(&database.url).await.expect_err("it is somebody else's").to_string();
    assert!(found.contains(&format!("another program ({table})")), "{found}");
    assert_eq!(replay_tool(&database.url, &["import", "--from", text(&archive)]).0, 2);
    if is_sqlite(&database.url) {
        // In the file's header (https://sqlite.org/fileformat.html): 2 where there is a write-ahead log.
        assert_eq!(fs::read(file(&database)).expect("it is there")[18], 1, "it still has its own kind of journal");
    }
    run(&database.url, &still_there(table)).await;

    // What is beside a ledger without an event is not lost either.
    let shared = if is_sqlite(&database.url) { store::sqlite() } else { store::postgres() };
    if !is_sqlite(&database.url) {
        run(&shared.url, &theirs("orders")).await;
    }
    Service::start(&shared.url, &[]).terminate();
    run(&shared.url, &theirs("users")).await;
    let (code, _) = replay_tool(&shared.url, &["import", "--from", text(&archive)]);
    // PostgreSQL changes places table by table, SQLite the whole file.
    assert_eq!(code, if is_sqlite(&shared.url) { 2 } else { 0 });
    run(&shared.url, &still_there("users")).await;
    Service::start(&shared.url, &[]).terminate();
}

async fn a_schema_of_another_version_says_which_program_to_run(database: NewDatabase) {
    Database::open(&database.url).await.expect("a new ledger").close().await;
    let checksum = if is_sqlite(&database.url) { "x'00'" } else { "'\\x00'::bytea" };
    let newer = format!(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
         values (99, 'later', true, {checksum}, 0)"
    );
    run(&database.url, &newer).await;
    let refused = open(&database.url).await.to_string();
    assert!(refused.contains("has schema version 99") && refused.ends_with("run a newer program"), "{refused}");
    let changed =
        format!("delete from _sqlx_migrations where version > 1; update _sqlx_migrations set checksum = {checksum}");
    run(&database.url, &changed).await;
    let refused = open(&database.url).await.to_string();
    assert!(refused.contains("was made by another version whose schema cannot be taken over"), "{refused}");
    assert!(refused.ends_with("and import the archive into a new database"), "{refused}");
}

async fn keys_are_looked_for_only_where_a_ledger_is(database: NewDatabase) {
    for arguments in [&["keys", "list"][..], &["keys", "revoke", "1a2b3c4d5e6f"]] {
        let (code, refused) = said(&mut api(&database.url, arguments));
        let told = if is_sqlite(&database.url) { "there is no file" } else { "holds no ledger" };
        assert!(code == Some(2) && refused.contains(told), "{arguments:?}: {refused}");
    }
    if is_sqlite(&database.url) {
        assert!(!Path::new(file(&database)).exists(), "a list makes nothing");
    }
    Database::open(&database.url).await.expect("a new ledger").close().await;
    let (_, refused) = said(&mut api(&database.url, &["keys", "revoke", "1a2b3c4d5e6f"]));
    let (_, place) = database.url.rsplit_once('/').expect("a path");
    assert!(refused.contains(&format!("/{place} has no active key with this prefix; `api keys list`")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_the_file_of_a_service_that_was_stopped() {
    let (database, copy) = (store::sqlite(), store::sqlite());
    for round in 1..=5_u64 {
        let mut service = Service::start(&database.url, &[]);
        for number in 0..3 {
            service.credit("ann", 1, &format!("{round}-{number}")).await;
        }
        service.terminate();
        for suffix in ["-wal", "-shm"] {
            // Those of the copy before, if there are any.
            let _ = fs::remove_file(format!("{}{suffix}", file(&copy)));
        }
        fs::copy(file(&database), file(&copy)).expect("there is room");
        assert_eq!(verify_consistent(&copy.url)["events"], 3 * round);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_only_be_read_is_not_served_and_still_read() {
    let database = store::sqlite();
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 1, "1").await;
    service.terminate();
    // Whoever runs the tests may write everything; SQLite does the same where a user may not.
    let read_only = format!("{}?mode=ro", database.url);
    let refused = Service::try_start(&read_only, &[]).expect_err("no command could be done");
    let file = file(&database);
    let told =
        format!("{file} cannot be written by this user: it, {file}-wal and {file}-shm must belong to whoever runs");
    assert!(refused.contains(&told) && refused.lines().count() == 1, "{refused}");
    let (code, told) = said(&mut api(&read_only, &["keys", "list"]));
    assert_eq!(code, Some(0), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_starts_at_once_make_one_ledger() {
    for _ in 0..10 {
        let database = store::sqlite();
        let starts = futures::future::join_all([(); 4].map(|()| Database::open(&database.url))).await;
        let opened: Vec<_> = starts.into_iter().map(|opened| opened.expect("it opens")).collect();
        assert!(opened.iter().any(Database::is_new), "one of them made it");
        for database in opened {
            database.close().await;
        }
        let again = Database::open(&database.url).await.expect("it opens");
        assert!(!again.is_new());
        again.close().await;
    }
}

/// The line about the database of a service that is started in a folder.
fn told_of_the_database(folder: &Path) -> String {
    let mut command = bound_to_this_process(text(&program("api")), "KILL");
    command
        .args(["--database-url", "sqlite://ledger.db", "--listen", "127.0.0.1:0"])
        .current_dir(folder)
        .env_remove("NATS_URL")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = spawn(command);
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let told = lines.map_while(Result::ok).find(|line| line.starts_with("database"));
    kill(&mut child);
    told.expect("it tells where the ledger is")
}

#[test]
fn a_start_tells_in_full_where_the_ledger_is_and_whether_it_is_a_new_one() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    for folder in &folders {
        let file = folder.path().canonicalize().expect("it is there").join("ledger.db");
        let place = format!("database      sqlite://{}", file.display());
        assert_eq!(told_of_the_database(folder.path()), format!("{place} (new, empty)"));
        assert_eq!(told_of_the_database(folder.path()), place);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_takes_no_more_commands_until_it_is_back() {
    let database = store::sqlite();
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 1, "1").await;
    let aside = format!("{}.aside", file(&database));
    fs::rename(file(&database), &aside).expect("moved");
    let credit = |id: &str| {
        json!({ "user_id": "ann", "credit_type": "points", "amount": 1, "business_code": "test.credit",
            "business_id": id })
    };
    let refused = service.post("/v1/credits", &credit("2")).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    let ready = service.get("/readyz").await.expect(503);
    assert!(ready["trouble"].as_str().is_some_and(|why| why.contains("was removed or replaced")), "{ready}");
    fs::rename(&aside, file(&database)).expect("moved back");
    until_ready(&service).await;
    service.post("/v1/credits", &credit("3")).await.expect(201);
    // What was not acknowledged may be done all the same, and its key tells.
    let balance = service.holdings("ann").await.0;
    assert!((2..=3).contains(&balance), "{balance}");
    service.terminate();
    assert_eq!(verify_consistent(&database.url)["events"], balance);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_commits_of_a_file_that_was_moved_away_are_not_lost_by_a_start() {
    let database = store::sqlite();
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 1, "1").await;
    service.kill9();
    let aside = format!("{}.aside", file(&database));
    fs::rename(file(&database), &aside).expect("moved");
    let refused = Service::try_start(&database.url, &[]).expect_err("its log would be gone");
    assert!(refused.contains("ledger.db-wal holds commits that belong to it: put it back"), "{refused}");
    // Somebody made one in its place, without anything in it.
    fs::write(file(&database), "").expect("there is room");
    let refused = Service::try_start(&database.url, &[]).expect_err("its log would be gone");
    assert!(refused.contains("ledger.db is empty, and"), "{refused}");
    fs::rename(&aside, file(&database)).expect("moved back");
    let service = Service::start(&database.url, &[]);
    assert_eq!(service.holdings("ann").await, (1, 0, 1));
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_by_its_cause() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let garbage = folder.path().join("garbage.db");
    fs::write(&garbage, [0x5a; 8_192]).expect("there is room");
    let url = |path: &Path| format!("sqlite://{}", path.display());
    for (url, told) in [
        (url(&garbage), "garbage.db is no SQLite database; look at the path in --database-url"),
        (url(folder.path()), "is a folder; name a file in it"),
        (url(&garbage.join("ledger.db")), "cannot read"),
        (url(&folder.path().join("none/ledger.db")), "check that its folder exists"),
        ("sqlite::memory:".to_owned(), "is kept in memory"),
        ("sqlite://".to_owned(), "is kept in memory"),
    ] {
        let refused = open(&url).await.to_string();
        assert!(refused.contains(told), "{url}: {refused}");
    }
    let found = restore::look(&url(folder.path())).await.expect_err("a folder").to_string();
    assert!(found.contains("is a folder; name a file in it"), "{found}");
}

#[test]
fn arguments_that_cannot_be_right_are_refused_in_one_line() {
    const NATS: &str = "--nats-url must begin with nats:// or tls://, such as nats://127.0.0.1:4222";
    let tool = |arguments: &[&str]| {
        let mut command = Command::new(program("replay-tool"));
        command.args(arguments);
        command
    };
    let mut projector = Command::new(program("projector"));
    projector.args(["--nats-url", "ann:hush@127.0.0.1:4222"]);
    let mut limited = api("sqlite://none.db", &[]);
    limited.env("RATE_LIMIT", "lots");
    for (mut command, told) in [
        (api("sqlite://none.db", &["keys"]), "api: keys needs create, list or revoke"),
        (api("sqlite://none.db", &["--nats-url", "http://hush@a"]), NATS),
        (projector, NATS),
        (tool(&["verify", "--nats-url", "hush"]), NATS),
        (tool(&["verify", "--colour"]), "--colour"),
        (limited, "(--rate-limit, or the variable RATE_LIMIT; --help tells what there is)"),
    ] {
        let (code, said) = said(&mut command);
        assert!(code == Some(2) && said.contains(told), "{command:?}: {said}");
        assert!(said.lines().count() == 1 && !said.contains("hush"), "{command:?}: {said}");
    }
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    const VARIABLES: [&str; 23] = [
        "DATABASE_URL",
        "LISTEN",
        "TLS_CERTIFICATE",
        "TLS_KEY",
        "NATS_URL",
        "NATS_DUPLICATE_WINDOW_MS",
        "NATS_COMMANDS",
        "NATS_COMMAND_ATTEMPTS",
        "REQUEST_TIMEOUT_SECONDS",
        "QUEUE_COMMANDS",
        "RATE_LIMIT",
        "ALERT_WEBHOOK_URL",
        "ALERT_WEBHOOK_SECRET",
        "FREEZE_LIFETIME",
        "FREEZE_LIFETIME_MAX",
        "ORDER_STATUS_URL",
        "ORDERS_AUTHORIZATION",
        "PROOF_ROUND",
        "PROOF_RATE",
        "PROOF_MENDS_UP_TO",
        "AUDIT",
        "AUDIT_KEPT_DAYS",
        "LOG_FORMAT",
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, arguments) in
        [("api", &["keys", "create", "--label", "a", "--scopes", "read"][..]), ("replay-tool", &["verify"])]
    {
        let mut command = Command::new(program(name));
        command.args(arguments).envs(VARIABLES.map(|variable| (variable, ""))).current_dir(folder.path());
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(folder.path().join("ledger.db").is_file());
}
