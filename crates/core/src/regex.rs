//! Regular expressions that match a whole text or nothing, in linear time.
//!
//! A pattern becomes what every text that it matches begins with, and behind that a program of small steps. Matching
//! goes through the text once with the set of all steps that the program may stand at: at most |program| × |text| of
//! them, whatever the pattern. Nobody here asks where a match
//! begins or which part a group has, and without that an engine is a quarter of the smallest ready-made one, which was
//! 30 KB of each module. Its syntax is a subset of `regex-lite`'s with the same meaning (tests hold it against that): all of it
//! but the flags `x` and `R`, and the beginnings and ends of words. What is not supported, such as look-around, is refused.

use alloc::{boxed::Box, rc::Rc, string::String, vec, vec::Vec};
use core::{iter::Peekable, str::Chars};

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct Regex {
    /// What every text that matches begins with.
    prefix: Box<str>,
    /// What follows.
    program: Box<[Step]>,
}

/// The most steps of a program, and so the most work for a character.
const STEPS_MAX: usize = 4_096;

/// The most groups in each other.
const DEPTH_MAX: usize = 50;

/// One step. Distances count from the step itself.
#[derive(Clone, Debug)]
enum Step {
    /// This character comes next.
    One(char),
    /// One of these comes next.
    Set(Rc<Set>),
    /// Goes on here and there.
    Fork(usize, isize),
    /// Goes on there.
    Jump(isize),
    /// Goes on where this holds of the place between two characters.
    Look(Look),
}

/// Characters.
#[derive(Clone, Debug, Default)]
struct Set {
    ranges: Vec<(char, char)>,
    /// All others.
    negated: bool,
    /// In upper and lower case (ASCII).
    folded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    Start,
    End,
    LineStart,
    LineEnd,
    Boundary,
    NoBoundary,
}

/// What `(?ims)` switches.
#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    folded: bool,
    lines: bool,
    dot_all: bool,
}

impl Regex {
    /// Compiles a pattern, or says what is wrong with it.
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        let mut parser = Parser {
            rest: pattern.chars().peekable(),
            program: Vec::new(),
            flags: Flags::default(),
            depth: 0,
        };
        let parsed = parser.alternatives().and_then(|()| match parser.rest.next() {
            Some(_) => Err("found closing ')' without matching '('"),
            None => Ok(()),
        });
        match parsed {
            Ok(()) => Ok(Self::of(parser.program)),
            Err(problem) => Err(problem.into()),
        }
    }

    /// Takes the plain characters off that the program begins with, up to where a repetition comes back to.
    fn of(program: Vec<Step>) -> Self {
        let comes_back_to = |(place, step): (usize, &Step)| match step {
            Step::Fork(_, there) | Step::Jump(there) if *there < 0 => {
                place.checked_add_signed(*there)
            }
            Step::One(_) | Step::Set(_) | Step::Fork(..) | Step::Jump(_) | Step::Look(_) => None,
        };
        let first = program.iter().enumerate().filter_map(comes_back_to).min();
        let mut prefix = String::new();
        let mut length = 0;
        for step in program.iter().take(first.unwrap_or(program.len())) {
            match step {
                Step::One(character) => prefix.push(*character),
                Step::Look(Look::Start) if prefix.is_empty() => {}
                Step::Set(_) | Step::Fork(..) | Step::Jump(_) | Step::Look(_) => break,
            }
            length += 1;
        }
        Self { prefix: prefix.into(), program: program.into_iter().skip(length).collect() }
    }

    /// What every text that matches begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How many steps there are behind the prefix.
    pub(crate) fn steps(&self) -> usize {
        self.program.len()
    }

    /// How many bytes the pattern takes in a module, at most.
    pub(crate) fn bytes(&self) -> usize {
        const STEP: usize = 12;
        const SET: usize = 48;
        const RANGE: usize = 8;

        let of_step = |step: &Step| match step {
            Step::Set(set) => STEP + SET + RANGE * set.ranges.len(),
            Step::One(_) | Step::Fork(..) | Step::Jump(_) | Step::Look(_) => STEP,
        };
        self.prefix.len() + self.program.iter().map(of_step).sum::<usize>()
    }

    /// Whether all of `text` matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let Some(text) = text.strip_prefix(&*self.prefix) else { return false };
        let mut here = Places::new(self.program.len());
        let mut next = Places::new(self.program.len());
        let mut before = self.prefix.chars().next_back();
        let mut rest = text.chars();
        let mut character = rest.next();
        here.reach(&self.program, 0, (before, character));
        while let Some(now) = character {
            let after = rest.next();
            before = Some(now);
            next.clear();
            for &place in &here.reached {
                let takes = match self.program.get(place) {
                    Some(Step::One(wanted)) => *wanted == now,
                    Some(Step::Set(set)) => set.has(now),
                    Some(Step::Fork(..) | Step::Jump(_) | Step::Look(_)) | None => false,
                };
                if takes {
                    next.reach(&self.program, place + 1, (before, after));
                }
            }
            core::mem::swap(&mut here, &mut next);
            if here.reached.is_empty() {
                return false;
            }
            character = after;
        }
        // Behind the last step.
        here.reached.contains(&self.program.len())
    }
}

