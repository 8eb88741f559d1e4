//! The kinds of rules that documents and sentinel-golang's JSON have in common.
//!
//! Fields, defaults and ranges are sentinel-golang's (`core/*/rule.go`, `core/*/rule_manager.go:IsValidRule`) and,
//! of authority rules, those of Sentinel for Java.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{
    decimal::whole_number,
    ledger::breaker::PROBES_MAX,
    network::Network,
    rule::{
        AuthorityRule, BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule,
        IsolationRule, LimitApp, MemoryMarks, Rule, SystemMetric, SystemRule, TokenCalculate,
        compile::{
            Context, Form, Found, Kind,
            common::{name, needed, needed_number, one_target, ratio, target},
            gateway::{api_definition, gateway_rule},
            hotspot::hotspot_rule,
        },
        error::Reason,
        node::{Node, Value},
        read::{Choices, Fields},
        shape::Shape,
    },
    warm_up::WarmUp,
};

/// The fields of a kind: those of every rule, and its own.
macro_rules! fields {
    ($($field:literal),* $(,)?) => {
        &["id", "shadow", "response", "onServiceLoss", "onHostFailure", "unit", $($field),*]
    };
}
pub(super) use fields;

/// Sentinel's kinds of documents. Those that sentinel-golang has are its lists too.
pub static KINDS: &[Kind] = &[
    Kind {
        name: "FlowRules",
        list: "flow",
        fields: fields![
            "resource",
            "threshold",
            "statIntervalInMs",
            "tokenCalculateStrategy",
            "controlBehavior",
            "relationStrategy",
            "refResource",
            "limitApp",
            "regex",
            "maxQueueingTimeMs",
            "warmUpPeriodSec",
            "warmUpColdFactor",
            "lowMemUsageThreshold",
            "highMemUsageThreshold",
            "memLowWaterMarkBytes",
            "memHighWaterMarkBytes",
        ],
        telling: &["resource", "threshold"],
        read: flow_rule,
    },
    Kind {
        name: "CircuitBreakerRules",
        list: "circuitbreaker",
        fields: fields![
            "resource",
            "strategy",
            "threshold",
            "retryTimeoutMs",
            "minRequestAmount",
            "statIntervalMs",
            "statSlidingWindowBucketCount",
            "maxAllowedRtMs",
            "probeNum",
            "errorStatuses",
            "grpcErrorStatuses",
            "closeLiveConnections",
            "regex",
        ],
        telling: &["resource", "retryTimeoutMs", "statIntervalMs"],
        read: breaker_rule,
    },
    Kind {
        name: "HotspotRules",
        list: "hotspot",
        fields: fields![
            "resource",
            "metricType",
            "controlBehavior",
            "paramIndex",
            "paramKey",
            "threshold",
            "maxQueueingTimeMs",
            "burstCount",
            "durationInSec",
            "paramsMaxCapacity",
            "specificItems",
            "overflow",
            "regex",
        ],
        telling: &["resource", "metricType", "threshold"],
        read: hotspot_rule,
    },
    Kind {
        name: "IsolationRules",
        list: "isolation",
        fields: fields!["resource", "metricType", "threshold", "regex"],
        telling: &["resource", "threshold"],
        read: isolation_rule,
    },
    Kind {
        name: "SystemRules",
        list: "system",
        fields: fields!["metricType", "triggerCount", "strategy"],
        telling: &["metricType", "triggerCount"],
        read: system_rule,
    },
    AUTHORITY,
    GATEWAY,
    Kind {
        name: "ApiDefinitions",
        list: "",
        fields: &["apiName", "predicateItems"],
        telling: &[],
        read: api_definition,
    },
];

/// Sentinel's authority and gateway rules are written alike in documents and in Java's JSON.
pub(super) const AUTHORITY: Kind = Kind {
    name: "AuthorityRules",
    list: "",
    fields: fields!["resource", "limitApp", "strategy", "regex"],
    telling: &[],
    read: authority_rule,
};

pub(super) const GATEWAY: Kind = Kind {
    name: "GatewayFlowRules",
    list: "",
    fields: fields![
        "resource",
        "resourceMode",
        "grade",
        "count",
        "intervalSec",
        "controlBehavior",
        "burst",
        "maxQueueingTimeoutMs",
        "paramItem",
    ],
    telling: &[],
    read: gateway_rule,
};

/// The most `specificItems` of a rule, and the most callers of a list; a rule with more is refused.
pub(super) const ITEMS_MAX: usize = 1_000;

/// The most buckets of a breaker's window; a rule with more is refused.
const BREAKER_BUCKETS_MAX: u32 = 10_000;

/// The most `errorStatuses` and `grpcErrorStatuses`; a rule with more is refused.
const STATUSES_MAX: usize = 100;

