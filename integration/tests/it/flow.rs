//! Flow rules beyond a fixed threshold: cold, by memory, by another resource, by caller, and for resources nobody named.

use std::time::Duration;

use sentinel_integration::accuracy::wait_for_bucket;
use sentinel_integration::clock;
use sentinel_integration::load::Ask;
use sentinel_integration::upstream;
use sentinel_integration::windows::{Arrival, Shape};

use crate::exact;
use crate::world::{self, Setup};

#[test]
fn a_cold_resource_warms_up_second_by_second_as_the_formula_says() {
    let world = Setup::with_rules(&[
        "{id: warm, resource: 'GET:/warm', threshold: 100, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 5, warmUpColdFactor: 3}",
    ])
    .start();

    world::begin_a_second();
    world.flood(&[Ask::get("/warm")], 800, 12);
    let arrivals = upstream::only(world.upstream.take()).unwrap();

    let admitted = by_second(&arrivals);
    let expected = warm_up(100, 5, 3, admitted.len());
    println!("{admitted:?} a second, expected {expected:?}");
    assert!(admitted.len() >= 11, "{admitted:?}");
    // Not the last, which the flood does not fill.
    for second in 0..10 {
        let (seen, wanted) = (admitted[second], expected[second]);
        assert!(seen.abs_diff(wanted) <= 1, "second {second}: {admitted:?}, expected {expected:?}");
    }
    assert_eq!(expected[9], 100, "{expected:?}");
}

#[test]
fn a_threshold_by_memory_lies_on_the_line_between_the_marks_where_the_memory_lies() {
    let allocated = Setup::new().start().stats().value("server.memory_allocated").unwrap();
    let (plenty, little) = (allocated * 100, allocated / 2);
    let rule = |id: &str, low_mark: u64, high_mark: u64| {
        format!(
            "{{id: {id}, resource: 'GET:/{id}', tokenCalculateStrategy: MemoryAdaptive, lowMemUsageThreshold: 1000, highMemUsageThreshold: 100, memLowWaterMarkBytes: {low_mark}, memHighWaterMarkBytes: {high_mark}}}"
        )
    };
    let rules = [
        rule("low", plenty, plenty * 2),
        rule("high", little / 2, little),
        rule("between", little, allocated * 2),
    ];
    let world = Setup::new().rules("FlowRules", &rules.each_ref().map(String::as_str)).start();

    // Memory is asked for once a second; then the thresholds are known, and seen.
    world.stats_when("the threshold at the high mark", |stats| {
        stats.rule("high", "threshold") == 100
    });
    let _ = world.upstream.take();
    let asks = ["low", "high", "between"].map(|id| Ask::get(&format!("/{id}")));
    let report = world.flood(&asks, 6000, 4);
    let arrivals = world.upstream.take();

    for (name, threshold) in [("GET:/low", 1000), ("GET:/high", 100)] {
        let answered = &report.asks[name].answered;
        exact::assert_held(1000, threshold, &arrivals[name], answered, report.span_ns.clone());
    }
    // Envoy's memory moves while it serves: on the line, but not at a point that could be foreseen.
    let threshold = world.stats().rule("between", "threshold");
    assert!((101..1000).contains(&threshold), "{threshold}");
    let answered = &report.asks["GET:/between"].answered;
    let windows =
        Shape::of(1000).saturated(&arrivals["GET:/between"], answered, report.span_ns, threshold);
    let between = windows.busiest_certain();
    println!("{between} between, where {threshold} is the threshold");
    assert!(between * 100 <= threshold * 125, "{between}, {threshold}");
    let asked = windows.full().next().is_some();
    assert!(!asked || between * 100 >= threshold * 75, "{between}, {threshold}");
    world.assert_nothing_trapped();
}

#[test]
fn a_resource_is_refused_while_another_has_too_much() {
    let world = Setup::with_rules(&[
        "{id: write-first, resource: 'GET:/read', threshold: 50, relationStrategy: AssociatedResource, refResource: 'GET:/write'}",
    ])
    .start();
    let both = |write: u32| [Ask::get("/read").weight(200), Ask::get("/write").weight(write)];

    // Nothing is written: everything may be read.
    let report = world.flood(&[Ask::get("/read")], 200, 2);
    assert_eq!(report.refused(), 0);
    // Little is written.
    let report = world.flood(&both(20), 220, 3);
    assert_eq!(report.refused(), 0, "{:?}", report.asks);
    // Much is written: what is written passes, what is read does not.
    world.flood(&both(200), 400, 2);
    let report = world.flood(&both(200), 400, 3);
    let (read, write) = (&report.asks["GET:/read"], &report.asks["GET:/write"]);
    assert_eq!(write.refused(), 0);
    assert!(read.by_rule["write-first"] * 100 >= read.sent() * 95, "{:?}", read.by_status);
    world.when("reading to be possible again", || (world.get("/read").status == 200).then_some(()));
}

