//! The JSON lists of Sentinel for Java, mapped onto the same rules.
//!
//! Sources: Sentinel for Java 1.8, `slots/block/*/[A-Z]*Rule.java` and `sentinel-parameter-flow-control`
//! (semantics 1.1 to 1.8). Where its meaning and sentinel-golang's differ, ours is sentinel-golang's. What a proxy
//! has no notion of (the context that a call came from, the token server) is refused.

use alloc::{string::String, string::ToString as _, vec::Vec};

use crate::{
    rule::{
        BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule, HotspotRule, IsolationRule,
        ItemValue, LimitApp, Overflow, ParamPick, Rule, SpecificItem, SystemMetric, SystemRule,
        Target, TokenCalculate,
        compile::{
            Context, Found, Kind,
            common::{needed_number, one_target, target},
            hotspot::{hotspot_metric, item_bool, item_float, item_int},
            kinds::{
                AUTHORITY, GATEWAY, ITEMS_MAX, LOAD, SECONDS, checked_warm_up, fields, limit_app,
                ref_resource, whole_tokens, whole_u32,
            },
        },
        read::{Choices, Fields, as_number},
    },
    warm_up::WarmUp,
};

/// The kinds of lists that Sentinel for Java has.
pub static JAVA_KINDS: &[Kind] = &[
    Kind {
        name: "FlowRule",
        list: "flow",
        fields: fields![
            "resource",
            "limitApp",
            "regex",
            "grade",
            "count",
            "strategy",
            "refResource",
            "controlBehavior",
            "warmUpPeriodSec",
            "maxQueueingTimeMs",
            "clusterMode",
            "clusterConfig",
        ],
        telling: &[],
        read: flow_rule,
    },
    Kind {
        name: "DegradeRule",
        list: "degrade",
        fields: fields![
            "resource",
            "limitApp",
            "regex",
            "grade",
            "count",
            "timeWindow",
            "minRequestAmount",
            "slowRatioThreshold",
            "statIntervalMs",
        ],
        telling: &[],
        read: degrade_rule,
    },
    Kind {
        name: "ParamFlowRule",
        list: "paramflow",
        fields: fields![
            "resource",
            "limitApp",
            "regex",
            "grade",
            "paramIdx",
            "count",
            "controlBehavior",
            "maxQueueingTimeMs",
            "burstCount",
            "durationInSec",
            "paramFlowItemList",
            "clusterMode",
            "clusterConfig",
        ],
        telling: &[],
        read: param_flow_rule,
    },
    Kind {
        name: "SystemRule",
        list: "system",
        fields: fields![
            "resource",
            "limitApp",
            "regex",
            "highestSystemLoad",
            "highestCpuUsage",
            "qps",
            "avgRt",
            "maxThread",
        ],
        telling: &[],
        read: system_rule,
    },
    Kind { list: "authority", ..AUTHORITY },
    Kind { list: "gateway", ..GATEWAY },
];

/// The fields of one of a `paramFlowItemList`.
pub const PARAM_FLOW_ITEM_FIELDS: &[&str] = &["object", "count", "classType"];

static FLOW_GRADE: Choices = &[("Thread", Some(0)), ("QPS", Some(1))];
static FLOW_STRATEGY: Choices = &[("Direct", Some(0)), ("Relate", Some(1)), ("Chain", Some(2))];
static FLOW_BEHAVIOR: Choices = &[
    ("Reject", Some(0)),
    ("WarmUp", Some(1)),
    ("RateLimiter", Some(2)),
    ("WarmUpRateLimiter", Some(3)),
];
static DEGRADE_GRADE: Choices =
    &[("SlowRatio", Some(0)), ("ExceptionRatio", Some(1)), ("ExceptionCount", Some(2))];
static PARAM_BEHAVIOR: Choices = &[("Reject", Some(0)), ("RateLimiter", Some(2))];

