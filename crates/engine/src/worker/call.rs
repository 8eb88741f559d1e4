//! A request from its entry to its end.
//!
//! `enter` finds out which rules look at the request and what they ask of it, and decides it; `exit` gives back
//! what it held until then.

use alloc::{rc::Rc, vec::Vec};

use sentinel_core::{
    block::BlockType,
    config::BeforeFirstRules,
    ledger::breaker::BreakerState,
    network::{Address, Network},
    param::{ParamValue, Request},
    rule::{HotspotRule, LimitApp, OnHostFailure, OnServiceLoss, Rule, SystemMetric, Target, Unit},
    time::{Nanos, Span},
};

use super::{
    FRAME_PAUSE, ROUNDS_MAX, Worker,
    waiting::{self, Waiting},
};
use crate::{
    admission::{Admission, Answer, Ask, Claimant, Claims, Got, ValuePermit},
    change::LedgerRef,
    host::{Host, Meter, Signal},
    nodes::OTHER_NODE,
    rule_state::{Hold, RuleState, Terms, is_bad},
    rulebook::{Applying, ascending},
};

/// A request, as far as every one has it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What it is called.
    pub resource: &'a [u8],
    /// How often it counts: 1 for an HTTP request.
    pub batch: u32,
    /// Whether it comes in: only then do system rules look at it.
    pub inbound: bool,
    /// What the shell calls it: [`Worker::due`] names it so when it need not wait any longer.
    pub stream: u32,
    /// The listener's own answer while there is no rule set; it wins over the setting.
    pub before_first_rules: Option<BeforeFirstRules>,
}

/// What a request is told.
#[derive(Debug)]
pub enum Verdict {
    /// It may go on; `exit` must be told of its end.
    Pass(Entry),
    /// It may go on at this time, when [`Worker::due`] names it; `exit` must be told of its end, also if that
    /// comes first.
    Wait(Entry, Nanos),
    /// It is refused, and nothing is spent.
    Blocked(Blocked),
}

/// A request that was admitted and has not ended. Consumed by [`Worker::exit`]: it cannot end twice.
#[derive(Debug)]
#[must_use = "an entry that does not exit is in flight for ever"]
pub struct Entry {
    node: u32,
    batch: u64,
    start: Nanos,
    needs_status: bool,
    inbound: bool,
    /// The stream, while it may be waiting.
    waits: Option<u32>,
    held: Vec<Held>,
}

/// What a request holds until it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The rule.
    generation: u64,
    what: HeldOf,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum HeldOf {
    Permit,
    Value(u128),
    Probe(u64),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The response's status; `None`: there was none, because of a reset or a time-out.
    pub http_status: Option<u16>,
    /// The status of a gRPC call.
    pub grpc_status: Option<u32>,
}

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct Blocked {
    /// The kind of rule.
    pub block_type: BlockType,
    /// The rule; `None` while there is no rule set yet and `beforeFirstRules` blocks.
    pub rule: Option<Rc<Rule>>,
    /// How long until the next chance, if that is known.
    pub retry_after: Option<Span>,
}

impl Entry {
    /// Whether [`Worker::exit`] must be told how the request ended. Reading the status costs a host call that
    /// returns bytes, so it is read only where somebody wants to know.
    pub fn needs_status(&self) -> bool {
        self.needs_status
    }
}

impl Outcome {
    /// A response that is no error.
    pub const OK: Self = Self { http_status: Some(200), grpc_status: None };

    /// No response at all.
    pub const FAILED: Self = Self { http_status: None, grpc_status: None };

    /// gRPC statuses that are errors where no rule says otherwise: UNKNOWN, DEADLINE_EXCEEDED,
    /// RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE and DATA_LOSS.
    const GRPC_ERRORS: [u32; 6] = [2, 4, 8, 13, 14, 15];

    /// Whether this is an error: status 500 and above, none at all, or an error of gRPC's.
    pub fn is_error(self) -> bool {
        self.is_error_by(None, None)
    }

    /// The same where a rule has statuses of its own. No response is always an error.
    pub(crate) fn is_error_by(self, http: Option<&[(u16, u16)]>, grpc: Option<&[u32]>) -> bool {
        let Some(status) = self.http_status else { return true };
        let http = match http {
            Some(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&status)),
            None => status >= 500,
        };
        let grpc_errors = grpc.unwrap_or(&Self::GRPC_ERRORS);
        http || self.grpc_status.is_some_and(|status| grpc_errors.contains(&status))
    }
}

