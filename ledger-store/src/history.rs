//! An account's past: a walk back along `previous_position`.

use std::sync::Arc;

use ledger_core::{Account, Event, EventType, Position, Timestamp};

use crate::{Ledger, StoreError, Unavailable, batch::Newest, database::Bound, ledger::failed, lookup::missing};

/// Events of one step of a walk that looks for a type.
const WALK: usize = 500;
/// Steps of one call: a page may come back short, with the place to go on from.
const WALKS_MAX: usize = 10;

impl Ledger {
    /// The event that made an account's `version`, if it has come so far.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn at_version(&self, account: &Account, version: u64) -> Result<Option<Arc<Event>>, Unavailable> {
        match self.where_newest(account).await? {
            Some(newest) if (1..=newest.version).contains(&version) => {
                let event = self.newest_within(account, &newest, Bound::Version(version)).await?;
                let event = event.filter(|event| event.after.version == version);
                event.map(Some).ok_or_else(|| broken(account))
            }
            _ => Ok(None),
        }
    }

    /// The newest event of an account that was recorded at or before `at`.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn at_time(&self, account: &Account, at: Timestamp) -> Result<Option<Arc<Event>>, Unavailable> {
        let Some(newest) = self.where_newest(account).await? else { return Ok(None) };
        let partition = account.partition();
        let head = self.committed()[partition.index()].max(newest.position);
        let last = self.database.newest_at_or_before(partition, at, head).await.map_err(|error| failed(&error))?;
        if last < head && self.read(partition, last.next()).await?.is_none() {
            // When that was recorded is not known, so there may be newer ones in time.
            return Err(failed(&missing((partition, last.next()))));
        }
        if last >= newest.position {
            return self.read_newest(account, &newest).await.map(Some);
        }
        if let Some(event) = self.newest_within(account, &newest, Bound::Position(last)).await? {
            return Ok(Some(event));
        }
        // Either the account was opened later, or the way back ends too early: its first event tells.
        match self.newest_within(account, &newest, Bound::Version(1)).await? {
            Some(first) if first.position > last => Ok(None),
            _ => Err(broken(account)),
        }
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
        match events.pop() {
            Some(event) if event.account != *account => Err(broken(account)),
            event => Ok(event.map(Arc::new)),
        }
    }

    /// An account's events, newest first: those before position `before` (absent: from the newest), at most `limit`, of
    /// `event_type` if one is given. The position is where to go on, absent at the end. A search for a rare type may
    /// give fewer than `limit`, even none, and a place to go on: a call looks at a bounded number of events.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
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
        let (mut from, mut version) = match before {
            None => (newest.position, newest.version),
            Some(before) => match self.read(partition, before).await? {
                Some(event) if event.account == *account && event.after.version > 1 => {
                    (event.previous_position, event.after.version - 1)
                }
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
            let is_cut_short = events.len() < step;
            for event in events {
                if event.account != *account || event.after.version != version {
                    return Err(broken(account));
                }
                version = version.saturating_sub(1);
                from = event.previous_position;
                last = event.position;
                if event_type.is_none_or(|wanted| event.event_type == wanted) {
                    found.push(event);
                }
                if version == 0 {
                    return Ok((found, None));
                }
                if found.len() == limit {
                    return Ok((found, Some(last)));
                }
            }
            if is_cut_short {
                return Err(broken(account));
            }
        }
        Ok((found, Some(last)))
    }
}

/// The log does not lead back through all of an account's versions: what it does lead to is not served.
fn broken(account: &Account) -> Unavailable {
    failed(&StoreError::Inconsistent(format!(
        "account {}: its events do not lead back to its first: run replay-tool verify",
        account.id()
    )))
}
