//! How long a freeze may stay open.

use chrono::Utc;
use ledger_core::{Action, Command, Expiry, Timestamp};
use ledger_store::Ledger;

use crate::problem::Problem;

/// The longest time after which a freeze can expire at all: a hundred years, in seconds.
pub(crate) const LIFETIME_SECONDS_MAX: u64 = 100 * 366 * 24 * 60 * 60;

/// The lifetimes of freezes, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetimes {
    /// Of a freeze that asks for none; absent: it stays open.
    usual: Option<u64>,
    longest: u64,
}

impl Lifetimes {
    /// # Errors
    ///
    /// In one line, when freezes that ask for nothing would be refused.
    pub(crate) fn new(usual: Option<u64>, longest: u64) -> Result<Self, String> {
        match usual {
            Some(usual) if usual > longest => Err(format!(
                "--freeze-lifetime {usual} is longer than --freeze-lifetime-max {longest}; raise the one or lower the other"
            )),
            _ => Ok(Self { usual, longest }),
        }
    }

    /// Gives a freeze that asks for no expiry the usual one, and refuses one that asks for too long. A repeat of a freeze
    /// that was accepted under other settings stays a repeat: it is let through, and answered as the first.
    pub(crate) async fn apply(&self, ledger: &Ledger, command: &mut Command) -> Result<(), Problem> {
        let Action::Freeze { account, expiry, .. } = &mut command.action else { return Ok(()) };
        let Some(asked) = *expiry else {
            *expiry = self.usual.map(Expiry::InSeconds);
            return Ok(());
        };
        let Err(refusal) = self.check(asked, now()) else { return Ok(()) };
        if ledger.find(account, &command.key).await?.is_some() { Ok(()) } else { Err(refusal) }
    }

    fn check(&self, asked: Expiry, now: Option<Timestamp>) -> Result<(), Problem> {
        let longest = self.longest;
        match asked {
            Expiry::InSeconds(seconds) if seconds > longest => {
                Err(Problem::invalid("expires_in_seconds", format!("must be from 1 to {longest}")))
            }
            // Past the year 9999 no bound is needed: such a time is none.
            Expiry::At(at) if now.and_then(|now| now.plus_seconds(longest)).is_some_and(|latest| at > latest) => {
                Err(Problem::invalid("expires_at", format!("must be at most {longest} seconds away")))
            }
            _ => Ok(()),
        }
    }
}

fn now() -> Option<Timestamp> {
    Timestamp::from_micros(Utc::now().timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_bounded_to_the_second_and_its_field_is_named() {
        let lifetimes = Lifetimes::new(Some(10), 60).expect("consistent");
        let now = Timestamp::parse("2026-11-20T12:00:00Z");
        let at = |text| Expiry::At(Timestamp::parse(text).expect("a time"));
        for (asked, field) in [
            (Expiry::InSeconds(60), None),
            (Expiry::InSeconds(61), Some("expires_in_seconds")),
            (at("2026-11-20T12:01:00Z"), None),
            (at("2026-11-20T12:01:00.000001Z"), Some("expires_at")),
            (at("9999-12-31T23:59:59Z"), Some("expires_at")),
        ] {
            let problem = lifetimes.check(asked, now).err();
            assert_eq!(problem.as_ref().and_then(|problem| problem.field()), field, "{asked:?}");
        }
    }

    #[test]
    fn a_usual_lifetime_past_the_longest_is_refused() {
        assert!(Lifetimes::new(Some(60), 60).is_ok() && Lifetimes::new(None, 1).is_ok());
        let why = Lifetimes::new(Some(61), 60).expect_err("refused");
        assert!(why.contains("--freeze-lifetime 61") && why.contains("--freeze-lifetime-max 60"), "{why}");
    }
}
