//! OpenSergo's fault tolerance, mapped onto Sentinel's rules.
//!
//! A strategy by itself does nothing: a `FaultToleranceRule` binds strategies to resources, wherever in the set they
//! stand. So all documents are read first and bound at the end. Source: opensergo-specification,
//! `specification/zh-Hans/fault-tolerance.md` (semantics 1.11). Where the specification's text, its samples and its
//! Kubernetes schema disagree, what any of them allows is read.
//!
//! `limitMode` may be any of the three: a limit always holds for all workers of one Envoy together, as the
//! reference implementation too heeds it for one process only.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{
    config::Settings,
    decimal,
    decimal::whole_number,
    rule::{
        BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule, IsolationRule, LimitApp,
        Response, Rule, SystemMetric, SystemRule, Target, TokenCalculate,
        compile::{
            Context, Form, Origin, RESPONSE_HEADERS_MAX,
            common::{HEADER_NAME, add_header, body, name, status},
            ids::{head_of, id_of},
            kinds::{SECONDS, is_text, positive},
        },
        error::{Reason, Refusal, Refusals, Site},
        node::{Node, Position, Value},
        read::{Choices, Fields},
        shape::Shape,
    },
};

/// The `apiVersion` of OpenSergo's documents.
pub const OPENSERGO_VERSION: &str = "fault-tolerance.opensergo.io/v1alpha1";

/// OpenSergo's kinds of documents, and the fields of each one's `spec`.
pub static OPENSERGO_KINDS: &[(&str, &[&str])] = &[
    (
        "RateLimitStrategy",
        &["metricType", "limitMode", "threshold", "statDuration", "statDurationSeconds"],
    ),
    ("ThrottlingStrategy", &["minIntervalOfRequests", "queueTimeout"]),
    ("ConcurrencyLimitStrategy", &["maxConcurrency", "limitMode"]),
    (
        "CircuitBreakerStrategy",
        &[
            "strategy",
            "triggerRatio",
            "statDuration",
            "recoveryTimeout",
            "minRequestAmount",
            "slowConditions",
            "errorConditions",
        ],
    ),
    ("AdaptiveOverloadProtectionStrategy", &["metricType", "triggerThreshold", "adaptiveStrategy"]),
    ("HttpRequestFallbackAction", &["behavior", "behaviorDesc"]),
    ("FaultToleranceRule", &["selector", "targets", "strategies", "fallbackAction"]),
];

/// The most `targets` and `strategies` of a rule; one with more is refused.
const BOUND_MAX: usize = 1_000;

static RATE_METRIC: Choices = &[("RequestAmount", None)];
static LIMIT_MODE: Choices = &[("Local", None), ("Global", None), ("GlobalToLocal", None)];
static BREAKER_STRATEGY: Choices = &[("SlowRequestRatio", None), ("ErrorRequestRatio", None)];
static SYSTEM_METRIC: Choices = &[("CpuPercentage", None)];
static ADAPTIVE_STRATEGY: Choices = &[("BBR", None), ("NONE", None)];
static BEHAVIOR: Choices = &[("ReturnProvidedResponse", None)];
static STRATEGY_KINDS: Choices = &[
    ("RateLimitStrategy", None),
    ("ThrottlingStrategy", None),
    ("ConcurrencyLimitStrategy", None),
    ("CircuitBreakerStrategy", None),
    ("AdaptiveOverloadProtectionStrategy", None),
];

/// What was read of a set's documents.
#[derive(Default)]
pub(super) struct Documents<'a> {
    /// By kind and name, where each document was read.
    known: Vec<(&'static str, String, Origin<'a>)>,
    strategies: Vec<Strategy>,
    fallbacks: Vec<(String, Response)>,
    bindings: Vec<Binding<'a>>,
}

struct Strategy {
    kind: &'static str,
    name: String,
    /// What it asks; `None` if it was refused.
    terms: Option<Terms>,
}

