//! From what documents say to rules that cannot be wrong.
//!
//! A set of documents compiles whole or not at all, and what stands in the way of it is said all at
//! once. Sentinel's fields, defaults and ranges are sentinel-golang's (`core/flow/rule.go`) in the form
//! of its Kubernetes resources, whose enums are names; its own JSON, whose enums are numbers, reads the
//! same way. What is Sentinel's but not run by this version is refused with a sentence that says so:
//! a limit that is silently not kept is worse than none.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::{
    config::Settings,
    rule::{
        Common, FlowRule, OnHostFailure, OnServiceLoss, Response, Rule,
        error::{Reason, Refusal, Refusals, Site},
        node::{Node, Value},
        read::{Choice, Fields, near, one_of},
    },
};

/// The `apiVersion` of every rule document.
pub const API_VERSION: &str = "datasource.sentinel.io/v1alpha1";

/// The kinds of rule documents that this version runs.
pub const KINDS_RUN: &[&str] = &["FlowRules"];

/// The kinds that are known, but not run by this version.
pub const KINDS_NOT_RUN: &[&str] = &[
    "CircuitBreakerRules",
    "HotspotRules",
    "IsolationRules",
    "SystemRules",
    "ApiDefinitions",
    "GatewayFlowRules",
    "AuthorityRules",
];

/// The fields of a rule document. `metadata` and `status` are Kubernetes' own and are not looked at.
pub const DOCUMENT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// The fields of a flow rule.
pub const FLOW_FIELDS: &[&str] = &[
    "id",
    "resource",
    "threshold",
    "statIntervalInMs",
    "tokenCalculateStrategy",
    "controlBehavior",
    "relationStrategy",
    "refResource",
    "limitApp",
    "regex",
    "maxQueueingTimeMs",
    "warmUpPeriodSec",
    "warmUpColdFactor",
    "lowMemUsageThreshold",
    "highMemUsageThreshold",
    "memLowWaterMarkBytes",
    "memHighWaterMarkBytes",
    "shadow",
    "response",
    "onServiceLoss",
    "onHostFailure",
];

/// The fields of a rule's `response`.
pub const RESPONSE_FIELDS: &[&str] = &["status", "headers", "body"];

/// The longest `id`, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// The most headers of a `response`; a rule with more is refused.
pub const RESPONSE_HEADERS_MAX: usize = 32;

/// The most bytes of a `response`'s body, and of each header's value; a rule with more is refused.
pub const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// The documents of one source.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// A file's name, or what else errors should call it.
    pub name: &'a str,
    /// Its documents; those that say nothing at all are passed over.
    pub documents: &'a [Node],
}

/// The rules of all documents of `sources`, in the order in which they stand there.
///
/// `settings` bound how many they are (`rulesMax`) and how long a resource's name is (`nameBytesMax`).
/// Ids are unique over the whole set.
pub fn compile_set(sources: &[Source<'_>], settings: &Settings) -> Result<Vec<Rule>, Refusals> {
    let mut set = Set::new(settings);
    for source in sources {
        for (index, node) in source.documents.iter().enumerate() {
            let site = Site { document: Some(index + 1), ..Site::of_source(source.name) }
                .at(node.position);
            if node.value != Value::Null {
                set.add_document(node, site);
            }
        }
    }
    set.finish()
}

/// The rules of a sentinel-golang data source for flow rules: a list of rules and nothing around it.
pub fn flow_rules_from_golang(list: &Node, settings: &Settings) -> Result<Vec<Rule>, Refusals> {
    let mut set = Set::new(settings);
    match &list.value {
        Value::List(rules) => set.add_flow_rules(rules, &Site::default()),
        Value::Null => {}
        Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::String(_) | Value::Map(_) => {
            let reason =
                Reason::Mismatch { found: list.describe(), allowed: "a list of flow rules".into() };
            let site = Site::default().at(list.position);
            set.refusals.push(Refusal { site, field: String::new(), reason });
        }
    }
    set.finish()
}

/// The id of a flow rule that has none: derived from what the rule counts, so that it stays the same
/// wherever the rule stands, and in another process. Where the name does not fit an id as it is, the
/// hash of the whole name tells apart what the shortened name no longer does.
pub fn default_flow_id(resource: &str, stat_interval_ms: u32) -> String {
    const HASH_BYTES: usize = 16;

    let whole = match stat_interval_ms {
        1_000 => format!("flow:{resource}"),
        other => format!("flow:{resource}:{other}ms"),
    };
    if is_id(&whole) {
        return whole;
    }
    let mut hasher = SipHasher13::new();
    hasher.write(whole.as_bytes());
    let hash = hasher.finish();
    let mut id: String = whole
        .chars()
        .map(|c| if is_id_char(c) { c } else { '_' })
        .take(ID_BYTES_MAX - HASH_BYTES - 1)
        .collect();
    id.push_str(&format!(":{hash:016x}"));
    id
}

/// Whether `id` is 1 to 64 of `A-Za-z0-9._:/-`.
pub fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.chars().all(is_id_char)
}

