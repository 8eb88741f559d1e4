//! `schema`: what may stand in rule documents and configurations, for editors and other tools.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use sentinel_cli::schema::{self, Part};

use crate::say;
use crate::workspace::Workspace;

/// Prints the JSON Schemas of rule documents and of both configurations, and the settings.
///
/// They say what the service and the filter read, since they are made of what these ask: fields, types, ranges, enums, what
/// must be there, and what rules/README.md says of each. The settings come with name, default, range and what happens at the
/// bound. Without an argument all four are printed, as one JSON object. `rules/schema/` has the schemas as files, for editors.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Prints only this.
    #[arg(value_enum)]
    pub(crate) part: Option<Wanted>,
    /// Prints nothing, and writes the schemas to rules/schema/.
    #[arg(long, conflicts_with = "part")]
    pub(crate) write: bool,
}

/// What can be printed by itself.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Wanted {
    /// The schema of one rule document.
    Rules,
    /// The schema of the service's configuration.
    Service,
    /// The schema of the filter's configuration.
    Filter,
    /// The settings: name, default, range and what happens at the bound.
    Settings,
}

/// # Errors
/// If a schema cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.write {
        let changed = schema::write(&Workspace::find()?.root)
            .context("cannot write the schemas to rules/schema/")?;
        for file in &changed {
            say::line(format_args!("   wrote {}", file.display()));
        }
        if changed.is_empty() {
            say::line(format_args!("   rules/schema/ was up to date"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let text = match arguments.part {
        None => schema::all(),
        Some(Wanted::Rules) => Part::Rules.text(),
        Some(Wanted::Service) => Part::Service.text(),
        Some(Wanted::Filter) => Part::Filter.text(),
        Some(Wanted::Settings) => Part::Settings.text(),
    };
    say::result(text.trim_end());
    Ok(ExitCode::SUCCESS)
}
