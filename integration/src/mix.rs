//! Limits of several kinds at once, each asked for at several times what it allows, and whether they held.
//!
//! This is what is on an Envoy while tests and the soak do it harm. A stretch of load is judged as a whole ([`Stretch`]): what
//! must hold whatever happens is [`Stretch::exceeded`]; that limits are used up as well ([`Stretch::unused`]) can be asked of
//! stretches without harm. What clients were told is added up over all stretches ([`Books`]) and held against the modules' counters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::clock;
use crate::load::{Ask, Report, Seen};
use crate::stats::Stats;
use crate::upstream::{Behaviour, RESOURCE, Upstream};
use crate::windows::{Arrival, Shape};

/// The rules, as kind and YAML mappings.
pub const RULES: [(&str, &[&str]); 4] = [
    (
        "FlowRules",
        &[
            "{id: limited, resource: 'GET:/limited', threshold: 100}",
            "{id: free, resource: 'GET:/free', threshold: 1000000}",
        ],
    ),
    ("IsolationRules", &["{id: slow, resource: 'GET:/slow', threshold: 8}"]),
    (
        "HotspotRules",
        &[
            "{id: user, resource: 'GET:/home', metricType: QPS, threshold: 5, durationInSec: 1, paramKey: 'header:x-user'}",
        ],
    ),
    (
        "CircuitBreakerRules",
        &[
            "{id: ill, resource: 'GET:/ill', strategy: ErrorCount, threshold: 5, minRequestAmount: 1, statIntervalMs: 10000, retryTimeoutMs: 500}",
            "{id: well, resource: 'GET:/well', strategy: ErrorRatio, threshold: 50, minRequestAmount: 20, statIntervalMs: 1000, retryTimeoutMs: 500}",
        ],
    ),
];

/// The mix.
#[must_use]
pub fn asks() -> Vec<Ask> {
    let mut asks: Vec<_> =
        [("/limited", 400), ("/slow", 300), ("/ill", 100), ("/well", 100), ("/free", 200)]
            .map(|(path, weight)| Ask::get(path).weight(weight))
            .into();
    asks.extend((1..=USERS).map(|user| {
        let user = format!("{USER}{user}");
        let ask = Ask::get("/home").header("x-user", &user).header(RESOURCE, &user).weight(30);
        Ask { name: user, ..ask }
    }));
    asks
}

/// Requests a second of the mix, so that each limit is asked for at several times what it allows.
#[must_use]
pub fn per_second() -> u32 {
    asks().iter().map(|ask| ask.weight).sum()
}

/// Lets the upstream be as the mix wants it.
pub fn prepare(upstream: &Upstream) {
    upstream.behave("GET:/slow", Behaviour::default().after_ms(40));
    upstream.behave("GET:/ill", Behaviour::status(500));
}

/// What clients and the upstream saw of the mix for a while.
#[derive(Debug)]
pub struct Stretch {
    report: Report,
    arrivals: BTreeMap<String, Vec<Arrival>>,
    most_slow: u64,
}

impl Stretch {
    /// Takes from the upstream what has arrived since the stretch before.
    #[must_use]
    pub fn of(report: Report, upstream: &Upstream) -> Self {
        let most_slow = upstream.open("GET:/slow").most;
        Self { report, arrivals: upstream.take(), most_slow }
    }

    /// What clients saw of one kind of request.
    #[must_use]
    pub fn seen(&self, name: &str) -> Seen {
        self.report.asks.get(name).cloned().unwrap_or_default()
    }

    /// From the first request sent to the last, wall clock, nanoseconds.
    #[must_use]
    pub fn span_ns(&self) -> Range<u64> {
        self.report.span_ns.clone()
    }

    /// The most requests for `GET:/slow` that were open at a time.
    #[must_use]
    pub fn most_slow(&self) -> u64 {
        self.most_slow
    }

    /// What arrived at the upstream under this name.
    #[must_use]
    pub fn arrived(&self, name: &str) -> &[Arrival] {
        self.arrivals.get(name).map_or(&[], Vec::as_slice)
    }

    /// What a limit did not hold, in words. A breaker must have been open for `GET:/ill` when the stretch began.
    #[must_use]
    pub fn exceeded(&self) -> Vec<String> {
        let mut exceeded = Vec::new();
        let limited = Shape::of(1000).count(self.arrived("GET:/limited"), self.span_ns());
        if !limited.never_over(LIMITED) {
            exceeded.push(format!("more than {LIMITED} in a window: {:?}", limited.all()));
        }
        if self.most_slow > SLOW {
            exceeded.push(format!("{} at a time, not {SLOW}", self.most_slow));
        }
        for user in (1..=USERS).map(|user| format!("{USER}{user}")) {
            exceeded.extend(over_by_value(&user, self.arrived(&user)));
        }
        // A probe that failed opens it again, for as long as before the probe. One whose worker has died is followed by
        // another as long after it was let through, which was before it arrived.
        for pair in self.arrived("GET:/ill").windows(2) {
            if let [before, after] = pair
                && after.arrived_ns < before.sent_ns + RETRY.saturating_sub(CLOCKS)
            {
                exceeded.push(format!("the open breaker let through {before:?} and {after:?}"));
            }
        }
        let free = self.seen("GET:/free");
        if free.refused() > 0 {
            exceeded.push(format!("a request with room was refused: {:?}", free.by_rule));
        }
        exceeded
    }

