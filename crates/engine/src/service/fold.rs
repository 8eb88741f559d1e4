//! Frames folded into global windows.
//!
//! Each worker's totals are kept as a baseline; what a frame adds to it is what happened since. Only a
//! frame that directly follows the last one, and is young, counts in windows: a backlog of seconds that
//! arrives at once must not look like a burst. Every other frame moves the baseline and nothing else.

use alloc::{boxed::Box, string::String, vec, vec::Vec};

use sentinel_core::{
    order::sort_by,
    rule::INBOUND,
    stat::{LeapArray, MetricBucket, RT_CLASSES, RtHistogram, Tally as _},
    system::Inbound,
    time::{Nanos, Span},
    window::{BUCKETS_MAX, WindowShape},
};
use sentinel_wire::{
    frame::{BreakerCounts, CounterFrame, FrameEntry},
    service::{ACKS_MAX, Ack},
};

use crate::{
    host::Meter,
    table::Table,
    telemetry::{Metric, of_resource},
};

/// A frame that is older counts in no window.
pub(super) const YOUNG: Span = Span::from_millis(2_000);

/// Gauges show the average of the last five seconds: workers send once a second, so that a
/// shorter window would flicker.
const GAUGE_SLICES: u64 = 10;
const GAUGE_SECONDS: u64 = 5;

/// The gauges of a resource, and those of all of them together.
const GAUGES: [&str; 6] =
    ["in_flight", "pass_qps", "block_qps", "rt_avg_ms", "rt_p50_ms", "rt_p99_ms"];

/// The slice that most windows are made of.
const HALF_SECOND: Span = Span::from_millis(500);

/// Everything that the frames have said.
#[derive(Debug, Default)]
pub(super) struct Fold {
    workers: Table<u64, Source>,
    /// Boxed, as all that stands in large tables: a look-up reads keys that stand side by side, and only then what it is after.
    resources: Table<u64, Box<Resource>>,
    /// Windows that rules ask for and that are not made of half seconds: of a resource, of this length; in
    /// order.
    odd_windows: Vec<(u64, Span)>,
    /// Frames that never arrived, or could not be read.
    pub(super) frames_lost: u64,
    /// The proxy's.
    gauges: [Metric; GAUGES.len()],
    waiting: Metric,
    permits_owed: Metric,
}

/// What gauges are made of.
#[derive(Default)]
struct Recent {
    in_flight: u64,
    last: MetricBucket,
    minute: MetricBucket,
    rt: RtHistogram,
}

impl Recent {
    fn add(&mut self, other: &Self) {
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.last.add(&other.last);
        self.minute.add(&other.minute);
        self.rt.add(&other.rt);
    }

    /// In the order of [`GAUGES`].
    fn values(&self) -> [u64; GAUGES.len()] {
        [
            self.in_flight,
            self.last.pass / GAUGE_SECONDS,
            self.last.block / GAUGE_SECONDS,
            self.minute.rt_avg_ms(),
            self.rt.quantile_ms(50),
            self.rt.quantile_ms(99),
        ]
    }
}

/// What frames say to breakers.
pub(super) struct BreakerNews<'a> {
    /// Whether there is a breaker of this generation: nobody else is listened to.
    pub(super) is_known: &'a dyn Fn(u64) -> bool,
    /// What is new, of the time at which its frame was made.
    pub(super) news: Vec<(Nanos, BreakerCounts)>,
}

/// One worker, as its frames tell.
#[derive(Debug, Default)]
struct Source {
    sequence: u64,
    /// Whether this service has heard it from its first frame on: only then is what it says for the first time
    /// also new, and not said again because this service is.
    is_whole: bool,
    heard_at: Nanos,
    waiting: u32,
    permits_owed: u64,
    baselines: Table<u64, Baseline>,
    /// By generation.
    breakers: Table<u64, BreakerCounts>,
}

/// What one worker has said of one resource.
#[derive(Debug)]
struct Baseline {
    in_flight: u64,
    said: Box<Said>,
}

/// Totals.
#[derive(Debug)]
struct Said {
    totals: MetricBucket,
    histogram: [u64; RT_CLASSES],
}

