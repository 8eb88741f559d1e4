//! What the service decides, and what it decides by: completions for breakers one way, decisions the other.

use alloc::rc::Rc;

use sentinel_core::{
    ledger::breaker::BreakerState,
    rule::Rule,
    time::{Nanos, Span},
};
use sentinel_wire::{decisions::Decisions, key::Key};

use super::{FRAME_PAUSE, Worker, call::Outcome};
use crate::{
    admission::Claims,
    host::{Host, Meter, Signal},
    rule_state::{Hold, is_bad, slice_of},
};

impl Worker {
    /// Counts a completion for the breakers of its resource. `true` if one of them saw something bad.
    pub(super) fn count_for_breakers<H: Host + Meter>(
        &mut self,
        host: &mut H,
        (start, now): (Nanos, Nanos),
        node: u32,
        probes: &[u64],
        rt_ms: u64,
        outcome: Outcome,
    ) -> bool {
        let breakers = self.nodes.breakers_of(node);
        if breakers.is_empty() {
            return false;
        }
        // What was counted in an earlier slice goes with a frame of its own.
        let ends_slice = breakers.iter().any(|&index| {
            self.book.rule(index).is_some_and(|state| match (&state.hold, &*state.rule) {
                (Hold::Breaker(view), Rule::CircuitBreaker(rule)) => {
                    view.complete > view.sent && view.slice != slice_of(rule).bucket_at(now)
                }
                _ => false,
            })
        });
        if ends_slice && now.since(self.frame_at) >= FRAME_PAUSE && !self.service.silent {
            self.send_frame(host, now, true);
        }
        let mut is_urgent = false;
        for &index in breakers.iter() {
            let Some(state) = self.book.rule_mut(index) else { continue };
            let rule = Rc::clone(&state.rule);
            let generation = state.stamp.generation;
            let (Rule::CircuitBreaker(breaker), Hold::Breaker(view)) = (&*rule, &mut state.hold)
            else {
                continue;
            };
            let is_closed = view.state == BreakerState::Closed;
            if !is_closed || start < view.since || probes.contains(&generation) {
                continue;
            }
            let bad = is_bad(breaker, rt_ms, outcome);
            view.complete = view.complete.saturating_add(1);
            view.bad = view.bad.saturating_add(u64::from(bad));
            view.slice = slice_of(breaker).bucket_at(now);
            is_urgent |= bad;
        }
        is_urgent
    }

    /// Looks whether the service has decided something, at most once in each refresh interval.
    pub(super) fn look_at_decisions<H: Host>(&mut self, host: &mut H, now: Nanos) {
        if self.book.decided.is_empty() || now < self.decided_at {
            return;
        }
        self.decided_at = now + Span::from_millis(u64::from(self.book.settings.refresh_ms));
        let level = host.level(Signal::Decided);
        if level != self.decided {
            self.load_decisions(host, now, level);
        }
    }

    /// Takes in what the service has decided. A rule that is not named is as it would be without the service.
    pub(super) fn load_decisions<H: Host>(&mut self, host: &mut H, now: Nanos, level: u64) {
        let decisions = match self.shared.read(host, Key::Decisions) {
            Ok(Some(bytes)) => match Decisions::decode(bytes) {
                Ok(decisions) => decisions,
                Err(error) => {
                    log::error!("the service's decisions cannot be read: {error}");
                    self.decided = level;
                    return;
                }
            },
            Ok(None) => Decisions::default(),
            // The signal still differs: asked again at the next look.
            Err(_) => return,
        };
        self.decided = level;
        let claimant = self.claimant();
        let Self { shared, values, tally, book, .. } = self;
        for at in 0..book.decided.len() {
            let Some(state) = book.decided.get(at).copied().and_then(|index| book.rule_mut(index))
            else {
                continue;
            };
            let generation = state.stamp.generation;
            let place =
                decisions.decisions.binary_search_by(|known| known.generation.cmp(&generation));
            let decision = place.ok().and_then(|place| decisions.decisions.get(place));
            let decision = decision.map(|decision| decision.value);
            let Hold::Breaker(view) = &state.hold else {
                state.decide(decision);
                continue;
            };
            let is_closed = view.state == BreakerState::Closed;
            let is_news = match decision {
                Some(epoch) => view.epoch != epoch,
                None => !is_closed,
            };
            if is_news {
                let mut claims = Claims::new(host, shared, values, tally, now, claimant);
                claims.change_breaker(state, &mut |_| false);
            }
        }
    }
}
