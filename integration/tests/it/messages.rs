//! Messages of streams: gRPC and WebSocket, counted one by one by the filter that reads streams, and what becomes of one
//! that is too many.
//!
//! The upstream cuts what arrives into messages by itself, so that what it writes down is what has been let through.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use sentinel_integration::bootstrap::{CAPABILITIES, CONNECTION_MANAGER};
use sentinel_integration::clock;
use sentinel_integration::rule_server::RuleServer;
use sentinel_integration::stats::Stats;
use sentinel_integration::windows::{self, Shape};

use crate::sources::shop;
use crate::world::{self, Setup, World};

const CHAT: &str = "POST:/chat.Chat/Talk";

#[test]
fn of_messages_of_many_streams_on_four_workers_just_as_many_go_as_the_limit_says() {
    check_exact(Setup::new());
}

#[test]
fn the_oldest_envoy_counts_messages_as_the_newest_does() {
    let mut setup = Setup::new();
    setup.binary = world::oldest_envoy();
    check_exact(setup);
}

fn check_exact(setup: Setup) {
    const LIMIT: u64 = 200;
    let server = Server::start();
    // A window longer than the test, that the sum over all windows is the limit.
    let world = reading(setup, server.address)
        .rules("FlowRules", &[&format!(
            "{{id: talk, resource: '{CHAT}', threshold: {LIMIT}, statIntervalInMs: 600000, unit: message}}"
        )])
        .start();

    let refused = server.runtime.block_on(async {
        let mut talkers = Vec::new();
        for _ in 0..16 {
            let connection = connect(world.proxy()).await;
            talkers.push(tokio::spawn(async move {
                let mut refused = 0_u32;
                while refused < 3 {
                    let mut call = Call::open(&connection, &[]).await;
                    for size in 0.. {
                        call.send(message(size % 70));
                        if call.is_over_within(Duration::from_millis(2)).await {
                            break;
                        }
                    }
                    assert_eq!(call.end().await, End::Status("8".to_owned()));
                    refused += 1;
                }
                refused
            }));
        }
        let mut refused = 0;
        for talker in talkers {
            refused += talker.await.unwrap();
        }
        refused
    });

    let admitted = server.arrived(CHAT).len() as u64;
    println!("{admitted} messages went, of a limit of {LIMIT}; {refused} streams were ended");
    assert_eq!(admitted, LIMIT, "{world:?}");
    let stats = world.stats_when("all messages to be counted", |stats| {
        // Refused are whole chunks, and more than one message may be in one.
        stats.resource(CHAT, "message_pass_total") == LIMIT
            && stats.resource(CHAT, "message_block_total") >= u64::from(refused)
            && all_ended(stats, CHAT)
    });
    assert_eq!(stats.resource(CHAT, "pass_total"), u64::from(refused), "requests, not messages");
    assert_eq!(stats.total("block_total"), 0, "requests, not messages");
    world.assert_nothing_trapped();
}

#[test]
fn in_every_window_of_a_second_no_more_messages_go_than_the_limit_says_and_hardly_fewer() {
    const LIMIT: u64 = 100;
    let server = Server::start();
    let world = reading(Setup::new(), server.address)
        .rules(
            "FlowRules",
            &[&format!("{{id: talk, resource: '{CHAT}', threshold: {LIMIT}, unit: message}}")],
        )
        .start();

    let start = clock::wall_nanos();
    let started = clock::now();
    server.runtime.block_on(async {
        let mut talkers = Vec::new();
        for _ in 0..8 {
            let connection = connect(world.proxy()).await;
            talkers.push(tokio::spawn(async move {
                while started.elapsed() < Duration::from_secs(5) {
                    let mut call = Call::open(&connection, &[]).await;
                    while started.elapsed() < Duration::from_secs(5) {
                        call.send(message(16));
                        if call.is_over_within(Duration::from_millis(4)).await {
                            break;
                        }
                    }
                    call.close();
                    call.end().await;
                }
            }));
        }
        for talker in talkers {
            talker.await.unwrap();
        }
    });

    let arrivals: Vec<_> = server.arrived(CHAT).iter().map(|arrival| arrival.wall).collect();
    let windows = Shape::of(1_000).count(&arrivals, start..start + 5_000_000_000);
    println!(
        "{} in all; {} in the busiest window, {} certainly; {:?} in the emptiest",
        arrivals.len(),
        windows.busiest(),
        windows.busiest_certain(),
        windows.least_possible()
    );
    assert!(windows.busiest_certain() <= LIMIT, "{:?}", windows.all());
    assert!(windows.least_possible() >= Some(LIMIT * 99 / 100), "{:?}", windows.all());
    world.stats_when("all to be counted", |stats| {
        stats.resource(CHAT, "message_pass_total") == arrivals.len() as u64
            && all_ended(stats, CHAT)
    });
    world.assert_nothing_trapped();
}

