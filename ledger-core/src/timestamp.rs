//! Instants, as the ledger stores them.

use std::fmt;

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Serialize, Serializer};

/// Microseconds since 1970-01-01T00:00:00Z: the resolution that both databases keep exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z, the earliest that there is.
    pub const EPOCH: Self = Self(0);

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

/// The length of an instant's text.
const TEXT_BYTES: usize = "2026-11-20T12:00:00.000000Z".len();

impl Timestamp {
    /// Writes the digits one by one: every event is written twice, and a general formatter takes ten times as long.
    fn text(self, buffer: &mut [u8; TEXT_BYTES]) -> &str {
        let time = DateTime::<Utc>::from(self);
        *buffer = *b"0000-00-00T00:00:00.000000Z";
        let fields = [
            (0..4, time.year().unsigned_abs()),
            (5..7, time.month()),
            (8..10, time.day()),
            (11..13, time.hour()),
            (14..16, time.minute()),
            (17..19, time.second()),
            (20..26, time.timestamp_subsec_micros()),
        ];
        for (place, mut value) in fields {
            for digit in buffer[place].iter_mut().rev() {
                *digit = b"0123456789"[(value % 10) as usize];
                value /= 10;
            }
        }
        std::str::from_utf8(buffer).expect("digits and signs")
    }
}

/// RFC 3339 in UTC with six digits: `2026-11-20T12:00:00.000000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text(&mut [0; TEXT_BYTES]))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text(&mut [0; TEXT_BYTES]))
    }
}

#[cfg(test)]
mod tests {
    use chrono::SecondsFormat;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_text_is_rfc_3339(micros in 0..253_402_300_800_000_000_i64) {
            let timestamp = Timestamp::from_micros(micros).expect("in range");
            let expected = DateTime::<Utc>::from(timestamp).to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(timestamp.to_string(), expected);
            prop_assert_eq!(Timestamp::parse(&timestamp.to_string()), Some(timestamp));
        }
    }
}
