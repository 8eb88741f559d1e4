//! Several Sentinel filters: in one chain they are one to each request, and in several listeners and VMs they share limits
//! and totals.

use std::path::PathBuf;

use serde_json::{Value, json};

use sentinel_integration::bootstrap::{Bootstrap, CONNECTION_MANAGER, Sentinel, at};
use sentinel_integration::client::{self, Client};
use sentinel_integration::clock;

use crate::grpc::begin_a_window;
use crate::world::{self, Setup, World, yaml};

const LIMITED: &str = "{id: ten, resource: 'GET:/ten', threshold: 10, statIntervalInMs: 60000}";
const AT_A_TIME: &str = "{id: three, resource: 'GET:/ten', threshold: 3}";
/// The same of what a second filter may call it.
const BY_ROUTE: &str = "{id: route, resource: default, threshold: 1000, statIntervalInMs: 60000}";

/// How the second filter differs from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// Not at all: one root context is both.
    Same,
    /// By its configuration: two root contexts of one VM.
    OtherRoot,
    /// By its VM's configuration: another VM.
    OtherVm,
}

#[test]
fn a_request_that_passes_two_filters_is_one_request_and_spends_one_token() {
    for binary in [world::envoy(), world::oldest_envoy()] {
        for second in [Second::Same, Second::OtherRoot, Second::OtherVm] {
            let world = chained(&binary, &[second], None).start();

            spends_ten(&world, &format!("{second:?} on {}", binary.display()));
        }
    }
}

#[test]
fn nor_does_it_matter_how_many_there_are_or_what_pauses_between_them() {
    // Each request waits in a fault filter before each filter but the first: others are served meanwhile.
    let many = [Second::Same, Second::OtherVm, Second::OtherRoot, Second::OtherVm];
    for more in [&many[..], &[Second::OtherVm, Second::Same]] {
        let world = chained(&world::envoy(), more, Some("0.05s")).start();

        spends_ten(&world, &format!("{more:?}"));
    }
}

#[test]
fn where_two_filters_name_a_request_otherwise_it_enters_both_resources() {
    for second in [Second::OtherRoot, Second::OtherVm] {
        let filter = filter("{resource: {from: route}}", second);
        let world = rules().change(&format!("{CONNECTION_MANAGER}/http_filters/1"), filter).start();

        let admitted = (0..30).filter(|_| world.get("/ten").status == 200).count();

        assert_eq!(admitted, 10, "{second:?}");
        let stats = world.stats_when("all to be counted", |stats| {
            stats.resource("GET:/ten", "block_total") == 20
                && stats.resource("default", "complete_total") == 10
        });
        for resource in ["GET:/ten", "default"] {
            assert_eq!(stats.resource(resource, "pass_total"), 10, "{second:?}: {resource}");
        }
        world.assert_nothing_trapped();
    }
}

#[test]
fn a_request_that_waits_in_the_first_filter_does_not_wait_again_in_the_second() {
    for second in [Second::Same, Second::OtherVm] {
        let world = chained_with(
            Setup::with_rules(&["{id: slowly, resource: 'GET:/slowly', threshold: 10, controlBehavior: Throttling, maxQueueingTimeMs: 5000}"]),
            &world::envoy(),
            &[second],
            None,
        )
        .start();

        let began = clock::now();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(world.get("/slowly").status, 200));
            }
        });
        let took = clock::now().saturating_duration_since(began).as_millis();

        // Seven slots of 100 ms; twice as many if each were taken twice.
        assert!((690..1200).contains(&took), "{second:?}: {took} ms");
        let stats = world.stats_when("all to be counted", |stats| {
            stats.resource("GET:/slowly", "complete_total") >= 8
        });
        assert_eq!(stats.resource("GET:/slowly", "pass_total"), 8, "{second:?}");
    }
}

#[test]
fn streams_that_share_a_connection_and_a_moment_are_not_taken_for_one() {
    // One worker and one connection: contexts are numbered one after the other, and each finds its neighbour alive.
    let world = chained(&world::envoy(), &[Second::Same], Some("0.05s")).workers(1).start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::connect_http2(world.proxy()).unwrap();
                (0..4).for_each(|_| drop(client.get("/ten").unwrap()));
            });
        }
    });

    let stats = world.stats_when("all to be counted", |stats| {
        stats.resource("GET:/ten", "block_total") + stats.resource("GET:/ten", "pass_total") >= 32
    });
    assert_eq!(
        stats.resource("GET:/ten", "block_total") + stats.resource("GET:/ten", "pass_total"),
        32
    );
}

