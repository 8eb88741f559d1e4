//! What all root contexts of one VM share: one worker, and the way to Envoy.
//!
//! Several listeners, and the old and the new configuration of one that is being drained, are root
//! contexts side by side in one VM. They are one worker all the same; its tick is whichever root's timer
//! lives.

use std::cell::{Cell, RefCell};

use sentinel_core::time::Span;
use sentinel_engine::{
    Next,
    host::{Host as _, Meter as _, MetricId, MetricKind},
    worker::Worker,
};
use sentinel_envoy::{EnvoyHost, host::Calls, stream::set_tick_period};

/// The one worker of this VM, once a stream has been seen, and what it needs.
pub(crate) struct Vm {
    pub(crate) host: EnvoyHost,
    worker: Option<Worker>,
    /// A resource's name, while a request is being named.
    pub(crate) name: Vec<u8>,
    ticked_at_ns: u64,
    next: Next,
    reported: Calls,
    shared_data_calls: Option<MetricId>,
    queue_calls: Option<MetricId>,
}

/// The timer of one root context.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    armed_ms: Cell<u32>,
}

/// Two timers of one VM that fire closer together than this are one tick.
const TICK_MIN: Span = Span::from_millis(4);

thread_local! {
    static VM: RefCell<Option<Vm>> = const { RefCell::new(None) };
}

/// Runs `body` with this VM's state. `None` if it is in use already, which a callback never sees: none
/// of ours calls back into Envoy's dispatch.
pub(crate) fn with<R>(body: impl FnOnce(&mut Vm) -> R) -> Option<R> {
    VM.with(|vm| {
        let mut vm = vm.try_borrow_mut().ok()?;
        Some(body(vm.get_or_insert_with(Vm::new)))
    })
}

impl Vm {
    fn new() -> Self {
        let mut host = EnvoyHost::new();
        let shared_data_calls = host.define(MetricKind::Counter, "sentinel.shared_data_calls").ok();
        let queue_calls = host.define(MetricKind::Counter, "sentinel.queue_calls").ok();
        Self {
            host,
            worker: None,
            name: Vec::new(),
            ticked_at_ns: 0,
            next: Next::IDLE,
            reported: Calls::default(),
            shared_data_calls,
            queue_calls,
        }
    }

    /// Whether this VM has seen a stream.
    pub(crate) fn is_worker(&self) -> bool {
        self.worker.is_some()
    }

    /// The worker and the host; the first call makes this VM a worker.
    pub(crate) fn worker(&mut self) -> (&mut Worker, &mut EnvoyHost) {
        let host = &mut self.host;
        (self.worker.get_or_insert_with(|| Worker::start(host)), host)
    }

    /// One root's timer has fired.
    pub(crate) fn tick(&mut self, timer: &Timer) {
        let now_ns = self.host.monotonic_ns();
        if now_ns.saturating_sub(self.ticked_at_ns) >= TICK_MIN.get()
            && let Some(worker) = &mut self.worker
        {
            self.ticked_at_ns = now_ns;
            self.next = worker.tick(&mut self.host);
            self.report_calls();
        }
        timer.arm(self.next.period_ms);
    }

    /// A stream has given the worker something to do.
    pub(crate) fn wake(&mut self, timer: &Timer) {
        if let Some(worker) = &self.worker {
            let busy_ms = worker.busy().period_ms;
            if timer.armed_ms.get() == 0 || timer.armed_ms.get() > busy_ms {
                timer.arm(busy_ms);
            }
        }
    }

    fn report_calls(&mut self) {
        let calls = self.host.calls();
        let news = [
            (self.shared_data_calls, calls.shared_data - self.reported.shared_data),
            (self.queue_calls, calls.queue - self.reported.queue),
        ];
        self.reported = calls;
        for (metric, new) in news {
            if let Some(metric) = metric.filter(|_| new > 0) {
                self.host.add(metric, new);
            }
        }
    }
}

impl Timer {
    /// Asks for a tick every `period_ms`, unless that is how it is already.
    pub(crate) fn arm(&self, period_ms: u32) {
        if self.armed_ms.get() != period_ms && set_tick_period(period_ms).is_ok() {
            self.armed_ms.set(period_ms);
        }
    }
}
