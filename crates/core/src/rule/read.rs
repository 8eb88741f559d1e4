//! Reading a map field by field: what is wrong is noted, and reading goes on.
//!
//! So one look at a bad file says everything that is wrong with it. A reader's `None` means "absent or
//! refused"; the caller goes on with the default, since nothing that was refused is ever used.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::ops::RangeInclusive;

#[cfg(feature = "schema")]
use crate::rule::shape::{Asked, Note, path};
use crate::rule::{
    error::{Reason, Refusal, Refusals, Site},
    node::{Map, Node, Position, Value, WHOLE_MAX, WHOLE_MOST},
    shape::Shape,
};

/// A map that is being read.
#[derive(Debug)]
pub(crate) struct Fields<'a, 'r> {
    map: &'a Map,
    position: Option<Position>,
    /// What stands before a field's name in errors: empty, or a path that ends with a dot.
    path: String,
    site: &'r Site,
    refusals: &'r mut Refusals,
}

/// What an enum field may be: names as rule documents write them, with the numbers that Sentinel's JSON writes.
pub(crate) type Choices = &'static [(&'static str, Option<i64>)];

impl<'a, 'r> Fields<'a, 'r> {
    /// Opens `node` as a map whose fields are `known`; refuses what is no map, and each field that is
    /// not known. `path` is where it stands: empty, or with a dot at its end.
    pub(crate) fn open(
        node: &'a Node,
        path: &str,
        known: &[&'static str],
        site: &'r Site,
        refusals: &'r mut Refusals,
    ) -> Option<Self> {
        let mut fields = Self::of_any(node, path, site, refusals)?;
        fields.note_opened(Some(known));
        for entry in fields.map.entries() {
            if !known.contains(&entry.key.as_str()) {
                let reason = Reason::Unknown { near: near(&entry.key, known) };
                let name = if entry.key.is_empty() { "\"\"" } else { &entry.key };
                fields.refuse_at(entry.position, name, reason);
            }
        }
        Some(fields)
    }

    fn of_any(
        node: &'a Node,
        path: &str,
        site: &'r Site,
        refusals: &'r mut Refusals,
    ) -> Option<Self> {
        let Value::Map(map) = &node.value else {
            let field = path.trim_end_matches('.').to_string();
            let reason = Reason::Mismatch { found: node.describe(), allowed: "a map".to_string() };
            refusals.push(Refusal { site: site.at(node.position), field, reason });
            return None;
        };
        Some(Self { map, position: node.position, path: path.to_string(), site, refusals })
    }

    /// Says what the field `name` may be, for whoever makes a schema ([`crate::rule::shape`]). Who looks at a
    /// [`Fields::node`] itself says it; all other ways to a value here say it themselves.
    pub(crate) fn takes(&mut self, name: &str, shape: impl FnOnce() -> Shape) {
        #[cfg(feature = "schema")]
        self.note(name, "", || Note::Takes(shape()));
        #[cfg(not(feature = "schema"))]
        let _ = (name, shape);
    }

    /// The same of each value of the list `name`.
    pub(crate) fn takes_each(&mut self, name: &str, shape: impl FnOnce() -> Shape) {
        #[cfg(feature = "schema")]
        self.note(name, "[]", || Note::Takes(shape()));
        #[cfg(not(feature = "schema"))]
        let _ = (name, shape);
    }

    /// Says that the field `name` must say something.
    pub(crate) fn needs(&mut self, name: &str) {
        #[cfg(feature = "schema")]
        self.note(name, "", || Note::Needs);
        #[cfg(not(feature = "schema"))]
        let _ = name;
    }

    /// Says which fields the map may have; `None`: any.
    fn note_opened(&mut self, known: Option<&[&'static str]>) {
        #[cfg(feature = "schema")]
        self.note("", "", || Note::Opens(known.map(<[_]>::to_vec)));
        #[cfg(not(feature = "schema"))]
        let _ = known;
    }

    #[cfg(feature = "schema")]
    fn note(&mut self, name: &str, part: &str, note: impl FnOnce() -> Note) {
        if let Some(asked) = &mut self.refusals.asked {
            let field = path(self.site, &[&self.path, name, part]);
            asked.push(Asked { field, note: note() });
        }
    }

    /// The field `name`, if it says anything.
    pub(crate) fn node(&self, name: &str) -> Option<&'a Node> {
        self.map.get(name)
    }

    /// Refuses the field `name`.
    pub(crate) fn refuse(&mut self, name: &str, reason: Reason) {
        let position = self.node(name).and_then(|node| node.position);
        self.refuse_at(position, name, reason);
    }

    /// Refuses the field `name`, which is not as `allowed` says.
    pub(crate) fn mismatch(&mut self, name: &str, allowed: &str) {
        let found = self.node(name).map_or_else(|| "nothing".to_string(), Node::describe);
        self.refuse(name, Reason::Mismatch { found, allowed: allowed.to_string() });
    }

    /// Refuses the field `name` if it says nothing.
    pub(crate) fn require(&mut self, name: &str) {
        self.needs(name);
        if self.node(name).is_none() {
            self.refuse(name, Reason::Missing);
        }
    }

    /// Refuses the field `name`, which is not as `allowed` says or is not there at all.
    pub(crate) fn insist(&mut self, name: &str, allowed: &str) {
        self.needs(name);
        if self.node(name).is_some() {
            self.mismatch(name, allowed);
        } else {
            self.refuse(name, Reason::Missing);
        }
    }

    /// Refuses the field `name` in a sentence of its own, which follows the field's name.
    pub(crate) fn object(&mut self, name: &str, sentence: &str) {
        self.refuse(name, Reason::Malformed(sentence.to_string()));
    }

    /// Text that says something: empty text is as good as none.
    pub(crate) fn some_text(&mut self, name: &str) -> Option<&'a str> {
        self.text(name).filter(|text| !text.is_empty())
    }

