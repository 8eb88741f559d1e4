//! What a limit allowed, judged from when requests were sent and when they arrived behind Envoy.
//!
//! A rule's window is a run of buckets aligned to the Unix epoch ([`Shape`]). Envoy decides about a request
//! at a moment nobody outside can see: after the client sent it and before the upstream saw it. So a count by
//! arrival is blurred at the window's edges: a request decided at 999.9 ms may arrive at 1000.3 ms, and
//! counts for the window after the one it was charged to. Therefore each window is counted three ways:
//!
//! * `admitted`: what arrived in it, the raw count;
//! * `admitted - early`: what was sent *and* arrived in it, so what the window was certainly charged with;
//! * `admitted + late`: and also what was sent before its end but arrived after it.
//!
//! The truth lies between the last two. Over a run of adjoining windows the blur inside the run cancels, and only
//! that at its two ends remains: [`Windows::run_least`] and [`Windows::run_most`] bound the sum over the longest such run.

use std::collections::BTreeMap;
use std::ops::Range;

/// One admitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When the client sent it, wall clock, nanoseconds.
    pub sent_ns: u64,
    /// When the upstream saw it, wall clock, nanoseconds.
    pub arrived_ns: u64,
}

/// The window of a rule: how many buckets of which width, aligned to the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    bucket_ns: u64,
    buckets: u64,
}

impl Shape {
    /// The window that a rule with this `statIntervalInMs` reads: 0 and 1000 slide by half a second, so do other
    /// multiples of 500 up to 10 000; everything else is one tumbling bucket.
    #[must_use]
    pub fn of(stat_interval_ms: u64) -> Self {
        let interval = if stat_interval_ms == 0 { 1000 } else { stat_interval_ms };
        if interval <= 10_000 && interval.is_multiple_of(HALF_SECOND_MS) {
            Self { bucket_ns: HALF_SECOND_MS * NANOS_PER_MS, buckets: interval / HALF_SECOND_MS }
        } else {
            Self { bucket_ns: interval * NANOS_PER_MS, buckets: 1 }
        }
    }

    /// The length of the window in nanoseconds.
    #[must_use]
    pub fn window_ns(self) -> u64 {
        self.bucket_ns * self.buckets
    }

    /// The length of one bucket in nanoseconds.
    #[must_use]
    pub fn bucket_ns(self) -> u64 {
        self.bucket_ns
    }

    /// Counts what was admitted in every window that has anything to do with `flood` or an arrival.
    ///
    /// `flood` is the stretch of wall-clock time in which more was asked for than allowed: windows wholly inside it are
    /// full, and only of them can it be said that they should have admitted all that the rule allows.
    #[must_use]
    pub fn count(self, arrivals: &[Arrival], flood: Range<u64>) -> Windows {
        let mut counts: BTreeMap<u64, Count> = BTreeMap::new();
        let mut bucket = flood.start.div_ceil(self.bucket_ns);
        while (bucket * self.bucket_ns) + self.window_ns() <= flood.end {
            counts.entry(bucket).or_default();
            bucket += 1;
        }
        for arrival in arrivals {
            let first_sent = self.first_window_of(arrival.sent_ns);
            let last_arrived = arrival.arrived_ns / self.bucket_ns;
            // Windows are named by their first bucket, and each bucket lies in `buckets` of them.
            for window in first_sent..=last_arrived {
                let sent_by_end = arrival.sent_ns < (window + self.buckets) * self.bucket_ns;
                let arrived_by_end = arrival.arrived_ns < (window + self.buckets) * self.bucket_ns;
                let count = counts.entry(window).or_default();
                if arrived_by_end {
                    count.admitted += 1;
                    if arrival.sent_ns < window * self.bucket_ns {
                        count.early += 1;
                    }
                } else if sent_by_end {
                    count.late += 1;
                }
            }
        }
        let full = |window: u64| {
            window * self.bucket_ns >= flood.start
                && window * self.bucket_ns + self.window_ns() <= flood.end
        };
        let counts = counts
            .into_iter()
            .map(|(window, count)| Count {
                start_ns: window * self.bucket_ns,
                full: full(window),
                ..count
            })
            .collect();
        Windows { shape: self, counts }
    }

    /// As [`count`](Self::count), but only those windows are full in which more was certainly asked for than `threshold`
    /// allows: a machine that was too busy to ask in one says nothing about that one.
    ///
    /// A window is charged bucket by bucket, so it must end up used if what the buckets before its last had certainly
    /// admitted, and what was sent and answered within the last (`answered`), come to the threshold.
    #[must_use]
    pub fn saturated(
        self,
        arrivals: &[Arrival],
        answered: &[Arrival],
        flood: Range<u64>,
        threshold: u64,
    ) -> Windows {
        let by_bucket = |requests: &[Arrival]| {
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            for request in requests {
                let bucket = request.sent_ns / self.bucket_ns;
                if bucket == request.arrived_ns / self.bucket_ns {
                    *counts.entry(bucket).or_default() += 1;
                }
            }
            counts
        };
        let (admitted, decided) = (by_bucket(arrivals), by_bucket(answered));
        let mut windows = self.count(arrivals, flood);
        for count in &mut windows.counts {
            let first = count.start_ns / self.bucket_ns;
            let last = first + self.buckets - 1;
            let before: u64 = admitted.range(first..last).map(|(_, count)| count).sum();
            count.full &= before + decided.get(&last).copied().unwrap_or(0) >= threshold;
        }
        windows
    }

