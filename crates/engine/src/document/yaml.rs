//! YAML 1.2, and so JSON.
//!
//! A rule document needs little of YAML, and what it does not need is refused instead of guessed at:
//! aliases (which make a short text a large tree), tags other than those of the core schema, directives other
//! than `%YAML`, names that are no text or begin with `? `, names that stand twice, control characters.
//!
//! It is read in one pass, by functions that call themselves as deep as lists and maps stand in each other.
//! Tests hold it against `saphyr-parser`, which is several times as large: it makes events of all of YAML.

use alloc::{borrow::ToOwned as _, format, string::String, vec, vec::Vec};

use sentinel_core::rule::node::{DEPTH_MAX, Entry, Map, NODES_MAX, Node, Position, Value};

use crate::document::{
    DocumentError, SOURCE_BYTES_MAX, scalar,
    yaml::{
        cursor::{Cursor, is_end, is_flow, is_space},
        text::Text,
    },
};

#[cfg(test)]
mod against_saphyr;
mod cursor;
mod text;

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
            let position = position_after(core::str::from_utf8(right).unwrap_or_default());
            return Err(refusal(position, "is not UTF-8 from here on"));
        }
    };
    if let Some((at, forbidden)) = text.char_indices().find(|(_, c)| is_forbidden(*c)) {
        let position = position_after(text.get(..at).unwrap_or_default());
        let problem = if forbidden == BYTE_ORDER_MARK {
            "a byte order mark may stand at the beginning only".to_owned()
        } else {
            format!("the control character U+{:04X} may not stand here", u32::from(forbidden))
        };
        return Err(refusal(position, &problem));
    }
    Reader { cursor: Cursor::new(text), room: NODES_MAX }.documents()
}

struct Reader<'t> {
    cursor: Cursor<'t>,
    /// How many values there may still be.
    room: usize,
}

/// What a value belongs to that does not stand in brackets.
#[derive(Clone, Copy)]
struct Parent {
    /// The column in which it begins, 0 for the document. Its value stands further right.
    column: u32,
    /// Whether the value may be a list in this very column, as that of a name may.
    takes_list: bool,
    /// Whether a list or a map may begin in the same line, as behind the `-` of a list.
    takes_compact: bool,
}

/// What may stand before a value or a name: a tag, and an anchor, which says nothing where there are no aliases.
#[derive(Clone, Copy, Default)]
struct Properties<'t> {
    any: bool,
    tag: Option<&'t str>,
}

/// A value, or else the name of one: which of them it is, only a `:` behind it can tell.
struct Item<'t> {
    position: Position,
    tag: Option<&'t str>,
    content: Content,
}

enum Content {
    Text(Text),
    /// A list or a map.
    Whole(Value),
}

impl<'t> Reader<'t> {
    fn documents(mut self) -> Result<Vec<Node>, DocumentError> {
        let mut nodes = Vec::new();
        // Whether a document may begin without `---`: at the beginning, and after `...`.
        let mut is_open = true;
        loop {
            self.cursor.skip();
            if is_open && self.cursor.next() == b'%' && self.cursor.here.column == 1 {
                self.directive()?;
            }
            let marker = self.cursor.marker();
            if marker != 0 {
                (0..3).for_each(|_| self.cursor.step());
            } else if self.cursor.next() == 0 {
                return Ok(nodes);
            } else if !is_open {
                return Err(self.cursor.refusal(OUT_OF_PLACE));
            }
            is_open = marker == b'.';
            if is_open {
                self.end_line()?;
            } else {
                let takes_compact = marker == 0;
                let parent = Parent { column: 0, takes_list: false, takes_compact };
                nodes.push(self.block_node(parent, DEPTH_MAX)?);
            }
        }
    }

    /// Over `%YAML 1.2`, after which a document must begin with `---`.
    fn directive(&mut self) -> Result<(), DocumentError> {
        let position = self.cursor.here;
        let name = self.cursor.word(false);
        self.cursor.blanks();
        let version = self.cursor.word(false);
        if name != "%YAML" || !matches!(version, "1.1" | "1.2") {
            return Err(refusal(position, "the only directive that is supported is `%YAML 1.2`"));
        }
        self.end_line()?;
        self.cursor.skip();
        match self.cursor.marker() {
            b'-' => Ok(()),
            _ => Err(self.cursor.refusal("after a directive, a document must begin with `---`")),
        }
    }