    /// Text.
    pub(crate) fn text(&mut self, name: &str) -> Option<&'a str> {
        self.text_of(name, || Shape::TEXT)
    }

    /// Text that is to be of a shape, which the caller looks at.
    pub(crate) fn text_of(&mut self, name: &str, shape: impl FnOnce() -> Shape) -> Option<&'a str> {
        self.takes(name, shape);
        match &self.node(name)?.value {
            Value::String(text) => Some(text),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                self.mismatch(name, "text: put it in quotes");
                None
            }
            Value::List(_) | Value::Map(_) => {
                self.mismatch(name, "text");
                None
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Option<bool> {
        self.takes(name, || Shape::Flag);
        if let Value::Bool(flag) = self.node(name)?.value {
            return Some(flag);
        }
        self.mismatch(name, "true or false");
        None
    }

    /// A number of at least 0 and at most 2⁵³.
    pub(crate) fn number(&mut self, name: &str) -> Option<f64> {
        self.takes(name, || Shape::Number(0.0, WHOLE_MAX));
        let number = as_number(self.node(name)?);
        match number {
            Some(number) if (0.0..=WHOLE_MAX).contains(&number) => Some(number),
            Some(number) if number > WHOLE_MAX && number.is_finite() => {
                self.mismatch(name, "at most 2^53");
                None
            }
            Some(number) if number < 0.0 && number.is_finite() => {
                self.mismatch(name, "0 or more");
                None
            }
            Some(_) | None => {
                self.mismatch(name, "a number of 0 or more");
                None
            }
        }
    }

    /// A whole number in `range`.
    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.takes(name, || Shape::Whole(*range.start(), *range.end()));
        match as_whole(self.node(name)?) {
            Some(number) if range.contains(&number) => Some(number),
            Some(_) | None => {
                let allowed = format!("a whole number from {} to {}", range.start(), range.end());
                self.mismatch(name, &allowed);
                None
            }
        }
    }

    /// A whole number in `range`, which lies in 0 to [`u32::MAX`].
    pub(crate) fn whole_u32(&mut self, name: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.whole(name, range).and_then(|number| u32::try_from(number).ok())
    }

    /// Any whole number that fits; 0 if there is none.
    pub(crate) fn any_u32(&mut self, name: &str) -> u32 {
        self.whole_u32(name, 0..=u32::MAX).unwrap_or(0)
    }

    /// A whole number of 0 or more, at most 2⁵³; 0 if there is none.
    pub(crate) fn any_whole(&mut self, name: &str) -> u64 {
        let number = self.whole(name, 0..=WHOLE_MOST);
        number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
    }

    /// The name of one of `choices`, which may be written by name or number.
    pub(crate) fn choice(&mut self, name: &str, choices: Choices) -> Option<&'static str> {
        self.takes(name, || Shape::Choice(choices.to_vec()));
        let node = self.node(name)?;
        let number = as_whole(node);
        let choice = match &node.value {
            Value::String(text) => choices.iter().find(|choice| choice.0 == text),
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Map(_) => choices.iter().find(|choice| number.is_some() && choice.1 == number),
        };
        if choice.is_none() {
            let names = choices.iter().map(|choice| match choice.1 {
                Some(number) => format!("{} ({number})", choice.0),
                None => choice.0.to_string(),
            });
            let allowed = one_of(&names.collect::<Vec<_>>());
            self.mismatch(name, &allowed);
        }
        choice.map(|choice| choice.0)
    }

    /// The values of a list; none if the field is absent.
    pub(crate) fn list(&mut self, name: &str) -> &'a [Node] {
        self.takes(name, || Shape::List(usize::MAX));
        self.values(name)
    }

    /// Rule documents, which the caller compiles; none if the field is absent.
    pub(crate) fn documents(&mut self, name: &str) -> &'a [Node] {
        self.takes(name, || Shape::Documents);
        self.values(name)
    }

    fn values(&mut self, name: &str) -> &'a [Node] {
        match self.node(name).map(|node| &node.value) {
            Some(Value::List(list)) => list,
            Some(
                Value::Null
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::String(_)
                | Value::Map(_),
            ) => {
                self.mismatch(name, "a list");
                &[]
            }
            None => &[],
        }
    }

    /// The texts of a list of at most `most`, which `setting` may set. They are to be of a shape, which the caller looks at.
    pub(crate) fn texts(
        &mut self,
        name: &str,
        most: usize,
        setting: Option<&'static str>,
        shape: impl FnOnce() -> Shape,
    ) -> Vec<Text<'a>> {
        // What a setting bounds may be longer under another setting.
        self.takes(name, || Shape::List(if setting.is_some() { usize::MAX } else { most }));
        self.takes_each(name, shape);
        let list = self.values(name);
        if list.len() > most {
            self.refuse(name, Reason::TooMany { found: list.len(), most, setting });
            return Vec::new();
        }
        let mut texts = Vec::with_capacity(list.len());
        for (index, node) in list.iter().enumerate() {
            let field = format!("{name}[{index}]");
            if let Value::String(text) = &node.value {
                texts.push(Text { field, position: node.position, text });
            } else {
                let reason =
                    Reason::Mismatch { found: node.describe(), allowed: "text".to_string() };
                self.refuse_at(node.position, &field, reason);
            }
        }
        texts
    }

    /// The values of a list of at most `most`; none if there are more.
    pub(crate) fn list_of(&mut self, name: &str, most: usize) -> &'a [Node] {
        self.takes(name, || Shape::List(most));
        let list = self.values(name);
        if list.len() > most {
            self.refuse(name, Reason::TooMany { found: list.len(), most, setting: None });
            return &[];
        }
        list
    }

    /// Opens the value `node` of the list `name` as a map whose fields are `known`.
    pub(crate) fn item(
        &mut self,
        name: &str,
        index: usize,
        node: &'a Node,
        known: &[&'static str],
    ) -> Option<Fields<'a, '_>> {
        let path = format!("{}{name}[{index}].", self.path);
        Fields::open(node, &path, known, self.site, self.refusals)
    }

    /// Opens the field `name` as a map whose fields are `known`.
    pub(crate) fn inside(&mut self, name: &str, known: &[&'static str]) -> Option<Fields<'a, '_>> {
        self.takes(name, || Shape::Map);
        let node = self.node(name)?;
        let path = format!("{}{name}.", self.path);
        Fields::open(node, &path, known, self.site, self.refusals)
    }

    /// Opens the field `name` as a map that may have any fields, of which the caller looks at some.
    pub(crate) fn inside_any(&mut self, name: &str) -> Option<Fields<'a, '_>> {
        self.takes(name, || Shape::Map);
        let node = self.node(name)?;
        let path = format!("{}{name}.", self.path);
        let mut fields = Fields::of_any(node, &path, self.site, self.refusals)?;
        fields.note_opened(None);
        Some(fields)
    }

    /// Refuses the field `name`, which stands at `position`.
    pub(crate) fn refuse_at(&mut self, position: Option<Position>, name: &str, reason: Reason) {
        let site = self.site.at(position.or(self.position));
        self.refusals.push(Refusal { site, field: format!("{}{name}", self.path), reason });
    }
}

/// Text in a list.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    /// The path of the text.
    pub(crate) field: String,
    /// Where it stands.
    pub(crate) position: Option<Position>,
    /// The text.
    pub(crate) text: &'a str,
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn one_of<T: AsRef<str>>(names: &[T]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push_str(if index + 1 == names.len() { " or " } else { ", " });
        }
        text.push_str(name.as_ref());
    }
    text
}