static TOKEN_CALCULATE_STRATEGY: Choices =
    &[("Direct", Some(0)), ("WarmUp", Some(1)), ("MemoryAdaptive", Some(2))];
pub(super) static CONTROL_BEHAVIOR: Choices = &[("Reject", Some(0)), ("Throttling", Some(1))];
static RELATION_STRATEGY: Choices =
    &[("CurrentResource", Some(0)), ("AssociatedResource", Some(1))];
static BREAKER_STRATEGY: Choices =
    &[("SlowRequestRatio", Some(0)), ("ErrorRatio", Some(1)), ("ErrorCount", Some(2))];
static ISOLATION_METRIC: Choices = &[("Concurrency", Some(0))];
/// Without Load (0), which is refused in words of its own.
static SYSTEM_METRIC: Choices =
    &[("AvgRT", Some(1)), ("Concurrency", Some(2)), ("InboundQPS", Some(3)), ("CpuUsage", Some(4))];
static SYSTEM_STRATEGY: Choices =
    &[("NoAdaptive", Some(-1)), ("NoAdaptive", Some(0)), ("BBR", Some(1))];
static AUTHORITY_STRATEGY: Choices = &[("White", Some(0)), ("Black", Some(1))];

fn flow_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = target(fields, context);
    let calculate = fields.choice("tokenCalculateStrategy", TOKEN_CALCULATE_STRATEGY);
    let threshold = if calculate == Some("MemoryAdaptive") {
        fields.number("threshold").unwrap_or(0.0)
    } else {
        needed_number(fields, "threshold", context)
    };
    let stat_interval_ms = match fields.any_u32("statIntervalInMs") {
        0 => 1_000,
        interval => interval,
    };
    let max_queueing_ms = fields.any_u32("maxQueueingTimeMs");
    let control = match fields.choice("controlBehavior", CONTROL_BEHAVIOR) {
        Some("Throttling") => Control::Throttling { max_queueing_ms },
        Some(_) | None => Control::Reject,
    };
    let warm_up = WarmUp {
        period_sec: fields.any_u32("warmUpPeriodSec"),
        cold_factor: fields.any_u32("warmUpColdFactor"),
    };
    let marks = MemoryMarks {
        low_threshold: fields.any_whole("lowMemUsageThreshold"),
        high_threshold: fields.any_whole("highMemUsageThreshold"),
        low_mark_bytes: fields.any_whole("memLowWaterMarkBytes"),
        high_mark_bytes: fields.any_whole("memHighWaterMarkBytes"),
    };
    let calculate = match calculate {
        Some("WarmUp") => TokenCalculate::WarmUp(checked_warm_up(fields, warm_up)),
        Some("MemoryAdaptive") => {
            check_marks(fields, &marks);
            TokenCalculate::MemoryAdaptive(marks)
        }
        Some(_) | None => TokenCalculate::Direct,
    };
    let is_associated =
        fields.choice("relationStrategy", RELATION_STRATEGY) == Some("AssociatedResource");
    let ref_resource = ref_resource(fields, is_associated, context);
    let limit_app = limit_app(fields);
    let Some(target) = target else { return };
    found.rules.push(Rule::Flow(FlowRule {
        id: String::new(),
        target,
        limit_app,
        threshold,
        stat_interval_ms,
        calculate,
        control,
        ref_resource,
        common: Common::default(),
    }));
}

/// What a rule that warms up must say.
pub(super) fn checked_warm_up(fields: &mut Fields<'_, '_>, mut warm_up: WarmUp) -> WarmUp {
    if warm_up.period_sec == 0 {
        fields.insist("warmUpPeriodSec", "1 or more");
    }
    match warm_up.cold_factor {
        0 => warm_up.cold_factor = 3,
        1 => fields.mismatch("warmUpColdFactor", "2 or more, or 0 for 3"),
        _ => {}
    }
    warm_up
}

fn check_marks(fields: &mut Fields<'_, '_>, marks: &MemoryMarks) {
    let mut incomplete = false;
    for (field, number) in [
        ("lowMemUsageThreshold", marks.low_threshold),
        ("highMemUsageThreshold", marks.high_threshold),
        ("memLowWaterMarkBytes", marks.low_mark_bytes),
        ("memHighWaterMarkBytes", marks.high_mark_bytes),
    ] {
        if number == 0 {
            fields.insist(field, "1 or more");
            incomplete = true;
        }
    }
    if incomplete {
        return;
    }
    if marks.low_threshold <= marks.high_threshold {
        fields.mismatch("lowMemUsageThreshold", "more than `highMemUsageThreshold`");
    }
    if marks.low_mark_bytes >= marks.high_mark_bytes {
        fields.mismatch("memLowWaterMarkBytes", "less than `memHighWaterMarkBytes`");
    }
}

