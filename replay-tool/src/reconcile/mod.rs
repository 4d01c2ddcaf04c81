//! `reconcile`: what the order system says against what the ledger did.

mod judge;
mod mismatch;
mod order;
mod output;
mod read;
mod settle;
mod source;
mod spill;
mod tally;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use ledger_core::{Event, Head, Partition, Position, Timestamp};
use ledger_store::Database;

use crate::{
    argument::{parse_actor, parse_seconds, parse_service_url, parse_time},
    context::{Context, Failure, Outcome, say},
    progress::Progress,
    report::Place,
};
use judge::judge;
use mismatch::{Kind, Mismatch};
use order::{Reading, Stage, Statuses, parse_status};
use output::Lists;
use settle::{Mandate, Settler};
use spill::Spill;
use tally::{Entry, Part, Scope, Tally};

/// Mismatches that are kept in memory for JSON and the page; more are only counted and written to the lists.
const KEPT_MAX: usize = 10_000;
/// Orders that are kept in memory at once: some 500 bytes each.
const ENTRIES_MAX: usize = 150_000;
/// Mismatches that are settled and written at once.
const CHUNK: usize = 1_000;

/// Compares the orders of an order system with the ledger, and settles what needs no person.
///
/// Each order is compared with all that the ledger did under its order_id as business_id, and with the captures, releases and
/// refunds of that. Mismatches are missing_credit_transaction, amount_mismatch, status_mismatch (completed but still
/// frozen, cancelled but deducted, …), duplicate_order and ledger_entry_without_order. Each is shown with the command that
/// would settle it.
///
/// Orders need order_id, user_id, points and status; credit_type, created_at and refunded_points (of a partly refunded
/// order) may be there, anything else is ignored. In CSV the first line names the columns; in NDJSON each line is an object.
/// A line that cannot be read ends the run before anything is compared. Take a fresh list: an order that moved on since it was
/// written looks like a mismatch.
///
/// Exit code 1 when mismatches remain.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The orders: a file that ends in .csv, .ndjson or .jsonl, or an http or https URL that answers text/csv or
    /// application/x-ndjson.
    #[arg(long, value_name = "FILE|URL")]
    orders: String,
    /// Sent to the URL as the Authorization header, such as `Bearer TOKEN`.
    #[arg(long, env = "ORDERS_AUTHORIZATION", hide_env_values = true, value_name = "VALUE")]
    orders_authorization: Option<String>,
    /// Compare orders created, and look for ledger entries recorded, at this time or later. Let the orders reach a little
    /// further than the range, so that both sides know those at its edges.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<Timestamp>,
    /// Compare orders created, and look for ledger entries recorded, before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<Timestamp>,
    /// The credit type of orders that name none.
    #[arg(long, default_value = "points", value_name = "TYPE")]
    credit_type: String,
    /// What a status of the order system means: STATUS=STAGE, where the stage is frozen, deducted, cancelled, refunded or
    /// partly_refunded. The usual words (pending, paid, completed, shipped, cancelled, …) are known. May be repeated.
    #[arg(long = "status", value_name = "STATUS=STAGE", value_parser = parse_status)]
    statuses: Vec<(String, Stage)>,
    /// Business codes that stand for orders: a freeze or deduction under one of them without an order is a mismatch.
    /// `order` stands for order.create, order-payment and so on. May be repeated.
    #[arg(long = "code", default_value = "order", value_name = "CODE")]
    codes: Vec<String>,
    /// Write the full list into this folder, as mismatches.csv and mismatches.ndjson.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write a page with the figures and the first 1,000 mismatches.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Settle what needs no person: release and refund what cancelled and refunded orders still hold, capture what completed
    /// ones still have frozen. May be run again: nothing moves twice.
    #[arg(long)]
    settle: bool,
    /// Settle only orders that the ledger did nothing for in so many seconds: others may be on their way just now, and are
    /// left to their own flow.
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = parse_seconds, allow_hyphen_values = true)]
    quiet_seconds: u64,
    /// Who settles, as the events say.
    #[arg(long, default_value = "replay-tool", value_name = "NAME", value_parser = parse_actor)]
    actor: String,
    /// Where the commands shown are sent to.
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = parse_service_url)]
    service_url: String,
}

/// What is compared with what, and what is to be done about it.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// A file or a URL.
    pub(crate) orders: String,
    pub(crate) authorization: Option<String>,
    reading: Reading,
    scope: Arc<Scope>,
    /// Where the full list goes.
    pub(crate) out: Option<PathBuf>,
    /// Who settles; `None`: nobody.
    pub(crate) mandate: Option<Mandate>,
    service: String,
}