/// The name of `known` that `name` is probably a slip of: the same letters in another case, or with at
/// most two changes.
pub(crate) fn near(name: &str, known: &[&'static str]) -> Option<&'static str> {
    const BYTES_MAX: usize = 40;

    if name.len() > BYTES_MAX {
        return None;
    }
    let changes = |known: &&'static str| {
        if known.eq_ignore_ascii_case(name) {
            0
        } else {
            distance(name.as_bytes(), known.as_bytes())
        }
    };
    // Of a short name two changes would leave nothing.
    let allowed = (name.len() / 2).min(2);
    known.iter().copied().min_by_key(changes).filter(|known| changes(known) <= allowed)
}

/// How many bytes to insert, remove or replace to make `b` of `a` (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, byte) in a.iter().enumerate() {
        let mut left = index + 1;
        let mut below = Vec::with_capacity(row.len());
        below.push(left);
        for ((diagonal, above), other) in row.iter().zip(row.iter().skip(1)).zip(b) {
            left = (left + 1).min(above + 1).min(diagonal + usize::from(byte != other));
            below.push(left);
        }
        row = below;
    }
    row.last().copied().unwrap_or(a.len())
}

pub(crate) fn as_number(node: &Node) -> Option<f64> {
    match node.value {
        #[expect(
            clippy::cast_precision_loss,
            reason = "what is over 2^53 is refused, exact or not"
        )]
        Value::Int(number) => Some(number as f64),
        Value::Float(number) => Some(number),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::List(_) | Value::Map(_) => None,
    }
}

pub(crate) fn as_whole(node: &Node) -> Option<i64> {
    if let Value::Int(number) = node.value { Some(number) } else { None }
}
