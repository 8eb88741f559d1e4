//! Broken engines: a copy of the engine with all mutations of a list in it, of which one at a time is switched on.
//!
//! One build is enough for all of them, since each place asks at run time whether it is to be broken. What is run is the
//! simulation, seed after seed, until a promise does not hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;
use crate::workspace::{Workspace, cargo};

/// One way to break the engine.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutation {
    /// What the broken engine does.
    pub(crate) name: String,
    /// What does not hold then.
    pub(crate) promise: String,
    /// The file, in the project.
    file: String,
    /// What stands there once.
    text: String,
    /// The part of `text` that is replaced, where it alone stands there more than once.
    expression: Option<String>,
    /// What stands in its place.
    instead: String,
}

/// The list of the project.
pub(crate) const LIST: &str = "crates/sim/mutations.yaml";

/// How a run of seeds against one engine ended.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Hunt {
    /// The mutation's number, from 1 on; 0: nothing is broken.
    pub(crate) mutation: usize,
    /// The seed in which a promise did not hold, and what was said.
    pub(crate) found: Option<(u64, String)>,
    /// How many seeds were run.
    pub(crate) runs: u64,
    /// How long it took.
    pub(crate) ms: u64,
}

/// A program with the engine, whole and broken.
#[derive(Debug)]
pub(crate) struct Broken {
    program: PathBuf,
}

/// Reads the list.
///
/// # Errors
/// If it is not one, or if two of it have one name.
pub(crate) fn read(workspace: &Workspace) -> Result<Vec<Mutation>> {
    let text =
        fs::read_to_string(workspace.path(LIST)).with_context(|| format!("reading {LIST}"))?;
    let mutations: Vec<Mutation> =
        serde_norway::from_str(&text).with_context(|| format!("{LIST} is no list of mutations"))?;
    for (index, mutation) in mutations.iter().enumerate() {
        if mutations.iter().take(index).any(|other| other.name == mutation.name) {
            bail!("{LIST}: two mutations are called `{}`", mutation.name);
        }
    }
    Ok(mutations)
}

impl Broken {
    /// Copies what the simulation is made of, with all `mutations` in it, and builds it.
    ///
    /// # Errors
    /// If a mutation does not fit its file any more, or the copy does not compile.
    pub(crate) fn build(workspace: &Workspace, mutations: &[Mutation]) -> Result<Self> {
        let copy = workspace.target.join("mutants");
        let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for name in COPIED {
            gather(&workspace.root, &Path::new("crates").join(name), &mut files)?;
        }
        for file in ["Cargo.toml", "Cargo.lock"] {
            files.insert(file.into(), fs::read(workspace.path(file)).context(file)?);
        }
        break_files(&mut files, mutations)?;
        edit(&mut files, "Cargo.toml", with_members)?;
        edit(&mut files, "crates/core/src/lib.rs", |text| Ok(format!("{text}{SWITCH}")))?;
        files.insert("crates/sim/src/bin/mutants.rs".into(), RUNNER.into());
        write(&copy, &files)?;
        let mut build = cargo("build");
        build
            .current_dir(&copy)
            .args(["--quiet", "--package", "envoy-sentinel-sim", "--bin", "mutants"])
            .env("CARGO_TARGET_DIR", &workspace.target);
        process::run(build).with_context(|| {
            format!("the engine with all mutations of {LIST} does not compile: each must be an expression, or whole statements, of the same type as what it replaces")
        })?;
        Ok(Self { program: workspace.target.join("debug/mutants") })
    }

