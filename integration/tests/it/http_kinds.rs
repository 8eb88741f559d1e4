//! Every kind of HTTP, and every way in which a request can end: it is counted once, and gives back what it held.

use std::time::Duration;

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio_stream::StreamExt as _;

use sentinel_integration::bootstrap::CONNECTION_MANAGER;
use sentinel_integration::clock;
use sentinel_integration::raw::{DO, HUGE, Raw, RawUpstream};

use crate::isolation::assert_exactly;
use crate::world::{self, Setup, World};

/// One kind of request, and how many requests each run of it makes.
type Kind = (&'static str, u64, fn(&World, &str));

/// So many at a time may run of each kind; each runs once more than that.
const AT_A_TIME: u64 = 4;
const RUNS: u64 = AT_A_TIME + 1;

const KINDS: [Kind; 30] = [
    ("/keep-alive", 3, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        for _ in 0..3 {
            client.write(get(path, "answer").as_bytes()).unwrap();
            answered(&mut client, 200);
        }
    }),
    ("/pipelined", 3, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "answer").repeat(3).as_bytes()).unwrap();
        (0..3).for_each(|_| answered(&mut client, 200));
    }),
    ("/chunked", 1, |world, path| {
        let mut client = post(world, path, "answer", "transfer-encoding: chunked\r\n");
        client.write(b"4\r\nhalf\r\n").unwrap();
        clock::pause(A_WHILE);
        client.write(b"5\r\nwhole\r\n0\r\n\r\n").unwrap();
        assert_eq!(answered_with(&mut client), "9");
    }),
    ("/empty-body", 1, |world, path| {
        let mut client = post(world, path, "answer", "content-length: 0\r\n");
        assert_eq!(answered_with(&mut client), "0");
    }),
    ("/head", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "answer").replace("GET", "HEAD").as_bytes()).unwrap();
        assert_eq!(client.head().unwrap().status(), Some(200));
    }),
    ("/huge-request", 1, |world, path| {
        let mut client = post(world, path, "answer", &format!("content-length: {HUGE}\r\n"));
        let chunk = [b'x'; 65_536];
        (0..HUGE / chunk.len()).for_each(|_| client.write(&chunk).unwrap());
        assert_eq!(answered_with(&mut client), HUGE.to_string());
    }),
    ("/huge-answer", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "huge").as_bytes()).unwrap();
        let head = client.head().unwrap();
        assert_eq!(client.body(&head).unwrap().0, HUGE);
    }),
    ("/trailers", 1, |world, path| {
        let head = "transfer-encoding: chunked\r\nte: trailers\r\ntrailer: x-end\r\n";
        let mut client = post(world, path, "trailers", head);
        client.write(b"4\r\nsaid\r\n0\r\nx-end: both ways\r\n\r\n").unwrap();
        let head = client.head().unwrap();
        assert_eq!(client.body(&head).unwrap(), (4, "both ways".to_owned()));
    }),
    ("/continue", 1, |world, path| {
        let head = "expect: 100-continue\r\ncontent-length: 4\r\n";
        let mut client = post(world, path, "answer", head);
        assert_eq!(client.head().unwrap().status(), Some(100));
        client.write(b"said").unwrap();
        assert_eq!(answered_with(&mut client), "4");
    }),
    ("/websocket", 1, |world, path| {
        let mut client = websocket(world, path);
        client.write(b"to and fro").unwrap();
        assert_eq!(client.exactly(10).unwrap(), b"to and fro");
    }),
    ("/websocket-broken-off", 1, |world, path| {
        websocket(world, path).break_off().unwrap();
    }),
    ("/http2", 1, |world, path| http2(world, path, "answer", Until::Answered)),
    ("/http2-reset-before-the-answer", 1, |world, path| {
        http2(world, path, "never answer", Until::Reset);
    }),
    ("/http2-reset-in-the-request", 1, |world, path| {
        http2(world, path, "answer", Until::ResetInBody);
    }),
    ("/http2-reset-in-the-answer", 1, |world, path| {
        http2(world, path, "half a body", Until::ResetInAnswer);
    }),
    ("/gone-in-headers", 0, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        let whole = get(path, "answer");
        client.write(&whole.as_bytes()[..whole.len() - 10]).unwrap();
        clock::pause(A_WHILE);
        client.break_off().unwrap();
    }),
    ("/gone-before-the-answer", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "never answer").as_bytes()).unwrap();
        clock::pause(A_WHILE);
        client.break_off().unwrap();
    }),
    ("/gone-at-once", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "never answer").as_bytes()).unwrap();
        // In order, or the reset could overtake the request.
        drop(client);
    }),
    ("/gone-in-the-request", 1, |world, path| {
        let mut client = post(world, path, "answer", "content-length: 1000000\r\n");
        client.write(b"not all of it").unwrap();
        clock::pause(A_WHILE);
        client.break_off().unwrap();
    }),
    ("/gone-in-the-answer", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "half a body").as_bytes()).unwrap();
        assert_eq!(client.head().unwrap().status(), Some(200));
        client.break_off().unwrap();
    }),
    ("/gone-in-a-huge-answer", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "huge").as_bytes()).unwrap();
        assert_eq!(client.head().unwrap().status(), Some(200));
        client.break_off().unwrap();
    }),
    ("/gone-while-waiting", AT_A_TIME, |world, path| {
        let all = (0..AT_A_TIME).map(|_| {
            let mut client = Raw::connect(world.proxy()).unwrap();
            client.write(get(path, "never answer").as_bytes()).unwrap();
            client
        });
        let all: Vec<_> = all.collect();
        clock::pause(Duration::from_millis(60));
        all.into_iter().for_each(|client| client.break_off().unwrap());
        world.stats_when("none to be left", |stats| {
            stats.total("waiting") == 0 && stats.resource(path, "in_flight") == 0
        });
    }),
    ("/upstream-resets-at-once", 1, |world, path| {
        upstream_fails(world, path, "reset at once", 503);
    }),
    ("/upstream-resets-in-the-request", 1, |world, path| {
        let mut client = post(world, path, "read some and reset", "content-length: 1000000\r\n");
        client.write(&[b'x'; 1000]).unwrap();
        assert_eq!(client.head().unwrap().status(), Some(503));
    }),
    ("/upstream-resets-after-the-request", 1, |world, path| {
        upstream_fails(world, path, "reset after the body", 503);
    }),
    ("/upstream-resets-in-headers", 1, |world, path| {
        upstream_fails(world, path, "reset in headers", 502);
    }),
    ("/upstream-resets-in-the-answer", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "reset in the body").as_bytes()).unwrap();
        let head = client.head().unwrap();
        assert_eq!(head.status(), Some(200));
        assert!(client.body(&head).is_err(), "half a body must not look whole");
    }),
    ("/retried", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "fail every other").as_bytes()).unwrap();
        answered(&mut client, 200);
    }),
    ("/per-try-timeout", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "hang every other").as_bytes()).unwrap();
        answered(&mut client, 200);
    }),
    ("/route-timeout", 1, |world, path| {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get(path, "never answer").as_bytes()).unwrap();
        answered(&mut client, 504);
    }),
];

