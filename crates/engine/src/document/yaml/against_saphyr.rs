//! Our reader against `saphyr-parser`: what both read, they read as the same; what only one of them reads is
//! named here, by the reason that it or the other one gives.

use alloc::{borrow::ToOwned as _, format, string::String, vec::Vec};

use proptest::{prelude::*, test_runner::TestCaseResult};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::*;

/// What we refuse although saphyr-parser reads it, by what we say of it.
const REFUSED_BY_US: &[&str] = &[
    // What nobody needs.
    "names behind `? ` are not supported",
    "a name must stand before the `:`",
    "a name in a map takes no tag",
    "the only directive that is supported",
    "a byte order mark may stand at the beginning only",
    // What YAML forbids too.
    "tabs may not indent",
    "a comment must begin with a blank",
    "a text that begins with this character must stand in quotes",
    "is not closed: close it, or indent what belongs to it",
];

/// The same where `&` and `!` stand in two lines before one value.
const REFUSED_IN_TWO_LINES: &[&str] = &[
    "the anchor and the tag of a value must stand in one line",
    "a name or a value is missing here",
    "no map can begin in this line",
];

/// What we read although saphyr-parser refuses it, by what it says of it.
const READ_BY_US: &[&str] = &[
    // A tab between the `:` and the value, and before what stands in brackets or quotes.
    "':' must be followed by a valid YAML whitespace",
    "tabs disallowed within this context",
    "tab cannot be used as indentation",
    "while scanning a plain scalar, found a tab",
    // `{a:[b]}`
    "':' may not precede any of `[{` in flow mapping",
    // `[a -]`
    "plain scalar cannot start with '-' followed by ,[]{}",
    // A bracket that closes in the column of the name before it.
    "invalid indentation",
];

/// The documents of `text` by the events of saphyr-parser. Where it says another place than that where a value
/// begins, or one that depends on how the value is written, there is none.
fn theirs(text: &str) -> Result<Vec<Node>, String> {
    if text.chars().any(|c| is_forbidden(c) && c != BYTE_ORDER_MARK) {
        return Err("control character".to_owned());
    }
    Theirs { parser: Parser::new_from_str(text) }.documents()
}

struct Theirs<'t> {
    parser: Parser<'t, StrInput<'t>>,
}

impl<'t> Theirs<'t> {
    fn documents(mut self) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::Nothing
                | Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(nodes),
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => nodes.push(self.node(event, span, DEPTH_MAX)?),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), String> {
        match self.parser.next_event() {
            None => Err("ends too early".to_owned()),
            Some(event) => event.map_err(|error| error.info().to_owned()),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, String> {
        let deeper = depth.checked_sub(1).ok_or("too deep");
        let mut position = Some(position(span.start));
        let value = match event {
            Event::Scalar(text, style, _, tag) => {
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) || text.is_empty() {
                    position = None;
                }
                let text = Text { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                meaning(text, written(tag.as_deref()).as_deref()).ok_or("tag")?
            }
            Event::SequenceStart(_, tag) => {
                check(tag.as_deref(), "!!seq")?;
                position = None;
                let mut list = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break Value::List(list);
                    }
                    list.push(self.node(event, span, deeper?)?);
                }
            }
            Event::MappingStart(_, tag) => {
                check(tag.as_deref(), "!!map")?;
                Value::Map(self.map(deeper?)?)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Alias(_)
            | Event::SequenceEnd
            | Event::MappingEnd => return Err("no value".to_owned()),
        };
        Ok(Node { value, position })
    }

    fn map(&mut self, depth: usize) -> Result<Map, String> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let Event::Scalar(key, ..) = event else {
                return Err("a name must be text".to_owned());
            };
            let key = key.into_owned();
            let position = Some(position(span.start));
            let (event, span) = self.next()?;
            entries.push(Entry { key, position, value: self.node(event, span, depth)? });
        }
        Map::from_entries(entries).map_err(|entry| format!("{} twice", entry.key))
    }
}

fn position(marker: Marker) -> Position {
    let count = |count: usize| u32::try_from(count).unwrap();
    Position { line: count(marker.line()), column: count(marker.col() + 1) }
}

