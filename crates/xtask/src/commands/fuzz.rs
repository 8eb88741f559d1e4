//! `fuzz`: random input for readers, random callbacks for the modules.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{Tally, instructions};
use crate::modules::{self, Flavour};
use crate::workspace::{Workspace, cargo};
use crate::{process, say};

/// Feeds everything that reads foreign bytes with random ones, and the modules with random callbacks.
///
/// Without a target: all readers first, then the modules that ship, in an interpreter. What breaks a promise is shown with
/// the one command that repeats it. Exit code 1 on any.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only this reader, or `modules`; a name that is none is answered with all that there are.
    target: Option<String>,
    /// How long: readers share this time, and the modules get as much again.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Where randomness begins.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Judges this one input of a reader, and nothing else.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Modules: how many runs, each from the next seed. Without it 1 with --callbacks or --trace, else as many as there is time for.
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Modules: how many callbacks a run has.
    #[arg(long, value_name = "N")]
    callbacks: Option<u64>,
    /// Modules: no faults and no change of configuration, and no VM may grow.
    #[arg(long)]
    steady: bool,
    /// Modules: prints every callback and what came of it.
    #[arg(long)]
    trace: bool,
}

/// What a test run does of it.
pub(crate) const SHARE: Share = Share { reader_seconds: 25, runs: 24, steady_callbacks: 12_000 };

/// So much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    reader_seconds: u64,
    runs: u64,
    steady_callbacks: u64,
}

/// How many callbacks a run has where nobody says.
const CALLBACKS: u64 = 2_000;

/// # Errors
/// If the program cannot be built or started.
pub(crate) fn run(arguments: &Arguments) -> Result<Tally> {
    let workspace = Workspace::find()?;
    if let (Some(target), Some(input)) = (&arguments.target, &arguments.input) {
        let mut program = program(&workspace);
        program.args(["input", target]).arg(input);
        return told(program);
    }
    let only = arguments.target.as_deref();
    let mut tally = Tally::default();
    if only != Some(MODULES) {
        let mut program = program(&workspace);
        program.arg("readers").arg(workspace.target.join("fuzz"));
        program.args([arguments.seconds, arguments.seed].map(|number| number.to_string()));
        program.args(only);
        tally.add(told(program)?);
    }
    if only.is_none_or(|only| only == MODULES) {
        let is_one = arguments.callbacks.is_some() || arguments.trace;
        let runs = arguments.runs.unwrap_or_else(|| u64::from(is_one));
        let seconds = if runs > 0 { 0 } else { arguments.seconds };
        let of = [arguments.seed, runs, seconds, arguments.callbacks.unwrap_or(CALLBACKS)];
        tally.add(in_modules(&workspace, of, arguments.steady, arguments.trace)?);
    }
    Ok(tally)
}

/// The share of a test run.
///
/// # Errors
/// If the program cannot be built or started.
pub(crate) fn share(workspace: &Workspace, share: Share) -> Result<Tally> {
    let mut readers = program(workspace);
    readers.arg("readers").arg(workspace.target.join("fuzz"));
    readers.args([share.reader_seconds, 1].map(|number| number.to_string()));
    let mut tally = told(readers)?;
    tally.add(in_modules(workspace, [1, share.runs, 0, CALLBACKS], false, false)?);
    tally.add(in_modules(workspace, [1, 1, 0, share.steady_callbacks], true, false)?);
    tally.add(instructions::run(workspace, false, None)?);
    Ok(tally)
}

/// Runs with the modules: seed, runs, seconds and callbacks.
fn in_modules(
    workspace: &Workspace,
    of: [u64; 4],
    is_steady: bool,
    is_traced: bool,
) -> Result<Tally> {
    let dist = modules::build(workspace, Flavour::Shipping)?;
    let mut program = program(workspace);
    program.arg(MODULES).arg(dist.folder).args(of.map(|number| number.to_string()));
    program.args([is_steady, is_traced].map(|flag| if flag { "1" } else { "0" }));
    told(program)
}

/// The program that does the work.
pub(super) fn program(workspace: &Workspace) -> Command {
    let mut command = cargo("run");
    command.current_dir(&workspace.root).args(["--quiet", "--package", PACKAGE, "--"]);
    command
}

/// Each line that ends in what held counts.
fn told(program: Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let ended_well = process::run_reading(program, |line| {
        if line.contains(" inputs, ") || line.ends_with("as it should") {
            tally.passed += 1;
        } else if let Some((runs, _)) = line.split_once(" runs: every promise held") {
            tally.passed += runs.parse::<u64>().unwrap_or(0);
        }
    })
    .context("running the fuzzer")?;
    if !ended_well {
        tally.failed += 1;
        say::line("   what is wrong stands above, and the command that repeats it");
    }
    Ok(tally)
}

const MODULES: &str = "modules";
const PACKAGE: &str = "envoy-sentinel-fuzz";
