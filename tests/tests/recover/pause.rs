//! Commands while a ledger is mended on PostgreSQL: held back, and never lost.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::Connection;
use tests::{
    Nats, Service,
    children::{bound_to_this_process, signal, spawn},
    service::program,
    vandal::Vandal,
    verify_consistent,
};

use super::{Desk, archived_and_gone_on, text, wait_until_published};

const READ_MODELS_DAMAGED: &str = "update balances set balance = balance + 5, available = available + 5";

/// Begins a recovery.
fn begin(url: &str, archive: &Path, folder: &Path, more: &[&str]) -> Child {
    let mut command = bound_to_this_process(program("replay-tool").to_str().expect("a plain path"), "KILL");
    command
        .args(["--database-url", url, "recover", "--from", text(archive), "--report", text(folder)])
        .args(more)
        .stdout(Stdio::null());
    spawn(command)
}

/// Waits until a recovery began a step.
fn wait_for_step(folder: &Path, step: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let name = format!("\"{step}\"");
    while !fs::read_to_string(folder.join("steps.json")).is_ok_and(|steps| steps.contains(&name)) {
        assert!(Instant::now() < deadline, "the tool did not come to {step}");
        thread::yield_now();
    }
}

fn steps(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("steps.json")).expect("written")).expect("JSON")
}

/// Ends sessions of the tool, as a restart of the server, a lost network or a time-out does; tells how many.
async fn end_sessions(connection: &mut sqlx::PgConnection, of: &str) -> i64 {
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
        where datname = current_database() and application_name like $1 and pid <> pg_backend_pid()";
    sqlx::query_scalar(sql).bind(of).fetch_one(connection).await.expect("ended")
}

