//! Recoveries that are killed, and what the next run makes of it.

use std::{path::Path, process::Child, time::Instant};

use sqlx::Connection;
use tests::{
    Nats, Postgres,
    children::{bound_to_this_process, kill, spawn},
    service::program,
    store::{NewDatabase, postgres_on},
    vandal::Vandal,
    verify_consistent,
};

use super::{Desk, archived_and_gone_on, destroy, text};

/// Begins a recovery as a process that can be killed.
fn begin(url: &str, archive: &Path, folder: &Path, more: &[&str]) -> Child {
    let mut command = bound_to_this_process(program("replay-tool").to_str().expect("a plain path"), "KILL");
    command
        .args(["--database-url", url, "recover", "--from", text(archive), "--report", text(folder)])
        .args(more)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    spawn(command)
}

pub(super) async fn a_recovery_that_is_killed_is_done_whole_by_the_next_run(database: NewDatabase) {
    let (nats, desk) = (Nats::start(), Desk::new());
    let nats_url = nats.url();
    let (archive, partition, newest) = archived_and_gone_on(&database, &desk, &["--nats-url", &nats_url]).await;
    let before = verify_consistent(&database.url);
    let place = format!("partition = {partition} and position = {}", newest - 2);
    let damage = [format!("update events set amount = amount + 1 where {place}")];
    destroy(&database).await;
    let began = Instant::now();
    let (code, report) = desk.recover(&database.url, &archive, "first", &["--nats-url", &nats_url]);
    assert_eq!(code, 0, "{report:#}");
    let takes = began.elapsed();
    let mut killed = 0;
    for round in 0..20_u32 {
        // Half of them begin with a ledger that is gone, half with one that is damaged.
        if round % 2 == 0 {
            destroy(&database).await;
        } else {
            Vandal::arrive(&database.url).await.run(&damage).await;
        }
        let name = format!("round-{round}");
        let folder = desk.path(&name);
        let mut child = begin(&database.url, &archive, &folder, &["--nats-url", &nats_url]);
        // Moments spread over the whole run, in an irregular order.
        std::thread::sleep(takes * (round * 7 % 20) / 20);
        if child.try_wait().expect("our child").is_none() {
            killed += 1;
        }
        kill(&mut child);
        let (code, report) = desk.recover(&database.url, &archive, &name, &["--nats-url", &nats_url]);
        assert_eq!(code, 0, "round {round}: {report:#}");
        assert_eq!(report["digest"]["after"], before["digest"], "round {round}");
        let verified = verify_consistent(&database.url);
        assert_eq!((&verified["digest"], &verified["events"]), (&before["digest"], &before["events"]), "round {round}");
        if database.url.starts_with("postgres") {
            let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
            let sql = "select string_agg(table_name, ' ') from information_schema.tables \
                where table_name like 'kept_%' and table_schema = 'public'";
            let kept: Option<String> = sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("read");
            for table in kept.unwrap_or_default().split_whitespace() {
                sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop table {table}")))
                    .execute(&mut connection)
                    .await
                    .expect("gone");
            }
        }
    }
    println!("killed in time {killed} of 20 times");
    assert!(killed >= 5, "the moments lie within the run");
}

/// The server goes on with a commit whose client is dead: here it is held by a standby that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_committed_after_its_tool_was_killed_is_found() {
    let (cluster, desk) = (Postgres::start(), Desk::new());
    let database = postgres_on(&cluster);
    let (archive, ..) = archived_and_gone_on(&database, &desk, &[]).await;
    destroy(&database).await;
    cluster.psql("postgres", "alter system set synchronous_standby_names = 'away'");
    cluster.psql("postgres", "select pg_reload_conf()");
    let mut child = begin(&database.url, &archive, &desk.path("report"), &[]);
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    let began = Instant::now();
    while cluster.psql("postgres", waits).trim() != "1" {
        assert!(began.elapsed().as_secs() < 60, "the restore is committed");
    }
    kill(&mut child);
    let next = std::thread::spawn(move || (desk.recover(&database.url, &archive, "report", &[]), database, desk));
    // The next run looks at a database in which the restore does not show yet.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(!next.is_finished(), "it waits for the commit");
    cluster.psql("postgres", "alter system reset synchronous_standby_names");
    cluster.psql("postgres", "select pg_reload_conf()");
    let ((code, report), database, _desk) = next.join().expect("it does not panic");
    // Without the stream it cannot know that nothing followed the archive, but what it restored is whole.
    assert_eq!((code, &report["recovered"]), (0, &serde_json::json!(true)), "{report:#}");
    assert_eq!(report["digest"]["after"], verify_consistent(&database.url)["digest"]);
}