#[test]
fn a_rule_that_comes_while_a_stream_is_open_counts_its_messages_from_then_on() {
    let server = Server::start();
    let rules = RuleServer::start().unwrap();
    let rule = |unit: &str| {
        world::document("FlowRules", &[&format!(
            "{{id: talk, resource: '{CHAT}', threshold: 3, statIntervalInMs: 600000, unit: {unit}}}"
        )])
        .to_string()
    };
    rules.put("/shop.yaml", &rule("request"));
    let world =
        reading(Setup::new(), server.address).rule_server(&rules).sources(&shop("")).start();

    let (mut call, _connection) = server.runtime.block_on(async {
        let connection = connect(world.proxy()).await;
        let mut call = Call::open(&connection, &[("x-answer", "at once")]).await;
        call.head().await;
        call.send(message(9).repeat(7));
        server.wait_for(CHAT, 7).await;
        (call, connection)
    });
    // The first one is from before the source was asked; the gauge lags a second.
    let settled = world.stats_when("the first rules to be in force everywhere", |stats| {
        stats.total("rules_version") >= 2
    });
    let version = settled.total("rules_version");
    rules.put("/shop.yaml", &rule("message"));
    world.stats_when("the rule of messages to be in force", |stats| {
        stats.total("rules_version") > version
    });
    server.runtime.block_on(async {
        for sent in 8..=10 {
            call.send(message(9));
            server.wait_for(CHAT, sent).await;
        }
        call.send(message(9));
        assert_eq!(call.end().await, End::Reset);
    });
    assert_eq!(server.arrived(CHAT).len(), 10);
    world.assert_nothing_trapped();
}

#[test]
fn a_client_that_goes_away_while_its_message_is_held_is_forgotten() {
    let server = Server::start();
    let world = reading(Setup::new(), server.address)
        .rules("FlowRules", &[&format!(
            "{{id: talk, resource: '{CHAT}', threshold: 1, statIntervalInMs: 2000, controlBehavior: Throttling, maxQueueingTimeMs: 9000, unit: message}}"
        )])
        .start();

    let (mut first, leaving, _connection) = server.runtime.block_on(async {
        let connection = connect(world.proxy()).await;
        let mut first = Call::open(&connection, &[]).await;
        first.send(message(9));
        server.wait_for(CHAT, 1).await;
        let mut leaving = Call::open(&connection, &[]).await;
        leaving.send(message(9));
        (first, leaving, connection)
    });
    world.stats_when("one to wait", |stats| stats.total("waiting") == 1);
    leaving.response.abort();
    drop(leaving);
    world.stats_when("nobody to wait", |stats| {
        stats.total("waiting") == 0
            && stats.resource(CHAT, "in_flight") == 1
            && stats.resource(CHAT, "complete_total") == 1
    });
    clock::pause(Duration::from_millis(2_500));
    server.runtime.block_on(async {
        first.close();
        assert_eq!(first.end().await, End::Status("0".to_owned()));
    });
    assert_eq!(server.arrived(CHAT).len(), 1, "what was held went on");
    world.stats_when("all to be counted", |stats| all_ended(stats, CHAT));
    world.assert_nothing_trapped();
}

