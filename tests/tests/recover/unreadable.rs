//! What cannot be read, and what only seems so.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use tests::{
    Postgres, Service,
    store::{self, NewDatabase},
    verify_consistent,
};

use super::{Desk, batches, heads};

/// Smaller than a page of either database's file that holds this text, and larger than its header.
const GARBAGE: [u8; 100] = [0xff; 100];

fn file_of(database: &NewDatabase) -> PathBuf {
    database.url.strip_prefix("sqlite://").expect("a file").into()
}

/// Writes over the beginning of the page that holds `text`.
fn damage_the_page_with(file: &Path, text: &str, page_bytes: usize) {
    let bytes = fs::read(file).expect("the file is there");
    let place = bytes.windows(text.len()).position(|window| window == text.as_bytes()).expect("an event has the text");
    damage_the_page_at(file, (place / page_bytes * page_bytes) as u64);
}

fn damage_the_page_at(file: &Path, place: u64) {
    let file = OpenOptions::new().write(true).open(file).expect("the file can be written");
    file.write_all_at(&GARBAGE, place).expect("there is room");
}

/// Archives a ledger and goes on; gives the archive and how many events there are then.
async fn archived_and_much_later(database: &NewDatabase, desk: &Desk) -> (PathBuf, u64) {
    let mut service = Service::start(&database.url, &[]);
    batches(&service, 0, 2, 20).await;
    let archive = desk.export(&database.url, "archive");
    batches(&service, 100, 40, 20).await;
    let committed = heads(&service).await.values().sum();
    service.terminate();
    (archive, committed)
}

async fn change_an_event(database: &NewDatabase) {
    let mut connection = SqliteConnection::connect(&database.url).await.expect("the file is there");
    let change = "drop trigger events_are_not_updated; update events set amount = amount + 1 where position = 3";
    connection.execute(change).await.expect("damaged");
    connection.close().await.expect("closed");
}

