//! An event as a row: the columns, and what a row must be like to be an event again.

use std::sync::Arc;

use ledger_core::{
    Account, AccountId, AccountState, Amount, BareEvent, BatchMark, BusinessKey, Epoch, Event, EventType, Hash, Head,
    MAX_AMOUNT, Partition, Position, Timestamp, TransactionId, id::POSITION_MAX,
};
use uuid::Uuid;

use crate::{DamagedRow, StoreError, restore::RestorePoint};

/// The columns of `events` in the order in which both databases have, read and write them: PostgreSQL sends rows as they
/// lie then, and need not put each together anew, which takes a tenth of its time.
pub(crate) const COLUMNS: &str = "position, previous_position, epoch, version, amount, released, remaining, balance, frozen, available, \
     expires_at, recorded_at, transaction_id, account_id, related_id, operation_id, batch_id, batch_size, \
     batch_index, partition, schema_version, locked, type, user_id, credit_type, business_code, business_id, \
     request_id, actor, description, metadata, hash";

/// The same columns of `events e` in a join.
pub(crate) const JOINED_COLUMNS: &str = "e.position, e.previous_position, e.epoch, e.version, e.amount, e.released, e.remaining, e.balance, \
     e.frozen, e.available, e.expires_at, e.recorded_at, e.transaction_id, e.account_id, e.related_id, \
     e.operation_id, e.batch_id, e.batch_size, e.batch_index, e.partition, e.schema_version, e.locked, \
     e.type, e.user_id, e.credit_type, e.business_code, e.business_id, e.request_id, e.actor, e.description, \
     e.metadata, e.hash";

/// How many they are.
pub(crate) const COLUMN_COUNT: usize = 32;

/// The same columns for a fold of balances and freezes: what that does not look at is neither read nor sent, something of
/// the same type stands in its place. The hash of such an event cannot be checked.
pub(crate) fn columns_of_a_fold() -> String {
    let in_place = |column| match column {
        "batch_id" | "batch_size" | "batch_index" | "description" | "metadata" => "null",
        "request_id" | "actor" => "''",
        "operation_id" => "account_id",
        column => column,
    };
    COLUMNS.split(", ").map(in_place).collect::<Vec<_>>().join(", ")
}

/// A row in the types that both databases can give, before anything is believed of it.
pub(crate) struct EventRow<'r> {
    pub(crate) partition: Partition,
    pub(crate) position: Position,
    pub(crate) previous_position: i64,
    pub(crate) epoch: i64,
    pub(crate) version: i64,
    pub(crate) amount: Option<i64>,
    pub(crate) released: i64,
    pub(crate) remaining: Option<i64>,
    pub(crate) balance: i64,
    pub(crate) frozen: i64,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) recorded_at: Timestamp,
    pub(crate) transaction_id: Uuid,
    pub(crate) account_id: Uuid,
    pub(crate) related_id: Option<Uuid>,
    pub(crate) operation_id: Uuid,
    pub(crate) batch_id: Option<Uuid>,
    pub(crate) batch_size: Option<i64>,
    pub(crate) batch_index: Option<i64>,
    pub(crate) schema_version: i64,
    pub(crate) locked: bool,
    pub(crate) event_type: &'r str,
    pub(crate) user_id: &'r str,
    pub(crate) credit_type: &'r str,
    pub(crate) business_code: &'r str,
    pub(crate) business_id: &'r str,
    pub(crate) request_id: &'r str,
    pub(crate) actor: &'r str,
    pub(crate) description: Option<&'r str>,
    pub(crate) metadata: Option<&'r str>,
    pub(crate) hash: &'r [u8],
    pub(crate) available: i64,
}

/// What is wrong with a column.
pub(crate) type Damage = (&'static str, String);

/// The texts of the row before: many rows in a row have the same type of credit, code or actor, and a text that is shared
/// need not be allocated.
#[derive(Debug, Default)]
pub(crate) struct Texts([Option<Arc<str>>; 7]);

impl Texts {
    fn share(&mut self, column: usize, text: &str) -> Arc<str> {
        match &self.0[column] {
            Some(before) if **before == *text => before.clone(),
            _ => {
                let text: Arc<str> = text.into();
                self.0[column] = Some(text.clone());
                text
            }
        }
    }
}

impl EventRow<'_> {
    /// The event that the row is.
    pub(crate) fn into_event(self) -> Result<Event, DamagedRow> {
        self.into_event_sharing(&mut Texts::default())
    }

    /// The event that the row is, which shares texts with the one before it.
    pub(crate) fn into_event_sharing(self, texts: &mut Texts) -> Result<Event, DamagedRow> {
        let (partition, position) = (self.partition, self.position);
        self.read(texts).map_err(|(column, reason)| DamagedRow { partition, position, column, reason })
    }

    fn read(self, texts: &mut Texts) -> Result<Event, Damage> {
        let bare = self.bare()?;
        Ok(Event {
            partition: bare.partition,
            epoch: bare.epoch,
            position: bare.position,
            previous_position: bare.previous_position,
            transaction_id: bare.transaction_id,
            event_type: bare.event_type,
            schema_version: bare.schema_version,
            account: Account::stored(bare.account_id, texts.share(0, bare.user_id), texts.share(1, bare.credit_type)),
            amount: bare.amount,
            released: bare.released,
            related_id: bare.related_id,
            remaining: bare.remaining,
            after: bare.after,
            key: BusinessKey::stored(texts.share(2, bare.business_code), bare.business_id.into()),
            operation_id: bare.operation_id,
            request_id: texts.share(3, bare.request_id),
            actor: texts.share(4, bare.actor),
            description: bare.description.map(|text| texts.share(5, text)),
            metadata: bare.metadata.map(|text| texts.share(6, text)),
            expires_at: bare.expires_at,
            recorded_at: bare.recorded_at,
            batch: bare.batch,
            hash: bare.hash,
        })
    }
}

