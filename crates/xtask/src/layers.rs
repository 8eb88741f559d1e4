//! The lines between the layers, and that the documents name what exists.
//!
//! A reviewer overlooks one `use`; this does not. Each violation is one sentence, and all of them are told at once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::wasm_toolchain::cargo_home;
use crate::workspace::{Package, Workspace};

/// Everything that is wrong, one sentence each.
///
/// # Errors
/// If the project's files cannot be read.
pub(crate) fn violations(workspace: &Workspace) -> Result<Vec<String>> {
    let mut found = dependencies(&workspace.packages);
    found.extend(attributes(&workspace.packages));
    found.extend(named_paths(workspace));
    found.extend(named_rules(workspace)?);
    found.extend(files(workspace)?);
    Ok(found)
}

/// A crate, and which of ours it may build on.
struct Layer {
    name: &'static str,
    on: &'static [&'static str],
    /// Whether it may know that it runs in a proxy.
    in_envoy: bool,
    /// Whether it does without the operating system.
    pure: bool,
}

const CORE: &str = "envoy-sentinel-core";
const WIRE: &str = "envoy-sentinel-wire";
const ENGINE: &str = "envoy-sentinel-engine";
const HOST: &str = "envoy-sentinel-host";
const SIM: &str = "envoy-sentinel-sim";
const FUZZ: &str = "envoy-sentinel-fuzz";
const CLI: &str = "envoy-sentinel-cli";
const INTEGRATION: &str = "envoy-sentinel-integration";

const LAYERS: [Layer; 12] = [
    Layer { name: CORE, on: &[], in_envoy: false, pure: true },
    Layer { name: WIRE, on: &[CORE], in_envoy: false, pure: true },
    Layer { name: ENGINE, on: &[CORE, WIRE], in_envoy: false, pure: false },
    Layer { name: HOST, on: &[CORE, WIRE, ENGINE], in_envoy: true, pure: false },
    Layer { name: "sentinel-filter", on: &[CORE, WIRE, ENGINE, HOST], in_envoy: true, pure: false },
    Layer {
        name: "sentinel-service",
        on: &[CORE, WIRE, ENGINE, HOST],
        in_envoy: true,
        pure: false,
    },
    Layer { name: "sentinel-crowd", on: &[CORE, WIRE, ENGINE, HOST], in_envoy: true, pure: false },
    Layer { name: SIM, on: &[CORE, WIRE, ENGINE], in_envoy: false, pure: false },
    Layer { name: FUZZ, on: &[CORE, WIRE, ENGINE], in_envoy: false, pure: false },
    Layer { name: CLI, on: &[CORE, WIRE, ENGINE, SIM], in_envoy: false, pure: false },
    Layer { name: INTEGRATION, on: &[CORE, WIRE, ENGINE, SIM], in_envoy: false, pure: false },
    Layer {
        name: "xtask",
        on: &[CORE, WIRE, ENGINE, SIM, CLI, INTEGRATION],
        in_envoy: false,
        pure: false,
    },
];

/// Tests may look further than the code they test: only what ships is held to the order.
fn dependencies(packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages {
        let name = &package.name;
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
            found.push(format!("{name} is in no layer: give it one in crates/xtask/src/layers.rs"));
            continue;
        };
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
        {
            let other = dependency.name.as_str();
            if LAYERS.iter().any(|layer| layer.name == other) && !layer.on.contains(&other) {
                found.push(format!("{name} depends on {other}, which its layer may not know"));
            }
            if other == "proxy-wasm" && !layer.in_envoy {
                found.push(format!(
                    "{name} depends on proxy-wasm, which only {HOST} and the two modules may"
                ));
            }
        }
    }
    found
}

fn attributes(packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    let is_pure =
        |package: &&Package| LAYERS.iter().any(|layer| layer.pure && layer.name == package.name);
    for package in packages.iter().filter(is_pure) {
        let root = package.manifest_path.with_file_name("src").join("lib.rs");
        let source = fs::read_to_string(root).unwrap_or_default();
        for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
            if !source.lines().any(|line| line.trim() == attribute) {
                found.push(format!("{} has no {attribute} in its lib.rs", package.name));
            }
        }
    }
    found
}

