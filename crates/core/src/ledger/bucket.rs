//! A value's tokens: Sentinel's hot-parameter rule with QPS and Reject.
//!
//! Not a leaky bucket: nothing is added within one duration of the last filling, and after a rest up to
//! `threshold + burst` are there at once. Source: sentinel-golang `core/hotspot/traffic_shaping.go`
//! (semantics 2.6), in nanoseconds.

use crate::time::{Nanos, Span};

/// What stands in shared data for one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketLedger {
    /// Tokens left.
    pub tokens: u64,
    /// When it was filled last; 0: never, so that it is full.
    pub filled: Nanos,
}

/// What a rule says of its buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketTerms {
    /// The duration that the threshold speaks of.
    pub duration: Span,
    /// Tokens above the threshold after a rest.
    pub burst: u64,
}

/// A bucket's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The tokens are taken.
    From(Taking),
    /// There are too few.
    Refused {
        /// When more are added, if that can be enough.
        retry_at: Option<Nanos>,
    },
}

/// Tokens that were taken, and what is needed to put them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taking {
    /// The bucket before.
    pub before: BucketLedger,
    /// The bucket after.
    pub after: BucketLedger,
}

impl BucketLedger {
    /// Takes `batch` tokens.
    pub fn take(&mut self, now: Nanos, batch: u64, threshold: u64, terms: &BucketTerms) -> Taken {
        let most = threshold.saturating_add(terms.burst);
        if threshold == 0 || batch > most {
            return Taken::Refused { retry_at: None };
        }
        let left = self.tokens_at(now, threshold, terms);
        let Some(left) = left.checked_sub(batch) else {
            // Never before a whole duration has passed, and then one token after the other.
            let missing = batch.saturating_sub(self.tokens);
            let (whole, has_rest) = portion(missing, terms.duration.get(), threshold);
            let needs = Span::new(whole.saturating_add(u64::from(has_rest)));
            let refill = Span::new(terms.duration.get().saturating_add(1));
            return Taken::Refused { retry_at: Some(self.filled + needs.max(refill)) };
        };
        let before = *self;
        if self.refills_at(now, terms) {
            self.filled = now;
        }
        self.tokens = left;
        Taken::From(Taking { before, after: *self })
    }

    /// Puts `batch` tokens back. If nobody has taken any since, all is as it was before, also when it is
    /// filled next. What was taken before the last filling is gone: it may have been filled up already. `true`
    /// if anything changed.
    pub fn put_back(
        &mut self,
        taking: &Taking,
        batch: u64,
        threshold: u64,
        terms: &BucketTerms,
    ) -> bool {
        if *self == taking.after {
            *self = taking.before;
            return true;
        }
        let same = self.filled == taking.after.filled;
        if same {
            let most = threshold.saturating_add(terms.burst);
            self.tokens = self.tokens.saturating_add(batch).min(most.max(self.tokens));
        }
        same
    }

    /// Whether nobody would notice if the bucket were gone: it would be full again.
    pub fn is_idle(&self, now: Nanos, threshold: u64, terms: &BucketTerms) -> bool {
        self.tokens_at(now, threshold, terms) >= threshold.saturating_add(terms.burst)
            && self.refills_at(now, terms)
    }

    /// Tokens that are left, those that are due included.
    pub fn tokens_at(&self, now: Nanos, threshold: u64, terms: &BucketTerms) -> u64 {
        let most = threshold.saturating_add(terms.burst);
        if self.filled == Nanos::default() {
            return most;
        }
        if !self.refills_at(now, terms) {
            return self.tokens;
        }
        let passed = now.since(self.filled).get();
        let (added, _) = portion(passed, threshold, terms.duration.get().max(1));
        self.tokens.saturating_add(added).min(most)
    }

    fn refills_at(&self, now: Nanos, terms: &BucketTerms) -> bool {
        self.filled == Nanos::default() || now.since(self.filled) > terms.duration
    }
}

