//! Decisions that other implementations gave, against ours.
//!
//! A vector is a list of calls at given times with the answer that each must have. N real workers and a
//! real service run it on a simulated host that nobody interrupts; calls go to the workers in turn. What
//! is late in real life is on time here: around every call and every move of the clock all workers and
//! the service do everything that is due, so that vectors show the meaning of a rule, and the decisions
//! are the same for every number of workers. What this build does not run fails and says so.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt, fs,
    path::PathBuf,
    rc::Rc,
};

use anyhow::{Context as _, Result, bail, ensure};
use sentinel_core::{
    block::BlockType,
    config::{SERIES_MAX, ServiceConfig, Settings},
    rule::{Rule, compile::flow_rules_from_golang},
    stat::MetricBucket,
    time::Span,
};
use sentinel_engine::{
    document,
    service::Service,
    worker::{Entry, Verdict, Worker},
};
use sentinel_sim::{host::SimHost, process::Process};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How a replay ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Vectors whose every expectation was met.
    pub passed: u64,
    /// The others, those that this build does not run included.
    pub failed: u64,
}

/// Replays all vectors of `files` on `workers` workers, 1 or more. `say` gets one line for each vector
/// and a last one, `N passed, M failed`.
///
/// # Errors
/// If a file cannot be read or holds no vectors. A vector that fails is no error.
pub fn replay(files: &[PathBuf], workers: u16, mut say: impl FnMut(&str)) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for path in files {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let vectors = vectors(&text).with_context(|| path.display().to_string())?;
        for vector in &vectors {
            match vector.run(workers) {
                Ok(()) => {
                    outcome.passed += 1;
                    say(&format!("ok {}", vector.id));
                }
                Err(reason) => {
                    outcome.failed += 1;
                    say(&format!("FAILED {}: {reason:#}", vector.id));
                }
            }
        }
    }
    say(&format!("{} passed, {} failed", outcome.passed, outcome.failed));
    Ok(outcome)
}

/// The vectors that stand in `text`.
///
/// # Errors
/// If it is no file of vectors.
pub fn vectors(text: &str) -> Result<Vec<Vector>> {
    #[derive(Deserialize)]
    struct File {
        vectors: Vec<Vector>,
    }
    let file: File = serde_json::from_str(text).context("this is no file of vectors")?;
    Ok(file.vectors)
}

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
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Event {
    Entry {
        t_ms: u64,
        resource: String,
        #[serde(default = "one")]
        repeat: u64,
        #[serde(default = "one_token")]
        batch: u32,
        id: Option<String>,
        #[serde(default)]
        error: bool,
        expect: Value,
        // What flow rules do not look at.
        #[serde(default, rename = "args")]
        _args: Value,
        #[serde(default, rename = "attachments")]
        _attachments: Value,
        #[serde(default, rename = "outbound")]
        _outbound: bool,
    },
    Exit {
        t_ms: u64,
        id: String,
        repeat: Option<usize>,
        #[serde(default)]
        error: bool,
        // Follows from the times.
        #[serde(default, rename = "rt_ms")]
        _rt_ms: Value,
    },
    LoadRules {
        t_ms: u64,
        rules: Map<String, Value>,
    },
    Node {
        t_ms: u64,
        resource: String,
        expect: BTreeMap<String, u64>,
    },
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
        if let Some(form) = &self.form {
            bail!("a {form} of `{}` is not supported", self.kind);
        }
        ensure!(self.dialect == "go", "the dialect `{}` is not supported", self.dialect);
        let mut proxy = Proxy::start(workers, self.t0_ms, rules_of(&self.rules)?);
        for (index, event) in self.events.iter().enumerate() {
            let number = index + 1;
            let t_ms = event.get("t_ms").and_then(Value::as_u64).unwrap_or_default();
            Event::deserialize(event)
                .map_err(anyhow::Error::from)
                .and_then(|event| self.run_event(&mut proxy, &event))
                .with_context(|| format!("event {number} at {t_ms} ms"))?;
        }
        Ok(())
    }

    fn run_event(&self, proxy: &mut Proxy, event: &Event) -> Result<()> {
        let at = |t_ms: u64| self.t0_ms.saturating_add(t_ms);
        match event {
            Event::Entry { t_ms, resource, repeat, batch, id, error, expect, .. } => {
                proxy.move_clock(at(*t_ms));
                let expected = Expected::list(expect, *repeat)?;
                let mut call = 0_u64;
                for (count, expected) in &expected {
                    for _ in 0..*count {
                        call += 1;
                        let answer = proxy.enter(resource, *batch, id.as_deref(), *error);
                        if !expected.is_met_by(answer) {
                            bail!(
                                "call {call} of {repeat} to {resource}: expected {expected}, got {answer}; {}",
                                proxy.describe(resource)
                            );
                        }
                    }
                }
                Ok(())
            }
            Event::Exit { t_ms, id, repeat, error, .. } => {
                proxy.move_clock(at(*t_ms));
                proxy.exit(id, *repeat, *error)
            }
            Event::LoadRules { t_ms, rules } => {
                proxy.move_clock(at(*t_ms));
                proxy.replace(rules_of(rules)?);
                Ok(())
            }
            Event::Node { t_ms, resource, expect } => {
                proxy.move_clock(at(*t_ms));
                for (field, expected) in expect {
                    let found = proxy.field(resource, field).with_context(|| {
                        format!("the field `{field}` of a node is not supported")
                    })?;
                    ensure!(
                        found == *expected,
                        "{field} of {resource}: expected {expected}, got {found}"
                    );
                }
                Ok(())
            }
        }
    }
}

