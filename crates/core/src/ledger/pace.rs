//! When the next request may go: Sentinel's Throttling.
//!
//! The ledger is one point in time, the slot that was given last; a request gets the next one or, if that is
//! too far away, nothing. So at every moment at most 1 + rate × elapsed requests have gone, however many
//! workers there are. Sources: sentinel-golang `core/flow/tc_throttling.go` (semantics 2.3) for a flow rule,
//! `core/hotspot/traffic_shaping.go` (2.6) for a value, whose milliseconds are nanoseconds here: rounded
//! down, 1,500 a second would be 1,000.

use crate::{
    ledger::rate::{RateLedger, Tokens},
    time::{Nanos, Span},
    warm_up::WarmUp,
    window::WindowShape,
};

/// What stands in shared data for one pace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PaceLedger {
    /// The slot that was given last; 0: none.
    pub last: Nanos,
    /// What has passed, where the rule warms up.
    pub passed: Option<RateLedger>,
}

/// What a rule says of its pace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceTerms {
    /// The length of time that the threshold speaks of.
    pub interval: Span,
    /// The longest wait.
    pub max_wait: Span,
    /// Whose arithmetic holds.
    pub kind: PaceKind,
    /// How the threshold warms up, and in which window.
    pub warm_up: Option<(WarmUp, WindowShape)>,
}

/// The two arithmetics of Sentinel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaceKind {
    /// A flow rule: a wait as long as the longest is fine, and after a rest one request goes at once.
    Flow,
    /// A value: a wait must be shorter than the longest, and after a rest a batch of up to the threshold goes
    /// at once.
    Value,
}

/// A pace's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paced {
    /// The request goes at this time, or now if that is past.
    At(Slot),
    /// Its slot would be too far away.
    Refused {
        /// When there may be one, if ever.
        retry_at: Option<Nanos>,
    },
}

/// A slot that was taken, and what is needed to undo it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// When the request goes.
    pub at: Nanos,
    /// The slot before.
    pub previous: Nanos,
    /// What was counted in the warm-up's window.
    pub passed: Tokens,
}

impl PaceLedger {
    /// Takes the next slot for `batch` requests. `threshold` is in requests per interval; `is_current` is as in
    /// [`RateLedger::claim`]. The flag says whether anything changed that others must see.
    pub fn claim(
        &mut self,
        now: Nanos,
        batch: u64,
        threshold: f64,
        terms: &PaceTerms,
        is_current: bool,
    ) -> (Paced, bool) {
        let mut changed = false;
        let threshold = match terms.warm_up {
            None => {
                self.passed = None;
                threshold
            }
            Some((warm_up, shape)) => {
                let passed = self.passed.get_or_insert_default();
                let (allowed, moved) =
                    passed.allowed(now, threshold, shape, Some(warm_up), is_current);
                changed = moved;
                allowed
            }
        };
        let never = (Paced::Refused { retry_at: None }, changed);
        if threshold <= 0.0 {
            return never;
        }
        if terms.kind == PaceKind::Flow && exceeds(batch, threshold) {
            return never;
        }
        let cost = cost(batch, threshold, terms.interval);
        let rested = terms.kind == PaceKind::Value && self.last < now - terms.interval;
        let next = if rested { now - terms.interval + cost } else { self.last + cost };
        let at = next.max(now);
        let wait = at.since(now);
        let fits = match terms.kind {
            PaceKind::Flow => wait <= terms.max_wait,
            PaceKind::Value => wait < terms.max_wait || wait == Span::ZERO,
        };
        if !fits {
            let shorter =
                Span::new(u64::from(terms.kind == PaceKind::Value && terms.max_wait > Span::ZERO));
            let retry_at = Some(at - terms.max_wait + shorter);
            return (Paced::Refused { retry_at }, changed);
        }
        let previous = core::mem::replace(&mut self.last, at);
        let passed = match (&mut self.passed, terms.warm_up) {
            (Some(passed), Some((_, shape))) => passed.count(now, batch, shape),
            _ => Tokens::default(),
        };
        (Paced::At(Slot { at, previous, passed }), true)
    }

    /// Gives a slot back that nobody has followed. `false` if somebody has taken the next one: then this one
    /// is lost.
    pub fn undo(&mut self, slot: &Slot, terms: &PaceTerms) -> bool {
        if let (Some(passed), Some((_, shape))) = (&mut self.passed, terms.warm_up) {
            // Not at the time of the slot: that may be far off, and the ring would be turned there.
            passed.give_back(shape, shape.start_of(slot.passed.bucket), slot.passed);
        }
        let ours = self.last == slot.at;
        if ours {
            self.last = slot.previous;
        }
        ours
    }

