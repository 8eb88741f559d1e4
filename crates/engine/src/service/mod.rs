//! The singleton on Envoy's main thread: it sees everything and answers nobody.
//!
//! It drains the workers' frames, folds them into global windows, and says what holds for all: the rule
//! set, its heartbeat, which frames it has folded, and what has been decided by what they said: a breaker that
//! opens, a proxy that is too busy. Nothing on a request's way waits for it, so it may be late, silent or dead, and
//! every limit on tokens stays exact.

use alloc::{string::String, vec::Vec};

use sentinel_core::{
    config::ServiceConfig,
    ledger::breaker::BreakerState,
    order::sort_by,
    rule::{Keeps, Rule, error::Refusals},
    stat::MetricBucket,
    time::{Nanos, Span},
};
use sentinel_wire::{
    DecodeError,
    frame::{BreakerCounts, FrameView},
    key::Key,
    rules::RuleEntry,
    service::ServiceBeat,
};

use crate::{
    Next,
    clock::Clock,
    host::{Host, Meter, Queue, Signal},
    shared::{Shared, Then},
    telemetry::{Metric, Total},
};

mod breakers;
mod decide;
mod fold;
mod publish;
mod said;
mod sources;

use breakers::Breakers;
use decide::{Judge, Standing};
use fold::Fold;
use publish::Publication;
pub use sources::{Answer, Fetch};
use sources::{News, Sources};

/// How often the holder of the role shows that it lives, and sets its gauges: with each idle tick.
///
/// A little less than the period of an idle tick, which may come early by a millisecond.
const HEARTBEAT: Span = Span::from_millis(900);

/// A holder that has been silent for longer has lost the role.
const ROLE_TTL: Span = Span::from_millis(2_000);

/// How soon acknowledgements follow the frames: long before workers look for them, once a second. Each is a wake-up of the
/// main thread and a value in shared data.
const ACK_MS: u32 = 100;

/// The least time between two acknowledgements: less than [`ACK_MS`] by as much as a tick may come early.
const ACK_LEAST: Span = Span::from_millis(90);

/// The most frames that one tick takes: four for each of the most workers. What is over waits for the next one.
const DRAIN_MAX: usize = 1_024;

/// The service, or an instance that would be if another were not.
#[derive(Debug)]
pub struct Service {
    instance: u64,
    config: ServiceConfig,
    config_hash: u64,
    clock: Clock,
    shared: Shared,
    role: Role,
    fold: Fold,
    publication: Publication,
    sources: Sources,
    standing: Standing,
    breakers: Breakers,
    judge: Judge,
    frame: Vec<u8>,
    view: FrameView,
    /// What a frame has said of breakers.
    news: Vec<BreakerCounts>,
    /// Frames taken off the queue, unreadable ones too.
    frames_folded: u64,
    /// Rule sets that could not be taken up.
    rules_rejected: u64,
    /// Whether somebody says that other filters carry rules now.
    is_nudged: bool,
    /// When the next heartbeat is due.
    beat_at: Nanos,
    /// When the last one went.
    beaten_at: Nanos,
    unacknowledged: bool,
    meters: Meters,
}

/// Who this instance is to the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Not the service, or not yet.
    Waiting {
        /// Whether the log has said why.
        said: bool,
    },
    /// The service: it alone consumes the queue and publishes.
    Holder {
        /// The frame queue; `None` if Envoy has refused to register it so far.
        queue: Option<Queue>,
    },
}

/// What it takes to act.
struct Means<'a, H> {
    host: &'a mut H,
    shared: &'a mut Shared,
    publication: &'a mut Publication,
    standing: &'a mut Standing,
    now: Nanos,
}

#[derive(Debug, Default)]
struct Meters {
    frames_folded: Total,
    frames_lost: Total,
    rules_rejected: Total,
    conflict: Metric,
}

impl Service {
    /// Takes a configuration. Its effects are idempotent, because Envoy also configures a VM that it then
    /// throws away: the process's seeds and, if there is no rule set yet, the inline rules, so that they
    /// are in force before the first request.
    pub fn configure<H: Host + Meter>(host: &mut H, config: ServiceConfig) -> Self {
        let mut shared = Shared::default();
        let clock = Clock::agree(host, &mut shared);
        let mut publication = Publication::default();
        publication.put_first(host, &mut shared, &config);
        Self {
            // 0 stands for nobody.
            instance: host.random().max(1),
            // Of its meaning, not of its bytes: Envoy writes the fields of one and the same Struct in another
            // order for each plugin that carries it.
            config_hash: clock.hash(&publish::meaning(&config)),
            sources: Sources::new(&clock, &config),
            config,
            clock,
            shared,
            role: Role::Waiting { said: false },
            fold: Fold::default(),
            publication,
            standing: Standing::default(),
            breakers: Breakers::default(),
            judge: Judge::default(),
            frame: Vec::new(),
            view: FrameView::default(),
            news: Vec::new(),
            frames_folded: 0,
            rules_rejected: 0,
            is_nudged: false,
            beat_at: Nanos::default(),
            beaten_at: Nanos::default(),
            unacknowledged: false,
            meters: Meters::default(),
        }
    }

