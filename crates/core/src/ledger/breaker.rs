//! One circuit breaker, for all workers.
//!
//! Closed → Open is the service's move, since it alone sees all completions. Open → HalfOpen → Open or Closed
//! are the workers', each by one compare-and-set at a probe's entry and exit: so at most `probeNum` probes
//! are out, only probes are judged, and a breaker recovers while the service is dead. Source of the machine:
//! sentinel-golang `core/circuitbreaker/circuit_breaker.go` (semantics 2.7, and 0 for where we differ).

use alloc::vec::Vec;

use crate::time::{Nanos, Span};

/// The most probes out at a time: a `probeNum` above is refused at load.
pub const PROBES_MAX: u32 = 1_000;

/// A probe that never ends counts as failed after this long, or after `retryTimeoutMs` if that is longer.
pub const PROBE_TIMEOUT: Span = Span::from_millis(60_000);

/// What stands in shared data for one breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BreakerLedger {
    /// Moves with every change of state: completions are counted for the epoch in which they were admitted.
    pub epoch: u64,
    /// The state.
    pub state: BreakerState,
    /// When the next probe may go, while it is not closed.
    pub retry_at: Nanos,
    /// Good probes since it opened.
    pub good: u32,
    /// Probes that have not ended.
    pub out: Vec<Probe>,
}

/// Sentinel's states of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests pass.
    #[default]
    Closed,
    /// Requests are refused until it is time for a probe.
    Open,
    /// Probes are out.
    HalfOpen,
}

/// A request that tries whether all is well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The worker.
    pub incarnation: u64,
    /// Which of its probes.
    pub id: u64,
    /// Since when.
    pub since: Nanos,
}

/// What a rule says of its breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerTerms {
    /// How long it stays open before a probe.
    pub retry_timeout: Span,
    /// Good probes that close it, and the most that are out; at least 1.
    pub probe_num: u32,
}

/// A breaker's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is closed: the request is like any other.
    Closed,
    /// The request is a probe.
    Probe,
    /// It is refused.
    Refused {
        /// When a probe may go, if that is known.
        retry_at: Option<Nanos>,
    },
}

impl BreakerState {
    /// The value of the `breaker_state` gauge.
    pub const fn gauge(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }

    /// Sentinel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "Closed",
            Self::HalfOpen => "HalfOpen",
            Self::Open => "Open",
        }
    }
}

impl BreakerLedger {
    /// Opens a closed breaker, if it is still in `epoch`. `true` if it was.
    pub fn trip(&mut self, epoch: u64, now: Nanos, terms: &BreakerTerms) -> bool {
        let trips = self.state == BreakerState::Closed && self.epoch == epoch;
        if trips {
            self.open(now, terms);
        }
        trips
    }

    /// Answers a request, which becomes `probe` if one may go. The flag says whether anything changed that
    /// others must see.
    pub fn admit(&mut self, probe: Probe, now: Nanos, terms: &BreakerTerms) -> (Admitted, bool) {
        let timed_out = self.time_out(now, terms);
        match self.state {
            BreakerState::Closed => return (Admitted::Closed, timed_out),
            BreakerState::Open if now < self.retry_at => {
                return (Admitted::Refused { retry_at: Some(self.retry_at) }, timed_out);
            }
            BreakerState::Open | BreakerState::HalfOpen => {}
        }
        let out = u32::try_from(self.out.len()).unwrap_or(u32::MAX);
        if self.good.saturating_add(out) >= terms.probe_num.clamp(1, PROBES_MAX) {
            return (Admitted::Refused { retry_at: None }, timed_out);
        }
        self.move_to(BreakerState::HalfOpen);
        self.out.push(probe);
        (Admitted::Probe, true)
    }

    /// Takes a probe back that was refused elsewhere: it is not judged, and the next request may probe at
    /// once. `true` if it was out.
    pub fn abort(&mut self, incarnation: u64, id: u64) -> bool {
        let was_out = self.remove(incarnation, id);
        let tries_nothing = self.out.is_empty() && self.good == 0;
        if was_out && tries_nothing && self.state == BreakerState::HalfOpen {
            self.move_to(BreakerState::Open);
        }
        was_out
    }

