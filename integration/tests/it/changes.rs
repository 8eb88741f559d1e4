//! Rules that change under load: the limit changes at once, on all workers together, and nothing else moves.

use std::time::Duration;

use sentinel_integration::accuracy::wait_for_bucket;
use sentinel_integration::bootstrap::CONNECTION_MANAGER;
use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate};
use sentinel_integration::rule_server::RuleServer;
use sentinel_integration::windows::Shape;
use serde_json::{Value, json};

use crate::sources::{flow, with_shop};
use crate::world::{Setup, World, document};

#[test]
fn a_limit_is_lowered_and_raised_on_all_workers_at_once() {
    let server = RuleServer::start().unwrap();
    let limit = |threshold| flow(&[("limit", "/limited", threshold)]);
    server.put("/shop.yaml", &limit(100));
    let world = with_shop(&server);
    world.printed("is in force: 1 rules");
    // Thresholds, and since when each may be in force.
    let mut changes = vec![(100, clock::wall_nanos())];

    let (report, ()) = world.while_loading(&[Ask::get("/limited")], Rate::PerSecond(3000), || {
        clock::pause(PHASE);
        for threshold in [400, 50, 200, 0, 300] {
            changes.push((threshold, clock::wall_nanos()));
            server.put("/shop.yaml", &limit(u32::try_from(threshold).unwrap()));
            clock::pause(PHASE);
        }
    });
    let arrivals = world.upstream.take().remove("GET:/limited").unwrap();
    let windows = Shape::of(1000).count(&arrivals, report.span_ns.clone());

    let second = 1_000_000_000;
    let lag = u64::try_from(TAKE_UP.as_nanos()).unwrap();
    let end = report.span_ns.end;
    let phases: Vec<_> = (0..changes.len())
        .map(|at| {
            let (threshold, from) = changes[at];
            (threshold, from, changes.get(at + 1).map_or(end, |(_, next)| *next))
        })
        .collect();
    for window in windows.all() {
        let in_force = phases
            .iter()
            .filter(|(_, from, to)| window.start_ns < to + lag && window.start_ns + second > *from);
        let largest = in_force.map(|(threshold, ..)| *threshold).max().unwrap_or(0);
        let certain = window.admitted - window.early;
        assert!(certain <= largest, "{certain} in a window with {largest} at most: {window:?}");
    }
    for (threshold, from, to) in phases {
        let steady = windows
            .full()
            .filter(|window| window.start_ns >= from + lag && window.start_ns + second <= to);
        let most = steady.map(|window| window.admitted + window.late).max();
        println!("{threshold} a second: {most:?} in the best window");
        assert!(most >= Some(threshold * 99 / 100), "{threshold} is not used: {:?}", windows.all());
    }
    world.stats_when("whole totals", |stats| {
        stats.total("pass_total") + stats.total("block_total") == report.sent()
    });
    world.assert_nothing_trapped();
}

/// How long each threshold stands, and how long at most until all goes by the new one.
const PHASE: Duration = Duration::from_millis(3500);
const TAKE_UP: Duration = Duration::from_millis(1300);

#[test]
fn a_changed_threshold_keeps_its_window() {
    let server = RuleServer::start().unwrap();
    let long = |threshold: u32| {
        document(
            "FlowRules",
            &[&format!(
                "{{id: long, resource: 'GET:/long', threshold: {threshold}, statIntervalInMs: 60000}}"
            )],
        )
        .to_string()
    };
    server.put("/shop.yaml", &long(20));
    let world = with_shop(&server);
    world.printed("is in force: 1 rules");
    // In all of a window that outlasts the test.
    if clock::wall_nanos() % 60_000_000_000 > 30_000_000_000 {
        wait_for_bucket(Shape::of(60_000));
        clock::pause(Duration::from_millis(500));
    }

    assert_eq!(passed(&world, "/long", 60), 20);
    for (threshold, more) in [(30, 10), (10, 0), (25, 0), (35, 5)] {
        let sets = world.envoy.log_lines("is in force").unwrap().len();
        server.put("/shop.yaml", &long(threshold));
        world.when("the next set", || {
            (world.envoy.log_lines("is in force").unwrap().len() > sets).then_some(())
        });
        assert_eq!(passed(&world, "/long", 60), more, "after a change to {threshold}");
    }
}

