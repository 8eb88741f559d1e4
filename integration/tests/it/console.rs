//! The console: what the filter says is in force, against what the upstream and the clients have seen.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use sentinel_cli::top::{gather, render};
use sentinel_integration::client;
use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate, Until};
use sentinel_integration::upstream::Behaviour;

use crate::service::trap_the_service;
use crate::world::{Setup, World};

fn console(world: &World) -> SocketAddr {
    world.envoy.listener("sentinel_console").unwrap()
}

/// All that the console says; of one rule, if it is named.
fn state(console: SocketAddr, rule: Option<&str>) -> Value {
    gather("/sentinel", rule, &mut |path| {
        let answer = client::get(console, path)?;
        Ok((answer.status, answer.body))
    })
    .unwrap_or_else(|error| panic!("{error:#}"))
}

fn rule(world: &World, id: &str) -> Value {
    state(console(world), Some(id))["rules"][0].clone()
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {of}"))
}

/// An hour is one window, so that a test is in one unless the hour ends.
const IN_AN_HOUR: &str = "statIntervalInMs: 3600000";

fn begin_in_the_middle_of_an_hour() {
    let left = 3_600_000_000_000 - clock::wall_nanos() % 3_600_000_000_000;
    if left < 60_000_000_000 {
        clock::pause(Duration::from_nanos(left));
    }
}

#[test]
fn the_console_says_what_the_upstream_has_seen_while_four_workers_serve() {
    begin_in_the_middle_of_an_hour();
    let world = Setup::with_rules(&[
        &format!("{{id: wide, resource: 'GET:/wide', threshold: 50000, {IN_AN_HOUR}}}"),
        &format!("{{id: tight, resource: 'GET:/tight', threshold: 300, {IN_AN_HOUR}}}"),
    ])
    .rules("IsolationRules", &["{id: few, resource: 'GET:/few', threshold: 8}"])
    .rules(
        "CircuitBreakerRules",
        &["{id: ill, resource: 'GET:/ill', strategy: ErrorCount, threshold: 5, minRequestAmount: 1, statIntervalMs: 1000, retryTimeoutMs: 60000}"],
    )
    .start();
    let console = console(&world);
    assert_eq!(state(console, None)["workers"], json!([]), "nobody has asked for anything yet");

    // Looked at all the time: what is granted only grows, and it and what is left are the threshold.
    let over = AtomicBool::new(false);
    let (sent, looks) = thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let rule = state(console, Some("wide"))["rules"][0].clone();
                looks.push((number(&rule, "granted"), number(&rule, "left")));
                clock::pause(Duration::from_millis(10));
            }
            looks
        });
        let asks = [Ask::get("/wide"), Ask::get("/tight")];
        let report =
            world.load(&asks, Rate::PerSecond(4_000), Until::Elapsed(Duration::from_secs(3)));
        over.store(true, Ordering::Relaxed);
        (report, looks.join().unwrap())
    });
    assert!(looks.len() > 20, "{} looks", looks.len());
    assert!(looks.iter().all(|(granted, left)| granted + left == 50_000), "{looks:?}");

    let (wide, tight) = (sent.asks["GET:/wide"].status(200), sent.asks["GET:/tight"].status(200));
    assert_eq!(tight, 300);
    assert_eq!(world.upstream.arrived("GET:/wide"), usize::try_from(wide).unwrap());
    // What a worker has in hand and does not need goes back with its next ticks.
    world.when("all that is granted to be spent", || {
        let granted = number(&rule(&world, "wide"), "granted");
        assert!(granted >= wide, "{granted} granted, {wide} arrived; {world:?}");
        (granted == wide).then_some(())
    });
    let tight = rule(&world, "tight");
    assert_eq!((number(&tight, "granted"), number(&tight, "left")), (300, 0));
    assert_eq!(looks.iter().map(|look| look.0).max().map(|most| most <= wide + 2_000), Some(true));

    // Permits: as many as are open at the upstream, and their holders are workers.
    let held: Vec<_> = (0..6).map(|_| world.hang("/few", &[("x-latency-ms", "60000")])).collect();
    world.when("six to arrive", || (world.upstream.open("GET:/few").now == 6).then_some(()));
    let few = world
        .when("six permits", || Some(rule(&world, "few")).filter(|few| number(few, "held") == 6));
    let by = few["heldBy"].as_array().unwrap();
    assert_eq!(by.iter().map(|holder| number(holder, "permits")).sum::<u64>(), 6, "{few}");
    let whole = state(console, None);
    let workers: Vec<_> =
        whole["workers"].as_array().unwrap().iter().map(|worker| &worker["worker"]).collect();
    assert!(by.iter().all(|holder| workers.contains(&&holder["worker"])), "{few} {workers:?}");
    drop(held);
    world.when("none", || (number(&rule(&world, "few"), "held") == 0).then_some(()));

    // A breaker.
    assert_eq!(rule(&world, "ill")["state"], json!("Closed"));
    world.upstream.behave("GET:/ill", Behaviour::status(500));
    world.load(&[Ask::get("/ill")], Rate::PerSecond(200), Until::Sent(100));
    let ill = world.when("it to open", || {
        Some(rule(&world, "ill")).filter(|ill| ill["state"] == json!("Open"))
    });
    assert!((40_000..=60_000).contains(&number(&ill, "retryInMs")), "{ill}");

    let whole = world.when("all workers to be seen alive under the set", || {
        let whole = state(console, None);
        let at_it = |worker: &Value| {
            worker["alive"] == json!(true) && worker["rulesVersion"] == whole["ruleSet"]["version"]
        };
        let workers = whole["workers"].as_array().unwrap();
        (workers.len() == 4 && workers.iter().all(at_it)).then(|| whole.clone())
    });
    let text = render(&whole, None, 40);
    println!("{text}");
    assert!(text.contains("4 workers"), "{text}");
    for part in ["300 of 300", "used up", "Open, probe in", "8 at a time"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    world.assert_nothing_trapped();
}

