//! One clock for all VMs.
//!
//! The first instance of a process puts `t0 = wall − monotonic` into shared data; everybody's now is
//! monotonic time plus that `t0`. So a step of the wall clock moves nothing, and no VM is ahead of
//! another. The key for hashing names is put beside it, for the same reason: all must agree.

use alloc::vec::Vec;
use core::hash::Hasher as _;

use sentinel_core::time::Nanos;
use sentinel_wire::{key::Key, workers::Seeds};
use siphasher::{sip::SipHasher13, sip128::Hasher128 as _};

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
        let mut hasher = SipHasher13::new_with_key(&self.seeds.hash_key);
        hasher.write(name);
        hasher.finish()
    }
}

impl Clock {
    /// The process's hash of what tells a value apart, wide enough that nobody finds two with the same one.
    pub(crate) fn hash_wide(&self, key: &[u8]) -> u128 {
        let mut hasher = siphasher::sip128::SipHasher13::new_with_key(&self.seeds.hash_key);
        hasher.write(key);
        hasher.finish128().as_u128() | 1 << 127
    }
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
