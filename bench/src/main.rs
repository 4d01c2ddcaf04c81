//! The benchmark: the ledger beside what the same machine does otherwise, in one run.

mod client;
mod figures;
mod load;
mod process;
mod subject;

use std::{path::PathBuf, time::Duration};

use clap::Parser;

use load::{Accounts, Batches, Reads, Shop, Singles};
use subject::{Kind, Subject};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    database: Kind,
    #[arg(long, default_value = "singles")]
    scenario: String,
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    #[arg(long, default_value_t = 10_000)]
    accounts: u32,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value = "/tmp")]
    folder: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a = Arguments::parse();
    let cluster = (a.database == Kind::Postgres)
        .then(|| tests::Postgres::start_with(&a.folder, &["shared_buffers=1GB", "max_wal_size=8GB"]));
    let subject = Subject::start(cluster.as_ref(), &a.folder);
    eprintln!("pid {} url {}", subject.service.pid(), subject.database_url);
    subject.open_accounts(0, a.accounts).await;
    let (warm, length) = (Duration::from_secs(2), Duration::from_secs(a.seconds));
    let uniform = Accounts::Uniform(a.accounts);
    for scenario in a.scenario.split(',') {
        let figures = match scenario {
            "singles" => subject.closed(&mut Singles::sources(scenario, uniform, a.connections), warm, length).await,
            "hot" => subject.closed(&mut Singles::sources(scenario, Accounts::Hot, a.connections), warm, length).await,
            "mix" => subject.closed(&mut Shop::sources(scenario, Accounts::Zipf(a.accounts), a.connections), warm, length).await,
            "reads" => subject.closed(&mut Reads::sources(uniform, a.connections), warm, length).await,
            "b100" => subject.closed(&mut Batches::sources(scenario, uniform, 100, 8), warm, length).await,
            "b1000" => subject.closed(&mut Batches::sources(scenario, uniform, 1000, 8), warm, length).await,
            "b10000" => subject.closed(&mut Batches::sources(scenario, uniform, 10000, 3), warm, length).await,
            other => panic!("{other}"),
        };
        let began = std::time::Instant::now();
        subject.settle().await;
        println!("{scenario}: {:.0}/s settled in {:.2}s {}", figures.rate, began.elapsed().as_secs_f64(), serde_json::to_string(&figures).expect("json"));
    }
}
