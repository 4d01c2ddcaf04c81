//! `replay-tool recover`: a ledger comes back after a disaster, and says what did not.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::Connection;
use tempfile::TempDir;
use tests::{
    Load, Nats, Service, on_both_databases, replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent,
};

#[path = "recover/disasters.rs"]
mod disasters;
#[path = "recover/forked.rs"]
mod forked;
#[path = "recover/killed.rs"]
mod killed;
#[path = "recover/messages.rs"]
mod messages;
#[path = "recover/pause.rs"]
mod pause;
#[path = "recover/unlock.rs"]
mod unlock;
#[path = "recover/unnamed.rs"]
mod unnamed;
#[path = "recover/unreadable.rs"]
mod unreadable;

use disasters::{
    orders_are_compared_and_what_disagrees_is_told, several_restores_in_a_row_are_told_apart,
    what_was_not_published_when_all_was_destroyed_is_lost_by_whole_batches, whatever_table_is_dropped_nothing_is_lost,
};
use forked::a_sound_ledger_that_went_another_way_is_a_persons_decision;
use killed::a_recovery_that_is_killed_is_done_whole_by_the_next_run;
use messages::Messages;
use unlock::the_ledgers_own_old_locks_are_lifted_and_no_others;
use unnamed::what_the_primary_key_does_not_name_is_not_left_out;

on_both_databases!(
    every_acknowledged_command_comes_back_from_archive_and_stream,
    what_was_not_published_when_all_was_destroyed_is_lost_by_whole_batches,
    several_restores_in_a_row_are_told_apart,
    whatever_table_is_dropped_nothing_is_lost,
    orders_are_compared_and_what_disagrees_is_told,
    a_stream_with_holes_gives_every_whole_batch_and_no_half,
    without_the_stream_an_anchor_says_what_is_lost_and_nothing_else_can,
    a_damaged_log_is_mended_in_place_and_what_was_there_is_kept,
    what_only_the_damaged_database_has_is_a_persons_decision,
    a_sound_ledger_that_went_another_way_is_a_persons_decision,
    what_the_primary_key_does_not_name_is_not_left_out,
    only_read_models_are_made_anew_where_only_they_are_damaged,
    a_recovery_that_is_killed_is_done_whole_by_the_next_run,
    an_archive_of_another_ledger_is_refused,
    the_ledgers_own_old_locks_are_lifted_and_no_others,
);

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// A folder for archives and reports.
pub(crate) struct Desk(TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Archives the ledger.
    pub(crate) fn export(&self, url: &str, name: &str) -> PathBuf {
        let folder = self.path(name);
        let (code, exported) = replay_tool(url, &["export", "--out", text(&folder)]);
        assert_eq!(code, 0, "{exported:#}");
        folder
    }

    /// Recovers the ledger, with the report in a folder of that name.
    pub(crate) fn recover(&self, url: &str, archive: &Path, report: &str, more: &[&str]) -> (i32, Value) {
        let report = self.path(report);
        let mut arguments = vec!["recover", "--from", text(archive), "--report", text(&report)];
        arguments.extend_from_slice(more);
        replay_tool(url, &arguments)
    }
}

/// Atomic batches that cross accounts, and so partitions.
async fn batches(service: &Service, first: u64, count: u64, size: u64) {
    for batch in first..first + count {
        let commands: Vec<_> = (0..size)
            .map(|index| {
                json!({ "type": "credit", "user_id": format!("user-{}", (batch * 7 + index * 5) % 40), "credit_type": "points",
                    "amount": 1 + index, "business_code": "batch", "business_id": format!("{batch}-{index}") })
            })
            .collect();
        service.post("/v1/batches", &json!({ "atomic": true, "commands": commands })).await.expect(201);
    }
}

async fn wait_until_published(service: &Service) {
    let published = async {
        loop {
            let ready = service.get("/readyz").await.body;
            if ready["nats"]["connected"] == true && ready["nats"]["lag_positions"] == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), published).await.expect("everything is published");
}

/// What a fire leaves of a database.
async fn destroy(database: &NewDatabase) {
    if let Some(file) = database.url.strip_prefix("sqlite://") {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{file}{suffix}"));
        }
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
        sqlx::raw_sql("drop schema public cascade; create schema public").execute(&mut connection).await.expect("gone");
    }
}

/// The newest position of each partition that has events.
async fn heads(service: &Service) -> BTreeMap<u64, u64> {
    let mut heads = BTreeMap::new();
    for partition in 0..64 {
        let log = service.get(&format!("/v1/events?partition={partition}&limit=1")).await.expect(200);
        if let Some(head) = log["head"].as_u64().filter(|head| *head > 0) {
            heads.insert(partition, head);
        }
    }
    heads
}