fn flow_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = target(fields, context);
    let is_rate = fields.choice("grade", FLOW_GRADE) != Some("Thread");
    let count = needed_number(fields, "count", context);
    let strategy = fields.choice("strategy", FLOW_STRATEGY);
    if strategy == Some("Chain") {
        fields.object(
            "strategy",
            "is Chain (2): a request in Envoy comes from no other resource; use Direct (0) or Relate (1)",
        );
    }
    refuse_cluster(fields);
    let limit_app = limit_app(fields);
    let ref_resource = ref_resource(fields, strategy == Some("Relate"), context);
    let behavior =
        fields.choice("controlBehavior", FLOW_BEHAVIOR).filter(|_| is_rate).unwrap_or("Reject");
    let max_queueing_ms = fields.whole_u32("maxQueueingTimeMs", 0..=u32::MAX).unwrap_or(500);
    let period_sec = fields.whole_u32("warmUpPeriodSec", 0..=u32::MAX).unwrap_or(10);
    let calculate = if behavior.starts_with("WarmUp") {
        TokenCalculate::WarmUp(checked_warm_up(fields, WarmUp { period_sec, cold_factor: 0 }))
    } else {
        TokenCalculate::Direct
    };
    let control = if behavior.ends_with("RateLimiter") {
        if max_queueing_ms == 0 {
            fields.mismatch("maxQueueingTimeMs", "1 or more");
        }
        Control::Throttling { max_queueing_ms }
    } else {
        Control::Reject
    };
    let Some(target) = target else { return };
    if matches!(target, Target::Pattern(_)) && behavior != "Reject" {
        fields.mismatch("controlBehavior", "Reject (0) where `regex` is true");
    }
    if is_rate {
        found.rules.push(Rule::Flow(FlowRule {
            id: String::new(),
            target,
            limit_app,
            threshold: count,
            stat_interval_ms: 1_000,
            calculate,
            control,
            ref_resource,
            common: Common::default(),
        }));
        return;
    }
    if limit_app != LimitApp::Default {
        fields.mismatch("limitApp", "default where `grade` is Thread (0)");
    }
    if ref_resource.is_some() {
        fields.mismatch("strategy", "Direct (0) where `grade` is Thread (0)");
    }
    let threshold = whole_u32(count).filter(|count| *count > 0);
    if threshold.is_none() {
        fields.insist("count", "1 or more where `grade` is Thread (0), and less than 2^32");
    }
    found.rules.push(Rule::Isolation(IsolationRule {
        id: String::new(),
        target,
        threshold: threshold.unwrap_or(1),
        common: Common::default(),
    }));
}

/// A token server has no place here: all workers of an Envoy share each limit anyway.
fn refuse_cluster(fields: &mut Fields<'_, '_>) {
    if fields.flag("clusterMode") == Some(true) {
        fields.object(
            "clusterMode",
            "is true, but limits hold for one Envoy, over all its workers: there is no token server to ask",
        );
    }
}

/// `limitApp` of rules that cannot tell callers apart.
fn refuse_limit_app(fields: &mut Fields<'_, '_>) {
    if limit_app(fields) != LimitApp::Default {
        fields.mismatch("limitApp", "default: only flow and authority rules tell callers apart");
    }
}

fn degrade_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = one_target(fields, context);
    refuse_limit_app(fields);
    let count = needed_number(fields, "count", context);
    let slow_ratio = fraction(fields, "slowRatioThreshold", 1.0);
    let strategy = match fields.choice("grade", DEGRADE_GRADE) {
        Some("ExceptionRatio") => BreakerStrategy::ErrorRatio(fraction(fields, "count", 0.0)),
        Some("ExceptionCount") => BreakerStrategy::ErrorCount(whole_tokens(count)),
        // Java rounds to whole milliseconds.
        Some(_) | None => BreakerStrategy::SlowRequestRatio {
            max_allowed_rt_ms: whole_tokens(count + 0.5),
            ratio: slow_ratio,
        },
    };
    fields.require("timeWindow");
    let time_window_sec = fields.whole_u32("timeWindow", SECONDS).unwrap_or(1);
    let rule = CircuitBreakerRule {
        id: String::new(),
        strategy,
        retry_timeout_ms: time_window_sec * 1_000,
        min_request_amount: u64::from(
            fields.whole_u32("minRequestAmount", 1..=u32::MAX).unwrap_or(5),
        ),
        stat_interval_ms: fields.whole_u32("statIntervalMs", 1..=u32::MAX).unwrap_or(1_000),
        buckets: 1,
        probe_num: 1,
        error_statuses: None,
        grpc_error_statuses: None,
        close_live_connections: false,
        common: Common::default(),
        target: match target {
            Some(target) => target,
            None => return,
        },
    };
    found.rules.push(Rule::CircuitBreaker(rule));
}

