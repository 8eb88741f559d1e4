//! What is right and yet cannot be meant: rules that never decide anything, and names that no request has.
//!
//! Only what is certain is said: a warning that is wrong once is not read the next time.

use std::{collections::BTreeMap, path::Path};

use sentinel_core::{
    config::FilterConfig,
    resource::{RequestParts, ResourceFrom, path_without_query},
    rule::{
        Control, HotspotRule, Keeps, LimitApp, OnHostFailure, PathPredicate, Rule, SystemMetric,
        Target, TokenCalculate, Unit,
        compile::{OPENSERGO_KINDS, OPENSERGO_VERSION},
        error::{Reason, Refusal, Site},
        node::{Map, Node, Value},
    },
};

use super::files::Files;
use crate::{filter::Filter, limit::limit};

/// How requests get their names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming<'a> {
    /// The filters; one that names by method and path if nobody has said.
    pub(super) filters: &'a [Filter],
    /// The file that says so.
    pub(super) file: Option<&'a Path>,
}

type Placed = (Rule, Site);

/// All warnings about a set that is right, in the order of their places.
pub(super) fn warnings(set: &[Placed], files: &Files, naming: Naming<'_>) -> Vec<Refusal> {
    let mut found = Found { files, warnings: files.unlisted.clone() };
    let twins = found.twins(set);
    found.looser(set, &twins);
    found.defaults(set);
    found.unused(set);
    for (rule, site) in set {
        found.messages(rule, site);
        found.names(rule, site, naming);
        if naming.file.is_some() {
            found.callers(rule, site, naming);
            found.arguments(rule, site, naming);
        }
    }
    let mut warnings = found.warnings;
    warnings
        .sort_by(|a, b| (&a.site.source, a.site.position).cmp(&(&b.site.source, b.site.position)));
    warnings
}

struct Found<'a> {
    files: &'a Files,
    warnings: Vec<Refusal>,
}

