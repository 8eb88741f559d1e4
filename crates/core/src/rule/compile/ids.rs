//! The names of rules.
//!
//! A rule that has no id gets one that is derived from what it counts: so it stays the same wherever the rule
//! stands, in another process too, and changes when the rule begins to count something else.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::{
    param::{MatchStrategy, Param},
    rule::{
        BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule, HotspotMetric, HotspotRule,
        LimitApp, Rule, SystemMetric, Target, Unit,
    },
};

/// The longest `id`, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// Whether `id` is 1 to 64 of `A-Za-z0-9._:/-`.
pub fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.chars().all(is_id_char)
}

/// An id or empty text, as a regular expression.
pub(super) const ID_OR_NONE: &str = "^[A-Za-z0-9._:/-]{0,64}$";

fn is_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-')
}

/// The id of a rule that has none: `flow:GET:/hello`, `flow:GET:/hello:500ms`, `breaker:GET:/pay:error_ratio`.
///
/// Rules that count differently have different ids. Where the words do not fit an id, or could be read as those
/// of another rule, a hash of all of them tells apart what the shortened ones do not.
pub fn default_id(rule: &Rule) -> String {
    let mut words = Vec::new();
    let (kind, name) = match rule {
        Rule::Authority(rule) => {
            words.push(if rule.white_list { "white" } else { "black" }.to_string());
            ("authority", target_words(&rule.target, &mut words))
        }
        Rule::System(rule) => {
            let name = match rule.metric {
                SystemMetric::InboundQps => "inbound_qps",
                SystemMetric::Concurrency => "concurrency",
                SystemMetric::AvgRt => "avg_rt",
                SystemMetric::CpuUsage { bbr: false } => "cpu_usage",
                SystemMetric::CpuUsage { bbr: true } => "cpu_usage.bbr",
            };
            ("system", name)
        }
        Rule::Flow(rule) => ("flow", flow_words(rule, &mut words)),
        Rule::Isolation(rule) => ("isolation", target_words(&rule.target, &mut words)),
        Rule::Gateway(rule) => ("gateway", hotspot_words(rule, &mut words)),
        Rule::Hotspot(rule) => ("hotspot", hotspot_words(rule, &mut words)),
        Rule::CircuitBreaker(rule) => ("breaker", breaker_words(rule, &mut words)),
    };
    id_of(kind, name, &words)
}

fn flow_words<'a>(rule: &'a FlowRule, words: &mut Vec<String>) -> &'a str {
    let name = target_words(&rule.target, words);
    interval_word(u64::from(rule.stat_interval_ms), words);
    if let Control::Throttling { .. } = rule.control {
        words.push("throttling".to_string());
    }
    match &rule.limit_app {
        LimitApp::Default => {}
        LimitApp::Other => words.push("other".to_string()),
        LimitApp::Origin(origin) => words.push(word("origin", origin)),
    }
    if let Some(resource) = &rule.ref_resource {
        words.push(word("ref", resource));
    }
    unit_word(&rule.common, words);
    name
}

fn hotspot_words<'a>(rule: &'a HotspotRule, words: &mut Vec<String>) -> &'a str {
    let name = target_words(&rule.target, words);
    if let Some(pick) = &rule.param {
        words.extend(pick.key.as_ref().map(|param| match param {
            Param::Header(name) => word("header", name),
            Param::Query(name) => word("query", name),
            Param::Cookie(name) => word("cookie", name),
            Param::ClientIp => "client_ip".to_string(),
            Param::Sni => "sni".to_string(),
            Param::FilterChain => "filter_chain".to_string(),
            Param::PathSegment(number) => format!("path_segment.{number}"),
            Param::Attachment(name) => word("attachment", name),
        }));
        words.extend(pick.index.map(|index| format!("arg.{index}")));
        words.extend(pick.matching.as_ref().map(|matching| {
            let strategy = match matching.strategy {
                MatchStrategy::Exact => "exact",
                MatchStrategy::Prefix => "prefix",
                MatchStrategy::Regex => "matching",
                MatchStrategy::Contains => "contains",
            };
            word(strategy, &matching.pattern)
        }));
    }
    match rule.metric {
        HotspotMetric::Concurrency => words.push("concurrency".to_string()),
        HotspotMetric::Reject { .. } => {}
        HotspotMetric::Throttling { .. } => words.push("throttling".to_string()),
    }
    if rule.metric != HotspotMetric::Concurrency {
        interval_word(rule.metric.duration_ms(), words);
    }
    unit_word(&rule.common, words);
    name
}

