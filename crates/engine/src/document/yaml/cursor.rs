//! Where the reader is in the text, and how it gets on: byte by byte, line and column with it.

use alloc::format;

use sentinel_core::rule::node::Position;

use crate::document::DocumentError;

/// A place in a text, with what is needed to go on from it. A copy is a place to come back to.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'t> {
    text: &'t str,
    at: usize,
    /// Line and column of the next character.
    pub(super) here: Position,
    /// The column behind the spaces that begin this line, or that follow a `-` in it.
    pub(super) indent: u32,
}

impl<'t> Cursor<'t> {
    /// The beginning of `text`, which is without NUL: that is how its end reads.
    pub(super) fn new(text: &'t str) -> Self {
        let mut cursor = Self { text, at: 0, here: Position { line: 1, column: 1 }, indent: 1 };
        cursor.spaces();
        cursor
    }

    /// The byte that stands `ahead` of the next one; 0 behind the end.
    pub(super) fn ahead(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    pub(super) fn next(&self) -> u8 {
        self.ahead(0)
    }

    /// Over a byte that ends no line.
    pub(super) fn step(&mut self) {
        // The further bytes of a character do not count.
        self.here.column += u32::from(self.next() & 0b1100_0000 != 0b1000_0000);
        self.at += 1;
    }

    pub(super) fn spaces(&mut self) {
        while self.next() == b' ' {
            self.step();
        }
        self.indent = self.here.column;
    }

    pub(super) fn blanks(&mut self) {
        while is_blank(self.next()) {
            self.step();
        }
    }

    /// Over the end of a line, which there must be: LF, CR, or both.
    pub(super) fn line_break(&mut self) {
        if self.next() == b'\r' && self.ahead(1) == b'\n' {
            self.at += 1;
        }
        self.at += 1;
        self.here.line += 1;
        self.here.column = 1;
    }

    /// Over ends of lines and the blanks that follow them; how many ends of lines there were.
    pub(super) fn line_breaks(&mut self) -> usize {
        let mut breaks = 0;
        while is_break(self.next()) {
            self.line_break();
            self.spaces();
            self.blanks();
            breaks += 1;
        }
        breaks
    }

    /// Over blanks and a comment; whether the line ends there.
    pub(super) fn rest_of_line(&mut self) -> bool {
        self.blanks();
        if self.next() == b'#' && self.is_separated() {
            while !is_end(self.next()) {
                self.step();
            }
        }
        is_end(self.next())
    }

    /// The characters up to the next blank or end of line; `in_flow` also up to what may stand behind a value in
    /// brackets.
    pub(super) fn word(&mut self, in_flow: bool) -> &'t str {
        let from = *self;
        while !(is_space(self.next()) || in_flow && is_flow(self.next())) {
            self.step();
        }
        self.since(from)
    }

    /// To whatever comes next that is neither blank nor comment.
    pub(super) fn skip(&mut self) {
        while self.rest_of_line() && self.next() != 0 {
            self.line_breaks();
        }
    }

    /// The text from `from` to here.
    pub(super) fn since(&self, from: Self) -> &'t str {
        self.text.get(from.at..self.at).unwrap_or_default()
    }

    /// Whether a blank or the beginning of a line stands before the next character: only there does a `#`
    /// begin a comment.
    pub(super) fn is_separated(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.text.as_bytes().get(at));
        before.is_none_or(|byte| is_space(*byte))
    }

    /// The character of a line that begins or ends a document: `---` or `...`; 0 if this is none.
    pub(super) fn marker(&self) -> u8 {
        let first = self.next();
        let is_marker = self.here.column == 1
            && matches!(first, b'-' | b'.')
            && self.ahead(1) == first
            && self.ahead(2) == first
            && is_space(self.ahead(3));
        if is_marker { first } else { 0 }
    }

    /// Whether what comes next belongs to something that begins in a column after `parent`.
    pub(super) fn is_within(&self, parent: u32) -> bool {
        self.next() != 0 && self.here.column > parent && self.marker() == 0
    }

    /// That only spaces indent what begins here.
    pub(super) fn check_indent(&self) -> Result<(), DocumentError> {
        if self.indent < self.here.column { Err(self.refusal(TABS)) } else { Ok(()) }
    }

    pub(super) fn refusal(&self, problem: &str) -> DocumentError {
        DocumentError::new(Some(self.here), problem)
    }

    /// That the quote or bracket which stands at `open` is still open here.
    pub(super) fn not_closed(&self, what: &str, open: Position) -> DocumentError {
        self.refusal(&format!(
            "the {what} of line {}, column {} is not closed: close it, or indent what belongs to it",
            open.line, open.column
        ))
    }
}

pub(super) const TABS: &str = "tabs may not indent: use spaces";

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub(super) fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// The end of a line or of the text.
pub(super) fn is_end(byte: u8) -> bool {
    byte == 0 || is_break(byte)
}

/// What separates an indicator from what follows it.
pub(super) fn is_space(byte: u8) -> bool {
    is_blank(byte) || is_end(byte)
}

/// What ends a plain text within brackets.
pub(super) fn is_flow(byte: u8) -> bool {
    matches!(byte, b',' | b'[' | b']' | b'{' | b'}')
}
