//! Disks that lose a page of a SQLite file, or do not take what they are told to keep.

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    process::{Child, ChildStderr, Stdio},
    time::Duration,
};

use ledger_core::Account;
use ledger_store::{Database, Ledger, LedgerOptions};
use projector::{balances::Reader, runner::Runner};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use tests::{
    Service,
    children::{bound_to_this_process, kill, spawn},
    store::{self, NewDatabase},
    vandal::Vandal,
    verify_consistent,
};
use tokio::time::{sleep, timeout};

/// How long anything is waited for, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// Enough for some pages of each table.
const USERS: usize = 600;

fn users() -> impl Iterator<Item = String> {
    (0..USERS).map(|number| format!("user-{number}"))
}

fn account(user: &str) -> Account {
    Account::new(user, "points").expect("a valid account")
}

fn command(kind: &str, user: &str, amount: u64, id: &str) -> Value {
    json!({ "type": kind, "user_id": user, "credit_type": "points", "amount": amount,
        "business_code": kind, "business_id": id })
}

fn credit(user: &str, id: &str) -> Value {
    json!({ "user_id": user, "credit_type": "points", "amount": 10, "business_code": "c", "business_id": id })
}

/// A new ledger that no service has open any more: each user has 20, of which 10 are frozen.
async fn ledger_of_many() -> NewDatabase {
    let database = store::sqlite();
    let mut service = Service::start(&database.url, &[]);
    for (kind, amount) in [("credit", 20), ("freeze", 10)] {
        let commands: Vec<_> = users().map(|user| command(kind, &user, amount, "first")).collect();
        service.post("/v1/batches", &json!({ "commands": commands })).await.expect(201);
    }
    let projected = async {
        while service.get("/readyz").await.body["projector"]["lag_positions"] != 0 {
            sleep(Duration::from_millis(25)).await;
        }
    };
    timeout(PATIENCE, projected).await.expect("the projector catches up");
    service.terminate();
    database
}

