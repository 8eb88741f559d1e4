//! What the service counts: global windows per resource.
//!
//! A [`LeapArray`] is a ring of buckets, each stamped with the slice it counts. A bucket whose stamp is
//! out of date is empty by definition, so nothing has to run when time passes: not on a tick, not for a
//! quiet resource, not after the main thread was held for a second. Source of the arithmetic:
//! sentinel-golang `core/stat/base/leap_array.go` and `sliding_window_metric.go`.

use alloc::{boxed::Box, vec, vec::Vec};

use crate::{
    time::{Nanos, Span},
    window::BucketId,
};

/// A ring of buckets over the last slices of time.
#[derive(Clone, Debug)]
pub struct LeapArray<B> {
    bucket_ns: u64,
    buckets: Box<[(BucketId, B)]>,
}

/// The [`LeapArray`]s of many resources, slice by slice: of hundreds of resources in one slice of time, which is what a
/// frame tells, the buckets lie side by side, and whether the ring has left that slice is asked once. Each in a ring of its
/// own is four misses of the caches for each resource in a frame.
#[derive(Clone, Debug)]
pub struct LeapArrays<B> {
    bucket_ns: u64,
    /// Buckets by the number of the array, as far as there are any.
    slices: Box<[(BucketId, Vec<B>)]>,
}

/// What a bucket holds: something that can be added up.
pub trait Tally: Copy + Default {
    /// Adds all of `other`; saturates.
    fn add(&mut self, other: &Self);
}

/// What happened to a resource in one slice of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricBucket {
    /// Requests admitted.
    pub pass: u64,
    /// Requests refused.
    pub block: u64,
    /// Requests that have ended.
    pub complete: u64,
    /// Requests that have ended as errors.
    pub error: u64,
    /// The sum of response times, in milliseconds.
    pub rt_ms: u64,
    /// The shortest response time, as `u64::MAX` less its milliseconds, so that nothing is 0:
    /// [`MetricBucket::rt_min_ms`].
    pub rt_min: u64,
}

/// Response times by size: four classes to a power of two, so that a quantile is at most a quarter over.
///
/// The classes of [`class_of`] go up to 35 minutes; what is longer counts in the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtHistogram(pub [u32; RT_CLASSES]);

/// How many classes a [`RtHistogram`] has.
pub const RT_CLASSES: usize = 80;

impl<B: Tally> LeapArray<B> {
    /// An empty ring of `buckets` slices of `bucket` each, both at least 1.
    pub fn new(bucket: Span, buckets: usize) -> Self {
        let empty = (NEVER, B::default());
        Self {
            bucket_ns: bucket.get().max(1),
            buckets: vec![empty; buckets.max(1)].into_boxed_slice(),
        }
    }

    /// Adds to the slice of `now`. Counts of a slice that the ring has left are dropped.
    pub fn add(&mut self, now: Nanos, counts: &B) {
        let (slice, index) = slot_of(now, self.bucket_ns, self.buckets.len());
        let Some((stamp, bucket)) = self.buckets.get_mut(index) else { return };
        if *stamp != slice {
            if is_later(*stamp, slice) {
                return;
            }
            (*stamp, *bucket) = (slice, B::default());
        }
        bucket.add(counts);
    }

    /// The sum of the last `slices` slices, the current one included.
    pub fn sum(&self, now: Nanos, slices: u64) -> B {
        let current = self.slice_at(now);
        let mut sum = B::default();
        for (stamp, bucket) in &self.buckets {
            if *stamp <= current && stamp.age_at(current) < slices {
                sum.add(bucket);
            }
        }
        sum
    }

    /// The place in the ring at which the slice of `now` stands, and when that slice begins.
    pub fn place_of(&self, now: Nanos) -> (usize, Nanos) {
        let (slice, index) = slot_of(now, self.bucket_ns, self.buckets.len());
        (index, Nanos::new(slice.get().saturating_mul(self.bucket_ns)))
    }

    fn slice_at(&self, now: Nanos) -> BucketId {
        BucketId::new(now.get() / self.bucket_ns)
    }
}

impl<B: Tally> LeapArrays<B> {
    /// No array yet, each to be a ring of `buckets` slices of `bucket` each, both at least 1.
    pub fn new(bucket: Span, buckets: usize) -> Self {
        Self {
            bucket_ns: bucket.get().max(1),
            slices: vec![(NEVER, Vec::new()); buckets.max(1)].into_boxed_slice(),
        }
    }

    /// The buckets of the slice of `at`, to be added to, those of `arrays` arrays at least. `None`: the ring has left that
    /// slice.
    pub fn slice(&mut self, at: Nanos, arrays: usize) -> Option<&mut [B]> {
        let (slice, index) = slot_of(at, self.bucket_ns, self.slices.len());
        let (stamp, buckets) = self.slices.get_mut(index)?;
        if *stamp != slice {
            if is_later(*stamp, slice) {
                return None;
            }
            *stamp = slice;
            buckets.clear();
        }
        if buckets.len() < arrays {
            buckets.resize(arrays, B::default());
        }
        Some(buckets)
    }

