//! What `cargo xtask bench accuracy` does: limits under flood, for every mix of workers and threshold.
//!
//! The integration tests run the same floods.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use crate::bootstrap::{Bootstrap, Sentinel};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Until};
use crate::upstream::Upstream;
use crate::windows::{Arrival, Shape, Windows};
use crate::{clock, load, rules};

/// Limits that are flooded side by side in one Envoy, each on a resource of its own.
#[derive(Clone, Debug)]
pub struct Flood {
    /// Envoy's worker threads.
    pub workers: u32,
    /// Clients' connections.
    pub connections: u32,
    /// The limits.
    pub limits: Vec<Allowance>,
}

/// So many requests in each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests.
    pub threshold: u32,
    /// The window's `statIntervalInMs`.
    pub stat_interval_ms: u32,
}

impl Allowance {
    /// In windows of one second.
    #[must_use]
    pub fn per_second(threshold: u32) -> Self {
        Self { threshold, stat_interval_ms: 1000 }
    }

    fn shape(self) -> Shape {
        Shape::of(u64::from(self.stat_interval_ms))
    }

    fn path(self) -> String {
        format!("/{}-in-{}-ms", self.threshold, self.stat_interval_ms)
    }

    fn rule(self) -> Value {
        json!({
            "id": format!("{}-in-{}-ms", self.threshold, self.stat_interval_ms),
            "resource": format!("GET:{}", self.path()),
            "threshold": self.threshold,
            "statIntervalInMs": self.stat_interval_ms,
        })
    }

    /// Requests a second to offer: several times the threshold, within what one small machine can carry.
    fn offered(self) -> u32 {
        let per_second = u64::from(self.threshold) * 1000 / u64::from(self.stat_interval_ms.max(1));
        u32::try_from(per_second.saturating_mul(4)).unwrap_or(u32::MAX).clamp(400, 12_000)
    }
}

impl Flood {
    fn longest(&self) -> Duration {
        let longest = self.limits.iter().map(|limit| limit.shape().window_ns()).max();
        Duration::from_nanos(longest.unwrap_or(0))
    }

    /// Long enough for one full window of each limit and some buckets more.
    fn duration(&self) -> Duration {
        (self.longest() + Duration::from_secs(1)).max(Duration::from_secs(4))
    }

    /// Runs it in an Envoy of its own; one outcome for each limit.
    ///
    /// # Errors
    ///
    /// When Envoy does not start or clients cannot connect.
    pub fn run(&self, binary: &Path, dist: &Path) -> Result<Vec<Outcome>> {
        let upstream = Upstream::start(0)?;
        let rules: Vec<_> = self.limits.iter().map(|limit| limit.rule()).collect();
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream: upstream.address(),
            sentinel: Some(Sentinel::with_rules(dist, &[rules::flow_rules(&rules)])?),
            console_port: 0,
            access_log: None,
        };
        let envoy = Envoy::start(binary, self.workers, &bootstrap)?;
        for limit in &self.limits {
            wait_for_bucket(limit.shape());
        }
        let asks: Vec<_> = self
            .limits
            .iter()
            .map(|limit| Ask::get(&limit.path()).weight(limit.offered()))
            .collect();
        let report = load::run(&Plan {
            server: envoy.proxy(),
            rate: Rate::PerSecond(asks.iter().map(|ask| ask.weight).sum()),
            asks,
            connections: self.connections,
            until: Until::Elapsed(self.duration()),
        })?;
        let arrivals = upstream.take();
        let outcome = |limit: &Allowance| {
            let name = format!("GET:{}", limit.path());
            let arrived = arrivals.get(&name).map_or(&[][..], Vec::as_slice);
            Outcome::of(self, *limit, &report, &name, arrived)
        };
        Ok(self.limits.iter().map(outcome).collect())
    }

    /// Runs it again where the machine was too busy to offer each limit more than it allows in a single window, from the third
    /// time on with half of what such a limit allows: the outcome says what was tried.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and when the machine stays too busy.
    pub fn run_saturated(&self, binary: &Path, dist: &Path) -> Result<Vec<Outcome>> {
        let mut flood = self.clone();
        for number in 1..=TRIES {
            let outcomes = flood.run(binary, dist)?;
            // What was exceeded was exceeded, however busy the machine.
            if outcomes.iter().all(|outcome| outcome.was_saturated() || !outcome.never_over()) {
                return Ok(outcomes);
            }
            for (limit, outcome) in flood.limits.iter_mut().zip(&outcomes) {
                if number > 1 && !outcome.was_saturated() {
                    limit.threshold = limit.threshold.div_ceil(2);
                }
            }
        }
        bail!(
            "the machine is too busy to offer more than {:?} allow: run it again with less beside it",
            flood.limits
        )
    }
}

/// What became of one limit.
#[derive(Clone, Debug)]
pub struct Outcome {
    workers: u32,
    connections: u32,
    limit: Allowance,
    /// Requests a second for this limit.
    offered: u64,
    /// Whether each request was answered, with 200 or a rule's refusal.
    pub answered: bool,
    /// What arrived, by window.
    pub windows: Windows,
    /// The same; full are only those in which more was asked for than allowed.
    pub saturated: Windows,
}

