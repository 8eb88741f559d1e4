//! What a refused client is told.
//!
//! A refusal is an answer, not a failure: the reply, the access log and the metrics all say the same
//! block type and rule.

use alloc::{string::String, vec::Vec};
use core::fmt::Write as _;

use crate::{
    decimal::{WHOLE_DIGITS, whole_digits},
    rule::{Response, Rule},
};

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

/// A refusal, and what is told of it. All of it goes into buffers of the caller's: a refusal is to be cheap.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// The kind of rule.
    pub block_type: BlockType,
    /// The request's resource.
    pub resource: &'a [u8],
    /// The rule; `None` if there is none yet.
    pub rule: Option<&'a Rule>,
    /// Seconds until the next chance, in [`whole_digits`], if that is known.
    pub retry_after: Option<&'a [u8]>,
    /// Whether the client sees the rule's id and the resource.
    pub expose_rule: bool,
    /// Whether the client speaks gRPC.
    pub is_grpc: bool,
}

impl<'a> Refused<'a> {
    /// The reply's status, of HTTP.
    pub fn status(&self) -> u16 {
        let own = self.own().and_then(|own| own.status);
        own.unwrap_or_else(|| self.block_type.http_status())
    }

    /// Those that the reply has besides the ones that frame it.
    pub fn headers(&self) -> Headers<'a> {
        let own = self.own().map_or::<&[_], _>(&[], |own| &own.headers);
        let mut headers = Headers { room: [("", b""); 4], count: 0, own };
        if self.own_body().is_none() {
            headers.push("content-type", b"application/json");
        }
        headers.push("x-sentinel-block", self.block_type.name().as_bytes());
        if let Some(rule) = self.shown_rule() {
            headers.push("x-sentinel-rule", rule.as_bytes());
        }
        if let Some(retry_after) = self.retry_after {
            headers.push("retry-after", retry_after);
        }
        headers
    }

    /// Appends the reply's body; of a gRPC call its message.
    pub fn write_body(&self, text: &mut Vec<u8>) {
        if self.is_grpc {
            text.extend_from_slice(b"Blocked by Sentinel: ");
            text.extend_from_slice(self.block_type.name().as_bytes());
        } else if let Some(body) = self.own_body() {
            text.extend_from_slice(body.as_bytes());
        } else {
            self.write_json(text);
        }
    }

    fn write_json(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(br#"{"code":"#);
        text.extend_from_slice(whole_digits(u64::from(self.status()), &mut [0; WHOLE_DIGITS]));
        text.extend_from_slice(br#","message":"Blocked by Sentinel: "#);
        text.extend_from_slice(self.block_type.name().as_bytes());
        if self.expose_rule {
            text.extend_from_slice(br#"","resource":""#);
            push_escaped(text, self.resource);
        }
        if let Some(rule) = self.shown_rule() {
            text.extend_from_slice(br#"","rule":""#);
            text.extend_from_slice(rule.as_bytes());
        }
        text.extend_from_slice(br#""}"#);
    }

    /// Appends the word for the access log: resource, block type and rule as JSON.
    pub fn write_word(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(br#"{"resource":""#);
        push_escaped(text, self.resource);
        text.extend_from_slice(br#"","blockType":""#);
        text.extend_from_slice(self.block_type.name().as_bytes());
        text.extend_from_slice(br#"","rule":""#);
        text.extend_from_slice(self.rule_id().as_bytes());
        text.extend_from_slice(br#""}"#);
    }

    /// Appends what the access log shows as details of the reply: block type and rule, without spaces.
    pub fn write_details(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"sentinel_");
        text.extend_from_slice(self.block_type.name().as_bytes());
        text.push(b'_');
        text.extend_from_slice(self.rule_id().as_bytes());
    }

    /// Of letters, digits and `._:/-`, so that it stands in JSON as it is.
    fn rule_id(&self) -> &'a str {
        self.rule.map_or("before_first_rules", Rule::id)
    }

    fn shown_rule(&self) -> Option<&'a str> {
        self.rule.filter(|_| self.expose_rule).map(Rule::id)
    }

    fn own(&self) -> Option<&'a Response> {
        self.rule?.common().response.as_ref()
    }

    /// The rule's own body instead of ours.
    pub fn own_body(&self) -> Option<&'a str> {
        self.own()?.body.as_deref()
    }
}

/// Headers of a reply.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    /// Ours, as many as there are, without any block of memory.
    room: [(&'a str, &'a [u8]); 4],
    count: usize,
    /// Those of the rule, which come last: each once, in lower case.
    pub own: &'a [(String, String)],
}

impl<'a> Headers<'a> {
    /// Those that the rule does not have itself.
    pub fn ours(&self) -> &[(&'a str, &'a [u8])] {
        self.room.get(..self.count).unwrap_or_default()
    }

    fn push(&mut self, name: &'a str, value: &'a [u8]) {
        let is_own = self.own.iter().any(|(own, _)| own == name);
        if !is_own && let Some(place) = self.room.get_mut(self.count) {
            *place = (name, value);
            self.count += 1;
        }
    }
}

/// Whether a request of this `content-type` is a gRPC call: `application/grpc`, exactly or followed by `+`, as Envoy
/// itself tells it.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

/// Appends `text` as a JSON string, quotes included (RFC 8259, section 7).
pub fn push_json_string(json: &mut String, text: &str) {
    json.push('"');
    push_escaped_text(json, text);
    json.push('"');
}

/// Appends what stands between the quotes of a JSON string for `bytes`. What is no UTF-8 in them is U+FFFD, as
/// `String::from_utf8_lossy` has it, which would be another 1 KB of the filter.
pub fn push_escaped(json: &mut Vec<u8>, bytes: &[u8]) {
    // Nearly every name is plain: it goes as a whole, and not character by character.
    if is_plain(bytes) {
        json.extend_from_slice(bytes);
        return;
    }
    let mut escaped = String::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (valid, lost) = match core::str::from_utf8(rest) {
            Ok(text) => (text.len(), 0),
            Err(error) => (error.valid_up_to(), error.error_len().unwrap_or(rest.len())),
        };
        let text = rest.get(..valid).and_then(|valid| core::str::from_utf8(valid).ok());
        push_escaped_text(&mut escaped, text.unwrap_or_default());
        if lost > 0 {
            escaped.push(char::REPLACEMENT_CHARACTER);
        }
        rest = rest.get(valid.saturating_add(lost)..).unwrap_or_default();
    }
    json.extend_from_slice(escaped.as_bytes());
}

/// Whether all are printable ASCII that stands in a JSON string as it is.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk() else {
        return bytes
            .iter()
            .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    };
    // Eight at a time; the last eight may have been looked at before.
    let (words, _) = bytes.as_chunks();
    words.iter().all(are_plain) && are_plain(last)
}

