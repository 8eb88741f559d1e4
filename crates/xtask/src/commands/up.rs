//! `up`: an Envoy to play with.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// Runs Envoy in the foreground on loopback, with both modules, your rules and a small upstream.
///
/// Until it is interrupted; edits of the rules take effect while it runs.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The folder with the rule files.
    #[arg(long, value_name = "DIR", default_value = "rules")]
    pub(crate) rules: PathBuf,
    /// How many worker threads Envoy gets.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: u16,
    /// The port that takes requests.
    #[arg(long, default_value_t = 10000)]
    pub(crate) port: u16,
    /// The port of Envoy's admin pages, with the metrics.
    #[arg(long, default_value_t = 9901)]
    pub(crate) admin_port: u16,
}

/// # Errors
/// If something cannot be set up, or if Envoy ends by itself.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { rules, workers, port, admin_port } = arguments;
    bail!("up is not wired yet ({}, {workers}, {port}, {admin_port})", rules.display())
}
