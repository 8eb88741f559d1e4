//! What documents mean and what is wrong with them, by example: JSON with bare names, so that a rule reads as one.

use alloc::vec;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::{
    param::{Param, ParamMatch},
    rule::{
        BreakerStrategy, Common, Control, FlowRule, HotspotMetric, HotspotRule, IsolationRule,
        ItemValue, LimitApp, MemoryMarks, Overflow, ParamPick, Response, SystemMetric, SystemRule,
        TokenCalculate,
        error::REFUSALS_MAX,
        node::{Entry, Map},
    },
    warm_up::WarmUp,
};

mod any;
mod kinds;
mod lists;
mod other_forms;

fn node_of(json: serde_json::Value) -> Node {
    Node::new(match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(flag) => Value::Bool(flag),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::from_double(number.as_f64().unwrap()),
        },
        serde_json::Value::String(text) => Value::String(text),
        serde_json::Value::Array(list) => Value::List(list.into_iter().map(node_of).collect()),
        serde_json::Value::Object(map) => {
            let entries = map.into_iter().map(|(key, value)| Entry {
                key,
                position: None,
                value: node_of(value),
            });
            Value::Map(Map::from_entries(entries.collect()).unwrap())
        }
    })
}

/// The tree of a JSON text in which names need no quotes: `{resource: "a"}`.
#[track_caller]
fn node(json: &str) -> Node {
    let mut strict = String::new();
    let mut in_text = false;
    let mut word = String::new();
    for c in json.chars() {
        if !in_text && (c.is_ascii_alphabetic() || (!word.is_empty() && c.is_ascii_alphanumeric()))
        {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            let quoted = if c == ':' { format!("\"{word}\"") } else { word.clone() };
            strict.push_str(&quoted);
            word.clear();
        }
        in_text ^= c == '"';
        strict.push(c);
    }
    node_of(serde_json::from_str(&strict).unwrap())
}

#[track_caller]
fn golang(kind: &str, rule: &str) -> Result<Vec<Rule>, Refusals> {
    rules_from_golang(kind, &node(&format!("[{rule}]")), &Settings::DEFAULT)
}

#[track_caller]
fn java(kind: &str, rule: &str) -> Result<Vec<Rule>, Refusals> {
    rules_from_java(kind, &node(&format!("[{rule}]")), &Settings::DEFAULT)
}

/// One document of Sentinel's.
fn document(kind: &str, rules: &str) -> String {
    format!("{{apiVersion: \"{API_VERSION}\", kind: \"{kind}\", spec: {{rules: [{rules}]}}}}")
}

fn opensergo(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: \"{OPENSERGO_VERSION}\", kind: \"{kind}\", metadata: {{name: \"{name}\"}}, spec: {{{spec}}}}}"
    )
}

#[track_caller]
fn compile(documents: &[String]) -> Result<Vec<Rule>, Refusals> {
    let documents: Vec<Node> = documents.iter().map(|document| node(document)).collect();
    compile_set(&[Source { documents: &documents, ..Source::of("a.yaml") }], &Settings::DEFAULT)
}

#[track_caller]
fn one(rules: Result<Vec<Rule>, Refusals>) -> Rule {
    let mut rules = rules.unwrap();
    assert_eq!(rules.len(), 1);
    rules.remove(0)
}

#[track_caller]
fn refused(rules: Result<Vec<Rule>, Refusals>, expected: &Expect) {
    expected.assert_eq(&rules.unwrap_err().to_string());
}

fn named(name: &str) -> Target {
    Target::Resource(name.into())
}

fn plain_flow(name: &str) -> FlowRule {
    FlowRule {
        id: format!("flow:{name}"),
        target: named(name),
        limit_app: LimitApp::Default,
        threshold: 1.0,
        stat_interval_ms: 1_000,
        calculate: TokenCalculate::Direct,
        control: Control::Reject,
        ref_resource: None,
        common: Common::default(),
    }
}

