//! What reads bytes that somebody else wrote, and what must hold of each.
//!
//! A target takes any bytes. That it does not panic, ends, and asks for no more memory than the input is worth is judged
//! outside, for all of them alike; what a target says itself is the rest.

mod documents;
mod requests;
mod wire;

/// Something that reads bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As a command line names it, and the folder of its corpus.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Reads; an error is a broken promise.
    pub judge: fn(&[u8]) -> Result<(), String>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("frame", "counts from a worker to the service", wire::frame),
    target("decisions", "what the service has decided", wire::decisions),
    target("rule-set", "the rule set in force", wire::rule_set),
    target("ledger", "ledgers and sets of them", wire::ledger),
    target("shared", "every other value of shared data", wire::shared),
    target(
        "rules",
        "rule documents in YAML and JSON: ours, CRDs, lists of sentinel-golang and of Java, OpenSergo",
        documents::rules,
    ),
    target(
        "service",
        "the service's configuration: text, or a Struct as protobuf",
        documents::service,
    ),
    target(
        "filter",
        "the filter's configuration: text, or a Struct as protobuf",
        documents::filter,
    ),
    target("index", "the list of rule files", documents::index),
    target("request", "paths, query strings, cookies, addresses, templates", requests::request),
    target(
        "pattern",
        "regular expressions and ant-style patterns, with the names they are tried on",
        requests::pattern,
    ),
    target("network", "addresses and networks", requests::network),
    target("messages", "messages of gRPC and frames of WebSocket", requests::messages),
    target("number", "numbers with decimals", requests::number),
    target("reply", "names in replies, metrics and log lines", requests::reply),
];

const fn target(
    name: &'static str,
    about: &'static str,
    judge: fn(&[u8]) -> Result<(), String>,
) -> Target {
    Target { name, about, judge }
}

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}

/// An error if what should hold does not.
fn holds(is_so: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(otherwise()) }
}
