//! From what documents say to rules that cannot be wrong.
//!
//! A set of documents compiles whole or not at all, and what stands in the way of it is said all at
//! once. Rules come in four forms: documents like those of sentinel-golang's Kubernetes resources, whose enums
//! are names and whose ratios are percents; OpenSergo's documents ([`opensergo`]); and the JSON lists of
//! sentinel-golang and of Sentinel for Java, whose enums are numbers and whose ratios are fractions. A document
//! that is a list is one of sentinel-golang's ([`lists`]). What Sentinel can say and Envoy cannot keep is refused
//! with a sentence that says so: a limit that is silently not kept is worse than none.
//!
//! A kind is a row of a table: its fields and the function that reads them. The ids, the reply and what else every
//! rule can say is read here, and so is checked what no rule can know by itself.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{
    config::Settings,
    order::order_of,
    param::MatchStrategy,
    pattern::{Pattern, Patterns, Way},
    rule::{
        ApiGroup, HotspotRule, PathPredicate, Rule, Target, Unit,
        error::{Reason, Refusal, Refusals, Site},
        node::{Entry, Map, Node, Value, shorten},
        read::{Fields, near, one_of},
        shape::Shape,
    },
};

#[cfg(feature = "schema")]
use crate::rule::shape::Trace;

mod bounds;
mod common;
mod gateway;
mod hotspot;
mod ids;
mod java;
mod kinds;
mod lists;
mod opensergo;
#[cfg(test)]
mod tests;

pub use bounds::{MATCHED_CAPACITIES, matched_capacity, table_bytes};
pub(crate) use common::{HEADER_NAME, is_header_name};
pub use gateway::{PARAM_ITEM_FIELDS, PREDICATE_FIELDS};
pub use hotspot::SPECIFIC_ITEM_FIELDS;
pub use ids::{ID_BYTES_MAX, default_id, is_id};
pub use java::{JAVA_KINDS, PARAM_FLOW_ITEM_FIELDS};
pub use kinds::KINDS;
pub use opensergo::{OPENSERGO_KINDS, OPENSERGO_VERSION};

/// The `apiVersion` of Sentinel's rule documents.
pub const API_VERSION: &str = "datasource.sentinel.io/v1alpha1";

/// The fields of a rule document. `metadata` and `status` are Kubernetes' own and are not looked at.
pub const DOCUMENT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// The fields of a rule's `response`.
pub const RESPONSE_FIELDS: &[&str] = &["status", "headers", "body"];

/// The most headers of a `response`; a rule with more is refused.
pub const RESPONSE_HEADERS_MAX: usize = 32;

/// The most bytes of a `response`'s body, and of each header's value; a rule with more is refused.
pub const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// The most regular expressions of API groups and of gateway rules' values in a set, those of groups counted once for
/// each rule of the group; a set with more is refused.
pub const REGEXES_MAX: usize = 256;

/// The most patterns (`regex: true`) that a name may have to be tried against when it is first seen: those whose plain
/// beginning it has. A set with more is refused.
pub const PATTERNS_TRIED_MAX: usize = 256;

/// The most steps that these patterns may have together, each of which is gone through at most once for each
/// character of the name.
pub const STEPS_TRIED_MAX: usize = 16_384;

/// The most bytes that a set's patterns may take in a worker.
pub const PATTERNS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The documents of one source.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// A file's name, or what else errors should call it.
    pub name: &'a str,
    /// What the operator says its bare lists are: `flow`, `circuitbreaker`, `hotspot`, `isolation` or `system`.
    pub list: Option<&'a str>,
    /// The plugin whose configuration carries them. A listener that is being drained still has its old configuration
    /// while its successor has a new one: of what two sources with the same carrier say, what stands in the one named
    /// first counts, rule by rule.
    pub carrier: Option<&'a str>,
    /// Its documents; those that say nothing at all are passed over.
    pub documents: &'a [Node],
}

/// A kind of rules in one form.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The document's `kind`.
    pub name: &'static str,
    /// What its list is called where it has no document around it.
    pub list: &'static str,
    /// The fields of one rule.
    pub fields: &'static [&'static str],
    /// Of these, those without which a rule of a bare list is not taken for one of this kind.
    telling: &'static [&'static str],
    read: Read,
}

/// Reads one rule; what is wrong with it is noted in the fields.
type Read = fn(&mut Fields<'_, '_>, &Context<'_>, &mut Found);

/// What a rule is read with.
struct Context<'a> {
    settings: &'a Settings,
    form: Form,
}

