//! One round: some events, folded over the rows that are there, committed with the checkpoints.

use std::{sync::Arc, time::Instant};

use ledger_core::{AccountId, Event, Head, PARTITIONS, Partition, Position, rejection::Contradiction};
use ledger_store::{Database, StoreError, error::chain, feed::Taken};

use super::{Checkpoints, Found, News, POLL, RETRY_HALTED, ROUND_EVENTS, Round, Rounds, Seen, UNSETTLED};
use crate::{
    checkpoint::ReadModel,
    fold::{self, Changes, Rows, Source},
    inconsistencies::{self, Finding},
    postgres, sqlite,
};

impl Rounds {
    /// Applies some events to the read models: those of the feed while nothing else was written, else the database's.
    pub(super) async fn round(&mut self) -> Result<Round, StoreError> {
        let Some(checkpoints) = self.following.take() else { return self.round_from_log().await };
        let Some(feed) = &self.feed else { return self.round_from_log().await };
        let (feed, began) = (feed.clone(), Instant::now());
        let taken = feed.take();
        let Some((news, next)) = continued(&checkpoints, &taken) else {
            tracing::debug!(lost = taken.lost, "the feed does not go on at the checkpoints");
            return self.round_from_log().await;
        };
        let is_ahead = |seen: &Seen| seen.heads.iter().zip(&next).any(|(head, next)| head > next);
        if taken.waiting == 0 {
            self.seen = self.seen.take().filter(is_ahead);
            // What was committed when the heads were read is in the feed by now, if this process committed it and knows.
            if self.seen.as_ref().is_some_and(|seen| taken.settled >= seen.begun || seen.at.elapsed() >= UNSETTLED) {
                tracing::debug!("another process wrote");
                return self.round_from_log().await;
            }
        }
        if self.looked.elapsed() >= POLL && self.seen.is_none() {
            self.looked = Instant::now();
            let heads = self.database.heads().await?.map(|head| head.position);
            // After the heads: what they show was begun before.
            self.seen = Some(Seen { heads, begun: feed.begun(), at: Instant::now() }).filter(is_ahead);
        }
        if news.is_empty() {
            self.following = Some(checkpoints);
            // What was applied already may be followed by what was not.
            return Ok(if self.seen.is_some() || taken.waiting > 0 { Round::Done } else { Round::Nothing });
        }
        let all = || news.iter().flat_map(|(_, events)| events).map(|event| &**event);
        let (believed, unknown) = fold::believed_before(all());
        let mut rows = match self.rows(&unknown, &fold::freezes_of(all())).await {
            // Whose rows they are, and what can be applied all the same, is found out by the usual way.
            Err(error) if is_local_damage(&error) => return self.round_from_log().await,
            rows => rows?,
        };
        rows.balances.extend(believed);
        let mut changes = Changes::default();
        for (partition, events) in &news {
            for model in ReadModel::ALL {
                let from = checkpoints[&model][partition.index()];
                if fold::fold(model, *partition, from, Source::Feed, events, &rows, &mut changes).is_err() {
                    // What contradicts is found and told by the usual way, from what is stored.
                    return self.round_from_log().await;
                }
            }
        }
        changes.believed = Some(rows.balances);
        let mut after = checkpoints;
        for step in &changes.steps {
            if let Some(heads) = after.get_mut(&step.model) {
                heads[step.partition.index()] = step.to;
            }
        }
        match self.commit(changes).await {
            Ok(true) => {}
            // Another runner was quicker, or a row is not what the events build on: what is stored is read then.
            Ok(false) => return Ok(Round::Done),
            Err(error) if is_local_damage(&error) => return self.round_from_log().await,
            Err(error) => return Err(error),
        }
        feed.paced(news.iter().map(|(_, events)| events.len()).sum(), began.elapsed());
        self.show_progress(next, after[&ReadModel::Balances].map(|head| head.position), taken.waiting_since);
        self.following = Some(after);
        Ok(Round::Done)
    }

