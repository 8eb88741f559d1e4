//! A request's values: what hot-parameter and gateway rules count by.
//!
//! A value is bytes, because a client may send any bytes. It is only read where a rule asks for it.

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};

use serde::{Deserialize, Serialize};

use crate::{
    decimal,
    pattern::Pattern,
    resource::path_without_query,
    rule::{ItemValue, compile::is_header_name},
};

/// What a hot-parameter rule can count by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Param {
    /// The value of a header, by its name in lower case.
    Header(String),
    /// A parameter of the query string, decoded.
    Query(String),
    /// A cookie.
    Cookie(String),
    /// The client's address, without its port.
    ClientIp,
    /// A segment of the path; 1 is the first after the slash.
    PathSegment(u32),
    /// What sentinel-golang calls an attachment: a request in Envoy has none, so that the rule's `paramIndex`
    /// counts.
    Attachment(String),
    /// The server's name that a TLS client asks for, as Envoy's listener has found it.
    Sni,
    /// The name of Envoy's filter chain.
    FilterChain,
}

/// Which values of a parameter a gateway rule counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParamMatch {
    /// How to compare.
    pub strategy: MatchStrategy,
    /// With what.
    pub pattern: String,
}

/// Sentinel's `matchStrategy` of a gateway rule's parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatchStrategy {
    /// The whole value.
    #[default]
    Exact,
    /// Its beginning.
    Prefix,
    /// The whole value, by a regular expression.
    Regex,
    /// Any part of it.
    Contains,
}

/// A value of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum ParamValue {
    /// As a request carries it: bytes that may be meant as anything.
    Bytes(Vec<u8>),
    /// A number, where the caller knows that it is one.
    Int(i64),
    /// Text, where the caller knows that it is that and no number.
    String(String),
    /// `true` or `false`, where the caller knows.
    Bool(bool),
    /// A number with decimals, where the caller knows.
    Float(f64),
}

/// What the engine may ask of the request in hand. Nothing is read that no rule asks for.
pub trait Request {
    /// The value of a parameter, if the request has it.
    fn param(&mut self, param: &Param) -> Option<ParamValue>;

    /// The value of the listener's argument `index`; negative ones count from the end.
    fn arg(&mut self, index: i32) -> Option<ParamValue>;

    /// Who calls; empty if nobody knows.
    fn origin(&mut self) -> Vec<u8>;

    /// The path, with or without its query string.
    fn path(&mut self) -> Vec<u8>;
}

