//! One VM of one Envoy worker thread.
//!
//! `enter` decides a request and `exit` counts its end; both work on what this worker has in hand, and only
//! a request that lacks a token talks to shared data. Everything else happens on the `tick`: idle leases
//! go back, counts go to Envoy's statistics and in frames to the service, a new rule set is compiled and
//! taken up, and once a second the worker shows that it lives and looks whether the service does.

use alloc::{rc::Rc, string::String, vec::Vec};

use sentinel_core::{
    block::BlockType,
    config::BeforeFirstRules,
    rule::{OnHostFailure, Rule},
    time::{Nanos, Span},
};
use sentinel_wire::{
    frame::CounterFrame,
    key::Key,
    service::ServiceBeat,
    workers::{WORKERS_MAX, WorkerSlot},
};

use crate::{
    Next,
    admission::{Admission, ClaimTally, Claims},
    census::Census,
    clock::Clock,
    host::{Host, HostError, Meter, Queue, Signal},
    nodes::{Nodes, OTHER_NODE},
    rulebook::{self, RuleBook, Upcoming},
    shared::{Shared, Then},
    telemetry::{Metric, OTHER, Total, of_resource, of_rule},
};

/// How often a worker shows that it lives, and sends frames of resources that no rule of the service
/// watches. A little less than the period of an idle tick, which may come early by a millisecond.
const HOUSEKEEPING: Span = Span::from_millis(900);

/// A worker that has nothing to say says so this often: the service forgets who is silent for 90 s.
const KEEPALIVE: Span = Span::from_millis(30_000);

/// How often a request starts again because a newer rule set had to be taken up first. Each round takes a
/// set up, so that a second one needs two changes within microseconds.
const ROUNDS_MAX: usize = 3;

/// One Envoy worker, in one VM.
#[derive(Debug)]
pub struct Worker {
    incarnation: u64,
    clock: Clock,
    shared: Shared,
    /// The start of the newest bucket seen in any ledger: this worker's time never falls behind it.
    floor: Nanos,
    book: RuleBook,
    upcoming: Option<Upcoming>,
    published: u64,
    refresh_at: Nanos,
    wanted: u64,
    nodes: Nodes,
    /// Rules whose lease the next tick looks at.
    active: Vec<u32>,
    census: Census,
    /// 1 if this worker ever found no slot.
    over: u64,
    /// Refusals by rules that have no series of their own.
    other_rules_blocked: u64,
    /// Refusals because there is no rule set yet.
    blocked_before_rules: u64,
    housekeeping_at: Nanos,
    service: ServiceView,
    frame: Vec<u8>,
    frame_at: Nanos,
    sequence: u64,
    frames: u64,
    tally: ClaimTally,
    meters: Meters,
}

/// What a request is told.
#[derive(Debug)]
pub enum Verdict {
    /// It may go on; `exit` must be told of its end.
    Pass(Entry),
    /// It is refused, and nothing is spent.
    Blocked(Blocked),
}

/// A request that was admitted and has not ended. Consumed by [`Worker::exit`]: it cannot end twice.
#[derive(Debug)]
#[must_use = "an entry that does not exit is in flight for ever"]
pub struct Entry {
    node: u32,
    batch: u64,
    start: Nanos,
    needs_status: bool,
}

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct Blocked {
    /// The kind of rule.
    pub block_type: BlockType,
    /// The rule; `None` while there is no rule set yet and `beforeFirstRules` blocks.
    pub rule: Option<Rc<Rule>>,
    /// How long until the next token is certain, if that is known.
    pub retry_after: Option<Span>,
}

/// What a worker knows of the service.
#[derive(Debug)]
struct ServiceView {
    instance: Option<u64>,
    heartbeat: Nanos,
    rules_version: u64,
    queue: Option<Queue>,
    silent: bool,
    missing: bool,
}

#[derive(Debug, Default)]
struct Meters {
    claims: Total,
    retries: Total,
    failures: Total,
    frames: Total,
    over: Total,
    other_rules: Total,
    before_rules: Total,
    workers: Metric,
    rules_version: Metric,
    service_missing: Metric,
    heartbeat_age: Metric,
}

impl Entry {
    /// Whether [`Worker::exit`] must be told if the response was an error. Reading the status costs a
    /// host call that returns bytes, so it is read only where somebody wants to know.
    pub fn needs_status(&self) -> bool {
        self.needs_status
    }
}

