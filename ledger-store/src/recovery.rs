//! What the writer does when another process wrote, or the database failed.
//!
//! Nothing is guessed: the heads are locked, which waits for whatever transaction may still be under way, and what the
//! log holds is read and compared. Then the requests are decided again under the lock, so that the same race is not lost
//! twice.

use std::{
    collections::VecDeque,
    iter, mem,
    time::{Duration, Instant},
};

use ledger_core::{Head, PARTITIONS, Partition};
use tokio::{sync::oneshot, time::sleep};

use crate::{
    StoreError,
    append::Appended,
    batch::{Answer, Ask, Batch, Request},
    database::LockedHeads,
    error,
    ledger::{CommandError, Recorded, Unavailable, unavailable},
    limit::within,
    tail::Tail,
    writer::{Closely, Interruption, Writer},
};

/// Foreign events that are worth reading on for; past that the tail is made anew from the indexes' checkpoint.
const READ_ON_MAX: u64 = 200_000;
/// How long it may take to take in what others wrote: whatever takes longer hangs.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the heads are kept locked at most to find out which requests meet damage: past that what was decided is committed, and
/// the others are decided in a next attempt, which comes at once.
const AROUND_DAMAGE: Duration = Duration::from_secs(1);
/// The pause after the first failed attempt, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Writer {
    /// Comes back to a state in which everything that is known is durable, and nothing is in flight.
    pub(crate) async fn recover(&mut self, interruption: Interruption) {
        self.end_in_flight(interruption).await;
        let since = Instant::now();
        let mut pause = PAUSE;
        loop {
            match self.try_to_recover().await {
                Ok(()) => {
                    self.published.set_trouble(None);
                    return;
                }
                Err(error) => {
                    let why = error::chain(&error);
                    tracing::warn!(error = %why, "the ledger cannot commit");
                    self.published.set_trouble(Some(why));
                }
            }
            if self.is_told_to_stop() {
                // Nothing more gets in, and what is in the queue is answered with those that wait.
                self.queue.close();
                while let Ok(request) = self.queue.try_recv() {
                    self.waiting.push_back(request);
                }
                self.stop();
            }
            // Those that wait are told in time; what they asked for may still turn out to be done, and their keys tell.
            if since.elapsed() >= self.patience || self.is_stopping() {
                for (request, _) in self.uncertain.iter_mut().flat_map(|batch| batch.answers.drain(..)) {
                    request.answer(Answer::Unavailable(Unavailable::Store));
                }
                self.give_up(&Unavailable::Store);
                if self.is_stopping() {
                    return;
                }
            }
            self.pause(pause, since).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Waits for the end of the commit in flight. A batch whose end is not known is kept as uncertain, everything else
    /// that is not committed goes back to the line.
    async fn end_in_flight(&mut self, interruption: Interruption) {
        if let Interruption::Failed(error) = interruption {
            tracing::warn!(error = %error::chain(&error), "the database failed");
        }
        let building = self.building.take();
        let Some(in_flight) = self.in_flight.take() else {
            self.take_back([None, building]);
            return;
        };
        let (batch, outcome) = in_flight.end().await;
        match outcome {
            Ok(Appended::Done) => {
                self.settle(batch);
                self.take_back([None, building]);
            }
            Ok(Appended::FenceLost) => self.take_back([Some(batch), building]),
            Err(error) => {
                tracing::warn!(error = %error::chain(&error), "the database failed");
                self.take_back([None, building]);
                self.uncertain = Some(batch);
            }
        }
    }

    /// One attempt: lock, catch up, find out what became of the uncertain batch, decide what waits, commit.
    async fn try_to_recover(&mut self) -> Result<(), StoreError> {
        let (locked, heads) = self.database.lock_heads().await?;
        if locked.is_of_new_session() {
            self.flush_in_doubt = self.flush.is_some();
        }
        if let Err(error) = self.prepare(&heads).await {
            locked.release().await;
            return Err(error);
        }
        self.decide_locked(locked).await
    }

    async fn prepare(&mut self, heads: &[Head; PARTITIONS]) -> Result<(), StoreError> {
        within(CATCH_UP_TIMEOUT, self.catch_up(heads)).await?;
        if let Some(batch) = self.uncertain.take() {
            match within(CATCH_UP_TIMEOUT, self.is_committed(&batch)).await {
                // Its events came in with the catching up; the answers are still owed.
                Ok(true) => {
                    self.published.refusals.add(batch.draft.refusals);
                    batch.answers.into_iter().for_each(|(request, answer)| request.answer(answer));
                }
                Ok(false) => self.take_back([Some(batch), None]),
                Err(error) => {
                    self.uncertain = Some(batch);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the log holds the batch. It is one transaction, so one of its events tells of all.
    async fn is_committed(&self, batch: &Batch) -> Result<bool, StoreError> {
        let Some(event) = batch.draft.events.first() else { return Ok(false) };
        let stored = self.database.event_at(event.partition, event.position).await?;
        Ok(stored.is_some_and(|stored| stored.hash == event.hash))
    }

    /// Decides what waits while the heads are locked, and commits it.
    async fn decide_locked(&mut self, locked: LockedHeads) -> Result<(), StoreError> {
        if self.waiting.is_empty() {
            // Whoever asked was told long since, and it is not known whether the next one would fare better.
            return locked.touch().await;
        }
        let decided = self.decide_around_damage().await;
        let Some(mut batch) = self.building.take() else {
            locked.release().await;
            return decided;
        };
        if let Err(error) = decided {
            self.take_back([Some(batch), None]);
            locked.release().await;
            return Err(error);
        }
        batch.begun = Some(self.published.begin());
        match locked.append(&batch.append()).await {
            Ok(Appended::Done) => {
                self.settle(batch);
                Ok(())
            }
            Ok(Appended::FenceLost) => {
                self.take_back([Some(batch), None]);
                Err(ahead_of_locked_heads())
            }
            Err(error) => {
                self.uncertain = Some(batch);
                Err(error)
            }
        }
    }

    /// Decides what waits while the heads are locked. Whoever needs what is damaged is told so and holds nobody else up: nobody
    /// writes meanwhile, so what an index knows past the heads is damage, too.
    async fn decide_around_damage(&mut self) -> Result<(), StoreError> {
        let (began, mut is_any_done) = (Instant::now(), false);
        // The first of the line lies on top. Each group is decided upon those before it, so the line's order stays.
        let mut groups = vec![mem::take(&mut self.waiting)];
        let mut outcome = Ok(());
        while (!is_any_done || began.elapsed() < AROUND_DAMAGE)
            && let Some(group) = groups.pop()
        {
            self.waiting = group;
            let error = match self.decide(Closely::Yes).await {
                Ok(()) => {
                    is_any_done = true;
                    continue;
                }
                Err(Interruption::RaceLost) => ahead_of_locked_heads(),
                Err(Interruption::Failed(error)) => error,
            };
            // Without a table the database is of no use to anybody.
            if !error.is_damage() || error.is_missing() {
                outcome = Err(error);
                break;
            }
            match divided(mem::take(&mut self.waiting)) {
                Ok([first, second]) => groups.extend([second, first]),
                Err(group) => {
                    tracing::error!(error = %error::chain(&error), "a request met a damaged part of the database");
                    is_any_done = true;
                    for request in group {
                        request.answer(Answer::Unavailable(Unavailable::Damaged));
                    }
                }
            }
        }
        // Those whose turn did not come keep their places.
        self.waiting.extend(groups.into_iter().rev().flatten());
        outcome
    }

    /// Takes in what other processes wrote up to `heads`, and our own batch if it did get there.
    async fn catch_up(&mut self, heads: &[Head; PARTITIONS]) -> Result<(), StoreError> {
        let mut missing = 0;
        for (partition, (known, head)) in Partition::all().zip(self.tail.heads.iter().zip(heads)) {
            let rewound = head.epoch != known.epoch
                || head.position < known.position
                || (head.position == known.position && head.hash != known.hash);
            if rewound {
                return Err(StoreError::Inconsistent(format!(
                    "partition {partition}: the log ends at epoch {} position {}, this process knew epoch {} position {}: \
                     the database was rewound or restored; restart every process that uses it",
                    head.epoch.0, head.position, known.epoch.0, known.position
                )));
            }
            missing += head.position.0 - known.position.0;
        }
        let checkpoint = self.database.index_checkpoints().await?;
        let behind = checkpoint.iter().zip(&self.tail.heads).any(|(indexed, known)| indexed.position > known.position);
        // A server that took over may never have had the last flush, which is forgotten here.
        let lost = checkpoint.iter().zip(&self.tail.indexed).any(|(indexed, known)| indexed.position < known.position);
        if behind || lost || missing > READ_ON_MAX {
            // What the tail knows does not reach to where the indexes begin to know it any more, or that is far off.
            let tail = Tail::load(&self.database).await?;
            self.replace_tail(tail);
            // Some of the accounts may have been written by events that are not in the new tail.
            self.published.forget_recent();
        } else {
            for (partition, head) in Partition::all().zip(heads) {
                self.tail.read_on(&self.database, partition, head).await?;
            }
        }
        self.published.show(&self.tail.active, &self.tail.heads);
        Ok(())
    }

    /// Waits, until it is told to stop at the longest. Once patience is over, whoever asks meanwhile is told at once.
    async fn pause(&mut self, pause: Duration, since: Instant) {
        let told_at_once = since.elapsed() >= self.patience;
        let mut stop = self.stop.clone();
        let end = sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                _ = stop.wait_for(|stop| *stop) => return,
                request = self.queue.recv(), if told_at_once => match request {
                    Some(request) => request.answer(Answer::Unavailable(Unavailable::Store)),
                    None => {
                        self.stop();
                        return;
                    }
                },
            }
        }
    }
}

/// A group of requests as two, in order; `Err` is one that cannot be divided. Commands that have nothing to do with each other
/// can: their caller gets one answer all the same.
fn divided(mut group: VecDeque<Request>) -> Result<[VecDeque<Request>; 2], VecDeque<Request>> {
    if group.len() > 1 {
        let second = group.split_off(group.len() / 2);
        return Ok([group, second]);
    }
    match group.pop_front() {
        Some(Request { ask: Ask::Each(mut commands), reply, mut permit }) if commands.len() > 1 => {
            let others = commands.split_off(commands.len() / 2);
            let share = permit.split(others.len()).expect("each command has its share of the queue");
            let (sizes, [first, second]) = ([commands.len(), others.len()], [oneshot::channel(), oneshot::channel()]);
            answer_together(reply, [(first.1, sizes[0]), (second.1, sizes[1])]);
            Ok([
                VecDeque::from([Request { ask: Ask::Each(commands), reply: first.0, permit }]),
                VecDeque::from([Request { ask: Ask::Each(others), reply: second.0, permit: share }]),
            ])
        }
        request => Err(request.into_iter().collect()),
    }
}

/// Answers a batch once both parts of it are answered, each of so many commands.
fn answer_together(reply: oneshot::Sender<Answer>, parts: [(oneshot::Receiver<Answer>, usize); 2]) {
    tokio::spawn(async move {
        let mut outcomes: Vec<Result<Recorded, CommandError>> = Vec::new();
        for (answer, commands) in parts {
            match answer.await.unwrap_or(Answer::Unavailable(Unavailable::Store)) {
                Answer::Each(part) => outcomes.extend(part),
                other => outcomes.extend(iter::repeat_n(Err(unavailable(&other).into()), commands)),
            }
        }
        // The caller may be gone; what was done stays done.
        let _ = reply.send(Answer::Each(outcomes));
    });
}

fn ahead_of_locked_heads() -> StoreError {
    StoreError::Inconsistent("the log or its indexes are ahead of the locked heads: run replay-tool verify".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::{Database, ledger::LedgerOptions, published::Published};

    #[tokio::test]
    async fn a_flush_that_is_in_doubt_is_done_again_before_what_it_wrote_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let address = format!("sqlite://{}", folder.path().join("ledger.db").display());
        let database = Database::open(&address).await.expect("a new ledger");
        let tail = Tail::load(&database).await.expect("an empty log");
        let published = Arc::new(Published::new(&tail.heads));
        let ((_requests, queue), stop) = (mpsc::unbounded_channel(), watch::Sender::new(false));
        let mut writer = Writer::new(database, tail, queue, stop.subscribe(), LedgerOptions::default(), published);
        writer.tail.active.events = 1;
        for is_in_doubt in [true, false] {
            writer.flush_now();
            writer.flush_in_doubt = is_in_doubt;
            let outcome = writer.flush.take().expect("it began").await.expect("no panic");
            writer.flushed(outcome).expect("written");
            assert_eq!(writer.tail.sealed.is_some(), is_in_doubt);
        }
    }
}
