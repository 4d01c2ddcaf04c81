//! What these tests do to databases by hand.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use tests::{
    Service,
    store::{self, NewDatabase},
};

fn is_sqlite(database: &NewDatabase) -> bool {
    database.url.starts_with("sqlite")
}

/// A new, empty database of the same kind.
pub(crate) fn like(database: &NewDatabase) -> NewDatabase {
    if is_sqlite(database) { store::sqlite() } else { store::postgres() }
}

/// A new database of the same kind that holds a ledger.
pub(crate) async fn filled(database: &NewDatabase) -> NewDatabase {
    let filled = like(database);
    let mut service = Service::start(&filled.url, &[]);
    service.credit("ann", 1, "1").await;
    service.terminate();
    filled
}

pub(crate) async fn run(database: &NewDatabase, statement: &str) {
    let statement = AssertSqlSafe(statement.to_owned());
    if is_sqlite(database) {
        let url = format!("{}?mode=rwc", database.url);
        let mut connection = SqliteConnection::connect(&url).await.expect("the file opens");
        sqlx::raw_sql(statement).execute(&mut connection).await.expect("done");
        connection.close().await.expect("closed");
    } else {
        let mut connection = PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::raw_sql(statement).execute(&mut connection).await.expect("done");
        connection.close().await.expect("closed");
    }
}

/// The one number that a statement asks for.
pub(crate) async fn number(database: &NewDatabase, statement: &str) -> i64 {
    if is_sqlite(database) {
        let mut connection = SqliteConnection::connect(&database.url).await.expect("the file opens");
        let number = sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).fetch_one(&mut connection).await;
        connection.close().await.expect("closed");
        number.expect("a number")
    } else {
        let statement = AssertSqlSafe(format!("select ({statement})::bigint"));
        let mut connection = PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query_scalar(statement).fetch_one(&mut connection).await.expect("a number")
    }
}

/// Runs a statement as a vandal would: with the triggers switched off, and on again. Tells whether it could be run.
pub(crate) async fn vandalise(database: &NewDatabase, statement: &str) -> bool {
    let statement = AssertSqlSafe(statement.to_owned());
    if is_sqlite(database) {
        let mut connection = SqliteConnection::connect(&database.url).await.expect("the file opens");
        let triggers = sqlx::query("select name, sql from sqlite_master where type = 'trigger'")
            .fetch_all(&mut connection)
            .await
            .expect("triggers are listed");
        for trigger in &triggers {
            let drop = format!("drop trigger {}", trigger.get::<String, _>(0));
            sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.expect("dropped");
        }
        let done = sqlx::raw_sql(statement).execute(&mut connection).await.is_ok();
        for trigger in &triggers {
            sqlx::query(AssertSqlSafe(trigger.get::<String, _>(1))).execute(&mut connection).await.expect("made again");
        }
        connection.close().await.expect("closed");
        done
    } else {
        let mut connection = PgConnection::connect(&database.url).await.expect("the database opens");
        sqlx::query("alter table events disable trigger all").execute(&mut connection).await.expect("switched off");
        let done = sqlx::raw_sql(statement).execute(&mut connection).await.is_ok();
        let on = "alter table events enable always trigger events_are_append_only, \
            enable always trigger events_are_never_truncated";
        sqlx::query(on).execute(&mut connection).await.expect("switched on");
        done
    }
}