/// A part of 1.
fn fraction(fields: &mut Fields<'_, '_>, field: &str, default: f64) -> f64 {
    let Some(node) = fields.node(field) else { return default };
    as_number(node).filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
        fields.mismatch(field, "a number from 0 to 1");
        default
    })
}

fn param_flow_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = one_target(fields, context);
    refuse_limit_app(fields);
    refuse_cluster(fields);
    fields.require("paramIdx");
    let index = fields
        .whole("paramIdx", i64::from(i32::MIN)..=i64::from(i32::MAX))
        .and_then(|index| i32::try_from(index).ok());
    let threshold = whole_tokens(needed_number(fields, "count", context));
    let (metric, capacity) = hotspot_metric(
        fields.choice("grade", FLOW_GRADE) != Some("Thread"),
        fields.choice("controlBehavior", PARAM_BEHAVIOR) == Some("RateLimiter"),
        fields.whole_u32("durationInSec", 1..=u32::MAX).unwrap_or(1),
        fields.any_whole("burstCount"),
        fields.any_u32("maxQueueingTimeMs"),
        0,
    );
    let items = param_flow_items(fields);
    let Some(target) = target else { return };
    found.rules.push(Rule::Hotspot(HotspotRule {
        id: String::new(),
        target,
        param: Some(ParamPick { key: None, index, matching: None }),
        metric,
        threshold,
        items,
        capacity,
        overflow: Overflow::default(),
        common: Common::default(),
    }));
}

fn param_flow_items(fields: &mut Fields<'_, '_>) -> Vec<SpecificItem> {
    let mut items: Vec<SpecificItem> = Vec::new();
    for (index, node) in fields.list_of("paramFlowItemList", ITEMS_MAX).iter().enumerate() {
        let Some(mut item) = fields.item("paramFlowItemList", index, node, PARAM_FLOW_ITEM_FIELDS)
        else {
            continue;
        };
        item.require("object");
        item.require("count");
        let threshold = item.any_whole("count");
        let class = item.text("classType").unwrap_or_default();
        let Some(text) = item.text("object") else { continue };
        let value = match class.strip_prefix("java.lang.").unwrap_or(class) {
            "int" | "Integer" | "long" | "Long" | "short" | "Short" | "byte" | "Byte" => {
                item_int(text)
            }
            "double" | "Double" | "float" | "Float" => item_float(text),
            "boolean" | "Boolean" => item_bool(text),
            "" | "String" | "char" | "Character" => Some(ItemValue::String(text.to_string())),
            _ => {
                item.mismatch(
                    "classType",
                    "int, long, double, float, byte, short, boolean, char or java.lang.String",
                );
                continue;
            }
        };
        match value {
            None => item.mismatch("object", "a value of its `classType`, in quotes"),
            Some(value) if items.iter().any(|other| other.value == value) => {
                item.object("object", "stands twice: leave one out");
            }
            Some(value) => items.push(SpecificItem { value, threshold }),
        }
    }
    items
}

/// One object of several limits, of which −1 is none.
fn system_rule(fields: &mut Fields<'_, '_>, _context: &Context<'_>, found: &mut Found) {
    if is_set(fields, "highestSystemLoad") {
        fields.object("highestSystemLoad", LOAD);
    }
    for (field, metric) in [
        ("qps", SystemMetric::InboundQps),
        ("maxThread", SystemMetric::Concurrency),
        ("avgRt", SystemMetric::AvgRt),
        ("highestCpuUsage", SystemMetric::CpuUsage { bbr: false }),
    ] {
        if !is_set(fields, field) {
            continue;
        }
        let trigger = match metric {
            SystemMetric::CpuUsage { .. } => fraction(fields, field, 0.0),
            SystemMetric::InboundQps | SystemMetric::Concurrency | SystemMetric::AvgRt => {
                fields.number(field).unwrap_or(0.0)
            }
        };
        found.rules.push(Rule::System(SystemRule {
            id: String::new(),
            metric,
            trigger,
            common: Common::default(),
        }));
    }
}

fn is_set(fields: &Fields<'_, '_>, field: &str) -> bool {
    fields.node(field).is_some_and(|node| as_number(node) != Some(-1.0))
}
