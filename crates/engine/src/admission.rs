//! All or nothing: one request against all its rules.
//!
//! First whoever is known to refuse is asked, which costs nothing. Then what is missing is claimed, in the
//! same order by every worker. Only when all is in hand is it spent, together; if one rule refuses, nobody has
//! spent anything, and what was claimed for this request alone goes back at once (two rules of one a second,
//! held crosswise by two workers, would otherwise admit nobody for ever).
//!
//! Claims go in the order of checks, so that the first refusal is the one to show; only pacing comes last,
//! because a slot cannot be given back once somebody has taken the next. Where a rule refuses that is checked
//! after one that has not been asked yet, that one is *peeked* at: read, and not written.

use sentinel_core::{
    lease::Look,
    ledger::{
        Ledger,
        breaker::{Admitted, BreakerState, Probe},
        bucket::{Taken, Taking},
        pace::{Paced, Slot},
        permits::PermitClaim,
        rate::{Claim, Claimed, Tokens},
    },
    rule::{Keeps, OnHostFailure},
    time::{Nanos, Span},
};

use crate::{
    change::{ChangeError, Changed, LedgerRef, Step, change},
    host::{Cas, Host, Signal},
    rule_state::{Hold, RuleState, Terms},
    rulebook::RuleBook,
    shared::Shared,
    table::Table,
};

/// What a request asks of one rule.
#[derive(Debug)]
pub(crate) struct Ask {
    /// The rule's place in the claim order.
    pub(crate) rule: u32,
    /// Which of the rule's counters, where it has a table.
    pub(crate) key: u128,
    /// The threshold of a value that has its own.
    pub(crate) item: Option<u64>,
    /// What the rule has said so far.
    pub(crate) answer: Answer,
    /// What was taken from its ledger for this request.
    pub(crate) got: Got,
}

/// What a rule says to the request in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet.
    #[default]
    Pending,
    /// It refuses without asking anybody: by who calls, or by what the service has decided.
    Refuses,
    /// It lets the request pass.
    Passes,
    /// A shadow rule that would refuse: counted, and the request goes on.
    WouldBlock,
    /// The host failed, and the rule lets requests through then.
    Waived,
}

/// What was taken from a ledger for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Got {
    /// Nothing.
    #[default]
    Nothing,
    /// It is in the lease; so many tokens were claimed for this request alone.
    Lease(u64),
    /// Tokens of a value.
    Tokens(Tokens),
    /// Tokens of a value's bucket.
    Bucket(Taking),
    /// A permit: one that was idle, or one that was claimed for this request.
    Permit {
        /// Whether it was claimed.
        fresh: bool,
    },
    /// A permit of a value, in this entry of the table.
    ValuePermit(u128),
    /// The request is a probe.
    Probe(u64),
    /// A slot.
    Slot(Slot),
}

/// What the whole set of a request's rules says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// All is in hand: [`Ask::got`] says what.
    Pass,
    /// This rule refuses; nothing is spent.
    Refused {
        /// Its place in the claim order.
        rule: u32,
        /// When its next chance is, if that is known.
        retry_at: Option<Nanos>,
    },
    /// This rule's ledger belongs to a newer rule set: take that up, then ask again.
    Superseded {
        /// Its place in the claim order.
        rule: u32,
    },
}

/// Permits of values that this worker's requests are using: by the rule's generation and the table's entry.
pub(crate) type ValuePermits = Table<(u64, u128), ValuePermit>;

/// How many permits of one value are in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValuePermit {
    /// Where the value is counted.
    pub(crate) ledger: LedgerRef,
    /// The entry.
    pub(crate) key: u128,
    /// How many.
    pub(crate) in_use: u64,
    /// What the ledger says.
    pub(crate) written: u64,
    /// When it was last told.
    pub(crate) seen: Nanos,
}

/// Who claims, and as what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimant {
    /// The worker.
    pub(crate) incarnation: u64,
    /// Workers that share the ledgers.
    pub(crate) workers: u64,
    /// Whether this worker may take more than it needs.
    pub(crate) may_lease: bool,
    /// Whether one more request may wait.
    pub(crate) may_wait: bool,
    /// Which tick it is.
    pub(crate) tick: u64,
}

