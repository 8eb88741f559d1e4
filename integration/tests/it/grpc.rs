//! gRPC: calls are resources by their method, refused as gRPC is, judged by their status, and streams are one call each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use sentinel_integration::bootstrap::CONNECTION_MANAGER;
use sentinel_integration::client::Client;
use sentinel_integration::clock;
use sentinel_integration::grpc::{ADD, ADD_ALL, CHAT, Caller, Item, Shop, WATCH};

use crate::world::{self, Setup, World};

#[test]
fn a_blocked_call_is_trailers_only_with_the_status_of_its_block_type() {
    let (shop, world) = start(
        Setup::new()
            .rules("FlowRules", &["{id: flow, resource: /shop.Cart/Add, threshold: 0}"])
            .rules("IsolationRules", &["{id: one, resource: /shop.Cart/Chat, threshold: 1}"])
            .rules(
                "HotspotRules",
                &["{id: hot, resource: /shop.Cart/Hot, metricType: QPS, threshold: 0, durationInSec: 1, paramKey: 'header:content-type'}"],
            )
            .rules(
                "AuthorityRules",
                &["{id: staff, resource: /shop.Cart/Staff, limitApp: trailers, strategy: Black}"],
            )
            .rules(
                "CircuitBreakerRules",
                &["{id: ill, resource: /shop.Cart/Watch, strategy: ErrorCount, threshold: 3, minRequestAmount: 1, statIntervalMs: 20000, retryTimeoutMs: 60000}"],
            ),
    );
    let caller = Caller::connect(world.proxy()).unwrap();
    let _held = caller.chat().unwrap();
    world.when("the breaker to open", || {
        (caller.watch(Item::status(13)).status.message().starts_with("Blocked")).then_some(())
    });
    let arrived = shop.arrived(WATCH);

    let mut client = Client::connect_http2(world.proxy()).unwrap();
    for (method, block_type, rule, code) in [
        (ADD, "FlowControl", "flow", 8),
        (CHAT, "Isolation", "one", 8),
        ("/shop.Cart/Hot", "HotSpotParamFlow", "hot", 8),
        ("/shop.Cart/Staff", "Authority", "staff", 7),
        (WATCH, "CircuitBreaking", "ill", 14),
    ] {
        let message = format!("Blocked by Sentinel: {block_type}");
        let status = caller.add(method, Item::default()).unwrap_err();
        assert_eq!((i32::from(status.code()), status.message()), (code, message.as_str()));
        assert_eq!(status.metadata().get("x-sentinel-rule").unwrap(), rule);

        let headers: &[_] = &[("content-type", "application/grpc"), ("te", "trailers")];
        let answer = client.send("POST", method, headers).unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc")));
        assert_eq!(answer.header("grpc-status"), Some(code.to_string().as_str()), "{answer:?}");
        assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{answer:?}");
    }
    assert_eq!((shop.arrived(ADD), shop.arrived(WATCH)), (0, arrived), "nothing came through");
    world.assert_nothing_trapped();
}

#[test]
fn a_system_rule_refuses_calls_as_unavailable() {
    let (_shop, world) = start(Setup::new().rules(
        "SystemRules",
        &["{id: all, metricType: InboundQPS, triggerCount: 1, strategy: NoAdaptive}"],
    ));
    let caller = Caller::connect(world.proxy()).unwrap();

    let status = world.when("a refusal", || caller.add(ADD, Item::default()).err());

    assert_eq!(i32::from(status.code()), 14);
    assert_eq!(status.message(), "Blocked by Sentinel: System");
}

