//! The operator's tool: is what is served what happened, and if not, make it so.

mod finding;
mod progress;
mod verify;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};
use ledger_store::{Database, StoreError, error::chain};
use projector::rebuild::{self, RebuildError, Rebuilt};
use serde_json::json;

use progress::Progress;
use verify::Verified;

/// Prints a line. Whoever reads may have gone: the exit code still tells.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

/// Verifies a ledger by replaying its log, and rebuilds its read models.
///
/// Exit codes: 0 done and consistent; 1 inconsistencies were found, each is named; 2 could not run, one line says why.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Both commands may run while the service runs, and may be killed and run again at any moment."
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
    /// Replays every event and checks gaps, hashes, versions, states, relations, keys, batches and read models.
    Verify,
    /// Makes the balances and freezes anew from the log, beside the served ones, and puts them in their place.
    Rebuild,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into()))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(code) => code,
        Err(error) => could_not_run(&chain(&error)),
    }
}

fn could_not_run(why: &str) -> ExitCode {
    eprintln!("replay-tool: {}", why.replace('\n', " "));
    ExitCode::from(2)
}

async fn run(arguments: &Arguments) -> Result<ExitCode, StoreError> {
    let database = Database::open_existing(&arguments.database_url).await?;
    let code = match arguments.command {
        Command::Verify => {
            let verified = verify::verify(&database, &Progress::new("verifying")).await?;
            show_verified(&verified, arguments.json)
        }
        Command::Rebuild => {
            let bar = Progress::new("rebuilding");
            let rebuilt = rebuild::rebuild(&database, &mut |progress| bar.set(progress.done, progress.all)).await;
            bar.finish();
            show_rebuilt(rebuilt, arguments.json)?
        }
    };
    database.close().await;
    Ok(code)
}

fn show_verified(verified: &Verified, as_json: bool) -> ExitCode {
    let Verified { events, accounts, digest, findings, took } = verified;
    let consistent = findings.count == 0;
    if as_json {
        let document = json!({
            "consistent": consistent,
            "digest": digest,
            "events": events,
            "accounts": accounts,
            "findings": findings.kept,
            "findings_count": findings.count,
            "seconds": took.as_secs_f64(),
        });
        say!("{document}");
    } else {
        for finding in &findings.kept {
            let kind = serde_json::to_value(finding.kind).unwrap_or_default();
            say!(
                "{:<20} partition {:>2} position {:>8}  {}",
                kind.as_str().unwrap_or_default(),
                finding.partition,
                finding.position.map_or_else(|| "-".to_owned(), |position| position.to_string()),
                whose(finding),
            );
            say!("    expected {}", finding.expected);
            say!("    found    {}", finding.found);
            say!("    remedy   {}", finding.remedy);
        }
        let more = findings.count - findings.kept.len() as u64;
        if more > 0 {
            say!("… and {more} more");
        }
        say!("events    {events}\naccounts  {accounts}\ndigest    {digest}\nseconds   {:.1}", took.as_secs_f64());
        if consistent {
            say!("consistent");
        } else {
            say!("INCONSISTENT: {} findings", findings.count);
        }
    }
    ExitCode::from(u8::from(!consistent))
}

fn whose(finding: &finding::Finding) -> String {
    let account = match (&finding.user_id, &finding.credit_type) {
        (Some(user_id), Some(credit_type)) => format!("{user_id}/{credit_type}"),
        _ => String::new(),
    };
    match &finding.transaction_id {
        Some(id) => format!("{account} transaction {id}"),
        None => account,
    }
}

fn show_rebuilt(rebuilt: Result<Rebuilt, RebuildError>, as_json: bool) -> Result<ExitCode, StoreError> {
    match rebuilt {
        Ok(Rebuilt { events, accounts, freezes, digest, took }) => {
            if as_json {
                let document = json!({
                    "rebuilt": true, "digest": digest, "events": events, "accounts": accounts, "freezes": freezes,
                    "seconds": took.as_secs_f64(),
                });
                say!("{document}");
            } else {
                say!(
                    "events    {events}\naccounts  {accounts}\nfreezes   {freezes}\ndigest    {digest}\nseconds   {:.1}\nrebuilt",
                    took.as_secs_f64()
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(RebuildError::Store(error)) => Err(error),
        Err(RebuildError::AlreadyRunning) => Ok(could_not_run("another rebuild is running; wait for it")),
        Err(error @ (RebuildError::Contradiction { .. } | RebuildError::Differs { .. })) => {
            if as_json {
                say!("{}", json!({ "rebuilt": false, "why": error.to_string() }));
            } else {
                say!("not rebuilt: {error}");
            }
            Ok(ExitCode::from(1))
        }
    }
}