impl Found<'_> {
    fn warn(&mut self, site: &Site, field: &str, sentence: String) {
        let position = self.files.position(site, field).or(site.position);
        let site = Site { position, ..site.clone() };
        let reason = Reason::Malformed(sentence);
        self.warnings.push(Refusal { site, field: field.to_owned(), reason });
    }

    /// Rules that say what another one says. The answer tells for each rule whether it does.
    fn twins(&mut self, set: &[Placed]) -> Vec<bool> {
        let mut first: BTreeMap<String, &Site> = BTreeMap::new();
        let mut twins = Vec::with_capacity(set.len());
        for (rule, site) in set {
            let other = first.entry(format!("{:?}", without_id(rule))).or_insert(site);
            let is_twin = !std::ptr::eq(*other, site);
            if is_twin {
                self.warn(site, "", format!("says the same as {other}: leave one of them out"));
            }
            twins.push(is_twin);
        }
        twins
    }

    /// Limits beside a stricter one on the same requests.
    fn looser(&mut self, set: &[Placed], twins: &[bool]) {
        let mut strictest: BTreeMap<(String, String), (f64, usize)> = BTreeMap::new();
        for (index, (rule, _)) in set.iter().enumerate() {
            let Some(bound) = Bound::of(rule).filter(|_| !rule.common().shadow) else { continue };
            let known =
                strictest.entry((bound.subject, bound.caller)).or_insert((bound.most, index));
            if bound.most < known.0 {
                *known = (bound.most, index);
            }
        }
        for (index, (rule, site)) in set.iter().enumerate() {
            let Some(bound) = Bound::of(rule) else { continue };
            // A rule that only tries reports also what another one refuses by the same average or pressure.
            let may_be_idle = !rule.common().shadow || rule.keeps() != Keeps::Nothing;
            if twins.get(index) == Some(&true) || !may_be_idle {
                continue;
            }
            // What holds for everybody holds for each caller.
            let of = |caller: &str| strictest.get(&(bound.subject.clone(), caller.to_owned()));
            let others = [of(&bound.caller), of("")].into_iter().flatten();
            let Some((most, other)) = others.min_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
            let Some((stricter, other_site)) = set.get(*other) else { continue };
            let is_the_same = rule.common() == stricter.common() && *other < index;
            let what = if *most < bound.most {
                if rule.common().shadow {
                    "never reports anything"
                } else {
                    "never refuses anything"
                }
            } else if is_the_same {
                "changes nothing"
            } else {
                continue;
            };
            let (less, more) = (limit(stricter), limit(rule));
            self.warn(
                site,
                "",
                format!("{what}: {other_site} allows no more ({less}, and here {more})"),
            );
        }
    }

    /// Rules for what no other rule names, where another one names all there is.
    fn defaults(&mut self, set: &[Placed]) {
        for (rule, site) in set.iter().filter(|(rule, _)| rule.target() == Some(&Target::Default)) {
            let names_all = |(other, _): &&Placed| {
                other.rank() == rule.rank()
                    && other.common().unit == rule.common().unit
                    && matches!(other.target(), Some(Target::Pattern(pattern)) if pattern == ".*")
            };
            if let Some((_, other)) = set.iter().find(names_all) {
                let sentence = format!(
                    "is \"*\", for what no other rule of the kind names or matches: {other} matches everything"
                );
                self.warn(site, "resource", sentence);
            }
        }
    }

    /// API groups and strategies to which no rule refers: limits that nobody keeps.
    fn unused(&mut self, set: &[Placed]) {
        let groups: Vec<&str> = set
            .iter()
            .filter_map(|(rule, _)| match rule.target() {
                Some(Target::Group(group)) => Some(group.name.as_str()),
                Some(Target::Resource(_) | Target::Pattern(_) | Target::Default) | None => None,
            })
            .collect();
        let files = self.files;
        let documents = || {
            files.files.iter().flat_map(|file| {
                file.documents.iter().enumerate().filter_map(move |(index, node)| {
                    let site = Site {
                        document: Some(index + 1),
                        position: node.position,
                        ..Site::of_source(&file.name)
                    };
                    Some((as_map(node)?, site))
                })
            })
        };
        let mut bound: Vec<&Node> = Vec::new();
        for (document, _) in
            documents().filter(|(map, _)| text(map, "kind") == "FaultToleranceRule")
        {
            bound.extend(list(document, "strategies"));
        }
        for (document, site) in documents() {
            let kind = text(document, "kind");
            if kind == "ApiDefinitions" {
                for (index, node) in list(document, "rules").iter().enumerate() {
                    let Some(group) = as_map(node) else { continue };
                    let name = text(group, "apiName");
                    if !groups.contains(&name) {
                        let site = Site {
                            rule: Some(index),
                            name: Some(name.to_owned()),
                            kind: Some("ApiDefinitions"),
                            position: node.position.or(site.position),
                            ..site.clone()
                        };
                        let sentence = "is used by no gateway rule, so that nothing limits it";
                        self.warn(&site, "apiName", sentence.to_owned());
                    }
                }
            }
            let known =
                OPENSERGO_KINDS.iter().map(|(known, _)| *known).find(|known| *known == kind);
            let Some(kind) = known.filter(|_| text(document, "apiVersion") == OPENSERGO_VERSION)
            else {
                continue;
            };
            let name =
                document.get("metadata").and_then(as_map).map_or("", |map| text(map, "name"));
            let is_bound = bound.iter().filter_map(|node| as_map(node)).any(|strategy| {
                text(strategy, "name") == name && ["", kind].contains(&text(strategy, "kind"))
            });
            if kind.ends_with("Strategy") && !is_bound {
                let site = Site { kind: Some(kind), ..site };
                let sentence = format!(
                    "(`{name}`) is bound by no FaultToleranceRule, so that nobody keeps it"
                );
                self.warn(&site, "metadata", sentence);
            }
        }
    }

    /// Rules of messages: the filter that most people load reads no streams.
    fn messages(&mut self, rule: &Rule, site: &Site) {
        if rule.common().unit == Unit::Message {
            let sentence = "is message, which only sentinel_filter_messages.wasm counts: with sentinel_filter.wasm \
                            the rule never refuses anything";
            self.warn(site, "unit", sentence.to_owned());
        }
    }

    /// Names that no request has.
    fn names(&mut self, rule: &Rule, site: &Site, naming: Naming<'_>) {
        match rule.target() {
            Some(Target::Resource(name)) => self.name(site, "resource", name, naming),
            Some(Target::Group(group)) => {
                for predicate in &group.predicates {
                    if let PathPredicate::Exact(path) = predicate
                        && let Some(problem) = path_problem(path)
                    {
                        let sentence = format!(
                            "is the API group `{}`, whose pattern \"{path}\" matches no path: {problem}",
                            group.name
                        );
                        self.warn(site, "resource", sentence);
                    }
                }
            }
            Some(Target::Pattern(_) | Target::Default) | None => {}
        }
        if let Rule::Flow(flow) = rule
            && let Some(name) = &flow.ref_resource
        {
            self.name(site, "refResource", name, naming);
        }
    }

    fn name(&mut self, site: &Site, field: &str, name: &str, naming: Naming<'_>) {
        let mut problems = Vec::new();
        for filter in naming.filters {
            match problem(name, &filter.config) {
                None => return,
                Some(problem) => problems.push(problem),
            }
        }
        let Some(problem) = problems.first() else { return };
        let shown = Node::new(Value::String(name.to_owned())).describe();
        let whose = match naming.file {
            Some(file) => format!("no filter of {} calls a request so", file.display()),
            None => "a filter that names by method and path calls no request so".to_owned(),
        };
        let else_ = match naming.file {
            Some(_) => "",
            None => " (if yours names otherwise, say `--filter FILE`)",
        };
        self.warn(site, field, format!("is {shown}, but {whose}: {problem}{else_}"));
    }

    /// Rules about callers where nobody knows who calls.
    fn callers(&mut self, rule: &Rule, site: &Site, naming: Naming<'_>) {
        let what = match rule {
            Rule::Flow(flow) if flow.limit_app != LimitApp::Default => "the rule limits nobody",
            Rule::Authority(_) => "everybody passes",
            Rule::Flow(_)
            | Rule::System(_)
            | Rule::Gateway(_)
            | Rule::Isolation(_)
            | Rule::Hotspot(_)
            | Rule::CircuitBreaker(_) => return,
        };
        if naming.filters.iter().all(|filter| filter.config.origin.is_none())
            && let Some(file) = naming.file
        {
            let sentence = format!(
                "is about callers, but no filter of {} has an `origin` to know them by: {what}",
                file.display()
            );
            self.warn(site, "limitApp", sentence);
        }
    }

    /// Rules about arguments that no filter has.
    fn arguments(&mut self, rule: &Rule, site: &Site, naming: Naming<'_>) {
        let Rule::Hotspot(HotspotRule { param: Some(pick), .. }) = rule else { return };
        let (None, Some(index)) = (&pick.key, pick.index) else { return };
        let args = naming.filters.iter().map(|filter| filter.config.args.len()).max().unwrap_or(0);
        let distance = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
        let is_there = if index < 0 { distance <= args } else { distance < args };
        if !is_there && let Some(file) = naming.file {
            let have = match args {
                0 => "no `args`".to_owned(),
                1 => "1 of `args`".to_owned(),
                _ => format!("at most {args} of `args`"),
            };
            let sentence = format!(
                "is {index}, but the filters of {} have {have} (the first is 0): the rule never counts anything",
                file.display()
            );
            self.warn(site, "paramIndex", sentence);
        }
    }
}

