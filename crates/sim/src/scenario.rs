//! What happens in one run: who asks for what, and what goes wrong.
//!
//! A scenario says when things happen from outside; in which order the VMs' calls then fall is drawn
//! from the seed as the run goes on. Times are nanoseconds since the start.

use std::rc::Rc;

use sentinel_core::{
    config::{SERIES_MAX, ServiceConfig, Settings},
    rule::{Control, Rule, Target, TokenCalculate, Unit},
};
use sentinel_engine::document;

use crate::rules::{change_threshold, draw_rule, flow, name, pace_messages, pick, throttling};

/// One millisecond.
pub const MS: u64 = 1_000_000;

/// One second.
pub const SECOND: u64 = 1_000 * MS;

/// One run's outside.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Envoy's worker threads, 1 or more.
    pub workers: usize,
    /// The wall clock at the start, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Rule sets and when each is put in force; the first at 0.
    pub rule_sets: Vec<(u64, Vec<Rule>)>,
    /// Who asks.
    pub traffic: Vec<Traffic>,
    /// What goes wrong, and when.
    pub faults: Vec<(u64, Fault)>,
    /// How long requests keep coming.
    pub duration: u64,
    /// How long the proxy then has before everything is counted.
    pub grace: u64,
    /// One of so many calls of a worker is followed by the loss of its thread for up to some
    /// milliseconds, or until a bucket has ended; 0 for none.
    pub stall_one_in: u32,
    /// Whether there is a service at all.
    pub service: bool,
    /// When it starts.
    pub service_from: u64,
    /// Root contexts of the filter whose configurations carry rules, the oldest first.
    pub roots: Vec<Root>,
    /// The settings that go with the rules.
    pub settings: Settings,
    /// From when until when every request ends as an error.
    pub outages: Vec<(u64, u64)>,
    /// From when until when one of so many host calls fails.
    pub failures: Option<Failures>,
    /// One of so many wake-ups is lost; 0: none.
    pub wake_ups_lost_one_in: u32,
    /// One of so many wake-ups comes twice; 0: none.
    pub wake_ups_repeated_one_in: u32,
    /// When a second service with the same configuration starts, if one does.
    pub second_service: Option<u64>,
    /// Whether, after all that, every resource whose rules allow it must be reached again.
    pub recovers: bool,
}

/// Host calls that fail, without having done anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    /// From when.
    pub from: u64,
    /// Until when.
    pub until: u64,
    /// One of so many calls, 1 or more.
    pub one_in: u32,
}

/// A root context of the filter, in every VM of it: a listener's, or that of an update of it.
#[derive(Clone, Debug)]
pub struct Root {
    /// The rules that its configuration carries: flow rules of a second.
    pub rules: Vec<Rule>,
    /// When Envoy configures it; each VM within [`Root::SPREAD`] after that.
    pub from: u64,
    /// When it goes, as long as it does: with the listener that has drained, or at once where an update came by ECDS.
    pub until: Option<u64>,
}

/// A stream of requests.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The resource asked for.
    pub resource: Rc<str>,
    /// How the requests come.
    pub pattern: Pattern,
    /// How much each counts.
    pub batch: u32,
    /// How long an admitted request is open, at most.
    pub open_ns: u64,
    /// From how many users: each request has one of them in its header `x-user`; 0: none has.
    pub users: u32,
    /// One of so many ends as an error; 0: none.
    pub fails_one_in: u32,
    /// One of so many that wait is given up by its client; 0: none.
    pub gives_up_one_in: u32,
    /// Pieces of a stream that its client sends while it is open, each with one message or some.
    pub pieces: u32,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// So many a second on average, each on any worker, whatever is answered.
    Flood {
        /// Requests a second.
        per_second: u32,
    },
    /// One client that asks again when it has its answer.
    Sequential {
        /// On a new connection each time, which any worker may get.
        reconnects: bool,
    },
    /// So many at once around each multiple of half a second.
    BucketEnds {
        /// Requests each time.
        burst: u32,
    },
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A worker's VM traps at its call that is so many calls away.
    TrapWorker {
        /// Which thread.
        worker: usize,
        /// Calls it still makes.
        after_calls: u32,
    },
    /// The service's VM traps likewise. Envoy revives it at the next flush of its statistics.
    TrapService {
        /// Calls it still makes.
        after_calls: u32,
    },
    /// The service's VM traps and nobody revives it.
    KillService,
    /// The main thread is busy with something else for so long.
    StallMain(u64),
    /// The wall clock is set forward by so much.
    StepWall(u64),
    /// The wall clock is set back by so much.
    StepWallBack(u64),
    /// Envoy tries the service's configuration in a VM that it throws away.
    Canary,
    /// Envoy tries a configuration of the filter with rules, in a VM that gets no tick, and rejects the update.
    FilterCanary,
    /// An update brings a new root context, and the one that drove a worker's timer is gone with its timer.
    ReplaceRoot {
        /// Which thread.
        worker: usize,
    },
}

