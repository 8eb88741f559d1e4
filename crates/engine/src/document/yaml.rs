//! YAML 1.2, and so JSON, by the events of `saphyr-parser`.
//!
//! A rule document needs little of YAML, and what it does not need is refused instead of guessed at:
//! aliases (which make a short text a large tree), tags other than those of the core schema, keys that
//! are no text, names that stand twice, control characters.

use alloc::{borrow::Cow, format, string::String, vec::Vec};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use sentinel_core::rule::node::{DEPTH_MAX, Entry, Map, NODES_MAX, Node, Position, Value};

use crate::document::{DocumentError, SOURCE_BYTES_MAX, scalar};

/// The documents of `text`, which is YAML or JSON in UTF-8.
pub fn documents(text: &[u8]) -> Result<Vec<Node>, DocumentError> {
    if text.len() > SOURCE_BYTES_MAX {
        let problem =
            format!("is {} bytes long, but may have at most {SOURCE_BYTES_MAX}", text.len());
        return Err(DocumentError { position: None, problem });
    }
    let text = match core::str::from_utf8(text) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let right = text.get(..error.valid_up_to()).unwrap_or_default();
            let position = position_after(&String::from_utf8_lossy(right));
            return Err(DocumentError::new(Some(position), "is not UTF-8 from here on"));
        }
    };
    // Not only are they no YAML: the parser takes a NUL for the end, and what follows it for nothing.
    if let Some((at, control)) = text.char_indices().find(|(_, c)| is_forbidden(*c)) {
        let position = position_after(text.get(..at).unwrap_or_default());
        let problem =
            format!("the control character U+{:04X} may not stand here", u32::from(control));
        return Err(DocumentError { position: Some(position), problem });
    }
    Reader { parser: Parser::new_from_str(text), room: NODES_MAX }.documents()
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    /// How many values there may still be.
    room: usize,
}

impl<'t> Reader<'t> {
    fn documents(mut self) -> Result<Vec<Node>, DocumentError> {
        let mut nodes = Vec::new();
        while let Some((event, span)) = self.next()? {
            match event {
                Event::Nothing
                | Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => nodes.push(self.node(event, span, DEPTH_MAX)?),
            }
        }
        Ok(nodes)
    }

    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, DocumentError> {
        self.parser.next_event().transpose().map_err(|error| scan_error(&error))
    }

    /// The next event, where the document cannot be over yet.
    fn expect_next(&mut self) -> Result<(Event<'t>, Span), DocumentError> {
        self.next()?.ok_or_else(|| DocumentError::new(None, "ends too early"))
    }

    /// The value that begins with `event`, in which `depth` levels may stand.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, DocumentError> {
        let position = position_of(span.start);
        let refuse = |problem: &str| DocumentError::new(Some(position), problem);
        self.room = self.room.checked_sub(1).ok_or_else(|| {
            refuse(&format!(
                "has more than {NODES_MAX} values up to here: put them into several files"
            ))
        })?;
        let value = match event {
            Event::Scalar(text, style, _, tag) => {
                scalar(text, style, tag.as_deref()).ok_or_else(|| {
                    refuse("this tag is not supported: leave it out, and quote what is text")
                })?
            }
            Event::SequenceStart(_, tag) => {
                check_tag(tag.as_deref(), "seq").map_err(refuse)?;
                let depth = depth.checked_sub(1).ok_or_else(|| refuse(TOO_DEEP))?;
                self.list(depth)?
            }
            Event::MappingStart(_, tag) => {
                check_tag(tag.as_deref(), "map").map_err(refuse)?;
                let depth = depth.checked_sub(1).ok_or_else(|| refuse(TOO_DEEP))?;
                self.map(depth)?
            }
            Event::Alias(_) => {
                return Err(refuse("aliases (`*name`) are not supported: write the value out"));
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(refuse("a value is missing here")),
        };
        Ok(Node { value, position: Some(position) })
    }

