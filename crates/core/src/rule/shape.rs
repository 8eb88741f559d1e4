//! What a reader takes: the material of the JSON Schema that editors use.
//!
//! Nobody writes that schema down. With the feature `schema` a reader notes what it asks of a document, field by field, when it is
//! given [`Trace`]; whoever shows it enough documents learns all that it can ask. In the modules, which are built
//! without the feature, nothing is noted and nothing of this is left.
//!
//! So that the notes say all, a reader asks for every field of a map whatever the others say, or refuses the map.

use alloc::vec::Vec;

#[cfg(feature = "schema")]
pub use trace::{Asked, Note, Trace};

/// What a field may be, as far as it can be said of the field alone: what a schema allows, a reader may still refuse, but
/// never the other way round. A field without a value is as good as absent, whatever its shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Anything: it is not looked at.
    Any,
    /// `true` or `false`.
    Flag,
    /// `false`: what it would switch on is not for this kind of rule.
    False,
    /// Text of so many characters, which matches a regular expression.
    Text {
        /// The fewest characters.
        least: usize,
        /// The most characters.
        most: usize,
        /// In the common part of ECMAScript's and Rust's regular expressions; empty: any text.
        pattern: &'static str,
    },
    /// A number from the first to the second.
    Number(f64, f64),
    /// A whole number from the first to the second.
    Whole(i64, i64),
    /// One of these names, or its number.
    Choice(Vec<(&'static str, Option<i64>)>),
    /// A list of at most so many values. What they are is noted under the list's name and `[]`.
    List(usize),
    /// A map. Its fields are noted when one is opened.
    Map,
    /// A map of at most so many texts, by names of their own that match a regular expression.
    Texts(usize, &'static str),
    /// A list of rule documents.
    Documents,
    /// Any of these.
    AnyOf(Vec<Self>),
}

impl Shape {
    /// Any text.
    pub const TEXT: Self = Self::Text { least: 0, most: usize::MAX, pattern: "" };

    /// Text without a character, which is as good as none where a reader says so.
    pub const EMPTY_TEXT: Self = Self::Text { least: 0, most: 0, pattern: "" };

    /// Text that says something.
    pub const SOME_TEXT: Self = Self::Text { least: 1, most: usize::MAX, pattern: "" };

    /// Text that matches `pattern`.
    pub const fn text(pattern: &'static str) -> Self {
        Self::Text { least: 0, most: usize::MAX, pattern }
    }
}

#[cfg(feature = "schema")]
mod trace {
    use alloc::{
        string::{String, ToString as _},
        vec::Vec,
    };

    use super::Shape;
    use crate::rule::error::{Refusals, Site};

    /// What a reader has asked of one document, and what it has refused.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct Trace {
        /// In the order in which it asked; often the same several times.
        pub asked: Vec<Asked>,
        /// The fields that it refused, as [`Asked::field`] says.
        pub refused: Vec<String>,
    }

    /// One thing that a reader has asked.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Asked {
        /// The field, by its path in the document, such as `spec.rules[].response.status`; empty for all of it.
        pub field: String,
        /// What was asked.
        pub note: Note,
    }

    /// What can be asked of a field.
    #[derive(Clone, Debug, PartialEq)]
    pub enum Note {
        /// If it says anything, that it is of this shape.
        Takes(Shape),
        /// That it says something.
        Needs,
        /// It was opened as a map of these fields; `None`: of any.
        Opens(Option<Vec<&'static str>>),
    }

    impl Trace {
        /// What `read` asks of a document.
        pub(crate) fn of(read: impl FnOnce(&mut Refusals)) -> Self {
            let mut refusals = Refusals::default();
            refusals.asked = Some(Vec::new());
            read(&mut refusals);
            let refused = refusals.shown().iter();
            let refused = refused.map(|refusal| path(&refusal.site, &[&refusal.field])).collect();
            Self { asked: refusals.asked.unwrap_or_default(), refused }
        }
    }

    /// The path of a field in the whole document, without indices of lists. Where errors begin anew with each rule, the
    /// path does not.
    pub(crate) fn path(site: &Site, parts: &[&str]) -> String {
        let mut path = String::new();
        if site.rule.is_some() {
            path.push_str("spec.rules[].");
        }
        let mut in_brackets = false;
        for c in parts.iter().flat_map(|part| part.chars()) {
            in_brackets &= c != ']';
            if !in_brackets {
                path.push(c);
            }
            in_brackets |= c == '[';
        }
        path.trim_end_matches('.').to_string()
    }
}

#[cfg(feature = "schema")]
pub(crate) use trace::path;