    /// The first window that contains the moment.
    fn first_window_of(self, at_ns: u64) -> u64 {
        (at_ns / self.bucket_ns + 1).saturating_sub(self.buckets)
    }
}

/// What one window admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Where the window begins, wall clock, nanoseconds.
    pub start_ns: u64,
    /// Whether the window lies wholly inside the flood.
    pub full: bool,
    /// How many requests arrived in it.
    pub admitted: u64,
    /// How many of those were sent before it began, so that an earlier window may have been charged.
    pub early: u64,
    /// How many arrived after it but were sent before its end, so that it may have been charged with them.
    pub late: u64,
}

/// Every window of a flood, in order.
#[derive(Clone, Debug)]
pub struct Windows {
    shape: Shape,
    counts: Vec<Count>,
}

impl Windows {
    /// All windows, the partly filled ones at both ends too.
    #[must_use]
    pub fn all(&self) -> &[Count] {
        &self.counts
    }

    /// The windows wholly inside the flood.
    pub fn full(&self) -> impl Iterator<Item = &Count> {
        self.counts.iter().filter(|count| count.full)
    }

    /// The most that arrived in any window, blur included.
    #[must_use]
    pub fn busiest(&self) -> u64 {
        self.counts.iter().map(|count| count.admitted).max().unwrap_or(0)
    }

    /// The most that any window was certainly charged with: sent and arrived inside it. Above the threshold, the
    /// limit has been broken, whatever the blur.
    #[must_use]
    pub fn busiest_certain(&self) -> u64 {
        self.counts.iter().map(|count| count.admitted - count.early).max().unwrap_or(0)
    }

    /// The least that arrived in any full window, blur included. `None`: no window was full.
    #[must_use]
    pub fn least(&self) -> Option<u64> {
        self.full().map(|count| count.admitted).min()
    }

    /// The least that any full window may have been charged with. Below the threshold, something was held back,
    /// whatever the blur.
    #[must_use]
    pub fn least_possible(&self) -> Option<u64> {
        self.full().map(|count| count.admitted + count.late).min()
    }

    /// The longest run of adjoining full windows: each begins where the one before it ends.
    #[must_use]
    pub fn run(&self) -> Vec<&Count> {
        let mut run: Vec<&Count> = Vec::new();
        for count in self.full() {
            let adjoins = |last: &&Count| last.start_ns + self.shape.window_ns() == count.start_ns;
            if run.last().is_none_or(adjoins) {
                run.push(count);
            }
        }
        run
    }

    /// The sum over [`run`](Self::run) less what may belong before it: above run × threshold, the limit has been broken.
    #[must_use]
    pub fn run_least(&self) -> u64 {
        let run = self.run();
        let early = run.first().map_or(0, |first| first.early);
        run.iter().map(|count| count.admitted).sum::<u64>().saturating_sub(early)
    }

    /// The sum over [`run`](Self::run) with what may belong to it and arrived after: below run × threshold, something
    /// was held back.
    #[must_use]
    pub fn run_most(&self) -> u64 {
        let run = self.run();
        let late = run.last().map_or(0, |last| last.late);
        run.iter().map(|count| count.admitted).sum::<u64>() + late
    }

    /// Whether no window, and no run of windows, shows more than `threshold`.
    #[must_use]
    pub fn never_over(&self, threshold: u64) -> bool {
        self.busiest_certain() <= threshold && self.run_least() <= threshold * self.windows_in_run()
    }

    /// Whether every full window, and all of them together, may have admitted at least 99 % of `threshold`; false
    /// when no window was full.
    #[must_use]
    pub fn hardly_under(&self, threshold: u64) -> bool {
        let enough = |admitted: u64, allowed: u64| admitted * 100 >= allowed * 99;
        self.least_possible().is_some_and(|least| enough(least, threshold))
            && enough(self.run_most(), threshold * self.windows_in_run())
    }

    fn windows_in_run(&self) -> u64 {
        u64::try_from(self.run().len()).unwrap_or(u64::MAX)
    }
}

