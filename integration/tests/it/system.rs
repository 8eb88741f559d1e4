//! System rules: what the whole proxy bears of inbound traffic, whatever is asked for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use sentinel_integration::bootstrap::{Bootstrap, LISTENER, Sentinel, at};
use sentinel_integration::client;
use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate, Until};
use sentinel_integration::upstream::Behaviour;
use sentinel_integration::windows::Arrival;

use crate::exact;
use crate::world::{Setup, World};

#[test]
fn inbound_requests_a_second_are_exact_over_all_resources() {
    let world = Setup::new()
        .rules(
            "SystemRules",
            &["{id: all, metricType: InboundQPS, triggerCount: 400, strategy: NoAdaptive}"],
        )
        .rules("FlowRules", &["{id: small, resource: 'GET:/small', threshold: 10}"])
        .start();
    let asks: Vec<_> = ["/a", "/b", "/small"].map(Ask::get).into();

    let report = world.flood(&asks, 3000, 5);

    let mut all: Vec<Arrival> = world.upstream.take().into_values().flatten().collect();
    all.sort_unstable_by_key(|arrival| arrival.arrived_ns);
    // What the flow rule refused has cost the proxy nothing.
    let answered = [&report.asks["GET:/a"].answered[..], &report.asks["GET:/b"].answered].concat();
    exact::assert_exact(1000, 400, &all, &answered, report.span_ns.clone());
    let asked = &report.asks["GET:/a"];
    assert_eq!(asked.status(200) + asked.status(503), asked.sent(), "{:?}", asked.by_status);
    world.assert_nothing_trapped();
}

#[test]
fn inbound_requests_at_a_time_are_exact_and_outbound_ones_do_not_count() {
    let world = with_outbound_listener(&[
        "{id: at-a-time, metricType: Concurrency, triggerCount: 6, strategy: NoAdaptive}",
    ]);
    let outbound = world.envoy.listener("egress").unwrap();
    world.upstream.behave("GET:/a", Behaviour::default().after_ms(20));

    let report = world.flood(&[Ask::get("/a")], 1500, 4);
    assert_eq!(world.upstream.open("GET:/a").most, 6);
    assert!(report.asks["GET:/a"].by_rule["at-a-time"] > 0);

    // Outbound requests neither count nor are refused.
    let long: &[_] = &[("x-latency-ms", "60000")];
    let held: Vec<_> = (0..20)
        .map(|_| sentinel_integration::hanging::Hanging::get(outbound, "/b", long).unwrap())
        .collect();
    world.when("twenty at once", || (world.upstream.open("GET:/b").now == 20).then_some(()));
    assert_eq!(world.get("/a").status, 200);
    drop(held);
    world.assert_nothing_trapped();
}

#[test]
fn a_slow_proxy_is_relieved_and_a_quick_one_is_not() {
    let world = Setup::new()
        .rules(
            "SystemRules",
            &["{id: slow, metricType: AvgRT, triggerCount: 100, strategy: NoAdaptive}"],
        )
        .start();
    let asks = [Ask::get("/a")];

    let report = world.flood(&asks, 200, 2);
    assert_eq!(report.refused(), 0, "{:?}", report.asks);
    world.upstream.behave("GET:/a", Behaviour::default().after_ms(150));
    let report = world.flood(&asks, 200, 4);
    let refused = report.asks["GET:/a"].by_rule.get("slow").copied().unwrap_or(0);
    assert!(refused * 2 > report.sent(), "{refused} of {} refused", report.sent());
    world.upstream.behave("GET:/a", Behaviour::default());
    world.when("the proxy to be quick again", || {
        let report = world.load(&asks, Rate::PerSecond(100), Until::Sent(50));
        (report.refused() == 0).then_some(())
    });
    world.assert_nothing_trapped();
}

