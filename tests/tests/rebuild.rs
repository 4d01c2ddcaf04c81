//! `replay-tool rebuild`: beside a running service, killed at any moment, and with each of its options.

use std::{
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection};
use tests::{
    Service,
    children::{bound_to_this_process, kill, spawn},
    on_both_databases, replay_tool,
    service::program,
    store::NewDatabase,
    verify_consistent,
};

on_both_databases!(
    a_rebuild_that_is_killed_leaves_one_whole_state_and_runs_again,
    commands_and_reads_go_on_while_the_read_models_are_rebuilt,
    one_read_model_alone_is_rebuilt,
    one_account_alone_is_mended_while_the_service_runs,
    an_account_whose_events_wait_behind_the_checkpoint_is_mended,
    a_checkpoint_that_is_missing_or_unreadable_is_mended,
    a_damaged_log_is_told_and_changes_nothing,
    a_rate_is_kept_and_a_second_rebuild_refused_meanwhile,
    a_mistyped_option_is_named,
);

/// The continuous proof would mend what these tests damage before the tool can.
const UNPROVED: &[&str] = &["--proof-round", "0"];

/// How often a rebuild is killed: `REBUILD_KILLS` says otherwise.
fn kills() -> u32 {
    std::env::var("REBUILD_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20)
}

async fn execute(database: &NewDatabase, statement: &str) -> u64 {
    let statement = AssertSqlSafe(statement.to_owned());
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("it is done").rows_affected();
        connection.close().await.expect("closed");
        done
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("it is done").rows_affected();
        connection.close().await.expect("closed");
        done
    }
}

/// One number.
async fn number(database: &NewDatabase, query: &str) -> i64 {
    let query = AssertSqlSafe(query.to_owned());
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        sqlx::query_scalar(query).fetch_one(&mut connection).await.expect("a number")
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query_scalar(query).fetch_one(&mut connection).await.expect("a number")
    }
}

/// Tables that only a rebuild makes.
async fn leftovers(database: &NewDatabase) -> i64 {
    let names = "('balances_next', 'freezes_next', 'balances_old', 'freezes_old')";
    let query = if database.url.starts_with("sqlite") {
        format!("select count(*) from sqlite_master where name in {names}")
    } else {
        format!("select count(*) from pg_class where relname in {names}")
    };
    number(database, &query).await
}

/// Credits, freezes and captures of some users, in batches.
async fn fill(service: &Service, users: u32, rounds: u32) {
    for round in 0..rounds {
        let commands = |kind: &str| -> Vec<Value> {
            (0..users)
                .map(|user| {
                    json!({ "type": kind, "user_id": format!("user-{user}"), "credit_type": "points",
                        "amount": if kind == "credit" { 1_000 } else { 10 + user % 7 },
                        "business_code": format!("fill.{kind}"), "business_id": round.to_string() })
                })
                .collect()
        };
        service.post("/v1/batches", &json!({ "commands": commands("credit") })).await.expect(201);
        let frozen = service.post("/v1/batches", &json!({ "commands": commands("freeze") })).await.expect(201);
        let captures: Vec<_> = frozen["results"]
            .as_array()
            .expect("a list")
            .iter()
            .step_by(2)
            .map(|freeze| {
                json!({ "type": "debit", "freeze_id": freeze["transaction_id"], "amount": 3,
                    "business_code": "fill.capture", "business_id": format!("{round}.{}", freeze["user_id"]) })
            })
            .collect();
        service.post("/v1/batches", &json!({ "commands": captures })).await.expect(201);
    }
}

