//! `demo`: the main job from nothing, in a real Envoy.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use sentinel_integration::demo;

use super::exit_code;
use crate::envoy;
use crate::modules::{self, Flavour};
use crate::workspace::Workspace;

/// Shows limits that hold, from nothing: builds, starts a real Envoy, sends traffic, prints what was admitted.
///
/// Sets up what is missing, builds both modules, starts a real Envoy with several workers and the rules in rules/, sends
/// mixed traffic to a small upstream for about 15 s, and prints for each resource and rule what was offered, admitted
/// and blocked, the limit and the busiest window, counted by the upstream's clock. The upstream is ill for a while, so
/// that circuit breakers open and close. Exit code 0 only if every limit held.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Leaves Envoy and the upstream running afterwards, and prints their addresses.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// # Errors
/// If something cannot be set up, or the demonstration cannot be carried out.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let options = demo::Options {
        envoy: envoy::envoy(None)?,
        dist: modules::build(&workspace, Flavour::Shipping)?.folder,
        rules: workspace.path("rules"),
        workers: 4,
        traffic: TRAFFIC,
        keep: arguments.keep,
    };
    Ok(exit_code(demo::demo(&options, &mut std::io::stdout())?))
}

const TRAFFIC: Duration = Duration::from_secs(15);
