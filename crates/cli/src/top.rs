//! `top`: what is in force now, as the filter's console says it, for people to read.
//!
//! The console answers in pages of rules ([`gather`] puts them together); [`render`] makes lines of them, the rules that are
//! nearest to their limit first.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde_json::Value;

/// An answer of the console: its status and its body.
pub type Page = (u16, String);

/// What Envoy's statistics say of the traffic, beside what the console says of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Admitted in the last second.
    pub pass_qps: u64,
    /// Refused in the last second.
    pub block_qps: u64,
    /// Requests that wait for their turn, in all workers.
    pub waiting: u64,
    /// Requests under way.
    pub in_flight: u64,
}

/// All that the console under `path` says, as one document; of `rule` alone, if it is given. `get` asks for a path and
/// query.
///
/// # Errors
///
/// When `get` fails, the console refuses, what comes is none of its answers, or the rules change so often that no
/// two pages are of one set.
pub fn gather(
    path: &str,
    rule: Option<&str>,
    get: &mut dyn FnMut(&str) -> Result<Page>,
) -> Result<Value> {
    for _ in 0..TRIES {
        let first = match rule {
            Some(rule) => format!("{path}/state?rule={rule}"),
            None => format!("{path}/state"),
        };
        let mut whole = read(get(&first)?)?;
        let version = version_of(&whole);
        let mut changed = false;
        while let Some(next) = whole.get("next").and_then(Value::as_u64) {
            let mut page = read(get(&format!("{path}/state?offset={next}"))?)?;
            if version_of(&page) != version {
                changed = true;
                break;
            }
            let more = page.get_mut("rules").and_then(Value::as_array_mut).map(std::mem::take);
            if let Some(rules) = whole.get_mut("rules").and_then(Value::as_array_mut) {
                rules.append(&mut more.unwrap_or_default());
            }
            let next = page.get_mut("next").map_or(Value::Null, Value::take);
            if let Some(place) = whole.get_mut("next") {
                *place = next;
            }
        }
        if !changed {
            if let Some(fields) = whole.as_object_mut() {
                fields.remove("next");
            }
            return Ok(whole);
        }
    }
    bail!("the rules change while they are read: try again")
}

/// How often the pages are read again because the rule set has changed between them.
const TRIES: u32 = 5;

fn read((status, body): Page) -> Result<Value> {
    let document: Option<Value> = serde_json::from_str(&body).ok();
    if let Some(problem) = document.as_ref().and_then(|said| said.get("error")?.as_str()) {
        bail!("the console answers {status}: {problem}");
    }
    let document = document.filter(|said| status == 200 && said.get("format").is_some());
    let document = document.with_context(|| {
        format!("what answers (with {status}) is no console: {HOW_TO_SWITCH_IT_ON}")
    })?;
    match document.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => Ok(document),
        other => {
            bail!(
                "the console speaks format {other:?}, this command {FORMAT}: use the one of that release"
            )
        }
    }
}

const FORMAT: u64 = sentinel_engine::console::FORMAT;

/// What to do where no console answers.
pub const HOW_TO_SWITCH_IT_ON: &str = "give the filter of a listener on loopback `console: {path: /sentinel}` in its configuration, as place (8) of envoy/envoy.yaml has it, and say where it is with --console and --path";

fn version_of(document: &Value) -> Option<u64> {
    document.pointer("/ruleSet/version")?.as_u64()
}

