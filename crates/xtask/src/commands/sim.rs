//! `sim`: the engine in a simulated Envoy.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use clap::Args;
use sentinel_sim::{Options, run_many};

use super::Tally;
use crate::say;

/// Runs workers, the service and Envoy as a deterministic simulation, with faults, and checks the promises.
///
/// Each run follows from its seed alone. A run that breaks a promise is shown with its seed and the command that
/// repeats it. Exit code 1 on any.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The seed of the first run; each further run takes the next one. Without it a fresh one.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// How many runs. Without it 1 if a seed is given, else 200.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) runs: Option<u64>,
    /// Prints every event of each run.
    #[arg(long)]
    pub(crate) trace: bool,
}

/// # Errors
/// If the machine has no randomness for a first seed.
pub(crate) fn run(arguments: &Arguments) -> Result<Tally> {
    let runs = arguments.runs.unwrap_or_else(|| if arguments.seed.is_some() { 1 } else { RUNS });
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => fresh_seed()?,
    };
    say::line(format_args!("   seeds {seed} to {}", seed.wrapping_add(runs - 1)));
    if arguments.trace {
        return Ok(traced(seed, runs));
    }
    let bar = say::bar(runs);
    let jobs = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    // Where nobody sees the bar, a line for each tenth.
    let tenth = if io::stderr().is_terminal() { u64::MAX } else { (runs / 10).max(LINE_LEAST) };
    let done = AtomicU64::new(0);
    let failure = run_many(seed, runs, jobs, |_| {
        bar.inc(1);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(tenth) {
            say::line(format_args!("   {done} of {runs} runs"));
        }
    })
    .err();
    bar.finish_and_clear();
    Ok(match failure {
        None => {
            say::result(format_args!("{runs} runs: every promise held"));
            Tally { passed: runs, failed: 0 }
        }
        Some(failure) => {
            say::result(&failure);
            Tally { passed: bar.position(), failed: 1 }
        }
    })
}

/// One run after the other, each event on a line.
fn traced(seed: u64, runs: u64) -> Tally {
    let print = |line: &str| say::result(line);
    let mut tally = Tally::default();
    for index in 0..runs {
        match sentinel_sim::run(seed.wrapping_add(index), Options { trace: Some(&print) }) {
            Ok(_) => tally.passed += 1,
            Err(failure) => {
                say::result(&failure);
                tally.failed += 1;
            }
        }
    }
    tally
}

/// A seed that differs from run to run; it is printed, so that any run can be repeated.
fn fresh_seed() -> Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("no /dev/urandom")?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

const RUNS: u64 = 200;

/// The fewest runs that are worth a line of their own.
const LINE_LEAST: u64 = 500;