impl<'r> EventRow<'r> {
    /// The event that the row is, with the row's own texts.
    pub(crate) fn bare(self) -> Result<BareEvent<'r>, Damage> {
        if self.position.0 > POSITION_MAX {
            return Err(("position", format!("is past {POSITION_MAX}, the largest that an id can hold")));
        }
        let account_id = AccountId::stored(self.account_id).ok_or_else(|| no_id("account_id"))?;
        if account_id.partition() != self.partition {
            return Err(("account_id", format!("belongs to partition {}", account_id.partition())));
        }
        let after = AccountState {
            balance: units("balance", self.balance)?,
            frozen: units("frozen", self.frozen)?,
            locked: self.locked,
            version: units("version", self.version)?,
        };
        if after.frozen > after.balance {
            return Err(("frozen", format!("is {}, more than the balance of {}", after.frozen, after.balance)));
        }
        if number::<u64>("available", self.available)? != after.available() {
            return Err(("available", format!("is {}, not balance - frozen = {}", self.available, after.available())));
        }
        let batch = match (self.batch_id, self.batch_size, self.batch_index) {
            (None, None, None) => None,
            (Some(id), Some(size), Some(index)) => {
                Some(BatchMark { id, size: number("batch_size", size)?, index: number("batch_index", index)? })
            }
            _ => {
                return Err(("batch_id", "is there without batch_size and batch_index, or they without it".to_owned()));
            }
        };
        let amount = self.amount.map(|amount| {
            u64::try_from(amount)
                .ok()
                .and_then(|units| Amount::new(units).ok())
                .ok_or_else(|| ("amount", format!("is {amount}, outside 1 ..= {MAX_AMOUNT}")))
        });
        Ok(BareEvent {
            partition: self.partition,
            epoch: Epoch(number("epoch", self.epoch)?),
            position: self.position,
            previous_position: Position(number("previous_position", self.previous_position)?),
            transaction_id: TransactionId::from_uuid(self.transaction_id).ok_or_else(|| no_id("transaction_id"))?,
            event_type: EventType::of_name(self.event_type)
                .ok_or_else(|| ("type", format!("is `{}`, which is no type of event", self.event_type)))?,
            schema_version: number("schema_version", self.schema_version)?,
            account_id,
            user_id: self.user_id,
            credit_type: self.credit_type,
            amount: amount.transpose()?,
            released: units("released", self.released)?,
            related_id: self
                .related_id
                .map(|id| TransactionId::from_uuid(id).ok_or_else(|| no_id("related_id")))
                .transpose()?,
            remaining: self.remaining.map(|remaining| units("remaining", remaining)).transpose()?,
            after,
            business_code: self.business_code,
            business_id: self.business_id,
            operation_id: self.operation_id,
            request_id: self.request_id,
            actor: self.actor,
            description: self.description,
            metadata: self.metadata,
            expires_at: self.expires_at,
            recorded_at: self.recorded_at,
            batch,
            hash: hash(self.hash).map_err(|reason| ("hash", reason))?,
        })
    }
}

/// A row of `restores`.
pub(crate) fn restore_point(
    number_of_partition: i64,
    epoch: i64,
    position: i64,
    hash_bytes: &[u8],
    archive_id: String,
    restored_at: Option<Timestamp>,
) -> Result<RestorePoint, StoreError> {
    let damaged = |reason: String| StoreError::Inconsistent(format!("a row of the table restores {reason}"));
    let named = |(column, reason): Damage| damaged(format!("is damaged: {column} {reason}"));
    Ok(RestorePoint {
        partition: u8::try_from(number_of_partition)
            .ok()
            .and_then(Partition::new)
            .ok_or_else(|| damaged(format!("names partition {number_of_partition}, which there is not")))?,
        head: Head {
            epoch: Epoch(number("epoch", epoch).map_err(named)?),
            position: Position(number("position", position).map_err(named)?),
            hash: hash(hash_bytes).map_err(damaged)?,
        },
        restored_at: restored_at.ok_or_else(|| damaged("has no time that can be read".to_owned()))?,
        archive_id,
    })
}

/// A hash as it is stored: 32 bytes.
pub(crate) fn hash(bytes: &[u8]) -> Result<Hash, String> {
    bytes.try_into().map(Hash).map_err(|_| format!("has {} bytes instead of 32", bytes.len()))
}

/// A number as it is stored, in the type that it has in the domain.
pub(crate) fn number<T: TryFrom<i64>>(column: &'static str, stored: i64) -> Result<T, Damage> {
    T::try_from(stored).map_err(|_| (column, format!("is {stored}, which is out of range")))
}

/// A number of the domain as both databases store it. All of them are below 2^63.
pub(crate) fn stored(number: u64) -> i64 {
    i64::try_from(number).expect("amounts, versions and positions are below 2^63")
}

fn units(column: &'static str, stored: i64) -> Result<u64, Damage> {
    match u64::try_from(stored) {
        Ok(units) if units <= MAX_AMOUNT => Ok(units),
        _ => Err((column, format!("is {stored}, outside 0 ..= {MAX_AMOUNT}"))),
    }
}

fn no_id(column: &'static str) -> Damage {
    (column, "is no id that this ledger gives".to_owned())
}