impl Question {
    /// All orders of a file or URL, with every setting at its default, and nothing settled.
    pub(crate) fn about(orders: impl Into<String>) -> Self {
        Self {
            orders: orders.into(),
            authorization: std::env::var("ORDERS_AUTHORIZATION").ok(),
            reading: Reading { credit_type: "points".to_owned(), statuses: Statuses::with(&[]), from: None, to: None },
            scope: Arc::new(Scope { codes: vec!["order".to_owned()], from: None, to: None }),
            out: None,
            mandate: None,
            service: "http://127.0.0.1:8080".to_owned(),
        }
    }
}

impl From<&Arguments> for Question {
    fn from(arguments: &Arguments) -> Self {
        let &Arguments { from, to, .. } = arguments;
        Self {
            authorization: arguments.orders_authorization.clone(),
            reading: Reading {
                credit_type: arguments.credit_type.clone(),
                statuses: Statuses::with(&arguments.statuses),
                from,
                to,
            },
            scope: Arc::new(Scope { codes: arguments.codes.clone(), from, to }),
            out: arguments.out.clone(),
            mandate: arguments
                .settle
                .then(|| Mandate { actor: arguments.actor.clone(), quiet_seconds: arguments.quiet_seconds }),
            service: arguments.service_url.clone(),
            ..Self::about(&arguments.orders)
        }
    }
}

/// What reconciliation came to.
#[derive(Debug)]
pub(crate) struct Reconciliation {
    pub(crate) orders: u64,
    /// Orders outside the time that is looked at.
    pub(crate) outside: u64,
    /// Orders that were cancelled before the ledger heard of them.
    pub(crate) untouched: u64,
    pub(crate) events: u64,
    counts: [u64; Kind::ALL.len()],
    pub(crate) mismatches: u64,
    pub(crate) settled: u64,
    pub(crate) refused: u64,
    /// Mismatches that could be settled without a person, and were not.
    pub(crate) settleable: u64,
    /// The first of the mismatches.
    pub(crate) kept: Vec<Mismatch>,
    lists: Option<[PathBuf; 2]>,
    service: String,
    pub(crate) took: Duration,
}

impl Reconciliation {
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// Mismatches that are still there.
    pub(crate) const fn remaining(&self) -> u64 {
        self.mismatches - self.settled
    }

    pub(crate) const fn is_consistent(&self) -> bool {
        self.remaining() == 0
    }

    fn add(&mut self, mismatch: Mismatch) {
        self.mismatches += 1;
        self.counts[mismatch.kind as usize] += 1;
        match mismatch.outcome_name() {
            "settled" => self.settled += 1,
            "refused" => self.refused += 1,
            "open" => self.settleable += 1,
            _ => {}
        }
        if self.kept.len() < KEPT_MAX {
            self.kept.push(mismatch);
        }
    }
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    refuse_nonsense(arguments)?;
    let page = Place::new(arguments.report.as_deref())?;
    let database = context.open().await?;
    let progress = Progress::new("reconciling");
    let reconciled = reconcile(&database, &Question::from(arguments), &progress).await;
    progress.finish();
    database.close().await;
    let reconciled = reconciled?;
    if context.json {
        say!("{}", reconciled.json());
    } else {
        reconciled.print();
    }
    page.write(|| reconciled.report())?;
    Ok(Outcome::of(reconciled.is_consistent()))
}

fn refuse_nonsense(arguments: &Arguments) -> Result<(), Failure> {
    if let (Some(from), Some(to)) = (arguments.from, arguments.to)
        && from >= to
    {
        return Err(Failure::new(format!("--from {from} must lie before --to {to}")));
    }
    if arguments.codes.iter().any(String::is_empty) {
        return Err(Failure::new("--code must not be empty: every entry of the ledger would need an order"));
    }
    Ok(())
}

pub(crate) use source::check as check_orders;

