//! What a request is called.
//!
//! Rules name resources; a request is matched to them by its name, byte for byte. The name is written
//! into a buffer of the caller's, since this runs for every request: nothing is allocated on the way.
//! Names are bytes, because a client may send any bytes. One that is longer than any rule's may be is
//! cut to one byte more than that: so it matches no rule, and counts in `other`.

use alloc::{string::String, vec::Vec};
use core::fmt::Write as _;

/// The longest name that a rule can have, in bytes: the most that `nameBytesMax` may be set to.
pub const NAME_BYTES_LIMIT: u32 = 1_024;

/// The longest template, in bytes; a longer one is refused.
pub const TEMPLATE_BYTES_MAX: usize = 1_024;

/// How a filter names requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceConfig {
    from: ResourceFrom,
    templates: Vec<Template>,
}

/// What a request is named by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ResourceFrom {
    /// `METHOD:/path`, without the query string.
    #[default]
    MethodPath,
    /// The path, without the query string.
    Path,
    /// The name of Envoy's route.
    Route,
    /// The name of Envoy's cluster.
    Cluster,
    /// The `:authority` header, which HTTP/1.1 calls `host`, in lower case.
    Authority,
    /// A header, by its name in lower case.
    Header(String),
}

/// What is known of a request. What the configured [`ResourceFrom`] does not ask for may be left empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestParts<'a> {
    /// `:method`.
    pub method: &'a [u8],
    /// `:path`, with the query string.
    pub path: &'a [u8],
    /// `:authority`.
    pub authority: &'a [u8],
    /// The route's name.
    pub route: &'a [u8],
    /// The cluster's name.
    pub cluster: &'a [u8],
    /// The value of the header that [`ResourceFrom::Header`] names, if the request has it.
    pub header: Option<&'a [u8]>,
}

impl ResourceConfig {
    /// Names requests by `from`; a path that one of `templates` matches is called by the template.
    ///
    /// A template without `{…}` wins over those with, wherever it stands; of the others the first that
    /// matches wins.
    pub fn new(from: ResourceFrom, templates: Vec<Template>) -> Self {
        let (mut templates, others): (Vec<_>, Vec<_>) =
            templates.into_iter().partition(Template::is_literal);
        templates.extend(others);
        Self { from, templates }
    }

    /// What a request is named by: what the caller must fill in of [`RequestParts`].
    pub fn from(&self) -> &ResourceFrom {
        &self.from
    }

    /// Replaces what stands in `name` by the request's name.
    ///
    /// It is empty where the request has nothing to be named by. A name of more than
    /// [`NAME_BYTES_LIMIT`] bytes is cut to one more than that.
    #[inline(always)]
    pub fn write_name(&self, parts: &RequestParts<'_>, name: &mut Vec<u8>) {
        name.clear();
        match &self.from {
            ResourceFrom::MethodPath => {
                append(parts.method, name);
                name.push(b':');
                append(self.path_name(parts.path), name);
            }
            ResourceFrom::Path => append(self.path_name(parts.path), name),
            ResourceFrom::Route => append(parts.route, name),
            ResourceFrom::Cluster => append(parts.cluster, name),
            // Envoy and upstreams do not tell `SHOP.example` from `shop.example`: neither may a limit.
            ResourceFrom::Authority => {
                append(parts.authority, name);
                name.make_ascii_lowercase();
            }
            ResourceFrom::Header(_) => append(parts.header.unwrap_or_default(), name),
        }
    }

    #[inline(always)]
    fn path_name<'a>(&'a self, path: &'a [u8]) -> &'a [u8] {
        let path = path_without_query(path);
        match self.templates.iter().find(|template| template.matches(path)) {
            Some(template) => template.text.as_bytes(),
            None => path,
        }
    }
}

/// `path` up to its query string, or up to its fragment, which no client should send. Eight bytes at a time: one by one they
/// are ten instructions each.
pub fn path_without_query(path: &[u8]) -> &[u8] {
    let mut end = 0;
    for word in path.as_chunks().0 {
        let word = u64::from_le_bytes(*word);
        if has_byte(word, b'?') || has_byte(word, b'#') {
            break;
        }
        end += 8;
    }
    while let Some(byte) = path.get(end) {
        if matches!(byte, b'?' | b'#') {
            break;
        }
        end += 1;
    }
    path.get(..end).unwrap_or(path)
}

