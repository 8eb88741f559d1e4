//! What `cargo xtask up` does: Envoy on loopback with both modules, until interrupted.
//!
//! Edits of the rules directory are followed by the service itself: it reads an index of the directory, which is kept
//! here, and the files that the index lists, all of them through Envoy. Envoy 1.40 serves the files as they stand in the
//! directory, so that edits are followed also while nobody keeps the index; older ones answer with routes that are
//! written anew after each edit. What the service says of its rules is printed: which set is in force, and what is wrong
//! with an edit that it does not use.

use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::bootstrap::{ADMIN_CLUSTER, Bootstrap, Configuration, FILES, Files, Sentinel};
use crate::envoy::{self, Envoy};
use crate::upstream::Upstream;
use crate::xds::{self, Discovery};
use crate::{clock, rules};

/// What is started, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// The directory with the two modules.
    pub dist: PathBuf,
    /// The directory with the rule files.
    pub rules: PathBuf,
    /// Envoy's worker threads, at least 1.
    pub workers: u32,
    /// Where clients connect, on loopback; 0: a port that the system chooses.
    pub port: u16,
    /// Envoy's admin endpoint, on loopback; 0: a port that the system chooses.
    pub admin_port: u16,
    /// The console, on loopback; 0: a port that the system chooses.
    pub console_port: u16,
}

/// Runs Envoy and the upstream until SIGINT or SIGTERM, following edits of the rules.
///
/// `check` says whether the rule files of a directory are good, in words that name file, rule and field.
///
/// # Errors
///
/// When the rules are bad at the start, a port is taken, or Envoy ends by itself.
pub fn up(
    options: &Options,
    check: &dyn Fn(&Path) -> Result<()>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut interrupt = Interrupt::new()?;
    check(&options.rules)?;
    let documents = rules::read(&options.rules)?;
    let mut up = Up::start(options, out)?;
    write_addresses(out, up.envoy(), up.upstream())?;
    write_things_to_try(out, up.envoy(), &documents)?;
    writeln!(out, "following edits in {}; Ctrl-C ends it", options.rules.display())?;
    while !interrupt.within(BETWEEN_LOOKS) {
        up.follow(out)?;
    }
    writeln!(out, "interrupted: Envoy and the upstream are stopped")?;
    Ok(())
}

/// What runs, and the directory that it follows.
#[derive(Debug)]
pub struct Up {
    envoy: Envoy,
    upstream: Upstream,
    shelf: Shelf,
    /// How much of Envoy's log has been looked at.
    read: usize,
}

impl Up {
    /// Starts Envoy and the upstream, and waits until the rules of the directory are in force.
    ///
    /// # Errors
    ///
    /// When a port is taken, Envoy ends by itself, or the service does not take the rules: then with what it says.
    pub fn start(options: &Options, out: &mut dyn Write) -> Result<Self> {
        let mut shelf = Shelf::new(options)?;
        shelf.renew()?;
        let service = json!({
            "sources": [{
                "name": "rules",
                "file": {"cluster": FILES, "path": INDEX_PATH},
                "intervalMs": INTERVAL_MS,
            }],
            "envoyStats": {"cluster": ADMIN_CLUSTER},
        });
        let upstream = Upstream::start(0)?;
        let bootstrap = Bootstrap {
            port: options.port,
            admin_port: options.admin_port,
            upstream: upstream.address(),
            sentinel: Some(Sentinel {
                service: Some(Configuration::Text(service.to_string())),
                files: Some(shelf.files()),
                ..Sentinel::with_rules(&options.dist, &[])?
            }),
            console_port: options.console_port,
            access_log: None,
        };
        let envoy =
            Envoy::start(&options.envoy, options.workers, &bootstrap).with_context(|| {
                format!(
                    "Envoy did not start on ports {}, {} and {} (is another one holding them?)",
                    options.port, options.admin_port, options.console_port
                )
            })?;
        let mut up = Self { envoy, upstream, shelf, read: 0 };
        let mut said = String::new();
        let waited = clock::wait_for("the rules to be in force", START_PATIENCE, || {
            up.envoy.still_running()?;
            let news = up.news()?;
            let in_force = news.iter().any(|line| line.starts_with(IN_FORCE));
            said.extend(news.into_iter().map(|line| line + "\n"));
            Ok(in_force.then_some(()))
        });
        write!(out, "{said}")?;
        waited.with_context(|| format!("{:?}", up.envoy))?;
        Ok(up)
    }

