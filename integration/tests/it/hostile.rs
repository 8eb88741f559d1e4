//! Hostile clients: what they send gains no budget, costs others no more than so many requests would, forges nothing that
//! anybody reads, and reaches nothing but the upstream. `SECURITY.md` says what of this is whose to defend.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use sentinel_integration::bootstrap::CONNECTION_MANAGER;
use sentinel_integration::pacing::Pace;

use crate::several::{FILTER, Second, filter};
use crate::world::{Setup, World};

#[test]
fn floods_of_headers_and_of_long_values_spend_nobody_elses_budget() {
    let world = Setup::new()
        .rules(
            "HotspotRules",
            &[
                "{id: user, resource: 'GET:/home', metricType: QPS, threshold: 5, durationInSec: 3600, paramKey: 'header:x-user'}",
                "{id: page, resource: 'GET:/home', metricType: QPS, threshold: 1000, durationInSec: 3600, paramKey: 'query:page'}",
                "{id: sid, resource: 'GET:/home', metricType: QPS, threshold: 1000, durationInSec: 3600, paramKey: 'cookie:sid'}",
            ],
        )
        // More than Envoy takes by itself, so that all of it comes to the filter; the upstream need not like it.
        .change(
            &format!("{CONNECTION_MANAGER}/common_http_protocol_options"),
            json!({"max_headers_count": 2000}),
        )
        .change(&format!("{CONNECTION_MANAGER}/max_request_headers_kb"), json!(400))
        .start();
    let long = "v".repeat(60_000);
    let many: String = (0..1000).map(|number| format!("x-h{number}: {number}\r\n")).collect();
    let flood = |round: u32| {
        [
            ("/home".to_owned(), many.clone()),
            ("/home".to_owned(), format!("x-user: {round}{long}\r\n")),
            ("/home".to_owned(), format!("x-origin: {long}\r\nx-user: o{round}\r\n")),
            ("/home".to_owned(), format!("cookie: {}; sid={long}\r\n", "a=b; ".repeat(5_000))),
            (format!("/home?page={long}"), String::new()),
            (format!("/home?{}", "page=1&".repeat(8_000)), String::new()),
            (format!("/home/{long}"), String::new()),
        ]
    };
    // Once before memory is looked at: buffers and heaps grow to what one such request takes.
    let warm = flood(0);
    for (path, headers) in &warm {
        answers(&world, &request("GET", path, headers));
    }
    world.stats_when("the first ones", |stats| stats.total("pass_total") == warm.len() as u64);
    let (series, memory) = (world.stats().series().count(), world.envoy.memory_bytes().unwrap());

    let mut sent = warm.len() as u64;
    for round in 1..=60 {
        for (path, headers) in flood(round) {
            let status = answers(&world, &request("GET", &path, &headers));
            assert!(matches!(*status, [200 | 431]), "{status:?}, {path:.20}, {headers:.20}");
            sent += 1;
        }
    }

    let stats = world.stats_when("all to be counted", |stats| {
        stats.total("pass_total") == sent && stats.total("in_flight") == 0
    });
    assert_eq!(stats.total("block_total"), 0);
    let victim =
        (0..20).filter(|_| answers(&world, &request("GET", "/home", "x-user: ann\r\n")) == [200]);
    assert_eq!(victim.count(), 5, "what one user has is his");
    let more = world.stats().series().count() - series;
    // A few more of the one resource that refuses now; the flood has 420 names and 180 values.
    assert!(more <= 30, "{more} more series");
    let grown = world.envoy.memory_bytes().unwrap().saturating_sub(memory);
    assert!(grown < 48 << 20, "Envoy grew by {grown} bytes");
    world.assert_nothing_trapped();
}

