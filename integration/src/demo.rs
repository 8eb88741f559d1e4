//! What `cargo xtask demo` does: limits under load in a real Envoy, judged from the outside.
//!
//! Every resource that a flow rule names is asked for at several times its limit, and beside them one that no rule
//! names. Then each limit is held against what arrived at the upstream, window by window. An arrival is a little
//! later than the decision it followed; what that blurs, and how it is judged, stands in [`windows`](crate::windows).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use crate::bootstrap::{Bootstrap, Sentinel};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Seen, Until};
use crate::rules::{self, Limit};
use crate::stats::Stats;
use crate::up::{Interrupt, write_addresses};
use crate::upstream::Upstream;
use crate::windows::{Arrival, Shape, Windows};
use crate::{clock, load};

/// What is shown, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// The directory with the two modules.
    pub dist: PathBuf,
    /// The directory with the rule files.
    pub rules: PathBuf,
    /// Envoy's worker threads, at least 1.
    pub workers: u32,
    /// How long traffic runs.
    pub traffic: Duration,
    /// Whether Envoy stays until interrupted.
    pub keep: bool,
}

/// Runs the demonstration and prints its table.
///
/// True only when no limit was exceeded, each saturated one was used to at least 99 %, requests were refused at all, and
/// the modules' own counters equal what the clients saw.
///
/// # Errors
///
/// When it could not be carried out: bad rules, an Envoy that does not start, clients that got no answer.
pub fn demo(options: &Options, out: &mut dyn Write) -> Result<bool> {
    let documents = rules::read(&options.rules)?;
    let limits = limits_to_show(rules::limits(&documents)).with_context(|| {
        format!("nothing to show with the rules in {}", options.rules.display())
    })?;
    let upstream = Upstream::start(0)?;
    let bootstrap = Bootstrap {
        port: 0,
        admin_port: 0,
        upstream: upstream.address(),
        sentinel: Some(Sentinel::with_rules(&options.dist, &documents)),
        access_log: None,
    };
    let envoy = Envoy::start(&options.envoy, options.workers, &bootstrap)?;
    writeln!(
        out,
        "Envoy runs with {} workers, both modules and {} limits",
        options.workers,
        limits.len()
    )?;
    write_addresses(out, &envoy, &upstream)?;

    let plan = Plan {
        server: envoy.proxy(),
        asks: asks(&limits),
        connections: CONNECTIONS,
        rate: Rate::PerSecond(asks(&limits).iter().map(|ask| ask.weight).sum()),
        until: Until::Elapsed(options.traffic),
    };
    let report = run_with_progress(&plan, &upstream, options.traffic, out)?;
    let arrivals = upstream.take();
    let verdicts: Vec<_> =
        limits.iter().map(|limit| Verdict::of(limit, &limits, &report, &arrivals)).collect();
    writeln!(out, "{}", table(&verdicts, &report))?;
    write_blur(out, &verdicts)?;

    let mut good = write_verdicts(out, &verdicts, &report)?;
    good &= write_answers(out, &report)?;
    good &= write_counters(out, &envoy, &limits, &report)?;
    if options.keep {
        writeln!(out, "kept running until Ctrl-C")?;
        write_addresses(out, &envoy, &upstream)?;
        let mut interrupt = Interrupt::new()?;
        while !interrupt.within(Duration::from_secs(3600)) {}
    }
    Ok(good)
}

/// The limits whose resource can be asked for: `METHOD:/path`.
fn limits_to_show(limits: Vec<Limit>) -> Result<Vec<Limit>> {
    let limits: Vec<_> =
        limits.into_iter().filter(|limit| method_and_path(&limit.resource).is_some()).collect();
    if limits.is_empty() {
        bail!("no flow rule names a resource such as GET:/hello");
    }
    Ok(limits)
}

fn method_and_path(resource: &str) -> Option<(&str, &str)> {
    resource.split_once(':').filter(|(method, path)| !method.is_empty() && path.starts_with('/'))
}

/// One kind of request for each resource, weighted by requests a second.
fn asks(limits: &[Limit]) -> Vec<Ask> {
    let mut wanted: BTreeMap<&str, f64> = BTreeMap::new();
    for limit in limits {
        let rate = wanted.entry(&limit.resource).or_default();
        *rate = rate.max(TIMES_OVER * per_second(limit)).max(LEAST_RATE);
    }
    let crowd: f64 = wanted.values().sum();
    let scale = (MOST_RATE / crowd).min(1.0);
    let mut asks: Vec<_> = wanted
        .into_iter()
        .filter_map(|(resource, rate)| {
            let (method, path) = method_and_path(resource)?;
            let ask =
                Ask { name: resource.to_owned(), method: method.to_owned(), ..Ask::get(path) };
            Some(ask.weight(whole(rate * scale)))
        })
        .collect();
    asks.push(Ask::get(FREE_PATH).weight(whole(LEAST_RATE)));
    asks
}

