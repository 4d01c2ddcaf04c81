//! The freeze read model's row: a pure fold of the events about one freeze.

use crate::{
    account::Account,
    amount::Amount,
    event::{Event, EventType},
    id::TransactionId,
    key::BusinessKey,
    log::Position,
    rejection::Contradiction,
    shape,
    timestamp::Timestamp,
};

/// A freeze and what became of it. `amount = remaining + captured + released` always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    pub freeze_id: TransactionId,
    pub account: Account,
    pub amount: u64,
    pub remaining: u64,
    pub captured: u64,
    pub released: u64,
    pub expires_at: Option<Timestamp>,
    pub key: BusinessKey,
    pub created_at: Timestamp,
    /// Where the freeze itself stands in its partition.
    pub position: Position,
}

impl Freeze {
    /// The freeze that `event` makes, if it makes one.
    #[must_use]
    pub fn opened_by(event: &Event) -> Option<Self> {
        if event.event_type != EventType::Frozen {
            return None;
        }
        let amount = event.amount.map_or(0, Amount::units);
        Some(Self {
            freeze_id: event.transaction_id,
            account: event.account.clone(),
            amount,
            remaining: amount,
            captured: 0,
            released: 0,
            expires_at: event.expires_at,
            key: event.key.clone(),
            created_at: event.recorded_at,
            position: event.position,
        })
    }

    /// The freeze that `event` captures or releases, wholly or in part, if it does.
    #[must_use]
    pub fn touched_by(event: &Event) -> Option<TransactionId> {
        match event.event_type {
            EventType::Deducted | EventType::Unfrozen => event.related_id,
            _ => None,
        }
    }

    /// Folds in a capture or a release of this freeze, and compares what is left with what the event says.
    ///
    /// # Errors
    ///
    /// A [`Contradiction`] when the event is not about this freeze, is of another account, has a shape that no capture or
    /// release has, takes more than remains, or says another rest.
    pub fn fold(&mut self, event: &Event) -> Result<(), Contradiction> {
        let contradiction =
            |field, expected: String, found: String| Contradiction { position: event.position, field, expected, found };
        if event.related_id != Some(self.freeze_id) {
            let found = event.related_id.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
            return Err(contradiction("related_id", self.freeze_id.to_string(), found));
        }
        if event.account != self.account {
            let (expected, found) = (self.account.id().to_string(), event.account.id().to_string());
            return Err(contradiction("account_id", expected, found));
        }
        if !matches!(event.event_type, EventType::Deducted | EventType::Unfrozen) {
            let found = event.event_type.name().to_owned();
            return Err(contradiction("type", "deducted or unfrozen".to_owned(), found));
        }
        shape::check(&event.bare())?;
        let amount = event.amount.map_or(0, Amount::units);
        let taken = amount.saturating_add(event.released);
        let Some(remaining) = self.remaining.checked_sub(taken) else {
            return Err(contradiction("amount", format!("at most {}", self.remaining), taken.to_string()));
        };
        if event.remaining != Some(remaining) {
            let found = event.remaining.map_or_else(|| "nothing".to_owned(), |found| found.to_string());
            return Err(contradiction("remaining", remaining.to_string(), found));
        }
        if event.event_type == EventType::Deducted {
            self.captured += amount;
            self.released += event.released;
        } else {
            self.released += amount;
        }
        self.remaining = remaining;
        Ok(())
    }

    /// The name of the freeze's status in the contract.
    #[must_use]
    pub const fn status(&self) -> &'static str {
        if self.remaining == 0 { "settled" } else { "open" }
    }
}
