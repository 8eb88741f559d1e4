//! One rule as a worker applies it: what it says, where its ledger is, and what this worker holds of it.

use alloc::{rc::Rc, string::String, vec::Vec};

use sentinel_core::{
    config::Settings,
    lease::Lease,
    ledger::{
        Ledger, Stamp,
        breaker::{BreakerLedger, BreakerState, BreakerTerms},
        bucket::{BucketLedger, BucketTerms},
        pace::{PaceKind, PaceTerms},
        rate::{RateTerms, Tokens},
    },
    network::Network,
    param::MatchStrategy,
    pattern::Pattern,
    rule::{
        BreakerStrategy, CircuitBreakerRule, Control, HotspotMetric, HotspotRule, Keeps, LimitApp,
        OnServiceLoss, Overflow, Rule, SystemMetric, TokenCalculate,
    },
    time::{Nanos, Span},
    window::{BucketId, WindowShape},
};
use sentinel_wire::{
    frame::BreakerCounts,
    rules::{RuleEntry, RuleSetHeader},
};

use crate::{
    host::{Cas, Meter},
    telemetry::{Total, of_rule},
    worker::Outcome,
};

/// One rule as a worker applies it.
#[derive(Debug)]
pub(crate) struct RuleState {
    /// The rule.
    pub(crate) rule: Rc<Rule>,
    /// Where its ledgers are.
    pub(crate) place: Place,
    /// What a claim tells the ledger.
    pub(crate) stamp: Stamp,
    /// How the rule counts.
    pub(crate) terms: Terms,
    /// What this worker holds.
    pub(crate) hold: Hold,
    /// What the service has decided; `None`: nothing that differs from the ordinary.
    pub(crate) decision: Option<u64>,
    /// Callers that other rules of the resource name.
    pub(crate) others: Vec<String>,
    /// Networks whose addresses an authority rule lists.
    pub(crate) networks: Vec<Network>,
    /// The pattern that a value must match.
    pub(crate) pattern: Option<Pattern>,
    /// The ledger as it was at the last refusal: only when it has moved can others be asked to give back.
    pub(crate) refused_at: Option<Cas>,
    /// The tick in which somebody has looked whether there is anything left, and there was.
    pub(crate) peeked: u64,
    /// Whether it counts each request, whatever that carries: nothing has to be asked of one.
    pub(crate) is_plain: bool,
    /// Whether the rule is on the list of those that a tick looks at.
    pub(crate) active: bool,
    /// Whether the rule is on the list of those whose permits this worker holds.
    pub(crate) is_holding: bool,
    /// Requests refused, and those that a shadow rule would have refused.
    pub(crate) blocked: u64,
    /// How much of `blocked` Envoy has been told.
    pub(crate) total: Total,
    /// Whether the rule has a series of its own.
    pub(crate) has_series: bool,
}

/// Where a rule's ledgers are in shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The ledger's slot, or the first set of the table.
    pub(crate) slot: u32,
    /// How many sets the table has; 0: one ledger.
    pub(crate) sets: u32,
    /// What happens to a value for which there is no room.
    pub(crate) overflow: Overflow,
}

/// How a rule counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Terms {
    /// Not at all.
    Nothing,
    /// Tokens of a window.
    Rate(RateTerms),
    /// The next slot of a pace.
    Pace(PaceTerms),
    /// Requests in flight.
    Permits {
        /// How long a record stands that nobody refreshes.
        ttl: Span,
    },
    /// A bucket of tokens.
    Bucket {
        /// What the bucket goes by.
        terms: BucketTerms,
        /// The smallest threshold of any value, 0 apart: its bucket takes the longest to fill.
        least: u64,
    },
    /// A circuit breaker.
    Breaker(BreakerTerms),
}

/// What a worker holds of a rule with one ledger.
#[derive(Debug)]
pub(crate) enum Hold {
    /// Nothing.
    Nothing,
    /// Tokens.
    Lease(Lease),
    /// Permits.
    Permits(Permits),
    /// Nothing, but it is known until when there is no slot.
    Pace {
        /// Until then a batch of this size is refused.
        full_until: Nanos,
        /// The batch.
        batch: u64,
    },
    /// What it knows of a breaker.
    Breaker(BreakerView),
}

