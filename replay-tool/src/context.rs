//! What every command has in common: where the ledger is, how to answer, and how to end.

use std::process::ExitCode;

use ledger_store::{Database, StoreError, error::chain};

/// Prints a line. Whoever reads may have gone: the exit code still tells.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}
pub(crate) use say;

/// What was asked for besides the command itself.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) database_url: String,
    /// Print the result as one JSON document.
    pub(crate) json: bool,
}

impl Context {
    /// Opens the ledger's database as it is; a database without a ledger is refused.
    pub(crate) async fn open(&self) -> Result<Database, Failure> {
        Ok(Database::open_existing(&self.database_url).await?)
    }
}

/// How a command that could run came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done, and nothing is wrong: exit code 0.
    Consistent,
    /// Something that cannot be was found and named: exit code 1.
    Inconsistent,
}

impl Outcome {
    pub(crate) const fn of(consistent: bool) -> Self {
        if consistent { Self::Consistent } else { Self::Inconsistent }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(u8::from(outcome == Outcome::Inconsistent))
    }
}

/// Why a command could not run: exit code 2, and one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Failure {
    why: String,
    is_passing: bool,
}

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_passing: false }
    }

    /// The same may succeed a moment later.
    pub(crate) fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_passing: true }
    }

    /// The same failure, said to be one that may pass.
    pub(crate) fn or_passing(self) -> Self {
        Self { is_passing: true, ..self }
    }

    /// Whether the same may succeed a moment later: a connection was lost, or others were in the way.
    pub(crate) const fn is_passing(&self) -> bool {
        self.is_passing
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let mut why = chain(&error);
        if let StoreError::Database(sqlx::Error::Database(refusal)) = &error {
            // In the server's own words, without the line of its source that sqlx adds.
            why = format!("the database failed: {}", refusal.message());
        }
        // The others say themselves what to do.
        if error.is_damage() && !matches!(error, StoreError::Inconsistent(_) | StoreError::Damaged(_)) {
            let what = if error.is_missing() { "a table of the ledger is gone" } else { "the database is damaged" };
            why.push_str(&format!(
                "; {what}: run replay-tool recover --from ARCHIVE --report DIR, which makes it anew and keeps what is there"
            ));
        }
        Self { why, is_passing: error.is_passing() }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

/// One line for a failure, whatever it is made of.
pub(crate) fn could_not_run(failure: &Failure) -> ExitCode {
    let remedy = if failure.is_passing && !failure.why.contains("run this again") { "; run this again" } else { "" };
    eprintln!("replay-tool: {}{remedy}", failure.why.replace('\n', " "));
    ExitCode::from(2)
}
