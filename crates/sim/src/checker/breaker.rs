//! One breaker: who may move it, and how many probes it lets out.

use std::collections::{BTreeMap, VecDeque};

use sentinel_core::{
    ledger::breaker::{BreakerLedger, BreakerState, PROBE_TIMEOUT, Probe},
    rule::{BreakerStrategy, CircuitBreakerRule},
    time::{Nanos, Span},
};

use super::{Broken, TICK, law::Context};

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// When it was admitted.
    pub(super) began: Nanos,
    pub(super) at: Nanos,
    pub(super) failed: bool,
}

/// A breaker's life.
#[derive(Debug, Default)]
pub(super) struct BreakerBook {
    now: BreakerLedger,
    /// When it was opened, unless it is closed.
    opened_at: Option<Nanos>,
    /// Probes that were admitted since it opened.
    probes: u32,
    /// When it has closed last.
    closed_at: Nanos,
    /// Requests that are probes.
    streams: BTreeMap<u64, Probe>,
    /// Probes that have ended at the upstream, and whether as errors.
    judged: Vec<(Probe, bool)>,
}

/// How a breaker has moved: for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Closed → Open.
    pub opened: u64,
    /// HalfOpen → Open because of a bad probe.
    pub reopened: u64,
    /// HalfOpen → Closed.
    pub closed: u64,
    /// Probes that were admitted.
    pub probes: u64,
}

impl BreakerBook {
    pub(super) fn store(
        &mut self,
        new: &BreakerLedger,
        rule: &CircuitBreakerRule,
        context: &Context<'_>,
        moves: &mut Moves,
    ) -> Result<(), Broken> {
        let old = std::mem::replace(&mut self.now, new.clone());
        let most = rule.probe_num.max(1);
        let out = u32::try_from(new.out.len()).unwrap_or(u32::MAX);
        if new.good + out > most {
            return Err(format!("{} good and {out} probes out, and {most} are the most", new.good));
        }
        if out > 0 && new.state != BreakerState::HalfOpen {
            return Err(format!("{out} probes are out while it is {}", new.state.name()));
        }
        // Opened because a probe never ended, and probed again at once.
        let patience = PROBE_TIMEOUT.max(Span::from_millis(u64::from(rule.retry_timeout_ms)));
        let timed_out = old
            .out
            .iter()
            .any(|probe| context.now.since(probe.since) >= patience && !new.out.contains(probe));
        if timed_out {
            self.probes = 0;
        }
        if !timed_out && (old.state == new.state) != (old.epoch == new.epoch) {
            return Err("its epoch and its state do not change together".to_owned());
        }
        let early = new.out.iter().find(|probe| {
            !old.out.contains(probe)
                && old.state == BreakerState::Open
                && probe.since < old.retry_at
        });
        if early.is_some() {
            return Err("a probe is out before its time".to_owned());
        }
        if !timed_out {
            self.was_it_judged_right(&old, rule)?;
        }
        match (old.state, new.state) {
            (BreakerState::Closed, BreakerState::Open) => {
                moves.opened += 1;
                self.opened_at = Some(context.now);
                self.probes = 0;
                if !context.by_service {
                    return Err(
                        "a worker has opened it, and only the service sees enough".to_owned()
                    );
                }
                self.was_it_bad(rule, context)
            }
            (BreakerState::Open, BreakerState::HalfOpen) if !context.by_service => Ok(()),
            (BreakerState::HalfOpen, BreakerState::Open) if new.retry_at == old.retry_at => Ok(()),
            (BreakerState::HalfOpen, BreakerState::Open) if new.good == 0 => {
                moves.reopened += 1;
                self.probes = 0;
                Ok(())
            }
            (BreakerState::HalfOpen, BreakerState::Closed)
                if old.good + 1 >= most && !context.by_service =>
            {
                moves.closed += 1;
                self.opened_at = None;
                self.probes = 0;
                self.closed_at = context.now;
                Ok(())
            }
            (from, to) if from == to => Ok(()),
            (from, to) => Err(format!("it goes from {} to {}", from.name(), to.name())),
        }
    }

    /// Takes in an admitted request, and what its worker wrote into the ledger for it: before and after.
    pub(super) fn admitted(
        &mut self,
        stream: u64,
        probes: Option<(Vec<Probe>, Vec<Probe>)>,
        rule: &CircuitBreakerRule,
        late: Option<Nanos>,
        moves: &mut Moves,
    ) -> Result<(), Broken> {
        let (before, after) = probes.unwrap_or_default();
        if let Some(probe) = after.iter().find(|probe| !before.contains(probe)) {
            moves.probes += 1;
            self.streams.insert(stream, *probe);
            // One whose round another probe has ended meanwhile does not count in the next.
            self.probes += u32::from(self.now.out.contains(probe));
            let most = rule.probe_num.max(1);
            if self.probes > most {
                return Err(format!(
                    "{} probes were let out, and {most} are the most",
                    self.probes
                ));
            }
            return Ok(());
        }
        // What a flush and a refresh may take, and the calls of both sides.
        let allowed = Span::new(2 * TICK.get());
        match (self.opened_at, late) {
            (Some(opened_at), Some(now)) if now.since(opened_at) > allowed => Err(format!(
                "a request that is no probe passes {} ms after it opened",
                now.since(opened_at).as_millis()
            )),
            _ => Ok(()),
        }
    }