/// How a rule is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// In a document: ratios are percents, and what must be said is.
    Document,
    /// In sentinel-golang's JSON.
    Golang,
    /// The same, for calls that carry attachments, which `paramKey` may name. Requests of a proxy carry none.
    Attached,
    /// In the JSON of Sentinel for Java.
    Java,
}

/// What was read, but for the names of the rules and what all rules can say.
#[derive(Default)]
struct Found {
    rules: Vec<Rule>,
    group: Option<ApiGroup>,
}

/// The rules of all documents of `sources`, in the order in which they stand there; those of OpenSergo's documents
/// come last.
///
/// `settings` bound how many they are (`rulesMax`), how long a resource's name is (`nameBytesMax`) and how large
/// their tables are (`paramTableBytes`). Ids are unique over the whole set.
pub fn compile_set(sources: &[Source<'_>], settings: &Settings) -> Result<Vec<Rule>, Refusals> {
    compiled(sources, settings).finish()
}

/// The same rules, each with the place where it stands: for tools that say more of a set than whether it is right.
pub fn compile_placed(
    sources: &[Source<'_>],
    settings: &Settings,
) -> Result<Vec<(Rule, Site)>, Refusals> {
    let mut set = compiled(sources, settings);
    set.check();
    let placed = set.rules.into_iter().map(|named| (named.rule, named.site)).collect();
    set.refusals.or(placed)
}

fn compiled<'a>(sources: &[Source<'a>], settings: &'a Settings) -> Set<'a> {
    let mut set = Set::new(settings);
    for (source, index) in sources.iter().zip(0..) {
        set.origin = Origin { source: index, carrier: source.carrier };
        for (index, node) in source.documents.iter().enumerate() {
            let site = Site { document: Some(index + 1), ..Site::of_source(source.name) }
                .at(node.position);
            if node.value != Value::Null {
                set.add_document(node, site, source);
            }
        }
    }
    set
}

/// What the reader of documents asks of one.
#[cfg(feature = "schema")]
pub fn trace(document: &Node, settings: &Settings) -> Trace {
    Trace::of(|refusals| {
        let mut set = Set::new(settings);
        core::mem::swap(&mut set.refusals, refusals);
        set.add_document(document, Site::default(), &Source::of(""));
        *refusals = set.refusals;
    })
}

/// The rules of one list of sentinel-golang's data sources. `kind` is `flow`, `circuitbreaker`, `hotspot`,
/// `isolation` or `system`; a list of another kind is refused.
pub fn rules_from_golang(
    kind: &str,
    list: &Node,
    settings: &Settings,
) -> Result<Vec<Rule>, Refusals> {
    rules_from_list(lists::kind(kind), Form::Attached, list, settings)
}

/// The rules of one list of Sentinel's data sources for Java. `kind` is `flow`, `degrade`, `paramflow`, `system`,
/// `authority` or `gateway`; a list of another kind is refused. They mean what sentinel-golang's mean where the
/// two differ.
pub fn rules_from_java(
    kind: &str,
    list: &Node,
    settings: &Settings,
) -> Result<Vec<Rule>, Refusals> {
    rules_from_list(JAVA_KINDS.iter().find(|known| known.list == kind), Form::Java, list, settings)
}

fn rules_from_list(
    kind: Option<&'static Kind>,
    form: Form,
    list: &Node,
    settings: &Settings,
) -> Result<Vec<Rule>, Refusals> {
    let mut set = Set::new(settings);
    match (&list.value, kind) {
        (Value::List(rules), Some(kind)) => set.add_rules(kind, form, rules, &Site::default()),
        (Value::Null, Some(_)) => {}
        (_, kind) => {
            let reason = match kind {
                Some(_) => {
                    Reason::Mismatch { found: list.describe(), allowed: "a list of rules".into() }
                }
                None => Reason::Malformed("rules of this kind are not known in this form".into()),
            };
            let site = Site::default().at(list.position);
            set.refusals.push(Refusal { site, field: String::new(), reason });
        }
    }
    set.finish()
}

/// Whether sentinel-golang's own `IsValidRule` takes a rule of one of its lists. That is what
/// [`rules_from_golang`] takes and, besides, numbers of enums that sentinel-golang does not know either: it takes
/// such a rule and then does not run it, where we refuse it.
pub fn is_valid_in_golang(kind: &str, rule: &Node, settings: &Settings) -> bool {
    /// By kind, enums whose unknown numbers pass, and the largest known one.
    const OPEN: &[(&str, &str, i64)] = &[
        ("flow", "tokenCalculateStrategy", 2),
        ("flow", "controlBehavior", 1),
        ("hotspot", "metricType", 1),
        ("hotspot", "controlBehavior", 1),
        ("circuitbreaker", "strategy", 2),
    ];

    let Value::Map(map) = &rule.value else { return false };
    let known = map.entries().iter().map(|entry| {
        let is_open = |(of, field, most): &(&str, &str, i64)| {
            *of == kind
                && entry.key == *field
                && matches!(entry.value.value, Value::Int(n) if n > *most)
        };
        let value =
            if OPEN.iter().any(is_open) { Node::new(Value::Int(0)) } else { entry.value.clone() };
        Entry { key: entry.key.clone(), position: entry.position, value }
    });
    let map = Map::from_entries(known.collect()).unwrap_or_default();
    let list = Node::new(Value::List(Vec::from([Node::new(Value::Map(map))])));
    rules_from_golang(kind, &list, settings).is_ok()
}

/// A set that is being compiled.
struct Set<'a> {
    settings: &'a Settings,
    /// Of what is being read.
    origin: Origin<'a>,
    rules: Vec<Named<'a>>,
    groups: Vec<(ApiGroup, Site, Origin<'a>)>,
    opensergo: opensergo::Documents<'a>,
    /// How many rules were seen, also those that were refused.
    seen: usize,
    refusals: Refusals,
}

/// Where something was read.
#[derive(Clone, Copy, Debug, Default)]
struct Origin<'a> {
    /// The source's place among all.
    source: u32,
    carrier: Option<&'a str>,
}

