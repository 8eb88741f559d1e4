//! What rules of every kind can say: to refuse nobody (`shadow`), and to refuse in the operator's own words (`response`).

use std::path::PathBuf;
use std::time::Duration;

use sentinel_integration::client::Answer;
use sentinel_integration::clock;
use sentinel_integration::upstream::Behaviour;

use crate::world::{self, Setup, World};

/// One rule of each kind that refuses nearly at once: kind, id, resource and further fields.
const RULES: [(&str, &str, &str, &str); 8] = [
    ("FlowRules", "flow", "/flow", "threshold: 0"),
    ("FlowRules", "pace", "/pace", "threshold: 0, controlBehavior: Throttling"),
    ("IsolationRules", "isolation", "/isolation", "threshold: 1"),
    (
        "HotspotRules",
        "hotspot",
        "/hotspot",
        "metricType: QPS, threshold: 0, durationInSec: 1, paramKey: 'header:x-user'",
    ),
    (
        "CircuitBreakerRules",
        "breaker",
        "/breaker",
        "strategy: ErrorCount, threshold: 1, minRequestAmount: 1, statIntervalMs: 10000, retryTimeoutMs: 60000",
    ),
    ("AuthorityRules", "authority", "/authority", "limitApp: crawler, strategy: 1"),
    ("GatewayFlowRules", "gateway", "/gateway", "count: 0, intervalSec: 1"),
    ("SystemRules", "system", "", "metricType: InboundQPS, triggerCount: 0, strategy: NoAdaptive"),
];

const TYPES: [&str; 8] = [
    "FlowControl",
    "FlowControl",
    "Isolation",
    "HotSpotParamFlow",
    "CircuitBreaking",
    "Authority",
    "FlowControl",
    "System",
];

const STATUSES: [u16; 8] = [429, 429, 429, 429, 503, 403, 429, 503];

fn with(more: &str, kinds: impl Fn(&str) -> bool) -> World {
    in_envoy(world::envoy(), more, kinds)
}

fn in_envoy(binary: PathBuf, more: &str, kinds: impl Fn(&str) -> bool) -> World {
    let mut setup = Setup { binary, ..Setup::new() };
    for (kind, id, path, fields) in RULES.into_iter().filter(|(kind, ..)| kinds(kind)) {
        let resource = match path {
            "" => String::new(),
            path => format!("resource: 'GET:{path}', "),
        };
        setup = setup.rules(kind, &[&format!("{{id: {id}, {resource}{fields}, {more}}}")]);
    }
    let world = setup.start();
    world.upstream.behave("GET:/breaker", Behaviour::status(500));
    world
}

/// Asks so that the rule refuses if it may: one request is under way already, and one has failed.
fn provoked(world: &World, path: &str) -> Answer {
    let path = if path.is_empty() { "/anything" } else { path };
    let headers: &[_] = &[("x-user", "a"), ("x-origin", "crawler")];
    let _held = (path == "/isolation").then(|| {
        let held = world.hang(path, &[("x-latency-ms", "60000")]);
        world.when("one to be under way", || {
            (world.upstream.open("GET:/isolation").now == 1).then_some(())
        });
        held
    });
    if path == "/breaker" {
        let _ = world.client().send("GET", path, headers).unwrap();
        clock::pause(Duration::from_millis(200));
    }
    world.client().send("GET", path, headers).unwrap()
}

#[test]
fn a_shadow_rule_of_any_kind_counts_and_refuses_nobody() {
    let world = with("shadow: true", |_| true);

    for (_, id, path, _) in RULES {
        let answer = provoked(&world, path);
        assert_eq!(answer.header("x-sentinel-rule"), None, "{id}: {answer:?}");
        assert_eq!(answer.status, if id == "breaker" { 500 } else { 200 }, "{id}: {answer:?}");
        world.stats_when(id, |stats| stats.rule(id, "shadow_block_total") >= 1);
    }
    let stats = world.stats();
    assert_eq!(stats.total("block_total"), 0);
    world.assert_nothing_trapped();
}

#[test]
fn a_rule_of_any_kind_answers_with_its_own_status_headers_and_body() {
    let response = "response: {status: 418, headers: {x-why: busy}, body: 'Not now.'}";
    check_replies(
        &with(response, |kind| kind != "SystemRules"),
        |kind| kind != "SystemRules",
        |answer, _| {
            assert_eq!((answer.status, answer.body.as_str()), (418, "Not now."));
            assert_eq!(answer.header("x-why"), Some("busy"));
        },
    );
    check_replies(
        &with(response, |kind| kind == "SystemRules"),
        |kind| kind == "SystemRules",
        |answer, _| assert_eq!((answer.status, answer.body.as_str()), (418, "Not now.")),
    );
}

#[test]
fn without_one_of_its_own_each_kind_has_its_status_in_the_oldest_envoy_too() {
    let system = |kind: &str| kind == "SystemRules";
    let others = |kind: &str| kind != "SystemRules";
    let check = |answer: &Answer, status| assert_eq!(answer.status, status, "{answer:?}");
    for envoy in [world::oldest_envoy(), world::envoy()] {
        check_replies(&in_envoy(envoy.clone(), "shadow: false", others), others, check);
        check_replies(&in_envoy(envoy, "shadow: false", system), system, check);
    }
}

#[track_caller]
fn check_replies(world: &World, kinds: impl Fn(&str) -> bool, check: impl Fn(&Answer, u16)) {
    let all = RULES.into_iter().zip(TYPES).zip(STATUSES);
    for (((_, id, path, _), block_type), status) in all.filter(|(((kind, ..), _), _)| kinds(kind)) {
        let answer = provoked(world, path);
        assert_eq!(answer.header("x-sentinel-rule"), Some(id), "{answer:?}; {world:?}");
        assert_eq!(answer.header("x-sentinel-block"), Some(block_type), "{answer:?}");
        check(&answer, status);
    }
    world.assert_nothing_trapped();
}
