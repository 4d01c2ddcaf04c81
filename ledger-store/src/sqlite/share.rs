//! How long whoever writes beside the commits may keep the writer.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The longest share: a commit that waited for another process must not make turns as long.
const SHARE_MAX: Duration = Duration::from_millis(300);
/// After so long without a commit of events nothing is shared, and turns are as short as they can be. It is more than commits of
/// whole batches wait for a slow projector, whose turns had better not become short for that.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// What a row takes, before a turn has shown it.
const ROW_TAKES: Duration = Duration::from_micros(40);
/// Turns of fewer rows are mostly what every turn costs.
const ROWS_TOLD: u32 = 32;

/// What commits and turns took lately.
#[derive(Debug)]
pub(super) struct Share(Mutex<Took>);

#[derive(Debug)]
struct Took {
    /// The last commits of events, on average.
    commits: Duration,
    committed: Option<Instant>,
    /// A row of a turn.
    row: Duration,
}

impl Default for Share {
    fn default() -> Self {
        Self(Mutex::new(Took { commits: Duration::ZERO, committed: None, row: ROW_TAKES }))
    }
}

impl Share {
    fn lock(&self) -> MutexGuard<'_, Took> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a commit of events took.
    pub(super) fn committed_within(&self, took: Duration) {
        let mut state = self.lock();
        state.commits = (state.commits * 3 + took.min(SHARE_MAX)) / 4;
        state.committed = Some(Instant::now());
    }

    /// What a commit takes, on average.
    pub(super) fn fair(&self) -> Duration {
        let state = self.lock();
        match state.committed {
            Some(at) if at.elapsed() < BUSY_FOR => state.commits,
            _ => Duration::ZERO,
        }
    }

    /// How many rows fit into a fair share.
    pub(super) fn rows(&self) -> usize {
        let fair = self.fair();
        usize::try_from(fair.as_nanos() / self.lock().row.as_nanos().max(1)).unwrap_or(usize::MAX)
    }

    /// Notes what it took to write some rows.
    pub(super) fn wrote(&self, rows: usize, took: Duration) {
        if let Ok(rows) = u32::try_from(rows)
            && rows >= ROWS_TOLD
        {
            let mut state = self.lock();
            state.row = (state.row + took / rows) / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_commits_take_within_bounds_and_only_while_there_are_some() {
        let share = Share::default();
        assert_eq!((share.fair(), share.rows()), (Duration::ZERO, 0), "nobody commits");
        for _ in 0..40 {
            share.committed_within(Duration::from_millis(100));
        }
        assert!((Duration::from_millis(99)..=Duration::from_millis(100)).contains(&share.fair()));
        for _ in 0..40 {
            share.wrote(1_000, Duration::from_millis(100));
            share.wrote(ROWS_TOLD as usize - 1, Duration::from_secs(10));
        }
        assert!((980..=1_020).contains(&share.rows()), "100 ms of rows of 100 µs: {}", share.rows());
        for _ in 0..40 {
            share.committed_within(Duration::from_secs(10));
        }
        assert!(share.fair() <= SHARE_MAX);
        share.lock().committed = Instant::now().checked_sub(BUSY_FOR);
        assert_eq!(share.fair(), Duration::ZERO, "the last commit was long ago");
    }
}
