//! Which pooled connections may have died with the server.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// For so long everybody is doubted, whenever he was used.
const AT_LEAST: Duration = Duration::from_secs(1);

/// When a connection was last found dead, or the writer had to connect anew: whoever was used last before that is tested
/// before it is used again, for the server may have gone away in between.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubt(Arc<Mutex<Option<Instant>>>);

impl Doubt {
    pub(super) fn arise(&self) {
        self.arise_at(Instant::now());
    }

    fn arise_at(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether it is about a connection that has been idle for so long.
    pub(super) fn is_about(&self, idle_for: Duration) -> bool {
        self.is_about_at(Instant::now(), idle_for)
    }

    fn is_about_at(&self, now: Instant, idle_for: Duration) -> bool {
        let arose = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arose.is_some_and(|at| now.duration_since(at) <= idle_for + AT_LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_used_since_it_arose_is_not_doubted_for_long() {
        let (doubt, second, arose) = (Doubt::default(), Duration::from_secs(1), Instant::now());
        assert!(!doubt.is_about(3_600 * second), "nothing has happened");
        doubt.clone().arise_at(arose);
        assert!(doubt.is_about_at(arose, Duration::ZERO), "it was given back just now");
        assert!(doubt.is_about_at(arose + 60 * second, 61 * second), "it was used before");
        assert!(!doubt.is_about_at(arose + 60 * second, 58 * second), "it was used since");
    }
}