/// Commands wait for a tool that works, are refused in time, and go on once it ended or was killed.
#[tokio::test(flavor = "multi_thread")]
async fn writes_are_paused_while_a_database_is_mended_and_go_on_after_it_and_after_a_kill() {
    let (database, desk) = (tests::store::postgres(), Desk::new());
    let (archive, ..) = archived_and_gone_on(&database, &desk, &[]).await;
    for (round, end) in ["CONT", "KILL"].into_iter().enumerate() {
        Vandal::arrive(&database.url).await.run(&[READ_MODELS_DAMAGED]).await;
        let service = Service::start(&database.url, &["--proof-round", "0"]);
        let folder = desk.path(&format!("report-{round}"));
        let mut tool = begin(&database.url, &archive, &folder, &[]);
        // The pause precedes it.
        wait_for_step(&folder, "gather events");
        signal(&tool, "STOP");
        let credit = json!({ "user_id": "bob", "credit_type": "points", "amount": 1, "business_code": "paused",
            "business_id": round.to_string() });
        let refused = service.post("/v1/credits", &credit).await;
        assert_eq!((refused.status.as_u16(), refused.text("code")), (503, "store_unavailable"), "{}", refused.body);
        assert!(refused.headers.contains_key("retry-after"));
        signal(&tool, end);
        if end == "CONT" {
            assert_eq!(tool.wait().expect("our child").code(), Some(0));
        } else {
            tool.wait().expect("our child");
        }
        let served = async {
            loop {
                let answer = service.post("/v1/credits", &credit).await;
                if answer.status.as_u16() != 503 {
                    return answer.status.as_u16();
                }
            }
        };
        let status = tokio::time::timeout(Duration::from_secs(30), served).await.expect("commands go on");
        assert!([200, 201].contains(&status), "{status}");
        drop(service);
        // What the kill left is mended now; a repeat of what was mended finds nothing.
        let (code, report) = desk.recover(&database.url, &archive, &format!("report-{round}"), &[]);
        assert_eq!(code, 0, "{report:#}");
        verify_consistent(&database.url);
        let dropped: BTreeSet<String> = sqlx::query_scalar::<_, String>(
            "select table_name::text from information_schema.tables where table_name like 'kept_%'",
        )
        .fetch_all(&mut sqlx::PgConnection::connect(&database.url).await.expect("the server runs"))
        .await
        .expect("read")
        .into_iter()
        .collect();
        for table in dropped {
            let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
            let drop = format!("drop table if exists {table}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut connection).await.expect("gone");
        }
    }
}

/// The lock that holds commands back may be lost without a word. What was acknowledged then is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_slips_in_while_the_log_is_mended_is_found_and_kept() {
    let (database, desk, nats) = (tests::store::postgres(), Desk::new(), Nats::start());
    let nats_url = nats.url();
    let (archive, partition, newest) = archived_and_gone_on(&database, &desk, &["--nats-url", &nats_url]).await;
    let before = verify_consistent(&database.url);
    let damage =
        format!("update events set amount = amount + 1 where partition = {partition} and position = {newest} - 2");
    Vandal::arrive(&database.url).await.run(&[damage]).await;
    let service = Service::start(&database.url, &["--proof-round", "0"]);
    let folder = desk.path("report");
    // A reader keeps the tables from changing places until it lets go.
    let mut reader = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
    sqlx::raw_sql("begin; select from partition_heads").execute(&mut reader).await.expect("read");
    let mut tool = begin(&database.url, &archive, &folder, &["--nats-url", &nats_url]);
    wait_for_step(&folder, "restore");
    // All that was to be restored is gathered. Now the session that holds commands back is lost.
    let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
    assert!(end_sessions(&mut connection, "replay-tool recover").await >= 1);
    let slipped = json!({ "user_id": "someone", "credit_type": "points", "amount": 7, "business_code": "slipped",
        "business_id": "in" });
    let credited = service.post("/v1/credits", &slipped).await.expect(201);
    drop(service);
    sqlx::raw_sql("rollback").execute(&mut reader).await.expect("let go");
    assert_eq!(tool.wait().expect("our child").code(), Some(0));
    let record = steps(&folder);
    let stopped = record["steps"].as_array().expect("a list").iter().any(|step| {
        step["step"] == "restore"
            && step["outcome"]["stopped"].as_str().is_some_and(|why| why.contains("commands were done"))
    });
    assert!(stopped, "{record:#}");
    let after = verify_consistent(&database.url);
    assert_eq!(after["events"].as_u64(), before["events"].as_u64().map(|events| events + 1));
    let service = Service::start(&database.url, &["--nats-url", &nats_url]);
    let again = service.post("/v1/credits", &slipped).await.expect(200);
    assert_eq!(again["transaction_id"], credited["transaction_id"]);
    wait_until_published(&service).await;
}

/// A lost connection says nothing about the ledger: it is neither taken for damage nor the end of a recovery.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_whose_sessions_are_ended_begins_anew_by_itself() {
    let (database, desk) = (tests::store::postgres(), Desk::new());
    let (archive, ..) = archived_and_gone_on(&database, &desk, &[]).await;
    let before = verify_consistent(&database.url);
    let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
    for (round, step) in
        ["look at the database", "gather events", "back up", "rebuild", "verify"].into_iter().enumerate()
    {
        sqlx::raw_sql(READ_MODELS_DAMAGED).execute(&mut connection).await.expect("damaged");
        let folder = desk.path(&format!("report-{round}"));
        let mut tool = begin(&database.url, &archive, &folder, &[]);
        wait_for_step(&folder, step);
        end_sessions(&mut connection, "%").await;
        assert_eq!(tool.wait().expect("our child").code(), Some(0), "{step}");
        let report: Value =
            serde_json::from_slice(&fs::read(folder.join("report.json")).expect("written")).expect("JSON");
        assert_eq!(report["action"], "rebuilt", "{step}: {report:#}");
        let after = verify_consistent(&database.url);
        assert_eq!((&after["digest"], &after["events"]), (&before["digest"], &before["events"]), "{step}");
    }
}