/// Whether two names are the same. Eight bytes at a time, then one by one: `==` calls a function in a module.
#[inline(always)]
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let ((words, rest), (other_words, other_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (word, other) in words.iter().zip(other_words) {
        if u64::from_le_bytes(*word) != u64::from_le_bytes(*other) {
            return false;
        }
    }
    for (byte, other) in rest.iter().zip(other_rest) {
        if byte != other {
            return false;
        }
    }
    true
}

/// Whether any of eight bytes is `wanted`: those that are have become 0, and only below a 0 does the subtraction borrow.
const fn has_byte(word: u64, wanted: u8) -> bool {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const TOPS: u64 = u64::from_le_bytes([0x80; 8]);
    let zero_where = word ^ (ONES * wanted as u64);
    zero_where.wrapping_sub(ONES) & !zero_where & TOPS != 0
}

/// Appends `name` as a segment of a metric's name: bytes outside `A-Za-z0-9_:/-` become `%XX`, dots too,
/// so that no path can forge a segment.
pub fn metric_segment(name: &[u8], segment: &mut String) {
    for &byte in name {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'/' | b'-') {
            segment.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
}

/// Paths that are one resource: in `/users/{id}`, `{id}` is any one segment that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// As it was written: the name of what it matches.
    text: String,
    /// What stands between the slashes; `None` is any.
    segments: Vec<Option<Vec<u8>>>,
}

/// What is wrong with a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// It does not begin with a slash.
    NoSlash,
    /// A brace stands inside a segment.
    PartOfSegment,
    /// It has a query string or a fragment, which are no part of a path.
    Query,
    /// It is longer than [`TEMPLATE_BYTES_MAX`].
    TooLong,
}

impl Template {
    /// A template as a regular expression, but for its braces.
    pub const PATTERN: &'static str = "^/[^?#]*$";

    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong);
        }
        if text.contains(['?', '#']) {
            return Err(TemplateError::Query);
        }
        let path = text.strip_prefix('/').ok_or(TemplateError::NoSlash)?;
        let segments = path.split('/').map(|segment| {
            let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            if name.unwrap_or(segment).contains(['{', '}']) {
                return Err(TemplateError::PartOfSegment);
            }
            Ok(name.is_none().then(|| segment.as_bytes().to_vec()))
        });
        Ok(Self { text: text.into(), segments: segments.collect::<Result<_, _>>()? })
    }

    /// Whether the template matches `path`, which has no query string.
    pub fn matches(&self, path: &[u8]) -> bool {
        let Some(path) = path.strip_prefix(b"/") else {
            return false;
        };
        let mut given = path.split(|byte| *byte == b'/');
        let all = self.segments.iter().all(|wanted| match (wanted, given.next()) {
            (Some(literal), Some(segment)) => literal == segment,
            (None, Some(segment)) => !segment.is_empty(),
            (Some(_) | None, None) => false,
        });
        all && given.next().is_none()
    }

    /// Whether the template has no `{…}` and so matches only itself.
    fn is_literal(&self) -> bool {
        self.segments.iter().all(Option::is_some)
    }
}

impl TemplateError {
    /// What would do.
    pub const ALLOWED: &'static str = "a path such as /users/{id}";

    /// What is wrong, as an afterthought to the template's text.
    pub fn problem(self) -> &'static str {
        match self {
            Self::NoSlash => "which does not begin with a slash",
            Self::PartOfSegment => "in which a brace is only part of a segment",
            Self::Query => "which has a query string or a fragment",
            Self::TooLong => "which is longer than 1024 bytes",
        }
    }
}