fn is_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-')
}

/// A set that is being compiled.
struct Set<'a> {
    settings: &'a Settings,
    rules: Vec<(Rule, IdFrom)>,
    sites: Vec<Site>,
    /// How many rules were seen, also those that were refused.
    seen: usize,
    refusals: Refusals,
}

/// Where a rule's id comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IdFrom {
    Document,
    WhatItCounts,
}

impl<'a> Set<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            rules: Vec::new(),
            sites: Vec::new(),
            seen: 0,
            refusals: Refusals::default(),
        }
    }

    fn add_document(&mut self, node: &Node, mut site: Site) {
        // The kind first, so that errors about the other fields can name it.
        if let Value::Map(map) = &node.value
            && let Some(Value::String(kind)) = map.get("kind").map(|node| &node.value)
        {
            site.kind = KINDS_RUN.iter().chain(KINDS_NOT_RUN).copied().find(|known| known == kind);
        }
        let refusals = &mut self.refusals;
        let Some(mut document) = Fields::open(node, "", DOCUMENT_FIELDS, &site, refusals) else {
            return;
        };
        document.require("apiVersion");
        if document.text("apiVersion").is_some_and(|version| version != API_VERSION) {
            document.mismatch("apiVersion", API_VERSION);
        }
        document.require("kind");
        let Some(kind) = document.text("kind") else {
            return;
        };
        if KINDS_NOT_RUN.contains(&kind) {
            document.refuse("kind", Reason::NotRun { found: Some(kind.to_string()) });
            return;
        }
        if !KINDS_RUN.contains(&kind) {
            let all: Vec<&str> = KINDS_RUN.iter().chain(KINDS_NOT_RUN).copied().collect();
            let allowed = match near(kind, &all) {
                Some(near) => format!("one of Sentinel's kinds; did you mean `{near}`?"),
                None => one_of(&all),
            };
            document.mismatch("kind", &allowed);
            return;
        }
        document.require("spec");
        let Some(mut spec) = document.inside("spec", &["rules"]) else {
            return;
        };
        spec.require("rules");
        let rules = spec.list("rules");
        self.add_flow_rules(rules, &site);
    }

    fn add_flow_rules(&mut self, rules: &[Node], document: &Site) {
        for (index, node) in rules.iter().enumerate() {
            self.seen = self.seen.saturating_add(1);
            // What is over the bound is counted and not read: the set is refused as it is.
            if self.seen > bound(self.settings.rules_max) {
                continue;
            }
            let site =
                Site { rule: Some(index), name: name_of(node), ..document.at(node.position) };
            if let Some((rule, id_from)) = flow_rule(node, &site, self.settings, &mut self.refusals)
            {
                self.rules.push((Rule::Flow(rule), id_from));
                self.sites.push(site);
            }
        }
    }

    fn finish(mut self) -> Result<Vec<Rule>, Refusals> {
        let most = bound(self.settings.rules_max);
        if self.seen > most {
            let reason = Reason::TooMany { found: self.seen, most, setting: Some("rulesMax") };
            let site = Site::default();
            self.refusals.push(Refusal { site, field: "rules".to_string(), reason });
        }
        let mut first: BTreeMap<&str, (IdFrom, &Site)> = BTreeMap::new();
        for ((rule, id_from), site) in self.rules.iter().zip(&self.sites) {
            let Some((other_from, other)) = first.get(rule.id()) else {
                first.insert(rule.id(), (*id_from, site));
                continue;
            };
            let by = Box::new((*other).clone());
            let derived = *id_from == IdFrom::WhatItCounts && *other_from == IdFrom::WhatItCounts;
            let reason =
                if derived { Reason::CountsTheSame { by } } else { Reason::IdTaken { by } };
            self.refusals.push(Refusal { site: site.clone(), field: "id".to_string(), reason });
        }
        drop(first);
        self.refusals.or(self.rules.into_iter().map(|(rule, _)| rule).collect())
    }
}

