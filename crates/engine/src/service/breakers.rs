//! Closed → Open.
//!
//! Workers count the completions of each breaker, the service adds them up in one window for all of them, and
//! opens a breaker by compare-and-set on its ledger. All other transitions are the workers' (`core::ledger::breaker`):
//! the service only looks, at each tick while a breaker is not closed, and says to all what it has seen.
//!
//! A completion counts in the epoch in which its request was admitted, and for no other: so nothing that was under
//! way when a breaker opened can open it again once it is closed.

use alloc::vec::Vec;
use core::{cmp::Ordering, mem::discriminant};

use hashbrown::HashTable;
use sentinel_core::{
    ledger::{
        Ledger, Stamp,
        breaker::{BreakerLedger, BreakerState},
    },
    order::order_of,
    rule::{BreakerStrategy, CircuitBreakerRule, Rule},
    stat::same_ratio,
    time::{Nanos, Span},
};
use sentinel_wire::{
    DecodeError,
    frame::BreakerCounts,
    key::Key,
    ledger::{self, Value},
    rules::RuleEntry,
};

use super::{Means, fold::YOUNG};
use crate::{
    host::{Host, Meter},
    rule_state::terms_of,
    rulebook::spread,
    shared::Then,
    telemetry::Total,
};

/// All breakers.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// In ascending order of generations.
    breakers: Vec<Breaker>,
    /// Where each generation stands in there.
    places: HashTable<(u64, usize)>,
    /// Generations of those whose ledgers are read again at the next tick: the ones that are not closed, or that
    /// nobody could read.
    watched: Vec<u64>,
    opened: u64,
    opened_total: Total,
}

#[derive(Debug)]
struct Breaker {
    generation: u64,
    slot: u32,
    rule: Rule,
    /// What the ledger said last.
    epoch: u64,
    state: BreakerState,
    /// Whether the ledger has ever been read.
    is_read: bool,
    is_watched: bool,
    looked_at: Nanos,
    window: Window,
}

/// Completions, and the bad ones among them, by slices of time.
///
/// Only slices in which something has ended are there: a window has up to ten thousand, and there may be ten thousand
/// breakers.
#[derive(Debug, Default)]
struct Window {
    slice_ns: u64,
    slices: u64,
    /// In ascending order of time.
    counts: Vec<Slice>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slice {
    at: u64,
    complete: u64,
    bad: u64,
}

/// The most ledgers that one tick reads.
const READS_MAX: usize = 256;

/// With how many breakers of its resource that are gone a new one is compared.
const CANDIDATES_MAX: usize = 100;

impl Breakers {
    /// Takes up the breakers of a set, in ascending order of generations. One that has not changed goes on as it is; one that has begins closed, with
    /// what an old one has counted if both count the same (semantics 1.12).
    pub(super) fn take_up<H: Host + Meter>(
        &mut self,
        entries: Vec<RuleEntry>,
        means: &mut Means<'_, H>,
    ) {
        let mut old = core::mem::take(&mut self.breakers).into_iter().peekable();
        let mut gone: Vec<Breaker> = Vec::new();
        let mut fresh: Vec<usize> = Vec::new();
        for entry in entries {
            while let Some(other) = old.next_if(|old| old.generation < entry.generation) {
                gone.push(other);
            }
            let same = old.next_if(|old| old.generation == entry.generation);
            if same.is_none() {
                fresh.push(self.breakers.len());
            }
            self.breakers.push(Breaker::new(entry, same));
        }
        gone.extend(old);
        self.places.clear();
        for (place, breaker) in self.breakers.iter().enumerate() {
            let key = |(generation, _): &(u64, usize)| spread(*generation);
            let generation = breaker.generation;
            self.places.insert_unique(spread(generation), (generation, place), key);
        }
        self.hand_over(gone, &fresh);
        self.watched.clear();
        for index in 0..self.breakers.len() {
            let Some(breaker) = self.breakers.get_mut(index) else { continue };
            breaker.is_watched = false;
            if breaker.is_read {
                self.show(index, means);
            } else {
                self.look(index, false, means);
            }
        }
    }

    /// Goes by nothing that it knows of any ledger: another service may have been here.
    pub(super) fn doubt(&mut self) {
        for breaker in &mut self.breakers {
            breaker.is_read = false;
        }
    }

