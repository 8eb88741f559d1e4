//! What all root contexts of one VM share: one worker, its timer, and the way to Envoy.
//!
//! Several listeners, and the old and the new configuration of one that is being drained, are root
//! contexts side by side in one VM. They are one worker all the same, and one of them drives its tick: a
//! timer of each would wake the thread as many times. When the driver goes, another takes over.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{config::FilterConfig, time::Nanos};
use sentinel_engine::{
    Next,
    carried::Carrier,
    console,
    host::{Meter as _, MetricId, MetricKind},
    worker::{Call, Outcome, Verdict, Worker},
};
use sentinel_envoy::{
    EnvoyHost,
    dispatch::Flow,
    host::Calls,
    stream::{
        is_inbound, is_marked, lives, mark, property, request_header, resume_request,
        set_tick_period, set_tick_period_of,
    },
};

#[cfg(feature = "messages")]
use crate::messages::Sent;
use crate::{
    chain::Neighbours,
    connection,
    listener::Listener,
    reply,
    request::{Asked, outcome},
    streams::{Stream, Streams},
};

/// The one worker of this VM, once a stream has been seen, and what it needs.
pub(crate) struct Vm {
    pub(crate) host: EnvoyHost,
    pub(crate) neighbours: Neighbours,
    pub(crate) worker: Option<Worker>,
    /// Rules in the configurations of its roots.
    carrier: Carrier,
    /// A resource's name, while a request is being named.
    pub(crate) name: Vec<u8>,
    /// What a refused client is told, while it is.
    pub(crate) reply: Vec<u8>,
    /// Root contexts that live, oldest first.
    roots: Vec<Rc<Listener>>,
    pub(crate) streams: Streams,
    /// Connections to be closed at the next tick.
    pub(crate) closing: Vec<u32>,
    driver: Option<Driver>,
    reported: Calls,
    shared_data_calls: Option<MetricId>,
    queue_calls: Option<MetricId>,
}

/// How soon after its configuration a root hands over the rules in it. A VM that Envoy only tries the configuration on
/// is gone by then.
const FIRST_TICK_MS: u32 = 20;

/// The root context whose timer is the worker's tick.
#[derive(Clone, Copy, Debug)]
struct Driver {
    root: u32,
    period_ms: u32,
}

thread_local! {
    // Boxed: else its thousands of bytes stand in the module as they are before there is one.
    static VM: RefCell<Option<Box<Vm>>> = const { RefCell::new(None) };
}

/// Runs `body` with this VM's state. `None` if it is in use already, which a callback never sees: none
/// of ours calls back into Envoy's dispatch.
pub(crate) fn with<R>(body: impl FnOnce(&mut Vm) -> R) -> Option<R> {
    VM.with(|vm| {
        let mut vm = vm.try_borrow_mut().ok()?;
        Some(body(vm.get_or_insert_with(|| Box::new(Vm::new()))))
    })
}

impl Vm {
    fn new() -> Self {
        let mut host = EnvoyHost::new();
        let shared_data_calls = host.define(MetricKind::Counter, "sentinel.shared_data_calls").ok();
        let queue_calls = host.define(MetricKind::Counter, "sentinel.queue_calls").ok();
        let carrier = Carrier::new(&mut host);
        Self {
            host,
            neighbours: Neighbours::new(),
            worker: None,
            carrier,
            name: Vec::new(),
            reply: Vec::new(),
            roots: Vec::new(),
            streams: Streams::new(),
            closing: Vec::new(),
            driver: None,
            reported: Calls::default(),
            shared_data_calls,
            queue_calls,
        }
    }

    /// A context begins: a stream of the root `root`, or a root itself where that is 0.
    pub(crate) fn create(&mut self, context: u32, root: u32) {
        if root == 0 {
            self.roots.push(Listener::new(context, FilterConfig::default()));
            return;
        }
        for listener in &self.roots {
            if listener.root == root {
                self.streams.insert(Stream::new(context, Rc::clone(listener)));
                return;
            }
        }
    }

    /// A context goes. For streams `end` came before, but a permit that would never come back is worth a second look.
    /// (Of roots `proxy_on_done` speaks as well, and of every stream.)
    pub(crate) fn delete(&mut self, context: u32) {
        if self.roots.iter().any(|listener| listener.root == context) {
            self.leave(context);
        } else {
            self.end(context);
        }
    }