    /// Applies some events to the read models, as the database has them.
    async fn round_from_log(&mut self) -> Result<Round, StoreError> {
        (self.looked, self.seen) = (Instant::now(), None);
        // The checkpoints first: heads only grow, so heads that are read later are never behind what was applied before.
        let checkpoints = self.checkpoints().await?;
        let heads = self.database.heads().await?;
        if let Some(feed) = &self.feed {
            let followed = Partition::all().filter(|partition| !self.halted.contains_key(partition));
            let lacks = followed.map(|partition| {
                let (head, at) = (heads[partition.index()], applied_to(&checkpoints, partition));
                head.position.0.saturating_sub(at.0)
            });
            feed.lacks(usize::try_from(lacks.sum::<u64>()).unwrap_or(usize::MAX));
        }
        let (mut events, mut contradictions) = self.news(&heads, &checkpoints).await?;
        if events.is_empty() && contradictions.is_empty() {
            self.show(&heads, &checkpoints).await?;
            self.try_to_follow(checkpoints);
            return Ok(Round::Nothing);
        }
        let all = || events.iter().flat_map(|(_, events)| events).map(|event| &**event);
        let (accounts, freezes) = (fold::accounts_of(all()), fold::freezes_of(all()));
        let rows = match self.rows(&accounts, &freezes).await {
            Err(error) if is_local_damage(&error) => {
                self.rows_apart(&mut events, &checkpoints, &mut contradictions).await?
            }
            rows => rows?,
        };
        let mut changes = Changes::default();
        for (partition, events) in &events {
            for model in ReadModel::ALL {
                if let Err(found) = fold_new(model, *partition, events, &checkpoints, &rows, &mut changes) {
                    contradictions.push((*partition, model, found));
                }
            }
        }
        if !contradictions.is_empty() {
            // Rows that another runner wrote since the checkpoints were read contradict them, too: then begin again.
            if self.checkpoints().await? != checkpoints {
                return Ok(Round::Done);
            }
            for (partition, model, found) in contradictions {
                self.halt(partition, model, &found).await?;
            }
        }
        let applied: usize = changes.steps.len();
        match self.commit(changes).await {
            Ok(true) => {}
            // Another runner was quicker: start again from what is there.
            Ok(false) => return Ok(Round::Done),
            Err(error) if is_local_damage(&error) => {
                self.apply_apart(&events, &rows).await?;
                return Ok(Round::Done);
            }
            Err(error) => return Err(error),
        }
        let checkpoints = self.checkpoints().await?;
        self.show(&heads, &checkpoints).await?;
        if checkpoints[&ReadModel::Balances].iter().zip(&heads).all(|(at, head)| at.position >= head.position) {
            self.try_to_follow(checkpoints);
        }
        Ok(if applied > 0 { Round::Done } else { Round::Nothing })
    }

    /// Goes on with the feed, if there is one; should it not go on where the checkpoints are, that is found out.
    fn try_to_follow(&mut self, checkpoints: Checkpoints) {
        if self.halted.is_empty() && checkpoints[&ReadModel::Balances] == checkpoints[&ReadModel::Freezes] {
            self.following = Some(checkpoints);
        }
    }

