//! All or nothing: one request against all its token rules.
//!
//! First whoever is known to refuse is asked, which costs nothing. Then what is missing is claimed, in the
//! same order by every worker. Only when all tokens are in hand are they spent, together; if one rule
//! refuses, nobody has spent anything, and tokens that were claimed one by one for this request go back
//! at once (two rules of one a second, held crosswise by two workers, would otherwise admit nobody for
//! ever).

use sentinel_core::{
    lease::Look,
    ledger::{Claim, Claimed, RateLedger, Tokens, whole_tokens},
    rule::OnHostFailure,
    time::Nanos,
};
use sentinel_wire::{key::Key, ledger};

use crate::{
    host::{Cas, Host, HostError, Signal},
    rulebook::{Answer, RuleBook, RuleState},
    shared::{Shared, Then},
};

/// What the whole set of a resource's rules says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// All tokens are spent.
    Pass,
    /// This rule refuses; nothing is spent.
    Refused {
        /// Its place in the claim order.
        rule: u32,
        /// When its next token is certain, if that is known.
        retry_at: Option<Nanos>,
    },
    /// This rule's ledger belongs to a newer rule set: take that up, then ask again.
    Superseded {
        /// Its place in the claim order.
        rule: u32,
    },
}

/// What a worker brings along to a ledger.
#[derive(Debug)]
pub(crate) struct Claims<'a, H> {
    host: &'a mut H,
    shared: &'a mut Shared,
    /// The time of the request; moves on if a ledger is found further on.
    now: Nanos,
    /// The start of the newest bucket that was met.
    pub(crate) floor: Nanos,
    /// Workers that share the ledgers.
    workers: u64,
    /// Whether this worker may take more than it needs.
    may_lease: bool,
    /// What has happened, for the statistics.
    tally: &'a mut ClaimTally,
    given_back: Option<u64>,
}

/// What claims have cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClaimTally {
    pub(crate) claims: u64,
    pub(crate) failures: u64,
}

/// Why a claim has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimError {
    Host(HostError),
    /// The ledger has a layout that this build cannot read.
    Layout,
}

/// How often a request starts again because time moved on while it was claiming. Each round means that
/// a bucket ended in between, so that a second one is rare and a fifth does not happen.
const ROUNDS_MAX: usize = 4;

impl<'a, H: Host> Claims<'a, H> {
    pub(crate) fn new(
        host: &'a mut H,
        shared: &'a mut Shared,
        tally: &'a mut ClaimTally,
        now: Nanos,
        workers: u64,
        may_lease: bool,
    ) -> Self {
        Self {
            host,
            shared,
            now,
            floor: Nanos::default(),
            workers,
            may_lease,
            tally,
            given_back: None,
        }
    }

    /// Decides a request of `batch` tokens from each of the rules `of` a resource.
    pub(crate) fn admit(&mut self, book: &mut RuleBook, of: &[u32], batch: u64) -> Admission {
        if let Some(refused) = self.known_refusal(book, of, batch) {
            return refused;
        }
        for _ in 0..ROUNDS_MAX {
            for &index in of {
                let Some(state) = book.rule_mut(index) else { continue };
                state.answer = Answer::Spend;
                let refused = match self.obtain(state, batch) {
                    Obtained::InHand => continue,
                    Obtained::Refused { retry_at } => Admission::Refused { rule: index, retry_at },
                    Obtained::Superseded => Admission::Superseded { rule: index },
                };
                self.return_fresh(book, of);
                return refused;
            }
            if self.all_in_hand(book, of, batch) {
                for &index in of {
                    if let Some(state) = book.rule_mut(index) {
                        state.settle(batch);
                    }
                }
                return Admission::Pass;
            }
        }
        self.return_fresh(book, of);
        // Time outran four rounds of claims: the VM is being starved. Refusing is never over.
        let refuses =
            |index: &&u32| book.rule_mut(**index).is_some_and(|state| !state.rule.common().shadow);
        of.iter()
            .find(refuses)
            .map_or(Admission::Pass, |&rule| Admission::Refused { rule, retry_at: None })
    }

    /// Gives `tokens` back to the rule's ledger and tells those who were refused.
    pub(crate) fn give_back(&mut self, state: &RuleState, tokens: Tokens) {
        if tokens.tokens == 0 {
            return;
        }
        let (terms, now) = (state.terms, self.now);
        let updated = self.shared.update(self.host, Key::Ledger(state.slot), |found, written| {
            let Some(Ok(mut ledger)) = found.map(ledger::decode) else { return (Then::Keep, 0) };
            let returned = ledger.give_back(&terms, now, tokens);
            if returned == 0 {
                return (Then::Keep, 0);
            }
            ledger::encode(&ledger, terms.shape.buckets(), written);
            (Then::Write, returned)
        });
        match updated {
            Ok(updated) if updated.result > 0 => self.host.raise(Signal::GivenBack),
            Ok(_) => {}
            // Never over: they stay granted until their bucket ends.
            Err(_) => self.tally.failures += 1,
        }
    }

    /// A rule that is known to have nothing left, if there is one: no call but a look at the signal.
    fn known_refusal(&mut self, book: &mut RuleBook, of: &[u32], batch: u64) -> Option<Admission> {
        for &index in of {
            let Some(state) = book.rule_mut(index) else { continue };
            if state.rule.common().shadow {
                continue;
            }
            if let Look::Exhausted { given_back, retry_at } =
                state.lease.look(state.terms.shape, self.now, batch)
                && given_back == self.given_back()
            {
                return Some(Admission::Refused { rule: index, retry_at });
            }
        }
        None
    }

