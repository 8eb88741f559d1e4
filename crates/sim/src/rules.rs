//! Rules of every kind, by hand and from a seed.

use sentinel_core::{
    param::Param,
    rule::{
        BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule, HotspotMetric, HotspotRule,
        IsolationRule, LimitApp, Overflow, ParamPick, Rule, SystemMetric, SystemRule, Target,
        TokenCalculate, Unit,
    },
    warm_up::WarmUp,
};

/// The header that names a request's user.
pub const USER_HEADER: &str = "x-user";

/// A flow rule.
pub fn flow(id: &str, resource: &str, threshold: f64, stat_interval_ms: u32) -> Rule {
    Rule::Flow(FlowRule {
        id: id.to_owned(),
        target: target(resource),
        limit_app: LimitApp::Default,
        threshold,
        stat_interval_ms,
        calculate: TokenCalculate::Direct,
        control: Control::Reject,
        ref_resource: None,
        common: Common::default(),
    })
}

/// A flow rule by which requests wait for their turn: `threshold` a second.
pub fn throttling(id: &str, resource: &str, threshold: f64, max_queueing_ms: u32) -> Rule {
    let mut rule = flow(id, resource, threshold, 1_000);
    if let Rule::Flow(flow) = &mut rule {
        flow.control = Control::Throttling { max_queueing_ms };
    }
    rule
}

/// A limit of requests at a time.
pub fn isolation(id: &str, resource: &str, threshold: u32) -> Rule {
    let (id, target) = (id.to_owned(), target(resource));
    Rule::Isolation(IsolationRule { id, target, threshold, common: Common::default() })
}

/// A limit for each user.
pub fn hotspot(id: &str, resource: &str, threshold: u64, metric: HotspotMetric) -> Rule {
    let key = Some(Param::Header(USER_HEADER.to_owned()));
    Rule::Hotspot(HotspotRule {
        id: id.to_owned(),
        target: target(resource),
        param: Some(ParamPick { key, index: None, matching: None }),
        metric,
        threshold,
        items: Vec::new(),
        capacity: 4_000,
        overflow: Overflow::Share,
        common: Common::default(),
    })
}

/// A breaker that opens when half of at least ten requests of a second are errors.
pub fn breaker(id: &str, resource: &str, retry_timeout_ms: u32, probe_num: u32) -> Rule {
    Rule::CircuitBreaker(CircuitBreakerRule {
        id: id.to_owned(),
        target: target(resource),
        strategy: BreakerStrategy::ErrorRatio(0.5),
        retry_timeout_ms,
        min_request_amount: 10,
        stat_interval_ms: 1_000,
        buckets: 10,
        probe_num,
        error_statuses: None,
        grpc_error_statuses: None,
        close_live_connections: false,
        common: Common::default(),
    })
}

/// A limit of all that is inbound.
pub fn system(id: &str, metric: SystemMetric, trigger: f64) -> Rule {
    Rule::System(SystemRule { id: id.to_owned(), metric, trigger, common: Common::default() })
}

/// The same rule, which only counts.
#[must_use]
pub fn shadow(mut rule: Rule) -> Rule {
    match &mut rule {
        Rule::Authority(rule) => rule.common.shadow = true,
        Rule::System(rule) => rule.common.shadow = true,
        Rule::Flow(rule) => rule.common.shadow = true,
        Rule::Isolation(rule) => rule.common.shadow = true,
        Rule::Gateway(rule) | Rule::Hotspot(rule) => rule.common.shadow = true,
        Rule::CircuitBreaker(rule) => rule.common.shadow = true,
    }
    rule
}

/// The same rule, which counts messages.
#[must_use]
pub fn of_messages(mut rule: Rule) -> Rule {
    count(&mut rule, Unit::Message);
    rule
}

fn count(rule: &mut Rule, unit: Unit) {
    if let Rule::Flow(FlowRule { common, .. }) | Rule::Hotspot(HotspotRule { common, .. }) = rule {
        common.unit = unit;
    }
}

/// Lets half of the rules that pace count messages, and no other rule: a chunk of messages is one claim then for each
/// message. `true` if there is one.
pub(crate) fn pace_messages(random: &mut fastrand::Rng, rules: &mut [Rule]) -> bool {
    let mut any = false;
    for rule in rules {
        count(rule, Unit::Request);
        let paces = match rule {
            Rule::Flow(flow) => flow.control != Control::Reject,
            Rule::Hotspot(rule) => matches!(rule.metric, HotspotMetric::Throttling { .. }),
            Rule::Authority(_)
            | Rule::System(_)
            | Rule::Isolation(_)
            | Rule::Gateway(_)
            | Rule::CircuitBreaker(_) => false,
        };
        if paces && random.bool() {
            count(rule, Unit::Message);
            any = true;
        }
    }
    any
}

/// A resource, or `*` for all that no other rule of the kind names.
fn target(resource: &str) -> Target {
    if resource == "*" { Target::Default } else { Target::Resource(resource.to_owned()) }
}

