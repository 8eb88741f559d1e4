//! TCP: a connection is one entry, from its beginning to its end, over all workers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sentinel_integration::bootstrap::Configuration;
use sentinel_integration::clock;
use sentinel_integration::envoy::reserved_port;
use sentinel_integration::stats::Stats;
use sentinel_integration::tcp::{self, Heard, Manner, TcpClient, TcpListenerPart, TcpUpstream};

use crate::world::{self, Setup, World, yaml};

/// The one listener of a test and its upstream.
struct Tcp {
    world: World,
    upstream: TcpUpstream,
    server: SocketAddr,
}

/// A test's rules, with this configuration of the filter besides the resource's name, which is `tcp:db`.
fn start(rules: &[(&str, &str)], filter: &str) -> Tcp {
    start_on(world::envoy(), rules, filter)
}

fn start_on(envoy: PathBuf, rules: &[(&str, &str)], filter: &str) -> Tcp {
    let upstream = TcpUpstream::start(0, Manner::Echo).unwrap();
    let mut setup = Setup::new().binary(envoy);
    for (kind, rule) in rules {
        setup = setup.rules(kind, &[*rule]);
    }
    let mut filter = yaml(filter);
    if filter.get("resource").is_none() {
        filter["resource"] = yaml("{name: 'tcp:db'}");
    }
    let part = TcpListenerPart {
        name: "db".to_owned(),
        filter,
        upstream: upstream.address(),
        finds_sni: rules.iter().any(|(_, rule)| rule.contains("sni")),
        own_vm: false,
    };
    let world = setup.tcp(vec![part]).start();
    let server = world.envoy.listener("db").unwrap();
    Tcp { world, upstream, server }
}

impl Tcp {
    fn connect(&self) -> TcpClient {
        TcpClient::connect(self.server).unwrap()
    }

    fn connect_from(&self, last: u8) -> TcpClient {
        TcpClient::connect_from(Ipv4Addr::new(127, 0, 0, last), self.server).unwrap()
    }

    /// Connections until `wanted` were admitted, one after the other; those that were.
    #[track_caller]
    fn fill(&self, wanted: usize) -> Vec<TcpClient> {
        let mut admitted = Vec::new();
        self.world.when("so many connections to be admitted", || {
            let mut client = self.connect();
            if client.is_admitted() {
                admitted.push(client);
            }
            (admitted.len() == wanted).then_some(())
        });
        admitted
    }

    /// Every connection that has come to the upstream was one entry, and each of them has ended.
    #[track_caller]
    fn assert_all_ended(&self) {
        self.world.stats_when("all connections to have ended, as many as came", |stats| {
            let count = |name| stats.resource("tcp:db", name);
            count("in_flight") == 0
                && count("pass_total") == self.upstream.accepted()
                && count("complete_total") == self.upstream.accepted()
        });
        self.world.assert_nothing_trapped();
    }
}

const REPLY: &str = "{replyCluster: sentinel_reply}";

#[track_caller]
fn check_rate(envoy: PathBuf) {
    let tcp = start_on(
        envoy,
        &[("FlowRules", "{id: new, resource: 'tcp:db', threshold: 40, statIntervalInMs: 20000}")],
        "{}",
    );
    // All of it in one window.
    let into = clock::wall_nanos() % 20_000_000_000;
    if into > 8_000_000_000 {
        clock::pause(Duration::from_nanos(20_001_000_000 - into));
    }

    let admitted = tcp.fill(40);
    for _ in 0..60 {
        let mut client = tcp.connect();
        client.send(b"x");
        assert_eq!(client.hear(), Heard::End);
    }

    assert_eq!(tcp.upstream.accepted(), 40, "{:?}", tcp.world);
    drop(admitted);
    tcp.assert_all_ended();
    assert!(tcp.world.stats().rule("new", "block_total") >= 60);
}

#[test]
fn as_many_new_connections_as_the_rule_says_reach_the_upstream_over_all_workers() {
    check_rate(world::envoy());
}

