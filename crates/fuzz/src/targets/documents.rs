//! What operators write.

use sentinel_core::{
    config::{FilterConfig, ServiceConfig, Settings, index_files},
    rule::{
        compile::{Source, compile_set, rules_from_golang, rules_from_java},
        error::Refusals,
        node::Node,
    },
};
use sentinel_engine::document::{configuration, configuration_text, documents};
use sentinel_wire::rules::{self, RuleEntry, RuleSetHeader, RuleSetReader};

use super::holds;

/// Refused with words, each a line that says something.
fn says_why(refusals: &Refusals) -> Result<(), String> {
    let lines: Vec<String> = refusals.lines().collect();
    holds(
        !lines.is_empty()
            && lines.iter().all(|line| !line.contains(['\n', '\r']) && line.len() > 8),
        || format!("refused with {lines:?}"),
    )
}

pub(super) fn rules(bytes: &[u8]) -> Result<(), String> {
    let nodes = match documents(bytes) {
        Ok(nodes) => nodes,
        Err(error) => return says_why(&error.in_source("a").into()),
    };
    let settings = Settings::DEFAULT;
    compiled(&nodes, None, &settings)?;
    for list in ["flow", "circuitbreaker", "hotspot", "isolation", "system"] {
        compiled(&nodes, Some(list), &settings)?;
    }
    for node in &nodes {
        for list in [
            "flow",
            "circuitbreaker",
            "hotspot",
            "isolation",
            "system",
            "degrade",
            "paramflow",
            "authority",
            "gateway",
        ] {
            for refusals in [
                rules_from_golang(list, node, &settings).err(),
                rules_from_java(list, node, &settings).err(),
            ]
            .into_iter()
            .flatten()
            {
                says_why(&refusals)?;
            }
        }
    }
    Ok(())
}

/// Compiles the documents; what they come to crosses to the workers unchanged.
fn compiled(nodes: &[Node], list: Option<&str>, settings: &Settings) -> Result<(), String> {
    let source = Source { list, documents: nodes, ..Source::of("a") };
    let rules = match compile_set(&[source], settings) {
        Ok(rules) => rules,
        Err(refusals) => return says_why(&refusals),
    };
    let entries: Vec<RuleEntry<_>> =
        rules.into_iter().map(|rule| RuleEntry { slot: 0, sets: 0, generation: 1, rule }).collect();
    let header = RuleSetHeader {
        rules: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        ..RuleSetHeader::default()
    };
    let Some(bytes) = rules::encode(&header, &entries) else { return Ok(()) };
    let (_, mut reader) = RuleSetReader::open(bytes).map_err(|error| format!("{error:?}"))?;
    for entry in &entries {
        let read = reader.next_entry().map_err(|error| format!("{error:?}"))?;
        holds(read.as_ref() == Some(entry), || format!("{entry:?} arrives as {read:?}"))?;
    }
    Ok(())
}

/// Both readings of a configuration's bytes, where they are two.
fn configurations(bytes: &[u8]) -> Result<Vec<Node>, String> {
    let mut nodes = Vec::new();
    for read in [configuration(bytes), configuration_text(bytes)] {
        match read {
            Ok(node) => nodes.push(node),
            Err(error) => says_why(&error.in_source("configuration").into())?,
        }
    }
    Ok(nodes)
}

pub(super) fn service(bytes: &[u8]) -> Result<(), String> {
    for node in configurations(bytes)? {
        if let Err(refusals) = ServiceConfig::from_node(&node) {
            says_why(&refusals)?;
        }
    }
    Ok(())
}

pub(super) fn filter(bytes: &[u8]) -> Result<(), String> {
    for node in configurations(bytes)? {
        match (FilterConfig::from_node(&node), FilterConfig::from_checked_node(&node)) {
            (Ok(whole), Ok(checked)) => holds(whole == checked, || {
                format!("{whole:?}, but where its rules are known to be in order {checked:?}")
            })?,
            (Ok(_), Err(refusals)) => {
                return Err(format!(
                    "in order, but not where its rules are known to be: {:?}",
                    refusals.shown()
                ));
            }
            (Err(refusals), _) => says_why(&refusals)?,
        }
    }
    Ok(())
}

pub(super) fn index(bytes: &[u8]) -> Result<(), String> {
    for node in configurations(bytes)? {
        match index_files(&node, "/rules/index.yaml") {
            Ok(files) => {
                let forged = files.iter().find(|file| {
                    !file.path.starts_with('/')
                        || !file.path.bytes().all(|byte| byte.is_ascii_graphic())
                });
                holds(forged.is_none(), || format!("asks for {forged:?}"))?;
            }
            Err(refusals) => says_why(&refusals)?,
        }
    }
    Ok(())
}