    /// That it has opened if in any slice of its window so many failed, and none did not, that it must have.
    pub(super) fn has_opened(
        &self,
        rule: &CircuitBreakerRule,
        ended: &VecDeque<Ended>,
    ) -> Result<(), Broken> {
        let (errors, ratio) = match rule.strategy {
            BreakerStrategy::ErrorRatio(ratio) => (0, ratio),
            BreakerStrategy::ErrorCount(count) => (count, 0.0),
            // How long a request took by its worker's clock is not seen from here.
            BreakerStrategy::SlowRequestRatio { .. } => return Ok(()),
        };
        if self.now.epoch > 0 {
            return Ok(());
        }
        // What ends about the end of a slice may count in the next one.
        let most = 2 * errors.max(rule.min_request_amount) + 2;
        let slice = u64::from(rule.stat_interval_ms / rule.buckets.max(1)).max(1);
        let (mut newest, mut failed) = (0, 0);
        // Those that went well and may stand in the same window.
        let mut good = VecDeque::new();
        let window = Span::from_millis(u64::from(rule.stat_interval_ms) + slice);
        for end in ended {
            let at = end.at.get() / (slice * 1_000_000);
            failed = if at == newest { failed } else { 0 };
            failed = if end.failed { failed + 1 } else { 0 };
            newest = at;
            good.extend((!end.failed).then_some(end.at));
            good.retain(|well| end.at.since(*well) <= window);
            let number = |many| f64::from(u32::try_from(many).unwrap_or(u32::MAX));
            let (bad, all) = (number(failed), number(failed + good.len() as u64));
            if failed > most && bad > ratio * all {
                return Err(format!(
                    "{failed} requests of one slice all failed, and it never opened"
                ));
            }
        }
        Ok(())
    }

    /// Takes in that a request has ended.
    pub(super) fn ended(&mut self, stream: u64, failed: bool) {
        if let Some(probe) = self.streams.remove(&stream) {
            self.judged.push((probe, failed));
        }
    }

    pub(super) fn probes_out(&self) -> usize {
        self.now.out.len()
    }

    pub(super) fn state(&self) -> BreakerState {
        self.now.state
    }

    /// Whether a probe that is out no longer counts as what it was.
    fn was_it_judged_right(
        &mut self,
        old: &BreakerLedger,
        rule: &CircuitBreakerRule,
    ) -> Result<(), Broken> {
        let new = &self.now;
        let ended = old.out.iter().filter(|probe| !new.out.contains(probe));
        let judged: Vec<_> = self
            .judged
            .iter()
            .filter(|(probe, _)| ended.clone().any(|ended| ended == probe))
            .collect();
        // How long a request took by its worker's clock is not seen from here.
        let about_time = matches!(rule.strategy, BreakerStrategy::SlowRequestRatio { .. });
        let is_good = new.good > old.good || new.state == BreakerState::Closed;
        match judged.as_slice() {
            [(_, failed)] if !about_time && *failed == is_good => {
                let (ended, judged) =
                    if *failed { ("failed", "good") } else { ("ended well", "bad") };
                Err(format!("a probe that {ended} is judged as {judged}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the completions of its window, and a little more, can have opened it.
    fn was_it_bad(&self, rule: &CircuitBreakerRule, context: &Context<'_>) -> Result<(), Broken> {
        const LATE: Span = Span::from_millis(3_000);
        let window = Span::from_millis(u64::from(rule.stat_interval_ms) + LATE.as_millis());
        // What was admitted before it closed is of an older epoch.
        let counts =
            |ended: &&Ended| context.now.since(ended.at) <= window && ended.began >= self.closed_at;
        let counted: Vec<&Ended> = context.ended.iter().rev().filter(counts).collect();
        let (all, failed) = (counted.len(), counted.iter().filter(|ended| ended.failed).count());
        let enough = all as u64 >= rule.min_request_amount;
        let bad = match rule.strategy {
            // How long a request took by its worker's clock is not seen from here.
            BreakerStrategy::SlowRequestRatio { .. } => true,
            BreakerStrategy::ErrorRatio(ratio) => ratio == 0.0 || failed > 0,
            BreakerStrategy::ErrorCount(count) => failed as u64 >= count,
        };
        if enough && bad {
            return Ok(());
        }
        Err(format!("it opens after {failed} errors among {all} requests"))
    }
}