/// Compares all orders with the ledger as it stands now. A service may go on writing.
pub(crate) async fn reconcile(
    database: &Database,
    question: &Question,
    progress: &Progress,
) -> Result<Reconciliation, Failure> {
    let began = Instant::now();
    let source = source::open(&question.orders, question.authorization.as_deref()).await?;
    let reading = question.reading.clone();
    let spill = Arc::new(in_background(move || read::read_orders(source, &reading)).await?);
    // The ledger is read after the orders: what they speak of is there.
    let heads = database.heads().await?;
    progress.expect(heads.iter().fold(0, |sum, head| sum.saturating_add(head.position.0)));
    let mut run = Run {
        lists: question.out.as_deref().map(|folder| Lists::start(folder, &question.service)).transpose()?,
        settler: match &question.mandate {
            Some(mandate) => Some(Settler::start(database, mandate).await?),
            None => None,
        },
        found: Reconciliation {
            orders: spill.orders,
            outside: spill.outside,
            untouched: 0,
            events: 0,
            counts: [0; Kind::ALL.len()],
            mismatches: 0,
            settled: 0,
            refused: 0,
            settleable: 0,
            kept: Vec::new(),
            lists: None,
            service: question.service.clone(),
            took: Duration::ZERO,
        },
    };
    let mut outcome = Ok(());
    let mut width = u64::MAX;
    for partition in Partition::all() {
        let look = Look { database, spill: &spill, scope: &question.scope, partition, head: heads[partition.index()] };
        outcome = run.partition(&look, &mut width, progress).await;
        if outcome.is_err() {
            break;
        }
    }
    let Run { lists, settler, mut found } = run;
    if let Some(settler) = settler {
        settler.stop().await;
    }
    outcome?;
    found.lists = lists.map(Lists::finish).transpose()?;
    found.took = began.elapsed();
    Ok(found)
}

/// A partition, and what it is compared with.
struct Look<'a> {
    database: &'a Database,
    spill: &'a Arc<Spill>,
    scope: &'a Arc<Scope>,
    partition: Partition,
    head: Head,
}

struct Run {
    lists: Option<Lists>,
    settler: Option<Settler>,
    found: Reconciliation,
}

impl Run {
    /// Compares one partition, in as many parts as its orders need. What one partition needed the next will, too.
    async fn partition(&mut self, look: &Look<'_>, width: &mut u64, progress: &Progress) -> Result<(), Failure> {
        let mut low = 0;
        loop {
            let part = Part { low, high: low.saturating_add(*width) };
            let (entries, events) = look.tally(part).await?;
            let Some(entries) = entries else {
                *width = (part.high - part.low) / 2;
                continue;
            };
            if low == 0 {
                self.found.events += events;
                progress.advance(events);
            }
            self.judge(entries).await?;
            match part.high.checked_add(1) {
                Some(next) => low = next,
                None => return Ok(()),
            }
        }
    }

    async fn judge(&mut self, entries: Vec<Entry>) -> Result<(), Failure> {
        let mut chunk = Vec::new();
        for entry in entries {
            let verdict = judge(&entry);
            self.found.untouched += u64::from(verdict.untouched);
            chunk.extend(verdict.mismatches);
            if chunk.len() >= CHUNK {
                self.close(std::mem::take(&mut chunk)).await?;
            }
        }
        self.close(chunk).await
    }

    /// Settles mismatches, if that was asked for, and writes them down.
    async fn close(&mut self, mut mismatches: Vec<Mismatch>) -> Result<(), Failure> {
        if let Some(settler) = &self.settler {
            settler.settle(&mut mismatches).await?;
        }
        for mismatch in mismatches {
            if let Some(lists) = &mut self.lists {
                lists.add(&mismatch)?;
            }
            self.found.add(mismatch);
        }
        Ok(())
    }
}

impl Look<'_> {
    /// The orders of a part, and how many events there are; no orders when they are more than the memory is meant to hold.
    async fn tally(&self, part: Part) -> Result<(Option<Vec<Entry>>, u64), Failure> {
        let (spill, scope, partition) = (self.spill.clone(), self.scope.clone(), self.partition);
        let mut tally = in_background(move || {
            let mut tally = Tally::new(scope, part, ENTRIES_MAX);
            spill.each(partition, &mut |order| tally.claim(order))?;
            Ok(tally)
        })
        .await?;
        let mut events = 0;
        let mut before = Position::ZERO;
        let mut scan = self.database.scan(partition, Position::ZERO, self.head.position);
        while !tally.is_overfull() {
            let rows = scan.next().await?;
            if rows.is_empty() {
                if before != self.head.position {
                    return Err(incomplete(partition, before.next()));
                }
                break;
            }
            for row in rows {
                let event = row.map_err(|damage| Failure::new(format!("{damage}: run replay-tool verify first")))?;
                expect_next(&event, &mut before)?;
                tally.take(&event);
                events += 1;
            }
        }
        Ok(((!tally.is_overfull()).then(|| tally.into_entries()), events))
    }
}

/// Orders are judged on the whole log or not at all.
fn expect_next(event: &Event, before: &mut Position) -> Result<(), Failure> {
    if event.position != before.next() {
        return Err(incomplete(event.partition, before.next()));
    }
    *before = event.position;
    Ok(())
}

fn incomplete(partition: Partition, missing: Position) -> Failure {
    Failure::new(format!(
        "partition {partition} position {missing}: the event is missing: run replay-tool verify first"
    ))
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Failure::new("a task of the reconciliation ended early")))
}
