//! Rules of Sentinel for Java and of OpenSergo.

use super::*;

#[test]
fn java_s_rules_become_the_same_rules() {
    let warm = r#"{id: 7, resource: "a", limitApp: "default", grade: 1, count: 20, strategy: 1, refResource: "b", controlBehavior: 3,
        warmUpPeriodSec: 4, maxQueueingTimeMs: 100, clusterMode: false, clusterConfig: null}"#;
    let expected = FlowRule {
        id: "flow.7".into(),
        threshold: 20.0,
        calculate: TokenCalculate::WarmUp(WarmUp { period_sec: 4, cold_factor: 3 }),
        control: Control::Throttling { max_queueing_ms: 100 },
        ref_resource: Some("b".into()),
        ..plain_flow("a")
    };
    assert_eq!(one(java("flow", warm)), Rule::Flow(expected));

    let threads = one(java("flow", r#"{resource: "a", grade: 0, count: 3.5, controlBehavior: 2}"#));
    let expected = IsolationRule {
        id: "isolation:a".into(),
        target: named("a"),
        threshold: 3,
        common: Common::default(),
    };
    assert_eq!(threads, Rule::Isolation(expected));

    let Rule::CircuitBreaker(slow) = one(java(
        "degrade",
        r#"{resource: "a", grade: 0, count: 50.5, timeWindow: 10, slowRatioThreshold: 0.6}"#,
    )) else {
        panic!("a breaker")
    };
    assert_eq!(
        slow.strategy,
        BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms: 51, ratio: 0.6 }
    );
    assert_eq!(
        (slow.retry_timeout_ms, slow.min_request_amount, slow.stat_interval_ms),
        (10_000, 5, 1_000)
    );

    let Rule::Hotspot(param) = one(java(
        "paramflow",
        r#"{resource: "a", paramIdx: -1, count: 5, paramFlowItemList: [{object: "7", count: 1, classType: "int"},
            {object: "x", count: 2, classType: "java.lang.String"}, {object: "1.5", count: 3, classType: "Double"}]}"#,
    )) else {
        panic!("a hotspot rule")
    };
    assert_eq!(param.param, Some(ParamPick { key: None, index: Some(-1), matching: None }));
    assert_eq!(param.metric, HotspotMetric::Reject { duration_ms: 1_000, burst: 0 });
    let values: Vec<ItemValue> = param.items.into_iter().map(|item| item.value).collect();
    assert_eq!(values, [ItemValue::Int(7), ItemValue::String("x".into()), ItemValue::Float(1.5)]);

    let Rule::Authority(authority) =
        one(java("authority", r#"{resource: "a", limitApp: "appA", strategy: 1}"#))
    else {
        panic!("an authority rule")
    };
    assert_eq!((authority.origins, authority.white_list), (vec!["appA".into()], false));

    let Rule::Gateway(gateway) = one(java("gateway", r#"{resource: "abc"}"#)) else {
        panic!("a gateway rule")
    };
    assert_eq!((gateway.threshold, gateway.param), (0, None));
}

#[test]
fn of_java_s_system_rules_the_strictest_of_each_limit_counts() {
    let rules = java(
        "system",
        r#"{highestSystemLoad: -1, highestCpuUsage: 0.9, qps: 10, avgRt: -1, maxThread: -1}, {qps: 5, maxThread: 3, highestCpuUsage: -1.0}"#,
    );
    let expected = [
        ("system:inbound_qps", SystemMetric::InboundQps, 5.0),
        ("system:cpu_usage", SystemMetric::CpuUsage { bbr: false }, 0.9),
        ("system:concurrency", SystemMetric::Concurrency, 3.0),
    ];
    let expected = expected.map(|(id, metric, trigger)| {
        Rule::System(SystemRule { id: id.into(), metric, trigger, common: Common::default() })
    });
    assert_eq!(rules.unwrap(), expected);
    refused(
        java("system", "{highestSystemLoad: 3.0}"),
        &expect![
            "rules[0]: `highestSystemLoad` is Load, the machine's, which says little of what Envoy can bear: use CpuUsage"
        ],
    );
}

#[test]
fn java_s_rules_that_cannot_be_kept_are_refused() {
    refused(
        java(
            "flow",
            r#"{resource: "a", count: 1, strategy: 2, refResource: "b"}, {resource: "b", count: 1, clusterMode: true},
               {resource: "c", count: 1, grade: 0, limitApp: "shop", strategy: 1, refResource: "x"}, {resource: "d", grade: 0},
               {resource: "e.*", regex: true, count: 1, controlBehavior: 2}, {resource: "f", count: 1, controlBehavior: 1, warmUpPeriodSec: 0},
               {resource: "g", count: 1, controlBehavior: 2, maxQueueingTimeMs: 0}, {resource: "h", count: -1, tokenCalculateStrategy: 1}"#,
        ),
        &expect![[r#"
            rules[0] (a): `strategy` is Chain (2): a request in Envoy comes from no other resource; use Direct (0) or Relate (1)
            rules[1] (b): `clusterMode` is true, but limits hold for one Envoy, over all its workers: there is no token server to ask
            rules[2] (c): `limitApp` is "shop", but must be default where `grade` is Thread (0)
            rules[2] (c): `strategy` is 1, but must be Direct (0) where `grade` is Thread (0)
            rules[3] (d): `count` is missing
            rules[4] (e.*): `controlBehavior` is 2, but must be Reject (0) where `regex` is true
            rules[5] (f): `warmUpPeriodSec` is 0, but must be 1 or more
            rules[6] (g): `maxQueueingTimeMs` is 0, but must be 1 or more
            rules[7] (h): `tokenCalculateStrategy` is an unknown field
            rules[7] (h): `count` is -1, but must be 0 or more"#]],
    );
    refused(
        java(
            "degrade",
            r#"{resource: "a", grade: 1, count: 1.5, timeWindow: 0, minRequestAmount: 0, limitApp: "shop"}, {resource: "b"}"#,
        ),
        &expect![[r#"
            rules[0] (a): `limitApp` is "shop", but must be default: only flow and authority rules tell callers apart
            rules[0] (a): `count` is 1.5, but must be a number from 0 to 1
            rules[0] (a): `timeWindow` is 0, but must be a whole number from 1 to 4294967
            rules[0] (a): `minRequestAmount` is 0, but must be a whole number from 1 to 4294967295
            rules[1] (b): `timeWindow` is missing"#]],
    );
    refused(
        java(
            "paramflow",
            r#"{resource: "a", count: 1, durationInSec: 0, paramFlowItemList: [{object: "x", count: 1, classType: "int"}, {object: "x", count: 1, classType: "Date"}]}"#,
        ),
        &expect![[r#"
            rules[0] (a): `paramIdx` is missing
            rules[0] (a): `durationInSec` is 0, but must be a whole number from 1 to 4294967295
            rules[0] (a): `paramFlowItemList[0].object` is "x", but must be a value of its `classType`, in quotes
            rules[0] (a): `paramFlowItemList[1].classType` is "Date", but must be int, long, double, float, byte, short, boolean, char or java.lang.String"#]],
    );
    refused(java("cluster", "{}"), &expect!["rules of this kind are not known in this form"]);
}

fn rate_limit(name: &str) -> String {
    opensergo(
        "RateLimitStrategy",
        name,
        r#"metricType: "RequestAmount", limitMode: "Global", threshold: 10, statDuration: "5s""#,
    )
}

#[test]
fn opensergo_s_rules_bind_strategies_to_resources_wherever_they_stand() {
    let documents = [
        opensergo(
            "FaultToleranceRule",
            "my-rule",
            r#"selector: {app: "my-app"}, targets: [{targetResourceName: "/foo"}, {targetResourceName: "/bar"}],
               strategies: [{name: "rate-limit-foo"}, {name: "throttling-foo", kind: "ThrottlingStrategy"}, {name: "system"}], fallbackAction: "fallback-foo""#,
        ),
        rate_limit("rate-limit-foo"),
        opensergo(
            "ThrottlingStrategy",
            "throttling-foo",
            r#"minIntervalOfRequests: "20ms", queueTimeout: "500ms""#,
        ),
        opensergo(
            "AdaptiveOverloadProtectionStrategy",
            "system",
            r#"metricType: "CpuPercentage", triggerThreshold: "70%", adaptiveStrategy: "BBR""#,
        ),
        opensergo(
            "HttpRequestFallbackAction",
            "fallback-foo",
            r#"behavior: "ReturnProvidedResponse", behaviorDesc: {responseStatusCode: 429, responseContentBody: "Blocked by Sentinel",
                responseAdditionalHeaders: [{key: "X-Sentinel-Limit", value: "foo"}]}"#,
        ),
        opensergo(
            "FaultToleranceRule",
            "other",
            r#"targets: [{targetResourceName: "/foo"}], strategies: [{name: "slow"}, {name: "at-once"}]"#,
        ),
        opensergo(
            "CircuitBreakerStrategy",
            "slow",
            r#"strategy: "SlowRequestRatio", triggerRatio: "60%", statDuration: "30s", recoveryTimeout: "5s", minRequestAmount: 5, slowConditions: {maxAllowedRt: "500ms"}"#,
        ),
        opensergo(
            "ConcurrencyLimitStrategy",
            "at-once",
            r#"maxConcurrency: 8, limitMode: "Local""#,
        ),
    ];
    let rules = compile(&documents).unwrap();
    let ids: Vec<&str> = rules.iter().map(Rule::id).collect();
    let expected = [
        "my-rule:/foo:rate-limit-foo",
        "my-rule:/bar:rate-limit-foo",
        "my-rule:/foo:throttling-foo:ThrottlingStrategy",
        "my-rule:/bar:throttling-foo:ThrottlingStrategy",
        "my-rule::system",
        "other:/foo:slow",
        "other:/foo:at-once",
    ];
    assert_eq!(ids, expected);
    let response = Response {
        status: Some(429),
        headers: vec![("x-sentinel-limit".into(), "foo".into())],
        body: Some("Blocked by Sentinel".into()),
    };
    let common = Common { response: Some(response), ..Common::default() };
    let limited = FlowRule {
        id: "my-rule:/foo:rate-limit-foo".into(),
        threshold: 10.0,
        stat_interval_ms: 5_000,
        common: common.clone(),
        ..plain_flow("/foo")
    };
    assert_eq!(rules[0], Rule::Flow(limited));
    let paced = FlowRule {
        id: "my-rule:/bar:throttling-foo:ThrottlingStrategy".into(),
        stat_interval_ms: 20,
        control: Control::Throttling { max_queueing_ms: 500 },
        common: common.clone(),
        ..plain_flow("/bar")
    };
    assert_eq!(rules[3], Rule::Flow(paced));
    let metric = SystemMetric::CpuUsage { bbr: true };
    assert_eq!(
        rules[4],
        Rule::System(SystemRule { id: "my-rule::system".into(), metric, trigger: 0.7, common })
    );
    let Rule::CircuitBreaker(slow) = &rules[5] else { panic!("a breaker") };
    assert_eq!(
        slow.strategy,
        BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms: 500, ratio: 0.6 }
    );
    assert_eq!(
        (slow.stat_interval_ms, slow.retry_timeout_ms, slow.min_request_amount),
        (30_000, 5_000, 5)
    );
    assert!(
        matches!(&rules[6], Rule::Isolation(rule) if rule.threshold == 8 && rule.target == named("/foo"))
    );
}

#[test]
fn opensergo_s_documents_that_cannot_be_kept_are_refused() {
    refused(
        compile(&[
            rate_limit("twice"),
            rate_limit("twice"),
            opensergo("ConcurrencyLimitStrategy", "both", "maxConcurrency: 0"),
            opensergo(
                "ThrottlingStrategy",
                "both",
                r#"minIntervalOfRequests: "0ms", queueTimeout: "1 s""#,
            ),
            opensergo(
                "FaultToleranceRule",
                "a",
                r#"targets: [{targetResourceName: ""}, {targetResourceName: "*"}], strategies: [{name: "both"}, {name: "none"}, {name: "both", kind: "RateLimitStrategy"}], fallbackAction: "no""#,
            ),
            opensergo(
                "CircuitBreakerStrategy",
                "c",
                r#"strategy: "SlowRequestRatio", triggerRatio: "101%", statDuration: "99999999d", recoveryTimeout: 5"#,
            ),
            opensergo(
                "AdaptiveOverloadProtectionStrategy",
                "",
                r#"metricType: "Load", triggerThreshold: "x%""#,
            ),
            opensergo(
                "RateLimitStrategy",
                "d",
                r#"metricType: "RequestAmount", limitMode: "Everywhere", statDuration: "1s", statDurationSeconds: 1"#,
            ),
            opensergo(
                "HttpRequestFallbackAction",
                "e",
                r#"behavior: "Return", behaviorDesc: {responseStatusCode: 42, responseAdditionalHeaders: [{key: "content-length", value: "1"}, {key: "a"}]}"#,
            ),
        ]),
        &expect![[r#"
            a.yaml: document 2 (RateLimitStrategy): `metadata.name` is "twice", as that of another RateLimitStrategy; names must differ
            a.yaml: document 3 (ConcurrencyLimitStrategy): `spec.maxConcurrency` is 0, but must be a whole number from 1 to 4294967295
            a.yaml: document 4 (ThrottlingStrategy): `spec.minIntervalOfRequests` is "0ms", but must be a time of 1ms or more such as "500ms", "30s", "5min", "1h" or "1d"
            a.yaml: document 4 (ThrottlingStrategy): `spec.queueTimeout` is "1 s", but must be a time such as "500ms", "30s", "5min", "1h" or "1d"
            a.yaml: document 5 (FaultToleranceRule): `spec.targets[0].targetResourceName` is "", but must be a resource's name
            a.yaml: document 5 (FaultToleranceRule): `spec.targets[1].targetResourceName` is "*", but must be one resource's name
            a.yaml: document 6 (CircuitBreakerStrategy): `spec.triggerRatio` is "101%", but must be a percentage such as "60%", from 0% to 100%
            a.yaml: document 6 (CircuitBreakerStrategy): `spec.statDuration` is "99999999d", but must be a time of 1ms or more such as "500ms", "30s", "5min", "1h" or "1d"
            a.yaml: document 6 (CircuitBreakerStrategy): `spec.recoveryTimeout` is 5, but must be text: put it in quotes
            a.yaml: document 6 (CircuitBreakerStrategy): `spec.slowConditions` is missing
            a.yaml: document 7 (AdaptiveOverloadProtectionStrategy): `metadata.name` is missing
            a.yaml: document 7 (AdaptiveOverloadProtectionStrategy): `spec.metricType` is "Load", but must be CpuPercentage
            a.yaml: document 7 (AdaptiveOverloadProtectionStrategy): `spec.triggerThreshold` is "x%", but must be a percentage such as "60%", from 0% to 100%
            a.yaml: document 8 (RateLimitStrategy): `spec.limitMode` is "Everywhere", but must be Local, Global or GlobalToLocal
            a.yaml: document 8 (RateLimitStrategy): `spec.threshold` is missing
            a.yaml: document 8 (RateLimitStrategy): `spec.statDurationSeconds` stands beside `statDuration`: leave one of them out
            a.yaml: document 9 (HttpRequestFallbackAction): `spec.behavior` is "Return", but must be ReturnProvidedResponse
            a.yaml: document 9 (HttpRequestFallbackAction): `spec.behaviorDesc.responseStatusCode` is 42, but must be a whole number from 200 to 599
            a.yaml: document 9 (HttpRequestFallbackAction): `spec.behaviorDesc.responseAdditionalHeaders[0].key` is Envoy's to set: leave it out
            a.yaml: document 9 (HttpRequestFallbackAction): `spec.behaviorDesc.responseAdditionalHeaders[1].value` is missing
            a.yaml: document 5 (FaultToleranceRule): `spec.fallbackAction` is "no", but must be the name of an HttpRequestFallbackAction of this set
            a.yaml: document 5 (FaultToleranceRule): `spec.strategies[0].name` is "both", but must be the name of one strategy: say its `kind` too
            a.yaml: document 5 (FaultToleranceRule): `spec.strategies[1].name` is "none", but must be the name of a strategy of this set
            a.yaml: document 5 (FaultToleranceRule): `spec.strategies[2].name` is "both", but must be the name of a strategy of this set"#]],
    );
}