impl Origin<'_> {
    /// Whether something of the same name that was read before, at `first`, has taken this one's place.
    fn yields_to(self, first: Self) -> bool {
        self.carrier.is_some() && self.carrier == first.carrier && self.source != first.source
    }
}

/// A rule and where it stands.
struct Named<'a> {
    rule: Rule,
    origin: Origin<'a>,
    /// Whether its id is its own.
    has_id: bool,
    site: Site,
}

impl<'a> Source<'a> {
    /// A source without documents so far.
    pub fn of(name: &'a str) -> Self {
        Self { name, list: None, carrier: None, documents: &[] }
    }
}

impl<'a> Set<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            origin: Origin::default(),
            rules: Vec::new(),
            groups: Vec::new(),
            opensergo: opensergo::Documents::default(),
            seen: 0,
            refusals: Refusals::default(),
        }
    }

    fn add_document(&mut self, node: &Node, mut site: Site, source: &Source<'_>) {
        if let Value::List(rules) = &node.value {
            match lists::kind_of(rules, source) {
                Ok(kind) => {
                    site.kind = Some(kind.name);
                    self.add_rules(kind, Form::Golang, rules, &site);
                }
                // Of no rules at all the kind does not matter.
                Err(_) if rules.is_empty() => {}
                Err(sentence) => refuse(&mut self.refusals, &site, "", &sentence),
            }
            return;
        }
        let names =
            || KINDS.iter().map(|kind| kind.name).chain(OPENSERGO_KINDS.iter().map(|kind| kind.0));
        // The kind first, so that errors about the other fields can name it.
        if let Value::Map(map) = &node.value
            && let Some(Value::String(kind)) = map.get("kind").map(|node| &node.value)
        {
            site.kind = names().find(|known| known == kind);
        }
        let refusals = &mut self.refusals;
        let Some(mut document) = Fields::open(node, "", DOCUMENT_FIELDS, &site, refusals) else {
            return;
        };
        let kind = KINDS.iter().find(|kind| Some(kind.name) == site.kind);
        document.require("apiVersion");
        let wanted =
            if site.kind.is_some() && kind.is_none() { OPENSERGO_VERSION } else { API_VERSION };
        let versions = || Shape::Choice(Vec::from([(wanted, None)]));
        if document.text_of("apiVersion", versions).is_some_and(|version| version != wanted) {
            document.mismatch("apiVersion", wanted);
        }
        document.require("kind");
        let kinds = || Shape::Choice(names().map(|name| (name, None)).collect());
        let Some(text) = document.text_of("kind", kinds) else {
            return;
        };
        let Some(name) = site.kind else {
            let all: Vec<&str> = names().collect();
            let allowed = match near(text, &all) {
                Some(near) => format!("one of Sentinel's kinds; did you mean `{near}`?"),
                None => one_of(&all),
            };
            document.mismatch("kind", &allowed);
            return;
        };
        document.require("spec");
        let Some(kind) = kind else {
            self.opensergo.add(name, &mut document, &site, self.settings, self.origin);
            return;
        };
        let Some(mut spec) = document.inside("spec", &["rules"]) else {
            return;
        };
        spec.require("rules");
        let rules = spec.list("rules");
        self.add_rules(kind, Form::Document, rules, &site);
    }

    fn add_rules(&mut self, kind: &'static Kind, form: Form, rules: &[Node], document: &Site) {
        let context = Context { settings: self.settings, form };
        for (index, node) in rules.iter().enumerate() {
            let site =
                Site { rule: Some(index), name: name_of(node), ..document.at(node.position) };
            if !self.has_room() {
                continue;
            }
            let Some(mut fields) = Fields::open(node, "", kind.fields, &site, &mut self.refusals)
            else {
                continue;
            };
            let id = common::id(&mut fields, kind.list, form);
            let common = common::common(&mut fields);
            let mut found = Found::default();
            (kind.read)(&mut fields, &context, &mut found);
            if common.unit == Unit::Message {
                let problem = found.rules.iter().find_map(Rule::message_problem);
                problem.into_iter().for_each(|problem| fields.object("unit", problem));
            }
            if let Some(group) = found.group {
                self.add_group(group, &site);
            }
            for mut rule in found.rules {
                *ids::head_of(&mut rule).1 = common.clone();
                self.add_rule(rule, id.clone(), &site, form);
            }
        }
    }

    /// Counts one more rule. What is over the bound is not read: the set is refused as it is.
    fn has_room(&mut self) -> bool {
        self.seen = self.seen.saturating_add(1);
        self.seen <= bound(self.settings.rules_max)
    }

    fn add_rule(&mut self, mut rule: Rule, id: Option<String>, site: &Site, form: Form) {
        // Of several system rules Java heeds the strictest of each metric.
        if form == Form::Java
            && let Rule::System(new) = &rule
        {
            for named in &mut self.rules {
                if let Rule::System(old) = &mut named.rule
                    && old.metric == new.metric
                {
                    old.trigger = old.trigger.min(new.trigger);
                    return;
                }
            }
        }
        let has_id = id.is_some();
        let id = id.unwrap_or_else(|| default_id(&rule));
        *ids::head_of(&mut rule).0 = id;
        self.rules.push(Named { rule, origin: self.origin, has_id, site: site.clone() });
    }

    fn add_group(&mut self, group: ApiGroup, site: &Site) {
        let origin = self.origin;
        let same = self.groups.iter().find(|(other, ..)| other.name == group.name);
        if let Some((_, other, first)) = same {
            if origin.yields_to(*first) {
                return;
            }
            let sentence = format!("is also the name of {other}; names of groups must differ");
            refuse(&mut self.refusals, site, "apiName", &sentence);
            return;
        }
        self.groups.push((group, site.clone(), origin));
    }

    fn finish(mut self) -> Result<Vec<Rule>, Refusals> {
        self.check();
        self.refusals.or(self.rules.into_iter().map(|named| named.rule).collect())
    }

    /// Adds what only the whole set says, and compares its rules with each other.
    fn check(&mut self) {
        for bound in core::mem::take(&mut self.opensergo).rules(&mut self.refusals) {
            if self.has_room() {
                self.origin = bound.origin;
                self.add_rule(bound.rule, Some(bound.id), &bound.site, Form::Document);
            }
        }
        let most = bound(self.settings.rules_max);
        if self.seen > most {
            let reason = Reason::TooMany { found: self.seen, most, setting: Some("rulesMax") };
            let site = Site::default();
            self.refusals.push(Refusal { site, field: "rules".to_string(), reason });
        }
        self.resolve_groups();
        self.compare_ids();
        self.compare_bounds();
    }

    /// Puts the paths of its API group into each rule of one.
    fn resolve_groups(&mut self) {
        for Named { rule, site, .. } in &mut self.rules {
            let Rule::Gateway(rule) = rule else { continue };
            let Target::Group(group) = &mut rule.target else { continue };
            match self.groups.iter().find(|(known, ..)| known.name == group.name) {
                Some((known, ..)) => group.predicates.clone_from(&known.predicates),
                None => {
                    let sentence = "is no API group: add an ApiDefinitions document with one of this `apiName`, or \
                                    leave out `resourceMode: ApiGroup`";
                    refuse(&mut self.refusals, site, "resource", sentence);
                }
            }
        }
    }

    fn compare_ids(&mut self) {
        let id = |index: &usize| self.rules.get(*index).map(|named| named.rule.id());
        // Of equal ids the one that was read first comes first.
        let order = order_of(self.rules.len(), &|a, b| id(&a).cmp(&id(&b)));
        let mut first: Option<&Named<'_>> = None;
        let mut replaced: Vec<usize> = Vec::new();
        for (index, named) in
            order.iter().filter_map(|index| Some((*index, self.rules.get(*index)?)))
        {
            let Some(other) = first.filter(|other| other.rule.id() == named.rule.id()) else {
                first = Some(named);
                continue;
            };
            if named.origin.yields_to(other.origin) {
                replaced.push(index);
                continue;
            }
            let by = Box::new(other.site.clone());
            let reason = if named.has_id || other.has_id {
                Reason::IdTaken { by }
            } else {
                Reason::CountsTheSame { by }
            };
            let site = named.site.clone();
            self.refusals.push(Refusal { site, field: "id".to_string(), reason });
        }
        if !replaced.is_empty() {
            let mut index = 0..;
            self.rules.retain(|_| index.next().is_none_or(|index| !replaced.contains(&index)));
        }
    }

    /// Refuses a set that needs more memory, or more time for a new name, than it may have.
    fn compare_bounds(&mut self) {
        let rules = || self.rules.iter().map(|named| &named.rule);
        let mut refuse =
            |sentence: &str| refuse(&mut self.refusals, &Site::default(), "rules", sentence);
        let regexes = rules().map(regexes_of).fold(0, usize::saturating_add);
        if regexes > REGEXES_MAX {
            refuse(&format!(
                "have {regexes} regular expressions for paths and values, but may have at most {REGEXES_MAX}"
            ));
        }
        let mut patterns = Patterns::default();
        for rule in rules() {
            if let Some(Target::Pattern(text)) = rule.target()
                && let Ok(pattern) = Pattern::new(text)
            {
                patterns.add(0, pattern);
            }
        }
        patterns.link();
        let bytes = patterns.bytes();
        if bytes > PATTERNS_BYTES_MAX {
            refuse(&format!(
                "need {bytes} bytes in each worker for their patterns (`regex: true`), but may have at most \
                 {PATTERNS_BYTES_MAX}: write fewer, or lower what repetitions multiply"
            ));
        }
        let is_long = |way: Way| way.patterns > PATTERNS_TRIED_MAX || way.steps > STEPS_TRIED_MAX;
        if let Some((prefix, way)) = patterns.ways().find(|(_, way)| is_long(*way)) {
            refuse(&format!(
                "have patterns (`regex: true`) of which a name that begins with \"{}\" must be tried against \
                 {} with {} steps, but may have at most {PATTERNS_TRIED_MAX} with {STEPS_TRIED_MAX} steps for any name: \
                 let them differ in plain characters at their beginnings",
                shorten(prefix),
                way.patterns,
                way.steps
            ));
        }
        let most = self.settings.param_table_bytes;
        let matched = matched_capacity(&rules(), most);
        let mut bytes: u64 = 0;
        let mut largest: (u64, &str) = (0, "");
        for rule in rules() {
            let more = table_bytes(rule, matched);
            bytes = bytes.saturating_add(more);
            if more > largest.0 {
                largest = (more, rule.id());
            }
        }
        if bytes > u64::from(most) {
            refuse(&format!(
                "need {bytes} bytes for tables of values, but may have at most {most} (paramTableBytes): most of it is \
                 {} for {}; write fewer such rules, lower `paramsMaxCapacity` or raise the setting",
                largest.0, largest.1
            ));
        }
    }
}

