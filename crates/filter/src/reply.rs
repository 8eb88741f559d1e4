//! What a refused client gets.

use sentinel_core::{
    block::{Refused, Reply, push_json_bytes, push_json_string},
    rule::Rule,
};
use sentinel_engine::{host::HostError, worker::Blocked};
use sentinel_envoy::stream::{LocalReply, set_filter_state};

/// Answers the request, and leaves word for the access log. `expose_rule`: whether the client sees the
/// rule's id and the resource. `is_grpc`: whether it speaks gRPC, which only headers of the request say.
pub(crate) fn send(blocked: &Blocked, resource: &[u8], expose_rule: bool, is_grpc: bool) {
    let block_type = blocked.block_type;
    let rule = leave_word(blocked, resource);
    let retry_after = blocked.retry_after.map(|span| span.as_secs_ceil().max(1).to_string());
    let refused = Refused {
        resource,
        rule: blocked.rule.as_deref(),
        retry_after: retry_after.as_deref(),
        expose_rule,
        is_grpc,
    };
    let answer = Reply::new(block_type, &refused);

    let details = ["sentinel_", block_type.name(), "_", rule].concat();
    let reply = LocalReply {
        status: answer.status,
        details: &details,
        headers: &answer.headers,
        body: answer.body.as_bytes(),
        grpc_status: block_type.grpc_status(),
    };
    if let Err(error) = reply.send() {
        complain("to send a reply", error);
    }
}

/// What a refused TCP client is told, and word for the access log: the rule's own words as they stand, else ours and
/// the end of a line.
pub(crate) fn text(blocked: &Blocked, resource: &[u8], expose_rule: bool) -> Vec<u8> {
    leave_word(blocked, resource);
    let own = blocked.rule.as_deref().and_then(|rule| rule.common().response.as_ref());
    let has_own_body = own.is_some_and(|own| own.body.is_some());
    let refused = Refused {
        resource,
        rule: blocked.rule.as_deref(),
        retry_after: None,
        expose_rule,
        is_grpc: false,
    };
    let mut text = Reply::new(blocked.block_type, &refused).body;
    if !has_own_body {
        text.push('\n');
    }
    text.into_bytes()
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
        complain("to send a reply", error);
    }
}

/// Ends a stream whose body Envoy does not show.
#[cfg(feature = "messages")]
pub(crate) fn send_unreadable() {
    let details = "sentinel_unreadable";
    let reply = LocalReply { status: 500, details, headers: &[], body: b"", grpc_status: 13 };
    if let Err(error) = reply.send() {
        complain("to send a reply", error);
    }
}

/// Says in the log what Envoy refused to do.
pub(crate) fn complain(what: &str, error: HostError) {
    // Not as `Debug` has it, which would bring all that pretty printing needs.
    let status = match error {
        HostError::NotFound => 1,
        HostError::Status(status) => status,
    };
    log::error!("Envoy refused {what} (status {status})");
}

/// What the word for the access log has besides the names, at most.
const WORD_BYTES: usize = 64;

/// Resource, block type and rule as JSON, for `%FILTER_STATE(wasm.sentinel:PLAIN)%`.
/// Gives the rule's id.
fn leave_word<'a>(blocked: &'a Blocked, resource: &[u8]) -> &'a str {
    let rule = blocked.rule.as_deref().map(Rule::id).unwrap_or("before_first_rules");
    let mut word = String::with_capacity(WORD_BYTES + resource.len() + rule.len());
    word.push_str(r#"{"resource":"#);
    push_json_bytes(&mut word, resource);
    word.push_str(r#","blockType":"#);
    push_json_string(&mut word, blocked.block_type.name());
    word.push_str(r#","rule":"#);
    push_json_string(&mut word, rule);
    word.push('}');
    // Refused for the second Sentinel filter of a chain: the first one's word stands.
    if set_filter_state("sentinel", word.as_bytes()).is_err() {
        log::debug!("the filter state is set already");
    }
    rule
}