    fn list(&mut self, depth: usize) -> Result<Value, DocumentError> {
        let mut list = Vec::new();
        loop {
            let (event, span) = self.expect_next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::List(list));
            }
            list.push(self.node(event, span, depth)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, DocumentError> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = self.expect_next()?;
            let position = position_of(span.start);
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                Event::Alias(_)
                | Event::SequenceStart(..)
                | Event::MappingStart(..)
                | Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::SequenceEnd => {
                    return Err(DocumentError::new(Some(position), "a name in a map must be text"));
                }
            };
            let (event, span) = self.expect_next()?;
            let value = self.node(event, span, depth)?;
            entries.push(Entry { key, position: Some(position), value });
        }
        let map = Map::from_entries(entries).map_err(|entry| {
            let key = Node::new(Value::String(entry.key)).describe();
            DocumentError {
                position: entry.position,
                problem: format!("the name {key} stands twice in this map"),
            }
        })?;
        Ok(Value::Map(map))
    }
}

const TOO_DEEP: &str = "lists and maps stand too deep in each other";

const CORE_TAGS: &str = "tag:yaml.org,2002:";

/// What a scalar means; `None` if its tag says something that it is not, or that we do not know.
fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Option<Value> {
    let plain = matches!(style, ScalarStyle::Plain);
    let Some(tag) = tag else {
        return Some(if plain { scalar::resolve(&text) } else { Value::String(text.into_owned()) });
    };
    let is_text = tag.handle == CORE_TAGS && tag.suffix == "str"
        || tag.handle.is_empty() && tag.suffix == "!";
    if is_text {
        return Some(Value::String(text.into_owned()));
    }
    if tag.handle != CORE_TAGS || !plain {
        return None;
    }
    let value = scalar::resolve(&text);
    let is_what_the_tag_says = match value {
        Value::Null => tag.suffix == "null",
        Value::Bool(_) => tag.suffix == "bool",
        Value::Int(_) => tag.suffix == "int" || tag.suffix == "float",
        Value::Float(_) => tag.suffix == "float",
        Value::String(_) | Value::List(_) | Value::Map(_) => false,
    };
    is_what_the_tag_says.then_some(value)
}

fn check_tag(tag: Option<&Tag>, allowed: &str) -> Result<(), &'static str> {
    match tag {
        Some(tag) if tag.handle != CORE_TAGS || tag.suffix != allowed => {
            Err("this tag is not supported: leave it out")
        }
        Some(_) | None => Ok(()),
    }
}

/// Control characters that YAML forbids (section 5.1); tab and the ends of lines are none of them.
fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')
}

fn scan_error(error: &ScanError) -> DocumentError {
    DocumentError { position: Some(position_of(*error.marker())), problem: error.info().into() }
}

fn position_of(marker: Marker) -> Position {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Position { line: count(marker.line()), column: count(marker.col().saturating_add(1)) }
}