/// One resource, over all workers.
#[derive(Debug)]
struct Resource {
    name: String,
    /// 10 s in slices of 500 ms, and one more: a warm-up looks one slice back.
    seconds: LeapArray<MetricBucket>,
    /// 60 s in slices of 1 s.
    minute: LeapArray<MetricBucket>,
    /// Response times of 10 s in slices of 1 s.
    rt: LeapArray<RtHistogram>,
    /// Windows of odd lengths, each one slice and the one before.
    odd: Vec<(Span, LeapArray<MetricBucket>)>,
    gauges: [Metric; GAUGES.len()],
}

impl Fold {
    /// Folds one frame. At most `resources_max` resources have windows: what is over is acknowledged and
    /// not counted here; its totals are in Envoy's counters all the same.
    pub(super) fn fold(
        &mut self,
        now: Nanos,
        frame: CounterFrame,
        resources_max: usize,
        breakers: &mut BreakerNews<'_>,
    ) {
        let known = self.workers.get(&frame.incarnation).is_some();
        if !known && self.workers.len() >= ACKS_MAX {
            self.forget_longest_silent();
        }
        let Some(source) = self.workers.get_or_insert_with(frame.incarnation, Source::default)
        else {
            return;
        };
        source.heard_at = now;
        if !known {
            source.is_whole = frame.sequence == 1;
        }
        if frame.sequence <= source.sequence {
            return;
        }
        let missing = frame.sequence - source.sequence - 1;
        // Of a worker that this service has never heard, earlier frames went to the service before it.
        let lost = if known { missing } else { 0 };
        self.frames_lost = self.frames_lost.saturating_add(lost);
        source.sequence = frame.sequence;
        source.waiting = frame.waiting;
        source.permits_owed = frame.permits_owed;

        let at = Nanos::new(frame.at_ns);
        let counts_in_windows = missing == 0 && now.since(at) <= YOUNG;
        for mut entry in frame.entries {
            let counted = source.advance(&mut entry);
            for counts in &entry.breakers {
                if let Some(new) = source.advance_breaker(counts, breakers.is_known)
                    && counts_in_windows
                {
                    breakers.news.push((at, new));
                }
            }
            // A name comes with every entry until this service has acknowledged one.
            let is_new = self.resources.get(&entry.resource).is_none();
            if is_new && (entry.name.is_none() || self.resources.len() >= resources_max) {
                continue;
            }
            let name = entry.name.unwrap_or_default();
            let odd = &self.odd_windows;
            let new = || Box::new(Resource::new(name, entry.resource, odd));
            let resource = self.resources.get_or_insert_with(entry.resource, new);
            if let Some(resource) = resource.filter(|_| counts_in_windows) {
                resource.seconds.add(at, &counted);
                resource.minute.add(at, &counted);
                if let Some(distributed) = resource.rt.bucket_of(at) {
                    for &(class, count) in &entry.histogram {
                        distributed.add_class(class, count);
                    }
                }
                for (_, window) in &mut resource.odd {
                    window.add(at, &counted);
                }
            }
        }
    }

    /// The newest folded frame of each worker.
    pub(super) fn acks(&self) -> Vec<Ack> {
        let ack = |(incarnation, source): &(u64, Source)| Ack {
            incarnation: *incarnation,
            sequence: source.sequence,
        };
        self.workers.iter().map(ack).collect()
    }

    /// Forgets all workers: another service has heard them since.
    pub(super) fn forget_workers(&mut self) {
        self.workers = Table::default();
    }

    /// Forgets workers that have said nothing for `silence`, and what they had in flight: they are gone. A
    /// live one sends a frame at least every 30 s, also when it has counted nothing.
    pub(super) fn forget_silent(&mut self, now: Nanos, silence: Span) {
        self.workers.retain(|source| now.since(source.heard_at) <= silence);
    }

    /// Forgets what workers have said of breakers that are gone.
    pub(super) fn forget_breakers(&mut self, is_known: &dyn Fn(u64) -> bool) {
        for (_, source) in self.workers.iter_mut() {
            source.breakers.retain_keys(|generation| is_known(*generation));
        }
    }

    /// Keeps the windows of rules that read one of another resource, by the resource's hash and the rule's
    /// window, and no others.
    pub(super) fn keep_windows(&mut self, asked: impl Iterator<Item = (u64, WindowShape)>) {
        let odd = asked.filter(|(_, shape)| shape.bucket() != HALF_SECOND);
        self.odd_windows = odd.map(|(resource, shape)| (resource, shape.bucket())).collect();
        sort_by(&mut self.odd_windows, Ord::cmp);
        for (hash, resource) in self.resources.iter_mut() {
            resource.keep_odd(*hash, &self.odd_windows);
        }
    }

