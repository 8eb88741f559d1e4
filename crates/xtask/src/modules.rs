//! The modules, built, stripped, checked, and written where Envoy's configuration expects them.
//!
//! Nothing is written unless every module is in order, and only what changed: a running Envoy that watches the files,
//! and a build that asks for their age, see nothing of a build that changed nothing.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::wasm_toolchain::{TARGET, WasmToolchain, cargo_home};
use crate::workspace::Workspace;
use crate::{module_file, process, say, sha256};

/// Which modules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flavour {
    /// What users get, in `dist/`.
    Shipping,
    /// With the feature `faults`, by which a test makes them trap; under cargo's target folder.
    Faults,
    /// The workers that `cargo xtask bench scale` puts in the filter's place; under cargo's target folder.
    Crowd,
}

/// Where the modules stand after a build.
#[derive(Debug)]
pub(crate) struct Dist {
    /// The folder of all files.
    pub(crate) folder: PathBuf,
}

/// Builds the modules.
///
/// # Errors
/// If no toolchain can be set up, the compiler refuses, or a module breaks a rule: then with every broken rule.
pub(crate) fn build(workspace: &Workspace, flavour: Flavour) -> Result<Dist> {
    let toolchain = WasmToolchain::set_up()?;
    let folder = match flavour {
        Flavour::Shipping => workspace.path("dist"),
        Flavour::Faults => workspace.target.join("faults"),
        Flavour::Crowd => workspace.target.join("crowd"),
    };
    let step = say::Step::begin(format_args!(
        "Modules: {} (the first time a minute or two)",
        match flavour {
            Flavour::Shipping => "compiling what Envoy loads",
            Flavour::Faults => "compiling them with faults that tests can set off",
            Flavour::Crowd => "compiling a crowd of workers for the bench",
        }
    ));
    let compiled = compile(workspace, toolchain, flavour)?;
    let mut all_faults = Vec::new();
    let mut artifacts = Vec::new();
    let private = private_paths(workspace)?;
    for module in modules(flavour) {
        let Module { package, name, .. } = module;
        let file = compiled
            .join(module.profile(flavour))
            .join(format!("{}.wasm", package.replace('-', "_")));
        let compiled = fs::read(&file)
            .with_context(|| format!("cargo built {package}, but not {}", file.display()))?;
        let used_exports = [module.exports, module.more_exports].concat();
        let debug = module_file::pruned(&compiled, &used_exports)
            .with_context(|| file.display().to_string())?;
        let shipped =
            module_file::without_debug(&debug).with_context(|| file.display().to_string())?;
        let mut faults = module_file::faults(&shipped, &private);
        // What tests ask of the modules stands in them besides what ships.
        if flavour == Flavour::Shipping {
            faults.extend(module_file::too_large(&shipped, module.most_bytes));
        }
        all_faults.extend(faults.into_iter().map(|fault| format!("{name}.wasm: {fault}")));
        artifacts.push(Artifact {
            name: (*name).to_owned(),
            sha256: sha256::of(&shipped),
            shipped,
            debug,
        });
    }
    if !all_faults.is_empty() {
        bail!(
            "the modules are not fit for Envoy, and nothing was written:\n  {}",
            all_faults.join("\n  ")
        );
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut written = 0;
    for artifact in &artifacts {
        written += artifact.write(&folder)?;
    }
    step.done(format_args!(
        "{}: {}",
        folder.display(),
        match written {
            0 => "all files were up to date".to_owned(),
            files => format!("{files} files written"),
        }
    ));
    for artifact in &artifacts {
        let Artifact { name, sha256, shipped, .. } = artifact;
        let prefix = sha256.get(..12).unwrap_or(sha256);
        say::line(format_args!(
            "   {:<29} {:>7} bytes  sha256 {prefix}",
            format!("{name}.wasm"),
            shipped.len()
        ));
    }
    Ok(Dist { folder })
}

/// Builds the filter on the stock SDK that does nothing, which benches compare ours with.
///
/// # Errors
/// If no toolchain can be set up, or the compiler refuses.
pub(crate) fn build_stock(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = WasmToolchain::set_up()?;
    let mut cargo = toolchain.cargo("build", workspace)?;
    cargo
        .args(["--release", "--locked", "--manifest-path"])
        .arg(workspace.path("integration/stock_filter/Cargo.toml"));
    process::run(cargo)?;
    let output = workspace.target.join("wasm").join(toolchain.name()).join(TARGET);
    Ok(output.join("release/stock_filter.wasm"))
}

/// A module of a build.
struct Module {
    /// The crate that it is made of.
    package: &'static str,
    /// Its files, without ending.
    name: &'static str,
    /// A feature with which the crate is another module.
    feature: Option<&'static str>,
    /// The functions that Envoy is to call.
    exports: &'static [&'static str],
    /// Besides these.
    more_exports: &'static [&'static str],
    /// The most bytes that it may have without custom sections.
    most_bytes: u64,
}

impl Module {
    /// The cargo profile, and so the folder: a module has no hash in its file name, and cargo takes the one built with other
    /// features for up to date.
    fn profile(&self, flavour: Flavour) -> &'static str {
        match (flavour, self.feature) {
            (Flavour::Faults, _) => "faults",
            (Flavour::Shipping, None) | (Flavour::Crowd, _) => "release",
            (Flavour::Shipping, Some(feature)) => feature,
        }
    }
}