/// Where a program may stand.
struct Places {
    reached: Vec<usize>,
    is_reached: Vec<bool>,
    /// To be looked at.
    open: Vec<usize>,
}

impl Places {
    fn new(steps: usize) -> Self {
        Self { reached: Vec::new(), is_reached: vec![false; steps + 1], open: Vec::new() }
    }

    fn clear(&mut self) {
        for &place in &self.reached {
            if let Some(is_reached) = self.is_reached.get_mut(place) {
                *is_reached = false;
            }
        }
        self.reached.clear();
    }

    /// Reaches `place` and all that follows from it between the two characters.
    fn reach(&mut self, program: &[Step], place: usize, between: (Option<char>, Option<char>)) {
        self.open.push(place);
        while let Some(place) = self.open.pop() {
            match self.is_reached.get_mut(place) {
                Some(is_reached) if !*is_reached => *is_reached = true,
                Some(_) | None => continue,
            }
            self.reached.push(place);
            match program.get(place) {
                Some(Step::Fork(here, there)) => {
                    self.open.push(place + here);
                    self.open.extend(place.checked_add_signed(*there));
                }
                Some(Step::Jump(there)) => self.open.extend(place.checked_add_signed(*there)),
                Some(Step::Look(look)) if look.holds(between) => self.open.push(place + 1),
                Some(Step::Look(_) | Step::One(_) | Step::Set(_)) | None => {}
            }
        }
    }
}

impl Set {
    fn has(&self, character: char) -> bool {
        let has = |character| {
            self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&character))
        };
        let other = match character {
            'a'..='z' => character.to_ascii_uppercase(),
            _ => character.to_ascii_lowercase(),
        };
        (has(character) || self.folded && has(other)) != self.negated
    }

    /// Adds those of a class of ASCII characters, or all others.
    fn add_class(&mut self, class: &[(char, char)], negated: bool) {
        if !negated {
            self.ranges.extend_from_slice(class);
            return;
        }
        let mut next = '\0';
        for (first, last) in class {
            if next < *first {
                self.ranges.push((next, char::from(ascii(*first).saturating_sub(1))));
            }
            next = char::from(ascii(*last).saturating_add(1));
        }
        self.ranges.push((next, char::MAX));
    }
}

impl Look {
    fn holds(self, (before, after): (Option<char>, Option<char>)) -> bool {
        let is_word = |character: Option<char>| {
            character.is_some_and(|character| character.is_ascii_alphanumeric() || character == '_')
        };
        match self {
            Self::Start => before.is_none(),
            Self::End => after.is_none(),
            Self::LineStart => before.is_none_or(|character| character == '\n'),
            Self::LineEnd => after.is_none_or(|character| character == '\n'),
            Self::Boundary => is_word(before) != is_word(after),
            Self::NoBoundary => is_word(before) == is_word(after),
        }
    }
}