    /// How many requests of a resource passed in the window of this shape, and how many a second passed in the one
    /// a slice earlier; `None` if nobody has seen the resource yet.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(super) fn passed(
        &self,
        now: Nanos,
        resource: u64,
        shape: WindowShape,
    ) -> Option<(u64, f64)> {
        let resource = self.resources.get(&resource)?;
        let odd = resource.odd.iter().find(|(slice, _)| *slice == shape.bucket());
        let counts = odd.map_or(&resource.seconds, |(_, counts)| counts);
        let sum = |now| counts.sum(now, u64::from(shape.buckets())).pass;
        let previous = sum(now - shape.bucket()) as f64 * 1e9 / shape.window().get() as f64;
        Some((sum(now), previous))
    }

    /// What is known of the resource that counts all that is inbound, but for the CPU.
    pub(super) fn inbound(&self, now: Nanos, resource: u64) -> Inbound {
        let Some(counts) = self.resources.get(&resource).map(|resource| &resource.seconds) else {
            return Inbound::default();
        };
        let best = counts.slices(now, SECOND_SLICES).map(|slice| slice.complete).max();
        Inbound {
            second: counts.sum(now, SECOND_SLICES),
            complete_max_per_second: best.unwrap_or(0).saturating_mul(SECOND_SLICES),
            in_flight: self.in_flight(resource),
            cpu: None,
        }
    }

    /// What all workers have counted for a resource in the last `window`, up to 10 s.
    pub(super) fn window(&self, now: Nanos, resource: u64, window: Span) -> MetricBucket {
        let slices = window.as_millis().div_ceil(500);
        self.resources
            .get(&resource)
            .map(|resource| resource.seconds.sum(now, slices))
            .unwrap_or_default()
    }

    /// Requests of a resource that are open in all workers.
    pub(super) fn in_flight(&self, resource: u64) -> u64 {
        let of = |(_, source): &(u64, Source)| {
            source.baselines.get(&resource).map_or(0, |baseline| baseline.in_flight)
        };
        self.workers.iter().map(of).sum()
    }

    /// Shows in Envoy's gauges the windows, and what live workers, those heard of in the last `live`, hold.
    pub(super) fn set_gauges<M: Meter>(&mut self, meter: &mut M, now: Nanos, live: Span) {
        let in_flight = self.all_in_flight();
        let workers = &self.workers;
        let mut all = Recent::default();
        for ((_, resource), in_flight) in self.resources.iter_mut().zip(in_flight) {
            let recent = Recent {
                in_flight,
                last: resource.seconds.sum(now, GAUGE_SLICES),
                minute: resource.minute.sum(now, 60),
                rt: resource.rt.sum(now, GAUGE_SECONDS),
            };
            let name = &resource.name;
            for ((gauge, value), what) in
                resource.gauges.iter_mut().zip(recent.values()).zip(GAUGES)
            {
                gauge.set(meter, value, |text| of_resource(name, what, text));
            }
            // That one repeats what counts for others.
            if name != INBOUND {
                all.add(&recent);
            }
        }
        for ((gauge, value), what) in self.gauges.iter_mut().zip(all.values()).zip(GAUGES) {
            gauge.set(meter, value, |text| text.push_str(what));
        }
        let (mut waiting, mut owed) = (0_u64, 0_u64);
        for (_, source) in workers.iter().filter(|(_, source)| now.since(source.heard_at) <= live) {
            waiting = waiting.saturating_add(u64::from(source.waiting));
            owed = owed.saturating_add(source.permits_owed);
        }
        for (gauge, value, what) in [
            (&mut self.waiting, waiting, "waiting"),
            (&mut self.permits_owed, owed, "permits_owed"),
        ] {
            gauge.set(meter, value, |text| text.push_str(what));
        }
    }

    /// Open requests of each resource, in the order of the resources: side by side with each worker's, which stand in the
    /// same order. (64 workers with 1,000 resources each were 64,000 look-ups.)
    fn all_in_flight(&self) -> Vec<u64> {
        let mut sums = vec![0_u64; self.resources.len()];
        for (_, source) in self.workers.iter() {
            let mut baselines = source.baselines.iter().peekable();
            for ((hash, _), sum) in self.resources.iter().zip(&mut sums) {
                while baselines.next_if(|(known, _)| known < hash).is_some() {}
                if let Some((_, baseline)) = baselines.next_if(|(known, _)| known == hash) {
                    *sum = sum.saturating_add(baseline.in_flight);
                }
            }
        }
        sums
    }

    fn forget_longest_silent(&mut self) {
        let longest = self
            .workers
            .iter()
            .min_by_key(|(_, source)| source.heard_at)
            .map(|(worker, _)| *worker);
        if let Some(incarnation) = longest {
            self.workers.remove(&incarnation);
        }
    }
}