async fn every_acknowledged_command_comes_back_from_archive_and_stream(database: NewDatabase) {
    let (nats, desk) = (Nats::start(), Desk::new());
    let nats_url = nats.url();
    let mut service = Service::start(&database.url, &["--nats-url", &nats_url]);
    Load::open_accounts(&service).await;
    batches(&service, 0, 5, 20).await;
    let archive = desk.export(&database.url, "archive");
    let load = Load::default();
    let more = async {
        batches(&service, 5, 100, 100).await;
        while load.acknowledged() < 300 {
            tokio::task::yield_now().await;
        }
        load.stop();
    };
    let services = [&service];
    tokio::join!(load.run(&services, 8), more);
    wait_until_published(&service).await;
    service.terminate();
    let lost = verify_consistent(&database.url);
    destroy(&database).await;

    let (code, report) = desk.recover(&database.url, &archive, "report", &["--nats-url", &nats_url]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["digest"]["after"], lost["digest"]);
    assert_eq!((&report["events"]["events"], &report["lost"]["positions"]), (&lost["events"], &json!(0)));
    assert!(report["events"]["from_stream"].as_u64().expect("a number") >= 10_000 + 300);
    assert!(report["lost"]["cannot_know"].as_str().expect("said").contains("not published"), "{report:#}");
    let kept: Value =
        serde_json::from_slice(&fs::read(desk.path("report/report.json")).expect("written")).expect("JSON");
    assert_eq!(kept, report);
    let page = fs::read_to_string(desk.path("report/report.html")).expect("written");
    assert!(page.contains("<svg") && page.contains("no loss is known"));
    assert_eq!(verify_consistent(&database.url)["digest"], lost["digest"]);

    // The ledger goes on: every key is known, and the stream goes on under the new epoch.
    let service = Service::start(&database.url, &["--nats-url", &nats_url]);
    load.check(&service).await;
    batches(&service, 105, 2, 20).await;
    wait_until_published(&service).await;
    let messages = Messages::read(&nats_url).await;
    assert_eq!(messages.restored.len(), 1);
    assert_eq!(messages.restored[0]["epoch"], report["epoch"]);
    messages.valid_ones_are_the_log_of(&service).await;
    // Nothing is told twice, however often the publisher begins anew.
    drop(service);
    let service = Service::start(&database.url, &["--nats-url", &nats_url]);
    service.credit("user-1", 1, "once more").await;
    wait_until_published(&service).await;
    assert_eq!(Messages::read(&nats_url).await.restored.len(), 1);
}

async fn a_stream_with_holes_gives_every_whole_batch_and_no_half(database: NewDatabase) {
    let (nats, desk) = (Nats::start(), Desk::new());
    let nats_url = nats.url();
    let mut service = Service::start(&database.url, &["--nats-url", &nats_url]);
    batches(&service, 0, 4, 10).await;
    let archive = desk.export(&database.url, "archive");
    let archived = heads(&service).await;
    batches(&service, 4, 40, 6).await;
    wait_until_published(&service).await;
    let there = heads(&service).await;
    service.terminate();
    destroy(&database).await;
    let before = Messages::read(&nats_url).await;
    // Two events never reached the stream, one of them early: what follows them in their partitions proves nothing.
    let holes = before.lose(&nats_url, &[(24, 3), (40, 1)]).await;
    let expected = messages::whole_batches(&before, &holes, &archived);
    assert!(expected.values().sum::<u64>() > archived.values().sum::<u64>(), "something comes back");

    let (code, report) = desk.recover(&database.url, &archive, "report", &["--nats-url", &nats_url]);
    assert_eq!(code, 1, "{report:#}");
    let missing: BTreeMap<u64, (u64, u64)> = there
        .iter()
        .filter_map(|(partition, head)| {
            let end = expected.get(partition).copied().unwrap_or(0);
            // The stream tells of what it holds, whatever became of it.
            let told = before.newest_but(*partition, &holes).max(*head.min(&end));
            (told > end).then_some((*partition, (end + 1, told)))
        })
        .collect();
    let told: BTreeMap<u64, (u64, u64)> = report["lost"]["partitions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| {
            let number = |field: &str| row[field].as_u64().expect("a number");
            (number("partition"), (number("from"), number("to")))
        })
        .collect();
    assert_eq!(told, missing);
    assert!(report["events"]["batches_cut"]["count"].as_u64().expect("a number") > 0);
    let verified = verify_consistent(&database.url);
    assert_eq!(verified["events"].as_u64(), Some(expected.values().sum()));

    let service = Service::start(&database.url, &["--nats-url", &nats_url]);
    assert_eq!(heads(&service).await, expected.into_iter().filter(|(_, end)| *end > 0).collect());
    // Partitions go on where they were cut; a subscriber can tell what is void.
    batches(&service, 100, 5, 20).await;
    wait_until_published(&service).await;
    let messages = Messages::read(&nats_url).await;
    assert_eq!(messages.restored.len(), 1);
    assert!(messages.void_count() > 0);
    messages.valid_ones_are_the_log_of(&service).await;
}