impl Scenario {
    /// `workers` workers under `rules`, with nothing wrong and nobody asking.
    pub fn quiet(workers: usize, rules: Vec<Rule>) -> Self {
        Self {
            workers,
            wall_ns: 1_900_000_020 * SECOND,
            rule_sets: vec![(0, rules)],
            traffic: Vec::new(),
            faults: Vec::new(),
            duration: 2 * SECOND,
            grace: 0,
            stall_one_in: 0,
            service: true,
            service_from: 0,
            roots: Vec::new(),
            settings: Settings::DEFAULT,
            outages: Vec::new(),
            failures: None,
            wake_ups_lost_one_in: 0,
            wake_ups_repeated_one_in: 0,
            second_service: None,
            recovers: false,
        }
    }

    /// The same with one more stream of requests.
    #[must_use]
    pub fn with(mut self, resource: &str, pattern: Pattern) -> Self {
        self.traffic.push(Traffic::of(resource, pattern));
        self
    }

    /// Whether any rule needs the service, so that frames go at once.
    pub(crate) fn needs_service(&self) -> bool {
        self.rule_sets.iter().flat_map(|(_, rules)| rules).any(Rule::needs_service)
    }

    /// Whether every request that is admitted now ends as an error.
    pub(crate) fn is_out(&self, now: u64) -> bool {
        self.outages.iter().any(|(from, until)| (*from..*until).contains(&now))
    }

    /// What `seed` says.
    pub fn from_seed(seed: u64) -> Self {
        // Not the numbers that the run itself draws.
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5ce0_a210_5ce0_a210);
        let mut scenario = Self::quiet(random.usize(1..=6), Vec::new());
        scenario.wall_ns += random.u64(..60 * SECOND);
        scenario.duration = random.u64(1_200 * MS..4 * SECOND);
        scenario.stall_one_in = *pick(&mut random, &[0, 1_000, 5_000, 20_000]);

