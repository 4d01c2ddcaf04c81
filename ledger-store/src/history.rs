//! An account's past: a walk back along `previous_position`.

use std::sync::Arc;

use ledger_core::{Account, Event, EventType, Position, Timestamp};

use crate::{Ledger, Unavailable, batch::Newest, database::Bound, ledger::failed};

/// Events of one step of a walk that looks for a type.
const WALK: usize = 500;
/// Steps of one call: a page may come back short, with the place to go on from.
const WALKS_MAX: usize = 10;

impl Ledger {
    /// The event that made an account's `version`, if it has come so far.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn at_version(&self, account: &Account, version: u64) -> Result<Option<Arc<Event>>, Unavailable> {
        match self.where_newest(account).await? {
            Some(newest) if (1..=newest.version).contains(&version) => {
                self.newest_within(account, &newest, Bound::Version(version)).await
            }
            _ => Ok(None),
        }
    }

    /// The newest event of an account that was recorded at or before `at`.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn at_time(&self, account: &Account, at: Timestamp) -> Result<Option<Arc<Event>>, Unavailable> {
        let Some(newest) = self.where_newest(account).await? else { return Ok(None) };
        let partition = account.partition();
        let head = self.committed()[partition.index()].max(newest.position);
        let last = self.database.newest_at_or_before(partition, at, head).await.map_err(|error| failed(&error))?;
        if last >= newest.position {
            return self.read(partition, newest.position).await;
        }
        self.newest_within(account, &newest, Bound::Position(last)).await
    }

    /// The newest event of an account within a bound, found from the nearest known event after it.
    async fn newest_within(
        &self,
        account: &Account,
        newest: &Newest,
        bound: Bound,
    ) -> Result<Option<Arc<Event>>, Unavailable> {
        // The nearest entry of the index, else of the tail, else the newest event: each is past the bound or on it.
        let indexed = self.database.history_anchor(account.id(), bound).await.map_err(|error| failed(&error))?;
        let in_tail = newest.anchors.iter().find(|(version, position)| match bound {
            Bound::Version(wanted) => *version >= wanted,
            Bound::Position(wanted) => *position >= wanted,
        });
        let from = indexed.or_else(|| in_tail.map(|(_, position)| *position)).unwrap_or(newest.position);
        let mut events =
            self.database.walk_back(account.partition(), from, bound, 1).await.map_err(|error| failed(&error))?;
        Ok(events.pop().map(Arc::new))
    }

    /// An account's events, newest first: those before position `before` (absent: from the newest), at most `limit`, of
    /// `event_type` if one is given. The position is where to go on, absent at the end. A search for a rare type may
    /// give fewer than `limit`, even none, and a place to go on: a call looks at a bounded number of events.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn history(
        &self,
        account: &Account,
        before: Option<Position>,
        limit: usize,
        event_type: Option<EventType>,
    ) -> Result<(Vec<Event>, Option<Position>), Unavailable> {
        let Some(newest) = self.where_newest(account).await? else { return Ok((Vec::new(), None)) };
        let partition = account.partition();
        let mut found = Vec::new();
        // The walk begins with an event of the account: the one at `before` itself, which was given already.
        let mut from = match before {
            None => newest.position,
            Some(before) => match self.read(partition, before).await? {
                Some(event) if event.account == *account => event.previous_position,
                _ => return Ok((Vec::new(), None)),
            },
        };
        let mut last = Position::ZERO;
        for _ in 0..WALKS_MAX {
            let step = if event_type.is_some() { WALK } else { limit };
            let events = self
                .database
                .walk_back(partition, from, Bound::Position(from), step)
                .await
                .map_err(|error| failed(&error))?;
            for event in events {
                from = event.previous_position;
                last = event.position;
                if event_type.is_none_or(|wanted| event.event_type == wanted) {
                    found.push(event);
                }
                if found.len() == limit {
                    return Ok((found, (from > Position::ZERO).then_some(last)));
                }
                if from == Position::ZERO {
                    return Ok((found, None));
                }
            }
        }
        Ok((found, Some(last)))
    }
}
