//! The service alone with a host in memory, and frames written by hand: what it decides by what they say. How workers
//! and service get on with each other is the simulator's subject.

use alloc::{
    format,
    string::{String, ToString as _},
    vec,
    vec::Vec,
};

use sentinel_core::{
    config::Settings,
    ledger::{
        Ledger, Stamp,
        breaker::{BreakerLedger, BreakerState},
    },
    rule::{
        BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule, INBOUND, LimitApp,
        MemoryMarks, SystemMetric, SystemRule, Target, TokenCalculate,
    },
    stat::MetricBucket,
    warm_up::WarmUp,
};
use sentinel_wire::{
    decisions::Decisions,
    frame::{BreakerCounts, CounterFrame, FrameEntry},
    ledger::{self, Value},
};

use super::*;
use crate::host::{Cas, HostError, MetricId, MetricKind, Stored};

/// Envoy, as far as a service alone sees it.
pub(super) struct TinyHost {
    monotonic_ns: u64,
    random: u64,
    data: Vec<(Key, Vec<u8>, u32)>,
    writes: u32,
    queue: Vec<Vec<u8>>,
    signals: [u64; Signal::ALL.len()],
    metrics: Vec<(String, u64)>,
    /// Stores of this key fail.
    broken: Option<Key>,
}

/// Half past a full minute of the shared clock.
const START_NS: u64 = 1_900_000_020_000_000_000;

impl TinyHost {
    pub(super) fn new() -> Self {
        Self {
            monotonic_ns: 0,
            random: 0,
            data: Vec::new(),
            writes: 0,
            queue: Vec::new(),
            signals: [0; Signal::ALL.len()],
            metrics: Vec::new(),
            broken: None,
        }
    }

    pub(super) fn at_ms(&mut self, millis: u64) -> &mut Self {
        self.monotonic_ns = millis * 1_000_000;
        self
    }

    fn place(&self, key: Key) -> Option<usize> {
        self.data.iter().position(|(known, ..)| *known == key)
    }

    fn write(&mut self, key: Key, value: &[u8]) -> Result<Stored, HostError> {
        if self.broken == Some(key) {
            return Err(HostError::Status(1));
        }
        self.writes += 1;
        let entry = (key, value.to_vec(), self.writes);
        match self.place(key) {
            Some(place) => self.data[place] = entry,
            None => self.data.push(entry),
        }
        Ok(Stored::Done)
    }

    pub(super) fn gauge(&self, name: &str) -> Option<u64> {
        let full = format!("sentinel.{name}");
        self.metrics.iter().find(|(known, _)| *known == full).map(|(_, value)| *value)
    }