#[test]
fn a_refused_message_ends_the_stream_by_a_reply_before_the_response_and_by_a_reset_after_it() {
    let server = Server::start();
    let world = reading(Setup::new(), server.address)
        .rules("FlowRules", &[&format!(
            "{{id: talk, resource: '{CHAT}', threshold: 2, statIntervalInMs: 600000, unit: message}}"
        )])
        .start();

    server.runtime.block_on(async {
        let connection = connect(world.proxy()).await;
        let mut answered = Call::open(&connection, &[("x-answer", "at once")]).await;
        let head = answered.head().await;
        assert_eq!(head.status(), 200);
        answered.send(message(10));
        answered.send(message(10));
        server.wait_for(CHAT, 2).await;
        answered.send(message(10));
        assert_eq!(answered.end().await, End::Reset);

        let mut silent = Call::open(&connection, &[]).await;
        silent.send(message(0));
        let head = silent.head().await;
        let header = |name: &str| head.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((head.status().as_u16(), header("grpc-status")), (200, "8".to_owned()));
        assert_eq!(header("grpc-message"), "Blocked by Sentinel: FlowControl");
        assert_eq!(
            (header("x-sentinel-block"), header("x-sentinel-rule")),
            ("FlowControl".to_owned(), "talk".to_owned())
        );
    });

    assert_eq!(server.arrived(CHAT).len(), 2, "nothing of a refused message goes on");
    world.stats_when("both refusals to be counted", |stats| {
        stats.resource(CHAT, "message_block_total") == 2
            && stats.resource(CHAT, "message_reset_total") == 1
            && all_ended(stats, CHAT)
            && stats.resource(CHAT, "complete_total") == 2
    });
    assert!(world.access_logged("sentinel_FlowControl_talk").contains("chat.Chat"));
    world.assert_nothing_trapped();
}

