//! Points and lengths of time.
//!
//! One clock serves all workers and the service: monotonic time plus the `t0` that the first instance
//! put into shared data. Its unit is the nanosecond, counted from the Unix epoch, so that windows are
//! aligned as Sentinel aligns them and as an operator's wall clock shows them.

use core::ops::{Add, Sub};

/// A point in time: nanoseconds since the Unix epoch by the shared clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Nanos {
    /// The point `nanos` after the epoch.
    pub const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The point `millis` after the epoch; saturates at the end of time (the year 2554).
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(NANOS_PER_MILLI))
    }

    /// Nanoseconds since the epoch.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this point; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A length of `nanos`.
    pub const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A length of `millis`; saturates.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(NANOS_PER_MILLI))
    }

    /// The length in nanoseconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / NANOS_PER_MILLI
    }

    /// Whole seconds, rounded up: the unit of `retry-after`.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(NANOS_PER_SECOND)
    }
}

impl Add<Span> for Nanos {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<Span> for Nanos {
    type Output = Self;

    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

const NANOS_PER_MILLI: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