#[test]
fn the_oldest_envoy_holds_the_rate_of_new_connections_too() {
    check_rate(world::oldest_envoy());
}

#[track_caller]
fn check_isolation(envoy: PathBuf) {
    let tcp = start_on(
        envoy,
        &[("IsolationRules", "{id: at-a-time, resource: 'tcp:db', threshold: 10}")],
        REPLY,
    );

    let mut admitted = tcp.fill(10);
    let refused = format!(
        "{}\n",
        r#"{"code":429,"message":"Blocked by Sentinel: Isolation","resource":"tcp:db","rule":"at-a-time"}"#
    );
    for _ in 0..30 {
        assert_eq!(tcp.connect().hear_all(), refused);
    }
    assert_eq!((tcp.upstream.open(), tcp.upstream.accepted()), (10, 10), "{:?}", tcp.world);
    // Neither a refusal nor its reply counts as admitted, and those that are there are unharmed.
    tcp.world.stats_when("what was counted", |stats| {
        stats.resource("tcp:db", "pass_total") == 10
            && stats.total("pass_total") == 10
            && stats.rule("at-a-time", "block_total") >= 30
            && stats.resource("tcp:db", "in_flight") == 10
    });
    assert!(admitted.iter_mut().all(TcpClient::is_admitted));

    // Whoever goes makes room, however he goes.
    admitted.pop().unwrap().vanish().unwrap();
    drop(admitted.pop());
    // The upstream may hear of the next one before it hears that these have gone.
    tcp.world.when("the upstream to see them go", || (tcp.upstream.open() == 8).then_some(()));
    drop(tcp.fill(2));
    assert_eq!(tcp.upstream.most_open(), 10);
    drop(admitted);
    tcp.assert_all_ended();
}

#[test]
fn never_more_connections_at_a_time_than_the_rule_says_and_the_others_are_told_why() {
    check_isolation(world::envoy());
}

#[test]
fn the_oldest_envoy_counts_connections_at_a_time_too() {
    check_isolation(world::oldest_envoy());
}