    fn decisions(&mut self) -> Vec<(u64, u64)> {
        let mut bytes = Vec::new();
        match self.load(Key::Decisions, &mut bytes) {
            Ok(Some(_)) => {
                let decisions = Decisions::decode(&bytes).expect("decisions that can be read");
                decisions.decisions.iter().map(|of| (of.generation, of.value)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn breaker(&mut self, slot: u32) -> Option<BreakerLedger> {
        let mut bytes = Vec::new();
        self.load(Key::Ledger(slot), &mut bytes).expect("a host that works")?;
        match ledger::decode(&bytes) {
            Ok((_, Value::Single(Ledger::Breaker(breaker)))) => Some(breaker),
            other => panic!("no breaker: {other:?}"),
        }
    }

    /// What a worker does to a breaker's ledger.
    fn move_breaker(&mut self, slot: u32, change: impl FnOnce(&mut BreakerLedger)) {
        let mut bytes = Vec::new();
        self.load(Key::Ledger(slot), &mut bytes).expect("a host that works");
        let Ok((stamp, Value::Single(Ledger::Breaker(mut breaker)))) = ledger::decode(&bytes)
        else {
            panic!("no breaker in {slot}")
        };
        change(&mut breaker);
        ledger::encode(&stamp, &Value::Single(Ledger::Breaker(breaker)), &mut bytes);
        assert_eq!(self.write(Key::Ledger(slot), &bytes), Ok(Stored::Done));
    }
}

impl Host for TinyHost {
    fn monotonic_ns(&mut self) -> u64 {
        self.monotonic_ns
    }

    fn wall_ns(&mut self) -> u64 {
        START_NS + self.monotonic_ns
    }

    fn random(&mut self) -> u64 {
        self.random += 1;
        self.random
    }

    fn load(&mut self, key: Key, value: &mut Vec<u8>) -> Result<Option<Cas>, HostError> {
        value.clear();
        Ok(self.place(key).map(|place| {
            value.extend_from_slice(&self.data[place].1);
            Cas(self.data[place].2)
        }))
    }

    fn store(&mut self, key: Key, value: &[u8], expected: Cas) -> Result<Stored, HostError> {
        let current = self.place(key).map(|place| self.data[place].2);
        assert_eq!(current, Some(expected.0), "nobody else is here");
        self.write(key, value)
    }

    fn create(&mut self, key: Key, value: &[u8]) -> Result<Stored, HostError> {
        assert_eq!(self.place(key), None, "it is not there");
        self.write(key, value)
    }

    fn register_queue(&mut self) -> Result<Queue, HostError> {
        Ok(Queue(1))
    }

    fn resolve_queue(&mut self) -> Result<Option<Queue>, HostError> {
        Ok(Some(Queue(1)))
    }

    fn enqueue(&mut self, _queue: Queue, frame: &[u8]) -> Result<(), HostError> {
        self.queue.push(frame.to_vec());
        Ok(())
    }

    fn dequeue(&mut self, _queue: Queue, frame: &mut Vec<u8>) -> Result<bool, HostError> {
        frame.clear();
        if self.queue.is_empty() {
            return Ok(false);
        }
        *frame = self.queue.remove(0);
        Ok(true)
    }

    fn level(&mut self, signal: Signal) -> u64 {
        self.signals[signal as usize]
    }

    fn raise(&mut self, signal: Signal) {
        self.signals[signal as usize] += 1;
    }
}

impl Meter for TinyHost {
    fn define(&mut self, _kind: MetricKind, name: &str) -> Result<MetricId, HostError> {
        let known = self.metrics.iter().position(|(known, _)| known == name);
        let id = known.unwrap_or_else(|| {
            self.metrics.push((name.to_string(), 0));
            self.metrics.len() - 1
        });
        Ok(MetricId(u32::try_from(id).expect("few metrics")))
    }

    fn add(&mut self, counter: MetricId, delta: u64) {
        self.metrics[counter.0 as usize].1 += delta;
    }

    fn set(&mut self, gauge: MetricId, value: u64) {
        self.metrics[gauge.0 as usize].1 = value;
    }

    fn record(&mut self, _histogram: MetricId, _value: u64) {}
}

/// A worker that says what it is told to.
struct Told {
    incarnation: u64,
    sequence: u64,
}

impl Told {
    fn new(incarnation: u64) -> Self {
        Self { incarnation, sequence: 0 }
    }

    /// Sends totals of `resource`, made now.
    fn says(
        &mut self,
        host: &mut TinyHost,
        service: &Service,
        resource: &str,
        totals: MetricBucket,
        in_flight: u64,
        breakers: &[BreakerCounts],
    ) {
        self.sequence += 1;
        let entry = FrameEntry {
            resource: service.clock.hash(resource.as_bytes()),
            name: Some(resource.to_string()),
            pass: totals.pass,
            block: totals.block,
            complete: totals.complete,
            error: totals.error,
            rt_ms: totals.rt_ms,
            rt_min: totals.rt_min,
            in_flight,
            breakers: breakers.to_vec(),
            histogram: Vec::new(),
        };
        let frame = CounterFrame {
            incarnation: self.incarnation,
            sequence: self.sequence,
            at_ns: START_NS + host.monotonic_ns,
            waiting: 3,
            permits_owed: 2,
            entries: vec![entry],
        };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        host.queue.push(bytes);
    }

    fn passed(&mut self, host: &mut TinyHost, service: &Service, resource: &str, pass: u64) {
        let totals = MetricBucket { pass, ..MetricBucket::default() };
        self.says(host, service, resource, totals, 0, &[]);
    }

    fn ended(
        &mut self,
        host: &mut TinyHost,
        service: &Service,
        (generation, epoch): (u64, u64),
        complete: u64,
        bad: u64,
    ) {
        let counts = BreakerCounts { generation, epoch, complete, bad };
        self.says(host, service, "r", MetricBucket::default(), 0, &[counts]);
    }
}

fn breaker_rule(strategy: BreakerStrategy) -> CircuitBreakerRule {
    CircuitBreakerRule {
        id: "cb".to_string(),
        target: Target::Resource("r".to_string()),
        strategy,
        retry_timeout_ms: 3_000,
        min_request_amount: 5,
        stat_interval_ms: 1_000,
        buckets: 1,
        probe_num: 1,
        error_statuses: None,
        grpc_error_statuses: None,
        close_live_connections: false,
        common: Common::default(),
    }
}

fn half_fail() -> Rule {
    Rule::CircuitBreaker(breaker_rule(BreakerStrategy::ErrorRatio(0.5)))
}

fn flow(calculate: TokenCalculate, ref_resource: Option<&str>, stat_interval_ms: u32) -> Rule {
    Rule::Flow(FlowRule {
        id: "f".to_string(),
        target: Target::Resource("write".to_string()),
        limit_app: LimitApp::Default,
        threshold: 10.0,
        stat_interval_ms,
        calculate,
        control: Control::Reject,
        ref_resource: ref_resource.map(str::to_string),
        common: Common::default(),
    })
}

fn system(metric: SystemMetric, trigger: f64) -> Rule {
    Rule::System(SystemRule { id: "s".to_string(), metric, trigger, common: Common::default() })
}

fn config(rules: Vec<Rule>) -> ServiceConfig {
    // Another period than that of the acknowledgements.
    let settings = Settings { flush_ms: 7, ..Settings::default() };
    ServiceConfig { rules, series_max: 1_000, settings, ..ServiceConfig::default() }
}

/// A service that has the role, at 0 ms.
fn service(host: &mut TinyHost, rules: Vec<Rule>) -> Service {
    let mut service = Service::configure(host, config(rules));
    service.tick(host);
    assert!(service.is_holder());
    service
}

/// As Envoy does: a call for each frame.
fn take_all(service: &mut Service, host: &mut TinyHost) {
    for _ in 0..host.queue.len() {
        service.take_frame(host);
    }
}

const CLOSED: (u64, u64) = (1, 0);

#[test]
fn a_breaker_opens_at_its_ratio_and_all_are_told_at_once() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let (mut one, mut other) = (Told::new(1), Told::new(2));

    one.ended(&mut host, &service, CLOSED, 4, 2);
    service.take_frame(&mut host);
    assert_eq!(host.place(Key::Decisions), None, "too few have ended");
    assert_eq!(service.breaker_state(&mut host, "cb"), Some(BreakerState::Closed));

    other.ended(&mut host, &service, CLOSED, 2, 0);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [], "2 of 6 are less than half");

    let told = host.level(Signal::Decided);
    other.ended(&mut host, &service, CLOSED, 4, 2);
    let next = service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)], "4 of 8 are half");
    assert_ne!(host.level(Signal::Decided), told);
    assert_eq!(next.period_ms, 7);
    let breaker = host.breaker(0).expect("a ledger");
    assert_eq!((breaker.state, breaker.epoch), (BreakerState::Open, 1));
    assert_eq!(breaker.retry_at, Nanos::new(START_NS) + Span::from_millis(3_000));
    assert_eq!(host.gauge("resource.r.rule.cb.breaker_state"), Some(2));
    assert_eq!(service.breaker_state(&mut host, "cb"), Some(BreakerState::Open));
    assert_eq!(service.breaker_state(&mut host, "none"), None);
}

