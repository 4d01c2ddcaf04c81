//! A log in the place of a ledger that is there.

use std::path::Path;

use ledger_core::{Epoch, Event, Hash, Head, PARTITIONS};
use ledger_store::{
    Database,
    restore::{RestoreError, Target, points, restore},
};
use serde_json::json;
use tests::{
    Service, on_both_databases, replay_tool,
    rewind::{log_of, new_log},
    store::NewDatabase,
    verify_consistent,
};

use super::{credits, order, sql};

on_both_databases!(
    a_ledger_that_is_replaced_is_kept_aside,
    a_log_that_does_not_follow_is_refused_and_nothing_is_changed,
);

async fn a_ledger_that_is_replaced_is_kept_aside(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    credits(&service, 0, 200, 20).await;
    order(&service, "ann").await;
    service.terminate();
    let (events, heads) = log_of(&database.url).await;
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 77, "lost").await;
    let is_sqlite = database.url.starts_with("sqlite");
    if is_sqlite {
        let refused = restore(&database.url, Target::Replace, new_log(events.clone(), heads, 7)).await;
        assert!(matches!(refused, Err(RestoreError::InUse(_))), "{refused:?}");
        service.credit("ann", 1, "still served").await;
        service.terminate();
    }
    let hash = if is_sqlite { "zeroblob(32)" } else { "decode(repeat('00', 32), 'hex')" };
    let key = format!(
        "insert into api_keys (prefix, hash, label, scopes, created_at) values ('mine', {hash}, 'l', 's', '2026-01-01T00:00:00.000000Z')"
    );
    sql::run(&database, &key).await;
    let restored = restore(&database.url, Target::Replace, new_log(events.clone(), heads, 7)).await.expect("replaced");
    assert_eq!(restored.events, 204);
    let keys = sql::number(&database, "select count(*) from api_keys where prefix = 'mine'").await;
    assert_eq!(keys, 1, "keys are taken along");
    let kept = restored.kept.expect("it is kept");
    if is_sqlite {
        let file = database.url.strip_prefix("sqlite://").expect("a file");
        assert_eq!(kept, format!("{file}.before-7"));
        assert!(!Path::new(&format!("{file}.importing")).exists());
        assert_eq!(verify_consistent(&format!("sqlite://{kept}"))["events"], 206);
    } else {
        assert_eq!(kept, "ledger_before_7");
        assert_eq!(sql::number(&database, "select count(*) from ledger_before_7.events").await, 205);
        // It has done nothing for a second by then, so it writes its indexes: none of what it knows may get into these.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        // The service that still runs sees that this is not the ledger that it knew, and writes nothing more.
        let command = json!({ "user_id": "ann", "credit_type": "points", "amount": 1, "business_code": "too.late", "business_id": "1" });
        // It may have seen the key by now, and ask for it as long as it is there.
        sql::run(&database, "delete from api_keys").await;
        let refused = async {
            loop {
                let refused = service.post("/v1/credits", &command).await;
                if refused.status.as_u16() != 401 {
                    return refused;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let refused =
            tokio::time::timeout(std::time::Duration::from_secs(60), refused).await.expect("keys are read again");
        assert_eq!((refused.status.as_u16(), refused.text("code")), (503, "store_unavailable"), "{}", refused.body);
        service.kill9();
    }
    let (after, next) = log_of(&database.url).await;
    assert_eq!(after, events, "exactly these events");
    assert!(next.iter().zip(&heads).all(|(next, head)| next.epoch == Epoch(7) && next.position == head.position));
    // Or the service would ask for it.
    sql::run(&database, "delete from api_keys").await;
    let (code, _) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!(code, 0);
    verify_consistent(&database.url);
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 1, "after").await;
    credits(&service, 300, 90, 20).await;
    service.terminate();
    verify_consistent(&database.url);
    // Again: the log tells of the first restore, the table of both, and of one that never was.
    let (events, heads) = log_of(&database.url).await;
    let some = events.iter().position(|events| !events.is_empty()).expect("a partition with events");
    let never = format!("insert into restores values ({some}, 5, 1, {hash}, '2026-01-01T00:00:00.000000Z', 'never')");
    sql::run(&database, &never).await;
    restore(&database.url, Target::Replace, new_log(events, heads, 8)).await.expect("replaced");
    let opened = Database::open_existing(&database.url).await.expect("it opens");
    let known = points(&opened).await.expect("restores");
    opened.close().await;
    assert_eq!(known.len(), 2 * PARTITIONS, "what never was is not taken along");
    for epoch in [7, 8] {
        let of_epoch: Vec<_> = known.iter().filter(|point| point.head.epoch == Epoch(epoch)).collect();
        assert_eq!(of_epoch.len(), PARTITIONS);
        assert!(of_epoch.iter().all(|point| point.archive_id == "test"));
    }
    verify_consistent(&database.url);
}

async fn a_log_that_does_not_follow_is_refused_and_nothing_is_changed(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    credits(&service, 0, 300, 10).await;
    service.terminate();
    let (events, heads) = log_of(&database.url).await;
    let long = events.iter().position(|events| events.len() > 3).expect("a partition with some events");
    let before = verify_consistent(&database.url);
    type Damage<'d> = &'d dyn Fn(&mut Vec<Vec<Event>>, &mut [Head; PARTITIONS]);
    let damages: [(&str, Damage<'_>); 7] = [
        ("an event left out", &|events, _| drop(events[long].remove(1))),
        ("an event twice", &|events, _| {
            let first = events[long][0].clone();
            events[long].insert(1, first);
        }),
        ("an event of another partition", &|events, _| {
            let other = (0..PARTITIONS).find(|index| *index != long && !events[*index].is_empty()).expect("another");
            events[long][0] = events[other][0].clone();
        }),
        ("the newest missing", &|events, _| drop(events[long].pop())),
        ("an amount changed", &|events, _| events[long][1].released = 1),
        ("another head", &|_, heads| heads[long].hash = Hash([7; 32])),
        ("an event of a later epoch", &|events, _| events[long][2].epoch = Epoch(9)),
    ];
    for (what, damage) in damages {
        let (mut events, mut heads) = (events.clone(), heads);
        damage(&mut events, &mut heads);
        let refused = restore(&database.url, Target::Replace, new_log(events, heads, 5)).await;
        assert!(matches!(refused, Err(RestoreError::Refused(_))), "{what}: {refused:?}");
        assert_eq!(verify_consistent(&database.url)["digest"], before["digest"], "{what}");
    }
    let refused = restore(&database.url, Target::Empty, new_log(events, heads, 5)).await;
    assert!(matches!(refused, Err(RestoreError::NotEmpty(_))), "{refused:?}");
}