/// A page in the midst of what came after the archive is damaged: a person decides, and what can be read comes back.
async fn what_stands_on_a_damaged_page(database: &NewDatabase, desk: &Desk, archive: &Path, committed: u64) {
    let verified = tests::tool::run(database, &["verify"]);
    assert_ne!(verified.code, 0, "{}", verified.out);
    assert!(verified.out.contains("recover") || verified.err.contains("recover"), "{} {}", verified.out, verified.err);
    let (code, report) = desk.recover(&database.url, archive, "report", &[]);
    assert_eq!((code, report), (2, Value::Null));
    let record: Value =
        serde_json::from_slice(&fs::read(desk.path("report/steps.json")).expect("written")).expect("JSON");
    let why = record["why"].as_str().expect("said");
    assert!(why.contains("cannot be read") && why.contains("--replace"), "{why}");

    let (code, report) = desk.recover(&database.url, archive, "report", &["--replace"]);
    assert_eq!(code, 1, "{report:#}");
    let (lost, kept) = (report["lost"]["positions"].as_u64(), report["events"]["events"].as_u64());
    assert_eq!(lost.zip(kept).map(|(lost, kept)| lost + kept), Some(committed), "{report:#}");
    // Whole batches came back from before the damage, and from other pages.
    assert!(report["events"]["from_database"].as_u64() > Some(100), "{report:#}");
    assert!(!report["kept"].is_null());
    assert_eq!(verify_consistent(&database.url)["events"].as_u64(), kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_of_a_sqlite_file_is_a_persons_decision() {
    let (database, desk) = (store::sqlite(), Desk::new());
    let (archive, committed) = archived_and_much_later(&database, &desk).await;
    let mut connection = SqliteConnection::connect(&database.url).await.expect("the file is there");
    connection.execute("pragma wal_checkpoint(truncate)").await.expect("nobody else has it");
    connection.close().await.expect("closed");
    damage_the_page_with(&file_of(&database), "120-10", 4_096);
    what_stands_on_a_damaged_page(&database, &desk, &archive, committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_of_a_postgresql_table_is_a_persons_decision() {
    let mut cluster = Postgres::start();
    let (database, desk) = (store::postgres_on(&cluster), Desk::new());
    let (archive, committed) = archived_and_much_later(&database, &desk).await;
    let name = database.url.rsplit('/').next().expect("a name");
    let path = cluster.psql(name, "select pg_relation_filepath('events')");
    cluster.psql(name, "checkpoint");
    cluster.stop_immediately();
    damage_the_page_with(&cluster.data().join(path), "120-10", 8_192);
    cluster.run();
    what_stands_on_a_damaged_page(&database, &desk, &archive, committed).await;
}

/// Whoever has the file for themselves for a while hides a sound ledger; it is waited for, not replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_holds_is_not_taken_for_a_damaged_one() {
    let (database, desk) = (store::sqlite(), Desk::new());
    let (archive, committed) = archived_and_much_later(&database, &desk).await;
    let before = verify_consistent(&database.url);
    let mut holder = SqliteConnection::connect(&database.url).await.expect("the file is there");
    for statement in ["pragma locking_mode = exclusive", "begin exclusive"] {
        holder.execute(statement).await.expect("nobody else has it");
    }
    let url = database.url.clone();
    let recovered = tokio::task::spawn_blocking(move || {
        let recovered = desk.recover(&url, &archive, "report", &[]);
        (recovered, desk)
    });
    // Longer than SQLite's drivers wait.
    tokio::time::sleep(Duration::from_secs(7)).await;
    holder.close().await.expect("closed");
    let ((code, report), _desk) = recovered.await.expect("it ends");
    assert_eq!((code, &report["action"]), (0, &json!("none")), "{report:#}");
    assert_eq!(report["found"]["state"], "sound");
    assert_eq!(verify_consistent(&database.url)["digest"], before["digest"]);
    assert_eq!(before["events"].as_u64(), Some(committed));
}

/// The file is gone, its newest commits are not: they are kept, and the restored file belongs to whom the old one did.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_lost_file_is_kept() {
    let (database, desk) = (store::sqlite(), Desk::new());
    let (archive, _) = archived_and_much_later(&database, &desk).await;
    let mut service = Service::start(&database.url, &[]);
    batches(&service, 200, 2, 20).await;
    service.kill9();
    let file = file_of(&database);
    let log = PathBuf::from(format!("{}-wal", file.display()));
    let commits = fs::read(&log).expect("a service that is killed leaves it");
    assert!(!commits.is_empty());
    fs::remove_file(&file).expect("it was there");
    let (code, report) = desk.recover(&database.url, &archive, "report", &[]);
    assert_eq!(code, 0, "{report:#}");
    let kept = report["kept"].as_str().expect("said");
    assert_eq!(fs::read(kept).expect("kept"), commits);
    assert_eq!(fs::read(desk.path("report/backup/ledger.db-wal")).expect("backed up"), commits);
    verify_consistent(&database.url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_file_belongs_to_whom_the_old_one_did() {
    let (database, desk) = (store::sqlite(), Desk::new());
    let (archive, _) = archived_and_much_later(&database, &desk).await;
    let file = file_of(&database);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("own file");
    let owner = if std::os::unix::fs::chown(&file, Some(4_321), Some(4_321)).is_ok() { 4_321 } else { 0 };
    change_an_event(&database).await;
    let (code, report) = desk.recover(&database.url, &archive, "report", &["--replace"]);
    assert_eq!((code, &report["action"]), (1, &json!("restored")), "{report:#}");
    assert_eq!(report["left_out"], json!([]));
    let restored = fs::metadata(&file).expect("restored");
    assert_eq!(restored.permissions().mode() & 0o777, 0o600);
    if owner != 0 {
        assert_eq!((restored.uid(), restored.gid()), (owner, owner));
    }
}

/// Between two attempts the service may have gone on: each state is kept.
#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_keeps_what_it_finds() {
    let (database, desk) = (store::sqlite(), Desk::new());
    let (archive, _) = archived_and_much_later(&database, &desk).await;
    let mut service = Service::start(&database.url, &[]);
    change_an_event(&database).await;
    // A service that has the file open ends the attempt after the backup.
    let (code, report) = desk.recover(&database.url, &archive, "report", &["--replace"]);
    assert_eq!((code, report), (2, Value::Null));
    batches(&service, 300, 1, 20).await;
    service.terminate();
    let (code, report) = desk.recover(&database.url, &archive, "report", &["--replace"]);
    assert_eq!((code, &report["action"]), (1, &json!("restored")), "{report:#}");
    let backups =
        ["backup", "backup-2"].map(|name| fs::read(desk.path(&format!("report/{name}/ledger.db"))).expect("kept"));
    assert_ne!(backups[0], backups[1]);
    verify_consistent(&database.url);
}

/// Without its API keys a ledger is open to everybody: what could not be taken along is named.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_taken_along_are_named() {
    let (database, desk) = (store::sqlite(), Desk::new());
    let (archive, _) = archived_and_much_later(&database, &desk).await;
    change_an_event(&database).await;
    let mut connection = SqliteConnection::connect(&database.url).await.expect("the file is there");
    let place =
        "select (rootpage - 1) * (select page_size from pragma_page_size) from sqlite_master where name = 'api_keys'";
    let place: i64 = sqlx::query_scalar(place).fetch_one(&mut connection).await.expect("there is such a table");
    connection.execute("pragma wal_checkpoint(truncate)").await.expect("nobody else has it");
    connection.close().await.expect("closed");
    damage_the_page_at(&file_of(&database), place.cast_unsigned());
    let (code, report) = desk.recover(&database.url, &archive, "report", &["--replace"]);
    assert_eq!((code, &report["action"]), (1, &json!("restored")), "{report:#}");
    assert_eq!(report["left_out"], json!(["api_keys"]));
    let next = report["next"].as_array().expect("a list");
    let is_told = |next: &Value| next.as_str().is_some_and(|next| next.contains("api keys create"));
    assert!(next.iter().any(is_told), "{next:#?}");
    let page = fs::read_to_string(desk.path("report/report.html")).expect("written");
    assert!(page.contains("Tables that could not be taken along") && page.contains("api_keys"));
    verify_consistent(&database.url);
}
