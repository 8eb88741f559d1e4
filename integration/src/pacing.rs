//! Whether requests went at a pace, judged from when they were sent and when they arrived.
//!
//! The first slot is the moment at which the first request was decided: after it was sent and before it arrived. Each
//! slot after it is one interval later, as long as somebody waits. A request goes at its slot or after it and
//! arrives after that. So, with *n* counted from 0 in order of arrival,
//!
//! * the *n*th arrival is never before `first sent + n × interval`, whatever the machine does; and
//! * what it is later than `first arrival + n × interval` is lateness: the tick that wakes it, and the way.

use std::ops::Range;
use std::time::Duration;

use crate::windows::Arrival;

/// How requests went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// How many had arrived.
    pub count: usize,
    /// How many more had arrived, at the worst moment, than 1 + rate × elapsed allows; 0 if it held.
    pub ahead: u64,
    /// How late each was after its slot, ascending. Only means something while there was always somebody waiting.
    lateness_ns: Vec<u64>,
}

impl Pace {
    /// Judges arrivals that follow each other at `interval`.
    #[must_use]
    pub fn of(arrivals: &[Arrival], interval: Duration) -> Self {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mut arrived: Vec<_> = arrivals.iter().map(|arrival| arrival.arrived_ns).collect();
        arrived.sort_unstable();
        let first_sent = arrivals.iter().map(|arrival| arrival.sent_ns).min().unwrap_or_default();
        let first_arrived = arrived.first().copied().unwrap_or_default();
        let mut pace = Self { count: arrived.len(), ..Self::default() };
        for (number, at) in (0..).zip(&arrived) {
            let allowed = at.saturating_sub(first_sent) / interval_ns;
            pace.ahead = pace.ahead.max(u64::saturating_sub(number, allowed));
            pace.lateness_ns.push(at.saturating_sub(first_arrived + number * interval_ns));
        }
        pace.lateness_ns.sort_unstable();
        pace
    }

    /// The lateness that so many in a hundred did not exceed.
    #[must_use]
    pub fn late(&self, percent: usize) -> Duration {
        let last = self.lateness_ns.len().saturating_sub(1);
        let at = self.lateness_ns.get(last * percent.min(100) / 100);
        Duration::from_nanos(at.copied().unwrap_or_default())
    }

    /// The lateness as text.
    #[must_use]
    pub fn text(&self) -> String {
        let ms = |percent| self.late(percent).as_secs_f64() * 1000.0;
        format!("late by {:.1} ms (p50), {:.1} ms (p99), {:.1} ms at most", ms(50), ms(99), ms(100))
    }
}

/// How long the requests of `answered` that lie in `span` waited for their answers, ascending.
#[must_use]
pub fn waits(answered: &[Arrival], span: &Range<u64>) -> Vec<Duration> {
    let within = answered.iter().filter(|request| span.contains(&request.sent_ns));
    let mut waits: Vec<_> = within
        .map(|request| Duration::from_nanos(request.arrived_ns.saturating_sub(request.sent_ns)))
        .collect();
    waits.sort_unstable();
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sent_ms: u64, arrived_ms: u64) -> Arrival {
        Arrival { sent_ns: sent_ms * 1_000_000, arrived_ns: arrived_ms * 1_000_000 }
    }

    #[test]
    fn one_an_interval_is_in_time_and_a_late_one_only_late() {
        let pace = Pace::of(&[at(0, 1), at(0, 11), at(0, 29)], Duration::from_millis(10));

        assert_eq!((pace.count, pace.ahead), (3, 0));
        assert_eq!(pace.late(100), Duration::from_millis(8));
        assert_eq!(pace.late(50), Duration::ZERO);
    }

    #[test]
    fn two_at_once_are_one_too_many_and_so_are_two_after_a_rest() {
        let interval = Duration::from_millis(10);
        assert_eq!(Pace::of(&[at(0, 1), at(0, 1)], interval).ahead, 1);
        assert_eq!(Pace::of(&[at(0, 1), at(0, 9)], interval).ahead, 1);
        assert_eq!(Pace::of(&[], interval).ahead, 0);
    }
}
