//! The judgement of a command: guards first, one named refusal each, in the order of [`Rejection`]; then the effect.

use crate::{
    account::AccountState,
    amount::{Amount, MAX_AMOUNT},
    command::{Action, Command, Expiry},
    event::{Event, EventType, Movement},
    id::{AccountId, TransactionId},
    rejection::Rejection,
    timestamp::Timestamp,
};

/// All that a decision is based on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The account as its newest event left it; `None` when it was never credited.
    pub account: Option<&'a AccountState>,
    /// The freeze or deduction that the command names; `None` when there is none of that id, or the command names none.
    pub original: Option<&'a Original>,
}

/// A freeze or a deduction as the newest event about it left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Original {
    pub transaction_id: TransactionId,
    pub account_id: AccountId,
    pub kind: OriginalKind,
    /// What is left of it: to capture or release of a freeze, to refund of a deduction.
    pub remaining: u64,
}

/// What a capture, release or refund can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalKind {
    Freeze,
    Deduction,
}

impl Original {
    /// The original that `event` makes, if it makes one.
    #[must_use]
    pub fn made_by(event: &Event) -> Option<Self> {
        let amount = event.amount.map_or(0, Amount::units);
        let kind = match event.event_type {
            EventType::Frozen => OriginalKind::Freeze,
            EventType::Deducted => OriginalKind::Deduction,
            _ => return None,
        };
        // A capture's `remaining` speaks of its freeze; of the capture itself everything may be refunded.
        Some(Self { transaction_id: event.transaction_id, account_id: event.account.id(), kind, remaining: amount })
    }
}

/// What a command that is not refused does: an event but for its place, its time and who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    pub event_type: EventType,
    pub amount: Option<Amount>,
    pub released: u64,
    pub related_id: Option<TransactionId>,
    pub remaining: Option<u64>,
    pub after: AccountState,
    pub expires_at: Option<Timestamp>,
}

/// Whether `command` repeats the one that made `first`, the event that its key is bound to. What the repeat leaves out
/// agrees with anything.
///
/// # Errors
///
/// [`Rejection::IdempotencyConflict`] when it is another command.
pub fn repeats(first: &Event, command: &Command) -> Result<(), Rejection> {
    let action = &command.action;
    let same = first.event_type == action.event_type()
        && action.account().is_none_or(|account| *account == first.account)
        && action.named().is_none_or(|named| named.disagreement(&first.account).is_none())
        && action.stated_amount().is_none_or(|amount| Some(amount) == first.amount)
        && action.original().is_none_or(|original| Some(original) == first.related_id)
        && match action {
            // The event tells the flag by what it did. A capture of the whole rest did the same under either flag.
            Action::Capture { release_remainder: Some(true), .. } => first.remaining == Some(0),
            Action::Capture { release_remainder: Some(false), .. } => first.released == 0,
            _ => true,
        };
    if same { Ok(()) } else { Err(Rejection::IdempotencyConflict { transaction_id: first.transaction_id }) }
}

/// Judges a command that is no repeat. `now` is the instant that the event will be recorded at.
///
/// # Errors
///
/// The first refusal that applies, in the order of [`Rejection`].
pub fn decide(situation: &Situation<'_>, command: &Command, now: Timestamp) -> Result<Effect, Rejection> {
    let action = &command.action;
    let original = find_original(situation, action)?;
    let state = match (situation.account, action) {
        (Some(state), _) => *state,
        (None, Action::Credit { .. }) => AccountState::default(),
        (None, _) => return Err(Rejection::AccountNotFound),
    };
    if let Some(expected) = command.expected_version
        && expected != state.version
    {
        return Err(Rejection::VersionConflict { expected, current: state.version });
    }
    let takes_value = matches!(action, Action::Debit { .. } | Action::Capture { .. } | Action::Freeze { .. });
    if takes_value && state.locked {
        return Err(Rejection::AccountLocked);
    }
    let expires_at = expiry(action, now)?;
    let draft = draft(action, &state, original)?;
    let movement = Movement {
        event_type: action.event_type(),
        amount: draft.amount.map_or(0, Amount::units),
        released: draft.released,
        of_freeze: matches!(action, Action::Capture { .. }),
    };
    let after = state.apply(&movement).expect("the guards admit only what the state can bear");
    Ok(Effect {
        event_type: movement.event_type,
        amount: draft.amount,
        released: draft.released,
        related_id: action.original(),
        remaining: draft.remaining,
        after,
        expires_at,
    })
}