/// Permits of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Permits {
    /// Those that its requests are using.
    pub(crate) in_use: u64,
    /// Those that are kept for the next request.
    pub(crate) idle: u64,
    /// What the ledger says that it holds.
    pub(crate) written: u64,
    /// When it has last said so.
    pub(crate) seen: Nanos,
    /// Whether any was taken since the last tick.
    pub(crate) used: bool,
    /// Until then none is kept: somebody wants them.
    pub(crate) wanted_until: Nanos,
    /// Until then, and while the signal stands as it did, none is left for a batch of this size.
    pub(crate) full: Option<(Nanos, u64, u64)>,
}

/// What a worker knows of a breaker.
#[derive(Clone, Debug, Default)]
pub(crate) struct BreakerView {
    /// The ledger's epoch.
    pub(crate) epoch: u64,
    /// Its state.
    pub(crate) state: BreakerState,
    /// When the next probe may go.
    pub(crate) retry_at: Nanos,
    /// Requests admitted before are of an older epoch.
    pub(crate) since: Nanos,
    /// Until then all probes are out.
    pub(crate) busy_until: Nanos,
    /// Completions of this epoch.
    pub(crate) complete: u64,
    /// Those of them that were bad.
    pub(crate) bad: u64,
    /// Completions that a frame has carried.
    pub(crate) sent: u64,
    /// The slice of the last completion.
    pub(crate) slice: BucketId,
}

impl RuleState {
    /// What a published entry means to a worker.
    pub(crate) fn new(entry: RuleEntry, header: &RuleSetHeader) -> Self {
        let settings = &header.settings;
        let terms = Terms::of(&entry.rule, settings);
        let hold = if entry.sets > 0 { Hold::Nothing } else { Hold::of(&terms) };
        let (overflow, pattern) = match &entry.rule {
            Rule::Gateway(rule) | Rule::Hotspot(rule) => (rule.overflow, pattern_of(rule)),
            Rule::Authority(_)
            | Rule::System(_)
            | Rule::Flow(_)
            | Rule::Isolation(_)
            | Rule::CircuitBreaker(_) => (Overflow::Share, None),
        };
        let mut networks = Vec::new();
        if let Rule::Authority(rule) = &entry.rule {
            networks.extend(rule.origins.iter().filter_map(|origin| Network::parse(origin)?.ok()));
        }
        let stamp = Stamp {
            generation: entry.generation,
            version: header.version,
            threshold: threshold_of(&entry.rule, None),
        };
        Self {
            is_plain: entry.sets == 0 && is_plain(&entry.rule, &terms),
            place: Place { slot: entry.slot, sets: entry.sets, overflow },
            stamp,
            terms,
            hold,
            decision: None,
            others: Vec::new(),
            networks,
            pattern,
            rule: Rc::new(entry.rule),
            refused_at: None,
            peeked: 0,
            active: false,
            is_holding: false,
            blocked: 0,
            total: Total::default(),
            has_series: true,
        }
    }

    /// Takes over what the same rule of an older set held and counted.
    pub(crate) fn go_on_from(&mut self, old: &mut Self) {
        self.decide(old.decision);
        self.hold = core::mem::replace(&mut old.hold, Hold::Nothing);
        if self.stamp.threshold != old.stamp.threshold {
            self.forget_refusal();
        }
        self.go_on_counting(old);
    }

    /// Takes over what was refused by the same rule, whatever it counts by now.
    fn go_on_counting(&mut self, old: &mut Self) {
        if self.rule.id() == old.rule.id()
            && self.rule.common().shadow == old.rule.common().shadow
            && self.rule.block_type() == old.rule.block_type()
        {
            self.blocked = old.blocked;
            self.total = core::mem::take(&mut old.total);
        }
    }

    /// Stands in for `old`, which it has followed in its ledger before the whole set is taken up.
    pub(crate) fn stand_in_for(&mut self, old: &mut Self) {
        self.go_on_counting(old);
        self.others = core::mem::take(&mut old.others);
        (self.active, self.is_holding) = (old.active, old.is_holding);
        self.has_series = old.has_series;
    }

