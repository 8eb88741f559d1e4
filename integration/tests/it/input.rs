//! Bad input hurts nobody: a bad request traps no VM, a bad configuration is refused and its place named.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use sentinel_integration::bootstrap::Configuration;
use sentinel_integration::load::{Ask, Rate, Until};
use sentinel_integration::rules;

use crate::world::{Setup, World, document, yaml};

const LIMIT: &str = "{id: limit, resource: 'GET:/limited', threshold: 100}";

#[test]
fn header_bytes_that_are_no_text_trap_nothing() {
    for filter in [
        "resource: {from: method_path}",
        "resource: {from: {header: x-resource}}",
        "resource: {from: authority}",
    ] {
        let world = Setup::with_rules(&[LIMIT]).filter(filter).start();
        for header in [
            &b"x-resource: \xff\xfe"[..],
            b"cookie: \xff",
            b"x-\x7f: 1",
            b"content-type: application/grpc\xff",
        ] {
            ask_raw(&world, b"/limited", header);
        }
        ask_raw(&world, b"/\xff\xfe%00", b"x-y: z");
        assert_eq!(world.get("/limited").status, 200);
        world.assert_nothing_trapped();
    }
}

#[test]
fn a_path_of_60_kilobytes_traps_nothing() {
    let world = Setup::with_rules(&[LIMIT]).start();

    let path = [b"/".as_slice(), &[b'a'; 60_000]].concat();
    for _ in 0..20 {
        ask_raw(&world, &path, b"x-y: z");
    }

    assert_eq!(world.get("/limited").status, 200);
    world.assert_nothing_trapped();
}

#[test]
fn ten_thousand_paths_share_one_series_and_little_memory() {
    let world = Setup::with_rules(&[LIMIT]).start();
    world.load(&[Ask::get("/limited")], Rate::PerSecond(2000), Until::Sent(2000));
    // Gauges come up to a second after totals, all of them at once.
    world.stats_when("the first totals and gauges", |stats| {
        stats.total("pass_total") + stats.total("block_total") == 2000
            && stats.resource("GET:/limited", "block_qps") > 0
    });
    let series_before = world.stats().series().count();
    let memory_before = world.envoy.memory_bytes().unwrap();

    let asks: Vec<_> = (0..10_000).map(|number| Ask::get(&format!("/junk/{number}"))).collect();
    let report = world.load(&asks, Rate::PerSecond(5000), Until::Sent(20_000));

    assert_eq!(report.status(200), 20_000);
    let stats = world
        .stats_when("the junk's totals", |stats| stats.resource("other", "pass_total") == 20_000);
    let series = stats.series().count();
    assert!(series <= series_before + 10, "{series_before} series became {series}");
    let grown = world.envoy.memory_bytes().unwrap().saturating_sub(memory_before);
    assert!(grown < 32 << 20, "Envoy grew by {grown} bytes");
    world.assert_nothing_trapped();
}

#[test]
fn a_megabyte_of_good_rules_is_taken() {
    let mut rules: Vec<Value> = (0..8999)
        .map(|number| json!({"id": format!("rule-{number}"), "resource": format!("GET:/resource/with/a/rather/long/name/of/its/own/that/goes/on/{number}"), "threshold": 10}))
        .collect();
    rules.push(yaml("{id: none, resource: 'GET:/none', threshold: 0}"));
    let service = json!({"rules": [rules::flow_rules(&rules)]}).to_string();
    assert!(service.len() > 900_000, "{}", service.len());
    let world =
        Setup::with_rules(&[]).workers(2).service(Some(Configuration::Text(service))).start();

    assert_eq!(world.get("/none").status, 429);
    assert_eq!(world.get("/free").status, 200);
    world.assert_nothing_trapped();
    let memory = world.envoy.memory_bytes().unwrap();
    assert!(memory < 400 << 20, "{memory} bytes");
}

#[test]
fn a_megabyte_of_rules_with_one_bad_one_is_refused_and_the_place_named() {
    let mut rules: Vec<Value> = (0..8999)
        .map(|number| json!({"id": format!("rule-{number}"), "resource": format!("GET:/resource/with/a/rather/long/name/{number}"), "threshold": 10}))
        .collect();
    rules.push(yaml("{id: bad, resource: 'GET:/bad', threshold: -1}"));
    check_refused(
        &json!({"rules": [rules::flow_rules(&rules)]}),
        &["rules[8999]", "threshold", "-1"],
    );
}

#[test]
fn more_rules_than_the_bound_are_refused_and_the_bound_named() {
    let rules: Vec<Value> = (0..10_001)
        .map(|number| json!({"id": format!("rule-{number}"), "resource": format!("GET:/{number}"), "threshold": 10}))
        .collect();
    check_refused(&json!({"rules": [rules::flow_rules(&rules)]}), &["rulesMax", "10000"]);
}

