//! An event whose texts are borrowed: for a replay, which looks at millions of events and keeps few of their texts.

use uuid::Uuid;

use crate::{
    account::AccountState,
    amount::Amount,
    event::{BatchMark, Event, EventType, Movement},
    id::{AccountId, TransactionId},
    log::{Epoch, Hash, Partition, Position},
    timestamp::Timestamp,
};

/// An [`Event`], field by field, with its account and its key taken apart. Copying it copies no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BareEvent<'t> {
    pub partition: Partition,
    pub epoch: Epoch,
    pub position: Position,
    pub previous_position: Position,
    pub transaction_id: TransactionId,
    pub event_type: EventType,
    pub schema_version: u16,
    pub account_id: AccountId,
    pub user_id: &'t str,
    pub credit_type: &'t str,
    pub amount: Option<Amount>,
    pub released: u64,
    pub related_id: Option<TransactionId>,
    pub remaining: Option<u64>,
    pub after: AccountState,
    pub business_code: &'t str,
    pub business_id: &'t str,
    pub operation_id: Uuid,
    pub request_id: &'t str,
    pub actor: &'t str,
    pub description: Option<&'t str>,
    pub metadata: Option<&'t str>,
    pub expires_at: Option<Timestamp>,
    pub recorded_at: Timestamp,
    pub batch: Option<BatchMark>,
    pub hash: Hash,
}

impl Event {
    /// The same event with borrowed texts.
    #[must_use]
    pub fn bare(&self) -> BareEvent<'_> {
        // Every field by name: a field that is added to the event does not compile until it has its place here.
        let Self {
            partition,
            epoch,
            position,
            previous_position,
            transaction_id,
            event_type,
            schema_version,
            account,
            amount,
            released,
            related_id,
            remaining,
            after,
            key,
            operation_id,
            request_id,
            actor,
            description,
            metadata,
            expires_at,
            recorded_at,
            batch,
            hash,
        } = self;
        BareEvent {
            partition: *partition,
            epoch: *epoch,
            position: *position,
            previous_position: *previous_position,
            transaction_id: *transaction_id,
            event_type: *event_type,
            schema_version: *schema_version,
            account_id: account.id(),
            user_id: account.user_id(),
            credit_type: account.credit_type(),
            amount: *amount,
            released: *released,
            related_id: *related_id,
            remaining: *remaining,
            after: *after,
            business_code: key.code(),
            business_id: key.id(),
            operation_id: *operation_id,
            request_id,
            actor,
            description: description.as_deref(),
            metadata: metadata.as_deref(),
            expires_at: *expires_at,
            recorded_at: *recorded_at,
            batch: *batch,
            hash: *hash,
        }
    }
}

impl BareEvent<'_> {
    /// The amounts that a fold applies.
    #[must_use]
    pub fn movement(&self) -> Movement {
        Movement {
            event_type: self.event_type,
            amount: self.amount.map_or(0, Amount::units),
            released: self.released,
            of_freeze: self.event_type == EventType::Deducted && self.related_id.is_some(),
        }
    }
}