#[test]
fn listeners_filters_and_vms_of_one_vm_id_share_limits_and_totals() {
    for binary in [world::envoy(), world::oldest_envoy()] {
        // Three listeners: two of one VM with one configuration and another, and one of a VM of its own.
        let mut setup = rules();
        setup.binary.clone_from(&binary);
        let mut ports = Vec::new();
        for second in [Second::Same, Second::OtherRoot, Second::OtherVm] {
            let port = free_port();
            setup = setup.change("/static_resources/listeners/1", listener(port, second));
            ports.push(port);
        }
        let world = setup.start();
        ports.push(world.proxy().port());

        begin_a_window();
        let admitted: usize = std::thread::scope(|scope| {
            let asking: Vec<_> = ports
                .iter()
                .cycle()
                .take(12)
                .map(|port| {
                    let server = ([127, 0, 0, 1], *port).into();
                    scope.spawn(move || {
                        (0..10)
                            .filter(|_| client::get(server, "/ten").unwrap().status == 200)
                            .count()
                    })
                })
                .collect();
            asking.into_iter().map(|asked| asked.join().unwrap()).sum()
        });

        assert!((1..=10).contains(&admitted), "{admitted} of 120 were admitted");
        let stats = world.stats_when("all to be counted", |stats| {
            stats.resource("GET:/ten", "pass_total") + stats.resource("GET:/ten", "block_total")
                == 120
        });
        let passed = u64::try_from(admitted).unwrap();
        assert_eq!(stats.resource("GET:/ten", "pass_total"), passed);
        // The threshold is used up, wherever it is asked for.
        for port in &ports {
            let server = ([127, 0, 0, 1], *port).into();
            assert_eq!(client::get(server, "/ten").unwrap().status, 429, "{}", binary.display());
        }
        world.stats_when("rest", |stats| stats.resource("GET:/ten", "in_flight") == 0);
        world.assert_nothing_trapped();
    }
}

/// Of 30 requests over several connections ten are admitted, each is counted once, and three at a time can be held.
#[track_caller]
fn spends_ten(world: &World, which: &str) {
    begin_a_window();
    let admitted = (0..30).filter(|_| world.get("/ten").status == 200).count();

    assert_eq!(admitted, 10, "{which}; {world:?}");
    let stats = world.stats_when("all to be counted", |stats| {
        stats.resource("GET:/ten", "block_total") >= 20
            && stats.resource("GET:/ten", "complete_total") >= 10
    });
    let counted = |name| stats.resource("GET:/ten", name);
    assert_eq!(
        (counted("pass_total"), counted("block_total"), counted("complete_total")),
        (10, 20, 10),
        "{which}"
    );
    world.stats_when("rest", |stats| stats.resource("GET:/ten", "in_flight") == 0);
    world.assert_nothing_trapped();
}

fn rules() -> Setup {
    Setup::with_rules(&[LIMITED, BY_ROUTE]).rules("IsolationRules", &[AT_A_TIME])
}

fn chained(binary: &PathBuf, more: &[Second], delay: Option<&str>) -> Setup {
    chained_with(rules(), binary, more, delay)
}

/// With these filters behind the one that is always there, and, with a `delay`, one that holds each request up for so
/// long before each of them.
fn chained_with(setup: Setup, binary: &PathBuf, more: &[Second], delay: Option<&str>) -> Setup {
    let place = format!("{CONNECTION_MANAGER}/http_filters/1");
    let mut setup = setup.filter(FILTER);
    setup.binary.clone_from(binary);
    for second in more.iter().rev() {
        setup = setup.change(&place, filter(FILTER, *second));
        if let Some(delay) = delay {
            setup = setup.change(
                &place,
                json!({
                    "name": "fault",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                        "delay": {"fixed_delay": delay, "percentage": {"numerator": 100}},
                    },
                }),
            );
        }
    }
    setup
}

pub(crate) const FILTER: &str = "{resource: {from: method_path}}";

/// One more filter.
pub(crate) fn filter(configuration: &str, second: Second) -> Value {
    let mut configuration = yaml(configuration);
    if second == Second::OtherRoot {
        configuration["exposeRule"] = json!(false);
    }
    let vm = if second == Second::OtherVm { "another" } else { "filter" };
    let text = |text: &str| json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text});
    json!({
        "name": "sentinel",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": "sentinel_filter",
                "failure_policy": "FAIL_RELOAD",
                "reload_config": {"backoff": {"base_interval": "0.1s"}},
                "capability_restriction_config": restriction(),
                "vm_config": {
                    "vm_id": "sentinel",
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": world::dist().join("sentinel_filter.wasm")}},
                    "configuration": text(vm),
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.Struct",
                    "value": configuration,
                },
            },
        },
    })
}

/// What the filter that is always there may do: Envoy 1.40 gives one that may do something else a VM of its own.
fn restriction() -> Value {
    let bootstrap = Bootstrap {
        port: 0,
        admin_port: 0,
        upstream: ([127, 0, 0, 1], 9).into(),
        sentinel: Some(Sentinel::with_rules(&world::dist(), &[]).unwrap()),
        console_port: 0,
        access_log: None,
    };
    let place = format!(
        "{CONNECTION_MANAGER}/http_filters/0/typed_config/config/capability_restriction_config"
    );
    at(&mut bootstrap.render().unwrap(), &place).unwrap().take()
}

/// A listener of its own with one filter.
fn listener(port: u16, second: Second) -> Value {
    json!({
        "name": format!("listener_{port}"),
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": format!("listener_{port}"),
                "route_config": {"virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                }]},
                "http_filters": [
                    filter(FILTER, second),
                    {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
                ],
            },
        }]}],
    })
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