#[test]
fn every_request_is_counted_once_and_gives_back_what_it_held_however_it_ends() {
    every_kind(world::envoy());
}

#[test]
fn on_the_oldest_envoy_too() {
    every_kind(world::oldest_envoy());
}

fn every_kind(binary: std::path::PathBuf) {
    let (raw, world) = start(binary, &KINDS.map(|(path, ..)| path));
    for (path, each, run) in KINDS {
        for _ in 0..RUNS {
            run(&world, path);
        }
        at_rest(&world, path, RUNS * each);
        assert_exactly(&world, path, AT_A_TIME);
    }
    // A retry is another try of the same request, and no request more.
    assert_eq!((raw.seen("fail every other"), raw.seen("hang every other")), (2 * RUNS, 2 * RUNS));
    world.assert_nothing_trapped();
}

#[test]
fn an_internal_redirect_is_a_request_of_each_of_its_two_resources() {
    let (_raw, world) = start(world::envoy(), &["/redirecting", "/redirected"]);

    for _ in 0..RUNS {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client.write(get("/redirecting", "redirect once").as_bytes()).unwrap();
        answered(&mut client, 200);
    }

    for path in ["/redirecting", "/redirected"] {
        at_rest(&world, path, RUNS);
        assert_exactly(&world, path, AT_A_TIME);
    }
}