/// What a strategy asks of the resources that it is bound to.
#[derive(Clone, Copy)]
enum Terms {
    Rate {
        threshold: f64,
        stat_interval_ms: u32,
    },
    Pace {
        interval_ms: u32,
        max_queueing_ms: u32,
    },
    Concurrency(u32),
    Breaker {
        strategy: BreakerStrategy,
        stat_interval_ms: u32,
        retry_timeout_ms: u32,
        min_request_amount: u32,
    },
    Cpu {
        trigger: f64,
        bbr: bool,
    },
}

struct Binding<'a> {
    origin: Origin<'a>,
    site: Site,
    name: String,
    targets: Vec<String>,
    strategies: Vec<Reference>,
    fallback: Option<Reference>,
}

/// The name of another document.
struct Reference {
    field: String,
    position: Option<Position>,
    name: String,
    kind: Option<&'static str>,
}

/// A rule that binds a strategy to a resource.
pub(super) struct Bound<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) rule: Rule,
    pub(super) id: String,
    pub(super) site: Site,
}

impl<'a> Documents<'a> {
    /// Reads a document of one of [`OPENSERGO_KINDS`].
    pub(super) fn add(
        &mut self,
        kind: &'static str,
        document: &mut Fields<'_, '_>,
        site: &Site,
        settings: &Settings,
        origin: Origin<'a>,
    ) {
        let metadata = document.node("metadata");
        let mut name = "";
        document.needs("metadata");
        if let Some(mut metadata) = document.inside_any("metadata") {
            metadata.require("name");
            name = metadata.text_of("name", || Shape::SOME_TEXT).unwrap_or_default();
            if name.is_empty() && metadata.node("name").is_some_and(is_text) {
                metadata.refuse("name", Reason::Missing);
            }
        } else if metadata.is_none() {
            document.refuse("metadata.name", Reason::Missing);
        }
        let name = name.to_string();
        let same = self.known.iter().find(|known| known.0 == kind && known.1 == name);
        if let Some((.., first)) = same.filter(|_| !name.is_empty()) {
            if origin.yields_to(*first) {
                return;
            }
            let sentence = format!("is \"{name}\", as that of another {kind}; names must differ");
            document.refuse_at(
                metadata.and_then(|node| node.position),
                "metadata.name",
                Reason::Malformed(sentence),
            );
        }
        self.known.push((kind, name.clone(), origin));
        let known =
            OPENSERGO_KINDS.iter().find(|known| known.0 == kind).map_or(&[][..], |known| known.1);
        let Some(mut spec) = document.inside("spec", known) else { return };
        let spec = &mut spec;
        let terms = match kind {
            "FaultToleranceRule" => {
                let binding = binding(spec, name, site, settings, origin);
                self.bindings.push(binding);
                return;
            }
            "HttpRequestFallbackAction" => {
                let response = fallback(spec);
                self.fallbacks.push((name, response));
                return;
            }
            "RateLimitStrategy" => rate_limit(spec),
            "ThrottlingStrategy" => throttling(spec),
            "ConcurrencyLimitStrategy" => concurrency_limit(spec),
            "CircuitBreakerStrategy" => circuit_breaker(spec),
            _ => overload_protection(spec),
        };
        self.strategies.push(Strategy { kind, name, terms });
    }

