//! Operations: the commands that a caller groups under one id, and what it takes to reverse all of them.

use std::collections::HashSet;

use uuid::Uuid;

use crate::{
    account::Account,
    command::{Action, NamedAccount},
    event::{Event, EventType},
    id::TransactionId,
    key::BusinessKey,
    log::Partition,
};

/// The business code of every event that reverses another one as a part of a compensation; its business id is the id of
/// the reversed transaction, so that none is reversed twice.
pub const COMPENSATION_CODE: &str = "system.compensation";

/// 64 bits of BLAKE3 over an operation's id: where an index looks for its events. Two operations may share it, so whoever
/// looks one up compares the events that are found.
#[must_use]
pub fn hash(operation_id: Uuid) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"ledger.operation.v1");
    hasher.update(operation_id.as_bytes());
    let bytes = hasher.finalize();
    u64::from_be_bytes(std::array::from_fn(|index| bytes.as_bytes()[index]))
}

/// The partition that holds what is recorded of an operation beside the events.
#[must_use]
pub fn partition(operation_id: Uuid) -> Partition {
    Partition::of_byte(hash(operation_id).to_be_bytes()[0])
}

/// The operation that a caller put an event under; `None` where it is one of its own.
#[must_use]
pub fn given(event: &Event) -> Option<Uuid> {
    (event.operation_id != event.transaction_id.uuid()).then_some(event.operation_id)
}

/// What reverses one transaction. Its amount is whatever of it is not reversed yet when it is decided.
#[derive(Debug, Clone)]
pub struct Reversal {
    /// The transaction that is reversed.
    pub reversed: TransactionId,
    pub account: Account,
    pub action: Action,
}

impl Reversal {
    /// The key that makes the reversal happen once.
    #[must_use]
    pub fn key(&self) -> BusinessKey {
        BusinessKey::stored(COMPENSATION_CODE.into(), self.reversed.to_string().into())
    }
}

/// A transaction that nothing reverses: a lock, an unlock, the release of a freeze that another operation made, which is
/// settled for ever, or the refund of a deduction that another operation made, which stays refunded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Irreversible {
    pub transaction_id: TransactionId,
    pub event_type: EventType,
}