/// Why no request has this name; `None` if some may.
fn problem(name: &str, config: &FilterConfig) -> Option<String> {
    // Of a listener of TCP or gRPC, which may share the set.
    if name.starts_with("tcp:") || is_grpc_method(name) {
        return None;
    }
    let (method, path) = match config.resource.from() {
        ResourceFrom::Path => ("", name),
        ResourceFrom::MethodPath => {
            let Some((method, path)) = name.split_once(':') else {
                return Some("it must be METHOD:/path, such as \"GET:/hello\"".to_owned());
            };
            let is_method = !method.is_empty()
                && method.bytes().all(|byte| byte.is_ascii_uppercase() || b"-_".contains(&byte));
            if !is_method {
                return Some(
                    "it must begin with a method in capitals, such as \"GET:/hello\"".to_owned(),
                );
            }
            // Of these methods the path may be something else.
            if matches!((method, path), ("OPTIONS", "*") | ("CONNECT", "")) {
                return None;
            }
            (method, path)
        }
        ResourceFrom::Route
        | ResourceFrom::Cluster
        | ResourceFrom::Authority
        | ResourceFrom::Header(_) => return None,
    };
    if let Some(problem) = path_problem(path) {
        return Some(problem);
    }
    let mut called = Vec::new();
    let parts = RequestParts {
        method: method.as_bytes(),
        path: path.as_bytes(),
        ..RequestParts::default()
    };
    config.resource.write_name(&parts, &mut called);
    if called != name.as_bytes() {
        return Some(format!(
            "by the filter's `templates` such a request is called \"{}\"",
            String::from_utf8_lossy(&called)
        ));
    }
    // A template is what a path is called that differs from it where there are braces.
    let is_braced = |segment: &str| segment.starts_with('{') && segment.ends_with('}');
    let any = path.split('/').map(|segment| if is_braced(segment) { "\u{1}" } else { segment });
    let any = any.collect::<Vec<_>>().join("/");
    config.resource.write_name(&RequestParts { path: any.as_bytes(), ..parts }, &mut called);
    if path.contains(['{', '}']) && called != name.as_bytes() {
        return Some("it is not among the filter's `templates`".to_owned());
    }
    None
}

