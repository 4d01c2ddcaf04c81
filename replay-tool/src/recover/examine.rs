//! What the database is like before anything is done to it.

use std::{collections::BTreeSet, str::FromStr};

use ledger_core::{Head, PARTITIONS, Partition};
use ledger_store::{Database, StoreError, error::chain, restore::Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

use super::{backup::sqlite_file, facts::Found};
use crate::{
    context::Failure,
    finding::{Findings, Kind},
    progress::Progress,
    verify,
};

/// The table without which there is no ledger; all others can be made from it.
const EVENTS: &str = "events";
/// Tables that tell that there was one.
const TRACES: [&str; 6] =
    ["partition_heads", "index_checkpoints", "balances", "freezes", "projection_checkpoints", "restores"];
/// Findings that are named in a report; `verify` names more.
const FINDINGS_MAX: usize = 1_000;

/// The states that a database is found in, from the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// There is no file.
    Absent,
    /// There is a database without a ledger, or with one that never had an event.
    Empty,
    /// Something is there, and it cannot be read as a ledger.
    Unreadable,
    /// The log, its heads or its indexes are damaged.
    LogDamaged,
    /// The log is sound; what is made from it is not.
    ReadModelsDamaged,
    Sound,
}

impl State {
    /// How bad it is, in one word.
    pub(super) const fn severity(self) -> &'static str {
        match self {
            Self::Absent | Self::Empty | Self::Unreadable | Self::LogDamaged => "severe",
            Self::ReadModelsDamaged => "moderate",
            Self::Sound => "none",
        }
    }

    /// What to restore into.
    pub(super) const fn target(self) -> Target {
        match self {
            Self::Absent | Self::Empty => Target::Empty,
            _ => Target::Replace,
        }
    }

    /// Whether there is anything that a backup could keep.
    pub(super) const fn has_something(self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// The database, as it was found.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) state: State,
    pub(super) why: String,
    /// Whether nothing is wrong with its events and heads, whatever is with what is made from them.
    pub(super) log_is_sound: bool,
    /// The partitions of which something is wrong with that; none where it could not be found out.
    pub(super) damaged: Option<BTreeSet<Partition>>,
    /// Whether the table of the events and its primary key were found to disagree.
    pub(super) key_differs: bool,
    /// Where it can be opened.
    pub(super) database: Option<Database>,
    pub(super) heads: Option<[Head; PARTITIONS]>,
    /// Where the log stood when appends were held back, before it was read for the last time.
    pub(super) standing: Option<String>,
    pub(super) digest: Option<String>,
    pub(super) findings: Value,
    /// Whether rows that close operations are not what the log tells.
    pub(super) compensations_differ: bool,
}

impl Examined {
    fn without(state: State, why: impl Into<String>) -> Self {
        Self {
            state,
            why: why.into(),
            log_is_sound: false,
            damaged: None,
            key_differs: false,
            database: None,
            heads: None,
            standing: None,
            digest: None,
            findings: Value::Null,
            compensations_differ: false,
        }
    }

    /// What is written down of it.
    pub(super) fn found(&self) -> Found {
        Found {
            state: self.state,
            severity: self.state.severity().to_owned(),
            why: self.why.clone(),
            digest: self.digest.clone(),
            findings: self.findings.clone(),
        }
    }
}

/// Looks at the database, and changes nothing about it.
pub(super) async fn examine(url: &str, replace: bool) -> Result<Examined, Failure> {
    let tables = match tables(url).await? {
        Ok(tables) => tables,
        Err(examined) => return Ok(examined),
    };
    let has_events = tables.iter().any(|there| there == EVENTS);
    let has_traces = TRACES.iter().any(|table| tables.iter().any(|there| there == table));
    let is_file_of_others = url.starts_with("sqlite:") && !tables.is_empty();
    if !has_events && !has_traces && !is_file_of_others {
        return Ok(Examined::without(State::Empty, "the database holds no ledger"));
    }
    if !has_events {
        return Ok(Examined::without(State::Unreadable, format!("the table {EVENTS} is gone")));
    }
    match Database::open_existing(url).await {
        Ok(database) => look_inside(database).await,
        // Its events may be all there, and this program does not know how to read them.
        Err(StoreError::Schema(why)) if !replace => Err(Failure::new(format!(
            "{why}, but a table {EVENTS} all the same: which version wrote it is not told any more (_sqlx_migrations); give \
             --replace to restore without it (what is there is kept)"
        ))),
        Err(error @ StoreError::Schema(_)) => Ok(Examined::without(State::Unreadable, chain(&error))),
        Err(error) => is_unreadable(error),
    }
}

/// What damage hides from sight. Anything else that goes wrong (a connection that was lost, rights, another version) says
/// nothing about what is there, and nothing may be put in its place for that.
fn is_unreadable(error: StoreError) -> Result<Examined, Failure> {
    if error.is_damage() { Ok(Examined::without(State::Unreadable, chain(&error))) } else { Err(error.into()) }
}

