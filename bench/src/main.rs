//! The benchmark: the ledger beside what the same machine does otherwise, in one run.

mod client;
mod disk;
mod figures;
mod lag;
mod load;
mod machine;
mod peers;
mod plan;
mod plot;
mod process;
mod programs;
mod report;
mod results;
mod scenario;
mod series;
mod subject;
mod targets;
mod trial;

use std::{cell::RefCell, fs, process::ExitCode};

use clap::{Parser, Subcommand};
use serde_json::json;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use machine::Machine;
use plan::{Options, Plan};
use results::Results;
use trial::Trial;

/// Measures the ledger beside what the same machine does otherwise.
#[derive(Debug, Parser)]
#[command(version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Options),
    Try(Trial),
    /// The peer that only reads and writes JSON over HTTP; the benchmark starts it.
    #[command(hide = true)]
    EchoServer,
}

fn main() -> ExitCode {
    match Program::parse().command {
        Command::Run(options) => {
            if !options.no_build {
                programs::build();
            }
            one_thread().block_on(until_told_to_stop(run(Plan::new(&options))))
        }
        Command::Try(trial) => one_thread().block_on(until_told_to_stop(async {
            trial::run(&trial).await;
            ExitCode::SUCCESS
        })),
        // A server uses all cores.
        Command::EchoServer => Runtime::new().expect("a runtime").block_on(async {
            peers::echo::serve().await;
            ExitCode::SUCCESS
        }),
    }
}

/// The client shares the machine with what it measures and does little: one thread is enough.
fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Gives up the work at the first signal, so that what it started and its files are gone with it.
async fn until_told_to_stop(work: impl Future<Output = ExitCode>) -> ExitCode {
    let mut stop = [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).expect("a handler"));
    let [interrupt, terminate] = &mut stop;
    tokio::select! {
        biased;
        _ = interrupt.recv() => ExitCode::from(130),
        _ = terminate.recv() => ExitCode::from(143),
        code = work => code,
    }
}

async fn run(plan: Plan) -> ExitCode {
    fs::create_dir_all(&plan.out).unwrap_or_else(|error| panic!("{}: {error}", plan.out.display()));
    let machine = Machine::this();
    println!("{machine}");
    let results = RefCell::new(Results::default());
    for kind in &plan.databases {
        scenario::run(*kind, &plan, &results, &|results| save(results, &plan, &machine)).await;
    }
    let results = results.into_inner();
    println!();
    for target in report::all_targets(&results, &plan) {
        println!("{}", report::target_line(&target));
    }
    println!("\n{} has results.md, results.json and the plots", plan.out.display());
    for failure in &results.failures {
        println!("FAILED {} {}", failure.database, failure.scenario);
    }
    ExitCode::from(u8::from(!results.failures.is_empty()))
}

/// Writes all files anew, so that a long run that is ended early is not for nothing.
fn save(results: &Results, plan: &Plan, machine: &Machine) {
    let medians: Vec<_> = results
        .databases()
        .into_iter()
        .flat_map(|database| results.series(database).into_iter().map(move |series| (database, series)))
        .map(|(database, series)| {
            json!({ "database": database, "series": series, "figures": results.median(database, series) })
        })
        .collect();
    let targets: Vec<_> = report::all_targets(results, plan)
        .into_iter()
        .map(|target| json!({ "target": target, "reached": target.reached() }))
        .collect();
    let document =
        json!({ "machine": machine, "plan": plan, "targets": targets, "medians": medians, "results": results });
    let document = serde_json::to_string_pretty(&document).expect("plain data");
    write(plan, "results.json", &document);
    write(plan, "results.md", &report::page(results, plan, machine));
    for database in results.databases() {
        plot::all(results, database, plan);
    }
}

fn write(plan: &Plan, name: &str, content: &str) {
    let file = plan.out.join(name);
    fs::write(&file, content).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
