//! Who is a worker, and how many there are.
//!
//! Envoy does not tell a module how many workers it has. So each VM that has seen a stream takes a slot
//! in one shared value and shows once a second that it lives; the size of a chunk of tokens is computed
//! from the number of those that do.

use sentinel_core::time::{Nanos, Span};
use sentinel_wire::{
    key::Key,
    workers::{WORKERS_MAX, WorkerSlot, Workers},
};

use crate::{
    host::Host,
    shared::{Shared, Then},
};

/// A worker whose last sign of life is older than this does not count.
pub(crate) const LIVE: Span = Span::from_millis(3_000);

/// What this worker knows of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Census {
    /// Live workers, this one included; at least 1.
    pub(crate) workers: u64,
    /// The oldest rule set that a live worker applies.
    pub(crate) rules_version_min: u64,
    /// Whether this worker has a slot. Without one it claims token by token.
    pub(crate) has_slot: bool,
}

impl Census {
    /// What a worker knows before it has asked.
    pub(crate) const ALONE: Self = Self { workers: 1, rules_version_min: 0, has_slot: false };

    /// Shows that `own` lives, taking a slot if it has none, and counts. A slot is free again when its
    /// worker has been silent for `ttl`.
    pub(crate) fn beat<H: Host>(
        host: &mut H,
        shared: &mut Shared,
        now: Nanos,
        own: WorkerSlot,
        ttl: Span,
    ) -> Option<Self> {
        let updated = shared.update(host, Key::Workers, |found, written| {
            let mut workers = match found.map(Workers::decode) {
                Some(Ok(workers)) => workers,
                // A newer layout's slots cannot be counted; this worker is as if alone.
                Some(Err(_)) => return (Then::Keep, Self::ALONE),
                None => Workers::default(),
            };
            let has_slot = take_slot(&mut workers, now, own, ttl);
            let census = count(&workers, now, own, has_slot);
            workers.encode(written);
            (if has_slot { Then::Write } else { Then::Keep }, census)
        });
        updated.ok().map(|updated| updated.result)
    }
}

/// The oldest rule set that any live worker applies; `None` if there is no worker, or nobody can tell.
pub(crate) fn oldest_version<H: Host>(
    host: &mut H,
    shared: &mut Shared,
    now: Nanos,
) -> Option<u64> {
    let workers = Workers::decode(shared.read(host, Key::Workers).ok()??).ok()?;
    let live = workers.slots.iter().filter(|slot| silence(slot, now) <= LIVE);
    live.map(|slot| slot.rules_version).min()
}

fn take_slot(workers: &mut Workers, now: Nanos, own: WorkerSlot, ttl: Span) -> bool {
    let slots = &mut workers.slots;
    let held = slots.iter().position(|slot| slot.incarnation == own.incarnation);
    let place = held.or_else(|| slots.iter().position(|slot| silence(slot, now) > ttl));
    if let Some(index) = place {
        slots.iter_mut().skip(index).take(1).for_each(|slot| *slot = own);
    } else if slots.len() < WORKERS_MAX {
        slots.push(own);
    } else {
        return false;
    }
    true
}

fn count(workers: &Workers, now: Nanos, own: WorkerSlot, has_slot: bool) -> Census {
    let live = workers.slots.iter().filter(|slot| silence(slot, now) <= LIVE);
    let (count, version) = live.fold((0, own.rules_version), |(count, version), slot| {
        (count + 1, slot.rules_version.min(version))
    });
    Census { workers: count.max(1), rules_version_min: version, has_slot }
}

fn silence(slot: &WorkerSlot, now: Nanos) -> Span {
    now.since(Nanos::new(slot.heartbeat_ns))
}
