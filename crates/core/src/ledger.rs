//! How many tokens of a rate rule all workers together have been granted.
//!
//! One small value in shared data per rule. A worker that needs tokens *claims*: it reads the ledger,
//! computes here what follows, and writes it back by compare-and-set, again on a mismatch. Nothing in
//! this module knows the host; each function is one pure step, so that any interleaving of claims is a
//! sequence of these steps.
//!
//! The invariant: **in every bucket-aligned window, the sum of what was granted is at most the threshold**
//! (at most the larger of the two in a window in which the threshold changed). Tokens are spent only in
//! the bucket in which they were granted, so what is admitted is at most what was granted. Two things
//! keep it true when clocks are read long before they are used: a ledger's time never goes back, and
//! tokens can be given back only to the bucket they came from, and only while it still counts.

use crate::{
    time::Nanos,
    window::{BUCKETS_MAX, BucketId, WindowShape},
};

/// What stands in shared data for one rate rule.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLedger {
    /// Which occupant of the ledger's slot this is; only grows. Who knows only an older one writes nothing.
    pub generation: u64,
    /// The rule set that `threshold` is from; only grows within a generation.
    pub version: u64,
    /// Tokens in a window.
    pub threshold: f64,
    /// The newest bucket that was ever opened. Never goes back.
    pub newest: BucketId,
    /// Granted tokens: first of `newest`, then of the bucket before it, and so on.
    pub granted: [u64; BUCKETS_MAX],
}

/// What a worker's rule set says of a rule that has a ledger.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateTerms {
    /// The occupant of the slot.
    pub generation: u64,
    /// The rule set's version.
    pub version: u64,
    /// Tokens in a window.
    pub threshold: f64,
    /// The window.
    pub shape: WindowShape,
}

/// What a worker asks of a ledger.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// When.
    pub now: Nanos,
    /// Tokens without which the request is refused, 1 or more.
    pub need: u64,
    /// Tokens that this worker could use soon: twice what it spent in its last active tick.
    pub demand: u64,
    /// How many workers share the rule, this one included.
    pub workers: u64,
    /// What this worker holds. If its bucket has ended, it goes back with the claim.
    pub held: Tokens,
}

/// Tokens and the bucket they were granted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The bucket of the grant.
    pub bucket: BucketId,
    /// How many.
    pub tokens: u64,
}

/// A ledger's answer to a [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// So many tokens, to be spent in `bucket`.
    Granted {
        /// The bucket in which they are spendable.
        bucket: BucketId,
        /// How many: the need or more.
        tokens: u64,
    },
    /// Less is left than needed.
    Exhausted {
        /// The current bucket: until it ends only a give-back can help.
        bucket: BucketId,
        /// The first bucket in which enough is free again if nothing is given back; `None` if the need is
        /// over the threshold.
        next_chance: Option<BucketId>,
    },
    /// The slot belongs to a newer generation: load the rules first. Nothing may be written.
    Superseded,
}

impl RateLedger {
    /// An untouched ledger.
    pub fn open(terms: &RateTerms, now: Nanos) -> Self {
        Self {
            generation: terms.generation,
            version: terms.version,
            threshold: terms.threshold,
            newest: terms.shape.bucket_at(now),
            granted: [0; BUCKETS_MAX],
        }
    }

    /// Answers a claim and changes the ledger accordingly. The flag says whether anything changed that
    /// others must see: without it nothing needs to be written.
    pub fn claim(&mut self, terms: &RateTerms, claim: &Claim) -> (Claimed, bool) {
        let Some(renewed) = self.meet(terms, claim.now) else {
            return (Claimed::Superseded, false);
        };
        let bucket = self.rotate(terms.shape, claim.now);
        let returned =
            if claim.held.bucket < bucket { self.take_back(terms.shape, claim.held) } else { 0 };
        let changed = renewed || returned > 0;

        let room = self.room(terms.shape);
        let need = claim.need.max(1);
        if room < need {
            let next_chance = self.next_chance(terms.shape, need);
            return (Claimed::Exhausted { bucket, next_chance }, changed);
        }
        let share = room / claim.workers.max(1).saturating_mul(2);
        let tokens = need.max(share.min(claim.demand)).min(room);
        let [newest, ..] = &mut self.granted;
        *newest = newest.saturating_add(tokens);
        (Claimed::Granted { bucket, tokens }, true)
    }