/// [`is_plain`] of eight bytes at once.
fn are_plain(word: &[u8; 8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let word = u64::from_ne_bytes(*word);
    // The high bit of a byte that is below `least` is set, and of no byte if none is: all are below 0x80.
    let below = |word: u64, least: u64| word.wrapping_sub(ONES * least);
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let special = below(word, 0x20) | is(b'"') | is(b'\\') | is(0x7f);
    (word | special) & HIGH == 0
}

fn push_escaped_text(json: &mut String, text: &str) {
    if is_plain(text.as_bytes()) {
        json.push_str(text);
        return;
    }
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
    use alloc::{format, vec};

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
            let (mut ours, mut theirs) = (Vec::new(), String::new());
            push_escaped(&mut ours, &bytes);
            push_json_string(&mut theirs, &String::from_utf8_lossy(&bytes));
            prop_assert_eq!(format!("\"{}\"", str::from_utf8(&ours).unwrap()), theirs);
        }

        #[test]
        fn text_of_any_length_is_escaped_wherever_it_must_be(
            plain in "[ !#-\\[\\]-~]{0,40}",
            place in any::<prop::sample::Index>(),
            other in prop_oneof![0..0x20_u8, 0x7f..=0xff_u8, Just(b'"'), Just(b'\\')],
        ) {
            prop_assert!(is_plain(plain.as_bytes()));
            let mut bytes = plain.into_bytes();
            bytes.insert(place.index(bytes.len() + 1), other);
            prop_assert!(!is_plain(&bytes));
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
            block_type: BlockType::FlowControl,
            resource: b"GET:/hello",
            rule: Some(rule),
            retry_after: Some(b"2"),
            expose_rule: true,
            is_grpc: false,
        }
    }

    fn headers(refused: &Refused<'_>) -> Vec<(String, String)> {
        let headers = refused.headers();
        let ours = headers.ours().iter();
        let ours = ours.map(|(name, value)| header(name, str::from_utf8(value).unwrap()));
        ours.chain(headers.own.iter().cloned()).collect()
    }

    fn header(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        // Whatever stands in the buffer stays.
        let mut text = b"> ".to_vec();
        write(&mut text);
        String::from_utf8(text).unwrap().strip_prefix("> ").unwrap().into()
    }

    fn body(refused: &Refused<'_>) -> String {
        written(|text| refused.write_body(text))
    }

    #[test]
    fn a_reply_names_the_rule_and_the_next_chance() {
        let rule = rule(vec![]);
        let shown = refused(&rule);
        assert_eq!(shown.status(), 429);
        assert_eq!(
            headers(&shown),
            [
                header("content-type", "application/json"),
                header("x-sentinel-block", "FlowControl"),
                header("x-sentinel-rule", "hello"),
                header("retry-after", "2"),
            ]
        );
        assert_eq!(
            body(&shown),
            r#"{"code":429,"message":"Blocked by Sentinel: FlowControl","resource":"GET:/hello","rule":"hello"}"#
        );
        // Who must not see it sees neither rule nor resource.
        let hidden = Refused { expose_rule: false, ..shown };
        assert_eq!(headers(&hidden).len(), 3);
        assert_eq!(body(&hidden), r#"{"code":429,"message":"Blocked by Sentinel: FlowControl"}"#);
    }

    #[test]
    fn the_access_log_is_told_what_the_client_may_not_see() {
        let rule = rule(vec![("body", Value::String("later".into()))]);
        let hidden = Refused { expose_rule: false, ..refused(&rule) };
        assert_eq!(
            written(|text| hidden.write_word(text)),
            r#"{"resource":"GET:/hello","blockType":"FlowControl","rule":"hello"}"#
        );
        assert_eq!(written(|text| hidden.write_details(text)), "sentinel_FlowControl_hello");
        let too_early = Refused { block_type: BlockType::System, rule: None, ..hidden };
        assert_eq!(
            written(|text| too_early.write_word(text)),
            r#"{"resource":"GET:/hello","blockType":"System","rule":"before_first_rules"}"#
        );
        assert_eq!(
            written(|text| too_early.write_details(text)),
            "sentinel_System_before_first_rules"
        );
    }

    #[test]
    fn a_rule_s_own_words_come_before_ours() {
        let own = Map::from_entries(vec![Entry {
            key: "Retry-After".into(),
            position: None,
            value: Node::new(Value::String("60".into())),
        }]);
        let rule = rule(vec![
            ("status", Value::Int(418)),
            ("body", Value::String("later".into())),
            ("headers", Value::Map(own.unwrap())),
        ]);
        let refused = refused(&rule);
        assert_eq!(refused.status(), 418);
        assert_eq!(
            headers(&refused),
            [
                header("x-sentinel-block", "FlowControl"),
                header("x-sentinel-rule", "hello"),
                header("retry-after", "60"),
            ]
        );
        assert_eq!(body(&refused), "later");
        // A gRPC client gets a message and no body.
        let grpc = Refused { is_grpc: true, ..refused };
        assert_eq!(body(&grpc), "Blocked by Sentinel: FlowControl");
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
    fn a_resource_cannot_break_out_of_its_string() {
        let rule = rule(vec![("status", Value::Int(418))]);
        let refused = Refused { resource: b"GET:/\"\\\n\xff", ..refused(&rule) };
        assert_eq!(
            body(&refused),
            "{\"code\":418,\"message\":\"Blocked by Sentinel: FlowControl\",\"resource\":\"GET:/\\\"\\\\\\u000a\u{fffd}\",\"rule\":\"hello\"}"
        );
    }
}
