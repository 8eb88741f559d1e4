//! A real Envoy, started for one run and gone after it.
//!
//! Ports are the system's choice unless the bootstrap names them: Envoy binds port 0 and says where it listens,
//! so two runs never race for one. What it prints goes to a file in a directory of its own, and the last lines
//! of it stand in the error when Envoy refuses to start.

use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::bootstrap::{Bootstrap, ENDPOINT, FILES, PORT, at, named};
use crate::stats::Stats;
use crate::{client, clock};

/// A running Envoy. Killed when dropped.
pub struct Envoy {
    process: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    _directory: TempDir,
}

/// A thread of an Envoy.
#[derive(Clone, Debug)]
pub struct Thread {
    /// What Envoy calls it: workers are `wrk:worker_0` and so on.
    pub name: String,
    /// Whether it is the main thread.
    pub is_main: bool,
    /// The CPU time that it has used so far.
    pub ran: Duration,
}

impl Envoy {
    /// Starts `binary` with so many worker threads and waits until it serves.
    ///
    /// # Errors
    ///
    /// When it cannot be started, exits (with the last lines it printed: a refused configuration says there what is wrong) or is not
    /// ready within half a minute.
    pub fn start(binary: &Path, workers: u32, bootstrap: &Bootstrap) -> Result<Self> {
        Self::start_changed(binary, workers, bootstrap, |_| Ok(()))
    }

    /// As [`start`](Self::start), with whatever `change` makes of the configuration.
    ///
    /// # Errors
    ///
    /// As `start`, and when `change` fails.
    pub fn start_changed(
        binary: &Path,
        workers: u32,
        bootstrap: &Bootstrap,
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<Self> {
        let mut bootstrap = bootstrap.clone();
        // Held until Envoy listens there: its own cluster must know the port beforehand.
        let reserved = (bootstrap.admin_port == 0).then(reserved_port).transpose()?;
        if let Some((_, port)) = &reserved {
            bootstrap.admin_port = *port;
        }
        let mut root = bootstrap.render()?;
        change(&mut root)?;
        // So must the cluster in which the service asks for rule files.
        let _files = reserve_files_port(&mut root)?;
        let directory = tempfile::tempdir().context("cannot make a directory for Envoy's files")?;
        let configuration = directory.path().join("envoy.json");
        fs::write(&configuration, root.to_string())
            .context("cannot write Envoy's configuration")?;
        let log = directory.path().join("envoy.log");
        let printed = File::create(&log).context("cannot create Envoy's log")?;
        let admin_file = directory.path().join("admin");
        let process = Command::new(binary)
            .arg("--config-path")
            .arg(&configuration)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--concurrency", &workers.to_string()])
            .args(["--disable-hot-restart", "--file-flush-interval-msec", "50"])
            // Who it is for sources of xDS.
            .args(["--service-node", "sentinel", "--service-cluster", "sentinel"])
            // How long a listener that has been replaced lives on, at most.
            .args(["--drain-time-s", &DRAIN.as_secs().to_string()])
            .args(["--log-level", "warn", "--component-log-level", "wasm:info"])
            .stdin(Stdio::null())
            .stdout(printed.try_clone().context("cannot share Envoy's log")?)
            .stderr(printed)
            .spawn()
            .with_context(|| format!("cannot start Envoy ({})", binary.display()))?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut envoy =
            Self { process, proxy: unknown, admin: unknown, log, _directory: directory };
        envoy.admin = clock::wait_for("Envoy's admin endpoint", START_PATIENCE, || {
            envoy.still_running()?;
            Ok(fs::read_to_string(&admin_file).ok().and_then(|address| address.trim().parse().ok()))
        })?;
        clock::wait_for("Envoy to be ready", START_PATIENCE, || {
            envoy.still_running()?;
            let ready = client::get(envoy.admin, "/ready");
            Ok(ready.ok().filter(|answer| answer.status == 200 && answer.body.starts_with("LIVE")))
        })?;
        envoy.proxy = envoy.listener("ingress")?;
        Ok(envoy)
    }

    /// Where clients connect.
    #[must_use]
    pub fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// Clients connect here from now on: a listener that comes back may listen elsewhere.
    pub fn serve_at(&mut self, address: SocketAddr) {
        self.proxy = address;
    }

    /// Its admin endpoint.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where a listener listens, by its name.
    ///
    /// # Errors
    ///
    /// When the admin endpoint does not answer, or there is no such listener.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        let listeners: Value = serde_json::from_str(&self.ask_admin("/listeners?format=json")?)?;
        let statuses = listeners.get("listener_statuses").and_then(Value::as_array);
        let status = statuses
            .into_iter()
            .flatten()
            .find(|status| status.get("name").and_then(Value::as_str) == Some(name))
            .with_context(|| {
                format!("Envoy has no listener {name}; it printed:\n{}", self.last_lines())
            })?;
        let address = status.pointer("/local_address/socket_address");
        let ip = address.and_then(|address| address.get("address")?.as_str()?.parse().ok());
        let port = address.and_then(|address| address.get("port_value")?.as_u64());
        let (Some(ip), Some(port)) = (ip, port.and_then(|port| u16::try_from(port).ok())) else {
            bail!("Envoy listens at an address we cannot read: {status}")
        };
        Ok(SocketAddr::new(ip, port))
    }