#[test]
fn a_paced_stream_is_held_and_nothing_of_it_arrives_before_its_time() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let server = Server::start();
    let world = reading(Setup::new(), server.address)
        .rules("FlowRules", &[&format!(
            "{{id: talk, resource: '{CHAT}', threshold: 10, controlBehavior: Throttling, maxQueueingTimeMs: 3000, unit: message}}"
        )])
        .start();

    let started = clock::now();
    server.runtime.block_on(async {
        let mut calls = Vec::new();
        for _ in 0..4 {
            let connection = connect(world.proxy()).await;
            calls.push((Call::open(&connection, &[]).await, connection));
        }
        for number in 0..3 {
            for (call, _) in &mut calls {
                // Three at once in the first chunk of each.
                let chunk = if number == 0 { message(20).repeat(3) } else { message(20) };
                call.send(chunk);
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        server.wait_for(CHAT, 20).await;
        for (call, _) in &mut calls {
            call.close();
            assert_eq!(call.end().await, End::Status("0".to_owned()));
        }
    });

    let arrived = server.arrived(CHAT);
    for (number, arrival) in (0..).zip(&arrived) {
        let elapsed = arrival.at - started;
        assert!(elapsed >= INTERVAL * number, "message {number} came after {elapsed:?}");
    }
    let last = arrived[19].at - started;
    println!("the last of 20 came after {last:?}");
    assert!(last < INTERVAL * 19 + Duration::from_millis(300), "{last:?}");
    world.stats_when("nobody to wait", |stats| {
        stats.total("waiting") == 0
            && stats.resource(CHAT, "message_pass_total") == 20
            && all_ended(stats, CHAT)
    });
    world.assert_nothing_trapped();
}

#[test]
fn a_message_of_sixteen_megabytes_counts_as_one_and_so_does_one_that_comes_byte_by_byte() {
    let server = Server::start();
    let world = reading(Setup::new(), server.address)
        .rules("FlowRules", &[&format!(
            "{{id: talk, resource: '{CHAT}', threshold: 3, statIntervalInMs: 600000, unit: message}}"
        )])
        .start();

    server.runtime.block_on(async {
        let connection = connect(world.proxy()).await;
        let mut call = Call::open(&connection, &[]).await;
        call.send(message(16 << 20));
        server.wait_for(CHAT, 1).await;
        for byte in message(30) {
            call.send(vec![byte]);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        call.send(message(0));
        server.wait_for(CHAT, 3).await;
        call.send(message(0));
        assert_eq!(call.end().await, End::Status("8".to_owned()));
    });

    let sizes: Vec<_> = server.arrived(CHAT).iter().map(|arrival| arrival.size).collect();
    assert_eq!(sizes, [16 << 20, 30, 0]);
    world.stats_when("all to be counted", |stats| {
        stats.resource(CHAT, "message_pass_total") == 3
            && stats.resource(CHAT, "message_block_total") == 1
            && all_ended(stats, CHAT)
    });
    world.assert_nothing_trapped();
}

#[test]
fn each_caller_has_messages_of_its_own_where_a_rule_counts_by_a_header() {
    let server = Server::start();
    let world = reading(Setup::new(), server.address)
        .rules("HotspotRules", &[&format!(
            "{{id: user, resource: '{CHAT}', metricType: QPS, threshold: 4, durationInSec: 600, paramKey: 'header:x-user', unit: message}}"
        )])
        .start();

    server.runtime.block_on(async {
        for user in ["ann", "bob", "ann"] {
            let connection = connect(world.proxy()).await;
            let mut call = Call::open(&connection, &[("x-user", user)]).await;
            for _ in 0..6 {
                call.send(message(5));
                if call.is_over_within(Duration::from_millis(30)).await {
                    break;
                }
            }
            assert_eq!(call.end().await, End::Status("8".to_owned()));
        }
    });

    assert_eq!(server.arrived(CHAT).len(), 8);
    world.stats_when("all to be counted", |stats| {
        stats.resource(CHAT, "message_pass_total") == 8 && all_ended(stats, CHAT)
    });
}

#[test]
fn the_filter_that_does_not_read_streams_counts_no_messages() {
    let server = Server::start();
    let mut setup = reading(Setup::new(), server.address);
    setup.changes.retain(|(place, _)| !place.ends_with("filename"));
    let world = setup
        .rules(
            "FlowRules",
            &[&format!("{{id: talk, resource: '{CHAT}', threshold: 0, unit: message}}")],
        )
        .start();

    server.runtime.block_on(async {
        let connection = connect(world.proxy()).await;
        let mut call = Call::open(&connection, &[]).await;
        call.send(message(1).repeat(5));
        server.wait_for(CHAT, 5).await;
        call.close();
        assert_eq!(call.end().await, End::Status("0".to_owned()));
    });
    assert!(world.stats().series().all(|(series, _)| !series.name.contains("message_")));
}

#[test]
fn a_web_socket_s_frames_count_and_its_pings_do_not() {
    const SOCKET: &str = "GET:/socket";
    let sockets = Sockets::start();
    let world = with_module(Setup::new(), sockets.address)
        .change(
            &format!("{CONNECTION_MANAGER}/upgrade_configs"),
            json!([{"upgrade_type": "websocket"}]),
        )
        .rules("FlowRules", &[&format!(
            "{{id: frames, resource: '{SOCKET}', threshold: 5, statIntervalInMs: 600000, unit: message}}"
        )])
        .start();

    let mut client = upgraded(&world);
    let text = [0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    client.write_all(&text).unwrap();
    for byte in text {
        client.write_all(&[byte]).unwrap();
        clock::pause(Duration::from_millis(2));
    }
    // In three parts: the first, one that continues it and the last.
    for first in [0x01, 0x00, 0x80] {
        let mut frame = vec![first, 0xfe, 0xff, 0xff, 0, 0, 0, 0];
        frame.resize(8 + 0xffff, 7);
        client.write_all(&frame).unwrap();
        client.write_all(&ping).unwrap();
    }
    world.when("five frames", || (sockets.data() == 5).then_some(()));
    client.write_all(&ping).unwrap();
    world.when("a ping", || (sockets.pings() == 4).then_some(()));
    client.write_all(&text).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut rest = Vec::new();
    let ended = client.read_to_end(&mut rest);
    assert!(
        !matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "still open"
    );
    assert_eq!((sockets.data(), sockets.pings()), (5, 4), "a refused frame does not go on");
    world.stats_when("all to be counted", |stats| {
        stats.resource(SOCKET, "message_pass_total") == 5
            && stats.resource(SOCKET, "message_block_total") == 1
            && stats.resource(SOCKET, "message_reset_total") == 1
            && all_ended(stats, SOCKET)
    });
    world.assert_nothing_trapped();
}

/// Whether every request of a resource has ended, and nobody counts as being there.
fn all_ended(stats: &Stats, resource: &str) -> bool {
    let passed = stats.resource(resource, "pass_total");
    passed > 0
        && stats.resource(resource, "complete_total") == passed
        && stats.resource(resource, "in_flight") == 0
}

/// With the filter that reads streams, and requests going to `upstream`.
fn with_module(setup: Setup, upstream: SocketAddr) -> Setup {
    let module = setup.dist.join("sentinel_filter_messages.wasm");
    setup
        .change(
            &format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config/vm_config/code/local/filename"),
            json!(module),
        )
        .change(
            &format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config{CAPABILITIES}/proxy_on_request_body"),
            json!({}),
        )
        .change(
            "/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/port_value",
            json!(upstream.port()),
        )
}

/// The same over HTTP/2.
fn reading(setup: Setup, upstream: SocketAddr) -> Setup {
    with_module(setup, upstream).change(
        "/static_resources/clusters/0/typed_extension_protocol_options",
        json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }}),
    )
}

