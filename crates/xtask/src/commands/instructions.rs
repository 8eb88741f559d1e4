//! `bench instructions`: what the modules do, counted and not timed.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Tally, fuzz};
use crate::counted::counted;
use crate::modules::{self, Flavour};
use crate::wasm_toolchain::WasmToolchain;
use crate::workspace::Workspace;
use crate::{process, say};

/// Measures the modules that ship, and compares with the file of figures; `is_written`: replaces it. `profile`: shows where the
/// instructions of this one case are instead. Another compiler makes other instructions of the same source: figures are
/// compared only with those of the same one.
///
/// # Errors
/// If the modules or the program that runs them cannot be built.
pub(crate) fn run(workspace: &Workspace, is_written: bool, profile: Option<&str>) -> Result<Tally> {
    let file = workspace.path(FIGURES);
    let compiler = WasmToolchain::set_up()?.compiler()?;
    if !is_written && profile.is_none() {
        let figures =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let theirs = figures.lines().find_map(|line| line.strip_prefix(COMPILER));
        if theirs != Some(compiler.as_str()) {
            say::line(format_args!(
                "   NOT COMPARED: what the modules do, since the figures of {FIGURES} are of {}, and this is {compiler}",
                theirs.unwrap_or("nobody knows which compiler")
            ));
            return Ok(Tally::default());
        }
    }
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
        None => program.arg("instructions").arg(folder).arg(&file).arg(if is_written {
            "write"
        } else {
            "compare"
        }),
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
    } else if is_written {
        let figures =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        fs::write(&file, format!("{COMPILER}{compiler}\n{figures}"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(tally)
}

const FIGURES: &str = "crates/fuzz/instructions.txt";
/// How the line of the file begins that names the compiler.
const COMPILER: &str = "# Compiled by ";