    /// All numbers of `/stats`, now.
    ///
    /// # Errors
    ///
    /// When the admin endpoint does not answer.
    pub fn stats(&self) -> Result<Stats> {
        Ok(Stats::parse(&self.ask_admin("/stats")?))
    }

    /// The numbers of `/stats` whose name has `text` in it: cheaper to make and to read where there are a great many.
    ///
    /// # Errors
    ///
    /// When the admin endpoint does not answer.
    pub fn stats_of(&self, text: &str) -> Result<Stats> {
        Ok(Stats::parse(&self.ask_admin(&format!("/stats?filter={text}"))?))
    }

    /// Stops all of its threads where they stand, as `kill -STOP` does.
    ///
    /// # Errors
    ///
    /// When the process has gone.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets them go on, as `kill -CONT` does.
    ///
    /// # Errors
    ///
    /// When the process has gone.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_child(&self.process);
        kill_process(process, signal).context("cannot send Envoy a signal: it has gone")
    }

    /// The text of `/stats/prometheus`, Sentinel's metrics only.
    ///
    /// # Errors
    ///
    /// When the admin endpoint does not answer.
    pub fn prometheus(&self) -> Result<String> {
        let text = self.ask_admin("/stats/prometheus")?;
        Ok(text
            .lines()
            .filter(|line| line.starts_with("sentinel_"))
            .fold(String::new(), |all, line| all + line + "\n"))
    }

    /// The memory it holds, bytes (resident set).
    ///
    /// # Errors
    ///
    /// When the process has gone, or this is not Linux.
    pub fn memory_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        kilobytes
            .map(|kilobytes: u64| kilobytes * 1024)
            .with_context(|| format!("{path} names no VmRSS"))
    }

    /// The CPU time that its threads have used so far: workers, main thread, the runtime's own.
    ///
    /// A thread's time is up to date when it sleeps; one that is running may lack its last few milliseconds.
    ///
    /// # Errors
    ///
    /// When the process has gone, or this is not a Linux that counts (`/proc/<pid>/task/*/schedstat`).
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(self.threads()?.iter().map(|thread| thread.ran).sum())
    }

    /// What each of its threads has used so far.
    ///
    /// # Errors
    ///
    /// As [`cpu_time`](Self::cpu_time).
    pub fn threads(&self) -> Result<Vec<Thread>> {
        let tasks = format!("/proc/{}/task", self.process.id());
        let mut threads = Vec::new();
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let task = task.with_context(|| format!("cannot list {tasks}"))?.path();
            let read = |file: &str| {
                let path = task.join(file);
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
            };
            let ran_ns =
                read("schedstat")?.split_whitespace().next().and_then(|ns| ns.parse().ok());
            threads.push(Thread {
                name: read("comm")?.trim().to_owned(),
                is_main: task.ends_with(self.process.id().to_string()),
                ran: Duration::from_nanos(
                    ran_ns.context("schedstat does not begin with a number")?,
                ),
            });
        }
        Ok(threads)
    }

    /// The lines it has printed so far that contain `text`.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log_lines(&self, text: &str) -> Result<Vec<String>> {
        let log = fs::read(&self.log).context("cannot read Envoy's log")?;
        let log = String::from_utf8_lossy(&log);
        Ok(log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect())
    }

    /// The whole lines that it has printed after the first `from` bytes; `from` then counts these too.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log_since(&self, from: &mut usize) -> Result<Vec<String>> {
        let log = fs::read(&self.log).context("cannot read Envoy's log")?;
        let new = log.get(*from..).unwrap_or_default();
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        *from += whole;
        let text = String::from_utf8_lossy(new.get(..whole).unwrap_or_default()).into_owned();
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Fails if the process has ended, with the last lines it printed.
    ///
    /// # Errors
    ///
    /// When it has.
    pub fn still_running(&mut self) -> Result<()> {
        if let Some(status) =
            self.process.try_wait().context("cannot look after the Envoy process")?
        {
            bail!("Envoy ended ({status}); the last lines it printed:\n{}", self.last_lines());
        }
        Ok(())
    }

    /// Asks the admin endpoint, which must answer 200.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn ask_admin(&self, path: &str) -> Result<String> {
        let answer = client::get(self.admin, path)
            .with_context(|| format!("Envoy's admin endpoint, {path}"))?;
        if answer.status != 200 {
            bail!("Envoy's admin endpoint answered {} for {path}: {}", answer.status, answer.body);
        }
        Ok(answer.body)
    }

    fn last_lines(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = lines.len().saturating_sub(LAST_LINES);
        lines.into_iter().skip(last).fold(String::new(), |all, line| all + "  " + line + "\n")
    }
}