        let resources = random.usize(1..=3);
        let mut rules = Vec::new();
        for resource in 0..resources {
            for index in 0..random.usize(1..=3) {
                rules.push(draw_rule(&mut random, &format!("rule-{resource}-{index}"), resource));
            }
        }
        if random.u8(..10) == 0 {
            // One that refuses after the other has given its slot.
            let threshold = f64::from(random.u32(5..200));
            for (id, waits_ms) in [("pace-0", 2_000), ("pace-1", *pick(&mut random, &[0, 20]))] {
                rules.push(throttling(id, &name(0), threshold, waits_ms));
            }
        }
        scenario.draw_traffic(&mut random, &rules, resources);
        if rules.iter().any(|rule| matches!(rule, Rule::CircuitBreaker(_))) {
            let from = random.u64(..scenario.duration);
            scenario.outages.push((from, from + random.u64(100 * MS..1_500 * MS)));
        }
        // Messages of one chunk may not fall under different sets, else nobody could say which of them had which slots.
        let is_paced = random.u8(..5) == 0 && pace_messages(&mut random, &mut rules);
        if is_paced {
            for traffic in &mut scenario.traffic {
                traffic.pieces = traffic.pieces.max(random.u32(..4));
                traffic.open_ns = traffic.open_ns.max(40 * MS);
            }
        }
        scenario.rule_sets = vec![(0, rules)];
        match random.u8(..9) {
            0..=2 if !is_paced => scenario.draw_changes(&mut random),
            3 | 4 if !is_paced => scenario.draw_roots(&mut random, resources),
            _ => {}
        }
        if random.u8(..10) == 0 {
            scenario.service_from = random.u64(..scenario.duration - 100 * MS);
        }
        if random.bool() {
            scenario.draw_faults(&mut random);
        }
        if random.u8(..4) == 0 {
            scenario.wake_ups_lost_one_in = *pick(&mut random, &[1, 2, 10]);
            scenario.wake_ups_repeated_one_in = *pick(&mut random, &[0, 1, 3]);
        }
        if random.u8(..8) == 0 {
            scenario.second_service = Some(random.u64(..scenario.duration));
        }
        if random.u8(..10) == 0 {
            let from = random.u64(..scenario.duration);
            let until = from + random.u64(5 * MS..800 * MS);
            let one_in = *pick(&mut random, &[1, 3, 30]);
            scenario.failures = Some(Failures { from, until, one_in });
            scenario.grace = scenario.grace.max(SECOND);
        }
        let traps = |(_, fault): &(u64, Fault)| matches!(fault, Fault::TrapWorker { .. });
        if random.u8(..6) == 0 && !scenario.faults.iter().any(traps) {
            // Requests that are open for longer than a worker is taken to live without a word.
            scenario.settings.worker_ttl_ms = 2_000;
            scenario.settings.orphan_ttl_ms = 1_000;
            scenario.duration = scenario.duration.max(6 * SECOND);
            for traffic in &mut scenario.traffic {
                traffic.open_ns = 7 * SECOND;
            }
        }
        scenario.recovers = !scenario.is_faultless();
        scenario
    }

    /// Whether everybody lives and the main thread runs, throughout.
    pub fn is_faultless(&self) -> bool {
        let is_harmless = |fault: &Fault| match fault {
            Fault::StepWall(_)
            | Fault::StepWallBack(_)
            | Fault::Canary
            | Fault::FilterCanary
            | Fault::ReplaceRoot { .. } => true,
            Fault::TrapWorker { .. }
            | Fault::TrapService { .. }
            | Fault::KillService
            | Fault::StallMain(_) => false,
        };
        self.service
            && self.failures.is_none()
            && self.faults.iter().all(|(_, fault)| is_harmless(fault))
    }

    fn draw_traffic(&mut self, random: &mut fastrand::Rng, rules: &[Rule], resources: usize) {
        for index in 0..resources {
            let resource = name(index);
            let per_second =
                rules.iter().filter(|rule| rule.resource() == resource).filter_map(rate).max();
            let flood = per_second.unwrap_or(50).saturating_mul(random.u32(2..9)).clamp(20, 1_500);
            let pattern = match random.u8(..8) {
                0..=3 => Pattern::Flood { per_second: flood },
                4 => Pattern::Flood { per_second: random.u32(1..40) },
                5 => Pattern::Sequential { reconnects: false },
                6 => Pattern::Sequential { reconnects: true },
                _ => Pattern::BucketEnds { burst: random.u32(5..150) },
            };
            self.traffic.push(Traffic {
                batch: if random.u8(..6) == 0 { random.u32(2..4) } else { 1 },
                open_ns: *pick(random, &[0, MS, 40 * MS, 200 * MS, 2 * SECOND]),
                pieces: *pick(random, &[0, 0, 1, 5]),
                users: *pick(random, &[0, 1, 3, 40, 1_000]),
                fails_one_in: *pick(random, &[0, 0, 2, 20]),
                gives_up_one_in: *pick(random, &[0, 5]),
                ..Traffic::of(&resource, pattern)
            });
        }
        if random.bool() {
            let pattern = Pattern::Flood { per_second: 30 };
            self.traffic.push(Traffic { open_ns: MS, ..Traffic::of("/unruled", pattern) });
        }
    }

    /// Whether the same rules hold from the beginning to the end.
    pub(crate) fn is_steady(&self) -> bool {
        self.rule_sets.len() == 1 && self.roots.is_empty() && self.service_from == 0
    }

    /// The service's configuration with a rule set of the scenario, counted from 0.
    pub(crate) fn config(&self, index: usize) -> ServiceConfig {
        let rules = self.rule_sets.get(index).map(|(_, rules)| rules.clone()).unwrap_or_default();
        let base = config(rules.clone(), self.settings.clone());
        if self.roots.is_empty() {
            return base;
        }
        // To be merged with what roots carry it has to be a document as well.
        let node = document::configuration(&configuration(&rules)).ok();
        let read = node.and_then(|node| ServiceConfig::from_node(&node).ok());
        let documents = read.map(|read| read.documents).unwrap_or_default();
        ServiceConfig { documents, ..base }
    }

    /// One to four root contexts one after the other, of one plugin, each with one rule that the others have as well and
    /// maybe one of its own. Each lives on beside the next for a while, or goes when that comes. The service's own rules
    /// are those that a document can say so.
    fn draw_roots(&mut self, random: &mut fastrand::Rng, resources: usize) {
        for (_, rules) in &mut self.rule_sets {
            rules.retain(|rule| {
                matches!(rule, Rule::Flow(flow) if flow.control == Control::Reject
                    && flow.calculate == TokenCalculate::Direct
                    && flow.common.unit == Unit::Request
                    && !flow.common.shadow
                    && matches!(flow.target, Target::Resource(_)))
            });
        }
        let last = self.duration - 200 * MS;
        let mut starts: Vec<u64> = (0..random.u64(1..4)).map(|_| random.u64(..last)).collect();
        if random.bool() {
            starts.push(0);
        }
        starts.sort_unstable();
        // The first tick of the one is over before the next one comes.
        starts.dedup_by_key(|start| *start / (100 * MS));
        let shared = name(random.usize(..resources));
        for (index, from) in starts.iter().enumerate() {
            let mut rules = vec![flow("carried", &shared, f64::from(random.u32(1..100)), 1_000)];
            if random.bool() {
                let resource = name(random.usize(..resources));
                let threshold = f64::from(random.u32(1..100));
                rules.push(flow(&format!("carried-{index}"), &resource, threshold, 1_000));
            }
            let until = starts.get(index + 1).map(|next| match random.u8(..3) {
                0 => next + 2 * Root::SPREAD,
                _ => next + random.u64(2 * Root::SPREAD..SECOND),
            });
            // The last one may go as well, with its listener.
            let until = until.or_else(|| (random.u8(..3) == 0).then(|| random.u64(*from..last)));
            let until = until.map(|until| until.max(from + 2 * Root::SPREAD));
            let until = until.filter(|until| *until < self.duration);
            self.roots.push(Root { rules, from: *from, until });
        }
    }

    fn draw_changes(&mut self, random: &mut fastrand::Rng) {
        for _ in 0..random.u8(1..4) {
            let Some((_, rules)) = self.rule_sets.last() else { return };
            let mut rules = rules.clone();
            let place = random.usize(..rules.len().max(1));
            match (random.u8(..5), rules.get_mut(place)) {
                (0..=2, Some(rule)) => change_threshold(random, rule),
                (_, Some(_)) if random.bool() => {
                    rules.remove(place);
                }
                _ => {
                    let id = format!("added-{}", self.rule_sets.len());
                    let resource = random.usize(..3);
                    rules.push(draw_rule(random, &id, resource));
                }
            }
            let at = random.u64(..self.duration);
            self.rule_sets.push((at, rules));
        }
        self.rule_sets.sort_by_key(|(at, _)| *at);
    }

    fn draw_faults(&mut self, random: &mut fastrand::Rng) {
        for _ in 0..random.u8(1..4) {
            let after_calls = random.u32(..40);
            let worker = random.usize(..self.workers);
            let fault = match random.u8(..12) {
                0..=3 => Fault::TrapWorker { worker, after_calls },
                4 => Fault::TrapService { after_calls },
                5 => Fault::StallMain(random.u64(50 * MS..2_200 * MS)),
                6 => Fault::StepWall(random.u64(..3_600 * SECOND)),
                7 => Fault::StepWallBack(random.u64(..3_600 * SECOND)),
                8 => Fault::Canary,
                9 => Fault::KillService,
                10 => Fault::FilterCanary,
                _ => Fault::ReplaceRoot { worker },
            };
            self.faults.push((random.u64(..self.duration), fault));
        }
        // Short enough that what died is given up within the run, and longer than any request is open.
        self.settings.worker_ttl_ms = 3_000;
        self.settings.orphan_ttl_ms = 2_000;
        // Long enough for a revived service to get its role.
        self.grace = 4 * SECOND + 200 * MS;
    }
}

