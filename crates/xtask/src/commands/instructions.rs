//! `bench instructions`: what the modules do, counted and not timed.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Tally, fuzz};
use crate::counted::counted;
use crate::modules::{self, Flavour};
use crate::process;
use crate::workspace::Workspace;

/// Measures the modules that ship, and compares with the file of figures; `is_written`: replaces it. `profile`: shows where the
/// instructions of this one case are instead.
///
/// # Errors
/// If the modules or the program that runs them cannot be built.
pub(crate) fn run(workspace: &Workspace, is_written: bool, profile: Option<&str>) -> Result<Tally> {
    let dist = modules::build(workspace, Flavour::Shipping)?.folder;
    let folder = workspace.target.join("counted");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, _) in modules::shipped_sizes() {
        let file = dist.join(format!("{name}.wasm"));
        let module = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let counted = counted(&module, profile.is_some())
            .with_context(|| format!("{} is no module", file.display()))?;
        let files = [("wasm", counted.bytes), ("functions", counted.functions.join("\n").into())];
        for (ending, bytes) in files {
            let file = folder.join(format!("{name}.{ending}"));
            fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    let mut program = fuzz::program(workspace);
    match profile {
        Some(case) => program.arg("profile").arg(folder).arg(case),
        None => program
            .arg("instructions")
            .arg(folder)
            .arg(workspace.path(FIGURES))
            .arg(if is_written { "write" } else { "compare" }),
    };
    let mut tally = Tally::default();
    let ended_well = process::run_reading(program, |line| {
        let figures = line.strip_prefix("instructions: ").and_then(|rest| {
            rest.strip_suffix(" figures as they were").and_then(|figures| figures.parse().ok())
        });
        tally.passed += figures.unwrap_or(0_u64);
    })?;
    if !ended_well {
        tally.failed += 1;
    }
    Ok(tally)
}

const FIGURES: &str = "crates/fuzz/instructions.txt";