/// A gRPC message of so many bytes, which says when it was sent if there is room.
fn message(size: u32) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(size.to_be_bytes());
    if size >= 8 {
        bytes.extend(clock::wall_nanos().to_be_bytes());
    }
    bytes.resize(5 + size as usize, b'x');
    bytes
}

#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Instant,
    size: usize,
    wall: windows::Arrival,
}

/// A server of gRPC that writes messages down. It answers when the client has sent all, or at once where that is asked for.
struct Server {
    address: SocketAddr,
    runtime: Runtime,
    seen: Arc<Mutex<Vec<(String, Arrival)>>>,
}

impl Server {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let notes = Arc::clone(&seen);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                let service = service_fn(move |request| answer(request, Arc::clone(&notes)));
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, runtime, seen }
    }

    fn arrived(&self, name: &str) -> Vec<Arrival> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(of, _)| of == name).map(|(_, arrival)| *arrival).collect()
    }

    async fn wait_for(&self, name: &str, count: usize) {
        let started = clock::now();
        while self.arrived(name).len() < count {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{} of {count}",
                self.arrived(name).len()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<(String, Arrival)>>>,
) -> hyper::Result<Response<Outgoing>> {
    let (send, body) = Outgoing::new();
    let at_once = request.headers().contains_key("x-answer");
    let name = format!("{}:{}", request.method(), request.uri().path());
    let listening = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
            while let Some(head) = bytes.get(..5) {
                let size = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
                if bytes.len() < 5 + size {
                    break;
                }
                let message: Vec<u8> = bytes.drain(..5 + size).collect();
                let sent =
                    message.get(5..13).map(|stamp| u64::from_be_bytes(stamp.try_into().unwrap()));
                let arrived_ns = clock::wall_nanos();
                let wall = windows::Arrival { sent_ns: sent.unwrap_or(arrived_ns), arrived_ns };
                let arrival = Arrival { at: clock::now(), size, wall };
                seen.lock().unwrap().push((name.clone(), arrival));
            }
        }
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        // Fails where the client has gone.
        let _ = send.send(Frame::trailers(trailers));
    });
    if !at_once {
        // Fails only if the task panics, which its client learns of by the missing trailers.
        let _ = listening.await;
    }
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

