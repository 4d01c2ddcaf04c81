//! What can be read of a partition, whatever is damaged between.

use ledger_core::{Event, Partition, Position, id::POSITION_MAX};
use ledger_store::{Database, StoreError, error::chain, scan::Scan};

/// Places that are tried one by one where the log cannot be read as a whole. A page of a database holds far fewer rows.
const PLACES: u64 = 1_000;
/// So many such stretches in a row without a single event end the partition.
const STRETCHES_MAX: u32 = 8;

/// Reads a partition's events after a position, and passes over what cannot be read.
pub(super) struct Readable<'d> {
    database: &'d Database,
    partition: Partition,
    /// The newest position that was read or tried.
    at: Position,
    scan: Option<Scan>,
    /// Stretches in a row that gave nothing.
    barren: u32,
    /// The first place that could not be read, and why.
    pub(super) failed: Option<(Position, String)>,
}

impl<'d> Readable<'d> {
    pub(super) const fn after(database: &'d Database, partition: Partition, at: Position) -> Self {
        Self { database, partition, at, scan: None, barren: 0, failed: None }
    }

    /// The next events; none at the end. Rows that are no events are left out.
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        while self.barren < STRETCHES_MAX {
            let scan =
                self.scan.get_or_insert_with(|| self.database.scan(self.partition, self.at, Position(POSITION_MAX)));
            let events = match scan.next().await {
                Ok(rows) => {
                    let last =
                        rows.last().map(|row| row.as_ref().map_or_else(|row| row.position, |event| event.position));
                    let Some(last) = last else { return Ok(Vec::new()) };
                    self.at = last;
                    self.barren = 0;
                    rows.into_iter().flatten().collect()
                }
                Err(error) if error.is_damage() => {
                    self.scan = None;
                    self.one_by_one(&error).await?
                }
                Err(error) => return Err(error),
            };
            if !events.is_empty() {
                return Ok(events);
            }
        }
        Ok(Vec::new())
    }

    /// The events of the next places, each read by itself, up to the first behind what cannot be read.
    async fn one_by_one(&mut self, error: &StoreError) -> Result<Vec<Event>, StoreError> {
        let mut events = Vec::new();
        let mut is_behind = false;
        for _ in 0..PLACES {
            self.at = self.at.next();
            match self.database.rows_at(&[(self.partition, self.at)]).await {
                Ok(rows) => {
                    let is_there = !rows.is_empty();
                    events.extend(rows.into_iter().flatten());
                    if is_behind && is_there {
                        break;
                    }
                }
                Err(error) if error.is_damage() => {
                    self.failed.get_or_insert_with(|| (self.at, chain(&error)));
                    is_behind = true;
                }
                Err(error) => return Err(error),
            }
        }
        // Each place by itself may be readable, and the whole not.
        self.failed.get_or_insert_with(|| (self.at, chain(error)));
        self.barren = if events.is_empty() { self.barren + 1 } else { 0 };
        Ok(events)
    }
}
