//! The ledger on PostgreSQL.

mod bulk;
pub mod copy;
mod doubt;
mod index;
mod index_rows;
mod log;
#[cfg(target_os = "linux")]
mod nodelay;
pub mod record;
mod restore;
mod rows;
mod scan;
mod sweep;

pub(crate) use log::LockedHeads;
pub(crate) use scan::Reader;
pub(crate) use sweep::Sweeper;

use std::{str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{sync::Mutex, time::timeout};

use doubt::Doubt;

use crate::{
    StoreError,
    error::chain,
    limit::{timed_out, within},
    schema,
};

/// The migrations of this database, by version.
const MIGRATIONS: [(i64, &str, &str); 6] = [
    (1, "ledger", include_str!("../../../migrations/postgres/0001_ledger.sql")),
    (2, "access", include_str!("../../../migrations/postgres/0002_access.sql")),
    (3, "operations", include_str!("../../../migrations/postgres/0003_operations.sql")),
    (4, "expiry", include_str!("../../../migrations/postgres/0004_expiry.sql")),
    (5, "audit", include_str!("../../../migrations/postgres/0005_audit.sql")),
    (6, "rows", include_str!("../../../migrations/postgres/0006_rows.sql")),
];

/// Connections for reading and for projectors' transactions.
const POOL_MAX: u32 = 12;
/// Connections for a writer's look-ups and flushes: it asks for two things at a time, beside a flush and the filter of keys.
const WRITER_POOL_MAX: u32 = 4;
/// How long a request waits for a connection of a database that does not answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that was used so lately is taken to be good, unless another one was found dead since: what it is used for
/// fails otherwise, as it would if the server went away a moment later.
const UNTESTED_FOR: Duration = Duration::from_secs(1);
/// How long a test of another one is waited for before the next one is tried.
const TEST_TIMEOUT: Duration = Duration::from_millis(500);
/// The same for one that is given back; the rest of an answer that nobody waited for may still be on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What every session is set to, whatever the role or the database is. Who waits for a lock and then looks must see what was
/// committed meanwhile; those few transactions that want one state of everything say so. A session whose client is gone must
/// not hold locks for long, and a statement must not wait for ever for a lock that such a session holds; how long work may
/// take is limited by who waits for it. The planner guesses thousands of rows where look-ups find a few, and would compile
/// them, which takes a hundred times as long as to run them. Every version that is supported, from 13 on, must know all of
/// these, or it refuses the session.
const SESSION: [(&str, &str); 8] = [
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "0"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_user_timeout", "15s"),
    ("timezone", "UTC"),
    ("jit", "off"),
];
/// The limits that newer versions have besides, taken off where they are known.
const WITHOUT_LIMITS: &str = "select set_config(name, '0', false) \
    from unnest(array['statement_timeout', 'transaction_timeout', 'idle_session_timeout']) as name \
    where current_setting(name, true) is not null";

/// The encodings of databases that hold every text: in the second one nothing is converted.
const ENCODINGS: [&str; 2] = ["UTF8", "SQL_ASCII"];

/// A PostgreSQL database that holds a ledger.
#[derive(Debug, Clone)]
pub struct Postgres {
    options: Arc<PgConnectOptions>,
    pool: PgPool,
    /// Connections for reading the log in bulk.
    bulk: PgPool,
    doubt: Doubt,
    /// The connection that a writer commits by: `None` where there is no writer, and after anything went wrong with it. What
    /// a writer has flushed and forgotten may not be in a server that took over. So only who looks for that afterwards
    /// connects: a start, and a recovery.
    writer: Arc<Mutex<Option<PgConnection>>>,
    is_new: bool,
}

impl Postgres {
    /// Connects to the database at `url`, and creates the schema when `create` says so.
    pub(crate) async fn open(url: &str, create: bool) -> Result<Self, StoreError> {
        let options = options(url)?;
        let place = describe(&options);
        let mut connection = connect(&options, &place).await?;
        let is_new = create && migrate(&mut connection, &place).await?;
        schema::check(version(&mut connection).await, &MIGRATIONS, &place)?;
        refuse_to_lose(&mut connection, &place).await?;
        connection.close().await?;
        let doubt = Doubt::default();
        let pool = pool(POOL_MAX, &options, &doubt).connect_lazy_with(options.clone());
        let bulk = scan::pool(&options, &doubt);
        Ok(Self { options: Arc::new(options), pool, bulk, doubt, writer: Arc::new(Mutex::new(None)), is_new })
    }

    /// Connections for reading and for projectors' transactions; the writer has its own.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How to connect: see [`begin_session`].
    #[must_use]
    pub fn connect_options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// A connection of one's own, to hold a lock.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached.
    pub async fn session(&self) -> Result<PgConnection, sqlx::Error> {
        begin_session(&self.options).await
    }

    /// The same database for a writer, with connections that it shares with nobody: however many of the others are taken, it
    /// goes on. It is connected before anything is read through it. If that cannot be done, the first commit fails and leads
    /// into a recovery, which connects.
    pub(crate) async fn for_the_writer(&self) -> Self {
        let session = async { self.session().await.map_err(StoreError::from) };
        let writer = match within(ACQUIRE_TIMEOUT, session).await {
            Ok(connection) => Some(connection),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the writer has no connection yet");
                None
            }
        };
        let pool = pool(WRITER_POOL_MAX, &self.options, &self.doubt).connect_lazy_with((*self.options).clone());
        let (options, bulk, doubt) = (self.options.clone(), self.bulk.clone(), self.doubt.clone());
        Self { options, pool, bulk, doubt, writer: Arc::new(Mutex::new(writer)), is_new: self.is_new }
    }

    /// Host, port and database: no secrets.
    #[must_use]
    pub fn place(&self) -> String {
        describe(&self.options)
    }

    /// Whether there was no ledger when it was opened.
    pub(crate) const fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) async fn close(&self) {
        self.bulk.close().await;
        self.pool.close().await;
    }
}

