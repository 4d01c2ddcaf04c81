//! Why a command is refused.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{id::TransactionId, log::Position};

/// A refusal, in the order in which the guards stand: the first that applies is the one that is told. Nothing was
/// written, and the key is free to succeed later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The key is bound to other content.
    #[error("the business key was used for other content, by transaction {transaction_id}")]
    IdempotencyConflict { transaction_id: TransactionId },
    /// The command's operation was reversed as a whole: nothing more is done under it.
    #[error("operation {operation_id} was compensated: nothing more is done under it")]
    OperationCompensated { operation_id: Uuid },
    #[error("there is no freeze {freeze_id}")]
    FreezeNotFound { freeze_id: TransactionId },
    #[error("there is no deduction {debit_id}")]
    DebitNotFound { debit_id: TransactionId },
    /// The account named besides an original is not the original's.
    #[error("{field} is not that of the transaction which the command names")]
    AccountMismatch { field: &'static str },
    #[error("the account was never credited")]
    AccountNotFound,
    #[error("the account is at version {current}, not {expected}")]
    VersionConflict { expected: u64, current: u64 },
    #[error("the account is locked: no value may leave it")]
    AccountLocked,
    #[error("expires_at must lie in the future")]
    ExpiryNotInFuture,
    #[error("{required} needed, {remaining} of the freeze remain")]
    InsufficientFrozen { required: u64, remaining: u64 },
    #[error("{required} asked for, {remaining} of the deduction may still be refunded")]
    RefundExceedsDebit { required: u64, remaining: u64 },
    #[error("{required} needed, {available} available")]
    InsufficientBalance { required: u64, available: u64 },
    #[error("a balance of {balance} and {amount} more would pass the maximum of {maximum}")]
    BalanceLimitExceeded { balance: u64, amount: u64, maximum: u64 },
}

impl Rejection {
    /// The stable code of the contract.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::IdempotencyConflict { .. } => "idempotency_conflict",
            Self::OperationCompensated { .. } => "operation_compensated",
            Self::FreezeNotFound { .. } => "freeze_not_found",
            Self::DebitNotFound { .. } => "debit_not_found",
            Self::AccountMismatch { .. } | Self::ExpiryNotInFuture => "invalid_request",
            Self::AccountNotFound => "account_not_found",
            Self::VersionConflict { .. } => "version_conflict",
            Self::AccountLocked => "account_locked",
            Self::InsufficientFrozen { .. } => "insufficient_frozen",
            Self::RefundExceedsDebit { .. } => "refund_exceeds_debit",
            Self::InsufficientBalance { .. } => "insufficient_balance",
            Self::BalanceLimitExceeded { .. } => "balance_limit_exceeded",
        }
    }

    /// The figures and ids of the refusal, by the contract's names.
    #[must_use]
    pub fn figures(&self) -> Map<String, Value> {
        let figures: Vec<(&str, Value)> = match self {
            Self::IdempotencyConflict { transaction_id } => vec![("transaction_id", transaction_id.to_string().into())],
            Self::OperationCompensated { operation_id } => vec![("operation_id", operation_id.to_string().into())],
            Self::FreezeNotFound { freeze_id } => vec![("freeze_id", freeze_id.to_string().into())],
            Self::DebitNotFound { debit_id } => vec![("debit_id", debit_id.to_string().into())],
            Self::AccountMismatch { field } => vec![("field", (*field).into())],
            Self::ExpiryNotInFuture => vec![("field", "expires_at".into())],
            Self::AccountNotFound | Self::AccountLocked => Vec::new(),
            Self::VersionConflict { expected, current } => {
                vec![("expected", (*expected).into()), ("current", (*current).into())]
            }
            Self::InsufficientFrozen { required, remaining } | Self::RefundExceedsDebit { required, remaining } => {
                vec![("required", (*required).into()), ("remaining", (*remaining).into())]
            }
            Self::InsufficientBalance { required, available } => {
                vec![("required", (*required).into()), ("available", (*available).into())]
            }
            Self::BalanceLimitExceeded { balance, amount, maximum } => {
                vec![("balance", (*balance).into()), ("amount", (*amount).into()), ("maximum", (*maximum).into())]
            }
        };
        figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Where a replayed log stops making sense: what an event says is not what the events before it make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("position {position}: {field} should be {expected}, the event says {found}")]
pub struct Contradiction {
    pub position: Position,
    /// The event's field, in the contract's words.
    pub field: &'static str,
    /// What the fold of the events before it gives.
    pub expected: String,
    /// What the event carries.
    pub found: String,
}