    /// Takes or keeps the role, drains, decides, acknowledges, and says when it wants to be called again.
    pub fn tick<H: Host + Meter>(&mut self, host: &mut H) -> Next {
        let now = self.clock.now(host);
        self.take_role(host, now);
        if !self.holds_role(host, now) {
            return Next::IDLE;
        }
        let (breakers, mut means) = self.breakers_and_means(host, now);
        breakers.look_again(&mut means);
        let more = self.take_frames(host, now, DRAIN_MAX);
        let due = now >= self.beat_at;
        if due || self.is_nudged {
            self.look_at_carried(host, now, due);
        }
        self.decide(host, now);
        if due || (self.unacknowledged && now.since(self.beaten_at) >= ACK_LEAST) {
            self.beat(host, now);
        }
        if due {
            self.beat_at = now + HEARTBEAT;
            if self.publication.is_owed() {
                self.publish(host, now);
            }
            let settings = &self.config.settings;
            let live = Span::from_millis(u64::from(settings.worker_ttl_ms));
            let silence_ms = settings.worker_ttl_ms.saturating_add(settings.orphan_ttl_ms);
            self.fold.forget_silent(now, Span::from_millis(u64::from(silence_ms)));
            self.fold.set_gauges(host, now, live);
            self.breakers.report(host);
            self.meters
                .frames_lost
                .report(host, self.fold.frames_lost, |text| text.push_str("frames_lost"));
            self.report_rejected(host);
        }
        self.next(now, more)
    }

    /// Folds one frame that the workers have sent, and decides by it. Envoy calls this for each: whatever else waits has a
    /// call of its own on the way, or, if that was lost, the next tick.
    pub fn take_frame<H: Host + Meter>(&mut self, host: &mut H) -> Next {
        let now = self.clock.now(host);
        if !self.holds_role(host, now) {
            return Next::IDLE;
        }
        self.take_frames(host, now, 1);
        if self.is_nudged {
            self.look_at_carried(host, now, false);
        }
        if self.judge.is_quick() {
            self.decide(host, now);
        } else {
            self.standing.publish(host, &mut self.shared);
        }
        self.next(now, false)
    }