    /// Takes back unspent tokens. The answer is how many count again; 0 means that nothing changed and
    /// nothing needs to be written: their bucket has left the window, or the slot has another occupant.
    pub fn give_back(&mut self, terms: &RateTerms, now: Nanos, returned: Tokens) -> u64 {
        if self.generation != terms.generation {
            return 0;
        }
        self.rotate(terms.shape, now);
        self.take_back(terms.shape, returned)
    }

    /// When the bucket that is current for this ledger at `now` begins: later than `now`'s own if somebody
    /// has already opened a later one.
    pub fn current(&self, shape: WindowShape, now: Nanos) -> BucketId {
        shape.bucket_at(now).max(self.newest)
    }

    /// Takes the slot over for a newer generation, or the threshold of a newer rule set. `None` if the
    /// ledger is of a newer generation; else whether anything changed.
    fn meet(&mut self, terms: &RateTerms, now: Nanos) -> Option<bool> {
        if self.generation > terms.generation {
            return None;
        }
        if self.generation < terms.generation {
            *self = Self::open(terms, now);
            return Some(true);
        }
        if self.version >= terms.version {
            return Some(false);
        }
        self.version = terms.version;
        self.threshold = terms.threshold;
        Some(true)
    }

    /// Opens the current bucket and forgets those that have left the window.
    fn rotate(&mut self, shape: WindowShape, now: Nanos) -> BucketId {
        let current = self.current(shape, now);
        let passed =
            usize::try_from(self.newest.age_at(current)).unwrap_or(BUCKETS_MAX).min(BUCKETS_MAX);
        if passed > 0 {
            self.granted.rotate_right(passed);
            self.granted.iter_mut().take(passed).for_each(|granted| *granted = 0);
            self.newest = current;
        }
        current
    }

    fn take_back(&mut self, shape: WindowShape, returned: Tokens) -> u64 {
        if returned.tokens == 0 || !shape.counts(returned.bucket, self.newest) {
            return 0;
        }
        let age = usize::try_from(returned.bucket.age_at(self.newest)).unwrap_or(BUCKETS_MAX);
        let Some(granted) = self.granted.get_mut(age) else {
            return 0;
        };
        let tokens = returned.tokens.min(*granted);
        *granted -= tokens;
        tokens
    }

    /// What the window still allows.
    fn room(&self, shape: WindowShape) -> u64 {
        let granted = self.granted.iter().take(usize::from(shape.buckets()));
        whole_tokens(self.threshold).saturating_sub(granted.sum())
    }

    /// The first bucket in which `need` tokens are free if nobody gives back and nobody claims.
    fn next_chance(&self, shape: WindowShape, need: u64) -> Option<BucketId> {
        let free_at_most = whole_tokens(self.threshold).checked_sub(need)?;
        let buckets = usize::from(shape.buckets());
        let mut counted: u64 = self.granted.iter().take(buckets).sum();
        // The oldest bucket leaves first: it is `buckets` old one bucket from now.
        for (later, granted) in (1..).zip(self.granted.iter().take(buckets).rev()) {
            counted = counted.saturating_sub(*granted);
            if counted <= free_at_most {
                return Some(self.newest.later(later));
            }
        }
        None
    }
}