impl Worker {
    /// Decides a request. `request` answers what rules ask of it.
    pub fn enter<H: Host + Meter>(
        &mut self,
        host: &mut H,
        call: &Call<'_>,
        request: &mut dyn Request,
    ) -> Verdict {
        let now = self.time(host);
        self.enter_at(host, now, call, request)
    }

    /// The same for who has just asked for the [`Worker::time`].
    pub fn enter_at<H: Host + Meter>(
        &mut self,
        host: &mut H,
        now: Nanos,
        call: &Call<'_>,
        request: &mut dyn Request,
    ) -> Verdict {
        let batch = u64::from(call.batch);
        self.seen_at = now;
        self.look_at_decisions(host, now);
        let mut node = OTHER_NODE;
        let mut needs_status = false;
        for round in 1..=ROUNDS_MAX {
            if (self.book.version == 0 || self.book.pending)
                && self.before_first_rules(call.before_first_rules) == BeforeFirstRules::Block
            {
                self.nodes.block(OTHER_NODE, batch, None);
                self.blocked_before_rules = self.blocked_before_rules.saturating_add(batch);
                return Verdict::Blocked(Blocked {
                    block_type: BlockType::System,
                    rule: None,
                    retry_after: None,
                });
            }
            let applying = self.book.applying(&self.clock, call.resource);
            (node, needs_status) = (applying.node, applying.needs_status);
            if applying.rules.is_empty() && self.book.groups.is_empty() {
                break;
            }
            self.ask_rules(&applying, Unit::Request, call, request);
            match self.admit(host, now, batch) {
                Admission::Pass => break,
                Admission::Refused { rule, retry_at } => {
                    self.asks.clear();
                    self.nodes.block(node, batch, self.inbound.filter(|_| call.inbound));
                    return Verdict::Blocked(self.refusal(rule, retry_at, now));
                }
                Admission::Superseded { rule } if round < ROUNDS_MAX => {
                    self.follow(host, rule);
                    // A breaker of the newer set may be open already.
                    self.look_at_decisions(host, now);
                }
                // The newer rule set is announced by its ledgers and cannot be read: as if the ledger could not.
                Admission::Superseded { rule } => {
                    self.asks.clear();
                    self.tally.failures = self.tally.failures.saturating_add(1);
                    if self.answers_failure(rule) == OnHostFailure::Pass {
                        break;
                    }
                    self.note_refusal(rule, batch);
                    self.nodes.block(node, batch, self.inbound.filter(|_| call.inbound));
                    return Verdict::Blocked(self.refusal(rule, None, now));
                }
            }
        }
        let (held, slots) = self.settle_asks(batch);
        let until = waiting::last(&slots);
        self.nodes.pass(node, batch, self.inbound.filter(|_| call.inbound));
        let waits = until > now;
        let entry = Entry {
            node,
            batch,
            start: now,
            needs_status,
            inbound: call.inbound,
            waits: waits.then_some(call.stream),
            held,
        };
        if waits {
            self.waiting.push(Waiting::new(call.stream, slots));
            Verdict::Wait(entry, until)
        } else {
            Verdict::Pass(entry)
        }
    }

    /// Counts the end of an admitted request. `outcome` matters where [`Entry::needs_status`] said so.
    pub fn exit<H: Host + Meter>(&mut self, host: &mut H, entry: Entry, outcome: Outcome) {
        let Entry { node, batch, start, needs_status, inbound, waits, mut held } = entry;
        let now = self.now(host);
        self.seen_at = now;
        if let Some(stream) = waits {
            self.waiting.retain(|waiting| waiting.stream != stream);
        }
        let rt_ms = now.since(start).as_millis();
        // What a breaker has judged it does not count as well.
        let probed = |held: &Held| matches!(held.what, HeldOf::Probe(_)).then_some(held.generation);
        let probes: Vec<u64> = held.iter().filter_map(probed).collect();
        for held in &held {
            self.release(host, now, *held, rt_ms, outcome);
        }
        held.clear();
        self.keep_spare(held);
        let is_urgent = self.count_for_breakers(host, (start, now), node, &probes, rt_ms, outcome);
        let error = needs_status && outcome.is_error();
        let inbound = self.inbound.filter(|_| inbound);
        self.nodes.complete(host, node, batch, rt_ms, error, inbound);
        self.counted_at = now;
        if (is_urgent || !probes.is_empty())
            && now.since(self.frame_at) >= FRAME_PAUSE
            && !self.service.silent
        {
            self.send_frame(host, now, true);
        }
    }

    /// Adds to what a connection that was admitted has carried, in bytes.
    pub fn count_bytes<M: Meter>(&mut self, meter: &mut M, entry: &Entry, up: u64, down: u64) {
        self.nodes.count_bytes(meter, entry.node, [up, down]);
    }

