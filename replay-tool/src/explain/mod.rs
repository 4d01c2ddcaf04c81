//! `explain`: where an account's balance comes from.

mod curve;
mod fold;
mod output;
mod served;

use std::path::PathBuf;

use clap::Args;
use ledger_core::{Account, Position, Timestamp};
use ledger_store::Database;

use crate::{
    argument::{parse_account, parse_count, parse_time},
    context::{Context, Failure, Outcome, say},
    progress::Progress,
    report::Place,
};
use fold::{Explained, Fold};
use served::Served;

/// Takes an account's balance apart: its events with the balance after each, the open freezes and the orders behind them, the
/// refunds that are still possible, and whether what is served agrees.
///
/// Everything is folded from the amounts of the account's own events, not from what they say of the balance. No index is
/// needed: the account's partition is read from its beginning. Exit code 1 when an event contradicts the ones before it, or
/// when a read model disagrees (lag is no disagreement).
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The account.
    #[arg(value_name = "USER/CREDIT_TYPE", value_parser = parse_account)]
    account: Account,
    /// The account as it was at this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<Timestamp>,
    /// How many events, and how many possible refunds, to show: the newest ones.
    #[arg(long, default_value = "50", value_name = "N", value_parser = parse_limit)]
    limit: usize,
    /// Show the events before this version of the account: for the next page.
    #[arg(long, value_name = "VERSION", value_parser = parse_count)]
    before: Option<u64>,
    /// Write a page with the same, and the balance over the account's whole life as a curve.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

fn parse_limit(text: &str) -> Result<usize, String> {
    parse_count(text).and_then(|count| usize::try_from(count).map_err(|error| error.to_string()))
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let page = Place::new(arguments.report.as_deref())?;
    let database = context.open().await?;
    let progress = Progress::new("reading");
    let explained = explain(&database, arguments, &progress).await;
    progress.finish();
    database.close().await;
    let explained = explained?;
    if context.json {
        say!("{}", explained.json(arguments));
    } else {
        explained.print(arguments);
    }
    page.write(|| explained.report(arguments))?;
    Ok(Outcome::of(explained.is_consistent()))
}

async fn explain(database: &Database, arguments: &Arguments, progress: &Progress) -> Result<Explained, Failure> {
    let account = &arguments.account;
    let served = if arguments.at.is_none() { Some(Served::read(database, account).await?) } else { None };
    let partition = account.partition();
    let head = database.heads().await?[partition.index()];
    progress.expect(head.position.0);
    let mut fold = Fold::new(arguments, served);
    let mut scan = database.scan(partition, Position::ZERO, head.position);
    let mut next = Position::ZERO.next();
    'log: loop {
        let rows = scan.next().await?;
        if rows.is_empty() {
            if next <= head.position {
                fold.skip(format!("partition {partition} position {next}: the event is missing"));
            }
            break;
        }
        progress.advance(rows.len() as u64);
        for row in rows {
            let place = row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
            if place != next {
                fold.skip(format!("partition {partition} position {next}: the event is missing"));
            }
            next = place.next();
            match row {
                Ok(event) if arguments.at.is_some_and(|at| event.recorded_at > at) => break 'log,
                Ok(event) if event.account.id() == account.id() => fold.take(event),
                Ok(_) => {}
                Err(damage) => fold.skip(damage.to_string()),
            }
        }
    }
    fold.finish().ok_or_else(|| {
        let when = arguments.at.map(|at| format!(" at {at}")).unwrap_or_default();
        let or = if arguments.at.is_some() { ", or give a later --at" } else { "" };
        Failure::new(format!(
            "there is no account {}/{}{when}; look at the spelling{or}",
            account.user_id(),
            account.credit_type()
        ))
    })
}
