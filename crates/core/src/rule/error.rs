//! Why a document is refused: where, what, and what would do, in one line somebody can act on.
//!
//! Everything that is wrong with a set is said at once, as far as a reader can use it: [`Refusals`]
//! keeps the first hundred and counts the rest.

use alloc::{
    boxed::Box,
    string::{String, ToString as _},
    vec::Vec,
};
use core::{error::Error, fmt};

use crate::{
    order::sort_by,
    rule::node::{Position, shorten},
};

/// How many refusals are kept and shown; what is over is counted.
pub const REFUSALS_MAX: usize = 100;

/// Everything that stands in the way of a set of documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refusals {
    shown: Vec<Refusal>,
    more: usize,
    /// What is asked meanwhile, if somebody wants to know.
    #[cfg(feature = "schema")]
    pub(crate) asked: Option<Vec<crate::rule::shape::Asked>>,
}

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Where.
    pub site: Site,
    /// The field, as a path from the rule, the document or the configuration; empty for all of it.
    pub field: String,
    /// What is wrong and what would do.
    pub reason: Reason,
}

/// Where something stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// A file's name, or what else the document came from.
    pub source: String,
    /// Line and column, if the source has lines.
    pub position: Option<Position>,
    /// Which document of the source, from 1.
    pub document: Option<usize>,
    /// The document's kind, once it is known.
    pub kind: Option<&'static str>,
    /// Which rule of the document, from 0.
    pub rule: Option<usize>,
    /// The rule's id, or else its resource.
    pub name: Option<String>,
}

/// What is wrong with a field, and what would do.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// A field that must be there is not.
    Missing,
    /// The value is of the wrong type, out of range or none of the choices.
    Mismatch {
        /// The value in a few words.
        found: String,
        /// What would do.
        allowed: String,
    },
    /// No such field.
    Unknown {
        /// The field that was probably meant.
        near: Option<&'static str>,
    },
    /// Another rule has the same id.
    IdTaken {
        /// The other rule.
        by: Box<Site>,
    },
    /// Another rule counts the same, and neither has an id.
    CountsTheSame {
        /// The other rule.
        by: Box<Site>,
    },
    /// More than a bound allows.
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
        /// The setting that says so, if it is not fixed.
        setting: Option<&'static str>,
    },
    /// What else is wrong, in words that follow the field's name.
    Malformed(String),
}

impl Refusals {
    /// Adds `refusal`, or only counts it when there are enough to show.
    pub fn push(&mut self, refusal: Refusal) {
        if self.shown.len() < REFUSALS_MAX {
            self.shown.push(refusal);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// Adds all of `others`.
    pub fn append(&mut self, others: Self) {
        self.more = self.more.saturating_add(others.more);
        #[cfg(feature = "schema")]
        if let (Some(asked), Some(more)) = (&mut self.asked, others.asked) {
            asked.extend(more);
        }
        for refusal in others.shown {
            self.push(refusal);
        }
    }

    /// Whether there is nothing to complain about.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// The first hundred.
    pub fn shown(&self) -> &[Refusal] {
        &self.shown
    }

    /// How many there are besides [`Refusals::shown`].
    pub fn more(&self) -> usize {
        self.more
    }

    /// The lines to log: one for each refusal shown, and one for the others.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let more = (self.more > 0).then(|| alloc::format!("… and {} more", self.more));
        self.shown.iter().map(|refusal| refusal.to_string()).chain(more)
    }

    /// `value` if nothing was refused; otherwise the refusals in the order of their places.
    pub(crate) fn or<T>(mut self, value: T) -> Result<T, Self> {
        if self.is_empty() {
            return Ok(value);
        }
        sort_by(&mut self.shown, |a, b| {
            (&a.site.source, a.site.position).cmp(&(&b.site.source, b.site.position))
        });
        Err(self)
    }
}

impl From<Refusal> for Refusals {
    fn from(refusal: Refusal) -> Self {
        Self { shown: Vec::from([refusal]), ..Self::default() }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl Error for Refusals {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = self.site.to_string();
        f.write_str(&site)?;
        if !site.is_empty() {
            f.write_str(": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "`{}` ", shorten(&self.field))?;
        }
        self.reason.fmt(f)
    }
}

impl Error for Refusal {}

impl Site {
    /// A whole source.
    pub fn of_source(source: &str) -> Self {
        Self { source: source.to_string(), ..Self::default() }
    }

    /// The same place, at `position` if that is known.
    pub(crate) fn at(&self, position: Option<Position>) -> Self {
        Self { position: position.or(self.position), ..self.clone() }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        if let Some(position) = self.position {
            if self.source.is_empty() {
                write!(f, "line {}, column {}", position.line, position.column)?;
            } else {
                write!(f, "{}:{position}", self.source)?;
            }
            gap = ": ";
        } else if !self.source.is_empty() {
            f.write_str(&self.source)?;
            gap = ": ";
        }
        if let Some(document) = self.document {
            write!(f, "{gap}document {document}")?;
            gap = ": ";
            if let Some(kind) = self.kind {
                write!(f, " ({kind})")?;
            }
        }
        if let Some(rule) = self.rule {
            write!(f, "{gap}rules[{rule}]")?;
            if let Some(name) = &self.name {
                write!(f, " ({})", shorten(name))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Mismatch { found, allowed } => write!(f, "is {found}, but must be {allowed}"),
            Self::Unknown { near: None } => f.write_str("is an unknown field"),
            Self::Unknown { near: Some(near) } => {
                write!(f, "is an unknown field; did you mean `{near}`?")
            }
            Self::IdTaken { by } => write!(f, "is also the id of {by}; ids must differ"),
            Self::CountsTheSame { by } => {
                write!(f, "is missing: the rule counts the same as {by}; give both an `id`")
            }
            Self::TooMany { found, most, setting } => {
                write!(f, "has {found} entries, but may have at most {most}")?;
                setting.map_or(Ok(()), |setting| write!(f, " ({setting})"))
            }
            Self::Malformed(what) => f.write_str(what),
        }
    }
}