/// A tag in the words of a document.
fn written(tag: Option<&Tag>) -> Option<String> {
    let tag = tag?;
    Some(match tag.handle.as_str() {
        "tag:yaml.org,2002:" => format!("!!{}", tag.suffix),
        "" if tag.suffix == "!" => "!".to_owned(),
        _ => "another one".to_owned(),
    })
}

fn check(tag: Option<&Tag>, allowed: &str) -> Result<(), String> {
    match written(tag) {
        Some(tag) if tag != allowed => Err("tag".to_owned()),
        _ => Ok(()),
    }
}

/// Whether `a` says the same as `b`, at the same places where `b` has one.
fn is_same(a: &Node, b: &Node) -> bool {
    (b.position.is_none() || a.position == b.position)
        && match (&a.value, &b.value) {
            (Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
            }
            (Value::Map(a), Value::Map(b)) => {
                a.entries().len() == b.entries().len()
                    && a.entries().iter().zip(b.entries()).all(|(a, b)| {
                        a.key == b.key && a.position == b.position && is_same(&a.value, &b.value)
                    })
            }
            (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a == b,
        }
}

/// Whether ours and theirs agree about `text`, or why not.
fn agree(text: &str) -> TestCaseResult {
    // Blanks in a last line without an end are a line of a block text to them.
    let text = text.trim_end_matches(' ');
    let ours = documents(text.as_bytes());
    let theirs = theirs(text);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            let same =
                ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| is_same(a, b));
            prop_assert!(same, "{text:?} is to us\n{ours:#?}\nto them\n{theirs:#?}");
        }
        (Err(error), Ok(theirs)) => {
            let is = |reasons: &[&str]| reasons.iter().any(|reason| error.problem.contains(reason));
            let is_at_margin = error.position.is_some_and(|position| position.column == 1)
                && is(&["this line is indented less than the text it should begin"]);
            let is_named = is(REFUSED_BY_US)
                || is_at_margin
                || text.contains('&') && text.contains('!') && is(REFUSED_IN_TWO_LINES);
            prop_assert!(is_named, "{text:?}: we refuse: {error}\n{theirs:?}");
        }
        (Ok(ours), Err(error)) => {
            // An empty block text, whose indentation is said, before the end of the document.
            let is_empty_block = error.contains("wrongly indented line in block scalar")
                && (text.contains("\n...") || text.contains("\n---"));
            let is_named = is_empty_block || READ_BY_US.iter().any(|reason| error.contains(reason));
            prop_assert!(is_named, "{text:?}: they refuse: {error}\n{ours:?}");
        }
        (Err(_), Err(_)) => {}
    }
    Ok(())
}

/// A document in the making: what stands in it, and how it is written.
#[derive(Clone, Debug)]
enum Draft {
    /// A text, and in which of the styles.
    Text(String, u8),
    /// Values, in brackets or not; how far indented, and with what between the indicator and the value.
    List(Vec<Self>, bool, usize),
    Map(Vec<(String, Self)>, bool, usize),
}

const GAPS: [&str; 4] = ["", " ", " # gap", "\n"];

