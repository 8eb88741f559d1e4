//! `check`: rule files, before anybody loads them.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sentinel_cli::check::check;

use super::exit_code;

/// Validates rule files with the code that the service uses.
///
/// Each error names file, document, rule, field and value. Exit code 1 on any.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The rule files, YAML or JSON.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// # Errors
/// If a file cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    let color = out.is_terminal();
    Ok(exit_code(check(&arguments.files, &mut out, color)?))
}