fn per_second(limit: &Limit) -> f64 {
    limit.threshold * 1000.0 / f64::from(u32::try_from(limit.stat_interval_ms).unwrap_or(u32::MAX))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are between 1 and MOST_RATE"
)]
fn whole(rate: f64) -> u32 {
    rate.clamp(1.0, MOST_RATE) as u32
}

fn run_with_progress(
    plan: &Plan,
    upstream: &Upstream,
    traffic: Duration,
    out: &mut dyn Write,
) -> Result<Report> {
    writeln!(out, "mixed traffic over {CONNECTIONS} connections for {} s", traffic.as_secs())?;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load::run(plan));
        let start = clock::now();
        let mut next = BETWEEN_SIGNS;
        while !load.is_finished() {
            clock::pause(Duration::from_millis(50));
            if clock::now() >= start + next {
                writeln!(
                    out,
                    "  {:>2} s: {} requests admitted so far",
                    next.as_secs(),
                    upstream.seen()
                )?;
                out.flush()?;
                next += BETWEEN_SIGNS;
            }
        }
        load.join().unwrap_or_else(|_| bail!("the load generator panicked, see above"))
    })
}

/// One limit, held against what arrived.
struct Verdict<'a> {
    limit: &'a Limit,
    windows: Windows,
    held: bool,
    /// Of a limit that was asked for more than it allows in each full window, and with no tighter one on its
    /// resource: whether at least 99 % was used.
    used: Option<bool>,
}

impl<'a> Verdict<'a> {
    fn of(
        limit: &'a Limit,
        all: &[Limit],
        report: &Report,
        arrivals: &BTreeMap<String, Vec<Arrival>>,
    ) -> Self {
        let shape = Shape::of(limit.stat_interval_ms);
        let arrived = arrivals.get(&limit.resource).map_or(&[][..], Vec::as_slice);
        let windows = shape.count(arrived, report.span_ns.clone());
        let answered = report.asks.get(&limit.resource).map_or(&[][..], |seen| &seen.answered);
        let demand = shape.demand(answered, report.span_ns.clone(), limit.requests());
        let tightest = all
            .iter()
            .filter(|other| other.resource == limit.resource)
            .all(|other| per_second(limit) <= per_second(other));
        let saturated = tightest && demand.is_some_and(|demand| demand >= limit.requests());
        let used = saturated.then(|| windows.hardly_under(limit.requests()));
        Self { limit, held: windows.never_over(limit.requests()), windows, used }
    }

    fn good(&self) -> bool {
        self.held && self.used.unwrap_or(true)
    }

    fn text(&self) -> String {
        let run = self.windows.run();
        let windows = run.len();
        match (self.held, self.used) {
            (false, _) => "EXCEEDED".to_owned(),
            (true, Some(false)) => {
                let admitted: u64 = run.iter().map(|count| count.admitted).sum();
                format!("NOT USED UP: {admitted} in {windows} windows")
            }
            (true, Some(true)) => format!("held and used up, {windows} windows"),
            (true, None) => "held".to_owned(),
        }
    }
}

fn table(verdicts: &[Verdict<'_>], report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "resource",
        "rule",
        "offered",
        "admitted",
        "blocked",
        "limit",
        "busiest window",
        "verdict",
    ]);
    let nothing = Seen::default();
    for verdict in verdicts {
        let limit = verdict.limit;
        let seen = report.asks.get(&limit.resource).unwrap_or(&nothing);
        let rule = limit.rule.as_deref().unwrap_or("(no id)");
        let blocked =
            limit.rule.as_deref().and_then(|rule| seen.by_rule.get(rule)).copied().unwrap_or(0);
        table.add_row([
            limit.resource.clone(),
            rule.to_owned(),
            seen.sent().to_string(),
            seen.status(200).to_string(),
            blocked.to_string(),
            limit.text(),
            verdict.windows.busiest().to_string(),
            verdict.text(),
        ]);
    }
    let free = format!("GET:{FREE_PATH}");
    let seen = report.asks.get(&free).unwrap_or(&nothing);
    let (sent, passed, refused) = (seen.sent(), seen.status(200), seen.refused());
    let verdict = if refused == 0 { "free" } else { "REFUSED" };
    table.add_row([
        free.as_str(),
        "none",
        &sent.to_string(),
        &passed.to_string(),
        &refused.to_string(),
        "none",
        "",
        verdict,
    ]);
    table
}