impl Draft {
    /// Writes what stands behind an indicator in column `column`, and ends the line.
    fn write(&self, out: &mut String, column: usize, compact: bool) {
        let indent = " ".repeat(column + 1);
        match self {
            Self::Text(text, style) => {
                let lines = || text.split('\n').map(str::trim).filter(|line| !line.is_empty());
                match style {
                    0 => {
                        let lines: Vec<_> = lines().collect();
                        out.push(' ');
                        out.push_str(&lines.join(&format!("\n{indent}")));
                    }
                    1 => {
                        out.push_str(" '");
                        out.push_str(
                            &text.replace('\'', "''").replace('\n', &format!("\n\n{indent}")),
                        );
                        out.push('\'');
                    }
                    2 => {
                        out.push(' ');
                        out.push_str(
                            &format!("{text:?}").replace("\\n", &format!("\\n\\\n{indent}")),
                        );
                    }
                    _ => {
                        let header = ["|", ">", "|-", ">-", "|+", ">+"];
                        out.push(' ');
                        out.push_str(header[usize::from(*style) % 6]);
                        for line in text.split('\n') {
                            out.push('\n');
                            out.push_str(&indent);
                            out.push_str(line);
                        }
                    }
                }
                out.push('\n');
            }
            Self::List(list, true, _) if !list.is_empty() => {
                out.push_str(" [");
                for item in list {
                    item.write_flow(out, &indent);
                    out.push(',');
                }
                out.push_str("]\n");
            }
            Self::Map(map, true, _) if !map.is_empty() => {
                out.push(' ');
                self.write_flow(out, &indent);
                out.push('\n');
            }
            Self::List(list, ..) if list.is_empty() => out.push_str(" []\n"),
            Self::Map(map, ..) if map.is_empty() => out.push_str(" {}\n"),
            Self::List(list, _, deeper) => {
                let column = self.begin(out, column, compact, *deeper);
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        out.push_str(&" ".repeat(column));
                    }
                    out.push('-');
                    item.write(out, column, true);
                }
            }
            Self::Map(map, _, deeper) => {
                let column = self.begin(out, column, compact, *deeper);
                for (index, (key, value)) in map.iter().enumerate() {
                    if index > 0 {
                        out.push_str(&" ".repeat(column));
                    }
                    out.push_str(key);
                    out.push(':');
                    value.write(out, column, false);
                }
            }
        }
    }

    /// Gets to the place of a first entry, and says its column.
    fn begin(&self, out: &mut String, column: usize, compact: bool, deeper: usize) -> usize {
        let column = column + 1 + deeper;
        if compact && deeper.is_multiple_of(2) {
            out.push_str(&" ".repeat(1 + deeper));
            return column + 1;
        }
        out.push_str(GAPS[deeper % 4]);
        out.push('\n');
        let column = if matches!(self, Self::List(..)) && !compact && deeper == 0 {
            column - 1
        } else {
            column
        };
        out.push_str(&" ".repeat(column));
        column
    }

    fn write_flow(&self, out: &mut String, indent: &str) {
        match self {
            Self::Text(text, style) if *style == 1 => {
                out.push_str(&format!(
                    "'{}'",
                    text.replace('\'', "''").replace('\n', &format!("\n{indent}"))
                ));
            }
            Self::Text(text, _) => out.push_str(&format!("{text:?}")),
            Self::List(list, _, deeper) => {
                out.push_str(&format!("[{}", GAPS[deeper % 2]));
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        out.push_str(if deeper % 2 == 0 { ", " } else { " # next\n" });
                        if deeper % 2 == 1 {
                            out.push_str(indent);
                            out.push(',');
                        }
                    }
                    item.write_flow(out, indent);
                }
                out.push(']');
            }
            Self::Map(map, _, deeper) => {
                out.push('{');
                for (index, (key, value)) in map.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    if deeper % 2 == 1 {
                        out.push('\n');
                        out.push_str(indent);
                    }
                    out.push_str(key);
                    out.push_str(if deeper % 2 == 1 { " :" } else { ":" });
                    out.push(' ');
                    value.write_flow(out, indent);
                }
                out.push('}');
            }
        }
    }
}

fn any_draft() -> impl Strategy<Value = Draft> {
    let leaf =
        ("([a-z0-9.~ -]|[:#\\[\\]{},&*!|>'\"%@`?]|\n|\n\n|true|null|é|0x1f|1e3){1,8}", 0u8..9)
            .prop_map(|(text, style)| Draft::Text(text, style));
    leaf.prop_recursive(5, 40, 4, |inner| {
        let key = "[a-z]{1,3}|\"[a-z:# ]{1,3}\"|'[a-z,]{1,2}'";
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..4), any::<bool>(), 0usize..4)
                .prop_map(|(list, flow, deeper)| Draft::List(list, flow, deeper)),
            (prop::collection::vec((key, inner), 0..4), any::<bool>(), 0usize..4)
                .prop_map(|(map, flow, deeper)| Draft::Map(map, flow, deeper)),
        ]
    })
}

fn any_document() -> impl Strategy<Value = String> {
    (any_draft(), "(---)?", any::<bool>(), any::<bool>()).prop_map(|(draft, start, crlf, cut)| {
        let mut text = start;
        let is_text = matches!(draft, Draft::Text(..));
        draft.write(&mut text, 0, false);
        if !is_text && text.starts_with('\n') {
            text.remove(0);
        }
        if cut {
            text.pop();
        }
        if crlf { text.replace('\n', "\r\n") } else { text }
    })
}

