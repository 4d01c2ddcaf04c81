//! Amounts of credits.

use serde::Serialize;

use crate::text::InvalidField;

/// The largest amount and the largest balance: 2^53 − 1, the largest whole number that every JSON client reads exactly
/// (RFC 8259 §6).
pub const MAX_AMOUNT: u64 = (1 << 53) - 1;

/// How many whole units of a credit a command moves: 1 ..= [`MAX_AMOUNT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Amount(u64);

impl Amount {
    /// The amount of `units`, or what is wrong with it: 0 and anything past [`MAX_AMOUNT`] are refused.
    pub fn new(units: u64) -> Result<Self, InvalidField> {
        if (1..=MAX_AMOUNT).contains(&units) {
            Ok(Self(units))
        } else {
            Err(InvalidField::new("amount", format!("must be a whole number from 1 to {MAX_AMOUNT}")))
        }
    }

    /// The number of units.
    #[must_use]
    pub const fn units(self) -> u64 {
        self.0
    }
}