    /// Whether the rules in a configuration are known to be in order.
    pub(crate) fn is_checked(&mut self, configuration: &[u8]) -> bool {
        self.carrier.is_checked(&mut self.host, configuration)
    }

    /// A configuration is refused. (Envoy tries each in one VM first, so that it counts once.)
    pub(crate) fn count_rejection(&mut self) {
        if let Ok(metric) = self.host.define(MetricKind::Counter, "sentinel.rules_rejected") {
            self.host.add(metric, 1);
        }
    }

    /// A root is configured. It drives at once where streams live that nobody ticks for: their own root
    /// has been replaced. Rules of its own are handed over at its first tick.
    pub(crate) fn join(
        &mut self,
        listener: Rc<Listener>,
        configuration: Vec<u8>,
        is_checked: bool,
    ) {
        self.neighbours.register(&mut self.host);
        let root = listener.root;
        if listener.config.carries_rules {
            if !is_checked {
                self.carrier.note_checked(&mut self.host, &configuration);
            }
            let plugin = property("plugin_name").unwrap_or_default();
            let plugin = String::from_utf8(plugin.into()).unwrap_or_default();
            self.carrier.take(root, plugin, configuration);
            arm(root, FIRST_TICK_MS, root);
            if let Some(driver) = self.driver.as_mut().filter(|driver| driver.root == root) {
                driver.period_ms = FIRST_TICK_MS;
            }
        }
        self.roots.retain(|other| other.root != root);
        self.roots.push(listener);
        self.wake(root, root, false);
    }

    /// `root` goes, and its timer with it: Envoy would let that run on for ever.
    fn leave(&mut self, root: u32) {
        self.roots.retain(|other| other.root != root);
        self.carrier.leave(&mut self.host, root);
        let Some(driver) = self.driver.take_if(|driver| driver.root == root) else { return };
        arm(root, 0, root);
        let mut roots = self.roots.iter().rev().map(|heir| heir.root);
        let heir = roots.find(|&heir| arm(heir, driver.period_ms, root));
        self.driver = heir.map(|root| Driver { root, ..driver });
    }

    /// The headers of a request are there. The first one makes this VM a worker.
    pub(crate) fn enter(&mut self, id: u32) -> Flow {
        let Self { host, neighbours, worker, name, reply, streams, .. } = self;
        let before = streams.get_mut(id.wrapping_sub(1));
        let follows = before.is_some_and(|before| before.is_followed);
        let Some(stream) = streams.fresh(id) else { return Flow::Continue };
        let Listener { root, config } = &*stream.listener;
        if let Some(prefix) = &config.console
            && show(host, worker.as_ref(), prefix)
        {
            return Flow::Pause;
        }
        let worker = worker.get_or_insert_with(|| Worker::start(host));
        let now = worker.time(host);
        let mut request = Asked::new(config);
        request.write_name(name);
        let are_several = neighbours.may_be(now);
        if (follows || are_several) && is_marked(name) {
            return Flow::Continue;
        }
        let (entry, flow) = match ask(host, worker, now, name, id, config, &mut request) {
            Verdict::Pass(entry) => (Some(entry), Flow::Continue),
            Verdict::Wait(entry, _) => (Some(entry), Flow::Pause),
            Verdict::Blocked(blocked) => {
                reply::send(&blocked, name, config.expose_rule, request.is_grpc(), reply);
                (None, Flow::Pause)
            }
        };
        let is_entered = entry.is_some();
        stream.entry = entry;
        // No filter follows one that refuses.
        stream.is_followed = is_entered && lives(id.wrapping_add(1), id);
        if stream.is_followed || is_entered && are_several {
            mark(name);
        }
        #[cfg(feature = "messages")]
        if is_entered {
            stream.messages = Sent::begin(worker, name, &mut request, id);
        }
        let (root, waits) = (*root, is_entered && flow == Flow::Pause);
        self.wake(root, id, waits);
        flow
    }