    /// That nothing but a comment follows in this line.
    fn end_line(&mut self) -> Result<(), DocumentError> {
        if self.cursor.rest_of_line() {
            return Ok(());
        }
        Err(self.cursor.refusal(match self.cursor.next() {
            b':' if is_space(self.cursor.ahead(1)) => {
                "no map can begin in this line: put it below, or the text into quotes"
            }
            b':' => "a blank must stand behind the `:`",
            _ => "nothing but a comment can follow here",
        }))
    }

    /// The value of `parent`, in which `depth` levels may stand. It begins here or further below, or is nothing.
    fn block_node(&mut self, parent: Parent, depth: usize) -> Result<Node, DocumentError> {
        let entry = self.cursor.here;
        self.cursor.skip();
        if !self.is_within(parent) {
            return self.scalar(Text::NOTHING, None, entry);
        }
        // In the line of a name, a tag and an anchor belong to the name; in a line before it, to the map.
        let mut begin = self.cursor;
        let position = begin.here;
        let mut before = Properties::default();
        let mut beside = self.properties(false)?;
        if beside.any && self.cursor.rest_of_line() {
            before = core::mem::take(&mut beside);
            self.cursor.skip();
            if !self.is_within(parent) {
                return self.scalar(Text::NOTHING, before.tag, position);
            }
            begin = self.cursor;
            beside = self.properties(false)?;
        }
        let begins_line = begin.here.line > entry.line;
        if begins_line && begin.indent <= parent.column {
            begin.check_indent()?;
        }
        let takes_block = begins_line || parent.takes_compact;
        if takes_block && !beside.any && is_dash(self.cursor) {
            let content = Content::Whole(self.block_list(depth)?);
            return self.value(Item { position, tag: before.tag, content });
        }
        let is_block_text = matches!(self.cursor.next(), b'|' | b'>');
        // Behind a `-`, further lines in brackets or quotes may begin where it does: it is a habit of many.
        let margin = parent.column.saturating_sub(u32::from(parent.takes_compact));
        let content = self.content(parent.column, margin, false, depth)?;
        self.cursor.blanks();
        let is_name = self.cursor.next() == b':'
            && is_space(self.cursor.ahead(1))
            && self.cursor.here.line == begin.here.line;
        if is_name && takes_block {
            let name = Item { position: begin.here, tag: beside.tag, content }.name()?;
            let content = Content::Whole(self.block_map(begin, name, depth)?);
            return self.value(Item { position, tag: before.tag, content });
        }
        if !is_block_text {
            self.end_line()?;
        }
        if before.any && beside.any {
            return Err(begin.refusal("the anchor and the tag of a value must stand in one line"));
        }
        self.value(Item { position, tag: before.tag.or(beside.tag), content })
    }

    /// The list whose first `-` stands here.
    fn block_list(&mut self, depth: usize) -> Result<Value, DocumentError> {
        let column = self.cursor.here.column;
        self.cursor.check_indent()?;
        let depth = self.enter(self.cursor.here, depth)?;
        let parent = Parent { column, takes_list: false, takes_compact: true };
        let mut list = Vec::new();
        loop {
            self.cursor.step();
            self.cursor.spaces();
            list.push(self.block_node(parent, depth)?);
            if !self.goes_on(column)? || !is_dash(self.cursor) {
                return Ok(Value::List(list));
            }
        }
    }

    /// The map whose first name has been read from `begin` on, and whose first `:` stands here.
    fn block_map(
        &mut self,
        begin: Cursor<'t>,
        mut key: String,
        depth: usize,
    ) -> Result<Value, DocumentError> {
        begin.check_indent()?;
        let mut position = begin.here;
        let depth = self.enter(position, depth)?;
        let parent = Parent { column: position.column, takes_list: true, takes_compact: false };
        let mut entries = Vec::new();
        loop {
            self.cursor.step();
            let value = self.block_node(parent, depth)?;
            entries.push(Entry { key, position: Some(position), value });
            if !self.goes_on(parent.column)? {
                return map(entries);
            }
            position = self.cursor.here;
            let tag = self.properties(false)?.tag;
            let content = self.content(parent.column, parent.column, false, depth)?;
            self.cursor.blanks();
            if self.cursor.next() != b':'
                || !is_space(self.cursor.ahead(1))
                || self.cursor.here.line != position.line
            {
                return Err(refusal(position, "a name and a `:` must stand here"));
            }
            key = Item { position, tag, content }.name()?;
        }
    }