/// The document as lines: who serves, who works, and a table of rules, at most `rows_max` of them.
pub fn render(document: &Value, traffic: Option<&Traffic>, rows_max: usize) -> String {
    let mut text = String::new();
    write_heads(document, traffic, &mut text);
    let rules = document.get("rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut rules: Vec<Row> = rules.iter().map(Row::of).collect();
    // Rules that are equally near stay in the order of the set.
    rules.sort_by(|a, b| b.pressure.total_cmp(&a.pressure));
    let hidden = rules.len().saturating_sub(rows_max);
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["rule", "kind", "resource", "in force", "used", "state", "version"]);
    for row in rules.iter().take(rows_max) {
        table.add_row(&row.cells);
    }
    if !rules.is_empty() {
        line(&mut text, &table.to_string());
    }
    if hidden > 0 {
        line(&mut text, &format!("and {hidden} more, which are further from their limits"));
    }
    if let [row] = rules.as_slice() {
        row.details.iter().for_each(|detail| line(&mut text, detail));
    }
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn write_heads(document: &Value, traffic: Option<&Traffic>, text: &mut String) {
    let set = match document.get("ruleSet") {
        Some(set) if set.get("version").is_some() => {
            let pending = if flag(set, "pending") { ", a source is still to come" } else { "" };
            format!("rule set {}, {} rules{pending}", number(set, "version"), number(set, "rules"))
        }
        other => format!("no rule set{}", problem(other)),
    };
    let service = match document.get("service") {
        Some(service) if service.get("instance").is_some() => format!(
            "service {} {} ({} ms ago)",
            word(service, "instance"),
            if flag(service, "alive") { "alive" } else { "SILENT" },
            number(service, "heartbeatAgeMs")
        ),
        other => format!("no service{}", problem(other)),
    };
    line(text, &format!("{set}; {service}"));
    let workers = document.get("workers").and_then(Value::as_array);
    let workers = workers.map_or(&[][..], Vec::as_slice);
    let live: Vec<_> = workers.iter().filter(|worker| flag(worker, "alive")).collect();
    let mut said = format!("{} workers", live.len());
    if live.len() < workers.len() {
        let _ = write!(said, ", {} gone", workers.len() - live.len());
    }
    let version = version_of(document);
    let behind = live
        .iter()
        .filter(|worker| worker.get("rulesVersion").and_then(Value::as_u64) != version)
        .count();
    if behind > 0 {
        let _ = write!(said, ", {behind} not at this rule set yet");
    }
    if let Some(problem) = document.pointer("/workers/error").and_then(Value::as_str) {
        let _ = write!(said, " ({problem})");
    }
    match document.get("answeredBy").filter(|by| by.is_object()) {
        Some(by) => {
            let _ = write!(
                said,
                "; answered by {}, where {} wait",
                word(by, "worker"),
                number(by, "waiting")
            );
        }
        None => said.push_str("; answered by a thread that has had no request yet"),
    }
    line(text, &said);
    if let Some(traffic) = traffic {
        let Traffic { pass_qps, block_qps, waiting, in_flight } = traffic;
        line(
            text,
            &format!(
                "{pass_qps} passed and {block_qps} refused a second, {in_flight} under way, {waiting} waiting"
            ),
        );
    }
    if let Some(problem) = document.pointer("/decisions/error").and_then(Value::as_str) {
        line(text, &format!("the service's decisions cannot be read: {problem}"));
    }
}

/// One rule's line.
struct Row {
    /// 0: nothing of it is used; 1: the next request is refused.
    pressure: f64,
    cells: [String; 7],
    /// What is only said of a rule that is shown alone.
    details: Vec<String>,
}

impl Row {
    fn of(rule: &Value) -> Self {
        if let Some(problem) = rule.get("error").filter(|_| rule.get("id").is_none()) {
            let mut cells = [const { String::new() }; 7];
            cells[5] = format!("unreadable: {}", problem.as_str().unwrap_or_default());
            return Self { pressure: 2.0, cells, details: Vec::new() };
        }
        let kind = word(rule, "kind");
        let (pressure, used, state) = use_of(rule);
        let state = if flag(rule, "shadow") { format!("shadow; {state}") } else { state };
        let cells = [
            word(rule, "id"),
            kind.strip_suffix("Rules").unwrap_or(&kind).to_owned(),
            word(rule, "resource"),
            in_force(rule),
            used,
            state.trim_end_matches("; ").to_owned(),
            rule.get("version").map(ToString::to_string).unwrap_or_default(),
        ];
        Self { pressure, cells, details: details(rule) }
    }
}

/// The limit that holds now, and of which time.
fn in_force(rule: &Value) -> String {
    let limit = rule.get("inForce").or_else(|| rule.get("threshold")).and_then(Value::as_f64);
    let Some(limit) = limit else { return String::new() };
    // A threshold that warms up has a dozen digits.
    let mut text = match rule.get("strategy").and_then(Value::as_str) {
        Some(strategy) if strategy.ends_with("Ratio") => format!("{} %", limit * 100.0),
        Some(_) | None => ((limit * 100.0).round() / 100.0).to_string(),
    };
    let said = rule.get("threshold").and_then(Value::as_f64);
    if let Some(said) = said.filter(|said| *said != limit && rule.get("inForce").is_some()) {
        let _ = write!(text, " of {said}");
    }
    match rule.get("windowMs").and_then(Value::as_u64) {
        Some(ms) if ms.is_multiple_of(1_000) => {
            let _ = write!(text, " in {} s", ms / 1_000);
        }
        Some(ms) => {
            let _ = write!(text, " in {ms} ms");
        }
        None if rule.get("held").is_some() => text.push_str(" at a time"),
        None => {}
    }
    if let Some(strategy) = rule.get("strategy").and_then(Value::as_str) {
        text = format!("{strategy} {text}");
    }
    text
}

/// How near the rule is to its limit, what of it is used, and how it stands.
fn use_of(rule: &Value) -> (f64, String, String) {
    let known = word(rule, "ledger");
    if known == "unreadable" || known == "superseded" {
        let problem = rule.get("error").and_then(Value::as_str);
        let state = problem.map_or_else(|| known.clone(), |problem| format!("{known}: {problem}"));
        return (2.0, String::new(), state);
    }
    let field = |name| rule.get(name).and_then(Value::as_f64);
    if let (Some(used), Some(left)) = (field("granted").or_else(|| field("held")), field("left")) {
        let whole = used + left;
        let pressure = if whole > 0.0 { used / whole } else { 1.0 };
        let state = if left == 0.0 { "used up" } else { "" };
        return (pressure, format!("{used} of {whole}"), state.to_owned());
    }
    if let Some(queued) = field("queuedMs") {
        let most = field("maxWaitMs").unwrap_or(0.0);
        let pressure = if most > 0.0 { (queued / most).min(1.0) } else { f64::from(queued > 0.0) };
        let state = if field("nextSlotInMs").is_none() { "full" } else { "" };
        return (pressure, format!("queue {queued} of {most} ms"), state.to_owned());
    }
    if let Some(state) = rule.get("state").and_then(Value::as_str) {
        let out = rule.get("probesOut").and_then(Value::as_array).map_or(0, Vec::len);
        return match state {
            "Open" => match field("retryInMs") {
                Some(ms) if ms > 0.0 => (1.0, String::new(), format!("Open, probe in {ms} ms")),
                _ => (1.0, String::new(), "Open, probe at the next request".to_owned()),
            },
            "HalfOpen" => {
                let good = number(rule, "goodProbes");
                let of = number(rule, "probeNum");
                (0.9, format!("{out} probes out"), format!("HalfOpen, {good} of {of} good"))
            }
            _ => (0.0, String::new(), state.to_owned()),
        };
    }
    if let Some(table) = rule.get("table") {
        let most = table.get("mostUsed").and_then(|most| most.get(0)?.get("used")?.as_f64());
        let used = match table.get("values") {
            Some(values) => format!("{values} values"),
            None => "by value".to_owned(),
        };
        let problem = table.get("error").and_then(Value::as_str).unwrap_or_default();
        return (most.map_or(0.0, |_| 0.5), used, problem.to_owned());
    }
    if flag(rule, "refuses") {
        return (1.0, String::new(), "refuses".to_owned());
    }
    (0.0, String::new(), String::new())
}

fn details(rule: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let list = |name| rule.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for holder in list("heldBy") {
        let (worker, permits) = (word(holder, "worker"), number(holder, "permits"));
        lines.push(format!("  worker {worker} holds {permits}"));
    }
    for probe in list("probesOut") {
        let (worker, since) = (word(probe, "worker"), number(probe, "sinceMs"));
        lines.push(format!("  worker {worker} has a probe out since {since} ms"));
    }
    for (name, what) in [
        ("unspentHere", "tokens in hand"),
        ("inUseHere", "permits in use"),
        ("idleHere", "permits kept for the next requests"),
    ] {
        if let Some(here) = rule.get(name) {
            lines.push(format!("  {here} {what} at the worker that answers"));
        }
    }
    if let Some(table) = rule.get("table") {
        let read = number(table, "setsRead");
        lines.push(format!("  {read} of {} sets read", number(table, "sets")));
        for value in table.get("mostUsed").and_then(Value::as_array).into_iter().flatten() {
            lines.push(format!(
                "  value {} has used {}",
                word(value, "value"),
                number(value, "used")
            ));
        }
    }
    lines
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn flag(of: &Value, name: &str) -> bool {
    of.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// Text for a terminal: what could move its cursor is escaped.
fn word(of: &Value, name: &str) -> String {
    let text = of.get(name).and_then(Value::as_str).unwrap_or_default();
    text.chars()
        .flat_map(|char| {
            let plain = (!char.is_control()).then_some(char);
            let escaped = char.is_control().then(|| char.escape_default());
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

fn problem(of: Option<&Value>) -> String {
    let problem = of.and_then(|of| of.get("error")?.as_str());
    problem.map(|problem| format!(" ({problem})")).unwrap_or_default()
}
