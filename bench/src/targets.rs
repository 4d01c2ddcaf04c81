//! What the ledger is to reach, as ratios of medians of the same run on the same machine.

use serde::Serialize;

use crate::{
    figures::Figures,
    results::{Fact, Results},
    series::{Grown, Replayed, Series, thousands},
    subject::Kind,
};

/// On which side of the bound the figure has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One target, and what was found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) database: Kind,
    pub(crate) name: String,
    pub(crate) bound: Bound,
    /// None when it was not measured.
    pub(crate) found: Option<f64>,
}

impl Target {
    pub(crate) fn reached(&self) -> Option<bool> {
        Some(match self.bound {
            Bound::AtLeast(bound) => self.found? >= bound,
            Bound::AtMost(bound) => self.found? <= bound,
        })
    }
}

/// The targets of a database. `stages` are the numbers of events at which a growing ledger is measured.
pub(crate) fn targets(results: &Results, database: Kind, stages: &[u64]) -> Vec<Target> {
    let judge = Judge { results, database };
    let mut targets = match database {
        Kind::Postgres => judge.against_postgres(stages),
        Kind::Sqlite => judge.against_sqlite(),
    };
    targets.extend(judge.on_both(stages));
    targets.extend(judge.of_replays());
    targets
}

struct Judge<'r> {
    results: &'r Results,
    database: Kind,
}

