//! `replay`: decisions that other implementations gave, against ours.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use sentinel_cli::replay::replay;

use super::Tally;
use crate::say;

/// Runs timed decision vectors against the rule engine, by a virtual clock.
///
/// Prints one line for each vector and last `N passed, M failed`. Exit code 1 on any failure.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Deals the calls to this many workers in turn; the decisions are the same for every number.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: u16,
    /// The files with the vectors.
    #[arg(required = true, value_name = "VECTORS.json")]
    pub(crate) files: Vec<PathBuf>,
}

/// # Errors
/// If a file cannot be read or holds no vectors.
pub(crate) fn run(arguments: &Arguments) -> Result<Tally> {
    let outcome = replay(&arguments.files, arguments.workers, |line| say::result(line))?;
    Ok(Tally { passed: outcome.passed, failed: outcome.failed })
}