/// What a worker brings along to a ledger.
pub(crate) struct Claims<'a, H> {
    pub(crate) host: &'a mut H,
    pub(crate) shared: &'a mut Shared,
    pub(crate) values: &'a mut ValuePermits,
    /// What has happened, for the statistics.
    pub(crate) tally: &'a mut ClaimTally,
    /// The time of the request; moves on if a ledger is found further on.
    pub(crate) now: Nanos,
    /// The start of the newest bucket that was met.
    pub(crate) floor: Nanos,
    pub(crate) claimant: Claimant,
    given_back: Option<u64>,
    freed: Option<u64>,
}

/// What claims have cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClaimTally {
    pub(crate) claims: u64,
    pub(crate) failures: u64,
    pub(crate) slots_lost: u64,
    /// Names this worker's probes.
    pub(crate) probes: u64,
}

/// How a ledger answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Got(Got),
    Refused { retry_at: Option<Nanos> },
    Superseded,
    Failed,
}

/// What is known of a rule without a look at its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It needs nothing from its ledger for this request.
    InHand,
    /// It refuses; until when, as far as that is known.
    Refuses { retry_at: Option<Nanos> },
    /// Nothing: the ledger must be asked.
    Nothing,
}

/// How often a request starts again because time moved on while it was claiming. Each round means that
/// a bucket ended in between, so that a second one is rare and a fifth does not happen.
const ROUNDS_MAX: usize = 4;

/// How long a worker goes by what it knows of a ledger that has no signal of its own.
const MEMORY: Span = Span::from_millis(10);

impl Ask {
    /// A question to a rule.
    pub(crate) fn new(rule: u32, key: u128, item: Option<u64>) -> Self {
        Self { rule, key, item, answer: Answer::Pending, got: Got::Nothing }
    }
}

impl<'a, H: Host> Claims<'a, H> {
    pub(crate) fn new(
        host: &'a mut H,
        shared: &'a mut Shared,
        values: &'a mut ValuePermits,
        tally: &'a mut ClaimTally,
        now: Nanos,
        claimant: Claimant,
    ) -> Self {
        let floor = Nanos::default();
        Self { host, shared, values, tally, now, floor, claimant, given_back: None, freed: None }
    }

    /// Decides a request of `batch` tokens.
    pub(crate) fn admit(&mut self, book: &mut RuleBook, asks: &mut [Ask], batch: u64) -> Admission {
        let mut all_in_hand = true;
        let mut refused: Option<Admission> = None;
        for ask in asks.iter_mut() {
            let Some(state) = book.rule(ask.rule) else { continue };
            match self.look(state, ask, batch) {
                // What nearly every request is decided by. It is asked no more, as if it had been asked first.
                Known::InHand => {
                    (ask.answer, ask.got) = (Answer::Passes, in_hand(&state.hold));
                    continue;
                }
                Known::Refuses { retry_at } if !state.rule.common().shadow => {
                    let comes_first = match refused {
                        Some(Admission::Refused { rule, .. }) => is_before(book, ask.rule, rule),
                        _ => true,
                    };
                    if comes_first {
                        refused = Some(Admission::Refused { rule: ask.rule, retry_at });
                    }
                }
                Known::Refuses { .. } | Known::Nothing => {}
            }
            all_in_hand = false;
        }
        if all_in_hand {
            return Admission::Pass;
        }
        if let Some(refused) = refused {
            return self.first_refusal(book, asks, batch, refused);
        }
        for _ in 0..ROUNDS_MAX {
            for at in 0..asks.len() {
                let Some(ask) = asks.get_mut(at) else { continue };
                let Some(state) = book.rule_mut(ask.rule) else { continue };
                let rule = ask.rule;
                match self.obtain(state, ask, batch) {
                    Asked::Got(_) => {}
                    Asked::Refused { retry_at } => {
                        self.undo(book, asks, batch);
                        let refused = Admission::Refused { rule, retry_at };
                        return self.first_refusal(book, asks, batch, refused);
                    }
                    Asked::Superseded => {
                        self.undo(book, asks, batch);
                        return Admission::Superseded { rule };
                    }
                    Asked::Failed => {}
                }
            }
            if self.all_in_hand(book, asks, batch) {
                return Admission::Pass;
            }
        }
        self.undo(book, asks, batch);
        // Time outran four rounds of claims: the VM is being starved. Refusing is never over.
        let refuses = |ask: &&Ask| {
            ask.answer != Answer::Waived
                && book.rule(ask.rule).is_some_and(|state| !state.rule.common().shadow)
        };
        let first = asks.iter().find(refuses);
        first.map_or(Admission::Pass, |ask| Admission::Refused { rule: ask.rule, retry_at: None })
    }

