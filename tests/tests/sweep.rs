//! The log read as it lies in the database, all partitions at once, and the verification that is built on it.

use std::collections::BTreeMap;

use ledger_core::{Account, Event, Partition, Position};
use ledger_store::{
    Database, Ledger,
    index_rows::{KeySum, key_run},
    sweep::{Extent, READERS_MAX},
};
use serde_json::Value;
use tests::{
    on_both_databases,
    store::{NewDatabase, capture, credit, debit, freeze, refund, ticking_clock},
    tool,
    vandal::Vandal,
};

on_both_databases!(
    a_sweep_gives_each_event_once_and_as_it_is,
    as_many_readers_as_there_may_be_leave_room_for_others,
    a_sweep_knows_when_all_rows_were_put_elsewhere,
    a_row_of_a_huge_number_makes_no_end_of_chunks,
    the_key_index_comes_to_what_its_rows_do,
    what_agrees_is_not_looked_at_twice_and_what_does_not_is_named,
);

async fn start(database: &NewDatabase) -> Ledger {
    let database = Database::open(&database.url).await.expect("the database opens");
    Ledger::start(database, ticking_clock()).await.expect("the ledger starts")
}

/// Some accounts with orders; `name` keeps their keys apart from others'.
async fn work(ledger: &Ledger, name: &str, orders: u64) {
    for number in 0..orders {
        let (user, id) = (format!("user-{}", number % 37), format!("{name}.{number}"));
        ledger.execute(credit(&user, 1_000, &id)).await.expect("credited");
        let frozen = ledger.execute(freeze(&user, 500, &id)).await.expect("frozen").event.transaction_id;
        let paid = ledger.execute(capture(frozen, Some(200), number % 2 == 0, &id)).await.expect("captured").event;
        ledger.execute(refund(paid.transaction_id, Some(number % 200 + 1), &id)).await.expect("refunded");
        ledger.execute(debit(&user, 7, &format!("{id}.debit"))).await.expect("debited");
    }
}

/// All events by their places, read partition by partition.
async fn events(database: &Database) -> BTreeMap<(Partition, Position), Event> {
    let mut events = BTreeMap::new();
    let heads = database.heads().await.expect("heads");
    for partition in Partition::all() {
        let mut scan = database.scan(partition, Position::ZERO, heads[partition.index()].position);
        loop {
            let rows = scan.next().await.expect("read");
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let event = row.expect("a sound row");
                events.insert((partition, event.position), event);
            }
        }
    }
    events
}

async fn a_sweep_gives_each_event_once_and_as_it_is(database: NewDatabase) {
    let ledger = start(&database).await;
    work(&ledger, "first", 60).await;
    let opened = Database::open(&database.url).await.expect("the database opens");
    let expected = events(&opened).await;
    assert_eq!(expected.len(), 300);
    for extent in [Extent::Whole, Extent::Fold] {
        let sweep = opened.sweep(extent).await.expect("begun");
        // What is written meanwhile may be in it or not.
        work(&ledger, if extent == Extent::Whole { "second" } else { "third" }, 3).await;
        let mut found = BTreeMap::new();
        let mut sweepers = [sweep.sweeper().await.expect("connected"), sweep.sweeper().await.expect("connected")];
        let (mut chunk, mut numbers, mut ended) = (sweep.chunk(), Vec::new(), 0);
        for turn in 0.. {
            let Some(number) = sweepers[turn % 2].next(&mut chunk).await.expect("read") else {
                ended += 1;
                if ended == 2 {
                    break;
                }
                continue;
            };
            numbers.push(number);
            for raw in chunk.raw() {
                let event = chunk.event(raw).expect("a sound row");
                let Some(known) = expected.get(&(event.partition, event.position)) else { continue };
                let before = found.insert((event.partition, event.position), ());
                assert_eq!(before, None, "{event:?} came twice");
                let known = known.bare();
                if extent == Extent::Whole {
                    assert_eq!(event, known);
                    continue;
                }
                assert_eq!((event.after, event.amount, event.released), (known.after, known.amount, known.released));
                assert_eq!((event.account_id, event.event_type), (known.account_id, known.event_type));
                assert_eq!((event.remaining, event.related_id), (known.remaining, known.related_id));
                assert_eq!((event.previous_position, event.recorded_at), (known.previous_position, known.recorded_at));
                if known.after.version == 1 {
                    assert_eq!((event.user_id, event.credit_type), (known.user_id, known.credit_type));
                }
                if known.after.frozen > 0 {
                    assert_eq!((event.transaction_id, event.expires_at), (known.transaction_id, known.expires_at));
                    assert_eq!((event.business_code, event.business_id), (known.business_code, known.business_id));
                }
            }
        }
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
        assert_eq!(found.len(), expected.len());
    }
    ledger.stop().await;
}