    /// The rules that all documents together mean.
    pub(super) fn rules(self, refusals: &mut Refusals) -> Vec<Bound<'a>> {
        let mut rules = Vec::new();
        for binding in &self.bindings {
            let mut response = None;
            if let Some(reference) = &binding.fallback {
                match self.fallbacks.iter().find(|known| known.0 == reference.name) {
                    Some((_, known)) => response = Some(known.clone()),
                    None => reference.refuse(
                        binding,
                        "the name of an HttpRequestFallbackAction of this set",
                        refusals,
                    ),
                }
            }
            for reference in &binding.strategies {
                let is_meant = |known: &&Strategy| {
                    known.name == reference.name
                        && reference.kind.is_none_or(|kind| kind == known.kind)
                };
                let mut meant = self.strategies.iter().filter(is_meant);
                let strategy = match (meant.next(), meant.next()) {
                    (Some(strategy), None) => strategy,
                    (None, _) => {
                        reference.refuse(binding, "the name of a strategy of this set", refusals);
                        continue;
                    }
                    (Some(_), Some(_)) => {
                        reference.refuse(
                            binding,
                            "the name of one strategy: say its `kind` too",
                            refusals,
                        );
                        continue;
                    }
                };
                let Some(terms) = strategy.terms else { continue };
                // What protects the whole proxy has no resource.
                let is_whole = matches!(terms, Terms::Cpu { .. });
                let targets = binding.targets.iter().take(if is_whole { 1 } else { usize::MAX });
                for target in targets {
                    let mut rule = terms.rule(target);
                    head_of(&mut rule).1.response.clone_from(&response);
                    let target = if is_whole { "" } else { target };
                    let words = [strategy.name.clone(), strategy.kind.to_string()];
                    let words = if reference.kind.is_some() { &words[..] } else { &words[..1] };
                    rules.push(Bound {
                        origin: binding.origin,
                        rule,
                        id: id_of(&binding.name, target, words),
                        site: binding.site.clone(),
                    });
                }
            }
        }
        rules
    }
}

impl Reference {
    fn refuse(&self, binding: &Binding<'_>, allowed: &str, refusals: &mut Refusals) {
        let found = Node::new(Value::String(self.name.clone())).describe();
        let reason = Reason::Mismatch { found, allowed: allowed.to_string() };
        refusals.push(Refusal {
            site: binding.site.at(self.position),
            field: self.field.clone(),
            reason,
        });
    }
}

impl Terms {
    /// The rule for a resource, but for its id.
    fn rule(self, resource: &str) -> Rule {
        let id = String::new();
        let target = Target::Resource(resource.to_string());
        let common = Common::default();
        let (threshold, stat_interval_ms, control) = match self {
            Self::Rate { threshold, stat_interval_ms } => {
                (threshold, stat_interval_ms, Control::Reject)
            }
            // One request in each interval: exactly, where the reference rounds to requests a second.
            Self::Pace { interval_ms, max_queueing_ms } => {
                (1.0, interval_ms, Control::Throttling { max_queueing_ms })
            }
            Self::Concurrency(threshold) => {
                return Rule::Isolation(IsolationRule { id, target, threshold, common });
            }
            Self::Cpu { trigger, bbr } => {
                return Rule::System(SystemRule {
                    id,
                    metric: SystemMetric::CpuUsage { bbr },
                    trigger,
                    common,
                });
            }
            Self::Breaker { strategy, stat_interval_ms, retry_timeout_ms, min_request_amount } => {
                return Rule::CircuitBreaker(CircuitBreakerRule {
                    id,
                    target,
                    strategy,
                    retry_timeout_ms,
                    min_request_amount: u64::from(min_request_amount),
                    stat_interval_ms,
                    buckets: 1,
                    probe_num: 1,
                    error_statuses: None,
                    grpc_error_statuses: None,
                    close_live_connections: false,
                    common,
                });
            }
        };
        Rule::Flow(FlowRule {
            id,
            target,
            limit_app: LimitApp::Default,
            threshold,
            stat_interval_ms,
            calculate: TokenCalculate::Direct,
            control,
            ref_resource: None,
            common,
        })
    }
}

fn rate_limit(spec: &mut Fields<'_, '_>) -> Option<Terms> {
    spec.require("metricType");
    spec.choice("metricType", RATE_METRIC)?;
    spec.choice("limitMode", LIMIT_MODE);
    spec.require("threshold");
    let threshold = spec.number("threshold");
    let seconds = spec.whole_u32("statDurationSeconds", SECONDS);
    let has_seconds = spec.node("statDurationSeconds").is_some();
    let duration = optional_duration_ms(spec, "statDuration", 1);
    let interval_ms = match (spec.node("statDuration").is_some(), has_seconds) {
        (true, true) => {
            spec.object(
                "statDurationSeconds",
                "stands beside `statDuration`: leave one of them out",
            );
            None
        }
        (true, false) => duration,
        (false, _) => {
            // Or the other one, which is why neither is required by itself.
            if !has_seconds {
                spec.refuse("statDurationSeconds", Reason::Missing);
            }
            seconds.map(|seconds| seconds * 1_000)
        }
    };
    Some(Terms::Rate { threshold: threshold?, stat_interval_ms: interval_ms? })
}