    /// Judges a probe that has ended, unless it has timed out: then it is judged already. `true` if anything changed
    /// that others must see.
    pub fn judge(
        &mut self,
        incarnation: u64,
        id: u64,
        good: bool,
        now: Nanos,
        terms: &BreakerTerms,
    ) -> bool {
        let timed_out = self.time_out(now, terms);
        if !self.remove(incarnation, id) {
            return timed_out;
        }
        if !good {
            self.open(now, terms);
            return true;
        }
        self.good = self.good.saturating_add(1);
        if self.good >= terms.probe_num.clamp(1, PROBES_MAX) {
            self.move_to(BreakerState::Closed);
            self.good = 0;
            self.out.clear();
        }
        true
    }

    /// A probe that never ended has failed, at the time at which it should have.
    fn time_out(&mut self, now: Nanos, terms: &BreakerTerms) -> bool {
        let patience = PROBE_TIMEOUT.max(terms.retry_timeout);
        let failed =
            self.out.iter().map(|probe| probe.since + patience).filter(|at| *at <= now).min();
        if let Some(at) = failed {
            self.open(at, terms);
        }
        failed.is_some()
    }

    fn open(&mut self, now: Nanos, terms: &BreakerTerms) {
        self.epoch = self.epoch.wrapping_add(1);
        self.state = BreakerState::Open;
        self.retry_at = now + terms.retry_timeout;
        self.good = 0;
        self.out.clear();
    }

    fn move_to(&mut self, state: BreakerState) {
        if self.state != state {
            self.state = state;
            self.epoch = self.epoch.wrapping_add(1);
        }
    }

    fn remove(&mut self, incarnation: u64, id: u64) -> bool {
        let before = self.out.len();
        self.out.retain(|probe| (probe.incarnation, probe.id) != (incarnation, id));
        self.out.len() < before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: BreakerTerms =
        BreakerTerms { retry_timeout: Span::from_millis(5_000), probe_num: 1 };

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(1_900_000_020_000 + millis)
    }

    fn terms(probe_num: u32) -> BreakerTerms {
        BreakerTerms { probe_num, ..TERMS }
    }

    fn probe(id: u64, millis: u64) -> Probe {
        Probe { incarnation: 7, id, since: at(millis) }
    }

    /// A breaker that opened at 0 and may be probed from 5,000 on.
    fn open() -> BreakerLedger {
        let mut breaker = BreakerLedger::default();
        assert!(breaker.trip(0, at(0), &TERMS));
        breaker
    }

    fn admit(breaker: &mut BreakerLedger, id: u64, millis: u64, probe_num: u32) -> Admitted {
        breaker.admit(probe(id, millis), at(millis), &terms(probe_num)).0
    }

    fn judge(
        breaker: &mut BreakerLedger,
        id: u64,
        good: bool,
        millis: u64,
        probe_num: u32,
    ) -> bool {
        breaker.judge(7, id, good, at(millis), &terms(probe_num))
    }

    const NO_MORE: Admitted = Admitted::Refused { retry_at: None };

    #[test]
    fn a_closed_breaker_lets_everybody_pass_and_is_not_written() {
        let mut breaker = BreakerLedger::default();
        assert_eq!(breaker.admit(probe(1, 0), at(0), &TERMS), (Admitted::Closed, false));
        assert_eq!(breaker, BreakerLedger::default());
    }

    #[test]
    fn a_breaker_trips_only_while_it_is_closed_and_in_its_epoch() {
        let mut breaker = open();
        assert_eq!(
            (breaker.state, breaker.epoch, breaker.retry_at),
            (BreakerState::Open, 1, at(5_000))
        );
        assert!(!breaker.trip(1, at(9), &TERMS), "it is open");

        assert_eq!(admit(&mut breaker, 1, 5_000, 1), Admitted::Probe);
        assert!(judge(&mut breaker, 1, true, 5_001, 1));
        assert_eq!(breaker.state, BreakerState::Closed);
        let epoch = breaker.epoch;
        assert!(
            !breaker.trip(0, at(5_002), &TERMS),
            "what was admitted before the trip is not counted now"
        );
        assert!(breaker.trip(epoch, at(5_002), &TERMS));
    }

