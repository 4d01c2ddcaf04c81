//! What happened.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    account::{Account, AccountState},
    amount::Amount,
    chain,
    command::Command,
    decide::Effect,
    id::TransactionId,
    key::BusinessKey,
    log::{Epoch, Hash, Head, Partition, Position, Slot},
    timestamp::Timestamp,
};

/// The version of the event's shape that this code writes.
pub const SCHEMA_VERSION: u16 = 1;

/// The kinds of event. The numbers are part of the canonical bytes and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventType {
    Credited = 1,
    Deducted = 2,
    Frozen = 3,
    Unfrozen = 4,
    Refunded = 5,
    Locked = 6,
    Unlocked = 7,
}

impl EventType {
    /// Every type, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Credited, Self::Deducted, Self::Frozen, Self::Unfrozen, Self::Refunded, Self::Locked, Self::Unlocked];

    /// The name in JSON, in the database and in subjects.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credited => "credited",
            Self::Deducted => "deducted",
            Self::Frozen => "frozen",
            Self::Unfrozen => "unfrozen",
            Self::Refunded => "refunded",
            Self::Locked => "locked",
            Self::Unlocked => "unlocked",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event_type| event_type.name() == name)
    }
}

/// The mark of an atomic batch on each of its events, so that a recovery never accepts half of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMark {
    /// The id of the batch's first event.
    pub id: Uuid,
    /// How many events the batch made.
    pub size: u32,
    /// This event's place among them, from 0.
    pub index: u32,
}

/// One fact, as it is stored: self-contained, so that the events alone rebuild everything. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub partition: Partition,
    pub epoch: Epoch,
    pub position: Position,
    /// Where the account's previous event is in the same partition; 0 when this is its first.
    pub previous_position: Position,
    pub transaction_id: TransactionId,
    pub event_type: EventType,
    pub schema_version: u16,
    pub account: Account,
    /// What was moved; absent for a lock and an unlock.
    pub amount: Option<Amount>,
    /// What a capture let go besides.
    pub released: u64,
    /// The freeze or deduction that this is about.
    pub related_id: Option<TransactionId>,
    /// What is left of the original after this event; without one, what is left of this event itself.
    pub remaining: Option<u64>,
    /// The account right after this event.
    pub after: AccountState,
    pub key: BusinessKey,
    pub operation_id: Uuid,
    pub request_id: Arc<str>,
    pub actor: Arc<str>,
    pub description: Option<Arc<str>>,
    /// A JSON object, as its very text.
    pub metadata: Option<Arc<str>>,
    pub expires_at: Option<Timestamp>,
    pub recorded_at: Timestamp,
    pub batch: Option<BatchMark>,
    /// BLAKE3 over the previous event's hash and this event's canonical bytes.
    pub hash: Hash,
}

/// The amounts of an event: all that the fold of a balance needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movement {
    pub event_type: EventType,
    /// 0 for a lock and an unlock.
    pub amount: u64,
    pub released: u64,
    /// Whether a deduction took from a freeze.
    pub of_freeze: bool,
}

impl Event {
    /// Writes a decision down: gives it its place, its id, its time and its link of the hash chain.
    #[must_use]
    pub fn seal(
        account: &Account,
        command: &Command,
        effect: &Effect,
        slot: &Slot,
        batch: Option<BatchMark>,
        recorded_at: Timestamp,
    ) -> Self {
        let position = slot.head.position.next();
        let transaction_id = TransactionId::derive(account, slot.head.epoch, position, &command.key);
        let provenance = &command.provenance;
        let mut event = Self {
            partition: slot.partition,
            epoch: slot.head.epoch,
            position,
            previous_position: slot.previous_position,
            transaction_id,
            event_type: effect.event_type,
            schema_version: SCHEMA_VERSION,
            account: account.clone(),
            amount: effect.amount,
            released: effect.released,
            related_id: effect.related_id,
            remaining: effect.remaining,
            after: effect.after,
            key: command.key.clone(),
            operation_id: provenance.operation_id.unwrap_or_else(|| transaction_id.uuid()),
            request_id: provenance.request_id.clone(),
            actor: provenance.actor.clone(),
            description: provenance.description.clone(),
            metadata: provenance.metadata.clone(),
            expires_at: effect.expires_at,
            recorded_at,
            batch,
            hash: Hash::ZERO,
        };
        event.hash = chain::link(&slot.head.hash, &event);
        event
    }

    /// The head of the partition once this is its newest event.
    #[must_use]
    pub const fn head(&self) -> Head {
        Head { epoch: self.epoch, position: self.position, hash: self.hash }
    }

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
