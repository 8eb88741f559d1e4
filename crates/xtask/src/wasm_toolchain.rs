//! A compiler for `wasm32-unknown-unknown`, from nothing.
//!
//! Two ways, because not every machine reaches both servers: rustup's ready-made standard library for the target,
//! or Debian's Rust, which builds the standard library from its source package. Debian's own `cargo` and `rustc` do that:
//! the sources fit no other compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{Workspace, cargo};
use crate::{apt, process, say};

/// The target of both modules.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";
/// The environment variable that forces one of the two: `rustup` or `debian`.
pub(crate) const CHOICE: &str = "SENTINEL_WASM_TOOLCHAIN";

/// What compiles the modules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WasmToolchain {
    /// The compiler on the path, with a standard library for the target.
    Rustup,
    /// Debian's compiler with the standard library built from source.
    Debian,
}

impl WasmToolchain {
    /// Finds one, or fetches what is missing.
    ///
    /// # Errors
    /// If there is none and none can be fetched: then with what to do.
    pub(crate) fn set_up() -> Result<Self> {
        match std::env::var(CHOICE).as_deref() {
            Ok("rustup") => rustup().map(|()| Self::Rustup),
            Ok("debian") => debian().map(|()| Self::Debian),
            Ok("") | Err(_) if has_target() => Ok(Self::Rustup),
            Ok("") | Err(_) if debian_is_complete() => Ok(Self::Debian),
            Ok("") | Err(_) => match rustup() {
                Ok(()) => Ok(Self::Rustup),
                Err(reason) => {
                    say::line(format_args!("note: {reason:#}"));
                    debian().map(|()| Self::Debian)
                }
            },
            Ok(other) => {
                bail!("{CHOICE} is `{other}`: set it to `rustup` or `debian`, or unset it")
            }
        }
    }

    /// Its name, as the environment variable takes it; also that of its folder, since cargo would take the files of one
    /// for those of the other.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rustup => "rustup",
            Self::Debian => "debian",
        }
    }

    /// A cargo that builds for the target.
    ///
    /// # Errors
    /// If the compiler does not say where its sources are.
    pub(crate) fn cargo(self, subcommand: &str, workspace: &Workspace) -> Result<Command> {
        let mut command = match self {
            Self::Rustup => cargo(subcommand),
            Self::Debian => {
                let mut debian = process::command(DEBIAN_CARGO, [subcommand]);
                debian
                    .arg("-Zbuild-std=std,panic_abort")
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER)
                    // What rustup's cargo, which may have started us, has left behind.
                    .env_remove("CARGO")
                    .env_remove("RUSTUP_TOOLCHAIN")
                    .env_remove("LD_LIBRARY_PATH");
                debian
            }
        };
        command
            .current_dir(&workspace.root)
            .args(["--target", TARGET, "--target-dir"])
            .arg(workspace.target.join("wasm").join(self.name()))
            .env("CARGO_ENCODED_RUSTFLAGS", self.remaps(workspace)?.join("\u{1f}"));
        Ok(command)
    }

    /// What the compiler says it is.
    ///
    /// # Errors
    /// If it says nothing.
    pub(crate) fn compiler(self) -> Result<String> {
        let rustc = match self {
            Self::Rustup => rustc(),
            Self::Debian => PathBuf::from(DEBIAN_RUSTC),
        };
        process::captured(process::command(rustc, ["--version"]), QUERY)
    }

    /// Flags that give every machine's paths the same names, so that the modules tell nobody where they were built.
    fn remaps(self, workspace: &Workspace) -> Result<Vec<String>> {
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let rustc = match self {
            Self::Rustup => rustc(),
            Self::Debian => PathBuf::from(DEBIAN_RUSTC),
        };
        let library = library_source(&rustc)?;
        let mut flags = vec![remap(&workspace.root, "/sentinel"), remap(&library, "/rust")];
        // Debian links the place where the compiler looks to the place where its package puts them.
        if let Ok(real) = library.canonicalize() {
            flags.push(remap(&real, "/rust"));
        }
        // Cargo names these folders after the registry's address, which may be a mirror.
        let mut registries: Vec<_> = fs::read_dir(cargo_home()?.join("registry/src"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|registry| registry.path())
            .collect();
        registries.sort();
        flags.extend(registries.iter().map(|registry| remap(registry, "/cargo")));
        Ok(flags)
    }
}

/// Cargo's folder, in which the sources of all dependencies stand.
///
/// # Errors
/// If the environment does not say where.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    set("CARGO_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set: set one")
}

/// The compiler that cargo uses here.
fn rustc() -> PathBuf {
    std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from)
}

fn has_target() -> bool {
    let query = process::command(rustc(), ["--print", "target-libdir", "--target", TARGET]);
    process::captured(query, QUERY).is_ok_and(|folder| Path::new(&folder).is_dir())
}

fn rustup() -> Result<()> {
    if has_target() {
        return Ok(());
    }
    if process::on_path("rustup").is_none() {
        bail!("this Rust has no {TARGET}, and there is no rustup to add it");
    }
    let step = say::Step::begin_silent(format_args!(
        "The target {TARGET}: adding it with rustup, since the modules are built for it (20 MB, under a minute)"
    ));
    process::captured(
        process::command("rustup", ["target", "add", TARGET]),
        Duration::from_secs(120),
    )
    .context("rustup cannot add the target")?;
    if !has_target() {
        bail!(
            "rustup added {TARGET}, but not to the Rust in use: run `rustup target add {TARGET}` for that one"
        );
    }
    step.done("added");
    Ok(())
}

fn debian() -> Result<()> {
    if !debian_is_complete() {
        apt::install(
            &["rustc-web", "cargo-web", "rust-web-src", "lld-19"],
            "no Rust here compiles for wasm, and Debian's does",
        )?;
    }
    if !debian_is_complete() {
        bail!(
            "Debian's Rust is older than 1.{OLDEST_MINOR} or incomplete: enable Debian's security updates, or run \
             `rustup target add {TARGET}` where rustup works"
        );
    }
    Ok(())
}

fn debian_is_complete() -> bool {
    let rustc = Path::new(DEBIAN_RUSTC);
    let all_there = [DEBIAN_CARGO, DEBIAN_RUSTC].into_iter().all(|file| Path::new(file).is_file())
        && process::on_path(DEBIAN_LINKER).is_some();
    all_there
        && library_source(rustc)
            .is_ok_and(|library| library.join("library/std/Cargo.toml").is_file())
        && process::captured(process::command(rustc, ["--version"]), QUERY)
            .is_ok_and(|text| minor_version(&text).is_some_and(|minor| minor >= OLDEST_MINOR))
}

/// 96 in `rustc 1.96.0 (ac68faa20 2026-05-25)`.
fn minor_version(text: &str) -> Option<u32> {
    text.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

/// Where a compiler expects the sources of its standard library.
fn library_source(rustc: &Path) -> Result<PathBuf> {
    let sysroot = process::captured(process::command(rustc, ["--print", "sysroot"]), QUERY)?;
    Ok(Path::new(&sysroot).join("lib/rustlib/src/rust"))
}

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINKER: &str = "wasm-ld-19";
/// As `rust-version` in the manifest says.
const OLDEST_MINOR: u32 = 88;
const QUERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_the_compiler_says() {
        assert_eq!(minor_version("rustc 1.96.0 (ac68faa20 2026-05-25)"), Some(96));
        assert_eq!(minor_version("clang 19"), None);
    }
}