/// A request of which nothing is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl Request for Anonymous {
    fn param(&mut self, _param: &Param) -> Option<ParamValue> {
        None
    }

    fn arg(&mut self, _index: i32) -> Option<ParamValue> {
        None
    }

    fn origin(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn path(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

impl Param {
    /// The forms in which a parameter can be named, for errors.
    pub const FORMS: &'static str = "header:<name>, query:<name>, cookie:<name>, path_segment:<number from 1>, client_ip, sni or filter_chain";

    /// One of the forms as a regular expression.
    pub const PATTERN: &'static str = r"^(client_ip|sni|filter_chain|header:[A-Za-z0-9_.!#$%&'*+^`|~-]{1,256}|(query|cookie):[^\n]{1,256}|path_segment:\+?0*([1-9][0-9]{0,2}|1000))$";

    /// `header:x-user`, `query:user`, `cookie:sid`, `client_ip`, `path_segment:2`, `sni`, `filter_chain`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "client_ip" => return Some(Self::ClientIp),
            "sni" => return Some(Self::Sni),
            "filter_chain" => return Some(Self::FilterChain),
            _ => {}
        }
        let (what, name) = text.split_once(':')?;
        match what {
            "header" if is_header_name(name) => Some(Self::Header(name.to_ascii_lowercase())),
            "query" if is_param_name(name) => Some(Self::Query(name.to_string())),
            "cookie" if is_param_name(name) => Some(Self::Cookie(name.to_string())),
            "path_segment" => {
                let number =
                    decimal::whole_number(name).filter(|number| (1..=1_000).contains(number))?;
                Some(Self::PathSegment(number))
            }
            _ => None,
        }
    }
}

impl ParamMatch {
    /// Whether a value counts. `pattern` is the compiled [`ParamMatch::pattern`] of [`MatchStrategy::Regex`].
    pub fn accepts(&self, value: &ParamValue, pattern: Option<&Pattern>) -> bool {
        let text = value.text();
        let wanted = self.pattern.as_bytes();
        match self.strategy {
            MatchStrategy::Exact => text == wanted,
            MatchStrategy::Prefix => text.starts_with(wanted),
            MatchStrategy::Contains => {
                wanted.is_empty() || text.windows(wanted.len()).any(|part| part == wanted)
            }
            MatchStrategy::Regex => pattern.is_some_and(|pattern| pattern.matches(&text)),
        }
    }
}

impl ParamValue {
    /// The value as text.
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Int(number) => number.to_string().into_bytes(),
            Self::String(text) => text.clone().into_bytes(),
            Self::Bool(flag) => flag.to_string().into_bytes(),
            Self::Float(number) => decimal::text(*number).into_bytes(),
        }
    }

    /// What tells this value from others: where the caller knows its type, the number 7 and the text "7" are
    /// two values.
    pub fn write_key(&self, key: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => {
                key.push(0);
                key.extend_from_slice(bytes);
            }
            Self::Int(number) => {
                key.push(1);
                key.extend_from_slice(&number.to_le_bytes());
            }
            Self::String(text) => {
                key.push(2);
                key.extend_from_slice(text.as_bytes());
            }
            Self::Bool(flag) => key.extend_from_slice(&[3, u8::from(*flag)]),
            Self::Float(number) => {
                key.push(4);
                key.extend_from_slice(&number.to_bits().to_le_bytes());
            }
        }
    }

    /// Whether a `specificItems` entry means this value. Bytes of a request may be meant as anything: as a
    /// number if they read as one.
    pub fn is(&self, item: &ItemValue) -> bool {
        let text = || match self {
            // A longer number is nobody's threshold, and reading it takes time that a client should not have.
            Self::Bytes(bytes) if bytes.len() > NUMBER_BYTES_MAX => None,
            Self::Bytes(bytes) => core::str::from_utf8(bytes).ok(),
            Self::Int(_) | Self::String(_) | Self::Bool(_) | Self::Float(_) => None,
        };
        match (self, item) {
            (Self::Bytes(bytes), ItemValue::String(wanted)) => bytes == wanted.as_bytes(),
            (Self::Bytes(_), ItemValue::Int(wanted)) => {
                text().and_then(decimal::whole_number) == Some(*wanted)
            }
            (Self::Bytes(_), ItemValue::Bool(wanted)) => {
                text().and_then(|text| text.parse::<bool>().ok()) == Some(*wanted)
            }
            (Self::Bytes(_), ItemValue::Float(wanted)) => {
                let number = text().and_then(decimal::parse);
                number.is_some_and(|number| same_5_decimals(number, *wanted))
            }
            (Self::Int(number), ItemValue::Int(wanted)) => number == wanted,
            (Self::String(text), ItemValue::String(wanted)) => text == wanted,
            (Self::Bool(flag), ItemValue::Bool(wanted)) => flag == wanted,
            (Self::Float(number), ItemValue::Float(wanted)) => same_5_decimals(*number, *wanted),
            _ => false,
        }
    }
}

/// The longest value that is read as a number.
const NUMBER_BYTES_MAX: usize = 32;

/// A parameter of the query string of `path`, decoded; the first if there are several.
pub fn query_param(path: &[u8], name: &str) -> Option<Vec<u8>> {
    let query = path.get(path_without_query(path).len()..)?.strip_prefix(b"?")?;
    let end = query.iter().position(|byte| *byte == b'#').unwrap_or(query.len());
    let pairs = query.get(..end)?.split(|byte| *byte == b'&');
    for pair in pairs {
        let (key, value) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (pair.get(..at)?, pair.get(at + 1..)?),
            None => (pair, [].as_slice()),
        };
        if percent_decoded(key) == name.as_bytes() {
            return Some(percent_decoded(value));
        }
    }
    None
}

/// A cookie of a `cookie` header; the first if there are several (RFC 6265, section 5.4).
pub fn cookie(header: &[u8], name: &str) -> Option<Vec<u8>> {
    for pair in header.split(|byte| *byte == b';') {
        let pair = pair.trim_ascii();
        let Some(at) = pair.iter().position(|byte| *byte == b'=') else { continue };
        if pair.get(..at).is_some_and(|key| key.trim_ascii() == name.as_bytes()) {
            let value = pair.get(at + 1..)?.trim_ascii();
            let unquoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
            return Some(unquoted.unwrap_or(value).to_vec());
        }
    }
    None
}

/// A segment of `path`, decoded; 1 is the first after the slash. One that is empty is none.
pub fn path_segment(path: &[u8], number: u32) -> Option<Vec<u8>> {
    let path = path_without_query(path).strip_prefix(b"/")?;
    let skipped = usize::try_from(number.checked_sub(1)?).ok()?;
    let segment = path.split(|byte| *byte == b'/').nth(skipped)?;
    (!segment.is_empty()).then(|| percent_decoded_path(segment))
}

/// The address in Envoy's `address:port` or `[address]:port`; one without a port is itself.
pub fn address_without_port(address: &[u8]) -> &[u8] {
    if let Some(rest) = address.strip_prefix(b"[") {
        let end = rest.iter().position(|byte| *byte == b']').unwrap_or(rest.len());
        return rest.get(..end).unwrap_or(rest);
    }
    match address.iter().rposition(|byte| *byte == b':') {
        // More than one colon and no bracket is an IPv6 address alone.
        Some(at) if !address.get(..at).is_some_and(|front| front.contains(&b':')) => {
            address.get(..at).unwrap_or(address)
        }
        Some(_) | None => address,
    }
}

/// `%41` and `+` decoded, so that nobody gets a second budget by writing his name in another way.
fn percent_decoded(text: &[u8]) -> Vec<u8> {
    decoded(text, true)
}

/// The same for a path, where `+` is itself.
fn percent_decoded_path(text: &[u8]) -> Vec<u8> {
    decoded(text, false)
}

fn decoded(text: &[u8], plus_is_space: bool) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = match (first, tail) {
            (b'+', _) if plus_is_space => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high * 16 + low
                }
                _ => b'%',
            },
            _ => *first,
        };
        bytes.push(byte);
    }
    bytes
}

fn is_param_name(name: &str) -> bool {
    (1..=256).contains(&name.len()) && name.chars().all(|c| !c.is_control())
}

/// Equal when both are rounded to 5 decimals.
fn same_5_decimals(a: f64, b: f64) -> bool {
    // From here on there are no decimals left to round, and the casts below would saturate.
    const WHOLE: f64 = 9e13;
    if a.abs() >= WHOLE || b.abs() >= WHOLE {
        return a == b;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a cast saturates")]
    let rounded = |number: f64| (number * 1e5 + if number < 0.0 { -0.5 } else { 0.5 }) as i64;
    !a.is_nan() && !b.is_nan() && rounded(a) == rounded(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_named_by_where_it_is_and_what_it_is_called() {
        assert_eq!(Param::parse("query:a:b"), Some(Param::Query("a:b".into())));
        assert_eq!(Param::parse("path_segment:1"), Some(Param::PathSegment(1)));
        for text in [
            "",
            "header",
            "header:",
            "header:a b",
            "path_segment:0",
            "path_segment:x",
            "client_ip:1",
        ] {
            assert_eq!(Param::parse(text), None, "{text}");
        }
    }

    #[track_caller]
    fn check_query(path: &str, expected: Option<&str>) {
        assert_eq!(
            query_param(path.as_bytes(), "user"),
            expected.map(|text| text.as_bytes().to_vec()),
            "{path}"
        );
    }

    #[test]
    fn a_query_parameter_is_found_by_its_whole_name_and_the_first_one_counts() {
        check_query("/", None);
        check_query("/?", None);
        check_query("/?users=1&auser=2", None);
        check_query("/?user", Some(""));
        check_query("/?user=", Some(""));
        check_query("/?a=1&user=ann&user=bob", Some("ann"));
        check_query("/?user=a=b", Some("a=b"));
        check_query("/?user=ann#user=bob", Some("ann"));
        check_query("/a/b?c?user=1&user=2", Some("2"));
        check_query("/#?user=ann", None);
    }

    #[test]
    fn a_parameter_written_in_another_way_is_the_same_value() {
        check_query("/?user=%61nn", Some("ann"));
        check_query("/?%75ser=ann", Some("ann"));
        check_query("/?user=a+b", Some("a b"));
        check_query("/?user=a%20b", Some("a b"));
        check_query("/?user=a%2Bb", Some("a+b"));
        check_query("/?user=%", Some("%"));
        check_query("/?user=%4", Some("%4"));
        check_query("/?user=%zz%41", Some("%zzA"));
        check_query("/?user=%2541", Some("%41"));
        assert_eq!(query_param(b"/?user=%ff\xfe", "user"), Some(alloc::vec![0xff, 0xfe]));
    }

    #[test]
    fn a_cookie_is_found_by_its_name_without_what_surrounds_it() {
        let find =
            |header: &[u8]| cookie(header, "sid").map(|value| String::from_utf8(value).unwrap());
        assert_eq!(find(b"sid=abc"), Some("abc".into()));
        assert_eq!(find(b"a=1; sid=abc; sid=def"), Some("abc".into()));
        assert_eq!(find(b"a=1;  sid = \"a b\" ;b"), Some("a b".into()));
        assert_eq!(find(b"sid=a=b"), Some("a=b".into()));
        assert_eq!(find(b"sid="), Some(String::new()));
        assert_eq!(find(b"sid=\""), Some("\"".into()));
        for header in [b"".as_slice(), b";;", b"sid", b"xsid=1; sidx=2", b"Sid=1"] {
            assert_eq!(find(header), None, "{header:?}");
        }
    }

    #[test]
    fn a_segment_of_the_path_is_decoded_and_one_that_is_empty_is_none() {
        let find = |path: &str, number| {
            path_segment(path.as_bytes(), number).map(|value| String::from_utf8(value).unwrap())
        };
        assert_eq!(find("/users/7?x=/9", 1), Some("users".into()));
        assert_eq!(find("/users/7?x=/9", 2), Some("7".into()));
        assert_eq!(find("/users/%37", 2), Some("7".into()));
        assert_eq!(find("/a+b/%2F", 1), Some("a+b".into()));
        assert_eq!(find("/a+b/%2F", 2), Some("/".into()));
        for (path, number) in [
            ("/", 1),
            ("/a", 2),
            ("/a/", 2),
            ("//a", 1),
            ("a", 1),
            ("", 1),
            ("/a", 0),
            ("/a", u32::MAX),
        ] {
            assert_eq!(find(path, number), None, "segment {number} of {path}");
        }
    }

    #[test]
    fn an_address_loses_its_port_and_nothing_else() {
        for (address, expected) in [
            ("10.0.0.1:8080", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]:8080", "::1"),
            ("[::1", "::1"),
            ("2001:db8::7", "2001:db8::7"),
            ("", ""),
            (":", ""),
        ] {
            assert_eq!(address_without_port(address.as_bytes()), expected.as_bytes(), "{address}");
        }
    }

    fn bytes(text: &str) -> ParamValue {
        ParamValue::Bytes(text.as_bytes().to_vec())
    }

    #[track_caller]
    fn check_item(item: &ItemValue, same: &[ParamValue], others: &[ParamValue]) {
        for value in same {
            assert!(value.is(item), "{value:?} is {item:?}");
        }
        for value in others {
            assert!(!value.is(item), "{value:?} is not {item:?}");
        }
    }

    #[test]
    fn an_item_means_values_of_its_kind_and_bytes_that_read_as_one() {
        use ParamValue::{Bool, Float, Int, String as Text};
        check_item(
            &ItemValue::Int(7),
            &[Int(7), bytes("7"), bytes("007")],
            &[
                Int(8),
                Text("7".into()),
                Float(7.0),
                Bool(true),
                bytes("7.0"),
                bytes(""),
                bytes("7 "),
            ],
        );
        check_item(
            &ItemValue::String("7".into()),
            &[Text("7".into()), bytes("7")],
            &[Int(7), Float(7.0), bytes("07"), Text("77".into())],
        );
        check_item(
            &ItemValue::Bool(true),
            &[Bool(true), bytes("true")],
            &[Bool(false), Text("true".into()), Int(1), bytes("True"), bytes("1")],
        );
        check_item(
            &ItemValue::Float(1.234_57),
            &[Float(1.234_57), Float(1.234_568), bytes("1.234574")],
            &[
                Float(1.234_56),
                Float(f64::NAN),
                Int(1),
                Text("1.23457".into()),
                bytes("nan"),
                bytes("inf"),
            ],
        );
        check_item(&ItemValue::Float(-0.5), &[Float(-0.5), bytes("-0.500001")], &[Float(0.5)]);
        // Where a number with 5 decimals does not fit an integer any more.
        check_item(
            &ItemValue::Float(1e14),
            &[Float(1e14), bytes("1e14")],
            &[Float(2e14), Float(f64::INFINITY)],
        );
        let no_text = ParamValue::Bytes(alloc::vec![0xff]);
        check_item(&ItemValue::Int(0), &[], core::slice::from_ref(&no_text));
    }

    #[test]
    fn values_of_different_types_are_different_values() {
        let values = [
            bytes("7"),
            ParamValue::Int(7),
            ParamValue::String("7".into()),
            ParamValue::Float(7.0),
            ParamValue::Bool(true),
            ParamValue::Bool(false),
        ];
        let key = |value: &ParamValue| {
            let mut key = Vec::new();
            value.write_key(&mut key);
            key
        };
        for (place, value) in values.iter().enumerate() {
            for other in values.iter().skip(place + 1) {
                assert_ne!(key(value), key(other), "{value:?} and {other:?}");
            }
        }
        let texts: Vec<_> =
            values.iter().map(|value| String::from_utf8(value.text()).unwrap()).collect();
        assert_eq!(texts, ["7", "7", "7", "7", "true", "false"]);
    }

    #[test]
    fn a_gateway_rule_counts_the_values_that_its_pattern_matches() {
        let accepts = |strategy, pattern: &str, value: &str| {
            let compiled = Pattern::new(pattern).ok();
            let matching = ParamMatch { strategy, pattern: pattern.to_string() };
            matching.accepts(&bytes(value), compiled.as_ref())
        };
        for (strategy, pattern, value, expected) in [
            (MatchStrategy::Exact, "ab", "ab", true),
            (MatchStrategy::Exact, "ab", "abc", false),
            (MatchStrategy::Prefix, "ab", "abc", true),
            (MatchStrategy::Prefix, "ab", "cab", false),
            (MatchStrategy::Contains, "ab", "cabd", true),
            (MatchStrategy::Contains, "ab", "a", false),
            (MatchStrategy::Contains, "", "", true),
            (MatchStrategy::Regex, "a.", "ab", true),
            (MatchStrategy::Regex, "a.", "abc", false),
        ] {
            assert_eq!(
                accepts(strategy, pattern, value),
                expected,
                "{strategy:?} {pattern} {value}"
            );
        }
        let no_pattern = ParamMatch { strategy: MatchStrategy::Regex, pattern: "a".into() };
        assert!(!no_pattern.accepts(&bytes("a"), None));
    }
}