/// The tables that are there, or why there are none.
async fn tables(url: &str) -> Result<Result<Vec<String>, Examined>, Failure> {
    if !url.starts_with("sqlite:") {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| {
                Failure::new("the address must be postgres://USER:PASSWORD@HOST:PORT/DATABASE or sqlite://FILE")
            })?
            .disable_statement_logging();
        let place = options.get_database().unwrap_or("DATABASE").to_owned();
        let mut connection = PgConnection::connect_with(&options).await.map_err(|error| {
            Failure::new(format!(
                "the PostgreSQL database {place} cannot be reached: {error}; start the server, or, when the database is \
                 gone, create an empty one (createdb {place}), and run this again"
            ))
        })?;
        let tables = sqlx::query_scalar(
            "select table_name::text from information_schema.tables \
             where table_schema = current_schema() and table_type = 'BASE TABLE'",
        )
        .fetch_all(&mut connection)
        .await?;
        return Ok(Ok(tables));
    }
    let file = sqlite_file(url)?;
    match std::fs::metadata(&file) {
        Ok(found) if found.len() > 0 => {}
        Ok(_) => return Ok(Err(Examined::without(State::Empty, format!("{} is an empty file", file.display())))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err(Examined::without(State::Absent, format!("there is no file {}", file.display()))));
        }
        Err(error) => {
            let file = file.display();
            return Err(Failure::new(format!("{file} cannot be read: {error}; check who may read it and its folder")));
        }
    }
    let tables = async {
        let options = SqliteConnectOptions::from_str(url)?.create_if_missing(false).disable_statement_logging();
        let mut connection = options.connect().await?;
        let tables: Vec<String> = sqlx::query_scalar("select name from sqlite_master where type = 'table'")
            .fetch_all(&mut connection)
            .await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(tables)
    };
    match tables.await {
        Ok(tables) => Ok(Ok(tables)),
        Err(error) => match StoreError::from(error) {
            error if error.is_damage() || error.is_passing() => Ok(Err(is_unreadable(error)?)),
            error => {
                let (file, error) = (file.display(), chain(&error));
                Err(Failure::new(format!("{file}: {error}; check who may read and write it and its folder")))
            }
        },
    }
}

async fn look_inside(database: Database) -> Result<Examined, Failure> {
    let heads = read_heads(&database).await?;
    if heads.is_some_and(|heads| heads.iter().all(|head| head.position.0 == 0)) && has_no_event(&database).await {
        database.close().await;
        return Ok(Examined::without(State::Empty, "the ledger has no event"));
    }
    let progress = Progress::new("looking at the database");
    let verified = verify::verify(&database, &progress).await;
    progress.finish();
    let mut examined = match verified {
        Ok(verified) => {
            let (state, why) = judge(&verified.findings);
            let digest = Some(verified.digest.to_string());
            Examined {
                log_is_sound: !are_of_the_log(&verified.findings),
                key_differs: verified.findings.kinds.contains_key(&Kind::KeyMismatch),
                digest,
                findings: findings_json(&verified.findings),
                compensations_differ: verified.findings.are_of_compensations(),
                damaged: Some(verified.findings.damaged),
                ..Examined::without(state, why)
            }
        }
        Err(error) if error.is_damage() => {
            Examined::without(State::LogDamaged, format!("the log cannot be replayed: {}", chain(&error)))
        }
        Err(error) => return Err(error.into()),
    };
    examined.heads = heads;
    examined.database = Some(database);
    Ok(examined)
}

/// The heads; none when they are damaged beyond reading.
pub(super) async fn read_heads(database: &Database) -> Result<Option<[Head; PARTITIONS]>, Failure> {
    match database.heads().await {
        Ok(heads) => Ok(Some(heads)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn has_no_event(database: &Database) -> bool {
    for partition in Partition::all() {
        if !database.rows_after(partition, ledger_core::Position::ZERO, 1).await.is_ok_and(|rows| rows.is_empty()) {
            return false;
        }
    }
    true
}

/// The state that findings come to.
fn judge(findings: &Findings) -> (State, String) {
    let of = |state, what: &str| {
        let kinds: Vec<_> = findings.kinds.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        (state, format!("{what}: {}", kinds.join(", ")))
    };
    if findings.count == 0 {
        (State::Sound, "everything is as a replay makes it".to_owned())
    } else if are_of_the_log(findings) {
        of(State::LogDamaged, "the log or its heads are damaged")
    } else if findings.are_of_indexes() {
        of(State::LogDamaged, "the indexes behind the log are damaged")
    } else {
        of(State::ReadModelsDamaged, "the log is sound, what is made from it is not")
    }
}

/// Whether any finding is about the events or the heads.
fn are_of_the_log(findings: &Findings) -> bool {
    !findings.damaged.is_empty()
}

pub(super) fn findings_json(findings: &Findings) -> Value {
    let kinds: serde_json::Map<String, Value> =
        findings.kinds.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    let named: Vec<_> = findings.kept.iter().take(FINDINGS_MAX).collect();
    json!({ "count": findings.count, "kinds": kinds, "named": named })
}
