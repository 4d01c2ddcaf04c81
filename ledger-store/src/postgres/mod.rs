//! The ledger on PostgreSQL.

mod bulk;
pub mod copy;
mod index;
mod index_rows;
mod log;
mod restore;
mod rows;
mod scan;
mod sweep;

pub(crate) use log::LockedHeads;
pub(crate) use scan::Reader;
pub(crate) use sweep::Sweeper;

use std::{str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{StoreError, schema};

/// The migrations of this database, by version.
const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "ledger", include_str!("../../../migrations/postgres/0001_ledger.sql")),
    (2, "access", include_str!("../../../migrations/postgres/0002_access.sql")),
    (3, "operations", include_str!("../../../migrations/postgres/0003_operations.sql")),
    (4, "expiry", include_str!("../../../migrations/postgres/0004_expiry.sql")),
    (5, "audit", include_str!("../../../migrations/postgres/0005_audit.sql")),
];

/// Connections for reading, for look-ups and for projectors' transactions.
const POOL_MAX: u32 = 12;
/// How long a request waits for a connection of a database that does not answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that was used so lately is taken to be good: what it is used for fails otherwise, as it would if the server
/// went away a moment later.
const UNTESTED_FOR: Duration = Duration::from_secs(1);
/// How long a test of another one is waited for before the next one is tried.
const TEST_TIMEOUT: Duration = Duration::from_millis(500);
/// The same for one that is given back; the rest of an answer that nobody waited for may still be on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What every session is set to. A session whose client is gone must not hold locks for long, and a statement must not
/// wait for ever for a lock that such a session holds. The planner guesses thousands of rows where look-ups find a few, and
/// would compile them, which takes a hundred times as long as to run them.
const SESSION: [(&str, &str); 6] = [
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_user_timeout", "15s"),
    ("timezone", "UTC"),
    ("jit", "off"),
];

/// A PostgreSQL database that holds a ledger.
#[derive(Debug, Clone)]
pub struct Postgres {
    options: Arc<PgConnectOptions>,
    pool: PgPool,
    /// Connections for reading the log in bulk.
    bulk: PgPool,
    /// The writer's own connection: `None` until it is needed, and again after anything went wrong with it.
    writer: Arc<Mutex<Option<PgConnection>>>,
}

impl Postgres {
    /// Connects to the database at `url`, and creates the schema when `create` says so.
    pub(crate) async fn open(url: &str, create: bool) -> Result<Self, StoreError> {
        let options = options(url)?;
        let place = describe(&options);
        let mut connection = connect(&options, &place).await?;
        // A schema that is up to date is left alone: the service's role need not be the one that migrates.
        if create && !schema::is_current(version(&mut connection).await, &MIGRATIONS) {
            schema::migrator(&MIGRATIONS).run(&mut connection).await?;
        }
        schema::check(version(&mut connection).await, &MIGRATIONS, &place)?;
        refuse_to_lose(&mut connection, &place).await?;
        connection.close().await?;
        let pool = pool(POOL_MAX).connect_lazy_with(options.clone());
        let bulk = scan::pool(&options);
        Ok(Self { options: Arc::new(options), pool, bulk, writer: Arc::new(Mutex::new(None)) })
    }

    /// Connections for reading and for projectors' transactions; the writer has its own.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How to connect: for those that need a connection of their own, to hold a lock or to listen.
    #[must_use]
    pub fn connect_options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Host, port and database: no secrets.
    #[must_use]
    pub fn place(&self) -> String {
        describe(&self.options)
    }

    pub(crate) async fn close(&self) {
        self.writer.lock().await.take();
        self.bulk.close().await;
        self.pool.close().await;
    }
}

/// Connections that are tested only after they have been idle, and that are given up when they do not answer.
fn pool(connections_max: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A look-up is a round trip, and to test the connection first is another one.
        .test_before_acquire(false)
        .before_acquire(|connection, state| {
            Box::pin(async move {
                if state.idle_for > UNTESTED_FOR {
                    answers(connection, TEST_TIMEOUT).await?;
                }
                Ok(true)
            })
        })
        // The pool's own test at the end has no limit, and would keep the place of a connection that died silently.
        .after_release(|connection, _| {
            Box::pin(async move {
                answers(connection, DRAIN_TIMEOUT).await?;
                Ok(true)
            })
        })
}

/// Whether there still is somebody at the other end.
async fn answers(connection: &mut PgConnection, within: Duration) -> Result<(), sqlx::Error> {
    let answered = timeout(within, connection.ping()).await;
    answered.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// How sessions are begun.
fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    Ok(PgConnectOptions::from_str(url)
        .map_err(|_| {
            StoreError::Address("the address of the PostgreSQL database cannot be read; write postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned())
        })?
        .application_name("ledger")
        .options(SESSION)
        .disable_statement_logging())
}

async fn connect(options: &PgConnectOptions, place: &str) -> Result<PgConnection, StoreError> {
    PgConnection::connect_with(options).await.map_err(|error| {
        let text =
            format!("cannot connect to {place}: {}; look at the address, and whether the server runs", said(&error));
        StoreError::Unopened { text, error }
    })
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