    /// Gives tokens back to the rule's ledger and tells those who were refused.
    pub(crate) fn give_back(&mut self, state: &RuleState, key: u128, tokens: Tokens) {
        if tokens.tokens == 0 {
            return;
        }
        let (now, ledger) = (self.now, LedgerRef::of(state));
        let mut returned = 0;
        let changed = self.change(&ledger, key, false, &mut |step| {
            if let (Ledger::Rate(rate), Terms::Rate(terms)) = (step.ledger, &ledger.terms) {
                returned = rate.give_back(terms.shape, now, tokens);
            }
            returned > 0
        });
        match changed {
            Ok(_) if returned > 0 => self.host.raise(Signal::GivenBack),
            Ok(_) | Err(ChangeError::Superseded | ChangeError::Full) => {}
            // Never over: they stay granted until their bucket ends.
            Err(ChangeError::Host(_) | ChangeError::Layout) => self.tally.failures += 1,
        }
    }

    /// Writes how many permits of a rule this worker holds, and tells those who were refused if they are fewer
    /// than before.
    pub(crate) fn write_permits(&mut self, state: &mut RuleState) {
        let (now, incarnation, ledger) =
            (self.now, self.claimant.incarnation, LedgerRef::of(state));
        let Hold::Permits(permits) = &mut state.hold else { return };
        let held = permits.held();
        let changed = self.change(&ledger, 0, false, &mut |step| match step.ledger {
            Ledger::Permits(all) => {
                all.set(incarnation, held, now);
                true
            }
            Ledger::Rate(_) | Ledger::Pace(_) | Ledger::Bucket(_) | Ledger::Breaker(_) => false,
        });
        let fewer = held < permits.written;
        match changed {
            Ok(_) | Err(ChangeError::Superseded | ChangeError::Full) => {
                (permits.written, permits.seen) = (held, now);
                if fewer {
                    self.host.raise(Signal::Freed);
                }
            }
            // Owed: the next tick tries again.
            Err(ChangeError::Host(_) | ChangeError::Layout) => self.tally.failures += 1,
        }
    }

    /// Writes how many permits of a value this worker's requests use. `false` if the host would not take it.
    pub(crate) fn write_value(&mut self, value: &mut ValuePermit) -> bool {
        let (now, incarnation, in_use) = (self.now, self.claimant.incarnation, value.in_use);
        let ledger = value.ledger;
        let changed = self.change(&ledger, value.key, false, &mut |step| match step.ledger {
            Ledger::Permits(all) => {
                all.set(incarnation, in_use, now);
                true
            }
            Ledger::Rate(_) | Ledger::Pace(_) | Ledger::Bucket(_) | Ledger::Breaker(_) => false,
        });
        match changed {
            Ok(_) | Err(ChangeError::Superseded | ChangeError::Full) => {
                (value.written, value.seen) = (in_use, now);
                true
            }
            Err(ChangeError::Host(_) | ChangeError::Layout) => {
                self.tally.failures += 1;
                false
            }
        }
    }