#[test]
fn while_the_processors_are_busy_requests_are_refused_or_kept_to_what_can_be_served() {
    let world = Setup::new()
        .rules(
            "SystemRules",
            &["{id: busy, metricType: CpuUsage, triggerCount: 85, strategy: NoAdaptive}"],
        )
        .start();
    let pressure = || {
        world
            .stats()
            .value("overload.envoy.resource_monitors.cpu_utilization.pressure")
            .unwrap_or(0)
    };
    clock::wait_for(
        "processors that are not busy with other things",
        Duration::from_secs(60),
        || Ok((pressure() < 75 && world.get("/a").status == 200).then_some(())),
    )
    .unwrap();

    while_burning(|| {
        clock::wait_for("a refusal", Duration::from_secs(60), || {
            let answer = world.get("/a");
            Ok((answer.status == 503 && answer.header("x-sentinel-rule") == Some("busy"))
                .then_some(()))
        })
        .unwrap();
        assert!(pressure() > 80, "refused at a pressure of {}", pressure());
    });
    clock::wait_for(
        "processors that are not busy with other things",
        Duration::from_secs(60),
        || Ok((pressure() < 80).then_some(())),
    )
    .unwrap();
    world.when("requests to pass again", || (world.get("/a").status == 200).then_some(()));
    assert!(pressure() < 90, "passes at a pressure of {}", pressure());
    world.assert_nothing_trapped();
}

#[test]
fn with_bbr_a_busy_proxy_still_serves_what_it_has_shown_it_can() {
    let world = Setup::new()
        .rules("SystemRules", &["{id: bbr, metricType: CpuUsage, triggerCount: 50, strategy: BBR}"])
        .start();
    world.upstream.behave("GET:/a", Behaviour::default().after_ms(20));

    while_burning(|| {
        let pressure = "overload.envoy.resource_monitors.cpu_utilization.pressure";
        clock::wait_for("pressure", Duration::from_secs(60), || {
            Ok(world.stats().value(pressure).filter(|pressure| *pressure > 60))
        })
        .unwrap();
        // One at a time always passes.
        clock::pause(Duration::from_millis(1500));
        let one: Vec<_> = (0..20).map(|_| world.get("/a").status).collect();
        assert_eq!(one, [200; 20]);
        // Suddenly far more at a time than were ever completed.
        let slow = [Ask::get("/a").header("x-latency-ms", "300")];
        let report = world.load(&slow, Rate::Max, Until::Elapsed(Duration::from_secs(3)));
        let refused = report.asks["GET:/a"].by_rule.get("bbr").copied().unwrap_or(0);
        assert!(refused > 0, "{:?}", report.asks["GET:/a"].by_status);
        assert!(report.status(200) > 0);
    });
    world.assert_nothing_trapped();
}

/// A second listener, for what the proxy's own services ask of others.
fn with_outbound_listener(system_rules: &[&str]) -> World {
    let mut egress: Value = {
        let sentinel = Sentinel::with_rules(&crate::world::dist(), &[]).unwrap();
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream: ([127, 0, 0, 1], 9).into(),
            sentinel: Some(sentinel),
            console_port: 0,
            access_log: None,
        };
        at(&mut bootstrap.render().unwrap(), LISTENER).unwrap().take()
    };
    egress["name"] = json!("egress");
    egress["traffic_direction"] = json!("OUTBOUND");
    Setup::new()
        .rules("SystemRules", system_rules)
        .change(&format!("{LISTENER}/traffic_direction"), json!("INBOUND"))
        .change("/static_resources/listeners/1", egress)
        .start()
}

/// Runs `body` while every processor of the machine is busy.
fn while_burning(body: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // Also when `body` panics, or the threads would never end.
        let stop = Stop(&done);
        body();
        drop(stop);
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn without_a_cluster_to_ask_a_rule_by_cpu_passes_and_the_log_says_what_to_add() {
    let world = Setup::new()
        .rules(
            "SystemRules",
            &["{id: busy, metricType: CpuUsage, triggerCount: 1, strategy: NoAdaptive}"],
        )
        .without_envoy_stats()
        .start();

    for _ in 0..20 {
        assert_eq!(client::get(world.proxy(), "/a").unwrap().status, 200);
    }
    world.printed("envoystats");
    world.assert_nothing_trapped();
}