async fn projected(service: &Service) {
    let caught_up = async {
        loop {
            let ready = service.get("/readyz").await.body;
            if ready["projector"]["lag_positions"] == 0 && ready["projector"]["halted_partitions"] == json!([]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), caught_up).await.expect("the projector catches up");
}

/// Starts a rebuild without waiting for it.
fn start_rebuild(database: &NewDatabase, arguments: &[&str]) -> Child {
    let mut command = bound_to_this_process(program("replay-tool").to_str().expect("a plain path"), "KILL");
    command
        .args(["--database-url", &database.url, "--json", "rebuild"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    spawn(command)
}

/// Sums over the served tables by which a damaged state, a mended one and a mixture are told apart.
async fn sums(database: &NewDatabase) -> (i64, i64) {
    let bigint = "cast(coalesce(sum(balance), 0) as bigint)";
    let balances = number(database, &format!("select {bigint} from balances")).await;
    let freezes = number(database, &format!("select {} from freezes", bigint.replace("balance", "captured"))).await;
    (balances, freezes)
}

async fn a_rebuild_that_is_killed_leaves_one_whole_state_and_runs_again(database: NewDatabase) {
    let mut service = Service::start(&database.url, UNPROVED);
    fill(&service, 400, 8).await;
    projected(&service).await;
    service.terminate();
    let digest = verify_consistent(&database.url)["digest"].clone();
    let sound = sums(&database).await;
    let began = Instant::now();
    assert_eq!(replay_tool(&database.url, &["rebuild"]).0, 0);
    let whole = began.elapsed();

    let damage = async || {
        let balances = execute(&database, "update balances set balance = balance + 5, available = available + 5").await;
        let freezes = execute(&database, "update freezes set captured = captured + 3").await;
        (balances.cast_signed() * 5, freezes.cast_signed() * 3)
    };
    let added = damage().await;
    let damaged = (sound.0 + added.0, sound.1 + added.1);
    let (mut before, mut after) = (0, 0);
    for kill_number in 0..kills() {
        let mut rebuild = start_rebuild(&database, &[]);
        // Spread over the whole of it, and a little past its end: the switch is what matters most.
        tokio::time::sleep(whole * (kill_number + 1) / kills()).await;
        kill(&mut rebuild);
        let stands = sums(&database).await;
        if stands == damaged {
            before += 1;
        } else {
            assert_eq!(stands, sound, "kill {kill_number}: neither what was served before nor what the log makes");
            after += 1;
            assert_eq!(number(&database, "select count(*) from projection_checkpoints").await, 128);
            damage().await;
        }
    }
    println!("{before} kills before the switch, {after} after it");
    assert!(before > 0, "no kill came before the switch");
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["digest"]), (0, &digest), "{rebuilt:#}");
    assert_eq!(sums(&database).await, sound);
    assert_eq!(leftovers(&database).await, 0);
    assert_eq!(verify_consistent(&database.url)["digest"], digest);
}

async fn commands_and_reads_go_on_while_the_read_models_are_rebuilt(database: NewDatabase) {
    const USERS: u64 = 40;
    let service = Service::start(&database.url, UNPROVED);
    fill(&service, 40, 20).await;
    projected(&service).await;
    let (stop, sent, read) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let command = async |client: u64| {
        while !stop.load(Ordering::Relaxed) {
            let id = sent.fetch_add(1, Ordering::Relaxed);
            // Refused in no way: each is a 201.
            service.credit(&format!("user-{}", (id + client) % USERS), 1, &format!("live.{id}")).await;
        }
    };
    let reader = async {
        let mut versions = vec![0; usize::try_from(USERS).expect("few")];
        while !stop.load(Ordering::Relaxed) {
            for (user, newest) in versions.iter_mut().enumerate() {
                let account = service.get(&format!("/v1/accounts/user-{user}/points")).await.expect(200);
                let version = account["version"].as_u64().expect("a number");
                assert!(version >= *newest, "user-{user} went back from version {newest} to {version}");
                *newest = version;
                read.fetch_add(1, Ordering::Relaxed);
            }
            let freezes = service.get("/v1/accounts/user-1/points/freezes?limit=100").await.expect(200);
            assert_eq!(freezes["items"].as_array().map(Vec::len), Some(20), "a half-built read model was served");
        }
    };
    let rebuilds = async {
        for _ in 0..3 {
            let (url, before) = (database.url.clone(), (sent.load(Ordering::Relaxed), read.load(Ordering::Relaxed)));
            let rebuilt = tokio::task::spawn_blocking(move || replay_tool(&url, &["rebuild"])).await.expect("no panic");
            assert_eq!(rebuilt.0, 0, "{:#}", rebuilt.1);
            assert!(sent.load(Ordering::Relaxed) > before.0 && read.load(Ordering::Relaxed) > before.1);
        }
        // The service's projector goes on from where the new tables stand.
        let now = sent.load(Ordering::Relaxed);
        while sent.load(Ordering::Relaxed) < now + 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(rebuilds, reader, command(0), command(7), command(13), command(29));
    projected(&service).await;
    let verified = verify_consistent(&database.url);
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["digest"]), (0, &verified["digest"]), "{rebuilt:#}");
    assert_eq!(leftovers(&database).await, 0);
    println!("{} commands and {} reads beside the rebuilds", sent.into_inner(), read.into_inner());
}