#[test]
fn what_is_said_twice_counts_once() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);

    for _ in 0..5 {
        worker.ended(&mut host, &service, CLOSED, 4, 4);
    }
    service.take_frame(&mut host);

    assert_eq!(host.decisions(), []);
}

#[test]
fn a_backlog_and_what_follows_a_lost_frame_open_nothing() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);

    worker.ended(&mut host, &service, CLOSED, 10, 10);
    host.at_ms(2_001);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [], "the frame is old");

    worker.sequence += 1;
    worker.ended(&mut host, &service, CLOSED, 20, 20);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [], "one is missing before this one");

    worker.ended(&mut host, &service, CLOSED, 25, 25);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn once_workers_have_closed_a_breaker_it_begins_anew() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let (mut one, mut other) = (Told::new(1), Told::new(2));
    one.ended(&mut host, &service, CLOSED, 5, 5);
    take_all(&mut service, &mut host);
    assert_eq!(host.decisions(), [(1, 1)]);

    host.at_ms(100);
    host.move_breaker(0, |breaker| (breaker.state, breaker.epoch) = (BreakerState::HalfOpen, 2));
    let next = service.tick(&mut host);
    assert_eq!(host.decisions(), [(1, 2)]);
    assert_eq!(host.gauge("resource.r.rule.cb.breaker_state"), Some(1));
    assert_eq!(next.period_ms, 7);

    host.move_breaker(0, |breaker| (breaker.state, breaker.epoch) = (BreakerState::Closed, 3));
    assert_eq!(service.tick(&mut host), Next::IDLE);
    assert_eq!(
        host.decisions(),
        [(1, 3)],
        "who has slept over it must know in which epoch to count"
    );
    assert_eq!(host.gauge("resource.r.rule.cb.breaker_state"), Some(0));

    // Both count from 0 in the new epoch; the other has not noticed it yet.
    other.ended(&mut host, &service, CLOSED, 5, 5);
    one.ended(&mut host, &service, (1, 3), 4, 4);
    take_all(&mut service, &mut host);
    assert_eq!(
        host.decisions(),
        [(1, 3)],
        "5 are of the epoch in which it was opened, and 4 are too few"
    );
    one.ended(&mut host, &service, (1, 3), 5, 5);
    take_all(&mut service, &mut host);
    assert_eq!(host.decisions(), [(1, 4)]);
}

