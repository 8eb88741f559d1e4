//! What `cargo xtask bench throughput` does: how many requests a second one worker carries, and how long they take, with and
//! without Sentinel.
//!
//! The set-up is the one in which MOSN measured its Wasm filter, so that its table can be set beside ours: answered by Envoy
//! itself, and by an upstream. Envoy with its one worker has one processor, what asks it and the upstream
//! (another Envoy) have the other: so Envoy is what gives out first. That it did is in the table, as the share of its
//! processor that it used.
//!
//! Throughput is counted by `wrk`, in short rounds in random order: the upper quartile of the rounds counts, since noise
//! only ever takes away. Times are taken at a fixed rate of 2,000 requests a second, at which nothing waits for anything else.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::clock;
use crate::cost::{
    BASE, FLOOR, GOVERNED, Modules, NATIVE, STOCK, Variant, Yardsticks, judge, percentile,
};
use crate::envoy::Envoy;
use crate::load::{self, Ask, Plan, Rate, Until};

/// Measures both set-ups and prints the tables. True when no more throughput is lost than the goals say.
///
/// # Errors
///
/// When there are fewer than two processors, an Envoy or `wrk` does not start, or requests are not answered.
pub fn throughput(binary: &Path, modules: &Modules, out: &mut dyn Write) -> Result<bool> {
    let mut holds = true;
    let yardsticks = Yardsticks::write()?;
    for set_up in [SetUp::Direct, SetUp::Upstream] {
        writeln!(
            out,
            "{}: {} Envoys with 1 worker each, {STARTS} times; then {ROUNDS} rounds of {} s at maximum rate over {CONNECTIONS} \
             connections, and of {} s at {RATE} requests a second",
            set_up.name(),
            VARIANTS.len(),
            ROUND.as_secs(),
            CALM.as_secs(),
        )?;
        out.flush()?;
        let [of_envoy, of_clients] = processors()?;
        let _back = Allowed::now()?;
        stay_on(of_clients)?;
        let upstream = Envoy::start_changed(binary, 1, &BASE.bootstrap(&modules.dist)?, |root| {
            Variant::answer_directly(root)
        })?;
        let mut measured: Vec<Measured> = Vec::new();
        for start in 0..STARTS {
            stay_on(of_envoy)?;
            for (place, variant) in VARIANTS.iter().enumerate() {
                let mut bootstrap = variant.bootstrap(&modules.dist)?;
                bootstrap.upstream = upstream.proxy();
                let envoy = Envoy::start_changed(binary, 1, &bootstrap, |root| {
                    if set_up == SetUp::Direct {
                        Variant::answer_directly(root)?;
                    }
                    variant.put_filter(root, modules, &yardsticks)
                })?;
                match measured.get_mut(place) {
                    Some(known) => known.envoy = envoy,
                    None => measured.push(Measured::new(variant, envoy)),
                }
            }
            stay_on(of_clients)?;
            for _ in 0..ROUNDS {
                let mut order: Vec<_> = measured.iter_mut().collect();
                fastrand::shuffle(&mut order);
                for one in order {
                    one.round()?;
                }
            }
            writeln!(out, "  {} of {STARTS}", start + 1)?;
            out.flush()?;
        }
        writeln!(out, "{}", table(&measured)?)?;
        holds &= judge_goal(set_up, &measured, out)?;
    }
    Ok(holds)
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetUp {
    Direct,
    Upstream,
}

impl SetUp {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "answered by Envoy itself",
            Self::Upstream => "answered by an upstream",
        }
    }
}

/// A variant, its Envoy, and what was seen of it in each round so far.
struct Measured {
    variant: &'static Variant,
    envoy: Envoy,
    /// Requests a second at maximum rate.
    rates: Vec<f64>,
    /// Of its processor, at maximum rate.
    used: Vec<f64>,
    /// What requests took at the fixed rate, over all rounds.
    took: Vec<Duration>,
}

impl Measured {
    fn new(variant: &'static Variant, envoy: Envoy) -> Self {
        Self { variant, envoy, rates: Vec::new(), used: Vec::new(), took: Vec::new() }
    }

    fn round(&mut self) -> Result<()> {
        let (before, begin) = (self.envoy.cpu_time()?, clock::now());
        let rate = wrk(&self.envoy, &self.variant.ask())?;
        let used = self.envoy.cpu_time()?.saturating_sub(before);
        self.used.push(used.as_secs_f64() / begin.elapsed().as_secs_f64());
        self.rates.push(rate);
        let report = load::run(&Plan {
            server: self.envoy.proxy(),
            asks: vec![self.variant.ask()],
            connections: CONNECTIONS,
            rate: Rate::PerSecond(RATE),
            until: Until::Elapsed(CALM),
        })?;
        judge(self.variant, &report, &self.envoy)?;
        let answers = report.asks.values().flat_map(|seen| &seen.answered);
        let took = |ns: u64| Duration::from_nanos(ns);
        self.took
            .extend(answers.map(|answer| took(answer.arrived_ns.saturating_sub(answer.sent_ns))));
        Ok(())
    }

