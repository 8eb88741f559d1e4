//! What the service has decided, and how the workers get to know it.
//!
//! [`Standing`] is what holds now, [`Judge`] what answers the rules that ask for the state of the world: the
//! average response time, the CPU, memory, or what another resource has passed. Breakers are decided beside it, in
//! `breakers`. A decision is written only when it has changed, and by compare-and-set, so that a quiet proxy writes
//! nothing and workers have nothing to read.

use alloc::vec::Vec;

use sentinel_core::{
    config::Settings,
    ledger::rate::whole_tokens,
    rule::{Control, INBOUND, Rule, SystemMetric, TokenCalculate},
    system::{self, Inbound},
    time::{Nanos, Span},
    warm_up::WarmUpState,
    window::WindowShape,
};
use sentinel_wire::{
    decisions::{Decision, Decisions},
    key::Key,
    rules::RuleEntry,
};

use super::{Means, fold::Fold};
use crate::{
    clock::Clock,
    host::{Host, Meter, Signal},
    shared::{Shared, Then},
    table::Table,
};

/// All decisions that hold now, by the generation of their rules.
#[derive(Debug, Default)]
pub(super) struct Standing {
    values: Table<u64, u64>,
    /// Whether shared data says the same.
    is_written: bool,
}

impl Standing {
    /// Decides; `None`: nothing that workers would not assume on their own.
    pub(super) fn set(&mut self, generation: u64, value: Option<u64>) {
        let old = self.values.get(&generation).copied();
        if old == value {
            return;
        }
        self.is_written = false;
        match value {
            None => {
                self.values.remove(&generation);
            }
            Some(value) => {
                if let Some(place) = self.values.get_or_insert_with(generation, || value) {
                    *place = value;
                }
            }
        }
    }

    /// Drops the decisions on rules that are gone.
    pub(super) fn forget(&mut self, is_known: &dyn Fn(u64) -> bool) {
        let before = self.values.len();
        self.values.retain_keys(|generation| is_known(*generation));
        self.is_written &= self.values.len() == before;
    }

    /// Whether shared data says what holds.
    pub(super) fn is_written(&self) -> bool {
        self.is_written
    }

    /// Looks at shared data again: somebody else may have written since.
    pub(super) fn doubt(&mut self) {
        self.is_written = false;
    }

    /// Tells the workers, if there is anything new. What could not be written is tried again at the next tick.
    pub(super) fn publish<H: Host>(&mut self, host: &mut H, shared: &mut Shared) {
        if self.is_written {
            return;
        }
        let decision =
            |(generation, value): &(u64, u64)| Decision { generation: *generation, value: *value };
        let decisions = Decisions { decisions: self.values.iter().map(decision).collect() };
        let mut own = Vec::new();
        decisions.encode(&mut own);
        let updated = shared.update(host, Key::Decisions, |found, written| {
            let says_so = match found {
                Some(found) => found == own.as_slice(),
                // Where nothing is written nothing is decided.
                None => decisions.decisions.is_empty(),
            };
            if says_so {
                return (Then::Keep, false);
            }
            written.clear();
            written.extend_from_slice(&own);
            (Then::Write, true)
        });
        match updated.map(|updated| updated.result) {
            Ok(is_new) => {
                self.is_written = true;
                if is_new {
                    host.raise(Signal::Decided);
                }
            }
            Err(error) => log::error!("decisions could not be published: {error:?}"),
        }
    }
}

/// The rules that ask for the state of the world.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// In ascending order of generations.
    judged: Vec<Judged>,
    /// The hash of [`INBOUND`].
    inbound: u64,
    reads_stats: bool,
    reads_inbound: bool,
    /// Whether time alone may change a decision soon.
    is_busy: bool,
    pressure: Pressure,
    /// When Envoy is asked next.
    ask_at: Nanos,
    /// Since when Envoy owes an answer.
    asked_at: Option<Nanos>,
    /// Whether the log has said that Envoy does not tell the CPU.
    said: bool,
}

/// What Envoy has told of its process.
#[derive(Clone, Copy, Debug, Default)]
struct Pressure {
    at: Nanos,
    cpu: Option<f64>,
    memory_bytes: Option<u64>,
}