struct Draft {
    amount: Option<Amount>,
    released: u64,
    remaining: Option<u64>,
}

/// The guards that compare amounts, and the amounts that pass them.
fn draft(action: &Action, state: &AccountState, original: Option<&Original>) -> Result<Draft, Rejection> {
    let left = original.map_or(0, |original| original.remaining);
    let available = state.available();
    match *action {
        Action::Credit { amount, .. } => {
            within_limit(state, amount)?;
            Ok(Draft { amount: Some(amount), released: 0, remaining: None })
        }
        Action::Debit { amount, .. } | Action::Freeze { amount, .. } => {
            if amount.units() > available {
                return Err(Rejection::InsufficientBalance { required: amount.units(), available });
            }
            Ok(Draft { amount: Some(amount), released: 0, remaining: Some(amount.units()) })
        }
        Action::Capture { amount, release_remainder, .. } => {
            let amount = part_of(left, amount)
                .map_err(|required| Rejection::InsufficientFrozen { required, remaining: left })?;
            let rest = left - amount.units();
            let released = if release_remainder == Some(true) { rest } else { 0 };
            Ok(Draft { amount: Some(amount), released, remaining: Some(rest - released) })
        }
        Action::Unfreeze { amount, .. } => {
            let amount = part_of(left, amount)
                .map_err(|required| Rejection::InsufficientFrozen { required, remaining: left })?;
            Ok(Draft { amount: Some(amount), released: 0, remaining: Some(left - amount.units()) })
        }
        Action::Refund { amount, .. } => {
            let amount = part_of(left, amount)
                .map_err(|required| Rejection::RefundExceedsDebit { required, remaining: left })?;
            within_limit(state, amount)?;
            Ok(Draft { amount: Some(amount), released: 0, remaining: Some(left - amount.units()) })
        }
        Action::Lock { .. } | Action::Unlock { .. } => Ok(Draft { amount: None, released: 0, remaining: None }),
    }
}

/// The freeze or deduction that the action names, of the right kind and of the account that is named besides.
fn find_original<'a>(situation: &Situation<'a>, action: &Action) -> Result<Option<&'a Original>, Rejection> {
    let (wanted, kind, missing) = match *action {
        Action::Capture { freeze, .. } | Action::Unfreeze { freeze, .. } => {
            (freeze, OriginalKind::Freeze, Rejection::FreezeNotFound { freeze_id: freeze })
        }
        Action::Refund { debit, .. } => (debit, OriginalKind::Deduction, Rejection::DebitNotFound { debit_id: debit }),
        _ => return Ok(None),
    };
    match situation.original {
        Some(original) if original.transaction_id == wanted && original.kind == kind => Ok(Some(original)),
        _ => Err(missing),
    }
}

/// The amount that a command about an original means, or what it would have required: the stated one, or all that is
/// left, which must be something.
fn part_of(left: u64, stated: Option<Amount>) -> Result<Amount, u64> {
    let units = stated.map_or(left, Amount::units);
    if units > left {
        return Err(units);
    }
    // Nothing is left and nothing was stated: the least that could have been meant is one unit.
    Amount::new(units).map_err(|_| 1)
}

fn within_limit(state: &AccountState, amount: Amount) -> Result<(), Rejection> {
    let (balance, amount) = (state.balance, amount.units());
    if amount > MAX_AMOUNT - balance {
        return Err(Rejection::BalanceLimitExceeded { balance, amount, maximum: MAX_AMOUNT });
    }
    Ok(())
}

fn expiry(action: &Action, now: Timestamp) -> Result<Option<Timestamp>, Rejection> {
    let Action::Freeze { expiry: Some(expiry), .. } = action else { return Ok(None) };
    let at = match *expiry {
        Expiry::At(at) => Some(at),
        Expiry::InSeconds(seconds) => now.plus_seconds(seconds),
    };
    match at {
        Some(at) if at > now => Ok(Some(at)),
        _ => Err(Rejection::ExpiryNotInFuture),
    }
}
