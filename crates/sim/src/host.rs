//! One VM's way into the process.
//!
//! Every call is a point at which another VM may run: the host first gives the word to whoever schedules,
//! and does what was asked when it gets it back. So a worker can lose its thread between reading the
//! clock and using what it read, between a load and its store, or for good.

use std::{cell::RefCell, fmt, rc::Rc};

use corosensei::Yielder;
use sentinel_core::ledger::Stamp;
use sentinel_engine::host::{
    Cas, Host, HostError, Meter, MetricId, MetricKind, Queue, Signal, Stored,
};
use sentinel_wire::{
    key::Key,
    ledger::{self, Value},
};

use crate::{
    process::Process,
    vm::{Order, Said},
};

/// One VM's host.
pub struct SimHost<'y> {
    process: Rc<RefCell<Process>>,
    vm: u32,
    scheduler: Option<&'y Yielder<Order, Said>>,
    seen: Seen,
}

/// What a VM has learned of the time since it was last asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// What the monotonic clock said last.
    pub(crate) monotonic_ns: u64,
    /// Ledgers and sets as they were read.
    pub(crate) loaded: Vec<(Key, Stamp, Value)>,
    /// Those that were written, and how many had been read by then.
    pub(crate) stored: Vec<(Key, Stamp, Value, usize)>,
}

impl Seen {
    fn forget(&mut self) {
        self.loaded.clear();
        self.stored.clear();
    }

    fn note(&mut self, key: Key, value: &[u8], stored: Stored) {
        if stored == Stored::Done
            && matches!(key, Key::Ledger(_) | Key::Set(_))
            && let Ok((stamp, value)) = ledger::decode(value)
        {
            self.stored.push((key, stamp, value, self.loaded.len()));
        }
    }
}

/// One call, for the trace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// A clock is read.
    Clock,
    /// Randomness is asked for.
    Random,
    /// A value is read.
    Load(Key),
    /// A value is replaced.
    Store(Key),
    /// A value is created.
    Create(Key),
    /// A queue is registered, resolved, filled or emptied.
    Queue(&'static str),
    /// A signal is read.
    Level(Signal),
    /// A signal is raised.
    Raise(Signal),
    /// A statistic is defined or changed.
    Meter,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clock => f.write_str("reads a clock"),
            Self::Random => f.write_str("asks for randomness"),
            Self::Load(key) => write!(f, "loads {key:?}"),
            Self::Store(key) => write!(f, "stores {key:?}"),
            Self::Create(key) => write!(f, "creates {key:?}"),
            Self::Queue(what) => write!(f, "{what} the queue"),
            Self::Level(signal) => write!(f, "reads {signal:?}"),
            Self::Raise(signal) => write!(f, "raises {signal:?}"),
            Self::Meter => f.write_str("counts"),
        }
    }
}

impl fmt::Debug for SimHost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHost")
            .field("vm", &self.vm)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl SimHost<'static> {
    /// The host of a VM that nobody interrupts.
    pub fn undisturbed(process: &Rc<RefCell<Process>>, vm: u32) -> Self {
        Self { process: Rc::clone(process), vm, scheduler: None, seen: Seen::default() }
    }

    /// The value of a statistic by this VM's id.
    pub fn value(&self, metric: MetricId) -> Option<u64> {
        self.process.borrow().stats.read(self.vm, metric.0)
    }
}

impl<'y> SimHost<'y> {
    pub(crate) fn scheduled(
        process: &Rc<RefCell<Process>>,
        vm: u32,
        scheduler: &'y Yielder<Order, Said>,
    ) -> Self {
        let process = Rc::clone(process);
        Self { process, vm, scheduler: Some(scheduler), seen: Seen::default() }
    }

    pub(crate) fn vm(&self) -> u32 {
        self.vm
    }

    pub(crate) fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    fn call<R>(&mut self, call: Call, run: impl FnOnce(&mut Process) -> R) -> R {
        if let Some(scheduler) = self.scheduler {
            // Whatever comes back: in the middle of a call there is only going on.
            let _go_on = scheduler.suspend(Said::Calls(call));
        }
        run(&mut self.process.borrow_mut())
    }
}