fn write_blur(out: &mut dyn Write, verdicts: &[Verdict<'_>]) -> Result<()> {
    writeln!(out, "busiest window: by arrival at the upstream, a little after Envoy's decision")?;
    for verdict in verdicts {
        let (busiest, certain) = (verdict.windows.busiest(), verdict.windows.busiest_certain());
        if verdict.held && busiest > verdict.limit.requests() {
            writeln!(
                out,
                "  {}: {busiest} arrived in one window of {}, some of them sent before it; sent and arrived in one window: {certain} at most",
                verdict.limit.resource,
                verdict.limit.text(),
            )?;
        }
    }
    Ok(())
}

fn write_verdicts(out: &mut dyn Write, verdicts: &[Verdict<'_>], report: &Report) -> Result<bool> {
    let blocked = report.refused();
    if blocked == 0 {
        writeln!(out, "FAILED: nothing was refused, so Sentinel does not seem to be in the path")?;
    }
    let held = verdicts.iter().filter(|verdict| verdict.held).count();
    let saturated = verdicts.iter().filter(|verdict| verdict.used.is_some()).count();
    let used = verdicts.iter().filter(|verdict| verdict.used == Some(true)).count();
    writeln!(
        out,
        "{held} of {} limits held; {used} of {saturated} saturated ones used to at least 99 %; {} requests a second offered",
        verdicts.len(),
        report.rate(),
    )?;
    Ok(blocked > 0 && verdicts.iter().all(Verdict::good))
}

/// Every request must have been answered with 200 or refused by a rule, and the free resource always by 200.
fn write_answers(out: &mut dyn Write, report: &Report) -> Result<bool> {
    let free = report
        .asks
        .get(&format!("GET:{FREE_PATH}"))
        .is_some_and(|seen| seen.status(200) == seen.sent());
    let answered = report.status(200) + report.refused() == report.sent();
    if !answered {
        let statuses: Vec<_> = report.asks.values().map(|seen| &seen.by_status).collect();
        writeln!(
            out,
            "FAILED: answers that are neither 200 nor a rule's refusal: {statuses:?}, errors: {:?}",
            report.errors()
        )?;
    }
    if !free {
        writeln!(
            out,
            "FAILED: requests for GET:{FREE_PATH}, which no rule names, did not all pass"
        )?;
    }
    Ok(answered && free)
}

/// What the modules counted must be what the clients saw.
fn write_counters(
    out: &mut dyn Write,
    envoy: &Envoy,
    limits: &[Limit],
    report: &Report,
) -> Result<bool> {
    let compare = |stats: &Stats| -> Vec<(String, u64, u64)> {
        let mut pairs = vec![
            ("pass_total".to_owned(), stats.total("pass_total"), report.status(200)),
            ("block_total".to_owned(), stats.total("block_total"), report.refused()),
        ];
        for rule in limits.iter().filter_map(|limit| limit.rule.as_deref()) {
            let seen = report.asks.values().filter_map(|seen| seen.by_rule.get(rule)).sum();
            pairs.push((
                format!("block_total of rule {rule}"),
                stats.rule(rule, "block_total"),
                seen,
            ));
        }
        pairs
    };
    let equal =
        clock::wait_for("the counters to equal what clients saw", COUNTERS_PATIENCE, || {
            let pairs = compare(&envoy.stats()?);
            Ok(pairs.iter().all(|(_, counted, seen)| counted == seen).then_some(pairs.len()))
        });
    if let Ok(counters) = equal {
        writeln!(out, "{counters} counters in /stats equal what the clients saw")?;
        return Ok(true);
    }
    for (name, counted, seen) in compare(&envoy.stats()?) {
        if counted != seen {
            writeln!(out, "FAILED: {name} in /stats is {counted}, but clients saw {seen}")?;
        }
    }
    Ok(false)
}

const CONNECTIONS: u32 = 64;
const TIMES_OVER: f64 = 3.0;
const LEAST_RATE: f64 = 100.0;
const MOST_RATE: f64 = 8000.0;
const FREE_PATH: &str = "/free";
const BETWEEN_SIGNS: Duration = Duration::from_secs(5);
const COUNTERS_PATIENCE: Duration = Duration::from_secs(5);