#[test]
fn grpcurl_sees_the_status_and_reads_the_message() {
    let (_shop, world) =
        start(Setup::with_rules(&["{id: none, resource: /shop.Cart/Add, threshold: 0}"]).rules(
            "AuthorityRules",
            &["{id: staff, resource: /shop.Cart/AddAll, limitApp: trailers, strategy: Black}"],
        ));

    for (method, code) in [("Add", "ResourceExhausted"), ("AddAll", "PermissionDenied")] {
        let (ended_well, said) = grpcurl(world.proxy(), method, r#"{"name": "tea"}"#);
        assert!(!ended_well && said.contains(&format!("Code: {code}")), "{method}: {said}");
        let block_type = if method == "Add" { "FlowControl" } else { "Authority" };
        assert!(said.contains(&format!("Message: Blocked by Sentinel: {block_type}\n")), "{said}");
    }

    // And what is allowed works as it would without Sentinel.
    let (ended_well, said) = grpcurl(world.proxy(), "Watch", r#"{"name": "tea", "count": 2}"#);
    assert!(ended_well && said.matches(r#""name": "tea""#).count() == 2, "{said}");
}

#[test]
fn a_breaker_reads_grpc_status_in_headers_and_in_trailers() {
    let breaker = |id: &str, method: &str, more: &str| {
        format!(
            "{{id: {id}, resource: {method}, statIntervalMs: 60000, retryTimeoutMs: 60000, {more}}}"
        )
    };
    let rules = [
        breaker("headers", ADD, "strategy: ErrorCount, threshold: 5, minRequestAmount: 1"),
        breaker("trailers", WATCH, "strategy: ErrorRatio, threshold: 50, minRequestAmount: 20"),
        breaker(
            "own",
            ADD_ALL,
            "strategy: ErrorCount, threshold: 5, minRequestAmount: 1, grpcErrorStatuses: [5]",
        ),
    ];
    let rules = rules.each_ref().map(String::as_str);
    let (shop, world) = start(Setup::new().rules("CircuitBreakerRules", &rules));
    let caller = Caller::connect(world.proxy()).unwrap();
    let code = |method: &str, item: Item| match method {
        ADD => caller.add(ADD, item).map_or_else(|status| status.code().into(), |_| 0),
        ADD_ALL => caller.add_all(vec![item]).map_or_else(|status| status.code().into(), |_| 0),
        _ => caller.watch(Item { count: 1, ..item }).code(),
    };
    let opened = |rule: &str| world.stats().rule(rule, "breaker_state") == 2;

    begin_a_window();
    // What is no error opens nothing, however often: 5 is none by itself, and 13 is none where the rule says 5.
    for (method, no_error) in [(ADD, 5), (WATCH, 5), (ADD_ALL, 13)] {
        for _ in 0..12 {
            assert_eq!(code(method, Item::status(no_error)), i32::try_from(no_error).unwrap());
        }
    }
    world.stats_when("all to be counted", |stats| {
        stats.total("complete_total") == 36 && stats.total("in_flight") == 0
    });
    clock::pause(Duration::from_millis(300));
    assert!(!opened("headers") && !opened("trailers") && !opened("own"), "{world:?}");

    // Four errors of five, then the fifth; of the ratio, eleven of 23 are less than half, twelve of 24 are not.
    for (rule, method, error, almost) in
        [("headers", ADD, 13, 4), ("trailers", WATCH, 14, 11), ("own", ADD_ALL, 5, 4)]
    {
        for _ in 0..almost {
            assert_eq!(code(method, Item::status(error)), i32::try_from(error).unwrap(), "{rule}");
        }
        clock::pause(Duration::from_millis(300));
        assert_eq!(code(method, Item::status(error)), i32::try_from(error).unwrap(), "{rule}");
        world.stats_when(rule, |stats| stats.rule(rule, "breaker_state") == 2);
        // And one refresh, until every worker knows.
        clock::pause(Duration::from_millis(300));
        let arrived = shop.arrived(method);
        for _ in 0..8 {
            // From another connection each, so from other workers too.
            let status = Caller::connect(world.proxy()).unwrap().add(method, Item::default());
            assert_eq!(status.unwrap_err().message(), "Blocked by Sentinel: CircuitBreaking");
        }
        assert_eq!(shop.arrived(method), arrived, "{rule}: nothing came through");
    }
}

#[test]
fn unary_calls_over_all_workers_are_as_many_as_the_limit() {
    let (shop, world) = start(Setup::with_rules(&[
        "{id: add, resource: /shop.Cart/Add, threshold: 150, statIntervalInMs: 60000}",
    ]));
    let callers: Vec<_> = (0..24).map(|_| Caller::connect(world.proxy()).unwrap()).collect();
    begin_a_window();

    let admitted: u64 = std::thread::scope(|scope| {
        let counts: Vec<_> = callers
            .iter()
            .map(|caller| {
                scope.spawn(move || {
                    (0..20).filter(|_| caller.add(ADD, Item::default()).is_ok()).count()
                })
            })
            .collect();
        counts.into_iter().map(|count| u64::try_from(count.join().unwrap()).unwrap()).sum()
    });

    assert_eq!((admitted, shop.arrived(ADD)), (150, 150), "{world:?}");
    let stats = world.stats_when("all to be counted", |stats| {
        stats.resource(ADD, "pass_total") + stats.resource(ADD, "block_total") == 480
    });
    assert_eq!(stats.resource(ADD, "pass_total"), 150);
    comes_to_rest(&world, ADD);
}

#[test]
fn a_stream_is_one_call_and_holds_its_permit_until_it_ends() {
    for binary in [world::envoy(), world::oldest_envoy()] {
        let setup = Setup::new()
            .rules("IsolationRules", &["{id: three, resource: /shop.Cart/Chat, threshold: 3}"])
            .rules("FlowRules", &["{id: streams, resource: /shop.Cart/Chat, threshold: 1000}"]);
        let (shop, world) = start(Setup { binary, ..setup });
        let callers: Vec<_> = (0..8).map(|_| Caller::connect(world.proxy()).unwrap()).collect();
        let refused = |caller: &Caller| {
            let status = caller.chat().map(drop).unwrap_err();
            assert_eq!(status.message(), "Blocked by Sentinel: Isolation");
        };

        for round in 0..3_u64 {
            // Permits that idle elsewhere are back within a tick.
            let mut chats: Vec<_> =
                (0..3).map(|at| world.when("room", || callers[at].chat().ok())).collect();
            for chat in &mut chats {
                for count in 0..40 {
                    let said = Item { count, ..Item::default() };
                    assert_eq!(chat.say(said.clone()).unwrap(), said);
                }
            }
            callers.iter().for_each(refused);
            assert_eq!(shop.open(CHAT).now, 3);
            // One ends as it should, one is cancelled by its client, one ends with an error of the server.
            let [one, two, mut three]: [_; 3] = chats.try_into().unwrap();
            one.end().unwrap();
            drop(two);
            assert!(three.say(Item::status(13)).is_err());
            let stats = world.stats_when("rest", |stats| {
                stats.resource(CHAT, "complete_total") == 3 * (round + 1)
                    && stats.resource(CHAT, "in_flight") == 0
            });
            assert_eq!(stats.resource(CHAT, "pass_total"), 3 * (round + 1), "a stream is one call");
        }
        assert_eq!(shop.open(CHAT).most, 3);
        world.assert_nothing_trapped();
    }
}

#[test]
fn all_four_kinds_of_methods_are_counted_once_and_come_to_rest() {
    let rules = [ADD, ADD_ALL, WATCH, CHAT]
        .map(|method| format!("{{resource: {method}, threshold: 1000}}"));
    let (_shop, world) = start(Setup::with_rules(&rules.each_ref().map(String::as_str)));
    let caller = Caller::connect(world.proxy()).unwrap();

    for _ in 0..5 {
        caller.add(ADD, Item::default()).unwrap();
        caller.add_all(vec![Item::default(); 10]).unwrap();
        assert_eq!(caller.watch(Item { count: 10, ..Item::default() }).items.len(), 10);
        let mut chat = caller.chat().unwrap();
        chat.say(Item::default()).unwrap();
        chat.end().unwrap();
    }

    for method in [ADD, ADD_ALL, WATCH, CHAT] {
        let stats = world.stats_when(method, |stats| stats.resource(method, "complete_total") == 5);
        assert_eq!(stats.resource(method, "pass_total"), 5, "{method}");
        comes_to_rest(&world, method);
    }
}

fn comes_to_rest(world: &World, method: &str) {
    world.stats_when("nothing in flight", |stats| stats.resource(method, "in_flight") == 0);
}

/// Lets time pass until there is enough left of a window of a minute.
pub(crate) fn begin_a_window() {
    let into = clock::wall_nanos() % 60_000_000_000;
    if into > 50_000_000_000 {
        clock::pause(Duration::from_nanos(60_000_000_000 - into));
    }
}

/// An Envoy before a gRPC server, where a call's resource is its method. Who calls is told by a header that every gRPC client
/// sends: `trailers`.
fn start(setup: Setup) -> (Shop, World) {
    let shop = Shop::start().unwrap();
    let address = shop.address();
    let endpoint = json!({"address": {"socket_address": {
        "address": address.ip().to_string(), "port_value": address.port(),
    }}});
    let world = setup
        .filter("{resource: {from: path}, origin: {header: te}}")
        .change(
            "/static_resources/clusters/0",
            json!({
                "name": "shop",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "load_assignment": {
                    "cluster_name": "shop",
                    "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                },
            }),
        )
        .change(
            &format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0"),
            json!({"name": "shop", "match": {"prefix": "/shop."}, "route": {"cluster": "shop", "timeout": "0s"}}),
        )
        .start();
    (shop, world)
}

/// Whether grpcurl ended well, and what it printed.
pub(crate) fn grpcurl(server: SocketAddr, method: &str, item: &str) -> (bool, String) {
    let protos = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/protos"));
    let output = Command::new(world::grpcurl())
        .args(["-plaintext", "-import-path"])
        .arg(protos)
        .args(["-proto", "shop.proto", "-max-time", "10", "-d", item])
        .args([server.to_string(), format!("shop.Cart/{method}")])
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