async fn as_many_readers_as_there_may_be_leave_room_for_others(database: NewDatabase) {
    let ledger = start(&database).await;
    work(&ledger, "first", 5).await;
    let opened = Database::open(&database.url).await.expect("the database opens");
    let sweep = opened.sweep(Extent::Whole).await.expect("begun");
    // Each has its connection until the last has read the last row.
    let mut readers = Vec::new();
    for _ in 0..READERS_MAX {
        readers.push(sweep.sweeper().await.expect("connected"));
    }
    assert_eq!(events(&opened).await.len(), 25);
    let partition = Partition::all().next().expect("64");
    opened.key_sums(&[(partition, Position(1))]).await.expect("read beside them");
    let mut chunk = sweep.chunk();
    let mut rows = 0;
    while readers[0].next(&mut chunk).await.expect("read").is_some() {
        rows += chunk.raw().count();
    }
    assert_eq!(rows, 25);
    drop(readers);
    ledger.stop().await;
}

async fn a_sweep_knows_when_all_rows_were_put_elsewhere(database: NewDatabase) {
    let ledger = start(&database).await;
    work(&ledger, "first", 5).await;
    let opened = Database::open(&database.url).await.expect("the database opens");
    let sweep = opened.sweep(Extent::Whole).await.expect("begun");
    work(&ledger, "second", 5).await;
    assert!(sweep.is_of_the_same_table().await.expect("read"));
    ledger.stop().await;
    let vacuum = if database.url.starts_with("sqlite") { "vacuum" } else { "vacuum full events" };
    Vandal::in_place(&database.url).run(&[vacuum]).await;
    assert!(!sweep.is_of_the_same_table().await.expect("read"));
    let (code, out, err) = verify(&database);
    assert_eq!((code, kinds(&out)), (0, vec![]), "{out} {err}");
    assert!(err.contains("doubtful=0"), "{err}");
}

async fn a_row_of_a_huge_number_makes_no_end_of_chunks(database: NewDatabase) {
    if !database.url.starts_with("sqlite") {
        return;
    }
    let ledger = start(&database).await;
    work(&ledger, "first", 5).await;
    ledger.stop().await;
    let vandal = Vandal::in_place(&database.url);
    let newest = "update events set rowid = {} where rowid = (select max(rowid) from events)";
    for (number, is_compared) in [("1000000", true), ("1125899906842624", false), ("-1125899906842624", false)] {
        vandal.run(&[newest.replace("{}", number)]).await;
        let (code, out, err) = verify(&database);
        assert_eq!((code, kinds(&out)), (0, vec![]), "{number}: {out} {err}");
        let document: Value = serde_json::from_str(&out).expect("JSON");
        let left_out = document["not_checked"].as_array().map_or(0, Vec::len);
        assert_eq!(left_out, usize::from(!is_compared), "{number}: {out}");
    }
}

async fn the_key_index_comes_to_what_its_rows_do(database: NewDatabase) {
    let ledger = start(&database).await;
    work(&ledger, "first", 40).await;
    // The indexes are written by then.
    ledger.stop().await;
    let opened = Database::open(&database.url).await.expect("the database opens");
    let mut all = 0;
    for (partition, head) in Partition::all().zip(opened.heads().await.expect("heads")) {
        let rows = opened.key_rows(partition, key_run(Position(1))).await.expect("read");
        all += rows.len();
        // Up to the last row, and up to the one before: then it is a later one.
        for to in [head.position, Position(head.position.0.saturating_sub(1))] {
            let (mut expected, mut later) = (KeySum::default(), 0);
            for row in &rows {
                if row.position <= to.0.cast_signed() { expected.add(row) } else { later += 1 }
            }
            let sums = opened.key_sums(&[(partition, to)]).await.expect("read").pop().expect("of one partition");
            let found: Vec<_> = sums.runs.into_iter().filter(|(_, sum)| sum.rows > 0).collect();
            let expected = if expected.rows == 0 { vec![] } else { vec![(0, expected)] };
            assert_eq!((found, sums.later), (expected, later), "partition {partition} to {to}");
        }
    }
    assert!(all >= 200, "{all} rows of the key index");
}

