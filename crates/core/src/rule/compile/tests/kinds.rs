//! Each kind of rule, in documents and in sentinel-golang's JSON.

use super::*;

#[test]
fn a_rule_that_says_no_more_than_it_must_has_sentinel_s_defaults() {
    let rule = r#"{resource: "GET:/hello", threshold: 1}"#;
    assert_eq!(one(golang("flow", rule)), Rule::Flow(plain_flow("GET:/hello")));
    assert_eq!(one(compile(&[document("FlowRules", rule)])), Rule::Flow(plain_flow("GET:/hello")));
    assert_eq!(
        one(java("flow", r#"{resource: "GET:/hello", count: 1}"#)),
        Rule::Flow(plain_flow("GET:/hello"))
    );
}

#[test]
fn a_flow_rule_says_how_its_threshold_comes_about_and_what_becomes_of_the_rest() {
    let rule = one(compile(&[document(
        "FlowRules",
        r#"{resource: "a", threshold: 10, tokenCalculateStrategy: "WarmUp", warmUpPeriodSec: 5, controlBehavior: "Throttling",
            maxQueueingTimeMs: 300, statIntervalInMs: 500, limitApp: "shop"}"#,
    )]));
    let expected = FlowRule {
        id: "flow:a:500ms:throttling:origin.shop".into(),
        limit_app: LimitApp::Origin("shop".into()),
        threshold: 10.0,
        stat_interval_ms: 500,
        calculate: TokenCalculate::WarmUp(WarmUp { period_sec: 5, cold_factor: 3 }),
        control: Control::Throttling { max_queueing_ms: 300 },
        ..plain_flow("a")
    };
    assert_eq!(rule, Rule::Flow(expected));

    let adaptive = one(compile(&[document(
        "FlowRules",
        r#"{resource: "a", tokenCalculateStrategy: "MemoryAdaptive", lowMemUsageThreshold: 9, highMemUsageThreshold: 1,
            memLowWaterMarkBytes: 100, memHighWaterMarkBytes: 200}"#,
    )]));
    let marks = MemoryMarks {
        low_threshold: 9,
        high_threshold: 1,
        low_mark_bytes: 100,
        high_mark_bytes: 200,
    };
    let calculate = TokenCalculate::MemoryAdaptive(marks);
    assert_eq!(adaptive, Rule::Flow(FlowRule { threshold: 0.0, calculate, ..plain_flow("a") }));

    let other = one(compile(&[document(
        "FlowRules",
        r#"{resource: "/a/[0-9]+", regex: true, threshold: 1, limitApp: "other", relationStrategy: "AssociatedResource",
            refResource: "b"}"#,
    )]));
    let Rule::Flow(other) = other else { panic!("a flow rule") };
    assert_eq!(other.target, Target::Pattern("/a/[0-9]+".into()));
    assert_eq!(other.limit_app, LimitApp::Other);
    assert_eq!(other.ref_resource, Some("b".into()));
}

#[test]
fn what_a_strategy_does_not_use_may_be_anything_that_can_be_read() {
    let rule = r#"{resource: "abc", threshold: 1, relationStrategy: 0, refResource: "", warmUpPeriodSec: 0, warmUpColdFactor: 1,
        lowMemUsageThreshold: 1, highMemUsageThreshold: 2, maxQueueingTimeMs: 7, id: "", limitApp: "default"}"#;
    assert_eq!(one(golang("flow", rule)), Rule::Flow(plain_flow("abc")));
}