    /// Gives what breakers that are `gone` have counted to `fresh` ones that count the same.
    fn hand_over(&mut self, mut gone: Vec<Breaker>, fresh: &[usize]) {
        let mut left = order_of(gone.len(), &|a, b| match (gone.get(a), gone.get(b)) {
            (Some(a), Some(b)) => a.rule.resource().cmp(b.rule.resource()),
            (None, _) | (_, None) => Ordering::Equal,
        });
        for &index in fresh {
            let Some(breaker) = self.breakers.get_mut(index) else { continue };
            let old = |index: &usize| gone.get(*index).map(|gone| &gone.rule);
            let resource = Some(breaker.rule.resource());
            let first = left.partition_point(|index| old(index).map(Rule::resource) < resource);
            let candidates = left.iter().enumerate().skip(first).take(CANDIDATES_MAX);
            let same = candidates
                .take_while(|(_, index)| old(index).map(Rule::resource) == resource)
                .filter(|(_, index)| old(index).is_some_and(|old| share_window(old, &breaker.rule)))
                .min_by_key(|(_, index)| old(index).map(Rule::id) != Some(breaker.rule.id()))
                .map(|(at, _)| at);
            if let Some(at) = same
                && let Some(old) = gone.get_mut(left.remove(at))
            {
                breaker.window = core::mem::take(&mut old.window);
            }
        }
    }

    /// Whether there is a breaker of this generation.
    pub(super) fn knows(&self, generation: u64) -> bool {
        self.find(generation).is_some()
    }

    /// Whether any breaker's ledger is to be looked at at the next tick.
    pub(super) fn are_busy(&self) -> bool {
        !self.watched.is_empty()
    }

    /// What workers have moved in the ledgers since the last tick.
    pub(super) fn look_again<H: Host + Meter>(&mut self, means: &mut Means<'_, H>) {
        let due = self.watched.len().min(READS_MAX);
        let due: Vec<u64> = self.watched.drain(..due).collect();
        for generation in due {
            let Some(index) = self.find(generation) else { continue };
            if let Some(breaker) = self.breakers.get_mut(index) {
                breaker.is_watched = false;
            }
            self.look(index, false, means);
        }
    }

    /// Counts what a frame has said, as of when it was made, and opens whatever has had enough.
    pub(super) fn count<H: Host + Meter>(
        &mut self,
        at: Nanos,
        new: &BreakerCounts,
        means: &mut Means<'_, H>,
    ) {
        let Some(index) = self.find(new.generation) else { return };
        let of = |breakers: &Self| {
            breakers.breakers.get(index).map(|breaker| (breaker.epoch, breaker.looked_at))
        };
        // Workers may have closed it since this service has looked, or this service not have looked.
        if of(self).is_some_and(|(epoch, looked_at)| epoch != new.epoch && looked_at != means.now) {
            self.look(index, false, means);
        }
        let Some(breaker) = self.breakers.get_mut(index) else { return };
        if breaker.epoch != new.epoch || breaker.state != BreakerState::Closed {
            return;
        }
        if breaker.count(at, new) {
            self.look(index, true, means);
        }
    }

    /// The state of the breaker with this id, by its ledger.
    pub(super) fn state_of<H: Host + Meter>(
        &mut self,
        id: &str,
        means: &mut Means<'_, H>,
    ) -> Option<BreakerState> {
        let index = self.breakers.iter().position(|breaker| breaker.rule.id() == id)?;
        self.look(index, false, means);
        self.breakers.get(index).filter(|breaker| breaker.is_read).map(|breaker| breaker.state)
    }

    /// Counts in Envoy's statistics how often a breaker has opened.
    pub(super) fn report<M: Meter>(&mut self, meter: &mut M) {
        self.opened_total.report(meter, self.opened, |text| text.push_str("breaker_opened_total"));
    }

    /// Reads a ledger, opens the breaker if it `trips`, and takes in what holds then.
    fn look<H: Host + Meter>(&mut self, index: usize, trips: bool, means: &mut Means<'_, H>) {
        let Some(breaker) = self.breakers.get_mut(index) else { return };
        let Rule::CircuitBreaker(rule) = &breaker.rule else { return };
        let (now, epoch, terms) = (means.now, breaker.epoch, terms_of(rule));
        let version = means.publication.version();
        let stamp = Stamp { generation: breaker.generation, version, threshold: 0.0 };
        let key = Key::Ledger(breaker.slot);
        let found = means.shared.update(means.host, key, |found, written| {
            let (found, mut ledger) = match found.map(ledger::decode) {
                Some(Ok((found, Value::Single(Ledger::Breaker(ledger))))) => (Some(found), ledger),
                // Of a rule of another kind, whose slot this has become.
                Some(Ok((found, _))) => (Some(found), BreakerLedger::default()),
                Some(Err(DecodeError::Newer { .. })) => return (Then::Keep, None),
                Some(Err(DecodeError::Malformed)) | None => (None, BreakerLedger::default()),
            };
            // The slot belongs to a rule that this service does not know.
            let Some(meeting) = stamp.meet(found) else { return (Then::Keep, None) };
            if meeting.anew {
                ledger = BreakerLedger::default();
            }
            let has_tripped = trips && ledger.trip(epoch, now, &terms);
            let seen = (ledger.epoch, ledger.state, has_tripped);
            if has_tripped {
                ledger::encode(&meeting.stamp, &Value::Single(Ledger::Breaker(ledger)), written);
            }
            (if has_tripped { Then::Write } else { Then::Keep }, Some(seen))
        });
        breaker.looked_at = now;
        if let Ok(Some((epoch, state, has_tripped))) = found.map(|updated| updated.result) {
            let was_read = core::mem::replace(&mut breaker.is_read, true);
            let was = core::mem::replace(&mut breaker.state, state);
            if breaker.epoch != epoch {
                breaker.epoch = epoch;
                if state == BreakerState::Closed {
                    breaker.window.counts.clear();
                }
            }
            if was != state && was_read {
                log::info!("breaker {}: {} → {}", breaker.rule.id(), was.name(), state.name());
            }
            self.opened = self.opened.saturating_add(u64::from(has_tripped));
        }
        self.show(index, means);
    }