/// Whether a value of an enum is run by this version.
const RUN: bool = true;
const NOT_RUN: bool = false;

static TOKEN_CALCULATE_STRATEGIES: &[Choice<bool>] = &[
    Choice::numbered("Direct", 0, RUN),
    Choice::numbered("WarmUp", 1, NOT_RUN),
    Choice::numbered("MemoryAdaptive", 2, NOT_RUN),
];

static CONTROL_BEHAVIORS: &[Choice<bool>] =
    &[Choice::numbered("Reject", 0, RUN), Choice::numbered("Throttling", 1, NOT_RUN)];

static RELATION_STRATEGIES: &[Choice<bool>] = &[
    Choice::numbered("CurrentResource", 0, RUN),
    Choice::numbered("AssociatedResource", 1, NOT_RUN),
];

static ON_SERVICE_LOSS: &[Choice<OnServiceLoss>] = &[
    Choice::named("keep", OnServiceLoss::Keep),
    Choice::named("pass", OnServiceLoss::Pass),
    Choice::named("block", OnServiceLoss::Block),
];

static ON_HOST_FAILURE: &[Choice<OnHostFailure>] =
    &[Choice::named("pass", OnHostFailure::Pass), Choice::named("block", OnHostFailure::Block)];

/// One flow rule; `None` if it was refused in a way that leaves no rule to speak of.
fn flow_rule(
    node: &Node,
    site: &Site,
    settings: &Settings,
    refusals: &mut Refusals,
) -> Option<(FlowRule, IdFrom)> {
    let mut fields = Fields::open(node, "", FLOW_FIELDS, site, refusals)?;
    let given_id = id(&mut fields);
    let resource = resource(&mut fields, settings);
    fields.require("threshold");
    let threshold = fields.number("threshold");
    let stat_interval_ms = match fields.whole_u32("statIntervalInMs", 0..=u32::MAX) {
        None | Some(0) => 1_000,
        Some(interval) => interval,
    };
    for (name, choices) in [
        ("tokenCalculateStrategy", TOKEN_CALCULATE_STRATEGIES),
        ("controlBehavior", CONTROL_BEHAVIORS),
        ("relationStrategy", RELATION_STRATEGIES),
    ] {
        if let Some(choice) = fields.choice(name, choices)
            && choice.value == NOT_RUN
        {
            fields.refuse(name, Reason::NotRun { found: Some(choice.name.to_string()) });
        }
    }
    if fields.flag("regex") == Some(true) {
        fields.refuse("regex", Reason::NotRun { found: Some("true".to_string()) });
    }
    // Sentinel's own default may also be written out, or left empty.
    if fields.text("limitApp").is_some_and(|origin| !matches!(origin, "" | "default")) {
        let found = fields.node("limitApp").map(Node::describe);
        fields.refuse("limitApp", Reason::NotRun { found });
    }
    read_inert(&mut fields);
    let common = common(&mut fields);

    let (resource, threshold) = (resource?.to_string(), threshold?);
    let (id, id_from) = match given_id {
        Some(id) => (id.to_string(), IdFrom::Document),
        None => (default_flow_id(&resource, stat_interval_ms), IdFrom::WhatItCounts),
    };
    Some((FlowRule { id, resource, threshold, stat_interval_ms, common }, id_from))
}

