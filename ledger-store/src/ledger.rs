//! The handle that others hold on the ledger.

use std::{sync::Arc, time::Duration};

use ledger_core::{Account, Balance, BusinessKey, Command, Event, EventType, Position, Rejection, Timestamp};
use tokio::sync::watch;

use crate::{Database, StoreError};

/// How much the writer takes on, and by which clock it records.
#[derive(Clone)]
pub struct LedgerOptions {
    /// Commands that may wait for the writer; past that they are refused as overloaded.
    pub queue_commands_max: usize,
    /// How long an answer may wait for a database that is away before the caller is told so.
    pub patience: Duration,
    /// The clock that `recorded_at` is read from.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// A command that is done: now, or before.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub event: Arc<Event>,
    /// The key was bound before; this is the first answer again.
    pub replayed: bool,
}

/// Why nothing is known to have been done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much is waiting; nothing was done.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The database is away; nothing was done, or the same key finds out.
    #[error("the database cannot be reached")]
    Store,
    /// The service is stopping; nothing was done.
    #[error("the service is stopping")]
    Stopping,
}

/// Why a command has no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why an atomic batch did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The first command that is refused.
    #[error("command {index} of the batch: {rejection}")]
    Rejected { index: usize, rejection: Rejection },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A handle on the task that decides. Cloning is cheap; a dropped call does not cancel what it asked for.
#[derive(Clone)]
pub struct Ledger {}

impl Ledger {
    /// Reads what came after the indexes' checkpoint and starts the writer.
    pub async fn start(database: Database, options: LedgerOptions) -> Result<Self, StoreError> {
        let _ = (database, options);
        unimplemented!()
    }

    /// Does one command.
    pub async fn execute(&self, command: Command) -> Result<Recorded, CommandError> {
        let _ = command;
        unimplemented!()
    }

    /// Does all of the commands in one transaction, or none.
    pub async fn execute_atomic(&self, commands: Vec<Command>) -> Result<Vec<Recorded>, BatchError> {
        let _ = commands;
        unimplemented!()
    }

    /// Does each of the commands on its own, in order.
    pub async fn execute_each(&self, commands: Vec<Command>) -> Vec<Result<Recorded, CommandError>> {
        let _ = commands;
        unimplemented!()
    }

    /// The newest event of an account, as of a moment after this was called: a strong read.
    pub async fn newest(&self, account: &Account) -> Result<Option<Arc<Event>>, Unavailable> {
        let _ = account;
        unimplemented!()
    }

    /// The event that the key is bound to in that account, exact.
    pub async fn find(&self, account: &Account, key: &BusinessKey) -> Result<Option<Arc<Event>>, Unavailable> {
        let _ = (account, key);
        unimplemented!()
    }

    /// The events that the key is bound to in any account.
    pub async fn find_all(&self, key: &BusinessKey) -> Result<Vec<Event>, Unavailable> {
        let _ = key;
        unimplemented!()
    }

    /// The event that made an account's `version`, if it has come so far.
    pub async fn at_version(&self, account: &Account, version: u64) -> Result<Option<Arc<Event>>, Unavailable> {
        let _ = (account, version);
        unimplemented!()
    }

    /// The newest event of an account that was recorded at or before `at`.
    pub async fn at_time(&self, account: &Account, at: Timestamp) -> Result<Option<Arc<Event>>, Unavailable> {
        let _ = (account, at);
        unimplemented!()
    }

    /// An account's events, newest first: those before position `before` (absent: from the newest), at most `limit`, of
    /// `event_type` if one is given. The position is where to go on, absent at the end.
    pub async fn history(
        &self,
        account: &Account,
        before: Option<Position>,
        limit: usize,
        event_type: Option<EventType>,
    ) -> Result<(Vec<Event>, Option<Position>), Unavailable> {
        let _ = (account, before, limit, event_type);
        unimplemented!()
    }

    /// The account as the newest event left it that this process committed and still remembers. Newer than a read model
    /// or absent; never ahead of what is durable.
    #[must_use]
    pub fn recent(&self, account: &Account) -> Option<Balance> {
        let _ = account;
        unimplemented!()
    }

    /// Counts the commits of this process: a projector wakes when it changes.
    #[must_use]
    pub fn commits(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// The positions up to which this process knows every partition to be committed.
    #[must_use]
    pub fn committed(&self) -> [Position; ledger_core::PARTITIONS] {
        unimplemented!()
    }

    /// Whether commands can be served: `None`, or why not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        unimplemented!()
    }

    /// Takes no more commands, answers those that wait, and returns when the last commit is done.
    pub async fn stop(&self) {
        unimplemented!()
    }
}