    /// The running Envoy.
    #[must_use]
    pub fn envoy(&self) -> &Envoy {
        &self.envoy
    }

    /// What stands behind it.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Looks after the directory and Envoy once, and writes what the service has said meanwhile.
    ///
    /// # Errors
    ///
    /// When Envoy has ended, or the directory cannot be read.
    pub fn follow(&mut self, out: &mut dyn Write) -> Result<()> {
        self.envoy.still_running()?;
        self.shelf.renew()?;
        for line in self.news()? {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    /// What the service has said since the last call.
    fn news(&mut self) -> Result<Vec<String>> {
        let lines = self.envoy.log_since(&mut self.read)?;
        Ok(lines.iter().filter_map(|line| said_of_rules(line)).map(str::to_owned).collect())
    }
}

/// What the service says of rules in a line of Envoy's log, if it does. What it says of everything else, such as breakers,
/// is for that log.
fn said_of_rules(line: &str) -> Option<&str> {
    let (_, said) = line.split_once("wasm log ")?.1.split_once(": ")?;
    let said = said.strip_prefix("service: ").unwrap_or(said);
    [IN_FORCE, REFUSED, "source "].iter().any(|begins| said.starts_with(begins)).then_some(said)
}

/// How Envoy gets at the files of the directory.
#[derive(Debug)]
struct Shelf {
    directory: PathBuf,
    /// What paths of requests for its files begin with, and so how the service calls them: as they are called on the
    /// command line, where that can be.
    prefix: String,
    kept: Kept,
    _made: TempDir,
}

/// What is written when the directory has changed.
#[derive(Debug)]
enum Kept {
    /// The list of the files: their contents Envoy reads itself.
    Index { file: PathBuf, written: Option<String> },
    /// Routes with the contents of all files, once two looks in a row have seen the same.
    Routes { routes: Discovery, seen: Look, written: Option<Look> },
}

/// All files: paths and contents.
type Look = Vec<(String, String)>;

impl Shelf {
    fn new(options: &Options) -> Result<Self> {
        let made = tempfile::tempdir().context("cannot make a directory for Envoy's files")?;
        let kept = if envoy::serves_files(&options.envoy)? {
            Kept::Index { file: made.path().join(rules::INDEX), written: None }
        } else {
            let routes = Discovery::at(made.path().join("routes.json"));
            Kept::Routes { routes, seen: Look::new(), written: None }
        };
        let directory = std::path::absolute(&options.rules)
            .with_context(|| format!("cannot find {}", options.rules.display()))?;
        Ok(Self { prefix: prefix(&options.rules), directory, kept, _made: made })
    }

    /// What Envoy is told.
    fn files(&self) -> Files {
        match &self.kept {
            Kept::Index { file, .. } => {
                let made = file.parent().unwrap_or(file).join("");
                Files::Served(vec![
                    ("/".to_owned(), made),
                    (self.prefix.clone(), self.directory.clone()),
                ])
            }
            Kept::Routes { routes, .. } => Files::Routed(routes.file().to_owned()),
        }
    }

    /// Writes what has changed since the last look.
    fn renew(&mut self) -> Result<()> {
        let files = rules::files(&self.directory)?;
        let paths: Vec<String> = files.iter().map(|file| self.path_of(file)).collect();
        let listed: Vec<&str> = paths.iter().map(|path| path.trim_start_matches('/')).collect();
        let index = json!({"files": listed}).to_string();
        match &mut self.kept {
            Kept::Index { file, written } => {
                if written.as_ref() != Some(&index) {
                    xds::replace(file, &index)?;
                    *written = Some(index);
                }
            }
            Kept::Routes { routes, seen, written } => {
                let mut look = vec![(INDEX_PATH.to_owned(), index)];
                for (file, path) in files.iter().zip(paths) {
                    // A file that vanishes between listing and reading is an edit under way: the next look sees it.
                    let contents = fs::read(file).unwrap_or_default();
                    look.push((path, String::from_utf8_lossy(&contents).into_owned()));
                }
                let settled = written.is_none() || look == *seen;
                if settled && written.as_ref() != Some(&look) {
                    routes.write(&[xds::direct_routes(&look)])?;
                    *written = Some(look.clone());
                }
                *seen = look;
            }
        }
        Ok(())
    }

    fn path_of(&self, file: &Path) -> String {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        format!("{}/{}", self.prefix, escaped(&name))
    }
}

/// What the paths of requests for the files of a directory begin with: `/shop/rules` for `shop/rules`. Where its name
/// does not fit into a path, or would have to lead upwards, `/rules`.
fn prefix(directory: &Path) -> String {
    let mut prefix = String::new();
    for part in directory.components() {
        match part {
            Component::CurDir | Component::RootDir => {}
            Component::Normal(name) if name.to_str().is_some_and(|name| escaped(name) == name) => {
                prefix.push('/');
                prefix.push_str(&name.to_string_lossy());
            }
            Component::Normal(_) | Component::ParentDir | Component::Prefix(_) => {
                return "/rules".to_owned();
            }
        }
    }
    if prefix.is_empty() { "/rules".to_owned() } else { prefix }
}

/// A file's name as it stands in a path.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().fold(String::new(), |mut escaped, byte| {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
        escaped
    })
}