/// The position of what follows `text`.
fn position_after(text: &str) -> Position {
    let line = text.matches('\n').count().saturating_add(1);
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count().saturating_add(1);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Position { line: count(line), column: count(column) }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// The documents as JSON of a kind, or the error.
    #[track_caller]
    fn check(text: &str, expected: &Expect) {
        let said = match documents(text.as_bytes()) {
            Ok(nodes) => nodes.iter().map(say).collect::<Vec<_>>().join(" --- "),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&said);
    }

    fn say(node: &Node) -> String {
        match &node.value {
            Value::List(list) => {
                format!("[{}]", list.iter().map(say).collect::<Vec<_>>().join(", "))
            }
            Value::Map(map) => {
                let entries = map
                    .entries()
                    .iter()
                    .map(|entry| format!("{}: {}", entry.key, say(&entry.value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
            Value::Null => "null".into(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::String(_) => node.describe(),
        }
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        check(
            "a: 1\nb: [x, '2', ~]\nc:\n- d: true\n",
            &expect![[r#"{a: 1, b: ["x", "2", null], c: [{d: true}]}"#]],
        );
        check(
            "{\n\t\"a\":1,\n\t\"b\": [\"x\", \"2\", null],\r\n\t\"c\": [{\"d\": true}]\n}",
            &expect![[r#"{a: 1, b: ["x", "2", null], c: [{d: true}]}"#]],
        );
        check("a: |\n  x\n  y\nb: >-\n  x\n  y\n", &expect![[r#"{a: "x\ny\n", b: "x y"}"#]]);
    }

    #[test]
    fn a_text_may_hold_several_documents() {
        check("# one\na: 1\n---\n---\nb: 2\n...\n", &expect!["{a: 1} --- null --- {b: 2}"]);
        check("", &expect![""]);
        check("\u{feff}a: 1", &expect!["{a: 1}"]);
    }

    #[test]
    fn a_value_stands_where_it_is_written() {
        let nodes = documents("a:\n- ä: x\n".as_bytes()).unwrap();
        let Value::Map(map) = &nodes[0].value else { panic!() };
        let Value::List(list) = &map.entries()[0].value.value else { panic!() };
        let Value::Map(map) = &list[0].value else { panic!() };
        assert_eq!(map.entries()[0].position, Some(Position { line: 2, column: 3 }));
        assert_eq!(map.entries()[0].value.position, Some(Position { line: 2, column: 6 }));
    }

    #[test]
    fn core_tags_are_kept_and_others_refused() {
        check(
            "a: !!str 1\nb: ! 2\nc: !!int 3\nd: !!map {}\n",
            &expect![[r#"{a: "1", b: "2", c: 3, d: {}}"#]],
        );
        check(
            "a: !!int x",
            &expect![
                "line 1, column 4: this tag is not supported: leave it out, and quote what is text"
            ],
        );
        check(
            "a: !env HOME",
            &expect![
                "line 1, column 4: this tag is not supported: leave it out, and quote what is text"
            ],
        );
        check("a: !set {b}", &expect!["line 1, column 4: this tag is not supported: leave it out"]);
    }

    #[test]
    fn what_a_rule_file_does_not_need_is_refused_with_its_place() {
        check(
            "a: &x 1\nb: *x",
            &expect!["line 2, column 4: aliases (`*name`) are not supported: write the value out"],
        );
        check(
            "a: 1\nb: 2\na: 3",
            &expect![[r#"line 3, column 1: the name "a" stands twice in this map"#]],
        );
        check("? [a]\n: b", &expect!["line 1, column 3: a name in a map must be text"]);
        check(
            "a: \"x\u{0}\"\nb: 1",
            &expect!["line 1, column 6: the control character U+0000 may not stand here"],
        );
        check(
            "a:\n\t- b",
            &expect!["line 2, column 2: tabs disallowed within this context (block indentation)"],
        );
        check(
            r#"{"a": "\q"}"#,
            &expect![
                "line 1, column 7: while parsing a quoted scalar, found unknown escape character"
            ],
        );
        check(
            "a: [1, 2",
            &expect!["line 2, column 1: while parsing a flow sequence, expected ',' or ']'"],
        );
        check(
            "a: b: c",
            &expect!["line 1, column 5: mapping values are not allowed in this context"],
        );
    }

    #[test]
    fn a_merge_key_is_a_name_like_any_other() {
        check("<<: {a: 1}\na: 2", &expect!["{<<: {a: 1}, a: 2}"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_place() {
        let error = documents(b"a: 1\nb: \xff").unwrap_err();
        expect!["line 2, column 4: is not UTF-8 from here on"].assert_eq(&error.to_string());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(documents(deep(DEPTH_MAX).as_bytes()).is_ok());
        check(
            &deep(DEPTH_MAX + 1),
            &expect!["line 1, column 33: lists and maps stand too deep in each other"],
        );
        check(&"[".repeat(100_000), &expect!["line 1, column 256: recursion limit exceeded"]);
        check(
            &"- ".repeat(100_000),
            &expect!["line 1, column 65: lists and maps stand too deep in each other"],
        );
        check(
            &format!("[{}]", "a,".repeat(NODES_MAX)),
            &expect![
                "line 1, column 2000000: has more than 1000000 values up to here: put them into several files"
            ],
        );
        check(
            &"#".repeat(SOURCE_BYTES_MAX + 1),
            &expect!["is 8388609 bytes long, but may have at most 8388608"],
        );
    }

    #[test]
    fn a_million_bytes_of_rules_are_read() {
        let rule = "- {id: hello, resource: \"GET:/hello\", threshold: 100}\n";
        let nodes = documents(rule.repeat(20_000).as_bytes()).unwrap();
        assert!(matches!(&nodes[0].value, Value::List(rules) if rules.len() == 20_000));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        #[test]
        fn any_bytes_are_documents_or_an_error(bytes: Vec<u8>) {
            let _ = documents(&bytes);
        }

        #[test]
        fn any_text_of_yaml_s_own_characters_is_documents_or_an_error(
            text in "([-?:,\\[\\]{}#&*!|>'\"%@` \t\r\n~.a0\\\\]|---|\\.\\.\\.|%TAG|!!|: |- |\\? |\n  ){0,40}",
        ) {
            let _ = documents(text.as_bytes());
        }
    }
}