/// What verification says, and how many partitions it looked at twice.
fn verify(database: &NewDatabase) -> (i32, String, String) {
    let mut command = tool::command(database, &["--json", "verify"]);
    let ran =
        command.env("RUST_LOG", "replay_tool=info").env("NO_COLOR", "1").output().expect("the replay-tool starts");
    let [out, err] = [ran.stdout, ran.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    (ran.status.code().unwrap_or(-1), out, err)
}

/// The findings' kinds and partitions.
fn kinds(out: &str) -> Vec<(String, u64)> {
    let document: Value = serde_json::from_str(out).expect("JSON");
    let findings = document["findings"].as_array().cloned().unwrap_or_default();
    let of = |finding: &Value| {
        (finding["kind"].as_str().unwrap_or_default().to_owned(), finding["partition"].as_u64().unwrap_or(99))
    };
    findings.iter().map(of).collect()
}

async fn what_agrees_is_not_looked_at_twice_and_what_does_not_is_named(database: NewDatabase) {
    let ledger = start(&database).await;
    work(&ledger, "first", 80).await;
    ledger.stop().await;
    let rebuilt = tool::run(&database, &["rebuild"]);
    assert_eq!(rebuilt.code, 0, "{rebuilt:?}");
    let is_sound = |when: &str| {
        let (code, out, err) = verify(&database);
        assert_eq!((code, kinds(&out)), (0, vec![]), "{when}: {out} {err}");
        assert!(err.contains("doubtful=0"), "{when}: {err}");
        serde_json::from_str::<Value>(&out).expect("JSON")
    };
    let before = is_sound("as it was written");
    assert_eq!(before["events"], 400);

    // Room that was used again: rows lie before or after where they were written.
    let vandal = Vandal::arrive(&database.url).await;
    vandal
        .run(&[
            "create table moved as select * from events where position % 5 = 2",
            "delete from events where position % 5 = 2",
            "insert into events select * from moved",
            "drop table moved",
        ])
        .await;
    let after = is_sound("in another order");
    for field in ["events", "accounts", "freezes", "digest"] {
        assert_eq!(after[field], before[field], "{field}");
    }

    let partition = Account::new("user-3", "points").expect("valid").partition();
    let at = format!("where partition = {partition} and position = 3");
    for (statement, kind) in [
        (format!("delete from events {at}"), "gap"),
        (format!("update events set actor = 'another' {at}"), "hash_mismatch"),
        // Of the rows that are hashed together only this one is doubted.
        (format!("update events set schema_version = schema_version + 1 {at}"), "hash_mismatch"),
        (format!("update events set balance = balance + 1, available = available + 1 {at}"), "hash_mismatch"),
        (
            format!(
                "update balances set balance = balance + 1, available = available + 1 where partition = {partition}"
            ),
            "balance_mismatch",
        ),
        (format!("delete from freezes where partition = {partition}"), "freeze_missing"),
        (format!("update freezes set user_id = 'another' where partition = {partition}"), "freeze_mismatch"),
        (format!("delete from key_positions where partition = {partition} and position = 2"), "index_missing"),
        (format!("delete from related_positions where partition = {partition}"), "index_missing"),
        (format!("update account_positions set position = 1 where partition = {partition}"), "index_mismatch"),
        (format!("update partition_heads set position = position - 1 where partition = {partition}"), "beyond_head"),
    ] {
        vandal.run(&[&statement]).await;
        let (code, out, err) = verify(&database);
        let found = kinds(&out);
        assert_eq!(code, 1, "{statement}: {out} {err}");
        assert!(found.iter().any(|(found, _)| found == kind), "{statement}: {found:?}");
        assert!(found.iter().all(|(_, of)| *of == u64::from(partition.number())), "{statement}: {found:?}");
        assert!(err.contains("doubtful=1"), "{statement}: {err}");
        vandal.undo().await;
    }
    is_sound("after all was put back");
}
