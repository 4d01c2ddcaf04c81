//! `replay-tool export`, `import`, `diff` and `drill`: a ledger leaves its database and comes back the same.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    Service,
    children::{bound_to_this_process, kill, spawn},
    on_both_databases, replay_tool,
    service::program,
    store::{self, NewDatabase},
    verify_consistent,
};

#[path = "archive/damage.rs"]
mod damage;
#[path = "archive/replace.rs"]
mod replace;
#[path = "archive/sql.rs"]
mod sql;

on_both_databases!(
    a_ledger_comes_back_the_same_on_each_database_and_goes_on,
    increments_are_imported_in_their_order_and_in_no_other,
    a_database_that_holds_events_is_not_imported_into,
    an_import_that_is_killed_is_done_whole_by_the_next_run,
    a_damaged_log_is_not_archived,
    diff_names_the_first_differing_event_and_the_accounts,
    a_drill_leaves_nothing_behind,
);

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Posts credits of `accounts` accounts as one batch, `first` being the first of their numbers.
async fn credits(service: &Service, first: u64, count: u64, accounts: u64) {
    let commands: Vec<_> = (first..first + count)
        .map(|number| {
            json!({ "type": "credit", "user_id": format!("user-{}", number % accounts), "credit_type": "points",
                "amount": 10 + number % 7, "business_code": "test.credit", "business_id": number.to_string() })
        })
        .collect();
    service.post("/v1/batches", &json!({ "atomic": true, "commands": commands })).await.expect(201);
}

/// An order with everything that an event can have.
async fn order(service: &Service, user: &str) {
    service.credit(user, 1_000, "seed").await;
    let frozen = json!({ "user_id": user, "credit_type": "points", "amount": 500, "business_code": "order",
        "business_id": "1", "description": "zwei Stück – 2 €", "metadata": { "basket": [1, 2.50] }, "expires_in_seconds": 86_400 });
    let frozen = service.post("/v1/freezes", &frozen).await.expect(201);
    let capture =
        json!({ "freeze_id": frozen["transaction_id"], "amount": 200, "business_code": "pay", "business_id": "1" });
    let paid = service.post("/v1/debits", &capture).await.expect(201);
    let refund =
        json!({ "debit_id": paid["transaction_id"], "amount": 50, "business_code": "back", "business_id": "1" });
    service.post("/v1/refunds", &refund).await.expect(201);
}

/// Waits until the read models stand where the log ends.
async fn projected(service: &Service) {
    let caught_up = async { while service.get("/readyz").await.body["projector"]["lag_positions"] != 0 {} };
    tokio::time::timeout(Duration::from_secs(30), caught_up).await.expect("the projector catches up");
}

fn export(url: &str, to: &Path, more: &[&str]) -> Value {
    let (code, exported) = replay_tool(url, &[&["export", "--out", text(to)], more].concat());
    assert_eq!((code, &exported["exported"]), (0, &json!(true)), "{exported:#}");
    exported
}

fn import(url: &str, from: &[&Path]) -> (i32, Value) {
    let folders = from.iter().flat_map(|folder| ["--from", text(folder)]);
    replay_tool(url, &["import"].into_iter().chain(folders).collect::<Vec<_>>())
}

fn import_equal(url: &str, from: &[&Path]) -> Value {
    let (code, imported) = import(url, from);
    assert_eq!((code, &imported["equal"]), (0, &json!(true)), "{imported:#}");
    imported
}

