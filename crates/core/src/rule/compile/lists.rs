//! Which kind of rules a bare list holds, as sentinel-golang's data sources write it.
//!
//! The list itself does not say so. Whoever knows does: the operator, the file's name, or fields that only one kind
//! has. Where none of them does, nothing is guessed: `resource` and `threshold` are at most so many requests a second
//! in one kind and at most so many at a time in another.

use alloc::{format, string::String, vec::Vec};

use crate::rule::{
    compile::{KINDS, Kind, Source},
    node::{Node, Value},
    read::one_of,
};

/// sentinel-golang's kind of lists that is called `name`.
pub(super) fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| !kind.list.is_empty() && kind.list == name)
}

/// The kind of `rules`, a document of `source`, or why it is not known and what would do.
pub(super) fn kind_of(rules: &[Node], source: &Source<'_>) -> Result<&'static Kind, String> {
    if let Some(name) = source.list {
        return kind(name).ok_or_else(|| {
            let all = lists(&kinds(&|_| true));
            format!("a list of rules that is said to be `{name}`, but must be {all}")
        });
    }
    if let [kind] = kinds(&|kind| names(source.name, kind.list))[..] {
        return Ok(kind);
    }
    let fitting = kinds(&|kind| rules.iter().all(|rule| tells(rule, kind)));
    let why = match fitting[..] {
        [kind] => return Ok(kind),
        [] => String::from("of which no kind has all the fields"),
        _ => format!("which could be {}", lists(&fitting)),
    };
    Err(format!(
        "a list of rules, {why}: name the file after its kind, such as `flow.json`, or say `kind: flow` for the source; \
         or write a document with `apiVersion`, `kind` and `spec`"
    ))
}

/// Those of sentinel-golang's kinds of which `is_it` is true.
fn kinds(is_it: &dyn Fn(&Kind) -> bool) -> Vec<&'static Kind> {
    let mut kinds = Vec::new();
    for kind in KINDS {
        if !kind.list.is_empty() && is_it(kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// What their lists are called.
fn lists(kinds: &[&Kind]) -> String {
    one_of(&kinds.iter().map(|kind| kind.list).collect::<Vec<_>>())
}

/// Whether one of the words of a file's name is that of a kind: `flow.json`, `hotspot-rules.json`, `FlowRules.json`.
fn names(file: &str, list: &str) -> bool {
    // Found byte by byte: searching characters backwards is 1 KB in a module, for this one place.
    let name = file.bytes().rposition(|byte| matches!(byte, b'/' | b'\\')).map_or(0, |at| at + 1);
    let file = file.get(name..).unwrap_or(file);
    let dot = file.bytes().rposition(|byte| byte == b'.').unwrap_or(file.len());
    let stem = file.get(..dot).unwrap_or(file);
    stem.split(|c: char| c.is_ascii() && !c.is_ascii_alphabetic()).any(|word| {
        let (name, rest) = word.split_at_checked(list.len()).unwrap_or_default();
        name.eq_ignore_ascii_case(list)
            && ["", "rule", "rules"].iter().any(|end| rest.eq_ignore_ascii_case(end))
    })
}

/// Whether `kind` has all fields of `rule`, and `rule` all that a rule of this kind must say.
fn tells(rule: &Node, kind: &Kind) -> bool {
    let Value::Map(map) = &rule.value else { return false };
    map.entries().iter().all(|entry| kind.fields.contains(&entry.key.as_str()))
        && kind.telling.iter().all(|field| map.get(field).is_some())
}
