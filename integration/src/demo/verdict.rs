//! What came of each part: held or not, and the row of the table.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::demo::parts::{Judge, Part, per_second};
use crate::load::Report;
use crate::pacing::Pace;
use crate::rules::Limit;
use crate::upstream::Open;
use crate::windows::{Arrival, Shape};

/// All that was seen from outside.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) report: Report,
    /// By the names of asks.
    pub(super) arrivals: BTreeMap<String, Vec<Arrival>>,
    pub(super) open: BTreeMap<String, Open>,
    /// When a breaker was seen in another state, wall clock, nanoseconds, by rule.
    pub(super) transitions: BTreeMap<String, Vec<(u64, u64)>>,
    /// When the upstream was ill.
    pub(super) ill_ns: Range<u64>,
    /// While more was asked for than the whole proxy may bear.
    pub(super) crowd_ns: Range<u64>,
}

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) resource: String,
    pub(super) rule: String,
    pub(super) limit: String,
    pub(super) offered: u64,
    pub(super) admitted: u64,
    pub(super) blocked: u64,
    /// The busiest window, or what is as good.
    pub(super) busiest: String,
    pub(super) text: String,
    pub(super) held: bool,
    /// Of a limit that was asked for more than it allows all the time: whether at least 99 % was used.
    pub(super) used: Option<bool>,
    /// What a reader should know besides.
    pub(super) note: Option<String>,
}

/// What a judge says.
struct Opinion {
    busiest: String,
    text: String,
    held: bool,
    used: Option<bool>,
    note: Option<String>,
}

impl Opinion {
    fn plain(held: bool, busiest: String, text: impl Into<String>) -> Self {
        let text = if held { text.into() } else { format!("EXCEEDED: {}", text.into()) };
        Self { busiest, text, held, used: None, note: None }
    }
}

impl Verdict {
    pub(super) fn of(part: &Part, all: &[Part], seen: &Observed) -> Self {
        let names: Vec<&String> = if let Judge::System(_) = part.judge {
            seen.report.asks.keys().collect()
        } else {
            part.names.iter().collect()
        };
        let mut arrived: Vec<Arrival> =
            names.iter().filter_map(|name| seen.arrivals.get(*name)).flatten().copied().collect();
        arrived.sort_unstable_by_key(|arrival| arrival.arrived_ns);
        let asked = || names.iter().filter_map(|name| seen.report.asks.get(*name));
        let blocked: u64 = asked().filter_map(|seen| seen.by_rule.get(&part.rule)).sum();
        let opinion = match &part.judge {
            Judge::Windows(limit) => {
                let answered: Vec<_> = asked().flat_map(|seen| seen.answered.clone()).collect();
                windows(limit, part, all, &arrived, &answered, seen.report.span_ns.clone())
            }
            Judge::System(limit) => system(limit, &arrived, seen),
            Judge::Pace(interval) => pace(*interval, &arrived),
            Judge::WarmUp { threshold, cold_factor } => {
                warm_up(*threshold, *cold_factor, &arrived, &seen.report.span_ns)
            }
            Judge::AtATime(threshold) => {
                let most =
                    names.iter().filter_map(|name| seen.open.get(*name)).map(|open| open.most);
                let most = most.max().unwrap_or(0);
                Opinion::plain(most <= *threshold, format!("{most} at a time"), "held")
            }
            Judge::Bucket { threshold, burst, duration } => {
                bucket(*threshold, *burst, *duration, &arrived)
            }
            Judge::Refuses(refuses) => {
                let held = if *refuses { arrived.is_empty() } else { blocked == 0 };
                Opinion::plain(
                    held,
                    String::new(),
                    if *refuses { "nobody passed" } else { "all passed" },
                )
            }
            Judge::GivesWay => {
                let sent: u64 = asked().map(|seen| seen.sent()).sum();
                let share = blocked * 100 / sent.max(1);
                Opinion::plain(share >= 60, String::new(), format!("gave way: {share} % refused"))
            }
            Judge::Breaker { probes, retry } => {
                let none = Vec::new();
                let transitions = seen.transitions.get(&part.rule).unwrap_or(&none);
                breaker(*probes, *retry, &arrived, transitions, seen)
            }
        };
        Self {
            resource: part.resource.clone(),
            rule: part.rule.clone(),
            limit: part.limit.clone(),
            offered: asked().map(|seen| seen.sent()).sum(),
            admitted: u64::try_from(arrived.len()).unwrap_or(u64::MAX),
            blocked,
            busiest: opinion.busiest,
            text: opinion.text,
            held: opinion.held,
            used: opinion.used,
            note: opinion.note,
        }
    }

    pub(super) fn good(&self) -> bool {
        self.held && self.used.unwrap_or(true)
    }
}

