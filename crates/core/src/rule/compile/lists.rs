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
    kinds().find(|kind| kind.list == name)
}

/// The kind of `rules`, a document of `source`, or why it is not known and what would do.
pub(super) fn kind_of(rules: &[Node], source: &Source<'_>) -> Result<&'static Kind, String> {
    if let Some(name) = source.list {
        return kind(name).ok_or_else(|| {
            let names: Vec<&str> = kinds().map(|kind| kind.list).collect();
            format!("a list of rules that is said to be `{name}`, but must be {}", one_of(&names))
        });
    }
    if let [kind] = kinds().filter(|kind| names(source.name, kind.list)).collect::<Vec<_>>()[..] {
        return Ok(kind);
    }
    let fitting: Vec<&Kind> =
        kinds().filter(|kind| rules.iter().all(|rule| tells(rule, kind))).collect();
    if let [kind] = fitting[..] {
        return Ok(kind);
    }
    let fitting: Vec<&str> = fitting.iter().map(|kind| kind.list).collect();
    let why = if fitting.is_empty() {
        String::from("of which no kind has all the fields")
    } else {
        format!("which could be {}", one_of(&fitting))
    };
    Err(format!(
        "a list of rules, {why}: name the file after its kind, such as `flow.json`, or say `kind: flow` for the source; \
         or write a document with `apiVersion`, `kind` and `spec`"
    ))
}

fn kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| !kind.list.is_empty())
}

/// Whether one of the words of a file's name is that of a kind: `flow.json`, `hotspot-rules.json`, `FlowRules.json`.
fn names(file: &str, list: &str) -> bool {
    let file = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
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