    /// The events after the checkpoints, as many as one round takes, and what is in the way of more: an event that is
    /// missing or damaged, or a log that ends before its read models.
    async fn news(
        &self,
        heads: &[Head; PARTITIONS],
        checkpoints: &Checkpoints,
    ) -> Result<(News, Vec<Found>), StoreError> {
        let mut room = ROUND_EVENTS;
        let (mut news, mut damages) = (Vec::new(), Vec::new());
        for partition in Partition::all() {
            let paused = self.halted.get(&partition).is_some_and(|since| since.elapsed() < RETRY_HALTED);
            if room == 0 || paused {
                continue;
            }
            let head = heads[partition.index()];
            for model in ReadModel::ALL {
                let at = checkpoints[&model][partition.index()];
                if at.position > head.position || (at.position == head.position && at.hash != head.hash) {
                    let (expected, found) = (format!("{at:?} or later"), format!("{head:?}"));
                    let found = Contradiction { position: at.position, field: "head", expected, found };
                    damages.push((partition, model, found));
                }
            }
            let from = applied_to(checkpoints, partition);
            if head.position <= from {
                continue;
            }
            let mut events = Vec::new();
            let mut damage = None;
            let rows = match self.database.rows_after(partition, from, room).await {
                Err(error) if is_local_damage(&error) => {
                    damages.push((partition, ReadModel::Balances, unreadable(from, &error)));
                    continue;
                }
                rows => rows?,
            };
            for row in rows {
                match row {
                    Ok(event) => events.push(Arc::new(event)),
                    Err(damaged) => {
                        damage = Some((damaged.column, damaged.reason));
                        break;
                    }
                }
            }
            if events.is_empty() {
                // The head says that there is one.
                let position = from.next();
                let (field, found) = damage.unwrap_or(("position", "is missing".to_owned()));
                let found = Contradiction { position, field, expected: format!("the event at {position}"), found };
                damages.push((partition, ReadModel::Balances, found));
            } else {
                room -= events.len();
                news.push((partition, events));
            }
        }
        Ok((news, damages))
    }

    async fn rows(&self, accounts: &[AccountId], freezes: &[(Partition, Position)]) -> Result<Rows, StoreError> {
        let (balances, freezes) = match &self.database {
            Database::Postgres(database) => (
                match accounts {
                    [] => Vec::new(),
                    _ => postgres::balances(database.pool(), "balances", accounts).await?,
                },
                match freezes {
                    [] => Vec::new(),
                    _ => postgres::freezes(database.pool(), "freezes", freezes).await?,
                },
            ),
            Database::Sqlite(database) => (
                sqlite::balances(database.readers(), "balances", accounts).await?,
                sqlite::freezes(database.readers(), "freezes", freezes).await?,
            ),
        };
        // A damaged row is as good as missing: the fold meets a contradiction there and stops.
        Ok(Rows::of(balances.into_iter().flatten(), freezes.into_iter().flatten()))
    }

    /// The rows, read partition by partition, because something among them cannot be read: the events of those partitions where
    /// that is are left out, so that the others go on.
    async fn rows_apart(
        &self,
        events: &mut News,
        checkpoints: &Checkpoints,
        contradictions: &mut Vec<Found>,
    ) -> Result<Rows, StoreError> {
        let (mut rows, mut readable) = (Rows::default(), Vec::with_capacity(events.len()));
        for (partition, news) in std::mem::take(events) {
            let all = || news.iter().map(|event| &**event);
            let (accounts, freezes) = (fold::accounts_of(all()), fold::freezes_of(all()));
            match self.rows(&accounts, &freezes).await {
                Ok(found) => {
                    rows.balances.extend(found.balances);
                    rows.freezes.extend(found.freezes);
                    readable.push((partition, news));
                }
                Err(error) if is_local_damage(&error) => {
                    let is_of_balances = self.rows(&accounts, &[]).await.is_err();
                    let model = if is_of_balances { ReadModel::Balances } else { ReadModel::Freezes };
                    contradictions.push((partition, model, unreadable(applied_to(checkpoints, partition), &error)));
                }
                Err(error) => return Err(error),
            }
        }
        *events = readable;
        Ok(rows)
    }

    /// Writes what the events make of the rows, each read model of each partition by itself, because what one of them has to be
    /// written to cannot be read.
    async fn apply_apart(&mut self, events: &News, rows: &Rows) -> Result<(), StoreError> {
        // Some of it may have been written before that was met.
        let checkpoints = self.checkpoints().await?;
        for (partition, events) in events {
            for model in ReadModel::ALL {
                let mut changes = Changes::default();
                // Whatever contradicts was told of already; what comes before it is applied.
                let _ = fold_new(model, *partition, events, &checkpoints, rows, &mut changes);
                match self.commit(changes).await {
                    Err(error) if is_local_damage(&error) => {
                        let from = checkpoints[&model][partition.index()].position;
                        self.halt(*partition, model, &unreadable(from, &error)).await?;
                    }
                    Err(error) => return Err(error),
                    // Where another runner was quicker, the next round finds that out.
                    Ok(_) => {}
                }
            }
        }
        Ok(())
    }

