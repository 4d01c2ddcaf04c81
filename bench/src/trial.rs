//! A few seconds of some loads on one ledger, to try a change.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    load::{Accounts, Batches, Reads, Shop, Singles},
    report,
    scenario::start_cluster,
    series::Series,
    subject::{Kind, Subject},
};

/// Runs loads on one new ledger, one after the other, and prints a line for each. Build `api` first.
#[derive(Debug, Args)]
pub(crate) struct Trial {
    #[arg(long, value_enum)]
    database: Kind,
    /// One or more, with commas between them.
    #[arg(long, default_value = "singles", value_delimiter = ',',
        value_parser = ["singles", "hot", "mix", "reads", "b100", "b1000", "b10000"])]
    scenario: Vec<String>,
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    accounts: u32,
    /// For all but batches, which have 8, or 4 of 10,000 commands.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Where the database is kept.
    #[arg(long, default_value = "/tmp")]
    folder: PathBuf,
}

pub(crate) async fn run(trial: &Trial) {
    let cluster = (trial.database == Kind::Postgres).then(|| start_cluster(&trial.folder));
    let subject = Subject::start(cluster.as_ref(), &trial.folder);
    eprintln!("pid {} url {}", subject.service.pid(), subject.database_url);
    subject.open_accounts(0, trial.accounts).await;
    let (warm, length, n) = (Duration::from_secs(2), Duration::from_secs(trial.seconds), trial.connections);
    let (uniform, zipf) = (Accounts::Uniform(trial.accounts), Accounts::Zipf(trial.accounts));
    for (number, scenario) in trial.scenario.iter().enumerate() {
        // The same scenario may come twice.
        let load = &format!("{scenario}{number}");
        let batches = |size, connections| Batches::sources(load, uniform, size, connections);
        let (series, figures) = match scenario.as_str() {
            "singles" => (Series::Singles, subject.closed(&mut Singles::sources(load, uniform, n), warm, length).await),
            "hot" => (Series::Hot, subject.closed(&mut Singles::sources(load, Accounts::Hot, n), warm, length).await),
            "mix" => (Series::Mix, subject.closed(&mut Shop::sources(load, zipf, n), warm, length).await),
            "reads" => (Series::Reads, subject.closed(&mut Reads::sources(load, uniform, n), warm, length).await),
            "b100" => (Series::batches(100), subject.closed(&mut batches(100, 8), warm, length).await),
            "b1000" => (Series::batches(1_000), subject.closed(&mut batches(1_000, 8), warm, length).await),
            "b10000" => (Series::batches(10_000), subject.closed(&mut batches(10_000, 4), warm, length).await),
            other => unreachable!("{other} is none of the scenarios that are taken"),
        };
        let began = Instant::now();
        subject.settle().await;
        println!("{}  settled in {:.2} s", report::line(series, &figures), began.elapsed().as_secs_f64());
    }
}