    /// Changes a breaker's ledger by `step`, and takes in what it says then. `true` if its state is another.
    pub(crate) fn change_breaker(
        &mut self,
        state: &mut RuleState,
        step: &mut dyn FnMut(&mut sentinel_core::ledger::breaker::BreakerLedger) -> bool,
    ) -> bool {
        let (now, ledger) = (self.now, LedgerRef::of(state));
        let mut after = None;
        let changed = self.change(&ledger, 0, false, &mut |found| match found.ledger {
            Ledger::Breaker(breaker) => {
                let changed = step(breaker);
                after = Some(breaker.clone());
                changed
            }
            Ledger::Rate(_) | Ledger::Pace(_) | Ledger::Permits(_) | Ledger::Bucket(_) => false,
        });
        if let Err(ChangeError::Host(_) | ChangeError::Layout) = changed {
            self.tally.failures += 1;
        }
        let (Ok(_), Some(after), Hold::Breaker(view)) = (changed, after, &mut state.hold) else {
            return false;
        };
        let moved = view.state != after.state;
        view.see(&after, now);
        moved
    }

    /// `refused`, or the refusal of a rule that is checked before it and has not been asked yet.
    fn first_refusal(
        &mut self,
        book: &mut RuleBook,
        asks: &mut [Ask],
        batch: u64,
        refused: Admission,
    ) -> Admission {
        let mut first = refused;
        for ask in asks.iter_mut() {
            let Admission::Refused { rule, .. } = first else { break };
            if !is_before(book, ask.rule, rule) {
                continue;
            }
            let tick = self.claimant.tick;
            let Some(state) = book.rule_mut(ask.rule) else { continue };
            let asked = ask.answer != Answer::Pending
                || state.peeked == tick && state.place.sets == 0
                || state.rule.common().shadow
                || self.look(state, ask, batch) == Known::InHand;
            if asked {
                continue;
            }
            match self.ask_ledger(state, ask, batch, true) {
                Asked::Refused { retry_at } => {
                    first = Admission::Refused { rule: ask.rule, retry_at };
                }
                Asked::Got(_) | Asked::Superseded | Asked::Failed => state.peeked = tick,
            }
        }
        first
    }

    /// What is known of a rule: no call, but for the level of a signal where it has refused before.
    fn look(&mut self, state: &RuleState, ask: &Ask, batch: u64) -> Known {
        if ask.answer == Answer::Refuses {
            return Known::Refuses { retry_at: None };
        }
        let batch = state.counted(batch);
        let (is_in_hand, refuses_until) = match (&state.hold, &state.terms) {
            (_, Terms::Nothing) => (true, None),
            (Hold::Lease(lease), Terms::Rate(terms)) => {
                match lease.look(terms.shape, self.now, batch) {
                    Look::InHand => (true, None),
                    Look::Exhausted { given_back, retry_at }
                        if terms.may_lease() && given_back == self.given_back() =>
                    {
                        (false, Some(retry_at))
                    }
                    Look::Exhausted { .. } | Look::Claim { .. } => (false, None),
                }
            }
            (Hold::Permits(permits), _) => match permits.full {
                Some((until, freed, full_for))
                    if permits.idle == 0
                        && batch >= full_for
                        && self.now < until
                        && freed == self.freed() =>
                {
                    (false, Some(None))
                }
                Some(_) | None => (permits.idle > 0 && batch == 1, None),
            },
            (Hold::Pace { full_until, batch: full_for }, _)
                if self.now < *full_until && batch >= *full_for =>
            {
                (false, Some(Some(*full_until)))
            }
            (Hold::Breaker(view), _) => match view.state {
                BreakerState::Closed => (true, None),
                BreakerState::Open if self.now < view.retry_at => {
                    (false, Some(Some(view.retry_at)))
                }
                BreakerState::Open | BreakerState::HalfOpen => {
                    (false, (self.now < view.busy_until).then_some(None))
                }
            },
            _ => (ask.got != Got::Nothing, None),
        };
        match refuses_until {
            Some(retry_at) => Known::Refuses { retry_at },
            None if is_in_hand => Known::InHand,
            None => Known::Nothing,
        }
    }