/// Appends as much of `bytes` as keeps `name` at one byte over [`NAME_BYTES_LIMIT`].
fn append(bytes: &[u8], name: &mut Vec<u8>) {
    const CUT: usize = NAME_BYTES_LIMIT as usize + 1;

    let room = CUT.saturating_sub(name.len());
    name.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(from: ResourceFrom, templates: &[&str]) -> ResourceConfig {
        ResourceConfig::new(
            from,
            templates.iter().map(|text| Template::parse(text).unwrap()).collect(),
        )
    }

    #[track_caller]
    fn check_name(config: &ResourceConfig, parts: &RequestParts<'_>, expected: &str) {
        let mut name = b"what stood there before".to_vec();
        config.write_name(parts, &mut name);
        assert_eq!(String::from_utf8_lossy(&name), expected);
    }

    #[test]
    fn a_request_is_named_by_what_the_filter_is_told() {
        let parts = RequestParts {
            method: b"GET",
            path: b"/hello?who=me",
            authority: b"Shop.EXAMPLE",
            route: b"hello-route",
            cluster: b"upstream",
            header: Some(b"mine"),
        };
        for (from, expected) in [
            (ResourceFrom::MethodPath, "GET:/hello"),
            (ResourceFrom::Path, "/hello"),
            (ResourceFrom::Route, "hello-route"),
            (ResourceFrom::Cluster, "upstream"),
            (ResourceFrom::Authority, "shop.example"),
            (ResourceFrom::Header("x-resource".into()), "mine"),
        ] {
            check_name(&config(from, &[]), &parts, expected);
        }
    }

    #[test]
    fn a_request_without_what_would_name_it_has_an_empty_name() {
        let nothing = RequestParts::default();
        check_name(&config(ResourceFrom::Route, &[]), &nothing, "");
        check_name(&config(ResourceFrom::Header("x-resource".into()), &[]), &nothing, "");
    }

    #[track_caller]
    fn check_path(templates: &[&str], path: &str, expected: &str) {
        let parts = RequestParts { path: path.as_bytes(), ..RequestParts::default() };
        check_name(&config(ResourceFrom::Path, templates), &parts, expected);
    }

    #[test]
    fn a_template_stands_for_one_segment_that_is_not_empty() {
        let users = &["/users/{id}"];
        check_path(users, "/users/7", "/users/{id}");
        check_path(users, "/users/7?x=/y", "/users/{id}");
        check_path(users, "/users/", "/users/");
        check_path(users, "/users", "/users");
        check_path(users, "/users/7/orders", "/users/7/orders");
        check_path(users, "/users/7/", "/users/7/");
        check_path(users, "users/7", "users/7");
        check_path(&["/a/{b}/c/{d}"], "/a/1/c/2", "/a/{b}/c/{d}");
    }

    #[test]
    fn a_literal_path_wins_over_templates_and_else_the_first_template_wins() {
        let templates = &["/users/{id}", "/{what}/me", "/users/me"];
        check_path(templates, "/users/me", "/users/me");
        check_path(templates, "/users/you", "/users/{id}");
        check_path(templates, "/groups/me", "/{what}/me");
        check_path(&["/{a}", "/{b}"], "/x", "/{a}");
    }

    #[test]
    fn a_template_that_means_nothing_is_refused() {
        for (text, error) in [
            ("users/{id}", TemplateError::NoSlash),
            ("", TemplateError::NoSlash),
            ("/users/{id}.json", TemplateError::PartOfSegment),
            ("/users/{{id}}", TemplateError::PartOfSegment),
            ("/users/{", TemplateError::PartOfSegment),
            ("/users?id={id}", TemplateError::Query),
        ] {
            assert_eq!(Template::parse(text), Err(error), "{text}");
        }
        assert_eq!(Template::parse(&"/x".repeat(513)), Err(TemplateError::TooLong));
    }

    #[test]
    fn a_fragment_is_no_way_around_a_limit() {
        assert_eq!(path_without_query(b"/hello#1"), b"/hello");
        assert_eq!(path_without_query(b"/hello?a#b?c"), b"/hello");
        assert_eq!(path_without_query(b""), b"");
    }

    #[test]
    fn a_name_too_long_for_a_rule_is_longer_than_any_rule() {
        let config = config(ResourceFrom::MethodPath, &[]);
        let limit = NAME_BYTES_LIMIT as usize;
        let mut name = Vec::new();
        for (path_bytes, name_bytes) in
            [(limit - 4, limit), (limit - 3, limit + 1), (60_000, limit + 1)]
        {
            let path = [b"/".as_slice(), &b"x".repeat(path_bytes - 1)].concat();
            config.write_name(
                &RequestParts { method: b"GET", path: &path, ..RequestParts::default() },
                &mut name,
            );
            assert_eq!(name.len(), name_bytes);
        }
    }

    #[test]
    fn no_path_can_forge_a_segment() {
        let mut segment = String::new();
        metric_segment(b"GET:/a_b-c/1.0%\xff {id}", &mut segment);
        assert_eq!(segment, "GET:/a_b-c/1%2E0%25%FF%20%7Bid%7D");
    }

    proptest! {
        #[test]
        fn a_path_ends_before_the_first_question_mark_or_hash(path in prop::collection::vec(prop_oneof![8 => any::<u8>(), 1 => Just(b'?'), 1 => Just(b'#'), 2 => 0xa0..0xc0_u8], 0..40)) {
            let first = path.split(|byte| matches!(byte, b'?' | b'#')).next();
            prop_assert_eq!(Some(path_without_query(&path)), first);
        }

        #[test]
        fn names_are_the_same_where_all_their_bytes_are(name in prop::collection::vec(any::<u8>(), 1..40), at: prop::sample::Index, byte: u8) {
            prop_assert!(is_same(&name, &name.clone()));
            let mut other = name.clone();
            other[at.index(name.len())] = byte;
            prop_assert_eq!(is_same(&name, &other), name == other);
            prop_assert!(!is_same(&name, &name[..name.len() - 1]));
        }

        #[test]
        fn any_request_has_a_name_of_bounded_length(method: Vec<u8>, path: Vec<u8>) {
            let config = config(ResourceFrom::MethodPath, &["/{a}", "/a/{b}", "//{c}"]);
            let mut name = Vec::new();
            config.write_name(&RequestParts { method: &method, path: &path, ..RequestParts::default() }, &mut name);
            prop_assert!(name.len() <= NAME_BYTES_LIMIT as usize + 1);
        }

        #[test]
        fn a_segment_gives_its_name_back(name: Vec<u8>) {
            let mut segment = String::new();
            metric_segment(&name, &mut segment);
            let mut back = Vec::new();
            let mut rest = segment.as_bytes();
            while let [first, tail @ ..] = rest {
                if let (b'%', [high, low, tail @ ..]) = (first, tail) {
                    let hex = [*high, *low];
                    let hex = core::str::from_utf8(&hex).unwrap();
                    back.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = tail;
                } else {
                    back.push(*first);
                    rest = tail;
                }
            }
            prop_assert_eq!(back, name);
        }

        #[test]
        fn a_template_of_literals_matches_itself_only(path in "(/[a-z]{0,3}){1,4}", other in "(/[a-z]{0,3}){1,4}") {
            let template = Template::parse(&path).unwrap();
            prop_assert!(template.matches(path.as_bytes()));
            prop_assert_eq!(template.matches(other.as_bytes()), path == other);
        }
    }
}
