//! Places that something names besides the log itself – heads, checkpoints, anchors, restores –, each of which must be an
//! event of the log with that very hash.

use ledger_core::{Epoch, Event, Head, Partition, Position};

use super::{
    doubt::Doubts,
    log::{Replay, positions},
    stored::{Restore, Stand},
};
use crate::finding::{self, Finding, Findings, Kind};

/// Who names a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Witness {
    /// The partition's head.
    Head,
    /// A checkpoint, of what.
    Checkpoint(&'static str),
    /// A head that was kept elsewhere, and where.
    Anchor(String),
    /// The record of the restore that began an epoch.
    Restore(Epoch),
}

/// A place and who names it.
#[derive(Debug, Clone)]
struct Place {
    at: Head,
    witness: Witness,
}

/// The places of one partition that are still to come, the nearest last.
#[derive(Debug)]
pub(super) struct Places {
    partition: Partition,
    /// Of the partition's head: the epoch in which the next event is written.
    epoch: Option<Epoch>,
    waiting: Vec<Place>,
}

impl Places {
    pub(super) const fn new(partition: Partition, epoch: Option<Epoch>) -> Self {
        Self { partition, epoch, waiting: Vec::new() }
    }

    /// Adds a place; all are added before the first is looked at.
    pub(super) fn add(&mut self, at: Head, witness: Witness) {
        self.waiting.push(Place { at, witness });
        self.waiting.sort_by_key(|place| std::cmp::Reverse(place.at.position));
    }

    pub(super) fn extend(&mut self, places: impl IntoIterator<Item = (Head, Witness)>) {
        places.into_iter().for_each(|(at, witness)| self.add(at, witness));
    }

    /// Leaves out the places up to and with `start`: a replay that does not see all of the log begins after it.
    pub(super) fn begin_after(&mut self, start: Position) {
        if start > Position::ZERO {
            self.waiting.retain(|place| place.at.position > start);
        }
    }

    /// Whether a place is due at `position` or before.
    pub(super) fn are_due(&self, position: Position) -> bool {
        self.waiting.last().is_some_and(|place| place.at.position <= position)
    }

    /// Compares the places up to `position` with what stands there: an event, a damaged row, or, before the first event and
    /// in a gap, nothing.
    pub(super) fn at(&mut self, position: Position, event: Option<&Event>, replay: &mut Replay) {
        while let Some(place) = self.waiting.pop_if(|place| place.at.position <= position) {
            let event = event.filter(|event| event.position == place.at.position);
            let head = match event {
                Some(event) => event.head(),
                None if place.at.position == Position::ZERO => Head { epoch: place.at.epoch, ..Head::EMPTY },
                // What stood here is lost, and is named as that.
                None => continue,
            };
            if let Some(finding) = self.compare(&place, &head, event) {
                // An event that was changed is named, and so is what it makes of those who name it.
                if replay.doubts.covers(place.at.position) {
                    replay.findings.consequences += 1;
                } else {
                    replay.findings.push(finding);
                }
            }
        }
    }

    /// Whether the places up to `position` agree with what stands there: an event, or the beginning. They are done with then.
    pub(super) fn agree_at(&mut self, position: Position, log: &Head, is_event: bool) -> bool {
        let mut agree = true;
        while let Some(place) = self.waiting.pop_if(|place| place.at.position <= position) {
            let log = if is_event { *log } else { Head { epoch: place.at.epoch, ..*log } };
            agree &= place.at.position == position && self.judge(&place, &log, is_event).2;
        }
        agree
    }

