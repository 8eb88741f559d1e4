//! What a refused client gets.

use sentinel_core::{
    block::Refused,
    decimal::{WHOLE_DIGITS, whole_digits},
};
use sentinel_engine::{host::HostError, worker::Blocked};
use sentinel_envoy::stream::{LocalReply, map, push_map, set_filter_state};

/// Answers the request, and leaves word for the access log. `expose_rule`: whether the client sees the
/// rule's id and the resource. `is_grpc`: whether it speaks gRPC, which only headers of the request say. `text` is
/// room for all that is said: a refusal is to be cheap.
pub(crate) fn send(
    blocked: &Blocked,
    resource: &[u8],
    expose_rule: bool,
    is_grpc: bool,
    text: &mut Vec<u8>,
) {
    let mut room = [0; WHOLE_DIGITS];
    let retry_after = blocked.retry_after.map(|span| span.as_secs_ceil().max(1));
    let refused = Refused {
        block_type: blocked.block_type,
        resource,
        rule: blocked.rule.as_deref(),
        retry_after: retry_after.map(|seconds| whole_digits(seconds, &mut room)),
        expose_rule,
        is_grpc,
    };
    leave_word(&refused, text);
    text.clear();
    refused.write_details(text);
    let details = text.len();
    refused.write_body(text);
    let body = text.len() - details;
    let headers = refused.headers();
    push_map(text, headers.ours(), headers.own);

    let (details, rest) = text.split_at_checked(details).unwrap_or_default();
    let (body, headers) = rest.split_at_checked(body).unwrap_or_default();
    let grpc_status = blocked.block_type.grpc_status();
    let reply = LocalReply { status: refused.status(), details, headers, body, grpc_status };
    if let Err(error) = reply.send() {
        complain("to send a reply", error);
    }
}

/// What a refused TCP client is told, and word for the access log: the rule's own words as they stand, else ours and
/// the end of a line.
pub(crate) fn text(blocked: &Blocked, resource: &[u8], expose_rule: bool) -> Vec<u8> {
    let refused = Refused {
        block_type: blocked.block_type,
        resource,
        rule: blocked.rule.as_deref(),
        retry_after: None,
        expose_rule,
        is_grpc: false,
    };
    let mut text = Vec::new();
    leave_word(&refused, &mut text);
    text.clear();
    refused.write_body(&mut text);
    if refused.own_body().is_none() {
        text.push(b'\n');
    }
    text
}

/// Answers the request with what the console says.
pub(crate) fn send_json(status: u16, body: &str) {
    let reply = LocalReply {
        status,
        details: b"sentinel_console",
        headers: &map(&[("content-type", b"application/json"), ("cache-control", b"no-store")]),
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
    let details = b"sentinel_unreadable";
    let reply = LocalReply { status: 500, details, headers: &map(&[]), body: b"", grpc_status: 13 };
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

/// Leaves word for the access log, for `%FILTER_STATE(wasm.sentinel:PLAIN)%`, and it stands in `text`.
fn leave_word(refused: &Refused<'_>, text: &mut Vec<u8>) {
    text.clear();
    refused.write_word(text);
    // Refused for the second Sentinel filter of a chain: the first one's word stands.
    let _ = set_filter_state("sentinel", text);
}
