//! Isolation: requests at a time, counted at the upstream, whatever becomes of them.

use std::time::{Duration, Instant};

use serde_json::json;

use sentinel_integration::bootstrap::CONNECTION_MANAGER;
use sentinel_integration::clock;
use sentinel_integration::hanging::Hanging;
use sentinel_integration::load::{Ask, Rate, Until};
use sentinel_integration::upstream::{Behaviour, RESOURCE};

use crate::world::{Setup, World};

#[test]
fn there_are_never_more_requests_at_the_upstream_than_the_threshold_and_it_is_used_up() {
    let limits = [("/one", 1, 300), ("/seven", 7, 1000), ("/thirty", 30, 2500)];
    let rules = limits.map(|(path, threshold, _)| {
        format!("{{id: 'limit-{threshold}', resource: 'GET:{path}', threshold: {threshold}}}")
    });
    let world = Setup::new().rules("IsolationRules", &rules.each_ref().map(String::as_str)).start();
    for (path, ..) in limits {
        world.upstream.behave(&format!("GET:{path}"), Behaviour::default().after_ms(20));
    }

    let asks = limits.map(|(path, _, per_second)| Ask::get(path).weight(per_second));
    let report = world.flood(&asks, 3800, 5);

    for (path, threshold, _) in limits {
        let name = format!("GET:{path}");
        let seen = &report.asks[&name];
        assert_eq!(world.upstream.open(&name).most, threshold, "{path}: {:?}", seen.by_status);
        assert_eq!(seen.status(200) + seen.status(429), seen.sent(), "{:?}", seen.by_status);
        assert!(seen.status(429) > 0, "{path} was asked for too little: {:?}", seen.by_status);
        // 20 ms each: 50 a second for each place. Half of it goes to the way there and back, and to a busy machine.
        let served = seen.status(200);
        assert!(served * 2 >= threshold * 50 * 5, "{path}: only {served} in 5 s");
        assert_exactly(&world, path, threshold);
    }
    world.assert_nothing_trapped();
}

#[test]
fn a_permit_comes_back_however_its_request_ends() {
    let routes = format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0");
    let world = Setup::new()
        .rules("IsolationRules", &["{id: five, resource: 'GET:/five', threshold: 5}"])
        .rules(
            "HotspotRules",
            &["{id: later, resource: 'GET:/five', metricType: QPS, threshold: 0, durationInSec: 1, paramKey: 'header:x-later'}"],
        )
        .change(
            &routes,
            json!({
                "name": "short",
                "match": {"prefix": "/", "headers": [{"name": "x-short", "present_match": true}]},
                "route": {"cluster": "upstream", "timeout": "0.1s"},
            }),
        )
        .change(
            &format!("{CONNECTION_MANAGER}/http_filters/1"),
            json!({
                "name": "fault",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                    "abort": {"header_abort": {}, "percentage": {"numerator": 100}},
                },
            }),
        )
        .start();
    assert_exactly(&world, "/five", 5);

    let late: &[_] = &[("x-latency-ms", "5000")];
    let ends: [(&str, Headers, u16); 6] = [
        ("completed", &[("x-latency-ms", "20")], 200),
        ("answered with an error", &[("x-status", "500")], 500),
        ("timed out", &[("x-latency-ms", "5000"), ("x-short", "1")], 504),
        ("reset by the upstream", &[("x-reset", "1")], 503),
        ("refused later by another rule", &[("x-later", "1")], 429),
        ("answered by another filter", &[("x-envoy-fault-abort-request", "418")], 418),
    ];
    for (end, headers, status) in ends {
        // More than there are permits, one batch after the other: a lost one would show.
        for _ in 0..3 {
            let mut five: Vec<_> = (0..5).map(|_| world.hang("/five", headers)).collect();
            for request in &mut five {
                let head = request.head(PATIENCE).unwrap();
                assert_eq!(head.status, status, "{end}: {}; {world:?}", head.text);
                if status == 429 {
                    assert!(head.refused_by("later"), "{end}: {}", head.text);
                }
            }
        }
        assert_exactly(&world, "/five", 5);
    }

    // Its client goes away: while the upstream works on it, and at once.
    for wait_for_arrival in [true, false] {
        let five: Vec<_> = (0..5).map(|_| world.hang("/five", late)).collect();
        if wait_for_arrival {
            world.when("all to arrive", || {
                (world.upstream.open("GET:/five").now == 5).then_some(())
            });
        }
        drop(five);
        assert_exactly(&world, "/five", 5);
    }
    world.assert_nothing_trapped();
}

#[test]
fn requests_of_a_vm_that_died_keep_their_permits_until_none_of_them_can_run_any_more() {
    let world = Setup::new()
        .rules("IsolationRules", &["{id: eight, resource: 'GET:/eight', threshold: 8}"])
        .settings("{workerTtlMs: 5000, orphanTtlMs: 1000}")
        .with_faults()
        .start();
    let held: Vec<_> = (0..8).map(|_| world.hang("/eight", &[("x-latency-ms", "4000")])).collect();
    world.when("eight to arrive", || (world.upstream.open("GET:/eight").now == 8).then_some(()));

    // Which worker a connection gets is the kernel's choice; of so many, each gets some.
    for _ in 0..12 {
        let _ = world.hang("/fault", &[("x-sentinel-fault", "worker")]).status(PATIENCE);
        clock::pause(Duration::from_millis(20));
    }
    world.upstream.behave("GET:/eight", Behaviour::default().after_ms(20));
    world.flood(&[Ask::get("/eight")], 200, 3);

    let reloads = world.stats().sum("wasm.sentinel_filter.", ".vm_reload_success");
    assert!(reloads >= 2, "only {reloads} VMs were loaded again");
    let open = world.upstream.open("GET:/eight");
    assert!(open.most <= 8, "{} at the upstream at a time: orphans did not count", open.most);
    drop(held);

    let give_up = clock::now() + Duration::from_secs(20);
    while !holds_exactly(&world, "/eight", 8) {
        assert!(clock::now() < give_up, "the capacity of the dead VMs never came back: {world:?}");
    }
    assert!(world.upstream.open("GET:/eight").most <= 8);
}