    /// Why a connection that was admitted must end now: a breaker that closes live connections has opened since.
    pub fn cut<H: Host>(&mut self, host: &mut H, entry: &Entry) -> Option<Blocked> {
        let breakers = self.nodes.breakers_of(entry.node);
        let cuts = |worker: &Self, index: u32, must_be_open: bool| {
            worker.book.rule(index).is_some_and(|state| match (&*state.rule, &state.hold) {
                (Rule::CircuitBreaker(rule), Hold::Breaker(view)) => {
                    rule.close_live_connections
                        && !rule.common.shadow
                        && (!must_be_open || view.state == BreakerState::Open)
                }
                _ => false,
            })
        };
        // Asked for every piece of data: nothing is read where no rule wants it.
        if !breakers.iter().any(|&index| cuts(self, index, false)) {
            return None;
        }
        let now = self.now(host);
        self.look_at_decisions(host, now);
        let open = breakers.iter().find(|&&index| cuts(self, index, true))?;
        Some(self.refusal(*open, None, now))
    }

    pub(super) fn admit<H: Host>(&mut self, host: &mut H, now: Nanos, batch: u64) -> Admission {
        let claimant = self.claimant();
        let Self { shared, values, tally, book, asks, .. } = self;
        let mut claims = Claims::new(host, shared, values, tally, now, claimant);
        let admission = claims.admit(book, asks, batch);
        self.floor = self.floor.max(claims.floor);
        if admission == Admission::Pass {
            // `settle_asks` comes next, and does the rest.
            return admission;
        }
        for at in 0..self.asks.len() {
            if let Some(rule) = self.asks.get(at).map(|ask| ask.rule) {
                self.look_at_in_tick(rule);
            }
        }
        if let Admission::Refused { rule, .. } = admission {
            self.note_refusal(rule, batch);
        }
        admission
    }

    /// Finds out which rules look at the request, and what they ask of it.
    pub(super) fn ask_rules(
        &mut self,
        applying: &Applying,
        unit: Unit,
        call: &Call<'_>,
        request: &mut dyn Request,
    ) {
        self.asks.clear();
        let mut of_groups = Vec::new();
        // Messages have no path.
        if unit == Unit::Request && !self.book.groups.is_empty() {
            let path = request.path();
            for group in self.book.groups.iter().filter(|group| group.holds(&path)) {
                of_groups.extend_from_slice(&group.rules);
            }
        }
        let mut origin = None;
        let mut ask = |worker: &mut Self, rule: u32| {
            if let Some(ask) = worker.question(rule, unit, call, request, &mut origin) {
                worker.asks.push(ask);
            }
        };
        if of_groups.is_empty() {
            applying.rules.iter().for_each(|&rule| ask(self, rule));
        } else {
            of_groups.extend_from_slice(&applying.rules);
            ascending(&mut of_groups);
            of_groups.into_iter().for_each(|rule| ask(self, rule));
        }
    }

