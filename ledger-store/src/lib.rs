//! The event table and its writer, on PostgreSQL and on SQLite.
//!
//! [`Database`] is the seam between the two databases: what is the same on both is said once above it, what differs
//! stands in [`postgres`] and [`sqlite`]. [`Ledger`] is the handle that others hold on the one task that decides.

mod append;
mod batch;
mod beside;
pub mod bulk;
pub mod copied;
mod database;
pub mod error;
pub mod feed;
mod filter;
mod freshness;
mod history;
mod index;
pub mod index_rows;
mod judge;
mod ledger;
mod limit;
mod lookup;
pub mod operations;
pub mod postgres;
mod published;
mod recovery;
pub mod refusals;
pub mod restore;
mod row;
pub mod scan;
mod schema;
pub mod sqlite;
pub mod sweep;
mod tail;
mod writer;

pub use database::Database;
pub use error::{DamagedRow, StoreError};
pub use ledger::{BatchError, Clock, CommandError, Ledger, LedgerOptions, Recorded, Unavailable};
