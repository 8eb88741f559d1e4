//! `sim`: the engine in a simulated Envoy.

use anyhow::{Result, bail};
use clap::Args;

use super::Tally;

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
/// If the simulation itself cannot run.
pub(crate) fn run(arguments: &Arguments) -> Result<Tally> {
    let Arguments { seed, runs, trace } = arguments;
    bail!("sim is not wired yet ({seed:?}, {runs:?}, {trace})")
}
