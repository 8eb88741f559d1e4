//! One clock for all VMs.
//!
//! The first instance of a process puts `t0 = wall − monotonic` into shared data; everybody's now is
//! monotonic time plus that `t0`. So a step of the wall clock moves nothing, and no VM is ahead of
//! another. The key for hashing names is put beside it, for the same reason: all must agree.

use alloc::vec::Vec;

use sentinel_core::time::Nanos;
use sentinel_wire::{key::Key, workers::Seeds};

use crate::{
    host::Host,
    shared::{Shared, Then},
};

/// What all VMs of a process agree on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    seeds: Seeds,
}

impl Clock {
    /// Takes the process's seeds, or plants them. Without shared data this VM is on its own: its own seeds
    /// then, which disagree with nobody it could talk to.
    pub(crate) fn agree<H: Host>(host: &mut H, shared: &mut Shared) -> Self {
        let mut hash_key = [0; 16];
        let (low, high) = hash_key.split_at_mut(8);
        low.copy_from_slice(&host.random().to_le_bytes());
        high.copy_from_slice(&host.random().to_le_bytes());
        let own = Seeds { t0_ns: measure_t0(host), hash_key };

        let agreed = shared.update(host, Key::Seeds, |found, written| {
            match found.map(Seeds::decode) {
                Some(Ok(seeds)) => (Then::Keep, seeds),
                // A layout of another version: its time is all the same `wall − monotonic`.
                Some(Err(_)) => (Then::Keep, own),
                None => {
                    own.encode(written);
                    (Then::Write, own)
                }
            }
        });
        Self { seeds: agreed.map_or(own, |updated| updated.result) }
    }

    /// The shared clock's time for one who only looks, and plants nothing: by the wall clock, if nobody has planted the
    /// seeds yet.
    pub(crate) fn look<H: Host>(host: &mut H, found: &mut Vec<u8>) -> Nanos {
        let seeds = match host.load(Key::Seeds, found) {
            Ok(Some(_)) => Seeds::decode(found).ok(),
            Ok(None) | Err(_) => None,
        };
        match seeds {
            Some(seeds) => Self { seeds }.now(host),
            None => Nanos::new(host.wall_ns()),
        }
    }

    /// The shared clock's time.
    pub(crate) fn now<H: Host>(&self, host: &mut H) -> Nanos {
        Nanos::new(host.monotonic_ns().saturating_add(self.seeds.t0_ns))
    }

    /// The process's hash of a name.
    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        let (hash, _) = self.sip(name, [0, 0xff]);
        hash
    }

    /// The process's hash of what tells a value apart, wide enough that nobody finds two with the same one.
    pub(crate) fn hash_wide(&self, key: &[u8]) -> u128 {
        let (low, high) = self.sip(key, [0xee, 0xee]);
        u128::from(low) | u128::from(high) << 64 | 1 << 127
    }

    /// SipHash-1-3; `marks` tell that of 128 bits from that of 64. One function: `siphasher` makes a dozen of it, each of
    /// which a request would enter.
    fn sip(&self, bytes: &[u8], marks: [u64; 2]) -> (u64, u64) {
        let key = u128::from_le_bytes(self.seeds.hash_key);
        let [low, high] =
            [key, key >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0));
        let mut state = [
            low ^ 0x736f_6d65_7073_6575,
            high ^ 0x646f_7261_6e64_6f6d ^ marks[0],
            low ^ 0x6c79_6765_6e65_7261,
            high ^ 0x7465_6462_7974_6573,
        ];
        let (words, tail) = bytes.as_chunks();
        for word in words {
            state = with_word(state, u64::from_le_bytes(*word));
        }
        // The last word has what is left over, and the length in its highest byte.
        let mut last = (bytes.len() as u64) << 56;
        let mut shift = 0;
        for byte in tail {
            last |= u64::from(*byte) << shift;
            shift += 8;
        }
        let [a, b, c, d] = with_word(state, last);
        let [a, b, c, d] = three_rounds([a, b, c ^ marks[1], d]);
        let [e, f, g, h] = three_rounds([a, b ^ 0xdd, c, d]);
        (a ^ b ^ c ^ d, e ^ f ^ g ^ h)
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as below")]
fn three_rounds(mut state: [u64; 4]) -> [u64; 4] {
    for _ in 0..3 {
        state = round(state);
    }
    state
}

#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a round is a few instructions, and its state stays in registers"
)]
fn with_word([a, b, c, d]: [u64; 4], word: u64) -> [u64; 4] {
    let [a, b, c, d] = round([a, b, c, d ^ word]);
    [a ^ word, b, c, d]
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as above")]
fn round([a, b, c, d]: [u64; 4]) -> [u64; 4] {
    let a = a.wrapping_add(b);
    let b = b.rotate_left(13) ^ a;
    let c = c.wrapping_add(d);
    let d = d.rotate_left(16) ^ c;
    let a = a.rotate_left(32).wrapping_add(d);
    let d = d.rotate_left(21) ^ a;
    let c = c.wrapping_add(b);
    let b = b.rotate_left(17) ^ c;
    [a, b, c.rotate_left(32), d]
}

/// Wall time minus monotonic time. A thread can lose the processor between two reads, and then buckets would
/// begin that much beside the wall clock's full seconds: of a few tries the one with the smallest gap counts.
fn measure_t0<H: Host>(host: &mut H) -> u64 {
    let mut best = (u64::MAX, 0);
    for _ in 0..TRIES {
        let before = host.monotonic_ns();
        let wall = host.wall_ns();
        let gap = host.monotonic_ns().saturating_sub(before);
        best = best.min((gap, wall.saturating_sub(before).saturating_sub(gap / 2)));
    }
    best.1
}

const TRIES: u32 = 16;

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use proptest::prelude::*;
    use siphasher::{sip, sip128, sip128::Hasher128 as _};

    use super::*;

    proptest! {
        #[test]
        fn hashes_are_siphash_1_3(
            hash_key in any::<[u8; 16]>(),
            name in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let clock = Clock { seeds: Seeds { t0_ns: 0, hash_key } };
            let mut narrow = sip::SipHasher13::new_with_key(&hash_key);
            narrow.write(&name);
            prop_assert_eq!(clock.hash(&name), narrow.finish());
            let mut wide = sip128::SipHasher13::new_with_key(&hash_key);
            wide.write(&name);
            prop_assert_eq!(clock.hash_wide(&name), wide.finish128().as_u128() | 1 << 127);
        }
    }
}
