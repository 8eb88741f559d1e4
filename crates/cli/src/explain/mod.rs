//! `explain`: what a request is called, which rules it meets, and what they say to it.
//!
//! Nothing here decides anything: the engine that ships does, a worker and a service over a simulated host whose
//! clock stands still. Each rule is asked alone, from empty state, for its own answer, and the whole set for the
//! final one.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use sentinel_core::{
    block::Refused,
    config::Settings,
    param::Request as _,
    rule::{
        LimitApp, ParamPick, Rule, Target, Unit,
        compile::compile_placed,
        error::{Refusals, Site},
    },
    time::Span,
};

use crate::{
    check::files::Files,
    filter::{self, Filter},
    limit,
};

mod engine;
mod report;
mod request;

use engine::{Answer, Engine};
use request::Described;

/// What to explain, and how to say it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Rule files, and folders with files: all of them are one set.
    pub rules: Vec<PathBuf>,
    /// Method and path.
    pub request: String,
    /// `name: value`.
    pub headers: Vec<String>,
    /// A filter's configuration, or one of Envoy's files that holds one; without it, that of `envoy/envoy.yaml`.
    pub filter: Option<PathBuf>,
    /// The client's address.
    pub client_ip: Option<String>,
    /// The name of Envoy's route.
    pub route: Option<String>,
    /// The name of Envoy's cluster.
    pub cluster: Option<String>,
    /// Whether to write one JSON object, and nothing else.
    pub json: bool,
    /// Whether this is for a terminal.
    pub terminal: bool,
}

/// What there is to say of a request.
#[derive(Debug)]
struct Explanation {
    method: String,
    path: String,
    /// Empty if there is nothing to name it by.
    resource: String,
    named_by: String,
    /// What would give it a name.
    nameless: &'static str,
    /// Where its name is defined.
    filter: String,
    /// API groups with rules that its path is in.
    groups: Vec<String>,
    /// Empty if nobody knows.
    caller: String,
    called_by: String,
    /// In the order in which they are checked.
    rules: Vec<Met>,
    verdict: Verdict,
}

/// A rule that names the request.
#[derive(Debug)]
struct Met {
    rule: Rule,
    site: Site,
    /// What it counts the request as, where it keeps several counters apart.
    counts: Option<String>,
    /// Why it does not look at the request, or what it says.
    says: Result<Says, String>,
}

/// What a rule says to the first request there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Passes,
    Waits(Span),
    Refuses,
}

/// What becomes of the request.
#[derive(Debug)]
enum Verdict {
    Passes,
    Waits(Span),
    Refused(Refusal),
}

/// What a refused client gets.
#[derive(Debug)]
struct Refusal {
    rule: String,
    status: u16,
    grpc_status: Option<u32>,
    headers: Vec<(String, String)>,
    body: String,
}

/// The filter whose requests are meant where nobody says.
const SHIPPED: &[u8] = include_bytes!("../../../../envoy/envoy.yaml");
const SHIPPED_NAME: &str = "envoy/envoy.yaml";

/// Explains a request and writes that to `out`. The answer is whether it could: not if the rules, the filter's
/// configuration or the request are none.
///
/// # Errors
///
/// If nothing can be written to `out`.
pub fn explain(options: &Options, out: &mut impl Write) -> io::Result<bool> {
    match explanation(options) {
        Ok(explanation) if options.json => report::write_json(&explanation, out)?,
        Ok(explanation) => report::write_text(&explanation, options.terminal, out)?,
        Err(lines) if options.json => {
            report::write_json_errors(&lines, out)?;
            return Ok(false);
        }
        Err(lines) => {
            for line in &lines {
                writeln!(out, "{line}")?;
            }
            return Ok(false);
        }
    }
    Ok(true)
}

fn explanation(options: &Options) -> Result<Explanation, Vec<String>> {
    let lines = |refusals: &Refusals| refusals.lines().collect::<Vec<_>>();
    let files = Files::read(&options.rules);
    let mut refusals = files.refusals.clone();
    let set = match compile_placed(&files.sources(), &Settings::DEFAULT) {
        Ok(set) => set,
        Err(more) => {
            refusals.append(more);
            Vec::new()
        }
    };
    if !refusals.is_empty() {
        return Err(lines(&refusals));
    }
    let (filter, file) = one_filter(options)?;
    let request = Described::new(options, &filter.config).map_err(|problem| vec![problem])?;
    let whole = Asked { filter: &filter, request: &request, name: request.resource() };
    Ok(whole.explained(&set, file))
}