#[test]
fn many_short_requests_need_few_claims_and_none_is_refused_while_there_is_room() {
    let world = Setup::new()
        .rules("IsolationRules", &["{id: wide, resource: 'GET:/wide', threshold: 400}"])
        .start();
    let asks = [Ask::get("/wide")];
    world.load(&asks, Rate::PerSecond(20_000), Until::Elapsed(Duration::from_secs(1)));
    world.when("rest", || (world.stats().total("in_flight") == 0).then_some(()));
    let before = world.stats().total("ledger_claims");

    let report = world.load(&asks, Rate::PerSecond(20_000), Until::Elapsed(Duration::from_secs(4)));

    assert_eq!(report.status(200), report.sent(), "{:?}", report.asks);
    let claims = world.stats().total("ledger_claims") - before;
    let each = claims * 100 / report.sent();
    println!("{} requests a second, {claims} claims for {} of them", report.rate(), report.sent());
    assert!(each < 25, "{claims} claims for {} requests", report.sent());
    assert!(world.upstream.open("GET:/wide").most <= 400);
}

#[test]
fn permits_that_workers_keep_for_their_next_requests_are_there_for_all_within_a_tick() {
    // Of so many each worker may keep two for its next requests.
    let world = Setup::new()
        .rules("IsolationRules", &["{id: idle, resource: 'GET:/idle', threshold: 64}"])
        .start();
    let asks = [Ask::get("/idle")];
    let mut rounds = Vec::new();
    for _ in 0..3 {
        world.load(&asks, Rate::PerSecond(4000), Until::Sent(2000));
        let mut held = Vec::new();
        let mut refused_since = None;
        let mut longest = Duration::ZERO;
        while held.len() < 64 {
            let mut request = world.hang("/idle", &[("x-latency-ms", "60000")]);
            let admitted = u64::try_from(held.len()).unwrap() + 1;
            let arrives = world.when("an answer or an arrival", || {
                if world.upstream.open("GET:/idle").now >= admitted {
                    return Some(true);
                }
                request.status(Duration::from_millis(2)).is_ok().then_some(false)
            });
            if arrives {
                held.push(request);
                longest = longest.max(refused_since.take().map_or(Duration::ZERO, elapsed));
            } else {
                refused_since.get_or_insert_with(clock::now);
            }
            let waited = refused_since.map_or(Duration::ZERO, elapsed);
            assert!(waited < Duration::from_secs(30), "{} of 64; {world:?}", held.len());
        }
        println!("refused for {longest:?} at most while there was room");
        rounds.push(longest);
        assert_eq!(world.get("/idle").status, 429);
        drop(held);
        world.when("none", || (world.upstream.open("GET:/idle").now == 0).then_some(()));
    }
    // A permit that nobody gives back is missed in each round, a machine that stands still in one.
    assert!(rounds.iter().min() < Some(&Duration::from_millis(100)), "refused for {rounds:?}");
}

fn elapsed(since: Instant) -> Duration {
    clock::now().saturating_duration_since(since)
}

/// As many as the threshold can be held open, spread over all workers, and not one more: within what a permit may lie idle
/// elsewhere.
#[track_caller]
pub(crate) fn assert_exactly(world: &World, path: &str, threshold: u64) {
    let name = format!("GET:{path}");
    let give_up = clock::now() + TICK_AND_NOISE;
    loop {
        if holds_exactly(world, path, threshold) {
            return;
        }
        assert!(
            clock::now() < give_up,
            "{threshold} at a time of {path} must be possible, but {:?}; {world:?}",
            world.upstream.open(&name),
        );
    }
}

/// Whether so many at a time are possible now, and no more.
pub(crate) fn holds_exactly(world: &World, path: &str, threshold: u64) -> bool {
    // Under a name of their own at the upstream: some of those before may not have been seen to end there.
    let name = format!("held at {}", clock::wall_nanos());
    let long: &[_] = &[("x-latency-ms", "60000"), (RESOURCE, &name)];
    let held: Vec<Hanging> = (0..threshold).map(|_| world.hang(path, long)).collect();
    let all = clock::wait_for("all to arrive", Duration::from_millis(500), || {
        Ok((world.upstream.open(&name).now == threshold).then_some(()))
    });
    let more = all.is_ok().then(|| {
        let status = |_| world.hang(path, long).status(PATIENCE).ok();
        (0..4).map(status).collect::<Vec<_>>()
    });
    drop(held);
    world.when("the upstream to be rid of them", || {
        (world.upstream.open(&name).now == 0).then_some(())
    });
    if let Some(more) = &more {
        assert_eq!(*more, [Some(429); 4], "beyond {threshold} at a time of {path}; {world:?}");
    }
    more.is_some()
}

type Headers = &'static [(&'static str, &'static str)];

const PATIENCE: Duration = Duration::from_secs(30);
/// A tick is 10 ms and comes a few late; the rest is what a busy machine adds.
const TICK_AND_NOISE: Duration = Duration::from_secs(2);
