//! Puts a ledger back to what it was.

use std::sync::Arc;

use ledger_core::{Epoch, Event, Head, PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{
    Database,
    restore::{Log, Target, restore},
};

/// The log of a database, as it was.
pub(crate) struct Kept {
    events: Arc<Vec<Vec<Event>>>,
    heads: [Head; PARTITIONS],
}

impl Kept {
    pub(crate) async fn of(url: &str) -> Self {
        let database = Database::open_existing(url).await.expect("it opens");
        let heads = database.heads().await.expect("heads");
        let mut events = Vec::new();
        for partition in Partition::all() {
            events.push(database.events_after(partition, Position::ZERO, 100_000).await.expect("events"));
        }
        database.close().await;
        Self { events: Arc::new(events), heads }
    }

    /// Puts it in the place of what the database holds by now, as a restore does.
    pub(crate) async fn put_back(self, url: &str, epoch: u32) {
        let Self { events, heads } = self;
        let log = Log {
            archive_id: "rewound".to_owned(),
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
        };
        restore(url, Target::Replace, log).await.expect("restored");
    }
}
