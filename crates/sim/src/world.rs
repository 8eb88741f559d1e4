//! One run: threads, the calls of their VMs, and time.
//!
//! Everything that happens has a time, and the earliest is next. A VM runs from one host call to the
//! next at no time; what a call costs, and whether the thread is lost after it, is drawn from the seed.
//! So two workers that are in the middle of a claim alternate in every way there is.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    fmt,
    rc::Rc,
};

use sentinel_core::{
    ledger::breaker::PROBE_TIMEOUT,
    rule::{HotspotMetric, Rule, SystemMetric, Target, TokenCalculate, Unit},
    time::Nanos,
};

use crate::{
    checker::{Broken, Checker, TRIED},
    process::Process,
    rules::flow,
    run::{Report, Trace},
    scenario::{Fault, MS, Pattern, Root, SECOND, Scenario},
    thread::Thread,
    vm::{Done, Order, Said, Vm},
};

mod requests;

/// A shell asks for this tick when a request finds the slow one armed.
const FAST_TICK_MS: u32 = 10;

/// No order of a few rules takes as many host calls: a VM that makes more goes round in circles.
const CALLS_MOST: u32 = 200_000;

/// How long after the last fault's traces are gone a request must have got through, and how often it is tried.
const LIVE_WITHIN: u64 = 5 * SECOND;
const TRIED_EACH: u64 = 50 * MS;

/// The plugin whose configurations carry rules.
const PLUGIN: &str = "edge";

/// How soon after its configuration the timer of a root with rules fires, and how often after that.
const FIRST_ROOT_TICK: u64 = 20 * MS;
const ROOT_TICK: u64 = SECOND;

/// Envoy's stat sink revives a trapped service at its next flush.
const STATS_FLUSH: u64 = SECOND;

/// What is going to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A VM makes the call that it stopped before, or begins an order.
    Step { thread: usize, vm: u32 },
    /// A request of this traffic arrives.
    Arrive { traffic: usize },
    /// A thread's timer.
    Tick { thread: usize, armed: u64 },
    /// A message waits for this VM.
    WakeUp { vm: u32 },
    /// An admitted request ends.
    End { thread: usize, vm: u32, stream: u64, failed: bool },
    /// The client of a request that waits is gone.
    GiveUp { stream: u64 },
    /// A client sends messages.
    Send { thread: usize, vm: u32, stream: u64, traffic: usize, count: u32 },
    /// Host calls begin to fail, or fail no more.
    Failing { one_in: u32 },
    /// The service starts.
    First,
    /// Another service starts.
    Second,
    /// Envoy tries a root's configuration in a VM of the filter, before all get it.
    TryRoot { root: usize },
    /// That VM goes.
    Tried { root: usize },
    /// A VM of the filter gets a root context.
    Join { root: usize, thread: usize },
    /// It loses it.
    Part { root: usize, thread: usize },
    /// The timer of a root with rules.
    RootTick { root: usize, thread: usize, vm: u32 },
    /// A request that must get through by and by, now that all faults are over.
    Probe { traffic: usize, left: u64 },
    /// A fault of the scenario.
    Fault { index: usize },
    /// A rule set of the scenario.
    Rules { index: usize },
    /// The stat sink looks for the service.
    Revive,
}

/// A request that waits for its slot.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    thread: usize,
    vm: u32,
    traffic: Option<usize>,
    /// When it began, by the shared clock.
    since: Nanos,
    /// By the shared clock.
    until: Nanos,
}

/// Messages that are held until their slot.
#[derive(Clone, Copy, Debug)]
struct HeldMessages {
    thread: usize,
    /// By which the checker knows their slots.
    ticket: u64,
    /// Since when, by the shared clock.
    since: Nanos,
}