    /// What a rule wants to know of the request; `None` if it does not look at it.
    pub(super) fn question(
        &mut self,
        index: u32,
        unit: Unit,
        call: &Call<'_>,
        request: &mut dyn Request,
        origin: &mut Option<Vec<u8>>,
    ) -> Option<Ask> {
        let Self { book, key, clock, service, .. } = self;
        let state = book.rule(index)?;
        let rule = &*state.rule;
        if rule.common().unit != unit {
            return None;
        }
        if state.is_plain {
            return Some(Ask::new(index, 0, None));
        }
        let refuses = || Ask { answer: Answer::Refuses, ..Ask::new(index, 0, None) };
        if !call.inbound && matches!(rule, Rule::System(_)) {
            return None;
        }
        if service.is_lost && rule.needs_service() {
            match rule.common().on_service_loss {
                OnServiceLoss::Keep => {}
                OnServiceLoss::Pass => return None,
                OnServiceLoss::Block => return Some(refuses()),
            }
        }
        key.clear();
        let is_many = rule.target().is_some_and(Target::is_many);
        if is_many {
            key.extend_from_slice(call.resource);
            // Names and callers cannot run into each other: the length comes behind the name.
            key.extend_from_slice(&call.resource.len().to_le_bytes());
        }
        match rule {
            Rule::Authority(authority) => {
                let origin = origin.get_or_insert_with(|| request.origin());
                let is_named = authority.origins.iter().any(|known| known.as_bytes() == *origin);
                let is_listed = is_named || is_in(&state.networks, origin);
                let passes = origin.is_empty() || is_listed == authority.white_list;
                return (!passes).then(refuses);
            }
            Rule::System(system) => {
                if let SystemMetric::AvgRt | SystemMetric::CpuUsage { .. } = system.metric {
                    return (state.decision == Some(1)).then(refuses);
                }
            }
            Rule::Flow(flow) => {
                match &flow.limit_app {
                    LimitApp::Default => {}
                    LimitApp::Origin(wanted) => {
                        let origin = origin.get_or_insert_with(|| request.origin());
                        if wanted.as_bytes() != *origin {
                            return None;
                        }
                    }
                    LimitApp::Other => {
                        let origin = origin.get_or_insert_with(|| request.origin());
                        let is_named = state.others.iter().any(|other| other.as_bytes() == *origin);
                        if origin.is_empty() || is_named {
                            return None;
                        }
                        key.extend_from_slice(origin);
                    }
                }
                if let Terms::Nothing = state.terms {
                    let is_over = state.decision.is_some_and(|left| u64::from(call.batch) > left);
                    return is_over.then(refuses);
                }
            }
            Rule::Isolation(_) | Rule::CircuitBreaker(_) => {}
            Rule::Gateway(hotspot) | Rule::Hotspot(hotspot) => {
                let Some(value) = value_of(hotspot, state, request)? else {
                    return Some(Ask::new(index, 0, None));
                };
                value.write_key(key);
                let item = hotspot.items.iter().find(|item| value.is(&item.value));
                let hash = clock.hash_wide(key);
                return Some(Ask::new(index, hash, item.map(|item| item.threshold)));
            }
        }
        let hash = if state.place.sets > 0 { clock.hash_wide(key) } else { 0 };
        Some(Ask::new(index, hash, None))
    }

    /// Spends what an admitted request has in hand. Gives what it holds until it ends, and the slots before which it
    /// must not go, by generation of their rules.
    pub(super) fn settle_asks(&mut self, batch: u64) -> (Vec<Held>, Vec<(u64, Nanos)>) {
        let mut held = Vec::new();
        let mut slots = Vec::new();
        let mut asks = core::mem::take(&mut self.asks);
        for ask in &asks {
            let now = self.seen_at;
            let Some(state) = self.book.rule_mut(ask.rule) else { continue };
            if ask.answer == Answer::WouldBlock {
                state.blocked = state.blocked.saturating_add(batch);
            }
            let generation = state.stamp.generation;
            let spare = &mut self.spare;
            let mut hold = |what| {
                if held.capacity() == 0 {
                    held = spare.pop().unwrap_or_default();
                }
                held.push(Held { generation, what });
            };
            match ask.got {
                Got::Nothing | Got::Tokens(_) | Got::Bucket(_) => {}
                Got::Lease(_) => {
                    if let Hold::Lease(lease) = &mut state.hold {
                        lease.spend(batch);
                    }
                }
                Got::Permit { fresh } => {
                    if let Hold::Permits(permits) = &mut state.hold {
                        permits.in_use = permits.in_use.saturating_add(1);
                        permits.idle = permits.idle.saturating_sub(u64::from(!fresh));
                        permits.used = true;
                    }
                    hold(HeldOf::Permit);
                }
                Got::ValuePermit(entry) => {
                    let place = (generation, entry);
                    let new = || ValuePermit {
                        ledger: LedgerRef::of(state),
                        key: ask.key,
                        in_use: 0,
                        written: 0,
                        seen: now,
                    };
                    if let Some(value) = self.values.get_or_insert_with(place, new) {
                        value.in_use = value.in_use.saturating_add(1);
                        (value.written, value.seen) = (value.in_use, now);
                    }
                    hold(HeldOf::Value(entry));
                }
                Got::Probe(id) => hold(HeldOf::Probe(id)),
                // A shadow rule takes its slots, and nobody waits for them.
                Got::Slot(slot) if !state.rule.common().shadow => slots.push((generation, slot.at)),
                Got::Slot(_) => {}
            }
            self.look_at_in_tick(ask.rule);
        }
        asks.clear();
        self.asks = asks;
        (held, slots)
    }

    /// Keeps an emptied list for the next request that holds anything.
    pub(super) fn keep_spare(&mut self, held: Vec<Held>) {
        if held.capacity() > 0 && self.spare.len() < SPARE_MAX {
            self.spare.push(held);
        }
    }