impl Source {
    /// Moves the baseline of one resource, and says what it moved by: the histogram in place of the entry's totals. A worker
    /// whose totals have gone back has forgotten the resource in between and begun anew: then all of it is new.
    fn advance(&mut self, entry: &mut FrameEntry) -> MetricBucket {
        let totals = entry.totals();
        let is_said_again = !self.is_whole && self.baselines.get(&entry.resource).is_none();
        let Some(baseline) = self.baselines.get_or_insert_with(entry.resource, Baseline::new)
        else {
            return MetricBucket::default();
        };
        baseline.in_flight = entry.in_flight;
        let said = &mut *baseline.said;
        if totals.pass < said.totals.pass || totals.block < said.totals.block {
            *said = Said::default();
        }
        let old = core::mem::replace(&mut said.totals, totals);
        for (class, count) in &mut entry.histogram {
            if let Some(old) = said.histogram.get_mut(usize::from(*class)) {
                let total = core::mem::replace(old, *count);
                *count = count.saturating_sub(total);
            }
        }
        if is_said_again {
            entry.histogram.clear();
            return MetricBucket::default();
        }
        MetricBucket {
            pass: totals.pass.saturating_sub(old.pass),
            block: totals.block.saturating_sub(old.block),
            complete: totals.complete.saturating_sub(old.complete),
            error: totals.error.saturating_sub(old.error),
            rt_ms: totals.rt_ms.saturating_sub(old.rt_ms),
            // Not a total.
            rt_min: totals.rt_min,
        }
    }

    /// Moves the baseline of one breaker, and says what it moved by. Totals begin anew with each epoch, and
    /// where a worker has forgotten the rule in between.
    fn advance_breaker(
        &mut self,
        counts: &BreakerCounts,
        is_known: &dyn Fn(u64) -> bool,
    ) -> Option<BreakerCounts> {
        if !is_known(counts.generation) {
            return None;
        }
        let is_said_again = !self.is_whole && self.breakers.get(&counts.generation).is_none();
        let baseline = self.breakers.get_or_insert_with(counts.generation, || none_of(counts))?;
        if baseline.epoch != counts.epoch || baseline.complete > counts.complete {
            *baseline = none_of(counts);
        }
        let old = core::mem::replace(baseline, *counts);
        let complete = counts.complete.saturating_sub(old.complete);
        let bad = counts.bad.saturating_sub(old.bad);
        (complete > 0 && !is_said_again).then_some(BreakerCounts { complete, bad, ..*counts })
    }
}

/// A breaker of which nothing has been said in this epoch.
fn none_of(counts: &BreakerCounts) -> BreakerCounts {
    BreakerCounts { complete: 0, bad: 0, ..*counts }
}

impl Baseline {
    fn new() -> Self {
        Self { in_flight: 0, said: Box::default() }
    }
}

impl Default for Said {
    fn default() -> Self {
        Self { totals: MetricBucket::default(), histogram: [0; RT_CLASSES] }
    }
}

impl Resource {
    fn new(name: String, hash: u64, odd_windows: &[(u64, Span)]) -> Self {
        let mut resource = Self {
            name,
            seconds: LeapArray::new(HALF_SECOND, BUCKETS_MAX + 1),
            minute: LeapArray::new(Span::from_millis(1_000), 60),
            rt: LeapArray::new(Span::from_millis(1_000), 10),
            odd: Vec::new(),
            gauges: [Metric::default(); GAUGES.len()],
        };
        resource.keep_odd(hash, odd_windows);
        resource
    }

    /// Keeps the windows of this resource that are on the list, and begins those that are new.
    fn keep_odd(&mut self, hash: u64, wanted: &[(u64, Span)]) {
        let first = wanted.partition_point(|(resource, _)| *resource < hash);
        let own = || {
            let rest = wanted.iter().skip(first).take_while(|(resource, _)| *resource == hash);
            rest.map(|(_, slice)| *slice)
        };
        self.odd.retain(|(slice, _)| own().any(|wanted| wanted == *slice));
        for slice in own() {
            if !self.odd.iter().any(|(known, _)| *known == slice) {
                self.odd.push((slice, LeapArray::new(slice, 2)));
            }
        }
    }
}