    /// A stream has ended, maybe while it still waited.
    pub(crate) fn end(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(id) else { return };
        #[cfg(feature = "messages")]
        let is_refused = stream.messages.as_ref().is_some_and(|sent| sent.is_refused());
        #[cfg(not(feature = "messages"))]
        let is_refused = false;
        #[cfg(feature = "messages")]
        if let (Some(sent), Some(worker)) = (&stream.messages, &mut self.worker) {
            sent.end(worker, id);
        }
        let Stream { listener, entry: Some(entry), phase, .. } = stream else { return };
        let Some(worker) = &mut self.worker else { return };
        let outcome = match phase {
            Some(phase) => connection::end(&mut self.host, worker, &entry, &phase),
            None if entry.needs_status() && !is_refused => outcome(),
            None => Outcome::OK,
        };
        worker.exit(&mut self.host, entry, outcome);
        self.wake(listener.root, id, false);
    }

    /// The timer of `root` has fired.
    pub(crate) fn tick(&mut self, root: u32) {
        let carries = self.carrier.carries(root);
        if carries {
            self.carrier.tick(&mut self.host);
        }
        let Some(worker) =
            self.worker.as_mut().filter(|_| self.driver.is_some_and(|driver| driver.root == root))
        else {
            arm(root, if carries { Next::IDLE.period_ms } else { 0 }, root);
            return;
        };
        worker.tick(&mut self.host);
        #[cfg(feature = "messages")]
        worker.report_messages(&mut self.host);
        while let Some(stream) = worker.due(&mut self.host) {
            #[cfg(feature = "messages")]
            if !self.streams.get_mut(stream).is_none_or(|stream| stream.may_go_on()) {
                continue;
            }
            // Refused for a stream that is gone, whose end is told by a callback of its own.
            let _ = match self.streams.get_mut(stream).and_then(|its| its.phase.as_deref_mut()) {
                Some(phase) => connection::resume(phase, stream, root),
                None => resume_request(stream, root),
            };
        }
        connection::close_all(&mut self.closing, root);
        let next = worker.next(&mut self.host);
        self.report_calls();
        self.drive(root, next.period_ms, root);
    }

    /// A stream or root `current` of `root` may have given the worker something to do, or `waits` until a time.
    pub(crate) fn wake(&mut self, root: u32, current: u32, waits: bool) {
        let Some(worker) = &self.worker else { return };
        match self.driver {
            // Whoever waits has a timer in time already, and everything else has until the next tick.
            Some(driver) if !waits && driver.period_ms < Next::IDLE.period_ms => {}
            driver => {
                let busy_ms = worker.busy().period_ms;
                if driver.is_none_or(|driver| busy_ms < driver.period_ms) {
                    let driver = driver.map_or(root, |driver| driver.root);
                    self.drive(driver, busy_ms, current);
                }
            }
        }
    }

    /// Lets `root` tick the worker every `period_ms`, if it still lives; else nobody does until the next
    /// stream or configuration comes.
    fn drive(&mut self, root: u32, period_ms: u32, current: u32) {
        let driver = Driver { root, period_ms };
        let armed = self.driver.is_some_and(|now| now.root == root && now.period_ms == period_ms);
        if !armed {
            let lives = self.roots.iter().any(|listener| listener.root == root)
                && arm(root, period_ms, current);
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

/// Decides the stream `id`, which is called `name`.
pub(crate) fn ask(
    host: &mut EnvoyHost,
    worker: &mut Worker,
    now: Nanos,
    name: &[u8],
    id: u32,
    config: &FilterConfig,
    request: &mut Asked<'_>,
) -> Verdict {
    let call = Call {
        resource: name,
        batch: 1,
        // Listeners with the same configuration are one root context, so each stream is asked, but only where a
        // rule wants to know.
        inbound: !worker.asks_direction() || is_inbound(),
        stream: id,
        before_first_rules: config.before_first_rules,
    };
    worker.enter_at(host, now, &call, request)
}

/// Answers a request for the console at `prefix`. `false` if it is for something else. It is no resource, and makes
/// this VM no worker.
fn show(host: &mut EnvoyHost, worker: Option<&Worker>, prefix: &str) -> bool {
    let path = request_header(":path").unwrap_or_default();
    let answer = console::answer(host, worker, prefix, &path);
    if let Some(answer) = &answer {
        reply::send_json(answer.status, &answer.body);
    }
    answer.is_some()
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