    /// What a limit held back, in words: in windows in which enough was asked for, and decided.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let mut unused = Vec::new();
        let seen = self.seen("GET:/limited");
        let windows = Shape::of(1000).saturated(
            self.arrived("GET:/limited"),
            &seen.answered,
            self.span_ns(),
            LIMITED,
        );
        if windows.full().next().is_some() && !windows.hardly_under(LIMITED) {
            unused.push(format!("less than {LIMITED} in a window: {:?}", windows.all()));
        }
        if self.most_slow < SLOW && self.seen("GET:/slow").refused() > 0 {
            unused.push(format!("only {} at a time, not {SLOW}", self.most_slow));
        }
        unused
    }

    /// How many requests, of whatever kind, were open at some time between these two, of those that were answered.
    #[must_use]
    pub fn open_within(&self, from_ns: u64, to_ns: u64) -> u64 {
        let mut count = 0;
        for seen in self.report.asks.values() {
            let answered = seen.answered.iter();
            count += answered.filter(|at| at.sent_ns <= to_ns && at.arrived_ns >= from_ns).count();
        }
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// What a user was given beyond the threshold for each duration that has begun since the first.
fn over_by_value(user: &str, arrived: &[Arrival]) -> Option<String> {
    let first_sent = arrived.iter().map(|arrival| arrival.sent_ns).min()?;
    let mut by_filling: BTreeMap<u64, u64> = BTreeMap::new();
    for arrival in arrived {
        *by_filling.entry((arrival.arrived_ns - first_sent) / SECOND).or_default() += 1;
    }
    let mut sum = 0;
    for (filling, count) in by_filling {
        sum += count;
        // Before the first of these it may just have been filled, a stretch ago.
        if sum > HOME * (filling + 2) {
            return Some(format!("{user} got {sum} in {} seconds", filling + 1));
        }
    }
    None
}

/// What clients were told, by resource, over all stretches.
#[derive(Clone, Debug, Default)]
pub struct Books {
    by_resource: BTreeMap<String, Told>,
}

/// What became of the requests for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// Answered by the upstream.
    served: u64,
    /// Refused by a rule.
    refused: u64,
    /// Answered by Envoy with a 503 or 408 of its own, or not at all.
    unserved: u64,
    /// Broken off by their clients.
    aborted: u64,
}

/// Whether requests that Envoy answered with a 503 of its own, or not at all, had passed the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// All of them.
    Passed,
    /// None of them.
    NeverAsked,
    /// Nobody can tell.
    Either,
}

impl Books {
    /// Enters what clients were told in a stretch.
    pub fn enter(&mut self, stretch: &Stretch) {
        for (name, seen) in &stretch.report.asks {
            // Has no series of its own.
            if name.starts_with(OTHER) {
                continue;
            }
            let told = self.told(name);
            let of_breakers = ["ill", "well"].map(|rule| seen.by_rule.get(rule).copied());
            let breakers: u64 = of_breakers.into_iter().flatten().sum();
            let refused = seen.refused();
            let of_envoy = seen.status(503).saturating_sub(breakers) + seen.status(408);
            let unserved = of_envoy + seen.errors.values().sum::<u64>();
            told.refused += refused;
            told.unserved += unserved;
            told.served += seen.sent().saturating_sub(refused + unserved);
        }
    }

    /// Enters so many requests for this resource that their clients broke off.
    pub fn enter_aborted(&mut self, resource: &str, count: u64) {
        self.told(resource).aborted += count;
    }

    fn told(&mut self, name: &str) -> &mut Told {
        let resource = if name.starts_with(USER) { "GET:/home" } else { name };
        self.by_resource.entry(resource.to_owned()).or_default()
    }

    /// How many requests the upstream answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.by_resource.values().map(|told| told.served).sum()
    }

    /// How many requests Envoy answered with a 503 of its own, or not at all.
    #[must_use]
    pub fn unserved(&self) -> u64 {
        self.by_resource.values().map(|told| told.unserved).sum()
    }

    /// Where the modules' counters differ from this, in words. At most `may_miss` requests in all may be missing.
    #[must_use]
    pub fn miscounted(&self, stats: &Stats, unserved: Unserved, may_miss: u64) -> Vec<String> {
        let mut miscounted = Vec::new();
        let mut missed = 0;
        for (resource, told) in &self.by_resource {
            let (surely, maybe) = match unserved {
                Unserved::Passed => (told.unserved, 0),
                Unserved::NeverAsked => (0, 0),
                Unserved::Either => (0, told.unserved),
            };
            let pass = stats.resource(resource, "pass_total");
            let block = stats.resource(resource, "block_total");
            let least = told.served + surely;
            let most = least + maybe + told.aborted;
            let too_many = pass > most
                || block > told.refused + told.aborted
                || pass + block > most + told.refused;
            if too_many {
                miscounted
                    .push(format!("{resource}: {pass} passed and {block} refused, but {told:?}"));
            }
            missed += least.saturating_sub(pass) + told.refused.saturating_sub(block);
        }
        if missed > may_miss {
            miscounted.push(format!(
                "{missed} requests are missing from the totals, {may_miss} may be: {:?}",
                self.by_resource
            ));
        }
        let (passed, completed) = (stats.total("pass_total"), stats.total("complete_total"));
        if may_miss == 0 && passed != completed {
            miscounted.push(format!("{passed} requests passed, but {completed} ended"));
        }
        miscounted
    }

    /// How many requests are missing from the counters, of those that were surely counted.
    #[must_use]
    pub fn missing(&self, stats: &Stats) -> u64 {
        let missing = self.by_resource.iter().map(|(resource, told)| {
            let counted = |name| stats.resource(resource, name);
            told.served.saturating_sub(counted("pass_total"))
                + told.refused.saturating_sub(counted("block_total"))
        });
        missing.sum()
    }
}

