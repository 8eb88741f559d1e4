//! One VM of one Envoy worker thread.
//!
//! `enter` decides a request and `exit` counts its end; both work on what this worker has in hand, and only
//! a request that lacks a token talks to shared data. Everything else happens on the `tick`: idle leases
//! go back, counts go to Envoy's statistics and in frames to the service, a new rule set is compiled and
//! taken up, and once a second the worker shows that it lives and looks whether the service does.

use alloc::{string::String, vec::Vec};

use sentinel_core::{
    block::BlockType,
    config::BeforeFirstRules,
    rule::INBOUND,
    time::{Nanos, Span},
};
use sentinel_wire::key::Key;

use crate::{
    Next,
    admission::{Ask, ClaimTally, Claimant, Claims, ValuePermits},
    census::Census,
    clock::Clock,
    host::{Host, Meter, Queue, Signal},
    nodes::Nodes,
    rule_state::{Hold, Terms},
    rulebook::{self, RuleBook, Upcoming},
    shared::Shared,
    telemetry::{Gauge, Metric, OTHER, Total, of_resource, of_rule},
};

mod call;
mod decided;
mod explain;
mod house;
mod messages;
mod waiting;

use call::Held;
pub use call::{Blocked, Call, Entry, Outcome, Verdict};
pub use messages::{MessageVerdict, Messages};

/// How often a worker shows that it lives, and sends frames of resources that no rule of the service
/// watches. A little less than the period of an idle tick, which may come early by a millisecond.
const HOUSEKEEPING: Span = Span::from_millis(900);

/// A worker that has nothing to say says so this often: the service forgets who is silent for 90 s.
const KEEPALIVE: Span = Span::from_millis(30_000);

/// How often a request starts again because a newer rule set had to be taken up first. Each round takes a
/// set up, so that a second one needs two changes within microseconds.
const ROUNDS_MAX: usize = 3;

/// The least time between two frames that do not wait for the tick.
const FRAME_PAUSE: Span = Span::from_millis(5);

/// While somebody wants permits, a worker keeps none for this long.
const WANTED: Span = Span::from_millis(100);

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
    /// The set before, while it is freed in slices.
    outgoing: Option<RuleBook>,
    published: u64,
    refresh_at: Nanos,
    wanted: u64,
    nodes: Nodes,
    /// Rules whose lease the next tick looks at.
    active: Vec<u32>,
    /// Rules with one ledger of which this worker holds permits, or owes some.
    holding: Vec<u32>,
    census: Census,
    /// 1 if this worker ever found no slot.
    over: u64,
    /// Questions of the request in hand; empty between requests.
    asks: Vec<Ask>,
    /// What tells a value apart, while it is hashed.
    key: Vec<u8>,
    /// Lists of ended requests, to be used again.
    spare: Vec<Vec<Held>>,
    /// Permits of values that requests are using.
    values: ValuePermits,
    /// Requests that wait for their slot, the next one first.
    waiting: waiting::Queue,
    /// Messages of streams, by resource.
    messages: messages::Counts,
    /// Which tick it is.
    tick: u64,
    /// Whether the last tick left anything to do.
    is_busy: bool,
    /// The level of [`Signal::Decided`] when the decisions were read last.
    decided: u64,
    decided_at: Nanos,
    /// Counters of whatever is inbound, if a rule asks for that.
    inbound: Option<u32>,
    /// When a completion was counted last: what a frame says of time.
    counted_at: Nanos,
    /// Permits that the host would not take back, when they were counted last.
    permits_owed: u64,
    /// How many resources that were due at the last housekeeping go with the next ticks: more than one frame holds.
    untold: usize,
    /// Whether the last frame spoke of requests that wait or permits that are owed.
    had_extras: bool,
    /// The time that was read last.
    seen_at: Nanos,
    /// Refusals by rules that have no series of their own, by block type.
    other_rules_blocked: [u64; BlockType::ALL.len()],
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

/// What a worker knows of the service.
#[derive(Debug)]
struct ServiceView {
    instance: Option<u64>,
    heartbeat: Nanos,
    rules_version: u64,
    queue: Option<Queue>,
    silent: bool,
    missing: bool,
    /// Silent for so long that each rule which needs it does what its `onServiceLoss` says.
    is_lost: bool,
}