/// A pattern while it is read.
struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    program: Vec<Step>,
    flags: Flags,
    depth: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl Parser<'_> {
    /// What stands between bars, up to the end or a closing parenthesis.
    fn alternatives(&mut self) -> Parsed<()> {
        let mut ends = Vec::new();
        loop {
            let start = self.program.len();
            self.sequence()?;
            if self.rest.next_if_eq(&'|').is_none() {
                break;
            }
            // Fork(here, behind the jump) … Jump(to the end of all)
            let length = self.program.len() - start;
            self.insert(start, Step::Fork(1, distance(length) + 2))?;
            ends.push(self.program.len());
            self.push(Step::Jump(0))?;
        }
        let end = self.program.len();
        for place in ends {
            if let Some(step) = self.program.get_mut(place) {
                *step = Step::Jump(distance(end - place));
            }
        }
        Ok(())
    }

    fn sequence(&mut self) -> Parsed<()> {
        // Where what a repetition would repeat begins.
        let mut last = None;
        while let Some(&character) = self.rest.peek() {
            if matches!(character, '|' | ')') {
                break;
            }
            self.rest.next();
            if matches!(character, '*' | '+' | '?' | '{') {
                let start =
                    last.ok_or("a repetition operator must be applied to a sub-expression")?;
                self.repetition(character, start)?;
            } else {
                let start = self.program.len();
                if self.atom(character)? {
                    last = Some(start);
                }
            }
        }
        Ok(())
    }

    /// What begins with `character`; `false` if that is nothing that could be repeated.
    fn atom(&mut self, character: char) -> Parsed<bool> {
        let flags = self.flags;
        let step = match character {
            '(' => return self.group(),
            '[' => {
                let set = self.class()?;
                Step::Set(Rc::new(set))
            }
            '.' => {
                let mut set = Set { negated: true, ..Set::default() };
                if !flags.dot_all {
                    set.ranges.push(('\n', '\n'));
                }
                Step::Set(Rc::new(set))
            }
            '^' if flags.lines => Step::Look(Look::LineStart),
            '^' => Step::Look(Look::Start),
            '$' if flags.lines => Step::Look(Look::LineEnd),
            '$' => Step::Look(Look::End),
            '\\' => match self.escape()? {
                Escape::One(character) => self.one(character),
                Escape::Class(class, negated) => {
                    let mut set = Set::default();
                    set.add_class(class, negated);
                    Step::Set(Rc::new(set))
                }
                Escape::Look(look) => Step::Look(look),
            },
            character => self.one(character),
        };
        self.push(step)?;
        Ok(true)
    }

    fn one(&self, character: char) -> Step {
        if self.flags.folded && character.is_ascii_alphabetic() {
            let ranges = vec![(character, character)];
            Step::Set(Rc::new(Set { ranges, negated: false, folded: true }))
        } else {
            Step::One(character)
        }
    }

    /// What follows an opening parenthesis.
    fn group(&mut self) -> Parsed<bool> {
        let outside = self.flags;
        if self.rest.next_if_eq(&'?').is_some() && self.group_head()? {
            return Ok(false);
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("pattern has too much nesting");
        }
        self.alternatives()?;
        self.depth -= 1;
        self.flags = outside;
        match self.rest.next() {
            Some(_) => Ok(true),
            None => Err("found open group without closing ')'"),
        }
    }

    /// What follows `(?`: a name, or flags. `true` if that is all of the group.
    fn group_head(&mut self) -> Parsed<bool> {
        const UNKNOWN: &str = "unrecognized inline flag, or look-around, which is not supported";
        let (mut on, mut any) = (true, false);
        loop {
            match self.rest.next().ok_or("expected closing ')', but got end of pattern")? {
                'P' if !any && self.rest.peek() == Some(&'<') => {}
                '<' if !any => return self.group_name().map(|()| false),
                ':' if on || any => return Ok(false),
                ')' if any => return Ok(true),
                '-' if on => (on, any) = (false, false),
                flag => {
                    match flag {
                        'i' => self.flags.folded = on,
                        'm' => self.flags.lines = on,
                        's' => self.flags.dot_all = on,
                        // Which match to prefer is not asked here.
                        'U' => {}
                        _ => return Err(UNKNOWN),
                    }
                    any = true;
                }
            }
        }
    }

    fn group_name(&mut self) -> Parsed<()> {
        let mut is_first = true;
        loop {
            match self.rest.next() {
                Some('>') if !is_first => return Ok(()),
                Some('_' | 'a'..='z' | 'A'..='Z') => {}
                Some('0'..='9' | '.' | '[' | ']') if !is_first => {}
                Some(_) | None => return Err("invalid group name"),
            }
            is_first = false;
        }
    }

    /// Repeats what begins at `start`.
    fn repetition(&mut self, operator: char, start: usize) -> Parsed<()> {
        let (least, most) = match operator {
            '*' => (0, None),
            '+' => (1, None),
            '?' => (0, Some(1)),
            _ => self.counts()?,
        };
        // Lazy or not, the same texts match.
        self.rest.next_if_eq(&'?');
        let part: Vec<Step> = self.program.drain(start..).collect();
        let length = distance(part.len());
        let repeated = most.unwrap_or_else(|| least.max(1));
        for round in 0..repeated {
            if round >= least {
                self.push(Step::Fork(1, length + if most.is_none() { 2 } else { 1 }))?;
            }
            for step in &part {
                self.push(step.clone())?;
            }
        }
        match most {
            // Back to the fork, or to the part itself where one is needed in any case.
            None if least == 0 => self.push(Step::Jump(-length - 1)),
            None => self.push(Step::Fork(1, -length)),
            Some(_) => Ok(()),
        }
    }

    /// What follows `{`: `2}`, `2,}` or `2,3}`.
    fn counts(&mut self) -> Parsed<(usize, Option<usize>)> {
        const WRONG: &str = "a counted repetition must be {n}, {n,} or {n,m}";
        let least = self.decimal().ok_or(WRONG)?;
        let mut most = Some(least);
        if self.rest.next_if_eq(&',').is_some() {
            most = self.decimal();
        }
        if self.rest.next() != Some('}') {
            return Err(WRONG);
        }
        if most.is_some_and(|most| most < least) {
            return Err("found counted repetition with a min bigger than its max");
        }
        Ok((least, most))
    }

    fn decimal(&mut self) -> Option<usize> {
        let mut number: Option<usize> = None;
        while let Some(digit) = self.rest.peek().and_then(|character| character.to_digit(10)) {
            self.rest.next();
            let digit = usize::try_from(digit).ok()?;
            number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
        }
        number
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Parsed<Escape> {
        let character = self.rest.next().ok_or("found a backslash at the end of the pattern")?;
        Ok(match character {
            'd' | 'D' => Escape::Class(&[('0', '9')], character == 'D'),
            's' | 'S' => Escape::Class(SPACE, character == 'S'),
            'w' | 'W' => Escape::Class(WORD, character == 'W'),
            'b' => Escape::Look(Look::Boundary),
            'B' => Escape::Look(Look::NoBoundary),
            'A' => Escape::Look(Look::Start),
            'z' => Escape::Look(Look::End),
            'a' => Escape::One('\u{7}'),
            'f' => Escape::One('\u{c}'),
            'n' => Escape::One('\n'),
            'r' => Escape::One('\r'),
            't' => Escape::One('\t'),
            'v' => Escape::One('\u{b}'),
            'x' => Escape::One(self.hexadecimal(2)?),
            'u' => Escape::One(self.hexadecimal(4)?),
            'U' => Escape::One(self.hexadecimal(8)?),
            '<' | '>' => return Err(ESCAPE),
            character if character.is_ascii() && !character.is_ascii_alphanumeric() => {
                Escape::One(character)
            }
            _ => return Err(ESCAPE),
        })
    }

    /// `length` digits, or any number of them in braces.
    fn hexadecimal(&mut self, length: usize) -> Parsed<char> {
        const WRONG: &str = "got invalid hexadecimal number";
        let in_braces = self.rest.next_if_eq(&'{').is_some();
        let mut number: u32 = 0;
        let mut digits = 0;
        while in_braces || digits < length {
            let character = self.rest.next().ok_or(WRONG)?;
            if in_braces && character == '}' && digits > 0 {
                break;
            }
            let digit = character.to_digit(16).ok_or(WRONG)?;
            number = number.checked_mul(16).ok_or(WRONG)? + digit;
            digits += 1;
        }
        char::from_u32(number).ok_or(WRONG)
    }

    /// What follows `[`.
    fn class(&mut self) -> Parsed<Set> {
        const UNCLOSED: &str = "found unclosed character class";
        let mut set = Set { folded: self.flags.folded, ..Set::default() };
        set.negated = self.rest.next_if_eq(&'^').is_some();
        let mut is_first = true;
        loop {
            let first = match self.rest.next().ok_or(UNCLOSED)? {
                ']' if !is_first => return Ok(set),
                '[' if self.rest.next_if_eq(&':').is_some() => {
                    self.posix_class(&mut set)?;
                    is_first = false;
                    continue;
                }
                '[' => return Err("nested character classes are not supported"),
                operator @ ('&' | '~') if self.rest.peek() == Some(&operator) => {
                    return Err("operations on character classes are not supported");
                }
                '-' if !is_first && self.rest.peek() == Some(&'-') => {
                    return Err("operations on character classes are not supported");
                }
                '\\' => match self.escape()? {
                    Escape::One(character) => character,
                    Escape::Class(class, negated) => {
                        set.add_class(class, negated);
                        is_first = false;
                        // Not the beginning of a range, but a dash at the end is one.
                        let mut ahead = self.rest.clone();
                        if ahead.next() == Some('-') && !matches!(ahead.next(), Some(']' | '-')) {
                            return Err(RANGE);
                        }
                        continue;
                    }
                    Escape::Look(_) => return Err("invalid escape sequence in character class"),
                },
                character => character,
            };
            is_first = false;
            let mut last = first;
            let mut ahead = self.rest.clone();
            if ahead.next() == Some('-') && !matches!(ahead.peek(), Some(']' | '-') | None) {
                self.rest.next();
                last = match self.rest.next().ok_or(UNCLOSED)? {
                    '\\' => match self.escape()? {
                        Escape::One(character) => character,
                        Escape::Class(..) | Escape::Look(_) => return Err(RANGE),
                    },
                    '[' => return Err("nested character classes are not supported"),
                    character => character,
                };
                if last < first {
                    return Err("invalid range in character class");
                }
            }
            set.ranges.push((first, last));
        }
    }

    /// What follows `[:`.
    fn posix_class(&mut self, set: &mut Set) -> Parsed<()> {
        const UNKNOWN: &str = "unrecognized POSIX character class";
        let negated = self.rest.next_if_eq(&'^').is_some();
        let mut name = String::new();
        while let Some(letter) = self.rest.next_if(char::is_ascii_lowercase) {
            name.push(letter);
        }
        if self.rest.next() != Some(':') || self.rest.next() != Some(']') {
            return Err(UNKNOWN);
        }
        let (_, class) = POSIX.iter().find(|(known, _)| *known == name).ok_or(UNKNOWN)?;
        set.add_class(class, negated);
        Ok(())
    }

    fn push(&mut self, step: Step) -> Parsed<()> {
        self.insert(self.program.len(), step)
    }

    fn insert(&mut self, place: usize, step: Step) -> Parsed<()> {
        if self.program.len() >= STEPS_MAX {
            return Err(TOO_LARGE);
        }
        self.program.insert(place, step);
        Ok(())
    }
}

