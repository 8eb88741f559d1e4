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
        let problem = format!("is {} bytes long, but may have at most {SOURCE_BYTES_MAX}", text.len());
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
        let problem = format!("the control character U+{:04X} may not stand here", u32::from(control));
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
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
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
            refuse(&format!("has more than {NODES_MAX} values up to here: put them into several files"))
        })?;
        let value = match event {
            Event::Scalar(text, style, _, tag) => scalar(text, style, tag.as_deref())
                .ok_or_else(|| refuse("this tag is not supported: leave it out, and quote what is text"))?,
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
            DocumentError { position: entry.position, problem: format!("the name {key} stands twice in this map") }
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
    let is_text = tag.handle == CORE_TAGS && tag.suffix == "str" || tag.handle.is_empty() && tag.suffix == "!";
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
mod probe {
    use super::*;
    extern crate std;
    use std::println;
    #[test]
    fn probe() {
        let t = |s: &str| match documents(s.as_bytes()) { Ok(n) => println!("OK {:?} => {:?}", s.chars().take(60).collect::<String>(), n.iter().map(|n| alloc::format!("{:?}", n.value).chars().take(300).collect::<String>()).collect::<Vec<_>>()), Err(e) => println!("ERR {:?} => {e}", s.chars().take(60).collect::<String>()) };
        t("{\n\t\"a\": 1,\n\t\"b\": [\n\t\t1\n\t]\n}");
        t("{\"a\": \"\\ud83d\\ude00 \\/ \\u00e9\"}");
        t("{\"a\": \"\\q\"}");
        t("a: *x");
        t("a: &x 1\nb: *x");
        t("a: 1\na: 2");
        t("a: !!str 1\nb: !!int \"1\"\nc: !foo 1\n");
        t("b: !!int 1\nc: !!float 1\nd: ! 12");
        t("a:\n\t- b");
        t("- a\n b: c");
        t("a: b: c");
        t("a: [1, 2");
        t("a: \"x");
        t("? [a]\n: b");
        t(": b");
        t("");
        t("---\n---\na: 1\n...\n");
        t("# only");
        t("a: |\n  x\n  y\nb: >-\n  x\n  y\n");
        t("<<: {a: 1}");
        t("%YAML 1.2\n---\na: 1");
        t("%FOO x\n---\na: 1");
        t("a: 1\r\nb: 2\r\n");
        t("a: 'it''s'");
        t("a: @x");
        t("a: `x");
        t("{a: 1, b}");
        t("{a:1}");
        t("{\"a\":1}");
        t("a\u{0}b");
        t(&"[".repeat(2000));
        t(&"{".repeat(2000));
        t(&"[".repeat(40));
        t(&"- ".repeat(100));
        t(&"a: ".repeat(100));
        t(&"? ".repeat(100));
        t(&"!".repeat(10000));
        t("\u{2028}");
        t("a: \u{feff}b");
        let time = |name: &str, s: alloc::string::String| { let b = std::time::Instant::now(); let r = documents(s.as_bytes()).map(|n| n.len()); println!("{name} {} bytes: {:?} {:?}", s.len(), b.elapsed(), r.map_err(|e| alloc::format!("{e}").chars().take(200).collect::<String>())); };
        for n in [200_000usize, 400_000, 800_000] {
            time("commas", alloc::format!("[{}]", "a,".repeat(n/2)));
            time("dashes", "- a\n".repeat(n/4));
            time("a:b", (0..n/10).map(|i| alloc::format!("k{i}: a\n")).collect());
            time("flow map", alloc::format!("{{{}}}", (0..n/10).map(|i| alloc::format!("k{i}: a, ")).collect::<alloc::string::String>()));
            time("spaces", " ".repeat(n));
            time("newlines", "\n".repeat(n));
            time("quoted", alloc::format!("\"{}\"", "x".repeat(n)));
            time("quoted nl", alloc::format!("\"{}\"", "x\n".repeat(n/2)));
            time("plain", "x".repeat(n));
            time("plain multi", "x y\n".repeat(n/4));
            time("literal", alloc::format!("|\n{}", " x\n".repeat(n/3)));
            time("comment", "# x\n".repeat(n/4));
            time("docs", "---\n".repeat(n/4));
            time("docs...", "--- a\n...\n".repeat(n/10));
            time("anchors", alloc::format!("[{}]", (0..n/8).map(|i| alloc::format!("&a{i} x, ")).collect::<alloc::string::String>()));
            time("braces", "{".repeat(n));
            time("q?", "? a\n".repeat(n/4));
            time("tags", alloc::format!("!{}", "a".repeat(n)));
            time("colon", ":".repeat(n));
            time("bang", alloc::format!("[{}]", "!!str a,".repeat(n/8)));
            time("pct", "%TAG ! tag:x\n".repeat(n/13));
            time("tabs", "\t".repeat(n));
            time("jsonlong", alloc::format!("[{}]", "{\"id\": \"aaaa\", \"resource\": \"GET:/x\", \"threshold\": 1},".repeat(n/50)));
        }
    }
}
