//! What `cargo xtask demo` does: rules of every kind under load in a real Envoy, judged from the outside.
//!
//! What each rule speaks of is asked for at several times its limit ([`parts`]), and then held against what arrived at the
//! upstream ([`verdict`]). For some seconds the upstream is ill, so that circuit breakers open, and well again, so that they
//! close. At the end more is asked for than the whole proxy may bear. An arrival is a little later than the decision it
//! followed; what that blurs, and how it is judged, stands in [`windows`](crate::windows).

mod parts;
mod verdict;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

use crate::bootstrap::{Bootstrap, Sentinel, shipped_filter};
use crate::demo::parts::{Judge, Parts};
use crate::demo::verdict::{Observed, Verdict};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Until};
use crate::stats::Stats;
use crate::up::{Interrupt, write_addresses};
use crate::upstream::{Behaviour, Upstream};
use crate::{clock, load, rules};

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
    /// How long traffic runs, ten seconds or more.
    pub traffic: Duration,
    /// Whether Envoy stays until interrupted.
    pub keep: bool,
}

/// Runs the demonstration and prints its table.
///
/// True only when no limit was exceeded, each saturated one was used to at least 99 %, breakers opened and closed, requests
/// were refused at all, and the modules' own counters equal what the clients saw.
///
/// # Errors
///
/// When it could not be carried out: bad rules, an Envoy that does not start, clients that got no answer.
pub fn demo(options: &Options, out: &mut dyn Write) -> Result<bool> {
    let documents = rules::read(&options.rules)?;
    let mut parts = Parts::of(&documents, &filter_args()?);
    if parts.parts.is_empty() {
        bail!(
            "nothing to show with the rules in {}: none is of a resource such as GET:/hello",
            options.rules.display()
        );
    }
    let free = Ask::get(FREE_PATH).weight(100);
    parts.asks.insert(free.name.clone(), free);
    let upstream = Upstream::start(0)?;
    for (name, behaviour) in &parts.behaviours {
        upstream.behave(name, *behaviour);
    }
    let bootstrap = Bootstrap {
        port: 0,
        admin_port: 0,
        upstream: upstream.address(),
        sentinel: Some(Sentinel::with_rules(&options.dist, &documents)?),
        console_port: 0,
        access_log: None,
    };
    let envoy = Envoy::start(&options.envoy, options.workers, &bootstrap)?;
    writeln!(
        out,
        "Envoy runs with {} workers, both modules and the rules in {}",
        options.workers,
        options.rules.display()
    )?;
    write_addresses(out, &envoy, &upstream)?;

    let stage = Stage { envoy: &envoy, upstream: &upstream, parts: &parts };
    let seen = stage.play(options.traffic, out)?;
    let verdicts: Vec<_> =
        parts.parts.iter().map(|part| Verdict::of(part, &parts.parts, &seen)).collect();
    writeln!(out, "{}", table(&verdicts, &seen.report))?;
    write_notes(out, &verdicts, &parts.others)?;

    let mut good = write_verdicts(out, &verdicts, &seen.report)?;
    good &= write_answers(out, &seen)?;
    good &= write_counters(out, &envoy, &seen)?;
    if options.keep {
        writeln!(out, "kept running until Ctrl-C")?;
        write_addresses(out, &envoy, &upstream)?;
        let mut interrupt = Interrupt::new()?;
        while !interrupt.within(Duration::from_secs(3600)) {}
    }
    Ok(good)
}

