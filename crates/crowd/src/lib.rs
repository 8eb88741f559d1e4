//! A crowd: as many of the engine's workers as a bench wants, in the one VM of one Envoy worker. It never ships.
//!
//! Stands where the filter stands. The first request that Envoy brings sets it off; from then on its own timer makes the
//! requests of all workers, so many a second, over resources `r-0`, `r-1` and so on, and ticks each worker when that worker
//! wants to be. So the service on Envoy's main thread, which is the one that ships, gets the frames of 64 workers on a
//! machine that could not carry as many threads.

use std::cell::RefCell;

use sentinel_core::param::Anonymous;
use sentinel_engine::{
    host::{Host as _, Meter as _, MetricId, MetricKind},
    worker::{Call, Outcome, Verdict, Worker},
};
use sentinel_envoy::{
    EnvoyHost,
    dispatch::{Flow, Shell},
    stream::{plugin_configuration, set_tick_period},
};

/// What Envoy calls.
struct Module;

sentinel_envoy::entry_points!(Module);

thread_local! {
    static CROWD: RefCell<Crowd> = const { RefCell::new(Crowd { plan: Plan::NONE, running: None }) };
}

/// What this VM is told, and what it has made of it.
struct Crowd {
    plan: Plan,
    running: Option<Running>,
}

/// How large the crowd is and what it does.
#[derive(Clone, Copy, Debug)]
struct Plan {
    workers: usize,
    resources: u64,
    per_second: u64,
}

impl Plan {
    const NONE: Self = Self { workers: 0, resources: 1, per_second: 0 };

    /// Three numbers with spaces between.
    fn read(text: &[u8]) -> Option<Self> {
        let mut numbers = str::from_utf8(text).ok()?.split_ascii_whitespace();
        let mut next = || numbers.next()?.parse::<u32>().ok();
        let (workers, resources, per_second) = (next()?, next()?, next()?);
        let workers = usize::try_from(workers).ok()?;
        Some(Self {
            workers,
            resources: u64::from(resources.max(1)),
            per_second: per_second.into(),
        })
    }
}

/// The crowd at work.
struct Running {
    host: EnvoyHost,
    members: Vec<Member>,
    names: Vec<Vec<u8>>,
    began_ns: u64,
    /// Requests so far.
    made: u64,
    random: u64,
    requests: Option<MetricId>,
    reported: u64,
}

struct Member {
    worker: Worker,
    tick_at: u64,
}

/// The timer's period: short, so that workers tick one after the other and not all at once.
const PERIOD_MS: u32 = 1;

/// A timer that is late by more than this leaves out what it could not make: the bench sees how many requests there were.
const LATE_MOST_NS: u64 = 50_000_000;

impl Shell for Module {
    fn create(_context: u32, _root: u32) {}

    fn delete(_context: u32) {}

    fn configure(_root: u32, size: usize) -> bool {
        let Some(plan) = Plan::read(&plugin_configuration(size)) else {
            log::error!("a crowd needs three numbers: workers, resources, requests a second");
            return false;
        };
        CROWD.with_borrow_mut(|crowd| crowd.plan = plan);
        true
    }

    fn request_headers(_stream: u32) -> Flow {
        CROWD.with_borrow_mut(|crowd| {
            if crowd.running.is_none() {
                crowd.running = Some(Running::start(crowd.plan));
                if set_tick_period(PERIOD_MS).is_err() {
                    log::error!("Envoy gives this crowd no timer");
                }
            }
        });
        Flow::Continue
    }

    fn tick(_root: u32) {
        CROWD.with_borrow_mut(|crowd| {
            if let Some(running) = &mut crowd.running {
                running.go_on(crowd.plan);
            }
        });
    }
}

impl Running {
    fn start(plan: Plan) -> Self {
        let mut host = EnvoyHost::new();
        let began_ns = host.monotonic_ns();
        let members = (0..plan.workers)
            .map(|_| Member { worker: Worker::start(&mut host), tick_at: began_ns })
            .collect();
        let names = (0..plan.resources).map(|number| format!("r-{number}").into_bytes()).collect();
        let requests = host.define(MetricKind::Counter, "crowd.requests").ok();
        let random = host.random() | 1;
        Self { host, members, names, began_ns, made: 0, random, requests, reported: 0 }
    }

    /// Makes the requests that are due, each worker its share, and ticks whoever wants to be.
    fn go_on(&mut self, plan: Plan) {
        let now = self.host.monotonic_ns();
        let due = |since: u64| since.saturating_mul(plan.per_second) / 1_000_000_000;
        let target = due(now.saturating_sub(self.began_ns));
        if target.saturating_sub(self.made) > due(LATE_MOST_NS) {
            // Too late: from here on as if nothing had been missed.
            self.began_ns = now;
            self.made = 0;
            self.reported = 0;
            return;
        }
        let mut members = std::mem::take(&mut self.members);
        let (begin, count) = (self.made, members.len() as u64);
        for (place, member) in (0_u64..).zip(&mut members) {
            // Request number n is made by worker n modulo their number.
            let of_member = |until: u64| (until + count - 1 - place) / count;
            let asks = of_member(target).saturating_sub(of_member(begin));
            for _ in 0..asks {
                self.ask(member);
            }
            let now = self.host.monotonic_ns();
            if asks > 0 {
                // As in the filter's shell: a request that finds the slow tick armed asks for the fast one.
                let busy = u64::from(member.worker.busy().period_ms) * 1_000_000;
                member.tick_at = member.tick_at.min(now + busy);
            }
            if now >= member.tick_at {
                let next = member.worker.tick(&mut self.host);
                member.tick_at = now + u64::from(next.period_ms) * 1_000_000;
            }
        }
        self.members = members;
        self.made = target.max(begin);
        if let Some(requests) = self.requests {
            self.host.add(requests, self.made - self.reported);
            self.reported = self.made;
        }
    }

    /// One request to some resource, which ends at once.
    fn ask(&mut self, member: &mut Member) {
        let place = usize::try_from(self.draw() % self.names.len() as u64).unwrap_or_default();
        let Some(resource) = self.names.get(place) else { return };
        let call = Call { resource, batch: 1, inbound: true, stream: 0, before_first_rules: None };
        if let Verdict::Pass(entry) = member.worker.enter(&mut self.host, &call, &mut Anonymous) {
            member.worker.exit(&mut self.host, entry, Outcome::OK);
        }
    }

    /// xorshift64: any numbers that are spread evenly do.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
