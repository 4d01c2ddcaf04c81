//! What is to be done, from the command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{scenario::Scenario, subject::Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Databases {
    Postgres,
    Sqlite,
    Both,
}

/// Measures everything, each scenario beside its peers, and writes results.json, results.md and plots.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The databases to measure on.
    #[arg(long, value_enum, default_value_t = Databases::Both)]
    database: Databases,
    /// How often each scenario is measured; medians are reported.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How long batches of 1,000 are sustained.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    sustained_seconds: u64,
    /// How many events a ledger grows to; 0 leaves growth out.
    #[arg(long, default_value_t = 20_000_000)]
    events: u64,
    /// How many accounts it has then.
    #[arg(long, default_value_t = 2_000_000)]
    accounts_grown: u32,
    /// How many events a ledger holds when it is replayed; several, with commas between them, show whether rates keep.
    #[arg(long, default_value = "2000000", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(10_000..))]
    replay_events: Vec<u64>,
    /// Only these scenarios, with commas between them.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Where the databases are kept while they are measured.
    #[arg(long, default_value = "/tmp")]
    folder: PathBuf,
    /// Where the results go.
    #[arg(long, default_value = "bench-results")]
    pub(crate) out: PathBuf,
    /// A first impression: 1 run, 3 s, 10 s sustained, 1,000,000 events and 100,000 accounts; 200,000 events to replay.
    #[arg(long)]
    quick: bool,
    /// Take `api` and `replay-tool` as they are instead of building them first.
    #[arg(long)]
    pub(crate) no_build: bool,
}

/// The options in force.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) databases: Vec<Kind>,
    pub(crate) runs: u32,
    pub(crate) seconds: u32,
    pub(crate) sustained_seconds: u32,
    pub(crate) warm_up_seconds: u32,
    pub(crate) events: u64,
    pub(crate) accounts_grown: u32,
    pub(crate) replay_events: Vec<u64>,
    pub(crate) only: Vec<Scenario>,
    pub(crate) folder: PathBuf,
    pub(crate) out: PathBuf,
}

impl Plan {
    pub(crate) fn new(options: &Options) -> Self {
        let seconds = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
        let plan = Self {
            databases: match options.database {
                Databases::Postgres => vec![Kind::Postgres],
                Databases::Sqlite => vec![Kind::Sqlite],
                Databases::Both => vec![Kind::Postgres, Kind::Sqlite],
            },
            runs: options.runs,
            seconds: seconds(options.seconds),
            sustained_seconds: seconds(options.sustained_seconds),
            warm_up_seconds: 2,
            events: options.events,
            accounts_grown: options.accounts_grown,
            replay_events: options.replay_events.clone(),
            only: options.only.clone(),
            folder: options.folder.clone(),
            out: options.out.clone(),
        };
        let plan = if options.quick { plan.quick() } else { plan };
        // Each account is opened by an event of its own, and most events are to be others.
        let accounts_max = u32::try_from(plan.events / 2).unwrap_or(u32::MAX).max(1);
        Self { accounts_grown: plan.accounts_grown.min(accounts_max), ..plan }
    }

    fn quick(self) -> Self {
        Self {
            runs: 1,
            seconds: self.seconds.min(3),
            sustained_seconds: self.sustained_seconds.min(10),
            warm_up_seconds: 1,
            events: self.events.min(1_000_000),
            accounts_grown: self.accounts_grown.min(100_000),
            replay_events: vec![200_000],
            ..self
        }
    }

    pub(crate) fn wants(&self, scenario: Scenario) -> bool {
        let grows = scenario == Scenario::Growth;
        (self.only.is_empty() || self.only.contains(&scenario)) && !(grows && self.events == 0)
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs(self.warm_up_seconds.into())
    }

    pub(crate) fn length(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    pub(crate) fn sustained(&self) -> Duration {
        Duration::from_secs(self.sustained_seconds.into())
    }

    /// How many events a growing ledger holds when it is measured: of 20 million, at 1, 5, 10 and 20.
    pub(crate) fn stages(&self) -> Vec<u64> {
        if self.wants(Scenario::Growth) { [20, 4, 2, 1].map(|part| self.events / part).to_vec() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn plan(arguments: &[&str]) -> Plan {
        let arguments = [&["bench"], arguments].concat();
        Plan::new(&Program::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).options)
    }

    #[test]
    fn a_ledger_grows_in_stages() {
        assert_eq!(plan(&[]).stages(), [1_000_000, 5_000_000, 10_000_000, 20_000_000]);
        assert_eq!(plan(&["--events", "0"]).stages().len(), 0);
        assert_eq!(plan(&["--only", "singles,hot"]).stages().len(), 0);
    }

    #[test]
    fn quick_is_short_and_has_fewer_accounts_than_events() {
        let quick = plan(&["--quick", "--seconds", "2"]);
        assert_eq!((quick.runs, quick.seconds, quick.events, quick.accounts_grown), (1, 2, 1_000_000, 100_000));
        assert_eq!(plan(&["--events", "1000"]).accounts_grown, 500);
    }
}
