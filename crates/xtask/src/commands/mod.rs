//! The command line: which commands there are, and what each takes.

mod bench;
mod build;
mod check;
mod demo;
mod explain;
pub(crate) mod fuzz;
pub(crate) mod instructions;
mod model;
pub(crate) mod mutants;
pub(crate) mod replay;
mod schema;
pub(crate) mod sim;
mod soak;
mod test;
mod top;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sentinel for Envoy: limits that hold across all workers.
///
/// Every command sets up what it lacks (a compiler for wasm, a real Envoy) and says so; once that is done, all of
/// them work offline.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Up(up::Arguments),
    Top(top::Arguments),
    Check(check::Arguments),
    Explain(explain::Arguments),
    Build(build::Arguments),
    Test(test::Arguments),
    Schema(schema::Arguments),
    Replay(replay::Arguments),
    Sim(sim::Arguments),
    Mutants(mutants::Arguments),
    Model(model::Arguments),
    Fuzz(fuzz::Arguments),
    Soak(soak::Arguments),
    Bench(bench::Arguments),
}

impl Cli {
    /// Does what was asked. The code is 0 if all went well and 1 if what was checked does not hold; wrong
    /// arguments have ended the program with 2 before.
    ///
    /// # Errors
    /// If the command could not do its work.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Demo(arguments) => demo::run(&arguments),
            Command::Up(arguments) => up::run(&arguments),
            Command::Top(arguments) => top::run(&arguments),
            Command::Check(arguments) => check::run(arguments),
            Command::Explain(arguments) => explain::run(arguments),
            Command::Build(arguments) => build::run(&arguments),
            Command::Test(arguments) => test::run(&arguments),
            Command::Schema(arguments) => schema::run(&arguments),
            Command::Replay(arguments) => replay::run(&arguments).map(Tally::code),
            Command::Sim(arguments) => sim::run(&arguments).map(Tally::code),
            Command::Mutants(arguments) => mutants::run(&arguments).map(Tally::code),
            Command::Model(arguments) => model::run(&arguments).map(Tally::code),
            Command::Fuzz(arguments) => fuzz::run(&arguments).map(Tally::code),
            Command::Soak(arguments) => soak::run(&arguments),
            Command::Bench(arguments) => bench::run(&arguments),
        }
    }
}

/// How many of the things that were tried turned out well.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// Held.
    pub(crate) passed: u64,
    /// Did not.
    pub(crate) failed: u64,
}

impl Tally {
    /// Of a single thing that held.
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0 };

    /// These as well.
    pub(crate) fn add(&mut self, others: Self) {
        self.passed += others.passed;
        self.failed += others.failed;
    }

    fn code(self) -> ExitCode {
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// 0 if what was checked holds, else 1.
fn exit_code(holds: bool) -> ExitCode {
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const AFTER_HELP: &str = "\
Environment:
  ENVOY                    the Envoy to use, 1.36 to 1.40; without it the one on the path, else one that is fetched
  SENTINEL_WASM_TOOLCHAIN  `rustup` or `debian` forces one of the two ways to a compiler for wasm; without it
                           whichever is there, else rustup's, else Debian's packages
  XDG_CACHE_HOME           where a fetched Envoy is kept, in the folder sentinel-envoy (default: ~/.cache)

Exit codes: 0 all went well, 1 something failed or does not hold, 2 wrong arguments.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_says_what_it_is_for() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