    /// Gets what one rule wants into hand.
    fn obtain(&mut self, state: &mut RuleState, ask: &mut Ask, batch: u64) -> Asked {
        let is_done = match ask.answer {
            Answer::Pending | Answer::Refuses => false,
            // Tokens of a lease may have gone with their bucket; all else stays in hand.
            Answer::Passes => !matches!(ask.got, Got::Lease(_)),
            Answer::WouldBlock | Answer::Waived => true,
        };
        if is_done {
            return Asked::Got(ask.got);
        }
        let asked = match self.look(state, ask, batch) {
            Known::Refuses { retry_at } => Asked::Refused { retry_at },
            Known::InHand => Asked::Got(in_hand(&state.hold)),
            Known::Nothing => {
                self.tally.claims += 1;
                self.ask_ledger(state, ask, batch, false)
            }
        };
        match asked {
            Asked::Got(got) => {
                let fresh = match (ask.got, got) {
                    // What an earlier round claimed is still this request's own.
                    (Got::Lease(earlier), Got::Lease(now)) => Got::Lease(earlier.max(now)),
                    _ => got,
                };
                (ask.answer, ask.got) = (Answer::Passes, fresh);
            }
            Asked::Refused { .. } if state.rule.common().shadow => {
                (ask.answer, ask.got) = (Answer::WouldBlock, Got::Nothing);
                return Asked::Got(Got::Nothing);
            }
            Asked::Failed => {
                self.tally.failures += 1;
                let common = state.rule.common();
                if !common.shadow && common.on_host_failure == OnHostFailure::Block {
                    return Asked::Refused { retry_at: None };
                }
                ask.answer = Answer::Waived;
            }
            Asked::Refused { .. } | Asked::Superseded => {}
        }
        asked
    }

    /// Asks the ledger; `dry`: without taking anything.
    fn ask_ledger(&mut self, state: &mut RuleState, ask: &Ask, batch: u64, dry: bool) -> Asked {
        let batch = state.counted(batch);
        let (freed, given_back) = match state.keeps() {
            Keeps::Permits => (self.freed(), 0),
            Keeps::Rate => (0, self.given_back()),
            Keeps::Nothing | Keeps::Pace | Keeps::Bucket | Keeps::Breaker => (0, 0),
        };
        let ledger = LedgerRef::of(state);
        let asker = Asker { now: self.now, claimant: self.claimant, batch, item: ask.item };
        self.tally.probes = self.tally.probes.wrapping_add(1);
        let probe = Probe {
            incarnation: self.claimant.incarnation,
            id: self.tally.probes,
            since: self.now,
        };
        let (hold, values) = (&state.hold, &*self.values);
        let mut reply = Reply::None;
        let changed =
            change(self.host, self.shared, &ledger, self.now, ask.key, dry, &mut |step| {
                asker.ask(step, &ledger, hold, values, probe, &mut reply)
            });
        let seen = match changed {
            Ok(changed) => changed.seen,
            Err(ChangeError::Superseded) => {
                if let Hold::Lease(lease) = &mut state.hold {
                    lease.drop_held();
                }
                return Asked::Superseded;
            }
            Err(ChangeError::Full) => return Asked::Refused { retry_at: None },
            Err(ChangeError::Host(_) | ChangeError::Layout) => return Asked::Failed,
        };
        match reply {
            Reply::None => Asked::Failed,
            Reply::Slot(slot) => Asked::Got(Got::Slot(slot)),
            Reply::Taken(taking) => Asked::Got(Got::Bucket(taking)),
            Reply::Refused(retry_at) => {
                if let (Hold::Pace { full_until, batch: full_for }, Some(retry_at)) =
                    (&mut state.hold, retry_at)
                {
                    (*full_until, *full_for) = (retry_at.min(self.now + MEMORY), batch);
                }
                Asked::Refused { retry_at }
            }
            Reply::Claimed(claimed) => {
                self.take_claimed(state, claimed, batch, given_back, seen, dry)
            }
            Reply::Permit { entry, written } => {
                if let Hold::Permits(permits) = &mut state.hold
                    && !dry
                {
                    // The claim wrote what is in use and one more: what was idle went back with it.
                    permits.idle = 0;
                    (permits.written, permits.seen) = (written, self.now);
                    Asked::Got(Got::Permit { fresh: true })
                } else {
                    Asked::Got(Got::ValuePermit(entry))
                }
            }
            Reply::NoPermit => {
                if let Hold::Permits(permits) = &mut state.hold {
                    permits.full = Some((self.now + MEMORY, freed, batch));
                    let others_keep = state.stamp.threshold >= 8.0 * self.claimant.workers as f64;
                    if others_keep && (seen.is_none() || state.refused_at != seen) {
                        state.refused_at = seen;
                        self.host.raise(Signal::Wanted);
                    }
                }
                Asked::Refused { retry_at: None }
            }
            Reply::Breaker(admitted, after) => {
                let Hold::Breaker(view) = &mut state.hold else { return Asked::Failed };
                if !dry {
                    view.see(&after, self.now);
                }
                match admitted {
                    Admitted::Closed => Asked::Got(Got::Nothing),
                    Admitted::Probe => Asked::Got(Got::Probe(probe.id)),
                    Admitted::Refused { retry_at } => {
                        view.busy_until = self.now + MEMORY;
                        Asked::Refused { retry_at }
                    }
                }
            }
        }
    }

