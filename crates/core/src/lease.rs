//! What one worker holds of a rate rule's ledger.
//!
//! A request is decided from the lease alone whenever it can be: tokens in hand are spent, and a rule
//! that is known to be exhausted refuses, both without a word to anybody. Only what lies between
//! needs a claim. A lease never holds more than two ticks of this worker's own demand, so that a worker
//! that dies, or goes quiet, takes little with it.

use crate::{
    ledger::rate::{Claimed, Tokens},
    time::Nanos,
    window::{BucketId, WindowShape},
};

/// One worker's part of one rule's tokens.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    held: Tokens,
    exhausted: Option<Exhausted>,
    spent_in_tick: u64,
    spent_in_last_active_tick: u64,
    last_active: BucketId,
}

/// That, and until when, a rule is known to have nothing left.
#[derive(Clone, Copy, Debug)]
struct Exhausted {
    bucket: BucketId,
    need: u64,
    given_back: u64,
    retry_at: Option<Nanos>,
}

/// What a lease says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The tokens are in hand.
    InHand,
    /// Nothing is left unless somebody has given back since the signal stood at `given_back`.
    Exhausted {
        /// The level of the give-back signal before the claim that failed.
        given_back: u64,
        /// When the next token is certain, if ever.
        retry_at: Option<Nanos>,
    },
    /// So many more tokens must be claimed.
    Claim {
        /// Tokens that are missing.
        need: u64,
    },
}

impl Lease {
    /// Whether `batch` tokens can be had at `now`, changing nothing.
    #[inline(always)]
    pub fn look(&self, shape: WindowShape, now: Nanos, batch: u64) -> Look {
        let current = shape.bucket_at(now);
        let held = self.spendable_in(current);
        if held >= batch {
            return Look::InHand;
        }
        let need = batch - held;
        match self.exhausted {
            Some(known) if known.bucket == current && need >= known.need => {
                Look::Exhausted { given_back: known.given_back, retry_at: known.retry_at }
            }
            Some(_) | None => Look::Claim { need },
        }
    }

    /// Spends `batch` tokens that [`Lease::look`] said are in hand.
    pub fn spend(&mut self, batch: u64) {
        debug_assert!(self.held.tokens >= batch, "spent without looking");
        self.held.tokens = self.held.tokens.saturating_sub(batch);
        self.spent_in_tick = self.spent_in_tick.saturating_add(batch);
    }

    /// Tokens that can be spent at `now`.
    pub fn spendable_at(&self, shape: WindowShape, now: Nanos) -> u64 {
        self.spendable_in(shape.bucket_at(now))
    }

    /// What is held, of whichever bucket.
    pub fn held(&self) -> Tokens {
        self.held
    }

    /// What this worker could use soon: twice what it spent in the last tick in which it spent any, if
    /// that was in this window or the one before.
    pub fn demand(&self, shape: WindowShape, now: Nanos) -> u64 {
        let recent =
            if self.last_active.age_at(shape.bucket_at(now)) < 2 * u64::from(shape.buckets()) {
                self.spent_in_last_active_tick
            } else {
                0
            };
        recent.max(self.spent_in_tick).saturating_mul(2)
    }

    /// Takes in what a claim of `need` tokens was answered. `given_back` is the signal's level from before
    /// the claim. What was held of an older bucket has gone back with it.
    pub fn claimed(&mut self, shape: WindowShape, claimed: Claimed, need: u64, given_back: u64) {
        match claimed {
            Claimed::Granted { bucket, tokens } => {
                let tokens = self.spendable_in(bucket).saturating_add(tokens);
                self.held = Tokens { bucket, tokens };
                self.exhausted = None;
            }
            Claimed::Exhausted { bucket, next_chance } => {
                if self.held.bucket != bucket {
                    self.held = Tokens::default();
                }
                let retry_at = next_chance.map(|bucket| shape.start_of(bucket));
                self.exhausted = Some(Exhausted { bucket, need, given_back, retry_at });
            }
        }
    }

    /// Forgets what is held: it belongs to an older occupant of the slot.
    pub fn drop_held(&mut self) {
        self.held = Tokens::default();
    }