async fn one_read_model_alone_is_rebuilt(database: NewDatabase) {
    let mut service = Service::start(&database.url, UNPROVED);
    fill(&service, 30, 2).await;
    projected(&service).await;
    service.terminate();
    let digest = verify_consistent(&database.url)["digest"].clone();
    let sound = sums(&database).await;
    execute(&database, "update balances set balance = balance + 5, available = available + 5").await;
    execute(&database, "update freezes set captured = captured + 1, released = released - 1").await;
    let damaged = sums(&database).await;

    let (code, rebuilt) = replay_tool(&database.url, &["rebuild", "--read-model", "balances"]);
    assert_eq!((code, &rebuilt["read_models"]), (0, &json!(["balances"])), "{rebuilt:#}");
    assert_eq!(rebuilt["accounts"], 30);
    assert!(rebuilt.get("freezes").is_none() && rebuilt.get("digest").is_none(), "{rebuilt:#}");
    assert_eq!(sums(&database).await, (sound.0, damaged.1));

    let (code, rebuilt) = replay_tool(&database.url, &["rebuild", "--read-model", "freezes"]);
    assert_eq!((code, &rebuilt["freezes"]), (0, &json!(60)), "{rebuilt:#}");
    assert_eq!(sums(&database).await, sound);
    assert_eq!(verify_consistent(&database.url)["digest"], digest);
    // The new tables are as good as the first ones were.
    let service = Service::start(&database.url, UNPROVED);
    fill_one(&service, "after").await;
    projected(&service).await;
    verify_consistent(&database.url);
}

async fn one_account_alone_is_mended_while_the_service_runs(database: NewDatabase) {
    let service = Service::start(&database.url, UNPROVED);
    fill(&service, 10, 3).await;
    projected(&service).await;
    execute(
        &database,
        "update balances set balance = balance + 5, available = available + 5 where user_id <> 'user-9'",
    )
    .await;
    execute(&database, "update freezes set captured = captured + 1 where user_id in ('user-1', 'user-2')").await;
    execute(&database, "delete from freezes where user_id = 'user-1' and business_id = '2'").await;

    let (code, mended) = replay_tool(&database.url, &["rebuild", "--account", "user-1/points"]);
    assert_eq!(code, 0, "{mended:#}");
    assert_eq!(mended["user_id"], "user-1");
    assert_eq!((&mended["events"], &mended["freezes"]), (&json!(6), &json!(3)), "{mended:#}");
    assert_eq!(mended["rows_mended"], 4, "the balance, two freezes edited and one deleted: {mended:#}");
    let edited = "select count(*) from freezes where amount <> remaining + captured + released";
    assert_eq!(number(&database, &format!("{edited} and user_id = 'user-1'")).await, 0);
    assert_eq!(number(&database, &format!("{edited} and user_id = 'user-2'")).await, 3);
    let served = service.get("/v1/accounts/user-1/points").await.expect(200);
    assert_eq!(served, service.get("/v1/accounts/user-1/points?consistency=strong").await.expect(200));
    // Three credits of 1,000 each, and from every other user three captures of 3.
    let edited = "select count(*) from balances where balance not in (3000, 2991)";
    assert_eq!(number(&database, edited).await, 8, "the others stay as they are");

    // Again: there is nothing to mend. An account that never was has no rows.
    let (code, again) = replay_tool(&database.url, &["rebuild", "--account", "user-1/points"]);
    assert_eq!((code, &again["rows_mended"]), (0, &json!(0)), "{again:#}");
    let (code, _) = replay_tool(&database.url, &["rebuild", "--account", "nobody/points"]);
    assert_eq!(code, 2, "an account that there is not is a slip of the pen");
    for user in 0..9 {
        let account = format!("user-{user}/points");
        let (code, mended) = replay_tool(&database.url, &["rebuild", "--account", &account]);
        assert_eq!(code, 0, "{mended:#}");
    }
    projected(&service).await;
    verify_consistent(&database.url);
}