    async fn commit(&self, changes: Changes) -> Result<bool, StoreError> {
        if changes.steps.is_empty() {
            return Ok(true);
        }
        let database = self.database.clone();
        // A task of its own: whatever becomes of this one, the transaction comes to its end.
        let task = tokio::spawn(async move {
            match &database {
                Database::Postgres(postgres) => database.step(postgres::commit(postgres.pool(), &changes)).await,
                Database::Sqlite(sqlite) => sqlite::commit(sqlite, changes).await,
            }
        });
        task.await.unwrap_or_else(|_| Err(StoreError::Inconsistent("the projector's commit ended early".to_owned())))
    }

    /// A partition's events contradict its rows: it stops, the others go on, and nothing is skipped.
    async fn halt(&mut self, partition: Partition, model: ReadModel, found: &Contradiction) -> Result<(), StoreError> {
        if self.halted.insert(partition, Instant::now()).is_none() {
            tracing::error!(
                %partition, position = %found.position, read_model = model.name(), field = found.field,
                expected = %found.expected, found = %found.found,
                "the log and a read model contradict each other; the partition's read models stop here: run replay-tool verify"
            );
            metrics::counter!("ledger_inconsistencies_total", "read_model" => model.name()).increment(1);
        }
        // Once, however often it is met.
        inconsistencies::record(&self.database, &Finding::stopped(partition, model, found)).await?;
        Ok(())
    }
}

/// Up to where both read models hold a partition's events.
fn applied_to(checkpoints: &Checkpoints, partition: Partition) -> Position {
    let [balances, freezes] = ReadModel::ALL.map(|model| checkpoints[&model][partition.index()].position);
    balances.min(freezes)
}

/// Folds those of a partition's events into a read model's rows that it does not have yet: the other one may be behind.
fn fold_new(
    model: ReadModel,
    partition: Partition,
    events: &[Arc<Event>],
    checkpoints: &Checkpoints,
    rows: &Rows,
    changes: &mut Changes,
) -> Result<(), Contradiction> {
    let from = checkpoints[&model][partition.index()];
    let new = events.partition_point(|event| event.position <= from.position);
    fold::fold(model, partition, from, Source::Log, &events[new..], rows, changes)
}

/// Whether something that is stored cannot be read, while the database as a whole serves. Without a table it does not.
fn is_local_damage(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(_)) && error.is_damage() && !error.is_missing()
}

/// What is in the way of the event after `from`.
fn unreadable(from: Position, error: &StoreError) -> Contradiction {
    let expected = "rows that can be read".to_owned();
    Contradiction { position: from.next(), field: "row", expected, found: chain(error) }
}

/// What a feed brought, by partition, if it goes on where the checkpoints are, and the newest positions then. What is
/// applied already is left out.
fn continued(checkpoints: &Checkpoints, taken: &Taken) -> Option<(News, [Position; PARTITIONS])> {
    let mut next = checkpoints[&ReadModel::Balances].map(|head| head.position);
    let mut news: [Vec<Arc<Event>>; PARTITIONS] = std::array::from_fn(|_| Vec::new());
    for event in &taken.events {
        let index = event.partition.index();
        if event.position <= next[index] {
            continue;
        }
        if event.position != next[index].next() {
            return None;
        }
        next[index] = event.position;
        news[index].push(event.clone());
    }
    let news = Partition::all().zip(news).filter(|(_, events)| !events.is_empty()).collect();
    (!taken.lost).then_some((news, next))
}