#[derive(Debug)]
struct Judged {
    generation: u64,
    rule: Rule,
    /// The hash of the resource that is read, of an AssociatedResource rule.
    reads: u64,
    /// How warm that is, where the rule warms up.
    warm_up: Option<WarmUpState>,
    /// The effective threshold that the gauge shows.
    shown: Option<u64>,
}

/// With more rules than this, not every frame is followed by a verdict, but every tick.
const JUDGED_AT_ONCE: usize = 256;

/// What Envoy calls the pressure on its CPU, in percent, and the memory that it has allocated, in bytes.
const CPU: &[u8] = b"overload.envoy.resource_monitors.cpu_utilization.pressure: ";
const MEMORY: &[u8] = b"server.memory_allocated: ";

impl Judge {
    /// Takes up the rules of a set, in ascending order of generations. One that has not changed stays as warm as it is.
    pub(super) fn take_up(&mut self, entries: Vec<RuleEntry>, clock: &Clock) {
        self.inbound = clock.hash(INBOUND.as_bytes());
        let old = core::mem::take(&mut self.judged);
        for RuleEntry { generation, rule, .. } in entries {
            let same = old.binary_search_by(|judged| judged.generation.cmp(&generation));
            let warm_up = same.ok().and_then(|place| old.get(place)?.warm_up);
            let reads = match &rule {
                Rule::Flow(flow) => {
                    clock.hash(flow.ref_resource.as_deref().unwrap_or("").as_bytes())
                }
                Rule::Authority(_)
                | Rule::System(_)
                | Rule::Gateway(_)
                | Rule::Isolation(_)
                | Rule::Hotspot(_)
                | Rule::CircuitBreaker(_) => 0,
            };
            self.judged.push(Judged { generation, rule, reads, warm_up, shown: None });
        }
        self.reads_inbound =
            self.judged.iter().any(|judged| matches!(judged.rule, Rule::System(_)));
        self.reads_stats = self.judged.iter().any(|judged| reads_stats(&judged.rule));
    }

    /// Whether there is a rule of this generation.
    pub(super) fn knows(&self, generation: u64) -> bool {
        self.judged.binary_search_by(|judged| judged.generation.cmp(&generation)).is_ok()
    }

    /// The windows of other resources that rules read.
    pub(super) fn windows(&self) -> impl Iterator<Item = (u64, WindowShape)> {
        self.judged.iter().filter_map(|judged| match &judged.rule {
            Rule::Flow(flow) => {
                flow.ref_resource.as_ref()?;
                Some((judged.reads, WindowShape::for_flow(flow.stat_interval_ms)))
            }
            Rule::Authority(_)
            | Rule::System(_)
            | Rule::Gateway(_)
            | Rule::Isolation(_)
            | Rule::Hotspot(_)
            | Rule::CircuitBreaker(_) => None,
        })
    }

    /// Whether time alone may change a decision soon.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Whether the rules are so few that each frame may be followed by a verdict.
    pub(super) fn is_quick(&self) -> bool {
        self.judged.len() <= JUDGED_AT_ONCE
    }

    /// Whether any rule asks for CPU or memory.
    pub(super) fn reads_stats(&self) -> bool {
        self.reads_stats
    }