/// What a flavour consists of.
fn modules(flavour: Flavour) -> impl Iterator<Item = &'static Module> {
    let modules: &[Module] = if flavour == Flavour::Crowd { &[CROWD] } else { &MODULES };
    modules.iter().filter(move |module| flavour == Flavour::Shipping || module.feature.is_none())
}

/// The name of each module that ships, and the most bytes that it may have.
pub(crate) fn shipped_sizes() -> impl Iterator<Item = (&'static str, u64)> {
    MODULES.iter().map(|module| (module.name, module.most_bytes))
}

const CROWD: Module = Module {
    package: "sentinel-crowd",
    name: "sentinel_crowd",
    feature: None,
    exports: FILTER_EXPORTS,
    more_exports: &[],
    most_bytes: module_file::BYTES_MAX,
};

const MODULES: [Module; 3] = [
    Module {
        package: "sentinel-filter",
        name: "sentinel_filter",
        feature: None,
        exports: FILTER_EXPORTS,
        more_exports: &[],
        most_bytes: module_file::BYTES_MAX,
    },
    Module {
        package: "sentinel-service",
        name: "sentinel_service",
        feature: None,
        exports: &[
            "_initialize",
            "malloc",
            "proxy_abi_version_0_2_1",
            "proxy_on_configure",
            "proxy_on_context_create",
            "proxy_on_delete",
            "proxy_on_http_call_response",
            "proxy_on_queue_ready",
            "proxy_on_tick",
            "proxy_on_vm_start",
        ],
        more_exports: &[],
        most_bytes: module_file::BYTES_MAX,
    },
    Module {
        package: "sentinel-filter",
        name: "sentinel_filter_messages",
        feature: Some("messages"),
        exports: FILTER_EXPORTS,
        more_exports: &["proxy_on_request_body"],
        most_bytes: 330_000,
    },
];

const FILTER_EXPORTS: &[&str] = &[
    "_initialize",
    "malloc",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_downstream_data",
    "proxy_on_log",
    "proxy_on_new_connection",
    "proxy_on_request_headers",
    "proxy_on_tick",
    "proxy_on_upstream_data",
    "proxy_on_vm_start",
];

/// The folder with cargo's output, which has a folder for each profile.
fn compile(workspace: &Workspace, toolchain: WasmToolchain, flavour: Flavour) -> Result<PathBuf> {
    let mut profiles: Vec<&str> = modules(flavour).map(|module| module.profile(flavour)).collect();
    profiles.dedup();
    for profile in profiles {
        let mut cargo = toolchain.cargo("build", workspace)?;
        cargo.args(["--profile", profile]);
        if profile != "release" {
            cargo.args(["--config", &format!("profile.{profile}.inherits='release'")]);
        }
        for module in modules(flavour).filter(|module| module.profile(flavour) == profile) {
            let package = module.package;
            cargo.args(["--package", package]);
            let feature = if flavour == Flavour::Faults { Some("faults") } else { module.feature };
            if let Some(feature) = feature {
                cargo.args(["--features", &format!("{package}/{feature}")]);
            }
        }
        process::run(cargo)?;
    }
    Ok(workspace.target.join("wasm").join(toolchain.name()).join(TARGET))
}

/// Paths under which sources of a module stand on this machine. None of them may be in what ships.
fn private_paths(workspace: &Workspace) -> Result<Vec<String>> {
    let paths = [workspace.path("crates"), cargo_home()?.join("registry")];
    Ok(paths.iter().map(|path| path.display().to_string()).collect())
}

/// One module as it comes out of a build.
struct Artifact {
    /// Of its files, without ending.
    name: String,
    shipped: Vec<u8>,
    sha256: String,
    /// As the compiler wrote it, with names and DWARF.
    debug: Vec<u8>,
}

impl Artifact {
    /// Writes what differs from what is there. How many files those were.
    fn write(&self, folder: &Path) -> Result<usize> {
        let Self { name, shipped, sha256, debug } = self;
        // As `sha256sum --check` reads it.
        let sum = format!("{sha256}  {name}.wasm\n");
        let files: [(&str, &[u8]); 3] =
            [("wasm", shipped), ("wasm.sha256", sum.as_bytes()), ("debug.wasm", debug)];
        let mut written = 0;
        for (ending, bytes) in files {
            let file = folder.join(format!("{name}.{ending}"));
            if fs::read(&file).is_ok_and(|there| there == bytes) {
                continue;
            }
            replace(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
            written += 1;
        }
        Ok(written)
    }
}

/// Puts a file in place at once: who reads it sees the old bytes or the new ones.
fn replace(file: &Path, bytes: &[u8]) -> Result<()> {
    let folder = file.parent().context("it has no folder")?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // An Envoy under another user must be able to read it.
        builder.permissions(fs::Permissions::from_mode(0o644));
    }
    let mut new = builder.tempfile_in(folder)?;
    new.write_all(bytes)?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut artifact = Artifact {
            name: "sentinel_filter".to_owned(),
            shipped: b"module".to_vec(),
            sha256: "ab12".to_owned(),
            debug: b"module and DWARF".to_vec(),
        };
        assert_eq!(artifact.write(folder.path()).unwrap(), 3);
        assert_eq!(artifact.write(folder.path()).unwrap(), 0);

        artifact.debug = b"module and other DWARF".to_vec();
        assert_eq!(artifact.write(folder.path()).unwrap(), 1);

        let sum = fs::read_to_string(folder.path().join("sentinel_filter.wasm.sha256")).unwrap();
        assert_eq!(sum, "ab12  sentinel_filter.wasm\n");
    }
}