#[test]
fn a_tunnel_is_one_request_until_it_is_closed() {
    // What CONNECT asks for has no path: its authority is its name.
    let (_raw, world) = start_named(world::envoy(), &["shop.example:443"], "authority");
    let open = || {
        let mut client = Raw::connect(world.proxy()).unwrap();
        client
            .write(b"CONNECT shop.example:443 HTTP/1.1\r\nhost: shop.example:443\r\n\r\n")
            .unwrap();
        let status = client.head().unwrap().status();
        (client, status)
    };

    for round in 1..=3 {
        let mut tunnels: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                world.when("a tunnel", || Some(open()).filter(|(_, status)| *status == Some(200)))
            })
            .collect();
        for (tunnel, _) in &mut tunnels {
            tunnel.write(b"RAW to and fro").unwrap();
            assert_eq!(tunnel.exactly(14).unwrap(), b"RAW to and fro");
        }
        assert_eq!(open().1, Some(429));
        for (at, (tunnel, _)) in tunnels.into_iter().enumerate() {
            if at % 2 == 0 { drop(tunnel) } else { tunnel.break_off().unwrap() }
        }
        let stats = world.stats_when("rest", |stats| {
            let value = |name| stats.resource("shop.example:443", name);
            value("complete_total") == round * AT_A_TIME && value("in_flight") == 0
        });
        assert_eq!(stats.resource("shop.example:443", "pass_total"), round * AT_A_TIME);
    }
    world.assert_nothing_trapped();
}

/// So many requests have been asked for, and none is there any more.
#[track_caller]
fn at_rest(world: &World, path: &str, asked: u64) {
    world.stats_when(&format!("{path} at rest after {asked} requests"), |stats| {
        let value = |name| stats.resource(path, name);
        value("pass_total") + value("block_total") == asked
            && value("complete_total") == value("pass_total")
            && value("in_flight") == 0
    });
}

fn start(binary: std::path::PathBuf, paths: &[&str]) -> (RawUpstream, World) {
    start_named(binary, paths, "path")
}

/// An Envoy before an upstream that does what a request says, with the usual one for requests that say nothing.
fn start_named(
    binary: std::path::PathBuf,
    resources: &[&str],
    named_by: &str,
) -> (RawUpstream, World) {
    let raw = RawUpstream::start().unwrap();
    let address = raw.address();
    let rules: Vec<_> = resources
        .iter()
        .map(|resource| {
            format!(
                "{{id: '{}', resource: '{resource}', threshold: {AT_A_TIME}}}",
                resource.trim_start_matches('/')
            )
        })
        .collect();
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    let routes = format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0");
    let asks = json!([{"name": DO, "present_match": true}]);
    let endpoint = json!({"address": {"socket_address": {
        "address": address.ip().to_string(), "port_value": address.port(),
    }}});
    let route = |path: &str, route: serde_json::Value| json!({"name": path, "match": {"prefix": path, "headers": asks}, "route": route});
    let setup = Setup::new()
        .rules("IsolationRules", &rules)
        .rules(
            "FlowRules",
            &["{id: slowly, resource: /gone-while-waiting, threshold: 20, controlBehavior: Throttling, maxQueueingTimeMs: 5000}"],
        )
        .filter(&format!("{{resource: {{from: {named_by}}}}}"))
        .change(
            "/static_resources/clusters/0",
            json!({
                "name": "raw",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}},
                    },
                },
                "load_assignment": {
                    "cluster_name": "raw",
                    "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                },
            }),
        )
        .change(&format!("{CONNECTION_MANAGER}/http_protocol_options"), json!({"enable_trailers": true}))
        .change(&format!("{CONNECTION_MANAGER}/proxy_100_continue"), json!(true))
        .change(
            &format!("{CONNECTION_MANAGER}/upgrade_configs"),
            json!([{"upgrade_type": "websocket"}, {"upgrade_type": "CONNECT"}]),
        )
        .change(&routes, route("/", json!({"cluster": "raw", "timeout": "0s"})))
        .change(&routes, route("/route-timeout", json!({"cluster": "raw", "timeout": "0.1s"})))
        .change(
            &routes,
            route("/retried", json!({"cluster": "raw", "retry_policy": {"retry_on": "5xx", "num_retries": 2}})),
        )
        .change(
            &routes,
            route(
                "/per-try-timeout",
                json!({"cluster": "raw", "retry_policy": {"retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.2s"}}),
            ),
        )
        .change(
            &routes,
            route("/redirecting", json!({"cluster": "raw", "internal_redirect_policy": {}})),
        )
        .change(
            &routes,
            json!({
                "name": "tunnel",
                "match": {"connect_matcher": {}},
                "route": {"cluster": "raw", "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
            }),
        );
    (raw, Setup { binary, ..setup }.start())
}