#[test]
fn a_flow_rule_that_cannot_be_kept_is_refused() {
    let all = [
        r#"{resource: "a", threshold: 1, tokenCalculateStrategy: 1}"#,
        r#"{resource: "b", threshold: 1, tokenCalculateStrategy: "WarmUp", warmUpPeriodSec: 0, warmUpColdFactor: 1}"#,
        r#"{resource: "c", tokenCalculateStrategy: "MemoryAdaptive", lowMemUsageThreshold: 2, highMemUsageThreshold: 2,
            memLowWaterMarkBytes: 3, memHighWaterMarkBytes: 3}"#,
        r#"{resource: "d", tokenCalculateStrategy: "MemoryAdaptive", lowMemUsageThreshold: 2}"#,
        r#"{resource: "e", threshold: 1, relationStrategy: "AssociatedResource"}"#,
        r#"{resource: "a(b", threshold: 1, regex: true}"#,
        r#"{resource: "g", threshold: 1, controlBehavior: 7, tokenCalculateStrategy: -1, relationStrategy: "currentResource"}"#,
        r#"{resource: "h"}"#,
    ];
    refused(
        compile(&[document("FlowRules", &all.join(","))]),
        &expect![[r#"
            a.yaml: document 1 (FlowRules): rules[0] (a): `warmUpPeriodSec` is missing
            a.yaml: document 1 (FlowRules): rules[1] (b): `warmUpPeriodSec` is 0, but must be 1 or more
            a.yaml: document 1 (FlowRules): rules[1] (b): `warmUpColdFactor` is 1, but must be 2 or more, or 0 for 3
            a.yaml: document 1 (FlowRules): rules[2] (c): `lowMemUsageThreshold` is 2, but must be more than `highMemUsageThreshold`
            a.yaml: document 1 (FlowRules): rules[2] (c): `memLowWaterMarkBytes` is 3, but must be less than `memHighWaterMarkBytes`
            a.yaml: document 1 (FlowRules): rules[3] (d): `highMemUsageThreshold` is missing
            a.yaml: document 1 (FlowRules): rules[3] (d): `memLowWaterMarkBytes` is missing
            a.yaml: document 1 (FlowRules): rules[3] (d): `memHighWaterMarkBytes` is missing
            a.yaml: document 1 (FlowRules): rules[4] (e): `refResource` is missing
            a.yaml: document 1 (FlowRules): rules[5] (a(b): `resource` is "a(b", which is no regular expression: found open group without closing ')'
            a.yaml: document 1 (FlowRules): rules[6] (g): `tokenCalculateStrategy` is -1, but must be Direct (0), WarmUp (1) or MemoryAdaptive (2)
            a.yaml: document 1 (FlowRules): rules[6] (g): `controlBehavior` is 7, but must be Reject (0) or Throttling (1)
            a.yaml: document 1 (FlowRules): rules[6] (g): `relationStrategy` is "currentResource", but must be CurrentResource (0) or AssociatedResource (1)
            a.yaml: document 1 (FlowRules): rules[7] (h): `threshold` is missing"#]],
    );
}

#[test]
fn a_breaker_s_ratio_is_a_percentage_in_documents_and_a_fraction_in_json() {
    let crd = |threshold| {
        compile(&[document(
            "CircuitBreakerRules",
            &format!(
                r#"{{resource: "a", strategy: "ErrorRatio", threshold: {threshold}, retryTimeoutMs: 1, statIntervalMs: 1000}}"#
            ),
        )])
    };
    let json = |threshold| {
        let rule = format!(
            r#"{{resource: "a", strategy: 1, threshold: {threshold}, retryTimeoutMs: 1, statIntervalMs: 1000}}"#
        );
        golang("circuitbreaker", &rule)
    };
    for rules in [crd("50"), json("0.5")] {
        let Rule::CircuitBreaker(rule) = one(rules) else { panic!("a breaker") };
        assert_eq!(rule.strategy, BreakerStrategy::ErrorRatio(0.5));
        assert_eq!(rule.id, "breaker:a:error_ratio");
        assert_eq!((rule.buckets, rule.probe_num, rule.min_request_amount), (1, 1, 0));
    }
    refused(
        crd("0.5"),
        &expect![
            "a.yaml: document 1 (CircuitBreakerRules): rules[0] (a): `threshold` is 0.5, but must be whole percents from 0 to 100 (50 is a half)"
        ],
    );
    refused(
        crd("101"),
        &expect![
            "a.yaml: document 1 (CircuitBreakerRules): rules[0] (a): `threshold` is 101, but must be whole percents from 0 to 100 (50 is a half)"
        ],
    );
    refused(
        json("50"),
        &expect!["rules[0] (a): `threshold` is 50, but must be a number from 0 to 1"],
    );
}

#[test]
fn a_breaker_knows_what_is_slow_what_is_an_error_and_how_many_may_probe() {
    let rule = r#"{resource: "a", strategy: "SlowRequestRatio", threshold: 60, retryTimeoutMs: 5000, statIntervalMs: 2000,
        statSlidingWindowBucketCount: 4, maxAllowedRtMs: 50, minRequestAmount: 7, probeNum: 3, errorStatuses: [429, "500-503", "4xx", "504"],
        grpcErrorStatuses: [14, 4]}"#;
    let Rule::CircuitBreaker(rule) = one(compile(&[document("CircuitBreakerRules", rule)])) else {
        panic!("a breaker")
    };
    assert_eq!(
        rule.strategy,
        BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms: 50, ratio: 0.6 }
    );
    assert_eq!((rule.retry_timeout_ms, rule.stat_interval_ms, rule.buckets), (5_000, 2_000, 4));
    assert_eq!((rule.min_request_amount, rule.probe_num), (7, 3));
    assert_eq!(rule.error_statuses, Some(vec![(429, 429), (500, 503), (400, 499), (504, 504)]));
    assert_eq!(rule.grpc_error_statuses, Some(vec![14, 4]));

    let count = r#"{resource: "a", strategy: 2, threshold: 3.9, retryTimeoutMs: 1, statIntervalMs: 1000, statSlidingWindowBucketCount: 3}"#;
    let Rule::CircuitBreaker(rule) = one(golang("circuitbreaker", count)) else {
        panic!("a breaker")
    };
    assert_eq!((rule.strategy, rule.buckets), (BreakerStrategy::ErrorCount(3), 1));
}