/// A body that is sent piece by piece.
struct Outgoing(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Outgoing {
    fn new() -> (mpsc::UnboundedSender<Frame<Bytes>>, Self) {
        let (send, receive) = mpsc::unbounded_channel();
        (send, Self(receive))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

async fn connect(proxy: SocketAddr) -> SendRequest<Outgoing> {
    let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    send
}

/// How a call ended.
#[derive(Debug, PartialEq)]
enum End {
    /// With this `grpc-status`, in trailers or in a response that has nothing else.
    Status(String),
    /// The stream was reset.
    Reset,
}

/// A call whose messages are sent one by one.
struct Call {
    send: Option<mpsc::UnboundedSender<Frame<Bytes>>>,
    response: tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>,
    body: Option<Incoming>,
}

impl Call {
    async fn open(connection: &SendRequest<Outgoing>, headers: &[(&str, &str)]) -> Self {
        let (send, body) = Outgoing::new();
        let mut request = Request::post("http://chat/chat.Chat/Talk")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut connection = connection.clone();
        connection.ready().await.unwrap();
        let response = connection.send_request(request.body(body).unwrap());
        Self { send: Some(send), response: tokio::spawn(response), body: None }
    }

    fn send(&mut self, bytes: Vec<u8>) {
        if let Some(send) = &self.send {
            // Fails where the stream has ended already.
            let _ = send.send(Frame::data(bytes.into()));
        }
    }

    fn close(&mut self) {
        self.send = None;
    }

    /// Waits for so long, or until the response is there.
    async fn is_over_within(&mut self, time: Duration) -> bool {
        tokio::time::sleep(time).await;
        self.response.is_finished()
    }

    async fn head(&mut self) -> Response<()> {
        let response = tokio::time::timeout(PATIENCE, &mut self.response).await.unwrap();
        let (parts, body) = response.unwrap().unwrap().into_parts();
        self.body = Some(body);
        Response::from_parts(parts, ())
    }

    async fn end(&mut self) -> End {
        let mut headers = HeaderMap::new();
        if self.body.is_none() {
            let response =
                tokio::time::timeout(PATIENCE, &mut self.response).await.unwrap().unwrap();
            let Ok(response) = response else { return End::Reset };
            headers = response.headers().clone();
            self.body = Some(response.into_body());
        }
        let body = self.body.take().unwrap();
        match tokio::time::timeout(PATIENCE, body.collect()).await.unwrap() {
            Err(_) => End::Reset,
            Ok(body) => {
                let trailers = body.trailers().unwrap_or(&headers);
                End::Status(trailers["grpc-status"].to_str().unwrap().to_owned())
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A server of WebSockets that counts frames of data and pings.
struct Sockets {
    address: SocketAddr,
    counts: Arc<Mutex<(u64, u64)>>,
}

impl Sockets {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Mutex::new((0, 0)));
        let notes = Arc::clone(&counts);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let notes = Arc::clone(&notes);
                std::thread::spawn(move || listen(stream, &notes));
            }
        });
        Self { address, counts }
    }

    fn data(&self) -> u64 {
        self.counts.lock().unwrap().0
    }

    fn pings(&self) -> u64 {
        self.counts.lock().unwrap().1
    }
}

/// Reads frames until the client has gone.
fn listen(mut stream: TcpStream, counts: &Mutex<(u64, u64)>) -> Option<()> {
    read_head(&mut stream)?;
    stream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
        .ok()?;
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head).ok()?;
        let mut length = u64::from(head[1] & 0x7f);
        if length == 126 {
            let mut two = [0; 2];
            stream.read_exact(&mut two).ok()?;
            length = u64::from(u16::from_be_bytes(two));
        }
        let mut rest = vec![0; 4 + usize::try_from(length).unwrap()];
        stream.read_exact(&mut rest).ok()?;
        let mut counts = counts.lock().unwrap();
        if head[0] & 8 == 0 {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
    }
}

fn upgraded(world: &World) -> TcpStream {
    let mut client = TcpStream::connect(world.proxy()).unwrap();
    client.set_nodelay(true).unwrap();
    client
        .write_all(
            b"GET /socket HTTP/1.1\r\nhost: chat\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
              sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n",
        )
        .unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    client
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    String::from_utf8(head).ok()
}
