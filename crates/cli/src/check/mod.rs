//! `check`: rule files, read by the very code that the service reads them with.
//!
//! So a set that passes here is one that the service takes, and what it would complain about stands in
//! front of whoever writes the files, all of it at once. What is right and yet cannot be meant is warned of.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use sentinel_core::{
    config::{FilterConfig, Settings},
    rule::{
        Rule,
        compile::compile_placed,
        error::{Refusal, Refusals, Site},
    },
};

use crate::filter::{self, Filter};

pub(crate) mod files;
mod report;
mod warnings;

use files::Files;
use warnings::{Naming, warnings};

/// What to check, and how to say what was found.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files, and folders with files: all of them are one set.
    pub paths: Vec<PathBuf>,
    /// A filter's configuration, or one of Envoy's files that holds some: how requests get their names.
    pub filter: Option<PathBuf>,
    /// Whether a warning is as bad as an error.
    pub deny_warnings: bool,
    /// Whether to write one JSON object, and nothing else.
    pub json: bool,
    /// Whether this is for a terminal.
    pub terminal: bool,
}

/// What was found.
#[derive(Debug)]
struct Findings {
    files: Files,
    /// What the service would say, and what is wrong with the filter's configuration.
    refusals: Refusals,
    /// Whether the service would take the set.
    is_set_right: bool,
    warnings: Vec<Refusal>,
    /// The set; empty if anything is refused.
    rules: Vec<(Rule, Site)>,
}

impl Options {
    /// A check of these files and folders by themselves.
    pub fn of(paths: Vec<PathBuf>) -> Self {
        Self { paths, ..Self::default() }
    }
}

/// Checks the files as the one set that they are, and writes to `out` what is wrong with them, a line each, and what
/// they hold.
///
/// The answer is whether all are right. Settings are the defaults; what the service's configuration
/// sets, and the rules in it, are not looked at.
///
/// # Errors
///
/// If nothing can be written to `out`. A file that cannot be read is a refused one.
pub fn check(options: &Options, out: &mut impl Write) -> io::Result<bool> {
    let findings = find(options);
    let is_right =
        findings.refusals.is_empty() && (!options.deny_warnings || findings.warnings.is_empty());
    if options.json {
        report::write_json(&findings, is_right, out)?;
    } else {
        report::write_text(&findings, options, out)?;
    }
    Ok(is_right)
}

fn find(options: &Options) -> Findings {
    let files = Files::read(&options.paths);
    let mut refusals = files.refusals.clone();
    let mut rules = Vec::new();
    match compile_placed(&files.sources(), &Settings::DEFAULT) {
        Ok(set) => rules = set,
        Err(more) => refusals.append(more),
    }
    let is_set_right = refusals.is_empty();
    if !is_set_right {
        // Of what is refused nobody has any rules.
        rules.clear();
    }
    let mut filters = Vec::new();
    match options.filter.as_deref().map(filter::filters) {
        None => filters.push(Filter { name: String::new(), config: FilterConfig::default() }),
        Some(Ok(found)) => filters = found,
        Some(Err(more)) => refusals.append(more),
    }
    let mut found = Vec::new();
    if refusals.is_empty() {
        let naming = Naming { filters: &filters, file: options.filter.as_deref() };
        found = warnings(&rules, &files, naming);
    }
    Findings { files, refusals, is_set_right, warnings: found, rules }
}

#[cfg(test)]
mod tests;
