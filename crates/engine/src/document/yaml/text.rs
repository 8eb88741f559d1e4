//! Texts: plain, in quotes, and in blocks under `|` or `>`.

use alloc::string::String;

use sentinel_core::rule::node::Position;

use crate::document::{
    DocumentError,
    yaml::cursor::{Cursor, TABS, is_blank, is_break, is_end, is_flow, is_space},
};

/// A text as it stands in the document.
pub(super) struct Text {
    pub(super) text: String,
    /// Without quotes: it may be a number, or nothing at all.
    pub(super) plain: bool,
}

impl Text {
    /// Where a value could stand, and none does.
    pub(super) const NOTHING: Self = Self { text: String::new(), plain: true };
}

impl<'t> Cursor<'t> {
    /// Whether a plain text can begin here.
    pub(super) fn is_plain(&self, in_flow: bool) -> bool {
        match self.next() {
            b'-' | b'?' | b':' => !(is_space(self.ahead(1)) || in_flow && is_flow(self.ahead(1))),
            0 | b'#' | b'&' | b'*' | b'!' | b'|' | b'>' | b'%' | b'@' | b'`' | b'"' | b'\'' => {
                false
            }
            first => !is_flow(first),
        }
    }

    /// The plain text that begins here, as far as it stands in this line, and over the blanks behind it.
    fn plain_line(&mut self, in_flow: bool) -> &'t str {
        let from = *self;
        let mut end = *self;
        loop {
            match self.next() {
                b'#' if self.is_separated() => break,
                b':' if is_space(self.ahead(1)) || in_flow && is_flow(self.ahead(1)) => break,
                byte if is_end(byte) || in_flow && is_flow(byte) => break,
                byte => {
                    self.step();
                    if !is_blank(byte) {
                        end = *self;
                    }
                }
            }
        }
        end.since(from)
    }

    /// The plain text that begins here, with all further lines that are indented deeper than `parent`.
    pub(super) fn plain(&mut self, parent: u32, in_flow: bool) -> String {
        let mut text = String::from(self.plain_line(in_flow));
        loop {
            let end = *self;
            let breaks = self.line_breaks();
            // Tabs do not indent.
            let column = if in_flow { self.here.column } else { self.indent };
            if breaks == 0 || column <= parent || !self.is_within(parent) {
                *self = end;
                return text;
            }
            let more = self.plain_line(in_flow);
            if more.is_empty() {
                *self = end;
                return text;
            }
            fold(&mut text, breaks);
            text.push_str(more);
        }
    }

    /// A text in quotes, whose further lines are indented deeper than `parent`.
    pub(super) fn quoted(&mut self, parent: u32) -> Result<String, DocumentError> {
        let open = self.here;
        let quote = self.next();
        let escapes = quote == b'"';
        self.step();
        let mut text = String::new();
        loop {
            let from = *self;
            while !(is_end(self.next()) || self.next() == quote || escapes && self.next() == b'\\')
            {
                self.step();
            }
            let run = self.since(from);
            if is_break(self.next()) {
                text.push_str(run.trim_end_matches([' ', '\t']));
                let breaks = self.quoted_lines(parent, open)?;
                fold(&mut text, breaks);
                continue;
            }
            text.push_str(run);
            if self.next() == 0 {
                return Err(self.not_closed("quote", open));
            }
            if self.next() == quote {
                self.step();
                // In single quotes, two of them are one.
                if escapes || self.next() != quote {
                    return Ok(text);
                }
                text.push('\'');
                self.step();
            } else if is_break(self.ahead(1)) {
                // A backslash at the end of a line joins it with the next one.
                self.step();
                let breaks = self.quoted_lines(parent, open)?;
                text.extend((1..breaks).map(|_| '\n'));
            } else {
                text.push(self.escape()?);
            }
        }
    }

    /// The ends of lines here in a text in quotes that stand at `open`; how many.
    fn quoted_lines(&mut self, parent: u32, open: Position) -> Result<usize, DocumentError> {
        let breaks = self.line_breaks();
        if self.is_within(parent) { Ok(breaks) } else { Err(self.not_closed("quote", open)) }
    }

    /// The character that the escape sequence here stands for.
    fn escape(&mut self) -> Result<char, DocumentError> {
        let from = *self;
        self.step();
        let kind = self.next();
        self.step();
        Ok(match kind {
            b'0' => '\0',
            b'a' => '\u{7}',
            b'b' => '\u{8}',
            b't' | b'\t' => '\t',
            b'n' => '\n',
            b'v' => '\u{b}',
            b'f' => '\u{c}',
            b'r' => '\r',
            b'e' => '\u{1b}',
            b' ' | b'"' | b'/' | b'\\' => char::from(kind),
            b'N' => '\u{85}',
            b'_' => '\u{a0}',
            b'L' => '\u{2028}',
            b'P' => '\u{2029}',
            b'x' | b'u' | b'U' => {
                let digits = match kind {
                    b'x' => 2,
                    b'u' => 4,
                    _ => 8,
                };
                return self.code(digits).ok_or_else(|| {
                    from.refusal(
                        "this escape sequence names no character: write the character itself",
                    )
                });
            }
            _ => {
                return Err(
                    from.refusal("there is no such escape sequence: write `\\\\` for a backslash")
                );
            }
        })
    }

    /// The character whose number is written here in `digits` digits; in JSON, two numbers of four digits may
    /// be halves of one.
    fn code(&mut self, digits: usize) -> Option<char> {
        let code = self.hex(digits)?;
        if digits == 4
            && matches!(code, 0xd800..0xdc00)
            && self.next() == b'\\'
            && self.ahead(1) == b'u'
        {
            self.step();
            self.step();
            let low = self.hex(4)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
            return char::from_u32(0x1_0000 + (code - 0xd800) * 0x400 + low);
        }
        char::from_u32(code)
    }

    fn hex(&mut self, digits: usize) -> Option<u32> {
        let mut code = 0;
        for _ in 0..digits {
            code = code << 4 | char::from(self.next()).to_digit(16)?;
            self.step();
        }
        Some(code)
    }

    /// The text of a block, whose header (`|` or `>`) stands here, and whose parent begins in column `parent`.
    pub(super) fn block(&mut self, parent: u32) -> Result<String, DocumentError> {
        let folded = self.next() == b'>';
        self.step();
        let mut chomping = 0;
        let mut width = 0;
        loop {
            match self.next() {
                byte @ (b'+' | b'-') if chomping == 0 => chomping = byte,
                byte @ b'1'..=b'9' if width == 0 => width = u32::from(byte - b'0'),
                _ => break,
            }
            self.step();
        }
        if !self.rest_of_line() {
            return Err(self.refusal(
                "behind `|` or `>` only `+`, `-`, the width of the indentation and a comment may stand",
            ));
        }
        // The column in which the lines begin: the header says it, or else the first line with text does.
        let mut column = if width == 0 { 0 } else { parent.max(1) + width };
        let mut widest = 0;
        let mut text = String::new();
        let mut breaks = 0;
        let mut after_blank = false;
        if self.next() != 0 {
            self.line_break();
        }
        if self.next() == b'\t' {
            return Err(self.refusal(TABS));
        }
        loop {
            while self.next() == b' ' && (column == 0 || self.here.column < column) {
                self.step();
            }
            self.indent = self.here.column;
            if is_break(self.next()) {
                widest = widest.max(self.here.column);
                self.line_break();
                breaks += 1;
                continue;
            }
            if column == 0 {
                // At the left margin, a text could not be told from what follows it.
                column = widest.max(self.here.column).max(parent + 1).max(2);
            }
            if self.next() == 0 || self.here.column < column {
                break;
            }
            let from = *self;
            while !is_end(self.next()) {
                self.step();
            }
            // In a folded text, one end of a line is a space, but not next to a line that is indented deeper.
            let blank = is_blank(from.next());
            if folded && !text.is_empty() && !blank && !after_blank {
                fold(&mut text, breaks);
            } else {
                text.extend((0..breaks).map(|_| '\n'));
            }
            text.push_str(self.since(from));
            after_blank = blank;
            // The end of the document ends a line too.
            breaks = 1;
            if self.next() != 0 {
                self.line_break();
            }
        }
        if text.is_empty() && self.is_within(parent) {
            return Err(self.refusal("this line is indented less than the text it should begin"));
        }
        let kept = match chomping {
            b'+' => breaks,
            b'-' => 0,
            _ => usize::from(!text.is_empty()),
        };
        text.extend((0..kept).map(|_| '\n'));
        Ok(text)
    }
}

/// What `breaks` ends of lines are within a text that is written over several lines.
fn fold(text: &mut String, breaks: usize) {
    if breaks == 1 {
        text.push(' ');
    }
    text.extend((1..breaks).map(|_| '\n'));
}