/// Fields that mean nothing for Direct + Reject of the current resource. sentinel-golang writes them
/// all the same, so they are checked and otherwise ignored.
fn read_inert(fields: &mut Fields<'_, '_>) {
    fields.text("refResource");
    for name in ["maxQueueingTimeMs", "warmUpPeriodSec", "warmUpColdFactor"] {
        fields.whole_u32(name, 0..=u32::MAX);
    }
    for name in [
        "lowMemUsageThreshold",
        "highMemUsageThreshold",
        "memLowWaterMarkBytes",
        "memHighWaterMarkBytes",
    ] {
        fields.whole(name, 0..=i64::MAX);
    }
}

/// The rule's own id. An empty one is none: sentinel-golang writes it where there is none.
fn id<'a>(fields: &mut Fields<'a, '_>) -> Option<&'a str> {
    let id = fields.text("id").filter(|id| !id.is_empty())?;
    if !is_id(id) {
        fields.mismatch("id", "1 to 64 characters of A-Z, a-z, 0-9 and ._:/-");
    }
    Some(id)
}

/// The resource; `None` if it is refused, so that it is not compared with those of other rules.
fn resource<'a>(fields: &mut Fields<'a, '_>, settings: &Settings) -> Option<&'a str> {
    fields.require("resource");
    let resource = fields.text("resource")?;
    let most = bound(settings.name_bytes_max);
    let reason = if resource.is_empty() {
        let allowed = "a resource's name, such as \"GET:/hello\"".to_string();
        Reason::Mismatch { found: "\"\"".to_string(), allowed }
    } else if resource.len() > most {
        let found = format!("{} bytes long", resource.len());
        Reason::Mismatch { found, allowed: format!("at most {most} (nameBytesMax)") }
    } else if resource == "*" {
        Reason::NotRun { found: Some("\"*\"".to_string()) }
    } else {
        return Some(resource);
    };
    fields.refuse("resource", reason);
    None
}

/// What every rule can say, whatever its kind.
fn common(fields: &mut Fields<'_, '_>) -> Common {
    Common {
        shadow: fields.flag("shadow").unwrap_or_default(),
        response: response(fields),
        on_service_loss: fields
            .choice("onServiceLoss", ON_SERVICE_LOSS)
            .map(|choice| choice.value)
            .unwrap_or_default(),
        on_host_failure: fields
            .choice("onHostFailure", ON_HOST_FAILURE)
            .map(|choice| choice.value)
            .unwrap_or_default(),
    }
}

fn response(fields: &mut Fields<'_, '_>) -> Option<Response> {
    let mut response = fields.inside("response", RESPONSE_FIELDS)?;
    let status = response.whole("status", 200..=599).and_then(|status| u16::try_from(status).ok());
    let body = response.text("body").map(str::to_string);
    if let Some(body) = &body
        && body.len() > RESPONSE_BYTES_MAX
    {
        let found = format!("{} bytes long", body.len());
        let allowed = format!("at most {RESPONSE_BYTES_MAX}");
        response.refuse("body", Reason::Mismatch { found, allowed });
    }
    Some(Response { status, headers: headers(&mut response), body })
}

