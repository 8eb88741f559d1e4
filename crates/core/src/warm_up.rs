//! Less while a resource is cold: Sentinel's WarmUp.
//!
//! Tokens are stored while little passes and used up while much does; the fuller the store, the colder the
//! resource and the lower its threshold. Source of the formulas: sentinel-golang `core/flow/tc_warm_up.go`
//! (semantics 2.4). The store is kept in the rule's ledger, so that all workers together warm up once.

use serde::{Deserialize, Serialize};

use crate::time::Nanos;

/// How fast a resource warms up, and how much less it gets while it is cold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUp {
    /// `warmUpPeriodSec`, 1 or more.
    pub period_sec: u32,
    /// `warmUpColdFactor`, 2 or more: a cold resource gets this part of its threshold.
    pub cold_factor: u32,
}

/// How warm a resource is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WarmUpState {
    /// What it warms up by.
    pub terms: WarmUp,
    /// The threshold it warms up to.
    pub threshold: f64,
    /// Tokens in store.
    pub stored: u64,
    /// The whole second of the last change, in milliseconds since the epoch; 0: never, so that the first
    /// change fills the store.
    pub filled_ms: u64,
}

impl WarmUpState {
    /// A cold resource.
    pub fn cold(terms: WarmUp, threshold: f64) -> Self {
        Self { terms, threshold, stored: 0, filled_ms: 0 }
    }

