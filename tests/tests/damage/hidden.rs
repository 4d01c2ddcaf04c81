//! Damage that reading the log by its key does not show, or reading it as it lies does not.

use ledger_core::{Partition, operation};
use serde_json::{Value, json};
use tests::{Service, replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent};
use uuid::Uuid;

use crate::ledger::{Ledger, account, ledger, wait_until_projected};

/// The kinds and partitions of what is found, and whether each says what mends it.
fn found(url: &str, arguments: &[&str]) -> (i32, Vec<(String, u64)>, Value) {
    let (code, verified) = replay_tool(url, arguments);
    let findings = verified["findings"].as_array().cloned().unwrap_or_default();
    assert!(findings.iter().all(|finding| finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty())));
    let of = |finding: &Value| {
        (finding["kind"].as_str().unwrap_or_default().to_owned(), finding["partition"].as_u64().unwrap_or(99))
    };
    (code, findings.iter().map(of).collect(), verified)
}

pub(crate) async fn a_table_and_its_key_that_disagree_are_named(database: NewDatabase) {
    let ledger = ledger(&database, &[]).await;
    let Ledger { partition: p, other: q, .. } = ledger;
    verify_consistent(&database.url);
    let vandal = Vandal::arrive(&database.url).await;
    let here = format!("partition = {p} and position = 5");
    let copied = |set: &str| {
        vec![
            format!("create table a_row as select * from events where {here}"),
            format!("update a_row set {set}"),
            "insert into EVENTS select * from a_row".to_owned(),
            "drop table a_row".to_owned(),
        ]
    };
    let disagrees = |of: Partition| ("primary_key_mismatch".to_owned(), u64::from(of.number()));
    for (what, edits, expected) in [
        (
            "a row's partition, to where the log has not come yet",
            vec![format!("update EVENTS set partition = {q} where partition = {p} and position = 9")],
            vec![disagrees(p), disagrees(q)],
        ),
        (
            "a row's partition, to where another one is",
            vec![format!("update EVENTS set partition = {} where {here}", ledger.busy)],
            vec![disagrees(p), disagrees(ledger.busy)],
        ),
        ("a row twice", copied("version = version"), vec![disagrees(p)]),
        ("a row after the head", copied("position = 11"), vec![disagrees(p)]),
        ("a row of no partition", copied("partition = 77"), vec![disagrees(Partition::all().next().expect("64"))]),
    ] {
        vandal.behind_the_key(&edits).await;
        let (code, mut kinds, verified) = found(&database.url, &["verify"]);
        let mut expected = expected;
        kinds.sort_unstable();
        expected.sort_unstable();
        assert_eq!((code, kinds), (1, expected), "{what}: {verified:#}");
        vandal.undo().await;
        verify_consistent(&database.url);
    }
    // An index cell alone: there is no such hand on PostgreSQL, and verification says there that it does not look.
    let said = verify_consistent(&database.url)["not_checked"].clone();
    if !vandal.flip_key_cells(&here).await {
        let said = said[0].as_str().expect("that the index is not compared");
        assert!(said.contains("pg_amcheck --heapallindexed"), "{said}");
        return;
    }
    assert_eq!(said, json!([]));
    let (code, kinds, verified) = found(&database.url, &["verify"]);
    assert_eq!((code, kinds), (1, vec![disagrees(p)]), "{verified:#}");
    assert!(verified["findings"][0]["remedy"].as_str().is_some_and(|remedy| remedy.contains("reindex events")));
    vandal.run(&["reindex events"]).await;
    verify_consistent(&database.url);
}

pub(crate) async fn a_state_whose_seal_is_broken_is_not_believed_and_no_finding(database: NewDatabase) {
    let ledger = ledger(&database, &[]).await;
    let vandal = Vandal::arrive(&database.url).await;
    let ann = format!("partition = {} and account_id = '{}'", ledger.partition, account("ann").id());
    for edit in ["balance = balance + 1", "seal = 0", "version = 0, balance = 0, frozen = 0, seal = 0", "locked = NOT"]
    {
        let edit = edit.replace("NOT", if database.url.starts_with("sqlite") { "1" } else { "true" });
        vandal.run(&[format!("update account_positions set {edit} where {ann}")]).await;
        verify_consistent(&database.url);
        vandal.undo().await;
    }
    // Those that a restore wrote have none, and those that a service wrote since have.
    vandal.run(&["update account_positions set version = 0, balance = 0, frozen = 0, seal = 0"]).await;
    verify_consistent(&database.url);
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 3, "after").await;
    wait_until_projected(&service).await;
    verify_consistent(&database.url);
}