#[test]
fn bad_rules_are_refused_and_rule_field_and_value_named() {
    for (rule, place) in [
        ("{id: bad, resource: 'GET:/a', threshold: -1}", ["bad", "threshold", "-1"]),
        ("{id: bad, resource: 'GET:/a', threshold: lots}", ["bad", "threshold", "lots"]),
        (
            "{id: bad, resource: 'GET:/a', threshold: 1, tresholt: 2}",
            ["bad", "tresholt", "unknown"],
        ),
        ("{id: bad, resource: '', threshold: 1}", ["bad", "resource", ""]),
        ("{id: bad, resource: 'GET:/a'}", ["bad", "threshold", ""]),
        (
            "{id: bad, resource: 'GET:/a', threshold: 1, controlBehavior: Refuse}",
            ["bad", "controlBehavior", "Refuse"],
        ),
        ("{id: 'bad id', resource: 'GET:/a', threshold: 1}", ["bad id", "id", ""]),
    ] {
        check_refused(&json!({"rules": [document("FlowRules", &[rule])]}), &place);
    }
}

#[test]
fn bad_rules_of_the_other_kinds_are_refused_and_rule_field_and_value_named() {
    for (kind, rule, place) in [
        (
            "SystemRules",
            "{id: bad, metricType: Load, triggerCount: 1}",
            ["bad", "metricType", "CpuUsage"],
        ),
        (
            "SystemRules",
            "{id: bad, metricType: CpuUsage, triggerCount: 101}",
            ["bad", "triggerCount", "101"],
        ),
        (
            "FlowRules",
            "{id: bad, resource: 'a(b', regex: true, threshold: 1}",
            ["bad", "resource", "a(b"],
        ),
        (
            "FlowRules",
            "{id: bad, resource: a, threshold: 1, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 1, warmUpColdFactor: 1}",
            ["bad", "warmUpColdFactor", "1"],
        ),
        (
            "CircuitBreakerRules",
            "{id: bad, resource: a, strategy: ErrorRatio, threshold: 0.5, statIntervalMs: 1000, retryTimeoutMs: 1000}",
            ["bad", "threshold", "0.5"],
        ),
        (
            "HotspotRules",
            "{id: bad, resource: a, metricType: QPS, threshold: 1, durationInSec: 1, paramKey: user}",
            ["bad", "paramKey", "user"],
        ),
        ("IsolationRules", "{id: bad, resource: a, threshold: 0}", ["bad", "threshold", "0"]),
        ("AuthorityRules", "{id: bad, resource: a, strategy: White}", ["bad", "limitApp", ""]),
        (
            "GatewayFlowRules",
            "{id: bad, resource: nobody, resourceMode: ApiGroup, count: 1}",
            ["bad", "resource", "apiName"],
        ),
    ] {
        check_refused(&json!({"rules": [document(kind, &[rule])]}), &place);
    }
}

#[test]
fn unknown_fields_of_a_service_configuration_are_refused() {
    check_refused(&json!({"rules": [], "ruels": []}), &["ruels"]);
    check_refused(&json!({"settings": {"flushMs": 0}}), &["flushMs", "0"]);
    check_refused(&json!({"settings": {"flushms": 10}}), &["flushms"]);
    check_refused(
        &json!({"rules": [{"kind": "FlowRulez", "spec": {"rules": []}}]}),
        &["kind", "FlowRulez"],
    );
}

#[test]
fn bad_filter_configurations_are_refused() {
    for (filter, place) in [
        ("resource: {from: nowhere}", ["from", "nowhere"]),
        ("resource: {form: path}", ["form", "resource"]),
        ("exposeRule: maybe", ["exposeRule", "maybe"]),
        ("resources: {from: path}", ["resources", ""]),
    ] {
        let printed = Setup::with_rules(&[LIMIT]).workers(1).filter(filter).refused();
        assert_names(&printed, &place);
    }
}

#[track_caller]
fn check_refused(service: &Value, place: &[&str]) {
    // As a Struct and as text: two ways in, one check behind them.
    for configuration in
        [Configuration::Struct(service.clone()), Configuration::Text(service.to_string())]
    {
        let printed = Setup::with_rules(&[]).workers(1).service(Some(configuration)).refused();
        assert_names(&printed, place);
    }
}

#[track_caller]
fn assert_names(printed: &str, place: &[&str]) {
    for part in place {
        assert!(printed.contains(part), "the refusal must name `{part}`:\n{printed}");
    }
    assert!(!printed.contains("panicked"), "a refusal is no trap:\n{printed}");
}

/// Sends these very bytes and reads an answer of any status; Envoy itself refuses some of them.
fn ask_raw(world: &World, path: &[u8], header: &[u8]) {
    let mut stream = TcpStream::connect(world.proxy()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
        .write_all(
            &[b"GET ", path, b" HTTP/1.1\r\nhost: a\r\n", header, b"\r\nconnection: close\r\n\r\n"]
                .concat(),
        )
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&answer));
    assert!(!answer.starts_with(b"HTTP/1.1 503"), "{:?}", String::from_utf8_lossy(&answer));
}
