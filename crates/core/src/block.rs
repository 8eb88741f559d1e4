//! What a refused client is told.
//!
//! A refusal is an answer, not a failure: the reply, the access log and the metrics all say the same
//! block type and rule.

use alloc::{string::String, vec::Vec};
use core::fmt::Write as _;

use crate::rule::Rule;

/// Which kind of rule refused, in Sentinel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockType {
    /// A flow or gateway rule.
    FlowControl,
    /// An isolation rule: too many at a time.
    Isolation,
    /// A circuit breaker is open.
    CircuitBreaking,
    /// A system rule protects the whole proxy.
    System,
    /// A hot-parameter rule.
    HotSpotParamFlow,
    /// A white or black list.
    Authority,
}

impl BlockType {
    /// All of them, in the order of [`BlockType::index`].
    pub const ALL: [Self; 6] = [
        Self::FlowControl,
        Self::Isolation,
        Self::CircuitBreaking,
        Self::System,
        Self::HotSpotParamFlow,
        Self::Authority,
    ];

    /// Its place in [`BlockType::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name that headers, bodies, logs and metrics carry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowControl => "FlowControl",
            Self::Isolation => "Isolation",
            Self::CircuitBreaking => "CircuitBreaking",
            Self::System => "System",
            Self::HotSpotParamFlow => "HotSpotParamFlow",
            Self::Authority => "Authority",
        }
    }

    /// The status of an HTTP reply.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::FlowControl | Self::HotSpotParamFlow | Self::Isolation => 429,
            Self::CircuitBreaking | Self::System => 503,
            Self::Authority => 403,
        }
    }

    /// The status of a gRPC reply: RESOURCE_EXHAUSTED, UNAVAILABLE or PERMISSION_DENIED.
    pub const fn grpc_status(self) -> u32 {
        match self {
            Self::FlowControl | Self::HotSpotParamFlow | Self::Isolation => 8,
            Self::CircuitBreaking | Self::System => 14,
            Self::Authority => 7,
        }
    }
}

/// What a refused client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Of HTTP.
    pub status: u16,
    /// Those that the reply has besides the ones that frame it.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Of a gRPC call its message.
    pub body: String,
}

/// What is known of a refusal, besides its type.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// The request's resource.
    pub resource: &'a [u8],
    /// The rule; `None` if there is none yet.
    pub rule: Option<&'a Rule>,
    /// Seconds until the next chance, if that is known.
    pub retry_after: Option<&'a str>,
    /// Whether the client sees the rule's id and the resource.
    pub expose_rule: bool,
    /// Whether the client speaks gRPC.
    pub is_grpc: bool,
}

impl<'a> Reply<'a> {
    /// The reply to a request that a rule of this type refuses.
    pub fn new(block_type: BlockType, refused: &Refused<'a>) -> Self {
        let own = refused.rule.and_then(|rule| rule.common().response.as_ref());
        let status = own.and_then(|own| own.status).unwrap_or_else(|| block_type.http_status());
        let own_body = own.and_then(|own| own.body.as_deref());
        let shown = refused.rule.filter(|_| refused.expose_rule).map(Rule::id);
        let body = if refused.is_grpc {
            message(block_type)
        } else if let Some(body) = own_body {
            String::from(body)
        } else {
            let resource = refused.expose_rule.then_some(refused.resource);
            json_body(block_type, status, resource, shown)
        };
        let mut headers: Vec<(&str, &[u8])> = Vec::with_capacity(4);
        if own_body.is_none() {
            headers.push(("content-type", b"application/json"));
        }
        headers.push(("x-sentinel-block", block_type.name().as_bytes()));
        if let Some(rule) = shown {
            headers.push(("x-sentinel-rule", rule.as_bytes()));
        }
        if let Some(retry_after) = refused.retry_after {
            headers.push(("retry-after", retry_after.as_bytes()));
        }
        for (name, value) in own.iter().flat_map(|own| &own.headers) {
            headers.retain(|(ours, _)| !ours.eq_ignore_ascii_case(name));
            headers.push((name, value.as_bytes()));
        }
        Self { status, headers, body }
    }
}