/// `a` times `b` over `c`, which is not 0: the whole part, as far as it can be said, and whether there is a rest.
///
/// A product that is too large for 64 bits is rare, and divided bit by bit: a division of 128 bits takes 1 KB of code.
fn portion(a: u64, b: u64, c: u64) -> (u64, bool) {
    if let Some(product) = a.checked_mul(b) {
        return (product / c, product % c != 0);
    }
    let mut product = u128::from(a) * u128::from(b);
    let divisor = u128::from(c);
    let (mut whole, mut rest) = (0_u128, 0_u128);
    for _ in 0..u128::BITS {
        rest = rest << 1 | product >> 127;
        product <<= 1;
        whole <<= 1;
        if rest >= divisor {
            rest -= divisor;
            whole |= 1;
        }
    }
    (u64::try_from(whole).unwrap_or(u64::MAX), rest != 0)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(1_900_000_020_000 + millis)
    }

    /// A bucket of a duration of one second.
    struct Bucket {
        ledger: BucketLedger,
        threshold: u64,
        terms: BucketTerms,
    }

    impl Bucket {
        fn new(threshold: u64, burst: u64) -> Self {
            let terms = BucketTerms { duration: Span::from_millis(1_000), burst };
            Self { ledger: BucketLedger::default(), threshold, terms }
        }

        fn take(&mut self, millis: u64, batch: u64) -> Taken {
            self.ledger.take(at(millis), batch, self.threshold, &self.terms)
        }

        fn passes(&mut self, millis: u64, batch: u64) -> bool {
            matches!(self.take(millis, batch), Taken::From(_))
        }

        /// How many of `offered` single requests pass.
        fn passed(&mut self, millis: u64, offered: u64) -> u64 {
            (0..offered).filter(|_| self.passes(millis, 1)).count() as u64
        }

        fn is_idle(&self, millis: u64) -> bool {
            self.ledger.is_idle(at(millis), self.threshold, &self.terms)
        }
    }

    #[test]
    fn a_batch_above_threshold_and_burst_never_passes_and_up_to_it_at_once() {
        let mut bucket = Bucket::new(100, 10);

        assert_eq!(bucket.take(0, 130), Taken::Refused { retry_at: None });
        assert!(bucket.passes(0, 20));
        assert!(bucket.passes(0, 90));
        assert!(!bucket.passes(0, 1));
        assert!(!bucket.passes(1_000, 1));
        assert!(bucket.passes(1_001, 100));
        assert!(!bucket.passes(1_001, 1));
    }

    #[test]
    fn the_burst_is_there_again_after_a_rest() {
        let mut bucket = Bucket::new(5, 3);
        for (millis, passed) in [(0, 8), (1_002, 5), (2_004, 5), (4_004, 8), (5_006, 5)] {
            assert_eq!(bucket.passed(millis, 9), passed, "at {millis} ms");
        }
    }

    #[test]
    fn a_threshold_of_nothing_refuses_for_ever() {
        assert_eq!(Bucket::new(0, 7).take(0, 1), Taken::Refused { retry_at: None });
    }

    #[test]
    fn a_clock_that_lags_refills_nothing() {
        let mut bucket = Bucket::new(2, 0);
        assert_eq!(bucket.passed(5_000, 3), 2);
        assert_eq!(bucket.passed(0, 3), 0);
        assert_eq!(bucket.passed(6_000, 3), 0);
        assert_eq!(bucket.passed(6_001, 3), 2);
    }

    #[test]
    fn the_largest_numbers_overflow_nothing() {
        let mut bucket = Bucket::new(u64::MAX, u64::MAX);
        assert!(bucket.passes(0, u64::MAX));
        assert!(bucket.passes(u64::MAX / 2_000_000, u64::MAX));
        bucket.terms.duration = Span::new(u64::MAX);
        assert!(matches!(bucket.take(1, u64::MAX), Taken::Refused { retry_at: Some(_) }));
    }

    #[test]
    fn who_comes_when_a_refusal_says_it_may_passes() {
        for (threshold, burst, batch) in [(5, 0, 1), (5, 0, 5), (5, 20, 25), (3, 7, 9), (1, 1, 2)] {
            let mut bucket = Bucket::new(threshold, burst);
            assert!(bucket.passes(0, threshold + burst));
            let Taken::Refused { retry_at: Some(retry_at) } = bucket.take(500, batch) else {
                panic!("nothing is left");
            };
            let mut early = bucket.ledger;
            let too_early = Nanos::new(retry_at.get() - 1);
            assert!(matches!(
                early.take(too_early, batch, threshold, &bucket.terms),
                Taken::Refused { .. }
            ));
            assert!(matches!(
                bucket.ledger.take(retry_at, batch, threshold, &bucket.terms),
                Taken::From(_)
            ));
        }
    }

    #[test]
    fn what_was_taken_before_the_last_filling_does_not_come_back() {
        let mut bucket = Bucket::new(5, 0);
        let Taken::From(taking) = bucket.take(0, 5) else { panic!("it is full") };
        assert_eq!(bucket.passed(1_001, 5), 5);

        assert!(!bucket.ledger.put_back(&taking, 5, 5, &bucket.terms));
        assert_eq!(bucket.passed(1_500, 1), 0);
    }

    proptest! {
        /// Tokens that are put back before anybody else came leave no trace, also in when the bucket is filled.
        #[test]
        fn a_portion_is_what_128_bits_say(a: u64, b: u64, c in 1..=u64::MAX, shift in 0u32..64) {
            for (a, c) in [(a, c), (a >> shift, c), (a, (c >> shift).max(1))] {
                let product = u128::from(a) * u128::from(b);
                let whole = u64::try_from(product / u128::from(c)).unwrap_or(u64::MAX);
                prop_assert_eq!(portion(a, b, c), (whole, product % u128::from(c) != 0));
            }
        }

        #[test]
        fn what_is_put_back_at_once_was_never_taken(
            threshold in 1u64..6, burst in 0u64..4,
            steps in prop::collection::vec((0u64..1_500, 1u64..6, prop::bool::ANY), 1..60),
        ) {
            let (mut bucket, mut model) = (Bucket::new(threshold, burst), Bucket::new(threshold, burst));
            let mut millis = 0;
            for (advance, batch, goes) in steps {
                millis += advance;
                let taken = bucket.take(millis, batch);
                if goes {
                    prop_assert_eq!(taken, model.take(millis, batch));
                } else if let Taken::From(taking) = taken {
                    bucket.ledger.put_back(&taking, batch, threshold, &bucket.terms);
                }
                prop_assert_eq!(bucket.ledger, model.ledger);
            }
        }

        /// However late and in whatever order tokens are put back: of one filling no more than it holds is
        /// used, and the bucket never holds more than it can.
        #[test]
        fn no_filling_gives_more_than_it_holds(
            threshold in 1u64..6, burst in 0u64..4,
            steps in prop::collection::vec((0u64..700, 1u64..6, 0usize..4), 1..80),
        ) {
            let mut bucket = Bucket::new(threshold, burst);
            let most = threshold + burst;
            let mut millis = 0;
            let mut used: Vec<(Taking, u64)> = Vec::new();
            for (advance, batch, back) in steps {
                millis += advance;
                if let Taken::From(taking) = bucket.take(millis, batch) {
                    used.push((taking, batch));
                }
                if back < used.len() {
                    let (taking, batch) = used.remove(used.len() - 1 - back);
                    bucket.ledger.put_back(&taking, batch, threshold, &bucket.terms);
                }
                prop_assert!(bucket.ledger.tokens <= most);
                for filled in used.iter().map(|(taking, _)| taking.after.filled) {
                    let of_it = used.iter().filter(|(taking, _)| taking.after.filled == filled);
                    prop_assert!(of_it.map(|(_, batch)| batch).sum::<u64>() <= most);
                }
            }
        }

        /// A bucket is idle exactly if a new one would answer the same, however one asks.
        #[test]
        fn an_idle_bucket_is_as_good_as_a_new_one_and_no_other_is(
            threshold in 1u64..6, burst in 0u64..4,
            before in prop::collection::vec((0u64..1_500, 1u64..6), 1..10),
            rest in 0u64..3_000,
            after in prop::collection::vec((0u64..1_500, 1u64..6), 1..10),
        ) {
            let mut bucket = Bucket::new(threshold, burst);
            let mut millis = 0;
            for (advance, batch) in before {
                millis += advance;
                bucket.take(millis, batch);
            }
            millis += rest;
            if bucket.is_idle(millis) {
                let mut fresh = Bucket::new(threshold, burst);
                for (advance, batch) in after {
                    millis += advance;
                    let passes = bucket.passes(millis, batch);
                    prop_assert_eq!(passes, fresh.passes(millis, batch));
                }
            } else {
                // All there can be now, and all that is filled up a duration later.
                let mut fresh = Bucket::new(threshold, burst);
                let all = |bucket: &mut Bucket| {
                    [bucket.passed(millis, 20), bucket.passed(millis + 1_000, 20), bucket.passed(millis + 1_001, 20)]
                };
                prop_assert_ne!(all(&mut bucket), all(&mut fresh));
            }
        }
    }
}