    /// Whether what follows still belongs to a list or map that begins in `column`.
    fn goes_on(&mut self, column: u32) -> Result<bool, DocumentError> {
        self.cursor.skip();
        if !self.cursor.is_within(column.saturating_sub(1)) {
            return Ok(false);
        }
        self.cursor.check_indent()?;
        if self.cursor.here.column == column {
            return Ok(true);
        }
        Err(self.cursor.refusal(OUT_OF_PLACE))
    }

    fn is_within(&self, parent: Parent) -> bool {
        let is_list = parent.takes_list && is_dash(self.cursor);
        self.cursor.is_within(parent.column.saturating_sub(u32::from(is_list)))
    }

    /// The list or map that stands in brackets here. Its lines are indented deeper than `parent`, the last one may
    /// be as deep.
    fn flow(&mut self, parent: u32, depth: usize) -> Result<Value, DocumentError> {
        let open = self.cursor.here;
        let depth = self.enter(open, depth)?;
        let is_map = self.cursor.next() == b'{';
        let close = if is_map { b'}' } else { b']' };
        let mut list = Vec::new();
        let mut entries = Vec::new();
        loop {
            // Over the bracket or the comma.
            self.cursor.step();
            self.flow_skip(parent, open)?;
            if self.cursor.next() != close {
                let item = self.item(parent, open, depth)?;
                let is_plain = matches!(item.content, Content::Text(Text { plain: true, .. }));
                let behind = self.cursor.ahead(1);
                let is_name = self.cursor.next() == b':'
                    && (!is_plain || is_space(behind) || is_flow(behind));
                if is_map {
                    entries.push(self.entry(item, is_name, parent, open, depth)?);
                } else if is_name {
                    // A map of one.
                    let position = item.position;
                    if self.cursor.here.line > position.line {
                        return Err(self
                            .cursor
                            .refusal("a name and its `:` must stand in one line"));
                    }
                    let depth = self.enter(position, depth)?;
                    let value = map(vec![self.entry(item, true, parent, open, depth)?])?;
                    list.push(Node { value, position: Some(position) });
                } else {
                    list.push(self.value(item)?);
                }
            }
            let next = self.cursor.next();
            if next == close {
                self.cursor.step();
                return if is_map { map(entries) } else { Ok(Value::List(list)) };
            }
            if next != b',' {
                let problem = format!("`,` or `{}` must stand here", char::from(close));
                return Err(self.cursor.refusal(&problem));
            }
        }
    }

    /// The entry whose name is `item`, behind which a `:` stands here if `has_value`.
    fn entry(
        &mut self,
        item: Item<'t>,
        has_value: bool,
        parent: u32,
        open: Position,
        depth: usize,
    ) -> Result<Entry, DocumentError> {
        let position = Some(item.position);
        let key = item.name()?;
        let here = self.cursor.here;
        if has_value {
            self.cursor.step();
            self.flow_skip(parent, open)?;
        }
        let value = if has_value && !matches!(self.cursor.next(), b',' | b']' | b'}') {
            let item = self.item(parent, open, depth)?;
            self.value(item)?
        } else {
            self.scalar(Text::NOTHING, None, here)?
        };
        Ok(Entry { key, position, value })
    }