#[test]
fn a_thousand_clients_that_take_turns_and_go_away_cost_no_more_than_their_turns() {
    const CLIENTS: usize = 1000;
    let world = Setup::with_rules(&[
        "{id: pace, resource: 'GET:/pace', threshold: 100, controlBehavior: Throttling, maxQueueingTimeMs: 5000}",
    ])
    .start();
    assert_eq!(world.get("/pace").status, 200);
    let memory = world.envoy.memory_bytes().unwrap();

    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| TcpStream::connect(world.proxy()).unwrap()).collect();
    for client in &mut clients {
        client.write_all(request("GET", "/pace", "").as_bytes()).unwrap();
    }
    world.stats_when("all to be decided", |stats| {
        let decided =
            stats.resource("GET:/pace", "pass_total") + stats.resource("GET:/pace", "block_total");
        decided == CLIENTS as u64 + 1
    });
    drop(clients);

    world.stats_when("nobody to wait", |stats| {
        stats.total("waiting") == 0 && stats.total("in_flight") == 0
    });
    // At the latest when the last turn that they had taken has passed, everybody else has his.
    for _ in 0..20 {
        world.when("a turn", || (world.get("/pace").status == 200).then_some(()));
    }
    let arrivals = &world.upstream.take()["GET:/pace"];
    assert_eq!(Pace::of(arrivals, Duration::from_millis(10)).ahead, 0, "{}", arrivals.len());
    let grown = world.envoy.memory_bytes().unwrap().saturating_sub(memory);
    assert!(grown < 100 << 20, "Envoy grew by {grown} bytes");
    world.assert_nothing_trapped();
}

#[test]
fn an_address_is_the_one_that_connects_or_the_one_that_our_proxy_has_seen() {
    let start = |hops: u32| {
        Setup::new()
            .rules(
                "HotspotRules",
                &["{id: ip, resource: 'GET:/ip', metricType: QPS, threshold: 5, durationInSec: 3600, paramKey: client_ip}"],
            )
            .rules(
                "AuthorityRules",
                &["{id: banned, resource: 'GET:/club', limitApp: '127.0.0.1,203.0.113.66', strategy: Black}"],
            )
            .filter("{resource: {from: method_path}, origin: client_ip}")
            .change(&format!("{CONNECTION_MANAGER}/xff_num_trusted_hops"), json!(hops))
            .start()
    };
    let admitted = |world: &World, path: &str, forwarded: &[&str]| {
        let ask = |forwarded: &&str| {
            let headers = format!(
                "x-forwarded-for: {forwarded}\r\nx-real-ip: 9.9.9.9\r\nforwarded: for=9.9.9.9\r\nx-envoy-external-address: 9.9.9.9\r\n"
            );
            answers(world, &request("GET", path, &headers)) == [200]
        };
        forwarded.iter().filter(|forwarded| ask(forwarded)).count()
    };
    const FORGED: [&str; 12] = [
        "203.0.113.1",
        "203.0.113.2",
        "198.51.100.1, 203.0.113.3",
        "2001:db8::1",
        "10.0.0.1",
        "unknown",
        "",
        ",",
        "203.0.113.4:80",
        "1.1.1.1\r\nx-forwarded-for: 2.2.2.2",
        "::ffff:203.0.113.5",
        "999.1.1.1",
    ];

    // Nobody stands before Envoy: whatever a client says, he is who connects.
    let world = start(0);
    assert_eq!(admitted(&world, "/ip", &FORGED), 5);
    assert_eq!(admitted(&world, "/club", &FORGED), 0, "who is banned says that he is another");
    drop(world);

    // A proxy of ours does, and adds who connected to it: what stands before that is the client's own word.
    let world = start(1);
    let by_our_proxy = |client: &str| FORGED.map(|forged| format!("{forged}, {client}"));
    for (client, path, expected) in
        [("203.0.113.7", "/ip", 5), ("203.0.113.8", "/ip", 5), ("203.0.113.66", "/club", 0)]
    {
        let forwarded = by_our_proxy(client);
        let forwarded = forwarded.each_ref().map(String::as_str);
        assert_eq!(admitted(&world, path, &forwarded), expected, "{client}");
    }
    world.assert_nothing_trapped();
}

