//! A snapshot of a ledger that went on by itself: what it acknowledged is no less true than what the archive holds.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use serde_json::{Value, json};
use tests::{
    Postgres, Service, replay_tool,
    store::{self, NewDatabase},
    vandal::Vandal,
    verify_consistent,
};

use super::{Desk, batches, heads, text};

/// A copy of a ledger that is stopped, as a snapshot of its volume is one; gives its address.
fn snapshot(database: &NewDatabase, desk: &Desk, name: &str) -> String {
    let Some(file) = database.url.strip_prefix("sqlite://") else {
        let (server, from) = database.url.rsplit_once('/').expect("an address");
        let to = format!("{from}_{name}");
        Postgres::shared().psql("postgres", &format!("create database {to} template {from}"));
        return format!("{server}/{to}");
    };
    let to = desk.path(&format!("{name}.db"));
    for suffix in ["", "-wal"] {
        let from = format!("{file}{suffix}");
        if Path::new(&from).exists() {
            fs::copy(from, format!("{}{suffix}", text(&to))).expect("there is room");
        }
    }
    format!("sqlite://{}", text(&to))
}

/// Which file it is, where it is one: a restore puts another in its place.
fn file(url: &str) -> Option<u64> {
    url.strip_prefix("sqlite://").map(|file| fs::metadata(file).expect("the file is there").ino())
}

/// Why a recovery went no further.
fn why(desk: &Desk, report: &str) -> String {
    let steps = fs::read(desk.path(&format!("{report}/steps.json"))).expect("written");
    let record: Value = serde_json::from_slice(&steps).expect("JSON");
    assert_eq!(record["state"], "stopped", "{record:#}");
    record["why"].as_str().expect("said").to_owned()
}

pub(crate) async fn a_sound_ledger_that_went_another_way_is_a_persons_decision(database: NewDatabase) {
    let desk = Desk::new();
    let mut service = Service::start(&database.url, &[]);
    batches(&service, 0, 2, 20).await;
    let there = heads(&service).await;
    service.terminate();
    let snapshots = ["behind", "at", "past"].map(|name| (name, snapshot(&database, &desk, name)));
    let mut service = Service::start(&database.url, &[]);
    batches(&service, 2, 2, 20).await;
    service.credit("ann", 10, "1").await;
    let partition = service.credit("ann", 10, "2").await["partition"].as_u64().expect("a number");
    let archived = heads(&service).await;
    service.terminate();
    let archive = desk.export(&database.url, "archive");
    // Only ann's partition goes on, up to before the archive's end, to it, and past it.
    let common = there.get(&partition).copied().unwrap_or(0);
    let credits = archived[&partition] - common;
    for ((name, url), credits) in snapshots.into_iter().zip(credits - 1..) {
        let mut service = Service::start(&url, &[]);
        for number in 0..credits {
            service.credit("ann", 1, &format!("{name}-{number}")).await;
        }
        service.terminate();
        let (before, file_before) = (verify_consistent(&url), file(&url));
        let (code, report) = desk.recover(&url, &archive, name, &[]);
        assert_eq!((code, report), (2, Value::Null), "{name}");
        let said = why(&desk, name);
        let place = format!("partition {partition} up to position {}", common + credits);
        assert!(said.contains("--replace") && said.contains(&place) && !said.contains("--nats-url"), "{name}: {said}");
        // Nothing was touched.
        assert!(!desk.path(&format!("{name}/backup")).exists(), "{name}");
        let after = verify_consistent(&url);
        assert_eq!((&after["digest"], &after["events"]), (&before["digest"], &before["events"]), "{name}");
        assert_eq!(file(&url), file_before, "{name}");

        // A new epoch makes it no part of the archive.
        let restored = store::sqlite();
        let own = desk.export(&url, &format!("{name}-own"));
        let (code, imported) = replay_tool(&restored.url, &["import", "--from", text(&own)]);
        assert_eq!(code, 0, "{imported:#}");
        let (code, _) = desk.recover(&restored.url, &archive, &format!("{name}-restored"), &[]);
        assert_eq!(code, 2, "{name}");
        assert!(why(&desk, &format!("{name}-restored")).contains(&place), "{name}");
        // Its own archive is how it is kept.
        let (code, kept) = desk.recover(&restored.url, &own, &format!("{name}-kept"), &[]);
        assert_eq!((code, &kept["action"]), (0, &json!("none")), "{name}: {kept:#}");

        // Damage of what is made from its log is no reason to give that log up.
        let damage = "update balances set balance = balance + 5, available = available + 5";
        Vandal::in_place(&url).run(&[damage]).await;
        let (code, _) = desk.recover(&url, &archive, name, &[]);
        assert_eq!(code, 2, "{name}");
        assert!(why(&desk, name).contains(&place), "{name}");
        let (code, report) = desk.recover(&url, &archive, name, &["--replace"]);
        assert_eq!((code, &report["action"]), (1, &json!("restored")), "{name}: {report:#}");
        assert_eq!(report["digest"]["after"], report["digest"]["archive"], "{name}");
        assert!(!report["kept"].is_null(), "{name}");
        let page = fs::read_to_string(desk.path(&format!("{name}/report.html"))).expect("written");
        assert!(!page.contains("nothing is lost"), "{name}");
        verify_consistent(&url);
    }
}