#[test]
fn callers_are_counted_together_by_name_or_each_on_his_own() {
    let world = Setup::with_rules(&[
        "{id: all, resource: 'GET:/api', threshold: 20, statIntervalInMs: 3600000}",
        "{id: shop, resource: 'GET:/api', threshold: 5, statIntervalInMs: 3600000, limitApp: shop}",
        "{id: others, resource: 'GET:/api', threshold: 3, statIntervalInMs: 3600000, limitApp: other}",
    ])
    .start();
    let admitted = |origin: &str| {
        let headers = [("x-origin", origin)];
        let headers = if origin.is_empty() { &[][..] } else { &headers };
        let ask = || world.client().send("GET", "/api", headers).unwrap();
        // A token that another worker holds comes within a tick of being wanted.
        let answers = (0..8).map(|_| {
            let mut answer = ask();
            for _ in 0..3 {
                if answer.status != 200 {
                    clock::pause(Duration::from_millis(25));
                    answer = ask();
                }
            }
            answer
        });
        let rules = answers
            .filter(|answer| answer.status != 200)
            .map(|answer| answer.header("x-sentinel-rule").unwrap_or_default().to_owned());
        let rules: Vec<_> = rules.collect();
        (8 - rules.len(), rules.first().cloned().unwrap_or_default())
    };

    assert_eq!(admitted("shop"), (5, "shop".to_owned()));
    assert_eq!(admitted("crawler"), (3, "others".to_owned()));
    assert_eq!(admitted("partner"), (3, "others".to_owned()));
    // Who has no name is only counted with all: 11 are gone, and 8 of the 9 left go.
    assert_eq!(admitted(""), (8, String::new()));
    assert_eq!(admitted(""), (1, "all".to_owned()));
    assert_eq!(admitted("stranger"), (0, "all".to_owned()));
}

#[test]
fn each_resource_that_a_pattern_matches_and_each_that_nobody_named_has_a_counter_of_its_own() {
    let world = Setup::with_rules(&[
        "{id: pattern, resource: 'GET:/shop/[a-z]+', regex: true, threshold: 4, statIntervalInMs: 3600000}",
        "{id: named, resource: 'GET:/shop/cart', threshold: 2, statIntervalInMs: 3600000}",
        "{id: default, resource: '*', threshold: 3, statIntervalInMs: 3600000}",
    ])
    .start();
    let admitted = |path: &str| {
        let answers: Vec<_> = (0..6).map(|_| world.get(path)).collect();
        let refused = answers.iter().find(|answer| answer.status != 200);
        let rule = refused.and_then(|answer| answer.header("x-sentinel-rule")).unwrap_or("");
        (answers.iter().filter(|answer| answer.status == 200).count(), rule.to_owned())
    };

    for path in ["/shop/a", "/shop/b", "/shop/z"] {
        assert_eq!(admitted(path), (4, "pattern".to_owned()), "{path}");
    }
    assert_eq!(admitted("/shop/cart"), (2, "named".to_owned()));
    // The whole name must match; what neither names is the default's.
    for path in ["/shop/a/b", "/shop/1", "/other", "/"] {
        assert_eq!(admitted(path), (3, "default".to_owned()), "{path}");
    }
    world.assert_nothing_trapped();
}

#[test]
fn a_pattern_is_exact_for_each_resource_under_flood() {
    let world =
        Setup::with_rules(&["{id: pattern, resource: 'GET:/item/.*', regex: true, threshold: 50}"])
            .start();
    let asks: Vec<_> = (0..20).map(|item| Ask::get(&format!("/item/{item}"))).collect();

    wait_for_bucket(Shape::of(1000));
    let report = world.flood(&asks, 4000, 4);

    let mut saturated = 0;
    for (name, arrived) in world.upstream.take() {
        let answered = &report.asks[&name].answered;
        saturated += exact::assert_held(1000, 50, &arrived, answered, report.span_ns.clone());
    }
    assert!(saturated > 0, "never asked for more than is allowed");
}

/// What arrived in each second, from the first in which anything did.
fn by_second(arrivals: &[Arrival]) -> Vec<u64> {
    let second = |at_ns: u64| usize::try_from(at_ns / 1_000_000_000).unwrap();
    let first = second(arrivals[0].arrived_ns);
    let last = second(arrivals[arrivals.len() - 1].arrived_ns);
    let mut counts = vec![0; last - first + 1];
    for arrival in arrivals {
        counts[second(arrival.arrived_ns) - first] += 1;
    }
    counts
}

/// What passes in each second while more is asked for than allowed, by Sentinel's formula.
fn warm_up(threshold: u64, period_s: u64, cold: u64, seconds: usize) -> Vec<u64> {
    let warning = period_s * threshold / (cold - 1);
    let most = warning + 2 * period_s * threshold / (1 + cold);
    let (t, c) = (u32::try_from(threshold).unwrap(), u32::try_from(cold).unwrap());
    let slope = f64::from(c - 1) / f64::from(t) / f64::from(u32::try_from(most - warning).unwrap());
    let mut stored = most;
    let mut passed = Vec::new();
    for _ in 0..seconds {
        let previous = passed.last().copied().unwrap_or(0);
        if !passed.is_empty()
            && (stored < warning || (stored > warning && previous < threshold / cold))
        {
            stored = (stored + threshold).min(most);
        }
        stored = stored.saturating_sub(previous);
        let above = f64::from(u32::try_from(stored.saturating_sub(warning)).unwrap());
        let allowed = (1.0 / (above * slope + 1.0 / f64::from(t))).next_up();
        passed.push(if stored < warning { threshold } else { whole(allowed) });
    }
    passed
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and the threshold"
)]
fn whole(number: f64) -> u64 {
    number as u64
}