fn get(path: &str, told: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n{DO}: {told}\r\n\r\n")
}

fn post(world: &World, path: &str, told: &str, headers: &str) -> Raw {
    let mut client = Raw::connect(world.proxy()).unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: shop.example\r\n{DO}: {told}\r\n{headers}\r\n");
    client.write(head.as_bytes()).unwrap();
    client
}

#[track_caller]
fn answered(client: &mut Raw, status: u16) {
    let head = client.head().unwrap();
    assert_eq!(head.status(), Some(status), "{}", head.text);
    client.body(&head).unwrap();
}

/// The body of a good answer, which is a number.
#[track_caller]
fn answered_with(client: &mut Raw) -> String {
    let head = client.head().unwrap();
    assert_eq!(head.status(), Some(200), "{}", head.text);
    let length = head.header("content-length").unwrap().parse().unwrap();
    String::from_utf8(client.exactly(length).unwrap()).unwrap()
}

#[track_caller]
fn upstream_fails(world: &World, path: &str, told: &str, status: u16) {
    let mut client = post(world, path, told, "content-length: 4\r\n");
    client.write(b"said").unwrap();
    assert_eq!(client.head().unwrap().status(), Some(status));
}

#[track_caller]
fn websocket(world: &World, path: &str) -> Raw {
    let mut client = Raw::connect(world.proxy()).unwrap();
    let head = get(path, "upgrade");
    let head = head.trim_end();
    let head = format!("{head}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    client.write(head.as_bytes()).unwrap();
    assert_eq!(client.head().unwrap().status(), Some(101));
    client
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Answered,
    Reset,
    ResetInBody,
    ResetInAnswer,
}

/// One request on an HTTP/2 connection that goes on living while the stream is reset.
fn http2(world: &World, path: &str, told: &str, until: Until) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(world.proxy()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let first = tokio_stream::once(Ok::<_, std::convert::Infallible>(Frame::data(
            Bytes::from_static(b"some"),
        )));
        let rest = if until == Until::ResetInBody { 1 } else { 0 };
        // A body that never ends, or one that has ended.
        let rest = tokio_stream::pending().take(rest);
        let request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://shop.example{path}"))
            .header(DO, told)
            .body(StreamBody::new(first.chain(rest)))
            .unwrap();
        let answer = sender.send_request(request);
        match until {
            Until::Reset | Until::ResetInBody => {
                assert!(tokio::time::timeout(A_WHILE * 3, answer).await.is_err(), "an answer");
            }
            Until::Answered | Until::ResetInAnswer => {
                let mut answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                if until == Until::Answered {
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "4");
                } else {
                    answer.frame().await.unwrap().unwrap();
                }
            }
        }
        // The reset goes out while the connection is driven.
        tokio::time::sleep(A_WHILE).await;
        drop(sender);
    });
}

const A_WHILE: Duration = Duration::from_millis(30);
