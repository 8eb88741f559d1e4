//! `test`: everything that CI checks.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::test_run::{self, Step};

/// Passes the tests, from nothing: format, lints, layers, unit, property, simulation, and a real Envoy.
///
/// Sets up what is missing, announces each step, goes on after a failure where it can, and ends with the line
/// `N passed, M failed`. Exit code 1 on any failure.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Runs one step alone (and whatever it needs to be built or fetched).
    #[arg(long, value_enum, value_name = "STEP")]
    only: Option<Step>,
}

/// # Errors
/// If cargo cannot read the project.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    Ok(test_run::run(arguments.only)?.code())
}