impl Worker {
    /// Becomes a worker: at the first stream that this VM sees. Takes a slot and the rule set in force.
    pub fn start<H: Host + Meter>(host: &mut H) -> Self {
        let mut shared = Shared::default();
        let clock = Clock::agree(host, &mut shared);
        let now = clock.now(host);
        let mut worker = Self {
            // 0 stands for nobody.
            incarnation: host.random().max(1),
            clock,
            shared,
            floor: now,
            book: RuleBook::default(),
            upcoming: None,
            published: 0,
            refresh_at: now,
            wanted: host.level(Signal::Wanted),
            nodes: Nodes::new(clock.hash(OTHER.as_bytes())),
            active: Vec::new(),
            census: Census::ALONE,
            over: 0,
            other_rules_blocked: 0,
            blocked_before_rules: 0,
            housekeeping_at: now,
            service: ServiceView {
                instance: None,
                heartbeat: now,
                rules_version: 0,
                queue: None,
                silent: false,
                missing: false,
            },
            frame: Vec::new(),
            frame_at: now,
            sequence: 0,
            frames: 0,
            tally: ClaimTally::default(),
            meters: Meters::default(),
        };
        worker.take_up_now(host);
        worker.keep_house(host, now);
        log::info!(
            "worker {:016x} started under rule set {}",
            worker.incarnation,
            worker.book.version
        );
        worker
    }

    /// Decides a request for the resource `name` that counts `batch` times (1 for an HTTP request).
    /// `before_first_rules` is the listener's own answer while there is no rule set; it wins over the
    /// setting.
    pub fn enter<H: Host + Meter>(
        &mut self,
        host: &mut H,
        name: &[u8],
        batch: u32,
        before_first_rules: Option<BeforeFirstRules>,
    ) -> Verdict {
        let batch = u64::from(batch);
        let now = self.now(host);
        let mut node = OTHER_NODE;
        let mut needs_status = false;
        for round in 1..=ROUNDS_MAX {
            if self.book.version == 0
                && self.before_first_rules(before_first_rules) == BeforeFirstRules::Block
            {
                self.nodes.block(OTHER_NODE, batch);
                self.blocked_before_rules = self.blocked_before_rules.saturating_add(batch);
                return Verdict::Blocked(Blocked {
                    block_type: BlockType::System,
                    rule: None,
                    retry_after: None,
                });
            }
            let hash = self.clock.hash(name);
            let Some(resource) = self.book.find(hash, name) else { break };
            node = resource.node;
            needs_status = resource.needs_status;
            let rules = Rc::clone(&resource.rules);
            if rules.is_empty() {
                break;
            }
            match self.admit(host, now, &rules, batch) {
                Admission::Pass => break,
                Admission::Refused { rule, retry_at } => {
                    self.nodes.block(node, batch);
                    return Verdict::Blocked(self.refusal(rule, retry_at, now));
                }
                Admission::Superseded { .. } if round < ROUNDS_MAX => self.take_up_now(host),
                // The newer rule set is announced by its ledgers and cannot be read: as if the ledger could not.
                Admission::Superseded { rule } => {
                    self.tally.failures = self.tally.failures.saturating_add(1);
                    if self.answers_failure(rule) == OnHostFailure::Pass {
                        break;
                    }
                    self.note_refusal(rule, batch);
                    self.nodes.block(node, batch);
                    return Verdict::Blocked(self.refusal(rule, None, now));
                }
            }
        }
        self.nodes.pass(node, batch);
        Verdict::Pass(Entry { node, batch, start: now, needs_status })
    }

    /// Counts the end of an admitted request. `error` matters where [`Entry::needs_status`] said so.
    #[expect(clippy::needless_pass_by_value, reason = "an entry ends once")]
    pub fn exit<H: Host + Meter>(&mut self, host: &mut H, entry: Entry, error: bool) {
        let Entry { node, batch, start, needs_status: _ } = entry;
        let rt_ms = self.now(host).since(start).as_millis();
        self.nodes.complete(host, node, batch, rt_ms, error);
    }