#[test]
fn a_connection_without_a_configured_name_is_called_by_its_listener_s_port() {
    let tcp = start(
        &[("IsolationRules", "{id: any, resource: 'tcp:[0-9]+', regex: true, threshold: 1}")],
        "{resource: {from: method_path}, replyCluster: sentinel_reply}",
    );

    let _first = tcp.fill(1);

    let name = format!(r#""resource":"tcp:{}""#, tcp.server.port());
    let told = tcp.connect().hear_all();
    assert!(told.contains(&name), "{told}");
}

#[test]
fn a_rule_s_own_words_reach_the_client_byte_for_byte() {
    let tcp = start(
        &[(
            "FlowRules",
            r#"{id: none, resource: 'tcp:db', threshold: 0, response: {body: "-ERR full\r\n"}}"#,
        )],
        REPLY,
    );

    // Whatever it says itself.
    for said in [b"".as_slice(), b"PING\r\n", &[0; 100_000]] {
        let mut client = tcp.connect();
        client.send(said);
        assert_eq!(client.hear(), Heard::Bytes(b"-ERR full\r\n".to_vec()));
    }
    assert_eq!(tcp.upstream.accepted(), 0);
    tcp.world.assert_nothing_trapped();
}

#[test]
fn each_client_address_has_its_own_number_of_connections() {
    let tcp = start(
        &[(
            "HotspotRules",
            "{id: of-each, resource: 'tcp:db', metricType: Concurrency, paramKey: client_ip, threshold: 2}",
        )],
        "{}",
    );

    let mut held = Vec::new();
    for last in [11, 12, 13] {
        for _ in 0..2 {
            let mut client = tcp.connect_from(last);
            assert!(client.is_admitted(), "{:?}", tcp.world);
            held.push(client);
        }
        for _ in 0..10 {
            assert!(!tcp.connect_from(last).is_admitted());
        }
    }
    assert_eq!(tcp.upstream.accepted(), 6);
    drop(held);
    tcp.assert_all_ended();
    assert!(tcp.connect_from(11).is_admitted());
}

#[test]
fn a_filter_chain_is_a_value_like_any_other() {
    let tcp = start(
        &[(
            "HotspotRules",
            "{id: of-chain, resource: 'tcp:db', metricType: Concurrency, paramIndex: 0, threshold: 0, specificItems: [{valKind: KindString, valStr: other, threshold: 9}]}",
        )],
        "{args: [filter_chain]}",
    );
    // The chain of envoy/redis.yaml is called redis, which has none.
    assert!(!tcp.connect().is_admitted());
    assert_eq!(tcp.upstream.accepted(), 0);
}

#[test]
fn each_name_that_tls_clients_ask_for_has_its_own_number_of_connections() {
    let tcp = start(
        &[(
            "HotspotRules",
            "{id: of-name, resource: 'tcp:db', metricType: Concurrency, paramKey: sni, threshold: 1, specificItems: [{valKind: KindString, valStr: a.example, threshold: 2}]}",
        )],
        "{}",
    );
    let mut held = Vec::new();
    for (name, most) in [("a.example", 2), ("b.example", 1)] {
        for nth in 0..5 {
            let hello = client_hello(name);
            let mut client = tcp.connect();
            client.send(&hello);
            let expected = if nth < most { Heard::Bytes(hello) } else { Heard::End };
            assert_eq!(client.hear(), expected, "{name}, {nth}; {:?}", tcp.world);
            held.push(client);
        }
    }
    drop(held);
    tcp.assert_all_ended();
}

/// What a TLS client says first (RFC 8446, 4.1.2): only what it must, and the server's name (RFC 6066, 3).
fn client_hello(name: &str) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let names = sized(&[&[0], &*sized(name.as_bytes())].concat());
    let extensions = sized(&[&[0, 0], &*sized(&names)].concat());
    // Version 1.2, random, no session, one cipher, no compression.
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0xc0, 0x2f, 1, 0]);
    body.extend_from_slice(&extensions);
    let message = [&[1, 0], &*sized(&body)].concat();
    [&[0x16, 3, 1], &*sized(&message)].concat()
}

