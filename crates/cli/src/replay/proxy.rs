//! The workers and the service of one process, and its clock.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    rc::Rc,
};

use anyhow::{Context as _, Result, bail, ensure};
use sentinel_core::{
    config::{SERIES_MAX, ServiceConfig, Settings},
    ledger::breaker::BreakerState,
    rule::Rule,
    stat::MetricBucket,
    time::{Nanos, Span},
};
use sentinel_engine::{
    service::Service,
    worker::{Call, Entry, Outcome, Verdict, Worker},
};
use sentinel_sim::{host::SimHost, process::Process};
use sentinel_wire::key::Key;

use super::{expect::Answer, request::VectorRequest};

/// Envoy's workers and the service, on a clock that only moves when told to.
pub(super) struct Proxy {
    process: Rc<RefCell<Process>>,
    service: (SimHost<'static>, Service),
    /// In turn: the next call goes to the first.
    workers: VecDeque<(SimHost<'static>, Worker)>,
    /// Admitted entries that have not ended, by their ids, with the workers that admitted them.
    open: BTreeMap<String, VecDeque<(u64, Entry)>>,
    started_ms: u64,
    now_ms: u64,
    /// What Envoy says of itself: pressure on the CPU and bytes in use.
    pressure: (Option<f64>, Option<u64>),
    streams: u32,
    /// Resources whose numbers the vector asks for.
    watched: Vec<String>,
}

/// One call of an entry.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// What is asked for.
    pub(super) resource: &'a str,
    /// How many tokens it costs.
    pub(super) batch: u32,
    /// Whether it comes from outside.
    pub(super) inbound: bool,
    /// Under which name it stays open; `None`: it ends at once, also if it waits.
    pub(super) id: Option<&'a str>,
    /// How it ends, if it does so at once.
    pub(super) outcome: Outcome,
    /// The request.
    pub(super) request: VectorRequest,
}

impl Proxy {
    /// A process that starts at `now_ms`, in milliseconds since the epoch. Its operator wants to know the
    /// numbers of the resources in `watched`.
    pub(super) fn start(
        workers: u16,
        now_ms: u64,
        rules: Vec<Rule>,
        watched: Vec<String>,
    ) -> Result<Self> {
        let wall_ns = now_ms.saturating_mul(NANOS_PER_MILLI);
        let process = Rc::new(RefCell::new(Process::new(now_ms, wall_ns)));
        process.borrow_mut().keep_writes();
        let mut host = SimHost::undisturbed(&process, 0);
        let service = Service::configure(&mut host, config(rules, &watched));
        let start = |vm| {
            let mut host = SimHost::undisturbed(&process, u32::from(vm));
            let worker = Worker::start(&mut host);
            (host, worker)
        };
        let mut proxy = Self {
            workers: (1..=workers.max(1)).map(start).collect(),
            process,
            service: (host, service),
            open: BTreeMap::new(),
            started_ms: now_ms,
            now_ms,
            pressure: (None, None),
            streams: 0,
            watched,
        };
        proxy.settle()?;
        Ok(proxy)
    }

    /// Goes on to `now_ms`. On the way everybody ticks once a second, as they do in real life: nobody has
    /// died. A time before the present one is what a worker sees that was kept waiting after it had read its
    /// clock.
    pub(super) fn move_clock(&mut self, now_ms: u64) -> Result<()> {
        self.settle()?;
        loop {
            let next_ms = now_ms.min(self.now_ms.saturating_add(TICK_MS));
            self.now_ms = next_ms;
            let passed_ms = next_ms.saturating_sub(self.started_ms);
            self.process.borrow_mut().monotonic_ns = passed_ms.saturating_mul(NANOS_PER_MILLI);
            self.settle()?;
            if next_ms == now_ms {
                return Ok(());
            }
        }
    }

    /// Asks the next worker.
    pub(super) fn enter(&mut self, asked: &mut Asked<'_>) -> Answer {
        self.workers.rotate_left(1);
        self.streams = self.streams.wrapping_add(1);
        let call = Call {
            resource: asked.resource.as_bytes(),
            batch: asked.batch,
            inbound: asked.inbound,
            stream: self.streams,
            before_first_rules: None,
        };
        let now = Nanos::from_millis(self.now_ms);
        let Some((host, worker)) = self.workers.back_mut() else { return Answer::Pass };
        let (answer, entry) = match worker.enter(host, &call, &mut asked.request) {
            Verdict::Blocked(blocked) => return Answer::Block(blocked.block_type),
            Verdict::Pass(entry) => (Answer::Pass, entry),
            Verdict::Wait(entry, until) => (Answer::Wait(until.since(now)), entry),
        };
        match asked.id {
            Some(id) => {
                let open = self.open.entry(id.to_owned()).or_default();
                open.push_back((worker.incarnation(), entry));
            }
            None => worker.exit(host, entry, asked.outcome),
        }
        answer
    }

    /// Ends the oldest `count` entries of `id`, or all of them.
    pub(super) fn exit(&mut self, id: &str, count: Option<usize>, outcome: Outcome) -> Result<()> {
        let open = self.open.entry(id.to_owned()).or_default();
        let count = count.unwrap_or(open.len());
        ensure!(
            count <= open.len(),
            "{count} exits of `{id}`, but only {} entries are open",
            open.len()
        );
        let ending: Vec<(u64, Entry)> = open.drain(..count).collect();
        for (incarnation, entry) in ending {
            self.settle()?;
            let of_entry = |(_, worker): &&mut (_, Worker)| worker.incarnation() == incarnation;
            let (host, worker) =
                self.workers.iter_mut().find(of_entry).context("the entry's worker is gone")?;
            worker.exit(host, entry, outcome);
            self.settle()?;
        }
        Ok(())
    }

