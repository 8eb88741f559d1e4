//! What all root contexts of one VM share: one worker, its timer, and the way to Envoy.
//!
//! Several listeners, and the old and the new configuration of one that is being drained, are root
//! contexts side by side in one VM. They are one worker all the same, and one of them drives its tick: a
//! timer of each would wake the thread as many times. When the driver goes, another takes over.

use std::cell::RefCell;

use sentinel_engine::{
    host::{Meter as _, MetricId, MetricKind},
    worker::Worker,
};
use sentinel_envoy::{
    EnvoyHost,
    host::Calls,
    stream::{set_tick_period, set_tick_period_of},
};

/// The one worker of this VM, once a stream has been seen, and what it needs.
pub(crate) struct Vm {
    pub(crate) host: EnvoyHost,
    worker: Option<Worker>,
    /// A resource's name, while a request is being named.
    pub(crate) name: Vec<u8>,
    /// Root contexts that live, oldest first.
    roots: Vec<u32>,
    driver: Option<Driver>,
    reported: Calls,
    shared_data_calls: Option<MetricId>,
    queue_calls: Option<MetricId>,
}

/// The root context whose timer is the worker's tick.
#[derive(Clone, Copy, Debug)]
struct Driver {
    root: u32,
    period_ms: u32,
}

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
            roots: Vec::new(),
            driver: None,
            reported: Calls::default(),
            shared_data_calls,
            queue_calls,
        }
    }

    /// `root` is configured. It drives at once where streams live that nobody ticks for: their own root
    /// has been replaced.
    pub(crate) fn join(&mut self, root: u32) {
        if !self.roots.contains(&root) {
            self.roots.push(root);
        }
        self.wake(root, root);
    }

    /// `root` goes, and its timer with it: Envoy would let that run on for ever.
    pub(crate) fn leave(&mut self, root: u32) {
        self.roots.retain(|&other| other != root);
        let Some(driver) = self.driver.take_if(|driver| driver.root == root) else { return };
        arm(root, 0, root);
        let heir = self.roots.iter().rev().find(|&&heir| arm(heir, driver.period_ms, root));
        self.driver = heir.map(|&heir| Driver { root: heir, ..driver });
    }

    /// The worker and the host; the first call makes this VM a worker.
    pub(crate) fn worker(&mut self) -> (&mut Worker, &mut EnvoyHost) {
        let host = &mut self.host;
        (self.worker.get_or_insert_with(|| Worker::start(host)), host)
    }

    /// The timer of `root` has fired.
    pub(crate) fn tick(&mut self, root: u32) {
        let Some(worker) =
            self.worker.as_mut().filter(|_| self.driver.is_some_and(|driver| driver.root == root))
        else {
            arm(root, 0, root);
            return;
        };
        let next = worker.tick(&mut self.host);
        self.report_calls();
        self.drive(root, next.period_ms, root);
    }

    /// A stream or root `current` of `root` may have given the worker something to do.
    pub(crate) fn wake(&mut self, root: u32, current: u32) {
        let Some(worker) = &self.worker else { return };
        let busy_ms = worker.busy().period_ms;
        match self.driver {
            Some(driver) if driver.period_ms <= busy_ms => {}
            Some(driver) => self.drive(driver.root, busy_ms, current),
            None => self.drive(root, busy_ms, current),
        }
    }

    /// Lets `root` tick the worker every `period_ms`, if it still lives; else nobody does until the next
    /// stream or configuration comes.
    fn drive(&mut self, root: u32, period_ms: u32, current: u32) {
        let driver = Driver { root, period_ms };
        let armed = self.driver.is_some_and(|now| now.root == root && now.period_ms == period_ms);
        if !armed {
            let lives = self.roots.contains(&root) && arm(root, period_ms, current);
            self.driver = lives.then_some(driver);
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

/// Arms the timer of `root` in a callback of `current`, which may be a stream of it. `false` if there is
/// no such root any more.
fn arm(root: u32, period_ms: u32, current: u32) -> bool {
    let armed = if root == current {
        set_tick_period(period_ms)
    } else {
        set_tick_period_of(root, period_ms, current)
    };
    armed.is_ok()
}