    /// Whether nobody would notice if the ledger were gone: the next slot is at once all the same.
    pub fn is_idle(&self, now: Nanos, terms: &PaceTerms) -> bool {
        let shape = terms.warm_up.map(|(_, shape)| shape);
        let forgotten = match (&self.passed, shape) {
            (Some(passed), Some(shape)) => passed.is_idle(now, shape),
            _ => true,
        };
        forgotten && self.last < now - terms.interval
    }
}

/// The time that `batch` requests take, rounded up.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, and what is lost is made up for by rounding up"
)]
fn cost(batch: u64, threshold: f64, interval: Span) -> Span {
    let exact = batch as f64 / threshold * interval.get() as f64;
    let whole = exact as u64;
    Span::new(if (whole as f64) < exact { whole.saturating_add(1) } else { whole })
}

#[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^53")]
fn exceeds(batch: u64, threshold: f64) -> bool {
    batch as f64 > threshold
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Span = Span::from_millis(1_000);

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(1_900_000_020_000 + millis)
    }

    /// One rule and its ledger.
    struct Pace {
        ledger: PaceLedger,
        threshold: f64,
        terms: PaceTerms,
    }

    impl Pace {
        fn flow(threshold: f64, interval: Span, max_wait_ms: u64) -> Self {
            let max_wait = Span::from_millis(max_wait_ms);
            let terms = PaceTerms { interval, max_wait, kind: PaceKind::Flow, warm_up: None };
            Self { ledger: PaceLedger::default(), threshold, terms }
        }

        fn value(threshold: f64, max_wait_ms: u64) -> Self {
            let mut pace = Self::flow(threshold, SECOND, max_wait_ms);
            pace.terms.kind = PaceKind::Value;
            pace
        }

        fn claim(&mut self, now: Nanos, batch: u64) -> Paced {
            self.ledger.claim(now, batch, self.threshold, &self.terms, true).0
        }

        /// How long a batch waits, in nanoseconds; `None`: it is refused.
        fn wait(&mut self, millis: u64, batch: u64) -> Option<u64> {
            let now = at(millis);
            match self.claim(now, batch) {
                Paced::At(slot) => Some(slot.at.since(now).get()),
                Paced::Refused { .. } => None,
            }
        }

        #[track_caller]
        fn check_waits(&mut self, millis: u64, batch: u64, waits_ms: &[Option<f64>]) {
            for (call, expected) in waits_ms.iter().enumerate() {
                let wait = self.wait(millis, batch).map(|nanos| nanos as f64 / 1e6);
                assert_eq!(wait, *expected, "call {call} at {millis} ms");
            }
        }
    }

    #[test]
    fn the_first_batch_goes_at_once_whatever_its_size_and_is_not_paid_for_later() {
        let mut pace = Pace::flow(50.0, Span::from_millis(10_000), 2_000);

        pace.check_waits(0, 51, &[None]);
        pace.check_waits(0, 50, &[Some(0.0)]);
        let queue: Vec<_> = (1..=10).map(|slot| Some(f64::from(slot) * 200.0)).collect();
        pace.check_waits(0, 1, &queue);
        pace.check_waits(0, 1, &[None, None]);
    }

    #[test]
    fn without_a_queue_one_of_many_passes() {
        let mut pace = Pace::flow(50.0, Span::from_millis(10_000), 0);
        assert_eq!((0..512).filter(|_| pace.wait(0, 1).is_some()).count(), 1);
    }

    #[test]
    fn a_queue_fills_up_to_its_longest_wait_and_drains_with_time() {
        let mut pace = Pace::flow(10.0, SECOND, 500);

        let waits = [0.0, 100.0, 200.0, 300.0, 400.0, 500.0].map(Some);
        pace.check_waits(0, 1, &waits);
        pace.check_waits(0, 1, &[None, None, None, None]);
        pace.check_waits(100, 1, &[Some(500.0), None]);
        pace.check_waits(250, 1, &[Some(450.0), None]);
        pace.check_waits(5_000, 1, &[Some(0.0)]);
        pace.check_waits(5_050, 1, &[Some(50.0)]);
    }

    #[test]
    fn a_pace_is_rounded_up_to_the_nanosecond_and_not_to_the_millisecond() {
        let waits = [Some(0.0), Some(333.333_334), Some(666.666_668), Some(1_000.000_002)];
        Pace::flow(3.0, SECOND, 2_000).check_waits(0, 1, &waits);

        let waits = [Some(0.0), Some(0.5), Some(1.0), Some(1.5), Some(2.0), None];
        Pace::flow(2_000.0, SECOND, 2).check_waits(0, 1, &waits);
    }

    #[test]
    fn a_value_passes_where_its_wait_would_be_shorter_than_the_longest() {
        let mut no_queue = Pace::value(5.0, 0);
        no_queue.check_waits(0, 1, &[Some(0.0), None]);
        for (millis, passes) in
            [(199, false), (200, true), (399, false), (400, true), (900, true), (999, false)]
        {
            assert_eq!(no_queue.wait(millis, 1).is_some(), passes, "at {millis} ms");
        }

        let mut queue = Pace::value(5.0, 500);
        queue.check_waits(0, 1, &[Some(0.0), Some(200.0), Some(400.0), None]);
        queue.check_waits(100, 1, &[None]);
        queue.check_waits(101, 1, &[Some(499.0)]);
    }

    #[test]
    fn a_batch_of_a_value_costs_its_size() {
        let mut pace = Pace::value(100.0, 10);
        pace.check_waits(0, 1, &[Some(0.0)]);
        pace.check_waits(201, 20, &[Some(0.0)]);
        pace.check_waits(400, 21, &[None]);
        pace.check_waits(401, 21, &[None]);
        pace.check_waits(402, 21, &[Some(9.0)]);
    }

    #[test]
    fn a_values_first_batch_goes_at_once_up_to_the_threshold_and_a_larger_one_waits() {
        Pace::value(10.0, 1_000).check_waits(0, 10, &[Some(0.0)]);
        Pace::value(10.0, 1_000).check_waits(0, 15, &[Some(500.0)]);
        Pace::value(10.0, 1_000).check_waits(0, 25, &[None]);
    }

    #[test]
    fn a_threshold_of_nothing_refuses_for_ever() {
        for threshold in [0.0, -1.0] {
            for mut pace in [Pace::flow(threshold, SECOND, 500), Pace::value(threshold, 500)] {
                assert_eq!(pace.claim(at(0), 1), Paced::Refused { retry_at: None });
            }
        }
        // Ten times slower than the end of time is near.
        let mut slow = Pace::value(1e-300, 500);
        assert!(matches!(slow.claim(at(0), 1), Paced::Refused { retry_at: Some(_) }));
    }

    #[test]
    fn who_comes_when_a_refusal_says_it_may_gets_a_slot() {
        for mut pace in
            [Pace::flow(10.0, SECOND, 250), Pace::value(10.0, 250), Pace::value(10.0, 0)]
        {
            while let Paced::At(_) = pace.claim(at(0), 1) {}
            let Paced::Refused { retry_at: Some(retry_at) } = pace.claim(at(0), 1) else {
                panic!("it was refused just now");
            };
            let too_early = Nanos::new(retry_at.get() - 1);
            assert!(matches!(pace.claim(too_early, 1), Paced::Refused { .. }));
            assert!(matches!(pace.claim(retry_at, 1), Paced::At(_)));
        }
    }

    #[test]
    fn a_cold_resource_is_paced_slower() {
        let warm_up = WarmUp { period_sec: 10, cold_factor: 3 };
        let mut pace = Pace::flow(10.0, SECOND, 2_000);
        pace.terms.warm_up = Some((warm_up, WindowShape::for_flow(1_000)));

        for slot in 0..7 {
            let wait = pace.wait(0, 1);
            // `next_up` takes a nanosecond off each slot at most.
            let wait = wait.unwrap_or_else(|| panic!("slot {slot} is refused"));
            assert!(wait.abs_diff(slot * 300_000_000) <= slot, "slot {slot}: {wait}");
        }
        assert_eq!(pace.wait(0, 1), None);
    }

    #[test]
    fn an_undone_slot_is_the_next_ones_and_one_that_was_followed_is_lost() {
        let mut pace = Pace::flow(10.0, SECOND, 500);
        let before = pace.ledger.clone();
        let Paced::At(first) = pace.claim(at(0), 1) else { panic!("nobody was before it") };
        assert!(pace.ledger.undo(&first, &pace.terms));
        assert_eq!(pace.ledger, before);

        let Paced::At(first) = pace.claim(at(0), 1) else { panic!("nobody was before it") };
        pace.check_waits(0, 1, &[Some(100.0)]);
        assert!(!pace.ledger.undo(&first, &pace.terms));
        pace.check_waits(0, 1, &[Some(200.0)]);
    }

    #[test]
    fn an_undone_slot_leaves_no_trace_in_the_warm_up() {
        let mut pace = Pace::flow(10.0, SECOND, 5_000);
        let shape = WindowShape::for_flow(1_000);
        pace.terms.warm_up = Some((WarmUp { period_sec: 10, cold_factor: 3 }, shape));
        pace.check_waits(0, 1, &[Some(0.0)]);
        pace.wait(0, 3);
        let before = pace.ledger.clone();
        let Paced::At(slot) = pace.claim(at(0), 2) else { panic!("there is room for 5 s") };
        assert!(slot.at > at(1_000), "the slot is in a later bucket: {slot:?}");

        assert!(pace.ledger.undo(&slot, &pace.terms));

        assert_eq!(pace.ledger, before);
    }

    proptest! {
        /// Whatever is asked in whatever order of clocks: from any slot on, no more has gone than the rate
        /// allows, nothing waits longer than the longest wait, and nothing goes before its clock.
        #[test]
        fn no_more_than_one_and_the_rate_has_gone_at_any_moment(
            threshold in prop::sample::select(alloc::vec![0.3, 1.0, 3.0, 7.5, 100.0, 1_500.0, 50_000.0]),
            is_value in prop::bool::ANY,
            max_wait_ms in prop::sample::select(alloc::vec![0u64, 1, 500, 20_000]),
            steps in prop::collection::vec((0u64..400_000_000, 0u64..900_000_000, 1u64..4, 0u8..6), 1..80),
        ) {
            let mut pace = if is_value { Pace::value(threshold, max_wait_ms) } else { Pace::flow(threshold, SECOND, max_wait_ms) };
            let mut now = at(0);
            let mut gone: Vec<(Slot, u64)> = Vec::new();
            for (advance, lag, batch, undo) in steps {
                now = now + Span::new(advance);
                let read = now - Span::new(lag);
                if let Paced::At(slot) = pace.claim(read, batch) {
                    prop_assert!(slot.at >= read);
                    prop_assert!(slot.at.since(read) <= pace.terms.max_wait);
                    gone.push((slot, batch));
                }
                if undo == 0 && !gone.is_empty() {
                    let (slot, _) = gone.remove(gone.len() / 2);
                    pace.ledger.undo(&slot, &pace.terms);
                } else if undo == 1 && let Some((slot, _)) = gone.pop() {
                    pace.ledger.undo(&slot, &pace.terms);
                }
            }
            for (first, (from, _)) in gone.iter().enumerate() {
                let mut batches = 0;
                for (slot, batch) in gone.iter().skip(first + 1) {
                    batches += batch;
                    let allowed = threshold * slot.at.since(from.at).get() as f64 / 1e9;
                    prop_assert!(batches as f64 <= allowed * (1.0 + 1e-12), "{batches} and not {allowed}");
                }
            }
        }

        /// An idle pace answers as a new one does, however one asks.
        #[test]
        fn an_idle_pace_answers_as_a_new_one(
            threshold in prop::sample::select(alloc::vec![1.0, 3.0, 100.0]),
            is_value in prop::bool::ANY,
            batches in prop::collection::vec(1u64..4, 1..10),
            later in 0u64..2_000,
            more in prop::collection::vec((0u64..300, 1u64..4), 1..10),
        ) {
            let mut pace = if is_value { Pace::value(threshold, 700) } else { Pace::flow(threshold, SECOND, 700) };
            for batch in batches {
                pace.claim(at(0), batch);
            }
            let mut millis = later;
            let mut ledger = PaceLedger::default();
            if pace.ledger.is_idle(at(millis), &pace.terms) {
                for (advance, batch) in more {
                    millis += advance;
                    let fresh = ledger.claim(at(millis), batch, threshold, &pace.terms, true).0;
                    let slot = |paced| if let Paced::At(Slot { at, .. }) = paced { Some(at) } else { None };
                    prop_assert_eq!(slot(pace.claim(at(millis), batch)), slot(fresh));
                }
            } else {
                prop_assert!(later <= 1_000 + 700);
            }
        }
    }
}
