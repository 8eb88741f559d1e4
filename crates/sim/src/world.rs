//! One run: threads, the calls of their VMs, and time.
//!
//! Everything that happens has a time, and the earliest is next. A VM runs from one host call to the
//! next at no time; what a call costs, and whether the thread is lost after it, is drawn from the seed.
//! So two workers that are in the middle of a claim alternate in every way there is.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt,
    rc::Rc,
};

use sentinel_core::time::{Nanos, Span};

use crate::{
    checker::{Broken, Checker, TICK},
    process::Process,
    run::{Report, Trace},
    scenario::{Fault, MS, Pattern, SECOND, Scenario, Traffic, config},
    thread::Thread,
    vm::{Answer, Decision, Done, Order, Said, Vm},
};

/// A shell asks for this tick when a request finds the slow one armed.
const FAST_TICK_MS: u32 = 10;

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
    /// By the shared clock.
    until: Nanos,
}

/// One run.
pub(crate) struct World<'a> {
    scenario: &'a Scenario,
    trace: Trace<'a>,
    random: fastrand::Rng,
    process: Rc<RefCell<Process>>,
    pub(crate) checker: Checker,
    pub(crate) report: Report,
    /// The workers' threads; the main thread is the last.
    threads: Vec<Thread>,
    events: BinaryHeap<Reverse<(u64, u32, Event)>>,
    now: u64,
    next_vm: u32,
    next_stream: u64,
    /// Requests on their way, and which traffic they are of.
    asked: BTreeMap<u64, usize>,
    rules: usize,
    /// Requests at the upstream, whose end is planned.
    open: usize,
    waiting: BTreeMap<u64, Waiting>,
    /// The service's VM.
    service: Option<u32>,
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
            threads: (0..=scenario.workers).map(|_| Thread::default()).collect(),
            events: BinaryHeap::new(),
            now: 0,
            next_vm: 0,
            next_stream: 0,
            asked: BTreeMap::new(),
            rules: 0,
            open: 0,
            waiting: BTreeMap::new(),
            service: None,
            workers: Vec::new(),
            arriving: true,
        }
    }

    /// Lets everything happen that the scenario has, and then the proxy come to rest.
    pub(crate) fn run(&mut self) -> Result<(), Broken> {
        let scenario = self.scenario;
        if scenario.service {
            // Envoy tries a configuration in a VM that it throws away.
            drop(self.start_service()?);
            let vm = self.start_service()?;
            self.main().begin_life(vm);
            self.arm(scenario.workers, 1);
        }
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
        self.run_until(scenario.duration)?;
        self.arriving = false;
        self.run_until(scenario.duration + 100 * MS + scenario.grace)?;
        self.come_to_rest()
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

    /// How many keys shared data has.
    pub(crate) fn keys(&self) -> usize {
        self.process.borrow().shared_data.keys()
    }

    /// Lets a thread's VM carry out an order with nobody in between.
    pub(crate) fn drive(&mut self, thread: usize, order: Order) -> Result<Option<Done>, Broken> {
        let Some(vm) = self.threads.get_mut(thread).and_then(Thread::vm_mut) else {
            return Ok(None);
        };
        let mut said = vm.resume(order);
        while let Some(Said::Calls(_)) = said {
            said = vm.resume(Order::GoOn);
        }
        self.look()?;
        match said {
            Some(Said::Done(done)) => Ok(Some(done)),
            Some(Said::Calls(_)) | None => Ok(None),
        }
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
        let newest = self.checker.rules_version();
        for round in 0..2 {
            for thread in 0..self.scenario.workers {
                let done = self.drive(thread, Order::Settle)?;
                if let Some(Done::Settled { version, incarnation }) = done
                    && round > 0
                {
                    self.workers.push(incarnation);
                    if self.scenario.is_faultless() && version != newest {
                        return Err(format!(
                            "a worker applies rule set {version} and not {newest}"
                        ));
                    }
                }
            }
            self.drive(self.scenario.workers, Order::Settle)?;
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
                let main = self.main_thread();
                if self.vm_of(main) == Some(vm) {
                    self.deliver(main, Order::WakeUp);
                }
            }
            Event::End { thread, vm, stream, failed } => {
                self.open -= 1;
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
            Event::Fault { index } => self.fault(index),
            Event::Rules { index } => {
                self.rules = index;
                let rules = self.scenario.rule_sets.get(index).map(|(_, rules)| rules.clone());
                self.note(format_args!("rule set of {} rules", rules.as_ref().map_or(0, Vec::len)));
                let config = config(rules.unwrap_or_default(), self.scenario.settings.clone());
                let replace = Order::Replace(Rc::new(config));
                self.deliver(self.scenario.workers, replace);
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
                }
                self.arm(index, next.period_ms);
            }
            Done::Settled { .. } | Done::Counted(_) | Done::Nothing => {}
        }
        Ok(())
    }

    fn answered(&mut self, index: usize, vm: u32, answer: &Answer) -> Result<(), Broken> {
        let batch = u64::from(answer.batch);
        let stream = answer.stream;
        let asked = self.asked.remove(&stream);
        let traffic = asked.and_then(|traffic| self.scenario.traffic.get(traffic));
        let passed = !matches!(answer.decision, Decision::RefusedBy(_));
        if self.trace.is_on() {
            let (version, resource, user) = (answer.rules_version, &answer.resource, answer.user);
            let user = user.map(|user| format!(" of user {user}")).unwrap_or_default();
            let decision = match &answer.decision {
                Decision::Passes => "passes".to_owned(),
                Decision::Waits(until) => {
                    format!("waits for {} ns", until.since(self.clock()).get())
                }
                Decision::RefusedBy(rule) => format!("is refused by {rule}"),
            };
            self.note(format_args!(
                "thread {index}: {stream} to {resource}{user} {decision} under set {version}"
            ));
        }
        if let Some(thread) = self.threads.get_mut(index) {
            let (pass, block) = &mut thread.unreported;
            *(if passed { pass } else { block }) += batch;
        }
        let undisturbed = self.scenario.is_faultless() && self.scenario.stall_one_in == 0;
        match &answer.decision {
            Decision::RefusedBy(rule) => {
                self.report.refused += batch;
                let steady = undisturbed && self.scenario.rule_sets.len() == 1;
                self.checker.refused(answer, rule, steady)?;
                self.ask_again(asked);
            }
            Decision::Passes => {
                self.report.admitted += batch;
                let slot = self.checker.admitted(answer, self.clock(), undisturbed)?;
                self.goes_on(slot, stream)?;
                self.depart(index, vm, stream, traffic);
                self.ask_again(asked);
            }
            Decision::Waits(until) => {
                self.report.admitted += batch;
                self.report.waited += batch;
                let slot = self.checker.admitted(answer, self.clock(), undisturbed)?;
                if slot > *until {
                    return Err(format!("request {stream} is to go before its slot"));
                }
                if let Some(one_in) = traffic.map(|traffic| traffic.gives_up_one_in)
                    && one_in > 0
                    && self.random.u32(..one_in) == 0
                {
                    let left = until.since(self.clock()).get();
                    let at = self.now + self.random.u64(..=left);
                    self.plan(at, Event::GiveUp { stream });
                }
                let waiting = Waiting { thread: index, vm, traffic: asked, until: *until };
                self.waiting.insert(stream, waiting);
            }
        }
        Ok(())
    }

    /// A request that waited may go on. (One that was given up meanwhile is nobody's.)
    fn due(&mut self, stream: u64) -> Result<(), Broken> {
        let Some(Waiting { thread, vm, traffic, until }) = self.waiting.remove(&stream) else {
            return Ok(());
        };
        self.note(format_args!("thread {thread}: {stream} goes on"));
        let (slot, settled) = self.checker.leaves(stream);
        self.goes_on(slot.min(until), stream)?;
        let late = self.clock().since(settled.min(until));
        self.report.latest = self.report.latest.max(late.get());
        self.report.all_gone = self.elapsed();
        if late > TICK && self.scenario.is_faultless() && self.scenario.stall_one_in == 0 {
            let late_ms = late.as_millis();
            return Err(format!("request {stream} goes on {late_ms} ms after its slot"));
        }
        let asked = traffic.and_then(|traffic| self.scenario.traffic.get(traffic));
        self.depart(thread, vm, stream, asked);
        self.ask_again(traffic);
        Ok(())
    }

    fn goes_on(&self, slot: Nanos, stream: u64) -> Result<(), Broken> {
        let early = slot.since(self.clock());
        if early > Span::ZERO {
            return Err(format!("request {stream} goes on {} ns before its slot", early.get()));
        }
        Ok(())
    }

    /// A request goes to the upstream, which answers after some time, whoever lives then.
    fn depart(&mut self, thread: usize, vm: u32, stream: u64, traffic: Option<&Traffic>) {
        let (open, fails_one_in) =
            traffic.map_or((0, 0), |traffic| (traffic.open_ns, traffic.fails_one_in));
        self.open += 1;
        let failed = self.scenario.is_out(self.now)
            || fails_one_in > 0 && self.random.u32(..fails_one_in) == 0;
        let ends = self.now + 1_000 + self.random.u64(..=open);
        self.plan(ends, Event::End { thread, vm, stream, failed });
    }

    /// A client that waits for its answer has it, or will never get one.
    fn ask_again(&mut self, traffic: Option<usize>) {
        let Some(index) = traffic else { return };
        let sequential = self
            .scenario
            .traffic
            .get(index)
            .is_some_and(|traffic| matches!(traffic.pattern, Pattern::Sequential { .. }));
        if sequential {
            let at = self.now + self.random.u64(300_000..3 * MS);
            self.plan(at, Event::Arrive { traffic: index });
        }
    }

    fn arrive(&mut self, index: usize) {
        let Some(traffic) = self.scenario.traffic.get(index) else { return };
        if !self.arriving {
            return;
        }
        let mut thread = self.random.usize(..self.scenario.workers);
        match traffic.pattern {
            Pattern::Flood { per_second } => {
                let gap = self.random.u64(..=2 * SECOND / u64::from(per_second.max(1)));
                self.plan(self.now + gap, Event::Arrive { traffic: index });
            }
            Pattern::Sequential { reconnects: false } => thread = index % self.scenario.workers,
            Pattern::Sequential { reconnects: true } | Pattern::BucketEnds { .. } => {}
        }
        self.next_stream += 1;
        let stream = self.next_stream;
        self.asked.insert(stream, index);
        if self.vm_of(thread).is_none() {
            self.next_vm += 1;
            let vm = Vm::worker(&self.process, self.next_vm);
            self.note(format_args!("thread {thread}: VM {} starts", vm.id));
            if let Some(thread) = self.threads.get_mut(thread) {
                thread.begin_life(vm);
            }
            self.arm(thread, FAST_TICK_MS);
        }
        let resource = Rc::clone(&traffic.resource);
        let user = (traffic.users > 0).then(|| self.random.u32(..traffic.users));
        self.deliver(thread, Order::Enter { stream, resource, batch: traffic.batch, user });
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

    fn fault(&mut self, index: usize) {
        let Some((_, fault)) = self.scenario.faults.get(index) else { return };
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
            Fault::StallMain(span) => self.main().stalled_until = self.now + span,
            Fault::StepWall(span) => self.process.borrow_mut().wall_at_zero_ns += span,
        }
    }

    /// The VM of a thread is gone, with everything it had in memory.
    fn trap(&mut self, index: usize) {
        self.report.traps += 1;
        let Some(thread) = self.threads.get_mut(index) else { return };
        let (pass, block) = std::mem::take(&mut thread.unreported);
        self.report.pass_lost_at_most += pass;
        self.report.block_lost_at_most += block;
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
        let rules = self.scenario.rule_sets.get(self.rules).map(|(_, rules)| rules.clone());
        let config = Rc::new(config(rules.unwrap_or_default(), self.scenario.settings.clone()));
        let mut vm = Vm::service(&self.process, self.next_vm, config);
        self.service = Some(vm.id);
        // Configuring ends with the first order that does nothing.
        let mut said = vm.resume(Order::GoOn);
        while let Some(Said::Calls(_)) = said {
            said = vm.resume(Order::GoOn);
        }
        self.look()?;
        Ok(vm)
    }

    /// Looks at what the last call has done to the process.
    fn look(&mut self) -> Result<(), Broken> {
        let mut process = self.process.borrow_mut();
        let writes = process.take_writes();
        let wake_ups = process.queues.take_wake_ups();
        self.report.backlog = self.report.backlog.max(process.queues.backlog());
        drop(process);
        let service = self.service;
        for write in &writes {
            self.checker.written(write, service)?;
        }
        for vm in wake_ups {
            let at = self.now + self.random.u64(40_000..3 * MS);
            self.plan(at, Event::WakeUp { vm });
        }
        Ok(())
    }

    /// What one call costs a thread until it goes on.
    fn cost(&mut self, thread: usize) -> u64 {
        let stall_one_in = self.scenario.stall_one_in;
        if thread == self.main_thread() || stall_one_in == 0 || self.random.u32(..stall_one_in) > 0
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
        if self.threads.len() <= main {
            self.threads.resize_with(main + 1, Thread::default);
        }
        #[expect(clippy::indexing_slicing, reason = "there are that many threads")]
        &mut self.threads[main]
    }

    fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.line(self.now, what);
    }
}