#[test]
fn a_frame_of_an_epoch_that_the_service_has_not_seen_makes_it_look() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);
    worker.ended(&mut host, &service, CLOSED, 5, 5);
    service.take_frame(&mut host);

    host.move_breaker(0, |breaker| (breaker.state, breaker.epoch) = (BreakerState::Closed, 3));
    host.at_ms(1);
    worker.ended(&mut host, &service, (1, 3), 5, 5);
    service.take_frame(&mut host);

    assert_eq!(host.decisions(), [(1, 4)]);
}

#[test]
fn a_revived_service_finds_what_is_open_and_writes_nothing_new() {
    let mut host = TinyHost::new();
    let mut first = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);
    worker.ended(&mut host, &first, CLOSED, 5, 5);
    first.take_frame(&mut host);
    let (decisions, told) = (host.place(Key::Decisions), host.level(Signal::Decided));
    let written = decisions.map(|place| host.data[place].2);

    host.at_ms(3_000);
    let mut second = Service::configure(&mut host, config(vec![half_fail()]));
    let next = second.tick(&mut host);

    assert!(second.is_holder());
    assert_eq!(host.decisions(), [(1, 1)]);
    assert_eq!(decisions.map(|place| host.data[place].2), written);
    assert_eq!(host.level(Signal::Decided), told);
    assert_eq!(next.period_ms, 7, "it looks after the breaker");
    assert_eq!(host.gauge("resource.r.rule.cb.breaker_state"), Some(2));
}

#[test]
fn a_changed_breaker_begins_closed_with_what_was_counted() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);
    worker.ended(&mut host, &service, CLOSED, 5, 5);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);

    let longer = CircuitBreakerRule {
        retry_timeout_ms: 9_000,
        ..breaker_rule(BreakerStrategy::ErrorRatio(0.5))
    };
    service.replace(&mut host, config(vec![Rule::CircuitBreaker(longer)]));
    assert_eq!(host.decisions(), []);
    assert_eq!(service.breaker_state(&mut host, "cb"), Some(BreakerState::Closed));

    // 5 of 6, though this one was good.
    worker.ended(&mut host, &service, (2, 0), 1, 0);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(2, 1)]);
    assert_eq!(host.breaker(0).map(|breaker| breaker.epoch), Some(1));

    let other_window = CircuitBreakerRule {
        stat_interval_ms: 2_000,
        ..breaker_rule(BreakerStrategy::ErrorRatio(0.5))
    };
    service.replace(&mut host, config(vec![Rule::CircuitBreaker(other_window)]));
    worker.ended(&mut host, &service, (3, 0), 4, 4);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [], "nothing is left of the old window");

    let five = CircuitBreakerRule {
        stat_interval_ms: 2_000,
        ..breaker_rule(BreakerStrategy::ErrorCount(5))
    };
    service.replace(&mut host, config(vec![Rule::CircuitBreaker(five)]));
    worker.ended(&mut host, &service, (4, 0), 4, 4);
    worker.ended(&mut host, &service, (4, 0), 5, 4);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [], "the old one has counted errors for another strategy");

    service.replace(&mut host, config(Vec::new()));
    assert_eq!(host.gauge("resource.r.rule.cb.breaker_state"), Some(0));
    assert_eq!(service.breaker_state(&mut host, "cb"), None);
}

