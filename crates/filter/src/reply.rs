//! What a refused client gets.

use sentinel_core::{
    block::{Refused, Reply, push_json_string},
    rule::Rule,
};
use sentinel_engine::worker::Blocked;
use sentinel_envoy::stream::{LocalReply, set_filter_state};

/// Answers the request, and leaves word for the access log. `expose_rule`: whether the client sees the
/// rule's id and the resource. `is_grpc`: whether it speaks gRPC, which only headers of the request say.
pub(crate) fn send(blocked: &Blocked, resource: &[u8], expose_rule: bool, is_grpc: bool) {
    let block_type = blocked.block_type;
    let retry_after = blocked.retry_after.map(|span| span.as_secs_ceil().max(1).to_string());
    let refused = Refused {
        resource,
        rule: blocked.rule.as_deref(),
        retry_after: retry_after.as_deref(),
        expose_rule,
        is_grpc,
    };
    let answer = Reply::new(block_type, &refused);

    let rule = refused.rule.map(Rule::id);
    let rule = rule.unwrap_or("before_first_rules");
    leave_word(block_type.name(), rule, resource);
    let details = format!("sentinel_{}_{rule}", block_type.name());
    let reply = LocalReply {
        status: answer.status,
        details: &details,
        headers: &answer.headers,
        body: answer.body.as_bytes(),
        grpc_status: block_type.grpc_status(),
    };
    if let Err(error) = reply.send() {
        log::error!("Envoy refused to send a reply: {error:?}");
    }
}

/// Answers the request with what the console says.
pub(crate) fn send_json(status: u16, body: &str) {
    let reply = LocalReply {
        status,
        details: "sentinel_console",
        headers: &[("content-type", b"application/json"), ("cache-control", b"no-store")],
        body: body.as_bytes(),
        grpc_status: 0,
    };
    if let Err(error) = reply.send() {
        log::error!("Envoy refused to send a reply: {error:?}");
    }
}

/// Ends a stream whose body Envoy does not show.
#[cfg(feature = "messages")]
pub(crate) fn send_unreadable() {
    let details = "sentinel_unreadable";
    let reply = LocalReply { status: 500, details, headers: &[], body: b"", grpc_status: 13 };
    if let Err(error) = reply.send() {
        log::error!("Envoy refused to send a reply: {error:?}");
    }
}

/// Resource, block type and rule as JSON, for `%FILTER_STATE(wasm.sentinel:PLAIN)%`.
fn leave_word(block_type: &str, rule: &str, resource: &[u8]) {
    let mut word = String::from(r#"{"resource":"#);
    push_json_string(&mut word, &String::from_utf8_lossy(resource));
    word.push_str(r#","blockType":"#);
    push_json_string(&mut word, block_type);
    word.push_str(r#","rule":"#);
    push_json_string(&mut word, rule);
    word.push('}');
    // Refused for the second Sentinel filter of a chain: the first one's word stands.
    if set_filter_state("sentinel", word.as_bytes()).is_err() {
        log::debug!("the filter state is set already");
    }
}