    /// Gives back what a request held until its end.
    pub(super) fn release<H: Host + Meter>(
        &mut self,
        host: &mut H,
        now: Nanos,
        held: Held,
        rt_ms: u64,
        outcome: Outcome,
    ) {
        let claimant = self.claimant();
        let index = self.book.index_of(held.generation);
        let failures = self.tally.failures;
        let Self { shared, values, tally, book, .. } = self;
        let mut claims = Claims::new(host, shared, values, tally, now, claimant);
        match held.what {
            HeldOf::Value(entry) => {
                let place = (held.generation, entry);
                let Some(mut value) = claims.values.get(&place).copied() else { return };
                value.in_use = value.in_use.saturating_sub(1);
                let written = claims.write_value(&mut value);
                if written && value.in_use == 0 {
                    claims.values.remove(&place);
                } else if let Some(kept) = claims.values.get_or_insert_with(place, || value) {
                    *kept = value;
                }
            }
            HeldOf::Permit => {
                // A rule that is gone has left its ledger to the next one.
                let Some(state) = index.and_then(|index| book.rule_mut(index)) else { return };
                let keep_most = kept_most(state, &claimant);
                let Hold::Permits(permits) = &mut state.hold else { return };
                permits.in_use = permits.in_use.saturating_sub(1);
                if permits.idle < keep_most && now >= permits.wanted_until {
                    permits.idle += 1;
                } else {
                    claims.write_permits(state);
                }
            }
            HeldOf::Probe(id) => {
                let Some(state) = index.and_then(|index| book.rule_mut(index)) else { return };
                let rule = Rc::clone(&state.rule);
                let (Rule::CircuitBreaker(breaker), Terms::Breaker(terms)) = (&*rule, state.terms)
                else {
                    return;
                };
                let good = !is_bad(breaker, rt_ms, outcome);
                let incarnation = claimant.incarnation;
                let moved = claims.change_breaker(state, &mut |ledger| {
                    ledger.judge(incarnation, id, good, now, &terms)
                });
                if moved {
                    host.raise(Signal::Decided);
                }
            }
        }
        if let Some(index) = index {
            self.look_at_in_tick(index);
        }
        if self.tally.failures != failures {
            self.permits_owed = self.count_owed();
        }
    }

    pub(super) fn note_refusal(&mut self, rule: u32, batch: u64) {
        if let Some(state) = self.book.rule_mut(rule) {
            state.blocked = state.blocked.saturating_add(batch);
        }
        self.look_at_in_tick(rule);
    }

    /// What a rule does where its ledger cannot be used. A shadow rule never blocks.
    pub(super) fn answers_failure(&mut self, rule: u32) -> OnHostFailure {
        match self.book.rule_mut(rule).map(|state| state.rule.common()) {
            Some(common) if common.shadow => OnHostFailure::Pass,
            Some(common) => common.on_host_failure,
            None => OnHostFailure::default(),
        }
    }

    pub(super) fn refusal(&mut self, rule: u32, retry_at: Option<Nanos>, now: Nanos) -> Blocked {
        Blocked {
            block_type: self
                .book
                .rule(rule)
                .map_or(BlockType::FlowControl, |state| state.rule.block_type()),
            rule: self.book.rule(rule).map(|state| Rc::clone(&state.rule)),
            retry_after: retry_at.map(|at| at.since(now)),
        }
    }
}

/// Whether who calls is known by an address in one of these networks.
fn is_in(networks: &[Network], origin: &[u8]) -> bool {
    !networks.is_empty()
        && Address::parse(origin)
            .is_some_and(|address| networks.iter().any(|network| network.contains(address)))
}

/// The value that a hot-parameter rule counts by; `Some(None)`: all requests are one. `None`: the rule does not
/// look at this request.
fn value_of(
    rule: &HotspotRule,
    state: &RuleState,
    request: &mut dyn Request,
) -> Option<Option<ParamValue>> {
    let Some(pick) = &rule.param else { return Some(None) };
    let by_key = pick.key.as_ref().and_then(|key| request.param(key));
    let value = by_key.or_else(|| pick.index.and_then(|index| request.arg(index)))?;
    let counts = pick
        .matching
        .as_ref()
        .is_none_or(|matching| matching.accepts(&value, state.pattern.as_ref()));
    counts.then_some(Some(value))
}

/// How many idle permits a worker may keep: few enough that all of them together are an eighth of the
/// threshold, and none of a small one.
fn kept_most(state: &RuleState, claimant: &Claimant) -> u64 {
    if !claimant.may_lease {
        return 0;
    }
    let threshold = sentinel_core::ledger::rate::whole_tokens(state.stamp.threshold);
    threshold / claimant.workers.saturating_mul(8).max(1)
}

/// How many emptied lists of ended requests are kept.
const SPARE_MAX: usize = 64;