    /// The last `slices` slices, the current one included, in no order and without those in which nothing was counted: each
    /// has the bucket of every array at the array's number, or none.
    pub fn last(&self, now: Nanos, slices: u64) -> impl Iterator<Item = &[B]> {
        let current = BucketId::new(now.get() / self.bucket_ns);
        let counts = move |stamp: &BucketId| *stamp <= current && stamp.age_at(current) < slices;
        self.slices
            .iter()
            .filter(move |(stamp, _)| counts(stamp))
            .map(|(_, buckets)| buckets.as_slice())
    }

    /// The sum of the last `slices` slices of one array, the current one included.
    pub fn sum(&self, now: Nanos, slices: u64, array: usize) -> B {
        let mut sum = B::default();
        self.last(now, slices).filter_map(|slice| slice.get(array)).for_each(|one| sum.add(one));
        sum
    }

    /// The same of each array: slice after slice, as they lie in memory.
    pub fn sums(&self, now: Nanos, slices: u64) -> Vec<B> {
        let mut sums = Vec::new();
        for slice in self.last(now, slices) {
            if sums.len() < slice.len() {
                sums.resize(slice.len(), B::default());
            }
            sums.iter_mut().zip(slice).for_each(|(sum, bucket)| sum.add(bucket));
        }
        sums
    }
}

/// The impossible stamp: no slice of our time has it.
const NEVER: BucketId = BucketId::new(u64::MAX);

fn is_later(stamp: BucketId, slice: BucketId) -> bool {
    stamp != NEVER && stamp > slice
}

/// The slice of `bucket_ns` that `at` falls in, and where it stands in a ring of `buckets`.
fn slot_of(at: Nanos, bucket_ns: u64, buckets: usize) -> (BucketId, usize) {
    let slice = BucketId::new(at.get() / bucket_ns.max(1));
    let index = usize::try_from(slice.get() % buckets.max(1) as u64).unwrap_or(0);
    (slice, index)
}

impl MetricBucket {
    /// The average response time in whole milliseconds, rounded down; 0 if nothing has ended.
    pub fn rt_avg_ms(&self) -> u64 {
        self.rt_ms.checked_div(self.complete).unwrap_or(0)
    }

    /// The shortest response time in milliseconds; 0 if nothing has ended.
    pub fn rt_min_ms(&self) -> u64 {
        if self.rt_min == 0 { 0 } else { u64::MAX - self.rt_min }
    }

    /// What one completion of `rt_ms` is to [`MetricBucket::rt_min`].
    pub fn rt_min_of(rt_ms: u64) -> u64 {
        u64::MAX - rt_ms
    }
}

impl Tally for MetricBucket {
    fn add(&mut self, other: &Self) {
        self.pass = self.pass.saturating_add(other.pass);
        self.block = self.block.saturating_add(other.block);
        self.complete = self.complete.saturating_add(other.complete);
        self.error = self.error.saturating_add(other.error);
        self.rt_ms = self.rt_ms.saturating_add(other.rt_ms);
        self.rt_min = self.rt_min.max(other.rt_min);
    }
}

impl RtHistogram {
    /// Adds so many response times of a class; of a class that there is not, none.
    pub fn add_class(&mut self, class: u8, count: u64) {
        if let Some(sum) = self.0.get_mut(usize::from(class)) {
            *sum = sum.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// The response time that `percent` of the requests did not exceed, in milliseconds: the upper end of
    /// the class it falls in; 0 if nothing was counted.
    pub fn quantile_ms(&self, percent: u32) -> u64 {
        let total: u64 = self.0.iter().copied().map(u64::from).sum();
        let rank = (total * u64::from(percent.min(100))).div_ceil(100);
        let mut counted = 0;
        for (class, count) in self.0.iter().enumerate() {
            counted += u64::from(*count);
            if counted >= rank && counted > 0 {
                return class_end_ms(class);
            }
        }
        0
    }
}

impl Tally for RtHistogram {
    fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            // Most classes are empty.
            if *count != 0 {
                *sum = sum.saturating_add(*count);
            }
        }
    }
}

impl Default for RtHistogram {
    fn default() -> Self {
        Self([0; RT_CLASSES])
    }
}

/// Whether two ratios are the same but for what a division loses (sentinel-golang `util.Float64Equals`).
pub fn same_ratio(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-8
}

/// The class that a response time falls in, below [`RT_CLASSES`].
pub fn class_of(rt_ms: u64) -> usize {
    let class = if rt_ms < 4 {
        rt_ms
    } else {
        // Four classes to a power of two: the two bits after the leading one.
        let power = u64::from(rt_ms.ilog2());
        (power - 1) * 4 + ((rt_ms >> (power - 2)) & 3)
    };
    usize::try_from(class).unwrap_or(RT_CLASSES).min(RT_CLASSES - 1)
}