async fn a_ledger_comes_back_the_same_on_each_database_and_goes_on(database: NewDatabase) {
    let folder = temporary();
    let mut service = Service::start(&database.url, &[]);
    credits(&service, 0, 700, 40).await;
    order(&service, "ann").await;
    let repeated =
        json!({ "user_id": "ann", "credit_type": "points", "amount": 70, "business_code": "once", "business_id": "1" });
    let first = service.post("/v1/debits", &repeated).await.expect(201);
    projected(&service).await;
    // While the service runs.
    let archive = folder.path().join("one");
    let exported = export(&database.url, &archive, &[]);
    service.terminate();
    assert_eq!(exported["digest"], verify_consistent(&database.url)["digest"]);
    let mut from = (database.url.clone(), archive);
    for (step, other) in [store::sqlite(), store::postgres(), store::postgres(), store::sqlite()].iter().enumerate() {
        let imported = import_equal(&other.url, &[&from.1]);
        let verified = verify_consistent(&other.url);
        assert_eq!(imported["digest"], verified["digest"]);
        let (code, compared) = replay_tool(&other.url, &["diff", &from.0, &other.url]);
        assert_eq!((code, &compared["equal"]), (0, &json!(true)), "{compared:#}");
        // The ledger goes on where it was: old keys are known, new events are of the new epoch.
        let mut service = Service::start(&other.url, &[]);
        let mut again = service.post("/v1/debits", &repeated).await.expect(200);
        again["replayed"] = json!(false);
        assert_eq!(again, first);
        let past = service.get("/v1/accounts/ann/points?at_version=2").await.expect(200);
        assert_eq!((&past["balance"], &past["frozen"]), (&json!(1_000), &json!(500)));
        let next = service.credit("ann", 1, &format!("after-{step}")).await;
        assert_eq!(next["version"], json!(6 + step));
        let (partition, position) = (&next["partition"], next["position"].as_u64().expect("a number"));
        let events = service.get(&format!("/v1/events?partition={partition}&after={}", position - 1)).await.expect(200);
        assert_eq!(events["items"][0]["epoch"], imported["epoch"], "{events:#}");
        credits(&service, 1_000 + 100 * step as u64, 60, 40).await;
        projected(&service).await;
        service.terminate();
        verify_consistent(&other.url);
        let archive = folder.path().join(format!("after-{step}"));
        let exported = export(&other.url, &archive, &[]);
        assert!(exported["epoch"].as_u64() >= imported["epoch"].as_u64());
        from = (other.url.clone(), archive);
    }
}

async fn increments_are_imported_in_their_order_and_in_no_other(database: NewDatabase) {
    let folder = temporary();
    let at = |name: &str| folder.path().join(name);
    let service = Service::start(&database.url, &[]);
    credits(&service, 0, 300, 30).await;
    export(&database.url, &at("whole"), &[]);
    let manifest = |name: &str| at(name).join("manifest.json");
    credits(&service, 300, 50, 90).await;
    order(&service, "ann").await;
    let one = export(&database.url, &at("one"), &["--since-manifest", text(&manifest("whole"))]);
    assert_eq!(one["events"], 54);
    // Nothing happened in between.
    let two = export(&database.url, &at("two"), &["--since-manifest", text(&manifest("one"))]);
    assert_eq!((&two["events"], &two["digest"]), (&json!(0), &one["digest"]));
    credits(&service, 350, 50, 90).await;
    let three = export(&database.url, &at("three"), &["--since-manifest", text(&manifest("two"))]);
    // Another increment on the same base, and another whole archive.
    export(&database.url, &at("other"), &["--since-manifest", text(&manifest("whole"))]);
    export(&database.url, &at("later"), &[]);
    let wrong: [&[&str]; 8] = [
        &["one"],
        &["one", "whole"],
        &["whole", "two"],
        &["whole", "one", "three"],
        &["whole", "one", "one"],
        &["whole", "other", "two"],
        &["later", "one"],
        &["whole", "later"],
    ];
    for names in wrong {
        let into = store::sqlite();
        let folders: Vec<_> = names.iter().map(|name| at(name)).collect();
        let (code, printed) = import(&into.url, &folders.iter().map(PathBuf::as_path).collect::<Vec<_>>());
        assert_eq!((code, printed), (2, Value::Null), "{names:?}");
        assert!(!exists(&into), "{names:?}");
    }
    for into in [store::sqlite(), store::postgres()] {
        let imported = import_equal(&into.url, &[&at("whole"), &at("one"), &at("two"), &at("three")]);
        assert_eq!((&imported["digest"], &imported["events"]), (&three["digest"], &json!(404)));
        verify_consistent(&into.url);
    }
    // A ledger that is not the one of the base has no increment on it.
    let stranger = store::sqlite();
    let service = Service::start(&stranger.url, &[]);
    credits(&service, 5, 900, 30).await;
    let (to, base) = (at("strange"), manifest("whole"));
    let arguments = ["export", "--out", text(&to), "--since-manifest", text(&base)];
    assert_eq!(replay_tool(&stranger.url, &arguments), (2, Value::Null));
    assert!(!at("strange").exists() && !at("strange.exporting").exists());
}