fn throttling(spec: &mut Fields<'_, '_>) -> Option<Terms> {
    let interval_ms = duration_ms(spec, "minIntervalOfRequests", 1);
    let max_queueing_ms = duration_ms(spec, "queueTimeout", 0);
    Some(Terms::Pace { interval_ms: interval_ms?, max_queueing_ms: max_queueing_ms? })
}

fn concurrency_limit(spec: &mut Fields<'_, '_>) -> Option<Terms> {
    spec.choice("limitMode", LIMIT_MODE);
    Some(Terms::Concurrency(positive(spec, "maxConcurrency")))
}

fn circuit_breaker(spec: &mut Fields<'_, '_>) -> Option<Terms> {
    spec.require("strategy");
    let strategy = spec.choice("strategy", BREAKER_STRATEGY);
    let ratio = percent(spec, "triggerRatio");
    let stat_interval_ms = duration_ms(spec, "statDuration", 1);
    let retry_timeout_ms = duration_ms(spec, "recoveryTimeout", 1);
    let slow = strategy == Some("SlowRequestRatio");
    if slow {
        spec.require("slowConditions");
    }
    let mut max_allowed_rt_ms = None;
    if let Some(mut conditions) = spec.inside("slowConditions", &["maxAllowedRt"])
        && (slow || conditions.node("maxAllowedRt").is_some())
    {
        max_allowed_rt_ms = duration_ms(&mut conditions, "maxAllowedRt", 0);
    }
    if let Some(mut conditions) = spec.inside("errorConditions", &["errorType"]) {
        conditions.text("errorType");
    }
    // Java's default.
    let min_request_amount = spec.whole_u32("minRequestAmount", 0..=u32::MAX).unwrap_or(5);
    let strategy = match strategy? {
        "SlowRequestRatio" => BreakerStrategy::SlowRequestRatio {
            max_allowed_rt_ms: u64::from(max_allowed_rt_ms?),
            ratio: ratio?,
        },
        _ => BreakerStrategy::ErrorRatio(ratio?),
    };
    Some(Terms::Breaker {
        strategy,
        stat_interval_ms: stat_interval_ms?,
        retry_timeout_ms: retry_timeout_ms?,
        min_request_amount,
    })
}

fn overload_protection(spec: &mut Fields<'_, '_>) -> Option<Terms> {
    spec.require("metricType");
    let metric = spec.choice("metricType", SYSTEM_METRIC);
    let trigger = percent(spec, "triggerThreshold");
    let bbr = spec.choice("adaptiveStrategy", ADAPTIVE_STRATEGY) == Some("BBR");
    metric?;
    Some(Terms::Cpu { trigger: trigger?, bbr })
}

fn fallback(spec: &mut Fields<'_, '_>) -> Response {
    let mut response = Response { status: None, headers: Vec::new(), body: None };
    spec.require("behavior");
    spec.choice("behavior", BEHAVIOR);
    let known = &["responseStatusCode", "responseContentBody", "responseAdditionalHeaders"];
    let Some(mut desc) = spec.inside("behaviorDesc", known) else { return response };
    response.status = status(&mut desc, "responseStatusCode");
    response.body = body(&mut desc, "responseContentBody");
    const HEADERS: &str = "responseAdditionalHeaders";
    for (index, node) in desc.list_of(HEADERS, RESPONSE_HEADERS_MAX).iter().enumerate() {
        let Some(mut header) = desc.item(HEADERS, index, node, &["key", "value"]) else { continue };
        header.require("key");
        header.require("value");
        header.takes("value", || Shape::TEXT);
        if let (Some(key), Some(value)) =
            (header.text_of("key", || Shape::text(HEADER_NAME)), header.node("value"))
            && let Some(problem) = add_header(&mut response.headers, key, value)
        {
            header.object("key", problem);
        }
    }
    response
}