/// The rules that a vector speaks of, if this build runs all of them.
fn rules_of(rules: &Map<String, Value>) -> Result<Vec<Rule>> {
    let mut flow = Vec::new();
    for (kind, list) in rules {
        let nothing = list.as_array().is_some_and(Vec::is_empty);
        if nothing {
            continue;
        }
        ensure!(kind == "flow", "rules of kind `{kind}` are not supported");
        let nodes = document::documents(list.to_string().as_bytes())?;
        let node = nodes.first().context("there is no list of rules")?;
        flow = flow_rules_from_golang(node, &Settings::DEFAULT).map_err(|refusals| {
            let lines: Vec<String> = refusals.lines().collect();
            anyhow::anyhow!("the rules are refused: {}", lines.join("; "))
        })?;
    }
    Ok(flow)
}

/// What a vector says of one call, or of several.
#[derive(Debug)]
enum Expected {
    Pass,
    Block,
    BlockBy(BlockType),
    Wait(u64),
}

impl Expected {
    /// How often each is expected, in order, for `repeat` calls.
    fn list(expect: &Value, repeat: u64) -> Result<Vec<(u64, Self)>> {
        let Value::Array(runs) = expect else { return Ok(vec![(repeat, Self::read(expect)?)]) };
        let mut list = Vec::new();
        for run in runs {
            match run.as_array().map(Vec::as_slice) {
                Some([count, expect]) => {
                    let count =
                        count.as_u64().context("a count of calls must be a whole number")?;
                    list.push((count, Self::read(expect)?));
                }
                Some(_) | None => bail!("{run} is no pair of a count and an expectation"),
            }
        }
        let counted: u64 = list.iter().map(|(count, _)| count).sum();
        ensure!(counted == repeat, "{counted} calls have an expectation, but there are {repeat}");
        Ok(list)
    }

    fn read(expect: &Value) -> Result<Self> {
        if let Some(wait) = expect.get("wait_ms").and_then(Value::as_u64) {
            return Ok(Self::Wait(wait));
        }
        Ok(match expect.as_str() {
            Some("pass") => Self::Pass,
            Some("block") => Self::Block,
            Some("block:flow") => Self::BlockBy(BlockType::FlowControl),
            Some("block:isolation") => Self::BlockBy(BlockType::Isolation),
            Some("block:circuitbreaking") => Self::BlockBy(BlockType::CircuitBreaking),
            Some("block:system") => Self::BlockBy(BlockType::System),
            Some("block:hotspot") => Self::BlockBy(BlockType::HotSpotParamFlow),
            Some("block:authority") => Self::BlockBy(BlockType::Authority),
            Some(_) | None => bail!("the expectation {expect} is not supported"),
        })
    }