/// Connections that are tested only after they have been idle or when they are in doubt, and that are given up when they do not
/// answer.
fn pool(connections_max: u32, options: &PgConnectOptions, doubt: &Doubt) -> PgPoolOptions {
    let (on_use, on_return) = (doubt.clone(), doubt.clone());
    let port = options.get_port();
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| Box::pin(prepare(connection, port)))
        // A look-up is a round trip, and to test the connection first is another one.
        .test_before_acquire(false)
        .before_acquire(move |connection, state| {
            let doubt = on_use.clone();
            Box::pin(async move {
                if state.idle_for > UNTESTED_FOR || doubt.is_about(state.idle_for) {
                    answers(connection, TEST_TIMEOUT).await.inspect_err(|_| doubt.arise())?;
                }
                Ok(true)
            })
        })
        // The pool's own test at the end has no limit, and would keep the place of a connection that died silently.
        .after_release(move |connection, _| {
            let doubt = on_return.clone();
            Box::pin(async move {
                answers(connection, DRAIN_TIMEOUT).await.inspect_err(|_| doubt.arise())?;
                Ok(true)
            })
        })
}

/// Whether there still is somebody at the other end.
async fn answers(connection: &mut PgConnection, within: Duration) -> Result<(), sqlx::Error> {
    timeout(within, connection.ping()).await.unwrap_or_else(|_| Err(timed_out()))
}

/// How sessions are begun.
fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    Ok(PgConnectOptions::from_str(url)
        .map_err(|_| {
            StoreError::Address(
                "the address of the PostgreSQL database cannot be read; write postgres://USER:PASSWORD@HOST:PORT/DATABASE; \
                 characters such as # / ? @ % in the password are written as %23 %2F %3F %40 %25"
                    .to_owned(),
            )
        })?
        .application_name("ledger")
        .options(SESSION)
        .disable_statement_logging())
}

/// Begins a session that no limit of the role's or the database's ends.
///
/// # Errors
///
/// When the database cannot be reached.
pub async fn begin_session(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut connection = PgConnection::connect_with(options).await?;
    prepare(&mut connection, options.get_port()).await?;
    Ok(connection)
}

/// Prepares a connection to a server's port that has just been made.
async fn prepare(connection: &mut PgConnection, port: u16) -> Result<(), sqlx::Error> {
    #[cfg(target_os = "linux")]
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || nodelay::send_at_once(port)).await {
        tracing::debug!(%error, "TCP_NODELAY cannot be set: long statements may wait for 40 ms");
    }
    connection.execute(WITHOUT_LIMITS).await.map(drop)
}

async fn connect(options: &PgConnectOptions, place: &str) -> Result<PgConnection, StoreError> {
    let mut connection = begin_session(options).await.map_err(|error| {
        let text =
            format!("cannot connect to {place}: {}; look at the address, and whether the server runs", said(&error));
        StoreError::Unopened { text, error }
    })?;
    refuse_other_encodings(&mut connection, place).await?;
    Ok(connection)
}