    fn take_claimed(
        &mut self,
        state: &mut RuleState,
        claimed: Claimed,
        batch: u64,
        given_back: u64,
        seen: Option<Cas>,
        dry: bool,
    ) -> Asked {
        let Terms::Rate(terms) = state.terms else { return Asked::Failed };
        let shape = terms.shape;
        let bucket = match claimed {
            Claimed::Granted { bucket, .. } | Claimed::Exhausted { bucket, .. } => bucket,
        };
        // Time never goes back behind a bucket that somebody has opened.
        let spendable = state.hold.lease().map_or(0, |lease| lease.spendable_at(shape, self.now));
        let need = batch.saturating_sub(spendable).max(1);
        self.floor = self.floor.max(shape.start_of(bucket));
        self.now = self.now.max(shape.start_of(bucket));
        let Hold::Lease(lease) = &mut state.hold else {
            return match claimed {
                Claimed::Granted { bucket, tokens } => {
                    Asked::Got(Got::Tokens(Tokens { bucket, tokens }))
                }
                Claimed::Exhausted { next_chance, .. } => {
                    Asked::Refused { retry_at: next_chance.map(|bucket| shape.start_of(bucket)) }
                }
            };
        };
        match claimed {
            Claimed::Granted { .. } if dry => Asked::Got(Got::Nothing),
            Claimed::Granted { tokens, .. } => {
                lease.claimed(shape, claimed, need, given_back);
                Asked::Got(Got::Lease(if tokens == need { need } else { 0 }))
            }
            Claimed::Exhausted { next_chance, .. } => {
                lease.claimed(shape, claimed, need, given_back);
                let never = state.stamp.threshold < 1.0;
                if !never && (seen.is_none() || state.refused_at != seen) {
                    // Whoever holds tokens he does not need gives them back, unless nothing has moved since
                    // they were last asked for: then nobody holds any, or they are on their way.
                    state.refused_at = seen;
                    self.host.raise(Signal::Wanted);
                }
                Asked::Refused { retry_at: next_chance.map(|bucket| shape.start_of(bucket)) }
            }
        }
    }

    /// Whether every token is still spendable, now that the last one has been claimed.
    fn all_in_hand(&mut self, book: &RuleBook, asks: &[Ask], batch: u64) -> bool {
        asks.iter().all(|ask| match book.rule(ask.rule) {
            Some(state) if matches!(ask.got, Got::Lease(_)) => {
                self.look(state, ask, batch) == Known::InHand
            }
            Some(_) | None => true,
        })
    }