    /// The next question to a server of rules. Who is told so asks, and calls [`Service::take_answer`] whatever comes of
    /// it. To be called after each other call until there is none.
    pub fn next_fetch<H: Host>(&mut self, host: &mut H) -> Option<Fetch<'_>> {
        let now = self.clock.now(host);
        if !self.is_holder() {
            return None;
        }
        self.sources.next_fetch(now, &self.config)
    }

    /// Takes what came of the question `id`, and publishes what is new. Says when it wants to be called again.
    pub fn take_answer<H: Host + Meter>(&mut self, host: &mut H, id: u32, answer: Answer) -> Next {
        let now = self.clock.now(host);
        if !self.holds_role(host, now) {
            return Next::IDLE;
        }
        match self.sources.take_answer(now, &self.clock, &self.config, id, answer) {
            News::Nothing => {}
            News::Unit(unit) => self.take_up(host, now, &[unit]),
            News::Refused(refusals) => self.reject(host, &refusals),
        }
        self.next(now, false)
    }

    /// Replaces the configuration. The new rule set is published if this instance is the service; an
    /// unchanged rule keeps its ledger.
    pub fn replace<H: Host + Meter>(&mut self, host: &mut H, config: ServiceConfig) {
        let now = self.clock.now(host);
        self.sources = Sources::new(&self.clock, &config);
        self.config = config;
        if self.holds_role(host, now) {
            self.publish(host, now);
            self.decide(host, now);
        }
    }

    /// Ticks as if everything were due. For tests and vectors, which leave no time for it.
    pub fn settle<H: Host + Meter>(&mut self, host: &mut H) {
        self.beat_at = Nanos::default();
        self.tick(host);
    }

    /// The rules that this instance was configured with.
    pub fn rules(&self) -> &[Rule] {
        &self.config.rules
    }

    /// Whether this instance is the one that workers hear.
    pub fn is_holder(&self) -> bool {
        matches!(self.role, Role::Holder { .. })
    }

    /// What all workers together have counted for a resource in the last `window`, up to 10 s, as far as
    /// their frames have been folded.
    pub fn window<H: Host>(&self, host: &mut H, resource: &[u8], window: Span) -> MetricBucket {
        self.fold.window(self.clock.now(host), self.clock.hash(resource), window)
    }

    /// Requests of a resource that are open in all workers, as far as their frames have been folded.
    pub fn in_flight(&self, resource: &[u8]) -> u64 {
        self.fold.in_flight(self.clock.hash(resource))
    }

    /// Whether it is time to ask Envoy's admin endpoint, at [`Service::stats_cluster`], for its statistics. Who is
    /// told so asks, and calls [`Service::take_stats`] whatever comes of it.
    pub fn stats_due<H: Host>(&mut self, host: &mut H) -> bool {
        let now = self.clock.now(host);
        self.is_holder()
            && self.config.envoy_stats.is_some()
            && self.judge.stats_due(now, &self.config.settings)
    }

    /// The cluster of Envoy's admin endpoint, if it was configured.
    pub fn stats_cluster(&self) -> Option<&str> {
        self.config.envoy_stats.as_deref()
    }

    /// Takes the text that Envoy's admin endpoint answers to `/stats`, and decides by it; `None` if the call has
    /// failed.
    pub fn take_stats<H: Host + Meter>(&mut self, host: &mut H, body: Option<&[u8]>) {
        if let Some((cpu, memory_bytes)) = self.judge.read_stats(body) {
            self.set_pressure(host, cpu, memory_bytes);
        }
    }

    /// Takes in the pressure on the CPU, 0 to 1, and the memory in use, and decides by it; `None`: unknown. What is
    /// older than three readings, and than `decisionsTtlMs`, is unknown as well.
    pub fn set_pressure<H: Host + Meter>(
        &mut self,
        host: &mut H,
        cpu: Option<f64>,
        memory_bytes: Option<u64>,
    ) {
        let now = self.clock.now(host);
        self.judge.set_pressure(now, cpu, memory_bytes);
        if self.holds_role(host, now) {
            self.decide(host, now);
        }
    }

    /// The state of the breaker with this id, by its ledger; `None` if there is none, or if this instance is not
    /// the service.
    pub fn breaker_state<H: Host + Meter>(
        &mut self,
        host: &mut H,
        id: &str,
    ) -> Option<BreakerState> {
        let now = self.clock.now(host);
        let (breakers, mut means) = self.breakers_and_means(host, now);
        breakers.state_of(id, &mut means)
    }

    /// Frames that never arrived.
    pub fn frames_lost(&self) -> u64 {
        self.fold.frames_lost
    }

    /// Becomes the service if there is none, and steps back if somebody else has become it.
    fn take_role<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        if matches!(self.role, Role::Holder { .. }) {
            return;
        }
        let own = self.beat_now(now);
        let config_hash = self.config_hash;
        let taken = self.shared.update(host, Key::Service, |found, written| {
            match found.map(ServiceBeat::decode) {
                Some(Ok(other)) if now.since(Nanos::new(other.heartbeat_ns)) <= ROLE_TTL => {
                    (Then::Keep, Some(other.config_hash != config_hash))
                }
                // A newer module holds the role, or held it: it is not ours to take.
                Some(Err(DecodeError::Newer { .. })) => (Then::Keep, Some(true)),
                Some(Ok(_) | Err(DecodeError::Malformed)) | None => {
                    own.encode(written);
                    (Then::Write, None)
                }
            }
        });
        let conflict = match taken {
            Ok(updated) => updated.result,
            Err(_) => return,
        };
        let Some(conflict) = conflict else {
            self.become_service(host, now);
            return;
        };
        if let Role::Waiting { said: said @ false } = &mut self.role {
            *said = true;
            log::info!("another service lives: this one waits for its role");
            if conflict {
                log::error!(
                    "two services with different configurations share one vm_id: only the first one counts"
                );
                self.meters.conflict.set(host, 1, |text| text.push_str("service_conflict"));
            }
        }
    }

    fn become_service<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        self.role = Role::Holder { queue: host.register_queue().ok() };
        self.beaten_at = now;
        // If this is not the first time, another one has been the service in between.
        self.fold.forget_workers();
        self.breakers.doubt();
        self.standing.doubt();
        self.sources.restore(host, &mut self.shared, &self.clock);
        self.sources.look_at_carried(host, &mut self.shared, false);
        if self.sources.has_news()
            && let Err(refusals) = self.sources.merge(&mut self.config, None)
        {
            self.reject(host, &refusals);
        }
        self.publish(host, now);
        self.meters.conflict.set(host, 0, |text| text.push_str("service_conflict"));
        log::info!(
            "service {:016x} started with rule set {}",
            self.instance,
            self.publication.version()
        );
    }

    /// Whether this instance is the service. One that was silent for so long that it may have lost the role
    /// asks first.
    fn holds_role<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) -> bool {
        if self.is_holder() && now.since(self.beaten_at) > ROLE_TTL {
            self.beat(host, now);
        }
        self.is_holder()
    }

    /// Looks who carries rules, and publishes what is new.
    fn look_at_carried<H: Host + Meter>(&mut self, host: &mut H, now: Nanos, beats: bool) {
        self.is_nudged = false;
        let (changed, refused) = self.sources.look_at_carried(host, &mut self.shared, beats);
        for refusals in &refused {
            self.reject(host, refusals);
        }
        self.take_up(host, now, &changed);
    }

    /// Publishes what these units newly say, as far as it goes with what all others say.
    fn take_up<H: Host + Meter>(&mut self, host: &mut H, now: Nanos, units: &[usize]) {
        let mut is_new = false;
        for &unit in units {
            match self.sources.merge(&mut self.config, Some(unit)) {
                Ok(()) => is_new = true,
                Err(refusals) => self.reject(host, &refusals),
            }
        }
        if is_new {
            self.sources.keep(host, &mut self.shared);
            self.publish(host, now);
            self.decide(host, now);
            log::info!(
                "rule set {} is in force: {} rules",
                self.publication.version(),
                self.config.rules.len()
            );
        }
    }

    /// Says why a rule set is not taken up.
    fn reject<H: Host + Meter>(&mut self, host: &mut H, refusals: &Refusals) {
        self.rules_rejected = self.rules_rejected.saturating_add(1);
        self.report_rejected(host);
        for line in refusals.lines() {
            log::error!("rules refused: {line}");
        }
        log::error!("rules refused: the set in force stays");
    }

    fn report_rejected<H: Host + Meter>(&mut self, host: &mut H) {
        let name = |text: &mut String| text.push_str("rules_rejected");
        self.meters.rules_rejected.report(host, self.rules_rejected, name);
    }

    /// Publishes the rules, and takes up those for which it decides something.
    fn publish<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        let Some(mut judged) = self.publication.publish(host, &mut self.shared, &self.config, now)
        else {
            // The last set stays in force.
            self.rules_rejected = self.rules_rejected.saturating_add(1);
            return;
        };
        // Both want to find them by their generations.
        sort_by(&mut judged, |a, b| a.generation.cmp(&b.generation));
        let is_breaker = |entry: &mut RuleEntry| entry.rule.keeps() == Keeps::Breaker;
        let of_breakers: Vec<RuleEntry> = judged.extract_if(.., is_breaker).collect();
        self.judge.take_up(judged, &self.clock);
        let (breakers, mut means) = self.breakers_and_means(host, now);
        breakers.take_up(of_breakers, &mut means);
        let (breakers, judge) = (&self.breakers, &self.judge);
        self.fold.keep_windows(judge.windows());
        self.fold.forget_breakers(&|generation| breakers.knows(generation));
        self.standing.forget(&|generation| breakers.knows(generation) || judge.knows(generation));
        if judge.reads_stats() && self.config.envoy_stats.is_none() {
            log::warn!(
                "rules ask for CPU or memory, and nothing tells them: CpuUsage rules pass everything, MemoryAdaptive \
                 ones go by lowMemUsageThreshold. Add `envoyStats: {{cluster: ...}}` with the cluster of Envoy's own \
                 admin endpoint"
            );
        }
    }

    /// Decides what the state of the world is, and tells the workers if that is new.
    fn decide<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        let mut means = Means {
            host,
            shared: &mut self.shared,
            publication: &mut self.publication,
            standing: &mut self.standing,
            now,
        };
        self.judge.judge(&self.fold, &self.config.settings, &mut means);
        self.standing.publish(host, &mut self.shared);
    }

    fn breakers_and_means<'a, H>(
        &'a mut self,
        host: &'a mut H,
        now: Nanos,
    ) -> (&'a mut Breakers, Means<'a, H>) {
        let means = Means {
            host,
            shared: &mut self.shared,
            publication: &mut self.publication,
            standing: &mut self.standing,
            now,
        };
        (&mut self.breakers, means)
    }

    /// When there is something to do again. `more`: there are frames left.
    fn next(&self, now: Nanos, more: bool) -> Next {
        let settings = &self.config.settings;
        let mut period_ms = Next::IDLE.period_ms;
        if let Some(due) = self.sources.next_due() {
            let wait_ms = due.since(now).as_millis().saturating_add(1);
            period_ms = period_ms.min(u32::try_from(wait_ms).unwrap_or(period_ms));
        }
        for (is_due, within_ms) in [
            (self.unacknowledged, ACK_MS),
            (more, settings.flush_ms),
            (self.breakers.are_busy() || self.judge.is_busy(), settings.flush_ms),
            (!self.standing.is_written(), settings.flush_ms),
            (
                self.judge.reads_stats() && self.config.envoy_stats.is_some(),
                settings.cpu_interval_ms,
            ),
        ] {
            if is_due {
                period_ms = period_ms.min(within_ms);
            }
        }
        Next { period_ms }
    }

    /// Writes heartbeat and acknowledgements, unless somebody else has taken the role in between.
    fn beat<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        let own = self.beat_now(now);
        let beaten = self.shared.update(host, Key::Service, |found, written| {
            match found.map(ServiceBeat::decode) {
                Some(Ok(beat)) if beat.instance == own.instance => {
                    own.encode(written);
                    (Then::Write, true)
                }
                Some(_) | None => (Then::Keep, false),
            }
        });
        match beaten.map(|beaten| beaten.result) {
            Ok(true) => {
                self.unacknowledged = false;
                self.beaten_at = now;
            }
            Ok(false) => {
                log::warn!("another service has taken the role: this one was silent for too long");
                self.role = Role::Waiting { said: true };
            }
            // Tried again at the next tick.
            Err(_) => {}
        }
    }

    fn beat_now(&self, now: Nanos) -> ServiceBeat {
        ServiceBeat {
            instance: self.instance,
            config_hash: self.config_hash,
            heartbeat_ns: now.get(),
            rules_version: self.publication.version(),
            acks: self.fold.acks(),
        }
    }

    /// Takes at most so many frames off the queue, and opens breakers by them. `true` if there may be more.
    fn take_frames<H: Host + Meter>(&mut self, host: &mut H, now: Nanos, most: usize) -> bool {
        let more = self.fold_frames(host, now, most);
        // At once: a service that traps takes with it what it has not told.
        let folded = self.frames_folded;
        self.meters.frames_folded.report(host, folded, |text| text.push_str("frames_folded"));
        more
    }

    fn fold_frames<H: Host + Meter>(&mut self, host: &mut H, now: Nanos, most: usize) -> bool {
        let Role::Holder { queue } = &mut self.role else { return false };
        let queue = match *queue {
            Some(queue) => queue,
            None => match host.register_queue() {
                Ok(registered) => *queue.insert(registered),
                Err(_) => return false,
            },
        };
        let resources_max =
            usize::try_from(self.config.settings.resources_max).unwrap_or(usize::MAX);
        for _ in 0..most {
            if !host.dequeue(queue, &mut self.frame).unwrap_or(false) {
                return false;
            }
            if self.frame.is_empty() {
                self.is_nudged = true;
                continue;
            }
            self.frames_folded = self.frames_folded.saturating_add(1);
            match self.view.read(&self.frame) {
                Ok(()) => {
                    let at = Nanos::new(self.view.at_ns);
                    let breakers = &self.breakers;
                    let is_known = |generation| breakers.knows(generation);
                    self.fold.fold(now, &self.view, resources_max, &is_known, &mut self.news);
                    self.unacknowledged = true;
                    let mut news = core::mem::take(&mut self.news);
                    let (breakers, mut means) = self.breakers_and_means(host, now);
                    for new in news.drain(..) {
                        breakers.count(at, &new, &mut means);
                    }
                    self.news = news;
                }
                Err(error) => {
                    self.fold.frames_lost = self.fold.frames_lost.saturating_add(1);
                    log::error!("a worker's frame cannot be read: {error}");
                }
            }
        }
        true
    }
}

/// Tells all workers that there is something new under [`Key::Rules`].
fn announce<H: Host>(host: &mut H) {
    host.raise(Signal::Published);
}

#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;