/// Whether a SQLite file, or what is left of an attempt to write one, is there.
fn exists(database: &NewDatabase) -> bool {
    let file = database.url.strip_prefix("sqlite://").expect("a file");
    Path::new(file).exists() || Path::new(&format!("{file}.importing")).exists()
}

async fn a_database_that_holds_events_is_not_imported_into(database: NewDatabase) {
    let (folder, source) = (temporary(), store::sqlite());
    let archive = folder.path().join("archive");
    let mut service = Service::start(&source.url, &[]);
    credits(&service, 0, 100, 10).await;
    service.terminate();
    let exported = export(&source.url, &archive, &[]);
    // A ledger without an event is as good as none.
    Service::start(&database.url, &[]).terminate();
    let imported = import_equal(&database.url, &[&archive]);
    // The same again finds that it is done, and does no harm.
    let again = import_equal(&database.url, &[&archive]);
    assert_eq!((&again["log_was_there"], &again["epoch"]), (&json!(true), &imported["epoch"]));
    assert_eq!(again["digest"], exported["digest"]);
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 1, "1").await;
    let before = service.get("/v1/accounts/ann/points?min_version=1").await.expect(200);
    assert_eq!(import(&database.url, &[&archive]), (2, Value::Null));
    assert_eq!(service.get("/v1/accounts/ann/points").await.expect(200), before);
    service.credit("ann", 1, "2").await;
    service.terminate();
    verify_consistent(&database.url);
    // Somebody else's tables are not touched.
    let foreign = sql::like(&database);
    sql::run(&foreign, "create table events (mine text)").await;
    assert_eq!(import(&foreign.url, &[&archive]), (2, Value::Null));
    sql::run(&foreign, "insert into events values ('still there')").await;
}

/// How often an import is killed: `CRASHES` says otherwise.
fn crashes() -> u64 {
    std::env::var("CRASHES").ok().and_then(|crashes| crashes.parse().ok()).unwrap_or(20)
}

async fn an_import_that_is_killed_is_done_whole_by_the_next_run(database: NewDatabase) {
    let (folder, source) = (temporary(), store::sqlite());
    let archive = folder.path().join("archive");
    let mut service = Service::start(&source.url, &[]);
    credits(&service, 0, 2_000, 300).await;
    order(&service, "ann").await;
    service.terminate();
    let exported = export(&source.url, &archive, &[]);
    let began = std::time::Instant::now();
    import_equal(&database.url, &[&archive]);
    let whole = began.elapsed();
    let (mut nothing, mut log_only) = (0, 0);
    for crash in 0..crashes() {
        let into = sql::like(&database);
        let mut command = bound_to_this_process(text(&program("replay-tool")), "KILL");
        command.args(["--database-url", &into.url, "import", "--from", text(&archive)]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut running = spawn(command);
        // Irregular moments of the whole, the same in every run.
        let share = crash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) % 1_000;
        tokio::time::sleep(whole.mul_f64(share as f64 / 1_000.0)).await;
        kill(&mut running);
        let imported = import_equal(&into.url, &[&archive]);
        assert_eq!((&imported["digest"], &imported["events"]), (&exported["digest"], &exported["events"]));
        if imported["log_was_there"] == true {
            log_only += 1;
        } else {
            nothing += 1;
        }
        assert_eq!(verify_consistent(&into.url)["digest"], exported["digest"]);
        if into.url.starts_with("sqlite") {
            let file = into.url.strip_prefix("sqlite://").expect("a file");
            assert!(!Path::new(&format!("{file}.importing")).exists());
        }
    }
    println!("killed {} times: nothing was there {nothing} times, the whole log {log_only} times", crashes());
}