    fn is_met_by(&self, answer: Answer) -> bool {
        match self {
            Self::Pass => answer == Answer::Pass,
            Self::Block => matches!(answer, Answer::Block(_)),
            Self::BlockBy(block_type) => answer == Answer::Block(*block_type),
            // No rule that this build runs makes a request wait.
            Self::Wait(_) => false,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Block => f.write_str("block"),
            Self::BlockBy(block_type) => Answer::Block(*block_type).fmt(f),
            Self::Wait(wait_ms) => write!(f, "pass after {wait_ms} ms"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Pass,
    Block(BlockType),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block_type = match self {
            Self::Pass => return f.write_str("pass"),
            Self::Block(block_type) => block_type,
        };
        let kind = match block_type {
            BlockType::FlowControl => "flow",
            BlockType::Isolation => "isolation",
            BlockType::CircuitBreaking => "circuitbreaking",
            BlockType::System => "system",
            BlockType::HotSpotParamFlow => "hotspot",
            BlockType::Authority => "authority",
        };
        write!(f, "block:{kind}")
    }
}

/// The workers and the service of one process, and its clock.
struct Proxy {
    process: Rc<RefCell<Process>>,
    service: (SimHost<'static>, Service),
    /// In turn: the next call goes to the first.
    workers: VecDeque<(SimHost<'static>, Worker)>,
    open: BTreeMap<String, VecDeque<(u64, Entry)>>,
    started_ms: u64,
}

impl Proxy {
    fn start(workers: u16, now_ms: u64, rules: Vec<Rule>) -> Self {
        let wall_ns = now_ms.saturating_mul(NANOS_PER_MILLI);
        let process = Rc::new(RefCell::new(Process::new(now_ms, wall_ns)));
        let mut host = SimHost::undisturbed(&process, 0);
        let service = Service::configure(&mut host, config(rules));
        let start = |vm| {
            let mut host = SimHost::undisturbed(&process, u32::from(vm));
            let worker = Worker::start(&mut host);
            (host, worker)
        };
        let workers = (1..=workers.max(1)).map(start).collect();
        let service = (host, service);
        let open = BTreeMap::new();
        let mut proxy = Self { process, service, workers, open, started_ms: now_ms };
        proxy.synchronize();
        proxy
    }

    fn move_clock(&mut self, now_ms: u64) {
        self.synchronize();
        let passed_ms = now_ms.saturating_sub(self.started_ms);
        self.process.borrow_mut().monotonic_ns = passed_ms.saturating_mul(NANOS_PER_MILLI);
        self.synchronize();
    }

    fn enter(&mut self, resource: &str, batch: u32, id: Option<&str>, error: bool) -> Answer {
        self.synchronize();
        self.workers.rotate_left(1);
        let Some((host, worker)) = self.workers.back_mut() else { return Answer::Pass };
        let answer = match worker.enter(host, resource.as_bytes(), batch, None) {
            Verdict::Blocked(blocked) => Answer::Block(blocked.block_type),
            Verdict::Pass(entry) => {
                match id {
                    Some(id) => {
                        let open = self.open.entry(id.to_owned()).or_default();
                        open.push_back((worker.incarnation(), entry));
                    }
                    None => worker.exit(host, entry, error),
                }
                Answer::Pass
            }
        };
        self.synchronize();
        answer
    }

    fn exit(&mut self, id: &str, repeat: Option<usize>, error: bool) -> Result<()> {
        let open = self.open.entry(id.to_owned()).or_default();
        let count = repeat.unwrap_or(open.len());
        ensure!(
            count <= open.len(),
            "{count} exits of `{id}`, but only {} entries are open",
            open.len()
        );
        let ending: Vec<(u64, Entry)> = open.drain(..count).collect();
        for (incarnation, entry) in ending {
            self.synchronize();
            let of_entry = |(_, worker): &&mut (_, Worker)| worker.incarnation() == incarnation;
            if let Some((host, worker)) = self.workers.iter_mut().find(of_entry) {
                worker.exit(host, entry, error);
            }
            self.synchronize();
        }
        Ok(())
    }

    fn replace(&mut self, rules: Vec<Rule>) {
        self.synchronize();
        let (host, service) = &mut self.service;
        service.replace(host, config(rules));
        self.synchronize();
    }

    /// Everybody does what is due, at no time: workers give back and report, the service folds and
    /// publishes, workers take that up.
    fn synchronize(&mut self) {
        self.settle_workers();
        let (host, service) = &mut self.service;
        service.settle(host);
        self.settle_workers();
    }

    fn settle_workers(&mut self) {
        for (host, worker) in &mut self.workers {
            worker.settle(host);
        }
    }

    /// What the service has counted of a resource in the last second.
    fn second(&mut self, resource: &str) -> MetricBucket {
        let (host, service) = &mut self.service;
        service.window(host, resource.as_bytes(), Span::from_millis(1_000))
    }

    /// One number of a resource's statistic; `None` if nobody counts it.
    fn field(&mut self, resource: &str, field: &str) -> Option<u64> {
        let second = self.second(resource);
        Some(match field {
            "pass_qps" | "pass_sum" => second.pass,
            "block_qps" | "block_sum" => second.block,
            "complete_qps" | "complete_sum" => second.complete,
            "error_qps" | "error_sum" => second.error,
            "avg_rt" => second.rt_avg_ms(),
            "concurrency" => self.service.1.in_flight(resource.as_bytes()),
            _ => return None,
        })
    }

    fn describe(&mut self, resource: &str) -> String {
        let MetricBucket { pass, block, .. } = self.second(resource);
        let in_flight = self.service.1.in_flight(resource.as_bytes());
        format!("state: {pass} passed and {block} blocked in the last second, {in_flight} open")
    }
}

fn config(rules: Vec<Rule>) -> ServiceConfig {
    let metrics_resources = Vec::new();
    ServiceConfig {
        rules,
        metrics_resources,
        series_max: SERIES_MAX.default,
        settings: Settings::DEFAULT,
    }
}

const NANOS_PER_MILLI: u64 = 1_000_000;
