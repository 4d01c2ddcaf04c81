//! Whole logs in memory, to put a ledger back to what it was.

use std::sync::Arc;

use ledger_core::{Epoch, Event, Head, PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{
    Database,
    restore::{Log, Target, restore},
};

/// The log of a database, all of it in memory.
///
/// # Panics
///
/// When there is no ledger, or its log cannot be read.
pub async fn log_of(url: &str) -> (Vec<Vec<Event>>, [Head; PARTITIONS]) {
    let database = Database::open_existing(url).await.expect("it opens");
    let heads = database.heads().await.expect("heads");
    let mut log = Vec::new();
    for partition in Partition::all() {
        log.push(database.events_after(partition, Position::ZERO, 100_000).await.expect("events"));
    }
    database.close().await;
    (log, heads)
}

/// A log to be restored, in which the ledger goes on in that epoch.
///
/// # Panics
///
/// Never: its time is one.
#[must_use]
pub fn new_log(events: Vec<Vec<Event>>, heads: [Head; PARTITIONS], epoch: u32) -> Log {
    let events = Arc::new(events);
    Log {
        archive_id: "test".to_owned(),
        appends_are_held: false,
        standing: None,
        epoch: Epoch(epoch),
        heads,
        restored_at: Timestamp::from_micros(1_700_000_000_000_000).expect("a time"),
        events: Box::new(move |partition| {
            let events = events.clone();
            let count = events[partition.index()].len();
            Box::new((0..count).map(move |index| Ok(events[partition.index()][index].clone())))
        }),
        fold: None,
        progress: Box::new(|_| {}),
    }
}

/// Puts a log in the place of what the database holds by now, as a restore does.
///
/// # Panics
///
/// When the database refuses.
pub async fn put_back(url: &str, (events, heads): (Vec<Vec<Event>>, [Head; PARTITIONS]), epoch: u32) {
    restore(url, Target::Replace, new_log(events, heads, epoch)).await.expect("restored");
}
