//! Regular expressions and ant-style path patterns, in linear time.
//!
//! A pattern matches a whole name or nothing. What a client sends is bytes; those that are not UTF-8 match no
//! regular expression.

use alloc::{format, string::String, vec::Vec};

use crate::{order::sort_by, regex::Regex};

/// The longest pattern, in bytes; a longer one is refused.
pub const PATTERN_BYTES_MAX: usize = 256;

/// A regular expression that matches whole names.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
}

impl Pattern {
    /// Compiles a pattern, or says what is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(format!(
                "is {} bytes long, but may have at most {PATTERN_BYTES_MAX}",
                pattern.len()
            ));
        }
        Regex::new(pattern)
            .map(|regex| Self { regex })
            .map_err(|problem| format!("is no regular expression: {problem}"))
    }

    /// Whether all of `name` matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        core::str::from_utf8(name).is_ok_and(|name| self.regex.matches(name))
    }
}

/// Patterns, found by what a name begins with.
///
/// Most patterns begin with plain characters, their *prefix*, and only names that begin with it can match. They stand
/// in the order of their prefixes, each with a way up to the nearest one whose prefix its own begins with. So all that
/// a name can match stand on one way up, and the longest way says how many patterns a name is tried against at most.
/// A pattern without a prefix stands on all of them.
#[derive(Debug, Default)]
pub struct Patterns {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    pattern: Pattern,
    /// What it was added as.
    whose: u32,
    /// The next one on the way up.
    above: Option<usize>,
    /// What the way up from here comes to.
    way: Way,
}

/// What a name is tried against at most, on one way up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Patterns.
    pub patterns: usize,
    /// Their steps, each of which is gone through at most once for each character of the name.
    pub steps: usize,
}

impl Patterns {
    /// Adds a pattern, which is found once [`Patterns::link`] has been called.
    pub fn add(&mut self, whose: u32, pattern: Pattern) {
        self.entries.push(Entry { pattern, whose, above: None, way: Way::default() });
    }

    /// Makes what was added ready to be found.
    pub fn link(&mut self) {
        sort_by(&mut self.entries, |a, b| a.prefix().cmp(b.prefix()));
        for place in 0..self.entries.len() {
            let Some(entry) = self.entries.get(place) else { break };
            let above = self.on_way(place.checked_sub(1), entry.prefix());
            let mut way = self.at(above).map_or_else(Way::default, |above| above.way);
            way.patterns += 1;
            way.steps += entry.pattern.regex.steps();
            if let Some(entry) = self.entries.get_mut(place) {
                (entry.above, entry.way) = (above, way);
            }
        }
    }