#[test]
fn a_breaker_that_only_changed_its_name_stays_open() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);
    worker.ended(&mut host, &service, CLOSED, 5, 5);
    service.take_frame(&mut host);

    let renamed = CircuitBreakerRule {
        id: "new".to_string(),
        ..breaker_rule(BreakerStrategy::ErrorRatio(0.5))
    };
    service.replace(&mut host, config(vec![Rule::CircuitBreaker(renamed)]));

    assert_eq!(host.decisions(), [(1, 1)]);
    assert_eq!(host.gauge("resource.r.rule.cb.breaker_state"), Some(0));
    assert_eq!(host.gauge("resource.r.rule.new.breaker_state"), Some(2));
}

#[test]
fn errors_of_two_workers_in_two_slices_count_together_while_the_window_lasts() {
    let rule = CircuitBreakerRule {
        min_request_amount: 0,
        buckets: 10,
        ..breaker_rule(BreakerStrategy::ErrorCount(3))
    };
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![Rule::CircuitBreaker(rule)]);
    let (mut one, mut other) = (Told::new(1), Told::new(2));

    host.at_ms(950);
    one.ended(&mut host, &service, CLOSED, 2, 2);
    // It leaves the window at 1900.
    host.at_ms(1_900);
    other.ended(&mut host, &service, CLOSED, 1, 1);
    take_all(&mut service, &mut host);
    assert_eq!(host.decisions(), []);

    host.at_ms(1_950);
    other.ended(&mut host, &service, CLOSED, 3, 3);
    take_all(&mut service, &mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn what_ends_a_window_counts_in_it_though_another_worker_is_ahead() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let (mut one, mut other) = (Told::new(1), Told::new(2));

    host.at_ms(900);
    one.ended(&mut host, &service, CLOSED, 4, 4);
    host.at_ms(1_001);
    other.ended(&mut host, &service, CLOSED, 1, 0);
    host.at_ms(999);
    one.ended(&mut host, &service, CLOSED, 5, 5);
    host.at_ms(1_005);
    take_all(&mut service, &mut host);

    assert_eq!(host.decisions(), [(1, 1)], "5 of 5 in the window that ended at 1000");
}

#[test]
fn what_is_late_counts_in_the_window_of_those_who_are_ahead() {
    let rule = CircuitBreakerRule {
        min_request_amount: 0,
        buckets: 2,
        ..breaker_rule(BreakerStrategy::ErrorCount(3))
    };
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![Rule::CircuitBreaker(rule)]);

    host.at_ms(600);
    Told::new(1).ended(&mut host, &service, CLOSED, 2, 2);
    host.at_ms(400);
    Told::new(2).ended(&mut host, &service, CLOSED, 1, 1);
    host.at_ms(601);
    take_all(&mut service, &mut host);

    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn an_error_count_of_zero_opens_at_the_first_completion() {
    let rule = CircuitBreakerRule {
        min_request_amount: 0,
        ..breaker_rule(BreakerStrategy::ErrorCount(0))
    };
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![Rule::CircuitBreaker(rule)]);
    service.tick(&mut host);
    assert_eq!(host.decisions(), []);

    Told::new(1).ended(&mut host, &service, CLOSED, 1, 0);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn what_cannot_be_written_is_written_at_a_later_tick() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    host.broken = Some(Key::Decisions);
    Told::new(1).ended(&mut host, &service, CLOSED, 5, 5);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), []);

    host.broken = None;
    host.at_ms(10);
    service.tick(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn a_slow_second_refuses_and_passes_with_time_alone() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![system(SystemMetric::AvgRt, 20.0)]);
    let mut worker = Told::new(1);
    let totals = MetricBucket { complete: 2, rt_ms: 39, ..MetricBucket::default() };
    worker.says(&mut host, &service, INBOUND, totals, 0, &[]);
    let next = service.take_frame(&mut host);
    assert_eq!(host.decisions(), [], "39 / 2 is 19");
    assert_eq!(next.period_ms, 7, "that may change with time");

    let totals = MetricBucket { complete: 3, rt_ms: 60, ..totals };
    worker.says(&mut host, &service, INBOUND, totals, 0, &[]);
    let next = service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
    assert_eq!(next.period_ms, 7);

    host.at_ms(1_000);
    service.tick(&mut host);
    assert_eq!(host.decisions(), []);
    host.at_ms(1_010);
    assert_eq!(service.tick(&mut host), Next::IDLE);
}

