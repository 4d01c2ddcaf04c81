//! Read models, their checkpoints, and the NATS publisher.
//!
//! A read model is a fold of the log. The [`runner`] keeps both up to date, [`rebuild`] makes them anew beside the served
//! ones, [`snapshot`] reads them as they are for a comparison with a replay. Nothing here decides anything. The ledger's
//! programs all depend on this crate, so [`arguments`] stands here, too.

pub mod arguments;
pub mod balances;
pub mod checkpoint;
pub mod due;
pub mod election;
mod fold;
pub mod freezes;
pub mod inconsistencies;
mod postgres;
pub mod proof;
pub mod publisher;
pub mod rebuild;
mod row;
pub mod runner;
pub mod snapshot;
mod sqlite;
