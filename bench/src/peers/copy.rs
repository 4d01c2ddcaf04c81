//! The ledger's rows loaded into a table of the same columns by `COPY`: the fastest way in that PostgreSQL has.

use std::time::Instant;

use futures::TryStreamExt;
use ledger_store::postgres::begin_session;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use crate::figures::Figures;

/// What every file of binary `COPY` begins with: the signature, no flags, no extension.
const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// And what it ends with.
const TRAILER: [u8; 2] = [0xff; 2];
/// Bytes of one message, so that the server reads on while the client still sends.
const MESSAGE: usize = 64 * 1024;

/// Rows that are loaded in one transaction, encoded.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) rows: usize,
    pub(crate) encoded: Vec<u8>,
}

/// Makes the table anew: the columns of `events`, its primary key, and the two rules that a table of events keeps by
/// unique indexes, which are one event for a key and one for a version. It has no checks and no triggers.
///
/// With `filled_from_events` it holds that many of the ledger's first events. They come before the indexes, which
/// treats the peer kindly: its indexes are packed.
///
/// # Panics
///
/// When the database refuses.
pub(crate) async fn prepare_naive(url: &str, filled_from_events: Option<u64>) {
    let mut connection = connect(url).await;
    let mut statements =
        vec!["drop table if exists peer_events".to_owned(), "create table peer_events (like events)".to_owned()];
    if let Some(events) = filled_from_events {
        statements.push(format!(
            "insert into peer_events select * from events order by recorded_at, partition, position limit {events}"
        ));
    }
    statements.extend(
        [
            "alter table peer_events add primary key (partition, position)",
            "create unique index on peer_events (account_id, business_code, business_id)",
            "create unique index on peer_events (account_id, version)",
            "vacuum analyze peer_events",
        ]
        .map(str::to_owned),
    );
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(&*statement))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    connection.close().await.expect("the server is there");
}

/// Encodes the ledger's first `rows` rows, in the order in which they were made, in chunks of `chunk`.
///
/// They are moved to other accounts and far positions, so that they meet nothing in a filled table; the same account
/// stays the same, so that the indexes are visited as they were.
///
/// # Panics
///
/// When the database refuses, or holds fewer rows.
pub(crate) async fn rows(url: &str, rows: usize, chunk: usize) -> Vec<Chunk> {
    let mut connection = connect(url).await;
    let columns: Vec<String> = sqlx::query_scalar(
        "select case attname when 'account_id' then 'md5(account_id::text || ''peer'')::uuid' \
                             when 'position' then 'events.position + 1000000000000' \
                             else quote_ident(attname) end \
         from pg_attribute where attrelid = 'peer_events'::regclass and attnum > 0 and not attisdropped \
         order by attnum",
    )
    .fetch_all(&mut connection)
    .await
    .expect("prepare_naive made the table");
    let copy = format!(
        "COPY (SELECT {} FROM events ORDER BY recorded_at, partition, position LIMIT {rows}) \
         TO STDOUT (FORMAT binary)",
        columns.join(", ")
    );
    let mut chunks: Vec<Chunk> = Vec::with_capacity(rows.div_ceil(chunk));
    let mut messages = connection.copy_out_raw(&copy).await.expect("the ledger's rows can be read");
    let mut first = true;
    // The server sends one message for a row: the first with the header before it, and the trailer in one of its own.
    while let Some(message) = messages.try_next().await.expect("the ledger's rows can be read") {
        let row = if std::mem::take(&mut first) {
            message.strip_prefix(&HEADER).expect("binary COPY begins with its signature")
        } else {
            &*message
        };
        if row == TRAILER {
            continue;
        }
        if chunks.last().is_none_or(|newest| newest.rows == chunk) {
            chunks.push(Chunk { rows: 0, encoded: HEADER.to_vec() });
        }
        let newest = chunks.last_mut().expect("one was pushed");
        newest.rows += 1;
        newest.encoded.extend_from_slice(row);
    }
    drop(messages);
    for chunk in &mut chunks {
        chunk.encoded.extend_from_slice(&TRAILER);
    }
    let found: usize = chunks.iter().map(|chunk| chunk.rows).sum();
    assert_eq!(found, rows, "the ledger holds fewer rows than the peer is to load");
    connection.close().await.expect("the server is there");
    chunks
}

/// Loads the chunks by one backend, each in a durable transaction of its own: rows per second. They can be loaded once
/// into a table.
///
/// # Panics
///
/// When the database refuses, or would not keep the rows through a power cut.
pub(crate) async fn run(url: &str, chunks: &[Chunk]) -> Figures {
    let mut connection = connect(url).await;
    for setting in ["fsync", "synchronous_commit"] {
        let value: String = sqlx::query_scalar("select current_setting($1)")
            .bind(setting)
            .fetch_one(&mut connection)
            .await
            .expect("a setting can be read");
        assert_eq!(value, "on", "{setting} must be on, as it is for the ledger");
    }
    let start = Instant::now();
    let mut loaded = 0;
    for chunk in chunks {
        let mut copy = connection
            .copy_in_raw("COPY peer_events FROM STDIN (FORMAT binary)")
            .await
            .expect("prepare_naive made the table");
        for part in chunk.encoded.chunks(MESSAGE) {
            copy.send(part).await.expect("the server reads on");
        }
        loaded += copy.finish().await.expect("no row meets another");
    }
    let seconds = start.elapsed().as_secs_f64();
    connection.close().await.expect("the server is there");
    #[expect(clippy::cast_precision_loss, reason = "rows are far fewer than 2^52")]
    Figures { rate: loaded as f64 / seconds, ..Figures::default() }
}

async fn connect(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().expect("an address of a PostgreSQL database");
    let options = options.application_name("peer").disable_statement_logging();
    // As the ledger's own are made: its packets are sent at once.
    begin_session(&options).await.unwrap_or_else(|error| panic!("cannot connect to {url}: {error}"))
}