#[test]
fn a_busy_processor_refuses_what_is_more_than_it_has_shown_to_serve() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![system(SystemMetric::CpuUsage { bbr: true }, 0.5)]);
    let mut worker = Told::new(1);
    let rt_min = MetricBucket::rt_min_of(100);
    let totals = MetricBucket { complete: 20, rt_ms: 2_000, rt_min, ..MetricBucket::default() };
    worker.says(&mut host, &service, INBOUND, totals, 4, &[]);
    service.take_frame(&mut host);
    service.set_pressure(&mut host, Some(2.0), None);
    assert_eq!(host.decisions(), [], "40 a second of 100 ms each are 4 at a time");

    worker.says(&mut host, &service, INBOUND, totals, 5, &[]);
    service.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);

    service.set_pressure(&mut host, Some(0.5), None);
    assert_eq!(host.decisions(), []);
}

#[test]
fn a_pressure_that_is_out_of_date_passes() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![system(SystemMetric::CpuUsage { bbr: false }, 0.5)]);
    service.set_pressure(&mut host, Some(0.6), None);
    assert_eq!(host.decisions(), [(1, 1)]);

    host.at_ms(3_000);
    service.tick(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
    host.at_ms(3_001);
    service.tick(&mut host);
    assert_eq!(host.decisions(), []);
}

#[test]
fn memory_moves_a_threshold_as_soon_as_it_is_known() {
    let marks = MemoryMarks {
        low_threshold: 1_000,
        high_threshold: 100,
        low_mark_bytes: 1_024,
        high_mark_bytes: 2_048,
    };
    let mut host = TinyHost::new();
    let mut service =
        service(&mut host, vec![flow(TokenCalculate::MemoryAdaptive(marks), None, 1_000)]);
    assert_eq!(host.decisions(), []);
    assert_eq!(host.gauge("resource.write.rule.f.threshold"), Some(1_000));

    service.set_pressure(&mut host, None, Some(1_536));
    assert_eq!(host.decisions(), [(1, 550.0_f64.to_bits())]);
    assert_eq!(host.gauge("resource.write.rule.f.threshold"), Some(550));

    host.at_ms(3_001);
    service.tick(&mut host);
    assert_eq!(host.decisions(), [], "out of date is as good as little");
}

#[test]
fn envoys_own_statistics_are_asked_one_at_a_time_and_only_if_a_rule_needs_them() {
    let cpu = || system(SystemMetric::CpuUsage { bbr: false }, 0.5);
    let mut host = TinyHost::new();
    let mut without = service(&mut host, vec![cpu()]);
    assert!(!without.stats_due(&mut host), "nobody has said whom to ask");

    let told = |rules| ServiceConfig { envoy_stats: Some("admin".to_string()), ..config(rules) };
    without.replace(&mut host, told(vec![half_fail()]));
    assert!(!without.stats_due(&mut host), "nobody wants to know");

    let mut service = without;
    service.replace(&mut host, told(vec![cpu()]));
    assert_eq!(service.stats_cluster(), Some("admin"));
    assert!(service.stats_due(&mut host));
    host.at_ms(1_500);
    assert!(!service.stats_due(&mut host), "the answer is not there yet");

    let body = b"a: 1\noverload.envoy.resource_monitors.cpu_utilization.pressure: 51\r\nserver.memory_allocated: 77\n";
    service.take_stats(&mut host, Some(body));
    assert_eq!(host.decisions(), [(3, 1)]);
    assert!(service.stats_due(&mut host));
    service.take_stats(&mut host, None);
    assert_eq!(host.decisions(), [(3, 1)], "no answer: the last one stands");
    assert!(!service.stats_due(&mut host), "it is not time yet");

    host.at_ms(2_500);
    assert!(service.stats_due(&mut host));
    service.take_stats(&mut host, Some(b"server.memory_allocated: x\n"));
    assert_eq!(host.decisions(), [], "unknown passes");
}

