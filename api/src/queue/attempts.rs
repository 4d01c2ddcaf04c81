//! How often a command failed, and what follows from how it failed.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::{backoff, problem::Problem};

/// Messages whose failures are remembered. One that is forgotten begins anew.
const REMEMBERED_MAX: usize = 100_000;
/// The pause after a failure, doubled up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What is to become of a command that was not done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It comes again, `is_failure` when this used up an attempt.
    Later { pause: Duration, is_failure: bool },
    /// It goes to the dead letters after so many attempts.
    Dead { attempts: u32 },
}

#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    /// Real failures: only they count.
    failures: u32,
    /// How often it had to wait for something that is not its fault.
    delays: u32,
    /// The delivery that was put back last.
    delivered: i64,
}

/// The failures of the messages that come again. They are counted in this process: a redelivery after a crash is none.
#[derive(Debug)]
pub(super) struct Attempts {
    attempts_max: u32,
    tries: Cache<String, Tries>,
}

impl Attempts {
    pub(super) fn new(attempts_max: u32) -> Self {
        Self { attempts_max, tries: Cache::new(REMEMBERED_MAX) }
    }

    /// Whether it was this process that put back the delivery right before this one. If not, another one had the message
    /// meanwhile and may have written its letter.
    pub(super) fn put_back_last(&self, id: &str, delivered: i64) -> bool {
        self.tries.get(id).is_some_and(|tries| tries.delivered + 1 == delivered)
    }

    pub(super) fn forget(&self, id: &str) {
        self.tries.remove(id);
    }

    /// Judges the problem of a delivery; `is_away` says whether the database is known to be away.
    pub(super) fn judge(&self, id: &str, delivered: i64, problem: &Problem, is_away: bool) -> Verdict {
        let mut tries = self.tries.get(id).unwrap_or_default();
        tries.delivered = delivered;
        match Fault::of(problem, is_away) {
            Fault::Command => Verdict::Dead { attempts: tries.failures + 1 },
            Fault::Circumstance => {
                tries.delays += 1;
                self.tries.insert(id.to_owned(), tries);
                // A limit says when it is worth coming again; those that come in vain come less and less often.
                let pause = problem.wait().unwrap_or_default() + backoff::pause(tries.delays, PAUSE, PAUSE_MAX) / 2;
                Verdict::Later { pause, is_failure: false }
            }
            Fault::Passing => {
                tries.failures += 1;
                if tries.failures >= self.attempts_max {
                    return Verdict::Dead { attempts: tries.failures };
                }
                self.tries.insert(id.to_owned(), tries);
                Verdict::Later { pause: backoff::pause(tries.failures, PAUSE, PAUSE_MAX), is_failure: true }
            }
        }
    }
}

/// Whose fault a problem is.
enum Fault {
    /// The command's: it is refused.
    Command,
    /// Nobody's: the command was not tried in earnest.
    Circumstance,
    /// Unknown; it may pass.
    Passing,
}

impl Fault {
    fn of(problem: &Problem, is_away: bool) -> Self {
        match problem.code() {
            "rate_limited" | "overloaded" => Self::Circumstance,
            "store_unavailable" if is_away => Self::Circumstance,
            "store_unavailable" | "internal_error" => Self::Passing,
            // What the account is to come to may still be on its way; what it is past never comes back.
            "version_conflict" if problem.is_ahead() => Self::Passing,
            _ => Self::Command,
        }
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::Rejection;

    use super::*;

    fn is_failure(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Later { is_failure: true, .. })
    }

    #[test]
    fn only_failures_that_are_nobody_elses_use_up_attempts() {
        let attempts = Attempts::new(3);
        let away = Problem::store_unavailable();
        let limited = Problem::rate_limited("too many", Duration::from_secs(7));
        for round in 0..100 {
            let verdict = attempts.judge("1", 1, &away, true);
            assert!(matches!(verdict, Verdict::Later { is_failure: false, .. }), "{round}: {verdict:?}");
            let Verdict::Later { pause, is_failure: false } = attempts.judge("1", 1, &limited, false) else {
                panic!("a limit uses up no attempt");
            };
            assert!(pause >= Duration::from_secs(7), "{pause:?}");
        }
        assert!(is_failure(&attempts.judge("1", 1, &away, false)));
        assert!(is_failure(&attempts.judge("1", 1, &Problem::internal(), false)));
        assert!(is_failure(&attempts.judge("2", 1, &away, false)), "others are counted apart");
        assert_eq!(attempts.judge("1", 1, &away, false), Verdict::Dead { attempts: 3 });
    }

    #[test]
    fn a_message_that_another_process_had_meanwhile_was_not_put_back_last() {
        let attempts = Attempts::new(3);
        let limited = Problem::rate_limited("too many", Duration::from_secs(7));
        assert!(!attempts.put_back_last("1", 1), "nothing is known of it");
        attempts.judge("1", 1, &limited, false);
        assert!(attempts.put_back_last("1", 2));
        assert!(!attempts.put_back_last("1", 3), "somebody else had the second delivery");
        assert!(!attempts.put_back_last("1", 1), "the queue's consumer was made anew");
        assert!(is_failure(&attempts.judge("1", 3, &Problem::internal(), false)));
        assert!(attempts.put_back_last("1", 4) && !attempts.put_back_last("2", 4));
        attempts.forget("1");
        assert!(!attempts.put_back_last("1", 4));
    }

    #[test]
    fn a_refusal_is_final_and_a_version_that_is_to_come_is_waited_for() {
        let conflict = |expected, current| {
            Problem::rejected(&Rejection::VersionConflict { expected, current }, Some("ann"), Some("points"))
        };
        let attempts = Attempts::new(2);
        assert_eq!(
            attempts.judge("1", 1, &Problem::invalid("amount", "is required"), true),
            Verdict::Dead { attempts: 1 }
        );
        assert_eq!(attempts.judge("1", 1, &conflict(4, 5), false), Verdict::Dead { attempts: 1 });
        assert!(is_failure(&attempts.judge("1", 1, &conflict(6, 5), false)));
        assert_eq!(attempts.judge("1", 1, &conflict(6, 5), false), Verdict::Dead { attempts: 2 });
    }
}