async fn without_the_stream_an_anchor_says_what_is_lost_and_nothing_else_can(database: NewDatabase) {
    let desk = Desk::new();
    let service = Service::start(&database.url, &[]);
    batches(&service, 0, 5, 20).await;
    let archive = desk.export(&database.url, "archive");
    let archived = heads(&service).await;
    batches(&service, 5, 5, 20).await;
    let anchored = heads(&service).await;
    let anchor = desk.path("heads.json");
    let (code, kept) = replay_tool(&database.url, &["heads", "--out", text(&anchor)]);
    assert_eq!(code, 0, "{kept:#}");
    batches(&service, 10, 1, 20).await;
    drop(service);
    destroy(&database).await;

    let (code, report) = desk.recover(&database.url, &archive, "anchored", &["--anchor", text(&anchor)]);
    assert_eq!(code, 1, "{report:#}");
    let missing: BTreeMap<u64, u64> = report["lost"]["partitions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| (row["partition"].as_u64().expect("a number"), row["count"].as_u64().expect("a number")))
        .collect();
    let expected: BTreeMap<u64, u64> = anchored
        .iter()
        .map(|(partition, head)| (*partition, head - archived.get(partition).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(missing, expected);
    assert_eq!(report["lost"]["positions"], 100);
    assert!(report["lost"]["cannot_know"].as_str().expect("said").contains("after the anchor"), "{report:#}");
    assert_eq!(report["success_rate"], json!(0.5));
    assert!(report["next"][0].as_str().expect("said").contains("--nats-url"), "{report:#}");
    // Asked again, it does not say that nothing was ever lost.
    let (code, again) = desk.recover(&database.url, &archive, "again", &["--anchor", text(&anchor)]);
    let lost = (&again["lost"]["positions"], &again["lost"]["left_behind"]);
    assert_eq!((code, lost), (0, (&json!(0), &json!(true))), "{again:#}");

    destroy(&database).await;
    let (code, report) = desk.recover(&database.url, &archive, "alone", &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["lost"]["positions"], 0);
    let open = report["lost"]["cannot_know"].as_str().expect("said");
    assert!(open.contains("neither a stream nor an anchor") && open.contains("cannot be known"), "{open}");
    assert_eq!(verify_consistent(&database.url)["events"], 100);
}

/// A ledger with an archive and events after it, stopped, and a partition with at least three events after the archive.
async fn archived_and_gone_on(database: &NewDatabase, desk: &Desk, arguments: &[&str]) -> (PathBuf, u64, u64) {
    let mut service = Service::start(&database.url, arguments);
    batches(&service, 0, 2, 20).await;
    let archive = desk.export(&database.url, "archive");
    let mut position = 0;
    let mut partition = 0;
    for number in 0..5 {
        let credited = service.credit("ann", 10, &number.to_string()).await;
        partition = credited["partition"].as_u64().expect("a number");
        position = credited["position"].as_u64().expect("a number");
    }
    if !arguments.is_empty() {
        wait_until_published(&service).await;
    }
    service.terminate();
    (archive, partition, position)
}

async fn a_damaged_log_is_mended_in_place_and_what_was_there_is_kept(database: NewDatabase) {
    let (nats, desk) = (Nats::start(), Desk::new());
    let nats_url = nats.url();
    let (archive, partition, newest) = archived_and_gone_on(&database, &desk, &["--nats-url", &nats_url]).await;
    let before = verify_consistent(&database.url);
    let place = format!("partition = {partition} and position = {}", newest - 2);
    Vandal::arrive(&database.url).await.run(&[format!("update events set amount = amount + 1 where {place}")]).await;
    let (code, report) = desk.recover(&database.url, &archive, "report", &["--nats-url", &nats_url]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!((&report["found"]["state"], &report["action"]), (&json!("log_damaged"), &json!("restored")));
    assert_eq!(report["digest"]["after"], before["digest"]);
    assert_eq!(
        report["lost"],
        json!({ "positions": 0, "partitions": [], "contradictions": [], "left_behind": false, "cannot_know": null,
        "witnesses": ["the stream", "the database's own heads"] })
    );
    assert_eq!(verify_consistent(&database.url)["digest"], before["digest"]);
    // What was there is kept twice: a copy from before anything was touched, and the old ledger itself.
    let backup = desk.path("report/backup");
    assert!(fs::read_dir(&backup).expect("a folder").count() >= 2);
    let epoch = report["epoch"].as_u64().expect("a number");
    if let Some(file) = database.url.strip_prefix("sqlite://") {
        assert!(Path::new(&format!("{file}.before-{epoch}")).exists());
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the server runs");
        let count = format!("select count(*) from ledger_before_{epoch}.events");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(&mut connection).await.expect("kept");
        assert_eq!(u64::try_from(count).ok(), before["events"].as_u64());
        assert!(backup.join("events.csv.zst").exists());
    }
    // Once more finds nothing to do, and changes nothing.
    let (code, again) = desk.recover(&database.url, &archive, "report", &["--nats-url", &nats_url]);
    assert_eq!((code, &again["action"]), (0, &json!("none")), "{again:#}");
    let service = Service::start(&database.url, &["--nats-url", &nats_url]);
    service.credit("ann", 1, "after").await;
    wait_until_published(&service).await;
    Messages::read(&nats_url).await.valid_ones_are_the_log_of(&service).await;
}

async fn what_only_the_damaged_database_has_is_a_persons_decision(database: NewDatabase) {
    let desk = Desk::new();
    let (archive, partition, newest) = archived_and_gone_on(&database, &desk, &[]).await;
    let place = format!("partition = {partition} and position = {}", newest - 2);
    Vandal::arrive(&database.url).await.run(&[format!("update events set amount = amount + 1 where {place}")]).await;
    let (code, report) = desk.recover(&database.url, &archive, "report", &[]);
    assert_eq!((code, report), (2, Value::Null));
    let record: Value =
        serde_json::from_slice(&fs::read(desk.path("report/steps.json")).expect("written")).expect("JSON");
    assert_eq!(record["state"], "stopped");
    let why = record["why"].as_str().expect("said");
    assert!(
        why.contains("--replace") && why.contains(&format!("partition {partition} up to position {newest}")),
        "{why}"
    );
    // Nothing was touched, and a decision is all that is missing.
    assert_eq!(replay_tool(&database.url, &["verify"]).0, 1);
    let (code, report) = desk.recover(&database.url, &archive, "report", &["--replace"]);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(report["events"]["from_database"], 2);
    let lost = json!([{ "partition": partition, "from": newest - 2, "to": newest, "count": 3, "told_by": "the database's own heads" }]);
    assert_eq!(report["lost"]["partitions"], lost);
    verify_consistent(&database.url);
}

async fn only_read_models_are_made_anew_where_only_they_are_damaged(database: NewDatabase) {
    let desk = Desk::new();
    let (archive, ..) = archived_and_gone_on(&database, &desk, &[]).await;
    let before = verify_consistent(&database.url);
    let damage = "update balances set balance = balance + 5, available = available + 5";
    Vandal::arrive(&database.url).await.run(&[damage]).await;
    // Services may go on meanwhile.
    let service = Service::start(&database.url, &[]);
    let (code, report) = desk.recover(&database.url, &archive, "report", &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!((&report["found"]["state"], &report["action"]), (&json!("read_models_damaged"), &json!("rebuilt")));
    assert_eq!(report["digest"]["after"], before["digest"]);
    service.credit("ann", 1, "after").await;
    verify_consistent(&database.url);
}

async fn an_archive_of_another_ledger_is_refused(database: NewDatabase) {
    let desk = Desk::new();
    let other = tests::store::sqlite();
    let mut service = Service::start(&other.url, &[]);
    service.credit("ann", 77, "theirs").await;
    service.terminate();
    let theirs = desk.export(&other.url, "theirs");
    let (archive, partition, newest) = archived_and_gone_on(&database, &desk, &[]).await;
    let place = format!("partition = {partition} and position = {newest}");
    Vandal::arrive(&database.url).await.run(&[format!("update events set amount = amount + 1 where {place}")]).await;
    let (code, _) = desk.recover(&database.url, &theirs, "report", &[]);
    assert_eq!(code, 2);
    let record: Value =
        serde_json::from_slice(&fs::read(desk.path("report/steps.json")).expect("written")).expect("JSON");
    assert!(record["why"].as_str().expect("said").contains("another ledger"), "{record:#}");
    let (code, _) = desk.recover(&database.url, &desk.path("nowhere"), "nowhere-report", &[]);
    assert_eq!(code, 2);
    // Neither is a ledger whose log is shorter than the archive's taken for an earlier state of it.
    let shorter = tests::store::sqlite();
    let mut service = Service::start(&shorter.url, &[]);
    service.credit("user-0", 3, "theirs").await;
    service.terminate();
    let sound = verify_consistent(&shorter.url);
    let (code, _) = desk.recover(&shorter.url, &archive, "shorter", &[]);
    assert_eq!(code, 2);
    assert_eq!(verify_consistent(&shorter.url)["digest"], sound["digest"]);
}