/// A rule of any kind for this resource.
pub(crate) fn draw_rule(random: &mut fastrand::Rng, id: &str, resource: usize) -> Rule {
    let resource = if random.u8(..12) == 0 { "*".to_owned() } else { name(resource) };
    let rule = match random.u8(..16) {
        0..=4 => flow(id, &resource, draw_threshold(random), draw_interval(random)),
        5 => {
            let mut rule = flow(id, &resource, draw_threshold(random), draw_interval(random));
            if let Rule::Flow(flow) = &mut rule {
                flow.calculate = draw_warm_up(random);
            }
            rule
        }
        6 | 7 => {
            let wait_ms = *pick(random, &[0, 50, 400, 2_000]);
            let mut rule = throttling(id, &resource, draw_threshold(random), wait_ms);
            if let Rule::Flow(flow) = &mut rule
                && random.u8(..4) == 0
            {
                flow.calculate = draw_warm_up(random);
            }
            rule
        }
        8 | 9 => isolation(id, &resource, *pick(random, &[1, 2, 5, 20, 60, 200])),
        10 | 11 => draw_hotspot(random, id, &resource),
        12 | 13 if resource != "*" => draw_breaker(random, id, &resource),
        14 => system(id, SystemMetric::Concurrency, f64::from(random.u32(1..60))),
        15 => system(id, SystemMetric::InboundQps, draw_threshold(random) * 2.0),
        _ => flow(id, &resource, draw_threshold(random), 1_000),
    };
    // For those at a pace see `pace_messages`.
    let is_plain = match &rule {
        Rule::Flow(flow) => flow.control == Control::Reject,
        Rule::Hotspot(rule) => matches!(rule.metric, HotspotMetric::Reject { .. }),
        Rule::Authority(_)
        | Rule::System(_)
        | Rule::Isolation(_)
        | Rule::Gateway(_)
        | Rule::CircuitBreaker(_) => false,
    };
    let rule = if is_plain && random.u8(..6) == 0 { of_messages(rule) } else { rule };
    if random.u8(..10) == 0 { shadow(rule) } else { rule }
}

/// Gives a rule another threshold.
pub(crate) fn change_threshold(random: &mut fastrand::Rng, rule: &mut Rule) {
    match rule {
        Rule::Authority(_) => {}
        Rule::System(system) => system.trigger = f64::from(random.u32(1..100)),
        Rule::Flow(flow) if random.u8(..4) == 0 => flow.stat_interval_ms = draw_interval(random),
        Rule::Flow(flow) => flow.threshold = draw_threshold(random),
        Rule::Isolation(isolation) => isolation.threshold = random.u32(1..60),
        Rule::Gateway(hotspot) | Rule::Hotspot(hotspot) => hotspot.threshold = random.u64(..12),
        Rule::CircuitBreaker(breaker) => breaker.probe_num = random.u32(1..4),
    }
}

fn draw_hotspot(random: &mut fastrand::Rng, id: &str, resource: &str) -> Rule {
    let duration_ms = *pick(random, &[1_000, 1_000, 2_000]);
    let metric = match random.u8(..4) {
        0 | 1 => HotspotMetric::Reject { duration_ms, burst: *pick(random, &[0, 0, 3]) },
        2 => HotspotMetric::Concurrency,
        _ => HotspotMetric::Throttling {
            duration_ms,
            max_queueing_ms: *pick(random, &[0, 100, 700]),
        },
    };
    let mut rule = hotspot(id, resource, *pick(random, &[0, 1, 2, 5, 30]), metric);
    if let Rule::Hotspot(hotspot) = &mut rule {
        // Also a table with room for one or two sets, so that values meet.
        hotspot.capacity = *pick(random, &[1, 16, 4_000]);
        hotspot.overflow = *pick(random, &[Overflow::Share, Overflow::Block]);
    }
    rule
}

fn draw_breaker(random: &mut fastrand::Rng, id: &str, resource: &str) -> Rule {
    let mut rule = breaker(id, resource, *pick(random, &[20, 100, 700]), random.u32(1..5));
    if let Rule::CircuitBreaker(breaker) = &mut rule {
        breaker.strategy = match random.u8(..3) {
            0 => BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms: 20, ratio: 0.5 },
            1 => BreakerStrategy::ErrorRatio(0.3),
            _ => BreakerStrategy::ErrorCount(5),
        };
        breaker.buckets = *pick(random, &[1, 2, 10]);
        breaker.stat_interval_ms = *pick(random, &[200, 1_000]);
        breaker.min_request_amount = *pick(random, &[1, 10]);
    }
    rule
}

fn draw_warm_up(random: &mut fastrand::Rng) -> TokenCalculate {
    TokenCalculate::WarmUp(WarmUp { period_sec: random.u32(1..5), cold_factor: random.u32(2..5) })
}

fn draw_threshold(random: &mut fastrand::Rng) -> f64 {
    let usual = [0.0, 1.0, 1.5, 2.0, 3.0, 7.0, 20.0, 100.0, 250.0];
    if random.bool() { *pick(random, &usual) } else { f64::from(random.u32(1..150)) }
}

fn draw_interval(random: &mut fastrand::Rng) -> u32 {
    *pick(random, &[100, 500, 1_000, 1_000, 1_500, 2_000, 10_000, 700, 20_000, 600_000])
}

pub(crate) fn name(resource: usize) -> String {
    format!("GET:/{resource}")
}

pub(crate) fn pick<'a, T, const N: usize>(random: &mut fastrand::Rng, of: &'a [T; N]) -> &'a T {
    const { assert!(N > 0) };
    let place = random.usize(..N);
    #[expect(clippy::indexing_slicing, reason = "the place is drawn below the length")]
    &of[place]
}