    /// What stands here in the brackets that begin at `open`; and over what separates it from what follows.
    fn item(
        &mut self,
        parent: u32,
        open: Position,
        depth: usize,
    ) -> Result<Item<'t>, DocumentError> {
        let position = self.cursor.here;
        let properties = self.properties(true)?;
        self.flow_skip(parent, open)?;
        let content = match self.cursor.next() {
            b',' | b']' | b'}' if properties.any => Content::Text(Text::NOTHING),
            _ => self.content(parent, parent, true, depth)?,
        };
        self.flow_skip(parent, open)?;
        Ok(Item { position, tag: properties.tag, content })
    }

    /// To whatever comes next in the brackets that begin at `open`.
    fn flow_skip(&mut self, parent: u32, open: Position) -> Result<(), DocumentError> {
        self.cursor.skip();
        let is_close = matches!(self.cursor.next(), b']' | b'}');
        if self.cursor.is_within(parent.saturating_sub(u32::from(is_close))) {
            return Ok(());
        }
        Err(self.cursor.not_closed("bracket", open))
    }

    /// The text, list or map that begins here; but no list or map without brackets. Its lines are indented deeper than
    /// `parent`; those in brackets or quotes, deeper than `margin`.
    fn content(
        &mut self,
        parent: u32,
        margin: u32,
        in_flow: bool,
        depth: usize,
    ) -> Result<Content, DocumentError> {
        let (text, plain) = match self.cursor.next() {
            b'[' | b'{' => return Ok(Content::Whole(self.flow(margin, depth)?)),
            b'"' | b'\'' => (self.cursor.quoted(margin)?, false),
            b'|' | b'>' if !in_flow => (self.cursor.block(parent)?, false),
            _ if self.cursor.is_plain(in_flow) => (self.cursor.plain(parent, in_flow), true),
            other => {
                return Err(self.cursor.refusal(match other {
                    b'*' => "aliases (`*name`) are not supported: write the value out",
                    b'?' => "names behind `? ` are not supported: write `name: value`",
                    b'-' => "no list can begin with `- ` here: put it into a line of its own",
                    b':' => "a name must stand before the `:`",
                    b'#' => "a comment must begin with a blank and `#`",
                    other if is_end(other) => "a name or a value is missing here",
                    _ => "a text that begins with this character must stand in quotes",
                }));
            }
        };
        Ok(Content::Text(Text { text, plain }))
    }

    /// An anchor and a tag, in either order.
    fn properties(&mut self, in_flow: bool) -> Result<Properties<'t>, DocumentError> {
        let mut is_anchored = false;
        let mut tag = None;
        loop {
            match self.cursor.next() {
                b'&' if !is_anchored => {
                    is_anchored = true;
                    if self.cursor.word(true) == "&" {
                        return Err(self.cursor.refusal("a name must stand behind `&`"));
                    }
                }
                b'!' if tag.is_none() => tag = Some(self.cursor.word(in_flow)),
                _ => return Ok(Properties { any: is_anchored || tag.is_some(), tag }),
            }
            self.cursor.blanks();
        }
    }

    /// One level deeper: how many there may still be in a list or map that begins at `position`.
    fn enter(&mut self, position: Position, depth: usize) -> Result<usize, DocumentError> {
        self.count(position)?;
        depth
            .checked_sub(1)
            .ok_or_else(|| refusal(position, "lists and maps stand too deep in each other"))
    }

    /// One value more.
    fn count(&mut self, position: Position) -> Result<(), DocumentError> {
        self.room = self.room.checked_sub(1).ok_or_else(|| {
            let problem =
                format!("has more than {NODES_MAX} values up to here: put them into several files");
            refusal(position, &problem)
        })?;
        Ok(())
    }

    fn scalar(
        &mut self,
        text: Text,
        tag: Option<&'t str>,
        position: Position,
    ) -> Result<Node, DocumentError> {
        self.value(Item { position, tag, content: Content::Text(text) })
    }

    /// What `item` means as a value.
    fn value(&mut self, item: Item<'t>) -> Result<Node, DocumentError> {
        let tag = item.tag;
        let value = match item.content {
            Content::Whole(value) => {
                let own = if matches!(value, Value::List(_)) { "!!seq" } else { "!!map" };
                if tag.is_some_and(|tag| tag != own) {
                    let problem = "this tag is not supported: leave it out";
                    return Err(refusal(item.position, problem));
                }
                value
            }
            Content::Text(text) => {
                self.count(item.position)?;
                meaning(text, tag).ok_or_else(|| {
                    let problem = "this tag is not supported: leave it out, and quote what is text";
                    refusal(item.position, problem)
                })?
            }
        };
        Ok(Node { value, position: Some(item.position) })
    }
}

impl Item<'_> {
    fn name(self) -> Result<String, DocumentError> {
        match self.content {
            Content::Text(text) if self.tag.is_none() => Ok(text.text),
            Content::Text(_) => Err(refusal(self.position, "a name in a map takes no tag")),
            Content::Whole(_) => Err(refusal(self.position, "a name in a map must be text")),
        }
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

const OUT_OF_PLACE: &str =
    "this belongs to nothing above: its column must be that of the lines it belongs to";

fn refusal(position: Position, problem: &str) -> DocumentError {
    DocumentError::new(Some(position), problem)
}

fn is_dash(cursor: Cursor<'_>) -> bool {
    cursor.next() == b'-' && is_space(cursor.ahead(1))
}

fn map(entries: Vec<Entry>) -> Result<Value, DocumentError> {
    match Map::from_entries(entries) {
        Ok(map) => Ok(Value::Map(map)),
        Err(entry) => {
            let key = Node::new(Value::String(entry.key)).describe();
            let problem = format!("the name {key} stands twice in this map");
            Err(DocumentError { position: entry.position, problem })
        }
    }
}

/// What a text means; `None` if its tag says something that it is not, or that we do not know.
fn meaning(text: Text, tag: Option<&str>) -> Option<Value> {
    let as_text = match tag {
        None => !text.plain,
        Some("!" | "!!str") => true,
        Some(_) if text.plain => false,
        Some(_) => return None,
    };
    if as_text {
        return Some(Value::String(text.text));
    }
    let value = scalar::resolve(&text.text);
    let is_right = match (tag, &value) {
        (None, _)
        | (Some("!!null"), Value::Null)
        | (Some("!!bool"), Value::Bool(_))
        | (Some("!!int"), Value::Int(_))
        | (Some("!!float"), Value::Int(_) | Value::Float(_)) => true,
        (Some(_), _) => false,
    };
    is_right.then_some(value)
}

/// Control characters that YAML forbids (section 5.1); tab and the ends of lines are none of them. And the byte
/// order mark, which within a text would be a character that nobody sees.
fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}') || c == BYTE_ORDER_MARK
}

