//! What was measured so far.

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use futures::FutureExt;
use serde::Serialize;

use crate::{
    figures::{Figures, median},
    series::Series,
    subject::Kind,
};

/// A measurement of one run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measurement {
    pub(crate) database: Kind,
    pub(crate) series: Series,
    pub(crate) peer: bool,
    pub(crate) run: u32,
    /// Events or rows that were there before, where that matters.
    pub(crate) stored: Option<u64>,
    pub(crate) figures: Figures,
}

/// Something about a ledger that has grown which is not a rate under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fact {
    SecondsUntilServingAfterKill,
    DiskBytesPerEvent,
    VerifySeconds,
    VerifyEventsPerSecond,
    RebuildSeconds,
    RebuildEventsPerSecond,
    EventsStored,
    AccountsStored,
}

impl Fact {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::SecondsUntilServingAfterKill => "kill -9 until the first command is answered, s",
            Self::DiskBytesPerEvent => "bytes on the disk for each event",
            Self::VerifySeconds => "replay-tool verify, s",
            Self::VerifyEventsPerSecond => "replay-tool verify, events/s",
            Self::RebuildSeconds => "replay-tool rebuild, s",
            Self::RebuildEventsPerSecond => "replay-tool rebuild, events/s",
            Self::EventsStored => "events stored at the end",
            Self::AccountsStored => "accounts at the end",
        }
    }
}

/// A fact as one run found it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Found {
    pub(crate) database: Kind,
    pub(crate) fact: Fact,
    pub(crate) value: f64,
}

/// How fast a ledger grew when it held so many events.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct FillPoint {
    pub(crate) database: Kind,
    pub(crate) events: f64,
    pub(crate) rate: f64,
}

/// A scenario that could not be measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) database: Kind,
    pub(crate) scenario: String,
    pub(crate) why: String,
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    /// The version of the cluster, where there is one.
    pub(crate) postgres: Option<String>,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) facts: Vec<Found>,
    pub(crate) filling: Vec<FillPoint>,
    pub(crate) failures: Vec<Failure>,
}

impl Results {
    /// The databases that something was measured of, in their order.
    pub(crate) fn databases(&self) -> BTreeSet<Kind> {
        let failed = self.failures.iter().map(|failure| failure.database);
        self.measurements.iter().map(|measurement| measurement.database).chain(failed).collect()
    }

    /// What was measured of a database, in the order in which it is shown.
    pub(crate) fn series(&self, database: Kind) -> BTreeSet<Series> {
        let of = self.measurements.iter().filter(|measurement| measurement.database == database);
        of.map(|measurement| measurement.series).collect()
    }

    fn runs(&self, database: Kind, series: Series) -> impl Iterator<Item = &Measurement> {
        let wanted = move |measurement: &&Measurement| measurement.database == database && measurement.series == series;
        self.measurements.iter().filter(wanted)
    }

    /// The medians over the runs.
    pub(crate) fn median(&self, database: Kind, series: Series) -> Option<Figures> {
        Figures::median(&self.runs(database, series).map(|measurement| &measurement.figures).collect::<Vec<_>>())
    }

    pub(crate) fn rate(&self, database: Kind, series: Series) -> Option<f64> {
        Some(self.median(database, series)?.rate)
    }

    /// How many events there were in the median.
    pub(crate) fn stored(&self, database: Kind, series: Series) -> Option<f64> {
        median(self.runs(database, series).filter_map(|measurement| measurement.stored).map(crate::figures::float))
    }

    pub(crate) fn fact(&self, database: Kind, fact: Fact) -> Option<f64> {
        let of = self.facts.iter().filter(|found| found.database == database && found.fact == fact);
        median(of.map(|found| found.value))
    }
}

/// Runs to the end or to the first panic, and gives what it said.
pub(crate) async fn attempt(work: impl Future<Output = ()>) -> Result<(), String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_one_database_and_one_series() {
        let measured = |database, series, rate| Measurement {
            database,
            series,
            peer: false,
            run: 1,
            stored: None,
            figures: Figures { rate, ..Figures::default() },
        };
        let measurements = vec![
            measured(Kind::Postgres, Series::Singles, 1.0),
            measured(Kind::Postgres, Series::Singles, 3.0),
            measured(Kind::Postgres, Series::Hot, 9.0),
            measured(Kind::Sqlite, Series::Singles, 9.0),
        ];
        let results = Results { measurements, ..Results::default() };
        assert_eq!(results.rate(Kind::Postgres, Series::Singles), Some(2.0));
        assert_eq!(results.rate(Kind::Sqlite, Series::Hot), None);
        assert_eq!(results.series(Kind::Postgres).len(), 2);
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        let failed = attempt(async { panic!("no {}", "luck") }).await;
        assert_eq!(failed, Err("no luck".to_owned()));
        assert_eq!(attempt(async {}).await, Ok(()));
    }
}