/// Half seconds in a second.
const SECOND_SLICES: u64 = 2;

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use super::*;

    const RESOURCE: u64 = 7;

    fn passed(sequence: u64, at: Nanos, pass: u64, breakers: Vec<BreakerCounts>) -> CounterFrame {
        let name = Some("r".to_string());
        let entry = FrameEntry { resource: RESOURCE, name, pass, breakers, ..Default::default() };
        let at_ns = at.get();
        CounterFrame { incarnation: 1, sequence, at_ns, entries: vec![entry], ..Default::default() }
    }

    fn fold(fold: &mut Fold, frame: CounterFrame) -> Vec<(Nanos, BreakerCounts)> {
        let now = Nanos::new(frame.at_ns);
        let mut news = BreakerNews { is_known: &|_| true, news: Vec::new() };
        fold.fold(now, frame, 100, &mut news);
        news.news
    }

    #[test]
    fn the_longest_window_is_still_there_one_slice_later() {
        let shape = WindowShape::for_flow(10_000);
        let mut all = Fold::default();
        assert_eq!(all.passed(Nanos::default(), RESOURCE, shape), None);
        fold(&mut all, passed(1, Nanos::from_millis(20_000), 10, Vec::new()));
        let later = Nanos::from_millis(30_000);
        fold(&mut all, passed(2, later, 15, Vec::new()));

        assert_eq!(all.passed(later, RESOURCE, shape), Some((5, 1.0)));
    }

    #[test]
    fn an_odd_window_counts_from_the_resource_s_first_frame_on() {
        let shape = WindowShape::for_flow(700);
        let now = Nanos::from_millis(7_000);
        let mut all = Fold::default();
        all.keep_windows([(RESOURCE, shape), (8, shape)].into_iter());
        fold(&mut all, passed(1, now, 10, Vec::new()));
        assert_eq!(all.passed(now, RESOURCE, shape), Some((10, 0.0)));
        let next = Nanos::from_millis(7_700);
        assert_eq!(all.passed(next, RESOURCE, shape).map(|(passed, _)| passed), Some(0));

        let other = WindowShape::for_flow(300);
        all.keep_windows([(RESOURCE, other)].into_iter());
        let slices: Vec<Span> =
            all.resources.iter().flat_map(|(_, r)| r.odd.iter().map(|(slice, _)| *slice)).collect();
        assert_eq!(slices, [Span::from_millis(300)]);
    }

    #[test]
    fn what_a_worker_says_again_to_a_new_service_has_happened_before() {
        let counts = |complete| BreakerCounts { generation: 1, epoch: 0, complete, bad: complete };
        let at = Nanos::from_millis(60_000);
        let shape = WindowShape::for_flow(1_000);
        let mut all = Fold::default();
        // It has only shown that it lives before it learned that the service is another one.
        let alive = CounterFrame { entries: Vec::new(), ..passed(7, at, 0, Vec::new()) };
        assert_eq!(fold(&mut all, alive), []);
        assert_eq!(fold(&mut all, passed(8, at, 100, vec![counts(100)])), []);
        assert_eq!(all.passed(at, RESOURCE, shape), Some((0, 0.0)));

        let news = fold(&mut all, passed(9, at, 101, vec![counts(103)]));

        assert_eq!(news, [(at, counts(3))]);
        assert_eq!(all.passed(at, RESOURCE, shape), Some((1, 0.0)));
    }

    #[test]
    fn what_workers_have_said_of_breakers_that_are_gone_is_forgotten() {
        let counts = |generation| BreakerCounts { generation, epoch: 0, complete: 3, bad: 1 };
        let at = Nanos::from_millis(1_000);
        let mut all = Fold::default();
        let news = fold(&mut all, passed(1, at, 1, vec![counts(1), counts(2)]));
        assert_eq!(news, [(at, counts(1)), (at, counts(2))]);

        all.forget_breakers(&|generation| generation == 2);
        let news = fold(&mut all, passed(2, at, 1, vec![counts(1), counts(2)]));
        assert_eq!(news, [(at, counts(1))], "the first is as new, the second is known");
    }
}