fn headers(response: &mut Fields<'_, '_>) -> Vec<(String, String)> {
    let Some(node) = response.node("headers") else {
        return Vec::new();
    };
    let Value::Map(map) = &node.value else {
        response.mismatch("headers", "a map of names and values");
        return Vec::new();
    };
    let found = map.entries().len();
    if found > RESPONSE_HEADERS_MAX {
        let reason = Reason::TooMany { found, most: RESPONSE_HEADERS_MAX, setting: None };
        response.refuse("headers", reason);
        return Vec::new();
    }
    let mut headers: Vec<(String, String)> = Vec::with_capacity(found);
    for entry in map.entries() {
        let name = entry.key.to_ascii_lowercase();
        let problem = match &entry.value.value {
            Value::String(value) if !is_header_value(value) => {
                "is no header's value: no control characters, and at most 16384 bytes"
            }
            Value::String(_) if !is_header_name(&name) => {
                "is no header's name: only letters, digits and -_.!#$%&'*+^`|~"
            }
            Value::String(_) if FRAMING_HEADERS.contains(&name.as_str()) => {
                "is Envoy's to set: leave it out"
            }
            Value::String(_) if headers.iter().any(|(other, _)| *other == name) => {
                "stands twice, in different case: leave one out"
            }
            Value::String(value) => {
                headers.push((name, value.clone()));
                continue;
            }
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Map(_) => "is not text: put it in quotes",
        };
        let field = format!("headers.{}", entry.key);
        response.refuse_at(entry.position, &field, Reason::Malformed(problem.to_string()));
    }
    headers
}

/// Headers that say where a message ends: another value than Envoy's own would break the reply.
const FRAMING_HEADERS: &[&str] = &["content-length", "transfer-encoding", "connection"];

/// A token of RFC 9110, section 5.6.2, in lower case.
pub(crate) fn is_header_name(name: &str) -> bool {
    (1..=256).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte))
}

fn is_header_value(value: &str) -> bool {
    value.len() <= RESPONSE_BYTES_MAX && value.chars().all(|c| !c.is_control())
}

