//! What is measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// One measurement of one thing.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Figures {
    /// Per second: commands, rows, requests or events, as the scenario says.
    pub(crate) rate: f64,
    /// Of one request, where requests are what is sent.
    pub(crate) latency: Option<Latency>,
    /// What kept the cores busy, where it was watched.
    pub(crate) cpu: Option<Cpu>,
    /// Bytes that the disk was given for each event, where it was watched.
    pub(crate) bytes_per_event: Option<f64>,
    /// The longest time by which the read models were behind the log, in seconds.
    pub(crate) lag_seconds: Option<f64>,
    /// The largest resident memory of the service, in MiB.
    pub(crate) memory_mib: Option<f64>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// Cores: seconds of CPU time per second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cpu {
    pub(crate) service: f64,
    pub(crate) database: f64,
    pub(crate) client: f64,
}

/// A histogram of latencies in microseconds, from 1 µs to 2 min, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are in order")
}

/// Adds one latency; what is longer than the histogram's bound counts as the bound.
pub(crate) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// A count as a number that can be divided.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
pub(crate) const fn float(count: u64) -> f64 {
    count as f64
}

/// The middle one; the mean of the middle two of an even number.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len().is_multiple_of(2) { f64::midpoint(values[values.len() / 2 - 1], upper) } else { upper })
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| float(histogram.value_at_quantile(quantile)) / 1_000.0;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

impl Figures {
    /// The median of each figure by itself; none of nothing.
    pub(crate) fn median(runs: &[&Self]) -> Option<Self> {
        let of = |figure: fn(&Self) -> Option<f64>| median(runs.iter().filter_map(|figures| figure(figures)));
        let latency = |quantile: fn(&Latency) -> f64| {
            median(runs.iter().filter_map(|figures| figures.latency.as_ref()).map(quantile))
        };
        let cpu = |part: fn(&Cpu) -> f64| median(runs.iter().filter_map(|figures| figures.cpu.as_ref()).map(part));
        let latency = || {
            Some(Latency {
                p50: latency(|latency| latency.p50)?,
                p99: latency(|latency| latency.p99)?,
                p999: latency(|latency| latency.p999)?,
                max: latency(|latency| latency.max)?,
            })
        };
        let cpu = || {
            Some(Cpu {
                service: cpu(|cpu| cpu.service)?,
                database: cpu(|cpu| cpu.database)?,
                client: cpu(|cpu| cpu.client)?,
            })
        };
        Some(Self {
            rate: of(|figures| Some(figures.rate))?,
            latency: latency(),
            cpu: cpu(),
            bytes_per_event: of(|figures| figures.bytes_per_event),
            lag_seconds: of(|figures| figures.lag_seconds),
            memory_mib: of(|figures| figures.memory_mib),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([7.0]), Some(7.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn each_figure_has_its_own_median_over_the_runs_that_have_it() {
        let run = |rate: f64, p99: f64, lag_seconds| Figures {
            rate,
            latency: Some(Latency { p99, ..Latency::default() }),
            lag_seconds,
            ..Figures::default()
        };
        let runs = [run(10.0, 1.0, None), run(30.0, 9.0, Some(0.5)), run(20.0, 5.0, None)];
        let median = Figures::median(&runs.each_ref()).expect("there are runs");
        assert!((median.rate - 20.0).abs() < f64::EPSILON);
        assert_eq!(median.latency.map(|latency| latency.p99), Some(5.0));
        assert_eq!(median.lag_seconds, Some(0.5));
        assert!(median.cpu.is_none());
        assert!(Figures::median(&[]).is_none());
    }
}