#[test]
fn sentinels_own_headers_and_marks_are_nobodys_to_forge() {
    let upstream = forging_upstream();
    let world = Setup::with_rules(&[
        "{id: five, resource: 'GET:/five', threshold: 5, statIntervalInMs: 3600000}",
        "{id: none, resource: 'GET:/none', threshold: 0}",
    ])
    .rules(
        "CircuitBreakerRules",
        &["{id: ill, resource: 'GET:/free', strategy: ErrorCount, threshold: 1, minRequestAmount: 1, statIntervalMs: 60000, retryTimeoutMs: 60000}"],
    )
    .change(
        "/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/port_value",
        json!(upstream.port()),
    )
    // Two filters, so that the mark of the first is looked for.
    .filter(FILTER)
    .change(&format!("{CONNECTION_MANAGER}/http_filters/1"), filter(FILTER, Second::OtherVm))
    .start();

    const FORGED: [&str; 6] = [
        "x-sentinel-block: none\r\nx-sentinel-rule: none\r\n",
        "x-sentinel-fault: worker\r\n",
        "x-sentinel-fault: service\r\nx-sentinel-contract: a_missing_key_has_no_value/0/\r\n",
        "wasm.sentinel: GET:/five\r\nsentinel: GET:/five\r\n",
        "x-resource: GET:/free\r\nx-envoy-original-dst-host: 127.0.0.1:9902\r\n",
        "x-http-method-override: POST\r\nx-original-url: /free\r\nx-rewrite-url: /free\r\nx-envoy-original-path: /free\r\n",
    ];
    let asked: Vec<_> = (0..3).flat_map(|_| FORGED).collect();
    let statuses: Vec<_> = asked
        .iter()
        .flat_map(|headers| answers(&world, &request("GET", "/five", headers)))
        .collect();
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(admitted, 5, "{statuses:?}");

    // What an upstream says of Sentinel does not come to a client, and is counted nowhere.
    let said = exchange(&world, &request("GET", "/free", ""));
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("x-upstream: 1"), "{said}");
    assert!(!said.contains("x-sentinel"), "{said}");
    let said = exchange(&world, &request("GET", "/none", ""));
    assert!(said.contains("x-sentinel-block: FlowControl\r\nx-sentinel-rule: none\r\n"), "{said}");
    assert_eq!(said.matches("x-sentinel-block").count(), 1, "{said}");
    let stats = world.stats_when("all to be counted", |stats| {
        stats.resource("GET:/free", "complete_total") == 1
            && stats.resource("GET:/none", "block_total") == 1
    });
    assert_eq!(stats.resource("GET:/free", "block_total"), 0);
    assert_eq!(stats.resource("GET:/five", "pass_total"), 5);
    assert_eq!(stats.rule("ill", "breaker_state"), 0);
    world.assert_nothing_trapped();
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is the resource that it means, and refused.
    Refused,
    /// Envoy does not take it, or sends the client to the path as it should be.
    Sent,
    /// It is another resource: the upstream's path is another, too.
    Another,
}

#[test]
fn no_way_to_write_a_path_leads_past_its_limit() {
    use Fate::{Another, Refused, Sent};
    let world =
        Setup::with_rules(&["{id: none, resource: 'GET:/a/limited', threshold: 0}"]).start();

    for (target, expected) in [
        ("/a/limited", Refused),
        ("/a/limited?q=1", Refused),
        ("http://elsewhere.example/a/limited", Refused),
        ("//a/limited", Refused),
        ("/a//limited", Refused),
        ("/./a/./limited", Refused),
        ("/b/../a/limited", Refused),
        ("/b/%2e%2e/a/limited", Refused),
        ("/b/.%2E/a/limited", Refused),
        ("/a/%6cimited", Refused),
        ("/%61/limited", Refused),
        ("/a\\limited", Refused),
        ("/a%2Flimited", Sent),
        ("/a%5climited", Sent),
        ("/b%2f..%2fa/limited", Sent),
        ("/a/limited%00", Sent),
        ("/a/limited\0", Sent),
        ("/a/limited#f", Sent),
        ("../a/limited", Sent),
        ("a/limited", Sent),
        // What is not the same by the standard is another resource. SECURITY.md says what to do where an upstream takes it
        // for the same.
        ("/a/limited/", Another),
        ("/a/limited;v=1", Another),
        ("/A/Limited", Another),
        ("/a/limited.", Another),
        ("/a/limited%20", Another),
        ("/a/%256cimited", Another),
    ] {
        let _ = world.upstream.take();
        let said = exchange(&world, &request("GET", target, ""));
        let status = statuses_in(&said);
        let arrived = world.upstream.take();
        let fate = match status.as_slice() {
            [429] => Refused,
            [400 | 404 | 307] | [] => Sent,
            [200] => Another,
            _ => panic!("{target:?}: {said}"),
        };
        assert_eq!(fate, expected, "{target:?}: {said}");
        assert_eq!(arrived.len(), usize::from(fate == Another), "{target:?}: {arrived:?}");
        assert!(!arrived.contains_key("GET:/a/limited"), "{target:?}: {arrived:?}");
    }
    // So is another method, HEAD too.
    for method in ["HEAD", "POST", "get", "GET\0"] {
        exchange(&world, &request(method, "/a/limited", ""));
    }
    assert!(!world.upstream.take().contains_key("GET:/a/limited"));
    world.assert_nothing_trapped();
}

