//! What ten thousand rules for other resources cost a request and an idle worker: nothing.
//!
//! Host calls are counted here; `cargo xtask bench rules` compares the time.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{
    config::Settings,
    param::Anonymous,
    rule::{Rule, Target},
};
use sentinel_engine::{
    host::{Cas, Host, HostError, Meter, MetricId, MetricKind, Queue, Signal, Stored},
    service::Service,
    worker::{Call, Outcome, Verdict, Worker},
};
use sentinel_sim::{
    host::SimHost,
    process::Process,
    rules::{flow, isolation},
    scenario::config,
};
use sentinel_wire::{frame::CounterFrame, key::Key};

/// A host that counts its calls.
struct Counting {
    host: SimHost<'static>,
    calls: u64,
}

impl Counting {
    fn count(&mut self) -> &mut SimHost<'static> {
        self.calls += 1;
        &mut self.host
    }
}

impl Host for Counting {
    fn monotonic_ns(&mut self) -> u64 {
        self.count().monotonic_ns()
    }

    fn wall_ns(&mut self) -> u64 {
        self.count().wall_ns()
    }

    fn random(&mut self) -> u64 {
        self.count().random()
    }

    fn load(&mut self, key: Key, value: &mut Vec<u8>) -> Result<Option<Cas>, HostError> {
        self.count().load(key, value)
    }

    fn store(&mut self, key: Key, value: &[u8], expected: Cas) -> Result<Stored, HostError> {
        self.count().store(key, value, expected)
    }

    fn create(&mut self, key: Key, value: &[u8]) -> Result<Stored, HostError> {
        self.count().create(key, value)
    }

    fn register_queue(&mut self) -> Result<Queue, HostError> {
        self.count().register_queue()
    }

    fn resolve_queue(&mut self) -> Result<Option<Queue>, HostError> {
        self.count().resolve_queue()
    }

    fn enqueue(&mut self, queue: Queue, frame: &[u8]) -> Result<(), HostError> {
        self.count().enqueue(queue, frame)
    }

    fn dequeue(&mut self, queue: Queue, frame: &mut Vec<u8>) -> Result<bool, HostError> {
        self.count().dequeue(queue, frame)
    }

    fn level(&mut self, signal: Signal) -> u64 {
        self.count().level(signal)
    }

    fn raise(&mut self, signal: Signal) {
        self.count().raise(signal);
    }
}

impl Meter for Counting {
    fn define(&mut self, kind: MetricKind, name: &str) -> Result<MetricId, HostError> {
        self.count().define(kind, name)
    }

    fn add(&mut self, counter: MetricId, delta: u64) {
        self.count().add(counter, delta);
    }

    fn set(&mut self, gauge: MetricId, value: u64) {
        self.count().set(gauge, value);
    }

    fn record(&mut self, histogram: MetricId, value: u64) {
        self.count().record(histogram, value);
    }
}

struct Proxy {
    process: Rc<RefCell<Process>>,
    host: Counting,
    worker: Worker,
}

impl Proxy {
    fn start(rules: Vec<Rule>) -> Self {
        let process = Rc::new(RefCell::new(Process::new(1, 1_900_000_020_000_000_000)));
        let mut host = SimHost::undisturbed(&process, 0);
        Service::configure(&mut host, config(rules, Settings::DEFAULT));
        let mut host = Counting { host: SimHost::undisturbed(&process, 1), calls: 0 };
        let worker = Worker::start(&mut host);
        assert_eq!(worker.rules_version(), 1);
        Self { process, host, worker }
    }

    fn ask(&mut self, resource: &str) {
        let call = Call {
            resource: resource.as_bytes(),
            batch: 1,
            inbound: true,
            stream: 1,
            before_first_rules: None,
        };
        match self.worker.enter(&mut self.host, &call, &mut Anonymous) {
            Verdict::Pass(entry) => self.worker.exit(&mut self.host, entry, Outcome::OK),
            refused @ (Verdict::Wait(..) | Verdict::Blocked(_)) => {
                panic!("{resource} is refused: {refused:?}")
            }
        }
    }

    fn tick_after(&mut self, millis: u64) {
        self.process.borrow_mut().monotonic_ns += millis * 1_000_000;
        self.worker.tick(&mut self.host);
    }

