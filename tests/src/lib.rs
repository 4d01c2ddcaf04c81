//! The harness: private PostgreSQL and NATS servers, and the project's own programs, started for a test and gone after it.

pub mod children;
pub mod nats;
pub mod postgres;
pub mod service;
pub mod store;

pub use postgres::Postgres;