    /// Whether all places were come to.
    pub(super) const fn are_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is wrong with a place that does not agree, whose it is, and whether it agrees.
    fn judge<'p>(&self, place: &'p Place, log: &Head, is_event: bool) -> (Kind, &'p str, bool) {
        let (kind, whose, epoch_agrees) = match &place.witness {
            // After a restore the partition goes on in a newer epoch than its newest event's.
            Witness::Head => (Kind::HeadMismatch, "the head", log.epoch <= place.at.epoch),
            Witness::Checkpoint(name) => {
                (Kind::CheckpointMismatch, *name, log.epoch == place.at.epoch || self.began(log.epoch, place.at.epoch))
            }
            Witness::Anchor(source) => (Kind::AnchorMismatch, source.as_str(), log.epoch <= place.at.epoch),
            Witness::Restore(epoch) => {
                (Kind::RestoreMismatch, "the record of a restore", !is_event || log.epoch < *epoch)
            }
        };
        (kind, whose, log.hash == place.at.hash && epoch_agrees)
    }

    fn compare(&self, place: &Place, log: &Head, event: Option<&Event>) -> Option<Finding> {
        let (kind, whose, agrees) = self.judge(place, log, event.is_some());
        if agrees {
            return None;
        }
        let (expected, found) = match place.witness {
            // The log is not the authority on what was kept elsewhere.
            Witness::Anchor(_) => (format!("{}, as {whose} says", in_words(&place.at)), in_words(log)),
            _ => (in_words(log), format!("{}, in {whose}", in_words(&place.at))),
        };
        let finding = match event {
            Some(event) => Finding::of(kind, event, expected, found),
            None => Finding::at(kind, self.partition, place.at.position, expected, found),
        };
        Some(mended(finding, whose))
    }

    /// A read model that was made anew before the first event of a new epoch bears that epoch.
    fn began(&self, before: Epoch, epoch: Epoch) -> bool {
        before < epoch && self.epoch == Some(epoch)
    }

    /// At the end of the log: whatever still waits names a place past it. `newest` is the newest position of which there is a
    /// row: what lies past the head is named as that.
    pub(super) fn finish(self, replay: &Replay, newest: Position, findings: &mut Findings) {
        let end = replay.position();
        for place in self.waiting.into_iter().rev() {
            let at = place.at.position;
            if at <= newest {
                findings.consequences += 1;
                continue;
            }
            match place.witness {
                // Positions that the head promises and that are not there are a gap.
                Witness::Head => {}
                Witness::Checkpoint(name) => {
                    if !replay.doubts.is_lost(at) {
                        let expected = format!("a checkpoint of {name} at {end} or before");
                        let found = format!("position {at}");
                        let finding = Finding::at(Kind::CheckpointMismatch, self.partition, at, expected, found);
                        findings.push(mended(finding, name));
                    }
                }
                Witness::Anchor(source) => {
                    let first = end.next();
                    let expected = format!("{} of epoch {}, as {source} says", positions(first, at), place.at.epoch.0);
                    let found = format!("the log ends at position {end}");
                    findings.push(Finding::at(Kind::TruncatedTail, self.partition, first, expected, found));
                }
                Witness::Restore(epoch) => {
                    let expected = format!("the restore that began epoch {} at {end} or before", epoch.0);
                    let found = format!("at position {at}");
                    findings.push(Finding::at(Kind::RestoreMismatch, self.partition, at, expected, found));
                }
            }
        }
    }
}

fn in_words(head: &Head) -> String {
    format!("epoch {} hash {}", head.epoch.0, head.hash)
}

/// The recorded restore after which a place of an older epoch is void: the log went back behind it.
pub(super) fn voided_by<'r>(at: &Head, restores: &'r [Restore]) -> Option<&'r Restore> {
    restores.iter().find(|restore| restore.epoch > at.epoch && restore.position < at.position)
}

/// What an anchor knows and a recorded restore left behind.
pub(super) fn lost_in_restore(partition: Partition, at: &Head, source: &str, restore: &Restore) -> Finding {
    let first = restore.position.next();
    let expected = format!("{} of epoch {}, as {source} says", positions(first, at.position), at.epoch.0);
    let found = format!("the restore that began epoch {} went back to position {}", restore.epoch.0, restore.position);
    Finding::at(Kind::LostInRestore, partition, first, expected, found)
}

/// The epochs of the log against the restores that began them, and against the head.
pub(super) fn check_epochs(
    partition: Partition,
    epochs: &[(Position, Epoch)],
    head: &Stand,
    restores: &[Restore],
    doubts: &Doubts,
    findings: &mut Findings,
) {
    let newest = restores.last();
    let (began_after, epoch) = newest.map_or((Position::ZERO, Epoch::FIRST), |newest| (newest.position, newest.epoch));
    // What came with the restored archive has epochs of its own; what was written since has the restore's.
    for (position, found) in epochs.iter().filter(|(position, _)| *position > began_after) {
        if *found != epoch && !doubts.covers(*position) {
            let expected = match newest {
                Some(newest) => format!("epoch {}, which the newest restore began", newest.epoch.0),
                None => "epoch 1: no restore is recorded".to_owned(),
            };
            let found = format!("epoch {}", found.0);
            findings.push(Finding::at(Kind::EpochMismatch, partition, *position, expected, found));
        }
    }
    if let Some(head) = head.head()
        && head.epoch != epoch
    {
        let expected = format!("epoch {} in the head: the newest restore's, or 1", epoch.0);
        let found = format!("epoch {}", head.epoch.0);
        findings.push(Finding::at(Kind::HeadMismatch, partition, head.position, expected, found));
    }
}

/// A place that is no place: its row is missing or damaged.
pub(super) fn check_stand(
    partition: Partition,
    stand: &Stand,
    (missing, damaged): (Kind, Kind),
    what: &str,
    findings: &mut Findings,
) -> Option<Head> {
    let finding = match stand {
        Stand::At(head) => return Some(*head),
        Stand::Missing => Finding::of_partition(missing, partition, format!("a row of {what}"), "no row"),
        Stand::Damaged(why) => {
            let expected = format!("an epoch, a position and a hash of {what}");
            Finding::of_partition(damaged, partition, expected, why.as_str())
        }
    };
    findings.push(mended(finding, what));
    None
}

/// The table that says how far the indexes go.
pub(super) const INDEXES: &str = "index_checkpoints";
/// That of the publisher.
pub(super) const PUBLISHER: &str = "publisher_checkpoints";

/// What mends a checkpoint follows from whose it is.
fn mended(finding: Finding, whose: &str) -> Finding {
    match whose {
        INDEXES => finding.mended_by(finding::INDEXES),
        PUBLISHER => finding.mended_by(finding::PUBLISH_ANEW),
        _ => finding,
    }
}