const FILES: [&str; 5] = [
    include_str!("../../../../../rules/flow.yaml"),
    include_str!("../../../../../rules/opensergo.yaml"),
    include_str!("../../../../../rules/gateway.yaml"),
    include_str!("../../../../../rules/circuit-breaker.yaml"),
    include_str!("../../../../../envoy/envoy.yaml"),
];

/// A part of a real file in which something has been changed.
fn any_damaged_file() -> impl Strategy<Value = String> {
    let change = (
        any::<prop::sample::Index>(),
        0usize..6,
        "[-?:,\\[\\]{}#&!|>'\"% \t\n~.a0\\\\]{0,2}|  |\n  |- |: |\n---\n| #",
    );
    (0..FILES.len(), any::<prop::sample::Index>(), prop::collection::vec(change, 0..4)).prop_map(
        |(file, from, changes)| {
            let lines: Vec<&str> = FILES[file].lines().collect();
            let from = from.index(lines.len());
            let mut text = lines[from..lines.len().min(from + 25)].join("\n");
            // What stood in an anchor's place is not here.
            text = text.replace('*', "");
            for (at, cut, insert) in changes {
                let at = at.index(text.len() + 1);
                let until = (at + cut).min(text.len());
                if text.is_char_boundary(at) && text.is_char_boundary(until) {
                    text.replace_range(at..until, &insert);
                }
            }
            text
        },
    )
}

proptest! {
    // As many as the environment says, if it says more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(1_000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn documents_in_all_styles_say_the_same_to_both(text in any_document()) {
        agree(&text)?;
    }

    #[test]
    fn damaged_files_say_the_same_to_both(text in any_damaged_file()) {
        agree(&text)?;
    }

    #[test]
    fn indicators_in_any_order_say_the_same_to_both(
        text in "([-?:,\\[\\]{}#&!|>'\"% \t\n~.a0\\\\]|---|\\.\\.\\.|!!str|!!map|!!seq|&x|: |- |a: |\"a\"|\"a\": |\\? |\n  |\n |\n- |\na: | #|\\[a, |\\{a: |\r\n){0,14}",
    ) {
        agree(&text)?;
    }

    #[test]
    fn brackets_say_the_same_to_both(
        text in "([a0]|\"a\"|'a'| |\n|\n |: |:|, |,|\\[|\\]|\\{|\\}|!!str |&a |- |#| #|\\?|-|\t|a: \\[|\\{a: ){0,12}",
    ) {
        agree(&format!("[{text}"))?;
    }

    #[test]
    fn quotes_say_the_same_to_both(
        before in "(a: |- |- a: |a:\n  b: |a: \\[b, ||- - )[\"']",
        text in r#"([ab ]|\n|\n |\n  |\t|\\n|\\t|\\ |\\\n|\\x41|\\u00e9|\\|\\/|''|é|\r\n|---|: |#| #){0,8}"#,
        after in "[\"'](\\]|\nb: c|: d| #| x|)",
    ) {
        agree(&format!("{before}{text}{after}"))?;
    }

    #[test]
    fn block_texts_say_the_same_to_both(
        before in "(a: |- |- a: |a:\n  b: |- - |)[|>]([-+]|[123]|[-+]2|1-)?( #)?",
        text in "(\n|\n |\n  |\n   |\n    |x|y z|\t| |#|- |\r\n|\n  a|\n   b){0,12}",
        after in "(\nb: c|\n- d|\n\\.\\.\\.|\n|)",
    ) {
        agree(&format!("{before}{text}{after}"))?;
    }

    #[test]
    fn indentation_says_the_same_to_both(
        text in "(a:|a: |- |-|\n|\n |\n  |\t|\n\t|\n \t|b|c: |d #e|x\n  y|\\{|\\}|\\[|\\]|,|\"q\"|\n- ){0,12}",
    ) {
        agree(&text)?;
    }
}

#[test]
fn real_files_say_the_same_to_both() {
    for text in FILES {
        // The one for Envoy has an alias, which both refuse.
        let text = text.replace(": *", ": ");
        agree(&text).unwrap();
        assert!(documents(text.as_bytes()).is_ok());
    }
}