    #[test]
    fn an_open_breaker_refuses_until_its_time_and_then_lets_one_probe_out() {
        let mut breaker = open();
        assert_eq!(
            admit(&mut breaker, 1, 4_999, 1),
            Admitted::Refused { retry_at: Some(at(5_000)) }
        );
        assert_eq!(breaker.admit(probe(1, 5_000), at(5_000), &TERMS), (Admitted::Probe, true));
        assert_eq!(breaker.state, BreakerState::HalfOpen);
        assert_eq!(breaker.admit(probe(2, 5_001), at(5_001), &TERMS), (NO_MORE, false));
    }

    #[test]
    fn as_many_probes_as_the_rule_says_are_out_and_as_many_good_ones_close_it() {
        let mut breaker = open();
        for id in 1..=3 {
            assert_eq!(admit(&mut breaker, id, 5_000, 3), Admitted::Probe);
        }
        assert_eq!(admit(&mut breaker, 4, 5_000, 3), NO_MORE);
        assert!(judge(&mut breaker, 1, true, 5_010, 3));
        assert_eq!(
            admit(&mut breaker, 4, 5_011, 3),
            NO_MORE,
            "three in all, and not three at a time"
        );
        assert!(judge(&mut breaker, 2, true, 5_012, 3));
        assert_eq!(breaker.state, BreakerState::HalfOpen);
        assert!(judge(&mut breaker, 3, true, 5_013, 3));
        assert_eq!(breaker.state, BreakerState::Closed);
        assert_eq!((breaker.good, breaker.out.len()), (0, 0));
    }

