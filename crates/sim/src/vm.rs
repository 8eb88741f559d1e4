//! A VM as a coroutine around the engine.
//!
//! What stands here is what the two wasm modules do around the engine, and no more: a worker comes to be
//! at its first request, keeps the entries of open requests, and dies with them. A coroutine is dropped
//! where it stands when its VM traps: in the middle of any host call.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use corosensei::{Coroutine, Yielder, stack::DefaultStack};
use sentinel_core::{
    config::ServiceConfig,
    param::{Param, ParamValue, Request},
    rule::Unit,
    stat::MetricBucket,
    time::{Nanos, Span},
};
use sentinel_engine::{
    Next,
    carried::Carrier,
    service::Service,
    worker::{Call as Question, MessageVerdict, Messages, Outcome, Verdict, Worker},
};

use crate::{
    host::{Call, Seen, SimHost},
    process::Process,
    rules::USER_HEADER,
};

/// What Envoy, or the scheduler, tells a VM.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Carry out the call that you stopped before.
    GoOn,
    /// A request begins.
    Enter {
        /// Its number.
        stream: u64,
        /// Its resource.
        resource: Rc<str>,
        /// How much it counts.
        batch: u32,
        /// Whose it is.
        user: Option<u32>,
    },
    /// A stream's client sends messages.
    Send {
        /// The stream.
        stream: u64,
        /// Its resource.
        resource: Rc<str>,
        /// How many.
        count: u32,
        /// Whose it is.
        user: Option<u32>,
        /// For how long the oldest message of the stream has been held, if any is.
        held: Option<Span>,
    },
    /// A root context is given a configuration with rules.
    Join {
        /// Its number.
        root: u32,
        /// Its plugin's name.
        plugin: &'static str,
        /// The configuration.
        bytes: Rc<[u8]>,
    },
    /// A root context goes.
    Part {
        /// Its number.
        root: u32,
    },
    /// The timer of a root context with rules has fired.
    RootTick,
    /// A request has ended, or was given up by its client.
    Exit {
        /// Its number.
        stream: u64,
        /// Whether as an error.
        failed: bool,
    },
    /// The timer has fired.
    Tick,
    /// There is a message on the queue.
    WakeUp,
    /// There are other rules.
    Replace(Rc<ServiceConfig>),
    /// Do everything that is due or will be.
    Settle,
    /// Say what you have counted for this resource.
    Count(Rc<str>),
    /// The run is over.
    Stop,
}

/// What a VM says when it stops.
#[derive(Debug)]
pub(crate) enum Said {
    /// It is about to make this call.
    Calls(Call),
    /// It has carried out the order.
    Done(Done),
}

/// How an order ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// A request has its answer.
    Answered(Answer),
    /// It wants to be called again, and these requests need not wait any longer.
    Ticked(Next, Vec<u64>),
    /// Everything is done that was due.
    Settled {
        /// The version of the rule set in force.
        version: u64,
        /// Who this worker is.
        incarnation: u64,
    },
    /// What the service has counted in ten seconds.
    Counted(Counted),
    /// There is nothing to say.
    Nothing,
}

/// A decision, and what it was taken from.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Who answers.
    pub(crate) vm: u32,
    /// The request.
    pub(crate) stream: u64,
    /// Its resource.
    pub(crate) resource: Rc<str>,
    /// What is counted: the request, or messages of its stream.
    pub(crate) unit: Unit,
    /// How much it counts.
    pub(crate) batch: u32,
    /// Whose it is.
    pub(crate) user: Option<u32>,
    /// What was decided.
    pub(crate) decision: Decision,
    /// When the worker wants its next tick now.
    pub(crate) busy: Next,
    /// The version of the rule set that was applied.
    pub(crate) rules_version: u64,
    /// What the worker had read of time.
    pub(crate) seen: Seen,
}

/// What a request is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It goes on.
    Passes,
    /// It goes on at this time of the shared clock.
    Waits(Nanos),
    /// This rule refuses it.
    RefusedBy(String),
}

/// What a rule can ask of a request.
struct User(Option<u32>);

impl Request for User {
    fn param(&mut self, param: &Param) -> Option<ParamValue> {
        let is_asked = matches!(param, Param::Header(name) if name == USER_HEADER);
        let user = self.0.filter(|_| is_asked)?;
        Some(ParamValue::Bytes(user.to_string().into_bytes()))
    }

    fn arg(&mut self, _index: i32) -> Option<ParamValue> {
        None
    }

