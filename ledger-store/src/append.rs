//! What one commit writes, and what it compares before it does.

use std::sync::Arc;

use ledger_core::{Event, Head, Partition};

/// One commit: events, the heads that they advance, and the heads that the other answers of the batch were judged by.
#[derive(Debug, Default)]
pub(crate) struct Append {
    /// The partitions that are written: the head before and after. Ascending by partition, which is the order in which
    /// every writer locks them.
    pub(crate) advances: Vec<(Partition, Head, Head)>,
    /// The partitions that were only read to refuse or to repeat an answer: the head that was believed.
    pub(crate) judged: Vec<(Partition, Head)>,
    /// In the order of their positions within each partition.
    pub(crate) events: Vec<Arc<Event>>,
}

/// How a commit ended, when it ended at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It is durable.
    Done,
    /// Some head is not what was believed: another process wrote. Nothing was written.
    FenceLost,
}