/// How many regular expressions for paths and values a worker compiles for a rule.
fn regexes_of(rule: &Rule) -> usize {
    let of_group = match rule.target() {
        Some(Target::Group(group)) => group
            .predicates
            .iter()
            .filter(|predicate| matches!(predicate, PathPredicate::Regex(_)))
            .count(),
        Some(Target::Resource(_) | Target::Pattern(_) | Target::Default) | None => 0,
    };
    let is_by_value = matches!(rule, Rule::Gateway(HotspotRule { param: Some(param), .. })
        if param.matching.as_ref().is_some_and(|matching| matching.strategy == MatchStrategy::Regex));
    of_group + usize::from(is_by_value)
}

fn refuse(refusals: &mut Refusals, site: &Site, field: &str, sentence: &str) {
    let reason = Reason::Malformed(sentence.to_string());
    refusals.push(Refusal { site: site.clone(), field: field.to_string(), reason });
}

/// The rule's id, or else what it governs, for errors.
fn name_of(node: &Node) -> Option<String> {
    let Value::Map(map) = &node.value else {
        return None;
    };
    ["id", "resource", "apiName"].iter().find_map(|field| match &map.get(field)?.value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::String(_)
        | Value::List(_)
        | Value::Map(_) => None,
    })
}

/// A setting as a number of things in memory.
fn bound(setting: u32) -> usize {
    usize::try_from(setting).unwrap_or(usize::MAX)
}
