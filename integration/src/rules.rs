//! The rule files of a directory, as documents for the service's configuration.
//!
//! Whether a rule is right is the service's to say (and `cargo xtask check`'s); here files are only read, and flow
//! rules looked into as far as a judge of limits must know them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;

/// The documents of all `*.yaml`, `*.yml` and `*.json` files of a directory, in the order of the files' names.
///
/// # Errors
///
/// When the directory or a file cannot be read or is not YAML, naming it; when there is no rule file at all.
pub fn read(directory: &Path) -> Result<Vec<Value>> {
    let files = files(directory)?;
    if files.is_empty() {
        bail!(
            "no rule files (*.yaml) in {}: add one, or name another directory",
            directory.display()
        );
    }
    let mut documents = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        documents.extend(parse(&text).with_context(|| format!("{} is not YAML", file.display()))?);
    }
    Ok(documents)
}

/// The rule files of a directory, by name. Its index, if it has one, is none of them.
///
/// # Errors
///
/// When the directory cannot be read, naming it.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("cannot read the rules directory {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        let named_so = path
            .extension()
            .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
        // Editors and ConfigMap mounts leave hidden files and directories beside the rules.
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let index = path.file_name().is_some_and(|name| name == INDEX);
        if named_so && !hidden && !index {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// All documents of one YAML (or JSON) text; empty ones are left out.
///
/// # Errors
///
/// When the text is not YAML, with line and column.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        let document = Value::deserialize(document)?;
        if !document.is_null() {
            documents.push(document);
        }
    }
    Ok(documents)
}

/// A document of flow rules around `rules`, each a mapping of its fields.
#[must_use]
pub fn flow_rules(rules: &[Value]) -> Value {
    document("FlowRules", rules)
}

/// A document of this kind around `rules`, each a mapping of its fields.
#[must_use]
pub fn document(kind: &str, rules: &[Value]) -> Value {
    serde_json::json!({
        "apiVersion": "datasource.sentinel.io/v1alpha1",
        "kind": kind,
        "spec": {"rules": rules},
    })
}

/// One limit on requests, as an outside judge sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The rule's `id`, if it has one.
    pub rule: Option<String>,
    /// The resource it limits.
    pub resource: String,
    /// So many requests at most in each window; what is behind the point admits nothing.
    pub threshold: f64,
    /// The window's `statIntervalInMs`.
    pub stat_interval_ms: u64,
}

impl Limit {
    /// Whole requests that a window admits.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "floor of a threshold that is 0 or more"
    )]
    pub fn requests(&self) -> u64 {
        self.threshold as u64
    }

    /// The limit as text: `100 in 1 s`.
    #[must_use]
    pub fn text(&self) -> String {
        let seconds = self.stat_interval_ms / 1000;
        match self.stat_interval_ms % 1000 {
            0 => format!("{} in {seconds} s", self.threshold),
            _ => format!("{} in {} ms", self.threshold, self.stat_interval_ms),
        }
    }
}

/// The rules of all documents of this kind.
pub fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents
        .iter()
        .filter(move |document| document.get("kind").and_then(Value::as_str) == Some(kind))
        .filter_map(|document| document.pointer("/spec/rules")?.as_array())
        .flatten()
}

/// The flow rules of these documents that refuse at once what is over a fixed threshold of one resource.
#[must_use]
pub fn limits(documents: &[Value]) -> Vec<Limit> {
    of_kind(documents, "FlowRules")
        .filter(|rule| {
            is_default(rule, "controlBehavior", "Reject")
                && is_default(rule, "tokenCalculateStrategy", "Direct")
                && is_default(rule, "relationStrategy", "CurrentResource")
                && is_default(rule, "limitApp", "default")
        })
        .filter(|rule| {
            ["shadow", "regex"]
                .iter()
                .all(|flag| rule.get(*flag).and_then(Value::as_bool) != Some(true))
        })
        .filter(|rule| rule.get("resource").is_some_and(|resource| resource != "*"))
        .filter_map(|rule| {
            let interval = rule.get("statIntervalInMs").and_then(Value::as_u64).unwrap_or(0);
            Some(Limit {
                rule: rule.get("id").and_then(Value::as_str).map(str::to_owned),
                resource: rule.get("resource")?.as_str()?.to_owned(),
                threshold: rule.get("threshold")?.as_f64()?,
                stat_interval_ms: if interval == 0 { 1000 } else { interval },
            })
        })
        .collect()
}

/// Whether an enum has its default, by name or as 0, or is not there at all.
#[must_use]
pub fn is_default(rule: &Value, field: &str, default: &str) -> bool {
    rule.get(field).is_none_or(|value| value == default || value == 0)
}

/// What the list of a directory's rule files is called.
pub const INDEX: &str = "index.yaml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_rules_are_read_as_limits_and_what_shapes_traffic_is_not() {
        let documents = parse(
            "apiVersion: datasource.sentinel.io/v1alpha1
kind: FlowRules
spec:
  rules:
  - {id: a, resource: 'GET:/a', threshold: 10}
  - {resource: 'GET:/b', threshold: 2.5, statIntervalInMs: 1500}
  - {id: c, resource: 'GET:/c', threshold: 10, controlBehavior: Throttling}
  - {id: d, resource: 'GET:/d', threshold: 10, limitApp: shop}
  - {id: e, resource: '*', threshold: 10}
---
kind: IsolationRules
spec: {rules: [{resource: 'GET:/d', threshold: 1}]}
",
        )
        .unwrap();

        let limits = limits(&documents);
        let texts: Vec<_> =
            limits.iter().map(|limit| (limit.resource.as_str(), limit.text())).collect();
        assert_eq!(
            texts,
            [("GET:/a", "10 in 1 s".to_owned()), ("GET:/b", "2.5 in 1500 ms".to_owned())]
        );
        assert_eq!(limits[1].requests(), 2);
    }
}