async fn a_damaged_log_is_not_archived(database: NewDatabase) {
    let folder = temporary();
    let mut service = Service::start(&database.url, &[]);
    credits(&service, 0, 100, 10).await;
    order(&service, "ann").await;
    service.terminate();
    let partition = sql::number(&database, "select partition from events where user_id = 'ann' limit 1").await;
    let place = format!("partition = {partition} and business_code = 'order'");
    let position = sql::number(&database, &format!("select position from events where {place}")).await;
    let changes = [
        (
            format!("update events set amount = amount + 1 where {place}"),
            format!("update events set amount = amount - 1 where {place}"),
        ),
        (format!("update events set frozen = -1 where {place}"), String::new()),
    ];
    for (damage, repair) in changes {
        // The second is refused by the table itself on both databases: then nothing is damaged.
        if !sql::vandalise(&database, &damage).await {
            continue;
        }
        let to = folder.path().join("archive");
        let (code, exported) = replay_tool(&database.url, &["export", "--out", text(&to)]);
        assert_eq!((code, &exported["exported"]), (1, &json!(false)), "{exported:#}");
        assert_eq!((&exported["partition"], &exported["position"]), (&json!(partition), &json!(position)));
        assert!(!to.exists() && !folder.path().join("archive.exporting").exists());
        let (code, drilled) = replay_tool(&database.url, &["drill", "--folder", text(folder.path())]);
        assert_eq!((code, &drilled["passed"]), (1, &json!(false)));
        assert!(sql::vandalise(&database, &repair).await);
    }
    export(&database.url, &folder.path().join("archive"), &[]);
}

async fn diff_names_the_first_differing_event_and_the_accounts(database: NewDatabase) {
    let (folder, source) = (temporary(), store::sqlite());
    let archive = folder.path().join("archive");
    let mut service = Service::start(&source.url, &[]);
    credits(&service, 0, 200, 20).await;
    order(&service, "ann").await;
    projected(&service).await;
    service.terminate();
    export(&source.url, &archive, &[]);
    import_equal(&database.url, &[&archive]);
    for more in [&[] as &[&str], &["--quick"]] {
        let (code, compared) = replay_tool("", &[&["diff", &source.url, &database.url], more].concat());
        assert_eq!((code, &compared["equal"], &compared["differences"]), (0, &json!(true), &json!([])), "{compared:#}");
    }
    // A row of a read model.
    sql::vandalise(
        &database,
        "update balances set balance = balance + 5, available = available + 5 where user_id = 'user-3'",
    )
    .await;
    let (code, compared) = replay_tool("", &["diff", &source.url, &database.url]);
    assert_eq!(code, 1);
    let accounts = &compared["differences"][0]["accounts"];
    assert_eq!(
        (&accounts["count"], &accounts["shown"][0]["whose"]),
        (&json!(1), &json!("user-3/points")),
        "{compared:#}"
    );
    assert_eq!(compared["a"]["digest"], compared["b"]["digest"], "the logs are the same");
    let (code, _) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!(code, 0);
    // An event that was edited without its hash.
    sql::vandalise(&database, "update events set description = 'edited' where business_code = 'order'").await;
    let (code, compared) = replay_tool("", &["diff", &source.url, &database.url]);
    assert_eq!(code, 1);
    let log = &compared["differences"][0]["log"];
    assert_eq!(
        (&log["fields"][0]["field"], &log["fields"][0]["b"]),
        (&json!("description"), &json!("edited")),
        "{compared:#}"
    );
    sql::vandalise(&database, "update events set description = 'zwei Stück – 2 €' where business_code = 'order'").await;
    let (code, compared) = replay_tool("", &["diff", &source.url, &database.url]);
    assert_eq!(code, 0, "{compared:#}");
    // More events in one of them.
    let mut service = Service::start(&database.url, &[]);
    let next = service.credit("ann", 5, "more").await;
    service.credit("zoe", 5, "new").await;
    service.get("/v1/accounts/ann/points?min_version=5").await.expect(200);
    service.get("/v1/accounts/zoe/points?min_version=1").await.expect(200);
    for more in [&[] as &[&str], &["--quick"]] {
        let (code, compared) = replay_tool("", &[&["diff", &source.url, &database.url], more].concat());
        assert_eq!((code, &compared["equal"]), (1, &json!(false)));
        let differences = compared["differences"].as_array().expect("a list");
        let of_ann = differences.iter().find(|one| one["partition"] == next["partition"]).expect("ann's partition");
        assert_eq!(of_ann["log"]["position"], next["position"], "{compared:#}");
        assert_eq!(of_ann["accounts"]["shown"][0]["whose"], "ann/points", "{compared:#}");
        let zoe = differences.iter().flat_map(|one| one["accounts"]["shown"].as_array().expect("a list"));
        assert!(zoe.into_iter().any(|one| one["whose"] == "zoe/points" && one["a"] == "none"), "{compared:#}");
    }
    service.terminate();
    let (code, printed) = replay_tool("", &["diff", &source.url, "sqlite:///nowhere/at/all.db"]);
    assert_eq!((code, printed), (2, Value::Null));
}

