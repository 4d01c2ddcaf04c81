//! What one commit writes, and what it compares before it does.

use std::sync::Arc;

use ledger_core::{Event, Head, Partition, operation};
use uuid::Uuid;

use crate::operations::Compensation;

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
    /// The operations of the events, where their callers gave one: none of them may be compensated before this.
    pub(crate) operations: Vec<Uuid>,
    /// The operations that are reversed by this.
    pub(crate) compensations: Vec<Compensation>,
}

impl Append {
    /// Whether there is nothing to write, only heads to compare.
    pub(crate) const fn only_compares(&self) -> bool {
        self.advances.is_empty() && self.compensations.is_empty()
    }

    /// Notes the operations of the events.
    pub(crate) fn note_operations(&mut self) {
        self.operations = self.events.iter().filter_map(|event| operation::given(event)).collect();
        self.operations.extend(self.compensations.iter().map(|compensation| compensation.operation_id));
        self.operations.sort_unstable();
        self.operations.dedup();
    }
}

/// How a commit ended, when it ended at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It is durable.
    Done,
    /// Some head is not what was believed, or an operation was compensated meanwhile: another process wrote. Nothing was
    /// written.
    FenceLost,
}