    /// Fills and drains the store, once in each whole second. `previous_qps` is what passed a second, one
    /// bucket ago. `true` if anything changed.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the reference rounds down at these places, and a cast saturates"
    )]
    pub fn sync(&mut self, now: Nanos, previous_qps: f64) -> bool {
        let second_ms = now.get() / 1_000_000_000 * 1_000;
        if second_ms <= self.filled_ms {
            return false;
        }
        let (warning, max) = self.marks();
        let passed_ms = (second_ms - self.filled_ms) as f64;
        let is_quiet =
            previous_qps < (self.threshold as u64 / u64::from(self.terms.cold_factor)) as f64;
        if self.stored < warning || (self.stored > warning && is_quiet) {
            self.stored = (self.stored as f64 + passed_ms * self.threshold / 1_000.0) as u64;
        }
        self.stored = self.stored.min(max).saturating_sub(previous_qps as u64);
        self.filled_ms = second_ms;
        true
    }

    /// Whether the store would be full again by `now`, as that of a resource which nobody has asked for.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as in `sync`"
    )]
    pub fn would_be_cold(&self, now: Nanos) -> bool {
        let (_, max) = self.marks();
        // By whole seconds, as it is filled.
        let second_ms = now.get() / 1_000_000_000 * 1_000;
        let passed_ms = second_ms.saturating_sub(self.filled_ms) as f64;
        let filled = self.stored as f64 + passed_ms * self.threshold / 1_000.0;
        (filled as u64) >= max
    }

    /// The threshold that holds now.
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^53")]
    pub fn allowed(&self) -> f64 {
        let (warning, max) = self.marks();
        if self.threshold <= 0.0 || self.stored < warning || max == warning {
            return self.threshold;
        }
        let cold = f64::from(self.terms.cold_factor) - 1.0;
        let slope = cold / self.threshold / (max - warning) as f64;
        let above = (self.stored - warning) as f64;
        (1.0 / (above * slope + 1.0 / self.threshold)).next_up()
    }

    /// How many tokens make a resource cold, and how many there can be.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the reference rounds down at these places, and a cast saturates"
    )]
    fn marks(&self) -> (u64, u64) {
        let period = f64::from(self.terms.period_sec);
        let factor = f64::from(self.terms.cold_factor.max(2));
        let warning = (period * self.threshold / (factor - 1.0)) as u64;
        let more = (2.0 * period * self.threshold / (1.0 + factor)) as u64;
        (warning, warning.saturating_add(more))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ledger::rate::{Claim, Claimed, RateLedger, RateTerms, Tokens},
        window::WindowShape,
    };

    const T0_MS: u64 = 1_900_000_020_000;

    /// One rule and its ledger.
    struct Warming {
        ledger: RateLedger,
        terms: RateTerms,
        threshold: f64,
    }

    impl Warming {
        fn new(threshold: f64, period_sec: u32, cold_factor: u32) -> Self {
            let warm_up = Some(WarmUp { period_sec, cold_factor });
            let terms = RateTerms { shape: WindowShape::for_flow(1_000), warm_up };
            Self { ledger: RateLedger::default(), terms, threshold }
        }

        /// How many of `offered` requests pass at this second.
        fn passed(&mut self, second: u64, offered: u64) -> u64 {
            let now = Nanos::from_millis(T0_MS + second * 1_000);
            let claim = Claim { now, need: 1, demand: 0, workers: 1, held: Tokens::default() };
            let mut passes = || {
                let (claimed, _) = self.ledger.claim(&self.terms, self.threshold, true, &claim);
                matches!(claimed, Claimed::Granted { tokens: 1, .. })
            };
            (0..offered).filter(|_| passes()).count() as u64
        }

        fn check(&mut self, from_second: u64, offered: u64, expected: &[u64]) {
            let passed: Vec<_> = (from_second..)
                .zip(expected)
                .map(|(second, _)| self.passed(second, offered))
                .collect();
            assert_eq!(passed, expected, "from second {from_second}");
        }
    }

    #[test]
    fn it_takes_its_period_from_a_third_of_the_threshold_to_all_of_it() {
        let series = [3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 10, 10];
        Warming::new(10.0, 10, 3).check(0, 20, &series);
    }

    #[test]
    fn a_long_rest_makes_it_cold_again_and_a_short_one_partly() {
        let mut rule = Warming::new(10.0, 10, 3);
        rule.check(0, 20, &[3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 10, 10, 10]);
        rule.check(17, 20, &[5, 6, 7]);
        rule.check(25, 20, &[3, 3, 3]);
        rule.check(60, 20, &[3, 3, 3]);
    }

    #[test]
    fn a_hundred_a_second_are_warm_after_five() {
        let series = [33, 36, 40, 46, 56, 76, 100, 100, 100, 100];
        Warming::new(100.0, 5, 3).check(0, 200, &series);
    }

    #[test]
    fn what_the_first_change_stores_is_the_reference_s_maximum() {
        let mut state = WarmUpState::cold(WarmUp { period_sec: 10, cold_factor: 3 }, 10.0);
        assert_eq!(state.marks(), (50, 100));
        assert!(state.sync(Nanos::from_millis(T0_MS + 999), 0.0));
        assert_eq!((state.stored, state.filled_ms), (100, T0_MS));
        assert!(!state.sync(Nanos::from_millis(T0_MS + 999), 0.0), "once a second");
        assert!(!state.sync(Nanos::from_millis(T0_MS - 1), 0.0), "and never back");
        assert_eq!(state.allowed(), (1.0_f64 / (50.0 * 0.004 + 0.1)).next_up());
    }

    #[test]
    fn a_store_exactly_at_the_warning_is_not_filled_as_in_the_reference() {
        let mut state = WarmUpState::cold(WarmUp { period_sec: 10, cold_factor: 3 }, 10.0);
        (state.stored, state.filled_ms) = (50, T0_MS);
        assert!(state.sync(Nanos::from_millis(T0_MS + 1_000), 0.0));
        assert_eq!(state.stored, 50);
    }

    #[test]
    fn a_threshold_of_nothing_stays_nothing() {
        Warming::new(0.0, 10, 3).check(0, 5, &[0, 0, 0]);
    }

    #[test]
    fn where_there_is_nothing_to_store_the_threshold_holds_at_once() {
        Warming::new(1.0, 1, 3).check(0, 5, &[1, 1]);
        Warming::new(0.5, 1, u32::MAX).check(0, 5, &[0, 0]);
    }

    proptest! {
        /// Whatever a rule says: what is allowed is a number, no more than the threshold but for a rounding, and
        /// no less than the cold part of it.
        #[test]
        fn what_is_allowed_lies_between_the_cold_part_and_the_threshold(
            threshold in prop::sample::select(alloc::vec![
                0.0, 1e-300, 0.1, 0.5, 1.0, 1.5, 7.0, 10.0, 333.3, 1e6, 1e15, 1e18, 1e300, f64::MAX,
            ]),
            period_sec in prop::sample::select(alloc::vec![1, 2, 10, 3_600, u32::MAX]),
            cold_factor in prop::sample::select(alloc::vec![2, 3, 10, u32::MAX]),
            steps in prop::collection::vec((0u64..40_000, 0.0f64..2.0), 1..40),
        ) {
            let mut state = WarmUpState::cold(WarmUp { period_sec, cold_factor }, threshold);
            let mut millis = T0_MS;
            for (advance, part) in steps {
                millis += advance;
                state.sync(Nanos::from_millis(millis), part * threshold);
                let allowed = state.allowed();
                let cold = threshold / f64::from(cold_factor);
                prop_assert!(allowed >= cold * (1.0 - 1e-9), "{allowed} of {threshold}, {state:?}");
                prop_assert!(allowed <= threshold * (1.0 + 1e-9) + f64::MIN_POSITIVE, "{allowed} of {threshold}, {state:?}");
                state.would_be_cold(Nanos::from_millis(millis));
            }
        }
    }
}
