//! What can be checked of a row without the rows of other chunks: its form, its ids, and its hash where the event before it
//! is in the same chunk. Any number of chunks are checked at the same time.

use ledger_core::{BareEvent, Hash, PARTITIONS, SCHEMA_VERSION, TransactionId, chain, key, many::Messages};
use ledger_store::sweep::{Chunk, NoEvent};

use crate::verify::log::Depth;

/// Rows whose hashes are made together: enough for every width of processor, few enough to stay in its nearest cache.
const TOGETHER: usize = 64;

/// A row of a chunk after its own checks.
#[derive(Debug)]
pub(super) struct Checked<'c> {
    pub(super) raw: &'c [u8],
    pub(super) event: Result<BareEvent<'c>, NoEvent>,
    /// The event's own fields agree with each other.
    pub(super) is_sound: bool,
    /// The hash before it that its own hash follows, where that was looked at.
    pub(super) follows: Option<Hash>,
    /// See [`ledger_core::BusinessKey::hash`].
    pub(super) key: u64,
}

/// Checks rows; keeps its memory from chunk to chunk.
#[derive(Debug)]
pub(super) struct Checker {
    depth: Depth,
    links: Messages,
    ids: Messages,
    keys: Messages,
}

impl Checker {
    pub(super) fn new(depth: Depth) -> Self {
        Self { depth, links: Messages::default(), ids: Messages::default(), keys: Messages::default() }
    }

    /// The rows of a chunk, checked.
    pub(super) fn check<'c>(&mut self, chunk: &'c Chunk) -> Vec<Checked<'c>> {
        let mut rows: Vec<_> = chunk.raw().map(|raw| unchecked(raw, chunk.event(raw))).collect();
        if self.depth == Depth::Full {
            let mut newest = [None; PARTITIONS];
            for start in (0..rows.len()).step_by(TOGETHER) {
                let end = (start + TOGETHER).min(rows.len());
                self.check_some(&mut rows[start..end], &mut newest);
            }
        }
        rows
    }

    /// A row that comes by itself, and after no other.
    pub(super) fn check_one<'c>(&mut self, raw: &'c [u8], event: Result<BareEvent<'c>, NoEvent>) -> Checked<'c> {
        let mut row = [unchecked(raw, event)];
        if self.depth == Depth::Full {
            self.check_some(&mut row, &mut [None; PARTITIONS]);
        }
        let [row] = row;
        row
    }

    fn check_some(&mut self, rows: &mut [Checked<'_>], newest: &mut [Option<(u64, Hash)>; PARTITIONS]) {
        for messages in [&mut self.links, &mut self.ids, &mut self.keys] {
            messages.clear();
        }
        for row in rows.iter_mut() {
            let Ok(event) = &row.event else { continue };
            let before = newest[event.partition.index()].replace((event.position.0, event.hash));
            if let Some((_, hash)) = before.filter(|(position, _)| position + 1 == event.position.0) {
                row.follows = Some(hash);
                self.links.add(|bytes| write_link(bytes, &hash, event));
            }
            self.ids.add(|bytes| {
                TransactionId::write_hashed(bytes, event.account_id, event.business_code, event.business_id);
            });
            self.keys.add(|bytes| key::write_hashed(bytes, event.business_code, event.business_id));
        }
        let mut links = self.links.hash().iter();
        let hashes = self.ids.hash().iter().zip(self.keys.hash());
        let events = rows.iter_mut().filter_map(|row| match &row.event {
            Ok(event) => Some((event, &mut row.is_sound, &mut row.key, row.follows.is_some())),
            Err(_) => None,
        });
        for ((event, is_sound, key, is_linked), (id, key_hash)) in events.zip(hashes) {
            let id = TransactionId::of_hash(event.partition, event.epoch, event.position, id);
            // Taken whatever else is wrong with the row: the next one is the next row's.
            let follows = !is_linked || links.next() == Some(&event.hash);
            *is_sound = follows && id == event.transaction_id && event.schema_version == SCHEMA_VERSION;
            *key = key::of_hash(key_hash);
        }
    }
}

fn unchecked<'c>(raw: &'c [u8], event: Result<BareEvent<'c>, NoEvent>) -> Checked<'c> {
    Checked { raw, event, is_sound: true, follows: None, key: 0 }
}

fn write_link(bytes: &mut Vec<u8>, before: &Hash, event: &BareEvent<'_>) {
    bytes.extend_from_slice(&before.0);
    chain::write_canonical_bare(bytes, event);
}

/// The hash of an event that follows `before`.
pub(super) fn link(buffer: &mut Vec<u8>, before: &Hash, event: &BareEvent<'_>) -> Hash {
    buffer.clear();
    write_link(buffer, before, event);
    Hash(*blake3::hash(buffer).as_bytes())
}
