//! `bench`: what it costs, side by side.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// Runs the benchmarks, side by side in one run.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Runs only this one.
    pub(crate) name: Option<String>,
}

/// # Errors
/// If there is no such benchmark, or if something cannot be set up.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    bail!("bench is not wired yet ({:?})", arguments.name)
}
