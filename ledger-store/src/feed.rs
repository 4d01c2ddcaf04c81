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

/// Events that wait for the follower; past that all of them are let go. It is what is enough, a commit that was under way
/// then and the one that was decided meanwhile: some 65 MiB where events have no long texts.
const EVENTS_MAX: usize = ENOUGH_MAX + 2 * COMMIT_MAX;
/// A commit has at most about so many events: twice what the writer takes together, and a batch of 10,000.
const COMMIT_MAX: usize = 27_000;
/// The same in bytes, and what is enough of them: a description and metadata may have several kilobytes.
const BYTES_MAX: usize = 96 << 20;
const BYTES_ENOUGH: usize = BYTES_MAX / 3;

/// While so many events wait, the writer begins no further commit, so that read models stay within a second of the log
/// even when commands could be recorded faster than they can be projected. It is what the follower does in [`ROUND`], as
/// its last rounds showed, within these bounds: smaller rounds would write the same rows too often.
const ENOUGH_MIN: usize = 5_000;
const ENOUGH_MAX: usize = 20_000;
/// The same before any round has shown it.
const ENOUGH_FIRST: usize = 10_000;
/// What a round may take: an event waits for the end of one and is in the next.
const ROUND: Duration = Duration::from_millis(350);
/// What the follower has before it, with what is decided for it, is not to take longer than this: then read models stay
/// within a second of the log, the reading of it included.
const AHEAD: Duration = Duration::from_millis(850);
/// So few commands at a time a follower that goes by the log keeps up with all the same.
const SMALL: usize = 500;
/// A follower that took nothing for so long is not waited for, or for twice as long as what it took should take.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_MAX: Duration = Duration::from_secs(3);

/// The events of this process's commits, in the order of the commits.
#[derive(Debug, Clone)]
pub struct Feed {
    waiting: Arc<Mutex<Waiting>>,
    commits: watch::Receiver<u64>,
}

#[derive(Debug)]
pub(crate) struct Waiting {
    followed: bool,
    /// How many events are one round's work.
    enough: usize,
    /// When the follower took some last, and how long it is waited for then.
    taken: Option<(Instant, Duration)>,
    /// How many it took, until it tells that their round is done; while it catches up by the log, how many it lacks.
    under_way: usize,
    /// While it catches up by the log: how many it lacked when its round began.
    catching_up: Option<usize>,
    /// Since when the writer is held up by that.
    held: Option<Instant>,
    /// How many commits were begun, and the numbers of those that are not known to have ended.
    begun: u64,
    open: Vec<u64>,
    lost: bool,
    commits: VecDeque<Vec<Arc<Event>>>,
    events: usize,
    bytes: usize,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            followed: false,
            enough: ENOUGH_FIRST,
            taken: None,
            under_way: 0,
            catching_up: None,
            held: None,
            begun: 0,
            open: Vec::new(),
            lost: false,
            commits: VecDeque::new(),
            events: 0,
            bytes: 0,
        }
    }
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
    /// What the commits that were begun before [`Feed::begun`] told this number wrote is in the feed or before it.
    pub settled: u64,
}

/// A commit of this process that is under way, until it is dropped: with its events in the feed, or not made.
#[derive(Debug)]
pub(crate) struct Begun {
    waiting: Arc<Mutex<Waiting>>,
    number: u64,
}

impl Begun {
    pub(crate) fn new(waiting: Arc<Mutex<Waiting>>) -> Self {
        let mut inside = lock(&waiting);
        let number = inside.begun;
        inside.begun += 1;
        inside.open.push(number);
        drop(inside);
        Self { waiting, number }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        lock(&self.waiting).open.retain(|number| *number != self.number);
    }
}

