//! `up`: an Envoy to play with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use sentinel_cli::check::{Options, check};
use sentinel_integration::{rules, up};

use crate::envoy;
use crate::modules::{self, Flavour};
use crate::workspace::Workspace;

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
    /// The port of the console, which `cargo xtask top` reads.
    #[arg(long, default_value_t = 9902)]
    pub(crate) console_port: u16,
}

/// # Errors
/// If something cannot be set up, or if Envoy ends by itself.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let options = up::Options {
        envoy: envoy::envoy(None)?,
        dist: modules::build(&workspace, Flavour::Shipping)?.folder,
        rules: arguments.rules.clone(),
        workers: u32::from(arguments.workers),
        port: arguments.port,
        admin_port: arguments.admin_port,
        console_port: arguments.console_port,
    };
    up::up(&options, &sound, &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the rules of a folder can be loaded; the error has a line for each that stands in the way.
fn sound(folder: &Path) -> Result<()> {
    let mut report = Vec::new();
    if check(&Options::of(rules::files(folder)?), &mut report)? {
        return Ok(());
    }
    bail!("{}", String::from_utf8_lossy(&report).trim_end())
}