    fn origin(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn path(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

/// The service's view of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    /// The sums of ten seconds.
    pub(crate) window: MetricBucket,
    /// Open requests.
    pub(crate) in_flight: u64,
}

thread_local! {
    /// Stacks of VMs that are gone: to map new ones takes as long as many a run.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// The most stacks that are kept.
const STACKS_MAX: usize = 64;

/// A VM that can be stopped at any call.
pub(crate) struct Vm {
    /// Its number; a revived VM has another.
    pub(crate) id: u32,
    coroutine: Option<Coroutine<Order, Said, ()>>,
    /// Whether it has carried out its last order.
    idle: bool,
}

impl Vm {
    /// A VM of the filter, which becomes a worker at its first request.
    pub(crate) fn worker(process: &Rc<RefCell<Process>>, id: u32) -> Self {
        let process = Rc::clone(process);
        let run = move |scheduler: &Yielder<Order, Said>, first| {
            worker(&mut SimHost::scheduled(&process, id, scheduler), scheduler, first);
        };
        Self { id, coroutine: Some(coroutine(run)), idle: true }
    }

    /// A VM of the service.
    pub(crate) fn service(
        process: &Rc<RefCell<Process>>,
        id: u32,
        config: Rc<ServiceConfig>,
    ) -> Self {
        let process = Rc::clone(process);
        let run = move |scheduler: &Yielder<Order, Said>, first| {
            let mut host = SimHost::scheduled(&process, id, scheduler);
            service(&mut host, scheduler, &config, first);
        };
        Self { id, coroutine: Some(coroutine(run)), idle: true }
    }

    /// Lets the VM run to its next call or to the end of its order. `None` if it has ended, which only
    /// [`Order::Stop`] asks for.
    pub(crate) fn resume(&mut self, order: Order) -> Option<Said> {
        let said = self.coroutine.as_mut()?.resume(order).as_yield();
        self.idle = matches!(said, Some(Said::Done(_)) | None);
        said
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let Some(mut coroutine) = self.coroutine.take() else { return };
        if coroutine.started() && !coroutine.done() && self.idle {
            coroutine.resume(Order::Stop);
        }
        if coroutine.done() {
            let stack = coroutine.into_stack();
            // A thread that ends keeps none.
            let _ = STACKS.try_with(|stacks| {
                let mut stacks = stacks.borrow_mut();
                if stacks.len() < STACKS_MAX {
                    stacks.push(stack);
                }
            });
        } else if cfg!(panic = "abort") {
            // A trap unwinds the VM's stack. In a build that cannot unwind the stack is left as it is.
            std::mem::forget(coroutine);
        }
    }
}

fn coroutine(
    run: impl FnOnce(&Yielder<Order, Said>, Order) + 'static,
) -> Coroutine<Order, Said, ()> {
    match STACKS.with(|stacks| stacks.borrow_mut().pop()) {
        Some(stack) => Coroutine::with_stack(stack, run),
        None => Coroutine::new(run),
    }
}

fn worker(host: &mut SimHost<'_>, scheduler: &Yielder<Order, Said>, first: Order) {
    let mut order = first;
    let mut started: Option<Worker> = None;
    let mut carrier: Option<Carrier> = None;
    let mut open = BTreeMap::new();
    let mut held = BTreeSet::new();
    loop {
        let done = match (order, &mut started) {
            (Order::Join { root, plugin, bytes }, _) => {
                let carrier = match &mut carrier {
                    Some(carrier) => carrier,
                    None => carrier.insert(Carrier::new(host)),
                };
                if !carrier.is_checked(host, &bytes) {
                    carrier.note_checked(host, &bytes);
                }
                carrier.take(root, plugin.to_owned(), bytes.to_vec());
                Done::Nothing
            }
            (Order::Part { root }, _) => {
                if let Some(carrier) = &mut carrier {
                    carrier.leave(host, root);
                }
                Done::Nothing
            }
            (Order::RootTick, _) => {
                if let Some(carrier) = &mut carrier {
                    carrier.tick(host);
                }
                Done::Nothing
            }
            (Order::Enter { stream, resource, batch, user }, started) => {
                let worker = match started {
                    Some(worker) => worker,
                    None => started.insert(Worker::start(host)),
                };
                host.take_seen();
                let question = Question {
                    resource: resource.as_bytes(),
                    batch,
                    inbound: true,
                    stream: u32::try_from(stream).unwrap_or(u32::MAX),
                    before_first_rules: None,
                };
                let decision = match worker.enter(host, &question, &mut User(user)) {
                    Verdict::Pass(entry) => {
                        open.insert(stream, entry);
                        Decision::Passes
                    }
                    Verdict::Wait(entry, until) => {
                        open.insert(stream, entry);
                        Decision::Waits(until)
                    }
                    Verdict::Blocked(blocked) => {
                        let id = |rule: &sentinel_core::rule::Rule| rule.id().to_owned();
                        Decision::RefusedBy(blocked.rule.as_deref().map(id).unwrap_or_default())
                    }
                };
                let (rules_version, seen) = (worker.rules_version(), host.take_seen());
                let busy = worker.busy();
                Done::Answered(Answer {
                    vm: host.vm(),
                    stream,
                    resource,
                    unit: Unit::Request,
                    batch,
                    user,
                    decision,
                    busy,
                    rules_version,
                    seen,
                })
            }
            // Streams end before what was on its way for them.
            (Order::Send { stream, resource, count, user, held: since }, Some(worker))
                if open.contains_key(&stream) =>
            {
                host.take_seen();
                let question = Question {
                    resource: resource.as_bytes(),
                    batch: 1,
                    inbound: true,
                    stream: u32::try_from(stream).unwrap_or(u32::MAX),
                    before_first_rules: None,
                };
                let messages = Messages { count, held: since };
                let verdict = worker.enter_messages(host, &question, messages, &mut User(user));
                let decision = match verdict {
                    MessageVerdict::Pass => Decision::Passes,
                    MessageVerdict::Wait => {
                        held.insert(stream);
                        Decision::Waits(worker.time(host))
                    }
                    MessageVerdict::Blocked(blocked) => {
                        let id = |rule: &sentinel_core::rule::Rule| rule.id().to_owned();
                        Decision::RefusedBy(blocked.rule.as_deref().map(id).unwrap_or_default())
                    }
                };
                let (rules_version, seen) = (worker.rules_version(), host.take_seen());
                Done::Answered(Answer {
                    vm: host.vm(),
                    stream,
                    resource,
                    unit: Unit::Message,
                    batch: count,
                    user,
                    decision,
                    busy: worker.busy(),
                    rules_version,
                    seen,
                })
            }
            (Order::Exit { stream, failed }, Some(worker)) => {
                if held.remove(&stream) {
                    worker.forget_held(u32::try_from(stream).unwrap_or(u32::MAX));
                }
                if let Some(entry) = open.remove(&stream) {
                    let outcome = if failed { Outcome::FAILED } else { Outcome::OK };
                    worker.exit(host, entry, outcome);
                }
                Done::Nothing
            }
            (Order::Tick, Some(worker)) => {
                let next = worker.tick(host);
                worker.report_messages(host);
                let due = std::iter::from_fn(|| worker.due(host)).map(u64::from).collect();
                Done::Ticked(next, due)
            }
            // Whoever has no request yet has nothing to do.
            (Order::Tick, None) => Done::Ticked(Next::IDLE, Vec::new()),
            (Order::Settle, Some(worker)) => {
                worker.settle(host);
                worker.report_messages(host);
                let (version, incarnation) = (worker.rules_version(), worker.incarnation());
                Done::Settled { version, incarnation }
            }
            (Order::Stop, _) => return,
            _ => Done::Nothing,
        };
        order = scheduler.suspend(Said::Done(done));
    }
}

fn service(
    host: &mut SimHost<'_>,
    scheduler: &Yielder<Order, Said>,
    config: &ServiceConfig,
    first: Order,
) {
    let mut order = first;
    let mut service = Service::configure(host, config.clone());
    loop {
        let done = match order {
            Order::Tick => Done::Ticked(service.tick(host), Vec::new()),
            Order::WakeUp => Done::Ticked(service.take_frame(host), Vec::new()),
            Order::Replace(config) => {
                service.replace(host, ServiceConfig::clone(&config));
                Done::Nothing
            }
            Order::Settle => {
                service.settle(host);
                Done::Nothing
            }
            Order::Count(resource) => {
                let window = service.window(host, resource.as_bytes(), Span::from_millis(10_000));
                let in_flight = service.in_flight(resource.as_bytes());
                Done::Counted(Counted { window, in_flight })
            }
            Order::Stop => return,
            Order::GoOn
            | Order::Enter { .. }
            | Order::Send { .. }
            | Order::Join { .. }
            | Order::Part { .. }
            | Order::RootTick
            | Order::Exit { .. } => Done::Nothing,
        };
        order = scheduler.suspend(Said::Done(done));
    }
}