/// What `paramIndex` counts in the configuration that users get.
fn filter_args() -> Result<Vec<String>> {
    let filter = shipped_filter()?;
    let args = filter.get("args").and_then(Value::as_array);
    Ok(args.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Who plays, and what.
struct Stage<'a> {
    envoy: &'a Envoy,
    upstream: &'a Upstream,
    parts: &'a Parts,
}

impl Stage<'_> {
    /// All rules at once, with an illness in between; and then a crowd.
    fn play(&self, traffic: Duration, out: &mut dyn Write) -> Result<Observed> {
        let crowded = self.parts.parts.iter().find_map(|part| {
            if let Judge::System(limit) = &part.judge { Some(limit.threshold) } else { None }
        });
        let crowd_for = if crowded.is_some() { CROWD } else { Duration::ZERO };
        let asks: Vec<_> = self.parts.asks.values().cloned().collect();
        let mut seen = Observed::default();
        let mix = self.plan(asks, traffic.saturating_sub(crowd_for));
        writeln!(
            out,
            "mixed traffic over {CONNECTIONS} connections for {} s; the upstream of what has a circuit breaker is ill from \
             second {} to {}",
            traffic.as_secs(),
            ILL.0.as_secs(),
            ILL.1.as_secs(),
        )?;
        seen.report = self.run(&mix, &mut seen, out)?;
        if let Some(threshold) = crowded {
            let crowd = self.plan(crowd(threshold), crowd_for);
            let report = self.run(&crowd, &mut seen, out)?;
            seen.crowd_ns = report.span_ns.clone();
            seen.report.asks.extend(report.asks);
        }
        for part in &self.parts.parts {
            for name in &part.names {
                seen.open.insert(name.clone(), self.upstream.open(name));
            }
        }
        seen.arrivals = self.upstream.take();
        Ok(seen)
    }

    fn plan(&self, asks: Vec<Ask>, span: Duration) -> Plan {
        Plan {
            server: self.envoy.proxy(),
            rate: Rate::PerSecond(asks.iter().map(|ask| ask.weight).sum()),
            asks,
            connections: CONNECTIONS,
            until: Until::Elapsed(span),
        }
    }

    /// Sends the load; meanwhile lets the upstream fall ill and recover, and watches the breakers.
    fn run(&self, plan: &Plan, seen: &mut Observed, out: &mut dyn Write) -> Result<Report> {
        let breakers: Vec<_> = self
            .parts
            .parts
            .iter()
            .filter(|part| matches!(part.judge, Judge::Breaker { .. }))
            .collect();
        let ill = |behaviour| {
            for name in breakers.iter().flat_map(|part| &part.names) {
                self.upstream.behave(name, behaviour);
            }
        };
        let first = seen.ill_ns.start == 0;
        std::thread::scope(|scope| {
            let load = scope.spawn(|| load::run(plan));
            let start = clock::now();
            let mut next_sign = BETWEEN_SIGNS;
            while !load.is_finished() {
                clock::pause(Duration::from_millis(50));
                let since = since(start);
                if first && seen.ill_ns.start == 0 && since >= ILL.0 {
                    seen.ill_ns = clock::wall_nanos()..0;
                    ill(Behaviour::status(503).after_ms(250));
                }
                if seen.ill_ns.end == 0 && seen.ill_ns.start > 0 && since >= ILL.1 {
                    ill(Behaviour::default());
                    seen.ill_ns.end = clock::wall_nanos();
                }
                if !breakers.is_empty() {
                    let stats =
                        Stats::parse(&self.envoy.ask_admin("/stats?filter=breaker_state$")?);
                    for part in &breakers {
                        note_state(seen, &part.rule, stats.rule(&part.rule, "breaker_state"));
                    }
                }
                if since >= next_sign {
                    writeln!(
                        out,
                        "  {:>2} s: {} requests admitted so far",
                        next_sign.as_secs(),
                        self.upstream.seen()
                    )?;
                    out.flush()?;
                    next_sign += BETWEEN_SIGNS;
                }
            }
            load.join().unwrap_or_else(|_| bail!("the load generator panicked, see above"))
        })
    }
}

fn since(start: Instant) -> Duration {
    clock::now().saturating_duration_since(start)
}

fn note_state(seen: &mut Observed, rule: &str, state: u64) {
    let transitions = seen.transitions.entry(rule.to_owned()).or_default();
    // All begin closed.
    if transitions.last().map_or(0, |(_, last)| *last) != state {
        transitions.push((clock::wall_nanos(), state));
    }
}

/// More than the proxy may bear, over many resources.
fn crowd(threshold: f64) -> Vec<Ask> {
    let each = format!("{:.0}", threshold * 1.5 / 10.0).parse().unwrap_or(1);
    (0..10).map(|place| Ask::get(&format!("/crowd/{place}")).weight(each)).collect()
}

fn table(verdicts: &[Verdict], report: &Report) -> Table {
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
    for verdict in verdicts {
        table.add_row([
            verdict.resource.clone(),
            verdict.rule.clone(),
            verdict.offered.to_string(),
            verdict.admitted.to_string(),
            verdict.blocked.to_string(),
            verdict.limit.clone(),
            verdict.busiest.clone(),
            verdict.text.clone(),
        ]);
    }
    let free = format!("GET:{FREE_PATH}");
    let seen = report.asks.get(&free).cloned().unwrap_or_default();
    let verdict = if seen.refused() == 0 { "free" } else { "REFUSED" };
    let (sent, passed, refused) = (seen.sent(), seen.status(200), seen.refused());
    table.add_row([
        free.as_str(),
        "none of its own",
        &sent.to_string(),
        &passed.to_string(),
        &refused.to_string(),
        "",
        "",
        verdict,
    ]);
    table
}