/// The resource whose requests are counted, where that is another one.
pub(super) fn ref_resource(
    fields: &mut Fields<'_, '_>,
    is_associated: bool,
    context: &Context<'_>,
) -> Option<String> {
    if is_associated {
        return name(fields, "refResource", "the resource whose requests are counted", context)
            .map(str::to_string);
    }
    fields.text("refResource");
    None
}

/// Sentinel's own default may also be written out, or left empty.
pub(super) fn limit_app(fields: &mut Fields<'_, '_>) -> LimitApp {
    match fields.some_text("limitApp") {
        None | Some("default") => LimitApp::Default,
        Some("other") => LimitApp::Other,
        Some(origin) => LimitApp::Origin(origin.to_string()),
    }
}

fn breaker_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = one_target(fields, context);
    needed(fields, "strategy", context);
    let max_allowed_rt_ms = fields.any_whole("maxAllowedRtMs");
    let strategy = match fields.choice("strategy", BREAKER_STRATEGY) {
        Some("ErrorCount") => {
            BreakerStrategy::ErrorCount(whole_tokens(needed_number(fields, "threshold", context)))
        }
        Some("ErrorRatio") => BreakerStrategy::ErrorRatio(ratio(fields, "threshold", context)),
        // Refused: what the threshold should be is not known.
        None if fields.node("strategy").is_some() => BreakerStrategy::ErrorRatio(0.0),
        Some(_) | None => {
            let ratio = ratio(fields, "threshold", context);
            BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms, ratio }
        }
    };
    let retry_timeout_ms = positive(fields, "retryTimeoutMs");
    let stat_interval_ms = positive(fields, "statIntervalMs");
    let mut buckets = fields.any_u32("statSlidingWindowBucketCount").max(1);
    // As in sentinel-golang: what does not divide the window is not used.
    if !stat_interval_ms.is_multiple_of(buckets) {
        buckets = 1;
    }
    if buckets > BREAKER_BUCKETS_MAX {
        fields.mismatch("statSlidingWindowBucketCount", "at most 10000");
    }
    let rule = CircuitBreakerRule {
        id: String::new(),
        strategy,
        retry_timeout_ms,
        min_request_amount: fields.any_whole("minRequestAmount"),
        stat_interval_ms,
        buckets,
        probe_num: fields.whole_u32("probeNum", 0..=PROBES_MAX).unwrap_or(0).max(1),
        error_statuses: error_statuses(fields),
        grpc_error_statuses: grpc_error_statuses(fields),
        close_live_connections: fields.flag("closeLiveConnections").unwrap_or_default(),
        common: Common::default(),
        target: match target {
            Some(target) => target,
            None => return,
        },
    };
    found.rules.push(Rule::CircuitBreaker(rule));
}

/// A number that a rule must say, 1 or more.
pub(super) fn positive(fields: &mut Fields<'_, '_>, field: &str) -> u32 {
    fields.require(field);
    fields.whole_u32(field, 1..=u32::MAX).unwrap_or(1)
}

/// HTTP statuses: 503, "503", "500-599", "5xx".
fn error_statuses(fields: &mut Fields<'_, '_>) -> Option<Vec<(u16, u16)>> {
    fields.takes_each("errorStatuses", || {
        Shape::AnyOf(Vec::from([Shape::Whole(100, 999), Shape::text(STATUS_RANGE)]))
    });
    let list = fields.list_of("errorStatuses", STATUSES_MAX);
    fields.node("errorStatuses")?;
    let mut statuses = Vec::new();
    for (index, node) in list.iter().enumerate() {
        let range = match &node.value {
            Value::Int(status) => u16::try_from(*status).ok().map(|status| (status, status)),
            Value::String(text) => status_range(text),
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => None,
        };
        match range {
            Some((from, to)) if 100 <= from && from <= to && to <= 999 => statuses.push((from, to)),
            Some(_) | None => {
                let allowed =
                    "a status such as 503, \"500-599\" or \"5xx\", from 100 to 999".to_string();
                let reason = Reason::Mismatch { found: node.describe(), allowed };
                fields.refuse_at(node.position, &format!("errorStatuses[{index}]"), reason);
            }
        }
    }
    Some(statuses)
}