impl Host for SimHost<'_> {
    fn monotonic_ns(&mut self) -> u64 {
        let now = self.call(Call::Clock, |process| process.monotonic_ns);
        self.seen.monotonic_ns = now;
        now
    }

    fn wall_ns(&mut self) -> u64 {
        self.call(Call::Clock, |process| {
            process.wall_at_zero_ns.saturating_add(process.monotonic_ns)
        })
    }

    fn random(&mut self) -> u64 {
        self.call(Call::Random, Process::random)
    }

    fn load(&mut self, key: Key, value: &mut Vec<u8>) -> Result<Option<Cas>, HostError> {
        let cas = self.call(Call::Load(key), |process| {
            value.clear();
            process.fails(Some(key)).map(|()| process.load(key, value))
        })?;
        match key {
            Key::Ledger(_) | Key::Set(_) => {
                if let Ok((stamp, value)) = ledger::decode(value) {
                    self.seen.loaded.push((key, stamp, value));
                }
            }
            // A request that takes up rules starts again, by the time at which it came.
            Key::Rules => self.seen.forget(),
            Key::Seeds
            | Key::Workers
            | Key::Service
            | Key::Missing
            | Key::Decisions
            | Key::Carried
            | Key::CarriedSet(_)
            | Key::Source(_)
            | Key::Signal(_) => {}
        }
        Ok(cas)
    }

    fn store(&mut self, key: Key, value: &[u8], expected: Cas) -> Result<Stored, HostError> {
        let vm = self.vm;
        let stored = self.call(Call::Store(key), |process| {
            process.fails(Some(key)).map(|()| process.store(vm, key, value, expected))
        })?;
        self.seen.note(key, value, stored);
        Ok(stored)
    }

    fn create(&mut self, key: Key, value: &[u8]) -> Result<Stored, HostError> {
        let vm = self.vm;
        let stored = self.call(Call::Create(key), |process| {
            process.fails(Some(key)).map(|()| process.create(vm, key, value))
        })?;
        self.seen.note(key, value, stored);
        Ok(stored)
    }

    fn register_queue(&mut self) -> Result<Queue, HostError> {
        let vm = self.vm;
        Ok(Queue(self.call(Call::Queue("registers"), |process| process.register_queue(vm))))
    }

    fn resolve_queue(&mut self) -> Result<Option<Queue>, HostError> {
        let found = self.call(Call::Queue("resolves"), |process| {
            process.fails(None).map(|()| process.resolve_queue())
        })?;
        Ok(found.map(Queue))
    }

    fn enqueue(&mut self, queue: Queue, frame: &[u8]) -> Result<(), HostError> {
        self.call(Call::Queue("puts a frame on"), |process| {
            process.fails(None).and_then(|()| process.enqueue(queue.0, frame))
        })
    }

    fn dequeue(&mut self, queue: Queue, frame: &mut Vec<u8>) -> Result<bool, HostError> {
        self.call(Call::Queue("takes a frame off"), |process| process.dequeue(queue.0, frame))
    }

    fn level(&mut self, signal: Signal) -> u64 {
        self.call(Call::Level(signal), |process| *process.signal(signal))
    }

    fn raise(&mut self, signal: Signal) {
        self.call(Call::Raise(signal), |process| {
            let level = process.signal(signal);
            *level = level.wrapping_add(1);
        });
    }
}

impl Meter for SimHost<'_> {
    fn define(&mut self, kind: MetricKind, name: &str) -> Result<MetricId, HostError> {
        let vm = self.vm;
        let id = self.call(Call::Meter, |process| process.stats.define(vm, kind, name));
        Ok(MetricId(id))
    }

    fn add(&mut self, counter: MetricId, delta: u64) {
        let vm = self.vm;
        self.call(Call::Meter, |process| process.stats.add(vm, counter.0, delta));
    }

    fn set(&mut self, gauge: MetricId, value: u64) {
        let vm = self.vm;
        self.call(Call::Meter, |process| process.stats.set(vm, gauge.0, value));
    }

    fn record(&mut self, histogram: MetricId, _value: u64) {
        let vm = self.vm;
        self.call(Call::Meter, |process| process.stats.record(vm, histogram.0));
    }
}