    /// Requests a second: the upper quartile of the rounds.
    fn rate(&self) -> Result<f64> {
        quartile(&self.rates).context("there was no round")
    }
}

/// The element below which three quarters of the others lie.
fn quartile(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? * 3 / 4).copied()
}

/// Requests a second of one round of `wrk`.
fn wrk(envoy: &Envoy, ask: &Ask) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--connections", &CONNECTIONS.to_string()]);
    command.args(["--duration", &format!("{}s", ROUND.as_secs())]);
    for (name, value) in &ask.headers {
        command.args(["--header", &format!("{name}: {value}")]);
    }
    command.arg(format!("http://{}{}", envoy.proxy(), ask.path));
    let output = command.output().context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx")) {
        bail!("not every request passed:{line}; {envoy:?}");
    }
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok()).with_context(|| {
        format!("wrk printed no rate: {text}{}", String::from_utf8_lossy(&output.stderr))
    })
}

fn table(measured: &[Measured]) -> Result<Table> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "variant",
        "requests/s",
        "lost",
        "of its processor",
        "average",
        "p75",
        "p90",
        "p99",
    ]);
    let base = measured.first().context("there is nothing to compare with")?.rate()?;
    for one in measured {
        let rate = one.rate()?;
        let used = quartile(&one.used).unwrap_or_default();
        let micros = |time: Duration| format!("{:.0} µs", time.as_secs_f64() * 1e6);
        let part = |percent| percentile(&one.took, percent).map(micros).unwrap_or_default();
        let count = u32::try_from(one.took.len().max(1)).unwrap_or(u32::MAX);
        table.add_row([
            one.variant.name.to_owned(),
            format!("{rate:.0}"),
            format!("{:.1} %", (1.0 - rate / base) * 100.0),
            format!("{:.0} %", used * 100.0),
            micros(one.took.iter().sum::<Duration>() / count),
            part(75),
            part(90),
            part(99),
        ]);
    }
    Ok(table)
}

/// What was promised, and whether it holds.
fn judge_goal(set_up: SetUp, measured: &[Measured], out: &mut dyn Write) -> Result<bool> {
    let rate = |variant: &Variant| {
        let one = measured.iter().find(|one| one.variant.name == variant.name);
        one.context("a variant is missing")?.rate()
    };
    let base = rate(&BASE)?;
    let lost = |variant: &Variant| -> Result<f64> { Ok(1.0 - rate(variant)? / base) };
    let ours = lost(&GOVERNED)?;
    let (most, of) = match set_up {
        SetUp::Direct => (lost(&STOCK)? * 1.15, "1.15 × what the filter on the stock SDK costs"),
        SetUp::Upstream => (MOSN_LOST / 2.0, "half of what MOSN measured"),
    };
    let met = ours <= most;
    writeln!(
        out,
        "throughput lost with one flow rule: {:.1} %, by its calls alone {:.1} %; at most {:.1} % ({of}): {}",
        ours * 100.0,
        lost(&FLOOR)? * 100.0,
        most * 100.0,
        if met { "met" } else { "MISSED" }
    )?;
    Ok(met)
}

/// The first processor that we may use and the last.
fn processors() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(None).context("cannot ask which processors we may use")?;
    let mut all = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    match (all.next(), all.next_back()) {
        (Some(first), Some(last)) => Ok([first, last]),
        _ => bail!("this takes two processors: one for Envoy, one for what asks it"),
    }
}

/// This thread and what it starts from now on.
fn stay_on(processor: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(processor);
    sched_setaffinity(None, &one).context("cannot stay on one processor")
}

/// The processors that were allowed, and are again when this is dropped.
struct Allowed(CpuSet);

impl Allowed {
    fn now() -> Result<Self> {
        Ok(Self(sched_getaffinity(None).context("cannot ask which processors we may use")?))
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        // Unless a processor has gone: then one is as good as any.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// The first is what the others are compared with.
static VARIANTS: [Variant; 5] = [BASE, NATIVE, STOCK, FLOOR, GOVERNED];
/// Where a process happens to have its memory costs up to a tenth, for as long as it runs.
const STARTS: u32 = 3;
const ROUNDS: u32 = 4;
const ROUND: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(1);
const CONNECTIONS: u32 = 16;
const RATE: u32 = 2000;
/// Of the maximum throughput, for a Wasm filter that adds one header.
const MOSN_LOST: f64 = 0.26;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_quartile_of_twelve_rounds_is_the_ninth_smallest() {
        let rates: Vec<_> = (1..=12).rev().map(f64::from).collect();
        assert_eq!(quartile(&rates), Some(9.0));
        assert_eq!(quartile(&[]), None);
    }
}