#[test]
fn an_associated_rule_has_what_the_other_resource_leaves() {
    for interval_ms in [1_000, 700] {
        let mut host = TinyHost::new();
        let mut service =
            service(&mut host, vec![flow(TokenCalculate::Direct, Some("read"), interval_ms)]);
        let mut worker = Told::new(1);
        worker.passed(&mut host, &service, "write", 5);
        service.take_frame(&mut host);
        assert_eq!(host.decisions(), [], "nobody has seen `read`");

        worker.passed(&mut host, &service, "read", 4);
        let next = service.take_frame(&mut host);
        assert_eq!(host.decisions(), [(1, 6)]);
        assert_eq!(next.period_ms, 7);

        Told::new(2).passed(&mut host, &service, "read", 40);
        service.take_frame(&mut host);
        assert_eq!(host.decisions(), [(1, 0)]);

        host.at_ms(1_001);
        service.tick(&mut host);
        assert_eq!(host.decisions(), [(1, 10)]);
        host.at_ms(1_011);
        assert_eq!(service.tick(&mut host), Next::IDLE, "what stands is not what moves");
    }
}

#[test]
fn an_associated_rule_warms_up_with_the_other_resource() {
    let warm_up = WarmUp { period_sec: 10, cold_factor: 3 };
    let mut host = TinyHost::new();
    let mut service =
        service(&mut host, vec![flow(TokenCalculate::WarmUp(warm_up), Some("read"), 1_000)]);
    let mut worker = Told::new(1);
    worker.passed(&mut host, &service, "read", 1);
    service.take_frame(&mut host);

    assert_eq!(host.decisions(), [(1, 2)], "a cold resource has a third of 10");
    assert_eq!(host.gauge("resource.write.rule.f.threshold"), Some(3));
}

#[test]
fn gauges_show_what_live_workers_hold() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, Vec::new());
    let (mut one, mut other) = (Told::new(1), Told::new(2));
    one.passed(&mut host, &service, "a", 1);
    other.passed(&mut host, &service, "a", 1);
    service.settle(&mut host);
    assert_eq!((host.gauge("waiting"), host.gauge("permits_owed")), (Some(6), Some(4)));

    host.at_ms(20_000);
    one.passed(&mut host, &service, "a", 1);
    service.tick(&mut host);
    host.at_ms(40_000);
    service.tick(&mut host);
    assert_eq!((host.gauge("waiting"), host.gauge("permits_owed")), (Some(3), Some(2)));
}

#[test]
fn the_proxys_gauges_are_those_of_all_resources_and_count_inbound_traffic_once() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, Vec::new());
    let mut worker = Told::new(1);
    let totals =
        |pass, complete, rt_ms| MetricBucket { pass, complete, rt_ms, ..MetricBucket::default() };
    worker.says(&mut host, &service, "a", totals(20, 10, 50), 10, &[]);
    worker.says(&mut host, &service, "b", totals(40, 30, 350), 10, &[]);
    worker.says(&mut host, &service, INBOUND, totals(60, 40, 400), 20, &[]);
    service.settle(&mut host);

    let gauges = ["in_flight", "pass_qps", "rt_avg_ms"].map(|name| host.gauge(name));
    assert_eq!(gauges, [Some(20), Some(12), Some(10)]);
    assert_eq!(host.gauge("resource.a.in_flight"), Some(10));
}

