//! What was found, for people and for machines.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use comfy_table::{
    ColumnConstraint, ContentArrangement, Table, Width, presets::UTF8_FULL_CONDENSED,
};
use sentinel_core::rule::{
    Rule,
    error::{Refusal, Site},
};
use serde::Serialize;

use super::{Findings, Options};
use crate::limit::{kind, limit, short_kind};

/// How wide the table is where nobody says how wide the terminal is.
const WIDTH: u16 = 100;

/// How wide the column of kinds is, with its margins.
const KIND_WIDTH: u16 = 11;

/// How wide that of places may be.
const PLACE_MAX: u16 = 24;

/// How many rules the table shows; what is over is counted, and all are in the JSON.
const ROWS_MAX: usize = 500;

const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const RED: u8 = 31;

pub(super) fn write_text(
    findings: &Findings,
    options: &Options,
    out: &mut impl Write,
) -> io::Result<()> {
    let colored = |word: &str, hue: u8| {
        if options.terminal { format!("\u{1b}[{hue}m{word}\u{1b}[0m") } else { word.to_owned() }
    };
    for line in findings.refusals.lines() {
        writeln!(out, "{line}")?;
    }
    for warning in &findings.warnings {
        writeln!(out, "{}: {warning}", colored("warning", YELLOW))?;
    }
    for (file, rules) in verdicts(findings) {
        let count = match (findings.files.files.get(file).and_then(|file| file.lists), rules) {
            (Some(files), _) => format!(", an index of {}", counted(files, "file")),
            // Of a set that is refused nobody knows the rules.
            (None, Some(_)) if !findings.is_set_right => String::new(),
            (None, rules) => format!(", {}", counted(rules.unwrap_or(0), "rule")),
        };
        let name = findings.files.files.get(file).map_or("", |file| &file.name);
        match rules {
            Some(_) => writeln!(out, "{name}: {}{count}", colored("ok", GREEN))?,
            None => writeln!(out, "{name}: {}", colored("refused", RED))?,
        }
    }
    let refused = colored("refused", RED);
    if !findings.is_set_right {
        return writeln!(out, "the set is {refused}: nothing of it would be loaded");
    }
    if !findings.refusals.is_empty() {
        return writeln!(
            out,
            "the filter's configuration is {refused}, so that names are not checked"
        );
    }
    if !findings.rules.is_empty() {
        writeln!(out, "{}", table(&findings.rules, options.terminal))?;
    }
    if let Some(over) = findings.rules.len().checked_sub(ROWS_MAX).filter(|over| *over > 0) {
        writeln!(out, "… and {over} more (`--json` names all)")?;
    }
    let mut total = totals(&findings.rules);
    if !findings.warnings.is_empty() {
        total.push_str(&format!("; {}", counted(findings.warnings.len(), "warning")));
        if options.deny_warnings {
            total.push_str(&format!(", which is {refused}"));
        }
    }
    writeln!(out, "{total}")
}

/// By the place of the file: how many rules it has, or `None` if something is wrong with it.
fn verdicts(findings: &Findings) -> Vec<(usize, Option<usize>)> {
    let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, site) in &findings.rules {
        *rules.entry(&site.source).or_default() += 1;
    }
    let files = findings.files.files.iter().enumerate();
    files
        .map(|(index, file)| {
            let is_wrong =
                findings.refusals.shown().iter().any(|refusal| refusal.site.source == file.name);
            let count = rules.get(file.name.as_str()).copied().unwrap_or(0);
            (index, (!is_wrong).then_some(count))
        })
        .collect()
}

fn table(rules: &[(Rule, Site)], terminal: bool) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if !terminal {
        table.set_width(WIDTH);
    }
    table.set_header(["rule", "kind", "resource", "limit", "at"]);
    for (rule, site) in rules.iter().take(ROWS_MAX) {
        table.add_row([
            rule.id().to_owned(),
            short_kind(rule).to_owned(),
            resource(rule).to_owned(),
            limit_of(rule),
            place(site),
        ]);
    }
    // Names of kinds and places are read whole.
    let longest = rules.iter().take(ROWS_MAX).map(|(_, site)| place(site).chars().count()).max();
    let place_width = u16::try_from(longest.unwrap_or(0)).unwrap_or(PLACE_MAX).min(PLACE_MAX);
    for (column, width) in [(1, KIND_WIDTH), (4, place_width.saturating_add(2))] {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
        }
    }
    table
}