#[derive(Debug, Default)]
struct Meters {
    claims: Total,
    retries: Total,
    failures: Total,
    frames: Total,
    over: Total,
    slots_lost: Total,
    other_rules: [Total; BlockType::ALL.len()],
    before_rules: Total,
    workers: Gauge,
    rules_version: Gauge,
    service_missing: Gauge,
    heartbeat_age: Metric,
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
            outgoing: None,
            published: 0,
            refresh_at: now,
            wanted: host.level(Signal::Wanted),
            nodes: Nodes::new(clock.hash(OTHER.as_bytes())),
            active: Vec::new(),
            holding: Vec::new(),
            census: Census::ALONE,
            over: 0,
            asks: Vec::new(),
            key: Vec::new(),
            spare: Vec::new(),
            values: ValuePermits::default(),
            waiting: waiting::Queue::new(),
            messages: messages::Counts::default(),
            tick: 1,
            is_busy: false,
            decided: 0,
            decided_at: now,
            inbound: None,
            counted_at: Nanos::default(),
            permits_owed: 0,
            untold: 0,
            had_extras: false,
            seen_at: now,
            other_rules_blocked: [0; BlockType::ALL.len()],
            blocked_before_rules: 0,
            housekeeping_at: now,
            service: ServiceView {
                instance: None,
                heartbeat: now,
                rules_version: 0,
                queue: None,
                silent: false,
                missing: false,
                is_lost: false,
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

    /// Does what is due, and says when it wants to be called again.
    pub fn tick<H: Host + Meter>(&mut self, host: &mut H) -> Next {
        let now = self.now(host);
        self.seen_at = now;
        self.tick = self.tick.wrapping_add(1);
        self.refresh(host, now);
        self.look_at_decisions(host, now);
        self.outgoing.take_if(|outgoing| !outgoing.wither());
        let mut busy = self.upcoming.is_some() || self.outgoing.is_some() || self.nodes.has_news();
        busy |= self.tick_rules(host, now);
        self.nodes.report(host);
        self.report_other_blocks(host);
        if self.nodes.has_news_for_service() && !self.service.silent {
            self.send_frame(host, now, true);
        }
        if self.permits_owed > 0 {
            self.keep_permits(host, now);
            self.permits_owed = self.count_owed();
            busy = true;
        }
        if now >= self.housekeeping_at {
            self.keep_house(host, now);
        } else if self.untold > 0 {
            self.tell(host, now);
        }
        self.is_busy = busy || self.untold > 0;
        self.next(host)
    }

    /// When the next tick is due, now that those who waited may have gone.
    pub fn next<H: Host>(&mut self, host: &mut H) -> Next {
        if self.waiting.is_empty() {
            return if self.is_busy { self.busy() } else { Next::IDLE };
        }
        self.seen_at = self.now(host);
        self.busy()
    }

    /// The next stream that need not wait any longer, if there is one: to be asked after each tick until there
    /// is none.
    pub fn due<H: Host>(&mut self, host: &mut H) -> Option<u32> {
        let until = self.waiting.peek()?.until;
        if until > self.now(host) {
            return None;
        }
        self.waiting.pop().map(|waiting| waiting.stream)
    }

    /// How often a worker with anything to do ticks: to be asked for when a stream finds it idle.
    pub fn busy(&self) -> Next {
        let flush_ms = self.book.settings.flush_ms;
        let next = self.waiting.peek().map(|waiting| waiting.until.since(self.seen_at));
        let period_ms = match next {
            Some(span) => u32::try_from(span.as_millis().saturating_add(1)).unwrap_or(flush_ms),
            None => flush_ms,
        };
        Next { period_ms: period_ms.min(flush_ms) }
    }

    /// Ticks as if everything were due. For tests and vectors, which leave no time for it.
    pub fn settle<H: Host + Meter>(&mut self, host: &mut H) {
        self.housekeeping_at = Nanos::default();
        self.refresh_at = Nanos::default();
        self.decided_at = Nanos::default();
        self.tick(host);
        while self.upcoming.is_some() {
            self.tick(host);
        }
        for state in &mut self.book.rules {
            state.forget_brief_memories();
        }
    }

    /// Whether any rule asks if a request comes in or goes out.
    pub fn asks_direction(&self) -> bool {
        // Only system rules speak of no resource.
        !self.book.everywhere.is_empty()
    }

    /// The version of the rule set that this worker applies; 0 before the first.
    pub fn rules_version(&self) -> u64 {
        self.book.version
    }

    /// Who this worker is: random, another after each start.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Requests that wait for their turn here.
    pub fn waiting(&self) -> u64 {
        u64::try_from(self.waiting.len()).unwrap_or(u64::MAX)
    }

    /// What this worker holds of the rule with this generation, if it applies it.
    pub(crate) fn hold_of(&self, generation: u64) -> Option<&Hold> {
        let index = self.book.index_of(generation)?;
        self.book.rule(index).map(|state| &state.hold)
    }

    fn now<H: Host>(&self, host: &mut H) -> Nanos {
        self.clock.now(host).max(self.floor)
    }

    fn before_first_rules(&self, own: Option<BeforeFirstRules>) -> BeforeFirstRules {
        own.unwrap_or(self.book.settings.before_first_rules)
    }

    fn claimant(&self) -> Claimant {
        let waiting_max = usize::try_from(self.book.settings.waiting_max).unwrap_or(usize::MAX);
        Claimant {
            incarnation: self.incarnation,
            workers: self.census.workers,
            may_lease: self.census.has_slot,
            may_wait: self.waiting.len() < waiting_max,
            tick: self.tick,
        }
    }

    /// Puts a rule on the lists of those that a tick and housekeeping look at, if they have anything to do there: with
    /// ten thousand rules most have not.
    fn look_at_in_tick(&mut self, index: u32) {
        let Some(state) = self.book.rule_mut(index) else { return };
        if !state.active && state.needs_tick() {
            state.active = true;
            self.active.push(index);
        }
        if !state.is_holding && state.holds_permits() {
            state.is_holding = true;
            self.holding.push(index);
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
        let claimant = self.claimant();
        let Self { shared, values, tally, book, other_rules_blocked, .. } = self;
        active.retain(|&index| {
            let Some(state) = book.rule_mut(index) else { return false };
            let mut claims = Claims::new(host, shared, values, tally, now, claimant);
            let again = match (&mut state.hold, state.terms) {
                (Hold::Permits(permits), _) => {
                    if wanted {
                        permits.wanted_until = now + WANTED;
                    }
                    // Kept for one tick without use.
                    let was_used = core::mem::take(&mut permits.used);
                    let goes_back = permits.idle > 0 && (wanted || !was_used);
                    if goes_back {
                        permits.idle = 0;
                    }
                    let owes = permits.owed() > 0;
                    if owes {
                        claims.write_permits(state);
                    }
                    state.needs_tick()
                }
                (hold, Terms::Rate(terms)) => {
                    let (tokens, again) = hold.tick_lease(terms.shape, now, wanted);
                    claims.give_back(state, 0, tokens);
                    again
                }
                _ => false,
            };
            let unreported = state.report(host);
            let of_type = other_rules_blocked.get_mut(state.rule.block_type().index());
            if let Some(blocked) = of_type {
                *blocked = blocked.saturating_add(unreported);
            }
            state.active = again;
            again
        });
        self.active = active;
        !self.active.is_empty()
    }

    /// Refusals that no rule of its own name shows.
    fn report_other_blocks<H: Host + Meter>(&mut self, host: &mut H) {
        let meters = &mut self.meters;
        let by_type = self.other_rules_blocked.iter().zip(&mut meters.other_rules);
        for (block_type, (blocked, total)) in BlockType::ALL.into_iter().zip(by_type) {
            if *blocked > 0 {
                total.report(host, *blocked, |text| {
                    of_rule(OTHER, OTHER, "type.", text);
                    text.push_str(block_type.name());
                    text.push_str(".block_total");
                });
            }
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

    /// A ledger of the request in hand belongs to a newer rule by now, `rule`. If that is still the rule of this name,
    /// it and what else of the kind the request asks stand in for the old ones until the whole set is taken up. A place
    /// goes to another rule only when no worker is left that could meet it here, or the service has forgotten (it was
    /// trapped) who is behind: only then this request waits for the whole set.
    fn follow<H: Host + Meter>(&mut self, host: &mut H, rule: u32) {
        if !self.stand_in(rule) {
            self.load_rules(host);
            if !self.stand_in(rule) {
                self.take_up_now(host);
            }
        }
    }

    fn stand_in(&mut self, rule: u32) -> bool {
        let Some(upcoming) = &mut self.upcoming else { return false };
        let stands = upcoming.stand_in(&mut self.book, rule);
        for ask in self.asks.iter().filter(|ask| stands && ask.rule != rule) {
            upcoming.stand_in(&mut self.book, ask.rule);
        }
        stands
    }

    /// Takes up what is published, whatever it takes: before the first request, and when there is no other way to tell
    /// what holds. Ten thousand rules take some milliseconds, and this request waits for them.
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
        match upcoming.compile_slice(&self.clock, &self.book) {
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

    /// Reports what a rule has refused, and gives its generation.
    fn report_rule<H: Host + Meter>(&mut self, host: &mut H, index: u32) -> Option<u64> {
        let state = self.book.rule_mut(index)?;
        let unreported = state.report(host);
        let of_type = self.other_rules_blocked.get_mut(state.rule.block_type().index());
        if let Some(blocked) = of_type {
            *blocked = blocked.saturating_add(unreported);
        }
        Some(state.stamp.generation)
    }

    fn take_up<H: Host + Meter>(&mut self, host: &mut H) {
        let Some(upcoming) = self.upcoming.take() else { return };
        // Counts of rules that are about to go must not go with them. Who is on no list has told all and holds nothing:
        // ten thousand rules are not looked at one by one where it is not needed, because this is done in one piece.
        self.nodes.report(host);
        let mut busy = core::mem::take(&mut self.active);
        busy.append(&mut self.holding);
        let busy: Vec<u64> =
            busy.into_iter().filter_map(|index| self.report_rule(host, index)).collect();
        let mut old = core::mem::take(&mut self.book);
        self.book = upcoming.take_up(&mut old);
        self.nodes.take_up(&mut self.book, &old);
        self.outgoing = Some(old);
        self.release_waiting();
        let inbound = self.book.find(self.clock.hash(INBOUND.as_bytes()), INBOUND.as_bytes());
        self.inbound = inbound.map(|resource| resource.node);
        let book = &self.book;
        self.values.retain_keys(|(generation, _)| book.index_of(*generation).is_some());
        // What the service has decided is looked for anew: these may be other rules.
        self.decided = host.level(Signal::Decided).wrapping_sub(1);
        self.decided_at = Nanos::default();
        for generation in busy {
            if let Some(index) = self.book.index_of(generation) {
                self.look_at_in_tick(index);
            }
        }
    }
}
