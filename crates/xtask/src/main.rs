//! The project's commands: set-up, build, tests, and the tools around them.
//!
//! Everything a contributor, CI or a curious visitor does with the project starts here, so that there is one way
//! to do it and nothing to install first: a command fetches what it lacks, says so, and what it cannot do it
//! says in one sentence. Read [`commands`] for what there is, then [`wasm_toolchain`] and [`envoy`] (what is
//! fetched), [`modules`] and [`module_file`] (what is built), [`test_run`], [`layers`] and [`mutants`] (what is
//! checked).

mod apt;
mod commands;
mod counted;
mod envoy;
mod grpcurl;
mod layers;
mod module_file;
mod modules;
mod mutants;
mod process;
mod say;
mod scale;
mod sha256;
mod test_run;
mod wasm_toolchain;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match commands::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            say::line(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