/// How many of so many requests pass, each on a connection of its own and so on any worker, asked until a second has passed
/// since the last that did: an idle token of one worker is another's after a tick.
fn passed(world: &World, path: &str, of: u32) -> u32 {
    let mut passed = 0;
    let mut last = clock::now();
    let mut asked = 0;
    while asked < of || clock::now() < last + Duration::from_secs(1) {
        asked += 1;
        if world.get(path).status == 200 {
            passed += 1;
            last = clock::now();
        }
    }
    passed
}

#[test]
fn rules_that_stay_keep_tokens_permits_breakers_values_and_whoever_waits() {
    let server = RuleServer::start().unwrap();
    let stay = [
        document(
            "FlowRules",
            &[
                "{id: tokens, resource: 'GET:/tokens', threshold: 5, statIntervalInMs: 600000}",
                "{id: pace, resource: 'GET:/pace', threshold: 1, statIntervalInMs: 2000, controlBehavior: Throttling, maxQueueingTimeMs: 20000}",
            ],
        ),
        document("IsolationRules", &["{id: permits, resource: 'GET:/permits', threshold: 3}"]),
        document(
            "HotspotRules",
            &[
                "{id: values, resource: 'GET:/values', metricType: QPS, threshold: 2, durationInSec: 600, paramKey: 'header:x-user'}",
            ],
        ),
        document(
            "CircuitBreakerRules",
            &[
                "{id: ill, resource: 'GET:/ill', strategy: ErrorCount, threshold: 1, minRequestAmount: 1, statIntervalMs: 1000, retryTimeoutMs: 600000}",
            ],
        ),
    ];
    // Others come, go and change their place before and behind those.
    let contents = |number: u32| {
        let other = |id: String| {
            let rule = format!("{{id: {id}, resource: 'GET:/{id}', threshold: {number}}}");
            document("FlowRules", &[&rule])
        };
        let mut documents: Vec<Value> = stay.to_vec();
        let turn = usize::try_from(number).unwrap() % documents.len();
        documents.rotate_left(turn);
        documents.insert(turn, other(format!("before-{}", number % 7)));
        documents.push(other(format!("behind-{}", number % 5)));
        documents.iter().fold(String::new(), |all, one| all + &one.to_string() + "\n---\n")
    };
    server.put("/shop.yaml", &contents(0));
    let world = with_shop(&server);
    world.printed("is in force: 7 rules");

    assert_eq!(passed(&world, "/tokens", 20), 5);
    let user = |name| world.client().send("GET", "/values", &[("x-user", name)]).unwrap().status;
    assert_eq!([user("ann"), user("ann"), user("ann")], [200, 200, 429]);
    assert_eq!(world.get("/ill?status=500").status, 500);
    world.becomes("/ill", 503);
    let long: &[_] = &[("x-latency-ms", "60000")];
    let held: Vec<_> = (0..3).map(|_| world.hang("/permits", long)).collect();
    world.when("all three", || (world.upstream.open("GET:/permits").now == 3).then_some(()));
    let mut waiting: Vec<_> = (0..6).map(|_| world.hang("/pace", &[])).collect();
    world.stats_when("five to wait", |stats| stats.total("waiting") == 5);

    let asks = [Ask::get("/free"), Ask::get("/tokens")];
    let (report, ()) = world.while_loading(&asks, Rate::PerSecond(4000), || {
        let version = world.stats().total("rules_version");
        for number in 1..=30 {
            server.put("/shop.yaml", &contents(number));
            clock::pause(Duration::from_millis(250));
            assert_eq!(user("ann"), 429, "after change {number}");
            assert_eq!(world.get("/ill").status, 503, "after change {number}");
            assert_eq!(world.hang("/permits", long).status(PATIENCE).unwrap(), 429);
        }
        world.stats_when("the changes", |stats| stats.total("rules_version") >= version + 25);
        for one in &mut waiting {
            assert_eq!(one.status(Duration::from_secs(15)).unwrap(), 200);
        }
    });

    assert_eq!(report.asks["GET:/tokens"].status(200), 0, "tokens came back");
    let arrivals = world.upstream.take();
    let at: Vec<_> = arrivals["GET:/pace"].iter().map(|arrival| arrival.arrived_ns).collect();
    let first_sent = waiting.iter().map(|one| one.sent_ns()).min().unwrap();
    for (number, arrived) in (0..).zip(&at) {
        let slot = first_sent + number * 2_000_000_000;
        assert!(*arrived >= slot, "number {number} went before its slot: {at:?}");
    }
    let pace: Vec<_> = at.windows(2).map(|two| (two[1] - two[0]) / 1_000_000).collect();
    println!("{pace:?} ms between those that waited");
    assert!(pace.iter().all(|apart| *apart < 3500), "a slot was lost: {pace:?} ms");
    assert_eq!(world.stats().total("pacing_slots_lost"), 0);
    drop(held);
    crate::isolation::assert_exactly(&world, "/permits", 3);
    world.assert_nothing_trapped();
}