    /// Forgets all but the first `length`.
    pub fn truncate(&mut self, length: usize) {
        self.entries.truncate(length);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes they take in a module, at most.
    pub fn bytes(&self) -> usize {
        const ENTRY: usize = 64;
        self.entries.iter().map(|entry| ENTRY + entry.pattern.regex.bytes()).sum()
    }

    /// The ways up from each prefix.
    pub fn ways(&self) -> impl Iterator<Item = (&str, Way)> {
        self.entries.iter().map(|entry| (entry.pattern.regex.prefix(), entry.way))
    }

    /// Whether there is any that `name` has to be tried against.
    pub fn may_match(&self, name: &[u8]) -> bool {
        self.first(name).is_some()
    }

    /// Puts those that match all of `name` into `found`, by what they were added as, and says how many were tried.
    pub fn matching(&self, name: &[u8], found: &mut Vec<u32>) -> usize {
        let mut tried = 0;
        let mut place = self.first(name);
        while let Some(entry) = self.at(place) {
            tried += 1;
            if entry.pattern.matches(name) {
                found.push(entry.whose);
            }
            place = entry.above;
        }
        tried
    }

    /// Where the way up begins for `name`.
    fn first(&self, name: &[u8]) -> Option<usize> {
        // What `name` begins with comes before it, and between the two is nothing that does not begin with the same.
        let after = self.entries.partition_point(|entry| entry.prefix() <= name);
        self.on_way(after.checked_sub(1), name)
    }

    /// The first on the way up from `place` whose prefix `name` begins with.
    fn on_way(&self, mut place: Option<usize>, name: &[u8]) -> Option<usize> {
        while let Some(entry) = self.at(place) {
            if name.starts_with(entry.prefix()) {
                break;
            }
            place = entry.above;
        }
        place
    }

    fn at(&self, place: Option<usize>) -> Option<&Entry> {
        self.entries.get(place?)
    }
}

impl Entry {
    fn prefix(&self) -> &[u8] {
        self.pattern.regex.prefix().as_bytes()
    }
}

/// Whether all of `path` matches an ant-style pattern: `?` is one character, `*` any within a segment, `**` any
/// number of segments (Spring's `AntPathMatcher`).
///
/// Takes at most |pattern| × |path| steps.
pub fn ant_matches(pattern: &[u8], path: &[u8]) -> bool {
    // The segments before `**` and where the path was then: where to go on when what follows does not fit.
    let mut patterns = Segments::of(pattern);
    let mut paths = Segments::of(path);
    let mut retry: Option<(Segments<'_>, Segments<'_>)> = None;
    loop {
        let at = paths.clone();
        match (patterns.next(), paths.next()) {
            (Some(b"**"), _) => {
                retry = Some((patterns.clone(), at.clone()));
                paths = at;
                continue;
            }
            (Some(wanted), Some(segment)) if segment_matches(wanted, segment) => continue,
            (None, None) => return true,
            _ => {}
        }
        let Some((after, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        patterns = after.clone();
        paths = from.clone();
    }
}

/// What stands between the slashes. As Spring does it, several slashes are one; what is empty after the last
/// is a segment, so that `/a` and `/a/` differ.
#[derive(Clone)]
struct Segments<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Segments<'a> {
    fn of(path: &'a [u8]) -> Self {
        Self { rest: (!path.is_empty()).then(|| without_slashes(path)) }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = without_slashes(self.rest?);
        match rest.iter().position(|byte| *byte == b'/') {
            Some(at) => {
                self.rest = rest.get(at + 1..);
                rest.get(..at)
            }
            None => {
                self.rest = None;
                Some(rest)
            }
        }
    }
}

fn without_slashes(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"/") {
        path = rest;
    }
    path
}

/// `?` and `*` within one segment.
fn segment_matches(pattern: &[u8], segment: &[u8]) -> bool {
    let (mut pattern, mut segment) = (pattern, segment);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, segment) {
            ([b'*', rest @ ..], _) => {
                retry = Some((rest, segment));
                pattern = rest;
                continue;
            }
            ([wanted, rest @ ..], [byte, after @ ..]) if *wanted == b'?' || wanted == byte => {
                (pattern, segment) = (rest, after);
                continue;
            }
            ([], []) => return true,
            _ => {}
        }
        let Some((after_star, [_, from @ ..])) = retry else { return false };
        retry = Some((after_star, from));
        (pattern, segment) = (after_star, from);
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_regex(pattern: &str, matches: &[&str], others: &[&str]) {
        let compiled = Pattern::new(pattern).unwrap();
        for name in matches {
            assert!(compiled.matches(name.as_bytes()), "{pattern} matches {name}");
        }
        for name in others {
            assert!(!compiled.matches(name.as_bytes()), "{pattern} does not match {name}");
        }
    }

    #[test]
    fn a_regular_expression_matches_the_whole_name_or_nothing() {
        check_regex("GET:/a.*", &["GET:/a", "GET:/abc"], &["xGET:/a", "GET:/", "GET:/a\nb"]);
        check_regex("a|ab", &["a", "ab"], &["abc", "b", ""]);
        check_regex("", &[""], &["a", "\n"]);
        check_regex("^a$", &["a"], &["a\n", "aa"]);
        check_regex("(?i)a", &["a", "A"], &["b"]);
        // A comment would swallow the closing parenthesis if it stood on the same line.
        assert!(
            Pattern::new("(?x)a # b").is_err() || Pattern::new("(?x)a # b").unwrap().matches(b"a")
        );
    }

