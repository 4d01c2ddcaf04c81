//! Events that stand in the table, and that its primary key does not name.

use std::fs;

use serde_json::{Value, json};
use tests::{replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent};

use super::{Desk, archived_and_gone_on, text};

pub(crate) async fn what_the_primary_key_does_not_name_is_not_left_out(database: NewDatabase) {
    let desk = Desk::new();
    let (archive, partition, newest) = archived_and_gone_on(&database, &desk, &[]).await;
    let before = verify_consistent(&database.url);
    // It tells of as much as the database's own heads, and before them.
    let anchor = desk.path("heads.json");
    let (code, heads) = replay_tool(&database.url, &["heads", "--out", text(&anchor)]);
    assert_eq!(code, 0, "{heads:#}");
    let vandal = Vandal::in_place(&database.url);
    let reindex = if database.url.starts_with("sqlite") { "reindex events" } else { "reindex table events" };
    for (position, report) in [(newest, "newest"), (newest - 2, "between")] {
        let here = format!("partition = {partition} and position = {position}");
        let edits = [
            format!("create table a_row as select * from events where {here}"),
            format!("delete from events where {here}"),
            "insert into EVENTS select * from a_row".to_owned(),
            "drop table a_row".to_owned(),
        ];
        vandal.behind_the_key(&edits).await;
        let recover = || desk.recover(&database.url, &archive, report, &["--anchor", text(&anchor)]);
        let (code, printed) = recover();
        assert_eq!((code, printed), (2, Value::Null), "{report}");
        let steps = fs::read(desk.path(&format!("{report}/steps.json"))).expect("written");
        let steps: Value = serde_json::from_slice(&steps).expect("JSON");
        let why = steps["why"].as_str().expect("said");
        let place = format!("partition {partition} up to position {newest}");
        assert!(why.contains(reindex) && why.contains("--replace") && why.contains(&place), "{why}");
        // Nothing was touched.
        assert!(!desk.path(&format!("{report}/backup")).exists(), "{report}");

        vandal.run(&[reindex]).await;
        let after = verify_consistent(&database.url);
        assert_eq!((&after["digest"], &after["events"]), (&before["digest"], &before["events"]), "{report}");
        let (_, now) = replay_tool(&database.url, &["heads"]);
        assert_eq!(now["heads"], heads["heads"], "{report}");
        let (code, recovered) = recover();
        assert_eq!((code, &recovered["lost"]["positions"]), (0, &json!(0)), "{report}: {recovered:#}");
        // At most the read models were behind.
        assert_ne!(recovered["action"], "restored", "{report}: {recovered:#}");
    }
}
