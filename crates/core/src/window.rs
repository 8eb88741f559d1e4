//! Which slices of time a rule adds up.
//!
//! Sentinel counts in buckets aligned to the epoch; a window is the current bucket and those before it
//! that still count. With two buckets of 500 ms a window of a second slides by half a second; with one
//! bucket it tumbles. Source of the table: sentinel-golang `core/flow/rule_manager.go:generateStatFor`
//! and `core/base/stat.go:CheckValidityForReuseStatistic`.

use core::num::NonZeroU64;

use crate::time::{Nanos, Span};

/// The most buckets that a window has: 10 s in slices of 500 ms.
pub const BUCKETS_MAX: usize = 20;

/// A window as a number of equal buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowShape {
    bucket_ns: NonZeroU64,
    buckets: u8,
}

/// The index of one bucket since the epoch, for one [`WindowShape`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketId(u64);

impl WindowShape {
    /// The window of a flow rule. 500 ms to 10 s in whole steps of 500 ms slide by 500 ms; every other
    /// length is one bucket and tumbles. 0 means Sentinel's default, 1000.
    pub fn for_flow(stat_interval_ms: u32) -> Self {
        let interval_ms = if stat_interval_ms == 0 { 1_000 } else { stat_interval_ms };
        if (500..=10_000).contains(&interval_ms) && interval_ms.is_multiple_of(500) {
            // At most 20, as the range says.
            let buckets = u8::try_from(interval_ms / 500).unwrap_or(1);
            Self::new(500, buckets)
        } else {
            Self::new(u64::from(interval_ms), 1)
        }
    }

    /// `buckets` slices of `bucket_ms`; each is at least 1, and there are at most [`BUCKETS_MAX`].
    pub fn new(bucket_ms: u64, buckets: u8) -> Self {
        let bucket_ns =
            NonZeroU64::new(Span::from_millis(bucket_ms).get()).unwrap_or(NonZeroU64::MIN);
        // BUCKETS_MAX fits a byte: asserted below.
        #[expect(clippy::cast_possible_truncation, reason = "BUCKETS_MAX is asserted to fit")]
        let buckets = buckets.clamp(1, BUCKETS_MAX as u8);
        Self { bucket_ns, buckets }
    }

    /// How many buckets a window has.
    pub fn buckets(self) -> u8 {
        self.buckets
    }

    /// The length of one bucket.
    pub fn bucket(self) -> Span {
        Span::new(self.bucket_ns.get())
    }

    /// The length of the whole window.
    pub fn window(self) -> Span {
        Span::new(self.bucket_ns.get().saturating_mul(u64::from(self.buckets)))
    }

    /// The bucket that `now` falls in.
    pub fn bucket_at(self, now: Nanos) -> BucketId {
        BucketId(now.get() / self.bucket_ns)
    }

    /// When `bucket` begins.
    pub fn start_of(self, bucket: BucketId) -> Nanos {
        Nanos::new(bucket.0.saturating_mul(self.bucket_ns.get()))
    }

    /// Whether what was counted in `bucket` still counts in the window that ends with `current`.
    pub fn counts(self, bucket: BucketId, current: BucketId) -> bool {
        bucket <= current && bucket.age_at(current) < u64::from(self.buckets)
    }
}

/// Whether a window can be read from another array instead of having one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It can: its length divides the array's, and its buckets are whole ones of the array.
    Possible,
    /// It cannot.
    Impossible,
    /// The window has no buckets of whole milliseconds.
    NoWindow,
    /// The array has none.
    NoArray,
}

/// Whether a window of `buckets` over `interval_ms` can be read from an array of `array_buckets` over
/// `array_interval_ms` (sentinel-golang `core/base/stat.go:CheckValidityForReuseStatistic`). Where it can, a
/// rule without a ledger need not count for itself.
pub const fn reuse(
    buckets: u32,
    interval_ms: u32,
    array_buckets: u32,
    array_interval_ms: u32,
) -> Reuse {
    let Some(bucket_ms) = divided(interval_ms, buckets) else { return Reuse::NoWindow };
    let Some(array_bucket_ms) = divided(array_interval_ms, array_buckets) else {
        return Reuse::NoArray;
    };
    if array_interval_ms.is_multiple_of(interval_ms) && bucket_ms.is_multiple_of(array_bucket_ms) {
        Reuse::Possible
    } else {
        Reuse::Impossible
    }
}

/// An interval's part, if it is a whole number of milliseconds.
const fn divided(interval_ms: u32, parts: u32) -> Option<u32> {
    if interval_ms == 0 || parts == 0 || !interval_ms.is_multiple_of(parts) {
        return None;
    }
    Some(interval_ms / parts)
}

impl BucketId {
    /// The bucket with this index.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The index since the epoch.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The bucket `count` later.
    pub const fn later(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// How many buckets old this one is when `current` is the current one; 0 if it is later.
    pub const fn age_at(self, current: Self) -> u64 {
        current.0.saturating_sub(self.0)
    }
}

const _: () = assert!(BUCKETS_MAX <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_shape(interval_ms: u32, buckets: u8, bucket_ms: u64) {
        assert_eq!(WindowShape::for_flow(interval_ms), WindowShape::new(bucket_ms, buckets));
    }

    #[test]
    fn a_flow_rule_reads_the_window_that_sentinel_reads() {
        check_shape(0, 2, 500);
        check_shape(100, 1, 100);
        check_shape(500, 1, 500);
        check_shape(700, 1, 700);
        check_shape(1_000, 2, 500);
        check_shape(1_500, 3, 500);
        check_shape(5_000, 10, 500);
        check_shape(10_000, 20, 500);
        check_shape(10_500, 1, 10_500);
        check_shape(20_000, 1, 20_000);
        check_shape(u32::MAX, 1, u64::from(u32::MAX));
    }

    #[test]
    fn a_window_is_read_from_an_array_whose_buckets_it_is_made_of() {
        assert_eq!(reuse(2, 1_000, 20, 10_000), Reuse::Possible);
        assert_eq!(reuse(3, 1_500, 20, 10_000), Reuse::Impossible);
        assert_eq!(reuse(2, 1_000, 10, 10_000), Reuse::Impossible);
        assert_eq!(reuse(3, 1_000, 20, 10_000), Reuse::NoWindow);
        assert_eq!(reuse(2, 1_000, 0, 10_000), Reuse::NoArray);
    }

    #[test]
    fn a_bucket_counts_until_it_is_a_whole_window_old() {
        let shape = WindowShape::for_flow(1_000);
        let bucket = shape.bucket_at(Nanos::from_millis(499));

        assert!(shape.counts(bucket, shape.bucket_at(Nanos::from_millis(999))));
        assert!(!shape.counts(bucket, shape.bucket_at(Nanos::from_millis(1_000))));
    }

    #[test]
    fn a_later_bucket_does_not_count_in_an_earlier_window() {
        let shape = WindowShape::for_flow(1_000);

        assert!(!shape.counts(BucketId::new(5), BucketId::new(4)));
    }
}