#[test]
fn a_service_that_has_lost_its_role_decides_nothing_more() {
    let mut host = TinyHost::new();
    let mut first = service(&mut host, vec![half_fail()]);
    host.at_ms(2_500);
    let mut second = Service::configure(&mut host, config(vec![half_fail()]));
    second.tick(&mut host);
    assert!(second.is_holder());

    Told::new(1).ended(&mut host, &first, CLOSED, 5, 5);
    first.take_frame(&mut host);
    assert!(!first.is_holder());
    assert_eq!(host.queue.len(), 1, "the frame is for the other");
    first.set_pressure(&mut host, Some(1.0), None);
    assert_eq!(host.decisions(), []);

    second.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn a_ledger_of_a_newer_rule_is_left_alone() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, vec![half_fail()]);
    let newer = Stamp { generation: 9, version: 9, threshold: 0.0 };
    let mut bytes = Vec::new();
    ledger::encode(&newer, &Value::Single(Ledger::Breaker(BreakerLedger::default())), &mut bytes);
    assert_eq!(host.write(Key::Ledger(0), &bytes), Ok(Stored::Done));

    Told::new(1).ended(&mut host, &service, CLOSED, 5, 5);
    service.take_frame(&mut host);

    assert_eq!(host.decisions(), []);
    assert_eq!(host.breaker(0).map(|breaker| breaker.state), Some(BreakerState::Closed));
}

#[test]
fn a_service_that_gets_its_role_back_goes_by_what_it_finds() {
    let mut host = TinyHost::new();
    let mut first = service(&mut host, vec![half_fail()]);
    let mut worker = Told::new(1);
    worker.ended(&mut host, &first, CLOSED, 1, 1);
    first.tick(&mut host);

    host.at_ms(2_500);
    let mut second = Service::configure(&mut host, config(vec![half_fail()]));
    second.tick(&mut host);
    first.tick(&mut host);
    assert!(second.is_holder() && !first.is_holder());
    worker.sequence = 0;
    worker.ended(&mut host, &second, CLOSED, 6, 6);
    worker.ended(&mut host, &second, CLOSED, 11, 11);
    second.take_frame(&mut host);
    assert_eq!(host.decisions(), [(1, 1)]);

    host.at_ms(5_000);
    first.tick(&mut host);
    assert!(first.is_holder());
    assert_eq!(host.decisions(), [(1, 1)]);
    worker.ended(&mut host, &first, CLOSED, 12, 12);
    first.tick(&mut host);
    assert_eq!(first.frames_lost(), 0, "the other one has them");
}

#[test]
fn what_another_service_has_written_in_between_is_written_over() {
    let cpu = || vec![system(SystemMetric::CpuUsage { bbr: false }, 0.5)];
    let mut host = TinyHost::new();
    let mut first = service(&mut host, cpu());
    first.set_pressure(&mut host, Some(1.0), None);
    assert_eq!(host.decisions(), [(1, 1)]);

    host.at_ms(2_500);
    let mut second = Service::configure(&mut host, config(cpu()));
    second.tick(&mut host);
    assert_eq!(host.decisions(), [], "it has not been told anything");

    host.at_ms(5_000);
    first.tick(&mut host);
    first.set_pressure(&mut host, Some(1.0), None);
    first.tick(&mut host);
    assert!(first.is_holder());
    assert_eq!(host.decisions(), [(1, 1)]);
}

#[test]
fn a_gauge_of_a_resource_is_set_when_it_changes_and_when_another_service_may_have_set_it() {
    const GAUGE: &str = "resource.a.block_qps";
    let mut host = TinyHost::new();
    let mut first = service(&mut host, Vec::new());
    Told::new(1).passed(&mut host, &first, "a", 1);
    first.settle(&mut host);
    assert_eq!(host.gauge(GAUGE), Some(0));

    let place = host.metrics.iter().position(|(name, _)| name.ends_with(GAUGE)).unwrap();
    host.metrics[place].1 = 7;
    first.settle(&mut host);
    assert_eq!(host.gauge(GAUGE), Some(7), "nobody sets what has not changed");

    host.at_ms(2_500);
    let mut second = Service::configure(&mut host, config(Vec::new()));
    second.tick(&mut host);
    host.at_ms(5_000);
    first.tick(&mut host);
    first.settle(&mut host);
    assert!(first.is_holder());
    assert_eq!(host.gauge(GAUGE), Some(0));
}