async fn a_drill_leaves_nothing_behind(database: NewDatabase) {
    let (folder, scratch) = (temporary(), store::postgres());
    let mut service = Service::start(&database.url, &[]);
    credits(&service, 0, 300, 20).await;
    order(&service, "ann").await;
    let report = folder.path().join("drill.html");
    let work = temporary();
    let drill = |more: &[&str]| {
        let common = ["drill", "--folder", text(work.path())];
        replay_tool(&database.url, &[&common, more].concat())
    };
    let nothing_is_left = || fs::read_dir(work.path()).expect("it is there").count() == 0;
    let (code, drilled) = drill(&["--report", text(&report)]);
    assert_eq!((code, &drilled["passed"]), (0, &json!(true)), "{drilled:#}");
    assert_eq!(drilled["digest"], verify_consistent(&database.url)["digest"]);
    assert!(nothing_is_left());
    let page = fs::read_to_string(&report).expect("a report");
    assert!(page.contains(drilled["digest"].as_str().expect("a digest")));
    let tables = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    // On PostgreSQL, twice: the first is killed when the ledger stands in the scratch database.
    let arguments = ["--scratch-url", &scratch.url];
    let mut command = bound_to_this_process(text(&program("replay-tool")), "KILL");
    command.args(["--database-url", &database.url, "drill", "--keep", "--folder", text(work.path())]).args(arguments);
    command.stdout(std::process::Stdio::null());
    assert!(spawn(command).wait().expect("our child").success());
    assert!(sql::number(&scratch, tables).await > 0 && !nothing_is_left());
    let (code, drilled) = drill(&arguments);
    assert_eq!((code, &drilled["passed"]), (0, &json!(true)), "{drilled:#}");
    assert_eq!(sql::number(&scratch, tables).await, 0, "the scratch database is empty again");
    // What was kept on purpose stays.
    assert_eq!(fs::read_dir(work.path()).expect("it is there").count(), 1);
    // A ledger is no scratch database, and the served one least of all.
    for url in [&database.url, &sql::filled(&database).await.url] {
        let (code, printed) = drill(&["--scratch-url", url]);
        assert_eq!((code, printed), (2, Value::Null));
    }
    service.credit("ann", 1, "still served").await;
    service.terminate();
    verify_consistent(&database.url);
    // A drill that was killed.
    let mut command = bound_to_this_process(text(&program("replay-tool")), "KILL");
    command.args(["--database-url", &database.url, "drill", "--folder", text(work.path())]);
    command.stdout(std::process::Stdio::null());
    let mut running = spawn(command);
    tokio::time::timeout(Duration::from_secs(30), async {
        while fs::read_dir(work.path()).expect("it is there").count() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it begins");
    kill(&mut running);
    let (code, _) = drill(&[]);
    assert_eq!(code, 0);
    assert_eq!(fs::read_dir(work.path()).expect("it is there").count(), 1);
}
