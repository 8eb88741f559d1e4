//! New inputs from known ones.
//!
//! Random bytes are refused at their first byte by every reader. What differs from a good input in one place is not.

use fastrand::Rng;

/// The longest input that is made.
const BYTES_MAX: usize = 48 * 1024;

/// Words that readers look for, and numbers at their bounds.
const WORDS: [&[u8]; 52] = [
    b"apiVersion: datasource.sentinel.io/v1alpha1\n",
    b"kind: FlowRules\n",
    b"spec: {rules: [",
    b"resource: ",
    b"threshold: ",
    b"regex: true",
    b"id: ",
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"\n- ",
    b"\n---\n",
    b"\n  ",
    b"\"",
    b"'",
    b"\\",
    b"|\n",
    b">-\n",
    b"&a ",
    b"*a",
    b"!!str ",
    b"#",
    b"\t",
    b"\r\n",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"0.5",
    b"1e308",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"9007199254740993",
    b"18446744073709551616",
    b".nan",
    b"-.inf",
    b"0x7f",
    b"%2f",
    b"%",
    b"..",
    b"//",
    b"**",
    b"(a*)*",
    b"[^",
    b"{1,1000}",
    b"::ffff:",
    b"/129",
    b"\xff\xfe",
    "\u{feff}é\u{10ffff}".as_bytes(),
];

/// Numbers in the wires' widths: what a length or a count should not be.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xfb, 0xfc, 0xfd, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// An input that differs from `input` in one to a few places; parts of `other` may stand in it.
pub fn mutated(random: &mut Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let changes = if random.bool() { 1 } else { random.u32(1..8) };
    for _ in 0..changes {
        change(random, &mut bytes, other);
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn change(random: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.usize(0..=bytes.len());
    match random.u32(0..12) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.u32(0..8);
            }
        }
        1 => {
            let new = random.u8(..);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = new;
            }
        }
        2 => {
            let step = random.u8(1..4);
            if let Some(byte) = bytes.get_mut(at) {
                *byte =
                    if random.bool() { byte.wrapping_add(step) } else { byte.wrapping_sub(step) };
            }
        }
        3 => bytes.truncate(at),
        4 => {
            let part = part(random, bytes);
            bytes.drain(part);
        }
        5 => {
            let part = part(random, bytes);
            let copy = bytes.get(part).unwrap_or_default().to_vec();
            bytes.splice(at..at, copy);
        }
        6 => {
            let part = part(random, other);
            bytes.splice(at..at, other.get(part).unwrap_or_default().iter().copied());
        }
        7 => {
            let part = part(random, other);
            bytes.truncate(at);
            bytes.extend_from_slice(other.get(part.start..).unwrap_or_default());
        }
        8 | 9 => {
            let word = random.choice(WORDS).unwrap_or_default();
            let end = if random.bool() { at } else { (at + word.len()).min(bytes.len()) };
            bytes.splice(at..end, word.iter().copied());
        }
        10 => {
            let number = random.choice(NUMBERS).unwrap_or_default().to_le_bytes();
            let width = random.choice([1, 2, 4, 8]).unwrap_or(1);
            let end = (at + width).min(bytes.len());
            bytes.splice(at..end, number.into_iter().take(width));
        }
        _ => {
            // Depth and length.
            let part = part(random, bytes);
            let copy = bytes.get(part).unwrap_or_default().to_vec();
            let copy = copy.get(..copy.len().min(16)).unwrap_or_default();
            let many = copy.repeat(random.usize(2..400));
            bytes.splice(at..at, many);
        }
    }
}

/// A range of `bytes`, most often a short one.
fn part(random: &mut Rng, bytes: &[u8]) -> core::ops::Range<usize> {
    let start = random.usize(0..=bytes.len());
    let most = if random.u32(0..4) == 0 { bytes.len() } else { 24 };
    let end = (start + random.usize(0..=most)).min(bytes.len());
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_follow_from_the_seed_and_stay_within_the_longest() {
        let make = |seed| {
            let mut random = Rng::with_seed(seed);
            let mut bytes = b"kind: FlowRules".to_vec();
            for _ in 0..200 {
                bytes = mutated(&mut random, &bytes, b"spec: {rules: []}");
                assert!(bytes.len() <= BYTES_MAX);
            }
            bytes
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }
}
