//! A steady load on many workers, with nothing wrong: what limits cost, and how exact they are.
//!
//! The engine that ships, on the simulated Envoy, at every number of workers and every threshold, also those that no
//! machine at hand could carry. Each host call takes the time that it was measured to take in Envoy, more or less, and
//! whichever worker is done first goes on: so claims of one ledger meet as often as they would. What a request costs apart
//! from host calls is nothing here, and neither is waiting for Envoy's lock.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    rc::Rc,
};

use sentinel_core::{config::Settings, ledger::Ledger, window::WindowShape};
use sentinel_wire::{
    key::Key,
    ledger::{self, Value},
};

use crate::{
    host::Call,
    process::Process,
    rules::flow,
    scenario::{MS, SECOND, config},
    vm::{Decision, Done, Order, Said, Vm},
};

/// One flow rule of windows of a second, offered more than it allows, evenly in time, each request to any worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steady {
    /// Envoy's workers.
    pub workers: usize,
    /// Requests a second that the rule allows.
    pub threshold: u32,
    /// Requests a second that are asked for, 1 or more.
    pub offered: u32,
    /// Half seconds of load that are looked at, 2 or more: as many as a window has.
    pub halves: u32,
    /// What the interleaving is drawn from.
    pub seed: u64,
}

/// What came of it, in the time that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were asked for.
    pub offered: u64,
    /// Those that were admitted.
    pub admitted: u64,
    /// Admitted in each window of the rule, one after the other, each half a second later than the one before.
    pub windows: Vec<u64>,
    /// How often a request asked the rule's ledger.
    pub claims: u64,
    /// How often a worker's write to the ledger came second, and was done again.
    pub mismatches: u64,
    /// Loads, stores and creations of shared data that requests waited for.
    pub request_calls: u64,
    /// Those of the workers' timers: tokens that go back, heartbeats, looks for the service.
    pub timer_calls: u64,
    /// Those of the service.
    pub service_calls: u64,
    /// Frames that workers have sent.
    pub frames: u64,
}

impl Outcome {
    /// Calls of shared data in all.
    pub fn calls(&self) -> u64 {
        self.request_calls + self.timer_calls + self.service_calls
    }

    /// So many, for each admitted request.
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    pub fn per_request(&self, count: u64) -> f64 {
        count as f64 / self.admitted.max(1) as f64
    }
}

/// Before this, workers come to know of each other.
const ACQUAINTED: u64 = 2_500 * MS;

/// From here on it is looked at.
const BEGIN: u64 = 3 * SECOND;

/// Aligned to a second, so that buckets begin at multiples of half a second of the simulation's time.
const WALL: u64 = 1_900_000_020 * SECOND;

const RESOURCE: &str = "/limited";

/// Names a resource without a rule: by its first request a worker comes to be.
const HELLO: &str = "/hello";

impl Steady {
    /// Runs it.
    pub fn run(&self) -> Outcome {
        World::new(self).run()
    }

    /// The most claims for each admitted request that the size of a lease leaves room for.
    ///
    /// A lease is for twice what its worker spent in a tick, so that it lasts for two. Near the end of what a bucket has,
    /// it is a worker's share of the half of what is left: one claim for each halving, until single tokens are left, which are
    /// two for each worker, and one more by which it learns that there are none. And no request claims more than once.
    pub fn claims_most(&self) -> f64 {
        const TICKS: f64 = 100.0;
        const BUCKETS: f64 = 2.0;
        #[expect(clippy::cast_precision_loss, reason = "workers are few")]
        let workers = self.workers as f64;
        let (threshold, offered) = (f64::from(self.threshold), f64::from(self.offered));
        let halvings = (threshold / (2.0 * workers)).log2().max(0.0);
        let of_worker = TICKS / 2.0 + BUCKETS * (halvings + 3.0);
        (workers * of_worker).min(offered) / threshold
    }

