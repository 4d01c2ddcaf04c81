//! A few seconds of some loads on one ledger, to try a change.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    load::{Accounts, Batches, Reads, Shop, Singles},
    report,
    scenario::{growth, start_cluster},
    series::Series,
    subject::{Kind, Subject},
};

/// Runs loads on one ledger, one after the other, and prints a line for each. Build `api` first.
#[derive(Debug, Args)]
pub(crate) struct Trial {
    #[arg(long, value_enum)]
    database: Kind,
    /// One or more of singles, hot, mix, reads, b100, b1000, b10000 with commas between them; at5000 offers 5,000 single
    /// commands a second, whether or not the service keeps up.
    #[arg(long, default_value = "singles", value_delimiter = ',', value_parser = load)]
    scenario: Vec<Load>,
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    accounts: u32,
    /// Some accounts are visited far more often than others, in all but the hot one's load.
    #[arg(long)]
    zipf: bool,
    /// For all but batches, which have 8, or 4 of 10,000 commands.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Events that the ledger is filled to first, while its accounts are opened in proportion.
    #[arg(long, default_value_t = 0)]
    fill: u64,
    /// The address of a database that holds such a ledger already, or that it is made in; it stays. Otherwise there is a
    /// new one for this trial.
    #[arg(long)]
    ledger: Option<String>,
    /// Where a new database is kept.
    #[arg(long, default_value = "/tmp")]
    folder: PathBuf,
}

/// A load that can be tried.
#[derive(Debug, Clone, Copy)]
enum Load {
    Singles,
    Offered(u32),
    Hot,
    Mix,
    Reads,
    Batches(u32),
}

fn load(name: &str) -> Result<Load, String> {
    Ok(match name {
        "singles" => Load::Singles,
        "hot" => Load::Hot,
        "mix" => Load::Mix,
        "reads" => Load::Reads,
        "b100" => Load::Batches(100),
        "b1000" => Load::Batches(1_000),
        "b10000" => Load::Batches(10_000),
        other => match other.strip_prefix("at").map(str::parse) {
            Some(Ok(per_second @ 1..)) => Load::Offered(per_second),
            _ => return Err("must be singles, hot, mix, reads, b100, b1000, b10000 or such as at5000".to_owned()),
        },
    })
}

/// Connections of an offered load: so many that a request rarely waits for a free one.
const OFFERED_CONNECTIONS: usize = 256;

pub(crate) async fn run(trial: &Trial) {
    let is_own = trial.database == Kind::Postgres && trial.ledger.is_none();
    let cluster = is_own.then(|| start_cluster(&trial.folder));
    let subject = match &trial.ledger {
        Some(url) => Subject::on(url),
        None => Subject::start(cluster.as_ref(), &trial.folder),
    };
    eprintln!("pid {} url {}", subject.service.pid(), subject.database_url);
    if trial.fill > 0 {
        growth::fill(&subject, trial.fill, trial.accounts).await;
    } else if subject.events().await == 0 {
        subject.open_accounts(0, trial.accounts).await;
    }
    let (warm, length, n) = (Duration::from_secs(2), Duration::from_secs(trial.seconds), trial.connections);
    let zipf = Accounts::Zipf(trial.accounts);
    let visited = if trial.zipf { zipf } else { Accounts::Uniform(trial.accounts) };
    // The same ledger may be tried again.
    let before = subject.events().await;
    for (number, scenario) in trial.scenario.iter().enumerate() {
        // The same scenario may come twice.
        let load = &format!("load{number}at{before}");
        let singles = |accounts, connections| Singles::sources(load, accounts, connections);
        let (series, figures) = match *scenario {
            Load::Singles => (Series::Singles, subject.closed(&mut singles(visited, n), warm, length).await),
            Load::Offered(per_second) => {
                let mut sources = singles(visited, OFFERED_CONNECTIONS);
                (Series::Singles, subject.open(&mut sources, per_second.into(), warm, length).await)
            }
            Load::Hot => (Series::Hot, subject.closed(&mut singles(Accounts::Hot, n), warm, length).await),
            Load::Mix => (Series::Mix, subject.closed(&mut Shop::sources(load, zipf, n), warm, length).await),
            Load::Reads => (Series::Reads, subject.closed(&mut Reads::sources(load, visited, n), warm, length).await),
            Load::Batches(size) => {
                let connections = if size > 1_000 { 4 } else { 8 };
                let mut sources = Batches::sources(load, visited, size, connections);
                (Series::batches(size), subject.closed(&mut sources, warm, length).await)
            }
        };
        let began = Instant::now();
        subject.settle().await;
        println!("{}  settled in {:.2} s", report::line(series, &figures), began.elapsed().as_secs_f64());
    }
}