/// Paths in the architecture document, each from the project's folder or from the document's own.
fn named_paths(workspace: &Workspace) -> Vec<String> {
    let Ok(text) = fs::read_to_string(workspace.path(ARCHITECTURE)) else {
        return vec![format!("{ARCHITECTURE}, the architecture document, is missing")];
    };
    let exists =
        |path: &str| workspace.path(path).exists() || workspace.path("crates").join(path).exists();
    let lost = quoted_paths(&text).filter(|path| !exists(fixed_part(path)));
    lost.map(|path| format!("{ARCHITECTURE} names `{path}`, which does not exist")).collect()
}

/// What stands between single backticks and looks like a path of the project.
fn quoted_paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|quoted| quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c)))
        .filter(|quoted| {
            let ending = Path::new(quoted).extension().and_then(|ending| ending.to_str());
            let is_file =
                ending.is_some_and(|ending| SOURCES.contains(&ending) || ending == "json");
            let (top, rest) = quoted.split_once('/').unwrap_or((quoted, ""));
            let is_inside = !rest.is_empty() && FOLDERS.contains(&top);
            let is_built = ["dist", "target"].contains(&top);
            quoted.contains('/') && !quoted.starts_with('/') && (is_file || is_inside) && !is_built
        })
}

/// `rules` of `rules/*.yaml`: what can be looked up.
fn fixed_part(path: &str) -> &str {
    path.split_once('*')
        .map_or(path, |(before, _)| before.rsplit_once('/').map_or("", |(folder, _)| folder))
}

fn named_rules(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.path("rules");
    let Ok(text) = fs::read_to_string(folder.join("README.md")) else {
        return Ok(vec!["rules/README.md, which explains the rule files, is missing".to_owned()]);
    };
    let mut found = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") && !text.contains(&name) {
            found.push(format!("rules/README.md does not mention {name}"));
        }
    }
    found.sort();
    Ok(found)
}

