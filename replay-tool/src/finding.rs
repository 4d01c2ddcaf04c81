//! What verification finds.

use ledger_core::{Event, Partition, Position};
use serde::Serialize;

/// Findings that are kept; more are only counted.
const KEPT_MAX: usize = 10_000;

/// The kinds of finding. Their names in JSON are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Positions that must be there are not.
    Gap,
    /// A row that no event can be: a column holds what the ledger never wrote.
    DamagedEvent,
    /// The event's hash does not follow from the event and the one before it: the event, or the one before, was changed.
    HashMismatch,
    /// The partition's head names another event than the newest.
    HeadMismatch,
    /// An event past the partition's head.
    BeyondHead,
    /// The epoch falls, or time runs backwards.
    OrderMismatch,
    /// The id of the transaction or of the account does not follow from the event.
    IdMismatch,
    /// The account's versions have a gap, or its chain of previous positions is broken.
    VersionMismatch,
    /// The state that the event carries is not what the amounts make.
    StateMismatch,
    /// A capture, release or refund of something that is not there, or of another account.
    RelationMissing,
    /// A capture, release or refund of more than was left, or that says another rest.
    RelationMismatch,
    /// A business key that an earlier event of the account bound already.
    DuplicateKey,
    /// An atomic batch that is not whole.
    BatchIncomplete,
    /// A row of the balances differs from the replay.
    BalanceMismatch,
    BalanceMissing,
    BalanceUnexpected,
    /// A row of the freezes differs from the replay.
    FreezeMismatch,
    FreezeMissing,
    FreezeUnexpected,
    /// A read model's checkpoint names no event of the log.
    CheckpointMismatch,
}

impl Kind {
    const fn remedy(self) -> &'static str {
        match self {
            Self::BalanceMismatch
            | Self::BalanceMissing
            | Self::BalanceUnexpected
            | Self::FreezeMismatch
            | Self::FreezeMissing
            | Self::FreezeUnexpected
            | Self::CheckpointMismatch => "replay-tool rebuild",
            _ => "restore the log from a backup: events cannot be made again",
        }
    }
}

/// One thing that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) partition: Partition,
    pub(crate) position: Option<Position>,
    pub(crate) transaction_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) credit_type: Option<String>,
    pub(crate) expected: String,
    pub(crate) found: String,
    pub(crate) remedy: &'static str,
}

impl Finding {
    /// At a place of the log.
    pub(crate) fn at(
        kind: Kind,
        partition: Partition,
        position: Position,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            partition,
            position: Some(position),
            transaction_id: None,
            user_id: None,
            credit_type: None,
            expected: expected.into(),
            found: found.into(),
            remedy: kind.remedy(),
        }
    }

    /// About an event.
    pub(crate) fn of(kind: Kind, event: &Event, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            transaction_id: Some(event.transaction_id.to_string()),
            ..Self::at(kind, event.partition, event.position, expected, found).owned_by(&event.account)
        }
    }

    pub(crate) fn owned_by(mut self, account: &ledger_core::Account) -> Self {
        self.user_id = Some(account.user_id().to_string());
        self.credit_type = Some(account.credit_type().to_string());
        self
    }
}

/// The findings of a run, within a bound of memory.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) kept: Vec<Finding>,
    pub(crate) count: u64,
}

impl Findings {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.count += 1;
        if self.kept.len() < KEPT_MAX {
            self.kept.push(finding);
        }
    }
}