#[test]
fn no_way_to_write_a_host_leads_past_its_limit() {
    let world = Setup::with_rules(&["{id: none, resource: shop.example, threshold: 0}"])
        .filter("{resource: {from: authority}}")
        .change(&format!("{CONNECTION_MANAGER}/strip_any_host_port"), json!(true))
        .change(&format!("{CONNECTION_MANAGER}/strip_trailing_host_dot"), json!(true))
        .start();

    for (target, host) in [
        ("/", "shop.example"),
        ("/", "SHOP.Example"),
        ("/", "shop.example:80"),
        ("/", "Shop.Example:8080"),
        ("/", "shop.example."),
        ("/", "shop.example.:443"),
        ("http://shop.example/", "elsewhere.example"),
        ("http://SHOP.EXAMPLE:99/", "elsewhere.example"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(answers(&world, &text), [429], "{target} {host}");
    }
    assert_eq!(world.get("/").status, 200);
    assert_eq!(world.upstream.seen(), 1);
}

#[test]
fn no_request_is_smuggled_past_the_filter_in_the_body_of_another() {
    let world = Setup::with_rules(&["{id: none, resource: 'GET:/limited', threshold: 0}"]).start();
    let inner = "GET /limited HTTP/1.1\r\nhost: a\r\n\r\n";
    let length = inner.len();
    let shapes: Vec<(&str, String)> = vec![
        (
            "both",
            format!(
                "content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
                length + 5
            ),
        ),
        (
            "both, length 0",
            format!("transfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("two lengths", format!("content-length: 0\r\ncontent-length: {length}\r\n\r\n{inner}")),
        ("two lengths in one", format!("content-length: 0, {length}\r\n\r\n{inner}")),
        ("the same length twice", format!("content-length: 0\r\ncontent-length: 0\r\n\r\n{inner}")),
        ("a length with a sign", format!("content-length: +{length}\r\n\r\n{inner}")),
        ("a length below nothing", format!("content-length: -1\r\n\r\n{inner}")),
        ("a length in hex", format!("content-length: 0x10\r\n\r\n{inner}")),
        ("a length of a folded line", format!("content-length:\r\n {length}\r\n\r\n{inner}")),
        (
            "a space before the colon",
            format!("transfer-encoding : chunked\r\ncontent-length: 0\r\n\r\n{inner}"),
        ),
        (
            "an encoding of a folded line",
            format!("transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("another encoding", format!("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("two encodings", format!("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}")),
        (
            "two encodings in two lines",
            format!(
                "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
            ),
        ),
        (
            "a tab before the encoding",
            format!("transfer-encoding:\tchunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("a bare line feed", format!("content-length: {length}\n\n{inner}")),
        ("a bare carriage return", format!("x: y\rcontent-length: {length}\r\n\r\n{inner}")),
        ("a NUL", format!("x: \0\r\ncontent-length: {length}\r\n\r\n{inner}")),
        (
            "a size of a chunk that is too large",
            format!("transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n{inner}"),
        ),
        ("an extension of a chunk", format!("transfer-encoding: chunked\r\n\r\n0;{inner}\r\n\r\n")),
        (
            "a chunk that ends early",
            format!("transfer-encoding: chunked\r\n\r\n2\r\nabX0\r\n\r\n{inner}"),
        ),
        (
            "a trailer",
            format!(
                "transfer-encoding: chunked\r\n\r\n0\r\ntransfer-encoding: chunked\r\nhost: b\r\n\r\n{inner}"
            ),
        ),
        (
            "an upgrade",
            format!(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n{inner}"
            ),
        ),
        (
            "an expectation",
            format!("expect: 100-continue\r\ncontent-length: {length}\r\n\r\n{inner}"),
        ),
        (
            "what hop-by-hop names",
            format!(
                "connection: content-length, x-user\r\ncontent-length: {length}\r\n\r\n{inner}"
            ),
        ),
        ("plain", format!("content-length: {length}\r\n\r\n{inner}")),
        ("behind it", format!("content-length: 0\r\n\r\n{inner}")),
    ];

    // All at once: some connections stay open, and whether anything more comes only a silence tells.
    std::thread::scope(|scope| {
        for (shape, rest) in &shapes {
            for method in ["POST", "GET"] {
                let world = &world;
                scope.spawn(move || {
                    let text = format!("{method} /free HTTP/1.1\r\nhost: a\r\n{rest}");
                    let statuses = answers(world, &text);
                    assert!(
                        statuses.iter().all(|status| matches!(status, 100 | 200 | 400 | 429 | 501)),
                        "{method}, {shape}: {statuses:?}"
                    );
                });
            }
        }
    });

    // The upstream takes requests apart by itself: it saw as many as Sentinel, and none that Sentinel had refused.
    let arrived = world.upstream.take();
    assert!(!arrived.contains_key("GET:/limited"), "{arrived:?}");
    let arrived: u64 = arrived.values().map(|arrivals| arrivals.len() as u64).sum();
    let stats = world.stats_when("all that arrived to be counted", |stats| {
        stats.total("pass_total") >= arrived
            && stats.resource("GET:/limited", "block_total") > 0
            && stats.total("in_flight") == 0
    });
    // Two bodies are malformed, which Envoy finds when it has shown us the head: they may not get there.
    assert!(arrived > 0 && stats.total("pass_total") - arrived <= 4, "{arrived}; {world:?}");
    assert_eq!(stats.resource("GET:/limited", "pass_total"), 0);
    world.assert_nothing_trapped();
}

#[test]
fn no_byte_of_a_client_forges_a_label_a_line_of_a_log_or_a_reply() {
    // The worst case: clients name their resources themselves, and a rule takes every name.
    let world = Setup::with_rules(&["{id: any, resource: '.*', regex: true, threshold: 0}"])
        .filter("{resource: {from: {header: x-resource}}}")
        .start();
    let names: [&[u8]; 11] = [
        b"a.rule.forged.type.Forged.block_total",
        b"quote\"} 1",
        b"\"},{\"rule\":\"forged",
        b"back\\slash\\\"",
        b"a\tb",
        "\u{2028}\u{202e}\u{85}".as_bytes(),
        b"%0Asentinel_forged 1",
        b"${jndi:ldap://x}%REQ(x-user)%",
        b"<script>alert(1)</script>",
        b"\x1b[31mred\x1b[0m",
        b"line\nsentinel_forged 1",
    ];

    let mut refused = 0;
    for name in names {
        let text = [
            b"GET /p%22q%1b HTTP/1.1\r\nhost: a\r\nx-resource: ",
            name,
            b"\r\nconnection: close\r\n\r\n",
        ]
        .concat();
        let said = exchange_bytes(&world, &text);
        let said = String::from_utf8(said).unwrap();
        let status = statuses_in(&said);
        assert!(matches!(*status, [429 | 400]), "{name:?}: {said}");
        if *status == [429] {
            refused += 1;
            let (_, body) = said.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["rule"], "any", "{said}");
            assert_eq!(body.as_object().unwrap().len(), 4, "{said}");
        }
    }
    assert!(refused >= 8, "{refused} of them are names that Envoy lets through");

    world.stats_when("all to be counted", |stats| stats.total("block_total") == refused);
    let prometheus = world.envoy.prometheus().unwrap();
    assert!(!prometheus.contains("forged 1"), "{prometheus}");
    for line in prometheus.lines() {
        assert_is_a_plain_series(line);
    }
    // One line for each request, each with one JSON object that is ours; those that Envoy refused have none.
    world.access_logged("GET /");
    let words = world.when("all to be logged", || {
        let log = world.access_log();
        assert!(log.lines().count() <= names.len(), "{log}");
        let words: Vec<_> =
            log.lines().filter_map(|line| line.find('{').map(|at| line[at..].to_owned())).collect();
        (words.len() as u64 == refused).then_some(words)
    });
    for word in words {
        assert!(word.chars().all(|char| !char.is_control()), "{word:?}");
        let word: Value = serde_json::from_str(&word).unwrap();
        assert_eq!((&word["rule"], &word["blockType"]), (&json!("any"), &json!("FlowControl")));
        assert_eq!(word.as_object().unwrap().len(), 3);
    }
    let printed = world.envoy.log_lines("").unwrap().concat();
    assert!(!printed.contains("forged") && !printed.contains('\x1b'), "{printed}");
    world.assert_nothing_trapped();
}

#[test]
fn the_console_is_out_of_reach_of_who_connects_to_the_proxy() {
    let world = Setup::with_rules(&["{id: hello, resource: 'GET:/hello', threshold: 100}"]).start();
    let console = world.envoy.listener("sentinel_console").unwrap();
    assert!(console.ip().is_loopback());
    let at = |path: &str| format!("http://127.0.0.1:{}{path}", console.port());

    for (target, host) in [
        ("/sentinel/state", "sentinel_console"),
        ("/sentinel/state", "127.0.0.1:9902"),
        (at("/sentinel/state").as_str(), "a"),
        ("/sentinel/../sentinel/state?rule=hello", "a"),
        ("//sentinel/state", "a"),
        ("/sentinel%2fstate", "a"),
        ("/rules/index.yaml", "sentinel_files"),
        ("/stats", "sentinel_admin"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let said = exchange(&world, &text);
        let is_upstreams = said.contains("hello from the upstream");
        assert!(is_upstreams || said.starts_with("HTTP/1.1 307"), "{target}: {said}");
    }
    // Nor do tunnels lead there.
    for text in [
        format!("CONNECT {console} HTTP/1.1\r\nhost: {console}\r\n\r\n"),
        format!("CONNECT {0} HTTP/1.1\r\nhost: {0}\r\n\r\n", world.envoy.admin()),
    ] {
        assert!(!exchange(&world, &text).starts_with("HTTP/1.1 2"), "{text}");
    }
    world.assert_nothing_trapped();
}

/// A series of Prometheus whose labels are ours, with values of nothing but `A-Za-z0-9_:/%-` and dots of numbers.
#[track_caller]
fn assert_is_a_plain_series(line: &str) {
    let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
    assert!(value.parse::<f64>().is_ok(), "{line}");
    let Some((_, labels)) = name.split_once('{') else { return };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{line}"));
        assert!(["resource", "rule", "type", "le"].contains(&name), "{line}");
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_:/%-.+".contains(&byte);
        assert!(value.is_some_and(|value| value.bytes().all(is_plain)), "{line}");
    }
}

/// Answers each connection once, with Sentinel's headers.
fn forging_upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
                        _ => return,
                    }
                }
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\nx-upstream: 1\r\nx-sentinel-block: CircuitBreaking\r\nx-sentinel-rule: ill\r\n\r\n",
                );
            });
        }
    });
    address
}

fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: a\r\n{headers}connection: close\r\n\r\n")
}

/// The statuses of what comes back.
fn answers(world: &World, text: &str) -> Vec<u16> {
    statuses_in(&exchange(world, text))
}

fn exchange(world: &World, text: &str) -> String {
    String::from_utf8_lossy(&exchange_bytes(world, text.as_bytes())).into_owned()
}

/// Sends these very bytes; what comes back until Envoy closes, or has nothing more to say.
fn exchange_bytes(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(world.proxy()).unwrap();
    stream.set_read_timeout(Some(QUIET)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset is how Envoy ends some of them; what it has said before is there.
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn statuses_in(said: &str) -> Vec<u16> {
    said.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// With so long a silence an answer has ended that announces no end: what is sent here is answered at once. Nothing that is
/// refused depends on it, since the upstream and the totals are looked at when all is over.
const QUIET: Duration = Duration::from_secs(3);