/// The rule's id, or else its resource, for errors.
fn name_of(node: &Node) -> Option<String> {
    let Value::Map(map) = &node.value else {
        return None;
    };
    ["id", "resource"].iter().find_map(|field| match &map.get(field)?.value {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rule::{
        error::REFUSALS_MAX,
        node::{Entry, Map},
    };

    fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
        let entries = entries.map(|(key, value)| Entry {
            key: key.into(),
            position: None,
            value: Node::new(value),
        });
        Value::Map(Map::from_entries(entries.to_vec()).unwrap())
    }

    fn text(text: &str) -> Value {
        Value::String(text.into())
    }

    fn compile(rules: Vec<Value>) -> Result<Vec<Rule>, Refusals> {
        let rules = rules.into_iter().map(Node::new).collect();
        flow_rules_from_golang(&Node::new(Value::List(rules)), &Settings::DEFAULT)
    }

    fn rule(resource: &str) -> Value {
        map([("resource", text(resource)), ("threshold", Value::Int(1))])
    }

    #[test]
    fn a_rule_that_says_no_more_than_it_must_has_sentinel_s_defaults() {
        let rules = compile(Vec::from([rule("GET:/hello")])).unwrap();
        let expected = FlowRule {
            id: "flow:GET:/hello".into(),
            resource: "GET:/hello".into(),
            threshold: 1.0,
            stat_interval_ms: 1_000,
            common: Common::default(),
        };
        assert_eq!(rules, [Rule::Flow(expected)]);
    }

    #[test]
    fn an_id_says_what_the_rule_counts() {
        assert_eq!(default_flow_id("GET:/hello", 1_000), "flow:GET:/hello");
        assert_eq!(default_flow_id("GET:/hello", 500), "flow:GET:/hello:500ms");
    }

    #[test]
    fn an_id_that_would_not_be_one_is_shortened_and_stays_the_same_for_ever() {
        assert_eq!(
            default_flow_id("GET:/users/{id}", 1_000),
            "flow:GET:/users/_id_:b1993b3bea1c28fc"
        );
        let long = default_flow_id(&"/x".repeat(100), 1_000);
        assert_eq!(long, "flow:/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x:b7b26b92b7b2be16");
    }

    #[test]
    fn what_is_over_rules_max_refuses_the_set() {
        let settings = Settings { rules_max: 2, ..Settings::DEFAULT };
        let rules = ["a", "b", "c"].map(|name| Node::new(rule(name)));
        let refusals =
            flow_rules_from_golang(&Node::new(Value::List(rules.to_vec())), &settings).unwrap_err();
        assert_eq!(
            refusals.to_string(),
            "`rules` has 3 entries, but may have at most 2 (rulesMax)"
        );
    }

    #[test]
    fn a_thousand_errors_are_a_hundred_lines_and_one() {
        let refusals = compile((0..1_000).map(|_| rule("")).collect()).unwrap_err();
        assert_eq!(refusals.lines().count(), REFUSALS_MAX + 1);
        assert_eq!(refusals.lines().last().unwrap(), "… and 900 more");
    }

    #[test]
    fn a_header_that_would_break_the_reply_is_refused() {
        let with = |name: &str, value: &str| {
            let response = map([("headers", map([(name, text(value))]))]);
            compile(Vec::from([map([
                ("resource", text("a")),
                ("threshold", Value::Int(1)),
                ("response", response),
            ])]))
        };
        assert!(with("X-Reason", "too many").is_ok());
        for (name, value) in [
            ("x\r\ny", "v"),
            (":status", "200"),
            ("", "v"),
            ("x y", "v"),
            ("x", "a\r\nb: c"),
            ("Content-Length", "0"),
            ("transfer-encoding", "chunked"),
        ] {
            assert!(with(name, value).is_err(), "{name}: {value}");
        }
    }

    /// A tree of the names and values that rule documents are made of, and of others.
    fn any_node() -> impl Strategy<Value = Node> {
        let words: Vec<&'static str> = DOCUMENT_FIELDS
            .iter()
            .chain(FLOW_FIELDS)
            .chain(RESPONSE_FIELDS)
            .chain(KINDS_RUN)
            .chain(&[API_VERSION, "rules", "*", "", "Direct", "Throttling", "pass", "a/{b}"])
            .copied()
            .collect();
        let word = proptest::sample::select(words.clone());
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1..3_i64).prop_map(Value::Int),
            any::<f64>().prop_map(Value::Float),
            word.prop_map(text),
            ".{0,8}".prop_map(Value::String),
        ];
        let key =
            prop_oneof![9 => proptest::sample::select(words).prop_map(String::from), 1 => ".{0,8}"];
        leaf.prop_map(Node::new).prop_recursive(5, 64, 12, move |inner| {
            let entries = proptest::collection::vec((key.clone(), inner.clone()), 0..12);
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Value::List),
                entries.prop_map(|entries| {
                    let entries = entries.into_iter().map(|(key, value)| Entry {
                        key,
                        position: None,
                        value,
                    });
                    Value::Map(Map::from_entries(entries.collect()).unwrap_or_default())
                }),
            ]
            .prop_map(Node::new)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_tree_is_rules_or_refusals(inner in proptest::collection::vec(any_node(), 0..4), bare: bool) {
            let document = map([("apiVersion", text(API_VERSION)), ("kind", text("FlowRules")), ("spec", Value::Null)]);
            let Value::Map(document) = document else { unreachable!() };
            let mut entries = document.entries().to_vec();
            entries[2].value = Node::new(map([("rules", Value::List(inner.clone()))]));
            let whole = Node::new(Value::Map(Map::from_entries(entries).unwrap()));
            let documents = if bare { inner } else { Vec::from([whole]) };
            let sources = [Source { name: "any", documents: &documents }];
            match compile_set(&sources, &Settings::DEFAULT) {
                Ok(rules) => prop_assert!(rules.iter().all(|rule| is_id(rule.id()) && !rule.resource().is_empty())),
                Err(refusals) => prop_assert!(refusals.lines().all(|line| !line.contains('\n'))),
            }
        }

        #[test]
        fn every_default_id_is_an_id(resource in ".{1,100}", interval in 1..u32::MAX) {
            prop_assert!(is_id(&default_flow_id(&resource, interval)));
        }

        #[test]
        fn what_counts_differently_has_another_id(a in "[a-c{}]{1,60}", b in "[a-c{}]{1,60}") {
            prop_assert_eq!(default_flow_id(&a, 1_000) == default_flow_id(&b, 1_000), a == b);
        }
    }
}
