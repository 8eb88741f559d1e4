//! The singleton on Envoy's main thread: it sees everything and answers nobody.
//!
//! It drains the workers' frames, folds them into global windows, and says what holds for all: the rule
//! set, its heartbeat, and which frames it has folded. Nothing on a request's way waits for it, so it may
//! be late, silent or dead, and every limit stays exact.

use alloc::vec::Vec;

use sentinel_core::{
    config::ServiceConfig,
    rule::Rule,
    stat::MetricBucket,
    time::{Nanos, Span},
};
use sentinel_wire::{DecodeError, frame::CounterFrame, key::Key, service::ServiceBeat};

use crate::{
    Next,
    clock::Clock,
    host::{Host, Meter, Queue, Signal},
    shared::{Shared, Then},
    telemetry::{Metric, Total},
};

mod fold;
mod publish;

use fold::Fold;
use publish::Publication;

/// How often the holder of the role shows that it lives, and sets its gauges: with each idle tick.
///
/// A little less than the period of an idle tick, which may come early by a millisecond.
const HEARTBEAT: Span = Span::from_millis(900);

/// A holder that has been silent for longer has lost the role.
const ROLE_TTL: Span = Span::from_millis(2_000);

/// How soon acknowledgements follow the frames.
const ACK_MS: u32 = 10;

/// The most frames of one drain: four for each of the most workers. What is over waits for the next tick.
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
    frame: Vec<u8>,
    beat_at: Nanos,
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

#[derive(Debug, Default)]
struct Meters {
    frames_lost: Total,
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
            config,
            clock,
            shared,
            role: Role::Waiting { said: false },
            fold: Fold::default(),
            publication,
            frame: Vec::new(),
            beat_at: Nanos::default(),
            unacknowledged: false,
            meters: Meters::default(),
        }
    }

    /// Takes or keeps the role, drains, acknowledges, and says when it wants to be called again.
    pub fn tick<H: Host + Meter>(&mut self, host: &mut H) -> Next {
        let now = self.clock.now(host);
        self.take_role(host, now);
        if !matches!(self.role, Role::Holder { .. }) {
            return Next::IDLE;
        }
        let more = self.drain_queue(host, now);
        let due = now >= self.beat_at;
        if due || self.unacknowledged {
            self.beat(host, now);
        }
        if due {
            self.beat_at = now + HEARTBEAT;
            let settings = &self.config.settings;
            let silence_ms = settings.worker_ttl_ms.saturating_add(settings.orphan_ttl_ms);
            self.fold.forget_silent(now, Span::from_millis(u64::from(silence_ms)));
            self.fold.set_gauges(host, now);
            self.meters
                .frames_lost
                .report(host, self.fold.frames_lost, |text| text.push_str("frames_lost"));
        }
        if more { Next { period_ms: ACK_MS } } else { Next::IDLE }
    }

    /// Folds what the workers have sent. Envoy calls this for each frame.
    pub fn drain<H: Host + Meter>(&mut self, host: &mut H) -> Next {
        let now = self.clock.now(host);
        self.drain_queue(host, now);
        if self.unacknowledged { Next { period_ms: ACK_MS } } else { Next::IDLE }
    }

    /// Replaces the configuration. The new rule set is published if this instance is the service; an
    /// unchanged rule keeps its ledger.
    pub fn replace<H: Host + Meter>(&mut self, host: &mut H, config: ServiceConfig) {
        self.config = config;
        if matches!(self.role, Role::Holder { .. }) {
            self.publication.publish(host, &mut self.shared, &self.config);
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
            self.become_service(host);
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

    fn become_service<H: Host + Meter>(&mut self, host: &mut H) {
        self.role = Role::Holder { queue: host.register_queue().ok() };
        self.publication.publish(host, &mut self.shared, &self.config);
        self.meters.conflict.set(host, 0, |text| text.push_str("service_conflict"));
        log::info!(
            "service {:016x} started with rule set {}",
            self.instance,
            self.publication.version()
        );
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
            Ok(true) => self.unacknowledged = false,
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

    /// Takes frames off the queue. `true` if there may be more.
    fn drain_queue<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) -> bool {
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
        for _ in 0..DRAIN_MAX {
            if !host.dequeue(queue, &mut self.frame).unwrap_or(false) {
                return false;
            }
            match CounterFrame::decode(&self.frame) {
                Ok(frame) => {
                    self.fold.fold(now, frame, resources_max);
                    self.unacknowledged = true;
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