impl Waiting {
    /// Whether the writer may decide `next` commands more when `decided` are on their way already: not while the follower is at
    /// work and has as much before it as it should. A follower that has stopped holds nobody up.
    pub(crate) fn has_room_for(&mut self, next: usize, decided: usize) -> bool {
        let Some((taken, patience)) = self.taken else { return true };
        let elapsed = taken.elapsed();
        if elapsed >= patience {
            return true;
        }
        if self.catching_up.is_some() {
            // The log is read in smaller rounds: it reaches the log's end only when there is not much more of it each time. Where
            // others write as much as it applies, this process has its turns all the same.
            let has_room = next + decided < SMALL
                || self.under_way + decided < ENOUGH_MIN
                || self.held.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
            if has_room {
                self.held = None;
            }
            return has_room;
        }
        if self.events >= self.enough || self.bytes >= BYTES_ENOUGH {
            return false;
        }
        let done = self.done_within(elapsed);
        let ahead = self.under_way.saturating_sub(done) + self.events + decided;
        ahead == 0 || ahead + next <= self.done_within(AHEAD)
    }

    /// How many events the follower applies in some time, by its last rounds.
    fn done_within(&self, time: Duration) -> usize {
        usize::try_from(self.enough as u128 * time.as_nanos() / ROUND.as_nanos()).unwrap_or(usize::MAX)
    }

    /// A commit is durable.
    pub(crate) fn push(&mut self, events: Vec<Arc<Event>>) {
        if !self.followed || events.is_empty() {
            return;
        }
        if self.catching_up.is_some() {
            self.under_way += events.len();
        }
        let bytes = bytes_of(&events);
        if self.events + events.len() > EVENTS_MAX || self.bytes + bytes > BYTES_MAX {
            self.let_go();
            self.lost = true;
            return;
        }
        self.events += events.len();
        self.bytes += bytes;
        self.commits.push_back(events);
    }

    fn let_go(&mut self) {
        self.commits.clear();
        (self.events, self.bytes) = (0, 0);
    }
}

impl Feed {
    pub(crate) fn new(waiting: Arc<Mutex<Waiting>>, commits: watch::Receiver<u64>) -> Self {
        lock(&waiting).followed = true;
        Self { waiting, commits }
    }

    /// Takes whole commits until they are one round's work or there are no more.
    #[must_use]
    pub fn take(&self) -> Taken {
        let mut waiting = lock(&self.waiting);
        let mut taken = Taken { lost: std::mem::take(&mut waiting.lost), ..Taken::default() };
        while taken.events.len() < waiting.enough
            && let Some(commit) = waiting.commits.pop_front()
        {
            waiting.events -= commit.len();
            waiting.bytes -= bytes_of(&commit);
            if taken.events.is_empty() {
                taken.events = commit;
            } else {
                taken.events.extend(commit);
            }
        }
        waiting.taken = Some((Instant::now(), patience_for(taken.events.len(), waiting.enough)));
        waiting.under_way = taken.events.len();
        (waiting.catching_up, waiting.held) = (None, None);
        taken.settled = waiting.open.iter().copied().min().unwrap_or(waiting.begun);
        taken.waiting = waiting.events;
        taken.waiting_since = waiting.commits.front().and_then(|commit| Some(commit.first()?.recorded_at));
        taken
    }

    /// Lets go of what waits: whoever follows reads the database now.
    pub fn clear(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.let_go();
        (waiting.lost, waiting.taken) = (false, None);
        (waiting.under_way, waiting.catching_up, waiting.held) = (0, None, None);
    }

    /// How many commits this process has begun so far: see [`Taken::settled`].
    #[must_use]
    pub fn begun(&self) -> u64 {
        lock(&self.waiting).begun
    }

    /// Tells that the follower goes by the log, which has so many events more than it has applied. It is waited for while these
    /// become fewer.
    pub fn lacks(&self, events: usize) {
        let mut waiting = lock(&self.waiting);
        waiting.under_way = events;
        if waiting.catching_up.replace(events).is_none_or(|before| events < before) {
            waiting.taken = Some((Instant::now(), PATIENCE_MAX));
        }
    }

    /// Tells how long a round took: what is enough for the next ones follows from it.
    pub fn paced(&self, events: usize, took: Duration) {
        let mut waiting = lock(&self.waiting);
        waiting.under_way = 0;
        if events < ENOUGH_MIN && took < ROUND {
            // A small round is mostly what every round costs.
            return;
        }
        let nanos = took.as_nanos().max(1);
        let fitting = usize::try_from(events as u128 * ROUND.as_nanos() / nanos).unwrap_or(ENOUGH_MAX);
        let fitting = fitting.clamp(ENOUGH_MIN, ENOUGH_MAX);
        // A slow round may be followed by others, as long as indexes are flushed; a quick one promises nothing.
        waiting.enough = fitting.min((waiting.enough * 3 + fitting) / 4);
    }

