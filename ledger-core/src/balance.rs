//! The balance read model's row: a pure fold of one account's events.

use crate::{
    account::{Account, AccountState},
    bare::BareEvent,
    event::{Event, EventType},
    log::Position,
    rejection::Contradiction,
    shape,
    timestamp::Timestamp,
};

/// An account's balance at one position of its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    pub account: Account,
    pub state: AccountState,
    /// The newest event that is folded in.
    pub position: Position,
    /// When that event was recorded.
    pub updated_at: Timestamp,
}

impl Balance {
    /// The balance after `event`, folded from its amounts and compared with the state that it carries.
    ///
    /// # Errors
    ///
    /// A [`Contradiction`] when the event cannot follow `before`, has a shape that no event has, or carries another state
    /// than the fold reaches.
    pub fn fold(before: Option<&Self>, event: &Event) -> Result<Self, Contradiction> {
        is_same_account(before, event)?;
        follow(before.map(|before| (&before.state, before.position)), &event.bare())?;
        Ok(Self::carried(event))
    }

    /// Folds `event` into this balance, like [`Balance::fold`]; a contradiction leaves it as it was.
    ///
    /// # Errors
    ///
    /// As [`Balance::fold`].
    pub fn advance(&mut self, event: &Event) -> Result<(), Contradiction> {
        is_same_account(Some(self), event)?;
        follow(Some((&self.state, self.position)), &event.bare())?;
        self.believe(event);
        Ok(())
    }

    /// The balance that `event` carries, without a comparison.
    #[must_use]
    pub fn carried(event: &Event) -> Self {
        Self {
            account: event.account.clone(),
            state: event.after,
            position: event.position,
            updated_at: event.recorded_at,
        }
    }

    /// The balance that `event` follows: the one that its amounts lead from to the state that it carries. All but
    /// `updated_at`, which the event does not tell and which is the event's own here. `None` for an account's first event,
    /// for a lock or unlock, and for an event that can follow nothing.
    #[must_use]
    pub fn preceding(event: &Event) -> Option<Self> {
        let state = event.after.undo(&event.movement())?;
        (state.version > 0).then(|| Self {
            account: event.account.clone(),
            state,
            position: event.previous_position,
            updated_at: event.recorded_at,
        })
    }

    /// Takes over what an event of this account carries, without a comparison.
    pub fn believe(&mut self, event: &Event) {
        self.state = event.after;
        self.position = event.position;
        self.updated_at = event.recorded_at;
    }

    /// The name of the account's status in the contract.
    #[must_use]
    pub const fn status(&self) -> &'static str {
        if self.state.locked { "locked" } else { "active" }
    }
}

fn is_same_account(before: Option<&Balance>, event: &Event) -> Result<(), Contradiction> {
    match before {
        Some(before) if before.account != event.account => {
            let name = |account: &Account| format!("{}/{}", account.user_id(), account.credit_type());
            let (expected, found) = (name(&before.account), name(&event.account));
            Err(Contradiction { position: event.position, field: "account_id", expected, found })
        }
        _ => Ok(()),
    }
}

/// Whether `event` can be the one after its account's newest so far, which left that state and stands there, and carries
/// what its amounts make of it. Whether it is the same account, the caller knows.
///
/// # Errors
///
/// A [`Contradiction`] when it cannot.
pub fn follow(before: Option<(&AccountState, Position)>, event: &BareEvent<'_>) -> Result<(), Contradiction> {
    let contradiction =
        |field, expected: String, found: String| Contradiction { position: event.position, field, expected, found };
    let (state, position) =
        before.map_or((AccountState::default(), Position::ZERO), |(state, position)| (*state, position));
    if event.after.version != state.version + 1 {
        return Err(contradiction("version", (state.version + 1).to_string(), event.after.version.to_string()));
    }
    if event.previous_position != position {
        let (expected, found) = (position.to_string(), event.previous_position.to_string());
        return Err(contradiction("previous_position", expected, found));
    }
    shape::check(event)?;
    let found = || event.event_type.name().to_owned();
    if before.is_none() && event.event_type != EventType::Credited {
        return Err(contradiction("type", "credited: only a credit opens an account".to_owned(), found()));
    }
    if state.locked && matches!(event.event_type, EventType::Deducted | EventType::Frozen) {
        let expected = "nothing that takes value: the account is locked".to_owned();
        return Err(contradiction("type", expected, found()));
    }
    let after = state.apply(&event.movement()).map_err(|impossible| {
        let expected = format!("one that balance {} and frozen {} can bear", state.balance, state.frozen);
        contradiction("amount", expected, impossible.units.to_string())
    })?;
    for (field, expected, found) in [
        ("balance", after.balance, event.after.balance),
        ("frozen", after.frozen, event.after.frozen),
        ("locked", u64::from(after.locked), u64::from(event.after.locked)),
    ] {
        if expected != found {
            return Err(contradiction(field, expected.to_string(), found.to_string()));
        }
    }
    Ok(())
}
