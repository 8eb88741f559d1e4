//! Hot-parameter rules, in documents and in sentinel-golang's JSON.
//!
//! Source: sentinel-golang `core/hotspot/rule.go`, `rule_manager.go:IsValidRule` and
//! `ext/datasource/hotspot_rule_converter.go`.

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{
    decimal,
    decimal::whole_number,
    param::Param,
    rule::{
        Common, HotspotMetric, HotspotRule, ItemValue, Overflow, ParamPick, Rule, SpecificItem,
        compile::{
            Context, Form, Found,
            common::{needed, one_target},
            kinds::{CONTROL_BEHAVIOR, ITEMS_MAX},
        },
        read::{Choices, Fields},
        shape::Shape,
    },
};

/// The fields of one of a hot-parameter rule's `specificItems`.
pub const SPECIFIC_ITEM_FIELDS: &[&str] = &["valKind", "valStr", "threshold"];

static HOTSPOT_METRIC: Choices = &[("Concurrency", Some(0)), ("QPS", Some(1))];
static OVERFLOW: Choices = &[("share", None), ("block", None)];
static ITEM_KIND: Choices = &[
    ("KindInt", Some(0)),
    ("KindString", Some(1)),
    ("KindBool", Some(2)),
    ("KindFloat64", Some(3)),
];

pub(super) fn hotspot_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let target = one_target(fields, context);
    needed(fields, "metricType", context);
    needed(fields, "threshold", context);
    let is_rate = fields.choice("metricType", HOTSPOT_METRIC) == Some("QPS");
    let duration_sec = fields.any_u32("durationInSec");
    if is_rate && duration_sec == 0 {
        fields.insist("durationInSec", "1 or more");
    }
    let (metric, capacity) = hotspot_metric(
        is_rate,
        fields.choice("controlBehavior", CONTROL_BEHAVIOR) == Some("Throttling"),
        duration_sec,
        fields.any_whole("burstCount"),
        fields.any_u32("maxQueueingTimeMs"),
        fields.any_u32("paramsMaxCapacity"),
    );
    let rule = HotspotRule {
        id: String::new(),
        param: Some(param_pick(fields, context)),
        metric,
        threshold: fields.any_whole("threshold"),
        items: specific_items(fields),
        capacity,
        overflow: match fields.choice("overflow", OVERFLOW) {
            Some("block") => Overflow::Block,
            Some(_) | None => Overflow::Share,
        },
        target: match target {
            Some(target) => target,
            None => return,
        },
        common: Common::default(),
    };
    found.rules.push(Rule::Hotspot(rule));
}

/// What is counted for each value, and how many values are kept apart if the rule does not say so.
pub(super) fn hotspot_metric(
    is_rate: bool,
    throttles: bool,
    duration_sec: u32,
    burst: u64,
    max_queueing_ms: u32,
    capacity: u32,
) -> (HotspotMetric, u32) {
    let duration_ms = u64::from(duration_sec) * 1_000;
    let max_queueing_ms = u64::from(max_queueing_ms);
    let (metric, default) = match (is_rate, throttles) {
        (false, _) => (HotspotMetric::Concurrency, 4_000),
        (true, false) => (
            HotspotMetric::Reject { duration_ms, burst },
            duration_sec.saturating_mul(4_000).min(20_000),
        ),
        (true, true) => (
            HotspotMetric::Throttling { duration_ms, max_queueing_ms },
            duration_sec.saturating_mul(4_000).min(20_000),
        ),
    };
    (metric, if capacity > 0 { capacity } else { default })
}

fn param_pick(fields: &mut Fields<'_, '_>, context: &Context<'_>) -> ParamPick {
    let key_or_none = || Shape::AnyOf(Vec::from([Shape::EMPTY_TEXT, Shape::text(Param::PATTERN)]));
    let text = fields.text_of("paramKey", key_or_none).filter(|text| !text.is_empty());
    let index = fields
        .whole("paramIndex", i64::from(i32::MIN)..=i64::from(i32::MAX))
        .and_then(|index| i32::try_from(index).ok());
    if text.is_some() && index.is_some_and(|index| index > 0) {
        fields.object("paramIndex", "stands beside `paramKey`: leave one of them out");
    }
    let key = text.and_then(|text| match Param::parse(text) {
        None if context.form == Form::Attached => Some(Param::Attachment(text.to_string())),
        param => param,
    });
    if text.is_some() && key.is_none() {
        fields.mismatch("paramKey", Param::FORMS);
    }
    // sentinel-golang writes an index always, and falls back on it.
    let needs_index = key.is_none() || context.form != Form::Document;
    ParamPick {
        index: if needs_index { Some(index.unwrap_or(0)) } else { index },
        key,
        matching: None,
    }
}

fn specific_items(fields: &mut Fields<'_, '_>) -> Vec<SpecificItem> {
    let mut items: Vec<SpecificItem> = Vec::new();
    for (index, node) in fields.list_of("specificItems", ITEMS_MAX).iter().enumerate() {
        let Some(mut item) = fields.item("specificItems", index, node, SPECIFIC_ITEM_FIELDS) else {
            continue;
        };
        for field in SPECIFIC_ITEM_FIELDS {
            item.require(field);
        }
        let kind = item.choice("valKind", ITEM_KIND);
        let threshold = item.any_whole("threshold");
        let (Some(kind), Some(text)) = (kind, item.text("valStr")) else { continue };
        let (value, what) = match kind {
            "KindInt" => (item_int(text), "a whole number in quotes"),
            "KindBool" => (item_bool(text), "\"true\" or \"false\""),
            "KindFloat64" => (item_float(text), "a number in quotes"),
            _ => (Some(ItemValue::String(text.to_string())), ""),
        };
        match value {
            None => item.mismatch("valStr", what),
            Some(value) if items.iter().any(|other| other.value == value) => {
                item.object("valStr", "stands twice: leave one out");
            }
            Some(value) => items.push(SpecificItem { value, threshold }),
        }
    }
    items
}

pub(super) fn item_int(text: &str) -> Option<ItemValue> {
    whole_number(text).map(ItemValue::Int)
}

/// As Go reads it.
pub(super) fn item_bool(text: &str) -> Option<ItemValue> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(ItemValue::Bool(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(ItemValue::Bool(false)),
        _ => None,
    }
}

/// Rounded to 5 decimals.
pub(super) fn item_float(text: &str) -> Option<ItemValue> {
    let number = decimal::parse(text).filter(|number| number.abs() <= 1e12)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 10^17")]
    let scaled = (number * 1e5 + if number < 0.0 { -0.5 } else { 0.5 }) as i64;
    #[expect(
        clippy::cast_precision_loss,
        reason = "a double holds no more of the number than this"
    )]
    Some(ItemValue::Float(scaled as f64 / 1e5))
}
