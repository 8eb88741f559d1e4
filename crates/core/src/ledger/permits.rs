//! Requests in flight over all workers.
//!
//! Each worker has one record: how many permits it holds, written as a whole and not as a difference, so
//! that a write which is repeated or late changes nothing twice. A worker that dies leaves its record, and
//! Envoy lets its requests run on at the upstream without ever telling us; so a record leaves only by its
//! holder, or when nobody has refreshed it for so long that no request of that worker can still run.

use alloc::vec::Vec;

use crate::time::{Nanos, Span};

/// The most records of one ledger: every worker with a slot, twice over. Who finds no room is refused.
pub const HOLDERS_MAX: usize = 512;

/// What stands in shared data for one concurrency limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermitLedger {
    /// Who holds how many; at most [`HOLDERS_MAX`].
    pub holders: Vec<Holder>,
}

/// One worker's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The worker.
    pub incarnation: u64,
    /// How many permits it holds, in use or idle.
    pub permits: u64,
    /// When it has last written the record.
    pub seen: Nanos,
}

/// What a worker brings along.
#[derive(Clone, Copy, Debug)]
pub struct PermitClaim {
    /// The worker.
    pub incarnation: u64,
    /// When.
    pub now: Nanos,
    /// Permits that its requests are using.
    pub in_use: u64,
    /// How many requests the one in hand counts as; it takes one place whatever its batch (semantics 2.8).
    pub batch: u64,
    /// How long a record stands that nobody refreshes.
    pub ttl: Span,
}

impl PermitLedger {
    /// Takes one permit more than are in use. `true` if there is one: then the worker's record says so.
    pub fn claim(&mut self, claim: &PermitClaim, threshold: u64) -> bool {
        self.holders.retain(|holder| claim.now.since(holder.seen) <= claim.ttl);
        let others = self.others(claim.incarnation);
        let asked = others.saturating_add(claim.in_use).saturating_add(claim.batch.max(1));
        asked <= threshold && self.set(claim.incarnation, claim.in_use.saturating_add(1), claim.now)
    }

    /// Writes what a worker holds, whatever that is. `false` if there is no room for another worker.
    pub fn set(&mut self, incarnation: u64, permits: u64, now: Nanos) -> bool {
        self.holders.retain(|holder| holder.incarnation != incarnation);
        if permits == 0 {
            return true;
        }
        if self.holders.len() >= HOLDERS_MAX {
            return false;
        }
        self.holders.push(Holder { incarnation, permits, seen: now });
        true
    }

    /// What a worker's record says.
    pub fn of(&self, incarnation: u64) -> u64 {
        let own = self.holders.iter().find(|holder| holder.incarnation == incarnation);
        own.map_or(0, |holder| holder.permits)
    }

    /// Permits of all other workers.
    pub fn others(&self, incarnation: u64) -> u64 {
        let others = self.holders.iter().filter(|holder| holder.incarnation != incarnation);
        others.fold(0, |sum, holder| sum.saturating_add(holder.permits))
    }

    /// Whether nobody would notice if the ledger were gone: nothing is in flight.
    pub fn is_idle(&self, now: Nanos, ttl: Span) -> bool {
        self.holders.iter().all(|holder| holder.permits == 0 || now.since(holder.seen) > ttl)
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    const TTL: Span = Span::from_millis(90_000);

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(1_900_000_020_000 + millis)
    }

    fn claim(incarnation: u64, in_use: u64, millis: u64) -> PermitClaim {
        PermitClaim { incarnation, now: at(millis), in_use, batch: 1, ttl: TTL }
    }

    fn in_flight(ledger: &PermitLedger) -> u64 {
        ledger.holders.iter().map(|holder| holder.permits).sum()
    }

    #[test]
    fn as_many_as_the_threshold_are_in_flight_over_all_workers() {
        let mut ledger = PermitLedger::default();
        assert!(ledger.claim(&claim(1, 0, 0), 3));
        assert!(ledger.claim(&claim(2, 0, 0), 3));
        assert!(ledger.claim(&claim(1, 1, 0), 3));
        assert!(!ledger.claim(&claim(2, 1, 0), 3));

        assert!(ledger.set(1, 1, at(1)));

        assert!(ledger.claim(&claim(2, 1, 2), 3));
        assert_eq!((ledger.of(1), ledger.of(2), ledger.others(2)), (1, 2, 1));
    }