    /// Takes in what the service has decided.
    pub(crate) fn decide(&mut self, decision: Option<u64>) {
        self.decision = decision;
        let threshold = threshold_of(&self.rule, decision);
        if threshold != self.stamp.threshold {
            self.stamp.threshold = threshold;
            self.forget_refusal();
        }
    }

    /// Forgets that nothing is left: the threshold has changed.
    fn forget_refusal(&mut self) {
        match &mut self.hold {
            Hold::Lease(lease) => lease.forget_exhaustion(),
            Hold::Permits(permits) => permits.full = None,
            Hold::Pace { full_until, .. } => *full_until = Nanos::default(),
            Hold::Nothing | Hold::Breaker(_) => {}
        }
    }

    /// Forgets what is only remembered for a few milliseconds, to spare calls.
    pub(crate) fn forget_brief_memories(&mut self) {
        match &mut self.hold {
            Hold::Permits(permits) => permits.full = None,
            Hold::Pace { full_until, .. } => *full_until = Nanos::default(),
            Hold::Breaker(view) => view.busy_until = Nanos::default(),
            Hold::Nothing | Hold::Lease(_) => {}
        }
    }

    /// Whether the service moves the rule's threshold: then the newest that a worker knows counts, and not the
    /// ledger's.
    pub(crate) fn is_adaptive(&self) -> bool {
        is_adaptive(&self.rule)
    }

    /// What the rule keeps.
    pub(crate) fn keeps(&self) -> Keeps {
        self.rule.keeps()
    }

    /// How much of a batch the rule looks at. Of the rules for requests in flight, in Sentinel only isolation asks
    /// whether there is room for all of it.
    pub(crate) fn counted(&self, batch: u64) -> u64 {
        let is_whole =
            || self.keeps() != Keeps::Permits || matches!(&*self.rule, Rule::Isolation(_));
        if batch == 1 || is_whole() { batch } else { 1 }
    }

    /// Whether the rule comes before `other` in the order of checks.
    pub(crate) fn is_checked_before(&self, other: &Self) -> bool {
        (self.rule.rank(), self.rule.id()) < (other.rule.rank(), other.rule.id())
    }

    /// Whether this worker holds permits of the rule, or owes some.
    #[inline(always)]
    pub(crate) fn holds_permits(&self) -> bool {
        matches!(&self.hold, Hold::Permits(permits) if permits.held() > 0 || permits.owed() > 0)
    }

    /// Whether a tick has anything to do for this rule.
    pub(crate) fn needs_tick(&self) -> bool {
        let holds = match &self.hold {
            Hold::Lease(lease) => lease.is_active(),
            Hold::Permits(permits) => permits.idle > 0 || permits.owed() > 0,
            Hold::Nothing | Hold::Pace { .. } | Hold::Breaker(_) => false,
        };
        holds || self.total.is_behind(self.blocked)
    }

    /// Tells Envoy of new refusals. What is returned has to be counted elsewhere, because this rule has no
    /// series of its own.
    pub(crate) fn report<M: Meter>(&mut self, meter: &mut M) -> u64 {
        if !self.total.is_behind(self.blocked) {
            return 0;
        }
        if !self.has_series {
            return self.total.take_unreported(self.blocked);
        }
        let rule = &self.rule;
        self.total.report(meter, self.blocked, |text| {
            of_rule(rule.resource(), rule.id(), "type.", text);
            text.push_str(rule.block_type().name());
            text.push_str(if rule.common().shadow {
                ".shadow_block_total"
            } else {
                ".block_total"
            });
        });
        0
    }
}

