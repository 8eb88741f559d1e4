//! Frames folded into global windows.
//!
//! Each worker's totals are kept as a baseline; what a frame adds to it is what happened since. Only a
//! frame that directly follows the last one, and is young, counts in windows: a backlog of seconds that
//! arrives at once must not look like a burst. Every other frame moves the baseline and nothing else.

use alloc::{string::String, vec::Vec};

use sentinel_core::{
    stat::{LeapArray, MetricBucket, RT_CLASSES, RtHistogram},
    time::{Nanos, Span},
};
use sentinel_wire::{
    frame::{CounterFrame, FrameEntry},
    service::{ACKS_MAX, Ack},
};

use crate::{
    host::Meter,
    table::Table,
    telemetry::{Metric, of_resource},
};

/// A frame that is older counts in no window.
const YOUNG: Span = Span::from_millis(2_000);

/// Gauges show the average of the last five seconds: workers send once a second, so that a
/// shorter window would flicker.
const GAUGE_SLICES: u64 = 10;
const GAUGE_SECONDS: u64 = 5;

/// Everything that the frames have said.
#[derive(Debug, Default)]
pub(super) struct Fold {
    workers: Table<u64, Source>,
    resources: Table<u64, Resource>,
    /// Frames that never arrived, or could not be read.
    pub(super) frames_lost: u64,
}

/// One worker, as its frames tell.
#[derive(Debug, Default)]
struct Source {
    sequence: u64,
    heard_at: Nanos,
    baselines: Table<u64, Baseline>,
}

/// What one worker has said of one resource.
#[derive(Debug)]
struct Baseline {
    totals: MetricBucket,
    histogram: [u64; RT_CLASSES],
    in_flight: u64,
}

/// One resource, over all workers.
#[derive(Debug)]
struct Resource {
    name: String,
    /// 10 s in slices of 500 ms.
    seconds: LeapArray<MetricBucket>,
    /// 60 s in slices of 1 s.
    minute: LeapArray<MetricBucket>,
    /// Response times of 10 s in slices of 1 s.
    rt: LeapArray<RtHistogram>,
    gauges: Gauges,
}

#[derive(Debug, Default)]
struct Gauges {
    in_flight: Metric,
    pass_qps: Metric,
    block_qps: Metric,
    rt_avg_ms: Metric,
    rt_p50_ms: Metric,
    rt_p99_ms: Metric,
}