    /// Runs seeds from 1 on, `most` at most, against the engine broken by `mutation`, until a promise does not hold.
    ///
    /// # Errors
    /// If the program cannot be run or says something else.
    pub(crate) fn hunt(&self, mutation: usize, most: u64, jobs: usize) -> Result<Hunt> {
        let mut command = Command::new(&self.program);
        command
            .args([mutation.to_string(), most.to_string(), jobs.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let said = process::captured(command, HUNT_MOST)?;
        serde_json::from_str(&said).with_context(|| format!("the simulation says `{said}`"))
    }
}

/// What the simulation is made of.
const COPIED: [&str; 4] = ["core", "wire", "engine", "sim"];

/// A broken engine may never come to an end.
const HUNT_MOST: std::time::Duration = std::time::Duration::from_secs(600);

/// All files under `folder`, by their path in the project.
fn gather(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(root.join(folder)).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let path = folder.join(entry.file_name());
        if entry.file_type().with_context(reading)?.is_dir() {
            gather(root, &path, files)?;
        } else {
            let bytes =
                fs::read(entry.path()).with_context(|| format!("reading {}", path.display()))?;
            files.insert(path, bytes);
        }
    }
    Ok(())
}

/// Writes what differs, so that cargo compiles what is new, and removes what is gone.
fn write(copy: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let mut old = BTreeMap::new();
    if copy.join("crates").is_dir() {
        gather(copy, Path::new("crates"), &mut old)?;
    }
    for path in old.keys().filter(|path| !files.contains_key(*path)) {
        fs::remove_file(copy.join(path)).with_context(|| format!("removing {}", path.display()))?;
    }
    for (path, bytes) in files {
        let file = copy.join(path);
        if fs::read(&file).is_ok_and(|there| there == *bytes) {
            continue;
        }
        let folder = file.parent().unwrap_or(copy);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, bytes))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn edit(
    files: &mut BTreeMap<PathBuf, Vec<u8>>,
    path: &str,
    change: impl FnOnce(&str) -> Result<String>,
) -> Result<()> {
    let bytes = files.get_mut(Path::new(path)).with_context(|| format!("there is no {path}"))?;
    let text = std::str::from_utf8(bytes).with_context(|| format!("{path} is not text"))?;
    *bytes = change(text)?.into_bytes();
    Ok(())
}

/// The workspace's manifest with only what is copied.
fn with_members(manifest: &str) -> Result<String> {
    let is_copied = |line: &str, before: &str, after: &str| {
        COPIED.iter().any(|name| line.contains(&format!("{before}{name}{after}")))
    };
    let (mut text, mut found, mut skips) = (String::new(), false, false);
    for line in manifest.lines() {
        let is_members = line.starts_with("members = ");
        found |= is_members;
        if line.starts_with('[') {
            skips = line.starts_with("[profile.dev.package.envoy-")
                && !is_copied(line, "envoy-sentinel-", "]");
        }
        if is_members {
            let members = COPIED.map(|name| format!("\"crates/{name}\"")).join(", ");
            let _ = writeln!(text, "members = [{members}]");
        } else if !skips && (!line.contains("path = \"") || is_copied(line, "crates/", "\"")) {
            let _ = writeln!(text, "{line}");
        }
        if line == "[workspace.lints.rust]" {
            // What is replaced stands in parentheses, needed or not, and may leave names without use.
            for lint in ["unused_parens", "unused_variables", "unused_imports"] {
                let _ = writeln!(text, "{lint} = \"allow\"");
            }
        }
    }
    if !found {
        bail!("Cargo.toml has no line `members = …`");
    }
    Ok(text)
}

/// Puts all mutations into their files.
fn break_files(files: &mut BTreeMap<PathBuf, Vec<u8>>, mutations: &[Mutation]) -> Result<()> {
    let mut by_file: BTreeMap<&str, Vec<(usize, &Mutation)>> = BTreeMap::new();
    for (index, mutation) in mutations.iter().enumerate() {
        by_file.entry(&mutation.file).or_default().push((index + 1, mutation));
    }
    for (file, mutations) in by_file {
        edit(files, file, |text| break_text(text, &mutations))
            .with_context(|| format!("{LIST}, {file}"))?;
    }
    Ok(())
}

/// A file's text with mutations in it, each under its number.
fn break_text(text: &str, mutations: &[(usize, &Mutation)]) -> Result<String> {
    let mut places: BTreeMap<(usize, usize), Vec<(usize, &Mutation)>> = BTreeMap::new();
    for &(number, mutation) in mutations {
        let place = place_of(text, mutation)?;
        places.entry((place.start, place.end)).or_default().push((number, mutation));
    }
    let (mut broken, mut done) = (String::new(), 0);
    for ((start, end), mutations) in places {
        let (Some(before), Some(original)) = (text.get(done..start), text.get(start..end)) else {
            bail!("`{}` and another mutation replace overlapping texts", names(&mutations));
        };
        broken.push_str(before);
        broken.push_str(&choice(original, &mutations));
        done = end;
    }
    broken.push_str(text.get(done..).unwrap_or_default());
    Ok(broken)
}

fn names(mutations: &[(usize, &Mutation)]) -> String {
    mutations.iter().map(|(_, mutation)| mutation.name.as_str()).collect::<Vec<_>>().join("`, `")
}

/// Where a mutation's text stands.
fn place_of(text: &str, mutation: &Mutation) -> Result<Range<usize>> {
    let name = &mutation.name;
    let once = |text: &str, wanted: &str, of: &str| -> Result<usize> {
        match text.match_indices(wanted).map(|(at, _)| at).collect::<Vec<_>>().as_slice() {
            [at] => Ok(*at),
            [] => bail!("mutation `{name}`: its {of} does not stand there any more"),
            several => {
                bail!(
                    "mutation `{name}`: its {of} stands there {} times, and once is right",
                    several.len()
                )
            }
        }
    };
    let start = once(text, &mutation.text, "text")?;
    Ok(match &mutation.expression {
        None => start..start + mutation.text.len(),
        Some(expression) => {
            let start = start + once(&mutation.text, expression, "expression")?;
            start..start + expression.len()
        }
    })
}

/// Code that is what it was unless one of the mutations is switched on.
fn choice(original: &str, mutations: &[(usize, &Mutation)]) -> String {
    let is_statement = original.ends_with([';', '}']) && original.contains(';');
    let mut code = String::from(if is_statement { "" } else { "(" });
    for (number, mutation) in mutations {
        let path =
            if mutation.file.starts_with("crates/core/") { "crate" } else { "sentinel_core" };
        let _ = write!(code, "if {path}::is_broken({number}) {{ {} }} else ", mutation.instead);
    }
    let _ = write!(code, "{{ {original} }}{}", if is_statement { "" } else { ")" });
    code
}

/// Stands at the end of the innermost crate.
const SWITCH: &str = "
static BROKEN: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);

