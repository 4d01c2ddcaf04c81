//! Accounts: who they belong to and what they hold.

use std::{hash, sync::Arc};

use crate::{
    amount::MAX_AMOUNT,
    event::{EventType, Movement},
    id::AccountId,
    log::Partition,
    text::{self, ID_CHARS_MAX, InvalidField},
};

/// Which account: `(user_id, credit_type)`, and the id that follows from them. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Account {
    id: AccountId,
    user_id: Arc<str>,
    credit_type: Arc<str>,
}

impl Account {
    /// The account of `user_id` and `credit_type`: 1–128 characters each, no control characters.
    pub fn new(user_id: &str, credit_type: &str) -> Result<Self, InvalidField> {
        let user_id = text::identifier("user_id", user_id, ID_CHARS_MAX)?;
        let credit_type = text::identifier("credit_type", credit_type, ID_CHARS_MAX)?;
        Ok(Self { id: AccountId::derive(&user_id, &credit_type), user_id, credit_type })
    }

    /// An account as it was stored; the id is trusted, whoever needs proof compares it with [`Account::new`]'s.
    #[must_use]
    pub fn stored(id: AccountId, user_id: Arc<str>, credit_type: Arc<str>) -> Self {
        Self { id, user_id, credit_type }
    }

    /// Whether the id is the one that follows from `user_id` and `credit_type`.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.id == AccountId::derive(&self.user_id, &self.credit_type)
    }

    /// The account's id.
    #[must_use]
    pub const fn id(&self) -> AccountId {
        self.id
    }

    /// The partition that holds the account, for ever.
    #[must_use]
    pub fn partition(&self) -> Partition {
        self.id.partition()
    }

    /// Whose credits these are, in the caller's words.
    #[must_use]
    pub fn user_id(&self) -> &Arc<str> {
        &self.user_id
    }

    /// Which credits these are, in the caller's words.
    #[must_use]
    pub fn credit_type(&self) -> &Arc<str> {
        &self.credit_type
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.user_id == other.user_id && self.credit_type == other.credit_type
    }
}

impl Eq for Account {}

impl hash::Hash for Account {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

/// What an account holds. `0 ≤ frozen ≤ balance ≤` [`MAX_AMOUNT`] always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AccountState {
    /// What the account owns.
    pub balance: u64,
    /// The part of it that is held.
    pub frozen: u64,
    /// Locked by an administrator: value may come in, none may leave.
    pub locked: bool,
    /// How many events the account has had.
    pub version: u64,
}

/// An event's amounts cannot have happened to the state before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a movement of {units} would leave balance or frozen outside 0 ..= frozen ..= balance ..= {MAX_AMOUNT}")]
pub struct Impossible {
    /// The amount that does not fit.
    pub units: u64,
}

impl AccountState {
    /// What may be spent or frozen: `balance − frozen`. (A damaged row may hold more frozen than owned: then nothing is.)
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.balance.saturating_sub(self.frozen)
    }

    /// The state after a movement. It judges nothing but arithmetic: whether the movement was allowed was decided when
    /// it was recorded, and a replay must reach what was recorded.
    pub fn apply(&self, movement: &Movement) -> Result<Self, Impossible> {
        let &Movement { event_type, amount, released, of_freeze } = movement;
        let impossible = Impossible { units: amount.saturating_add(released) };
        let add = |value: u64, units: u64| value.checked_add(units).ok_or(impossible);
        let take = |value: u64, units: u64| value.checked_sub(units).ok_or(impossible);
        let mut after = *self;
        match event_type {
            EventType::Credited | EventType::Refunded => after.balance = add(self.balance, amount)?,
            EventType::Deducted if of_freeze => {
                after.balance = take(self.balance, amount)?;
                after.frozen = take(self.frozen, add(amount, released)?)?;
            }
            EventType::Deducted => after.balance = take(self.balance, amount)?,
            EventType::Frozen => after.frozen = add(self.frozen, amount)?,
            EventType::Unfrozen => after.frozen = take(self.frozen, amount)?,
            EventType::Locked => after.locked = true,
            EventType::Unlocked => after.locked = false,
        }
        if after.frozen > after.balance || after.balance > MAX_AMOUNT {
            return Err(impossible);
        }
        after.version += 1;
        Ok(after)
    }

    /// The state that a movement came to this one from. `None` when there is none, and for a lock or unlock, which do not
    /// tell whether the account was locked before.
    #[must_use]
    pub fn undo(&self, movement: &Movement) -> Option<Self> {
        let &Movement { event_type, amount, released, of_freeze } = movement;
        let mut before = *self;
        match event_type {
            EventType::Credited | EventType::Refunded => before.balance = self.balance.checked_sub(amount)?,
            EventType::Deducted => {
                before.balance = self.balance.checked_add(amount)?;
                if of_freeze {
                    before.frozen = self.frozen.checked_add(amount.checked_add(released)?)?;
                }
            }
            EventType::Frozen => before.frozen = self.frozen.checked_sub(amount)?,
            EventType::Unfrozen => before.frozen = self.frozen.checked_add(amount)?,
            EventType::Locked | EventType::Unlocked => return None,
        }
        before.version = self.version.checked_sub(1)?;
        (before.apply(movement) == Ok(*self)).then_some(before)
    }
}
