//! `cargo xtask bench scale`: what grows with workers and thresholds.
//!
//! Every number of workers with every threshold is simulated, which follows from a seed alone, so that the chart in the
//! repository changes only when the engine does. The rest is measured on the real Envoy.

mod chart;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use sentinel_integration::scale;
use sentinel_sim::steady::{Outcome, Steady};

use crate::module_file;
use crate::modules::{self, Flavour};
use crate::workspace::Workspace;

const WORKERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const THRESHOLDS: [u32; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
const SEED: u64 = 7;

/// Half seconds that are looked at, unless that makes too many requests.
const HALVES_MOST: u32 = 40;
const REQUESTS_MOST: u32 = 400_000;

/// A plan and what came of it.
type Run = (Steady, Outcome);

/// Runs everything. True when all goals are met.
///
/// # Errors
/// If something cannot be set up, measured or written.
pub(crate) fn scale(
    workspace: &Workspace,
    binary: &Path,
    dist: &Path,
    out: &mut dyn Write,
) -> Result<bool> {
    let crowd = modules::build(workspace, Flavour::Crowd)?.folder.join("sentinel_crowd.wasm");
    let mut holds = simulated(workspace, out)?;
    holds &= sizes(dist, out)?;
    holds &= scale::service(binary, dist, &crowd, out)?;
    holds &= scale::at_rest(binary, dist, out)?;
    Ok(holds)
}

/// How large the modules are.
fn sizes(dist: &Path, out: &mut dyn Write) -> Result<bool> {
    let mut table = table();
    table.set_header(["module", "bytes that Envoy compiles", "of the file", "goal"]);
    let mut holds = true;
    for (name, most) in modules::shipped_sizes() {
        let file = dist.join(format!("{name}.wasm"));
        let module =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let compiled = module_file::compiled_bytes(&module);
        holds &= compiled < most;
        let goal = format!("below {most}: {}", if compiled < most { "met" } else { "NOT MET" });
        table.add_row([name.to_owned(), compiled.to_string(), module.len().to_string(), goal]);
    }
    writeln!(out, "{table}")?;
    Ok(holds)
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table
}

/// Runs all, prints the tables and writes the charts. True when each limit was exact and its claims fell with the threshold.
///
/// # Errors
/// If a chart cannot be written.
fn simulated(workspace: &Workspace, out: &mut dyn Write) -> Result<bool> {
    let plans: Vec<_> = THRESHOLDS
        .iter()
        .flat_map(|threshold| WORKERS.map(|workers| plan(workers, *threshold)))
        .collect();
    writeln!(
        out,
        "limits under a steady load on simulated workers, {} runs of the engine that ships; about half a minute",
        plans.len()
    )?;
    out.flush()?;
    let runs = run_all(&plans)?;
    let count = |of: fn(&Outcome) -> u64| {
        matrix(&runs, |(_, outcome)| small(outcome.per_request(of(outcome))))
    };
    writeln!(
        out,
        "\nadmitted in each window of a second, least to most (promised: 99 % of the threshold at least, and never more)\n{}",
        matrix(&runs, |(_, outcome)| span(&outcome.windows))
    )?;
    writeln!(
        out,
        "claims of the ledger for each admitted request (goal: below the bound in brackets, and fewer at each larger threshold)\n{}",
        matrix(&runs, |(plan, outcome)| format!(
            "{} ({})",
            small(outcome.per_request(outcome.claims)),
            small(plan.claims_most())
        ))
    )?;
    writeln!(
        out,
        "of them came second and were done again, for each admitted request\n{}",
        count(|outcome| outcome.mismatches)
    )?;
    writeln!(
        out,
        "calls of shared data for each admitted request, in all: claims, tokens that go back, heartbeats, the service\n{}",
        count(Outcome::calls)
    )?;
    for (theme, svg) in chart::charts(&runs)? {
        let file = workspace.path(format!("{CHARTS}/scale-{theme}.svg"));
        std::fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))?;
        writeln!(out, "written: {CHARTS}/scale-{theme}.svg")?;
    }
    let faults = faults(&runs);
    for fault in &faults {
        writeln!(out, "NOT MET: {fault}")?;
    }
    Ok(faults.is_empty())
}

/// Where charts stand, from the project's folder.
const CHARTS: &str = "crates/xtask/charts";

