//! Verification of a part of the ledger.

use ledger_core::Position;
use ledger_store::Database;
use serde_json::{Value, json};
use tests::{replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent};

use crate::{
    case::named,
    ledger::{NEWEST, ledger},
};

pub(crate) async fn verify_looks_at_a_part_and_says_what_it_leaves_out(database: NewDatabase) {
    let ledger = ledger(&database, &[]).await;
    let p = ledger.partition;
    let whole = verify_consistent(&database.url);
    let vandal = Vandal::arrive(&database.url).await;
    let number = p.to_string();
    let report = tempfile::tempdir().expect("a temporary folder");
    let report = report.path().join("verified.html").display().to_string();

    let (code, digest) = replay_tool(&database.url, &["verify", "--digest-only"]);
    assert_eq!((code, &digest["digest"], &digest["accounts"]), (0, &whole["digest"], &whole["accounts"]));
    let (code, one) = replay_tool(&database.url, &["verify", "--partition", &number]);
    assert_eq!((code, &one["events"], &one["digest"]), (0, &json!(NEWEST), &Value::Null), "{one:#}");
    let (code, ann) = replay_tool(&database.url, &["verify", "--account", "ann/points"]);
    assert_eq!(
        (code, &ann["events"], &ann["accounts"], &ann["freezes"]),
        (0, &json!(8), &json!(1), &json!(1)),
        "{ann:#}"
    );
    for partial in [&digest, &one, &ann] {
        assert!(partial["not_checked"].as_array().is_some_and(|left_out| !left_out.is_empty()), "{partial:#}");
    }
    let is_index_compared = database.url.starts_with("sqlite");
    assert_eq!(whole["not_checked"].as_array().map(Vec::len), Some(usize::from(!is_index_compared)));
    let (code, nobody) = replay_tool(&database.url, &["verify", "--account", "nobody/points"]);
    assert_eq!((code, nobody), (2, Value::Null));
    let log = Database::open_existing(&database.url).await.expect("a ledger");
    let events = log.events_after(p, Position::ZERO, 100).await.expect("events");
    log.close().await;
    let since = events[4].recorded_at.to_string();
    let (code, newer) = replay_tool(&database.url, &["verify", "--since", &since]);
    assert_eq!((code, &newer["findings_count"]), (0, &json!(0)), "{newer:#}");
    let fewer = whole["events"].as_u64().expect("a number") - newer["events"].as_u64().expect("a number");
    assert_eq!(fewer, events.iter().filter(|event| event.recorded_at < events[4].recorded_at).count() as u64);
    for wrong in [
        ["--partition", "64"],
        ["--account", "ann"],
        ["--since", "yesterday"],
        ["--anchor", "nowhere.json"],
        ["--nats-url", "nats://127.0.0.1:1"],
    ] {
        assert_eq!(replay_tool(&database.url, &["verify", wrong[0], wrong[1]]), (2, Value::Null), "{wrong:?}");
    }

    // What is damaged is found by each that looks at it, and by no other.
    vandal
        .lie(p, 9, &|event, _| {
            if event.position.0 == 9 {
                event.remaining = Some(1);
            }
        })
        .await;
    for arguments in [&["--partition", &number][..], &["--since", &since], &["--account", "ann/points"]] {
        let arguments: Vec<_> = ["verify"].iter().chain(arguments).copied().collect();
        let (code, verified) = replay_tool(&database.url, &arguments);
        let is_since = arguments[1] == "--since";
        // Of a freeze from before that time it is not known what was left.
        assert_eq!(code, i32::from(!is_since), "{arguments:?}: {verified:#}");
        assert!(is_since || named(&verified, &[("relation_mismatch", p, Some(9))]), "{arguments:?}: {verified:#}");
    }
    vandal.undo().await;
    vandal.run(&[format!("update events set metadata = '[]' where partition = {p} and position = 8")]).await;
    let (other, busy) = (ledger.other.to_string(), ledger.busy.to_string());
    for (arguments, finds) in [
        (&["--partition", &number][..], true),
        (&["--since", &since], true),
        (&["--account", "ann/points", "--report", &report], true),
        (&["--partition", &other], false),
        (&["--partition", &busy], false),
    ] {
        let arguments: Vec<_> = ["verify"].iter().chain(arguments).copied().collect();
        let (code, verified) = replay_tool(&database.url, &arguments);
        assert_eq!(code, i32::from(finds), "{arguments:?}: {verified:#}");
        assert!(!finds || named(&verified, &[("hash_mismatch", p, Some(8))]), "{arguments:?}: {verified:#}");
    }
    let page = std::fs::read_to_string(&report).expect("a report");
    assert!(page.contains("hash_mismatch") && page.contains("Inconsistent"), "{page}");
}
