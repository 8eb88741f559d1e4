//! JSON as it is written: RFC 8259 by hand, in a few hundred bytes of the module.

use alloc::string::String;
use core::fmt::Write as _;

use sentinel_core::{block::push_json_string, decimal};

/// Text that is being written. Whoever opens something closes it.
#[derive(Debug, Default)]
pub(super) struct Json {
    text: String,
}

impl Json {
    /// What has been written.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// How long it is.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Begins an object or a list with this bracket: the field `name`, or an item of a list where that is empty.
    pub(super) fn open(&mut self, name: &str, bracket: char) {
        self.name(name);
        self.text.push(bracket);
    }

    /// Ends it.
    pub(super) fn close(&mut self, bracket: char) {
        self.text.push(bracket);
    }

    /// A whole number.
    pub(super) fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        let written = write!(self.text, "{number}");
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }

    /// Any number that JSON has; `null` for the others.
    pub(super) fn float(&mut self, name: &str, number: f64) {
        self.name(name);
        if number.is_finite() {
            decimal::write(number, &mut self.text);
        } else {
            self.text.push_str("null");
        }
    }

    /// Whole milliseconds, or `null`.
    pub(super) fn maybe(&mut self, name: &str, number: Option<u64>) {
        match number {
            Some(number) => self.number(name, number),
            None => self.null(name),
        }
    }

    /// Text.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        push_json_string(&mut self.text, text);
    }

    /// Who somebody is, as logs write it: a number of 64 bits would not survive where JSON's numbers are doubles.
    pub(super) fn id(&mut self, name: &str, id: u64) {
        self.name(name);
        let written = write!(self.text, "\"{id:016x}\"");
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, name: &str, flag: bool) {
        self.name(name);
        self.text.push_str(if flag { "true" } else { "false" });
    }

    /// `null`.
    pub(super) fn null(&mut self, name: &str) {
        self.name(name);
        self.text.push_str("null");
    }

    fn name(&mut self, name: &str) {
        if !matches!(self.text.as_bytes().last(), None | Some(b'{' | b'[')) {
            self.text.push(',');
        }
        if !name.is_empty() {
            push_json_string(&mut self.text, name);
            self.text.push(':');
        }
    }
}
