//! Regular expressions and ant-style path patterns, in linear time.
//!
//! A pattern matches a whole name or nothing. What a client sends is bytes; those that are not UTF-8 match no
//! regular expression.

use alloc::{format, string::String};

use crate::regex::Regex;

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
    use alloc::{string::ToString as _, vec::Vec};

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
        fn nothing_makes_it_loop_or_panic(pattern in "[a/?*]{0,30}", path in "[a/]{0,60}") {
            ant_matches(pattern.as_bytes(), path.as_bytes());
        }
    }
}