/// The largest whole number of tokens that a threshold allows: `sum + n > threshold` refuses exactly when
/// `sum + n` is more than this (semantics 2.2). Saturates at 2^53.
pub fn whole_tokens(threshold: f64) -> u64 {
    const LARGEST: u64 = 1 << 53;
    // The cast saturates: a negative number and NaN become 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounding down and saturating at 0 is what is meant"
    )]
    let whole = threshold as u64;
    whole.min(LARGEST)
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    const NOTHING: Tokens = Tokens { bucket: BucketId::new(0), tokens: 0 };

    fn terms(threshold: f64, interval_ms: u32) -> RateTerms {
        RateTerms {
            generation: 1,
            version: 1,
            threshold,
            shape: WindowShape::for_flow(interval_ms),
        }
    }

    fn one_at(millis: u64) -> Claim {
        Claim { now: at(millis), need: 1, demand: 0, workers: 1, held: NOTHING }
    }

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(millis)
    }

    fn admitted(ledger: &mut RateLedger, terms: &RateTerms, millis: u64, offered: u64) -> u64 {
        (0..offered)
            .filter(|_| {
                matches!(ledger.claim(terms, &one_at(millis)).0, Claimed::Granted { tokens: 1, .. })
            })
            .count() as u64
    }

    #[test]
    fn a_window_of_a_second_slides_by_half_a_second() {
        let terms = terms(10.0, 1_000);
        let mut ledger = RateLedger::open(&terms, at(0));

        assert_eq!(admitted(&mut ledger, &terms, 400, 12), 10);
        assert_eq!(admitted(&mut ledger, &terms, 999, 1), 0);
        assert_eq!(admitted(&mut ledger, &terms, 1_000, 12), 10);
        assert_eq!(admitted(&mut ledger, &terms, 1_999, 1), 0);
        assert_eq!(admitted(&mut ledger, &terms, 2_000, 1), 1);
    }

    #[test]
    fn fractions_are_not_rounded_up() {
        for (threshold, allowed) in [(0.0, 0), (0.5, 0), (1.0, 1), (1.5, 1), (2.999, 2)] {
            let terms = terms(threshold, 1_000);
            let mut ledger = RateLedger::open(&terms, at(0));
            assert_eq!(admitted(&mut ledger, &terms, 0, 5), allowed, "threshold {threshold}");
        }
    }

    #[test]
    fn a_worker_that_slept_over_a_bucket_claims_in_the_one_that_others_have_opened() {
        let terms = terms(100.0, 1_000);
        let mut ledger = RateLedger::open(&terms, at(0));
        assert_eq!(admitted(&mut ledger, &terms, 1_003, 90), 90);

        // It read the clock at 999 ms and wakes now.
        let (claimed, _) = ledger.claim(&terms, &Claim { need: 12, ..one_at(999) });

        assert_eq!(
            claimed,
            Claimed::Exhausted { bucket: BucketId::new(2), next_chance: Some(BucketId::new(4)) }
        );
    }

    #[test]
    fn a_chunk_is_a_share_of_what_is_left_and_no_more_than_the_demand() {
        let terms = terms(1_000.0, 1_000);
        let ledger = RateLedger::open(&terms, at(0));
        let chunk = |demand, workers| {
            let claim = Claim { demand, workers, ..one_at(0) };
            let Claimed::Granted { tokens, .. } = ledger.clone().claim(&terms, &claim).0 else {
                panic!("nothing was claimed before");
            };
            tokens
        };

        assert_eq!(chunk(0, 4), 1);
        assert_eq!(chunk(50, 4), 50);
        assert_eq!(chunk(5_000, 4), 125);
        assert_eq!(chunk(5_000, 1_000), 1);
    }

    #[test]
    fn what_is_given_back_can_be_granted_again() {
        let terms = terms(10.0, 1_000);
        let mut ledger = RateLedger::open(&terms, at(0));
        let (claimed, _) = ledger.claim(&terms, &Claim { need: 10, ..one_at(0) });
        assert_eq!(claimed, Claimed::Granted { bucket: BucketId::new(0), tokens: 10 });

        let unspent = Tokens { bucket: BucketId::new(0), tokens: 4 };
        assert_eq!(ledger.give_back(&terms, at(600), unspent), 4);
        assert_eq!(admitted(&mut ledger, &terms, 600, 10), 4);
    }

    #[test]
    fn what_has_left_the_window_cannot_be_given_back() {
        let terms = terms(10.0, 1_000);
        let mut ledger = RateLedger::open(&terms, at(0));
        let (_, _) = ledger.claim(&terms, &Claim { need: 10, ..one_at(0) });

        let unspent = Tokens { bucket: BucketId::new(0), tokens: 4 };
        assert_eq!(ledger.give_back(&terms, at(1_000), unspent), 0);
        assert_eq!(admitted(&mut ledger, &terms, 1_000, 20), 10);
    }

    #[test]
    fn an_older_generation_writes_nothing() {
        let old = terms(10.0, 1_000);
        let new = RateTerms { generation: 2, ..old };
        let mut ledger = RateLedger::open(&new, at(0));
        let before = ledger.clone();

        assert_eq!(ledger.claim(&old, &one_at(0)), (Claimed::Superseded, false));
        assert_eq!(
            ledger.give_back(&old, at(0), Tokens { bucket: BucketId::new(0), tokens: 1 }),
            0
        );
        assert_eq!(ledger, before);
    }

    #[test]
    fn a_newer_rule_set_brings_its_threshold_and_an_older_one_uses_it() {
        let old = terms(5.0, 20_000);
        let new = RateTerms { version: 2, threshold: 8.0, ..old };
        let mut ledger = RateLedger::open(&old, at(0));

        assert_eq!(admitted(&mut ledger, &old, 0, 6), 5);
        assert_eq!(admitted(&mut ledger, &new, 20, 1), 1);
        assert_eq!(admitted(&mut ledger, &old, 20, 6), 2);
    }

    #[test]
    fn the_next_chance_is_when_enough_has_left_the_window() {
        let terms = terms(10.0, 1_500);
        let mut ledger = RateLedger::open(&terms, at(0));
        assert_eq!(admitted(&mut ledger, &terms, 0, 3), 3);
        assert_eq!(admitted(&mut ledger, &terms, 500, 7), 7);
        let chance = |need| ledger.clone().claim(&terms, &Claim { need, ..one_at(1_000) }).0;

        let exhausted = |next_chance| Claimed::Exhausted { bucket: BucketId::new(2), next_chance };
        assert_eq!(chance(1), exhausted(Some(BucketId::new(3))));
        assert_eq!(chance(4), exhausted(Some(BucketId::new(4))));
        assert_eq!(chance(11), exhausted(None));
    }

    proptest! {
        /// Whatever is claimed and given back, and however late, no window's grants exceed the threshold,
        /// and what a list of all grants says is what the ring says.
        #[test]
        fn no_window_is_granted_more_than_its_threshold(
            threshold in 0u32..40,
            interval_ms in prop::sample::select(vec![100u32, 500, 1_000, 1_500, 10_000, 20_000]),
            steps in prop::collection::vec((0u64..700, 0u64..900, 1u64..6, 0u64..30, prop::bool::ANY), 1..200),
        ) {
            let terms = terms(f64::from(threshold), interval_ms);
            let shape = terms.shape;
            let mut ledger = RateLedger::open(&terms, at(10_000));
            let mut now = 10_000;
            let mut grants: Vec<Tokens> = vec![];
            for (advance, lag, need, demand, back) in steps {
                now += advance;
                let claim = Claim { now: at(now - lag), need, demand, workers: 2, held: NOTHING };
                match ledger.claim(&terms, &claim).0 {
                    Claimed::Granted { bucket, tokens } => {
                        prop_assert!(tokens >= need);
                        grants.push(Tokens { bucket, tokens });
                    }
                    Claimed::Exhausted { bucket, .. } => {
                        let counted: u64 = grants.iter().filter(|g| shape.counts(g.bucket, bucket)).map(|g| g.tokens).sum();
                        prop_assert!(counted + need > u64::from(threshold));
                    }
                    Claimed::Superseded => prop_assert!(false, "one generation only"),
                }
                if back && let Some(last) = grants.last_mut() && last.tokens > 1 {
                    let unspent = Tokens { tokens: last.tokens / 2, ..*last };
                    last.tokens -= ledger.give_back(&terms, at(now), unspent);
                }
                for end in grants.iter().map(|g| g.bucket) {
                    let window: u64 = grants.iter().filter(|g| shape.counts(g.bucket, end)).map(|g| g.tokens).sum();
                    prop_assert!(window <= u64::from(threshold), "{window} of {threshold}");
                }
            }
        }
    }
}
