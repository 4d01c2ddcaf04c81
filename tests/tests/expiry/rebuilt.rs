//! Read models that are made anew under the look for what is due.

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection};
use tests::{Service, on_both_databases, replay_tool, store::NewDatabase, verify_consistent};

use crate::{freeze, is_settled, now_text, number, releases, until};

on_both_databases!(a_freeze_that_was_missing_in_the_read_model_is_released_after_a_rebuild);

async fn execute(database: &NewDatabase, statement: &str) -> u64 {
    let statement = AssertSqlSafe(statement.to_owned());
    if database.url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&database.url).await.expect("the file opens");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("it is done").rows_affected();
        connection.close().await.expect("closed");
        done
    } else {
        let mut connection = sqlx::PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query(statement).execute(&mut connection).await.expect("it is done").rows_affected()
    }
}

/// How many indexes over what is due the served table has.
async fn indexes(database: &NewDatabase) -> i64 {
    let query = if database.url.starts_with("sqlite") {
        "select count(*) from sqlite_master where type = 'index' and tbl_name = 'freezes' and name like 'freezes_due%' \
         and sql like '%(partition, expires_at, position) where expires_at is not null'"
    } else {
        "select count(*) from pg_indexes where tablename = 'freezes' and indexname = 'freezes_due' \
         and indexdef like '%(partition, expires_at, %position%) WHERE (expires_at IS NOT NULL)'"
    };
    number(database, query).await
}

async fn a_freeze_that_was_missing_in_the_read_model_is_released_after_a_rebuild(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    let missing = freeze(&service, "ann", 10, "missing", json!({ "expires_in_seconds": 4 })).await;
    until("the read model", || async { number(&database, "select count(*) from freezes").await == 1 }).await;
    assert_eq!(execute(&database, "delete from freezes where business_id = 'missing'").await, 1);
    // Another one of the same partition that expires later moves the look past it.
    let later = freeze(&service, "ann", 20, "later", json!({ "expires_in_seconds": 5 })).await;
    until("the release of the other", || is_settled(&service, &later)).await;
    assert!(now_text().as_str() > missing["expires_at"].as_str().expect("it has one"));
    assert_eq!(releases(&database).await, 1);
    assert_eq!(indexes(&database).await, 1);

    // Twice: on SQLite two names of the index take turns.
    for _ in 0..2 {
        let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
        assert_eq!(code, 0, "{rebuilt:#}");
        assert_eq!(indexes(&database).await, 1);
    }
    until("the release", || is_settled(&service, &missing)).await;
    assert_eq!(releases(&database).await, 2);
    assert_eq!(service.holdings("ann").await, (1_000, 0, 1_000));
    let after = freeze(&service, "ann", 30, "after", json!({ "expires_in_seconds": 1 })).await;
    until("a release from the new table", || is_settled(&service, &after)).await;
    verify_consistent(&database.url);

    // A restore makes the index, too.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archive = folder.path().join("archive");
    let archive = archive.to_str().expect("a plain path");
    assert_eq!(replay_tool(&database.url, &["export", "--out", archive]).0, 0);
    let copy = if database.url.starts_with("sqlite") { tests::store::sqlite() } else { tests::store::postgres() };
    let (code, imported) = replay_tool(&copy.url, &["import", "--from", archive]);
    assert_eq!(code, 0, "{imported:#}");
    assert_eq!(indexes(&copy).await, 1);
}
