//! How many tokens of a rate rule all workers together have been granted.
//!
//! The invariant: **in every bucket-aligned window, the sum of what was granted is at most the threshold**
//! (at most the larger of the two in a window in which the threshold changed). Tokens are spent only in
//! the bucket in which they were granted, so what is admitted is at most what was granted. Two things
//! keep it true when clocks are read long before they are used: a ledger's time never goes back, and
//! tokens can be given back only to the bucket they came from, and only while it still counts.

use crate::{
    time::{Nanos, Span},
    warm_up::{WarmUp, WarmUpState},
    window::{BUCKETS_MAX, BucketId, WindowShape},
};

/// Buckets of a ledger: those of the longest window, and the one before, from which a warm-up knows what
/// passed a bucket ago.
pub const RING: usize = BUCKETS_MAX + 1;

/// What stands in shared data for one rate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RateLedger {
    /// The newest bucket that was ever opened. Never goes back.
    pub newest: BucketId,
    /// Granted tokens: first of `newest`, then of the bucket before it, and so on.
    pub granted: [u64; RING],
    /// How warm the resource is, where the rule warms up.
    pub warm_up: Option<WarmUpState>,
}

/// What a worker's rule set says of a rule's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateTerms {
    /// The window.
    pub shape: WindowShape,
    /// How the threshold warms up.
    pub warm_up: Option<WarmUp>,
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
}

impl RateTerms {
    /// Whether a worker may hold more than it needs, and remember that nothing is left, until the bucket ends.
    /// Not where the threshold moves within a bucket: a warm-up moves it with every second.
    pub fn may_lease(&self) -> bool {
        const SECOND: Span = Span::from_millis(1_000);
        self.warm_up.is_none() || SECOND.get().is_multiple_of(self.shape.bucket().get())
    }
}

impl RateLedger {
    /// Answers a claim under `threshold` and changes the ledger accordingly. `is_current`: the ledger knows no
    /// newer rule set than that of `terms` ([`Meeting::is_current`](super::Meeting::is_current)). The flag says
    /// whether anything changed that others must see: without it nothing needs to be written.
    pub fn claim(
        &mut self,
        terms: &RateTerms,
        threshold: f64,
        is_current: bool,
        claim: &Claim,
    ) -> (Claimed, bool) {
        let shape = terms.shape;
        let (allowed, moved) = self.allowed(claim.now, threshold, shape, terms.warm_up, is_current);
        let bucket = self.newest;
        let returned =
            if claim.held.bucket < bucket { self.take_back(shape, claim.held) } else { 0 };
        let changed = moved || returned > 0;

        let allowed = whole_tokens(allowed);
        let room = allowed.saturating_sub(self.counted(shape));
        let need = claim.need.max(1);
        if room < need {
            let next_chance = self.next_chance(shape, allowed, need);
            return (Claimed::Exhausted { bucket, next_chance }, changed);
        }
        let share = room / claim.workers.max(1).saturating_mul(2);
        let tokens = need.max(share.min(claim.demand)).min(room);
        let [newest, ..] = &mut self.granted;
        *newest = newest.saturating_add(tokens);
        (Claimed::Granted { bucket, tokens }, true)
    }

    /// Takes back unspent tokens. The answer is how many count again; 0 means that nothing changed and
    /// nothing needs to be written: their bucket has left the window.
    pub fn give_back(&mut self, shape: WindowShape, now: Nanos, returned: Tokens) -> u64 {
        self.rotate(shape, now);
        self.take_back(shape, returned)
    }

    /// Counts `tokens` whatever the threshold.
    pub fn count(&mut self, now: Nanos, tokens: u64, shape: WindowShape) -> Tokens {
        let bucket = self.rotate(shape, now);
        let [newest, ..] = &mut self.granted;
        *newest = newest.saturating_add(tokens);
        Tokens { bucket, tokens }
    }

    /// Opens the current bucket, warms up, and says what is allowed in a window now; the flag says whether
    /// the warm-up has moved.
    pub fn allowed(
        &mut self,
        now: Nanos,
        threshold: f64,
        shape: WindowShape,
        warm_up: Option<WarmUp>,
        is_current: bool,
    ) -> (f64, bool) {
        self.rotate(shape, now);
        let mut turned = false;
        if is_current {
            // Only the newest rule set says how a rule warms up, whoever comes: in a set of a table each entry
            // hears of a change when it is next asked for. What has only just begun to warm up, or does so in
            // another way, is cold.
            let known = self.warm_up.map(|state| (state.terms, state.threshold));
            let wanted = warm_up.map(|terms| (terms, threshold));
            if known != wanted {
                self.warm_up = wanted.map(|(terms, threshold)| WarmUpState::cold(terms, threshold));
            }
            turned = known != wanted;
        }
        let previous_qps = self.previous_qps(shape);
        match &mut self.warm_up {
            Some(state) => {
                let moved = state.sync(now.max(shape.start_of(self.newest)), previous_qps);
                (state.allowed(), moved || turned)
            }
            None => (threshold, turned),
        }
    }