fn status_range(text: &str) -> Option<(u16, u16)> {
    if let Some(class) = text.strip_suffix("xx") {
        let from = whole_number::<u16>(class)?.checked_mul(100)?;
        return Some((from, from.checked_add(99)?));
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some((whole_number(from.trim())?, whole_number(to.trim())?))
}

/// The same as a regular expression, but for the order of the two.
const STATUS_RANGE: &str = r"^(\s*\+?0*[1-9][0-9]{2}\s*(-\s*\+?0*[1-9][0-9]{2}\s*)?|\+?0*[1-9]xx)$";

fn grpc_error_statuses(fields: &mut Fields<'_, '_>) -> Option<Vec<u32>> {
    fields.takes_each("grpcErrorStatuses", || Shape::Whole(0, 999));
    let list = fields.list_of("grpcErrorStatuses", STATUSES_MAX);
    fields.node("grpcErrorStatuses")?;
    let mut statuses = Vec::new();
    for (index, node) in list.iter().enumerate() {
        match &node.value {
            Value::Int(status @ 0..=999) => statuses.extend(u32::try_from(*status)),
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::String(_)
            | Value::List(_)
            | Value::Map(_) => {
                let allowed = "a gRPC status such as 14".to_string();
                let reason = Reason::Mismatch { found: node.describe(), allowed };
                fields.refuse_at(node.position, &format!("grpcErrorStatuses[{index}]"), reason);
            }
        }
    }
    Some(statuses)
}

fn isolation_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = target(fields, context);
    fields.choice("metricType", ISOLATION_METRIC);
    let threshold = positive(fields, "threshold");
    let Some(target) = target else { return };
    let rule = IsolationRule { id: String::new(), target, threshold, common: Common::default() };
    found.rules.push(Rule::Isolation(rule));
}

fn system_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    needed(fields, "metricType", context);
    let bbr = fields.choice("strategy", SYSTEM_STRATEGY) == Some("BBR");
    let is_load = match fields.node("metricType").map(|node| &node.value) {
        Some(Value::String(metric)) => metric == "Load",
        Some(Value::Int(metric)) => *metric == 0,
        Some(Value::Null | Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_)) => {
            false
        }
        // Sentinel's JSON that says nothing says 0.
        None => context.form != Form::Document,
    };
    if is_load {
        fields.object("metricType", LOAD);
        return;
    }
    let metric = match fields.choice("metricType", SYSTEM_METRIC) {
        Some("CpuUsage") => SystemMetric::CpuUsage { bbr },
        Some("InboundQPS") => SystemMetric::InboundQps,
        Some("Concurrency") => SystemMetric::Concurrency,
        Some(_) => SystemMetric::AvgRt,
        None => return,
    };
    let trigger = match metric {
        SystemMetric::CpuUsage { .. } => ratio(fields, "triggerCount", context),
        SystemMetric::InboundQps | SystemMetric::Concurrency | SystemMetric::AvgRt => {
            needed_number(fields, "triggerCount", context)
        }
    };
    found.rules.push(Rule::System(SystemRule {
        id: String::new(),
        metric,
        trigger,
        common: Common::default(),
    }));
}

/// Why a rule by the machine's load is refused.
pub(super) const LOAD: &str =
    "is Load, the machine's, which says little of what Envoy can bear: use CpuUsage";

fn authority_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = target(fields, context);
    let origins = origins(fields);
    let white_list = fields.choice("strategy", AUTHORITY_STRATEGY) != Some("Black");
    let Some(target) = target else { return };
    let common = Common::default();
    found.rules.push(Rule::Authority(AuthorityRule {
        id: String::new(),
        target,
        origins,
        white_list,
        common,
    }));
}

/// `limitApp` as a list: origins, or networks of addresses, with commas between them.
fn origins(fields: &mut Fields<'_, '_>) -> Vec<String> {
    fields.require("limitApp");
    let text = fields.text_of("limitApp", || Shape::text("[^, ]")).unwrap_or_default();
    let origins: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter(|origin| !origin.is_empty())
        .map(str::to_string)
        .collect();
    if origins.is_empty() && fields.node("limitApp").is_some_and(is_text) {
        fields.mismatch("limitApp", "the callers' names, with commas between them");
    }
    for origin in &origins {
        if let Some(Err(problem)) = Network::parse(origin) {
            fields.object("limitApp", &format!("names {origin}, {problem}"));
        }
    }
    if origins.len() > ITEMS_MAX {
        fields.mismatch("limitApp", "at most 1000 callers");
    }
    origins
}

pub(super) fn is_text(node: &Node) -> bool {
    matches!(node.value, Value::String(_))
}

/// A count of requests, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "documents say 0 to 2^53, and a cast saturates"
)]
pub(super) fn whole_tokens(count: f64) -> u64 {
    count as u64
}

/// The same for a count that is a number of 32 bits in the rule.
pub(super) fn whole_u32(count: f64) -> Option<u32> {
    u32::try_from(whole_tokens(count)).ok()
}

/// The range of whole numbers that are a `u32` of milliseconds when they are seconds.
pub(super) const SECONDS: core::ops::RangeInclusive<u32> = 1..=u32::MAX / 1_000;