    #[test]
    fn a_bad_probe_opens_it_again_and_forgets_the_good_ones() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 2), Admitted::Probe);
        assert!(judge(&mut breaker, 1, true, 5_001, 2));
        assert_eq!(admit(&mut breaker, 2, 5_002, 2), Admitted::Probe);
        assert!(judge(&mut breaker, 2, false, 6_000, 2));

        assert_eq!(
            (breaker.state, breaker.good, breaker.retry_at),
            (BreakerState::Open, 0, at(11_000))
        );
    }

    #[test]
    fn probes_that_are_still_out_when_it_opens_or_closes_are_not_judged() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 2), Admitted::Probe);
        assert_eq!(admit(&mut breaker, 2, 5_000, 2), Admitted::Probe);
        assert!(judge(&mut breaker, 1, false, 5_100, 2));
        let opened = breaker.clone();

        assert!(!judge(&mut breaker, 2, true, 5_200, 2));
        assert!(!breaker.abort(7, 2));

        assert_eq!(breaker, opened);
    }

    #[test]
    fn who_is_no_probe_is_not_judged() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 1), Admitted::Probe);
        assert!(!judge(&mut breaker, 99, false, 5_001, 1));
        assert!(!breaker.judge(8, 1, false, at(5_001), &TERMS), "another worker's");
        assert_eq!(breaker.state, BreakerState::HalfOpen);
    }

    #[test]
    fn a_probe_that_is_refused_elsewhere_makes_room_for_the_next_at_once() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 1), Admitted::Probe);
        assert!(breaker.abort(7, 1));
        assert_eq!((breaker.state, breaker.retry_at), (BreakerState::Open, at(5_000)));
        assert!(!breaker.abort(7, 1));
        assert_eq!(admit(&mut breaker, 2, 5_001, 1), Admitted::Probe);
    }

    #[test]
    fn an_aborted_probe_leaves_the_good_ones_counted() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 2), Admitted::Probe);
        assert!(judge(&mut breaker, 1, true, 5_001, 2));
        assert_eq!(admit(&mut breaker, 2, 5_002, 2), Admitted::Probe);
        assert!(breaker.abort(7, 2));
        assert_eq!(admit(&mut breaker, 3, 5_003, 2), Admitted::Probe);
        assert!(judge(&mut breaker, 3, true, 5_004, 2));
        assert_eq!(breaker.state, BreakerState::Closed);
    }

    #[test]
    fn a_probe_that_never_ends_has_failed_when_its_time_is_over_and_not_when_somebody_looks() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 1), Admitted::Probe);
        assert_eq!(admit(&mut breaker, 2, 64_999, 1), NO_MORE);
        // Failed at 65,000, so that the next may go from 70,000 on.
        let refused = Admitted::Refused { retry_at: Some(at(70_000)) };
        assert_eq!(breaker.admit(probe(3, 65_000), at(65_000), &TERMS), (refused, true));
        assert_eq!(breaker.admit(probe(3, 69_999), at(69_999), &TERMS), (refused, false));
        assert_eq!(admit(&mut breaker, 3, 70_000, 1), Admitted::Probe);

        assert!(!judge(&mut breaker, 1, true, 70_001, 1), "its time was over");
        assert_eq!(breaker.state, BreakerState::HalfOpen);
    }

    #[test]
    fn who_looks_late_at_a_probe_that_never_ended_may_probe_at_once() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 1), Admitted::Probe);
        assert_eq!(admit(&mut breaker, 2, 300_000, 1), Admitted::Probe);
        assert_eq!(breaker.out, [probe(2, 300_000)]);
    }

    #[test]
    fn a_probe_that_ends_when_its_time_is_over_has_failed_however_it_ended() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 1), Admitted::Probe);
        assert!(judge(&mut breaker, 1, true, 65_000, 1), "which others must see");
        assert_eq!((breaker.state, breaker.retry_at), (BreakerState::Open, at(70_000)));
    }

    #[test]
    fn a_breaker_with_good_probes_stays_half_open_when_another_one_is_taken_back() {
        let mut breaker = open();
        assert_eq!(admit(&mut breaker, 1, 5_000, 2), Admitted::Probe);
        assert!(judge(&mut breaker, 1, true, 5_001, 2));
        assert_eq!(admit(&mut breaker, 2, 5_002, 2), Admitted::Probe);
        assert!(breaker.abort(7, 2));
        assert_eq!((breaker.state, breaker.good), (BreakerState::HalfOpen, 1));
    }

    #[test]
    fn a_long_retry_time_is_a_probes_time_too() {
        let terms = BreakerTerms { retry_timeout: Span::from_millis(100_000), probe_num: 1 };
        let mut breaker = BreakerLedger::default();
        assert!(breaker.trip(0, at(0), &terms));
        assert_eq!(breaker.admit(probe(1, 100_000), at(100_000), &terms).0, Admitted::Probe);
        assert_eq!(breaker.admit(probe(2, 199_999), at(199_999), &terms).0, NO_MORE);
        let refused = Admitted::Refused { retry_at: Some(at(300_000)) };
        assert_eq!(breaker.admit(probe(2, 200_000), at(200_000), &terms), (refused, true));
    }

    #[test]
    fn no_probes_is_one_probe_and_too_many_are_as_many_as_fit() {
        for (probe_num, most) in [(0, 1), (u32::MAX, 1_000)] {
            let mut breaker = open();
            let out = (0..2_000)
                .filter(|id| admit(&mut breaker, *id, 5_000, probe_num) == Admitted::Probe);
            assert_eq!(out.count(), most);
        }
    }

    proptest! {
        /// Whatever happens in whatever order of clocks: never more probes are out than are still needed, none
        /// while it is not half open, and each change of state has another epoch.
        #[test]
        fn no_more_probes_are_out_than_are_still_needed(
            probe_num in 0u32..5,
            steps in prop::collection::vec((0u8..6, 0u64..12, 0u64..9_000, 0u64..500, prop::bool::ANY), 1..150),
        ) {
            let terms = terms(probe_num);
            let mut breaker = BreakerLedger::default();
            let mut millis = 10_000;
            let mut next = 0;
            for (what, which, advance, lag, good) in steps {
                millis += advance;
                let now = at(millis - lag);
                let before = (breaker.state, breaker.epoch);
                match what {
                    0 => { breaker.trip(breaker.epoch, now, &terms); }
                    1 | 2 => {
                        next += 1;
                        let state = breaker.state;
                        let (admitted, changed) = breaker.admit(Probe { incarnation: 1, id: next, since: now }, now, &terms);
                        prop_assert!(state != BreakerState::Closed || admitted == Admitted::Closed);
                        prop_assert_eq!(admitted == Admitted::Probe, breaker.out.iter().any(|probe| probe.id == next));
                        prop_assert!(admitted != Admitted::Probe || changed);
                    }
                    3 => { breaker.abort(1, next.saturating_sub(which)); }
                    _ => { breaker.judge(1, next.saturating_sub(which), good, now, &terms); }
                }
                let out = u32::try_from(breaker.out.len()).unwrap();
                prop_assert!(breaker.good + out <= probe_num.max(1));
                prop_assert!(out == 0 || breaker.state == BreakerState::HalfOpen);
                prop_assert!(breaker.state == before.0 || breaker.epoch != before.1);
            }
        }
    }
}