    /// When the bucket that is current for this ledger at `now` begins: later than `now`'s own if somebody
    /// has already opened a later one.
    pub fn current(&self, shape: WindowShape, now: Nanos) -> BucketId {
        shape.bucket_at(now).max(self.newest)
    }

    /// What the window that ends with the newest bucket has granted.
    pub fn counted(&self, shape: WindowShape) -> u64 {
        self.granted.iter().take(usize::from(shape.buckets())).sum()
    }

    /// Whether nobody would notice if the ledger were gone: nothing counts any more, and it is cold.
    pub fn is_idle(&self, now: Nanos, shape: WindowShape) -> bool {
        let current = self.current(shape, now);
        let age = self.newest.age_at(current);
        let empty =
            age > u64::from(shape.buckets()) || self.granted.iter().all(|granted| *granted == 0);
        empty && self.warm_up.is_none_or(|state| state.would_be_cold(now))
    }

    /// Opens the current bucket and forgets those that have left the ring.
    fn rotate(&mut self, shape: WindowShape, now: Nanos) -> BucketId {
        let current = self.current(shape, now);
        let passed = usize::try_from(self.newest.age_at(current)).unwrap_or(RING).min(RING);
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
        let age = usize::try_from(returned.bucket.age_at(self.newest)).unwrap_or(RING);
        let Some(granted) = self.granted.get_mut(age) else {
            return 0;
        };
        let tokens = returned.tokens.min(*granted);
        *granted -= tokens;
        tokens
    }

    /// What passed a second in the window that ended one bucket ago.
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^53")]
    fn previous_qps(&self, shape: WindowShape) -> f64 {
        let buckets = usize::from(shape.buckets());
        let sum: u64 = self.granted.iter().skip(1).take(buckets).sum();
        sum as f64 * 1e9 / shape.window().get() as f64
    }

    /// The first bucket in which `need` tokens are free if nobody gives back and nobody claims.
    fn next_chance(&self, shape: WindowShape, allowed: u64, need: u64) -> Option<BucketId> {
        let free_at_most = allowed.checked_sub(need)?;
        let buckets = usize::from(shape.buckets());
        let mut counted = self.counted(shape);
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

    /// A rule of `threshold`.
    #[derive(Clone, Copy)]
    struct Rule {
        threshold: f64,
        shape: WindowShape,
    }

    impl Rule {
        fn claim(self, ledger: &mut RateLedger, claim: &Claim) -> Claimed {
            let terms = RateTerms { shape: self.shape, warm_up: None };
            ledger.claim(&terms, self.threshold, false, claim).0
        }
    }

    fn terms(threshold: f64, interval_ms: u32) -> Rule {
        Rule { threshold, shape: WindowShape::for_flow(interval_ms) }
    }

    fn one_at(millis: u64) -> Claim {
        Claim { now: at(millis), need: 1, demand: 0, workers: 1, held: NOTHING }
    }

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(millis)
    }

    fn admitted(ledger: &mut RateLedger, rule: &Rule, millis: u64, offered: u64) -> u64 {
        (0..offered)
            .filter(|_| {
                matches!(rule.claim(ledger, &one_at(millis)), Claimed::Granted { tokens: 1, .. })
            })
            .count() as u64
    }

