//! `soak`: everything at once, for long.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use sentinel_integration::soak;

use super::exit_code;
use crate::envoy;
use crate::modules::{self, Flavour};
use crate::workspace::Workspace;

/// Runs a real Envoy at maximum load with rules of every kind and harm in turn, and shows that nothing grows.
///
/// Rules change, clients abort, the service traps, worker VMs trap. Limits are judged and totals compared after each turn
/// of ten seconds; memory, series, values of a hot parameter and the queue are looked at all the while. At the end
/// there is a table. Exit code 1 if a limit broke, a request was not counted, or something grew.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// For how many minutes load is on; the rests in between come on top.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) minutes: u64,
}

/// # Errors
/// If something cannot be set up, or Envoy ends by itself.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = soak::Options {
        envoy: envoy::envoy(None)?,
        dist: modules::build(&Workspace::find()?, Flavour::Faults)?.folder,
        load: Duration::from_secs(arguments.minutes * 60),
    };
    Ok(exit_code(soak::soak(&options, &mut std::io::stdout())?))
}
