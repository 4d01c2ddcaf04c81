//! The ledger's rows inserted into a SQLite file that keeps its rules by unique indexes.

use std::{collections::HashMap, fs, path::Path, sync::Arc, time::Instant};

use futures::TryStreamExt;
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, TypeInfo, ValueRef,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};

use crate::figures::Figures;

/// Rows of one insert statement, as the ledger's.
const INSERT_ROWS: usize = 256;

/// One insert statement: how many rows it has, and their values.
struct Insert {
    rows: usize,
    values: SqliteArguments,
}

/// Inserts the ledger's first `rows` rows, in the order in which they were made, into a new file in `folder`, in
/// durable transactions of `chunk` rows: rows per second, without the time that reading them took.
///
/// The table is the ledger's own, without its triggers, and with the two rules that a table of events keeps by unique
/// indexes: one event for a key and one for a version. The statements' values are ready before the clock starts.
///
/// # Panics
///
/// When a file cannot be read or written, or the ledger holds fewer rows.
pub(crate) async fn naive_insert(ledger_file: &Path, folder: &Path, rows: usize, chunk: usize) -> Figures {
    let (table, columns, transactions) = read(ledger_file, rows, chunk).await;
    let file = folder.join("naive.db");
    for suffix in ["", "-wal", "-shm"] {
        // What an earlier run left, if there was one.
        let _ = fs::remove_file(folder.join(format!("naive.db{suffix}")));
    }
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a new SQLite file");
    for statement in [
        &*table,
        "create unique index events_by_key on events (account_id, business_code, business_id)",
        "create unique index events_by_version on events (account_id, version)",
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("the table can be made");
    }

    // One statement for the full inserts, and one for each rest that a transaction ends with.
    let row = format!("({})", vec!["?"; columns].join(", "));
    let statements: HashMap<usize, Arc<str>> = transactions
        .iter()
        .flatten()
        .map(|insert| {
            (insert.rows, format!("insert into events values {}", vec![&*row; insert.rows].join(", ")).into())
        })
        .collect();
    let start = Instant::now();
    for transaction in transactions {
        sqlx::query("begin immediate").execute(&mut connection).await.expect("nobody else writes");
        for Insert { rows, values } in transaction {
            let statement = AssertSqlSafe(statements[&rows].clone());
            sqlx::query_with(statement, values).execute(&mut connection).await.expect("no row meets another");
        }
        sqlx::query("commit").execute(&mut connection).await.expect("the disk has room");
    }
    let seconds = start.elapsed().as_secs_f64();
    let stored: i64 = sqlx::query_scalar("select count(*) from events").fetch_one(&mut connection).await.expect("ours");
    assert_eq!(usize::try_from(stored), Ok(rows), "every row is stored");
    connection.close().await.expect("the file can be closed");
    #[expect(clippy::cast_precision_loss, reason = "rows are far fewer than 2^52")]
    Figures { rate: rows as f64 / seconds, ..Figures::default() }
}

/// Reads the statement that makes the table, the number of its columns, and the rows: the inserts of each transaction.
async fn read(ledger_file: &Path, rows: usize, chunk: usize) -> (String, usize, Vec<Vec<Insert>>) {
    let options = SqliteConnectOptions::new().filename(ledger_file).read_only(true).disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", ledger_file.display()));
    let table: String = sqlx::query_scalar("select sql from sqlite_schema where type = 'table' and name = 'events'")
        .fetch_one(&mut connection)
        .await
        .expect("the file holds a ledger");
    let (mut columns, mut found) = (0, 0_usize);
    let mut transactions: Vec<Vec<Insert>> = Vec::with_capacity(rows.div_ceil(chunk));
    {
        let mut stored = sqlx::query("select * from events order by recorded_at, partition, position limit ?")
            .bind(i64::try_from(rows).expect("few rows"))
            .fetch(&mut connection);
        while let Some(row) = stored.try_next().await.expect("the ledger's rows can be read") {
            columns = row.len();
            if found.is_multiple_of(chunk) {
                transactions.push(Vec::with_capacity(chunk.div_ceil(INSERT_ROWS)));
            }
            let inserts = transactions.last_mut().expect("one was pushed");
            if (found % chunk).is_multiple_of(INSERT_ROWS) {
                inserts.push(Insert { rows: 0, values: SqliteArguments::default() });
            }
            let insert = inserts.last_mut().expect("one was pushed");
            insert.rows += 1;
            take_in(&mut insert.values, &row);
            found += 1;
        }
    }
    assert_eq!(found, rows, "the ledger holds fewer rows than the peer is to insert");
    connection.close().await.expect("the file can be closed");
    (table, columns, transactions)
}

/// Adds a row's values as they are stored.
fn take_in(values: &mut SqliteArguments, row: &SqliteRow) {
    for column in 0..row.len() {
        let stored = row.try_get_raw(column).expect("within the row");
        let added = if stored.is_null() {
            values.add(None::<i64>)
        } else {
            match stored.type_info().name() {
                "INTEGER" => values.add(row.get::<i64, _>(column)),
                "TEXT" => values.add(row.get::<String, _>(column)),
                "BLOB" => values.add(row.get::<Vec<u8>, _>(column)),
                other => panic!("the ledger stores no {other}"),
            }
        };
        added.expect("plain values can be bound");
    }
}