fn breaker_words<'a>(rule: &'a CircuitBreakerRule, words: &mut Vec<String>) -> &'a str {
    let name = target_words(&rule.target, words);
    match rule.strategy {
        BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms, .. } => {
            words.push(format!("slow_ratio.{max_allowed_rt_ms}"));
        }
        BreakerStrategy::ErrorRatio(_) => words.push("error_ratio".to_string()),
        BreakerStrategy::ErrorCount(_) => words.push("error_count".to_string()),
    }
    interval_word(u64::from(rule.stat_interval_ms), words);
    if rule.buckets != 1 {
        words.push(format!("buckets.{}", rule.buckets));
    }
    if let Some(statuses) = &rule.error_statuses {
        let texts = statuses.iter().map(|(from, to)| format!(".{from}-{to}"));
        words.push(format!("statuses{}", texts.collect::<String>()));
    }
    if let Some(statuses) = &rule.grpc_error_statuses {
        let texts = statuses.iter().map(|status| format!(".{status}"));
        words.push(format!("grpc{}", texts.collect::<String>()));
    }
    name
}

/// The name of what is governed; a word says so where it is not a resource's.
fn target_words<'a>(target: &'a Target, words: &mut Vec<String>) -> &'a str {
    words.extend(match target {
        Target::Resource(_) => None,
        Target::Pattern(_) => Some("regex".to_string()),
        Target::Default => Some("default".to_string()),
        Target::Group(_) => Some("group".to_string()),
    });
    if let Target::Default = target { "" } else { target.name() }
}

fn unit_word(common: &Common, words: &mut Vec<String>) {
    if common.unit == Unit::Message {
        words.push("message".to_string());
    }
}

fn interval_word(interval_ms: u64, words: &mut Vec<String>) {
    if interval_ms != 1_000 {
        words.push(format!("{interval_ms}ms"));
    }
}

fn word(what: &str, name: &str) -> String {
    format!("{what}.{name}")
}

/// `kind:name:word:word`, or what of it fits an id and a hash of all of it.
pub(super) fn id_of(kind: &str, name: &str, words: &[String]) -> String {
    const HASH_BYTES: usize = 16;

    let mut whole = format!("{kind}:{name}");
    for word in words {
        whole.push(':');
        whole.push_str(word);
    }
    // A name that ends like a rule's words would make two rules one.
    let is_clear = !name.split(':').skip(1).any(is_like_a_word)
        && !words.iter().any(|word| word.contains(':'));
    if is_clear && is_id(&whole) {
        return whole;
    }
    let mut hasher = SipHasher13::new();
    hasher.write(whole.as_bytes());
    if !is_clear {
        for part in [name].into_iter().chain(words.iter().map(String::as_str)) {
            hasher.write_u8(0xff);
            hasher.write(part.as_bytes());
        }
    }
    let hash = hasher.finish();
    let mut id: String = whole
        .chars()
        .map(|c| if is_id_char(c) { c } else { '_' })
        .take(ID_BYTES_MAX - HASH_BYTES - 1)
        .collect();
    id.push_str(&format!(":{hash:016x}"));
    id
}

/// Whether a part of a name looks like one of the words above, or like a hash.
fn is_like_a_word(part: &str) -> bool {
    const WORDS: &[&str] = &[
        "white",
        "black",
        "regex",
        "default",
        "group",
        "throttling",
        "other",
        "origin",
        "ref",
        "header",
        "query",
        "cookie",
        "client_ip",
        "path_segment",
        "attachment",
        "arg",
        "exact",
        "prefix",
        "matching",
        "contains",
        "concurrency",
        "slow_ratio",
        "error_ratio",
        "error_count",
        "buckets",
        "statuses",
        "grpc",
        "message",
    ];

    let first = part.split('.').next().unwrap_or(part);
    let is_interval = part.strip_suffix("ms").is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    let is_hash = part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_interval || is_hash || WORDS.contains(&first)
}

/// A rule's id and what every rule can say.
pub(super) fn head_of(rule: &mut Rule) -> (&mut String, &mut Common) {
    match rule {
        Rule::Authority(rule) => (&mut rule.id, &mut rule.common),
        Rule::System(rule) => (&mut rule.id, &mut rule.common),
        Rule::Flow(rule) => (&mut rule.id, &mut rule.common),
        Rule::Isolation(rule) => (&mut rule.id, &mut rule.common),
        Rule::Gateway(rule) | Rule::Hotspot(rule) => (&mut rule.id, &mut rule.common),
        Rule::CircuitBreaker(rule) => (&mut rule.id, &mut rule.common),
    }
}
