//! The harness: private PostgreSQL and NATS servers, and the project's own programs, started for a test and gone after it.

pub mod children;
pub mod load;
pub mod nats;
pub mod postgres;
pub mod rewind;
pub mod service;
pub mod shop;
pub mod store;
pub mod tool;
pub mod vandal;
pub mod webhook;

pub use load::Load;
pub use nats::Nats;
pub use postgres::Postgres;
pub use service::{Answer, Service, replay_tool, verify_consistent};
pub use webhook::Webhook;

/// Shows what the parts log, to whoever runs a test with `RUST_LOG` set.
pub fn show_log() {
    // The first test of the process sets it up for all.
    let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init();
}