fn write_notes(out: &mut dyn Write, verdicts: &[Verdict], others: &[String]) -> Result<()> {
    writeln!(out, "busiest window: by arrival at the upstream, a little after Envoy's decision")?;
    for verdict in verdicts {
        if let Some(note) = &verdict.note {
            writeln!(out, "  {}: {note}", verdict.rule)?;
        }
    }
    if !others.is_empty() {
        writeln!(out, "in force, but not shown here: {}", others.join(", "))?;
    }
    Ok(())
}

fn write_verdicts(out: &mut dyn Write, verdicts: &[Verdict], report: &Report) -> Result<bool> {
    let blocked = report.refused();
    if blocked == 0 {
        writeln!(out, "FAILED: nothing was refused, so Sentinel does not seem to be in the path")?;
    }
    let held = verdicts.iter().filter(|verdict| verdict.held).count();
    let saturated = verdicts.iter().filter(|verdict| verdict.used.is_some()).count();
    let used = verdicts.iter().filter(|verdict| verdict.used == Some(true)).count();
    writeln!(
        out,
        "{held} of {} held; {used} of {saturated} saturated windows used to at least 99 %; {} requests a second offered",
        verdicts.len(),
        report.rate(),
    )?;
    Ok(blocked > 0 && verdicts.iter().all(Verdict::good))
}

/// Every request must have arrived at the upstream or been refused by a rule, and the free ones must all have arrived.
fn write_answers(out: &mut dyn Write, seen: &Observed) -> Result<bool> {
    let report = &seen.report;
    let arrived =
        |name: &str| u64::try_from(seen.arrivals.get(name).map_or(0, Vec::len)).unwrap_or(u64::MAX);
    let lost: Vec<_> = report
        .asks
        .iter()
        .filter(|(name, asked)| arrived(name) + asked.refused() != asked.sent())
        .map(|(name, asked)| (name, asked.sent(), arrived(name), &asked.by_status))
        .collect();
    if !lost.is_empty() {
        writeln!(
            out,
            "FAILED: requests that neither arrived nor were refused by a rule (name, sent, arrived, answers): {lost:?}, errors: {:?}",
            report.errors()
        )?;
    }
    let free = report.asks.get(&format!("GET:{FREE_PATH}"));
    let free = free.is_some_and(|seen| seen.status(200) == seen.sent());
    if !free {
        writeln!(
            out,
            "FAILED: requests for GET:{FREE_PATH}, far below any limit, did not all pass"
        )?;
    }
    Ok(lost.is_empty() && free)
}

/// What the modules counted must be what the clients saw.
fn write_counters(out: &mut dyn Write, envoy: &Envoy, seen: &Observed) -> Result<bool> {
    let report = &seen.report;
    let mut by_rule: BTreeMap<&str, u64> = BTreeMap::new();
    for (rule, count) in report.asks.values().flat_map(|asked| &asked.by_rule) {
        *by_rule.entry(rule).or_default() += count;
    }
    let compare = |stats: &Stats| -> Vec<(String, u64, u64)> {
        let passed = report.sent() - report.refused();
        let mut pairs = vec![
            ("pass_total".to_owned(), stats.total("pass_total"), passed),
            ("block_total".to_owned(), stats.total("block_total"), report.refused()),
        ];
        for (rule, seen) in &by_rule {
            let name = format!("block_total of rule {rule}");
            pairs.push((name, stats.rule(rule, "block_total"), *seen));
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
    let stats = envoy.stats().context("the counters could not be compared")?;
    for (name, counted, seen) in compare(&stats) {
        if counted != seen {
            writeln!(out, "FAILED: {name} in /stats is {counted}, but clients saw {seen}")?;
        }
    }
    Ok(false)
}

const CONNECTIONS: u32 = 192;
const FREE_PATH: &str = "/free";
/// From when to when the upstream is ill.
const ILL: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(6));
/// How long the crowd stays.
const CROWD: Duration = Duration::from_secs(3);
const BETWEEN_SIGNS: Duration = Duration::from_secs(5);
const COUNTERS_PATIENCE: Duration = Duration::from_secs(5);