/// The position of what follows `text`.
fn position_after(text: &str) -> Position {
    let line = text.matches('\n').count().saturating_add(1);
    let begin = text.bytes().rposition(|byte| byte == b'\n').map_or(0, |at| at + 1);
    let column = text.get(begin..).unwrap_or_default().chars().count().saturating_add(1);
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
    fn text_is_read_as_json_and_yaml_write_it() {
        check(r#"["\ud83d\ude00", "\u00e9\x41\t"]"#, &expect![[r#"["😀", "éA\t"]"#]]);
        check(
            r#""\ud83d""#,
            &expect![
                "line 1, column 2: this escape sequence names no character: write the character itself"
            ],
        );
        check("a: x\n  y\n\n  z # not w\n", &expect![[r#"{a: "x y\nz"}"#]]);
        check("a: 'it''s\n  so'", &expect![[r#"{a: "it's so"}"#]]);
        check("a: [\n  \"b\"\n]\nc: {\n  d: e,\n}", &expect![[r#"{a: ["b"], c: {d: "e"}}"#]]);
    }

    #[test]
    fn a_text_may_hold_several_documents() {
        check("# one\na: 1\n---\n---\nb: 2\n...\n", &expect!["{a: 1} --- null --- {b: 2}"]);
        check("%YAML 1.2\n---\na: 1", &expect!["{a: 1}"]);
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
        check(
            "? [a]\n: b",
            &expect!["line 1, column 1: names behind `? ` are not supported: write `name: value`"],
        );
        check(
            "a: \"x\u{0}\"\nb: 1",
            &expect!["line 1, column 6: the control character U+0000 may not stand here"],
        );
        check("a:\n\t- b", &expect!["line 2, column 2: tabs may not indent: use spaces"]);
        check(
            r#"{"a": "\q"}"#,
            &expect![[
                r#"line 1, column 8: there is no such escape sequence: write `\\` for a backslash"#
            ]],
        );
        check(
            "a: [1, 2",
            &expect![[
                r#"line 1, column 9: the bracket of line 1, column 4 is not closed: close it, or indent what belongs to it"#
            ]],
        );
        check(
            "a: b: c",
            &expect![
                "line 1, column 5: no map can begin in this line: put it below, or the text into quotes"
            ],
        );
        check(
            "a: \"x\nb: 1",
            &expect![[
                r#"line 2, column 1: the quote of line 1, column 4 is not closed: close it, or indent what belongs to it"#
            ]],
        );
        check("a: {b: 1 c: 2}", &expect!["line 1, column 11: `,` or `}` must stand here"]);
        check(
            "a:\n    b: 1\n  c: 2",
            &expect![
                "line 3, column 3: this belongs to nothing above: its column must be that of the lines it belongs to"
            ],
        );
        check("a: 1\nb", &expect!["line 2, column 1: a name and a `:` must stand here"]);
        check("a: [1] 2", &expect!["line 1, column 8: nothing but a comment can follow here"]);
        check(
            "a: %x",
            &expect![
                "line 1, column 4: a text that begins with this character must stand in quotes"
            ],
        );
        check(
            "a: - b",
            &expect![
                "line 1, column 4: no list can begin with `- ` here: put it into a line of its own"
            ],
        );
        check(": a", &expect!["line 1, column 1: a name must stand before the `:`"]);
        check(
            "%TAG ! x\n---\na: 1",
            &expect!["line 1, column 1: the only directive that is supported is `%YAML 1.2`"],
        );
        check(
            "a: 1\n\u{feff}b: 2",
            &expect!["line 2, column 1: a byte order mark may stand at the beginning only"],
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
        check(
            &"[".repeat(100_000),
            &expect!["line 1, column 33: lists and maps stand too deep in each other"],
        );
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
