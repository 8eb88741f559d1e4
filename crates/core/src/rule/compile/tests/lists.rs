//! Bare lists, as sentinel-golang's data sources write them.

use super::*;

#[track_caller]
fn read(name: &str, list: Option<&str>, text: &str) -> Result<Vec<Rule>, Refusals> {
    let documents = [node(text)];
    compile_set(&[Source { list, documents: &documents, ..Source::of(name) }], &Settings::DEFAULT)
}

#[track_caller]
fn kinds_of(rules: &[Rule]) -> Vec<&str> {
    rules.iter().map(|rule| rule.id().split(':').next().unwrap()).collect()
}

/// What fits two kinds, and so says nothing.
const EITHER: &str = r#"[{resource: "a", threshold: 1}]"#;

#[test]
fn what_a_list_is_is_what_the_operator_says() {
    for (list, kind) in [("flow", "flow"), ("isolation", "isolation")] {
        assert_eq!(kinds_of(&read("rules", Some(list), EITHER).unwrap()), [kind]);
        // Also where the name of the source says something else.
        assert_eq!(kinds_of(&read("system.json", Some(list), EITHER).unwrap()), [kind]);
    }
    for list in ["flows", "", "authority", "FlowRules"] {
        let refused = read("flow.json", Some(list), EITHER).unwrap_err().to_string();
        let end = format!(
            "a list of rules that is said to be `{list}`, but must be flow, circuitbreaker, hotspot, isolation or system"
        );
        assert!(refused.ends_with(&end), "{refused}");
    }
}

#[test]
fn what_a_list_is_is_said_by_the_name_of_its_file() {
    for name in [
        "flow.json",
        "/etc/sentinel/flow_rules.json",
        "system/shop-Flow.v2.json",
        "FlowRules.yaml",
        "flowRule",
        "C:\\rules\\flow.json",
        "flow/flow.json",
        "flow-flow.json",
    ] {
        assert_eq!(kinds_of(&read(name, None, EITHER).unwrap()), ["flow"], "{name}");
    }
    assert_eq!(kinds_of(&read("isolation-rules.json", None, EITHER).unwrap()), ["isolation"]);
    for name in [
        "rules.json",
        "workflow.json",
        "flows.json",
        "flow/rules.json",
        "flow-isolation.json",
        "éflow.json",
        "a.flow",
    ] {
        assert!(read(name, None, EITHER).is_err(), "{name}");
    }
}