impl Root {
    /// Within what time the VMs of the filter get a configuration, and lose a root.
    pub const SPREAD: u64 = 20 * MS;

    /// What Envoy hands over.
    pub fn configuration(&self) -> Vec<u8> {
        configuration(&self.rules)
    }
}

/// A configuration with these flow rules, as text.
fn configuration(rules: &[Rule]) -> Vec<u8> {
    let flows = rules.iter().filter_map(|rule| {
        let Rule::Flow(flow) = rule else { return None };
        let (id, resource) = (&flow.id, rule.resource());
        let (threshold, interval_ms) = (flow.threshold, flow.stat_interval_ms);
        Some(format!(
            "{{id: {id}, resource: '{resource}', threshold: {threshold}, statIntervalInMs: {interval_ms}}}"
        ))
    });
    let flows = flows.collect::<Vec<_>>().join(", ");
    let head = "apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules";
    format!("{{rules: [{{{head}, spec: {{rules: [{flows}]}}}}]}}").into_bytes()
}

impl Traffic {
    /// Single requests, open for 5 ms at most, of nobody in particular.
    pub fn of(resource: &str, pattern: Pattern) -> Self {
        Self {
            resource: resource.into(),
            pattern,
            batch: 1,
            open_ns: 5 * MS,
            users: 0,
            fails_one_in: 0,
            gives_up_one_in: 0,
            pieces: 0,
        }
    }
}

/// A configuration of the service with `rules`.
pub fn config(rules: Vec<Rule>, settings: Settings) -> ServiceConfig {
    ServiceConfig { rules, series_max: SERIES_MAX.default, settings, ..ServiceConfig::default() }
}

/// Requests of one traffic a second that a rule allows, rounded up; `None`: it says nothing of that.
fn rate(rule: &Rule) -> Option<u32> {
    let Rule::Flow(flow) = rule else { return None };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "thresholds are small and not negative"
    )]
    let tokens = flow.threshold.ceil() as u32;
    Some(tokens.saturating_mul(1_000).div_ceil(flow.stat_interval_ms.max(1)))
}