    /// Forgets that nothing is left: the threshold has changed.
    pub fn forget_exhaustion(&mut self) {
        self.exhausted = None;
    }

    /// Takes out `tokens` of what is held, to be given back at once.
    pub fn take_out(&mut self, tokens: u64) -> Tokens {
        let tokens = tokens.min(self.held.tokens);
        self.held.tokens -= tokens;
        Tokens { tokens, ..self.held }
    }

    /// Ends a tick: takes out what should go back, which is everything if others want it (`wanted`), if
    /// nothing was spent since the last tick, or if its bucket has ended.
    pub fn tick(&mut self, shape: WindowShape, now: Nanos, wanted: bool) -> Tokens {
        let current = shape.bucket_at(now);
        let idle = self.spent_in_tick == 0;
        if !idle {
            self.spent_in_last_active_tick = self.spent_in_tick;
            self.spent_in_tick = 0;
            self.last_active = current;
        }
        if self.held.tokens > 0 && (wanted || idle || self.held.bucket != current) {
            self.take_out(u64::MAX)
        } else {
            Tokens::default()
        }
    }

    /// Whether the next tick has anything to do here: tokens are held, or some were spent.
    pub fn is_active(&self) -> bool {
        self.held.tokens > 0 || self.spent_in_tick > 0
    }

    fn spendable_in(&self, current: BucketId) -> u64 {
        if self.held.bucket == current { self.held.tokens } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> WindowShape {
        WindowShape::for_flow(1_000)
    }

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(millis)
    }

    fn holding(tokens: u64) -> Lease {
        let mut lease = Lease::default();
        lease.claimed(shape(), Claimed::Granted { bucket: BucketId::new(0), tokens }, 1, 0);
        lease
    }

    #[test]
    fn tokens_are_spendable_only_in_their_bucket() {
        let lease = holding(3);

        assert_eq!(lease.look(shape(), at(499), 1), Look::InHand);
        assert_eq!(lease.look(shape(), at(500), 1), Look::Claim { need: 1 });
    }

    #[test]
    fn exhaustion_is_remembered_until_the_bucket_ends() {
        let mut lease = Lease::default();
        let claimed =
            Claimed::Exhausted { bucket: BucketId::new(0), next_chance: Some(BucketId::new(2)) };
        lease.claimed(shape(), claimed, 1, 7);

        let known = Look::Exhausted { given_back: 7, retry_at: Some(at(1_000)) };
        assert_eq!(lease.look(shape(), at(499), 1), known);
        assert_eq!(lease.look(shape(), at(500), 1), Look::Claim { need: 1 });
    }

    #[test]
    fn what_was_too_much_for_many_may_be_enough_for_one() {
        let mut lease = Lease::default();
        lease.claimed(
            shape(),
            Claimed::Exhausted { bucket: BucketId::new(0), next_chance: None },
            5,
            0,
        );

        assert_eq!(lease.look(shape(), at(0), 1), Look::Claim { need: 1 });
        assert!(matches!(lease.look(shape(), at(0), 5), Look::Exhausted { .. }));
    }

    #[test]
    fn a_busy_lease_stays_and_an_idle_one_goes_back() {
        let mut lease = holding(3);
        lease.spend(1);

        assert_eq!(lease.tick(shape(), at(10), false).tokens, 0);
        assert_eq!(
            lease.tick(shape(), at(20), false),
            Tokens { bucket: BucketId::new(0), tokens: 2 }
        );
        assert!(!lease.is_active());
    }

    #[test]
    fn a_busy_lease_goes_back_when_others_want_it() {
        let mut lease = holding(3);
        lease.spend(1);

        assert_eq!(lease.tick(shape(), at(10), true).tokens, 2);
    }

    #[test]
    fn demand_is_twice_the_last_active_tick_and_is_forgotten_after_two_windows() {
        let mut lease = holding(9);
        lease.spend(4);
        lease.tick(shape(), at(10), false);
        lease.tick(shape(), at(20), false);

        assert_eq!(lease.demand(shape(), at(1_999)), 8);
        assert_eq!(lease.demand(shape(), at(2_000)), 0);
    }
}