    /// Whether so much waits that a round had better begin at once.
    #[must_use]
    pub fn is_pressing(&self) -> bool {
        let waiting = lock(&self.waiting);
        waiting.events > waiting.enough / 5 * 3
    }

    /// Waits for the next commit of this process; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.commits.changed().await.is_ok()
    }
}

/// What some events take up in memory, about: those of their texts that may be long, and the rest.
fn bytes_of(events: &[Arc<Event>]) -> usize {
    let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
    events.iter().map(|event| size_of::<Event>() + 256 + text(&event.description) + text(&event.metadata)).sum()
}

/// A commit is taken whole, so more may be taken than a round should have.
fn patience_for(events: usize, enough: usize) -> Duration {
    let rounds = u32::try_from(events.div_ceil(enough.max(1))).unwrap_or(u32::MAX);
    (ROUND * 2).saturating_mul(rounds).clamp(PATIENCE, PATIENCE_MAX)
}

pub(crate) fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use ledger_core::{
        Account, AccountState, Amount, BusinessKey, Epoch, EventType, Hash, Position, SCHEMA_VERSION, TransactionId,
    };

    use super::*;

    fn feed() -> Feed {
        Feed::new(Arc::default(), watch::Sender::new(0).subscribe())
    }

    fn enough(feed: &Feed) -> usize {
        lock(&feed.waiting).enough
    }

    fn event_with(metadata: &str) -> Event {
        let (account, key) =
            (Account::new("ann", "points").expect("valid"), BusinessKey::stored("code".into(), "id".into()));
        let transaction_id = TransactionId::derive(&account, Epoch::FIRST, Position(1), &key);
        Event {
            partition: account.partition(),
            epoch: Epoch::FIRST,
            position: Position(1),
            previous_position: Position::ZERO,
            transaction_id,
            event_type: EventType::Credited,
            schema_version: SCHEMA_VERSION,
            account,
            amount: Amount::new(1).ok(),
            released: 0,
            related_id: None,
            remaining: None,
            after: AccountState { balance: 1, version: 1, ..AccountState::default() },
            key,
            operation_id: transaction_id.uuid(),
            request_id: "request".into(),
            actor: "actor".into(),
            description: None,
            metadata: Some(metadata.into()),
            expires_at: None,
            recorded_at: Timestamp::from_micros(1).expect("in range"),
            batch: None,
            hash: Hash::ZERO,
        }
    }

    fn events(number: usize) -> Vec<Arc<Event>> {
        let event = Arc::new(event_with(""));
        vec![event; number]
    }

    #[test]
    fn long_texts_count() {
        let feed = feed();
        let event = Arc::new(event_with(&"x".repeat(4_096)));
        let commit = vec![event; 1_000];
        let _ = feed.take();
        let mut commits = 0;
        while lock(&feed.waiting).has_room_for(0, 0) {
            lock(&feed.waiting).push(commit.clone());
            commits += 1;
        }
        assert!((5..=8).contains(&commits), "32 MiB are enough, in commits of some 4.5 MB: {commits}");
        assert_eq!(feed.take().events.len(), commits * 1_000);
        assert_eq!(lock(&feed.waiting).bytes, 0);
        for _ in 0..40 {
            lock(&feed.waiting).push(commit.clone());
        }
        assert!(feed.take().lost, "past 96 MiB all are let go");
    }

    #[test]
    fn what_is_decided_and_what_is_under_way_take_up_room() {
        let feed = feed();
        let room = |next, decided| lock(&feed.waiting).has_room_for(next, decided);
        assert!(room(usize::MAX, 0), "nobody follows");
        let _ = feed.take();
        lock(&feed.waiting).enough = 20_000;
        assert!(room(usize::MAX, 0), "nothing is ahead of it");
        assert!(room(24_000, 24_000), "20,000 in 350 ms are 48,571 in 850");
        assert!(!room(24_000, 25_000));

        lock(&feed.waiting).push(events(19_000));
        assert!(room(19_000, 10_000) && !room(20_000, 10_000), "what waits counts");
        let _ = feed.take();
        assert!(!room(20_000, 28_000), "and so does what is under way, less what it should have done by now");
        // Some 14,000 of them should be left.
        lock(&feed.waiting).taken = Some((Instant::now() - ROUND / 4, PATIENCE));
        assert!(room(20_000, 14_000) && !room(20_000, 28_000));
        lock(&feed.waiting).taken = Some((Instant::now() - PATIENCE, PATIENCE));
        assert!(room(usize::MAX, usize::MAX), "it is not waited for for ever");
        let _ = feed.take();
        lock(&feed.waiting).under_way = 19_000;
        feed.paced(0, Duration::ZERO);
        assert!(room(usize::MAX, 0), "the round is done");
    }

    #[test]
    fn a_follower_that_goes_by_the_log_is_waited_for_while_it_gains() {
        let feed = feed();
        let room = || lock(&feed.waiting).has_room_for(SMALL, 0);
        let wait = || lock(&feed.waiting).taken = Some((Instant::now() - PATIENCE_MAX, PATIENCE_MAX));
        feed.lacks(20_000);
        assert!(!room() && lock(&feed.waiting).has_room_for(SMALL - 1, 0), "single commands are not kept waiting");
        wait();
        feed.lacks(20_000);
        assert!(room(), "it gained nothing");
        feed.lacks(19_000);
        assert!(!room(), "it gained");
        lock(&feed.waiting).held = Some(Instant::now() - PATIENCE);
        assert!(room() && !room(), "one at a time is let through all the same");
        feed.lacks(4_000);
        assert!(room() && !lock(&feed.waiting).has_room_for(SMALL, 1_000), "it is nearly there");
        lock(&feed.waiting).push(events(1_000));
        assert!(!room(), "what is committed meanwhile counts");
        assert_eq!(feed.take().events.len(), 1_000);
        assert!(room() && lock(&feed.waiting).catching_up.is_none(), "it follows");
    }

    #[test]
    fn it_is_known_which_commits_are_in_the_feed() {
        let feed = feed();
        let begin = || Begun::new(feed.waiting.clone());
        assert_eq!((feed.begun(), feed.take().settled), (0, 0));
        let (first, second) = (begin(), begin());
        assert_eq!((feed.begun(), feed.take().settled), (2, 0));
        drop(second);
        assert_eq!(feed.take().settled, 0, "the first may be in the log and is not in the feed");
        drop(first);
        let _third = begin();
        feed.clear();
        assert_eq!((feed.begun(), feed.take().settled), (3, 2));
    }

    #[test]
    fn a_follower_is_waited_for_while_it_is_at_work_and_not_for_ever() {
        let second = Duration::from_secs(1);
        assert_eq!([0, 1, 7_000].map(|events| patience_for(events, 7_000)), [second; 3]);
        assert_eq!(patience_for(14_001, 7_000), ROUND * 6);
        assert_eq!(patience_for(usize::MAX, 1), second * 3);
    }

    #[test]
    fn a_round_is_as_much_as_the_follower_does_in_a_third_of_a_second() {
        let feed = feed();
        assert_eq!(enough(&feed), ENOUGH_FIRST);
        // A tenth of a second for a few events says nothing about many.
        feed.paced(100, Duration::from_millis(100));
        assert_eq!(enough(&feed), ENOUGH_FIRST);
        feed.paced(10_000, Duration::from_millis(500));
        assert_eq!(enough(&feed), 7_000, "of 20,000/s");
        feed.paced(10_000, Duration::from_millis(350));
        assert_eq!(enough(&feed), 7_750, "a quarter of the way: a quick round promises less than a slow one");
        for _ in 0..20 {
            feed.paced(100, Duration::from_secs(30));
        }
        assert!((ENOUGH_MIN..ENOUGH_MIN + 10).contains(&enough(&feed)), "never fewer: {}", enough(&feed));
        for _ in 0..40 {
            feed.paced(20_000, Duration::from_millis(50));
        }
        assert!((ENOUGH_MAX - 10..=ENOUGH_MAX).contains(&enough(&feed)), "never more: {}", enough(&feed));
    }
}
