//! The operator's tool: is what is served what happened, and if not, make it so.

mod anchor;
mod archive;
mod argument;
mod context;
mod correct;
mod diff;
mod drill;
mod explain;
mod finding;
mod progress;
mod rebuild;
mod reconcile;
mod recover;
mod report;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use context::{Context, Failure, Outcome, could_not_run};

/// A replay allocates the texts of every event on one thread and frees them on another: this allocator is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Verifies a ledger by replaying its log, rebuilds its read models, backs it up, and brings it back.
///
/// Exit codes: 0 done and consistent; 1 inconsistencies were found, each is named; 2 could not run, one line says why.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Every command may run while the service runs unless its help says otherwise, and may be killed and \
                  run again at any moment."
)]
struct Arguments {
    /// The ledger's database: `sqlite://FILE` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    #[arg(long, env, global = true, default_value = "sqlite://ledger.db", hide_env_values = true)]
    database_url: String,
    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(verify::Arguments),
    Rebuild(rebuild::Arguments),
    Heads(anchor::Arguments),
    Export(archive::export::Arguments),
    Import(archive::import::Arguments),
    Recover(recover::Arguments),
    Reconcile(reconcile::Arguments),
    Explain(explain::Arguments),
    Diff(diff::Arguments),
    Correct(correct::Arguments),
    Drill(drill::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into()))
        .with_writer(std::io::stderr)
        .init();
    let arguments: Arguments = match projector::arguments::read() {
        Ok(arguments) => arguments,
        Err(why) => return could_not_run(&Failure::new(why)),
    };
    let context = Context { database_url: arguments.database_url, json: arguments.json };
    match run(&context, &arguments.command).await {
        Ok(outcome) => outcome.into(),
        Err(failure) => could_not_run(&failure),
    }
}

async fn run(context: &Context, command: &Command) -> Result<Outcome, Failure> {
    match command {
        Command::Verify(arguments) => verify::run(context, arguments).await,
        Command::Rebuild(arguments) => rebuild::run(context, arguments).await,
        Command::Heads(arguments) => anchor::run(context, arguments).await,
        Command::Export(arguments) => archive::export::run(context, arguments).await,
        Command::Import(arguments) => archive::import::run(context, arguments).await,
        Command::Recover(arguments) => recover::run(context, arguments).await,
        Command::Reconcile(arguments) => reconcile::run(context, arguments).await,
        Command::Explain(arguments) => explain::run(context, arguments).await,
        Command::Diff(arguments) => diff::run(context, arguments).await,
        Command::Correct(arguments) => correct::run(context, arguments).await,
        Command::Drill(arguments) => drill::run(context, arguments).await,
    }
}
