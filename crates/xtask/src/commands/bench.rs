//! `bench`: what it holds and what it costs, side by side.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use sentinel_integration::accuracy::accuracy;

use super::exit_code;
use crate::envoy;
use crate::modules::{self, Flavour};
use crate::workspace::Workspace;

/// Runs the benchmarks, side by side in one run.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Runs only this one; without it all.
    #[arg(value_enum)]
    pub(crate) name: Option<Bench>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bench {
    /// How exact limits are, by number of workers, threshold and window, counted at the upstream.
    Accuracy,
}

/// # Errors
/// If something cannot be set up or measured.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let dist = modules::build(&Workspace::find()?, Flavour::Shipping)?.folder;
    let binary = envoy::envoy(None)?;
    match arguments.name {
        Some(Bench::Accuracy) | None => {
            Ok(exit_code(accuracy(&binary, &dist, &mut std::io::stdout())?))
        }
    }
}
