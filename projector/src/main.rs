//! The projectors in a process of their own: read models, and the publisher where NATS is given.

use std::process::ExitCode;

use clap::Parser;
use ledger_store::{Database, StoreError, error::chain};
use projector::{
    arguments,
    publisher::{Publisher, PublisherOptions},
    runner::Runner,
};
use tokio::signal::unix::{SignalKind, signal};

/// Builds the read models of a ledger and publishes its events, apart from the service.
#[derive(Debug, Parser)]
#[command(version)]
struct Settings {
    /// The ledger's database: `sqlite://FILE` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    #[arg(long, env, default_value = "sqlite://ledger.db", hide_env_values = true)]
    database_url: String,
    /// Publish to this NATS server, such as `nats://127.0.0.1:4222`. Empty: none.
    #[arg(long, env, hide_env_values = true)]
    nats_url: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,async_nats=warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let done = match arguments::read() {
        Ok(settings) => run(settings).await.map_err(|error| chain(&error)),
        Err(why) => Err(why),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("projector: {why}");
            ExitCode::from(2)
        }
    }
}

async fn run(settings: Settings) -> Result<(), StoreError> {
    let database = Database::open_existing(&settings.database_url).await?;
    println!("projecting {}", database.describe());
    let runner = Runner::start(database.clone(), None);
    let nats_url = settings.nats_url.filter(|url| !url.is_empty());
    let publisher = nats_url.map(|nats_url| Publisher::start(database.clone(), PublisherOptions::new(nats_url), None));
    let mut terminate = signal(SignalKind::terminate()).map_err(sqlx::Error::Io)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    if let Some(publisher) = publisher {
        publisher.stop().await;
    }
    runner.stop().await;
    database.close().await;
    Ok(())
}