    #[test]
    fn what_is_well_formed_only_between_our_parentheses_is_refused() {
        for pattern in ["a)|(b", "a)(?:b", "(", "[", "*", "a{2,1}", "\\"] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_is_too_long_or_too_large_is_refused() {
        assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX)).is_ok());
        let error = Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(error, "is 257 bytes long, but may have at most 256");
        assert!(Pattern::new("((a{1000}){1000}){1000}").is_err());
    }

    #[test]
    fn bytes_that_are_no_text_match_no_regular_expression() {
        assert!(!Pattern::new(".*").unwrap().matches(b"\xff"));
    }

    #[track_caller]
    fn check_ant(pattern: &str, matches: &[&str], others: &[&str]) {
        for path in matches {
            assert!(ant_matches(pattern.as_bytes(), path.as_bytes()), "{pattern} matches {path}");
        }
        for path in others {
            assert!(
                !ant_matches(pattern.as_bytes(), path.as_bytes()),
                "{pattern} does not match {path}"
            );
        }
    }

    /// The cases of Spring's own tests, where they are about paths.
    #[test]
    fn an_ant_pattern_matches_as_in_spring() {
        check_ant("/test", &["/test"], &["/test/", "/tes", "/testt", "/test.jpg", "/"]);
        check_ant("/t?st", &["/test", "/t.st"], &["/tst", "/t/st"]);
        check_ant("/??st", &["/test"], &["/tst"]);
        check_ant("/a/?", &["/a/b"], &["/a/", "/a", "/a/bc"]);
        check_ant("/*", &["/test", "/"], &["/test/x", "/test/"]);
        check_ant("/test*", &["/test", "/testTest"], &["/test/Test", "/tst"]);
        check_ant("/*test*aaa", &["/testblaaaa", "/atestxaaa"], &["/tstaaa", "/testaa"]);
        check_ant("/a/*/b", &["/a/x/b", "/a/xyz/b"], &["/a/b", "/a/x/y/b", "/a/x/b/"]);
        check_ant("/test/*", &["/test/a", "/test/"], &["/test", "/test/a/b"]);
        check_ant("/**", &["/", "/a", "/a/b/c/", "/a//b"], &[]);
        check_ant("/a/**", &["/a", "/a/", "/a/b", "/a/b/c"], &["/", "/ab", "/b/a"]);
        check_ant("/**/x", &["/x", "/a/x", "/a/b/x", "/x/x"], &["/", "/a/x/b", "/xx", "/x/"]);
        check_ant(
            "/a/**/b",
            &["/a/b", "/a/x/b", "/a/x/y/b", "/a/b/b"],
            &["/a", "/a/x", "/a/b/c", "/x/a/b"],
        );
        check_ant(
            "/*bla*/**/bla/**",
            &["/a-bla-b/testing/testing/bla/testing/testing/"],
            &["/x/bla"],
        );
        check_ant("/**/a/**/b", &["/a/b", "/x/a/y/b", "/a/a/b/b"], &["/b/a", "/a"]);
        check_ant("/{id}", &["/{id}"], &["/7"]);
        check_ant("/", &["/", "//"], &["/a", ""]);
        check_ant("", &[""], &["/a"]);
    }

    #[test]
    fn several_slashes_are_one() {
        check_ant("/a/*", &["//a/b", "/a//b", "///a///b"], &["/a//b//c"]);
        check_ant("//a//*", &["/a/b"], &["/a"]);
        check_ant("/a", &["//a"], &["/a//"]);
    }

    #[test]
    fn many_stars_take_no_longer_than_pattern_times_path() {
        let stars = "/**/a".repeat(40);
        let path = "/a".repeat(2_000);
        assert!(ant_matches(stars.as_bytes(), path.as_bytes()));
        assert!(!ant_matches((stars + "/b").as_bytes(), path.as_bytes()));
        let (stars, segment) = ("*a".repeat(100), "a".repeat(4_000));
        assert!(!ant_matches((stars + "b").as_bytes(), segment.as_bytes()));
    }

    fn patterns_of(texts: &[&str]) -> Patterns {
        let mut patterns = Patterns::default();
        for (whose, text) in (0..).zip(texts) {
            patterns.add(whose, Pattern::new(text).unwrap());
        }
        patterns.link();
        patterns
    }

    #[test]
    fn a_name_is_tried_against_those_whose_prefix_it_begins_with() {
        let patterns = patterns_of(&["a/b/[0-9]+", "a/c.*", ".*z", "a/.*", "b", "a/b/.*"]);
        for (name, tried, matching) in [
            ("a/b/7", 4, vec![0, 3, 5]),
            ("a/b/z", 4, vec![2, 3, 5]),
            ("a/cz", 3, vec![1, 2, 3]),
            ("a/", 2, vec![3]),
            ("b", 2, vec![4]),
            ("bz", 2, vec![2]),
            ("", 1, vec![]),
            ("~", 1, vec![]),
        ] {
            let mut found = Vec::new();
            assert_eq!(patterns.matching(name.as_bytes(), &mut found), tried, "{name}");
            found.sort_unstable();
            assert_eq!(found, matching, "{name}");
        }
        let most = patterns.ways().map(|(_, way)| way.patterns).max();
        assert_eq!((most, patterns.len()), (Some(4), 6));
        assert!(!patterns_of(&["a.*", "b.*"]).may_match(b"c"));
    }

    #[test]
    fn five_thousand_patterns_with_prefixes_of_their_own_are_tried_one_at_a_name() {
        let texts: Vec<_> = (0..5_000).map(|n| format!("GET:/service-{n}/users/[0-9]+")).collect();
        let patterns = patterns_of(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let tried = |name: &str| patterns.matching(name.as_bytes(), &mut Vec::new());
        assert_eq!(tried("GET:/service-4711/users/42"), 1);
        assert_eq!(tried("GET:/service-4711/orders/42"), 0);
        assert!(patterns.bytes() < 1024 * 1024, "{} bytes", patterns.bytes());
    }

    /// The same by trying everything.
    fn naive(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| naive(rest, &path[skipped..])),
            ([first, rest @ ..], [segment, after @ ..]) => {
                naive_segment(first.as_bytes(), segment.as_bytes()) && naive(rest, after)
            }
            _ => false,
        }
    }

    fn naive_segment(pattern: &[u8], segment: &[u8]) -> bool {
        match pattern {
            [] => segment.is_empty(),
            [b'*', rest @ ..] => {
                (0..=segment.len()).any(|skipped| naive_segment(rest, &segment[skipped..]))
            }
            [b'?', rest @ ..] => !segment.is_empty() && naive_segment(rest, &segment[1..]),
            [byte, rest @ ..] => {
                segment.first() == Some(byte) && naive_segment(rest, &segment[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_trying_everything_matches(
            pattern in prop::collection::vec("[ab?*]{1,4}|\\*\\*", 0..6),
            path in prop::collection::vec("[ab]{1,4}", 0..7),
        ) {
            let (text, of) = (pattern.join("/"), path.join("/"));
            let (patterns, paths): (Vec<_>, Vec<_>) =
                (pattern.iter().map(String::as_str).collect(), path.iter().map(String::as_str).collect());
            let expected = naive(&patterns, &paths);
            prop_assert_eq!(ant_matches(text.as_bytes(), of.as_bytes()), expected, "{} {}", text, of);
            // `/` alone is one empty segment.
            prop_assume!(!path.is_empty() && !pattern.is_empty());
            let rooted = ("/".to_string() + &text, "/".to_string() + &of);
            prop_assert_eq!(ant_matches(rooted.0.as_bytes(), rooted.1.as_bytes()), expected);
        }

        #[test]
        fn what_is_found_is_what_matches(
            texts in prop::collection::vec("\\^?[ab]{0,4}([ab][+?*]|\\(a\\|b\\)|\\.\\*|\\(ab\\)\\+)?[ab]{0,2}", 0..20),
            name in "[ab]{0,7}",
        ) {
            let all: Vec<&str> = texts.iter().map(String::as_str).collect();
            let patterns = patterns_of(&all);
            let mut found = Vec::new();
            let tried = patterns.matching(name.as_bytes(), &mut found);
            found.sort_unstable();
            let matches = |text: &&str| {
                let whole = format!("\\A(?:{text})\\z");
                regex_lite::Regex::new(&whole).unwrap().is_match(&name)
            };
            let expected: Vec<u32> = (0..).zip(&all).filter(|(_, text)| matches(text)).map(|(whose, _)| whose).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(tried <= patterns.ways().map(|(_, way)| way.patterns).max().unwrap_or(0));
        }

        #[test]
        fn nothing_makes_it_loop_or_panic(pattern in "[a/?*]{0,30}", path in "[a/]{0,60}") {
            ant_matches(pattern.as_bytes(), path.as_bytes());
        }
    }
}