#[test]
fn what_a_list_is_is_said_by_fields_that_only_one_kind_has() {
    for (list, kind) in [
        (r#"[{resource: "a", threshold: 1, statIntervalInMs: 500}]"#, "flow"),
        (
            r#"[{resource: "a", threshold: 1, maxQueueingTimeMs: 0, controlBehavior: 0, limitApp: ""}]"#,
            "flow",
        ),
        (
            r#"[{resource: "a", strategy: 2, threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1000}]"#,
            "breaker",
        ),
        (r#"[{resource: "a", metricType: 1, threshold: 1, durationInSec: 1}]"#, "hotspot"),
        (r#"[{metricType: 3, triggerCount: 1}]"#, "system"),
        // One rule alone would not do.
        (
            r#"[{resource: "a", threshold: 1}, {resource: "b", threshold: 1, refResource: ""}]"#,
            "flow flow",
        ),
    ] {
        assert_eq!(kinds_of(&read("rules.json", None, list).unwrap()).join(" "), kind, "{list}");
    }
}

#[test]
fn what_a_list_is_is_never_guessed() {
    refused(
        read("rules.json", None, EITHER),
        &expect![
            "rules.json: document 1: a list of rules, which could be flow or isolation: name the file after its kind, such as `flow.json`, or say `kind: flow` for the source; or write a document with `apiVersion`, `kind` and `spec`"
        ],
    );
    refused(
        read("rules.json", None, r#"[{resource: "a", threshold: 1, metricType: 0}]"#),
        &expect![
            "rules.json: document 1: a list of rules, which could be hotspot or isolation: name the file after its kind, such as `flow.json`, or say `kind: flow` for the source; or write a document with `apiVersion`, `kind` and `spec`"
        ],
    );
    // A slip, two kinds in one list, what is no rule, and what only documents can say.
    for list in [
        r#"[{resource: "a", threshold: 1, statIntervallInMs: 500}]"#,
        r#"[{resource: "a", threshold: 1}, {metricType: 3, triggerCount: 1}]"#,
        r#"[{resource: "a", threshold: 1, statIntervalInMs: 500}, 7]"#,
        r#"[{resource: "a", limitApp: "shop", strategy: 0}]"#,
    ] {
        let refused = read("rules.json", None, list).unwrap_err().to_string();
        assert!(
            refused.contains("a list of rules, of which no kind has all the fields: name"),
            "{refused}"
        );
    }
}

#[test]
fn an_empty_list_has_no_rules_whatever_its_kind() {
    assert_eq!(read("rules.json", None, "[]").unwrap(), []);
    assert_eq!(read("flow.json", None, "[]").unwrap(), []);
}

#[test]
fn a_list_is_read_as_sentinel_golang_writes_it() {
    let Rule::CircuitBreaker(breaker) = one(read(
        "circuitbreaker.json",
        None,
        r#"[{id: "pay", resource: "a", strategy: 1, threshold: 0.5, retryTimeoutMs: 1, statIntervalMs: 1000, minRequestAmount: 5,
            shadow: true, response: {status: 418}}]"#,
    )) else {
        panic!("a breaker")
    };
    assert_eq!(breaker.strategy, BreakerStrategy::ErrorRatio(0.5));
    assert_eq!((breaker.id.as_str(), breaker.common.shadow), ("pay", true));
    assert_eq!(breaker.common.response.unwrap().status, Some(418));
    // What it leaves out is 0.
    let Rule::Flow(flow) = one(read("flow.json", None, r#"[{resource: "a"}]"#)) else {
        panic!("a flow rule")
    };
    assert_eq!(flow.threshold, 0.0);
}

#[test]
fn what_is_wrong_with_a_rule_of_a_list_is_said_with_its_place() {
    refused(
        read(
            "hotspot.json",
            None,
            r#"[{resource: "a", metricType: 1, threshold: 1}, {resource: "b", metricType: 0, threshold: 1, paramKey: "uid"}, 7]"#,
        ),
        &expect![[r#"
            hotspot.json: document 1 (HotspotRules): rules[0] (a): `durationInSec` is missing
            hotspot.json: document 1 (HotspotRules): rules[1] (b): `paramKey` is "uid", but must be header:<name>, query:<name>, cookie:<name>, path_segment:<number from 1>, client_ip, sni or filter_chain
            hotspot.json: document 1 (HotspotRules): rules[2]: is 7, but must be a map"#]],
    );
    refused(
        read(
            "circuitbreaker.json",
            None,
            r#"[{resource: "a", strategy: 1, threshold: 50, retryTimeoutMs: 1, statIntervalMs: 1}]"#,
        ),
        &expect![
            "circuitbreaker.json: document 1 (CircuitBreakerRules): rules[0] (a): `threshold` is 50, but must be a number from 0 to 1"
        ],
    );
}

#[test]
fn ids_differ_over_lists_and_documents() {
    let list = [node(r#"[{id: "x", resource: "a", threshold: 1}]"#)];
    let other = [node(&document("IsolationRules", r#"{id: "x", resource: "b", threshold: 1}"#))];
    let sources = [
        Source { documents: &list, ..Source::of("flow.json") },
        Source { list: Some("flow"), documents: &other, ..Source::of("b.yaml") },
    ];
    refused(
        compile_set(&sources, &Settings::DEFAULT),
        &expect![
            "b.yaml: document 1 (IsolationRules): rules[0] (x): `id` is also the id of flow.json: document 1 (FlowRules): rules[0] (x); ids must differ"
        ],
    );
}
