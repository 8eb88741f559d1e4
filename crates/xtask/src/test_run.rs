//! The test run: which steps there are, in which order, and what they add up to.
//!
//! Cheap steps come first. A failed step does not end the run, since whoever repairs it wants to know of the others;
//! only the steps that cannot do without it are left out, and counted as failed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::commands::{self, Tally};
use crate::modules::{self, Flavour};
use crate::wasm_toolchain::WasmToolchain;
use crate::workspace::{Workspace, cargo};
use crate::{apt, envoy, grpcurl, layers, process, say};

/// A part of the run.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Step {
    /// Every source is formatted.
    Format,
    /// No lint complains about what runs natively.
    Lints,
    /// No lint complains about what runs in Envoy.
    WasmLints,
    /// The crates depend on each other only in the order of their layers, and the documents name what exists.
    Layers,
    /// Unit and property tests.
    Unit,
    /// The modules compile and are fit for Envoy.
    Modules,
    /// The oldest and the newest Envoy are there, those between, and grpcurl.
    Envoy,
    /// The engine keeps its promises in a simulated Envoy.
    Simulation,
    /// The simulation finds every engine that is broken on purpose.
    Mutants,
    /// Random input breaks no reader, and random callbacks break no module.
    Fuzz,
    /// The modules keep their promises in a real Envoy.
    Integration,
}

/// Runs all steps, or one, and prints what they add up to.
///
/// # Errors
/// If cargo cannot read the project.
pub(crate) fn run(only: Option<Step>) -> Result<Tally> {
    let workspace = Workspace::find()?;
    let steps = only.map_or_else(|| Step::value_variants().to_vec(), |step| vec![step]);
    let mut total = Tally::default();
    let mut failed = Vec::new();
    for step in steps {
        let tally = step.outcome(&workspace, &failed);
        if tally.failed > 0 {
            failed.push(step);
        }
        total.passed += tally.passed;
        total.failed += tally.failed;
    }
    if !failed.is_empty() {
        let names: Vec<_> = failed.iter().map(|step| step.name()).collect();
        say::line(format_args!("failed: {} (run one alone with --only)", names.join(", ")));
    }
    say::result(format_args!("{} passed, {} failed", total.passed, total.failed));
    Ok(total)
}

impl Step {
    fn outcome(self, workspace: &Workspace, failed: &[Self]) -> Tally {
        let name = self.name();
        if let Some(missing) = self.needs().iter().find(|need| failed.contains(need)) {
            say::line(format_args!("== {name}: left out, since {} failed", missing.name()));
            return Tally { passed: 0, failed: 1 };
        }
        let step = say::Step::begin(format_args!("{name}: {}", self.promise()));
        match self.run(workspace) {
            Ok(tally) => {
                step.done(format_args!("{name}: {} passed, {} failed", tally.passed, tally.failed));
                tally
            }
            Err(error) => {
                step.done(format_args!("{name}: failed: {error:#}"));
                Tally { passed: 0, failed: 1 }
            }
        }
    }

    /// As `--only` takes it.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// As `--help` tells it.
    fn promise(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    fn needs(self) -> &'static [Self] {
        match self {
            Self::Integration => &[Self::Modules, Self::Envoy],
            Self::Fuzz => &[Self::Modules],
            Self::Format
            | Self::Lints
            | Self::WasmLints
            | Self::Layers
            | Self::Unit
            | Self::Modules
            | Self::Envoy
            | Self::Simulation
            | Self::Mutants => &[],
        }
    }

    fn run(self, workspace: &Workspace) -> Result<Tally> {
        match self {
            Self::Format => format(workspace),
            Self::Lints => lints(workspace),
            Self::WasmLints => wasm_lints(workspace),
            Self::Layers => {
                let violations = layers::violations(workspace)?;
                if violations.is_empty() {
                    return Ok(Tally::ONE);
                }
                bail!(
                    "{}",
                    violations
                        .iter()
                        .map(|violation| format!("\n  {violation}"))
                        .collect::<String>()
                )
            }
            Self::Unit => unit(workspace),
            Self::Modules => {
                modules::build(workspace, Flavour::Shipping)?;
                modules::build(workspace, Flavour::Faults)?;
                Ok(Tally { passed: 2, failed: 0 })
            }
            Self::Envoy => {
                envoys()?;
                grpcurl::grpcurl()?;
                Ok(Tally { passed: 4, failed: 0 })
            }
            Self::Simulation => commands::sim::run(&commands::sim::Arguments {
                seed: Some(1),
                runs: Some(200),
                trace: false,
            }),
            Self::Mutants => commands::mutants::run(&commands::mutants::Arguments {
                names: Vec::new(),
                runs: commands::mutants::MOST,
            }),
            Self::Fuzz => commands::fuzz::share(workspace, commands::fuzz::SHARE),
            Self::Integration => integration(workspace),
        }
    }
}

fn format(workspace: &Workspace) -> Result<Tally> {
    has_component("fmt", "rustfmt")?;
    process::run(in_project(workspace, "fmt", &["--all", "--check"]))
        .context("run `cargo fmt --all`")?;
    Ok(Tally::ONE)
}

fn lints(workspace: &Workspace) -> Result<Tally> {
    has_component("clippy", "clippy")?;
    let mut clippy = in_project(workspace, "clippy", &["--workspace", "--all-targets"]);
    clippy
        .args(ONLY_IN_ENVOY.map(|name| format!("--exclude={name}")))
        .args(["--", "--deny=warnings"]);
    process::run(clippy)?;
    Ok(Tally::ONE)
}