/// Twice what is allowed; of the largest, a tenth more, which is as much as a simulation gets through in time.
fn plan(workers: usize, threshold: u32) -> Steady {
    let offered = if threshold < 1_000_000 { threshold * 2 } else { threshold + threshold / 10 };
    let halves = (REQUESTS_MOST * 2 / offered).clamp(3, HALVES_MOST);
    Steady { workers, threshold, offered, halves, seed: SEED }
}

/// Runs them side by side, the longest first; in the order of the plans.
fn run_all(plans: &[Steady]) -> Result<Vec<Run>> {
    let next = AtomicUsize::new(0);
    let (done, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let done = done.clone();
            let next = &next;
            scope.spawn(move || {
                while let Some(place) =
                    plans.len().checked_sub(1 + next.fetch_add(1, Ordering::Relaxed))
                    && let Some(plan) = plans.get(place)
                {
                    // Nobody listens any more only if this function has ended.
                    let _heard = done.send((place, plan.run()));
                }
            });
        }
    });
    drop(done);
    let mut outcomes: Vec<_> = results.into_iter().collect();
    outcomes.sort_by_key(|(place, _)| *place);
    if outcomes.len() != plans.len() {
        bail!("some simulated run has panicked");
    }
    Ok(plans.iter().copied().zip(outcomes.into_iter().map(|(_, outcome)| outcome)).collect())
}

/// What does not hold, one sentence each.
fn faults(runs: &[Run]) -> Vec<String> {
    let mut faults = Vec::new();
    for (plan, outcome) in runs {
        let Steady { workers, threshold, .. } = plan;
        let what = format!("{threshold} a second on {workers} workers");
        if !plan.is_exact(outcome) {
            faults.push(format!("{what}: windows admitted {}", span(&outcome.windows)));
        }
        let claims = outcome.per_request(outcome.claims);
        if claims > plan.claims_most() {
            faults.push(format!("{what}: {} claims for each admitted request", small(claims)));
        }
        let smaller = runs
            .iter()
            .filter(|(other, _)| other.workers == *workers && other.threshold < *threshold)
            .map(|(_, outcome)| outcome.per_request(outcome.claims));
        if smaller.fold(f64::INFINITY, f64::min) <= claims {
            faults.push(format!(
                "{what}: no fewer claims for each request than at a smaller threshold"
            ));
        }
    }
    faults
}

/// One line for each threshold, one column for each number of workers.
fn matrix(runs: &[Run], cell: impl Fn(&Run) -> String) -> Table {
    let mut table = table();
    let workers = WORKERS.map(|workers| match workers {
        1 => "1 worker".to_owned(),
        workers => workers.to_string(),
    });
    table.set_header(std::iter::once("a second".to_owned()).chain(workers));
    for threshold in THRESHOLDS {
        let cells = runs.iter().filter(|(plan, _)| plan.threshold == threshold).map(&cell);
        table.add_row(std::iter::once(threshold.to_string()).chain(cells));
    }
    table
}

/// As exact as is of use: two digits, however small.
fn small(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        number if number < 0.000_1 => format!("{number:.6}"),
        number if number < 0.01 => format!("{number:.4}"),
        number if number < 1.0 => format!("{number:.3}"),
        number => format!("{number:.1}"),
    }
}

fn span(windows: &[u64]) -> String {
    match (windows.iter().min(), windows.iter().max()) {
        (Some(least), Some(most)) if least == most => least.to_string(),
        (Some(least), Some(most)) => format!("{least}–{most}"),
        _ => "no window".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_exceeded_or_costs_as_much_as_a_smaller_one_is_a_fault() {
        let run = |threshold: u32, window, claims| {
            let outcome = Outcome {
                admitted: u64::from(threshold),
                windows: vec![window],
                claims,
                ..Outcome::default()
            };
            (plan(2, threshold), outcome)
        };
        let good = [run(10, 10, 9), run(100, 99, 40)];
        assert_eq!(faults(&good), [""; 0]);

        let bad = [run(10, 11, 9), run(100, 98, 90)];
        assert_eq!(
            faults(&bad),
            [
                "10 a second on 2 workers: windows admitted 11",
                "100 a second on 2 workers: windows admitted 98",
                "100 a second on 2 workers: no fewer claims for each request than at a smaller threshold",
            ]
        );
    }
}