    /// Says to all what is known of a breaker.
    fn show<H: Host + Meter>(&mut self, index: usize, means: &mut Means<'_, H>) {
        let Some(breaker) = self.breakers.get_mut(index) else { return };
        let is_open = breaker.state != BreakerState::Closed;
        // Also of one that is closed again: a worker that has slept over it all would count in the first epoch,
        // and nobody would hear it.
        means.standing.set(breaker.generation, (breaker.epoch != 0).then_some(breaker.epoch));
        means.publication.show(means.host, &breaker.rule, breaker.state.gauge());
        if (is_open || !breaker.is_read) && !breaker.is_watched {
            breaker.is_watched = true;
            self.watched.push(breaker.generation);
        }
    }

    fn find(&self, generation: u64) -> Option<usize> {
        let is_it = |(known, _): &(u64, usize)| *known == generation;
        self.places.find(spread(generation), is_it).map(|(_, place)| *place)
    }
}

impl Breaker {
    /// What a published entry means, and what is known of it already.
    fn new(entry: RuleEntry, same: Option<Self>) -> Self {
        let RuleEntry { generation, slot, rule, .. } = entry;
        if let Some(same) = same {
            return Self { slot, rule, ..same };
        }
        let window = match &rule {
            Rule::CircuitBreaker(rule) => Window::new(rule),
            Rule::Authority(_)
            | Rule::System(_)
            | Rule::Gateway(_)
            | Rule::Flow(_)
            | Rule::Isolation(_)
            | Rule::Hotspot(_) => Window::default(),
        };
        Self {
            generation,
            slot,
            rule,
            epoch: 0,
            state: BreakerState::Closed,
            is_read: false,
            is_watched: false,
            looked_at: Nanos::default(),
            window,
        }
    }

    /// Counts, and says whether that was too much: in the window that ended then, or in the newest one.
    fn count(&mut self, at: Nanos, new: &BreakerCounts) -> bool {
        let Rule::CircuitBreaker(rule) = &self.rule else { return false };
        let at = self.window.add(at, new.complete, new.bad);
        let newest = self.window.newest();
        let is_too_much = |end| {
            let sum = self.window.sum(end);
            is_too_bad(rule, sum.complete, sum.bad)
        };
        is_too_much(at) || (newest != at && is_too_much(newest))
    }
}

impl Window {
    fn new(rule: &CircuitBreakerRule) -> Self {
        let slices = u64::from(rule.buckets.max(1));
        let window = Span::from_millis(u64::from(rule.stat_interval_ms));
        Self { slice_ns: (window.get() / slices).max(1), slices, counts: Vec::new() }
    }

    /// Counts in the slice of `at`, and says which that is. Slices stay for as long as a frame may be late.
    fn add(&mut self, at: Nanos, complete: u64, bad: u64) -> u64 {
        let slice = at.get() / self.slice_ns;
        let after = self.counts.iter().rposition(|known| known.at <= slice).map_or(0, |at| at + 1);
        let before = after.checked_sub(1).and_then(|at| self.counts.get_mut(at));
        if let Some(known) = before.filter(|known| known.at == slice) {
            known.complete = known.complete.saturating_add(complete);
            known.bad = known.bad.saturating_add(bad);
        } else {
            self.counts.insert(after, Slice { at: slice, complete, bad });
            let late = YOUNG.get().div_ceil(self.slice_ns);
            let stays = self.slices.saturating_add(late);
            let newest = self.newest();
            self.counts.retain(|known| newest.saturating_sub(known.at) < stays);
        }
        slice
    }