/// Says where everything listens.
pub(crate) fn write_addresses(
    out: &mut dyn Write,
    envoy: &Envoy,
    upstream: &Upstream,
) -> Result<()> {
    writeln!(out, "proxy     http://{}", envoy.proxy())?;
    writeln!(out, "admin     http://{}", envoy.admin())?;
    writeln!(out, "upstream  http://{}", upstream.address())?;
    writeln!(out, "console   http://{}/sentinel/state", envoy.listener("sentinel_console")?)?;
    Ok(())
}

fn write_things_to_try(out: &mut dyn Write, envoy: &Envoy, documents: &[Value]) -> Result<()> {
    let limits = rules::limits(documents);
    let limited = limits.iter().find_map(|limit| limit.resource.strip_prefix("GET:"));
    let url = format!("http://{}{}", envoy.proxy(), limited.unwrap_or("/hello"));
    writeln!(out, "try")?;
    writeln!(out, "  curl -i {url}")?;
    writeln!(
        out,
        "  curl -s -o /dev/null -w '%{{http_code}}\\n' '{url}?[1-500]' | sort | uniq -c    # 500 at once: passed and refused"
    )?;
    writeln!(
        out,
        "  curl -i 'http://{}/pay?ms=50&status=500'    # an answer of the upstream that takes 50 ms and fails",
        envoy.proxy()
    )?;
    writeln!(out, "  curl -s http://{}/stats/prometheus | grep ^sentinel_", envoy.admin())?;
    let console = envoy.listener("sentinel_console")?;
    writeln!(out, "  cargo xtask top --console {console}    # what is in force, as it changes")?;
    Ok(())
}

/// SIGINT and SIGTERM, from the moment it is made.
#[derive(Debug)]
pub(crate) struct Interrupt {
    runtime: Runtime,
    interrupted: Signal,
    terminated: Signal,
}

impl Interrupt {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (interrupted, terminated) = {
            let _entered = runtime.enter();
            let listen = |kind| signal(kind).context("cannot listen for signals");
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
        };
        Ok(Self { runtime, interrupted, terminated })
    }

    /// Waits so long, and says whether a signal came.
    pub(crate) fn within(&mut self, span: Duration) -> bool {
        let Self { runtime, interrupted, terminated } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupted.recv() => true,
                _ = terminated.recv() => true,
                () = tokio::time::sleep(span) => false,
            }
        })
    }
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// How often the service looks at the files.
const INTERVAL_MS: u32 = 500;
/// Where the index is asked for.
const INDEX_PATH: &str = "/index.yaml";
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How the service begins to say that it has published a set.
const IN_FORCE: &str = "rule set ";
/// And why it has not.
const REFUSED: &str = "rules refused: ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_calls_files_as_they_are_called_on_the_command_line() {
        let prefix_of = |path: &str| prefix(Path::new(path));

        assert_eq!(prefix_of("rules"), "/rules");
        assert_eq!(prefix_of("./shop/rules/"), "/shop/rules");
        assert_eq!(prefix_of("/etc/sentinel"), "/etc/sentinel");
        assert_eq!(prefix_of("../elsewhere"), "/rules");
        assert_eq!(prefix_of("my rules"), "/rules");
        assert_eq!(prefix_of("."), "/rules");
        assert_eq!(escaped("two words.yaml"), "two%20words.yaml");
    }

    #[test]
    fn only_what_the_service_says_of_rules_is_printed() {
        let line = "[2026-01-01][1][error][wasm] [x.cc:1] wasm log sentinel: rules refused: a.yaml:1:1: it";
        assert_eq!(said_of_rules(line), Some("rules refused: a.yaml:1:1: it"));
        assert_eq!(said_of_rules("wasm log sentinel: breaker a: closed → open"), None);
        assert_eq!(said_of_rules("source/server.cc: rules refused: none"), None);
    }
}
