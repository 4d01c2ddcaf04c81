//! Tables that change their places while they are read.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tests::{
    replay_tool,
    store::{self, NewDatabase},
};

use crate::ledger::ledger;

/// What a rebuild's last transaction does, up to its commit.
const SWITCH: &str = "begin;
    lock table projection_checkpoints in exclusive mode;
    create table balances_next (like balances including all);
    insert into balances_next select * from balances;
    alter table balances rename to balances_old;
    alter table balances_next rename to balances";

async fn connect(database: &NewDatabase) -> PgConnection {
    PgConnection::connect(&database.url).await.expect("the server runs")
}

/// SQLite gives every reader one state of everything.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_rebuild_finds_its_tables_whole() {
    let database = store::postgres();
    let partition = ledger(&database, &[]).await.partition.to_string();
    let (mut rebuild, mut watch) = (connect(&database).await, connect(&database).await);
    for arguments in [&["verify", "--account", "ann/points"][..], &["verify", "--partition", &partition], &["verify"]] {
        sqlx::raw_sql(SWITCH).execute(&mut rebuild).await.expect("nobody else uses the tables");
        let (url, owned) = (database.url.clone(), arguments.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let verified = tokio::task::spawn_blocking(move || {
            replay_tool(&url, &owned.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let waits = async {
            let waiting = "select count(*) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock'";
            while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watch).await.expect("an answer") == 0 {
                assert!(!verified.is_finished(), "{arguments:?} did not wait");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waits).await.expect("it comes to the tables");
        sqlx::raw_sql("commit; drop table balances_old").execute(&mut rebuild).await.expect("committed");
        let (code, verified) = verified.await.expect("no panic");
        assert_eq!(code, 0, "{arguments:?}: {verified:#}");
    }
}