/// What the machinery says of itself that it never should, in words.
#[must_use]
pub fn unsound(stats: &Stats) -> Vec<String> {
    let never = ["ledger_failures", "frames_lost", "workers_over", "service_conflict"];
    let said = never.map(|name| (name, stats.total(name)));
    let bad = said.into_iter().filter(|(_, value)| *value > 0);
    bad.map(|(name, value)| format!("{name} is {value}")).collect()
}

/// Waits until the breaker of `GET:/ill` has opened, for half a minute at most; load must be on.
///
/// # Errors
///
/// When it has not.
pub fn wait_until_ill(upstream: &Upstream) -> anyhow::Result<()> {
    clock::wait_for("the breaker of what is ill to open", Duration::from_secs(30), || {
        let before = upstream.arrived("GET:/ill");
        clock::pause(Duration::from_millis(200));
        let after = upstream.arrived("GET:/ill");
        // In these 200 ms some twenty are asked for.
        Ok((before >= 5 && after <= before + 1).then_some(()))
    })
}

/// How the names of requests begin that no rule names, but a pattern or group does: they are counted with `other`.
pub const OTHER: &str = "other: ";
/// What `GET:/limited` may have in a second.
pub const LIMITED: u64 = 100;
/// What `GET:/slow` may have at a time.
pub const SLOW: u64 = 8;
/// What each user may have of `GET:/home` in a second.
const HOME: u64 = 5;
const USERS: u32 = 4;
const USER: &str = "user-";
const SECOND: u64 = 1_000_000_000;
/// How long the breaker of `GET:/ill` is open before a probe.
const RETRY: u64 = 500_000_000;
/// What Envoy's clock and the upstream's may differ by.
const CLOCKS: u64 = 5_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(passed: u64, refused: u64) -> Stats {
        Stats::parse(&format!(
            "wasmcustom.sentinel.resource.a.pass_total: {passed}\n\
             wasmcustom.sentinel.resource.a.rule.r.type.FlowControl.block_total: {refused}\n"
        ))
    }

    fn books(told: Told) -> Books {
        Books { by_resource: BTreeMap::from([("a".to_owned(), told)]) }
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_found_in_the_counters() {
        let books = books(Told { served: 10, refused: 5, unserved: 3, aborted: 0 });
        let found = |passed, refused, unserved, may_miss| {
            books.miscounted(&stats(passed, refused), unserved, may_miss).len()
        };

        assert_eq!(found(10, 5, Unserved::NeverAsked, 1), 0);
        assert_eq!(found(11, 5, Unserved::NeverAsked, 1), 1);
        assert_eq!(found(13, 5, Unserved::Passed, 1), 0);
        assert_eq!(found(13, 6, Unserved::Passed, 1), 1);
        assert_eq!(found(12, 5, Unserved::Either, 1), 0);
        assert_eq!(found(14, 5, Unserved::Either, 1), 1);
        assert_eq!(found(9, 4, Unserved::NeverAsked, 1), 1);
        assert_eq!(found(9, 4, Unserved::NeverAsked, 2), 0);
        assert_eq!(books.missing(&stats(8, 5)), 2);
    }

    #[test]
    fn an_aborted_request_is_counted_once_at_most() {
        let books = books(Told { served: 10, refused: 5, unserved: 0, aborted: 2 });
        let found = |passed, refused| {
            books.miscounted(&stats(passed, refused), Unserved::NeverAsked, 1).len()
        };

        assert_eq!([found(10, 5), found(12, 5), found(11, 6), found(10, 7)], [0; 4]);
        assert_eq!(found(12, 6), 1);
    }

    #[test]
    fn a_user_may_have_what_fills_a_bucket_before_the_first_request_and_no_more() {
        let at = |ms: u64| Arrival { sent_ns: ms * 1_000_000, arrived_ns: ms * 1_000_000 };
        let ten: Vec<_> = (0..10).map(|_| at(100)).collect();
        assert_eq!(over_by_value("user", &ten), None);
        let eleven: Vec<_> = (0..11).map(|_| at(100)).collect();
        assert!(over_by_value("user", &eleven).is_some());
    }
}
