//! An explanation, for people and for machines.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use sentinel_core::{
    rule::{Rule, error::Site},
    time::Span,
};
use serde::Serialize;

use super::{Explanation, Met, Refusal, Says, Verdict};
use crate::limit::{kind, limit, short_kind};

/// How wide the table is where nobody says how wide the terminal is.
const WIDTH: u16 = 100;

pub(super) fn write_text(
    explanation: &Explanation,
    terminal: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    let Explanation { method, path, resource, named_by, nameless, filter, groups, .. } =
        explanation;
    writeln!(out, "{method} {path}\n")?;
    if resource.is_empty() {
        writeln!(
            out,
            "resource  none, so that no rule names it: named by {named_by} ({filter}); {nameless}"
        )?;
    } else {
        writeln!(out, "resource  {resource} (named by {named_by}, {filter})")?;
    }
    if !groups.is_empty() {
        writeln!(out, "groups    {}", groups.join(", "))?;
    }
    let Explanation { caller, called_by, rules, .. } = explanation;
    let caller = if caller.is_empty() { "nobody knows" } else { caller };
    writeln!(out, "caller    {caller} ({called_by})\n")?;

    let asked: Vec<&Met> = rules.iter().filter(|met| met.says.is_ok()).collect();
    if asked.is_empty() {
        writeln!(out, "No rule looks at this request.")?;
    } else {
        writeln!(
            out,
            "What rules say to it, in the order in which they are checked, each by itself and from empty state:"
        )?;
        writeln!(out, "{}", table(&asked, terminal))?;
    }
    let silent = rules.iter().filter_map(|met| Some((met, met.says.as_ref().err()?)));
    for (index, (met, reason)) in silent.enumerate() {
        if index == 0 {
            writeln!(out, "\nRules of the resource that do not look at it:")?;
        }
        writeln!(out, "  {} ({}): {reason}", met.rule.id(), limit(&met.rule))?;
    }
    writeln!(out)?;
    match &explanation.verdict {
        Verdict::Passes => writeln!(out, "It passes."),
        Verdict::Waits(span) => writeln!(out, "It waits {} and passes.", waiting(*span)),
        Verdict::Refused(refusal) => write_refusal(refusal, out),
    }
}

fn write_refusal(refusal: &Refusal, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "It is refused by {}. The client gets:", refusal.rule)?;
    match refusal.grpc_status {
        // Trailers only.
        Some(status) => {
            writeln!(out, "  grpc-status: {status}\n  grpc-message: {}", refusal.body)?;
        }
        None => writeln!(out, "  {}", refusal.status)?,
    }
    for (name, value) in &refusal.headers {
        if refusal.grpc_status.is_none() || name != "content-type" {
            writeln!(out, "  {name}: {value}")?;
        }
    }
    if refusal.grpc_status.is_none() {
        writeln!(out, "\n  {}", refusal.body)?;
    }
    Ok(())
}

fn table(asked: &[&Met], terminal: bool) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if !terminal {
        table.set_width(WIDTH);
    }
    table.set_header(["rule", "kind", "limit", "counts", "says"]);
    for met in asked {
        let Met { rule, counts, says, .. } = met;
        let shadow = rule.common().shadow;
        let says = match says {
            Ok(Says::Passes) if shadow => "passes (shadow)".to_owned(),
            Ok(Says::Passes) => "passes".to_owned(),
            Ok(Says::Waits(span)) if shadow => format!("would wait {} (shadow)", waiting(*span)),
            Ok(Says::Waits(span)) => format!("waits {}", waiting(*span)),
            Ok(Says::Refuses) if shadow => "would refuse (shadow)".to_owned(),
            Ok(Says::Refuses) => "refuses".to_owned(),
            Err(reason) => reason.clone(),
        };
        table.add_row([
            rule.id().to_owned(),
            short_kind(rule).to_owned(),
            limit(rule),
            counts.clone().unwrap_or_default(),
            says,
        ]);
    }
    table
}

fn waiting(span: Span) -> String {
    format!("{} ms", span.as_millis())
}

/// Everything that is explained.
#[derive(Serialize)]
struct Whole<'a> {
    method: &'a str,
    path: &'a str,
    /// `null`: there is nothing to name it by.
    resource: Option<&'a str>,
    named_by: &'a str,
    filter: &'a str,
    groups: &'a [String],
    caller: Option<&'a str>,
    rules: Vec<JsonRule<'a>>,
    answer: JsonAnswer<'a>,
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
    counts: Option<&'a str>,
    /// `pass`, `wait` or `refuse`; `null` if it does not look at the request.
    says: Option<&'static str>,
    wait_ms: Option<u64>,
    /// Why it does not look at the request.
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonAnswer<'a> {
    verdict: &'static str,
    wait_ms: Option<u64>,
    rule: Option<&'a str>,
    status: Option<u16>,
    grpc_status: Option<u32>,
    headers: &'a [(String, String)],
    body: Option<&'a str>,
}

pub(super) fn write_json(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let rules = explanation.rules.iter().map(|Met { rule, site, counts, says }| {
        let (says, wait_ms, reason) = match says {
            Ok(Says::Passes) => (Some("pass"), None, None),
            Ok(Says::Waits(span)) => (Some("wait"), Some(span.as_millis()), None),
            Ok(Says::Refuses) => (Some("refuse"), None, None),
            Err(reason) => (None, None, Some(reason.as_str())),
        };
        json_rule(rule, site, counts.as_deref(), says, wait_ms, reason)
    });
    let mut answer = JsonAnswer {
        verdict: "pass",
        wait_ms: None,
        rule: None,
        status: None,
        grpc_status: None,
        headers: &[],
        body: None,
    };
    match &explanation.verdict {
        Verdict::Passes => {}
        Verdict::Waits(span) => {
            answer.verdict = "wait";
            answer.wait_ms = Some(span.as_millis());
        }
        Verdict::Refused(refusal) => {
            answer.verdict = "refuse";
            answer.rule = Some(&refusal.rule);
            answer.status = Some(refusal.status);
            answer.grpc_status = refusal.grpc_status;
            answer.headers = &refusal.headers;
            answer.body = Some(&refusal.body);
        }
    }
    let whole = Whole {
        method: &explanation.method,
        path: &explanation.path,
        resource: Some(explanation.resource.as_str()).filter(|name| !name.is_empty()),
        named_by: &explanation.named_by,
        filter: &explanation.filter,
        groups: &explanation.groups,
        caller: Some(explanation.caller.as_str()).filter(|name| !name.is_empty()),
        rules: rules.collect(),
        answer,
    };
    serde_json::to_writer(&mut *out, &whole)?;
    writeln!(out)
}

fn json_rule<'a>(
    rule: &'a Rule,
    site: &'a Site,
    counts: Option<&'a str>,
    says: Option<&'static str>,
    wait_ms: Option<u64>,
    reason: Option<&'a str>,
) -> JsonRule<'a> {
    JsonRule {
        id: rule.id(),
        kind: kind(rule),
        resource: rule.resource(),
        limit: limit(rule),
        shadow: rule.common().shadow,
        file: &site.source,
        line: site.position.map(|position| position.line),
        counts,
        says,
        wait_ms,
        reason,
    }
}

/// Why nothing can be explained.
pub(super) fn write_json_errors(lines: &[String], out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &serde_json::json!({"errors": lines}))?;
    writeln!(out)
}