/// The filter that names the request, and the file in which it stands.
fn one_filter(options: &Options) -> Result<(Filter, String), Vec<String>> {
    let lines = |refusals: Refusals| refusals.lines().collect::<Vec<_>>();
    let (mut filters, file) = match &options.filter {
        Some(file) => (filter::filters(file).map_err(lines)?, file.display().to_string()),
        None => {
            let filters = filter::filters_of(SHIPPED, SHIPPED_NAME).map_err(lines)?;
            (filters, SHIPPED_NAME.to_owned())
        }
    };
    let names: Vec<String> = filters.iter().map(|filter| format!("`{}`", filter.name)).collect();
    filters.dedup_by(|a, b| a.config == b.config);
    match (filters.pop(), filters.is_empty()) {
        (Some(filter), true) => Ok((filter, file)),
        _ => Err(vec![format!(
            "{file} has several filters that differ ({}): name a file with the configuration of one alone",
            names.join(", ")
        )]),
    }
}

/// A request under the name that the filter gives it.
struct Asked<'a> {
    filter: &'a Filter,
    request: &'a Described<'a>,
    name: Vec<u8>,
}

impl Asked<'_> {
    fn explained(&self, set: &[(Rule, Site)], filter: String) -> Explanation {
        let request = self.request;
        let all = || set.iter().map(|(rule, _)| rule.clone()).collect::<Vec<_>>();
        let mut rules = Vec::new();
        for (rule, asks) in Engine::start(all()).rules_of(&self.name, &mut request.clone()) {
            let Some((rule, site)) = set.iter().find(|(known, _)| known.id() == rule.id()) else {
                continue;
            };
            rules.push(self.met(rule, site, asks, set));
        }
        let groups = rules.iter().filter_map(|met| match met.rule.target() {
            Some(Target::Group(group)) => Some(group.name.clone()),
            Some(Target::Resource(_) | Target::Pattern(_) | Target::Default) | None => None,
        });
        let mut groups: Vec<String> = groups.collect();
        groups.sort_unstable();
        groups.dedup();
        let (named_by, nameless) = request.named_by();
        Explanation {
            method: request.method.clone(),
            path: request.path.clone(),
            resource: String::from_utf8_lossy(&self.name).into_owned(),
            named_by,
            nameless,
            filter,
            groups,
            caller: String::from_utf8_lossy(&request.clone().origin()).into_owned(),
            called_by: request.called_by(),
            rules,
            verdict: self.verdict(all()),
        }
    }

    fn met(&self, rule: &Rule, site: &Site, asks: bool, set: &[(Rule, Site)]) -> Met {
        let (rule, site) = (rule.clone(), site.clone());
        let counts = self.counts(&rule);
        let silent = if asks { None } else { self.why_silent(&rule, set) };
        let says = match silent {
            Some(reason) => Err(reason),
            None => Ok(self.says(&rule)),
        };
        Met { counts: counts.filter(|_| says.is_ok()), rule, site, says }
    }

    /// What a rule says if it is the only one, also one that only tries.
    fn says(&self, rule: &Rule) -> Says {
        let mut alone = rule.clone();
        engine::common_of(&mut alone).shadow = false;
        // It names the request, whatever the other rules of its kind name.
        match Engine::start(vec![alone]).enter(&self.name, &mut self.request.clone()) {
            Answer::Pass => Says::Passes,
            Answer::Wait(span) => Says::Waits(span),
            Answer::Blocked(_) => Says::Refuses,
        }
    }

    fn verdict(&self, rules: Vec<Rule>) -> Verdict {
        let blocked = match Engine::start(rules).enter(&self.name, &mut self.request.clone()) {
            Answer::Pass => return Verdict::Passes,
            Answer::Wait(span) => return Verdict::Waits(span),
            Answer::Blocked(blocked) => blocked,
        };
        let retry_after = blocked.retry_after.map(|span| span.as_secs_ceil().max(1).to_string());
        let refused = Refused {
            block_type: blocked.block_type,
            resource: &self.name,
            rule: blocked.rule.as_deref(),
            retry_after: retry_after.as_deref().map(str::as_bytes),
            expose_rule: self.filter.config.expose_rule,
            is_grpc: self.request.is_grpc(),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = refused.headers();
        let ours = headers.ours().iter().map(|(name, value)| ((*name).to_owned(), text(value)));
        let mut body = Vec::new();
        refused.write_body(&mut body);
        Verdict::Refused(Refusal {
            rule: refused.rule.map_or("", Rule::id).to_owned(),
            status: refused.status(),
            grpc_status: refused.is_grpc.then(|| blocked.block_type.grpc_status()),
            headers: ours.chain(headers.own.iter().cloned()).collect(),
            body: text(&body),
        })
    }

    /// What a rule that keeps several counters apart counts the request as.
    fn counts(&self, rule: &Rule) -> Option<String> {
        let mut request = self.request.clone();
        let resource = String::from_utf8_lossy(&self.name);
        let is_many = rule.target().is_some_and(Target::is_many);
        match rule {
            Rule::Gateway(hotspot) | Rule::Hotspot(hotspot) => {
                let pick = hotspot.param.as_ref()?;
                let by_key = pick.key.as_ref().and_then(|key| request.param(key));
                let value = by_key.or_else(|| pick.index.and_then(|index| request.arg(index)))?;
                let text = String::from_utf8_lossy(&value.text()).into_owned();
                let own = hotspot.items.iter().find(|item| value.is(&item.value));
                let own = own.map(|item| format!(", which may have {}", item.threshold));
                Some(format!("{} \"{text}\"{}", self.place(pick), own.unwrap_or_default()))
            }
            Rule::Flow(flow) if flow.limit_app == LimitApp::Other => {
                let caller = String::from_utf8_lossy(&request.origin()).into_owned();
                let of = if is_many { format!(" at {resource}") } else { String::new() };
                Some(format!("caller \"{caller}\"{of}"))
            }
            Rule::Flow(_) | Rule::Isolation(_) => {
                is_many.then(|| format!("resource \"{resource}\""))
            }
            Rule::Authority(_) | Rule::System(_) | Rule::CircuitBreaker(_) => None,
        }
    }

    /// Why a rule that names the request wants nothing of it; `None` if it passes it.
    fn why_silent(&self, rule: &Rule, set: &[(Rule, Site)]) -> Option<String> {
        if rule.common().unit == Unit::Message {
            return Some("it counts the messages of the request's stream".to_owned());
        }
        let mut request = self.request.clone();
        match rule {
            Rule::Flow(flow) => {
                let caller = String::from_utf8_lossy(&request.origin()).into_owned();
                let who = if caller.is_empty() {
                    format!("nobody knows who calls ({})", self.request.called_by())
                } else {
                    format!("\"{caller}\" calls")
                };
                let named = |(other, _): &&(Rule, Site)| {
                    let origin = LimitApp::Origin(caller.clone());
                    matches!(other, Rule::Flow(other) if other.target == flow.target && other.limit_app == origin)
                };
                match &flow.limit_app {
                    LimitApp::Default => None,
                    LimitApp::Origin(wanted) if *wanted == caller => None,
                    LimitApp::Origin(wanted) => Some(format!("it is about the caller \"{wanted}\", and {who}")),
                    LimitApp::Other if caller.is_empty() => {
                        Some(format!("it is about callers that are known, and {who}"))
                    }
                    LimitApp::Other => set.iter().find(named).map(|(other, _)| {
                        format!("it is about callers that no other rule names, and {} names \"{caller}\"", other.id())
                    }),
                }
            }
            Rule::Gateway(hotspot) | Rule::Hotspot(hotspot) => {
                let pick = hotspot.param.as_ref()?;
                let by_key = pick.key.as_ref().and_then(|key| request.param(key));
                let value = by_key.or_else(|| pick.index.and_then(|index| request.arg(index)));
                Some(match value {
                    Some(value) => format!(
                        "the value \"{}\" of {} does not match its pattern",
                        String::from_utf8_lossy(&value.text()),
                        self.place(pick)
                    ),
                    None => self.no_value(pick),
                })
            }
            // They refuse, or have nothing to say.
            Rule::Authority(_) | Rule::System(_) | Rule::Isolation(_) | Rule::CircuitBreaker(_) => {
                None
            }
        }
    }

    /// Where a rule's value comes from: of an argument also what it is.
    fn place(&self, pick: &ParamPick) -> String {
        let name = limit::param(pick);
        let args = &self.filter.config.args;
        let arg = pick.index.filter(|_| pick.key.is_none()).and_then(|index| {
            let distance = usize::try_from(index.unsigned_abs()).ok()?;
            args.get(if index < 0 { args.len().checked_sub(distance)? } else { distance })
        });
        match arg {
            Some(arg) => {
                let key = Some(arg.clone());
                format!(
                    "{name} ({})",
                    limit::param(&ParamPick { key, index: None, matching: None })
                )
            }
            None => name,
        }
    }

    fn no_value(&self, pick: &ParamPick) -> String {
        let place = self.place(pick);
        let args = self.filter.config.args.len();
        if pick.key.is_none() && !place.ends_with(')') {
            return format!("it counts {place}, but the filter has {args} of `args`");
        }
        if place.contains("client_ip") {
            return format!("it counts {place}: say the client's address with `--client-ip`");
        }
        format!("the request has no {place}")
    }
}

#[cfg(test)]
mod tests;