fn binding<'a>(
    spec: &mut Fields<'_, '_>,
    rule: String,
    site: &Site,
    settings: &Settings,
    origin: Origin<'a>,
) -> Binding<'a> {
    let context = Context { settings, form: Form::Document };
    let mut targets: Vec<String> = Vec::new();
    spec.require("targets");
    for (index, node) in spec.list_of("targets", BOUND_MAX).iter().enumerate() {
        let Some(mut target) = spec.item("targets", index, node, &["targetResourceName"]) else {
            continue;
        };
        let Some(name) = name(&mut target, "targetResourceName", "a resource's name", &context)
        else {
            continue;
        };
        if name == "*" {
            target.mismatch("targetResourceName", "one resource's name");
        } else if targets.iter().any(|other| other == name) {
            target.object("targetResourceName", "stands twice: leave one out");
        } else {
            targets.push(name.to_string());
        }
    }
    let mut strategies = Vec::new();
    spec.require("strategies");
    for (index, node) in spec.list_of("strategies", BOUND_MAX).iter().enumerate() {
        let Some(mut strategy) = spec.item("strategies", index, node, &["name", "kind"]) else {
            continue;
        };
        strategy.require("name");
        let kind = strategy.choice("kind", STRATEGY_KINDS);
        let field = format!("spec.strategies[{index}].name");
        strategies.extend(reference(&mut strategy, "name", field, kind));
    }
    let fallback = reference(spec, "fallbackAction", "spec.fallbackAction".to_string(), None);
    Binding { origin, site: site.clone(), name: rule, targets, strategies, fallback }
}

fn reference(
    fields: &mut Fields<'_, '_>,
    name: &str,
    field: String,
    kind: Option<&'static str>,
) -> Option<Reference> {
    let position = fields.node(name).and_then(|node| node.position);
    let name = fields.text(name)?.to_string();
    Some(Reference { field, position, name, kind })
}

/// A time such as `500ms`, in milliseconds.
fn duration_ms(fields: &mut Fields<'_, '_>, field: &str, least: u32) -> Option<u32> {
    fields.require(field);
    optional_duration_ms(fields, field, least)
}

fn optional_duration_ms(fields: &mut Fields<'_, '_>, field: &str, least: u32) -> Option<u32> {
    let text = fields
        .text_of(field, || Shape::text(if least == 0 { DURATION } else { POSITIVE_DURATION }))?;
    let parsed = parse_duration_ms(text).filter(|ms| *ms >= least);
    if parsed.is_none() {
        let allowed = if least == 0 {
            "a time such as \"500ms\", \"30s\", \"5min\", \"1h\" or \"1d\""
        } else {
            "a time of 1ms or more such as \"500ms\", \"30s\", \"5min\", \"1h\" or \"1d\""
        };
        fields.mismatch(field, allowed);
    }
    parsed
}

/// Such a time as a regular expression, and one of 1 ms or more.
const DURATION: &str = "^[0-9]+(ms|s|m|min|minute|h|d)$";
const POSITIVE_DURATION: &str = "^0*[1-9][0-9]*(ms|s|m|min|minute|h|d)$";

fn parse_duration_ms(text: &str) -> Option<u32> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit_ms: u32 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" | "minute" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    whole_number::<u32>(number)?.checked_mul(unit_ms)
}

/// A number and a percent sign as a regular expression.
const PERCENT: &str = r"^\s*[+-]?[0-9.]+([eE][+-]?[0-9]+)?\s*%$";

/// `60%` as 0.6.
fn percent(fields: &mut Fields<'_, '_>, field: &str) -> Option<f64> {
    fields.require(field);
    let text = fields.text_of(field, || Shape::text(PERCENT))?;
    let number = text.strip_suffix('%').and_then(|number| decimal::parse(number.trim()));
    let percent = number.filter(|percent| (0.0..=100.0).contains(percent));
    if percent.is_none() {
        fields.mismatch(field, "a percentage such as \"60%\", from 0% to 100%");
    }
    percent.map(|percent| percent / 100.0)
}