/// Whether this is what a call of gRPC has for its path: `/package.Service/Method`.
fn is_grpc_method(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
    let parts = name.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    parts.is_some_and(|(service, method)| {
        service.contains('.')
            && !method.is_empty()
            && [service, method].iter().all(|part| part.bytes().all(is_plain))
    })
}

/// Why no request has this path.
fn path_problem(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some("a path begins with a slash".to_owned());
    }
    if path_without_query(path.as_bytes()).len() < path.len() {
        return Some("the query string is no part of a name".to_owned());
    }
    None
}

/// How much a rule allows of which requests.
struct Bound {
    /// Rules of one subject count the same requests in the same way.
    subject: String,
    /// Whose requests; empty: everybody's.
    caller: String,
    most: f64,
}

impl Bound {
    /// `None` for a rule that does not merely refuse what is more than a number.
    fn of(rule: &Rule) -> Option<Self> {
        let failure = match rule.common().on_host_failure {
            OnHostFailure::Pass => "pass",
            OnHostFailure::Block => "block",
        };
        let (subject, caller, most) = match rule {
            Rule::Flow(flow)
                if flow.control == Control::Reject
                    && flow.calculate == TokenCalculate::Direct
                    && flow.ref_resource.is_none() =>
            {
                let caller = match &flow.limit_app {
                    LimitApp::Default => String::new(),
                    LimitApp::Other => "other".to_owned(),
                    LimitApp::Origin(origin) => format!("origin {origin}"),
                };
                (
                    format!("flow {} {:?}", flow.stat_interval_ms, flow.target),
                    caller,
                    flow.threshold.floor(),
                )
            }
            Rule::Isolation(isolation) => {
                let subject = format!("isolation {:?}", isolation.target);
                (subject, String::new(), f64::from(isolation.threshold))
            }
            Rule::System(system) => {
                let most = match system.metric {
                    SystemMetric::InboundQps | SystemMetric::Concurrency => system.trigger.floor(),
                    SystemMetric::AvgRt | SystemMetric::CpuUsage { .. } => system.trigger,
                };
                (format!("system {:?}", system.metric), String::new(), most)
            }
            Rule::Flow(_)
            | Rule::Authority(_)
            | Rule::Gateway(_)
            | Rule::Hotspot(_)
            | Rule::CircuitBreaker(_) => return None,
        };
        let unit = rule.common().unit;
        Some(Self { subject: format!("{failure} {unit:?} {subject}"), caller, most })
    }
}

/// The rule under no name.
fn without_id(rule: &Rule) -> Rule {
    let mut rule = rule.clone();
    match &mut rule {
        Rule::Authority(rule) => rule.id.clear(),
        Rule::System(rule) => rule.id.clear(),
        Rule::Flow(rule) => rule.id.clear(),
        Rule::Isolation(rule) => rule.id.clear(),
        Rule::Gateway(rule) | Rule::Hotspot(rule) => rule.id.clear(),
        Rule::CircuitBreaker(rule) => rule.id.clear(),
    }
    rule
}

fn as_map(node: &Node) -> Option<&Map> {
    if let Value::Map(map) = &node.value { Some(map) } else { None }
}

fn text<'a>(map: &'a Map, field: &str) -> &'a str {
    match map.get(field).map(|node| &node.value) {
        Some(Value::String(text)) => text,
        _ => "",
    }
}

/// A list in a document's `spec`.
fn list<'a>(document: &'a Map, field: &str) -> &'a [Node] {
    let spec = document.get("spec").and_then(as_map);
    match spec.and_then(|spec| spec.get(field)).map(|node| &node.value) {
        Some(Value::List(list)) => list,
        _ => &[],
    }
}
