//! How lately it was certain that this process knows the whole log.
//!
//! What a process remembers of its own commits is the newest state of an account unless another process has written since.
//! The heads tell: where the database's head of a partition is the one that this process knows, nobody has. They are
//! compared in the background while somebody reads, so that no read waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ledger_core::{Head, PARTITIONS, Partition};
use tokio::sync::Notify;

use crate::{Database, error::chain, published::Published};

/// For so long after a comparison of the heads what is remembered counts as fresh: another process's commit is read no
/// later than that.
const FRESH: Duration = Duration::from_millis(250);
/// How soon after a comparison the next one begins, while somebody reads.
const COMPARE_AGAIN: Duration = Duration::from_millis(50);

/// When each partition's head was last found to be the known one.
#[derive(Debug)]
pub(crate) struct Freshness {
    began: Instant,
    /// In microseconds after `began`; 0 is never.
    compared: [AtomicU64; PARTITIONS],
    wanted: Notify,
}

impl Freshness {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), compared: std::array::from_fn(|_| AtomicU64::new(0)), wanted: Notify::new() }
    }

    /// Whether what this process remembers of a partition's accounts is as new as the database was a moment ago. Asking
    /// has the heads compared again, if that is some time ago.
    pub(crate) fn is_fresh(&self, partition: Partition) -> bool {
        let compared = self.compared[partition.index()].load(Ordering::Acquire);
        let age = Duration::from_micros(self.micros().saturating_sub(compared));
        if compared == 0 || age >= COMPARE_AGAIN {
            self.wanted.notify_one();
        }
        compared > 0 && age < FRESH
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Notes which of the stored heads this process knows. They were read after `at`, and between the two looks at what it
    /// knows.
    fn note(&self, at: u64, stored: &[Head; PARTITIONS], before: &[Head; PARTITIONS], after: &[Head; PARTITIONS]) {
        for (index, compared) in self.compared.iter().enumerate() {
            if is_known(&stored[index], &before[index], &after[index]) {
                compared.store(at, Ordering::Release);
            }
        }
    }
}

/// Whether a stored head is one that this process knows, having known `before` when it was read and `after` since. A
/// commit of its own may have moved the head on meanwhile; nobody else's can have come between, or that commit would have
/// failed. A head behind what was known before is one of a database that was rewound.
fn is_known(stored: &Head, before: &Head, after: &Head) -> bool {
    stored == after
        || (before.epoch == stored.epoch
            && stored.epoch == after.epoch
            && before.position <= stored.position
            && stored.position < after.position)
}

/// Compares the heads whenever somebody wants to know. Ends when it is aborted.
pub(crate) async fn watch(published: Arc<Published>, database: Database) {
    let freshness = &published.freshness;
    loop {
        freshness.wanted.notified().await;
        let (at, before) = (freshness.micros(), published.heads());
        match database.heads().await {
            Ok(stored) => freshness.note(at, &stored, &before, &published.heads()),
            // Reads go to the database themselves before long, and say so.
            Err(error) => tracing::debug!(error = %chain(&error), "the heads could not be compared"),
        }
        tokio::time::sleep(COMPARE_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{Epoch, Position};

    use super::*;

    #[test]
    fn a_head_is_known_that_is_ours_or_that_ours_went_on_from() {
        let head = |epoch, position, byte| Head {
            epoch: Epoch(epoch),
            position: Position(position),
            hash: ledger_core::Hash([byte; 32]),
        };
        let (older, stored, newer) = (head(1, 4, 6), head(1, 5, 7), head(1, 6, 8));
        assert!(is_known(&stored, &stored, &stored));
        assert!(is_known(&stored, &older, &stored), "this process committed just before");
        assert!(is_known(&stored, &older, &newer), "this process has committed since");
        assert!(!is_known(&stored, &older, &older), "another process has committed");
        assert!(!is_known(&stored, &newer, &newer), "the database was rewound");
        assert!(!is_known(&stored, &head(1, 5, 9), &head(1, 5, 9)), "another history");
        assert!(!is_known(&stored, &older, &head(2, 6, 8)), "another epoch");
    }

    #[test]
    fn what_was_never_compared_is_not_fresh() {
        let freshness = Freshness::new();
        let partition = Partition::all().next().expect("there are partitions");
        assert!(!freshness.is_fresh(partition));
        let heads = [Head::EMPTY; PARTITIONS];
        freshness.note(freshness.micros(), &heads, &heads, &heads);
        assert!(freshness.is_fresh(partition));
    }
}