/// What an escape sequence stands for.
enum Escape {
    One(char),
    Class(&'static [(char, char)], bool),
    Look(Look),
}

const TOO_LARGE: &str = "pattern is too large: its repetitions multiply";
const ESCAPE: &str = "unrecognized escape sequence";
const RANGE: &str = "character class ranges must start and end with a single character";

/// Programs are short.
fn distance(steps: usize) -> isize {
    isize::try_from(steps).unwrap_or(isize::MAX)
}

/// Classes have ASCII characters only.
fn ascii(character: char) -> u8 {
    u8::try_from(character).unwrap_or(0x7f)
}

const SPACE: &[(char, char)] = &[('\t', '\r'), (' ', ' ')];
const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];

/// Each in ascending order.
const POSIX: &[(&str, &[(char, char)])] = &[
    ("alnum", &[('0', '9'), ('A', 'Z'), ('a', 'z')]),
    ("alpha", &[('A', 'Z'), ('a', 'z')]),
    ("ascii", &[('\0', '\x7f')]),
    ("blank", &[('\t', '\t'), (' ', ' ')]),
    ("cntrl", &[('\0', '\x1f'), ('\x7f', '\x7f')]),
    ("digit", &[('0', '9')]),
    ("graph", &[('!', '~')]),
    ("lower", &[('a', 'z')]),
    ("print", &[(' ', '~')]),
    ("punct", &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')]),
    ("space", SPACE),
    ("upper", &[('A', 'Z')]),
    ("word", WORD),
    ("xdigit", &[('0', '9'), ('A', 'F'), ('a', 'f')]),
];

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    /// What regex-lite says of the same pattern and text; `None` if it refuses the pattern.
    fn theirs(pattern: &str, text: &str) -> Option<bool> {
        let build = |text: &str| regex_lite::RegexBuilder::new(text).build().ok();
        build(pattern)?;
        Some(build(&format!("\\A(?:{pattern})\\z"))?.is_match(text))
    }

    #[track_caller]
    fn check(pattern: &str, texts: &[&str]) {
        for text in texts {
            let ours = Regex::new(pattern).map(|regex| regex.matches(text));
            assert_eq!(ours.ok(), theirs(pattern, text), "{pattern} and {text:?}");
        }
    }

    #[test]
    fn a_prefix_is_what_every_text_that_matches_begins_with() {
        for (pattern, prefix, steps) in [
            ("GET:/a/[0-9]+", "GET:/a/", 2),
            ("^GET:/a\\.b$", "GET:/a.b", 1),
            ("GET:/ab?", "GET:/a", 2),
            ("GET:/ab+", "GET:/a", 2),
            ("GET:/(ab)+", "GET:/", 3),
            ("GET:/a{3}", "GET:/aaa", 0),
            ("GET:/(a|b)", "GET:/", 4),
            ("a|b", "", 4),
            ("(?i)a", "", 1),
            ("(?i:a)b", "", 2),
            ("(^a)*", "", 4),
            (".*", "", 3),
        ] {
            let regex = Regex::new(pattern).unwrap();
            assert_eq!((regex.prefix(), regex.steps()), (prefix, steps), "{pattern}");
        }
    }

    const TEXTS: &[&str] = &[
        "",
        "a",
        "b",
        "A",
        "aa",
        "ab",
        "ba",
        "aab",
        "abab",
        "aaaa",
        "a-b",
        "a b",
        " ",
        "\n",
        "a\nb",
        "ab\n",
        "7",
        "42",
        "a7",
        "_",
        "-",
        "]",
        "^",
        "é",
        "É",
        "GET:/users/7",
        "GET:/users/seven",
        "\u{7f}",
        "\u{7}",
        "😀",
        "$",
        "{",
        "a{2}",
        ".",
    ];

    #[test]
    fn a_pattern_means_what_it_means_to_regex_lite() {
        for pattern in [
            "",
            "a",
            "ab",
            "a|b",
            "|a",
            "a|",
            "a|b|ab",
            "(a|b)*",
            "(a*)*",
            "(a|)+",
            "a+",
            "a?",
            "a*b",
            "a+?b",
            "a??",
            "(?:ab)+",
            "a{2}",
            "a{2,}",
            "a{1,3}",
            "a{0}",
            "a{0,1}",
            "(ab){2}",
            "(a{2}){2}",
            "a**",
            "a{2}{2}",
            ".",
            ".*",
            "(?s).*",
            "(?s:.)",
            "a.b",
            "^a$",
            "^",
            "$",
            "^*a",
            "a$b",
            "(?m)^a$\n^b$",
            "(?m).*\n^b",
            "\\Aa\\z",
            "\\ba\\b",
            "a\\Bb",
            "\\bab\\b",
            "\\B",
            "(?i)a",
            "(?i)A|B",
            "(?i:a)b",
            "a(?i)b|c",
            "((?i)a)a",
            "(?i)(?-i)a",
            "(?i)[^a]",
            "(?i)[a-c]",
            "(?is-m)a",
            "(?U)a+",
            "(?P<name>a)",
            "(?<n_1>a)b",
            "\\d+",
            "\\D",
            "\\s",
            "\\S",
            "\\w+",
            "\\W",
            "[ab]",
            "[^ab]",
            "[a-c]+",
            "[]]",
            "[^]]",
            "[]a]",
            "[a\\]]",
            "[-a]",
            "[a-]",
            "[a-c-]",
            "[\\d]",
            "[^\\d]",
            "[\\D]",
            "[\\w-]+",
            "[\\]-]",
            "[[:alpha:]]",
            "[[:^alpha:]7]",
            "[[:digit:][:space:]]",
            "[^[:word:]]",
            "[\\x61]",
            "[^\\n]",
            "[.]",
            "[$^]",
            "[\\\\]",
            "\\.",
            "\\$",
            "\\/",
            "\\x61",
            "\\x{e9}",
            "\\u00e9",
            "\\U0001F600",
            "\\n",
            "\\a",
            "\\t?",
            "é",
            "(?i)é",
            "[é]",
            "😀",
            "GET:/users/[^/]+",
            "GET:/users/\\d+",
            "GET:/users/(\\d+|\\w+)",
            "}",
            "]",
            "a}",
            "\\{",
            "a\\{2\\}",
            "(((a)))",
            "()",
            "(?:)",
            "(|)",
            "a||b",
            "\\-",
            "\\#",
            "\\&",
            "(?i)\\x61",
        ] {
            check(pattern, TEXTS);
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_as_by_regex_lite() {
        for pattern in [
            "(",
            ")",
            "a)",
            "(a",
            "[",
            "[a",
            "[^",
            "[]",
            "[^]",
            "[z-a]",
            "[a-\\d]",
            "[\\d-z]",
            "[[a]]",
            "[[:foo:]]",
            "[a&&b]",
            "[a--b]",
            "[a~~b]",
            "[\\b]",
            "*",
            "+a",
            "?",
            "{2}",
            "a|*",
            "(*)",
            "(?i)*",
            "a{",
            "a{}",
            "a{2",
            "a{2,1}",
            "a{x}",
            "a{,}",
            "\\",
            "\\q",
            "\\1",
            "\\pL",
            "\\x",
            "\\x{}",
            "\\x{110000}",
            "\\xg0",
            "\\uD800",
            "(?",
            "(?)",
            "(?-)",
            "(?i-)",
            "(?i",
            "(?z)",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?P<>a)",
            "(?P<1>a)",
            "(?P<a",
            "(?i--m)",
        ] {
            check(pattern, &["a"]);
            assert!(Regex::new(pattern).is_err(), "{pattern}");
        }
        for only_theirs in ["(?x)a b", "(?R)a", "\\<a", "a\\>", "\\b{start}a"] {
            assert!(
                Regex::new(only_theirs).is_err() && theirs(only_theirs, "a").is_some(),
                "{only_theirs}"
            );
        }
    }

    #[test]
    fn a_pattern_that_would_be_too_large_is_refused() {
        assert!(Regex::new("a{4000}").is_ok());
        assert!(Regex::new("(a{100}){100}").is_err());
        assert!(Regex::new("a{99999999999999999999}").is_err());
        assert!(Regex::new(&"(".repeat(200)).is_err());
    }

    #[test]
    fn a_pattern_made_to_explode_takes_no_longer() {
        let regex = Regex::new("(a*)*(a*)*(a|a|aa)*b").unwrap();
        assert!(!regex.matches(&"a".repeat(10_000)));
        let regex = Regex::new("(a?){50}a{50}").unwrap();
        assert!(regex.matches(&"a".repeat(50)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_pattern_means_the_same_to_regex_lite(pattern in "([ab.^$|()*+?\\[\\]-]|\\\\[bdwsBDWS]|\\(\\?i\\)|\\(\\?:|\\{[0-2](,[0-3]?)?\\}){0,10}", text in "[abA\n -]{0,6}") {
            let ours = Regex::new(&pattern).map(|regex| regex.matches(&text));
            // Their bound is another one.
            prop_assume!(ours != Err(TOO_LARGE.into()));
            prop_assert_eq!(ours.ok(), theirs(&pattern, &text), "{} and {:?}", pattern, text);
        }

        #[test]
        fn any_text_is_a_pattern_or_is_refused(pattern: String, text: String) {
            if let Ok(regex) = Regex::new(&pattern) {
                regex.matches(&text);
            }
        }
    }
}
