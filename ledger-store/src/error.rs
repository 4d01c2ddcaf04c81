//! What goes wrong with a database.

use std::io::ErrorKind;

use ledger_core::{Partition, Position};

/// A stored row that is no event: a column holds what the ledger never wrote there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition} position {position}: column {column} {reason}")]
pub struct DamagedRow {
    pub partition: Partition,
    pub position: Position,
    pub column: &'static str,
    pub reason: String,
}

/// The database did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address of the database cannot be used; the text says what to write instead.
    #[error("{0}")]
    Address(String),
    /// The database would lose acknowledged commands; the text names the setting.
    #[error("{0}")]
    NotDurable(String),
    /// There is no ledger in the database, or one of another version.
    #[error("{0}")]
    Schema(String),
    /// The database contradicts itself or what this process has seen of it; nothing may be decided on it.
    #[error("{0}")]
    Inconsistent(String),
    /// A row cannot be read as an event.
    #[error("damaged event")]
    Damaged(#[from] DamagedRow),
    /// The migrations could not be run.
    #[error("could not bring the schema up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database could not be reached, or refused.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What PostgreSQL answers when it ends or refuses a session, or when others are in the way; said of the moment, not of
/// the data (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const PASSING: [&str; 8] = ["25P03", "40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03"];
/// A session that was idle for too long, and the class of lost connections.
const IDLE_SESSION: &str = "57P05";
const CONNECTION_CLASS: &str = "08";

impl StoreError {
    /// Whether the same may succeed a moment later: a connection was lost, none was free, or others held a lock. It says
    /// nothing about what the database holds.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Database(error) | Self::Migrate(sqlx::migrate::MigrateError::Execute(error)) => is_passing(error),
            _ => false,
        }
    }
}

/// How a connection is lost.
const LOST: [ErrorKind; 9] = [
    ErrorKind::BrokenPipe,
    ErrorKind::ConnectionAborted,
    ErrorKind::ConnectionRefused,
    ErrorKind::ConnectionReset,
    ErrorKind::HostUnreachable,
    ErrorKind::NetworkUnreachable,
    ErrorKind::NotConnected,
    ErrorKind::TimedOut,
    ErrorKind::UnexpectedEof,
];

fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Io(error) => LOST.contains(&error.kind()),
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| {
            PASSING.contains(&&*code) || code == IDLE_SESSION || code.len() == 5 && code.starts_with(CONNECTION_CLASS)
        }),
        _ => false,
    }
}

/// An error and what caused it, in one line: Display of each level says one thing.
#[must_use]
pub fn chain(error: &StoreError) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Some libraries repeat the cause in their own words.
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