    /// All that the window counts which ends with the slice `end`.
    fn sum(&self, end: u64) -> Slice {
        let mut sum = Slice { at: end, ..Slice::default() };
        for slice in self.counts.iter().rev() {
            if slice.at > end {
                continue;
            }
            if end - slice.at >= self.slices {
                break;
            }
            sum.complete = sum.complete.saturating_add(slice.complete);
            sum.bad = sum.bad.saturating_add(slice.bad);
        }
        sum
    }

    fn newest(&self) -> u64 {
        self.counts.last().map_or(0, |slice| slice.at)
    }
}

/// Whether so many completions, and so many bad ones among them, open a breaker. A ratio that is as good as the
/// threshold does (semantics 2.7).
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn is_too_bad(rule: &CircuitBreakerRule, complete: u64, bad: u64) -> bool {
    if complete == 0 || complete < rule.min_request_amount {
        return false;
    }
    match rule.strategy {
        BreakerStrategy::ErrorCount(count) => bad >= count,
        BreakerStrategy::ErrorRatio(threshold)
        | BreakerStrategy::SlowRequestRatio { ratio: threshold, .. } => {
            let ratio = bad as f64 / complete as f64;
            ratio > threshold || same_ratio(ratio, threshold)
        }
    }
}

/// Whether a breaker that replaces another may go on with its window.
fn share_window(old: &Rule, new: &Rule) -> bool {
    match (old, new) {
        (Rule::CircuitBreaker(old), Rule::CircuitBreaker(new)) => {
            old.target == new.target
                && discriminant(&old.strategy) == discriminant(&new.strategy)
                && old.stat_interval_ms == new.stat_interval_ms
                && old.buckets == new.buckets
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use proptest::prelude::*;
    use sentinel_core::rule::{Common, Target};

    use super::*;

    fn rule(strategy: BreakerStrategy, stat_interval_ms: u32, buckets: u32) -> CircuitBreakerRule {
        CircuitBreakerRule {
            id: "cb".to_string(),
            target: Target::Resource("r".to_string()),
            strategy,
            retry_timeout_ms: 1,
            min_request_amount: 0,
            stat_interval_ms,
            buckets,
            probe_num: 1,
            error_statuses: None,
            grpc_error_statuses: None,
            close_live_connections: false,
            common: Common::default(),
        }
    }

    #[test]
    fn a_ratio_that_is_reached_opens() {
        let slow = BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms: 50, ratio: 0.8 };
        assert!(is_too_bad(&rule(slow, 1_000, 1), 15, 12));
        assert!(!is_too_bad(&rule(slow, 1_000, 1), 15, 11));
        let all = BreakerStrategy::ErrorRatio(1.0);
        assert!(is_too_bad(&rule(all, 1_000, 1), 3, 3));
        assert!(!is_too_bad(&rule(all, 1_000, 1), 3, 2));
        let third = BreakerStrategy::ErrorRatio(1.0 / 3.0 + 5e-9);
        assert!(is_too_bad(&rule(third, 1_000, 1), 3, 1), "as good as the threshold");
    }

    #[test]
    fn too_few_completions_open_nothing() {
        let few = CircuitBreakerRule {
            min_request_amount: 10,
            ..rule(BreakerStrategy::ErrorCount(1), 1_000, 1)
        };
        assert!(!is_too_bad(&few, 9, 9));
        assert!(is_too_bad(&few, 10, 1));
    }

    proptest! {
        #[test]
        fn a_window_sums_what_a_list_of_all_counts_says_and_keeps_no_more_than_it_must(
            buckets in 1u32..12,
            steps in prop::collection::vec((0u64..900, 0u64..300, 1u64..5), 1..80),
        ) {
            let mut window = Window::new(&rule(BreakerStrategy::ErrorCount(1), 1_000 * buckets, buckets));
            let mut list: Vec<(u64, u64)> = vec![];
            let mut now = 10_000;
            for (advance, late, complete) in steps {
                now += advance;
                let at = now - late;
                window.add(Nanos::from_millis(at), complete, 0);
                list.push((at / 1_000, complete));
                let end = now / 1_000;
                let counts = |slice: &u64| *slice <= end && end - slice < u64::from(buckets);
                let by_hand: u64 =
                    list.iter().filter(|(slice, _)| counts(slice)).map(|(_, complete)| complete).sum();
                prop_assert_eq!(window.sum(end).complete, by_hand);
                // Two seconds late, and one that is ahead of the rest.
                prop_assert!(window.counts.len() <= usize::try_from(buckets + 3).unwrap_or(0));
            }
        }
    }
}