/// Whether this Envoy has a file server that follows edits: 1.40 has.
///
/// # Errors
///
/// When it does not say which version it is.
pub fn serves_files(binary: &Path) -> Result<bool> {
    let said = Command::new(binary)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot start Envoy ({})", binary.display()))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_once("version: ").and_then(|(_, rest)| rest.split('/').nth(1));
    let minor = version.and_then(|version| version.strip_prefix("1.")?.split('.').next());
    let minor: Option<u32> = minor.and_then(|minor| minor.parse().ok());
    let minor = minor.with_context(|| format!("Envoy gives its version as `{}`", said.trim()))?;
    Ok(minor >= 40)
}

/// Where Envoy shall serve rule files on a port of the system's choice, that port, for listener and cluster.
fn reserve_files_port(root: &mut Value) -> Result<Option<TcpSocket>> {
    let port = named(root, "listeners", FILES).and_then(|listener| at(listener, PORT)).ok();
    let Some(listens) = port.filter(|port| **port == 0) else { return Ok(None) };
    let (socket, port) = reserved_port()?;
    *listens = json!(port);
    let cluster = named(root, "clusters", FILES)?;
    *at(cluster, &format!("{ENDPOINT}/port_value"))? = json!(port);
    Ok(Some(socket))
}

/// A loopback port that nobody else gets while the socket lives, but that Envoy can listen on: on Linux two sockets may
/// be bound to one port if both say so (`SO_REUSEADDR`) and at most one listens.
///
/// # Errors
///
/// When the system has none.
pub fn reserved_port() -> Result<(TcpSocket, u16)> {
    let reserve = || -> std::io::Result<(TcpSocket, u16)> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let port = socket.local_addr()?.port();
        Ok((socket, port))
    };
    reserve().context("cannot reserve a port for Envoy")
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Either may fail only because the process has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl fmt::Debug for Envoy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "Envoy at {} (admin {}); the last lines it printed:\n{}",
            self.proxy,
            self.admin,
            self.last_lines()
        )
    }
}

const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a listener that has been replaced or removed lives on for the connections that it has, at most.
pub const DRAIN: Duration = Duration::from_secs(5);
const LAST_LINES: usize = 15;
