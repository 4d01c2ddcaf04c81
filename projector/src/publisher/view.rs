//! What the messages of the stream come to, partition by partition: a pure fold.
//!
//! Within an epoch positions follow each other. A new epoch goes on from anywhere up to the end of what was there before,
//! and whatever it writes over is gone from the view.

use ledger_core::{Epoch, Hash, Head, PARTITIONS, Partition, Position};

use super::restored::Restored;

/// A run of events of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) epoch: Epoch,
    pub(super) first: Position,
    pub(super) last: Position,
    /// Of the newest event, where it is known.
    pub(super) hash: Option<Hash>,
}

/// What the stream holds of every partition that still stands by what the stream itself says.
#[derive(Debug, Clone)]
pub(super) struct View {
    segments: [Vec<Segment>; PARTITIONS],
    /// Whether the first message of a partition must be its first event.
    from_beginning: bool,
}

/// A message that cannot follow those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) after: Position,
}

impl View {
    /// The view of a checkpoint.
    pub(super) fn of(published: &[Head; PARTITIONS]) -> Self {
        let segments = std::array::from_fn(|index| {
            let Head { epoch, position, hash } = published[index];
            let segment = Segment { epoch, first: Position(1), last: position, hash: Some(hash) };
            if position > Position::ZERO { vec![segment] } else { Vec::new() }
        });
        Self { segments, from_beginning: true }
    }

    /// Of a stream whose beginning is not there any more.
    pub(super) fn of_a_rest() -> Self {
        Self { segments: std::array::from_fn(|_| Vec::new()), from_beginning: false }
    }

    /// Takes in an event's place.
    pub(super) fn take(&mut self, partition: Partition, head: Head) -> Result<(), Gap> {
        let segments = &mut self.segments[partition.index()];
        let Head { epoch, position, hash } = head;
        let new = Segment { epoch, first: position, last: position, hash: Some(hash) };
        match segments.last_mut() {
            None if self.from_beginning && position != Position(1) => return Err(Gap { after: Position::ZERO }),
            None => segments.push(new),
            Some(last) if position > last.last.next() || (epoch == last.epoch && position != last.last.next()) => {
                return Err(Gap { after: last.last });
            }
            Some(last) if epoch == last.epoch => (last.last, last.hash) = (position, Some(hash)),
            Some(_) => {
                cut(segments, Position(position.0.saturating_sub(1)), None);
                segments.push(new);
            }
        }
        Ok(())
    }

    /// Takes in that older epochs' events past some places are void.
    pub(super) fn restore(&mut self, restored: &Restored) {
        for (partition, head) in Partition::all().zip(&restored.heads) {
            let segments = &mut self.segments[partition.index()];
            // A message of a restore that was told before says nothing about the epochs after it.
            if segments.last().is_some_and(|last| restored.voids(partition, last.epoch, last.last)) {
                cut(segments, head.position, Some(head.hash));
            }
        }
    }

    /// The runs of a partition, oldest first.
    pub(super) fn segments(&self, partition: Partition) -> &[Segment] {
        &self.segments[partition.index()]
    }

    /// The newest epoch of any event.
    pub(super) fn newest_epoch(&self) -> Option<Epoch> {
        self.segments.iter().filter_map(|segments| segments.last()).map(|last| last.epoch).max()
    }
}

/// Takes away what is past a position; the hash there may be known.
fn cut(segments: &mut Vec<Segment>, position: Position, hash: Option<Hash>) {
    segments.retain(|segment| segment.first <= position);
    if let Some(last) = segments.last_mut().filter(|last| last.last > position) {
        (last.last, last.hash) = (position, hash);
    } else if let Some(last) = segments.last_mut().filter(|last| last.last == position) {
        last.hash = hash.or(last.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger_core::Timestamp;

    fn partition() -> Partition {
        Partition::new(5).expect("there is one")
    }

    fn head(epoch: u32, position: u64) -> Head {
        Head { epoch: Epoch(epoch), position: Position(position), hash: Hash([epoch.to_be_bytes()[3]; 32]) }
    }

    fn view(messages: &[(u32, u64)]) -> Result<View, Gap> {
        let mut view = View::of(&[Head::EMPTY; PARTITIONS]);
        messages.iter().try_for_each(|&(epoch, position)| view.take(partition(), head(epoch, position)))?;
        Ok(view)
    }

    fn runs(view: &View) -> Vec<(u32, u64, u64)> {
        view.segments(partition()).iter().map(|run| (run.epoch.0, run.first.0, run.last.0)).collect()
    }

    #[test]
    fn a_new_epoch_writes_over_what_it_goes_on_before() {
        let runs_of = |messages: &[(u32, u64)]| runs(&view(messages).expect("no gap"));
        assert_eq!(runs_of(&[(1, 1), (1, 2), (1, 3), (2, 3), (2, 4)]), [(1, 1, 2), (2, 3, 4)]);
        assert_eq!(runs_of(&[(1, 1), (1, 2), (2, 3), (2, 4), (3, 2)]), [(1, 1, 1), (3, 2, 2)]);
        assert_eq!(runs_of(&[(1, 1), (2, 1)]), [(2, 1, 1)]);
    }

    #[test]
    fn a_gap_is_told() {
        assert_eq!(view(&[(1, 2)]).err(), Some(Gap { after: Position::ZERO }));
        assert_eq!(view(&[(1, 1), (1, 3)]).err(), Some(Gap { after: Position(1) }));
        assert_eq!(view(&[(1, 1), (1, 1)]).err(), Some(Gap { after: Position(1) }));
        assert_eq!(view(&[(1, 1), (2, 3)]).err(), Some(Gap { after: Position(1) }));
    }

    #[test]
    fn the_rest_of_a_stream_may_begin_anywhere() {
        let mut view = View::of_a_rest();
        assert_eq!(view.take(partition(), head(1, 7)), Ok(()));
        assert_eq!(view.take(partition(), head(1, 9)), Err(Gap { after: Position(7) }));
        assert_eq!(runs(&view), [(1, 7, 7)]);
    }

    #[test]
    fn a_restore_voids_what_is_past_it_and_nothing_newer() {
        let mut view = view(&[(1, 1), (1, 2), (1, 3)]).expect("no gap");
        let mut restored = Restored {
            epoch: Epoch(2),
            restored_at: Timestamp::from_micros(0).expect("in range"),
            archive_id: String::new(),
            heads: [Head::EMPTY; PARTITIONS],
        };
        restored.heads[5] = head(1, 2);
        view.restore(&restored);
        assert_eq!(runs(&view), [(1, 1, 2)]);
        assert_eq!(view.segments(partition())[0].hash, Some(head(1, 2).hash));
        // The partition had no event under the new epoch yet; the next one follows the place of the restore.
        view.take(partition(), head(2, 3)).expect("no gap");
        view.restore(&restored);
        assert_eq!(runs(&view), [(1, 1, 2), (2, 3, 3)]);
        assert_eq!(view.newest_epoch(), Some(Epoch(2)));
    }
}
