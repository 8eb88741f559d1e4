//! What a refused client gets.

use sentinel_core::block::{json_body, message, push_json_string};
use sentinel_engine::worker::Blocked;
use sentinel_envoy::stream::{LocalReply, request_header, set_filter_state};

/// Answers the request, and leaves word for the access log. `expose_rule`: whether the client sees the
/// rule's id and the resource.
pub(crate) fn send(blocked: &Blocked, resource: &[u8], expose_rule: bool) {
    let rule = blocked.rule.as_ref().map(|rule| rule.id());
    let own = blocked.rule.as_ref().and_then(|rule| rule.common().response.as_ref());
    let block_type = blocked.block_type;
    let status = own.and_then(|own| own.status).unwrap_or_else(|| block_type.http_status());
    let own_body = own.and_then(|own| own.body.as_deref());

    let shown = expose_rule.then_some(()).and(rule);
    let body = if is_grpc() {
        message(block_type)
    } else if let Some(body) = own_body {
        body.to_owned()
    } else {
        json_body(block_type, status, expose_rule.then_some(resource), shown)
    };

    let retry_after = blocked.retry_after.map(|span| span.as_secs_ceil().max(1).to_string());
    let mut headers: Vec<(&str, &[u8])> = Vec::new();
    if own_body.is_none() {
        headers.push(("content-type", b"application/json"));
    }
    headers.push(("x-sentinel-block", block_type.name().as_bytes()));
    if let Some(rule) = shown {
        headers.push(("x-sentinel-rule", rule.as_bytes()));
    }
    if let Some(retry_after) = &retry_after {
        headers.push(("retry-after", retry_after.as_bytes()));
    }
    for (name, value) in own.iter().flat_map(|own| &own.headers) {
        headers.retain(|(ours, _)| !ours.eq_ignore_ascii_case(name));
        headers.push((name, value.as_bytes()));
    }

    let rule = rule.unwrap_or("before_first_rules");
    leave_word(block_type.name(), rule, resource);
    let details = format!("sentinel_{}_{rule}", block_type.name());
    let reply = LocalReply {
        status,
        details: &details,
        headers: &headers,
        body: body.as_bytes(),
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

/// `application/grpc`, exactly or followed by `+`: as Envoy itself tells gRPC.
fn is_grpc() -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let content_type = request_header("content-type").unwrap_or_default();
    content_type.strip_prefix(GRPC).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}