/// What a rule governs; a system rule everything.
fn resource(rule: &Rule) -> &str {
    if rule.target().is_some() { rule.resource() } else { "all that comes in" }
}

fn limit_of(rule: &Rule) -> String {
    let shadow = if rule.common().shadow { ", shadow" } else { "" };
    format!("{}{shadow}", limit(rule))
}

/// File and line; the folder is known.
fn place(site: &Site) -> String {
    let file = site.source.rsplit('/').next().unwrap_or(&site.source);
    match site.position {
        Some(position) => format!("{file}:{}", position.line),
        None => file.to_owned(),
    }
}

fn totals(rules: &[(Rule, Site)]) -> String {
    let mut kinds: Vec<(u8, &str, usize)> = Vec::new();
    for (rule, _) in rules {
        match kinds.iter_mut().find(|(_, name, _)| *name == kind(rule)) {
            Some((_, _, count)) => *count += 1,
            None => kinds.push((rule.rank(), kind(rule), 1)),
        }
    }
    kinds.sort_unstable();
    let kinds: Vec<String> =
        kinds.iter().map(|(_, name, count)| format!("{count} {name}")).collect();
    let total = counted(rules.len(), "rule");
    if kinds.is_empty() { total } else { format!("{total}: {}", kinds.join(", ")) }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Everything that was found.
#[derive(Serialize)]
struct Whole<'a> {
    ok: bool,
    files: Vec<JsonFile<'a>>,
    errors: Vec<JsonProblem<'a>>,
    warnings: Vec<JsonProblem<'a>>,
    rules: Vec<JsonRule<'a>>,
}

#[derive(Serialize)]
struct JsonFile<'a> {
    file: &'a str,
    ok: bool,
    /// How many rules it has; none are known of a set that is refused.
    rules: usize,
}

#[derive(Serialize)]
struct JsonProblem<'a> {
    file: &'a str,
    line: Option<u32>,
    column: Option<u32>,
    /// From 1.
    document: Option<usize>,
    kind: Option<&'a str>,
    /// From 0.
    rule: Option<usize>,
    name: Option<&'a str>,
    field: Option<&'a str>,
    message: String,
}

#[derive(Serialize)]
struct JsonRule<'a> {
    id: &'a str,
    kind: &'static str,
    resource: &'a str,
    limit: String,
    shadow: bool,
    file: &'a str,
    line: Option<u32>,
}

pub(super) fn write_json(findings: &Findings, ok: bool, out: &mut impl Write) -> io::Result<()> {
    let files = verdicts(findings).into_iter().filter_map(|(index, rules)| {
        let file = findings.files.files.get(index)?;
        Some(JsonFile { file: &file.name, ok: rules.is_some(), rules: rules.unwrap_or(0) })
    });
    let mut errors: Vec<JsonProblem<'_>> = findings.refusals.shown().iter().map(problem).collect();
    if findings.refusals.more() > 0 {
        errors.push(JsonProblem {
            file: "",
            line: None,
            column: None,
            document: None,
            kind: None,
            rule: None,
            name: None,
            field: None,
            message: format!("… and {} more", findings.refusals.more()),
        });
    }
    let rules = findings.rules.iter().map(|(rule, site)| JsonRule {
        id: rule.id(),
        kind: kind(rule),
        resource: rule.resource(),
        limit: limit(rule),
        shadow: rule.common().shadow,
        file: &site.source,
        line: site.position.map(|position| position.line),
    });
    let whole = Whole {
        ok,
        files: files.collect(),
        errors,
        warnings: findings.warnings.iter().map(problem).collect(),
        rules: rules.collect(),
    };
    serde_json::to_writer(&mut *out, &whole)?;
    writeln!(out)
}

fn problem(refusal: &Refusal) -> JsonProblem<'_> {
    let Refusal { site, field, reason } = refusal;
    JsonProblem {
        file: &site.source,
        line: site.position.map(|position| position.line),
        column: site.position.map(|position| position.column),
        document: site.document,
        kind: site.kind,
        rule: site.rule,
        name: site.name.as_deref(),
        field: (!field.is_empty()).then_some(field),
        // As in the line, from the field on.
        message: Refusal { site: Site::default(), field: field.clone(), reason: reason.clone() }
            .to_string(),
    }
}
