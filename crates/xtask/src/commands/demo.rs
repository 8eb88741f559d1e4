//! `demo`: the main job from nothing, in a real Envoy.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// Shows limits that hold, from nothing: builds, starts a real Envoy, sends traffic, prints what was admitted.
///
/// Sets up what is missing, builds both modules, starts a real Envoy with several workers and the rules in rules/, sends
/// mixed traffic to a small upstream for about 15 s, and prints for each resource what was offered, admitted and
/// blocked, its limit and its busiest window, counted by the upstream's clock. Exit code 0 only if every limit held.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Leaves Envoy and the upstream running afterwards, and prints their addresses.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// # Errors
/// If something cannot be set up.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    bail!("demo is not wired yet (keep: {})", arguments.keep)
}