    /// Puts a new rule set into force.
    pub(super) fn replace(&mut self, rules: Vec<Rule>) -> Result<()> {
        self.settle()?;
        let (host, service) = &mut self.service;
        service.replace(host, config(rules, &self.watched));
        self.settle()
    }

    /// From now on Envoy says that this is the pressure on its CPU; `None`: it says nothing.
    pub(super) fn set_cpu(&mut self, pressure: Option<f64>) -> Result<()> {
        self.pressure.0 = pressure;
        self.settle()
    }

    /// From now on Envoy says that it uses so many bytes; `None`: it says nothing.
    pub(super) fn set_memory(&mut self, bytes: Option<u64>) -> Result<()> {
        self.pressure.1 = bytes;
        self.settle()
    }

    /// Everybody does what is due, at no time, until nothing is left to do: workers give back and report, the
    /// service folds, decides and publishes, workers take that up.
    ///
    /// # Errors
    /// If that never ends: then somebody keeps changing what others react to.
    pub(super) fn settle(&mut self) -> Result<()> {
        const ROUNDS_MAX: usize = 10;

        for _ in 0..ROUNDS_MAX {
            self.process.borrow_mut().take_writes();
            self.settle_workers();
            let (host, service) = &mut self.service;
            let (cpu, memory) = self.pressure;
            service.set_pressure(host, cpu, memory);
            service.settle(host);
            self.settle_workers();
            let writes = self.process.borrow_mut().take_writes();
            // The others are the heartbeats of those who live.
            let matters = |key: Key| match key {
                Key::Ledger(_) | Key::Set(_) | Key::Rules | Key::Decisions => true,
                Key::Seeds
                | Key::Workers
                | Key::Service
                | Key::Missing
                | Key::Carried
                | Key::CarriedSet(_)
                | Key::Source(_)
                | Key::Signal(_) => false,
            };
            if !writes.iter().any(|write| matters(write.key)) {
                return Ok(());
            }
        }
        bail!("workers and service have not come to rest after {ROUNDS_MAX} rounds")
    }

    fn settle_workers(&mut self) {
        for (host, worker) in &mut self.workers {
            worker.settle(host);
            // Entries that waited may go; in a vector nobody watches them do so.
            while worker.due(host).is_some() {}
        }
    }

    /// The state of the circuit breaker `rule`: its id, or else the resource that it guards.
    pub(super) fn breaker_state(&mut self, rule: &str) -> Result<BreakerState> {
        let (host, service) = &mut self.service;
        let is_breaker = |found: &&Rule| matches!(found, Rule::CircuitBreaker(_));
        let breakers = || service.rules().iter().filter(is_breaker);
        let found = breakers()
            .find(|found| found.id() == rule)
            .or_else(|| breakers().find(|found| found.resource() == rule));
        let id = found.map(|found| found.id().to_owned());
        let id = id.with_context(|| format!("there is no circuit breaker `{rule}`"))?;
        service.breaker_state(host, &id).with_context(|| format!("the breaker `{id}` has no state"))
    }

    /// What the service has counted of a resource in the last second.
    fn second(&mut self, resource: &str) -> MetricBucket {
        let (host, service) = &mut self.service;
        service.window(host, resource.as_bytes(), Span::from_millis(1_000))
    }

    /// One number of a resource's statistic; `None` if nobody counts it.
    pub(super) fn field(&mut self, resource: &str, field: &str) -> Option<u64> {
        let second = self.second(resource);
        Some(match field {
            "pass_qps" | "pass_sum" => second.pass,
            "block_qps" | "block_sum" => second.block,
            "complete_qps" | "complete_sum" => second.complete,
            "error_qps" | "error_sum" => second.error,
            "rt_sum" => second.rt_ms,
            "avg_rt" => second.rt_avg_ms(),
            "min_rt" => second.rt_min_ms(),
            "concurrency" => self.service.1.in_flight(resource.as_bytes()),
            _ => return None,
        })
    }

    /// What is known of a resource, for a failure.
    pub(super) fn describe(&mut self, resource: &str) -> String {
        let MetricBucket { pass, block, complete, error, .. } = self.second(resource);
        let in_flight = self.service.1.in_flight(resource.as_bytes());
        let mut text = format!(
            "state: {pass} passed, {block} blocked, {complete} completed and {error} failed in the last second, \
             {in_flight} open"
        );
        let ids: Vec<(String, bool)> = self
            .service
            .1
            .rules()
            .iter()
            .map(|rule| (rule.id().to_owned(), matches!(rule, Rule::CircuitBreaker(_))))
            .collect();
        let mut separator = "; rules:";
        for (id, is_breaker) in ids {
            let state = if is_breaker { self.breaker_state(&id).ok() } else { None };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator} {id}");
            if let Some(state) = state {
                let _ = write!(text, " ({})", state.name());
            }
            separator = ",";
        }
        text
    }
}

/// A service's configuration with these rules and nothing else.
pub(crate) fn config(rules: Vec<Rule>, watched: &[String]) -> ServiceConfig {
    ServiceConfig {
        rules,
        metrics_resources: watched.to_vec(),
        series_max: SERIES_MAX.default,
        // Who answers is `Proxy::pressure`.
        envoy_stats: Some("admin".to_owned()),
        settings: Settings::DEFAULT,
        ..ServiceConfig::default()
    }
}

const NANOS_PER_MILLI: u64 = 1_000_000;

/// How often somebody who has nothing to do ticks.
const TICK_MS: u64 = 1_000;
