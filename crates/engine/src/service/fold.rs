//! Frames folded into global windows.
//!
//! Each worker's totals are kept as a baseline; what a frame adds to it is what happened since. Only a
//! frame that directly follows the last one, and is young, counts in windows: a backlog of seconds that
//! arrives at once must not look like a burst. Every other frame moves the baseline and nothing else.

use alloc::{borrow::ToOwned as _, string::String, vec::Vec};

use hashbrown::HashTable;
use sentinel_core::{
    order::sort_by,
    rule::INBOUND,
    stat::{LeapArray, LeapArrays, MetricBucket, RtHistogram, Tally},
    system::Inbound,
    time::{Nanos, Span},
    window::{BUCKETS_MAX, WindowShape},
};
use sentinel_wire::{
    frame::{BreakerCounts, FrameView},
    service::{ACKS_MAX, Ack},
};

use super::said::Said;
use crate::{
    host::Meter,
    rulebook::spread,
    table::Table,
    telemetry::{Gauge, Metric, of_resource},
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
const SECOND: Span = Span::from_millis(1_000);

/// How many slices the windows of a resource have.
const SECONDS_SLICES: usize = BUCKETS_MAX + 1;
const MINUTE_SLICES: usize = 60;
/// As many as gauges look at, and one more: a frame may come late.
const RT_SLICES: usize = 6;

/// Everything that the frames have said.
#[derive(Debug, Default)]
pub(super) struct Fold {
    workers: Table<u64, Source>,
    resources: Resources,
    windows: Windows,
    /// Of the frame that is being folded: memory that the next one takes over.
    found: Vec<Found>,
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

/// What has happened of late, of each resource that is counted.
#[derive(Debug)]
struct Windows {
    /// 10 s in slices of 500 ms, and one more: a warm-up looks one slice back.
    seconds: LeapArrays<MetricBucket>,
    /// 60 s in slices of 1 s.
    minute: LeapArrays<Times>,
    /// Response times of the last 5 s in slices of 1 s.
    rt: LeapArrays<RtHistogram>,
}

/// What a frame counts in: the slices of its time, each with a bucket for each resource.
#[derive(Default)]
struct Slices<'a> {
    seconds: Option<&'a mut [MetricBucket]>,
    minute: Option<&'a mut [Times]>,
    rt: Option<&'a mut [RtHistogram]>,
}

/// What gauges are made of.
#[derive(Default)]
struct Recent {
    in_flight: u64,
    last: MetricBucket,
    minute: Times,
    rt: RtHistogram,
}

/// What an average response time is made of.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    complete: u64,
    rt_ms: u64,
}

impl Tally for Times {
    #[inline(always)]
    fn add(&mut self, other: &Self) {
        self.complete = self.complete.saturating_add(other.complete);
        self.rt_ms = self.rt_ms.saturating_add(other.rt_ms);
    }
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
            self.minute.rt_ms.checked_div(self.minute.complete).unwrap_or(0),
            self.rt.quantile_ms(50),
            self.rt.quantile_ms(99),
        ]
    }
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
    /// By the places of [`Resources`].
    said: Said,
    /// By generation; none of a breaker that is gone.
    breakers: HashTable<BreakerCounts>,
}

/// Where what an entry of a frame speaks of is known.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// By [`Resources::all`]; [`NOWHERE`] if there are too many.
    place: usize,
    /// As [`Resource::array`].
    array: usize,
    /// In [`Said`].
    line: Option<usize>,
}

impl Found {
    fn at(place: usize) -> Self {
        Self { place, array: UNCOUNTED, line: None }
    }
}

/// All resources of which any worker has spoken, each at a place that is its own for ever: one look-up for all that is
/// known of it, here and in each worker's baselines.
#[derive(Debug, Default)]
struct Resources {
    /// By hash.
    places: HashTable<(u64, usize)>,
    all: Vec<Resource>,
    /// Those that are counted in windows, in the order of their numbers there.
    counted: Vec<Counted>,
}

/// What is known of one.
#[derive(Debug)]
struct Resource {
    /// Open requests in all workers.
    in_flight: u64,
    /// Its number in the windows; [`UNCOUNTED`] if it is not counted there.
    array: usize,
}

/// The number of no array.
const UNCOUNTED: usize = usize::MAX;

/// The place of no resource.
const NOWHERE: usize = usize::MAX;