/// The largest response time of a class.
fn class_end_ms(class: usize) -> u64 {
    let class = class as u64;
    if class < 4 {
        return class;
    }
    let power = class / 4 + 1;
    let step = 1_u64 << (power - 2);
    (1 << power) + (class % 4 + 1) * step - 1
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(millis)
    }

    fn one_pass() -> MetricBucket {
        MetricBucket { pass: 1, ..MetricBucket::default() }
    }

    #[test]
    fn a_count_leaves_when_its_slice_is_a_whole_window_old() {
        let mut array = LeapArray::new(Span::from_millis(500), 20);
        array.add(at(0), &one_pass());

        assert_eq!(array.sum(at(999), 2).pass, 1);
        assert_eq!(array.sum(at(1_000), 2).pass, 0);
        assert_eq!(array.sum(at(1_000), 20).pass, 1);
    }

    #[test]
    fn what_is_late_does_not_wipe_out_what_is_new() {
        let mut array = LeapArray::new(Span::from_millis(500), 2);
        array.add(at(1_000), &one_pass());
        array.add(at(0), &one_pass());

        assert_eq!(array.sum(at(1_000), 2).pass, 1);
    }

    #[test]
    fn arrays_in_one_ring_keep_their_counts_apart_and_leave_a_slice_together() {
        let mut arrays = LeapArrays::<MetricBucket>::new(Span::from_millis(500), 3);
        let mut count = |now, array: usize| match arrays.slice(at(now), array + 1) {
            Some(slice) => slice[array].add(&one_pass()),
            None => panic!("the ring has left {now} ms"),
        };
        count(0, 0);
        count(0, 2);
        count(1_400, 2);
        let sum = |now, slices, array| arrays.sum(at(now), slices, array).pass;

        assert_eq!([sum(1_400, 3, 0), sum(1_400, 3, 1), sum(1_400, 3, 2)], [1, 0, 2]);
        assert_eq!([sum(1_400, 1, 0), sum(1_400, 1, 2), sum(1_400, 1, 3)], [0, 1, 0]);
        assert!(arrays.slice(at(1_500), 0).is_some());
        assert!(arrays.slice(at(0), 1).is_none(), "the ring has left that slice");
        assert_eq!(arrays.sum(at(1_500), 3, 0).pass, 0);
    }

    #[test]
    fn a_quantile_is_at_most_a_quarter_over() {
        for rt_ms in [0, 1, 3, 4, 5, 7, 8, 63, 64, 100, 1_000, 65_535, 1_000_000] {
            let end = class_end_ms(class_of(rt_ms));
            assert!(
                end >= rt_ms && end <= rt_ms + rt_ms / 4,
                "{rt_ms} in a class that ends at {end}"
            );
        }
    }

    #[test]
    fn a_quantile_names_the_class_in_which_it_lies() {
        let mut histogram = RtHistogram::default();
        for (rt_ms, count) in [(1, 98), (100, 1), (1_000, 1)] {
            histogram.0[class_of(rt_ms)] += count;
        }

        assert_eq!(histogram.quantile_ms(50), 1);
        assert_eq!(histogram.quantile_ms(99), class_end_ms(class_of(100)));
        assert_eq!(RtHistogram::default().quantile_ms(99), 0);
    }

    #[test]
    fn a_slice_has_its_place_in_the_ring_and_begins_at_a_multiple_of_its_length() {
        let array: LeapArray<MetricBucket> = LeapArray::new(Span::from_millis(500), 20);

        assert_eq!(array.place_of(at(1_576_296_044_907)), (9, at(1_576_296_044_500)));
    }

    #[test]
    fn ratios_are_the_same_up_to_the_eighth_decimal() {
        assert!(same_ratio(12.0 / 15.0, 0.8));
        assert!(!same_ratio(0.1, 0.099_999_98));
    }

    proptest! {
        #[test]
        fn however_time_passes_the_sum_is_what_a_list_of_all_counts_says(
            steps in prop::collection::vec((0u64..900, 0u64..5), 1..100),
        ) {
            let mut array = LeapArray::new(Span::from_millis(500), 20);
            let mut arrays = LeapArrays::<MetricBucket>::new(Span::from_millis(500), 20);
            let mut list: Vec<(u64, u64)> = Vec::new();
            let mut now = 0;
            for (advance, pass) in steps {
                now += advance;
                array.add(at(now), &MetricBucket { pass, ..MetricBucket::default() });
                arrays.slice(at(now), 1).unwrap()[0].add(&MetricBucket { pass, ..MetricBucket::default() });
                list.push((now / 500, pass));
                let by_hand: u64 = list.iter().filter(|(slice, _)| now / 500 - slice < 2).map(|(_, pass)| pass).sum();
                prop_assert_eq!(array.sum(at(now), 2).pass, by_hand);
                prop_assert_eq!(arrays.sum(at(now), 2, 0).pass, by_hand);
                let sums = arrays.sums(at(now), 2);
                prop_assert_eq!(sums.iter().map(|sum| sum.pass).collect::<Vec<_>>(), [by_hand]);
            }
        }
    }
}
