//! Where things stand: the project's folder, cargo's target folder, and its packages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::process;

/// The project as cargo sees it.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    /// The project's folder.
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    /// Where cargo builds.
    #[serde(rename = "target_directory")]
    pub(crate) target: PathBuf,
    /// Every package of the project.
    pub(crate) packages: Vec<Package>,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// If cargo cannot read the manifests.
    pub(crate) fn find() -> Result<Self> {
        let mut cargo = cargo("metadata");
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--no-deps", "--format-version", "1"]);
        let text = process::captured(cargo, Duration::from_secs(300))?;
        serde_json::from_str(&text).context("`cargo metadata` prints something else than expected")
    }

    /// A file or folder of the project, by its path in it.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.root.join(inside)
    }
}

/// One package of the project.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Where its manifest stands.
    pub(crate) manifest_path: PathBuf,
    /// What it asks for, of ours and of others.
    pub(crate) dependencies: Vec<Dependency>,
    /// What cargo makes of it.
    pub(crate) targets: Vec<Target>,
}

/// A library or a program of a package.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// `lib`, `bin`, `test` and so on.
    pub(crate) kind: Vec<String>,
}

/// A package that another one asks for.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// Its name.
    pub(crate) name: String,
    /// Nothing for an ordinary one, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

/// The cargo that runs us, with a subcommand.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::command(program, [subcommand])
}
