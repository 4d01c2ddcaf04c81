//! What a caller may ask of the ledger.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    account::Account, amount::Amount, event::EventType, id::TransactionId, key::BusinessKey, timestamp::Timestamp,
};

/// One command: it becomes one event, or one refusal.
#[derive(Debug, Clone)]
pub struct Command {
    /// What is asked for.
    pub action: Action,
    /// What makes a repeat of it the same command.
    pub key: BusinessKey,
    /// The account's version that the caller saw, where it insists on it; 0 means not opened yet.
    pub expected_version: Option<u64>,
    /// Who asks, in which request and operation, and what they say of it.
    pub provenance: Provenance,
}

/// What a command asks for.
#[derive(Debug, Clone)]
pub enum Action {
    /// Adds to the balance; opens the account if it is the first.
    Credit { account: Account, amount: Amount },
    /// Takes from what is available.
    Debit { account: Account, amount: Amount },
    /// Takes from a freeze; an absent amount is all that remains of it. With `release_remainder` what is left over is
    /// released by the same event.
    Capture { freeze: TransactionId, named: NamedAccount, amount: Option<Amount>, release_remainder: Option<bool> },
    /// Holds a part of what is available.
    Freeze { account: Account, amount: Amount, expiry: Option<Expiry> },
    /// Lets go of a freeze; an absent amount is all that remains of it.
    Unfreeze { freeze: TransactionId, named: NamedAccount, amount: Option<Amount> },
    /// Gives a deduction back; an absent amount is all that was not given back yet.
    Refund { debit: TransactionId, named: NamedAccount, amount: Option<Amount> },
    /// No value may leave the account any more.
    Lock { account: Account },
    /// Value may leave it again.
    Unlock { account: Account },
}

/// The account that a capture, unfreeze or refund names besides its original: each part is absent or must agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedAccount {
    pub user_id: Option<Arc<str>>,
    pub credit_type: Option<Arc<str>>,
}

impl NamedAccount {
    /// The field that disagrees with `account`, if one does.
    #[must_use]
    pub fn disagreement(&self, account: &Account) -> Option<&'static str> {
        let differs = |named: &Option<Arc<str>>, real: &Arc<str>| named.as_ref().is_some_and(|text| text != real);
        if differs(&self.user_id, account.user_id()) {
            Some("user_id")
        } else if differs(&self.credit_type, account.credit_type()) {
            Some("credit_type")
        } else {
            None
        }
    }
}

/// When an open rest of a freeze is to be released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    At(Timestamp),
    InSeconds(u64),
}

/// Who asks, in which request and operation, and what they say of it.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// Groups the commands of one flow; absent: the transaction's own id.
    pub operation_id: Option<Uuid>,
    pub request_id: Arc<str>,
    pub actor: Arc<str>,
    pub description: Option<Arc<str>>,
    /// A JSON object, as its very text.
    pub metadata: Option<Arc<str>>,
}

impl Action {
    /// The type of the event that this becomes.
    #[must_use]
    pub const fn event_type(&self) -> EventType {
        match self {
            Self::Credit { .. } => EventType::Credited,
            Self::Debit { .. } | Self::Capture { .. } => EventType::Deducted,
            Self::Freeze { .. } => EventType::Frozen,
            Self::Unfreeze { .. } => EventType::Unfrozen,
            Self::Refund { .. } => EventType::Refunded,
            Self::Lock { .. } => EventType::Locked,
            Self::Unlock { .. } => EventType::Unlocked,
        }
    }

    /// What a caller calls it, as in a batch's `type`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Credit { .. } => "credit",
            Self::Debit { .. } | Self::Capture { .. } => "debit",
            Self::Freeze { .. } => "freeze",
            Self::Unfreeze { .. } => "unfreeze",
            Self::Refund { .. } => "refund",
            Self::Lock { .. } => "lock",
            Self::Unlock { .. } => "unlock",
        }
    }

    /// The account, where the command names it itself.
    #[must_use]
    pub const fn account(&self) -> Option<&Account> {
        match self {
            Self::Credit { account, .. }
            | Self::Debit { account, .. }
            | Self::Freeze { account, .. }
            | Self::Lock { account }
            | Self::Unlock { account } => Some(account),
            Self::Capture { .. } | Self::Unfreeze { .. } | Self::Refund { .. } => None,
        }
    }

    /// The freeze or deduction that the command is about.
    #[must_use]
    pub const fn original(&self) -> Option<TransactionId> {
        match self {
            Self::Capture { freeze: original, .. }
            | Self::Unfreeze { freeze: original, .. }
            | Self::Refund { debit: original, .. } => Some(*original),
            _ => None,
        }
    }

    /// The account that a command about an original names besides.
    #[must_use]
    pub const fn named(&self) -> Option<&NamedAccount> {
        match self {
            Self::Capture { named, .. } | Self::Unfreeze { named, .. } | Self::Refund { named, .. } => Some(named),
            _ => None,
        }
    }

    /// The amount, where the command states one.
    #[must_use]
    pub const fn stated_amount(&self) -> Option<Amount> {
        match self {
            Self::Credit { amount, .. } | Self::Debit { amount, .. } | Self::Freeze { amount, .. } => Some(*amount),
            Self::Capture { amount, .. } | Self::Unfreeze { amount, .. } | Self::Refund { amount, .. } => *amount,
            Self::Lock { .. } | Self::Unlock { .. } => None,
        }
    }
}