    /// Decides all rules as of now.
    pub(super) fn judge<H: Host + Meter>(
        &mut self,
        fold: &Fold,
        settings: &Settings,
        means: &mut Means<'_, H>,
    ) {
        let now = means.now;
        let pressure = self.pressure.as_of(now, settings);
        let inbound = if self.reads_inbound {
            Inbound { cpu: pressure.cpu, ..fold.inbound(now, self.inbound) }
        } else {
            Inbound::default()
        };
        self.is_busy = inbound.second.complete > 0;
        for judged in &mut self.judged {
            let decision = match &judged.rule {
                Rule::System(rule) => {
                    let refuses = system::refuses(rule.metric, rule.trigger, &inbound);
                    self.is_busy |= refuses;
                    refuses.then_some(1)
                }
                Rule::Flow(flow) => {
                    let mut threshold = match &flow.calculate {
                        TokenCalculate::Direct | TokenCalculate::WarmUp(_) => flow.threshold,
                        TokenCalculate::MemoryAdaptive(marks) => {
                            marks.threshold(pressure.memory_bytes)
                        }
                    };
                    let is_associated =
                        flow.ref_resource.is_some() && flow.control == Control::Reject;
                    let decision = if is_associated {
                        let shape = WindowShape::for_flow(flow.stat_interval_ms);
                        fold.passed(now, judged.reads, shape).map(|(passed, previous_qps)| {
                            if let TokenCalculate::WarmUp(terms) = flow.calculate {
                                let cold = || WarmUpState::cold(terms, threshold);
                                let kept = judged.warm_up.filter(|state| {
                                    (state.terms, state.threshold) == (terms, threshold)
                                });
                                let state = judged.warm_up.insert(kept.unwrap_or_else(cold));
                                state.sync(now, previous_qps);
                                threshold = state.allowed();
                            }
                            self.is_busy |= passed > 0;
                            whole_tokens(threshold).saturating_sub(passed)
                        })
                    } else {
                        pressure.memory_bytes.map(|_| threshold.to_bits())
                    };
                    let threshold = whole_tokens(threshold);
                    if judged.shown != Some(threshold) {
                        judged.shown = Some(threshold);
                        means.publication.show(means.host, &judged.rule, threshold);
                    }
                    decision
                }
                Rule::Authority(_)
                | Rule::Gateway(_)
                | Rule::Isolation(_)
                | Rule::Hotspot(_)
                | Rule::CircuitBreaker(_) => None,
            };
            means.standing.set(judged.generation, decision);
        }
    }

    /// Whether it is time to ask Envoy. Whoever is told so asks, and hands the answer over or says that there is
    /// none: until then, or until it would be out of date, nobody is told again.
    pub(super) fn stats_due(&mut self, now: Nanos, settings: &Settings) -> bool {
        let patience = Pressure::ttl(settings);
        let waits = self.asked_at.is_some_and(|asked_at| now.since(asked_at) <= patience);
        if !self.reads_stats || waits || now < self.ask_at {
            return false;
        }
        self.ask_at = now + Span::from_millis(u64::from(settings.cpu_interval_ms));
        self.asked_at = Some(now);
        true
    }

    /// Takes Envoy's answer: CPU and memory, as far as it tells them. `None` if there is no answer; then the last
    /// one stands until it is out of date.
    pub(super) fn read_stats(&mut self, body: Option<&[u8]>) -> Option<(Option<f64>, Option<u64>)> {
        self.asked_at = None;
        let body = body?;
        let percent: Option<u32> = stat(body, CPU).and_then(|percent| percent.try_into().ok());
        if percent.is_none() && !self.said {
            self.said = true;
            log::warn!(
                "Envoy does not tell the pressure on its CPU: CpuUsage rules pass everything. Add the resource monitor \
                 envoy.resource_monitors.cpu_utilization to overload_manager"
            );
        }
        Some((percent.map(|percent| f64::from(percent) / 100.0), stat(body, MEMORY)))
    }

    /// Takes in what is known of the process as of now.
    pub(super) fn set_pressure(&mut self, now: Nanos, cpu: Option<f64>, memory_bytes: Option<u64>) {
        self.pressure = Pressure { at: now, cpu, memory_bytes };
    }
}

impl Pressure {
    /// What is known now: nothing if it is out of date.
    fn as_of(&self, now: Nanos, settings: &Settings) -> Self {
        if now.since(self.at) > Self::ttl(settings) { Self::default() } else { *self }
    }

    /// How long an answer stands: for two that do not come.
    fn ttl(settings: &Settings) -> Span {
        let ms = settings.cpu_interval_ms.saturating_mul(3).max(settings.decisions_ttl_ms);
        Span::from_millis(u64::from(ms))
    }
}

fn reads_stats(rule: &Rule) -> bool {
    match rule {
        Rule::System(rule) => matches!(rule.metric, SystemMetric::CpuUsage { .. }),
        Rule::Flow(flow) => matches!(flow.calculate, TokenCalculate::MemoryAdaptive(_)),
        Rule::Authority(_)
        | Rule::Gateway(_)
        | Rule::Isolation(_)
        | Rule::Hotspot(_)
        | Rule::CircuitBreaker(_) => false,
    }
}

/// The value of the line that begins with `name`.
fn stat(body: &[u8], name: &[u8]) -> Option<u64> {
    body.split(|byte| *byte == b'\n').find_map(|line| {
        let value = core::str::from_utf8(line.strip_prefix(name)?).ok()?;
        value.trim_end().parse().ok()
    })
}