fn wasm_lints(workspace: &Workspace) -> Result<Tally> {
    let toolchain = WasmToolchain::set_up()?;
    match toolchain {
        WasmToolchain::Rustup => has_component("clippy", "clippy")?,
        WasmToolchain::Debian => {
            say::line(
                "   NOT CHECKED: lints of what runs in Envoy; Debian's Rust for wasm comes without clippy",
            );
            return Ok(Tally::default());
        }
    }
    let mut clippy = toolchain.cargo("clippy", workspace)?;
    clippy
        .args(ONLY_IN_ENVOY.map(|name| format!("--package={name}")))
        .args(["--", "--deny=warnings"]);
    process::run(clippy)?;
    Ok(Tally::ONE)
}

fn unit(workspace: &Workspace) -> Result<Tally> {
    let mut cargo = native_tests(workspace);
    cargo.args(["--lib", "--bins"]);
    let targets = workspace.packages.iter().flat_map(|package| &package.targets);
    for target in targets.filter(|target| target.kind.iter().any(|kind| kind == "test")) {
        if target.name != REAL_ENVOY {
            cargo.args(["--test", &target.name]);
        }
    }
    counted(cargo)
}

/// Of all packages that compile natively, whichever tests are asked for: so cargo compiles what they depend on once, and
/// not anew for each choice of packages, which would ask for other features.
fn native_tests(workspace: &Workspace) -> Command {
    let mut cargo = in_project(workspace, "test", &["--workspace", "--no-fail-fast"]);
    cargo.args(ONLY_IN_ENVOY.map(|name| format!("--exclude={name}")));
    // What a test says stands at the end of what is printed, where whoever sees only that looks for it.
    cargo.env("RUST_BACKTRACE", "0");
    cargo
}

fn integration(workspace: &Workspace) -> Result<Tally> {
    // Both are there already if their steps ran; with `--only` this is what makes them.
    let (newest, oldest, between) = envoys()?;
    let shipping = modules::build(workspace, Flavour::Shipping)?;
    let faults = modules::build(workspace, Flavour::Faults)?;
    if process::on_path("redis-server").is_none() || process::on_path("redis-benchmark").is_none() {
        apt::install(&["redis-server", "redis-tools"], "tests of TCP need a real Redis")?;
    }
    let mut cargo = native_tests(workspace);
    cargo
        .args(["--test", REAL_ENVOY])
        .env("SENTINEL_DIST", shipping.folder)
        .env("SENTINEL_FAULTS_DIST", faults.folder)
        .env("ENVOY", newest)
        .env("ENVOY_1_36", oldest)
        .env("ENVOYS", between)
        .env("GRPCURL", grpcurl::grpcurl()?);
    counted(cargo)
}

/// The Envoy under test, the oldest one, and a list of those between.
fn envoys() -> Result<(PathBuf, PathBuf, OsString)> {
    let between: Vec<_> = envoy::BETWEEN
        .into_iter()
        .map(|version| envoy::envoy(Some(version)))
        .collect::<Result<_>>()?;
    let between = std::env::join_paths(between).context("a path of Envoy has a colon in it")?;
    Ok((envoy::envoy(None)?, envoy::envoy(Some(envoy::OLDEST))?, between))
}

fn in_project(workspace: &Workspace, subcommand: &str, arguments: &[&str]) -> Command {
    let mut command = cargo(subcommand);
    command.current_dir(&workspace.root).args(arguments);
    command
}

/// Runs `cargo test` and adds up what its test programs say.
fn counted(cargo: Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let ended_well = process::run_reading(cargo, |line| {
        if let Some(found) = result_line(line) {
            tally.passed += found.passed;
            tally.failed += found.failed;
        }
    })?;
    // One that does not compile or crashes has no such line.
    if !ended_well && tally.failed == 0 {
        tally.failed = 1;
    }
    if ended_well && tally.passed == 0 {
        bail!("no test was run");
    }
    Ok(tally)
}

/// The numbers in `test result: ok. 12 passed; 0 failed; …`.
fn result_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(name))
            .and_then(|number| number.trim().parse().ok())
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")? })
}

fn has_component(subcommand: &str, component: &str) -> Result<()> {
    let mut version = cargo(subcommand);
    version.arg("--version");
    if process::captured(version, Duration::from_secs(60)).is_err() {
        bail!(
            "{component} is missing: run `rustup component add clippy rustfmt` (with Debian's Rust, `apt-get install \
             rust-web-clippy rustfmt-web`)"
        );
    }
    Ok(())
}

/// These compile for wasm alone.
const ONLY_IN_ENVOY: [&str; 4] =
    ["envoy-sentinel-host", "sentinel-crowd", "sentinel-filter", "sentinel-service"];
/// The tests that need modules and an Envoy.
const REAL_ENVOY: &str = "real_envoy";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_read_from_what_a_test_program_says() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.10s";
        assert_eq!(result_line(line), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(result_line("test a_result ... ok"), None);
    }

    #[test]
    fn every_step_has_a_name_and_says_what_it_promises() {
        for step in Step::value_variants() {
            assert!(!step.name().is_empty() && !step.promise().is_empty(), "{step:?}");
        }
    }

    #[test]
    fn a_step_is_left_out_and_counts_as_failed_where_what_it_needs_failed() {
        let workspace = Workspace { root: "/".into(), target: "/".into(), packages: Vec::new() };
        let tally = Step::Integration.outcome(&workspace, &[Step::Envoy]);
        assert_eq!(tally, Tally { passed: 0, failed: 1 });
    }
}
