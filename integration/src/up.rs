//! What `cargo xtask up` does: Envoy on loopback with both modules, until interrupted.
//!
//! Edits of the rules directory are followed: once two looks in a row see the same new files, they are checked, and
//! if they are good Envoy is started again with them. A bad edit changes nothing and says why.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::bootstrap::{Bootstrap, Sentinel};
use crate::envoy::Envoy;
use crate::rules;
use crate::upstream::Upstream;

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
    /// Where clients connect, on loopback.
    pub port: u16,
    /// Envoy's admin endpoint, on loopback.
    pub admin_port: u16,
    /// The console, on loopback.
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
    let mut in_force = Snapshot::of(&options.rules)?;
    check(&options.rules)?;
    let mut documents = rules::read(&options.rules)?;
    let upstream = Upstream::start(0)?;
    let mut envoy = start(options, &documents, upstream.address())?;
    write_addresses(out, &envoy, &upstream)?;
    write_things_to_try(out, &envoy, &documents)?;
    writeln!(out, "following edits in {}; Ctrl-C ends it", options.rules.display())?;

    let mut last_look = in_force.clone();
    while !interrupt.within(BETWEEN_LOOKS) {
        envoy.still_running()?;
        let look = Snapshot::of(&options.rules)?;
        let settled = look == last_look;
        last_look = look;
        if !settled || last_look == in_force {
            continue;
        }
        in_force = last_look.clone();
        match check(&options.rules).and_then(|()| rules::read(&options.rules)) {
            Ok(edited) => {
                drop(envoy);
                envoy = match start(options, &edited, upstream.address()) {
                    Ok(started) => {
                        documents = edited;
                        writeln!(
                            out,
                            "the rules have changed: Envoy runs again, with the new ones"
                        )?;
                        started
                    }
                    Err(error) => {
                        writeln!(
                            out,
                            "Envoy refuses the edited rules, so the ones before are back in force: {error:#}"
                        )?;
                        start(options, &documents, upstream.address())?
                    }
                };
            }
            Err(error) => {
                writeln!(
                    out,
                    "the edit is not used, the rules before it stay in force: {error:#}"
                )?;
            }
        }
    }
    writeln!(out, "interrupted: Envoy and the upstream are stopped")?;
    Ok(())
}

fn start(options: &Options, documents: &[Value], upstream: SocketAddr) -> Result<Envoy> {
    let bootstrap = Bootstrap {
        port: options.port,
        admin_port: options.admin_port,
        upstream,
        sentinel: Some(Sentinel::with_rules(&options.dist, documents)?),
        console_port: options.console_port,
        access_log: None,
    };
    Envoy::start(&options.envoy, options.workers, &bootstrap).with_context(|| {
        format!(
            "Envoy did not start on ports {}, {} and {} (is another one holding them?)",
            options.port, options.admin_port, options.console_port
        )
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

/// The rule files of a directory with their contents.
#[derive(Clone, Debug, PartialEq)]
struct Snapshot(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Snapshot {
    fn of(directory: &Path) -> Result<Self> {
        // A file that vanishes between listing and reading is an edit under way: the next look sees it.
        let read = |file: PathBuf| (file.clone(), fs::read(file).ok());
        Ok(Self(rules::files(directory)?.into_iter().map(read).collect()))
    }
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

const BETWEEN_LOOKS: Duration = Duration::from_millis(300);