impl Terms {
    /// How a rule counts.
    pub(crate) fn of(rule: &Rule, settings: &Settings) -> Self {
        let ttl_ms = u64::from(settings.worker_ttl_ms) + u64::from(settings.orphan_ttl_ms);
        let permits = Self::Permits { ttl: Span::from_millis(ttl_ms) };
        match rule {
            Rule::Authority(_) => Self::Nothing,
            Rule::System(rule) => match rule.metric {
                SystemMetric::InboundQps => {
                    Self::Rate(RateTerms { shape: WindowShape::for_flow(1_000), warm_up: None })
                }
                SystemMetric::Concurrency => permits,
                SystemMetric::AvgRt | SystemMetric::CpuUsage { .. } => Self::Nothing,
            },
            Rule::Flow(flow) => {
                let shape = WindowShape::for_flow(flow.stat_interval_ms);
                let warm_up = match flow.calculate {
                    TokenCalculate::WarmUp(warm_up) => Some(warm_up),
                    TokenCalculate::Direct | TokenCalculate::MemoryAdaptive(_) => None,
                };
                match flow.control {
                    Control::Throttling { max_queueing_ms } => Self::Pace(PaceTerms {
                        interval: Span::from_millis(u64::from(flow.stat_interval_ms)),
                        max_wait: Span::from_millis(u64::from(max_queueing_ms)),
                        kind: PaceKind::Flow,
                        warm_up: warm_up.map(|warm_up| (warm_up, shape)),
                    }),
                    Control::Reject if flow.ref_resource.is_some() => Self::Nothing,
                    Control::Reject => Self::Rate(RateTerms { shape, warm_up }),
                }
            }
            Rule::Isolation(_) => permits,
            Rule::Gateway(rule) | Rule::Hotspot(rule) => match rule.metric {
                HotspotMetric::Concurrency => permits,
                HotspotMetric::Reject { duration_ms, burst } => Self::Bucket {
                    terms: BucketTerms { duration: Span::from_millis(duration_ms), burst },
                    least: least_threshold(rule),
                },
                HotspotMetric::Throttling { duration_ms, max_queueing_ms } => {
                    Self::Pace(PaceTerms {
                        interval: Span::from_millis(duration_ms),
                        max_wait: Span::from_millis(max_queueing_ms),
                        kind: PaceKind::Value,
                        warm_up: None,
                    })
                }
            },
            Rule::CircuitBreaker(rule) => Self::Breaker(terms_of(rule)),
        }
    }

    /// Whether a value's ledger carries no information any more: whoever opens it anew finds the same.
    pub(crate) fn is_idle(&self, ledger: &Ledger, now: Nanos) -> bool {
        match (self, ledger) {
            (Self::Rate(terms), Ledger::Rate(rate)) => rate.is_idle(now, terms.shape),
            (Self::Pace(terms), Ledger::Pace(pace)) => pace.is_idle(now, terms),
            (Self::Permits { ttl }, Ledger::Permits(permits)) => permits.is_idle(now, *ttl),
            // The ledger does not say whose it is: it is full when the slowest would be, from nothing.
            (Self::Bucket { terms, least }, Ledger::Bucket(bucket)) => {
                BucketLedger { tokens: 0, ..*bucket }.is_idle(now, *least, terms)
            }
            _ => false,
        }
    }
}

/// Whether a rule with one ledger has nothing to ask of a request.
fn is_plain(rule: &Rule, terms: &Terms) -> bool {
    let counts_all = match rule {
        Rule::Flow(flow) => flow.limit_app == LimitApp::Default && !matches!(terms, Terms::Nothing),
        Rule::Isolation(_) | Rule::CircuitBreaker(_) => true,
        Rule::Authority(_) | Rule::System(_) | Rule::Gateway(_) | Rule::Hotspot(_) => false,
    };
    counts_all && (!rule.needs_service() || rule.common().on_service_loss == OnServiceLoss::Keep)
}

impl Hold {
    /// The lease, if that is what is held.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        if let Self::Lease(lease) = self { Some(lease) } else { None }
    }

    /// The permits, if that is what is held.
    pub(crate) fn permits(&self) -> Option<&Permits> {
        if let Self::Permits(permits) = self { Some(permits) } else { None }
    }

    fn of(terms: &Terms) -> Self {
        match terms {
            Terms::Nothing | Terms::Bucket { .. } => Self::Nothing,
            Terms::Rate(_) => Self::Lease(Lease::default()),
            Terms::Pace(_) => Self::Pace { full_until: Nanos::default(), batch: 0 },
            Terms::Permits { .. } => Self::Permits(Permits::default()),
            Terms::Breaker(_) => Self::Breaker(BreakerView::default()),
        }
    }

    /// Takes out tokens that should go back at the end of a tick.
    pub(crate) fn tick_lease(
        &mut self,
        shape: WindowShape,
        now: Nanos,
        wanted: bool,
    ) -> (Tokens, bool) {
        match self {
            Self::Lease(lease) => {
                let was_busy = lease.is_active();
                let tokens = lease.tick(shape, now, wanted);
                // What was spent from in this tick is looked at once more: it may hold nothing and be idle then.
                (tokens, was_busy && tokens.tokens == 0)
            }
            Self::Nothing | Self::Permits(_) | Self::Pace { .. } | Self::Breaker(_) => {
                (Tokens::default(), false)
            }
        }
    }
}

