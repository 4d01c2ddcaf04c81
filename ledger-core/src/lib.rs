//! The pure domain of the ledger.
//!
//! What may happen ([`decide`]), what happened ([`Event`]), what follows from it ([`AccountState`], [`Balance`],
//! [`Freeze`]) and how it is proved ([`chain`], [`digest`]). Nothing here reads a clock, a database, a network or a
//! random number, so every function gives the same answer to the same arguments on every machine.

pub mod account;
pub mod amount;
pub mod balance;
mod bare;
pub mod chain;
pub mod command;
mod decide;
pub mod digest;
pub mod event;
pub mod freeze;
pub mod id;
pub mod json;
pub mod key;
pub mod log;
pub mod many;
pub mod operation;
pub mod rejection;
mod shape;
pub mod text;
pub mod timestamp;

pub use account::{Account, AccountState};
pub use amount::{Amount, MAX_AMOUNT};
pub use balance::Balance;
pub use bare::BareEvent;
pub use command::{Action, Command, Expiry, NamedAccount, Provenance};
pub use decide::{Effect, Original, OriginalKind, Situation, decide, repeats};
pub use event::{BatchMark, Event, EventType, SCHEMA_VERSION};
pub use freeze::Freeze;
pub use id::{AccountId, TransactionId};
pub use key::BusinessKey;
pub use log::{Epoch, Hash, Head, PARTITIONS, Partition, Position, Slot};
pub use rejection::Rejection;
pub use text::InvalidField;
pub use timestamp::Timestamp;