    /// The least host calls of one `act`.
    fn calls(&mut self, mut act: impl FnMut(&mut Self)) -> u64 {
        let mut least = u64::MAX;
        for _ in 0..300 {
            let before = self.host.calls;
            act(self);
            least = least.min(self.host.calls - before);
        }
        least
    }
}

/// One rule for `one`, and so many for others.
fn beside(others: usize) -> Vec<Rule> {
    let flows = (0..others / 2).map(|n| flow(&format!("f{n}"), &format!("GET:/f{n}"), 1e9, 1_000));
    let places =
        (others / 2..others).map(|n| isolation(&format!("i{n}"), &format!("GET:/i{n}"), 9));
    let one = flow("one", "one", 1e9, 1_000);
    flows.chain(places).chain([one]).collect()
}

#[test]
fn a_request_costs_the_same_beside_ten_thousand_rules_for_others() {
    for resource in ["one", "GET:/nobodys"] {
        let [alone, beside] = [0, 9_999].map(|others| {
            let mut proxy = Proxy::start(beside(others));
            proxy.calls(|proxy| (0..10).for_each(|_| proxy.ask(resource)))
        });
        assert_eq!(alone, beside);
    }
}

#[test]
fn an_idle_worker_costs_the_same_with_ten_thousand_rules() {
    for millis in [10, 1_000] {
        let [alone, beside] = [0, 9_999].map(|others| {
            let mut proxy = Proxy::start(beside(others));
            // All have been used, and none is in use any more.
            (0..others / 2).for_each(|n| proxy.ask(&format!("GET:/f{n}")));
            (others / 2..others).for_each(|n| proxy.ask(&format!("GET:/i{n}")));
            (0..5).for_each(|_| proxy.tick_after(1_000));
            proxy.calls(|proxy| proxy.tick_after(millis))
        });
        assert_eq!(alone, beside);
    }
}

#[test]
fn of_more_resources_than_a_frame_holds_each_is_told_once_a_second_in_the_ticks_that_follow() {
    let rules = beside(2 * RESOURCES);
    let mut proxy = Proxy::start(rules.clone());
    let mut host = SimHost::undisturbed(&proxy.process, 0);
    let mut service = Service::configure(&mut host, config(rules, Settings::DEFAULT));
    service.tick(&mut host);
    let queue = host.register_queue().unwrap();
    let mut bytes = Vec::new();
    let mut told = move |proxy: &mut Proxy, millis| {
        proxy.tick_after(millis);
        let mut resources = Vec::new();
        while host.dequeue(queue, &mut bytes).unwrap() {
            let frame = CounterFrame::decode(&bytes).unwrap();
            resources.extend(frame.entries.into_iter().map(|entry| entry.resource));
        }
        service.tick(&mut host);
        resources
    };
    told(&mut proxy, 1_000);
    for _ in 0..2 {
        (0..RESOURCES).for_each(|n| proxy.ask(&format!("GET:/f{n}")));
        let ticks = [1_000, 10, 10, 10].map(|millis| told(&mut proxy, millis));
        assert_eq!(ticks.each_ref().map(Vec::len), [256, 256, 88, 0]);
        let mut resources = ticks.concat();
        resources.sort_unstable();
        resources.dedup();
        assert_eq!(resources.len(), RESOURCES);
    }
}

/// More than two frames hold.
const RESOURCES: usize = 600;

#[test]
fn a_name_costs_the_same_with_five_thousand_patterns_for_others() {
    let pattern = |n: usize| {
        let mut rule = flow(&format!("p{n}"), "", 1e9, 1_000);
        if let Rule::Flow(flow) = &mut rule {
            flow.target = Target::Pattern(format!("GET:/service-{n}/users/[0-9]+"));
        }
        rule
    };
    let [alone, beside] = [1, 5_000].map(|count| {
        let mut proxy = Proxy::start((0..count).map(pattern).collect());
        let mut user = 0;
        proxy.calls(|proxy| {
            // A new one each time.
            user += 1;
            proxy.ask(&format!("GET:/service-0/users/{user}"));
        })
    });
    assert_eq!(alone, beside);
}
