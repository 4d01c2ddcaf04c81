//! Instants, as the ledger stores them.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// Microseconds since 1970-01-01T00:00:00Z: the resolution that both databases keep exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant `micros` microseconds after the Unix epoch; `None` outside the years 1970 to 9999, which RFC 3339
    /// cannot write or no ledger has seen.
    #[must_use]
    pub fn from_micros(micros: i64) -> Option<Self> {
        const YEAR_10000_MICROS: i64 = 253_402_300_800_000_000;
        (0..YEAR_10000_MICROS).contains(&micros).then_some(Self(micros))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The instant that an RFC 3339 text names, cut to microseconds.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_micros(DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros())
    }

    /// This instant `seconds` later, or `None` past the year 9999.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Option<Self> {
        let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
        Self::from_micros(self.0.checked_add(micros)?)
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(timestamp: Timestamp) -> Self {
        DateTime::from_timestamp_micros(timestamp.0).expect("a Timestamp lies in chrono's range")
    }
}

/// RFC 3339 in UTC with six digits: `2026-11-20T12:00:00.000000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&DateTime::<Utc>::from(*self).to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
