//! A document as a tree, in which nothing is trusted.
//!
//! YAML, JSON and `google.protobuf.Struct` all become this one shape, so that a rule means the same
//! wherever it comes from, and an error can say the line where there is one. Whoever builds a tree
//! bounds its depth ([`DEPTH_MAX`]) and its size ([`NODES_MAX`]); whoever reads it need not count.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::fmt;

use crate::{decimal, order::order_of};

/// How deep lists and maps may stand in each other. A rule document needs seven levels; a deeper one is
/// refused, since it is read by functions that call themselves.
pub const DEPTH_MAX: usize = 32;

/// How many values one source may hold, five times what ten thousand rules with all their fields are.
/// A larger one is refused, since a short text can say many values.
pub const NODES_MAX: usize = 1_000_000;

/// The largest number up to which a double holds every whole number, 2⁵³: the numbers of JSON and Struct
/// are doubles.
pub const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// [`WHOLE_MAX`] as a whole number.
pub const WHOLE_MOST: i64 = 1 << 53;

/// A value of a document and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What the document says.
    pub value: Value,
    /// Where it says so, if the source has lines.
    pub position: Option<Position>,
}

/// What a document can say.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing: as good as a field that is absent.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, also an infinite one or NaN.
    Float(f64),
    /// Text.
    String(String),
    /// Values in order.
    List(Vec<Node>),
    /// Values by name.
    Map(Map),
}

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// 1 is the first line.
    pub line: u32,
    /// In characters; 1 is the first.
    pub column: u32,
}

/// Values by name, in the order in which they were written; no name stands twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    entries: Vec<Entry>,
}

/// One name of a [`Map`] and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name.
    pub key: String,
    /// Where the name stands.
    pub position: Option<Position>,
    /// The value.
    pub value: Node,
}

impl Node {
    /// A value that stands nowhere in particular.
    pub fn new(value: Value) -> Self {
        Self { value, position: None }
    }

    /// The value in a few words, for an error: control characters are escaped and long text is cut.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => decimal::text(*number),
            Value::String(text) => format!("\"{}\"", shorten(text)),
            Value::List(_) => "a list".to_string(),
            Value::Map(_) => "a map".to_string(),
        }
    }
}

impl Value {
    /// A number that came as a double: [`Value::Int`] if it is whole and at most ±2⁵³.
    pub fn from_double(number: f64) -> Self {
        if !(-WHOLE_MAX..=WHOLE_MAX).contains(&number) {
            return Self::Float(number);
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "in range, and compared with what it was"
        )]
        let whole = number as i64;
        #[expect(clippy::cast_precision_loss, reason = "at most 2^53")]
        let same = whole as f64 == number;
        if same { Self::Int(whole) } else { Self::Float(number) }
    }
}

impl Map {
    /// A map of `entries`, or the first of them whose name another one before it has.
    pub fn from_entries(entries: Vec<Entry>) -> Result<Self, Entry> {
        let key = |index: &usize| entries.get(*index).map(|entry| entry.key.as_str());
        // Of two equal names the one written first comes first.
        let order = order_of(entries.len(), &|a, b| key(&a).cmp(&key(&b)));
        let repeated = order
            .windows(2)
            .filter_map(|pair| match pair {
                [first, second] if key(first) == key(second) => Some(*second),
                _ => None,
            })
            .min();
        match repeated.and_then(|index| entries.get(index)) {
            Some(entry) => Err(entry.clone()),
            None => Ok(Self { entries }),
        }
    }

    /// All entries, in the order in which they were written.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The value under `key`; `None` also when it is [`Value::Null`], which says no more than leaving
    /// it out.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (entry.value.value != Value::Null).then_some(&entry.value)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The first characters of `text`, escaped so that it cannot forge another line of a log, nor look like another text.
///
/// Not by `char::escape_debug`, whose table of all that Unicode has not assigned is 4 KB of a module.
pub(crate) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 60;

    let mut chars = text.chars();
    let mut short = String::new();
    for c in chars.by_ref().take(CHARS_MAX) {
        match c {
            '"' | '\\' => short.extend(['\\', c]),
            '\n' => short.push_str("\\n"),
            '\r' => short.push_str("\\r"),
            '\t' => short.push_str("\\t"),
            _ if is_unseen(c) => short.extend(c.escape_unicode()),
            _ => short.push(c),
        }
    }
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// Whether `c` is a control character, turns the direction of the text around it, ends a line, or has no width.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: Value) -> Entry {
        Entry { key: key.to_string(), position: None, value: Node::new(value) }
    }

    #[test]
    fn a_name_that_stands_twice_makes_no_map() {
        let entries = ["b", "a", "c", "a", "b"].map(|key| entry(key, Value::Null));
        let repeated = Map::from_entries(entries.to_vec()).unwrap_err();
        assert_eq!(repeated.key, "a");
    }

    #[test]
    fn a_map_keeps_the_order_in_which_it_was_written() {
        let map = Map::from_entries(["b", "a", "c"].map(|key| entry(key, Value::Int(1))).to_vec())
            .unwrap();
        let keys: Vec<&str> = map.entries().iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["b", "a", "c"]);
    }

    #[test]
    fn nothing_is_as_good_as_absent() {
        let map = Map::from_entries([entry("a", Value::Null), entry("b", Value::Int(1))].to_vec())
            .unwrap();
        assert_eq!(map.get("a"), None);
        assert_eq!(map.get("b"), Some(&Node::new(Value::Int(1))));
    }

    #[test]
    fn described_numbers_are_found_again() {
        for (number, text) in [
            (0.5, "0.5"),
            (-2000.5, "-2000.5"),
            (1e300, "1e300"),
            (-1.5e-300, "-1.5e-300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e308"),
            (999_999.999_999_9, "999999.9999999"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(Node::new(Value::Float(number)).describe(), text);
        }
    }

    #[test]
    fn described_text_is_short_and_stays_on_its_line() {
        let text = Node::new(Value::String("a\n\u{1b}[31m\"".to_string()));
        assert_eq!(text.describe(), r#""a\n\u{1b}[31m\"""#);
        let hidden =
            Node::new(Value::String("it's ÄÖ東京😀\u{202e}\u{200b}\\\u{2028}\t".to_string()));
        assert_eq!(hidden.describe(), r#""it's ÄÖ東京😀\u{202e}\u{200b}\\\u{2028}\t""#);
        let long = Node::new(Value::String("ä".repeat(100)));
        assert_eq!(long.describe().chars().count(), 63);
    }
}