impl Judge<'_> {
    fn target(&self, name: &str, bound: Bound, found: Option<f64>) -> Target {
        Target { database: self.database, name: name.to_owned(), bound, found }
    }

    fn ratio(&self, name: &str, least: f64, of: Series, to: Series) -> Target {
        self.target(name, Bound::AtLeast(least), self.quotient(of, to))
    }

    fn quotient(&self, of: Series, to: Series) -> Option<f64> {
        Some(self.results.rate(self.database, of)? / self.results.rate(self.database, to)?)
    }

    /// The largest median of a figure over all that was measured of the service.
    fn largest(&self, figure: fn(&Figures) -> Option<f64>) -> Option<f64> {
        let of_service = |series: &Series| !series.is_peer() && !matches!(series, Series::Replayed(..));
        let series = self.results.series(self.database).into_iter().filter(of_service);
        series.filter_map(|series| figure(&self.results.median(self.database, series)?)).reduce(f64::max)
    }

    fn against_postgres(&self, stages: &[u64]) -> Vec<Target> {
        use Series::{Grown as At, GrownPeer, Hot, HotRowLocked, Singles, SinglesOneFunction, SinglesRowLocked};
        let mut targets = vec![
            self.ratio("single commands ÷ pgbench, one function", 3.0, Singles, SinglesOneFunction),
            self.ratio("single commands ÷ pgbench, row locked", 5.0, Singles, SinglesRowLocked),
            self.ratio("one hot account ÷ pgbench, row locked, one account", 20.0, Hot, HotRowLocked),
            self.ratio(
                "batches of 1,000 ÷ COPY, empty table",
                0.8,
                Series::batches(1_000),
                Series::batches_peer(1_000),
            ),
            self.ratio(
                "batches of 10,000 ÷ COPY, empty table",
                0.9,
                Series::batches(10_000),
                Series::batches_peer(10_000),
            ),
        ];
        if let Some(&last) = stages.last() {
            let (thousand, ten) = (At(last, Grown::Batches(1_000)), At(last, Grown::Batches(10_000)));
            targets.push(self.ratio("batches of 1,000 ÷ COPY, both grown", 1.5, thousand, GrownPeer(last)));
            targets.push(self.ratio("batches of 10,000 ÷ COPY, both grown", 1.7, ten, GrownPeer(last)));
        }
        targets
    }

    fn against_sqlite(&self) -> Vec<Target> {
        use Series::{Echo, Singles};
        vec![
            self.ratio("single commands ÷ echo", 0.4, Singles, Echo),
            self.ratio("batches of 1,000 ÷ naive inserts", 2.0, Series::batches(1_000), Series::batches_peer(1_000)),
            self.ratio("batches of 10,000 ÷ naive inserts", 2.0, Series::batches(10_000), Series::batches_peer(10_000)),
        ]
    }

    /// A replay is compared with one process that copies the same table of PostgreSQL, on both databases.
    fn of_replays(&self) -> Vec<Target> {
        let replays = self.results.series(self.database).into_iter().filter_map(|series| match series {
            Series::Replayed(events, replayed) if !series.is_peer() => Some((events, replayed)),
            _ => None,
        });
        let replays = replays.collect::<Vec<_>>();
        let (Some(least), Some(most)) =
            (replays.iter().map(|(events, _)| *events).min(), replays.iter().map(|(events, _)| *events).max())
        else {
            return Vec::new();
        };
        let rate = |replayed| self.results.rate(self.database, Series::Replayed(most, replayed));
        let peer = |replayed| self.results.rate(Kind::Postgres, Series::Replayed(most, replayed));
        let mut targets: Vec<_> = [
            ("verify ÷ COPY out", 1.0, Replayed::Verify, Replayed::CopyOut),
            ("verify --digest-only ÷ COPY out", 1.5, Replayed::Fold, Replayed::CopyOut),
            ("rebuild of the balances ÷ COPY out", 0.5, Replayed::RebuildBalances, Replayed::CopyOut),
            ("import ÷ COPY in", 0.5, Replayed::Import, Replayed::CopyIn),
        ]
        .into_iter()
        .map(|(name, bound, of, to)| {
            self.target(name, Bound::AtLeast(bound), rate(of).zip(peer(to)).map(|(of, to)| of / to))
        })
        .collect();
        for replayed in [Replayed::Verify, Replayed::RebuildBalances] {
            if least < most {
                let name = format!("{} ÷ that of {} events", Series::Replayed(most, replayed), thousands(least));
                let found = self.quotient(Series::Replayed(most, replayed), Series::Replayed(least, replayed));
                targets.push(self.target(&name, Bound::AtLeast(0.9), found));
            }
        }
        let memory = replays.iter().filter_map(|(events, replayed)| {
            self.results.median(self.database, Series::Replayed(*events, *replayed))?.memory_mib
        });
        targets.push(self.target(
            "memory of the replay-tool, MiB, largest",
            Bound::AtMost(300.0),
            memory.reduce(f64::max),
        ));
        targets
    }

    fn on_both(&self, stages: &[u64]) -> Vec<Target> {
        use Series::{
            Echo, Grown as At, Hot, Mix, Offered, Reads, ReadsAlone, ReadsBeside, Singles, WritesAlone, WritesBeside,
        };
        let half = self.results.median(self.database, Offered(50));
        let mut targets = vec![
            self.ratio("one hot account ÷ single commands", 0.9, Hot, Singles),
            self.ratio("a shop's mix ÷ single commands", 0.7, Mix, Singles),
            self.target(
                "p99 at half of the load, ms",
                Bound::AtMost(10.0),
                half.and_then(|figures| Some(figures.latency?.p99)),
            ),
            self.ratio("reads ÷ echo", 0.6, Reads, Echo),
            self.target(
                "reads beside commands, both as parts of them alone, sum",
                Bound::AtLeast(0.8),
                self.quotient(ReadsBeside, ReadsAlone)
                    .zip(self.quotient(WritesBeside, WritesAlone))
                    .map(|(reads, writes)| reads + writes),
            ),
        ];
        if let (Some(&first), Some(&last)) = (stages.first(), stages.last()) {
            let growth = |grown| self.quotient(At(last, grown), At(first, grown));
            targets.extend([
                self.target("single commands, grown ÷ young", Bound::AtLeast(0.8), growth(Grown::Singles)),
                self.target("batches of 1,000, grown ÷ young", Bound::AtLeast(0.8), growth(Grown::Batches(1_000))),
                self.target(
                    "kill -9 until the first answer, s",
                    Bound::AtMost(5.0),
                    self.results.fact(self.database, Fact::SecondsUntilServingAfterKill),
                ),
            ]);
        }
        targets.extend([
            self.target("memory, MiB, largest", Bound::AtMost(512.0), self.largest(|figures| figures.memory_mib)),
            self.target("lag of the read models, s, largest", Bound::AtMost(1.0), self.largest(|f| f.lag_seconds)),
        ]);
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Measurement;

    fn measured(series: Series, rate: f64, lag_seconds: Option<f64>) -> Measurement {
        let figures = Figures { rate, lag_seconds, ..Figures::default() };
        Measurement { database: Kind::Postgres, series, peer: series.is_peer(), run: 1, stored: None, figures }
    }

    #[test]
    fn a_target_is_reached_from_its_side() {
        let measurements = vec![
            measured(Series::Singles, 12_000.0, Some(0.2)),
            measured(Series::SinglesOneFunction, 4_000.0, None),
            measured(Series::SinglesRowLocked, 3_000.0, None),
            measured(Series::Hot, 9_000.0, Some(1.5)),
        ];
        let results = Results { measurements, ..Results::default() };
        let targets = targets(&results, Kind::Postgres, &[1, 2]);
        let reached = |name: &str| targets.iter().find(|target| target.name == name).expect("listed").reached();
        assert_eq!(reached("single commands ÷ pgbench, one function"), Some(true));
        assert_eq!(reached("single commands ÷ pgbench, row locked"), Some(false));
        assert_eq!(reached("one hot account ÷ single commands"), Some(false));
        assert_eq!(reached("lag of the read models, s, largest"), Some(false));
        assert_eq!(reached("reads ÷ echo"), None);
        assert_eq!(reached("single commands, grown ÷ young"), None);
    }

    #[test]
    fn reads_beside_commands_are_summed_as_parts() {
        let measurements = vec![
            measured(Series::ReadsAlone, 100.0, None),
            measured(Series::WritesAlone, 10.0, None),
            measured(Series::ReadsBeside, 50.0, None),
            measured(Series::WritesBeside, 4.0, None),
        ];
        let results = Results { measurements, ..Results::default() };
        let sum = targets(&results, Kind::Postgres, &[]).into_iter().find(|target| target.name.ends_with("sum"));
        assert!((sum.and_then(|target| target.found).expect("measured") - 0.9).abs() < 1e-9);
    }
}