/// How many resources are told apart in the life of a service, those of rules that are long gone too. Of what is over,
/// only breakers count.
const PLACES_MAX: usize = 1 << 17;

/// A resource that is counted in windows.
#[derive(Debug)]
struct Counted {
    hash: u64,
    name: String,
    /// By [`Resources::all`].
    place: usize,
    /// Windows of odd lengths, each one slice and the one before.
    odd: Vec<(Span, LeapArray<MetricBucket>)>,
    gauges: [Gauge; GAUGES.len()],
}

impl Fold {
    /// Folds one frame. At most `resources_max` resources have windows: what is over is acknowledged and
    /// not counted here; its totals are in Envoy's counters all the same. What is new of breakers, as of the time at which the
    /// frame was made, goes to `news`, if the breaker's generation `is_known`: nobody else is listened to.
    pub(super) fn fold(
        &mut self,
        now: Nanos,
        frame: &FrameView,
        resources_max: usize,
        is_known: &dyn Fn(u64) -> bool,
        news: &mut Vec<BreakerCounts>,
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
        if frame.has_names() {
            self.resources.count(frame, resources_max, &self.odd_windows);
        }
        let arrays = self.resources.counted.len();
        let mut slices = match counts_in_windows {
            true => self.windows.slices(at, arrays),
            false => Slices::default(),
        };
        // Each step for all entries before the next one: nothing waits for a load alone.
        self.found.clear();
        for entry in &frame.entries {
            self.found.push(Found::at(self.resources.place_or_begin(entry.resource)));
        }
        for found in &mut self.found {
            found.array =
                self.resources.all.get(found.place).map_or(UNCOUNTED, |known| known.array);
            found.line = source.said.find(found.place);
        }
        fetch(&self.found, frame, &source.said, &slices);
        for (entry, found) in frame.entries.iter().zip(&self.found) {
            if let Some(resource) = self.resources.all.get_mut(found.place) {
                // Of a worker that has said more to the service before this one, what is new here has happened before.
                let counts = counts_in_windows && (source.is_whole || found.line.is_some());
                let distributed = slices.rt.as_mut().and_then(|slice| slice.get_mut(found.array));
                let moved = source.said.advance(
                    found.place,
                    entry,
                    frame.histogram_of(entry),
                    &mut resource.in_flight,
                    distributed.filter(|_| counts),
                );
                if counts {
                    slices.count(found.array, &moved);
                    if !self.odd_windows.is_empty() {
                        self.resources.count_odd(found.array, at, &moved);
                    }
                }
            }
            for counts in frame.breakers_of(entry) {
                if let Some(new) = source.advance_breaker(counts, is_known)
                    && counts_in_windows
                {
                    news.push(new);
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

    /// Forgets all workers, and what gauges show: another service has heard the ones and set the others since.
    pub(super) fn forget_workers(&mut self) {
        self.workers = Table::default();
        self.resources.all.iter_mut().for_each(|resource| resource.in_flight = 0);
        for gauge in self.resources.counted.iter_mut().flat_map(|counted| &mut counted.gauges) {
            gauge.forget();
        }
    }

    /// Forgets workers that have said nothing for `silence`, and what they had in flight: they are gone. A
    /// live one sends a frame at least every 30 s, also when it has counted nothing.
    pub(super) fn forget_silent(&mut self, now: Nanos, silence: Span) {
        let is_silent = |source: &Source| now.since(source.heard_at) > silence;
        let silent = self.workers.iter().filter(|(_, source)| is_silent(source));
        let silent: Vec<u64> = silent.map(|(incarnation, _)| *incarnation).collect();
        silent.into_iter().for_each(|incarnation| self.forget_worker(incarnation));
    }

    /// Forgets what workers have said of breakers that are gone.
    pub(super) fn forget_breakers(&mut self, is_known: &dyn Fn(u64) -> bool) {
        for (_, source) in self.workers.iter_mut() {
            source.breakers.retain(|counts| is_known(counts.generation));
        }
    }

    /// Keeps the windows of rules that read one of another resource, by the resource's hash and the rule's
    /// window, and no others.
    pub(super) fn keep_windows(&mut self, asked: impl Iterator<Item = (u64, WindowShape)>) {
        let odd = asked.filter(|(_, shape)| shape.bucket() != HALF_SECOND);
        self.odd_windows = odd.map(|(resource, shape)| (resource, shape.bucket())).collect();
        sort_by(&mut self.odd_windows, Ord::cmp);
        for counted in &mut self.resources.counted {
            counted.keep_odd(&self.odd_windows);
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
        let (array, counted) = self.resources.get(resource)?;
        let odd = counted.odd.iter().find(|(slice, _)| *slice == shape.bucket());
        let slices = u64::from(shape.buckets());
        let sum = |now| match odd {
            Some((_, window)) => window.sum(now, slices).pass,
            None => self.windows.seconds.sum(now, slices, array).pass,
        };
        let previous = sum(now - shape.bucket()) as f64 * 1e9 / shape.window().get() as f64;
        Some((sum(now), previous))
    }

    /// What is known of the resource that counts all that is inbound, but for the CPU.
    pub(super) fn inbound(&self, now: Nanos, resource: u64) -> Inbound {
        let Some((array, _)) = self.resources.get(resource) else {
            return Inbound::default();
        };
        let seconds = &self.windows.seconds;
        let last = seconds.last(now, SECOND_SLICES).filter_map(|slice| slice.get(array));
        let best = last.map(|bucket| bucket.complete).max();
        Inbound {
            second: seconds.sum(now, SECOND_SLICES, array),
            complete_max_per_second: best.unwrap_or(0).saturating_mul(SECOND_SLICES),
            in_flight: self.in_flight(resource),
            cpu: None,
        }
    }

    /// What all workers have counted for a resource in the last `window`, up to 10 s.
    pub(super) fn window(&self, now: Nanos, resource: u64, window: Span) -> MetricBucket {
        let slices = window.as_millis().div_ceil(500);
        let array = self.resources.get(resource).map(|(array, _)| array);
        array.map(|array| self.windows.seconds.sum(now, slices, array)).unwrap_or_default()
    }

    /// Requests of a resource that are open in all workers.
    pub(super) fn in_flight(&self, resource: u64) -> u64 {
        let place = self.resources.place(resource);
        place.and_then(|place| self.resources.all.get(place)).map_or(0, |known| known.in_flight)
    }

    /// Shows in Envoy's gauges the windows, and what live workers, those heard of in the last `live`, hold.
    pub(super) fn set_gauges<M: Meter>(&mut self, meter: &mut M, now: Nanos, live: Span) {
        let workers = &self.workers;
        let mut all = Recent::default();
        let seconds = self.windows.seconds.sums(now, GAUGE_SLICES);
        let minute = self.windows.minute.sums(now, 60);
        let rt = self.windows.rt.sums(now, GAUGE_SECONDS);
        for (array, Counted { name, place, gauges, .. }) in
            self.resources.counted.iter_mut().enumerate()
        {
            let recent = Recent {
                in_flight: self.resources.all.get(*place).map_or(0, |known| known.in_flight),
                last: seconds.get(array).copied().unwrap_or_default(),
                minute: minute.get(array).copied().unwrap_or_default(),
                rt: rt.get(array).copied().unwrap_or_default(),
            };
            for ((gauge, value), what) in gauges.iter_mut().zip(recent.values()).zip(GAUGES) {
                gauge.show(meter, value, |text| of_resource(name, what, text));
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

    fn forget_longest_silent(&mut self) {
        let longest = self
            .workers
            .iter()
            .min_by_key(|(_, source)| source.heard_at)
            .map(|(worker, _)| *worker);
        if let Some(incarnation) = longest {
            self.forget_worker(incarnation);
        }
    }

    fn forget_worker(&mut self, incarnation: u64) {
        let Some(source) = self.workers.remove(&incarnation) else { return };
        for (resource, in_flight) in self.resources.all.iter_mut().zip(source.said.in_flight()) {
            resource.in_flight = resource.in_flight.wrapping_sub(in_flight);
        }
    }
}

impl Source {
    /// Moves the baseline of one breaker, and says what it moved by. Totals begin anew with each epoch, and
    /// where a worker has forgotten the rule in between.
    fn advance_breaker(
        &mut self,
        counts: &BreakerCounts,
        is_known: &dyn Fn(u64) -> bool,
    ) -> Option<BreakerCounts> {
        let generation = counts.generation;
        let is_it = |known: &BreakerCounts| known.generation == generation;
        let Some(baseline) = self.breakers.find_mut(spread(generation), is_it) else {
            if !is_known(generation) {
                return None;
            }
            let key = |known: &BreakerCounts| spread(known.generation);
            self.breakers.insert_unique(spread(generation), *counts, key);
            return (counts.complete > 0 && self.is_whole).then_some(*counts);
        };
        if baseline.epoch != counts.epoch || baseline.complete > counts.complete {
            *baseline = BreakerCounts { complete: 0, bad: 0, ..*counts };
        }
        let old = core::mem::replace(baseline, *counts);
        let complete = counts.complete.saturating_sub(old.complete);
        let bad = counts.bad.saturating_sub(old.bad);
        (complete > 0).then_some(BreakerCounts { complete, bad, ..*counts })
    }
}

impl Resources {
    fn place(&self, hash: u64) -> Option<usize> {
        self.places.find(hash, |(known, _)| *known == hash).map(|(_, place)| *place)
    }

    /// A resource that is counted, and its number.
    fn get(&self, hash: u64) -> Option<(usize, &Counted)> {
        let array = self.all.get(self.place(hash)?)?.array;
        self.counted.get(array).map(|counted| (array, counted))
    }

    /// The place of a resource, which it gets with the first that is said of it. [`NOWHERE`]: there are [`PLACES_MAX`].
    #[inline(always)]
    fn place_or_begin(&mut self, hash: u64) -> usize {
        self.place(hash).unwrap_or_else(|| self.begin(hash))
    }

    #[inline(never)]
    fn begin(&mut self, hash: u64) -> usize {
        let place = self.all.len();
        if place >= PLACES_MAX {
            return NOWHERE;
        }
        self.all.push(Resource { in_flight: 0, array: UNCOUNTED });
        self.places.insert_unique(hash, (hash, place), |(hash, _)| *hash);
        place
    }

    /// Begins to count the resources of a frame that come with their names, as each does until this service has
    /// acknowledged a frame that says it.
    #[inline(never)]
    fn count(&mut self, frame: &FrameView, resources_max: usize, odd_windows: &[(u64, Span)]) {
        for entry in &frame.entries {
            let array = self.counted.len();
            if array < resources_max
                && let Some(name) = frame.name_of(entry)
                && let place = self.place_or_begin(entry.resource)
                && let Some(resource) = self.all.get_mut(place)
                && resource.array == UNCOUNTED
            {
                resource.array = array;
                let (hash, name) = (entry.resource, name.to_owned());
                let mut counted =
                    Counted { hash, name, place, odd: Vec::new(), gauges: Default::default() };
                counted.keep_odd(odd_windows);
                self.counted.push(counted);
            }
        }
    }

    #[inline(never)]
    fn count_odd(&mut self, array: usize, at: Nanos, counts: &MetricBucket) {
        let windows = self.counted.get_mut(array).map(|counted| &mut counted.odd);
        for (_, window) in windows.into_iter().flatten() {
            window.add(at, counts);
        }
    }
}

impl Windows {
    /// The slices of `at`, with room for so many arrays; those that the rings have left are not there.
    fn slices(&mut self, at: Nanos, arrays: usize) -> Slices<'_> {
        Slices {
            seconds: self.seconds.slice(at, arrays),
            minute: self.minute.slice(at, arrays),
            rt: self.rt.slice(at, arrays),
        }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            seconds: LeapArrays::new(HALF_SECOND, SECONDS_SLICES),
            minute: LeapArrays::new(SECOND, MINUTE_SLICES),
            rt: LeapArrays::new(SECOND, RT_SLICES),
        }
    }
}

impl Slices<'_> {
    #[inline(always)]
    fn count(&mut self, array: usize, counts: &MetricBucket) {
        if let Some(bucket) = self.seconds.as_mut().and_then(|slice| slice.get_mut(array)) {
            bucket.add(counts);
        }
        if let Some(times) = self.minute.as_mut().and_then(|slice| slice.get_mut(array)) {
            times.add(&Times { complete: counts.complete, rt_ms: counts.rt_ms });
        }
    }
}

impl Counted {
    /// Keeps the windows of this resource that are on the list, and begins those that are new.
    fn keep_odd(&mut self, wanted: &[(u64, Span)]) {
        let hash = self.hash;
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

/// Brings near all that the entries of a frame are counted in. WebAssembly cannot ask for that; but loads that nothing between them
/// waits for are under way at the same time.
#[inline(never)]
fn fetch(all: &[Found], frame: &FrameView, said: &Said, slices: &Slices<'_>) {
    let (seconds, minute) = (slices.seconds.as_deref(), slices.minute.as_deref());
    let rt = slices.rt.as_deref();
    let mut touched = 0;
    for (found, entry) in all.iter().zip(&frame.entries) {
        let array = found.array;
        let lowest = frame.histogram_of(entry).first().map_or(0, |(class, _)| usize::from(*class));
        touched ^= found.line.map_or(0, |line| said.touch(line));
        touched ^= bucket(seconds, array).map_or(0, |bucket| bucket.pass);
        touched ^= bucket(minute, array).map_or(0, |times| times.complete);
        touched ^=
            bucket(rt, array).and_then(|rt| rt.0.get(lowest)).map_or(0, |&count| count.into());
    }
    core::hint::black_box(touched);
}

fn bucket<B>(slice: Option<&[B]>, array: usize) -> Option<&B> {
    slice.and_then(|slice| slice.get(array))
}

/// Half seconds in a second.
const SECOND_SLICES: u64 = 2;

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use sentinel_wire::frame::{CounterFrame, FrameEntry};

    use super::*;

    const RESOURCE: u64 = 7;

    fn passed(sequence: u64, at: Nanos, pass: u64, breakers: Vec<BreakerCounts>) -> CounterFrame {
        let name = Some("r".to_string());
        let entry = FrameEntry { resource: RESOURCE, name, pass, breakers, ..Default::default() };
        let at_ns = at.get();
        CounterFrame { incarnation: 1, sequence, at_ns, entries: vec![entry], ..Default::default() }
    }

    fn fold(fold: &mut Fold, frame: &CounterFrame) -> Vec<BreakerCounts> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let mut news = Vec::new();
        let now = Nanos::new(frame.at_ns);
        let mut view = FrameView::default();
        view.read(&bytes).unwrap();
        fold.fold(now, &view, 100, &|_| true, &mut news);
        news
    }

    #[test]
    fn the_longest_window_is_still_there_one_slice_later() {
        let shape = WindowShape::for_flow(10_000);
        let mut all = Fold::default();
        assert_eq!(all.passed(Nanos::default(), RESOURCE, shape), None);
        fold(&mut all, &passed(1, Nanos::from_millis(20_000), 10, Vec::new()));
        let later = Nanos::from_millis(30_000);
        fold(&mut all, &passed(2, later, 15, Vec::new()));

        assert_eq!(all.passed(later, RESOURCE, shape), Some((5, 1.0)));
    }

    #[test]
    fn an_odd_window_counts_from_the_resource_s_first_frame_on() {
        let shape = WindowShape::for_flow(700);
        let now = Nanos::from_millis(7_000);
        let mut all = Fold::default();
        all.keep_windows([(RESOURCE, shape), (8, shape)].into_iter());
        fold(&mut all, &passed(1, now, 10, Vec::new()));
        assert_eq!(all.passed(now, RESOURCE, shape), Some((10, 0.0)));
        let next = Nanos::from_millis(7_700);
        assert_eq!(all.passed(next, RESOURCE, shape).map(|(passed, _)| passed), Some(0));

        let other = WindowShape::for_flow(300);
        all.keep_windows([(RESOURCE, other)].into_iter());
        let slices: Vec<Span> = all
            .resources
            .counted
            .iter()
            .flat_map(|counted| counted.odd.iter().map(|(slice, _)| *slice))
            .collect();
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
        assert_eq!(fold(&mut all, &alive), []);
        assert_eq!(fold(&mut all, &passed(8, at, 100, vec![counts(100)])), []);
        assert_eq!(all.passed(at, RESOURCE, shape), Some((0, 0.0)));

        let news = fold(&mut all, &passed(9, at, 101, vec![counts(103)]));

        assert_eq!(news, [counts(3)]);
        assert_eq!(all.passed(at, RESOURCE, shape), Some((1, 0.0)));
    }

    #[test]
    fn what_workers_have_said_of_breakers_that_are_gone_is_forgotten() {
        let counts = |generation| BreakerCounts { generation, epoch: 0, complete: 3, bad: 1 };
        let at = Nanos::from_millis(1_000);
        let mut all = Fold::default();
        let news = fold(&mut all, &passed(1, at, 1, vec![counts(1), counts(2)]));
        assert_eq!(news, [counts(1), counts(2)]);

        all.forget_breakers(&|generation| generation == 2);
        let news = fold(&mut all, &passed(2, at, 1, vec![counts(1), counts(2)]));
        assert_eq!(news, [counts(1)], "the first is as new, the second is known");
    }
}
