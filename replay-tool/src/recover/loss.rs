//! What is lost, as far as anything tells how far the log had come.

use ledger_core::{Head, PARTITIONS, Partition, Position};
use projector::publisher::restored::Restored;
use serde::{Deserialize, Serialize};

use super::tail::Tail;
use crate::anchor::Anchor;

/// The witness that the database itself is.
pub(super) const OWN_HEADS: &str = "the database's own heads";

/// Something that tells how far the log had come.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    /// In words, for a report.
    pub(super) name: String,
    pub(super) heads: [Option<Head>; PARTITIONS],
}

impl Witness {
    pub(super) fn of_anchor(anchor: &Anchor) -> Self {
        let mut heads = [None; PARTITIONS];
        for (partition, head) in &anchor.heads {
            heads[partition.index()] = Some(*head);
        }
        Self { name: anchor.source.clone(), heads }
    }
}

/// Positions of a partition that were there and are not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Missing {
    pub(super) partition: Partition,
    pub(super) from: Position,
    pub(super) to: Position,
    pub(super) count: u64,
    /// Who told of the last of them.
    pub(super) told_by: String,
}

/// A witness that tells of another history than the one that is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contradiction {
    pub(super) partition: Partition,
    pub(super) position: Position,
    pub(super) told_by: String,
    pub(super) expected: String,
    pub(super) found: String,
}

/// What is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Loss {
    /// Positions that are known to be lost.
    pub(super) positions: u64,
    pub(super) partitions: Vec<Missing>,
    pub(super) contradictions: Vec<Contradiction>,
    /// Where the database's own heads are, in the partitions in which they promise more than is restored. A witness who tells of
    /// still more stands before them above.
    #[serde(skip)]
    pub(super) promised: Vec<(Partition, Position)>,
    /// Who was asked.
    pub(super) witnesses: Vec<String>,
    /// Somebody tells of events that an earlier restore did not put back: that restore's report named them.
    #[serde(default)]
    pub(super) left_behind: bool,
    /// What nobody who was asked can know; absent when nothing is left open.
    pub(super) cannot_know: Option<String>,
}

impl Loss {
    /// Nothing is known to be lost, and nobody tells of another history.
    pub(super) fn is_none_known(&self) -> bool {
        self.positions == 0 && self.contradictions.is_empty()
    }
}

/// Compares what is restored with what witnesses tell.
pub(super) fn loss(
    tail: &Tail,
    hash_at: impl Fn(Partition, Position) -> Option<ledger_core::Hash>,
    witnesses: &[Witness],
    restores: &[Restored],
    cannot_know: Option<String>,
) -> Loss {
    let mut loss = Loss {
        positions: 0,
        partitions: Vec::new(),
        contradictions: Vec::new(),
        promised: Vec::new(),
        witnesses: witnesses.iter().map(|witness| witness.name.clone()).collect(),
        left_behind: false,
        cannot_know,
    };
    for partition in Partition::all() {
        let end = tail.partitions[partition.index()].end;
        let mut furthest: Option<(Position, &str)> = None;
        for witness in witnesses {
            let Some(head) = witness.heads[partition.index()] else { continue };
            if restores.iter().any(|restored| restored.voids(partition, head.epoch, head.position)) {
                loss.left_behind = true;
                continue;
            }
            // A head that names the newest event at another position was changed: it tells nothing.
            if head.hash == end.hash && head.position != end.position {
                continue;
            }
            if head.position > end.position {
                if witness.name == OWN_HEADS {
                    loss.promised.push((partition, head.position));
                }
                if furthest.is_none_or(|(position, _)| head.position > position) {
                    furthest = Some((head.position, &witness.name));
                }
            } else if let Some(hash) = hash_at(partition, head.position)
                && hash != head.hash
            {
                loss.contradictions.push(Contradiction {
                    partition,
                    position: head.position,
                    told_by: witness.name.clone(),
                    expected: head.hash.to_string(),
                    found: hash.to_string(),
                });
            }
        }
        if let Some((to, told_by)) = furthest {
            let count = to.0 - end.position.0;
            // What a damaged head promises adds up to anything.
            loss.positions = loss.positions.saturating_add(count);
            let (from, told_by) = (end.position.next(), told_by.to_owned());
            loss.partitions.push(Missing { partition, from, to, count, told_by });
        }
    }
    loss
}