/// Breaks the engine by one mutation.
pub fn break_by(mutation: usize) {
    BROKEN.store(mutation, core::sync::atomic::Ordering::SeqCst);
}

/// Whether the engine is broken by this one.
pub fn is_broken(mutation: usize) -> bool {
    BROKEN.load(core::sync::atomic::Ordering::Relaxed) == mutation
}
";

/// The program of the copy.
const RUNNER: &str = r##"//! Runs seeds against one broken engine.

use std::{
    env, io::Write as _, panic,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

fn main() {
    let mut arguments = env::args().skip(1).filter_map(|text| text.parse::<u64>().ok());
    let mut number = || arguments.next().unwrap_or(1);
    let (mutation, most, jobs) = (number(), number(), number());
    // A broken engine may well panic: that is a way to be found, and is said below.
    panic::set_hook(Box::new(|_| {}));
    sentinel_core::break_by(mutation as usize);
    let (begun, held) = (Instant::now(), AtomicU64::new(0));
    let failure = sentinel_sim::run_many(1, most, jobs as usize, |_| {
        held.fetch_add(1, Ordering::Relaxed);
    });
    let runs = held.into_inner() + u64::from(failure.is_err());
    let found = match failure {
        Ok(()) => "null".to_owned(),
        Err(failure) => format!("[{}, {:?}]", failure.seed, failure.what),
    };
    let ms = begun.elapsed().as_millis();
    let line = format!(r#"{{"mutation":{mutation},"found":{found},"runs":{runs},"ms":{ms}}}"#);
    let _ = writeln!(std::io::stdout(), "{line}");
}
"##;

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(name: &str, text: &str, instead: &str) -> Mutation {
        let [name, text, instead] = [name, text, instead].map(str::to_owned);
        let (promise, file) = (String::new(), "crates/engine/src/x.rs".to_owned());
        Mutation { name, promise, file, text, expression: None, instead }
    }

    fn broken(text: &str, mutations: &[Mutation]) -> Result<String> {
        break_text(text, &(1..).zip(mutations).collect::<Vec<_>>())
    }

    #[test]
    fn a_place_asks_which_mutation_is_on() {
        let two = [mutation("never", "a < b", "false"), mutation("always", "a < b", "true")];
        assert_eq!(
            broken("if a < b { c(); }", &two).unwrap(),
            "if (if sentinel_core::is_broken(1) { false } else if sentinel_core::is_broken(2) { true } else { a < b }) \
             { c(); }"
        );
        let statement = [mutation("nothing", "c();", "")];
        assert_eq!(
            broken("if a < b { c(); }", &statement).unwrap(),
            "if a < b { if sentinel_core::is_broken(1) {  } else { c(); } }"
        );
    }

    #[test]
    fn a_text_that_has_gone_or_stands_there_twice_is_named() {
        let said =
            |text| broken(text, &[mutation("lost exit", "c();", "")]).unwrap_err().to_string();
        assert_eq!(said("d();"), "mutation `lost exit`: its text does not stand there any more");
        assert_eq!(
            said("c(); c();"),
            "mutation `lost exit`: its text stands there 2 times, and once is right"
        );
    }

    #[test]
    fn mutations_that_overlap_are_refused() {
        let two = [mutation("a", "b(c)", "d"), mutation("b", "c", "e")];
        assert!(broken("b(c)", &two).unwrap_err().to_string().contains("overlap"));
    }

    #[test]
    fn every_mutation_of_the_list_fits_the_engine() {
        let workspace = Workspace {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
            target: PathBuf::new(),
            packages: Vec::new(),
        };
        let mutations = read(&workspace).unwrap();
        assert!(mutations.len() >= 10);
        let mut files = BTreeMap::new();
        for name in COPIED {
            gather(&workspace.root, &Path::new("crates").join(name), &mut files).unwrap();
        }
        break_files(&mut files, &mutations).unwrap();
    }
}
