//! Once a second: who lives, what is still held, and what the service does not know yet.

use alloc::vec::Vec;

use sentinel_core::{
    config::BeforeFirstRules,
    time::{Nanos, Span},
};
use sentinel_wire::{
    frame::{BreakerCounts, CounterFrame, FRAME_ENTRIES_MAX},
    key::Key,
    service::ServiceBeat,
    workers::{WORKERS_MAX, WorkerSlot},
};

use super::{HOUSEKEEPING, KEEPALIVE, Worker};
use crate::{
    admission::Claims,
    census::Census,
    host::{Host, HostError, Meter},
    rule_state::{Hold, Permits, RuleState},
    shared::{Shared, Then},
};

impl Worker {
    /// Shows that what this worker's requests hold is still held, before anybody could think it dead, and gives
    /// back what the host would not take before.
    pub(super) fn keep_permits<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        let third = Span::from_millis(u64::from(self.book.settings.worker_ttl_ms) / 3);
        let claimant = self.claimant();
        let Self { shared, values, tally, book, holding, .. } = self;
        holding.retain(|&index| {
            let Some(state) = book.rule_mut(index) else { return false };
            if let Hold::Permits(permits) = &state.hold
                && permits.held() > 0
                && now.since(permits.seen) >= third
            {
                let mut claims = Claims::new(host, shared, values, tally, now, claimant);
                claims.write_permits(state);
            }
            state.is_holding = state.holds_permits();
            state.is_holding
        });
        let late: Vec<(u64, u128)> = values
            .iter()
            .filter(|(_, value)| now.since(value.seen) >= third || value.written != value.in_use)
            .map(|(place, _)| *place)
            .collect();
        for place in late {
            let Some(mut value) = values.get(&place).copied() else { continue };
            let mut claims = Claims::new(host, shared, values, tally, now, claimant);
            let written = claims.write_value(&mut value);
            if written && value.in_use == 0 {
                values.remove(&place);
            } else if let Some(kept) = values.get_or_insert_with(place, || value) {
                *kept = value;
            }
        }
    }

    /// Permits that the host would not take back so far.
    pub(super) fn count_owed(&self) -> u64 {
        let holding = self.holding.iter().filter_map(|&index| self.book.rule(index));
        let of_rules = holding.filter_map(|state| state.hold.permits()).map(Permits::owed);
        let of_values =
            self.values.iter().map(|(_, value)| value.written.saturating_sub(value.in_use));
        of_rules.chain(of_values).fold(0, u64::saturating_add)
    }

    /// Once a second: sees whether the service lives, shows that this worker does, and sends what the
    /// service has not acknowledged.
    pub(super) fn keep_house<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        self.housekeeping_at = now + HOUSEKEEPING;
        self.look_for_service(host, now);
        if self.book.version == 0 || self.service.rules_version > self.book.version {
            self.load_rules(host);
        }
        self.count_workers(host, now);
        // The service forgets who is silent for as long as both: then the next frame would count as said again.
        let settings = &self.book.settings;
        let ttl_ms = settings.worker_ttl_ms.saturating_add(settings.orphan_ttl_ms);
        let keepalive = KEEPALIVE.min(Span::from_millis(u64::from(ttl_ms / 2)));
        let quiet_for_long = now.since(self.frame_at) >= keepalive;
        self.keep_permits(host, now);
        self.permits_owed = self.count_owed();
        let due = self.nodes.unacknowledged();
        let has_news = due > 0 || !self.waiting.is_empty() || self.had_extras;
        self.untold = 0;
        if !self.service.silent && (has_news || quiet_for_long) {
            self.untold = due;
            self.tell(host, now);
        }
        self.report_house(host, now);
    }

    pub(super) fn look_for_service<H: Host>(&mut self, host: &mut H, now: Nanos) {
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
        view.is_lost = silent;
    }

    pub(super) fn count_workers<H: Host>(&mut self, host: &mut H, now: Nanos) {
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

    /// One frame of what was due at the last housekeeping.
    pub(super) fn tell<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        self.send_frame(host, now, false);
        self.untold = self.untold.saturating_sub(FRAME_ENTRIES_MAX);
    }

    /// One frame, if the queue is there. What does not fit, and what is not acknowledged, goes with the
    /// next one.
    pub(super) fn send_frame<H: Host + Meter>(&mut self, host: &mut H, now: Nanos, watched: bool) {
        let view = &mut self.service;
        let queue = match view.queue {
            Some(queue) => queue,
            None => {
                let Ok(Some(queue)) = host.resolve_queue() else { return };
                *view.queue.insert(queue)
            }
        };
        let sequence = self.sequence.saturating_add(1);
        let (book, nodes) = (&mut self.book, &mut self.nodes);
        let most = if watched { usize::MAX } else { self.untold };
        let entries = nodes.frame_entries(sequence, watched, most, &mut |breakers| {
            breakers.iter().filter_map(|&index| breaker_counts(book.rule_mut(index)?)).collect()
        });
        // What was counted counts when it was, also if the frame goes in the next slice of somebody's window.
        let is_fresh = self.counted_at > self.frame_at;
        let at = if is_fresh { self.counted_at } else { now };
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        if watched && entries.is_empty() {
            return;
        }
        self.had_extras = waiting > 0 || self.permits_owed > 0;
        let frame = CounterFrame {
            incarnation: self.incarnation,
            sequence,
            at_ns: at.get(),
            waiting,
            permits_owed: self.permits_owed,
            entries,
        };
        frame.encode(&mut self.frame);
        match host.enqueue(queue, &self.frame) {
            Ok(()) => {
                self.sequence = sequence;
                self.frame_at = now;
                // At once: what the service has folded is counted as soon, and the difference is what waits.
                self.frames = self.frames.saturating_add(1);
                let frames = self.frames;
                self.meters.frames.report(host, frames, |text| text.push_str("frames"));
            }
            // The service's VM is gone, and its queue with it: resolve again.
            Err(HostError::NotFound | HostError::Status(_)) => self.service.queue = None,
        }
    }

    pub(super) fn report_house<H: Host + Meter>(&mut self, host: &mut H, now: Nanos) {
        let meters = &mut self.meters;
        meters.claims.report(host, self.tally.claims, |text| text.push_str("ledger_claims"));
        meters.retries.report(host, self.shared.retries, |text| text.push_str("cas_retries"));
        meters.failures.report(host, self.tally.failures, |text| text.push_str("ledger_failures"));
        let slots_lost = self.tally.slots_lost;
        meters.slots_lost.report(host, slots_lost, |text| text.push_str("pacing_slots_lost"));
        meters.over.report(host, self.over, |text| text.push_str("workers_over"));
        meters.workers.show(host, self.census.workers, |text| text.push_str("workers"));
        meters
            .rules_version
            .show(host, self.census.rules_version_min, |text| text.push_str("rules_version"));
        meters
            .service_missing
            .show(host, u64::from(self.service.missing), |text| text.push_str("service_missing"));
        let age_ms = now.since(self.service.heartbeat).as_millis();
        meters.heartbeat_age.set(host, age_ms, |text| text.push_str("service_heartbeat_age_ms"));
    }
}

/// What a frame says of a breaker.
fn breaker_counts(state: &mut RuleState) -> Option<BreakerCounts> {
    let generation = state.stamp.generation;
    let Hold::Breaker(view) = &mut state.hold else { return None };
    view.sent = view.complete;
    (view.complete > 0).then(|| view.counts(generation))
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