impl Fold {
    /// Folds one frame. At most `resources_max` resources have windows: what is over is acknowledged and
    /// not counted here; its totals are in Envoy's counters all the same.
    pub(super) fn fold(&mut self, now: Nanos, frame: CounterFrame, resources_max: usize) {
        let known = self.workers.get(&frame.incarnation).is_some();
        if !known && self.workers.len() >= ACKS_MAX {
            self.forget_longest_silent();
        }
        let Some(source) = self.workers.get_or_insert_with(frame.incarnation, Source::default)
        else {
            return;
        };
        source.heard_at = now;
        if frame.sequence <= source.sequence {
            return;
        }
        let missing = frame.sequence - source.sequence - 1;
        // Of a worker that this service has never heard, earlier frames went to the service before it.
        let lost = if known { missing } else { 0 };
        self.frames_lost = self.frames_lost.saturating_add(lost);
        source.sequence = frame.sequence;

        let at = Nanos::new(frame.at_ns);
        let counts = missing == 0 && now.since(at) <= YOUNG;
        for entry in frame.entries {
            let (counted, distributed) = source.advance(&entry);
            // A name comes with every entry until this service has acknowledged one.
            let is_new = self.resources.get(&entry.resource).is_none();
            if is_new && (entry.name.is_none() || self.resources.len() >= resources_max) {
                continue;
            }
            let name = entry.name.unwrap_or_default();
            let resource =
                self.resources.get_or_insert_with(entry.resource, || Resource::new(name));
            if let Some(resource) = resource.filter(|_| counts) {
                resource.seconds.add(at, &counted);
                resource.minute.add(at, &counted);
                resource.rt.add(at, &distributed);
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

    /// Forgets workers that have said nothing for `silence`, and what they had in flight: they are gone. A
    /// live one sends a frame at least every 30 s, also when it has counted nothing.
    pub(super) fn forget_silent(&mut self, now: Nanos, silence: Span) {
        self.workers.retain(|source| now.since(source.heard_at) <= silence);
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

    /// Shows the windows in Envoy's gauges.
    pub(super) fn set_gauges<M: Meter>(&mut self, meter: &mut M, now: Nanos) {
        let workers = &self.workers;
        let in_flight = |hash: &u64| -> u64 {
            let baselines = workers.iter().filter_map(|(_, source)| source.baselines.get(hash));
            baselines.map(|baseline| baseline.in_flight).sum()
        };
        for (hash, resource) in self.resources.iter_mut() {
            let last = resource.seconds.sum(now, GAUGE_SLICES);
            let minute = resource.minute.sum(now, 60);
            let rt = resource.rt.sum(now, GAUGE_SECONDS);
            let name = &resource.name;
            let gauges = &mut resource.gauges;
            let open = in_flight(hash);
            gauges.in_flight.set(meter, open, |text| of_resource(name, "in_flight", text));
            gauges
                .pass_qps
                .set(meter, last.pass / GAUGE_SECONDS, |text| of_resource(name, "pass_qps", text));
            gauges.block_qps.set(meter, last.block / GAUGE_SECONDS, |text| {
                of_resource(name, "block_qps", text);
            });
            gauges
                .rt_avg_ms
                .set(meter, minute.rt_avg_ms(), |text| of_resource(name, "rt_avg_ms", text));
            gauges
                .rt_p50_ms
                .set(meter, rt.quantile_ms(50), |text| of_resource(name, "rt_p50_ms", text));
            gauges
                .rt_p99_ms
                .set(meter, rt.quantile_ms(99), |text| of_resource(name, "rt_p99_ms", text));
        }
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
    /// Moves the baseline of one resource, and says what it moved by. A worker whose totals have gone back
    /// has forgotten the resource in between and begun anew: then all of it is new.
    fn advance(&mut self, entry: &FrameEntry) -> (MetricBucket, RtHistogram) {
        let totals = entry.totals();
        let Some(baseline) = self.baselines.get_or_insert_with(entry.resource, Baseline::new)
        else {
            return Default::default();
        };
        let begun_anew = totals.pass < baseline.totals.pass || totals.block < baseline.totals.block;
        if begun_anew {
            *baseline = Baseline::new();
        }
        let old = core::mem::replace(&mut baseline.totals, totals);
        baseline.in_flight = entry.in_flight;
        let new = MetricBucket {
            pass: totals.pass.saturating_sub(old.pass),
            block: totals.block.saturating_sub(old.block),
            complete: totals.complete.saturating_sub(old.complete),
            error: totals.error.saturating_sub(old.error),
            rt_ms: totals.rt_ms.saturating_sub(old.rt_ms),
        };
        let mut histogram = RtHistogram::default();
        for &(class, total) in &entry.histogram {
            let class = usize::from(class);
            if let (Some(old), Some(count)) =
                (baseline.histogram.get_mut(class), histogram.0.get_mut(class))
            {
                *count = u32::try_from(total.saturating_sub(*old)).unwrap_or(u32::MAX);
                *old = total;
            }
        }
        (new, histogram)
    }
}

impl Baseline {
    fn new() -> Self {
        Self { totals: MetricBucket::default(), histogram: [0; RT_CLASSES], in_flight: 0 }
    }
}

impl Resource {
    fn new(name: String) -> Self {
        Self {
            name,
            seconds: LeapArray::new(Span::from_millis(500), 20),
            minute: LeapArray::new(Span::from_millis(1_000), 60),
            rt: LeapArray::new(Span::from_millis(1_000), 10),
            gauges: Gauges::default(),
        }
    }
}
