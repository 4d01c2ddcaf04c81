//! Atomic batches: every event of one is there, or none. A batch crosses partitions, so this is kept over all of them.

use std::collections::{BTreeSet, HashMap};

use ledger_core::{Event, PARTITIONS, Partition, Position};
use uuid::Uuid;

use crate::finding::{Finding, Findings, Kind};

/// The batches that are not whole yet.
#[derive(Debug)]
pub(crate) struct Batches {
    open: HashMap<Uuid, Open>,
    /// Up to where every partition is read: a batch is one commit, so at one vector of heads it is whole or absent.
    heads: [Position; PARTITIONS],
}

#[derive(Debug)]
struct Open {
    size: u32,
    seen: BTreeSet<u32>,
    first: (Partition, Position),
    contradicts: bool,
}

impl Batches {
    pub(crate) fn new(heads: [Position; PARTITIONS]) -> Self {
        Self { open: HashMap::new(), heads }
    }

    pub(crate) fn take(&mut self, event: &Event) {
        let Some(mark) = event.batch else { return };
        if event.position > self.heads[event.partition.index()] {
            return;
        }
        let open = self.open.entry(mark.id).or_insert_with(|| Open {
            size: mark.size,
            seen: BTreeSet::new(),
            first: (event.partition, event.position),
            contradicts: false,
        });
        let fits = mark.size == open.size && mark.index < mark.size && open.seen.insert(mark.index);
        open.contradicts |= !fits;
        if !open.contradicts && open.seen.len() == open.size as usize {
            self.open.remove(&mark.id);
        }
    }

    /// What is not whole once everything was read.
    pub(crate) fn finish(self, findings: &mut Findings) {
        for (id, open) in self.open {
            let expected = format!("{} events of batch {id}", open.size);
            let found = if open.contradicts {
                "marks that contradict each other".to_owned()
            } else {
                format!("{} of them", open.seen.len())
            };
            let (partition, position) = open.first;
            findings.push(Finding::at(Kind::BatchIncomplete, partition, position, expected, found));
        }
    }
}
