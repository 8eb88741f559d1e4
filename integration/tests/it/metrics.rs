//! Sentinel's metrics say what clients saw, and keep their number.

use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate, Until};

use crate::world::{self, Setup};

#[test]
fn two_seconds_after_the_last_answer_the_totals_equal_what_was_sent() {
    let world =
        Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 1000}"]).start();

    let asks = [Ask::get("/limited").weight(3), Ask::get("/free"), Ask::get("/also-free")];
    let report = world.load(&asks, Rate::PerSecond(5000), Until::Sent(20_000));
    let ended = clock::now();
    let limited = &report.asks["GET:/limited"];
    let stats = world.stats_when("whole totals", |stats| {
        stats.total("pass_total") + stats.total("block_total") == 20_000
    });

    assert!(
        clock::now() - ended < world::FOLLOWED,
        "the totals were whole only after {:?}",
        clock::now() - ended
    );
    assert_eq!(stats.total("pass_total"), report.status(200));
    assert_eq!(stats.total("block_total"), report.status(429));
    assert_eq!(stats.resource("GET:/limited", "pass_total"), limited.status(200));
    assert_eq!(stats.rule("limit", "block_total"), limited.status(429));
    assert_eq!(stats.resource("other", "pass_total"), 20_000 - limited.sent());
    assert_eq!(stats.total("frames_lost"), 0);
    assert_eq!(stats.total("ledger_failures"), 0);
    world.assert_nothing_trapped();
}

#[test]
fn prometheus_sees_resource_rule_and_type_as_labels_and_a_dot_forges_none() {
    let world =
        Setup::with_rules(&["{id: dots, resource: 'GET:/a.rule.forged.b', threshold: 0}"]).start();

    assert_eq!(world.get("/a.rule.forged.b").status, 429);
    world.stats_when("the refusal", |stats| stats.rule("dots", "block_total") == 1);

    let metrics = world.envoy.prometheus().unwrap();
    let refusal = metrics
        .lines()
        .find(|line| line.starts_with("sentinel_block_total{") && line.contains("dots"));
    let refusal = refusal.unwrap_or_else(|| panic!("no such series:\n{metrics}"));
    for label in
        [r#"resource="GET:/a%2Erule%2Eforged%2Eb""#, r#"rule="dots""#, r#"type="FlowControl""#]
    {
        assert!(refusal.contains(label), "{refusal}");
    }
    assert!(!metrics.contains(r#"rule="forged""#), "{metrics}");
}

#[test]
fn workers_and_the_version_of_the_rules_can_be_seen() {
    let world =
        Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 50}"]).start();

    world.flood(&[Ask::get("/limited")], 1000, 2);

    let stats = world.stats_when("four workers", |stats| stats.total("workers") == 4);
    assert_eq!(stats.rule("limit", "threshold"), 50);
    assert_eq!(stats.total("service_missing"), 0);
    assert_eq!(stats.total("workers_over"), 0);
}
