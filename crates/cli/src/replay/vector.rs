//! One vector, event by event.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use sentinel_core::{param::ParamValue, rule::INBOUND};
use sentinel_engine::worker::Outcome;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    expect::{Answer, Expectations, Waits},
    proxy::{Asked, Proxy},
    request::{VectorRequest, typed},
    rules::{Dialect, RuleSets},
    tables,
};

/// One vector.
#[derive(Debug, Deserialize)]
pub struct Vector {
    /// Its name.
    pub id: String,
    kind: String,
    dialect: String,
    form: Option<String>,
    #[serde(default)]
    t0_ms: u64,
    #[serde(default)]
    rules: Map<String, Value>,
    #[serde(default)]
    events: Vec<Value>,
    #[serde(default)]
    rows: Vec<tables::Row>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Event {
    Entry(Box<EntryEvent>),
    Exit {
        t_ms: u64,
        id: String,
        repeat: Option<usize>,
        #[serde(default)]
        error: bool,
        status: Option<u16>,
        grpc_status: Option<u32>,
        // Follows from the times.
        #[serde(default, rename = "rt_ms")]
        _rt_ms: Value,
    },
    SetCpu {
        t_ms: u64,
        value: f64,
    },
    SetMem {
        t_ms: u64,
        value: i64,
    },
    LoadRules {
        t_ms: u64,
        rules: Map<String, Value>,
        refused: Option<String>,
    },
    State {
        t_ms: u64,
        rule: String,
        expect: String,
    },
    Node {
        t_ms: u64,
        resource: String,
        expect: BTreeMap<String, f64>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryEvent {
    t_ms: u64,
    resource: String,
    #[serde(default = "one")]
    repeat: u64,
    #[serde(default = "one_token")]
    batch: u32,
    id: Option<String>,
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    attachments: Map<String, Value>,
    #[serde(default)]
    outbound: bool,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    prioritized: bool,
    #[serde(default)]
    error: bool,
    status: Option<u16>,
    grpc_status: Option<u32>,
    request: Option<Value>,
    #[serde(default)]
    rush: bool,
    expect: Value,
    // Java's name of a call tree, by which only rules count that are refused at load.
    #[serde(default, rename = "context")]
    _context: Value,
}

fn one() -> u64 {
    1
}

fn one_token() -> u32 {
    1
}

impl Vector {
    /// Runs the vector on `workers` workers, 1 or more.
    ///
    /// # Errors
    /// If an expectation is not met, or this build does not run what the vector needs: the error says
    /// which event and what.
    pub fn run(&self, workers: u16) -> Result<()> {
        match self.form.as_deref() {
            None => self.run_events(workers),
            Some("table") => tables::run(&self.kind, Dialect::read(&self.dialect)?, &self.rows),
            Some(form) => bail!("a {form} of `{}` is not supported", self.kind),
        }
    }

    fn run_events(&self, workers: u16) -> Result<()> {
        ensure!(!self.events.is_empty(), "nothing happens in this vector");
        let mut sets = RuleSets::new(Dialect::read(&self.dialect)?).with(&self.rules);
        let mut proxy = Proxy::start(workers, self.t0_ms, sets.compile()?, self.watched())?;
        for (index, event) in self.events.iter().enumerate() {
            let number = index + 1;
            let t_ms = event.get("t_ms").and_then(Value::as_u64).unwrap_or_default();
            Event::deserialize(event)
                .map_err(anyhow::Error::from)
                .and_then(|event| self.run_event(&mut proxy, &mut sets, &event))
                .with_context(|| format!("event {number} at {t_ms} ms"))?;
        }
        Ok(())
    }

    /// The resources whose numbers are asked for; all of them if it is the numbers of all together.
    fn watched(&self) -> Vec<String> {
        let named = |op: &str| {
            let of_op = move |event: &&Value| event.get("op").and_then(Value::as_str) == Some(op);
            let resource = |event: &Value| event.get("resource")?.as_str().map(str::to_owned);
            self.events.iter().filter(of_op).filter_map(resource).collect::<BTreeSet<String>>()
        };
        let mut watched = named("node");
        if watched.contains(INBOUND) {
            watched.extend(named("entry"));
        }
        watched.into_iter().collect()
    }

    fn run_event(&self, proxy: &mut Proxy, sets: &mut RuleSets, event: &Event) -> Result<()> {
        let at = |t_ms: u64| self.t0_ms.saturating_add(t_ms);
        match event {
            Event::Entry(entry) => {
                proxy.move_clock(at(entry.t_ms))?;
                self.enter(proxy, entry)
            }
            Event::Exit { t_ms, id, repeat, error, status, grpc_status, .. } => {
                proxy.move_clock(at(*t_ms))?;
                proxy.exit(id, *repeat, outcome(*error, *status, *grpc_status))
            }
            Event::SetCpu { t_ms, value } => {
                proxy.move_clock(at(*t_ms))?;
                proxy.set_cpu((*value >= 0.0).then_some(*value))
            }
            Event::SetMem { t_ms, value } => {
                proxy.move_clock(at(*t_ms))?;
                proxy.set_memory(u64::try_from(*value).ok())
            }
            Event::LoadRules { t_ms, rules, refused } => {
                proxy.move_clock(at(*t_ms))?;
                let named = sets.with(rules);
                match (named.compile(), refused) {
                    (Ok(rules), None) => {
                        *sets = named;
                        proxy.replace(rules)
                    }
                    (Ok(_), Some(_)) => bail!("expected that the rules are refused"),
                    (Err(error), None) => Err(error),
                    (Err(error), Some(words)) => {
                        let error = format!("{error:#}");
                        ensure!(
                            error.contains(words),
                            "expected a refusal with `{words}`, got: {error}"
                        );
                        Ok(())
                    }
                }
            }
            Event::State { t_ms, rule, expect } => {
                proxy.move_clock(at(*t_ms))?;
                let found = proxy.breaker_state(rule)?.name();
                ensure!(found == expect, "breaker {rule}: expected {expect}, got {found}");
                Ok(())
            }
            Event::Node { t_ms, resource, expect } => {
                proxy.move_clock(at(*t_ms))?;
                for (field, expected) in expect {
                    let found = proxy.field(resource, field).with_context(|| {
                        format!("the field `{field}` of a node is not supported")
                    })?;
                    #[expect(
                        clippy::cast_precision_loss,
                        reason = "a vector counts a few thousand"
                    )]
                    let same = (found as f64 - expected).abs() < 1e-9;
                    ensure!(
                        same,
                        "{field} of {resource}: expected {expected}, got {found}; {}",
                        proxy.describe(resource)
                    );
                }
                Ok(())
            }
        }
    }

    fn enter(&self, proxy: &mut Proxy, entry: &EntryEvent) -> Result<()> {
        ensure!(
            !entry.prioritized,
            "a prioritized entry, which borrows from later windows, is not supported"
        );
        let EntryEvent { repeat, resource, .. } = entry;
        let expectations = Expectations::read(&entry.expect, *repeat)?;
        let waits = if self.kind == "hotspot" { Waits::WholeMillis } else { Waits::Exact };
        let mut passed = 0;
        for call in 1..=*repeat {
            if !entry.rush {
                proxy.settle()?;
            }
            let answer = proxy.enter(&mut Asked {
                resource,
                batch: entry.batch,
                inbound: !entry.outbound,
                id: entry.id.as_deref(),
                outcome: outcome(entry.error, entry.status, entry.grpc_status),
                request: entry.request(call)?,
            });
            if !entry.rush {
                proxy.settle()?;
            }
            let expected = expectations.of(call, passed);
            if !expected.is_met_by(answer, waits) {
                bail!(
                    "call {call} of {repeat} to {resource}: expected {expected}, got {answer}; {}",
                    proxy.describe(resource)
                );
            }
            passed += u64::from(!matches!(answer, Answer::Block(_)));
        }
        proxy.settle()
    }
}

impl EntryEvent {
    /// The request of the call `number`.
    fn request(&self, number: u64) -> Result<VectorRequest> {
        let mut request = VectorRequest { origin: self.origin.clone(), ..VectorRequest::default() };
        for arg in &self.args {
            request.args.push(match arg.as_str() {
                Some(text) => Some(ParamValue::String(text.replace("{call}", &number.to_string()))),
                None => typed(arg)?,
            });
        }
        for (key, value) in &self.attachments {
            if let Some(value) = typed(value)? {
                request.attachments.insert(key.clone(), value);
            }
        }
        if let Some(described) = &self.request {
            request.describe(described)?;
        }
        Ok(request)
    }
}

/// How a call ends. An error is one that every breaker counts, whatever statuses it names.
fn outcome(error: bool, http_status: Option<u16>, grpc_status: Option<u32>) -> Outcome {
    if error {
        return Outcome::FAILED;
    }
    Outcome { http_status: http_status.or(Outcome::OK.http_status), grpc_status }
}