pub(crate) async fn a_compensation_whose_row_is_gone_is_named_and_written_again(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let id = Uuid::from_u128(77);
    let debit = |id: Uuid, number: u32| {
        json!({ "user_id": "ann", "credit_type": "points", "amount": 5, "business_code": "order.pay",
            "business_id": format!("{id}.{number}"), "operation_id": id })
    };
    let single = Uuid::from_u128(78);
    for (id, debits) in [(id, 3), (single, 1)] {
        for number in 0..debits {
            service.post("/v1/debits", &debit(id, number)).await.expect(201);
        }
        let done = service.post(&format!("/v1/operations/{id}/compensate"), &json!({ "reason": "out" })).await;
        assert_eq!(done.expect(200)["status"], "compensated");
    }
    let number = operation::partition(id).number();
    wait_until_projected(&service).await;
    service.terminate();
    verify_consistent(&database.url);
    let vandal = Vandal::arrive(&database.url).await;
    let of = format!("where operation_id = '{id}'");
    let other = Uuid::from_u128(79);
    let untold = format!(
        "insert into compensations select partition, '{other}', compensated_at, request_id, actor, reason, reversals \
         from compensations {of}"
    );
    let at = account("ann").partition().number();
    // Only this row tells that an operation of which nothing was open is closed.
    let closed = Uuid::from_u128(80);
    let alone = format!(
        "insert into compensations select {}, '{closed}', compensated_at, request_id, actor, reason, 0 \
         from compensations {of}",
        operation::partition(closed)
    );
    vandal.run(&[alone]).await;
    verify_consistent(&database.url);
    let mut edits = vec![
        (format!("delete from compensations {of}"), "compensation_missing", at),
        (format!("update compensations set reversals = 0 {of}"), "compensation_mismatch", at),
        (format!("update compensations set partition = {} {of}", (number + 1) % 64), "compensation_missing", at),
        (untold, "compensation_unexpected", operation::partition(other).number()),
    ];
    if database.url.starts_with("sqlite") {
        // PostgreSQL takes nothing else than times and ids there.
        let nonsense =
            |column: &str, id: Uuid| format!("update compensations set {column} = '?' where operation_id = '{id}'");
        let of_closed = operation::partition(closed).number();
        let in_another_form =
            |id: Uuid| format!("update compensations set operation_id = '{}' where operation_id = '{id}'", id.simple());
        edits.extend([
            (nonsense("compensated_at", id), "compensation_mismatch", at),
            (nonsense("operation_id", id), "compensation_missing", at),
            (nonsense("compensated_at", closed), "compensation_mismatch", of_closed),
            (in_another_form(id), "compensation_missing", at),
            (in_another_form(closed), "compensation_mismatch", of_closed),
        ]);
    }
    for (edit, kind, partition) in edits {
        vandal.run(&[&edit]).await;
        let (code, kinds, verified) = found(&database.url, &["verify"]);
        assert_eq!(code, 1, "{edit}: {verified:#}");
        assert!(kinds.contains(&(kind.to_owned(), partition.into())), "{edit}: {verified:#}");
        assert_eq!(verified["findings"][0]["remedy"], "replay-tool rebuild --compensations");
        let (code, mended) = replay_tool(&database.url, &["rebuild", "--compensations"]);
        assert_eq!(code, 0, "{edit}: {mended:#}");
        verify_consistent(&database.url);
    }
    let service = Service::start(&database.url, &[]);
    for id in [id, closed] {
        let late = service.post("/v1/debits", &debit(id, 9)).await.expect(409);
        assert_eq!(late["code"], "operation_compensated");
    }
}

/// What would tell that an operation was reversed may be what is damaged: its row is left alone.
pub(crate) async fn a_damaged_log_opens_no_operation_again(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let debit = |id: Uuid, number: u32| {
        json!({ "user_id": "ann", "credit_type": "points", "amount": 5, "business_code": "order.pay",
            "business_id": format!("{id}.{number}"), "operation_id": id })
    };
    // One that a batch reversed, and then one that an event reversed, which is the newest.
    let (several, single) = (Uuid::from_u128(77), Uuid::from_u128(78));
    for (id, debits) in [(several, 3), (single, 1)] {
        for number in 0..debits {
            service.post("/v1/debits", &debit(id, number)).await.expect(201);
        }
        let done = service.post(&format!("/v1/operations/{id}/compensate"), &json!({ "reason": "out" })).await;
        assert_eq!(done.expect(200)["status"], "compensated");
    }
    wait_until_projected(&service).await;
    service.terminate();
    verify_consistent(&database.url);
    let vandal = Vandal::arrive(&database.url).await;
    let first_of = |id: Uuid| {
        format!("operation_id = '{id}' and business_code = 'system.compensation' and coalesce(batch_index, 0) = 0")
    };
    let p = account("ann").partition();
    let head_set_back = format!(
        "update partition_heads set position = position - 1, hash = (select e.hash from events e \
         where e.partition = partition_heads.partition and e.position = partition_heads.position - 1) \
         where partition = {p}"
    );
    let log_put_back = ["events", "partition_heads"]
        .map(|table| [format!("delete from {table}"), format!("insert into {table} select * from kept_{table}")])
        .concat();
    let rebuild = || replay_tool(&database.url, &["rebuild", "--compensations"]);
    for damage in [
        format!("update events set type = 'gifted' where {}", first_of(several)),
        format!("update events set type = 'gifted' where {}", first_of(single)),
        format!("update events set business_code = 'other' where {}", first_of(several)),
        format!("update events set business_code = 'other' where {}", first_of(single)),
        format!("delete from events where {}", first_of(several)),
        format!("delete from events where {}", first_of(single)),
        head_set_back,
    ] {
        vandal.run(&[&damage]).await;
        let (code, refused) = rebuild();
        assert_eq!((code, &refused["rebuilt"]), (1, &json!(false)), "{damage}: {refused:#}");
        let why = refused["why"].as_str().unwrap_or_default();
        assert!(why.contains(&format!("partition {p}")) && why.contains("run replay-tool verify"), "{damage}: {why}");
        // With the log as it was, every row is there that it tells of.
        vandal.run(&log_put_back).await;
        verify_consistent(&database.url);
    }
    let (code, rebuilt) = rebuild();
    assert_eq!((code, &rebuilt["rows_mended"]), (0, &json!(0)), "{rebuilt:#}");
    let service = Service::start(&database.url, &[]);
    for id in [several, single] {
        let late = service.post("/v1/debits", &debit(id, 9)).await.expect(409);
        assert_eq!(late["code"], "operation_compensated");
    }
}
