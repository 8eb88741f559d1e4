//! `check`: rule files, before anybody loads them.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sentinel_cli::check::{Options, check};

use super::exit_code;

/// Validates rule files with the code that the service uses, all of them as one set.
///
/// Each error names file, line, document, rule, field and value, and says what would do. What is right and yet
/// cannot be meant (rules that never refuse anything, names that no request has) is warned of. Exit code 1 on any error.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Rule files (YAML or JSON), index files, and folders with such files.
    #[arg(value_name = "PATH", default_value = "rules")]
    pub(crate) paths: Vec<PathBuf>,
    /// The filter's configuration, or the bootstrap or listener that holds it: what requests are called. Without it,
    /// method and path.
    #[arg(long, value_name = "FILE")]
    pub(crate) filter: Option<PathBuf>,
    /// Exit code 1 on any warning too.
    #[arg(long)]
    pub(crate) deny_warnings: bool,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// # Errors
/// If the result cannot be written.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    let options = Options {
        paths: arguments.paths,
        filter: arguments.filter,
        deny_warnings: arguments.deny_warnings,
        json: arguments.json,
        terminal: out.is_terminal(),
    };
    Ok(exit_code(check(&options, &mut out)?))
}
