//! The events of this process's commits, for one follower in the same process.
//!
//! The database is the truth; this only saves reading from it what was written a moment ago. A follower that falls behind,
//! or meets a gap because another process wrote, goes on from the database.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ledger_core::{Event, Timestamp};
use tokio::sync::watch;

/// Events that wait for the follower; past that all of them are let go: some 35 MiB.
const EVENTS_MAX: usize = 40_000;

/// While so many events wait, the writer begins no further commit, so that read models stay within a second of the log
/// even when commands could be recorded faster than they can be projected.
const EVENTS_ENOUGH: usize = 20_000;
/// A follower that took nothing for so long is not waited for.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(1);

/// The events of this process's commits, in the order of the commits.
#[derive(Debug, Clone)]
pub struct Feed {
    waiting: Arc<Mutex<Waiting>>,
    commits: watch::Receiver<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    followed: bool,
    /// When the follower took some last.
    taken: Option<Instant>,
    lost: bool,
    commits: VecDeque<Vec<Arc<Event>>>,
    events: usize,
}

/// What was taken from a feed.
#[derive(Debug, Default)]
pub struct Taken {
    /// In the order of their positions within each partition.
    pub events: Vec<Arc<Event>>,
    /// Some events were let go before these: the database has them.
    pub lost: bool,
    /// When the oldest event that still waits was recorded.
    pub waiting_since: Option<Timestamp>,
    /// How many still wait.
    pub waiting: usize,
}

impl Waiting {
    /// Whether the follower is at work and has as much before it as it should: then the writer had better wait. A follower
    /// that has stopped holds nobody up.
    pub(crate) fn is_full(&self) -> bool {
        self.events >= EVENTS_ENOUGH && self.taken.is_some_and(|taken| taken.elapsed() < FOLLOWER_PATIENCE)
    }

    /// A commit is durable.
    pub(crate) fn push(&mut self, events: Vec<Arc<Event>>) {
        if !self.followed || events.is_empty() {
            return;
        }
        if self.events + events.len() > EVENTS_MAX {
            *self = Self { followed: true, lost: true, taken: self.taken, ..Self::default() };
            return;
        }
        self.events += events.len();
        self.commits.push_back(events);
    }
}

impl Feed {
    pub(crate) fn new(waiting: Arc<Mutex<Waiting>>, commits: watch::Receiver<u64>) -> Self {
        lock(&waiting).followed = true;
        Self { waiting, commits }
    }

    /// Takes whole commits until there are `enough` events or no more.
    #[must_use]
    pub fn take(&self, enough: usize) -> Taken {
        let mut waiting = lock(&self.waiting);
        let mut taken = Taken { lost: std::mem::take(&mut waiting.lost), ..Taken::default() };
        while taken.events.len() < enough
            && let Some(commit) = waiting.commits.pop_front()
        {
            waiting.events -= commit.len();
            if taken.events.is_empty() {
                taken.events = commit;
            } else {
                taken.events.extend(commit);
            }
        }
        waiting.taken = Some(Instant::now());
        taken.waiting = waiting.events;
        taken.waiting_since = waiting.commits.front().and_then(|commit| Some(commit.first()?.recorded_at));
        taken
    }

    /// Lets go of what waits: whoever follows reads the database now.
    pub fn clear(&self) {
        let mut waiting = lock(&self.waiting);
        *waiting = Waiting { followed: true, ..Waiting::default() };
    }

    /// How many events wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.waiting).events
    }

    /// Waits for the next commit of this process; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.commits.changed().await.is_ok()
    }
}

pub(crate) fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