#[test]
fn a_breaker_that_cannot_be_kept_is_refused() {
    let all = [
        r#"{resource: "a", strategy: "ErrorCount", threshold: -1, retryTimeoutMs: 0, statIntervalMs: 0}"#,
        r#"{resource: "b"}"#,
        r#"{resource: "*", strategy: "ErrorCount", threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1000}"#,
        r#"{resource: "c", regex: true, strategy: "ErrorCount", threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1000}"#,
        r#"{resource: "d", strategy: "ErrorCount", threshold: 1, retryTimeoutMs: 1, statIntervalMs: 100000, statSlidingWindowBucketCount: 100000,
            probeNum: 1001, errorStatuses: ["5x", 99, "600-500", "1000"], grpcErrorStatuses: ["14"]}"#,
        r#"{resource: "e", strategy: "ErrorCounts", threshold: 500, retryTimeoutMs: 1, statIntervalMs: 1000}"#,
    ];
    refused(
        compile(&[document("CircuitBreakerRules", &all.join(","))]),
        &expect![[r#"
            a.yaml: document 1 (CircuitBreakerRules): rules[0] (a): `threshold` is -1, but must be 0 or more
            a.yaml: document 1 (CircuitBreakerRules): rules[0] (a): `retryTimeoutMs` is 0, but must be a whole number from 1 to 4294967295
            a.yaml: document 1 (CircuitBreakerRules): rules[0] (a): `statIntervalMs` is 0, but must be a whole number from 1 to 4294967295
            a.yaml: document 1 (CircuitBreakerRules): rules[1] (b): `strategy` is missing
            a.yaml: document 1 (CircuitBreakerRules): rules[1] (b): `threshold` is missing
            a.yaml: document 1 (CircuitBreakerRules): rules[1] (b): `retryTimeoutMs` is missing
            a.yaml: document 1 (CircuitBreakerRules): rules[1] (b): `statIntervalMs` is missing
            a.yaml: document 1 (CircuitBreakerRules): rules[2] (*): `resource` is "*", but must be a resource's name: a rule of this kind governs one; name each
            a.yaml: document 1 (CircuitBreakerRules): rules[3] (c): `regex` is true, but must be false: a rule of this kind governs one resource; name each
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `statSlidingWindowBucketCount` is 100000, but must be at most 10000
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `probeNum` is 1001, but must be a whole number from 0 to 1000
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `errorStatuses[0]` is "5x", but must be a status such as 503, "500-599" or "5xx", from 100 to 999
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `errorStatuses[1]` is 99, but must be a status such as 503, "500-599" or "5xx", from 100 to 999
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `errorStatuses[2]` is "600-500", but must be a status such as 503, "500-599" or "5xx", from 100 to 999
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `errorStatuses[3]` is "1000", but must be a status such as 503, "500-599" or "5xx", from 100 to 999
            a.yaml: document 1 (CircuitBreakerRules): rules[4] (d): `grpcErrorStatuses[0]` is "14", but must be a gRPC status such as 14
            a.yaml: document 1 (CircuitBreakerRules): rules[5] (e): `strategy` is "ErrorCounts", but must be SlowRequestRatio (0), ErrorRatio (1) or ErrorCount (2)"#]],
    );
}

#[test]
fn a_hotspot_rule_says_which_value_and_what_of_it_is_counted() {
    let rule = r#"{resource: "a", metricType: "QPS", paramKey: "header:X-User", threshold: 5, burstCount: 3, durationInSec: 2, overflow: "block",
        specificItems: [{valKind: "KindString", valStr: "vip", threshold: 9}, {valKind: "KindInt", valStr: "-7", threshold: 0},
            {valKind: "KindBool", valStr: "true", threshold: 1}, {valKind: "KindFloat64", valStr: "1.234567", threshold: 2}]}"#;
    let Rule::Hotspot(rule) = one(compile(&[document("HotspotRules", rule)])) else {
        panic!("a hotspot rule")
    };
    assert_eq!(rule.id, "hotspot:a:header.x-user:2000ms");
    let key = Some(Param::Header("x-user".into()));
    assert_eq!(rule.param, Some(ParamPick { key, index: None, matching: None }));
    assert_eq!(rule.metric, HotspotMetric::Reject { duration_ms: 2_000, burst: 3 });
    assert_eq!((rule.threshold, rule.capacity, rule.overflow), (5, 8_000, Overflow::Block));
    let values = rule.items.iter().map(|item| (&item.value, item.threshold)).collect::<Vec<_>>();
    let expected = [
        (&ItemValue::String("vip".into()), 9),
        (&ItemValue::Int(-7), 0),
        (&ItemValue::Bool(true), 1),
        (&ItemValue::Float(1.23457), 2),
    ];
    assert_eq!(values, expected);

    let paced = r#"{resource: "a", metricType: 1, controlBehavior: 1, paramIndex: -1, threshold: 5, durationInSec: 100, maxQueueingTimeMs: 10}"#;
    let Rule::Hotspot(rule) = one(golang("hotspot", paced)) else { panic!("a hotspot rule") };
    assert_eq!(
        rule.metric,
        HotspotMetric::Throttling { duration_ms: 100_000, max_queueing_ms: 10 }
    );
    assert_eq!(rule.param, Some(ParamPick { key: None, index: Some(-1), matching: None }));
    assert_eq!(rule.capacity, 20_000);

    let Rule::Hotspot(rule) =
        one(golang("hotspot", r#"{resource: "a", threshold: 5, paramKey: "user"}"#))
    else {
        panic!("a hotspot rule")
    };
    let key = Some(Param::Attachment("user".into()));
    assert_eq!(rule.param, Some(ParamPick { key, index: Some(0), matching: None }));
    assert_eq!((rule.metric, rule.capacity), (HotspotMetric::Concurrency, 4_000));
}

#[test]
fn a_hotspot_rule_that_cannot_be_kept_is_refused() {
    let all = [
        r#"{resource: "a", metricType: "QPS", threshold: 1}"#,
        r#"{resource: "b", metricType: "QPS", durationInSec: 0, threshold: -1, burstCount: -1}"#,
        r#"{resource: "c", metricType: "Concurrency", threshold: 1, paramKey: "user"}"#,
        r#"{resource: "d", metricType: "Concurrency", threshold: 1, paramKey: "client_ip", paramIndex: 1}"#,
        r#"{resource: "*", threshold: 1.5}"#,
        r#"{resource: "e", metricType: "Concurrency", threshold: 1, overflow: "drop",
            specificItems: [{valKind: "KindInt", valStr: "x", threshold: 1}, {valKind: 4, valStr: "x"}, 7,
                {valKind: 1, valStr: "y", threshold: 1}, {valKind: 1, valStr: "y", threshold: 2}]}"#,
    ];
    refused(
        compile(&[document("HotspotRules", &all.join(","))]),
        &expect![[r#"
            a.yaml: document 1 (HotspotRules): rules[0] (a): `durationInSec` is missing
            a.yaml: document 1 (HotspotRules): rules[1] (b): `durationInSec` is 0, but must be 1 or more
            a.yaml: document 1 (HotspotRules): rules[1] (b): `burstCount` is -1, but must be a whole number from 0 to 9007199254740992
            a.yaml: document 1 (HotspotRules): rules[1] (b): `threshold` is -1, but must be a whole number from 0 to 9007199254740992
            a.yaml: document 1 (HotspotRules): rules[2] (c): `paramKey` is "user", but must be header:<name>, query:<name>, cookie:<name>, path_segment:<number from 1>, client_ip, sni or filter_chain
            a.yaml: document 1 (HotspotRules): rules[3] (d): `paramIndex` stands beside `paramKey`: leave one of them out
            a.yaml: document 1 (HotspotRules): rules[4] (*): `resource` is "*", but must be a resource's name: a rule of this kind governs one; name each
            a.yaml: document 1 (HotspotRules): rules[4] (*): `metricType` is missing
            a.yaml: document 1 (HotspotRules): rules[4] (*): `threshold` is 1.5, but must be a whole number from 0 to 9007199254740992
            a.yaml: document 1 (HotspotRules): rules[5] (e): `specificItems[0].valStr` is "x", but must be a whole number in quotes
            a.yaml: document 1 (HotspotRules): rules[5] (e): `specificItems[1].threshold` is missing
            a.yaml: document 1 (HotspotRules): rules[5] (e): `specificItems[1].valKind` is 4, but must be KindInt (0), KindString (1), KindBool (2) or KindFloat64 (3)
            a.yaml: document 1 (HotspotRules): rules[5] (e): `specificItems[2]` is 7, but must be a map
            a.yaml: document 1 (HotspotRules): rules[5] (e): `specificItems[4].valStr` stands twice: leave one out
            a.yaml: document 1 (HotspotRules): rules[5] (e): `overflow` is "drop", but must be share or block"#]],
    );
}

#[test]
fn isolation_system_and_authority_rules_are_read() {
    let isolation = one(compile(&[document("IsolationRules", r#"{resource: "*", threshold: 5}"#)]));
    let expected = IsolationRule {
        id: "isolation::default".into(),
        target: Target::Default,
        threshold: 5,
        common: Common::default(),
    };
    assert_eq!(isolation, Rule::Isolation(expected));

    let all = r#"{metricType: "InboundQPS", strategy: "NoAdaptive", triggerCount: 100}, {metricType: "Concurrency", triggerCount: 7},
        {metricType: "AvgRT", triggerCount: 20}, {metricType: "CpuUsage", strategy: "BBR", triggerCount: 80}"#;
    let rules = compile(&[document("SystemRules", all)]).unwrap();
    let found: Vec<(&str, SystemMetric, f64)> = rules
        .iter()
        .map(|rule| {
            let Rule::System(rule) = rule else { panic!("a system rule") };
            (rule.id.as_str(), rule.metric, rule.trigger)
        })
        .collect();
    let expected = [
        ("system:inbound_qps", SystemMetric::InboundQps, 100.0),
        ("system:concurrency", SystemMetric::Concurrency, 7.0),
        ("system:avg_rt", SystemMetric::AvgRt, 20.0),
        ("system:cpu_usage.bbr", SystemMetric::CpuUsage { bbr: true }, 0.8),
    ];
    assert_eq!(found, expected);
    let Rule::System(cpu) =
        one(golang("system", "{metricType: 4, triggerCount: 0.8, strategy: 0}"))
    else {
        panic!("a system rule")
    };
    assert_eq!((cpu.metric, cpu.trigger), (SystemMetric::CpuUsage { bbr: false }, 0.8));

    let Rule::Authority(rule) = one(compile(&[document(
        "AuthorityRules",
        r#"{resource: "a.*", regex: true, limitApp: "shop, app2,", strategy: "Black"}"#,
    )])) else {
        panic!("an authority rule")
    };
    assert_eq!(rule.target, Target::Pattern("a.*".into()));
    assert_eq!((rule.origins, rule.white_list), (vec!["shop".into(), "app2".into()], false));
}

#[test]
fn isolation_system_and_authority_rules_that_cannot_be_kept_are_refused() {
    refused(
        compile(&[
            document(
                "IsolationRules",
                r#"{resource: "a", threshold: 0}, {resource: "a"}, {resource: "a", metricType: 1, threshold: 1.5}"#,
            ),
            document(
                "SystemRules",
                r#"{metricType: "Load", triggerCount: 1}, {triggerCount: 1}, {metricType: "CpuUsage", triggerCount: 0.8},
                {metricType: "AvgRT", triggerCount: -1, strategy: "bbr"}, {metricType: "AvgRT"}, {metricType: 5, triggerCount: 1}"#,
            ),
            document(
                "AuthorityRules",
                r#"{resource: "a", limitApp: " ,", strategy: 2}, {resource: "b"}"#,
            ),
        ]),
        &expect![[r#"
            a.yaml: document 1 (IsolationRules): rules[0] (a): `threshold` is 0, but must be a whole number from 1 to 4294967295
            a.yaml: document 1 (IsolationRules): rules[1] (a): `threshold` is missing
            a.yaml: document 1 (IsolationRules): rules[2] (a): `metricType` is 1, but must be Concurrency (0)
            a.yaml: document 1 (IsolationRules): rules[2] (a): `threshold` is 1.5, but must be a whole number from 1 to 4294967295
            a.yaml: document 2 (SystemRules): rules[0]: `metricType` is Load, the machine's, which says little of what Envoy can bear: use CpuUsage
            a.yaml: document 2 (SystemRules): rules[1]: `metricType` is missing
            a.yaml: document 2 (SystemRules): rules[2]: `triggerCount` is 0.8, but must be whole percents from 0 to 100 (50 is a half)
            a.yaml: document 2 (SystemRules): rules[3]: `strategy` is "bbr", but must be NoAdaptive (-1), NoAdaptive (0) or BBR (1)
            a.yaml: document 2 (SystemRules): rules[3]: `triggerCount` is -1, but must be 0 or more
            a.yaml: document 2 (SystemRules): rules[4]: `triggerCount` is missing
            a.yaml: document 2 (SystemRules): rules[5]: `metricType` is 5, but must be AvgRT (1), Concurrency (2), InboundQPS (3) or CpuUsage (4)
            a.yaml: document 3 (AuthorityRules): rules[0] (a): `limitApp` is " ,", but must be the callers' names, with commas between them
            a.yaml: document 3 (AuthorityRules): rules[0] (a): `strategy` is 2, but must be White (0) or Black (1)
            a.yaml: document 3 (AuthorityRules): rules[1] (b): `limitApp` is missing
            a.yaml: document 1 (IsolationRules): rules[1] (a): `id` is missing: the rule counts the same as a.yaml: document 1 (IsolationRules): rules[0] (a); give both an `id`
            a.yaml: document 1 (IsolationRules): rules[2] (a): `id` is missing: the rule counts the same as a.yaml: document 1 (IsolationRules): rules[0] (a); give both an `id`
            a.yaml: document 2 (SystemRules): rules[4]: `id` is missing: the rule counts the same as a.yaml: document 2 (SystemRules): rules[3]; give both an `id`"#]],
    );
    refused(
        golang("system", "{triggerCount: 1}"),
        &expect![
            "rules[0]: `metricType` is Load, the machine's, which says little of what Envoy can bear: use CpuUsage"
        ],
    );
}

#[test]
fn a_gateway_rule_is_a_hotspot_rule_of_a_route_or_a_group() {
    let rules = [
        document(
            "GatewayFlowRules",
            r#"{resource: "route", count: 5.9, intervalSec: 2, burst: 3,
                paramItem: {parseStrategy: "UrlParam", fieldName: "p", pattern: "a+", matchStrategy: "Regex"}},
               {resource: "shop", resourceMode: "ApiGroup", count: 5, controlBehavior: "Throttling"},
               {resource: "route", grade: "Concurrency", count: 1, paramItem: {parseStrategy: "Host"}}"#,
        ),
        document(
            "ApiDefinitions",
            r#"{apiName: "shop", predicateItems: [{pattern: "/a/**", matchStrategy: "Prefix"}, {pattern: "/b"}, {pattern: "/c/[0-9]", matchStrategy: 2}]}"#,
        ),
    ];
    let rules = compile(&rules).unwrap();
    let matching = Some(ParamMatch { strategy: MatchStrategy::Regex, pattern: "a+".into() });
    let first = HotspotRule {
        id: "gateway:route:query.p:matching.a_:2000ms:0000000000000000".into(),
        target: named("route"),
        param: Some(ParamPick { key: Some(Param::Query("p".into())), index: None, matching }),
        metric: HotspotMetric::Reject { duration_ms: 2_000, burst: 3 },
        threshold: 5,
        items: Vec::new(),
        capacity: 8_000,
        overflow: Overflow::Share,
        common: Common::default(),
    };
    let id = rules[0].id().to_string();
    assert!(id.starts_with("gateway:route:query.p:matching.a_:2000ms:"), "{id}");
    assert_eq!(rules[0], Rule::Gateway(HotspotRule { id, ..first.clone() }));
    let predicates = vec![
        PathPredicate::Prefix("/a/**".into()),
        PathPredicate::Exact("/b".into()),
        PathPredicate::Regex("/c/[0-9]".into()),
    ];
    let second = HotspotRule {
        id: "gateway:shop:group:throttling".into(),
        target: Target::Group(ApiGroup { name: "shop".into(), predicates }),
        param: None,
        metric: HotspotMetric::Throttling { duration_ms: 1_000, max_queueing_ms: 500 },
        capacity: 4_000,
        ..first.clone()
    };
    assert_eq!(rules[1], Rule::Gateway(second));
    let param =
        Some(ParamPick { key: Some(Param::Header("host".into())), index: None, matching: None });
    let third = HotspotRule {
        id: "gateway:route:header.host:concurrency".into(),
        param,
        metric: HotspotMetric::Concurrency,
        threshold: 1,
        capacity: 4_000,
        ..first
    };
    assert_eq!(rules[2], Rule::Gateway(third));
}

#[test]
fn gateway_rules_and_groups_that_cannot_be_kept_are_refused() {
    refused(
        compile(&[
            document(
                "GatewayFlowRules",
                r#"{resource: "nobody", resourceMode: 1, count: 1}, {resource: "a", paramItem: {parseStrategy: 3}},
                   {resource: "b", count: 1, burst: -1, intervalSec: 0, paramItem: {parseStrategy: 2, fieldName: "a b", pattern: "(", matchStrategy: 2}}"#,
            ),
            document(
                "ApiDefinitions",
                r#"{apiName: "g", predicateItems: [{matchStrategy: 3}]}, {apiName: "g", predicateItems: [{pattern: "[", matchStrategy: 2}]}, {}"#,
            ),
        ]),
        &expect![[r#"
            a.yaml: document 1 (GatewayFlowRules): rules[1] (a): `count` is missing
            a.yaml: document 1 (GatewayFlowRules): rules[1] (a): `paramItem.fieldName` is missing
            a.yaml: document 1 (GatewayFlowRules): rules[2] (b): `intervalSec` is 0, but must be a whole number from 1 to 4294967295
            a.yaml: document 1 (GatewayFlowRules): rules[2] (b): `burst` is -1, but must be a whole number from 0 to 9007199254740992
            a.yaml: document 1 (GatewayFlowRules): rules[2] (b): `paramItem.fieldName` is "a b", but must be a header's name
            a.yaml: document 1 (GatewayFlowRules): rules[2] (b): `paramItem.pattern` is "(", which is no regular expression: found open group without closing ')'
            a.yaml: document 2 (ApiDefinitions): rules[0] (g): `predicateItems[0].matchStrategy` is 3, but must be Exact (0), Prefix (1) or Regex (2)
            a.yaml: document 2 (ApiDefinitions): rules[0] (g): `predicateItems[0].pattern` is missing
            a.yaml: document 2 (ApiDefinitions): rules[1] (g): `predicateItems[0].pattern` is "[", which is no regular expression: found unclosed character class
            a.yaml: document 2 (ApiDefinitions): rules[1] (g): `apiName` is also the name of a.yaml: document 2 (ApiDefinitions): rules[0] (g); names of groups must differ
            a.yaml: document 2 (ApiDefinitions): rules[2]: `apiName` is missing
            a.yaml: document 2 (ApiDefinitions): rules[2]: `predicateItems` is missing
            a.yaml: document 1 (GatewayFlowRules): rules[0] (nobody): `resource` is no API group: add an ApiDefinitions document with one of this `apiName`, or leave out `resourceMode: ApiGroup`"#]],
    );
}

#[test]
fn numbers_of_enums_that_nobody_knows_are_valid_in_golang_and_refused_by_us() {
    let rule = node(r#"{resource: "abc", metricType: 2, threshold: 1, durationInSec: 1}"#);
    assert!(is_valid_in_golang("hotspot", &rule, &Settings::DEFAULT));
    assert!(
        rules_from_golang("hotspot", &Node::new(Value::List(vec![rule])), &Settings::DEFAULT)
            .is_err()
    );
    for (kind, rule) in [
        ("hotspot", r#"{resource: "abc", metricType: -1, threshold: 1, durationInSec: 1}"#),
        ("flow", r#"{resource: "abc", threshold: 1, relationStrategy: 2}"#),
        ("isolation", r#"{resource: "abc", metricType: 1, threshold: 1}"#),
        ("system", "{metricType: 5}"),
    ] {
        assert!(!is_valid_in_golang(kind, &node(rule), &Settings::DEFAULT), "{rule}");
    }
}