    /// Gives back what was claimed for this request alone.
    pub(crate) fn undo(&mut self, book: &mut RuleBook, asks: &mut [Ask], batch: u64) {
        for ask in asks.iter_mut() {
            let got = core::mem::take(&mut ask.got);
            let Some(state) = book.rule_mut(ask.rule) else { continue };
            let incarnation = self.claimant.incarnation;
            match got {
                Got::Nothing | Got::Lease(0) | Got::Permit { fresh: false } => {}
                Got::Lease(fresh) => {
                    if let Hold::Lease(lease) = &mut state.hold {
                        let tokens = lease.take_out(fresh);
                        self.give_back(state, ask.key, tokens);
                    }
                }
                Got::Tokens(tokens) => self.give_back(state, ask.key, tokens),
                Got::Bucket(taking) => {
                    let (ledger, item) = (LedgerRef::of(state), ask.item);
                    let changed = self.change(&ledger, ask.key, false, &mut |step| {
                        let threshold = item.unwrap_or_else(|| whole(step.threshold));
                        match (step.ledger, &ledger.terms) {
                            (Ledger::Bucket(bucket), Terms::Bucket { terms, .. }) => {
                                bucket.put_back(&taking, batch, threshold, terms)
                            }
                            _ => false,
                        }
                    });
                    self.count_failure(changed.err());
                }
                Got::Permit { fresh: true } => self.write_permits(state),
                Got::ValuePermit(entry) => {
                    let place = (state.stamp.generation, entry);
                    let mut value = self.value_of(place, state, ask.key);
                    if !self.write_value(&mut value) {
                        // Owed: it stays on the list until the host takes it back.
                        if let Some(kept) = self.values.get_or_insert_with(place, || value) {
                            kept.written = kept.in_use.saturating_add(1);
                        }
                    }
                }
                Got::Probe(id) => {
                    self.change_breaker(state, &mut |breaker| breaker.abort(incarnation, id));
                }
                Got::Slot(slot) => {
                    let ledger = LedgerRef::of(state);
                    let mut undone = false;
                    let changed = self.change(&ledger, ask.key, false, &mut |step| {
                        if let (Ledger::Pace(pace), Terms::Pace(terms)) =
                            (step.ledger, &ledger.terms)
                        {
                            undone = pace.undo(&slot, terms);
                        }
                        true
                    });
                    self.count_failure(changed.err());
                    self.tally.slots_lost += u64::from(!undone);
                }
            }
        }
    }

    /// What this worker uses of a value.
    pub(crate) fn value_of(&self, place: (u64, u128), state: &RuleState, key: u128) -> ValuePermit {
        self.values.get(&place).copied().unwrap_or_else(|| ValuePermit {
            ledger: LedgerRef::of(state),
            key,
            in_use: 0,
            written: 0,
            seen: self.now,
        })
    }

    fn count_failure(&mut self, error: Option<ChangeError>) {
        if let Some(ChangeError::Host(_) | ChangeError::Layout) = error {
            self.tally.failures += 1;
        }
    }