const HALF_SECOND_MS: u64 = 500;
const NANOS_PER_MS: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = NANOS_PER_MS;

    fn at(sent_ms: u64, arrived_ms: u64) -> Arrival {
        Arrival { sent_ns: sent_ms * MS, arrived_ns: arrived_ms * MS }
    }

    fn shape_in_ms(stat_interval_ms: u64) -> (u64, u64) {
        let shape = Shape::of(stat_interval_ms);
        (shape.buckets, shape.bucket_ns / MS)
    }

    #[test]
    fn a_machine_that_stood_still_for_a_bucket_says_nothing_about_its_windows() {
        let shape = Shape::of(1000);
        let every =
            |from_ms: u64, to_ms: u64| (from_ms..to_ms).step_by(10).map(|ms| at(ms, ms + 1));
        let starts = |answered: &[Arrival], admitted: &[Arrival], threshold| {
            let windows = shape.saturated(admitted, answered, 0..3000 * MS, threshold);
            windows.full().map(|count| count.start_ns / MS).collect::<Vec<_>>()
        };
        let busy: Vec<_> = every(0, 3000).collect();
        assert_eq!(starts(&busy, &[], 40), [0, 500, 1000, 1500, 2000]);

        // What was sent at 1 s was answered at 1.6 s: in between nothing was decided.
        let stalled: Vec<_> =
            every(0, 1000).chain([at(1000, 1600)]).chain(every(1600, 3000)).collect();
        assert_eq!(starts(&stalled, &[], 40), [0, 1000, 1500, 2000]);
        // The buckets before the last have room for what they have admitted, and no more.
        let admitted: Vec<_> = every(500, 900).collect();
        assert_eq!(starts(&stalled, &admitted, 40), [0, 500, 1000, 1500, 2000]);
        assert_eq!(starts(&busy, &[], 51), [0; 0]);
    }

    #[test]
    fn multiples_of_half_a_second_slide_and_everything_else_tumbles() {
        assert_eq!(shape_in_ms(0), (2, 500));
        assert_eq!(shape_in_ms(1000), (2, 500));
        assert_eq!(shape_in_ms(500), (1, 500));
        assert_eq!(shape_in_ms(1500), (3, 500));
        assert_eq!(shape_in_ms(10_000), (20, 500));
        assert_eq!(shape_in_ms(100), (1, 100));
        assert_eq!(shape_in_ms(700), (1, 700));
        assert_eq!(shape_in_ms(10_500), (1, 10_500));
        assert_eq!(shape_in_ms(20_000), (1, 20_000));
    }

    #[test]
    fn a_sliding_window_is_counted_at_each_half_second() {
        let windows = Shape::of(1000)
            .count(&[at(1100, 1101), at(1600, 1601), at(2100, 2101)], 1000 * MS..3000 * MS);

        let full: Vec<_> =
            windows.full().map(|count| (count.start_ns / MS, count.admitted)).collect();
        assert_eq!(full, [(1000, 2), (1500, 2), (2000, 1)]);
        assert_eq!(windows.busiest(), 2);
        assert_eq!(windows.least(), Some(1));
    }

    #[test]
    fn a_window_that_the_flood_covers_only_in_part_is_not_full() {
        let windows = Shape::of(100).count(&[at(1000, 1001), at(1150, 1151)], 1050 * MS..1199 * MS);

        assert_eq!(windows.least(), None);
        assert!(!windows.hardly_under(0));
        assert_eq!(windows.busiest(), 1);
    }

    #[test]
    fn an_empty_full_window_counts_as_nothing_admitted() {
        let windows = Shape::of(100).count(&[at(1000, 1001)], 1000 * MS..1200 * MS);

        assert_eq!(windows.least(), Some(0));
        assert!(!windows.hardly_under(1));
    }

    #[test]
    fn what_arrives_just_after_the_edge_breaks_no_limit_and_fills_both_windows() {
        // One a window; the first was decided at 1099.9 and arrived at 1100.3.
        let windows = Shape::of(100).count(&[at(1099, 1100), at(1110, 1111)], 1000 * MS..1200 * MS);

        assert_eq!(windows.busiest(), 2);
        assert_eq!(windows.busiest_certain(), 1);
        assert_eq!(windows.least(), Some(0));
        assert_eq!(windows.least_possible(), Some(1));
        assert!(windows.never_over(1) && windows.hardly_under(1));
    }

    #[test]
    fn one_too_many_inside_a_window_is_over() {
        let windows = Shape::of(100).count(&[at(1010, 1011), at(1020, 1021)], 1000 * MS..1100 * MS);

        assert!(windows.never_over(2));
        assert!(!windows.never_over(1));
    }

    #[test]
    fn blur_hides_neither_too_many_nor_too_few_over_a_run_of_windows() {
        // Each request is sent in one window and arrives in the next, so no single window convicts.
        let two_each: Vec<_> =
            (10..20).flat_map(|window| [at(window * 100 + 99, window * 100 + 101); 2]).collect();
        let windows = Shape::of(100).count(&two_each, 1000 * MS..2000 * MS);

        assert_eq!(windows.busiest_certain(), 0);
        assert!(!windows.never_over(1));
        assert!(windows.never_over(2) && windows.hardly_under(2));
        assert!(!windows.hardly_under(3));
    }

    #[test]
    fn a_run_takes_windows_that_do_not_overlap() {
        let windows = Shape::of(1000).count(&[], 1000 * MS..3600 * MS);

        let starts: Vec<_> = windows.run().iter().map(|count| count.start_ns / MS).collect();
        assert_eq!(starts, [1000, 2000]);
    }
}