    /// Whether no window had more than the threshold, and each at least 99 % of it.
    pub fn is_exact(&self, outcome: &Outcome) -> bool {
        let threshold = u64::from(self.threshold);
        let least = (threshold * 99).div_ceil(100);
        !outcome.windows.is_empty()
            && outcome.windows.iter().all(|admitted| (least..=threshold).contains(admitted))
    }
}

/// A thread of Envoy with its VM.
struct Thread {
    vm: Vm,
    inbox: VecDeque<Order>,
    /// What the VM is resumed with next; `None` while it has nothing to do.
    next: Option<Order>,
    /// The call before which it has stopped.
    about_to: Option<Call>,
    /// Whether its write to the ledger has come second, and it begins again.
    again: bool,
    /// Whether it is at a request, and not at its timer.
    is_asked: bool,
    period_ms: u32,
    armed: u64,
    /// The start of the newest bucket that this worker has met in the ledger: it spends in none before.
    floor: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Step { thread: usize },
    Tick { thread: usize, armed: u64 },
}

struct World {
    plan: Steady,
    random: fastrand::Rng,
    process: Rc<RefCell<Process>>,
    /// The service's, and one for each worker.
    threads: Vec<Thread>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    resource: Rc<str>,
    stream: u64,
    shape: WindowShape,
    name: String,
    buckets: BTreeMap<u64, u64>,
    outcome: Outcome,
    end: u64,
}

const SERVICE: usize = 0;

impl World {
    fn new(plan: &Steady) -> Self {
        let process = Rc::new(RefCell::new(Process::new(plan.seed, WALL)));
        let rule = flow("limit", RESOURCE, f64::from(plan.threshold), 1_000);
        let config = Rc::new(config(vec![rule], Settings::DEFAULT));
        let service = Vm::service(&process, 0, config);
        let workers = (1..).take(plan.workers).map(|id| Vm::worker(&process, id));
        let threads = std::iter::once(service).chain(workers).map(Thread::new).collect();
        Self {
            plan: *plan,
            random: fastrand::Rng::with_seed(plan.seed),
            process,
            threads,
            events: BinaryHeap::new(),
            resource: RESOURCE.into(),
            stream: 0,
            shape: WindowShape::for_flow(1_000),
            name: String::new(),
            buckets: BTreeMap::new(),
            outcome: Outcome::default(),
            end: BEGIN + u64::from(plan.halves.max(2)) * SECOND / 2,
        }
    }

    fn run(mut self) -> Outcome {
        self.start_service();
        let hello: Rc<str> = HELLO.into();
        for (worker, at) in (1..=self.plan.workers).zip((100 * MS..).step_by(5_000_000)) {
            self.run_until(at);
            let resource = Rc::clone(&hello);
            let order = Order::Enter { stream: 0, resource, batch: 1, user: None };
            self.deliver(worker, order, at);
        }
        self.run_until(ACQUAINTED);
        let offered = u64::from(self.plan.offered.max(1));
        for number in 0.. {
            let at = ACQUAINTED + number * SECOND / offered;
            if at >= self.end {
                break;
            }
            self.run_until(at);
            self.stream += 1;
            let (stream, resource) = (self.stream, Rc::clone(&self.resource));
            let worker = self.random.usize(1..=self.plan.workers.max(1));
            self.deliver(worker, Order::Enter { stream, resource, batch: 1, user: None }, at);
            if at >= BEGIN {
                self.outcome.offered += 1;
            }
        }
        self.run_until(self.end);
        self.judged()
    }

    /// At no time at all, so that the shared clock begins with the simulation's.
    fn start_service(&mut self) {
        if let Some(thread) = self.threads.get_mut(SERVICE) {
            let mut said = thread.vm.resume(Order::Settle);
            while matches!(said, Some(Said::Calls(_))) {
                said = thread.vm.resume(Order::GoOn);
            }
        }
        self.arm(SERVICE, 1, 0);
    }

