//! What is measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One measurement of one thing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Per second: commands, rows, requests or events, as the scenario says.
    pub(crate) rate: f64,
    /// Of one request, where requests are what is sent.
    pub(crate) latency: Option<Latency>,
    /// What kept the cores busy, where it was watched.
    pub(crate) cpu: Option<Cpu>,
    /// Bytes handed to the disk for each event, where it was watched.
    pub(crate) bytes_per_event: Option<f64>,
    /// The longest time by which the read models were behind the log, in seconds.
    pub(crate) lag_seconds: Option<f64>,
    /// The largest resident memory of the service, in MiB.
    pub(crate) memory_mib: Option<f64>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// Cores: seconds of CPU time per second.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
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

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds are far below 2^52")]
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}