    fn change(
        &mut self,
        of: &LedgerRef,
        key: u128,
        dry: bool,
        step: &mut dyn FnMut(Step<'_>) -> bool,
    ) -> Result<Changed, ChangeError> {
        change(self.host, self.shared, of, self.now, key, dry, step)
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

    /// The same for permits.
    fn freed(&mut self) -> u64 {
        if let Some(level) = self.freed {
            return level;
        }
        let level = self.host.level(Signal::Freed);
        self.freed = Some(level);
        level
    }
}

/// What one step of a ledger says.
enum Reply {
    None,
    Slot(Slot),
    Taken(Taking),
    Refused(Option<Nanos>),
    Claimed(Claimed),
    Permit { entry: u128, written: u64 },
    NoPermit,
    Breaker(Admitted, sentinel_core::ledger::breaker::BreakerLedger),
}

/// What a step needs to know of the request.
struct Asker {
    now: Nanos,
    claimant: Claimant,
    batch: u64,
    item: Option<u64>,
}

impl Asker {
    fn ask(
        &self,
        step: Step<'_>,
        of: &LedgerRef,
        hold: &Hold,
        values: &ValuePermits,
        probe: Probe,
        reply: &mut Reply,
    ) -> bool {
        let (now, batch) = (self.now, self.batch);
        match (step.ledger, &of.terms) {
            (Ledger::Rate(rate), Terms::Rate(terms)) => {
                let (held, demand, spendable) = match hold.lease() {
                    Some(lease) => (
                        lease.held(),
                        lease.demand(terms.shape, now),
                        lease.spendable_at(terms.shape, now),
                    ),
                    None => (Tokens::default(), 0, 0),
                };
                let may_lease = self.claimant.may_lease && terms.may_lease();
                let claim = Claim {
                    now,
                    need: batch.saturating_sub(spendable),
                    demand: if may_lease { demand } else { 0 },
                    workers: self.claimant.workers,
                    held,
                };
                let (claimed, changed) = rate.claim(terms, step.threshold, step.is_current, &claim);
                *reply = Reply::Claimed(claimed);
                changed
            }
            (Ledger::Pace(pace), Terms::Pace(terms)) => {
                let mut terms = *terms;
                if !self.claimant.may_wait {
                    terms.max_wait = Span::ZERO;
                }
                #[expect(clippy::cast_precision_loss, reason = "thresholds are at most 2^53")]
                let threshold = self.item.map_or(step.threshold, |item| item as f64);
                let (paced, changed) = pace.claim(now, batch, threshold, &terms, step.is_current);
                *reply = match paced {
                    Paced::At(slot) => Reply::Slot(slot),
                    Paced::Refused { retry_at } => Reply::Refused(retry_at),
                };
                changed
            }
            (Ledger::Bucket(bucket), Terms::Bucket { terms, .. }) => {
                let threshold = self.item.unwrap_or_else(|| whole(step.threshold));
                match bucket.take(now, batch, threshold, terms) {
                    Taken::From(taking) => {
                        *reply = Reply::Taken(taking);
                        true
                    }
                    Taken::Refused { retry_at } => {
                        *reply = Reply::Refused(retry_at);
                        false
                    }
                }
            }
            (Ledger::Permits(permits), Terms::Permits { ttl }) => {
                let threshold = self.item.unwrap_or_else(|| whole(step.threshold));
                let in_use = match hold.permits() {
                    Some(permits) => permits.in_use,
                    None => {
                        let value = values.get(&(of.stamp.generation, step.entry));
                        value.map_or(0, |value| value.in_use)
                    }
                };
                let incarnation = self.claimant.incarnation;
                let claim = PermitClaim { incarnation, now, in_use, batch, ttl: *ttl };
                let is_granted = permits.claim(&claim, threshold);
                *reply = if is_granted {
                    Reply::Permit { entry: step.entry, written: in_use.saturating_add(1) }
                } else {
                    Reply::NoPermit
                };
                is_granted
            }
            (Ledger::Breaker(breaker), Terms::Breaker(terms)) => {
                let (admitted, changed) = breaker.admit(probe, now, terms);
                *reply = Reply::Breaker(admitted, breaker.clone());
                changed
            }
            _ => {
                *reply = Reply::None;
                false
            }
        }
    }
}

/// What a request takes of a rule from which it needs nothing but what is in hand.
fn in_hand(hold: &Hold) -> Got {
    match hold {
        Hold::Lease(_) => Got::Lease(0),
        Hold::Permits(_) => Got::Permit { fresh: false },
        Hold::Nothing | Hold::Pace { .. } | Hold::Breaker(_) => Got::Nothing,
    }
}

/// Whether rule `a` is checked before rule `b`.
fn is_before(book: &RuleBook, a: u32, b: u32) -> bool {
    match (book.rule(a), book.rule(b)) {
        (Some(a), Some(b)) => a.is_checked_before(b),
        _ => false,
    }
}

fn whole(threshold: f64) -> u64 {
    sentinel_core::ledger::rate::whole_tokens(threshold)
}