#[test]
fn a_removed_rule_releases_whoever_waits_on_it() {
    let server = RuleServer::start().unwrap();
    server.put(
        "/shop.yaml",
        &document("FlowRules", &[
            "{id: slow, resource: 'GET:/slow', threshold: 1, statIntervalInMs: 30000, controlBehavior: Throttling, maxQueueingTimeMs: 600000}",
        ])
        .to_string(),
    );
    let world = with_shop(&server);
    world.printed("is in force: 1 rules");
    let mut waiting: Vec<_> = (0..9).map(|_| world.hang("/slow", &[])).collect();
    world.stats_when("eight to wait", |stats| stats.total("waiting") == 8);
    assert_eq!(world.upstream.arrived("GET:/slow"), 1);

    server.put("/shop.yaml", &flow(&[("other", "/other", 1)]));
    let removed = clock::now();
    let statuses: Vec<_> = waiting.iter_mut().map(|one| one.status(PATIENCE).unwrap()).collect();

    println!("released after {:?}", clock::now() - removed);
    assert_eq!(statuses, [200; 9]);
    world.stats_when("nobody to wait", |stats| {
        stats.total("waiting") == 0 && stats.total("in_flight") == 0
    });
    world.assert_nothing_trapped();
}

#[test]
fn a_thousand_changes_at_full_load_lose_no_count_and_trap_and_leak_nothing() {
    let server = RuleServer::start().unwrap();
    // Each look finds another set. What changes: a threshold, with a rule inserted before it; another at its own pace; ids
    // that come and go, so that ledgers change hands; and what each value may have.
    let limit = |id: &str, path: &str, threshold: u64| json!({"id": id, "resource": format!("GET:{path}"), "threshold": threshold});
    server.put_ever_new("/0.yaml", move |number| {
        let mut rules = vec![limit("a", "/a", 100 + 100 * (number % 2))];
        if number % 4 < 2 {
            rules.insert(0, limit("inserted", "/inserted", 1));
        }
        sentinel_integration::rules::flow_rules(&rules).to_string()
    });
    server.put_ever_new("/1.yaml", move |number| {
        let rules = [limit("b", "/b", 50 + 50 * (number % 3))];
        sentinel_integration::rules::flow_rules(&rules).to_string()
    });
    server.put_ever_new("/2.yaml", move |number| {
        let come_and_go = |turn| limit(&format!("c{}", (number + turn) % 10), "/c", 1000);
        let rules: Vec<_> = (0..5).map(come_and_go).collect();
        sentinel_integration::rules::flow_rules(&rules).to_string()
    });
    server.put_ever_new("/3.yaml", |number| {
        let rule = format!(
            "{{id: d, resource: 'GET:/d', metricType: QPS, threshold: {}, durationInSec: 1, paramKey: 'header:x-user'}}",
            100 + number % 2
        );
        document("HotspotRules", &[&rule]).to_string()
    });
    let sources: Vec<_> = (0..4)
        .map(|number| {
            format!(
                "{{name: source-{number}, http: {{cluster: config, path: /{number}.yaml}}, intervalMs: 100}}"
            )
        })
        .collect();
    let world = Setup::with_rules(&["{id: stays, resource: 'GET:/stays', threshold: 500}"])
        .rule_server(&server)
        .sources(&format!("[{}]", sources.join(", ")))
        .change(&format!("{CONNECTION_MANAGER}/access_log"), json!([]))
        .start();
    world.becomes("/inserted", 200);
    world.printed("rules");

    let asks = ["/a", "/b", "/c", "/stays", "/free"].map(|path| Ask::get(path).weight(2));
    let asks: Vec<_> =
        asks.into_iter().chain([Ask::get("/d").header("x-user", "user-{turn}")]).collect();
    let before = counted(&world);
    let started = clock::now();
    let (report, (memory_early, memory_late)) =
        world.while_loading(&asks, Rate::PerSecond(20_000), || {
            let first = world.stats().total("rules_version");
            let changed = |count: u64| {
                clock::wait_for("the changes", Duration::from_secs(100), || {
                    // A look at all statistics is work of the main thread, which makes the changes.
                    clock::pause(Duration::from_millis(250));
                    Ok((world.stats().total("rules_version") >= first + count).then_some(()))
                })
                .unwrap_or_else(|error| panic!("{error:#}; {server:?}; {world:?}"));
                world.envoy.memory_bytes().unwrap()
            };
            (changed(200), changed(1000))
        });

    println!(
        "1000 changes in {:?} at {} requests a second offered; {} kB at 200 changes, {} kB at 1000",
        clock::now() - started,
        report.rate(),
        memory_early >> 10,
        memory_late >> 10,
    );
    world.stats_when("every request to be counted once", |stats| {
        stats.total("pass_total") + stats.total("block_total") == before + report.sent()
            && stats.total("in_flight") == 0
    });
    let stats = world.stats();
    for (name, seen) in &report.asks {
        assert_eq!(
            seen.status(200) + seen.status(429),
            seen.sent(),
            "{name}: {:?}",
            seen.by_status
        );
        if name != "GET:/free" {
            assert_eq!(stats.resource(name, "block_total"), seen.status(429), "{name}");
        }
    }
    let arrivals = world.upstream.take();
    for (name, largest, smallest) in
        [("GET:/a", 200, 100), ("GET:/b", 150, 50), ("GET:/stays", 500, 495)]
    {
        let windows = Shape::of(1000).count(&arrivals[name], report.span_ns.clone());
        println!("{name}: {} to {} in a window", windows.least().unwrap_or(0), windows.busiest());
        assert!(windows.never_over(largest), "{name}: {:?}", windows.all());
        assert!(windows.busiest() >= smallest, "{name}: {:?}", windows.all());
    }
    assert_eq!(stats.total("rules_rejected"), 0);
    assert_eq!(stats.total("ledger_failures"), 0);
    let grown = memory_late.saturating_sub(memory_early);
    assert!(grown < 12 << 20, "Envoy grew by {grown} bytes over 800 changes");
    world.assert_nothing_trapped();
}

/// All requests that the totals count.
fn counted(world: &World) -> u64 {
    let count = || {
        let stats = world.stats();
        stats.total("pass_total") + stats.total("block_total")
    };
    world.when("quiet", || {
        let first = count();
        clock::pause(Duration::from_millis(100));
        (count() == first).then_some(first)
    })
}

const PATIENCE: Duration = Duration::from_secs(30);