    /// Gets the tokens of one rule into hand.
    fn obtain(&mut self, state: &mut RuleState, batch: u64) -> Obtained {
        let need = match state.lease.look(state.terms.shape, self.now, batch) {
            Look::InHand => return Obtained::InHand,
            Look::Exhausted { given_back, retry_at } if given_back == self.given_back() => {
                return state.refuse(retry_at);
            }
            Look::Exhausted { .. } => {
                batch.saturating_sub(state.lease.spendable_at(state.terms.shape, self.now))
            }
            Look::Claim { need } => need,
        };
        let given_back = self.given_back();
        let Ok((claimed, seen)) = self.claim(state, need) else {
            self.tally.failures += 1;
            return match state.rule.common().on_host_failure {
                OnHostFailure::Pass => {
                    state.answer = Answer::Waived;
                    Obtained::InHand
                }
                OnHostFailure::Block => state.refuse(None),
            };
        };
        state.lease.claimed(state.terms.shape, claimed, need, given_back);
        match claimed {
            Claimed::Granted { bucket, tokens } => {
                self.meet(state.terms.shape.start_of(bucket));
                state.fresh = if tokens == need { need } else { 0 };
                Obtained::InHand
            }
            Claimed::Exhausted { bucket, next_chance } => {
                self.meet(state.terms.shape.start_of(bucket));
                self.ask_for_tokens(state, seen);
                state.refuse(next_chance.map(|bucket| state.terms.shape.start_of(bucket)))
            }
            Claimed::Superseded => Obtained::Superseded,
        }
    }

    fn claim(
        &mut self,
        state: &RuleState,
        need: u64,
    ) -> Result<(Claimed, Option<Cas>), ClaimError> {
        let terms = state.terms;
        let demand = if self.may_lease { state.lease.demand(terms.shape, self.now) } else { 0 };
        let claim =
            Claim { now: self.now, need, demand, workers: self.workers, held: state.lease.held() };
        let updated = self.shared.update(self.host, Key::Ledger(state.slot), |found, written| {
            let mut ledger = match found.map(ledger::decode) {
                Some(Ok(ledger)) => ledger,
                Some(Err(_)) => return (Then::Keep, Err(ClaimError::Layout)),
                None => RateLedger::open(&terms, claim.now),
            };
            let (claimed, changed) = ledger.claim(&terms, &claim);
            if !changed {
                return (Then::Keep, Ok(claimed));
            }
            ledger::encode(&ledger, terms.shape.buckets(), written);
            (Then::Write, Ok(claimed))
        });
        self.tally.claims += 1;
        let updated = updated.map_err(ClaimError::Host)?;
        Ok((updated.result?, updated.seen))
    }

    /// Time never goes back behind a bucket that somebody has opened.
    fn meet(&mut self, bucket_start: Nanos) {
        self.floor = self.floor.max(bucket_start);
        self.now = self.now.max(bucket_start);
    }

    /// Asks the others for tokens they do not need, unless nothing has moved since they were last asked:
    /// then nobody holds any, or they are on their way.
    fn ask_for_tokens(&mut self, state: &mut RuleState, seen: Option<Cas>) {
        let never = whole_tokens(state.terms.threshold) == 0;
        if never || (seen.is_some() && state.refused_at == seen) {
            return;
        }
        state.refused_at = seen;
        self.host.raise(Signal::Wanted);
    }

    /// Whether every token is still spendable, now that the last one has been claimed.
    fn all_in_hand(&self, book: &mut RuleBook, of: &[u32], batch: u64) -> bool {
        of.iter().all(|&index| match book.rule_mut(index) {
            Some(state) if state.answer == Answer::Spend => {
                state.lease.look(state.terms.shape, self.now, batch) == Look::InHand
            }
            Some(_) | None => true,
        })
    }

    fn return_fresh(&mut self, book: &mut RuleBook, of: &[u32]) {
        for &index in of {
            let Some(state) = book.rule_mut(index) else { continue };
            if state.fresh > 0 {
                let tokens = state.lease.take_out(state.fresh);
                state.fresh = 0;
                self.give_back(state, tokens);
            }
        }
    }

    /// The level of the give-back signal, read once for a request, and before its first claim.
    fn given_back(&mut self) -> u64 {
        if let Some(level) = self.given_back {
            return level;
        }
        let level = self.host.level(Signal::GivenBack);
        self.given_back = Some(level);
        level
    }
}

/// How one rule's tokens were come by.
enum Obtained {
    InHand,
    Refused { retry_at: Option<Nanos> },
    Superseded,
}

impl RuleState {
    /// The answer of a rule that has nothing left: a shadow rule only notes it.
    fn refuse(&mut self, retry_at: Option<Nanos>) -> Obtained {
        if self.rule.common().shadow {
            self.answer = Answer::WouldBlock;
            Obtained::InHand
        } else {
            Obtained::Refused { retry_at }
        }
    }

    /// Carries out the rule's part in an admitted request.
    fn settle(&mut self, batch: u64) {
        self.fresh = 0;
        match self.answer {
            Answer::Spend => self.lease.spend(batch),
            Answer::WouldBlock => self.blocked = self.blocked.saturating_add(batch),
            Answer::Waived => {}
        }
    }
}
