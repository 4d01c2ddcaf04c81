//! The event table and its writer, on PostgreSQL and on SQLite.
//!
//! [`Database`] is the seam between the two databases: what is the same on both is said once above it, what differs
//! stands in [`postgres`] and [`sqlite`]. [`Ledger`] is the handle that others hold on the one task that decides.

mod append;
mod database;
mod error;
mod index;
mod ledger;
pub mod postgres;
mod row;
mod schema;
pub mod sqlite;

pub use database::Database;
pub use error::{DamagedRow, StoreError};
pub use ledger::{BatchError, CommandError, Ledger, LedgerOptions, Recorded, Unavailable};
