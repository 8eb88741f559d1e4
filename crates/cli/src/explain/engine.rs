//! The engine that ships, over a host whose clock stands still: nobody has been here before.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{
    param::Request,
    rule::{Common, Rule},
    time::{Nanos, Span},
};
use sentinel_engine::{
    service::Service,
    worker::{Blocked, Call, Outcome, Verdict, Worker},
};
use sentinel_sim::{host::SimHost, process::Process};

use crate::replay::proxy::config;

/// One worker and the service.
pub(super) struct Engine {
    host: SimHost<'static>,
    worker: Worker,
}

/// What a request is told.
#[derive(Debug)]
pub(super) enum Answer {
    Pass,
    Wait(Span),
    Blocked(Blocked),
}

impl Engine {
    /// An engine that has these rules and has seen nothing.
    pub(super) fn start(rules: Vec<Rule>) -> Self {
        let process = Rc::new(RefCell::new(Process::new(STARTED_MS, STARTED_MS * NANOS_PER_MILLI)));
        let mut service_host = SimHost::undisturbed(&process, 0);
        let mut service = Service::configure(&mut service_host, config(rules, &[]));
        let mut host = SimHost::undisturbed(&process, 1);
        let mut worker = Worker::start(&mut host);
        // Who leads, what is published and what is decided comes to rest.
        for _ in 0..2 {
            service.settle(&mut service_host);
            worker.settle(&mut host);
        }
        Self { host, worker }
    }

    /// The rules that name a request, in the order in which they are checked, and whether each wants anything of it.
    pub(super) fn rules_of(
        &mut self,
        resource: &[u8],
        request: &mut dyn Request,
    ) -> Vec<(Rc<Rule>, bool)> {
        self.worker.rules_of(&call(resource), request)
    }

    /// Asks for a request.
    pub(super) fn enter(&mut self, resource: &[u8], request: &mut dyn Request) -> Answer {
        let now = Nanos::from_millis(STARTED_MS);
        let (entry, answer) = match self.worker.enter(&mut self.host, &call(resource), request) {
            Verdict::Blocked(blocked) => return Answer::Blocked(blocked),
            Verdict::Pass(entry) => (entry, Answer::Pass),
            Verdict::Wait(entry, until) => (entry, Answer::Wait(until.since(now))),
        };
        self.worker.exit(&mut self.host, entry, Outcome::OK);
        answer
    }
}

fn call(resource: &[u8]) -> Call<'_> {
    Call { resource, batch: 1, inbound: true, stream: 1, before_first_rules: None }
}

/// What every rule can say.
pub(super) fn common_of(rule: &mut Rule) -> &mut Common {
    match rule {
        Rule::Authority(rule) => &mut rule.common,
        Rule::System(rule) => &mut rule.common,
        Rule::Flow(rule) => &mut rule.common,
        Rule::Isolation(rule) => &mut rule.common,
        Rule::Gateway(rule) | Rule::Hotspot(rule) => &mut rule.common,
        Rule::CircuitBreaker(rule) => &mut rule.common,
    }
}

/// Any time will do: it is the beginning of a second, so that every window has just begun.
const STARTED_MS: u64 = 1_700_000_000_000;
const NANOS_PER_MILLI: u64 = 1_000_000;