/// Writes zeros over the first page that holds rows of a table, or entries of an index, in the order of partition and account.
/// Gives the first user, who is on it, and the last.
async fn lose_a_page(database: &NewDatabase, table: &str) -> [String; 2] {
    let mut connection = SqliteConnection::connect(&database.url).await.expect("the file is there");
    connection.execute("pragma wal_checkpoint(truncate)").await.expect("nobody else has it");
    let bytes_of_a_page: i64 = sqlx::query_scalar("pragma page_size").fetch_one(&mut connection).await.expect("a size");
    let pages: Vec<i64> =
        sqlx::query_scalar("select pageno from dbstat where name = ? and pagetype = 'leaf' order by path")
            .bind(table)
            .fetch_all(&mut connection)
            .await
            .expect("its pages");
    connection.close().await.expect("closed");

    assert!(pages.len() > 4, "{table} has {} pages", pages.len());
    let path = database.url.strip_prefix("sqlite://").expect("a file");
    let file = OpenOptions::new().write(true).open(path).expect("the file can be written");
    let zeros = vec![0; usize::try_from(bytes_of_a_page).expect("a size")];
    let at = u64::try_from((pages[0] - 1) * bytes_of_a_page).expect("counted from one");
    file.write_all_at(&zeros, at).expect("there is room");
    let place = |user: &String| (account(user).partition(), account(user).id().to_string());
    let (first, last) = (users().min_by_key(place), users().max_by_key(place));
    [first, last].map(|user| user.expect("there are users"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_an_index_that_cannot_be_read_fails_only_whose_rows_are_on_it() {
    let database = ledger_of_many().await;
    let [ann, bob] = lose_a_page(&database, "account_positions").await;
    let service = Service::start(&database.url, &[]);
    let damaged = async {
        for number in 0..10 {
            let refused = service.post("/v1/credits", &credit(&ann, &number.to_string())).await.expect(503);
            assert_eq!(refused["code"], "store_unavailable");
            service.get(&format!("/v1/accounts/{ann}/points?consistency=strong")).await.expect(503);
        }
    };
    let sound = async {
        for number in 0..100 {
            service.post("/v1/credits", &credit(&bob, &number.to_string())).await.expect(201);
        }
    };
    tokio::join!(damaged, sound);
    assert_eq!(service.holdings(&bob).await, (1_020, 10, 1_010));
    assert_eq!(service.get("/readyz").await.expect(200)["trouble"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_read_model_that_cannot_be_read_stops_only_the_partition_that_needs_it() {
    // Rows that are read, and entries that are only written to.
    for (lost, read_model) in [("balances", "balances"), ("freezes_of_account", "freezes")] {
        let database = ledger_of_many().await;
        let [ann, bob] = lose_a_page(&database, lost).await;
        let opened = Database::open(&database.url).await.expect("opens");
        let ledger = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("starts");
        let runner = Runner::start(opened.clone(), Some(ledger.feed()));
        for user in [&ann, &bob] {
            ledger.execute(store::freeze(user, 1, "later")).await.expect("frozen");
        }
        let [hers, his] = [&ann, &bob].map(|user| account(user).partition());
        let committed = ledger.committed()[his.index()];
        let mut progress = runner.progress();
        let halted =
            progress.wait_for(|progress| progress.halted == [hers] && progress.positions[his.index()] == committed);
        timeout(PATIENCE, halted).await.expect("in time").expect("it runs");

        let row = Reader::start(opened.clone()).find(&account(&bob)).await.expect("read").expect("there");
        assert_eq!((row.state.balance, row.state.frozen), (20, 11));
        let Database::Sqlite(sqlite) = &opened else { panic!("a SQLite file") };
        let found: Vec<(i64, String, String)> =
            sqlx::query_as("select partition, projection, kind from inconsistencies")
                .fetch_all(sqlite.readers())
                .await
                .expect("read");
        assert_eq!(found, [(i64::from(hers.number()), read_model.to_owned(), "row".to_owned())]);
        runner.stop().await;
        ledger.stop().await;
    }
}

/// A tracer of a service; while it lives each flush fails, as on a disk that is dying.
struct FailingDisk {
    tracer: Child,
    /// What it says has to go somewhere.
    _said: BufReader<ChildStderr>,
}

impl FailingDisk {
    /// None where this machine has no tracer, or does not let it trace.
    fn under(service: &Service) -> Option<Self> {
        let mut command = bound_to_this_process("strace", "KILL");
        command
            .args(["-f", "-p", &service.pid().to_string(), "-o", "/dev/null"])
            .args(["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"])
            .stderr(Stdio::piped());
        let mut tracer = spawn(command);
        let mut said = BufReader::new(tracer.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it speaks UTF-8");
        if line.contains("attached") {
            return Some(Self { tracer, _said: said });
        }
        kill(&mut tracer);
        eprintln!("nothing is tested, because nothing can be traced here: {line}");
        None
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        kill(&mut self.tracer);
    }
}

/// Nothing is answered, and the service says what to do before it is gone.
async fn ends_without_an_answer(service: &Service, path: &str, body: &Value) {
    let answer = service.send(Method::POST, path, Some(body.to_string())).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(service.send(Method::GET, "/livez", None).await.is_err(), "the process is gone");
    let said = async {
        while !service.log().contains("look at the disk") {
            sleep(Duration::from_millis(25)).await;
        }
    };
    timeout(PATIENCE, said).await.expect("it says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_ends_when_the_disk_does_not_take_a_commit_and_loses_nothing() {
    let database = store::sqlite();
    let service = Service::start(&database.url, &["--proof-round", "0"]);
    service.post("/v1/credits", &credit("ann", "answered")).await.expect(201);
    let Some(disk) = FailingDisk::under(&service) else { return };
    ends_without_an_answer(&service, "/v1/credits", &credit("ann", "not answered")).await;
    drop(disk);

    let service = Service::start(&database.url, &["--proof-round", "0"]);
    service.post("/v1/credits", &credit("ann", "answered")).await.expect(200);
    // Whether that was done is not known, but it is done once.
    assert!(service.post("/v1/credits", &credit("ann", "not answered")).await.status.is_success());
    assert_eq!(service.holdings("ann").await, (20, 0, 20));
    verify_consistent(&database.url);
}

/// What a person says of an inconsistency cannot be made again from the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_persons_word_waits_for_the_disk() {
    const ID: &str = "00000000-0000-4000-8000-000000000001";
    let database = store::sqlite();
    Service::start(&database.url, &[]).terminate();
    let found = format!(
        "insert into inconsistencies (partition, inconsistency_id, position, projection, kind, subject, expected, found, found_at) \
         values (1, '{ID}', 1, 'balances', 'balance', '1 balance', '2', '1', '2026-01-01T00:00:00.000000Z')"
    );
    Vandal::in_place(&database.url).run(&[found]).await;
    let service = Service::start(&database.url, &["--proof-round", "0"]);
    // The first write into a new log is flushed in any case.
    service.post("/v1/credits", &credit("ann", "1")).await.expect(201);
    let Some(_disk) = FailingDisk::under(&service) else { return };
    ends_without_an_answer(&service, &format!("/v1/inconsistencies/{ID}/resolve"), &json!({ "note": "an edit" })).await;
}
