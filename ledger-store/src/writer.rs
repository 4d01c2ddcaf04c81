//! The one task that decides.
//!
//! It takes all requests that wait, decides them in order in memory, commits what they make in one transaction, and then
//! answers all of them. While one batch commits the next one is decided on top of it. Nothing is answered before every
//! batch that the answer builds on is durable and the heads that it was judged by were found unmoved.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{sleep, sleep_until, timeout},
};

use crate::{
    StoreError,
    append::Appended,
    batch::{Batch, Request},
    database::Database,
    filter::KeyFilter,
    freshness,
    judge::Round,
    ledger::{Clock, LedgerOptions, Unavailable},
    limit::within,
    lookup::{self, Layers, LookupError},
    published::Published,
    tail::Tail,
};

/// Commands of one commit. Larger commits gain nothing more and make the first of them wait.
const BATCH_WEIGHT_MAX: usize = 8_192;
/// A batch of so many commands is worth a commit of its own at once.
const LARGE: usize = 500;
/// How often all that can run is let run before a commit is begun. No time is waited for: when nothing else can run this
/// takes microseconds.
const YIELDS: usize = 8;
/// A service that does nothing for so long writes its indexes.
const IDLE: Duration = Duration::from_secs(1);
/// How often it looks whether there is room again when the projector is behind.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long a failed flush waits before it is tried again.
const FLUSH_RETRY: Duration = Duration::from_secs(2);
/// How long a flush that was tried again is waited for where no more fits into memory.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// How long a look-up may take: one that takes longer hangs, on a connection whose other end is gone without a word.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the last flush is waited for: without it the next start reads a little more of the log.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// The writer's task.
pub(crate) struct Writer {
    pub(crate) database: Database,
    pub(crate) queue: mpsc::UnboundedReceiver<Request>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) clock: Clock,
    pub(crate) patience: Duration,
    pub(crate) published: Arc<Published>,
    pub(crate) tail: Tail,
    filter: Arc<KeyFilter>,
    filling: AbortHandle,
    comparing: AbortHandle,
    /// Requests that are to be decided, oldest first.
    pub(crate) waiting: VecDeque<Request>,
    /// Decided, and to be committed next.
    pub(crate) building: Option<Batch>,
    pub(crate) in_flight: Option<InFlight>,
    /// A batch whose commit failed in a way that does not tell whether it is durable.
    pub(crate) uncertain: Option<Batch>,
    /// Events of the tail that make a flush worth its while.
    flush_events: usize,
    pub(crate) flush: Option<JoinHandle<Result<(), StoreError>>>,
    flush_began: Instant,
    flush_not_before: Instant,
    /// Whether the flush under way began before the session that commits: a server that took over in between may not have it.
    pub(crate) flush_in_doubt: bool,
    /// Since when flushes fail, and why the last one did.
    flush_fails: Option<(Instant, String)>,
    stopping: bool,
}

/// A batch that is being committed.
pub(crate) struct InFlight {
    pub(crate) batch: Batch,
    commit: JoinHandle<Result<Appended, StoreError>>,
}

impl InFlight {
    /// Waits for the end of the commit.
    pub(crate) async fn end(self) -> (Batch, Result<Appended, StoreError>) {
        (self.batch, self.commit.await.unwrap_or_else(|_| Err(ended_early("commit"))))
    }
}

fn ended_early(task: &str) -> StoreError {
    StoreError::Inconsistent(format!("the {task}'s task ended early"))
}

/// What the writer woke up for.
enum Woken {
    Asked(Option<Request>),
    Committed(Result<Appended, StoreError>),
    Flushed(Result<(), StoreError>),
    Idle,
    LookAgain,
    ToldToStop,
}

/// Whether a decision asks the database what is else found out by losing the race: whether operations are compensated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closely {
    No,
    /// While the heads are locked, so that the same race is not lost twice.
    Yes,
}

/// Why the usual way cannot go on.
pub(crate) enum Interruption {
    /// Another process wrote: catch up and decide again.
    RaceLost,
    /// The database failed; whether the batch in flight was committed is not known.
    Failed(StoreError),
}

impl From<LookupError> for Interruption {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Behind => Self::RaceLost,
            LookupError::Store(error) => Self::Failed(error),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.filling.abort();
        self.comparing.abort();
    }
}