async fn an_account_whose_events_wait_behind_the_checkpoint_is_mended(database: NewDatabase) {
    let service = Service::start(&database.url, UNPROVED);
    service.credit("ann", 100, "1").await;
    projected(&service).await;
    execute(&database, "update balances set balance = 77, available = 77").await;
    // The projector meets the contradiction and stops; events wait.
    let credited = service.credit("ann", 100, "2").await;
    service.credit("ann", 100, "3").await;
    let unresolved = "select count(*) from inconsistencies where resolved_at is null";
    tokio::time::timeout(Duration::from_secs(30), async {
        while number(&database, unresolved).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the projector says so");

    let (code, mended) = replay_tool(&database.url, &["rebuild", "--account", "ann/points"]);
    assert_eq!((code, &mended["rows_mended"]), (0, &json!(1)), "{mended:#}");
    assert_eq!(mended["inconsistencies_resolved"], 1, "{mended:#}");
    assert_eq!(number(&database, unresolved).await, 0);
    projected(&service).await;
    let served = service.get("/v1/accounts/ann/points?min_version=3").await.expect(200);
    assert_eq!((&served["balance"], &served["version"]), (&json!(300), &json!(3)));

    // The same place again: what was resolved is open again, and a whole rebuild resolves it.
    execute(&database, "update balances set balance = 77, available = 77").await;
    let partition = credited["partition"].as_u64().expect("a number");
    service.credit("ann", 100, "4").await;
    tokio::time::timeout(Duration::from_secs(30), async {
        while number(&database, unresolved).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the projector says so again");
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["inconsistencies_resolved"]), (0, &json!(1)), "{rebuilt:#}");
    assert_eq!(number(&database, &format!("{unresolved} and partition = {partition}")).await, 0);
    projected(&service).await;
    verify_consistent(&database.url);
}

async fn a_checkpoint_that_is_missing_or_unreadable_is_mended(database: NewDatabase) {
    let service = Service::start(&database.url, UNPROVED);
    fill(&service, 30, 1).await;
    projected(&service).await;
    let unreadable = if database.url.starts_with("sqlite") { "x'00'" } else { "decode('00', 'hex')" };
    for damage in [
        "delete from projection_checkpoints where partition = 5".to_owned(),
        format!("update projection_checkpoints set hash = {unreadable} where partition = 7 and projection = 'freezes'"),
        "update projection_checkpoints set position = position + 1000000 where partition = 9".to_owned(),
        "delete from projection_checkpoints".to_owned(),
    ] {
        execute(&database, &damage).await;
        let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
        assert_eq!(code, 0, "{damage}: {rebuilt:#}");
        fill_one(&service, &damage).await;
        projected(&service).await;
        verify_consistent(&database.url);
    }
    execute(&database, "delete from projection_checkpoints").await;
    assert_eq!(replay_tool(&database.url, &["rebuild", "--account", "user-1/points"]).0, 2);
    assert_eq!(replay_tool(&database.url, &["rebuild"]).0, 0);
    verify_consistent(&database.url);
}

async fn fill_one(service: &Service, id: &str) {
    for user in 0..30 {
        service.credit(&format!("user-{user}"), 1, &format!("{}.{user}", id.len())).await;
    }
}

async fn a_damaged_log_is_told_and_changes_nothing(database: NewDatabase) {
    let mut service = Service::start(&database.url, UNPROVED);
    fill(&service, 30, 1).await;
    projected(&service).await;
    service.terminate();
    let sound = sums(&database).await;
    let damage = if database.url.starts_with("sqlite") {
        execute(&database, "drop trigger events_are_not_updated").await;
        "update events set amount = amount + 1 where user_id = 'user-7' and version = 1"
    } else {
        execute(&database, "alter table events disable trigger all").await;
        "update events set description = 'edited' where user_id = 'user-7' and version = 1"
    };
    assert_eq!(execute(&database, damage).await, 1);
    for arguments in [&["rebuild"][..], &["rebuild", "--account", "user-7/points"]] {
        let (code, rebuilt) = replay_tool(&database.url, arguments);
        assert_eq!((code, &rebuilt["rebuilt"]), (1, &json!(false)), "{rebuilt:#}");
        assert!(rebuilt["why"].as_str().is_some_and(|why| why.contains("run replay-tool verify")), "{rebuilt:#}");
    }
    assert_eq!(sums(&database).await, sound);
    assert_eq!(leftovers(&database).await, 0);
}

async fn a_rate_is_kept_and_a_second_rebuild_refused_meanwhile(database: NewDatabase) {
    let mut service = Service::start(&database.url, UNPROVED);
    fill(&service, 100, 2).await;
    projected(&service).await;
    service.terminate();
    let began = Instant::now();
    let mut slow = start_rebuild(&database, &["--max-rate", "100"]);
    let refused = async {
        // As soon as the first one has begun.
        while leftovers(&database).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        replay_tool(&database.url, &["rebuild"])
    };
    let refused = tokio::time::timeout(Duration::from_secs(20), refused).await.expect("the first one begins");
    assert_eq!(refused, (2, Value::Null));
    assert!(slow.wait().expect("our child").success());
    // 500 events at 100 a second; the last page's share may be in the end.
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    verify_consistent(&database.url);
}

async fn a_mistyped_option_is_named(database: NewDatabase) {
    drop(Service::start(&database.url, &[]));
    for arguments in [
        &["rebuild", "--read-model", "events"][..],
        &["rebuild", "--account", "ann"],
        &["rebuild", "--max-rate", "0"],
        &["rebuild", "--account", "ann/points", "--read-model", "balances"],
    ] {
        assert_eq!(replay_tool(&database.url, arguments), (2, Value::Null), "{arguments:?}");
    }
}