    #[test]
    fn a_batch_needs_its_size_and_takes_one_place() {
        let mut ledger = PermitLedger::default();
        assert!(!ledger.claim(&PermitClaim { batch: 4, ..claim(1, 0, 0) }, 3));
        assert!(ledger.claim(&PermitClaim { batch: 3, ..claim(1, 0, 0) }, 3));
        assert_eq!(ledger.of(1), 1);
        assert!(ledger.claim(&PermitClaim { batch: 0, ..claim(1, 1, 0) }, 3));
        assert_eq!(ledger.of(1), 2);
    }

    #[test]
    fn a_refusal_changes_nothing_of_the_living() {
        let mut ledger = PermitLedger::default();
        assert!(ledger.claim(&claim(1, 0, 0), 1));
        let before = ledger.clone();
        assert!(!ledger.claim(&claim(2, 0, 5), 1));
        assert_eq!(ledger, before);
    }

    #[test]
    fn a_silent_worker_keeps_its_permits_for_the_whole_time_and_not_longer() {
        let mut ledger = PermitLedger::default();
        assert!(ledger.claim(&claim(1, 0, 0), 1));

        assert!(!ledger.claim(&claim(2, 0, 90_000), 1));
        assert!(!ledger.is_idle(at(90_000), TTL));
        assert!(ledger.is_idle(at(90_001), TTL));
        assert!(ledger.claim(&claim(2, 0, 90_001), 1));
    }

    #[test]
    fn who_was_reaped_writes_in_what_it_has_in_flight_also_above_the_threshold() {
        let mut ledger = PermitLedger::default();
        assert!(ledger.claim(&claim(1, 0, 0), 1));
        assert!(ledger.claim(&claim(2, 0, 90_001), 1));

        assert!(ledger.set(1, 1, at(90_002)));

        assert_eq!(in_flight(&ledger), 2);
        assert!(ledger.set(2, 0, at(90_003)));
        assert!(!ledger.claim(&claim(2, 0, 90_004), 1));
    }

    #[test]
    fn a_write_that_is_repeated_changes_nothing_twice() {
        let mut ledger = PermitLedger::default();
        for _ in 0..3 {
            assert!(ledger.set(1, 2, at(0)));
        }
        assert_eq!((in_flight(&ledger), ledger.holders.len()), (2, 1));
        assert!(ledger.set(1, 0, at(0)));
        assert_eq!(ledger, PermitLedger::default());
    }

    #[test]
    fn a_full_ledger_has_no_room_for_another_worker_and_goes_on_for_those_in_it() {
        let mut ledger = PermitLedger::default();
        for worker in 1..=512 {
            assert!(ledger.claim(&claim(worker, 0, 0), 10_000));
        }
        assert!(!ledger.claim(&claim(1_000, 0, 0), 10_000));
        assert!(!ledger.set(1_000, 1, at(0)));

        assert!(ledger.claim(&claim(5, 1, 0), 10_000));

        assert_eq!((ledger.of(5), ledger.holders.len()), (2, HOLDERS_MAX));
    }

    proptest! {
        /// Whoever takes and gives back in whatever order: never more than the threshold are in flight, and
        /// the ledger says how many.
        #[test]
        fn never_more_than_the_threshold_are_in_flight(
            threshold in 0u64..8,
            steps in prop::collection::vec((0usize..4, 0u8..3, 0u64..1_000, 0u64..900), 1..200),
        ) {
            let mut ledger = PermitLedger::default();
            let mut in_use = [0u64; 4];
            let mut millis = 10_000;
            for (worker, what, advance, lag) in steps {
                millis += advance;
                let incarnation = worker as u64 + 1;
                if what > 0 {
                    let total: u64 = in_use.iter().sum();
                    let claimed = ledger.claim(&claim(incarnation, in_use[worker], millis - lag), threshold);
                    prop_assert_eq!(claimed, total < threshold);
                    in_use[worker] += u64::from(claimed);
                } else {
                    in_use[worker] = in_use[worker].saturating_sub(1);
                    prop_assert!(ledger.set(incarnation, in_use[worker], at(millis - lag)));
                }
                prop_assert_eq!(in_flight(&ledger), in_use.iter().sum::<u64>());
                prop_assert!(in_flight(&ledger) <= threshold);
            }
        }
    }
}