/// What reverses an operation whose events are `events`: what it froze is released, what it deducted is refunded, what it
/// credited is taken back, in this order, so that what comes back first can be taken.
///
/// # Errors
///
/// Every transaction that nothing reverses.
pub fn reversals(events: &[Event]) -> Result<Vec<Reversal>, Vec<Irreversible>> {
    // An operation may have very many events.
    let ids: HashSet<_> = events.iter().map(|event| event.transaction_id).collect();
    let own = |id: Option<TransactionId>| id.is_some_and(|id| ids.contains(&id));
    let mut found: [Vec<Reversal>; 3] = Default::default();
    let mut irreversible = Vec::new();
    for event in events.iter().filter(|event| &**event.key.code() != COMPENSATION_CODE) {
        let reversal = |action| Reversal { reversed: event.transaction_id, account: event.account.clone(), action };
        let settled = Irreversible { transaction_id: event.transaction_id, event_type: event.event_type };
        let named = NamedAccount::default();
        // What a capture released of its freeze cannot be held again either.
        let releases = event.event_type == EventType::Unfrozen || event.released > 0;
        match event.event_type {
            _ if releases && !own(event.related_id) => irreversible.push(settled),
            // Its original is reversed by whatever remains of it.
            EventType::Unfrozen => {}
            EventType::Refunded if own(event.related_id) => {}
            EventType::Frozen => {
                found[0].push(reversal(Action::Unfreeze { freeze: event.transaction_id, named, amount: None }));
            }
            EventType::Deducted => {
                found[1].push(reversal(Action::Refund { debit: event.transaction_id, named, amount: None }));
            }
            EventType::Credited => {
                let amount = event.amount.expect("a credit has an amount");
                found[2].push(reversal(Action::Debit { account: event.account.clone(), amount }));
            }
            // A debit would take the units back and leave the other operation's deduction refunded: when that one is
            // reversed, too, they would be lost.
            EventType::Refunded | EventType::Locked | EventType::Unlocked => irreversible.push(settled),
        }
    }
    if irreversible.is_empty() { Ok(found.into_iter().flatten().collect()) } else { Err(irreversible) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        account::AccountState,
        amount::Amount,
        command::{Command, Provenance},
        decide::Effect,
        log::{Head, Position, Slot},
        timestamp::Timestamp,
    };

    /// What happened at a position of the operation's only account.
    fn event(position: u64, event_type: EventType, related_id: Option<TransactionId>) -> Event {
        let account = Account::new("ann", "points").expect("valid");
        let amount = Amount::new(1).expect("valid");
        let command = Command {
            // The effect says what happened.
            action: Action::Credit { account: account.clone(), amount },
            key: BusinessKey::new("order", &position.to_string()).expect("valid"),
            expected_version: None,
            provenance: Provenance {
                operation_id: Some(Uuid::from_u128(1)),
                request_id: "request".into(),
                actor: "test".into(),
                description: None,
                metadata: None,
            },
        };
        let effect = Effect {
            event_type,
            amount: Some(amount),
            released: 0,
            related_id,
            remaining: None,
            after: AccountState::default(),
            expires_at: None,
        };
        let head = Head { position: Position(position - 1), ..Head::EMPTY };
        let slot = Slot { partition: account.partition(), head, previous_position: Position::ZERO };
        let now = Timestamp::from_micros(1_700_000_000_000_000).expect("in range");
        Event::seal(&account, &command, &effect, &slot, None, now)
    }

    #[test]
    fn of_many_freezes_only_the_operations_own_are_released() {
        const FREEZES: u64 = 5_000;
        let mut events: Vec<_> = (1..=FREEZES).map(|position| event(position, EventType::Frozen, None)).collect();
        let freezes: Vec<_> = events.iter().map(|event| event.transaction_id).collect();
        for (position, freeze) in (FREEZES + 1..).zip(&freezes) {
            events.push(event(position, EventType::Unfrozen, Some(*freeze)));
        }
        let found = reversals(&events).expect("nothing is in the way");
        let reversed: Vec<_> = found.iter().map(|reversal| reversal.reversed).collect();
        assert_eq!(reversed, freezes);
        for reversal in &found {
            assert!(
                matches!(reversal.action, Action::Unfreeze { freeze, .. } if freeze == reversal.reversed),
                "{reversal:?}"
            );
        }

        let elsewhere = event(3 * FREEZES, EventType::Frozen, None).transaction_id;
        let release = event(2 * FREEZES + 1, EventType::Unfrozen, Some(elsewhere));
        let transaction_id = release.transaction_id;
        events.push(release);
        let irreversible = reversals(&events).expect_err("the release of another operation's freeze is settled");
        assert_eq!(irreversible, [Irreversible { transaction_id, event_type: EventType::Unfrozen }]);
    }

    #[test]
    fn a_refund_is_undone_with_its_own_deduction_and_with_no_other() {
        let deduction = event(1, EventType::Deducted, None);
        let own = event(2, EventType::Refunded, Some(deduction.transaction_id));
        let reversed: Vec<_> = reversals(&[deduction.clone(), own.clone()])
            .expect("the rest of the deduction is refunded")
            .iter()
            .map(|reversal| reversal.reversed)
            .collect();
        assert_eq!(reversed, [deduction.transaction_id]);

        // Where the deduction is another operation's, nothing makes it refundable again.
        let irreversible = reversals(std::slice::from_ref(&own)).expect_err("the refund stands");
        let transaction_id = own.transaction_id;
        assert_eq!(irreversible, [Irreversible { transaction_id, event_type: EventType::Refunded }]);
    }
}