    /// Sums up buckets to windows, of those that lie wholly in what is looked at.
    fn judged(mut self) -> Outcome {
        let length = self.shape.bucket().get();
        let buckets: Vec<_> = (BEGIN / length..self.end / length)
            .map(|bucket| self.buckets.get(&bucket).copied().unwrap_or_default())
            .collect();
        self.outcome.admitted = buckets.iter().sum();
        let windows = buckets.windows(usize::from(self.shape.buckets()));
        self.outcome.windows = windows.map(|window| window.iter().sum()).collect();
        self.outcome
    }

    fn run_until(&mut self, until: u64) {
        while let Some(Reverse((at, event))) = self.events.peek().copied() {
            if at >= until {
                break;
            }
            self.events.pop();
            match event {
                Event::Step { thread } => self.go_on(thread, at, until),
                Event::Tick { thread, armed } => {
                    if self.threads.get(thread).is_some_and(|thread| thread.armed == armed) {
                        self.deliver(thread, Order::Tick, at);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, index: usize, order: Order, now: u64) {
        let Some(thread) = self.threads.get_mut(index) else { return };
        thread.inbox.push_back(order);
        if thread.begin_next() {
            self.events.push(Reverse((now, Event::Step { thread: index })));
        }
    }

    /// A thread goes on, from call to call as long as nothing else comes before.
    fn go_on(&mut self, index: usize, mut now: u64, until: u64) {
        loop {
            self.process.borrow_mut().monotonic_ns = now;
            let Some(said) = self.resume(index, now) else { return };
            match said {
                Said::Calls(call) => {
                    self.count(index, call, now);
                    now += self.time_of(call);
                }
                Said::Done(done) => {
                    self.done(index, &done, now);
                    if !self.threads.get_mut(index).is_some_and(Thread::begin_next) {
                        return;
                    }
                }
            }
            let is_first = self.events.peek().is_none_or(|Reverse((at, _))| now < *at);
            if !is_first || now >= until {
                self.events.push(Reverse((now, Event::Step { thread: index })));
                return;
            }
        }
    }

    /// Lets a VM make the call before which it has stopped, and looks at what that did to the ledger.
    fn resume(&mut self, index: usize, now: u64) -> Option<Said> {
        let thread = self.threads.get_mut(index)?;
        let call = thread.about_to.take();
        let before = match call {
            Some(Call::Load(key @ Key::Ledger(_)) | Call::Store(key @ Key::Ledger(_))) => {
                key.write_name(&mut self.name);
                let process = self.process.borrow();
                process.shared_data.value(&self.name).map(|(value, token)| (newest(value), token))
            }
            _ => None,
        };
        let said = thread.vm.resume(thread.next.replace(Order::GoOn)?)?;
        thread.about_to = match &said {
            Said::Calls(call) => Some(*call),
            Said::Done(_) => {
                thread.next = None;
                None
            }
        };
        match (call, before) {
            (Some(Call::Load(_)), Some((Some(newest), _))) => {
                thread.floor = thread.floor.max(newest);
            }
            (Some(Call::Store(_)), Some((_, token))) => {
                let process = self.process.borrow();
                let after = process.shared_data.value(&self.name).map(|(_, token)| token);
                // A token that has not moved: nothing was written.
                thread.again = after == Some(token);
                if thread.again && now >= BEGIN {
                    self.outcome.mismatches += 1;
                }
            }
            _ => {}
        }
        Some(said)
    }

    /// Counts a call that a VM is about to make.
    fn count(&mut self, index: usize, call: Call, now: u64) {
        let Some(thread) = self.threads.get_mut(index) else { return };
        let again = matches!(call, Call::Load(_)) && std::mem::take(&mut thread.again);
        if now < BEGIN {
            return;
        }
        let outcome = &mut self.outcome;
        if matches!(call, Call::Load(Key::Ledger(_))) && thread.is_asked && !again {
            outcome.claims += 1;
        }
        if matches!(call, Call::Load(_) | Call::Store(_) | Call::Create(_)) {
            *match (index, thread.is_asked) {
                (SERVICE, _) => &mut outcome.service_calls,
                (_, true) => &mut outcome.request_calls,
                (_, false) => &mut outcome.timer_calls,
            } += 1;
        }
    }

    /// How long a call takes in Envoy, half as long again or half as long.
    fn time_of(&mut self, call: Call) -> u64 {
        let nanos = match call {
            Call::Clock => 200,
            Call::Load(_) => 1_400,
            Call::Store(_) | Call::Create(_) => 350,
            Call::Queue(_) => 900,
            Call::Random | Call::Level(_) | Call::Raise(_) | Call::Meter => 150,
        };
        self.random.u64(nanos / 2..nanos * 3 / 2)
    }

    fn done(&mut self, index: usize, done: &Done, now: u64) {
        let wake_ups = self.process.borrow_mut().queues.take_wake_ups().len();
        for _ in 0..wake_ups {
            self.deliver(SERVICE, Order::WakeUp, now);
        }
        if now >= BEGIN {
            self.outcome.frames += u64::try_from(wake_ups).unwrap_or_default();
        }
        match done {
            Done::Answered(answer) => {
                let Some(thread) = self.threads.get_mut(index) else { return };
                if answer.decision == Decision::Passes {
                    // It ends at once: how long it is open makes no difference to its limit.
                    let stream = answer.stream;
                    thread.inbox.push_front(Order::Exit { stream, failed: false });
                    if answer.resource == self.resource {
                        let length = self.shape.bucket().get();
                        let bucket = answer.seen.monotonic_ns.max(thread.floor) / length;
                        *self.buckets.entry(bucket).or_default() += 1;
                    }
                }
                // The shell asks for a shorter period than the one it has asked for, and for no other.
                if thread.period_ms > answer.busy.period_ms {
                    self.arm(index, answer.busy.period_ms, now);
                }
            }
            Done::Ticked(next, _) => self.arm(index, next.period_ms, now),
            Done::Settled { .. } | Done::Counted(_) | Done::Nothing => {}
        }
    }

    /// Arms a thread's timer: not before the period is over, and then at the next of the kernel's ticks.
    fn arm(&mut self, index: usize, period_ms: u32, now: u64) {
        const JIFFY: u64 = 4 * MS;
        let late = self.random.u64(..JIFFY / 8);
        let Some(thread) = self.threads.get_mut(index) else { return };
        thread.armed += 1;
        thread.period_ms = period_ms;
        let armed = thread.armed;
        let at = (now + u64::from(period_ms) * MS).next_multiple_of(JIFFY) + late;
        self.events.push(Reverse((at, Event::Tick { thread: index, armed })));
    }
}

impl Thread {
    fn new(vm: Vm) -> Self {
        Self {
            vm,
            inbox: VecDeque::new(),
            next: None,
            about_to: None,
            again: false,
            is_asked: false,
            // None is armed: whatever is asked for is shorter.
            period_ms: u32::MAX,
            armed: 0,
            floor: 0,
        }
    }

    /// Begins with the next order if the VM has nothing to do and there is one.
    fn begin_next(&mut self) -> bool {
        if self.next.is_some() {
            return false;
        }
        self.next = self.inbox.pop_front();
        self.is_asked = matches!(self.next, Some(Order::Enter { .. } | Order::Exit { .. }));
        self.next.is_some()
    }
}

/// When the newest bucket of a ledger begins, in the simulation's time.
fn newest(bytes: &[u8]) -> Option<u64> {
    let Ok((_, Value::Single(Ledger::Rate(rate)))) = ledger::decode(bytes) else { return None };
    let begins = WindowShape::for_flow(1_000).start_of(rate.newest);
    Some(begins.get().saturating_sub(WALL))
}