/// One run.
pub(crate) struct World<'a> {
    scenario: &'a Scenario,
    trace: Trace<'a>,
    random: fastrand::Rng,
    process: Rc<RefCell<Process>>,
    pub(crate) checker: Checker,
    pub(crate) report: Report,
    /// The workers' threads, the main thread, and twice more the main thread: for a second service, and for the
    /// filter's VM there, which gets no requests.
    threads: Vec<Thread>,
    events: BinaryHeap<Reverse<(u64, u32, Event)>>,
    now: u64,
    next_vm: u32,
    next_stream: u64,
    /// Requests on their way, and which traffic they are of.
    asked: BTreeMap<u64, usize>,
    /// Whose a stream is.
    users: BTreeMap<u64, u32>,
    rules: usize,
    /// Requests at the upstream, whose end is planned.
    open: usize,
    waiting: BTreeMap<u64, Waiting>,
    /// Messages that are held, by stream, the oldest first.
    held: BTreeMap<u64, VecDeque<HeldMessages>>,
    /// Roots that each thread's VM of the filter has, or will have when there is one again.
    joined: BTreeMap<usize, BTreeSet<usize>>,
    /// VMs in which Envoy tries a configuration of the filter.
    tried: Vec<(Option<usize>, Vm)>,
    /// VMs of the service.
    services: BTreeSet<u32>,
    /// Resources for which a request has got through since all faults are over.
    got_through: Option<BTreeSet<Rc<str>>>,
    /// Who has refused the last request of a resource.
    refused_by: BTreeMap<Rc<str>, String>,
    /// Workers that live at the end.
    pub(crate) workers: Vec<u64>,
    /// Whether requests still arrive.
    arriving: bool,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, scenario: &'a Scenario, trace: Trace<'a>) -> Self {
        let process = Rc::new(RefCell::new(Process::new(seed, scenario.wall_ns)));
        process.borrow_mut().keep_writes();
        Self {
            scenario,
            trace,
            random: fastrand::Rng::with_seed(seed),
            process,
            checker: Checker::default(),
            report: Report::default(),
            threads: (0..scenario.workers + 3).map(|_| Thread::default()).collect(),
            events: BinaryHeap::new(),
            now: 0,
            next_vm: 0,
            next_stream: 0,
            asked: BTreeMap::new(),
            users: BTreeMap::new(),
            rules: 0,
            open: 0,
            waiting: BTreeMap::new(),
            held: BTreeMap::new(),
            joined: BTreeMap::new(),
            tried: Vec::new(),
            services: BTreeSet::new(),
            got_through: None,
            refused_by: BTreeMap::new(),
            workers: Vec::new(),
            arriving: true,
        }
    }

    /// Lets everything happen that the scenario has, and then the proxy come to rest.
    pub(crate) fn run(&mut self) -> Result<(), Broken> {
        let scenario = self.scenario;
        if scenario.service && scenario.service_from == 0 {
            self.start_first()?;
        } else if scenario.service {
            self.plan(scenario.service_from, Event::First);
        }
        self.plan_roots();
        for (index, traffic) in scenario.traffic.iter().enumerate() {
            let first = match traffic.pattern {
                Pattern::BucketEnds { burst } => {
                    self.plan_bursts(index, burst);
                    continue;
                }
                Pattern::Flood { .. } | Pattern::Sequential { .. } => self.random.u64(..5 * MS),
            };
            self.plan(first, Event::Arrive { traffic: index });
        }
        for (index, (at, _)) in scenario.faults.iter().enumerate() {
            self.plan(*at, Event::Fault { index });
        }
        for (index, (at, _)) in scenario.rule_sets.iter().enumerate().skip(1) {
            self.plan(*at, Event::Rules { index });
        }
        if let Some(failures) = scenario.failures {
            self.plan(failures.from, Event::Failing { one_in: failures.one_in });
            self.plan(failures.until, Event::Failing { one_in: 0 });
        }
        if let Some(at) = scenario.second_service {
            self.plan(at, Event::Second);
        }
        self.run_until(scenario.duration)?;
        self.arriving = false;
        self.run_until(scenario.duration + 100 * MS + scenario.grace)?;
        if scenario.recovers {
            self.recover()?;
        }
        self.come_to_rest()
    }

    fn start_first(&mut self) -> Result<(), Broken> {
        // Envoy tries a configuration in a VM that it throws away.
        drop(self.start_service()?);
        let vm = self.start_service()?;
        self.main().begin_life(vm);
        self.arm(self.scenario.workers, 1);
        Ok(())
    }

    /// Each VM of the filter gets and loses each root at a time of its own.
    fn plan_roots(&mut self) {
        let idle = self.main_thread() + 2;
        for (root, Root { from, until, .. }) in self.scenario.roots.iter().enumerate() {
            self.plan(*from, Event::TryRoot { root });
            let tried = from + self.random.u64(..100 * MS);
            self.plan(tried, Event::Tried { root });
            for thread in (0..self.scenario.workers).chain([idle]) {
                let at = from + self.random.u64(..Root::SPREAD);
                self.plan(at, Event::Join { root, thread });
                if let Some(until) = until {
                    let at = until + self.random.u64(..Root::SPREAD);
                    self.plan(at, Event::Part { root, thread });
                }
            }
        }
    }

    /// After all faults: as soon as what the dead have left behind has lapsed, requests get through again.
    fn recover(&mut self) -> Result<(), Broken> {
        let settings = &self.scenario.settings;
        let lapses = u64::from(settings.worker_ttl_ms) + u64::from(settings.orphan_ttl_ms);
        // A probe that nobody judges any more has failed after a minute.
        let mut all = self.scenario.rule_sets.iter().flat_map(|(_, rules)| rules);
        let breaks = all.any(|rule| matches!(rule, Rule::CircuitBreaker(_)));
        let lapses = if breaks { lapses.max(PROBE_TIMEOUT.as_millis()) } else { lapses };
        self.run_until(self.now + lapses * MS + SECOND)?;
        self.note(format_args!("all faults are over, and what they have left behind"));
        self.got_through = Some(BTreeSet::new());
        let mut tried = BTreeSet::new();
        for (index, traffic) in self.scenario.traffic.iter().enumerate() {
            if self.may_pass(&traffic.resource) && tried.insert(Rc::clone(&traffic.resource)) {
                let left = LIVE_WITHIN / TRIED_EACH;
                self.plan(self.now, Event::Probe { traffic: index, left });
            }
        }
        self.run_until(self.now + LIVE_WITHIN + SECOND)?;
        let got_through = self.got_through.take().unwrap_or_default();
        match tried.difference(&got_through).next() {
            None => Ok(()),
            Some(resource) => {
                let by = self.refused_by.get(resource).map_or("nobody", String::as_str);
                let within = LIVE_WITHIN / SECOND;
                Err(format!(
                    "no request of {resource} gets through within {within} s though all faults are over; it is refused by \
                     {by}"
                ))
            }
        }
    }

    /// Whether the rules allow a request of this resource now and then: those in force, since a service that is dead for good
    /// puts no others there.
    fn may_pass(&self, resource: &str) -> bool {
        let rules = self.checker.rules_in_force();
        let applies = |rule: &&Rule| {
            rule.common().unit == Unit::Request
                && !rule.common().shadow
                && match rule.target() {
                    Some(Target::Resource(name)) => name == resource,
                    Some(Target::Default) | None => true,
                    Some(Target::Pattern(_) | Target::Group(_)) => false,
                }
        };
        rules.iter().map(|rule| &**rule).filter(applies).all(|rule| match rule {
            Rule::Flow(flow) => {
                let least = match flow.calculate {
                    TokenCalculate::Direct => 1.0,
                    TokenCalculate::WarmUp(_) | TokenCalculate::MemoryAdaptive(_) => 10.0,
                };
                flow.threshold >= least && flow.stat_interval_ms <= 2_000
            }
            Rule::Isolation(rule) => rule.threshold >= 1,
            Rule::Hotspot(rule) | Rule::Gateway(rule) => {
                let short = match rule.metric {
                    HotspotMetric::Reject { duration_ms, .. }
                    | HotspotMetric::Throttling { duration_ms, .. } => duration_ms <= 2_000,
                    HotspotMetric::Concurrency => true,
                };
                rule.threshold >= 1 && short
            }
            Rule::System(rule) => match rule.metric {
                SystemMetric::Concurrency | SystemMetric::InboundQps => rule.trigger >= 1.0,
                SystemMetric::AvgRt | SystemMetric::CpuUsage { .. } => false,
            },
            Rule::CircuitBreaker(_) => true,
            Rule::Authority(_) => false,
        })
    }

    /// Nanoseconds since the start.
    pub(crate) fn elapsed(&self) -> u64 {
        self.now
    }

    /// The time of the shared clock.
    pub(crate) fn clock(&self) -> Nanos {
        self.checker.now(self.now)
    }

    /// A counter or gauge of the proxy.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.process.borrow().stats.value(name)
    }

    /// The sum of all counters with names that end like this.
    pub(crate) fn stats_ending(&self, end: &str) -> u64 {
        let process = self.process.borrow();
        process.stats.iter().filter(|(name, _)| name.ends_with(end)).map(|(_, value)| value).sum()
    }

    /// How many keys shared data has.
    pub(crate) fn keys(&self) -> usize {
        self.process.borrow().shared_data.keys()
    }

    /// Each key of shared data and how many bytes it has.
    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        let process = self.process.borrow();
        process.shared_data.sizes().map(|(key, size)| (key.to_owned(), size)).collect()
    }

    /// VMs that have ever been.
    pub(crate) fn vms(&self) -> usize {
        usize::try_from(self.next_vm).unwrap_or(usize::MAX)
    }

    /// Lets a thread's VM carry out an order with nobody in between.
    pub(crate) fn drive(&mut self, thread: usize, order: Order) -> Result<Option<Done>, Broken> {
        let Some(vm) = self.threads.get_mut(thread).and_then(Thread::vm_mut) else {
            return Ok(None);
        };
        let mut said = vm.resume(order);
        let mut calls = 0;
        while let Some(Said::Calls(_)) = said {
            said = vm.resume(Order::GoOn);
            calls += 1;
            if calls > CALLS_MOST {
                return Err(format!("thread {thread} makes call after call without an end"));
            }
        }
        self.look()?;
        match said {
            Some(Said::Done(done)) => Ok(Some(done)),
            Some(Said::Calls(_)) | None => Ok(None),
        }
    }

    /// Whether a service lives.
    pub(crate) fn has_service(&self) -> bool {
        (self.main_thread()..).take(2).any(|thread| self.vm_of(thread).is_some())
    }

    /// The main thread's number.
    pub(crate) fn main_thread(&self) -> usize {
        self.scenario.workers
    }

    fn run_until(&mut self, until: u64) -> Result<(), Broken> {
        while let Some(Reverse((at, _, event))) = self.events.peek().copied() {
            if at > until {
                break;
            }
            self.events.pop();
            self.move_clock(at);
            self.happen(event)?;
        }
        self.move_clock(until);
        Ok(())
    }

    /// Everybody finishes what is begun; then all settle, twice, since a lease that was just used is kept
    /// for one tick more.
    fn come_to_rest(&mut self) -> Result<(), Broken> {
        while self.open + self.waiting.len() > 0 || self.threads.iter().any(Thread::is_busy) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.move_clock(at);
            self.happen(event)?;
        }
        if let Some(stream) = self.waiting.keys().next() {
            return Err(format!("request {stream} waits for ever"));
        }
        // What a wake-up that was lost should have told the service.
        self.drive(self.scenario.workers, Order::Settle)?;
        self.drive(self.scenario.workers + 1, Order::Settle)?;
        let newest = self.checker.rules_version();
        for round in 0..2 {
            for thread in 0..self.scenario.workers {
                let done = self.drive(thread, Order::Settle)?;
                if let Some(Done::Settled { version, incarnation }) = done
                    && round > 0
                {
                    self.workers.push(incarnation);
                    if version != newest {
                        return Err(format!(
                            "a worker applies rule set {version} and not {newest}"
                        ));
                    }
                }
            }
            self.drive(self.scenario.workers, Order::Settle)?;
            self.drive(self.scenario.workers + 1, Order::Settle)?;
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Step { thread, vm } => return self.step(thread, vm),
            Event::Arrive { traffic } => self.arrive(traffic),
            Event::Tick { thread, armed } => {
                if self.threads.get(thread).is_some_and(|thread| thread.armed == armed) {
                    self.deliver(thread, Order::Tick);
                }
            }
            Event::WakeUp { vm } => {
                for thread in [self.main_thread(), self.main_thread() + 1] {
                    if self.vm_of(thread) == Some(vm) {
                        self.deliver(thread, Order::WakeUp);
                    }
                }
            }
            Event::End { thread, vm, stream, failed } => {
                self.open -= 1;
                for held in self.held.remove(&stream).unwrap_or_default() {
                    self.checker.leaves(held.ticket);
                }
                self.checker.ended(stream, failed, self.clock());
                if self.vm_of(thread) == Some(vm) {
                    self.deliver(thread, Order::Exit { stream, failed });
                }
            }
            Event::GiveUp { stream } => {
                if let Some(Waiting { thread, .. }) = self.waiting.remove(&stream) {
                    self.note(format_args!("thread {thread}: the client of {stream} is gone"));
                    self.checker.ended(stream, true, self.clock());
                    self.deliver(thread, Order::Exit { stream, failed: true });
                }
            }
            Event::Fault { index } => return self.fault(index),
            Event::Send { thread, vm, stream, traffic, count } => {
                let resource = self.scenario.traffic.get(traffic).map(|it| Rc::clone(&it.resource));
                if let Some(resource) = resource.filter(|_| self.vm_of(thread) == Some(vm)) {
                    let user = self.users.get(&stream).copied();
                    let oldest = self.held.get(&stream).and_then(VecDeque::front);
                    let held = oldest.map(|oldest| self.clock().since(oldest.since));
                    self.deliver(thread, Order::Send { stream, resource, count, user, held });
                }
            }
            Event::Failing { one_in } => {
                self.note(format_args!("one of {one_in} host calls fails"));
                self.process.borrow_mut().fails_one_in = one_in;
            }
            Event::First => {
                let main = self.main_thread();
                if self.vm_of(main).is_none() && self.main().revives {
                    self.note(format_args!("the service starts"));
                    self.start_first()?;
                }
            }
            Event::TryRoot { root } => {
                let bytes = self.scenario.roots.get(root).map(Root::configuration);
                self.try_root(Some(root), bytes.unwrap_or_default())?;
            }
            Event::Tried { root } => {
                let place = self.tried.iter().position(|(tried, _)| *tried == Some(root));
                if let Some((_, mut vm)) = place.map(|place| self.tried.swap_remove(place)) {
                    self.finish(&mut vm, Order::Part { root: number(root) })?;
                }
            }
            Event::Join { root, thread } => {
                self.joined.entry(thread).or_default().insert(root);
                if self.vm_of(thread).is_none() {
                    self.start_worker(thread);
                } else {
                    self.join(root, thread);
                }
            }
            Event::Part { root, thread } => {
                self.joined.entry(thread).or_default().remove(&root);
                self.deliver(thread, Order::Part { root: number(root) });
                // Its timer goes with it, and another root takes over.
                if let Some(period_ms) = self.threads.get(thread).map(|thread| thread.period_ms)
                    && self.vm_of(thread).is_some()
                {
                    self.arm(thread, period_ms);
                }
            }
            Event::RootTick { root, thread, vm } => {
                let has = self.joined.get(&thread).is_some_and(|roots| roots.contains(&root));
                if has && self.vm_of(thread) == Some(vm) {
                    self.deliver(thread, Order::RootTick);
                    let late = self.random.u64(..4 * MS);
                    let event = Event::RootTick { root, thread, vm };
                    self.plan(self.now + ROOT_TICK + late, event);
                }
            }
            Event::Second => {
                let vm = self.start_service()?;
                self.note(format_args!("a second service starts as VM {}", vm.id));
                let second = self.main_thread() + 1;
                if let Some(thread) = self.threads.get_mut(second) {
                    thread.begin_life(vm);
                }
                self.arm(second, 1);
            }
            Event::Probe { traffic, left } => {
                let Some(its) = self.scenario.traffic.get(traffic) else { return Ok(()) };
                let is_through =
                    self.got_through.as_ref().is_none_or(|these| these.contains(&its.resource));
                if left > 0 && !is_through {
                    self.plan(self.now + TRIED_EACH, Event::Probe { traffic, left: left - 1 });
                    let thread = self.random.usize(..self.scenario.workers);
                    self.ask(None, its, 1, thread);
                }
            }
            Event::Rules { index } => {
                self.rules = index;
                let config = Rc::new(self.scenario.config(index));
                self.note(format_args!("rule set of {} rules", config.rules.len()));
                self.deliver(self.scenario.workers, Order::Replace(Rc::clone(&config)));
                self.deliver(self.scenario.workers + 1, Order::Replace(config));
            }
            Event::Revive => {
                if self.vm_of(self.scenario.workers).is_none() {
                    let vm = self.start_service()?;
                    self.note(format_args!("the service is revived as VM {}", vm.id));
                    self.main().begin_life(vm);
                    self.arm(self.scenario.workers, 1);
                }
            }
        }
        Ok(())
    }

    /// One VM goes on.
    fn step(&mut self, index: usize, vm: u32) -> Result<(), Broken> {
        let now = self.now;
        let Some(thread) = self.threads.get_mut(index) else { return Ok(()) };
        if thread.vm_id() != Some(vm) {
            return Ok(());
        }
        if thread.stalled_until > now {
            let until = thread.stalled_until;
            self.plan(until, Event::Step { thread: index, vm });
            return Ok(());
        }
        thread.calls += 1;
        if thread.calls > CALLS_MOST {
            return Err(format!("thread {index} makes call after call without an end"));
        }
        let Some(said) = thread.go_on() else {
            return Err(format!("VM {vm} has ended by itself"));
        };
        self.look()?;
        match said {
            Said::Calls(call) => {
                self.report.calls += 1;
                if self.trace.is_on() {
                    self.note(format_args!("thread {index} VM {vm}: {call}"));
                }
                if self.threads.get_mut(index).is_some_and(Thread::is_doomed_now) {
                    self.trap(index);
                    return Ok(());
                }
                let wait = self.cost(index);
                self.plan(now + wait, Event::Step { thread: index, vm });
                Ok(())
            }
            Said::Done(done) => {
                self.done(index, vm, done)?;
                if self.threads.get_mut(index).is_some_and(Thread::begin_next) {
                    self.plan(now + 1_000, Event::Step { thread: index, vm });
                }
                Ok(())
            }
        }
    }

    fn done(&mut self, index: usize, vm: u32, done: Done) -> Result<(), Broken> {
        match done {
            Done::Answered(answer) => {
                self.answered(index, vm, &answer)?;
                // The shell asks for a shorter period than the one it has asked for, and for no other.
                let period_ms = answer.busy.period_ms;
                if self.threads.get(index).is_some_and(|thread| thread.period_ms > period_ms) {
                    self.arm(index, period_ms);
                }
            }
            Done::Ticked(next, due) => {
                for stream in due {
                    self.due(stream)?;
                }
                if let Some(thread) = self.threads.get_mut(index) {
                    thread.unreported = (0, 0);
                    thread.unreported_messages = 0;
                }
                self.arm(index, next.period_ms);
            }
            Done::Settled { .. } | Done::Counted(_) | Done::Nothing => {}
        }
        Ok(())
    }

    /// A VM of the filter, with the roots that its thread has.
    fn start_worker(&mut self, thread: usize) {
        self.next_vm += 1;
        let vm = Vm::worker(&self.process, self.next_vm);
        self.note(format_args!("thread {thread}: VM {} starts", vm.id));
        if let Some(thread) = self.threads.get_mut(thread) {
            thread.begin_life(vm);
        }
        self.arm(thread, FAST_TICK_MS);
        for root in self.joined.get(&thread).cloned().unwrap_or_default() {
            self.join(root, thread);
        }
    }

    /// A VM gets a root's configuration.
    fn join(&mut self, root: usize, thread: usize) {
        let (Some(vm), Some(its)) = (self.vm_of(thread), self.scenario.roots.get(root)) else {
            return;
        };
        let bytes = its.configuration().into();
        self.deliver(thread, Order::Join { root: number(root), plugin: PLUGIN, bytes });
        let late = self.random.u64(..4 * MS);
        self.plan(self.now + FIRST_ROOT_TICK + late, Event::RootTick { root, thread, vm });
    }

    /// Envoy tries a configuration of the filter in a VM that gets no tick.
    fn try_root(&mut self, root: Option<usize>, bytes: Vec<u8>) -> Result<(), Broken> {
        self.next_vm += 1;
        let mut vm = Vm::worker(&self.process, self.next_vm);
        self.note(format_args!("a configuration of the filter is tried in VM {}", vm.id));
        let order =
            Order::Join { root: root.map_or(0, number), plugin: PLUGIN, bytes: bytes.into() };
        self.finish(&mut vm, order)?;
        self.tried.push((root, vm));
        Ok(())
    }

    /// Lets a VM that has no thread carry out an order.
    fn finish(&mut self, vm: &mut Vm, order: Order) -> Result<(), Broken> {
        let mut said = vm.resume(order);
        while let Some(Said::Calls(_)) = said {
            said = vm.resume(Order::GoOn);
        }
        self.look()
    }

    fn plan_bursts(&mut self, traffic: usize, burst: u32) {
        const HALF: u64 = 500 * MS;
        // The shared clock's zero, as near as the first instance will read it.
        let mut end = HALF - self.scenario.wall_ns % HALF;
        while end < self.scenario.duration {
            for _ in 0..burst {
                let at = (end + self.random.u64(..400_000)).saturating_sub(200_000);
                self.plan(at, Event::Arrive { traffic });
            }
            end += HALF;
        }
    }

    fn fault(&mut self, index: usize) -> Result<(), Broken> {
        let Some((_, fault)) = self.scenario.faults.get(index) else { return Ok(()) };
        self.note(format_args!("fault: {fault:?}"));
        let main = self.main_thread();
        let doom = |thread: Option<&mut Thread>, after_calls| {
            if let Some(thread) = thread {
                thread.doomed_in = Some(after_calls);
            }
        };
        match *fault {
            Fault::TrapWorker { worker, after_calls } => {
                doom(self.threads.get_mut(worker), after_calls);
            }
            Fault::TrapService { after_calls } => doom(self.threads.get_mut(main), after_calls),
            Fault::KillService => {
                self.main().revives = false;
                self.trap(main);
            }
            Fault::StallMain(span) => {
                let until = self.now + span;
                for thread in self.threads.iter_mut().skip(main) {
                    thread.stalled_until = until;
                }
            }
            Fault::StepWall(span) => self.process.borrow_mut().wall_at_zero_ns += span,
            Fault::StepWallBack(span) => self.process.borrow_mut().wall_at_zero_ns -= span,
            Fault::Canary => drop(self.start_service()?),
            Fault::FilterCanary => {
                let rules = vec![flow(TRIED, "GET:/0", 0.0, 1_000)];
                let root = Root { rules, from: 0, until: None };
                self.try_root(None, root.configuration())?;
            }
            Fault::ReplaceRoot { worker } => {
                let root = self.threads.get(worker).filter(|thread| thread.vm_id().is_some());
                if let Some(period_ms) = root.map(|thread| thread.period_ms) {
                    self.arm(worker, period_ms);
                }
            }
        }
        Ok(())
    }

    /// The VM of a thread is gone, with everything it had in memory.
    fn trap(&mut self, index: usize) {
        self.report.traps += 1;
        let Some(thread) = self.threads.get_mut(index) else { return };
        let (pass, block) = std::mem::take(&mut thread.unreported);
        self.report.pass_lost_at_most += pass;
        self.report.block_lost_at_most += block;
        self.report.messages_lost_at_most += std::mem::take(&mut thread.unreported_messages);
        let unanswered = thread.die();
        let revives = thread.revives;
        self.note(format_args!("thread {index}: trap"));
        // Envoy never wakes a request that was paused in a VM that is gone; one at the upstream goes on.
        let lost = self.waiting.iter().filter(|(_, waiting)| waiting.thread == index);
        let lost: Vec<u64> = lost.map(|(stream, _)| *stream).collect();
        for stream in lost {
            if let Some(waiting) = self.waiting.remove(&stream) {
                self.checker.ended(stream, true, self.clock());
                self.ask_again(waiting.traffic);
            }
        }
        self.held.retain(|_, queue| queue.iter().all(|held| held.thread != index));
        for order in unanswered {
            if let Order::Enter { stream, .. } = order {
                let traffic = self.asked.remove(&stream);
                self.ask_again(traffic);
            }
        }
        if index == self.main_thread() && revives {
            let at = self.now + self.random.u64(MS..STATS_FLUSH);
            self.plan(at, Event::Revive);
        }
    }

    fn start_service(&mut self) -> Result<Vm, Broken> {
        self.next_vm += 1;
        let config = Rc::new(self.scenario.config(self.rules));
        let mut vm = Vm::service(&self.process, self.next_vm, config);
        self.services.insert(vm.id);
        // Configuring ends with the first order that does nothing.
        self.finish(&mut vm, Order::GoOn)?;
        Ok(vm)
    }

    /// Looks at what the last call has done to the process.
    fn look(&mut self) -> Result<(), Broken> {
        let mut process = self.process.borrow_mut();
        let writes = process.take_writes();
        let wake_ups = process.queues.take_wake_ups();
        self.report.backlog = self.report.backlog.max(process.queues.backlog());
        drop(process);
        for write in &writes {
            self.checker.written(write, self.services.contains(&write.vm))?;
        }
        let Scenario { wake_ups_lost_one_in, wake_ups_repeated_one_in, .. } = *self.scenario;
        let one_in = |random: &mut fastrand::Rng, many| many > 0 && random.u32(..many) == 0;
        let mut come = Vec::new();
        for vm in wake_ups {
            if one_in(&mut self.random, wake_ups_lost_one_in) {
                continue;
            }
            come.push(vm);
            come.extend(one_in(&mut self.random, wake_ups_repeated_one_in).then_some(vm));
        }
        for vm in come {
            let at = self.now + self.random.u64(40_000..3 * MS);
            self.plan(at, Event::WakeUp { vm });
        }
        Ok(())
    }

    /// What one call costs a thread until it goes on.
    fn cost(&mut self, thread: usize) -> u64 {
        let stall_one_in = self.scenario.stall_one_in;
        if thread >= self.main_thread() || stall_one_in == 0 || self.random.u32(..stall_one_in) > 0
        {
            return self.random.u64(200..2_000);
        }
        match self.random.u8(..3) {
            0 => self.random.u64(1_000..100_000),
            1 => self.random.u64(MS..15 * MS),
            // Just over the end of a bucket.
            _ => {
                const TENTH: u64 = 100 * MS;
                let left = TENTH - self.clock().get() % TENTH;
                left + self.random.u64(..50_000)
            }
        }
    }

    fn deliver(&mut self, index: usize, order: Order) {
        let Some(thread) = self.threads.get_mut(index) else { return };
        if thread.accept(order)
            && let Some(vm) = thread.vm_id()
        {
            self.plan(self.now + 500, Event::Step { thread: index, vm });
        }
    }

    /// Arms a thread's timer: not before the period is over, and then at the next of the kernel's ticks.
    fn arm(&mut self, index: usize, period_ms: u32) {
        const JIFFY: u64 = 4 * MS;
        let late = self.random.u64(..JIFFY);
        let Some(thread) = self.threads.get_mut(index) else { return };
        let at = (self.now + u64::from(period_ms) * MS).next_multiple_of(JIFFY) + late / 8;
        thread.armed += 1;
        thread.period_ms = period_ms;
        let armed = thread.armed;
        self.plan(at, Event::Tick { thread: index, armed });
    }

    fn plan(&mut self, at: u64, event: Event) {
        let turn = self.random.u32(..);
        self.events.push(Reverse((at, turn, event)));
    }

    fn move_clock(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.process.borrow_mut().monotonic_ns = self.now;
    }

    fn vm_of(&self, thread: usize) -> Option<u32> {
        self.threads.get(thread).and_then(Thread::vm_id)
    }

    fn main(&mut self) -> &mut Thread {
        let main = self.scenario.workers;
        #[expect(clippy::indexing_slicing, reason = "there are that many threads")]
        &mut self.threads[main]
    }

    fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.line(self.now, what);
    }
}

/// A root context's number in Envoy: 0 is none.
fn number(root: usize) -> u32 {
    u32::try_from(root + 1).unwrap_or(u32::MAX)
}
