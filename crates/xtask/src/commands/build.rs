//! `build`: the artifacts.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::modules::{self, Flavour};
use crate::workspace::Workspace;

/// Writes both modules into dist/, each with its checksum and a copy that keeps names and DWARF.
///
/// Fetches a compiler for wasm if there is none. Each module is checked: it imports only what Envoy offers, exports what
/// Envoy needs, is small enough, and tells nothing of the machine that built it. What did not change is not written.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Builds the modules for the integration tests, with faults to set off, under cargo's target folder.
    #[arg(long, hide = true)]
    faults: bool,
}

/// # Errors
/// If no compiler can be set up, the code does not compile, or a module is not fit for Envoy.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let flavour = if arguments.faults { Flavour::Faults } else { Flavour::Shipping };
    modules::build(&Workspace::find()?, flavour)?;
    Ok(ExitCode::SUCCESS)
}

const AFTER_HELP: &str = "\
Environment:
  SENTINEL_WASM_TOOLCHAIN  `rustup` or `debian` forces one of the two ways to a compiler for wasm";
