//! BLAKE3 of many short messages at once.
//!
//! One message of a few hundred bytes is hashed block after block, each of which waits for the one before it: a tenth of a
//! microsecond a block, whatever the processor could do besides. Messages wait for each other in nothing, so they are hashed
//! side by side: all but the last block of each as BLAKE3 itself does it with the parts of a long message, among messages of
//! as many blocks; then the last blocks of all, which differ in length (see [`lanes`]).

mod lanes;

use blake3::{
    IncrementCounter,
    platform::{MAX_SIMD_DEGREE, Platform},
};

use crate::log::Hash;

const BLOCK: usize = 64;
/// Longer messages are trees of chunks: BLAKE3 has enough to do side by side in one of them.
const CHUNK: usize = 1_024;
/// See the specification of BLAKE3, section 2.1 and 2.2.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const ROOT: u8 = 8;
const KEY: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Messages and, once they are hashed, their hashes. Kept and filled again, it allocates nothing.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// Where each message ends.
    ends: Vec<usize>,
    /// Before the last blocks: the states of messages after those before it.
    hashes: Vec<Hash>,
    /// Messages by the number of full blocks before their last one.
    by_blocks: [Vec<usize>; CHUNK / BLOCK],
}

impl Messages {
    /// Forgets all messages.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.hashes.clear();
    }

    /// Adds what `write` appends as a message.
    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// How many messages there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The hash of each message, in the order in which they were added.
    pub fn hash(&mut self) -> &[Hash] {
        self.by_blocks.iter_mut().for_each(Vec::clear);
        self.hashes.clear();
        self.hashes.resize(self.ends.len(), Hash::ZERO);
        let mut start = 0;
        for (index, end) in self.ends.iter().enumerate() {
            let message = &self.bytes[start..*end];
            if message.len() <= CHUNK {
                self.by_blocks[message.len().saturating_sub(1) / BLOCK].push(index);
            } else {
                self.hashes[index] = Hash(*blake3::hash(message).as_bytes());
            }
            start = *end;
        }
        let platform = Platform::detect();
        let message = |index: usize| {
            let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.bytes[start..self.ends[index]]
        };
        for (blocks, indexes) in self.by_blocks.iter().enumerate().skip(1) {
            for indexes in indexes.chunks(MAX_SIMD_DEGREE) {
                let mut states = [0; MAX_SIMD_DEGREE * 32];
                start_all(platform, blocks, indexes, message, &mut states);
                for (index, state) in indexes.iter().zip(states.as_chunks::<32>().0) {
                    self.hashes[*index] = Hash(*state);
                }
            }
        }
        let lasts = (0..self.ends.len()).map(message).map(|message| {
            let blocks = message.len().saturating_sub(1) / BLOCK;
            (message.len() <= CHUNK).then(|| Last { is_first: blocks == 0, bytes: &message[blocks * BLOCK..] })
        });
        lanes::end(lasts, &mut self.hashes);
        &self.hashes
    }
}

/// The last block of a message, which has 64 bytes at most.
#[derive(Debug, Clone, Copy)]
struct Last<'m> {
    /// There is none before it.
    is_first: bool,
    bytes: &'m [u8],
}

/// The states of messages after so many full blocks.
fn start_all<'m>(
    platform: Platform,
    blocks: usize,
    indexes: &[usize],
    message: impl Fn(usize) -> &'m [u8],
    states: &mut [u8],
) {
    macro_rules! of_blocks {
        ($($count:literal)*) => {
            match blocks {
                $($count => start::<{ $count * BLOCK }>(platform, indexes, message, states),)*
                // No block comes before the last one: the states are the first one's.
                _ => {}
            }
        };
    }
    of_blocks!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

fn start<'m, const BYTES: usize>(
    platform: Platform,
    indexes: &[usize],
    message: impl Fn(usize) -> &'m [u8],
    states: &mut [u8],
) {
    let mut inputs = [&[0; BYTES]; MAX_SIMD_DEGREE];
    for (input, index) in inputs.iter_mut().zip(indexes) {
        *input = message(*index).first_chunk().expect("the message has so many blocks");
    }
    let inputs = &inputs[..indexes.len()];
    platform.hash_many(inputs, &KEY, 0, IncrementCounter::No, 0, CHUNK_START, 0, &mut states[..indexes.len() * 32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_length_have_the_hashes_that_each_has_alone() {
        let mut messages = Messages::default();
        // Twice, because it is filled again; more of a length than are hashed side by side, and fewer.
        for round in 0..2 {
            let lengths: Vec<_> =
                (0..1_400).chain((0..100).map(|number| 300 + number % 7)).map(|length| length + round).collect();
            let content = |at: usize| u8::try_from((at * 31 + at / 251) % 256).expect("a byte");
            messages.clear();
            for length in &lengths {
                messages.add(|bytes| bytes.extend((*length..2 * length).map(content)));
            }
            assert_eq!(messages.len(), lengths.len());
            for (hash, length) in messages.hash().iter().zip(&lengths) {
                let message: Vec<_> = (*length..2 * length).map(content).collect();
                assert_eq!(hash.0, *blake3::hash(&message).as_bytes(), "of {length} bytes");
            }
        }
    }
}