fn files(workspace: &Workspace) -> Result<Vec<String>> {
    let mut all = Vec::new();
    walk(&workspace.root, &workspace.target, &mut all)?;
    all.sort();
    let private = private_paths(workspace);
    let mut found = Vec::new();
    for file in all {
        let name = file.strip_prefix(&workspace.root).unwrap_or(&file).display().to_string();
        let bytes = fs::read(&file).with_context(|| format!("cannot read {name}"))?;
        let is_source =
            file.extension().is_some_and(|ending| SOURCES.iter().any(|source| *source == ending));
        if is_source && bytes.len() > BYTES_MAX {
            found.push(format!(
                "{name} has {} bytes: split it, {BYTES_MAX} are enough",
                bytes.len()
            ));
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some(path) = private.iter().find(|path| tells(&text, path)) {
            found.push(format!("{name} contains {path}, a path of this machine"));
        }
    }
    Ok(found)
}

/// Every file that somebody wrote.
fn walk(folder: &Path, target: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        let path = entry.path();
        let is_made = path == target
            || [".git", "dist", "target"].iter().any(|name| entry.file_name() == *name);
        if entry.file_type()?.is_dir() {
            if !is_made {
                walk(&path, target, found)?;
            }
        } else if entry.file_type()?.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// Places that exist on this machine only. One folder deep says too little: many machines have such.
fn private_paths(workspace: &Workspace) -> Vec<String> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let places = [Some(workspace.root.clone()), cargo_home().ok(), home];
    let deep = places.into_iter().flatten().filter(|path| path.components().count() > 2);
    deep.map(|path| path.display().to_string()).collect()
}

/// Whether the text contains the path as a path of its own, not as the end of a longer one.
fn tells(text: &str, path: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.match_indices(path).any(|(start, _)| {
        let before = text.get(..start).and_then(|before| before.chars().next_back());
        let after = text.get(start + path.len()..).and_then(|after| after.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

const ARCHITECTURE: &str = "crates/README.md";
/// The folders at the top in which sources stand.
const FOLDERS: [&str; 7] = [".cargo", ".ci", ".github", "crates", "envoy", "integration", "rules"];
/// Endings of what people write and read.
const SOURCES: [&str; 6] = ["md", "rs", "sh", "toml", "yaml", "yml"];
const BYTES_MAX: usize = 40 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    #[test]
    fn a_crate_may_build_only_on_the_layers_below() {
        let packages = [
            package(CORE, &[("serde", None), (WIRE, None)]),
            package(WIRE, &[(CORE, None), (ENGINE, Some("dev"))]),
            package(ENGINE, &[(CORE, None), ("proxy-wasm", None)]),
            package(HOST, &[(ENGINE, None), ("proxy-wasm", None)]),
            package("sentinel-new", &[]),
        ];
        assert_eq!(
            dependencies(&packages),
            [
                "envoy-sentinel-core depends on envoy-sentinel-wire, which its layer may not know",
                "envoy-sentinel-engine depends on proxy-wasm, which only envoy-sentinel-host and the two modules may",
                "sentinel-new is in no layer: give it one in crates/xtask/src/layers.rs",
            ]
        );
    }

    #[test]
    fn a_pure_crate_says_so_in_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let packages =
            [Package { manifest_path: folder.path().join("Cargo.toml"), ..package(CORE, &[]) }];
        assert_eq!(attributes(&packages).len(), 2);

        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(
            folder.path().join("src/lib.rs"),
            "//! Docs.\n#![no_std]\n// #![forbid(unsafe_code)]\n",
        )
        .unwrap();
        assert_eq!(
            attributes(&packages),
            ["envoy-sentinel-core has no #![forbid(unsafe_code)] in its lib.rs"]
        );
    }

    #[test]
    fn paths_are_told_from_other_words_in_backticks() {
        let text = "`crates/core/src/lib.rs` and `Worker::enter` and `application/grpc` or `GET:/hello`\n\
                    `rules/*.yaml`, `core/src/time.rs`, `dist/sentinel_filter.wasm`, `envoy/`, `/stats`, `envoy`";
        assert_eq!(
            quoted_paths(text).collect::<Vec<_>>(),
            ["crates/core/src/lib.rs", "rules/*.yaml", "core/src/time.rs"]
        );
        assert_eq!(
            ["rules/*.yaml", "*.md", "envoy/a.yaml"].map(fixed_part),
            ["rules", "", "envoy/a.yaml"]
        );
    }

    #[test]
    fn a_path_of_the_machine_is_found_but_not_inside_a_longer_one() {
        let told = ["at /there/main", "`/there/main/x`", "/there/main:", "\"/there/main\""];
        assert!(told.into_iter().all(|text| tells(text, "/there/main")));
        let others = ["/there/mainly", "from/there/main", "/there", ""];
        assert!(!others.into_iter().any(|text| tells(text, "/there/main")));
    }

    #[test]
    fn files_that_are_too_large_or_tell_too_much_are_found_and_built_ones_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("main");
        fs::create_dir_all(root.join("dist")).unwrap();
        fs::write(root.join("large.rs"), vec![b' '; BYTES_MAX + 1]).unwrap();
        fs::write(root.join("just.rs"), vec![b' '; BYTES_MAX]).unwrap();
        fs::write(root.join("large.json"), vec![b' '; BYTES_MAX + 1]).unwrap();
        fs::write(root.join("dist/built.rs"), vec![b' '; BYTES_MAX + 1]).unwrap();
        fs::write(root.join("telling.yaml"), format!("path: {}/x", root.display())).unwrap();

        let workspace = Workspace { target: root.join("target"), packages: Vec::new(), root };
        assert_eq!(
            files(&workspace).unwrap(),
            [
                "large.rs has 40961 bytes: split it, 40960 are enough".to_owned(),
                format!(
                    "telling.yaml contains {}, a path of this machine",
                    workspace.root.display()
                ),
            ]
        );
    }

    fn package(name: &str, on: &[(&str, Option<&str>)]) -> Package {
        let dependencies = on
            .iter()
            .map(|(name, kind)| Dependency {
                name: (*name).to_owned(),
                kind: kind.map(ToOwned::to_owned),
            })
            .collect();
        Package {
            name: name.to_owned(),
            manifest_path: PathBuf::new(),
            dependencies,
            targets: Vec::new(),
        }
    }
}