#[test]
fn clients_of_other_networks_are_refused() {
    let tcp = start(
        &[(
            "AuthorityRules",
            "{id: nets, resource: 'tcp:db', limitApp: '127.0.0.16/28, 2001:db8::/32', strategy: White}",
        )],
        "{origin: client_ip, replyCluster: sentinel_reply}",
    );

    for last in [16, 17, 31] {
        assert!(tcp.connect_from(last).is_admitted(), "127.0.0.{last}; {:?}", tcp.world);
    }
    for last in [1, 15, 32] {
        let told = tcp.connect_from(last).hear_all();
        assert!(told.contains(r#""code":403"#) && told.contains("Authority"), "{told}");
    }
    assert_eq!(tcp.upstream.accepted(), 3);
    tcp.assert_all_ended();
}

#[test]
fn a_network_that_is_none_is_refused_with_its_place() {
    let said = Setup::new()
        .rules("AuthorityRules", &["{id: nets, resource: 'tcp:db', limitApp: '10.0.0.0/33'}"])
        .refused();
    assert!(said.contains("`limitApp` names 10.0.0.0/33, which is no network"), "{said}");
}

#[test]
fn connect_failures_open_a_breaker_and_its_probe_closes_it() {
    let tcp = start(
        &[(
            "CircuitBreakerRules",
            "{id: down, resource: 'tcp:db', strategy: ErrorCount, threshold: 3, statIntervalMs: 10000, retryTimeoutMs: 1000}",
        )],
        REPLY,
    );
    // Well: clients that come and go are no errors, in whatever way.
    for _ in 0..5 {
        assert!(tcp.connect().is_admitted());
        let mut client = tcp.connect();
        assert!(client.is_admitted());
        client.vanish().unwrap();
    }
    let Tcp { world, upstream, server } = tcp;
    let port = upstream.address().port();
    drop(upstream);
    assert_eq!(
        world
            .stats_when("ends", |stats| stats.resource("tcp:db", "complete_total") == 10)
            .resource("tcp:db", "error_total"),
        0
    );

    world.when("the breaker to refuse", || {
        let told = TcpClient::connect(server).unwrap().hear_all();
        told.contains("CircuitBreaking").then_some(())
    });
    let failed = |world: &World| world.stats().value("cluster.db.upstream_cx_connect_fail");
    let before = failed(&world);
    assert!(before >= Some(3), "{before:?}");
    for _ in 0..10 {
        TcpClient::connect(server).unwrap().hear_all();
    }
    assert!(failed(&world) <= before.map(|before| before + 1), "the upstream was touched");

    let _again = clock::wait_for("the port", Duration::from_secs(5), || {
        Ok(TcpUpstream::start(port, Manner::Echo).ok())
    })
    .unwrap();
    world.when("the breaker to close", || {
        (0..world::IN_A_ROW)
            .all(|_| TcpClient::connect(server).unwrap().is_admitted())
            .then_some(())
    });
    world.assert_nothing_trapped();
}

#[test]
fn resets_of_the_upstream_open_a_breaker_and_closing_in_order_does_not() {
    let tcp = start(
        &[(
            "CircuitBreakerRules",
            "{id: resets, resource: 'tcp:db', strategy: ErrorCount, threshold: 3, statIntervalMs: 10000, retryTimeoutMs: 60000}",
        )],
        REPLY,
    );
    tcp.upstream.behave(Manner::Close);
    for _ in 0..10 {
        let mut client = tcp.connect();
        assert!(client.is_admitted());
        assert_eq!(client.hear(), Heard::End);
    }
    tcp.upstream.behave(Manner::Reset);
    for _ in 0..3 {
        let mut client = tcp.connect();
        assert!(client.is_admitted());
        assert_eq!(client.hear(), Heard::End);
    }
    tcp.world.when("the breaker to refuse", || {
        tcp.connect().hear_all().contains("CircuitBreaking").then_some(())
    });
    tcp.assert_all_ended();
    assert!(tcp.world.stats().resource("tcp:db", "error_total") >= 3);
}

#[test]
fn connections_that_last_too_long_open_a_breaker() {
    let tcp = start(
        &[(
            "CircuitBreakerRules",
            "{id: long, resource: 'tcp:db', strategy: SlowRequestRatio, threshold: 50, maxAllowedRtMs: 100, minRequestAmount: 4, statIntervalMs: 10000, retryTimeoutMs: 60000}",
        )],
        REPLY,
    );
    drop(tcp.fill(4));
    tcp.assert_all_ended();
    let long = tcp.fill(8);
    clock::pause(Duration::from_millis(150));
    drop(long);
    tcp.world.when("the breaker to refuse", || {
        tcp.connect().hear_all().contains("CircuitBreaking").then_some(())
    });
    tcp.assert_all_ended();
}

#[test]
fn a_breaker_that_opens_tells_and_closes_live_connections_where_the_rule_asks_for_it() {
    for (asks, closes) in [(true, true), (false, false)] {
        let rule = format!(
            "{{id: trip, resource: 'tcp:db', strategy: ErrorCount, threshold: 1, statIntervalMs: 10000, retryTimeoutMs: 60000, closeLiveConnections: {asks}}}"
        );
        let tcp = start(&[("CircuitBreakerRules", &rule)], "{}");
        tcp.upstream.behave(Manner::Talk);
        let mut live: Vec<_> = (0..8).map(|_| tcp.connect()).collect();
        for client in &mut live {
            assert!(client.hear().text().starts_with("tick"));
        }
        tcp.upstream.behave(Manner::Reset);
        assert!(tcp.connect().is_admitted());
        tcp.world
            .stats_when("the breaker to open", |stats| stats.rule("trip", "breaker_state") == 2);

        for client in &mut live {
            if closes {
                let told = client.hear_all();
                let rest = told.replace("tick", "");
                assert_eq!(
                    rest,
                    format!(
                        "{}\n",
                        r#"{"code":503,"message":"Blocked by Sentinel: CircuitBreaking","resource":"tcp:db","rule":"trip"}"#
                    ),
                    "{:?}",
                    tcp.world
                );
                assert!(told.ends_with("}\n"), "the message is the last word: {told}");
            } else {
                assert!(client.hear().text().starts_with("tick"));
            }
        }
        drop(live);
        tcp.assert_all_ended();
    }
}

#[test]
fn connections_go_one_after_the_other_and_who_would_wait_too_long_is_refused() {
    let tcp = start(
        &[(
            "FlowRules",
            "{id: pace, resource: 'tcp:db', threshold: 5, controlBehavior: Throttling, maxQueueingTimeMs: 1100}",
        )],
        REPLY,
    );
    // Each speaks at once: Envoy takes that for a reason to go on.
    let mut clients: Vec<_> = (0..12).map(|_| tcp.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(b"x"));
    let heard: Vec<_> = clients.iter_mut().map(|client| client.hear().text()).collect();
    let admitted = heard.iter().filter(|text| *text == "x").count();
    let told = heard.iter().filter(|text| text.contains("FlowControl")).count();

    // One at once and five that wait 200 to 1,000 ms.
    assert_eq!((admitted, told), (6, 6), "{heard:?}; {:?}", tcp.world);
    let arrivals = tcp.upstream.arrivals();
    let mut late = Vec::new();
    for (nth, at) in (0..).zip(&arrivals) {
        // The first may have been seen late itself.
        let after_ms = (at - arrivals[0]) / 1_000_000 + 100;
        assert!(after_ms >= nth * 200, "{nth}: after {after_ms} ms");
        late.push(after_ms - nth * 200);
    }
    late.sort_unstable();
    assert!(late[late.len() / 2] < 350, "late by {late:?} ms");
    drop(clients);
    tcp.assert_all_ended();
}

#[test]
fn a_client_that_goes_while_it_waits_leaves_nothing_behind() {
    let tcp = start(
        &[
            (
                "FlowRules",
                "{id: pace, resource: 'tcp:db', threshold: 4, controlBehavior: Throttling, maxQueueingTimeMs: 3000}",
            ),
            ("IsolationRules", "{id: at-a-time, resource: 'tcp:db', threshold: 9}"),
        ],
        "{}",
    );
    let mut clients: Vec<_> = (0..9).map(|_| tcp.connect()).collect();
    clients[8].send(b"x");
    // All but the last one go, each in its own way, while they wait.
    let mut last = clients.pop().unwrap();
    for (nth, client) in clients.into_iter().enumerate() {
        if nth % 2 == 0 { client.vanish().unwrap() } else { drop(client) }
    }
    assert_eq!(last.hear(), Heard::Bytes(b"x".to_vec()));
    drop(last);
    tcp.world.stats_when("all to have ended", |stats| {
        stats.resource("tcp:db", "complete_total") == 9
            && stats.resource("tcp:db", "in_flight") == 0
            && stats.total("waiting") == 0
    });
    // And so did their permits.
    assert_eq!(tcp.fill(9).len(), 9);
    tcp.world.assert_nothing_trapped();
}

#[test]
fn a_cold_resource_admits_a_third_of_its_connections() {
    let tcp = start(
        &[(
            "FlowRules",
            "{id: cold, resource: 'tcp:db', threshold: 90, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 60}",
        )],
        "{}",
    );
    world::begin_a_second();
    let second = clock::wall_nanos() / 1_000_000_000;
    let mut held = Vec::new();
    // What one worker has in hand another cannot spend before the next tick: they ask on.
    while clock::wall_nanos() / 1_000_000_000 == second {
        let mut client = tcp.connect();
        if client.is_admitted() {
            held.push(client);
        }
        clock::pause(Duration::from_millis(4));
        if clock::wall_nanos() % 1_000_000_000 > 900_000_000 {
            break;
        }
    }
    assert!((29..=31).contains(&held.len()), "{}; {:?}", held.len(), tcp.world);
}

#[test]
fn every_byte_of_admitted_connections_is_counted_by_resource_and_for_the_proxy() {
    let tcp =
        start(&[("IsolationRules", "{id: at-a-time, resource: 'tcp:db', threshold: 3}")], REPLY);
    let mut held = tcp.fill(3);
    assert!(!tcp.connect().hear_all().is_empty());
    for (client, size) in held.iter_mut().zip([1, 70_000, 1_000_000]) {
        let data = vec![7; size];
        let mut back = 0;
        for piece in data.chunks(1_000) {
            client.send(piece);
            while let Heard::Bytes(bytes) = client.hear() {
                back += bytes.len();
                if back % 1_000 == 0 || back == size {
                    break;
                }
            }
        }
        assert_eq!(back, size);
    }
    drop(held);
    tcp.assert_all_ended();
    let stats = tcp.world.stats();
    assert_eq!(tcp.upstream.bytes(), (1_070_004, 1_070_004));
    for name in ["bytes_up_total", "bytes_down_total"] {
        assert_eq!(stats.resource("tcp:db", name), 1_070_004, "{name}");
        assert_eq!(stats.total(name), 1_070_004, "{name}");
    }
}

#[test]
fn http_and_tcp_share_a_limit_in_one_vm() {
    check_shared(world::envoy(), false);
}

#[test]
fn http_and_tcp_share_a_limit_in_vms_of_their_own() {
    check_shared(world::envoy(), true);
}

#[test]
fn in_the_oldest_envoy_too_http_and_tcp_share_a_limit() {
    for own_vm in [false, true] {
        check_shared(world::oldest_envoy(), own_vm);
    }
}

#[track_caller]
fn check_shared(envoy: PathBuf, own_vm: bool) {
    let upstream = TcpUpstream::start(0, Manner::Echo).unwrap();
    let part = TcpListenerPart {
        name: "db".to_owned(),
        filter: yaml("{resource: {name: shared}, replyCluster: sentinel_reply}"),
        upstream: upstream.address(),
        finds_sni: false,
        own_vm,
    };
    let world = Setup::new()
        .binary(envoy)
        .filter("{resource: {from: {header: x-name}}}")
        .rules("IsolationRules", &["{id: both, resource: shared, threshold: 1}"])
        .tcp(vec![part])
        .start();
    let server = world.envoy.listener("db").unwrap();

    let mut held = TcpClient::connect(server).unwrap();
    assert!(held.is_admitted());
    let status = |name| world.client().send("GET", "/", &[("x-name", name)]).unwrap().status;
    assert_eq!((status("shared"), status("free")), (429, 200));
    drop(held);
    world.when("room for a request", || (status("shared") == 200).then_some(()));
    // One list of totals: the connection and the request were admitted, whatever VM has seen them.
    world.stats_when("both in the totals of the resource", |stats| {
        stats.resource("shared", "pass_total") == 2 && stats.resource("shared", "in_flight") == 0
    });
    world.assert_nothing_trapped();
}

/// Redis as users have it: what `envoy/redis.yaml` is for.
#[test]
fn redis_is_unharmed_and_its_connections_are_limited() {
    let directory = tempfile::tempdir().unwrap();
    let (reserved, port) = reserved_port().unwrap();
    drop(reserved);
    let _redis = Redis::start(port, directory.path());
    let shipped = tcp::shipped().unwrap();
    let place = "/bootstrap_extensions/0/typed_config/config/configuration/value";
    let service = shipped.pointer(place).unwrap().as_str().unwrap().to_owned();
    let redis = shipped["static_resources"]["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .find(|listener| listener["name"] == "redis")
        .unwrap();
    let place = "/filter_chains/0/filters/0/typed_config/config/configuration/value";
    let part = TcpListenerPart {
        name: "redis".to_owned(),
        filter: redis.pointer(place).unwrap().clone(),
        upstream: ([127, 0, 0, 1], port).into(),
        finds_sni: false,
        own_vm: false,
    };
    let world = Setup::new().service(Some(Configuration::Text(service))).tcp(vec![part]).start();
    let server = world.envoy.listener("redis").unwrap();

    // Commands go through as they are, over four workers. Before its next command the benchmark connects anew, while its
    // last connections may still be ending: twice as many must fit under the limits.
    let said = benchmark(
        server,
        &["-c", "25", "-n", "20000", "-P", "4", "-t", "set,get,lpush,lrange_100"],
    );
    assert!(
        !said.to_lowercase().contains("error") && said.contains("SET") && said.contains("LRANGE"),
        "{said}"
    );
    let ended = |stats: &Stats| {
        stats.resource("tcp:redis", "in_flight") == 0
            && stats.resource("tcp:redis", "pass_total") > 0
            && stats.resource("tcp:redis", "pass_total")
                == stats.resource("tcp:redis", "complete_total")
    };
    let stats = world.stats_when("all connections to have ended", ended);
    assert_eq!(stats.resource("tcp:redis", "block_total"), 0, "{world:?}");
    // What Envoy itself has counted between it and the clients.
    for (ours, envoys) in [
        ("bytes_up_total", "tcp.redis.downstream_cx_rx_bytes_total"),
        ("bytes_down_total", "tcp.redis.downstream_cx_tx_bytes_total"),
    ] {
        assert_eq!(Some(stats.resource("tcp:redis", ours)), stats.value(envoys), "{ours}");
        assert!(stats.resource("tcp:redis", ours) > 1_000_000, "{ours}");
    }

    // 60 for one address, 64 for all: exactly so many, and the others are told in Redis's own words.
    let mut held = Vec::new();
    for (last, wanted, told) in [
        (1, 60, "-ERR max number of connections of your address reached\r\n"),
        (2, 4, "-ERR max number of clients reached\r\n"),
    ] {
        let connect = || TcpClient::connect_from(Ipv4Addr::new(127, 0, 0, last), server).unwrap();
        for _ in 0..wanted {
            let mut client = connect();
            client.send(b"PING\r\n");
            assert_eq!(client.hear().text(), "+PONG\r\n", "{world:?}");
            held.push(client);
        }
        for _ in 0..20 {
            let mut client = connect();
            client.send(b"PING\r\n");
            assert_eq!(client.hear().text(), told);
        }
    }
    let stats =
        world.stats_when("what is held", |stats| stats.resource("tcp:redis", "in_flight") == 64);
    assert_eq!(stats.resource("tcp:redis", "block_total"), 40);
    assert_eq!(stats.value("cluster.redis.upstream_cx_active"), Some(64));
    for client in &mut held {
        client.send(b"PING\r\n");
        assert_eq!(client.hear().text(), "+PONG\r\n");
    }
    drop(held);
    world.stats_when("all connections to have ended", ended);
    world.assert_nothing_trapped();
}

/// A Redis of Debian's, which `cargo xtask test` installs. Killed when dropped.
struct Redis(Child);

impl Redis {
    fn start(port: u16, directory: &Path) -> Self {
        let redis = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "no", "--daemonize", "no"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("redis-server: {error}: run `cargo xtask test`, which installs it")
            });
        let redis = Self(redis);
        clock::wait_for("Redis", Duration::from_secs(10), || {
            Ok(TcpClient::connect(([127, 0, 0, 1], port).into()).ok())
        })
        .unwrap();
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Either may fail only because it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn benchmark(server: SocketAddr, arguments: &[&str]) -> String {
    let ran = Command::new("redis-benchmark")
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "-q"])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
    assert!(ran.status.success(), "{said}");
    said
}