    /// Does what is due, and says when it wants to be called again.
    pub fn tick<H: Host + Meter>(&mut self, host: &mut H) -> Next {
        let now = self.now(host);
        self.refresh(host, now);
        let mut busy = self.upcoming.is_some() || self.nodes.has_news();
        busy |= self.tick_rules(host, now);
        self.nodes.report(host);
        self.report_other_blocks(host);
        if now >= self.housekeeping_at {
            self.keep_house(host, now);
        }
        if busy { self.busy() } else { Next::IDLE }
    }

    /// How often a worker with anything to do ticks: to be asked for when a stream finds it idle.
    pub fn busy(&self) -> Next {
        Next { period_ms: self.book.settings.flush_ms }
    }

    /// Ticks as if everything were due. For tests and vectors, which leave no time for it.
    pub fn settle<H: Host + Meter>(&mut self, host: &mut H) {
        self.housekeeping_at = Nanos::default();
        self.refresh_at = Nanos::default();
        self.tick(host);
        while self.upcoming.is_some() {
            self.tick(host);
        }
    }

    /// The version of the rule set that this worker applies; 0 before the first.
    pub fn rules_version(&self) -> u64 {
        self.book.version
    }

    /// Who this worker is: random, another after each start.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn now<H: Host>(&self, host: &mut H) -> Nanos {
        self.clock.now(host).max(self.floor)
    }

    fn before_first_rules(&self, own: Option<BeforeFirstRules>) -> BeforeFirstRules {
        own.unwrap_or(self.book.settings.before_first_rules)
    }

    fn admit<H: Host>(&mut self, host: &mut H, now: Nanos, rules: &[u32], batch: u64) -> Admission {
        let (workers, may_lease) = (self.census.workers, self.census.has_slot);
        let mut claims =
            Claims::new(host, &mut self.shared, &mut self.tally, now, workers, may_lease);
        let admission = claims.admit(&mut self.book, rules, batch);
        self.floor = self.floor.max(claims.floor);
        for &index in rules {
            self.look_at_in_tick(index);
        }
        if let Admission::Refused { rule, .. } = admission {
            self.note_refusal(rule, batch);
        }
        admission
    }

    fn note_refusal(&mut self, rule: u32, batch: u64) {
        if let Some(state) = self.book.rule_mut(rule) {
            state.blocked = state.blocked.saturating_add(batch);
        }
        self.look_at_in_tick(rule);
    }

    /// What a rule does where its ledger cannot be used. A shadow rule never blocks.
    fn answers_failure(&mut self, rule: u32) -> OnHostFailure {
        match self.book.rule_mut(rule).map(|state| state.rule.common()) {
            Some(common) if common.shadow => OnHostFailure::Pass,
            Some(common) => common.on_host_failure,
            None => OnHostFailure::default(),
        }
    }

    /// Puts a rule on the list of those that a tick looks at, if it has anything to do there.
    fn look_at_in_tick(&mut self, index: u32) {
        if let Some(state) = self.book.rule_mut(index)
            && !state.active
            && state.needs_tick()
        {
            state.active = true;
            self.active.push(index);
        }
    }

    fn refusal(&mut self, rule: u32, retry_at: Option<Nanos>, now: Nanos) -> Blocked {
        Blocked {
            block_type: BlockType::FlowControl,
            rule: self.book.rule_mut(rule).map(|state| Rc::clone(&state.rule)),
            retry_after: retry_at.map(|at| at.since(now)),
        }
    }

    /// Gives back what is idle, what others want and what belongs to an older bucket, and reports
    /// refusals. `true` while any rule needs another tick.
    fn tick_rules<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) -> bool {
        if self.active.is_empty() {
            return false;
        }
        let level = host.level(Signal::Wanted);
        let wanted = level != self.wanted;
        self.wanted = level;
        let mut active = core::mem::take(&mut self.active);
        active.retain(|&index| {
            let Some(state) = self.book.rule_mut(index) else { return false };
            let was_busy = state.lease.is_active();
            let tokens = state.lease.tick(state.terms.shape, now, wanted);
            let mut claims = Claims::new(host, &mut self.shared, &mut self.tally, now, 1, false);
            claims.give_back(state, tokens);
            self.other_rules_blocked += state.report(host);
            // What was spent from in this tick is looked at once more: it may hold nothing and be idle then.
            state.active = was_busy && tokens.tokens == 0;
            state.active
        });
        self.active = active;
        !self.active.is_empty()
    }

    /// Refusals that no rule of its own name shows.
    fn report_other_blocks<H: Host + Meter>(&mut self, host: &mut H) {
        let meters = &mut self.meters;
        if self.other_rules_blocked > 0 {
            let name = |text: &mut String| of_rule(OTHER, OTHER, rulebook::FLOW_BLOCK_TOTAL, text);
            meters.other_rules.report(host, self.other_rules_blocked, name);
        }
        if self.blocked_before_rules > 0 {
            let name = |text: &mut String| of_resource(OTHER, "type.System.block_total", text);
            meters.before_rules.report(host, self.blocked_before_rules, name);
        }
    }

    /// Looks whether a newer rule set is published, and compiles a slice of it.
    fn refresh<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        if now >= self.refresh_at {
            self.refresh_at = now + Span::from_millis(u64::from(self.book.settings.refresh_ms));
            if host.level(Signal::Published) != self.published {
                self.load_rules(host);
            }
        }
        self.compile_slice(host);
    }

    /// Takes up what is published, whatever it takes: before the first request, and when a ledger says
    /// that this worker is behind.
    fn take_up_now<H: Host + Meter>(&mut self, host: &mut H) {
        self.load_rules(host);
        while self.upcoming.is_some() {
            self.compile_slice(host);
        }
    }

    /// Compiles a slice of the upcoming rule set, and takes it up after the last one. One that cannot be
    /// read is given up: the set in force stays.
    fn compile_slice<H: Host + Meter>(&mut self, host: &mut H) {
        let Some(upcoming) = &mut self.upcoming else { return };
        match upcoming.compile_slice() {
            Ok(false) => {}
            Ok(true) => self.take_up(host),
            Err(error) => {
                self.upcoming = None;
                log::error!("{}", rulebook::refusal(error));
            }
        }
    }

    /// Begins with the published set if it is newer than the one in force and the one being compiled.
    fn load_rules<H: Host>(&mut self, host: &mut H) {
        let level = host.level(Signal::Published);
        let bytes = match self.shared.read(host, Key::Rules) {
            Ok(Some(bytes)) => bytes.to_vec(),
            Ok(None) => {
                self.published = level;
                return;
            }
            // The signal still differs: asked again at the next tick.
            Err(_) => return,
        };
        self.published = level;
        match Upcoming::open(bytes) {
            Ok(upcoming) => {
                let newest =
                    self.upcoming.as_ref().map_or(0, Upcoming::version).max(self.book.version);
                if upcoming.version() > newest {
                    self.upcoming = Some(upcoming);
                }
            }
            Err(error) => log::error!("{}", rulebook::refusal(error)),
        }
    }

    fn take_up<H: Host + Meter>(&mut self, host: &mut H) {
        let Some(upcoming) = self.upcoming.take() else { return };
        // Counts of rules that are about to go must not go with them.
        self.nodes.report(host);
        for state in &mut self.book.rules {
            self.other_rules_blocked += state.report(host);
        }
        let mut old = core::mem::take(&mut self.book);
        self.book = upcoming.take_up(&self.clock, &mut old);
        self.nodes.take_up(&mut self.book, &old);
        self.active.clear();
        for index in 0..u32::try_from(self.book.rules.len()).unwrap_or(u32::MAX) {
            self.look_at_in_tick(index);
        }
        log::debug!("worker {:016x} applies rule set {}", self.incarnation, self.book.version);
    }

    /// Once a second: sees whether the service lives, shows that this worker does, and sends what the
    /// service has not acknowledged.
    fn keep_house<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        self.housekeeping_at = now + HOUSEKEEPING;
        self.look_for_service(host, now);
        if self.book.version == 0 || self.service.rules_version > self.book.version {
            self.load_rules(host);
        }
        self.count_workers(host, now);
        let quiet_for_long = now.since(self.frame_at) >= KEEPALIVE;
        if !self.service.silent && (self.nodes.has_unacknowledged() || quiet_for_long) {
            self.send_frame(host, now);
        }
        self.report_house(host, now);
    }

    fn look_for_service<H: Host>(&mut self, host: &mut H, now: Nanos) {
        let beat = match self.shared.read(host, Key::Service) {
            Ok(Some(bytes)) => ServiceBeat::decode(bytes).ok(),
            Ok(None) | Err(_) => None,
        };
        let view = &mut self.service;
        let missing = beat.is_none() && self.book.version == 0;
        if missing && !view.missing && first_to_miss(host, &mut self.shared) {
            log::warn!(
                "no service: no rule set has been published, so {}; is envoy.bootstrap.wasm configured with the same vm_id?",
                match self.book.settings.before_first_rules {
                    BeforeFirstRules::Pass => "every request passes",
                    BeforeFirstRules::Block => "every request is refused",
                }
            );
        }
        view.missing = missing;
        if let Some(beat) = beat {
            view.heartbeat = Nanos::new(beat.heartbeat_ns);
            view.rules_version = beat.rules_version;
            if view.instance != Some(beat.instance) {
                view.instance = Some(beat.instance);
                view.queue = None;
                self.nodes.forget_acknowledged();
            }
            if let Some(sequence) = beat.ack_of(self.incarnation) {
                self.nodes.acknowledge(sequence);
            }
        }
        let silent = now.since(view.heartbeat)
            > Span::from_millis(u64::from(self.book.settings.decisions_ttl_ms));
        if silent != view.silent && !missing {
            if silent {
                log::warn!(
                    "no heartbeat of the service for {} ms: token rules stay exact, frames wait",
                    now.since(view.heartbeat).as_millis()
                );
            } else {
                log::info!("the service is back");
            }
        }
        view.silent = silent;
    }

    fn count_workers<H: Host>(&mut self, host: &mut H, now: Nanos) {
        let own = WorkerSlot {
            incarnation: self.incarnation,
            heartbeat_ns: now.get(),
            rules_version: self.book.version,
        };
        let ttl = Span::from_millis(u64::from(self.book.settings.worker_ttl_ms));
        if let Some(census) = Census::beat(host, &mut self.shared, now, own, ttl) {
            self.census = census;
        }
        if !self.census.has_slot && self.over == 0 {
            self.over = 1;
            log::warn!("more than {WORKERS_MAX} workers: this one claims token by token");
        }
    }

    /// One frame, if the queue is there. What does not fit, and what is not acknowledged, goes with the
    /// next one.
    fn send_frame<H: Host>(&mut self, host: &mut H, now: Nanos) {
        let view = &mut self.service;
        let queue = match view.queue {
            Some(queue) => queue,
            None => {
                let Ok(Some(queue)) = host.resolve_queue() else { return };
                *view.queue.insert(queue)
            }
        };
        let sequence = self.sequence.saturating_add(1);
        let frame = CounterFrame {
            incarnation: self.incarnation,
            sequence,
            at_ns: now.get(),
            entries: self.nodes.frame_entries(sequence),
        };
        frame.encode(&mut self.frame);
        match host.enqueue(queue, &self.frame) {
            Ok(()) => {
                self.sequence = sequence;
                self.frame_at = now;
                self.frames = self.frames.saturating_add(1);
            }
            // The service's VM is gone, and its queue with it: resolve again.
            Err(HostError::NotFound | HostError::Status(_)) => self.service.queue = None,
        }
    }

    fn report_house<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        let meters = &mut self.meters;
        meters.claims.report(host, self.tally.claims, |text| text.push_str("ledger_claims"));
        meters.retries.report(host, self.shared.retries, |text| text.push_str("cas_retries"));
        meters.failures.report(host, self.tally.failures, |text| text.push_str("ledger_failures"));
        meters.frames.report(host, self.frames, |text| text.push_str("frames"));
        meters.over.report(host, self.over, |text| text.push_str("workers_over"));
        meters.workers.set(host, self.census.workers, |text| text.push_str("workers"));
        meters
            .rules_version
            .set(host, self.census.rules_version_min, |text| text.push_str("rules_version"));
        meters
            .service_missing
            .set(host, u64::from(self.service.missing), |text| text.push_str("service_missing"));
        let age_ms = now.since(self.service.heartbeat).as_millis();
        meters.heartbeat_age.set(host, age_ms, |text| text.push_str("service_heartbeat_age_ms"));
    }
}

/// Whether nobody in this process has said yet that there is no service.
fn first_to_miss<H: Host>(host: &mut H, shared: &mut Shared) -> bool {
    let said = shared.update(host, Key::Missing, |found, written| {
        written.clear();
        written.push(1);
        (if found.is_some() { Then::Keep } else { Then::Write }, found.is_none())
    });
    said.is_ok_and(|said| said.result)
}