#[test]
fn the_console_is_nowhere_but_where_it_is_configured_and_is_no_resource_there() {
    let world = Setup::with_rules(&[
        "{id: mine, resource: 'GET:/sentinel/state', threshold: 1000}",
        "{id: none, resource: 'GET:/none', threshold: 0}",
    ])
    .start();
    let console = console(&world);
    for path in ["/sentinel/state", "/sentinel/state?rule=mine", "/sentinel/other"] {
        client::get(console, path).unwrap();
    }
    let quiet = world.stats();
    assert_eq!(quiet.total("pass_total") + quiet.total("workers"), 0, "looking is no traffic");
    let answer = client::get(console, "/sentinel/state").unwrap();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(client::get(console, "/sentinel/other").unwrap().status, 404);

    // On the ordinary listener the path is one like any other.
    let plain = world.get("/sentinel/state");
    assert_eq!((plain.status, world.upstream.arrived("GET:/sentinel/state")), (200, 1));
    assert!(!plain.body.contains("ruleSet"), "{plain:?}");
    world.stats_when("one to be counted", |stats| {
        stats.resource("GET:/sentinel/state", "pass_total") == 1 && stats.total("pass_total") == 1
    });

    // And everything else on the console's listener is governed as usual.
    assert_eq!(client::get(console, "/none").unwrap().status, 429);
    assert_eq!(client::get(console, "/elsewhere").unwrap().status, 404);
    for _ in 0..100 {
        assert_eq!(client::get(console, "/sentinel/state").unwrap().status, 200);
    }
    world.stats_when("the two, and nothing else", |stats| {
        stats.total("block_total") == 1 && stats.total("pass_total") == 2
    });
    clock::pause(Duration::from_millis(100));
    assert_eq!(world.stats().total("pass_total"), 2);
    world.assert_nothing_trapped();
}

#[test]
fn the_console_answers_while_the_service_is_dead() {
    begin_in_the_middle_of_an_hour();
    let hello = format!("{{id: hello, resource: 'GET:/hello', threshold: 100, {IN_AN_HOUR}}}");
    let mut setup = Setup::with_rules(&[&hello]).with_faults();
    setup.revived = false;
    let world = setup.start();
    let console = console(&world);
    world.when("the service", || {
        (state(console, None)["service"]["alive"] == json!(true)).then_some(())
    });

    trap_the_service(&world);
    let report = world.load(&[Ask::get("/hello")], Rate::PerSecond(1_000), Until::Sent(500));

    assert_eq!(report.status(200), 100);
    let silent = world.when("the service to be seen silent", || {
        Some(state(console, None)).filter(|state| state["service"]["alive"] == json!(false))
    });
    assert!(number(&silent["service"], "heartbeatAgeMs") > 3_000, "{silent}");
    assert_eq!(number(&silent["rules"][0], "granted"), 100);
    assert!(render(&silent, None, 40).contains("SILENT"));
}

#[test]
fn without_a_service_the_console_says_so() {
    let world = Setup::new().service(None).start();
    let nothing = state(console(&world), None);
    assert_eq!((&nothing["ruleSet"], &nothing["service"]), (&Value::Null, &Value::Null));
    assert_eq!(world.get("/x").status, 200);
    let text = world.when("a worker", || {
        Some(render(&state(console(&world), None), None, 40))
            .filter(|text| !text.contains("0 workers"))
    });
    assert!(text.starts_with("no rule set; no service\n1 workers"), "{text}");
}
