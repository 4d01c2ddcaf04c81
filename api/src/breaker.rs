//! A circuit breaker around the database: once it fails again and again, callers are told so at once instead of waiting
//! for a time-out each, and the database is left alone for a while.
//!
//! Closed: everything passes; failures of the last minute are counted. Open, after [`FAILURES`] of them: nothing passes for
//! [`OPEN`]. Half open, after that: one request of [`PROBES`] passes; the first that succeeds closes it, a failure opens it
//! again. The writer tries the database by itself all the while; when it gets through, the breaker closes at once.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// So many failures within [`WINDOW`] open it.
const FAILURES: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// How long nothing passes.
const OPEN: Duration = Duration::from_secs(30);
/// One request of so many is let through to see, once it is half open.
const PROBES: u32 = 10;

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// What every request looks at: false while it is closed and nothing has failed lately.
    is_wary: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: VecDeque<Instant>,
    /// Since when it is not closed.
    opened: Option<Instant>,
    asked: u32,
}

/// What is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    Closed,
    Open,
    HalfOpen,
}

impl Position {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl State {
    fn position(&self, now: Instant) -> Position {
        match self.opened {
            None => Position::Closed,
            Some(opened) if now.duration_since(opened) < OPEN => Position::Open,
            Some(_) => Position::HalfOpen,
        }
    }
}

impl Breaker {
    /// Whether a request may ask the database; `Err` is after what time it is worth asking again.
    pub(crate) fn admit(&self) -> Result<(), Duration> {
        if self.is_wary.load(Ordering::Relaxed) { self.admit_at(Instant::now()) } else { Ok(()) }
    }

    fn admit_at(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state();
        match state.position(now) {
            Position::Closed => Ok(()),
            Position::Open => Err(OPEN - now.duration_since(state.opened.unwrap_or(now))),
            Position::HalfOpen => {
                state.asked += 1;
                if state.asked % PROBES == 1 { Ok(()) } else { Err(Duration::from_secs(1)) }
            }
        }
    }

    /// The database did not answer.
    pub(crate) fn failed(&self) {
        self.failed_at(Instant::now());
    }

    fn failed_at(&self, now: Instant) {
        let mut state = self.state();
        match state.position(now) {
            Position::Open => {}
            Position::HalfOpen => open(&mut state, now),
            Position::Closed => {
                state.failures.push_back(now);
                while state.failures.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
                    state.failures.pop_front();
                }
                if state.failures.len() >= FAILURES {
                    open(&mut state, now);
                }
            }
        }
        self.is_wary.store(true, Ordering::Relaxed);
    }

    /// The database answered.
    pub(crate) fn succeeded(&self) {
        if self.is_wary.load(Ordering::Relaxed) {
            self.succeeded_at(Instant::now());
        }
    }

    fn succeeded_at(&self, now: Instant) {
        let mut state = self.state();
        if state.position(now) == Position::HalfOpen {
            self.close(&mut state);
        }
    }

    /// The database is known to be well again.
    pub(crate) fn recovered(&self) {
        let mut state = self.state();
        if state.opened.is_some() {
            self.close(&mut state);
        }
    }

    fn close(&self, state: &mut State) {
        *state = State::default();
        self.is_wary.store(false, Ordering::Relaxed);
        metrics::gauge!("ledger_breaker_open").set(0.0);
        tracing::info!("the database answers again: the breaker is closed");
    }

    pub(crate) fn position(&self) -> Position {
        self.state().position(Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(state: &mut State, now: Instant) {
    *state = State { opened: Some(now), ..State::default() };
    metrics::gauge!("ledger_breaker_open").set(1.0);
    metrics::counter!("ledger_breaker_opened_total").increment(1);
    tracing::error!(
        seconds = OPEN.as_secs(),
        "the database failed {FAILURES} times within a minute: requests are refused at once for a while"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A breaker that has just opened, and when.
    fn opened() -> (Breaker, Instant) {
        let (breaker, now) = (Breaker::default(), Instant::now());
        (0..FAILURES).for_each(|_| breaker.failed_at(now));
        (breaker, now)
    }

    #[test]
    fn failures_that_are_far_apart_do_not_open_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for minute in 0..100 {
            breaker.failed_at(now + WINDOW * minute + Duration::from_millis(minute.into()));
        }
        assert_eq!(breaker.admit_at(now + WINDOW * 100), Ok(()));
    }

    #[test]
    fn ten_failures_in_a_minute_open_it_for_thirty_seconds() {
        let (breaker, now) = opened();
        assert_eq!(breaker.admit_at(now), Err(OPEN));
        let late = now + OPEN - Duration::from_secs(2);
        assert_eq!(breaker.admit_at(late), Err(Duration::from_secs(2)));
        breaker.succeeded_at(late);
        assert!(breaker.admit_at(late).is_err(), "what was under way when it opened says nothing");
    }

    #[test]
    fn half_open_lets_one_of_ten_through() {
        let (breaker, now) = opened();
        let passed = (0..100).filter(|_| breaker.admit_at(now + OPEN).is_ok()).count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn a_probe_closes_it_or_opens_it_again() {
        let (breaker, now) = opened();
        breaker.failed_at(now + OPEN);
        assert!(breaker.admit_at(now + OPEN + Duration::from_secs(29)).is_err());
        let later = now + OPEN * 2;
        breaker.succeeded_at(later);
        assert!((0..100).all(|_| breaker.admit_at(later).is_ok()));
    }

    #[test]
    fn it_closes_when_the_database_is_known_to_be_well() {
        let (breaker, now) = opened();
        breaker.recovered();
        assert_eq!(breaker.admit_at(now), Ok(()));
    }
}