impl Permits {
    /// What the ledger should say.
    pub(crate) fn held(&self) -> u64 {
        self.in_use.saturating_add(self.idle)
    }

    /// What the ledger says too much, because the host would not take it back.
    pub(crate) fn owed(&self) -> u64 {
        self.written.saturating_sub(self.held())
    }
}

impl BreakerView {
    /// Takes in what the breaker's ledger says.
    pub(crate) fn see(&mut self, ledger: &BreakerLedger, now: Nanos) {
        if self.epoch != ledger.epoch {
            let slice = self.slice;
            *self = Self { epoch: ledger.epoch, since: now, slice, ..Self::default() };
        }
        self.state = ledger.state;
        self.retry_at = ledger.retry_at;
    }

    /// What a frame carries of it.
    pub(crate) fn counts(&self, generation: u64) -> BreakerCounts {
        BreakerCounts { generation, epoch: self.epoch, complete: self.complete, bad: self.bad }
    }
}

/// What the ledger of a breaker goes by.
pub(crate) fn terms_of(rule: &CircuitBreakerRule) -> BreakerTerms {
    BreakerTerms {
        retry_timeout: Span::from_millis(u64::from(rule.retry_timeout_ms)),
        probe_num: rule.probe_num,
    }
}

/// One slice of a breaker's window.
pub(crate) fn slice_of(rule: &CircuitBreakerRule) -> WindowShape {
    WindowShape::new(u64::from(rule.stat_interval_ms / rule.buckets.max(1)), 1)
}

/// Whether a completion is bad to a breaker.
pub(crate) fn is_bad(rule: &CircuitBreakerRule, rt_ms: u64, outcome: Outcome) -> bool {
    match rule.strategy {
        BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms, .. } => rt_ms > max_allowed_rt_ms,
        BreakerStrategy::ErrorRatio(_) | BreakerStrategy::ErrorCount(_) => {
            outcome.is_error_by(rule.error_statuses.as_deref(), rule.grpc_error_statuses.as_deref())
        }
    }
}

/// Whether the service moves a rule's threshold.
pub(crate) fn is_adaptive(rule: &Rule) -> bool {
    matches!(rule, Rule::Flow(flow) if matches!(flow.calculate, TokenCalculate::MemoryAdaptive(_)))
}

/// The threshold that a ledger is told.
#[expect(clippy::cast_precision_loss, reason = "thresholds are at most 2^53")]
pub(crate) fn threshold_of(rule: &Rule, decision: Option<u64>) -> f64 {
    match rule {
        Rule::Authority(_) | Rule::CircuitBreaker(_) => 0.0,
        // `count < trigger` admits as many as the trigger rounded up.
        Rule::System(rule) => {
            let whole = sentinel_core::ledger::rate::whole_tokens(rule.trigger) as f64;
            if whole < rule.trigger { whole + 1.0 } else { whole }
        }
        Rule::Flow(flow) => match &flow.calculate {
            TokenCalculate::Direct | TokenCalculate::WarmUp(_) => flow.threshold,
            TokenCalculate::MemoryAdaptive(marks) => {
                decision.map_or_else(|| marks.threshold(None), f64::from_bits)
            }
        },
        Rule::Isolation(rule) => f64::from(rule.threshold),
        Rule::Gateway(rule) | Rule::Hotspot(rule) => rule.threshold as f64,
    }
}

fn least_threshold(rule: &HotspotRule) -> u64 {
    let items = rule.items.iter().map(|item| item.threshold);
    items.chain([rule.threshold]).filter(|threshold| *threshold > 0).min().unwrap_or(0)
}

fn pattern_of(rule: &HotspotRule) -> Option<Pattern> {
    let matching = rule.param.as_ref()?.matching.as_ref()?;
    // It compiled in the service; what does not here matches nothing.
    (matching.strategy == MatchStrategy::Regex).then(|| Pattern::new(&matching.pattern).ok())?
}
