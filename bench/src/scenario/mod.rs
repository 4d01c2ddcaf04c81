//! The scenarios: each on a new ledger, with its peers measured right beside it.

mod batches;
pub(crate) mod growth;
mod latency;
mod readers;
mod replay;
mod singles;

use std::cell::RefCell;

use clap::ValueEnum;
use serde::Serialize;
use tests::Postgres;

pub(crate) use latency::LEVELS;

use crate::{
    figures::Figures,
    machine::Machine,
    peers::pgbench::Form,
    plan::Plan,
    report,
    results::{Fact, Failure, Found, Measurement, Results, attempt},
    series::Series,
    subject::{Kind, Subject, drop_database},
};

/// Connections of a load of single commands.
pub(crate) const CONNECTIONS: usize = 64;
/// Accounts of a ledger that does not grow.
pub(crate) const ACCOUNTS: u32 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    Echo,
    Reads,
    Singles,
    Hot,
    Mix,
    #[value(name = "batches-100")]
    Batches100,
    #[value(name = "batches-1000")]
    Batches1000,
    #[value(name = "batches-10000")]
    Batches10000,
    ReadsBesideWrites,
    Latency,
    Growth,
    Replay,
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value().expect("no scenario is hidden").get_name().to_owned()
    }
}

/// Where a scenario is measured, and where its figures go.
#[derive(Clone, Copy)]
pub(crate) struct Bench<'b> {
    pub(crate) kind: Kind,
    pub(crate) cluster: Option<&'b Postgres>,
    pub(crate) plan: &'b Plan,
    pub(crate) results: &'b RefCell<Results>,
    pub(crate) run: u32,
}

impl<'b> Bench<'b> {
    /// A service on a new ledger with accounts.
    async fn subject(&self) -> Subject<'b> {
        let subject = Subject::start(self.cluster, &self.plan.folder);
        subject.open_accounts(0, ACCOUNTS).await;
        subject
    }

    fn record(&self, series: Series, figures: Figures) {
        self.record_at(series, None, figures);
    }

    fn record_at(&self, series: Series, stored: Option<u64>, figures: Figures) {
        println!("{} {}/{} {}", self.kind, self.run, self.plan.runs, report::line(series, &figures));
        let measurement =
            Measurement { database: self.kind, series, peer: series.is_peer(), run: self.run, stored, figures };
        self.results.borrow_mut().measurements.push(measurement);
    }

    fn found(&self, fact: Fact, value: f64) {
        println!("{} {}/{} {}: {}", self.kind, self.run, self.plan.runs, fact.label(), report::plain(value));
        self.results.borrow_mut().facts.push(Found { database: self.kind, fact, value });
    }

    async fn measure(&self, scenario: Scenario) {
        match scenario {
            Scenario::Echo => singles::echo(self).await,
            Scenario::Reads => readers::reads(self).await,
            Scenario::Singles => singles::singles(self).await,
            Scenario::Hot => singles::hot(self).await,
            Scenario::Mix => singles::mix(self).await,
            Scenario::Batches100 => batches::batches(self, 100).await,
            Scenario::Batches1000 => batches::batches(self, 1_000).await,
            Scenario::Batches10000 => batches::batches(self, 10_000).await,
            Scenario::ReadsBesideWrites => readers::reads_beside_writes(self).await,
            Scenario::Latency => latency::latency(self).await,
            Scenario::Growth => growth::growth(self).await,
            Scenario::Replay => replay::replay(self).await,
        }
    }

    /// Measures a scenario, or notes why it could not be measured, and saves what there is.
    async fn attempt(&self, scenario: Scenario, save: &dyn Fn(&Results)) {
        if !self.plan.wants(scenario) {
            return;
        }
        if let Err(why) = attempt(self.measure(scenario)).await {
            eprintln!("{} {} failed: {why}", self.kind, scenario.name());
            let failure = Failure { database: self.kind, scenario: scenario.name(), why };
            self.results.borrow_mut().failures.push(failure);
        }
        save(&self.results.borrow());
    }
}

/// Measures one database: the scenarios in turn, as often as planned, so that a slow minute of the machine does not
/// meet one of them alone. What needs their medians comes after.
pub(crate) async fn run(kind: Kind, plan: &Plan, results: &RefCell<Results>, save: &dyn Fn(&Results)) {
    let cluster = (kind == Kind::Postgres).then(|| start_cluster(&plan.folder));
    if let Some(cluster) = &cluster {
        results.borrow_mut().postgres = Some(cluster.psql("postgres", "show server_version"));
    }
    let bench = Bench { kind, cluster: cluster.as_ref(), plan, results, run: 1 };
    let in_turn = Scenario::value_variants().iter().filter(|scenario| !needs_medians(**scenario));
    let (in_turn, after): (Vec<_>, Vec<_>) =
        (in_turn.collect(), vec![Scenario::Latency, Scenario::Growth, Scenario::Replay]);
    for run in 1..=plan.runs {
        for scenario in &in_turn {
            Bench { run, ..bench }.attempt(**scenario, save).await;
        }
    }
    for scenario in after {
        bench.attempt(scenario, save).await;
    }
}

const fn needs_medians(scenario: Scenario) -> bool {
    matches!(scenario, Scenario::Latency | Scenario::Growth | Scenario::Replay)
}

/// The cluster of ledger and peers alike.
pub(crate) fn start_cluster(folder: &std::path::Path) -> Postgres {
    // A quarter of the memory, as PostgreSQL's manual has it for a server of its own.
    let buffers = format!("shared_buffers={:.0}GB", (Machine::this().memory_gib / 4.0).max(1.0));
    let settings = &[buffers.as_str(), "max_wal_size=8GB", "min_wal_size=4GB", "wal_compression=lz4"];
    let cluster = Postgres::start_with(folder, settings);
    // A cluster that has run for a while writes its log into segments that it has; a new one makes and syncs 16 MiB for
    // each, which would be measured as stalls of the ledger and of its peers.
    let switch = "select pg_logical_emit_message(false, 'bench', 'x'), pg_switch_wal()";
    let switches = format!("{}checkpoint", format!("{switch};").repeat(SEGMENTS));
    cluster.psql("postgres", &format!("create table filled (n integer); {switch}"));
    for statement in switches.split(';') {
        cluster.psql("postgres", statement);
    }
    cluster
}

/// Segments of the write-ahead log that are made before anything is measured: 3 GiB.
const SEGMENTS: usize = 192;

/// A peer's database, gone with the value.
struct PeerDatabase<'p> {
    cluster: &'p Postgres,
    url: String,
}

impl<'p> PeerDatabase<'p> {
    fn new(cluster: &'p Postgres) -> Self {
        Self { cluster, url: cluster.database() }
    }
}

impl Drop for PeerDatabase<'_> {
    fn drop(&mut self) {
        drop_database(self.cluster, &self.url);
    }
}

/// What of pgbench stands beside a scenario.
struct Peer {
    series: Series,
    form: Form,
    accounts: u32,
    /// As fast as they are answered, if not given.
    per_second: Option<f64>,
}

impl Peer {
    const fn closed(series: Series, form: Form, accounts: u32) -> Self {
        Self { series, form, accounts, per_second: None }
    }
}
