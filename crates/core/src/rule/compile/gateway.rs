//! Sentinel's gateway rules and API groups, which have the same fields in documents and in Java's JSON.
//!
//! Source: Sentinel for Java, `sentinel-api-gateway-adapter-common` (`GatewayFlowRule`, `GatewayRuleConverter`,
//! `ApiDefinition`): a gateway rule is a hot-parameter rule of a route or an API group.

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{
    param::{MatchStrategy, Param, ParamMatch},
    rule::{
        ApiGroup, Common, HotspotRule, Overflow, ParamPick, PathPredicate, Rule, Target,
        compile::{
            Context, Found,
            common::{is_header_name, name, needed_number, one_target, pattern_problem},
            hotspot::hotspot_metric,
            kinds::whole_tokens,
        },
        read::{Choices, Fields},
    },
};

/// The fields of a gateway rule's `paramItem`.
pub const PARAM_ITEM_FIELDS: &[&str] =
    &["parseStrategy", "fieldName", "pattern", "matchStrategy", "index"];

/// The fields of one of an API group's `predicateItems`.
pub const PREDICATE_FIELDS: &[&str] = &["pattern", "matchStrategy"];

/// The most `predicateItems` of an API group; one with more is refused.
const PREDICATES_MAX: usize = 256;

static RESOURCE_MODE: Choices = &[("RouteId", Some(0)), ("ApiGroup", Some(1))];
static GRADE: Choices = &[("Concurrency", Some(0)), ("QPS", Some(1))];
static CONTROL_BEHAVIOR: Choices = &[("Reject", Some(0)), ("Throttling", Some(2))];
static PARSE_STRATEGY: Choices = &[
    ("ClientIp", Some(0)),
    ("Host", Some(1)),
    ("Header", Some(2)),
    ("UrlParam", Some(3)),
    ("Cookie", Some(4)),
];
static MATCH_STRATEGY: Choices =
    &[("Exact", Some(0)), ("Prefix", Some(1)), ("Regex", Some(2)), ("Contains", Some(3))];
static PATH_MATCH_STRATEGY: Choices =
    &[("Exact", Some(0)), ("Prefix", Some(1)), ("Regex", Some(2))];

pub(super) fn gateway_rule(fields: &mut Fields<'_, '_>, context: &Context<'_>, found: &mut Found) {
    let is_group = fields.choice("resourceMode", RESOURCE_MODE) == Some("ApiGroup");
    let target = if is_group {
        name(fields, "resource", "an API group's name", context)
            // The paths are put in when all documents are read.
            .map(|name| Target::Group(ApiGroup { name: name.to_string(), predicates: Vec::new() }))
    } else {
        one_target(fields, context)
    };
    let threshold = whole_tokens(needed_number(fields, "count", context));
    let (metric, capacity) = hotspot_metric(
        fields.choice("grade", GRADE) != Some("Concurrency"),
        fields.choice("controlBehavior", CONTROL_BEHAVIOR) == Some("Throttling"),
        fields.whole_u32("intervalSec", 1..=u32::MAX).unwrap_or(1),
        fields.any_whole("burst"),
        fields.whole_u32("maxQueueingTimeoutMs", 0..=u32::MAX).unwrap_or(500),
        0,
    );
    let param =
        fields.inside("paramItem", PARAM_ITEM_FIELDS).and_then(|mut item| param_item(&mut item));
    let Some(target) = target else { return };
    found.rules.push(Rule::Gateway(HotspotRule {
        id: String::new(),
        target,
        param,
        metric,
        threshold,
        items: Vec::new(),
        capacity,
        overflow: Overflow::default(),
        common: Common::default(),
    }));
}

fn param_item(item: &mut Fields<'_, '_>) -> Option<ParamPick> {
    item.require("parseStrategy");
    let strategy = item.choice("parseStrategy", PARSE_STRATEGY);
    let needs_name = matches!(strategy, Some("Header" | "UrlParam" | "Cookie"));
    let field = item.some_text("fieldName");
    if needs_name && field.is_none() {
        item.insist("fieldName", "the name of a header, a URL parameter or a cookie");
    }
    let field = field.unwrap_or_default();
    if strategy == Some("Header") && !field.is_empty() && !is_header_name(field) {
        item.mismatch("fieldName", "a header's name");
    }
    let matching = item.choice("matchStrategy", MATCH_STRATEGY);
    let pattern = item.some_text("pattern");
    if let (Some("Regex"), Some(pattern)) = (matching, pattern) {
        pattern_problem(item, "pattern", pattern);
    }
    item.whole("index", i64::from(i32::MIN)..=i64::from(i32::MAX));
    let key = match strategy? {
        "ClientIp" => Param::ClientIp,
        // Envoy finds `:authority` under this name too.
        "Host" => Param::Header("host".to_string()),
        "Header" => Param::Header(field.to_ascii_lowercase()),
        "UrlParam" => Param::Query(field.to_string()),
        _ => Param::Cookie(field.to_string()),
    };
    let strategy = match matching {
        Some("Prefix") => MatchStrategy::Prefix,
        Some("Regex") => MatchStrategy::Regex,
        Some("Contains") => MatchStrategy::Contains,
        Some(_) | None => MatchStrategy::Exact,
    };
    let matching = pattern.map(|pattern| ParamMatch { strategy, pattern: pattern.to_string() });
    Some(ParamPick { key: Some(key), index: None, matching })
}

pub(super) fn api_definition(
    fields: &mut Fields<'_, '_>,
    context: &Context<'_>,
    found: &mut Found,
) {
    let name = name(fields, "apiName", "an API group's name", context).map(str::to_string);
    fields.require("predicateItems");
    let mut predicates = Vec::new();
    for (index, node) in fields.list_of("predicateItems", PREDICATES_MAX).iter().enumerate() {
        let Some(mut item) = fields.item("predicateItems", index, node, PREDICATE_FIELDS) else {
            continue;
        };
        let strategy = item.choice("matchStrategy", PATH_MATCH_STRATEGY);
        let Some(pattern) = item.some_text("pattern").map(str::to_string) else {
            item.insist("pattern", "a path or a pattern of paths");
            continue;
        };
        predicates.push(match strategy {
            Some("Prefix") => PathPredicate::Prefix(pattern),
            Some("Regex") => {
                pattern_problem(&mut item, "pattern", &pattern);
                PathPredicate::Regex(pattern)
            }
            Some(_) | None => PathPredicate::Exact(pattern),
        });
    }
    found.group = name.map(|name| ApiGroup { name, predicates });
}
