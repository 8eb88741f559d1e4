//! The rules that a vector speaks of, read by the product's own code.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use sentinel_core::{
    config::Settings,
    rule::{
        Rule,
        compile::{API_VERSION, Source, compile_set, rules_from_golang, rules_from_java},
        error::{Reason, Refusals},
        node::Node,
    },
};
use sentinel_engine::document;
use serde_json::{Map, Value, json};

/// In whose words a vector's rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// sentinel-golang's lists by kind, with its numbers for enums.
    Golang,
    /// Sentinel Java's lists by kind.
    Java,
    /// Ours: lists of rules by kind of document.
    Documents,
}

/// Sets of rules by kind; each is replaced as a whole.
#[derive(Clone, Debug)]
pub(super) struct RuleSets {
    dialect: Dialect,
    sets: Map<String, Value>,
}

impl Dialect {
    /// The dialect called `name`.
    pub(super) fn read(name: &str) -> Result<Self> {
        Ok(match name {
            "go" => Self::Golang,
            "java" => Self::Java,
            "crd" => Self::Documents,
            _ => bail!("the dialect `{name}` is not supported"),
        })
    }

    /// The rules of one list.
    pub(super) fn compile(self, kind: &str, list: &Value) -> Result<Result<Vec<Rule>, Refusals>> {
        let settings = &Settings::DEFAULT;
        Ok(match self {
            Self::Golang => rules_from_golang(kind, &node(list)?, settings),
            Self::Java => rules_from_java(kind, &node(list)?, settings),
            Self::Documents => {
                let sets = Map::from_iter([(kind.to_owned(), list.clone())]);
                compile_documents(&sets)?
            }
        })
    }
}

impl RuleSets {
    /// No rules.
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, sets: Map::new() }
    }

    /// The same sets, but for those that `named` replaces.
    pub(super) fn with(&self, named: &Map<String, Value>) -> Self {
        let mut sets = self.sets.clone();
        sets.extend(named.iter().map(|(kind, list)| (kind.clone(), list.clone())));
        Self { dialect: self.dialect, sets }
    }

    /// All rules of all sets.
    ///
    /// # Errors
    /// If any is refused: then none holds.
    pub(super) fn compile(&self) -> Result<Vec<Rule>> {
        if self.dialect == Dialect::Documents {
            return compile_documents(&self.sets)?.map_err(|refusals| refused(&refusals));
        }
        let mut ids = BTreeSet::new();
        let mut rules = Vec::new();
        for (kind, list) in &self.sets {
            let mut list = list.clone();
            keep_ids_apart(kind, &mut list, &mut ids, false);
            let compiled = match self.dialect.compile(kind, &list)? {
                Err(refusals) if count_the_same(&refusals) => {
                    keep_ids_apart(kind, &mut list, &mut ids, true);
                    self.dialect.compile(kind, &list)?
                }
                compiled => compiled,
            };
            let refused = |refusals| refused(&refusals).context(format!("rules of kind `{kind}`"));
            rules.extend(compiled.map_err(refused)?);
        }
        Ok(rules)
    }
}

/// The reference does not ask for ids, and asks of none that it is unique. Where our loader would ask for one, a
/// rule is called by its place in the list.
fn keep_ids_apart(kind: &str, list: &mut Value, ids: &mut BTreeSet<String>, all: bool) {
    let rules = list.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
    for (index, rule) in rules.iter_mut().enumerate() {
        let Some(fields) = rule.as_object_mut() else { continue };
        let id = fields.get("id").and_then(Value::as_str).unwrap_or_default();
        let is_taken = !id.is_empty() && !all && !ids.insert(id.to_owned());
        if is_taken || (all && id.is_empty()) {
            fields.insert("id".to_owned(), json!(format!("{kind}:{index}")));
        }
    }
}

fn count_the_same(refusals: &Refusals) -> bool {
    refusals.shown().iter().all(|refusal| matches!(refusal.reason, Reason::CountsTheSame { .. }))
}

fn compile_documents(sets: &Map<String, Value>) -> Result<Result<Vec<Rule>, Refusals>> {
    let mut documents = Vec::new();
    for (kind, list) in sets {
        let document = json!({"apiVersion": API_VERSION, "kind": kind, "spec": {"rules": list}});
        documents.push(node(&document)?);
    }
    let source = Source { documents: &documents, ..Source::of("") };
    Ok(compile_set(&[source], &Settings::DEFAULT))
}

/// What the product's own reader makes of the text.
pub(super) fn node(value: &Value) -> Result<Node> {
    let mut documents = document::documents(value.to_string().as_bytes())?;
    ensure!(documents.len() == 1, "{value} is no document");
    documents.pop().context("there is no document")
}

fn refused(refusals: &Refusals) -> anyhow::Error {
    let lines: Vec<String> = refusals.lines().collect();
    anyhow!("the rules are refused: {}", lines.join("; "))
}
