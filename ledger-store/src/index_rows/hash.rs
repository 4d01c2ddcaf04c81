//! PostgreSQL's 64-bit hash of a `bigint`, `hashint8extended`: rows that it hashes itself need not be sent. It is Bob
//! Jenkins' lookup3 over the number folded to 32 bits, and cannot change, because rows are distributed over hash partitions
//! by it (`src/backend/access/hash/hashfunc.c`, `src/common/hashfn.c`).

/// The hash of a number with a seed.
pub(super) const fn of_number(number: u64, seed: u64) -> u64 {
    let [low, high] = halves(number);
    let folded = low ^ if number.cast_signed() >= 0 { high } else { !high };
    // 0x9e3779b9 + the length of the key + 3923095.
    let start = 0x9e37_79b9_u32.wrapping_add(4).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (start, start, start);
    if seed != 0 {
        let [low, high] = halves(seed);
        a = a.wrapping_add(high);
        b = b.wrapping_add(low);
        (a, b, c) = mix(a, b, c);
    }
    a = a.wrapping_add(folded);
    (b, c) = finish(a, b, c);
    (b as u64) << 32 | c as u64
}

const fn halves(number: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are wanted")]
    let halves = [number as u32, (number >> 32) as u32];
    halves
}

const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

const fn finish(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32) {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    (b, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_hashes_that_postgresql_gives_them() {
        // select hashint8extended(number, seed)
        for (number, seed, hash) in [
            (0_i64, 0_i64, 4_154_612_158_245_552_303_i64),
            (1, 0, -3_670_598_878_359_251_130),
            (-1, 0, -1_888_257_769_727_981_238),
            (1, 1, -7_620_678_293_940_249_823),
            (-7, -9, 6_115_243_482_645_380_841),
            (4_611_686_018_427_387_904, 77, 2_020_462_123_956_265_172),
            (-4_611_686_018_427_387_905, 123_456_789_012_345, -1_923_544_875_794_779_774),
        ] {
            assert_eq!(of_number(number.cast_unsigned(), seed.cast_unsigned()).cast_signed(), hash, "{number} {seed}");
        }
    }
}