/// Whether a request of this `content-type` is a gRPC call: `application/grpc`, exactly or followed by `+`, as Envoy
/// itself tells it.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

/// The sentence that JSON bodies and `grpc-message` carry.
pub fn message(block_type: BlockType) -> String {
    [MESSAGE, block_type.name()].concat()
}

const MESSAGE: &str = "Blocked by Sentinel: ";

/// The body of an HTTP reply with `status`. Without `resource` and `rule` it names neither
/// (`exposeRule: false`).
pub fn json_body(
    block_type: BlockType,
    status: u16,
    resource: Option<&[u8]>,
    rule: Option<&str>,
) -> String {
    // A refusal is to be cheap: piece by piece into one block of memory, which formatting would grow in steps.
    let names = resource.map_or(0, <[u8]>::len) + rule.map_or(0, str::len);
    let mut body = String::with_capacity(BODY_BYTES + names);
    body.push_str(r#"{"code":"#);
    push_decimal(&mut body, status);
    body.push_str(r#","message":""#);
    body.push_str(MESSAGE);
    body.push_str(block_type.name());
    body.push('"');
    if let Some(resource) = resource {
        body.push_str(r#","resource":"#);
        push_json_bytes(&mut body, resource);
    }
    if let Some(rule) = rule {
        body.push_str(r#","rule":"#);
        push_json_string(&mut body, rule);
    }
    body.push('}');
    body
}

/// What a body has besides the names, at most.
const BODY_BYTES: usize = 96;

fn push_decimal(text: &mut String, number: u16) {
    if number >= 10 {
        push_decimal(text, number / 10);
    }
    let digit = u8::try_from(number % 10).unwrap_or(0);
    text.push(char::from(b'0' + digit));
}

/// Appends `text` as a JSON string, quotes included (RFC 8259, section 7).
pub fn push_json_string(json: &mut String, text: &str) {
    push_json_bytes(json, text.as_bytes());
}

/// Appends `bytes` as a JSON string, quotes included. What is no UTF-8 in it is U+FFFD, as `String::from_utf8_lossy` has
/// it, which would be another 1 KB of the filter.
pub fn push_json_bytes(json: &mut String, bytes: &[u8]) {
    json.push('"');
    // Nearly every name is plain: it goes as a whole, and not character by character.
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    let mut rest = bytes;
    if bytes.iter().all(is_plain)
        && let Ok(text) = core::str::from_utf8(bytes)
    {
        json.push_str(text);
        rest = &[];
    }
    while !rest.is_empty() {
        let (valid, lost) = match core::str::from_utf8(rest) {
            Ok(text) => (text.len(), 0),
            Err(error) => (error.valid_up_to(), error.error_len().unwrap_or(rest.len())),
        };
        let text = rest.get(..valid).and_then(|valid| core::str::from_utf8(valid).ok());
        push_escaped(json, text.unwrap_or_default());
        if lost > 0 {
            json.push(char::REPLACEMENT_CHARACTER);
        }
        rest = rest.get(valid.saturating_add(lost)..).unwrap_or_default();
    }
    json.push('"');
}

fn push_escaped(json: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            // And what ends a line, moves a cursor or turns text around for who reads a log.
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                let written = write!(json, "\\u{:04x}", u32::from(char));
                debug_assert!(written.is_ok(), "writing to a String cannot fail");
            }
            _ => json.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::Settings,
        rule::{
            compile::rules_from_golang,
            node::{Entry, Map, Node, Value},
        },
    };

    #[test]
    fn what_would_end_a_line_or_turn_text_around_is_escaped() {
        let mut json = String::new();
        push_json_string(&mut json, "\u{85}\u{9b}31m\u{2028}\u{202e}\u{2066}\u{e9}");
        assert_eq!(json, "\"\\u0085\\u009b31m\\u2028\\u202e\\u2066\u{e9}\"");
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_text_are_shown_as_the_library_shows_them(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x7e..0x80_u8, 0xc0..0xf8_u8], 0..20),
        ) {
            let (mut ours, mut theirs) = (String::new(), String::new());
            push_json_bytes(&mut ours, &bytes);
            push_json_string(&mut theirs, &String::from_utf8_lossy(&bytes));
            prop_assert_eq!(ours, theirs);
        }
    }

    /// A flow rule with a reply of its own.
    fn rule(response: Vec<(&str, Value)>) -> Rule {
        let map = |entries: Vec<(&str, Value)>| {
            let entries = entries.into_iter().map(|(key, value)| Entry {
                key: key.into(),
                position: None,
                value: Node::new(value),
            });
            Node::new(Value::Map(Map::from_entries(entries.collect()).unwrap()))
        };
        let rule = map(vec![
            ("id", Value::String("hello".into())),
            ("resource", Value::String("GET:/hello".into())),
            ("response", map(response).value),
        ]);
        let list = Node::new(Value::List(vec![rule]));
        rules_from_golang("flow", &list, &Settings::DEFAULT).unwrap().remove(0)
    }

    fn refused(rule: &Rule) -> Refused<'_> {
        Refused {
            resource: b"GET:/hello",
            rule: Some(rule),
            retry_after: Some("2"),
            expose_rule: true,
            is_grpc: false,
        }
    }

    #[test]
    fn a_reply_names_the_rule_and_the_next_chance() {
        let rule = rule(vec![]);
        let reply = Reply::new(BlockType::FlowControl, &refused(&rule));
        let expected: [(&str, &[u8]); 4] = [
            ("content-type", b"application/json"),
            ("x-sentinel-block", b"FlowControl"),
            ("x-sentinel-rule", b"hello"),
            ("retry-after", b"2"),
        ];
        assert_eq!((reply.status, reply.headers), (429, expected.to_vec()));
        assert!(reply.body.contains("GET:/hello"));
        // Who must not see it sees neither rule nor resource.
        let hidden = Refused { expose_rule: false, ..refused(&rule) };
        let reply = Reply::new(BlockType::FlowControl, &hidden);
        assert_eq!(reply.headers.len(), 3);
        assert!(!reply.body.contains("hello"));
    }

    #[test]
    fn a_rule_s_own_words_come_before_ours() {
        let headers = Map::from_entries(vec![Entry {
            key: "Retry-After".into(),
            position: None,
            value: Node::new(Value::String("60".into())),
        }]);
        let rule = rule(vec![
            ("status", Value::Int(418)),
            ("body", Value::String("later".into())),
            ("headers", Value::Map(headers.unwrap())),
        ]);
        let reply = Reply::new(BlockType::FlowControl, &refused(&rule));
        let expected: [(&str, &[u8]); 3] = [
            ("x-sentinel-block", b"FlowControl"),
            ("x-sentinel-rule", b"hello"),
            ("retry-after", b"60"),
        ];
        assert_eq!((reply.status, reply.headers), (418, expected.to_vec()));
        assert_eq!(reply.body, "later");
        // A gRPC client gets a message and no body.
        let grpc = Refused { is_grpc: true, ..refused(&rule) };
        let reply = Reply::new(BlockType::FlowControl, &grpc);
        assert_eq!(reply.body, "Blocked by Sentinel: FlowControl");
    }

    #[test]
    fn grpc_is_told_as_envoy_tells_it() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(content_type.as_bytes()), expected, "{content_type}");
        }
    }

    #[test]
    fn the_body_is_the_one_that_clients_rely_on() {
        assert_eq!(
            json_body(BlockType::FlowControl, 429, Some(b"GET:/hello"), Some("hello")),
            r#"{"code":429,"message":"Blocked by Sentinel: FlowControl","resource":"GET:/hello","rule":"hello"}"#
        );
    }

    #[test]
    fn a_resource_cannot_break_out_of_its_string() {
        assert_eq!(
            json_body(BlockType::FlowControl, 429, Some(b"GET:/\"\\\n\xff"), None),
            "{\"code\":429,\"message\":\"Blocked by Sentinel: FlowControl\",\"resource\":\"GET:/\\\"\\\\\\u000a\u{fffd}\"}"
        );
    }
}
