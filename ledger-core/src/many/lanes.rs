//! The last blocks of several messages at once: BLAKE3's compression with a message in each lane, so that every operation is
//! done for all of them. The compiler makes it of the widest registers that the processor has.
//!
//! See the specification of BLAKE3, section 2.2.

use std::array;

use fearless_simd::{Level, Simd, dispatch};

use super::{BLOCK, CHUNK_END, CHUNK_START, KEY, Last, ROOT};
use crate::log::Hash;

/// Messages side by side: more gain nothing.
const LANES: usize = 8;
/// A word of each message.
type Words = [u32; LANES];

const WORDS: usize = BLOCK / 4;
/// Which words of the block each of the seven rounds takes, in order.
const SCHEDULE: [[usize; WORDS]; 7] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8],
    [3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1],
    [10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6],
    [12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4],
    [9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7],
    [11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13],
];

/// Makes hashes of states, each by the message's last block; where there is none the hash is left as it is.
pub(super) fn end<'m>(lasts: impl Iterator<Item = Option<Last<'m>>>, hashes: &mut [Hash]) {
    dispatch!(Level::new(), simd => simd.vectorize(
        #[inline(always)]
        || end_all(lasts, hashes),
    ));
}

// What is not inlined here is not compiled for the processor's own registers.
#[inline(always)]
fn end_all<'m>(mut lasts: impl Iterator<Item = Option<Last<'m>>>, hashes: &mut [Hash]) {
    for hashes in hashes.chunks_mut(LANES) {
        let (mut state, mut block) = ([[0; LANES]; 8], [[0; LANES]; WORDS]);
        let (mut lengths, mut flags, mut is_ended) = ([0; LANES], [0; LANES], [false; LANES]);
        for (lane, (hash, last)) in hashes.iter().zip(&mut lasts).enumerate() {
            let Some(Last { is_first, bytes }) = last else { continue };
            let mut padded = [0; BLOCK];
            padded[..bytes.len()].copy_from_slice(bytes);
            for (words, word) in block.iter_mut().zip(padded.as_chunks().0) {
                words[lane] = u32::from_le_bytes(*word);
            }
            for ((words, word), first) in state.iter_mut().zip(hash.0.as_chunks().0).zip(KEY) {
                words[lane] = if is_first { first } else { u32::from_le_bytes(*word) };
            }
            lengths[lane] = u32::try_from(bytes.len()).unwrap_or(0);
            flags[lane] = u32::from(CHUNK_END | ROOT | if is_first { CHUNK_START } else { 0 });
            is_ended[lane] = true;
        }
        let ended = compress(&state, &block, lengths, flags);
        for (lane, hash) in hashes.iter_mut().enumerate().filter(|(lane, _)| is_ended[*lane]) {
            for (bytes, words) in hash.0.as_chunks_mut().0.iter_mut().zip(ended) {
                *bytes = words[lane].to_le_bytes();
            }
        }
    }
}

#[inline(always)]
fn compress(state: &[Words; 8], block: &[Words; WORDS], lengths: Words, flags: Words) -> [Words; 8] {
    let mut v = [[0; LANES]; 16];
    v[..8].copy_from_slice(state);
    for (words, word) in v[8..12].iter_mut().zip(KEY) {
        *words = [word; LANES];
    }
    // Between them stands the number of the chunk, which is 0.
    (v[14], v[15]) = (lengths, flags);
    for of in &SCHEDULE {
        for (index, [a, b, c, d]) in COLUMNS.into_iter().chain(DIAGONALS).enumerate() {
            mix(&mut v, [a, b, c, d], block[of[2 * index]], block[of[2 * index + 1]]);
        }
    }
    array::from_fn(
        #[inline(always)]
        |word| xor(v[word], v[word + 8]),
    )
}

const COLUMNS: [[usize; 4]; 4] = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]];
const DIAGONALS: [[usize; 4]; 4] = [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];

#[inline(always)]
fn mix(v: &mut [Words; 16], [a, b, c, d]: [usize; 4], x: Words, y: Words) {
    for (word, [to_d, to_b]) in [(x, [16, 12]), (y, [8, 7])] {
        v[a] = add(add(v[a], v[b]), word);
        v[d] = rotated(xor(v[d], v[a]), to_d);
        v[c] = add(v[c], v[d]);
        v[b] = rotated(xor(v[b], v[c]), to_b);
    }
}

#[inline(always)]
fn add(a: Words, b: Words) -> Words {
    array::from_fn(
        #[inline(always)]
        |lane| a[lane].wrapping_add(b[lane]),
    )
}

#[inline(always)]
fn xor(a: Words, b: Words) -> Words {
    array::from_fn(
        #[inline(always)]
        |lane| a[lane] ^ b[lane],
    )
}

#[inline(always)]
fn rotated(a: Words, right: u32) -> Words {
    a.map(
        #[inline(always)]
        |word| word.rotate_right(right),
    )
}