fn windows(
    limit: &Limit,
    part: &Part,
    all: &[Part],
    arrived: &[Arrival],
    answered: &[Arrival],
    span: Range<u64>,
) -> Opinion {
    let shape = Shape::of(limit.stat_interval_ms);
    let windows = shape.count(arrived, span.clone());
    let held = windows.never_over(limit.requests());
    // Only the tightest limit of a resource can be used up; a threshold by memory may be lower than it says.
    let by_memory = part.limit.ends_with("by memory");
    let tightest = !by_memory
        && all.iter().filter(|other| other.resource == part.resource).all(|other| {
            matches!(&other.judge, Judge::Windows(other) if per_second(limit) <= per_second(other))
        });
    let shared = all.iter().any(|other| {
        other.rule != part.rule && other.names.iter().any(|name| part.names.contains(name))
    });
    let asked = shape.saturated(arrived, answered, span, limit.requests());
    let saturated = tightest && !shared && asked.full().next().is_some();
    let used = saturated.then(|| asked.hardly_under(limit.requests()));
    let run = asked.run();
    let text = match (held, used) {
        (false, _) => "EXCEEDED".to_owned(),
        (true, Some(false)) => {
            let admitted: u64 = run.iter().map(|count| count.admitted).sum();
            format!("NOT USED UP: {admitted} in {} windows", run.len())
        }
        (true, Some(true)) => format!("held and used up, {} windows", run.len()),
        (true, None) => "held".to_owned(),
    };
    let (busiest, certain) = (windows.busiest(), windows.busiest_certain());
    let note = (held && busiest > limit.requests()).then(|| {
        format!(
            "{busiest} arrived in one window of {}, some of them sent before it; sent and arrived in one window: {certain} at most",
            limit.text()
        )
    });
    Opinion { busiest: busiest.to_string(), text, held, used, note }
}

fn system(limit: &Limit, arrived: &[Arrival], seen: &Observed) -> Opinion {
    let windows = Shape::of(limit.stat_interval_ms).count(arrived, seen.crowd_ns.clone());
    let held = windows.never_over(limit.requests());
    let text = if windows.hardly_under(limit.requests()) { "held and used up" } else { "held" };
    let mut opinion = Opinion::plain(held, windows.busiest().to_string(), text);
    opinion.note = (held && windows.busiest() > limit.requests()).then(|| {
        format!("{} at most were sent and arrived in one window", windows.busiest_certain())
    });
    opinion
}

fn pace(interval: Duration, arrived: &[Arrival]) -> Opinion {
    let pace = Pace::of(arrived, interval);
    let text = if pace.ahead == 0 {
        format!("never ahead of its pace, {} in all", pace.count)
    } else {
        format!("{} too early", pace.ahead)
    };
    Opinion::plain(pace.ahead == 0, peak(arrived, Duration::from_secs(1)).to_string(), text)
}

fn warm_up(threshold: u64, cold_factor: u64, arrived: &[Arrival], span: &Range<u64>) -> Opinion {
    let windows = Shape::of(1000).count(arrived, span.clone());
    let full: Vec<u64> = windows.full().map(|count| count.admitted).collect();
    let (first, last) = (full.first().copied().unwrap_or(0), full.last().copied().unwrap_or(0));
    // A third, and a step of the curve, and what a window's edge blurs.
    let cold = threshold / cold_factor.max(1) + threshold / 6 + 1;
    let held = windows.never_over(threshold) && first <= cold && last > first;
    Opinion::plain(
        held,
        windows.busiest().to_string(),
        format!("warmed up from {first} to {last} a second"),
    )
}

/// A bucket gives at most what it holds and what flows into it.
fn bucket(threshold: u64, burst: u64, duration: Duration, arrived: &[Arrival]) -> Opinion {
    let first = arrived.iter().map(|arrival| arrival.sent_ns).min().unwrap_or_default();
    let duration_ns = duration.as_nanos().max(1);
    let held = (1_u128..).zip(arrived).all(|(count, arrival)| {
        let since = u128::from(arrival.arrived_ns.saturating_sub(first));
        let inflow = since * u128::from(threshold) / duration_ns;
        count <= u128::from(threshold) + u128::from(burst) + inflow
    });
    Opinion::plain(held, peak(arrived, duration).to_string(), "held")
}

fn breaker(
    probes: u64,
    retry: Duration,
    arrived: &[Arrival],
    transitions: &[(u64, u64)],
    seen: &Observed,
) -> Opinion {
    let opened = transitions.iter().find(|(_, state)| *state == OPEN).map(|(at, _)| *at);
    let closed = transitions.last().is_some_and(|(_, state)| *state == CLOSED);
    let since_start = |at: u64| Duration::from_nanos(at.saturating_sub(seen.report.span_ns.start));
    let story = transitions.iter().fold("closed".to_owned(), |story, (at, state)| {
        let name = match *state {
            OPEN => "open",
            CLOSED => "closed",
            _ => "half-open",
        };
        format!("{story} → {name} {:.1} s", since_start(*at).as_secs_f64())
    });
    let Some(opened) = opened else {
        return Opinion::plain(false, String::new(), "it never opened");
    };
    let open = opened..seen.ill_ns.end;
    let tried = arrived.iter().filter(|arrival| open.contains(&arrival.arrived_ns)).count();
    let chances = Duration::from_nanos(open.end.saturating_sub(open.start)).as_nanos()
        / retry.as_nanos().max(1);
    let allowed = u128::from(probes) * (chances + 1);
    let held = closed && u128::try_from(tried).is_ok_and(|tried| tried <= allowed);
    let mut opinion =
        Opinion::plain(held, format!("{tried} while ill"), "opened, tried and closed");
    opinion.note = Some(story);
    opinion
}

/// The most that arrived within any such stretch of time.
fn peak(arrived: &[Arrival], span: Duration) -> usize {
    let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let count = |(from, first): (usize, &Arrival)| {
        let end = first.arrived_ns.saturating_add(span_ns);
        arrived.iter().skip(from).take_while(|arrival| arrival.arrived_ns < end).count()
    };
    arrived.iter().enumerate().map(count).max().unwrap_or(0)
}

/// Values of the gauge `breaker_state`.
const CLOSED: u64 = 0;
const OPEN: u64 = 2;