#[test]
fn a_set_whose_tables_or_patterns_need_too_much_is_refused() {
    let many: Vec<String> = (0..40)
        .map(|index| {
            format!(r#"{{id: "p{index}", resource: "a", metricType: "Concurrency", threshold: 1}}"#)
        })
        .collect();
    refused(
        compile(&[document("HotspotRules", &many.join(","))]),
        &expect![
            "`rules` need 138600000 bytes for tables of values, but may have at most 67108864 (paramTableBytes): most of it is 3465000 for p0; write fewer such rules, lower `paramsMaxCapacity` or raise the setting"
        ],
    );
}

fn authority(patterns: impl Iterator<Item = String>) -> Result<Vec<Rule>, Refusals> {
    let rules =
        patterns.map(|pattern| format!(r#"{{resource: "{pattern}", regex: true, limitApp: "x"}}"#));
    compile(&[document("AuthorityRules", &rules.collect::<Vec<_>>().join(","))])
}

#[test]
fn patterns_that_would_make_a_new_name_wait_are_refused() {
    assert!(authority((0..256).map(|n| format!(".*{n}"))).is_ok());
    refused(
        authority((0..257).map(|n| format!("a.*{n}"))),
        &expect![
            r#"`rules` have patterns (`regex: true`) of which a name that begins with "a" must be tried against 257 with 1432 steps, but may have at most 256 with 16384 steps for any name: let them differ in plain characters at their beginnings"#
        ],
    );
    // Those that a name begins with count together, however long each beginning is.
    let one_in_another = |n: usize| format!("{}.*", "a".repeat(n % 250));
    assert!(authority((0..256).map(|n| one_in_another(n) + &"b".repeat(n / 250))).is_ok());
    assert!(authority((0..4).map(|n| format!("a.{{4000}}b{n}"))).is_ok());
    refused(
        authority((0..5).map(|n| format!("a.{{4000}}b{n}"))),
        &expect![
            r#"`rules` have patterns (`regex: true`) of which a name that begins with "a" must be tried against 5 with 20010 steps, but may have at most 256 with 16384 steps for any name: let them differ in plain characters at their beginnings"#
        ],
    );
}

#[test]
fn patterns_that_need_too_much_memory_are_refused() {
    assert!(authority((0..170).map(|n| format!("{n}/a{{0,400}}"))).is_ok());
    refused(
        authority((0..900).map(|n| format!("{n}/a{{0,400}}"))),
        &expect![
            "`rules` need 8701090 bytes in each worker for their patterns (`regex: true`), but may have at most 8388608: write fewer, or lower what repetitions multiply"
        ],
    );
}

fn patterns_with_tables(kind: &str, rule: &str, count: usize) -> Result<Vec<Rule>, Refusals> {
    let rule = |n: usize| {
        format!(r#"{{id: "p{n}", resource: "GET:/service-{n}/users/[0-9]+", regex: true, {rule}}}"#)
    };
    compile(&[document(kind, &(0..count).map(rule).collect::<Vec<_>>().join(","))])
}

#[test]
fn ten_thousand_patterns_of_any_kind_load_and_their_tables_stay_within_the_bound() {
    const FLOW: &str = "threshold: 1";
    const SLOW: &str = "threshold: 1, statIntervalInMs: 10000";
    const PLACES: &str = "threshold: 1";
    for (kind, rule, count, capacity) in [
        ("FlowRules", FLOW, 90, 4_000),
        ("FlowRules", FLOW, 100, 400),
        ("FlowRules", FLOW, 5_000, 64),
        ("FlowRules", FLOW, 10_000, 8),
        ("FlowRules", SLOW, 10, 4_000),
        ("FlowRules", SLOW, 5_000, 8),
        ("FlowRules", SLOW, 10_000, 8),
        ("IsolationRules", PLACES, 10, 4_000),
        ("IsolationRules", PLACES, 5_000, 8),
    ] {
        let rules = patterns_with_tables(kind, rule, count).unwrap();
        let most = Settings::DEFAULT.param_table_bytes;
        let matched = matched_capacity(&rules.iter(), most);
        assert_eq!(matched, capacity, "{count} {kind} with {rule}");
        let bytes: u64 = rules.iter().map(|rule| table_bytes(rule, matched)).sum();
        assert!(bytes <= u64::from(most));
        // The least that a set may take: a pace's.
        let sets: u64 =
            rules.iter().map(|rule| u64::from(rule.table_capacity(matched).div_ceil(8))).sum();
        assert!(sets <= u64::from(most) / 825, "{sets} keys");
    }
    assert!(patterns_with_tables("IsolationRules", PLACES, 10_000).is_err());
}

#[test]
fn an_id_says_what_the_rule_counts() {
    let id = |rule: FlowRule| default_id(&Rule::Flow(rule));
    assert_eq!(id(plain_flow("GET:/hello")), "flow:GET:/hello");
    assert_eq!(
        id(FlowRule { stat_interval_ms: 500, ..plain_flow("GET:/hello") }),
        "flow:GET:/hello:500ms"
    );
    assert_eq!(id(plain_flow("tcp:mysql")), "flow:tcp:mysql");
    // A name that looks like another rule's words.
    assert_ne!(
        id(plain_flow("a:500ms")),
        id(FlowRule { stat_interval_ms: 500, ..plain_flow("a") })
    );
}

#[test]
fn a_rule_of_messages_counts_something_else_than_one_of_requests() {
    let of = |kind: &str, rule: &str| one(compile(&[document(kind, rule)]));
    for (kind, rule) in [
        ("FlowRules", r#"resource: "a", threshold: 5"#),
        (
            "FlowRules",
            r#"resource: "a", threshold: 5, controlBehavior: "Throttling", maxQueueingTimeMs: 50"#,
        ),
        (
            "FlowRules",
            r#"resource: "a", threshold: 5, tokenCalculateStrategy: "WarmUp", warmUpPeriodSec: 5"#,
        ),
        (
            "HotspotRules",
            r#"resource: "a", threshold: 5, metricType: "QPS", durationInSec: 1, paramIndex: 0"#,
        ),
    ] {
        let requests = of(kind, &format!("{{{rule}}}"));
        let also_requests = of(kind, &format!("{{{rule}, unit: \"request\"}}"));
        let messages = of(kind, &format!("{{{rule}, unit: \"message\"}}"));
        assert_eq!(requests, also_requests);
        assert_eq!(messages.common().unit, Unit::Message);
        assert_eq!(messages.id(), format!("{}:message", requests.id()));
        assert!(messages.counts_the_same_as(&messages.clone()));
        assert!(!messages.counts_the_same_as(&requests));
    }
}

#[test]
fn what_cannot_count_messages_says_so() {
    let mut said = String::new();
    for (kind, rule) in [
        ("FlowRules", r#"threshold: 5, relationStrategy: "AssociatedResource", refResource: "b""#),
        (
            "FlowRules",
            r#"tokenCalculateStrategy: "MemoryAdaptive", lowMemUsageThreshold: 2, highMemUsageThreshold: 1,
               memLowWaterMarkBytes: 1, memHighWaterMarkBytes: 2"#,
        ),
        ("HotspotRules", r#"threshold: 5, metricType: "Concurrency", paramIndex: 0"#),
        ("IsolationRules", "threshold: 5"),
        ("AuthorityRules", r#"limitApp: "a""#),
        ("GatewayFlowRules", "count: 5"),
        (
            "CircuitBreakerRules",
            r#"strategy: "ErrorCount", threshold: 5, retryTimeoutMs: 1, statIntervalMs: 1"#,
        ),
        ("FlowRules", r#"threshold: 5, unit: "frame""#),
    ] {
        let unit = if rule.contains("unit") { "" } else { r#", unit: "message""# };
        let rules = compile(&[document(kind, &format!("{{resource: \"a\", {rule}{unit}}}"))]);
        said.push_str(&format!("{}\n", rules.unwrap_err()));
    }
    expect![[r#"
        a.yaml: document 1 (FlowRules): rules[0] (a): `unit` is message, but an AssociatedResource's requests are counted: leave it out
        a.yaml: document 1 (FlowRules): rules[0] (a): `unit` is message, but MemoryAdaptive is for requests: use Direct or WarmUp
        a.yaml: document 1 (HotspotRules): rules[0] (a): `unit` is message, but only requests are counted at a time: use `metricType: QPS`
        a.yaml: document 1 (IsolationRules): rules[0] (a): `unit` is message, which only FlowRules and HotspotRules count: leave it out
        a.yaml: document 1 (AuthorityRules): rules[0] (a): `unit` is message, which only FlowRules and HotspotRules count: leave it out
        a.yaml: document 1 (GatewayFlowRules): rules[0] (a): `unit` is message, which only FlowRules and HotspotRules count: leave it out
        a.yaml: document 1 (CircuitBreakerRules): rules[0] (a): `unit` is message, which only FlowRules and HotspotRules count: leave it out
        a.yaml: document 1 (FlowRules): rules[0] (a): `unit` is "frame", but must be request or message
    "#]].assert_eq(&said);
}

#[test]
fn an_id_that_would_not_be_one_is_shortened_and_stays_the_same_for_ever() {
    let id = |name: &str| default_id(&Rule::Flow(plain_flow(name)));
    assert_eq!(id("GET:/users/{id}"), "flow:GET:/users/_id_:b1993b3bea1c28fc");
    assert_eq!(
        id(&"/x".repeat(100)),
        "flow:/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x:b7b26b92b7b2be16"
    );
}

#[test]
fn what_is_over_rules_max_refuses_the_set() {
    let settings = Settings { rules_max: 2, ..Settings::DEFAULT };
    let list = node(r#"[{resource: "a"}, {resource: "b"}, {resource: "c"}]"#);
    let refusals = rules_from_golang("flow", &list, &settings).unwrap_err();
    assert_eq!(refusals.to_string(), "`rules` has 3 entries, but may have at most 2 (rulesMax)");
}

#[test]
fn a_thousand_errors_are_a_hundred_lines_and_one() {
    let rules = vec![r#"{resource: "", threshold: 1}"#; 1_000].join(",");
    let refusals = golang("flow", &rules).unwrap_err();
    assert_eq!(refusals.lines().count(), REFUSALS_MAX + 1);
    assert_eq!(refusals.lines().last().unwrap(), "… and 900 more");
}

#[test]
fn a_header_that_would_break_the_reply_is_refused() {
    let text = |text: &str| Value::String(text.into());
    let map = |entries: Vec<(&str, Value)>| {
        let entries = entries.into_iter().map(|(key, value)| Entry {
            key: key.into(),
            position: None,
            value: Node::new(value),
        });
        Value::Map(Map::from_entries(entries.collect()).unwrap())
    };
    let with = |name: &str, value: &str| {
        let response = map(vec![("headers", map(vec![(name, text(value))]))]);
        let rule = map(vec![
            ("resource", text("a")),
            ("threshold", Value::Int(1)),
            ("response", response),
        ]);
        rules_from_golang(
            "flow",
            &Node::new(Value::List(vec![Node::new(rule)])),
            &Settings::DEFAULT,
        )
    };
    assert!(with("X-Reason", "too many").is_ok());
    for (name, value) in [
        ("x\r\ny", "v"),
        (":status", "200"),
        ("", "v"),
        ("x y", "v"),
        ("x", "a\r\nb: c"),
        ("Content-Length", "0"),
        ("transfer-encoding", "chunked"),
    ] {
        assert!(with(name, value).is_err(), "{name}: {value}");
    }
}