impl Outcome {
    fn of(
        flood: &Flood,
        limit: Allowance,
        report: &Report,
        name: &str,
        arrived: &[Arrival],
    ) -> Self {
        let seen = report.asks.get(name).cloned().unwrap_or_default();
        let threshold = u64::from(limit.threshold);
        let span_ms = (report.span_ns.end - report.span_ns.start) / 1_000_000;
        Self {
            workers: flood.workers,
            connections: flood.connections,
            limit,
            offered: (seen.sent() * 1000).checked_div(span_ms).unwrap_or(0),
            answered: seen.status(200) + seen.refused() == seen.sent(),
            windows: limit.shape().count(arrived, report.span_ns.clone()),
            saturated: limit.shape().saturated(
                arrived,
                &seen.answered,
                report.span_ns.clone(),
                threshold,
            ),
        }
    }

    /// Whether no window admitted more than the limit.
    #[must_use]
    pub fn never_over(&self) -> bool {
        self.windows.never_over(u64::from(self.limit.threshold))
    }

    /// Whether in any full window more was asked for than allowed; else nothing can be said about 99 %.
    #[must_use]
    pub fn was_saturated(&self) -> bool {
        self.saturated.full().next().is_some()
    }

    /// Whether the limit held and was used up in every window in which enough was asked for, and every request had an
    /// answer.
    #[must_use]
    pub fn exact(&self) -> bool {
        let used = self.saturated.hardly_under(u64::from(self.limit.threshold));
        self.answered && self.never_over() && used
    }

    fn verdict(&self) -> &'static str {
        match (self.never_over(), self.was_saturated(), self.exact()) {
            (false, ..) => "EXCEEDED",
            (true, false, _) => "not saturated",
            (true, true, false) => "NOT USED UP",
            (true, true, true) => "exact",
        }
    }
}

/// Lets time pass until shortly before a bucket begins, so that a flood meets a full window soon.
pub fn wait_for_bucket(shape: Shape) {
    let into = clock::wall_nanos() % shape.bucket_ns();
    let left = Duration::from_nanos(shape.bucket_ns() - into);
    clock::pause(left.saturating_sub(BEFORE_BUCKET));
}

/// Every number of workers with every threshold, in windows of one second.
#[must_use]
pub fn floods() -> Vec<Flood> {
    let mut floods = Vec::new();
    for workers in [1, 2, 4, 8] {
        for (connections, thresholds) in [(32, &[1, 7, 100][..]), (64, &[1000]), (128, &[4000])] {
            let limits =
                thresholds.iter().map(|threshold| Allowance::per_second(*threshold)).collect();
            floods.push(Flood { workers, connections, limits });
        }
    }
    floods
}

/// Windows of every kind: shorter than half a second, with a bucket array of their own, shared and long, tumbling and
/// long. The short ones are flooded by themselves, for a few seconds: in each of their windows the machine must find
/// time to offer too much, and over 20 seconds a busy one does not.
#[must_use]
pub fn floods_of_window_lengths() -> [Flood; 2] {
    [[(20, 100), (150, 1500)], [(1000, 10_000), (1000, 20_000)]].map(|limits| {
        let limit = |(threshold, stat_interval_ms)| Allowance { threshold, stat_interval_ms };
        Flood { workers: 4, connections: 64, limits: limits.map(limit).into() }
    })
}

/// Runs all floods one after the other and prints the table. True when every limit was exact.
///
/// # Errors
///
/// As [`Flood::run_saturated`].
pub fn accuracy(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<bool> {
    let mut floods = floods();
    floods.extend(floods_of_window_lengths());
    writeln!(out, "{} floods, each in an Envoy of its own; about 2 minutes", floods.len())?;
    let mut outcomes = Vec::new();
    for (number, flood) in (1..).zip(&floods) {
        let limits: Vec<_> = flood.limits.iter().map(|limit| limit.threshold.to_string()).collect();
        writeln!(
            out,
            "  {number} of {}: {} workers, limits {}",
            floods.len(),
            flood.workers,
            limits.join(", ")
        )?;
        out.flush()?;
        outcomes.extend(flood.run_saturated(binary, dist)?);
    }
    writeln!(out, "{}", table(&outcomes))?;
    writeln!(
        out,
        "busiest, least: requests that arrived at the upstream in a window aligned to the Unix epoch; a request decided\n\
         just before a window's end may arrive just after it. saturated: windows in which more was asked for than allowed,\n\
         which the limit must be used up in. run: the sum over adjoining ones, where the blur at their edges cancels."
    )?;
    Ok(outcomes.iter().all(Outcome::exact))
}

/// The outcomes, one a line.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "workers",
        "connections",
        "limit",
        "offered/s",
        "saturated",
        "busiest",
        "least",
        "run",
        "verdict",
    ]);
    for outcome in outcomes {
        let Outcome { workers, connections, limit, offered, windows, saturated, .. } = outcome;
        let run = saturated.run();
        let allowed = u64::try_from(run.len()).unwrap_or(u64::MAX) * u64::from(limit.threshold);
        let admitted: u64 = run.iter().map(|count| count.admitted).sum();
        table.add_row([
            workers.to_string(),
            connections.to_string(),
            format!("{} in {} ms", limit.threshold, limit.stat_interval_ms),
            offered.to_string(),
            format!("{} of {}", saturated.full().count(), windows.full().count()),
            windows.busiest().to_string(),
            saturated.least().map_or_else(|| "none".to_owned(), |least| least.to_string()),
            format!("{admitted} of {allowed}"),
            outcome.verdict().to_owned(),
        ]);
    }
    table
}

const TRIES: u32 = 8;
const BEFORE_BUCKET: Duration = Duration::from_millis(300);
