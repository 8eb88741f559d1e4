//! What a refused client gets, and what the access log says of it.

use serde_json::{Value, json};

use sentinel_integration::client::Client;

use crate::world::{Setup, World};

const ONCE: &str = "{id: once, resource: 'GET:/once', threshold: 1, statIntervalInMs: 20000}";
const NO_GRPC: &str = "{id: no-grpc, resource: 'POST:/shop.Cart/Add', threshold: 0}";

#[test]
fn a_refused_client_gets_429_with_the_rule_in_headers_and_body() {
    let world = Setup::with_rules(&[ONCE]).start();

    let answer = refused(&world);

    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-sentinel-block"), Some("FlowControl"));
    assert_eq!(answer.header("x-sentinel-rule"), Some("once"));
    let retry_after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&retry_after), "{retry_after}");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let message = "Blocked by Sentinel: FlowControl";
    assert_eq!(
        body,
        json!({"code": 429, "message": message, "resource": "GET:/once", "rule": "once"})
    );
}

#[test]
fn the_access_log_shows_the_decision() {
    let world = Setup::with_rules(&[ONCE]).start();

    refused(&world);

    let line = world.access_logged("sentinel_FlowControl_once");
    assert!(line.contains(" 429 "), "{line}");
    let (_, state) = line.split_once("sentinel_FlowControl_once ").unwrap();
    for part in ["GET:/once", "FlowControl", "once"] {
        assert!(state.contains(part), "the filter state must name {part}: {line}");
    }
}

#[test]
fn a_grpc_client_gets_trailers_only_with_resource_exhausted() {
    let world = Setup::with_rules(&[NO_GRPC]).start();
    let mut client = Client::connect_http2(world.proxy()).unwrap();

    for content_type in ["application/grpc", "application/grpc+proto"] {
        let answer = client
            .send("POST", "/shop.Cart/Add", &[("content-type", content_type), ("te", "trailers")])
            .unwrap();

        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("grpc-status"), Some("8"), "{answer:?}");
        assert_eq!(answer.header("grpc-message"), Some("Blocked by Sentinel: FlowControl"));
        assert_eq!(answer.header("x-sentinel-rule"), Some("no-grpc"));
        assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{answer:?}");
    }
}

#[test]
fn what_only_looks_like_grpc_gets_the_plain_reply() {
    let world = Setup::with_rules(&[NO_GRPC]).start();
    let mut client = Client::connect_http2(world.proxy()).unwrap();

    for content_type in ["application/grpc-web", "application/grpcfoo", "application/json"] {
        let answer =
            client.send("POST", "/shop.Cart/Add", &[("content-type", content_type)]).unwrap();

        assert_eq!(answer.status, 429, "{content_type}: {answer:?}");
        assert!(answer.body.contains(r#""rule":"no-grpc""#), "{answer:?}");
    }
}

#[test]
fn a_filter_that_exposes_no_rule_keeps_rule_and_resource_from_clients() {
    let world = Setup::with_rules(&[ONCE]).filter("exposeRule: false").start();

    let answer = refused(&world);

    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("x-sentinel-rule"), None);
    assert!(!answer.body.contains("once"), "{}", answer.body);
}

/// Asks on one connection until refused: twice, or once more when a window begins in between.
fn refused(world: &World) -> sentinel_integration::client::Answer {
    let mut client = world.client();
    let answers = std::iter::repeat_with(|| client.get("/once").unwrap()).take(4);
    answers.into_iter().find(|answer| answer.status != 200).unwrap()
}