    #[test]
    fn a_window_of_a_second_slides_by_half_a_second() {
        let terms = terms(10.0, 1_000);
        let mut ledger = RateLedger::default();

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
            let mut ledger = RateLedger::default();
            assert_eq!(admitted(&mut ledger, &terms, 0, 5), allowed, "threshold {threshold}");
        }
    }

    #[test]
    fn a_worker_that_slept_over_a_bucket_claims_in_the_one_that_others_have_opened() {
        let terms = terms(100.0, 1_000);
        let mut ledger = RateLedger::default();
        assert_eq!(admitted(&mut ledger, &terms, 1_003, 90), 90);

        // It read the clock at 999 ms and wakes now.
        let claimed = terms.claim(&mut ledger, &Claim { need: 12, ..one_at(999) });

        assert_eq!(
            claimed,
            Claimed::Exhausted { bucket: BucketId::new(2), next_chance: Some(BucketId::new(4)) }
        );
    }

    #[test]
    fn a_chunk_is_a_share_of_what_is_left_and_no_more_than_the_demand() {
        let terms = terms(1_000.0, 1_000);
        let ledger = RateLedger::default();
        let chunk = |demand, workers| {
            let claim = Claim { demand, workers, ..one_at(0) };
            let Claimed::Granted { tokens, .. } = terms.claim(&mut ledger.clone(), &claim) else {
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
        let mut ledger = RateLedger::default();
        let claimed = terms.claim(&mut ledger, &Claim { need: 10, ..one_at(0) });
        assert_eq!(claimed, Claimed::Granted { bucket: BucketId::new(0), tokens: 10 });

        let unspent = Tokens { bucket: BucketId::new(0), tokens: 4 };
        assert_eq!(ledger.give_back(terms.shape, at(600), unspent), 4);
        assert_eq!(admitted(&mut ledger, &terms, 600, 10), 4);
    }

    #[test]
    fn what_has_left_the_window_cannot_be_given_back() {
        let terms = terms(10.0, 1_000);
        let mut ledger = RateLedger::default();
        terms.claim(&mut ledger, &Claim { need: 10, ..one_at(0) });

        let unspent = Tokens { bucket: BucketId::new(0), tokens: 4 };
        assert_eq!(ledger.give_back(terms.shape, at(1_000), unspent), 0);
        assert_eq!(admitted(&mut ledger, &terms, 1_000, 20), 10);
    }

    #[test]
    fn the_next_chance_is_when_enough_has_left_the_window() {
        let terms = terms(10.0, 1_500);
        let mut ledger = RateLedger::default();
        assert_eq!(admitted(&mut ledger, &terms, 0, 3), 3);
        assert_eq!(admitted(&mut ledger, &terms, 500, 7), 7);
        let chance = |need| terms.claim(&mut ledger.clone(), &Claim { need, ..one_at(1_000) });

        let exhausted = |next_chance| Claimed::Exhausted { bucket: BucketId::new(2), next_chance };
        assert_eq!(chance(1), exhausted(Some(BucketId::new(3))));
        assert_eq!(chance(4), exhausted(Some(BucketId::new(4))));
        assert_eq!(chance(11), exhausted(None));
    }

    #[test]
    fn a_window_of_twenty_buckets_counts_all_of_them_and_remembers_one_more() {
        let shape = WindowShape::for_flow(10_000);
        let mut ledger = RateLedger::default();
        for bucket in 0..21 {
            ledger.count(at(100_000 + bucket * 500), 1 << bucket, shape);
        }

        assert_eq!(ledger.counted(shape), (1 << 21) - 2);
        // The window that ended one bucket ago.
        assert_eq!(ledger.previous_qps(shape), ((1 << 20) - 1) as f64 / 10.0);

        let old = Tokens { bucket: shape.bucket_at(at(100_000)), tokens: 1 };
        assert_eq!(ledger.give_back(shape, at(110_000), old), 0, "it counts no more");
    }

    #[test]
    fn a_rest_longer_than_the_ring_leaves_nothing() {
        let shape = WindowShape::for_flow(10_000);
        let mut ledger = RateLedger::default();
        ledger.count(at(0), 7, shape);
        ledger.count(Nanos::new(u64::MAX), 0, shape);
        assert_eq!(ledger.granted, [0; RING]);
    }

    #[test]
    fn a_ledger_is_idle_when_neither_this_window_nor_the_last_has_counted_anything() {
        let shape = WindowShape::for_flow(1_000);
        let mut ledger = RateLedger::default();
        assert!(ledger.is_idle(at(0), shape));
        let counted = ledger.count(at(5_000), 1, shape);

        assert!(!ledger.is_idle(at(0), shape), "a clock that lags");
        assert!(!ledger.is_idle(at(6_499), shape));
        assert!(ledger.is_idle(at(6_500), shape));

        ledger.give_back(shape, at(5_000), counted);
        assert!(ledger.is_idle(at(5_000), shape));
    }

    const WARM_UP: WarmUp = WarmUp { period_sec: 10, cold_factor: 3 };

    fn warming(threshold: f64) -> (RateTerms, f64) {
        (RateTerms { shape: WindowShape::for_flow(1_000), warm_up: Some(WARM_UP) }, threshold)
    }

    /// How many of `offered` a rule grants that warms up.
    fn warm(
        ledger: &mut RateLedger,
        rule: (RateTerms, f64),
        is_current: bool,
        millis: u64,
        offered: u64,
    ) -> u64 {
        let (terms, threshold) = rule;
        let granted = |_: &u64| {
            let (claimed, _) = ledger.claim(&terms, threshold, is_current, &one_at(millis));
            matches!(claimed, Claimed::Granted { .. })
        };
        (0..offered).filter(granted).count() as u64
    }

    #[test]
    fn a_ledger_that_warms_up_is_idle_when_it_would_be_cold_again() {
        let (terms, _) = warming(10.0);
        let mut ledger = RateLedger::default();
        for second in 0..15 {
            warm(&mut ledger, warming(10.0), true, 1_900_000_020_000 + second * 1_000, 20);
        }
        // 50 to 60 of 100 tokens are missing, and 10 a second come in.
        let idle = |millis: u64| ledger.is_idle(at(1_900_000_034_000 + millis), terms.shape);
        assert!(!idle(5_000));
        let cold = (5_000..11_000).find(|millis| idle(*millis)).unwrap();
        assert_eq!(cold % 1_000, 0, "the store is filled by whole seconds");
        assert!((cold..20_000).all(idle));
    }

    #[test]
    fn a_rule_that_begins_or_ceases_to_warm_up_does_so_at_once() {
        let (terms, threshold) = warming(10.0);
        let direct = (RateTerms { warm_up: None, ..terms }, threshold);
        let mut ledger = RateLedger::default();

        assert_eq!(warm(&mut ledger, direct, true, 1_000, 20), 10);
        assert_eq!(warm(&mut ledger, warming(10.0), true, 10_000, 20), 3);
        assert_eq!(warm(&mut ledger, direct, true, 11_000, 20), 10);
        assert_eq!(ledger.warm_up, None);
    }

    #[test]
    fn another_threshold_or_another_way_to_warm_up_begins_cold() {
        let mut ledger = RateLedger::default();
        for second in 0..15 {
            warm(&mut ledger, warming(10.0), true, second * 1_000 + 1_000, 20);
        }
        assert_eq!(warm(&mut ledger.clone(), warming(10.0), true, 16_000, 20), 10);

        assert_eq!(warm(&mut ledger.clone(), warming(12.0), true, 16_000, 20), 4);
        let (mut terms, threshold) = warming(10.0);
        terms.warm_up = Some(WarmUp { period_sec: 10, cold_factor: 5 });
        assert_eq!(warm(&mut ledger, (terms, threshold), true, 16_000, 20), 2);
    }

    #[test]
    fn a_worker_with_an_older_rule_set_changes_nothing_about_the_warm_up() {
        let (terms, threshold) = warming(10.0);
        let direct = (RateTerms { warm_up: None, ..terms }, threshold);

        let mut ledger = RateLedger::default();
        assert_eq!(warm(&mut ledger, direct, true, 1_900_000_020_000, 1), 1);
        assert_eq!(warm(&mut ledger, warming(10.0), false, 1_900_000_020_000, 1), 1);
        assert_eq!(ledger.warm_up, None);

        let mut ledger = RateLedger::default();
        assert_eq!(warm(&mut ledger, warming(10.0), true, 1_900_000_020_000, 1), 1);
        let before = ledger.warm_up;
        assert_eq!(warm(&mut ledger, direct, false, 1_900_000_020_000, 20), 2);
        assert_eq!(ledger.warm_up, before);
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
            let mut ledger = RateLedger::default();
            let mut now = 10_000;
            let mut grants: Vec<Tokens> = vec![];
            for (advance, lag, need, demand, back) in steps {
                now += advance;
                let claim = Claim { now: at(now - lag), need, demand, workers: 2, held: NOTHING };
                match terms.claim(&mut ledger, &claim) {
                    Claimed::Granted { bucket, tokens } => {
                        prop_assert!(tokens >= need);
                        grants.push(Tokens { bucket, tokens });
                    }
                    Claimed::Exhausted { bucket, .. } => {
                        let counted: u64 = grants.iter().filter(|g| shape.counts(g.bucket, bucket)).map(|g| g.tokens).sum();
                        prop_assert!(counted + need > u64::from(threshold));
                    }
                }
                if back && let Some(last) = grants.last_mut() && last.tokens > 1 {
                    let unspent = Tokens { tokens: last.tokens / 2, ..*last };
                    last.tokens -= ledger.give_back(terms.shape, at(now), unspent);
                }
                for end in grants.iter().map(|g| g.bucket) {
                    let window: u64 = grants.iter().filter(|g| shape.counts(g.bucket, end)).map(|g| g.tokens).sum();
                    prop_assert!(window <= u64::from(threshold), "{window} of {threshold}");
                }
            }
        }
    }
}