impl Writer {
    pub(crate) fn new(
        database: Database,
        tail: Tail,
        queue: mpsc::UnboundedReceiver<Request>,
        stop: watch::Receiver<bool>,
        options: LedgerOptions,
        published: Arc<Published>,
    ) -> Self {
        let LedgerOptions { clock, patience, flush_events, .. } = options;
        let filter = Arc::new(KeyFilter::new(tail.keys()));
        let filling = filter.start_to_fill(database.clone());
        let comparing = tokio::spawn(freshness::watch(published.clone(), database.clone())).abort_handle();
        Self {
            filter,
            filling,
            comparing,
            database,
            queue,
            stop,
            clock,
            patience,
            published,
            tail,
            waiting: VecDeque::new(),
            building: None,
            in_flight: None,
            uncertain: None,
            flush_events,
            flush: None,
            flush_began: Instant::now(),
            flush_not_before: Instant::now(),
            flush_in_doubt: false,
            flush_fails: None,
            stopping: false,
        }
    }

    /// Runs until every handle is gone or [`crate::Ledger::stop`] closed the queue, and all that waited is answered.
    pub(crate) async fn run(mut self) {
        let upkeep = self.database.start_upkeep();
        loop {
            self.start_flush();
            if let Err(interruption) = self.advance().await {
                self.recover(interruption).await;
                continue;
            }
            if self.stopping && self.is_quiet() {
                break;
            }
            match self.wake().await {
                Woken::Asked(Some(request)) => self.waiting.push_back(request),
                Woken::Asked(None) => self.stopping = true,
                Woken::Committed(outcome) => {
                    if let Err(interruption) = self.committed(outcome) {
                        self.recover(interruption).await;
                    }
                }
                Woken::Flushed(outcome) => {
                    if let Err(error) = self.flushed(outcome) {
                        // Perhaps the indexes are not what they are taken for here.
                        self.recover(Interruption::Failed(error)).await;
                    }
                }
                Woken::Idle => self.flush_now(),
                Woken::LookAgain => {}
                // What is in the queue is still done; nothing more gets in.
                Woken::ToldToStop => self.queue.close(),
            }
            if self.in_flight.is_none() {
                // Whoever is about to ask goes first: the larger a commit, the less of it each command pays for.
                for _ in 0..YIELDS {
                    tokio::task::yield_now().await;
                }
            }
            while self.waiting_weight() < BATCH_WEIGHT_MAX
                && let Ok(request) = self.queue.try_recv()
            {
                self.waiting.push_back(request);
            }
            self.give_up_without_room();
        }
        if timeout(LAST_FLUSH_TIMEOUT, self.finish_flush()).await.is_err() {
            tracing::warn!("the indexes are not written to the end; the next start makes up for it");
        }
        if let Some(upkeep) = upkeep {
            upkeep.abort();
        }
    }

    fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.building.is_none() && self.in_flight.is_none()
    }

    fn waiting_weight(&self) -> usize {
        self.waiting.iter().map(Request::weight).sum()
    }

    /// Decides what waits, as far as there is room, and sends the batch off when nothing is in flight.
    async fn advance(&mut self) -> Result<(), Interruption> {
        if !self.waiting.is_empty() && self.has_room() {
            self.decide(Closely::No).await?;
        }
        self.send_off();
        Ok(())
    }

    /// Begins to commit what is decided, when nothing is being committed.
    fn send_off(&mut self) {
        if self.in_flight.is_none()
            && let Some(mut batch) = self.building.take()
        {
            batch.begun = Some(self.published.begin());
            let (database, append) = (self.database.clone(), batch.append());
            // A task of its own: whatever happens here meanwhile, the commit runs to its end.
            let commit = tokio::spawn(async move { database.append(&append).await });
            self.in_flight = Some(InFlight { batch, commit });
        }
    }

    fn has_room(&self) -> bool {
        let building = self.building.as_ref().map_or(0, |batch| batch.weight);
        let in_flight = self.in_flight.as_ref().map_or(0, |in_flight| in_flight.batch.weight);
        building < BATCH_WEIGHT_MAX
            && !self.tail_is_full()
            && self.published.projector_has_room_for(self.waiting_weight(), in_flight + building)
    }

    /// Past this many events in memory no more is decided until a flush is done.
    fn tail_is_full(&self) -> bool {
        let building = self.building.as_ref().map_or(0, |batch| batch.weight);
        self.tail.active.events + building >= 2 * self.flush_events
    }

    /// Says so where the indexes cannot be written and no more fits into memory, and answers those that have waited for long.
    fn give_up_without_room(&mut self) {
        let Some((since, why)) = &self.flush_fails else { return };
        if !self.tail_is_full() {
            return;
        }
        // One that began a moment ago may be the one that succeeds.
        let is_new = self.flush.is_some() && self.flush_began.elapsed() < FLUSH_PATIENCE;
        if is_new && !self.is_told_to_stop() {
            return;
        }
        self.published.set_trouble(Some(format!("the indexes cannot be written: {why}")));
        if since.elapsed() >= self.patience || self.is_told_to_stop() {
            self.give_up(&Unavailable::Store);
        }
    }

    /// Decides the requests that wait, on top of what is building, what is in flight and what is committed.
    pub(crate) async fn decide(&mut self, closely: Closely) -> Result<(), Interruption> {
        let in_flight = self.in_flight.as_ref().map(|in_flight| &in_flight.batch.draft);
        let mut batch = match self.building.take() {
            Some(batch) => batch,
            None => in_flight.map_or_else(|| Batch::on_tail(&self.tail), Batch::on),
        };
        let layers = Layers { drafts: [None, Some(&batch.draft), in_flight], tail: &self.tail };
        let requests = self.waiting.make_contiguous();
        let fetched = lookup::fetch(&self.database, layers, &self.filter, requests, closely);
        let fetched = within(LOOK_UP_TIMEOUT, fetched).await;
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                self.building = (!batch.is_empty()).then_some(batch);
                return Err(error.into());
            }
        };
        let round = Round { tail: &self.tail, in_flight, fetched: &fetched, now: (self.clock)() };
        while let Some(request) = self.waiting.pop_front() {
            round.judge(&mut batch, request);
        }
        for operation in fetched.compensated {
            self.tail.compensated.insert(operation, ());
        }
        self.building = (!batch.is_empty()).then_some(batch);
        Ok(())
    }

    async fn wake(&mut self) -> Woken {
        // What waits here could not be decided for want of room: then only an end of something helps.
        let may_ask = !self.stopping && self.waiting.is_empty();
        let idle = self.is_quiet() && self.flush.is_none() && self.tail.active.events > 0 && !self.stopping;
        let flush_not_before = self.flush_not_before;
        tokio::select! {
            biased;
            outcome = async { (&mut self.in_flight.as_mut().expect("guarded").commit).await }, if self.in_flight.is_some() => {
                Woken::Committed(outcome.unwrap_or_else(|_| Err(ended_early("commit"))))
            }
            outcome = async { self.flush.as_mut().expect("guarded").await }, if self.flush.is_some() => {
                self.flush = None;
                Woken::Flushed(outcome.unwrap_or_else(|_| Err(ended_early("flush"))))
            }
            _ = self.stop.wait_for(|stop| *stop), if !self.queue.is_closed() => Woken::ToldToStop,
            request = self.queue.recv(), if may_ask => Woken::Asked(request),
            () = sleep(LOOK_AGAIN), if !self.waiting.is_empty() => Woken::LookAgain,
            () = sleep(IDLE), if idle => Woken::Idle,
            () = sleep_until(flush_not_before.into()), if self.tail.sealed.is_some() && self.flush.is_none() => Woken::Idle,
        }
    }

    /// The batch in flight ended.
    fn committed(&mut self, outcome: Result<Appended, StoreError>) -> Result<(), Interruption> {
        match outcome {
            Ok(Appended::Done) => {
                let in_flight = self.in_flight.take().expect("a commit ends only for a batch in flight");
                let enough = LARGE.min(in_flight.batch.weight.div_ceil(2));
                if self.building.as_ref().is_some_and(|next| next.weight >= enough) {
                    // The database need not wait until the answers are out: from half of the last commit on callers take turns.
                    self.send_off();
                }
                self.settle(in_flight.batch);
                Ok(())
            }
            Ok(Appended::FenceLost) => {
                // Nothing of it was written: everything that builds on it is decided again, in the same order.
                let in_flight = self.in_flight.take().expect("a commit ends only for a batch in flight");
                let building = self.building.take();
                self.take_back([Some(in_flight.batch), building]);
                Err(Interruption::RaceLost)
            }
            Err(error) => {
                self.uncertain = self.in_flight.take().map(|in_flight| in_flight.batch);
                Err(Interruption::Failed(error))
            }
        }
    }

    /// Puts the requests of batches that were not committed back to the front of the line.
    pub(crate) fn take_back(&mut self, batches: [Option<Batch>; 2]) {
        let mut requests: VecDeque<_> = batches.into_iter().flatten().flat_map(Batch::into_requests).collect();
        requests.append(&mut self.waiting);
        self.waiting = requests;
    }

    /// A batch is durable: its events become part of the tail, and its answers go out.
    pub(crate) fn settle(&mut self, batch: Batch) {
        let Batch { mut draft, answers, begun, .. } = batch;
        self.tail.heads = draft.heads;
        self.tail.recorded_at = draft.recorded_at;
        draft.events.iter().for_each(|event| self.tail.recent.add(event));
        self.published.commit(&mut draft, begun);
        self.tail.active.absorb(draft.span);
        for compensation in &draft.compensations {
            self.tail.compensated.insert(compensation.operation_id, ());
        }
        self.published.refusals.add(std::mem::take(&mut draft.refusals));
        for (request, answer) in answers {
            request.answer(answer);
        }
    }

    /// Answers everything that waits: nothing is known to have been done.
    pub(crate) fn give_up(&mut self, why: &Unavailable) {
        while let Some(request) = self.waiting.pop_front() {
            request.answer(crate::batch::Answer::Unavailable(why.clone()));
        }
    }

    fn start_flush(&mut self) {
        if self.tail.active.events >= self.flush_events {
            self.flush_now();
        }
    }

    /// Starts to write the tail to the indexes, unless that is under way.
    pub(crate) fn flush_now(&mut self) {
        if self.flush.is_some() || Instant::now() < self.flush_not_before {
            return;
        }
        let sealed = match self.tail.sealed.clone() {
            // An earlier flush failed: the same again.
            Some(sealed) => sealed,
            None if self.tail.active.events == 0 => return,
            None => self.tail.seal(),
        };
        let (database, filter) = (self.database.clone(), self.filter.clone());
        let (from, to) = (self.tail.indexed, self.tail.sealed_heads);
        self.flush_began = Instant::now();
        self.flush = Some(tokio::spawn(async move {
            // Sorting takes some ten milliseconds, and so does the filter: other threads go on with the requests.
            let entries = tokio::task::spawn_blocking(move || {
                filter.add(&sealed);
                sealed.index_entries()
            });
            let entries = entries.await.map_err(|_| ended_early("flush"))?;
            database.flush_indexes(&entries, &from, &to).await
        }));
    }

    pub(crate) fn flushed(&mut self, outcome: Result<(), StoreError>) -> Result<(), StoreError> {
        let is_in_doubt = std::mem::take(&mut self.flush_in_doubt);
        match outcome {
            // The same again: to write it twice changes nothing.
            Ok(()) if is_in_doubt => Ok(()),
            Ok(()) => {
                if self.flush_fails.take().is_some() {
                    self.published.set_trouble(None);
                }
                let sealed = self.tail.forget_sealed();
                // To free so many small things takes time, too.
                tokio::task::spawn_blocking(move || drop(sealed));
                Ok(())
            }
            Err(error) => {
                let why = crate::error::chain(&error);
                tracing::warn!(error = %why, "the indexes could not be written; trying again");
                let now = Instant::now();
                self.flush_not_before = now + FLUSH_RETRY;
                let since = self.flush_fails.take().map_or(now, |(since, _)| since);
                self.flush_fails = Some((since, why));
                Err(error)
            }
        }
    }

    /// At the end: what is in memory goes to the indexes, so that the next start is quick. Failing costs only that.
    async fn finish_flush(&mut self) {
        for is_last in [false, true] {
            if let Some(flush) = self.flush.take()
                && let Ok(outcome) = flush.await
                && self.flushed(outcome).is_err()
            {
                return;
            }
            if !is_last {
                self.flush_now();
            }
        }
    }

    /// Whether [`crate::Ledger::stop`] was called, or every handle is gone; there may still be requests in the queue.
    pub(crate) fn is_told_to_stop(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Forgets the tail for one that was read anew; a flush of the old one may go on, it writes only what is true.
    pub(crate) fn replace_tail(&mut self, tail: Tail) {
        self.flush = None;
        self.flush_in_doubt = false;
        self.flush_fails = None;
        self.tail = tail;
        // What was in the index and not in the old tail is not in the filter either.
        self.filling.abort();
        self.filter = Arc::new(KeyFilter::new(self.tail.keys()));
        self.filling = self.filter.start_to_fill(self.database.clone());
    }
}