/// A database of another encoding would refuse a command with a text that it cannot hold, and with it all that wait.
async fn refuse_other_encodings(connection: &mut PgConnection, place: &str) -> Result<(), StoreError> {
    let encoding: String =
        sqlx::query_scalar("select current_setting('server_encoding')").fetch_one(connection).await?;
    if ENCODINGS.contains(&&*encoding) {
        return Ok(());
    }
    Err(StoreError::Address(format!(
        "{place} is encoded {encoding} and cannot hold every text; create the database with encoding 'UTF8' template template0"
    )))
}

/// What a server said, without the line of its own source that sqlx adds.
fn said(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |refusal| refusal.message().to_owned())
}

fn describe(options: &PgConnectOptions) -> String {
    format!("postgres://{}:{}/{}", options.get_host(), options.get_port(), options.get_database().unwrap_or_default())
}

async fn version(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select max(version) from _sqlx_migrations where success").fetch_one(connection).await
}

/// Brings the schema up to date; says whether there was none. One that is up to date is left alone: the service's role need
/// not be the one that migrates.
async fn migrate(connection: &mut PgConnection, place: &str) -> Result<bool, StoreError> {
    // Before the version: whoever makes the ledger at this moment has made its first table by the time that others follow.
    let tables = tables(connection).await?;
    let found = version(connection).await;
    let is_new = schema::is_new(&found);
    if is_new {
        schema::refuse_tables(&tables, place, schema::OWN_DATABASE)?;
    }
    if schema::is_behind(&found, &MIGRATIONS) {
        let migrated = schema::migrator(&MIGRATIONS).run(&mut *connection).await;
        migrated.map_err(|error| schema::failed(error, place))?;
    }
    Ok(is_new)
}

/// The tables that are in the way of the ledger's, because they have the names of some; those of extensions do not count. Any
/// others may stand beside them: nothing here touches them.
async fn tables(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let sql = "select c.relname::text from pg_class c \
        where c.relnamespace = (select oid from pg_namespace where nspname = current_schema()) and c.relkind in ('r', 'p') \
        and c.relname <> '_sqlx_migrations' and not exists (select from pg_depend d \
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e') \
        order by c.relname";
    let mut tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(connection).await?;
    tables.retain(|table| schema::is_made(&MIGRATIONS, table));
    Ok(tables)
}

/// A commit must be on the disk when it is answered.
async fn refuse_to_lose(connection: &mut PgConnection, place: &str) -> Result<(), StoreError> {
    for setting in ["fsync", "synchronous_commit"] {
        let value: String =
            sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(&mut *connection).await?;
        if value == "off" {
            return Err(StoreError::NotDurable(format!(
                "{place} runs with {setting} = off and would lose acknowledged commands; set {setting} = on"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a role or a database of PostgreSQL 13 can be set to, of what sessions here begin with
    /// (<https://www.postgresql.org/docs/13/runtime-config.html>).
    const KNOWN_TO_13: [&str; 12] = [
        "default_transaction_isolation",
        "enable_bitmapscan",
        "enable_seqscan",
        "enable_sort",
        "idle_in_transaction_session_timeout",
        "jit",
        "lock_timeout",
        "max_parallel_workers_per_gather",
        "statement_timeout",
        "tcp_keepalives_idle",
        "tcp_user_timeout",
        "timezone",
    ];

    #[test]
    fn an_address_that_cannot_be_read_is_told_how_a_password_is_written_and_not_repeated() {
        for address in ["postgres://ann:s3c#ret@db/ledger", "postgres://ann:s3c/ret@db/ledger"] {
            let refused = options(address).expect_err("refused").to_string();
            assert!(refused.contains("%23 %2F %3F %40 %25") && !refused.contains("s3c"), "{refused}");
        }
    }

    #[tokio::test]
    async fn sessions_begin_with_what_every_version_knows() {
        let usual =
            options("postgres://somebody@127.0.0.1/ledger?options=-c%20statement_timeout%3D1").expect("an address");
        let others = [
            restore::without_idle_limit(usual.clone()),
            (*scan::pool(&usual, &Doubt::default()).connect_options()).clone(),
        ];
        for options in others.iter().chain([&usual]) {
            let begun = options.get_options().expect("there are some");
            // A space that belongs to a value has a backslash before it.
            for option in begun.replace("\\ ", "_").split("-c ").filter(|option| !option.is_empty()) {
                let (name, _) = option.split_once('=').expect("a name and a value");
                assert!(KNOWN_TO_13.contains(&name), "{name}");
            }
        }
        let begun = usual.get_options().expect("there are some");
        assert!(begun.contains(r"-c default_transaction_isolation=read\ committed"), "{begun}");
        // The last of two is the one that counts.
        assert!(begun.find("statement_timeout=1") < begun.find("statement_timeout=0"), "{begun}");
    }
}
