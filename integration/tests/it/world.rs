//! One Envoy with Sentinel, one upstream, and the machine for themselves.

use std::env;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use sentinel_integration::bootstrap::{
    Bootstrap, CAPABILITIES, Configuration, Files, Sentinel, at,
};
use sentinel_integration::client::{self, Answer, Client};
use sentinel_integration::clock;
use sentinel_integration::envoy::{Envoy, reserved_port};
use sentinel_integration::hanging::Hanging;
use sentinel_integration::load::{self, Ask, Plan, Rate, Report, Until};
use sentinel_integration::rule_server::RuleServer;
use sentinel_integration::rules;
use sentinel_integration::stats::Stats;
use sentinel_integration::tcp::{self, TcpListenerPart};
use sentinel_integration::upstream::Upstream;
use sentinel_integration::xds::{self, Discovery};

/// What a test wants; the usual is 4 workers, both modules, the service with its twin, no rules.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) workers: u32,
    pub(crate) binary: PathBuf,
    pub(crate) dist: PathBuf,
    /// Whether those modules are there that can be made to fail.
    pub(crate) faults: bool,
    pub(crate) filter: Option<Configuration>,
    pub(crate) service: Option<Configuration>,
    pub(crate) revived: bool,
    /// The rule files that Envoy serves to the service.
    pub(crate) files: Option<Files>,
    /// What Envoy takes from a file that a test writes anew.
    pub(crate) by_xds: Option<ByXds>,
    /// Listeners of TCP, and the place of their reply.
    pub(crate) tcp: Vec<TcpListenerPart>,
    /// What else differs in Envoy's configuration: places, and what to put there.
    pub(crate) changes: Vec<(String, Value)>,
}

/// What comes by xDS, from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByXds {
    /// The listener, with all that is in it (LDS).
    Listener,
    /// Sentinel's filter alone (ECDS).
    Filter,
}

impl Setup {
    /// As users get it, without rules.
    pub(crate) fn new() -> Self {
        let sentinel = Sentinel::with_rules(&dist(), &[]).unwrap();
        Self {
            workers: 4,
            binary: envoy(),
            dist: sentinel.dist,
            faults: false,
            filter: sentinel.filter,
            service: sentinel.service,
            revived: true,
            files: None,
            by_xds: None,
            tcp: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// With these flow rules, each a YAML mapping of its fields.
    pub(crate) fn with_rules(flow_rules: &[&str]) -> Self {
        let service = json!({"rules": [document("FlowRules", flow_rules)]});
        Self { service: Some(Configuration::Struct(service)), ..Self::new() }
    }

    /// And a document of this kind with these rules, each a YAML mapping of its fields.
    pub(crate) fn rules(self, kind: &str, rules: &[&str]) -> Self {
        let mut service = self.service_text();
        let documents = service.as_object_mut().unwrap().entry("rules").or_insert(json!([]));
        documents.as_array_mut().unwrap().push(document(kind, rules));
        self.write_service(&service)
    }

    /// With these settings, a YAML mapping.
    pub(crate) fn settings(self, settings: &str) -> Self {
        let mut service = self.service_text();
        service.as_object_mut().unwrap().insert("settings".to_owned(), yaml(settings));
        self.write_service(&service)
    }

    /// With these sources, a YAML list, besides the rules that stand there.
    pub(crate) fn sources(self, sources: &str) -> Self {
        let mut service = self.service_text();
        service.as_object_mut().unwrap().insert("sources".to_owned(), yaml(sources));
        self.write_service(&service)
    }

    /// With `server` as the cluster `config`.
    pub(crate) fn rule_server(self, server: &RuleServer) -> Self {
        self.change("/static_resources/clusters/0", server.cluster("config"))
    }

    /// With the rule files of a directory, served by Envoy, as the service's only source, looked at as often as users get
    /// it.
    pub(crate) fn rule_files(mut self, files: Files) -> Self {
        self.files = Some(files);
        self.sources("[{name: rules, file: {cluster: sentinel_files, path: /rules/index.yaml}}]")
    }

    /// With the listener, or the filter alone, from a file.
    pub(crate) fn by_xds(mut self, what: ByXds) -> Self {
        self.by_xds = Some(what);
        self
    }

    /// With this Envoy.
    pub(crate) fn binary(mut self, binary: PathBuf) -> Self {
        self.binary = binary;
        self
    }

    /// With these listeners of TCP besides, as `envoy/redis.yaml` has them.
    pub(crate) fn tcp(mut self, parts: Vec<TcpListenerPart>) -> Self {
        self.tcp = parts;
        self
    }

    /// With nobody to ask for CPU and memory.
    pub(crate) fn without_envoy_stats(self) -> Self {
        let mut service = self.service_text();
        service.as_object_mut().unwrap().remove("envoyStats");
        self.write_service(&service)
    }

    /// With `value` at a place of Envoy's configuration. In a list it goes before what stands there.
    pub(crate) fn change(mut self, place: &str, value: Value) -> Self {
        self.changes.push((place.to_owned(), value));
        self
    }

    fn service_text(&self) -> Value {
        match &self.service {
            Some(Configuration::Text(text)) => serde_json::from_str(text).unwrap(),
            Some(Configuration::Struct(value)) => value.clone(),
            None => panic!("there is no service to configure"),
        }
    }

    fn write_service(mut self, service: &Value) -> Self {
        self.service = Some(Configuration::Text(service.to_string()));
        self
    }

    pub(crate) fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// The filter's configuration, as YAML.
    pub(crate) fn filter(mut self, configuration: &str) -> Self {
        self.filter = Some(Configuration::Struct(yaml(configuration)));
        self
    }

    pub(crate) fn service(mut self, configuration: Option<Configuration>) -> Self {
        self.service = configuration;
        self
    }

    /// With the modules that can be made to fail.
    pub(crate) fn with_faults(mut self) -> Self {
        self.dist = faults_dist();
        self.faults = true;
        self
    }

    pub(crate) fn start(self) -> World {
        self.try_start().unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// What Envoy printed when it refused this.
    pub(crate) fn refused(self) -> String {
        match self.try_start() {
            Ok(world) => panic!("must be refused, but runs: {world:?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    fn try_start(self) -> anyhow::Result<World> {
        let turn = machine();
        let directory = tempfile::tempdir()?;
        let access_log = directory.path().join("access.log");
        let upstream = Upstream::start(0)?;
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream: upstream.address(),
            sentinel: Some(Sentinel {
                dist: self.dist,
                filter: self.filter,
                service: self.service,
                revived: self.revived,
                files: self.files,
            }),
            console_port: 0,
            access_log: Some(access_log.clone()),
        };
        let changes = self.changes;
        let by_xds = self.by_xds;
        let tcp = self.tcp;
        // The cluster must know where the reply is before Envoy has chosen a port for it.
        let reply = (!tcp.is_empty()).then(reserved_port).transpose()?;
        let discovery = Discovery::at(directory.path().join("xds.json"));
        let mut resource = Value::Null;
        let envoy = Envoy::start_changed(&self.binary, self.workers, &bootstrap, |root| {
            if self.faults {
                let listeners = at(root, "/static_resources/listeners")?.as_array_mut();
                listeners.into_iter().flatten().for_each(allow_steps);
            }
            changes.into_iter().for_each(|(place, value)| put(root, &place, value));
            tcp::add(root, &tcp, reply.as_ref().map(|(_, port)| *port))?;
            match by_xds {
                Some(ByXds::Listener) => resource = xds::discover_listener(root, &discovery)?,
                Some(ByXds::Filter) => resource = xds::discover_filter(root, &discovery)?,
                None => return Ok(()),
            }
            discovery.write(std::slice::from_ref(&resource))
        })?;
        let xds = (discovery, resource);
        Ok(World { envoy, upstream, xds, access_log, _directory: directory, _turn: turn })
    }
}

/// What runs.
pub(crate) struct World {
    pub(crate) envoy: Envoy,
    pub(crate) upstream: Upstream,
    /// What comes by xDS, as it was at first.
    xds: (Discovery, Value),
    access_log: PathBuf,
    _directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) fn proxy(&self) -> SocketAddr {
        self.envoy.proxy()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.proxy()).unwrap()
    }

    /// GET on a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Answer {
        client::get(self.proxy(), path).unwrap()
    }

    /// A request that hangs, on a connection of its own.
    pub(crate) fn hang(&self, path: &str, headers: &[(&str, &str)]) -> Hanging {
        Hanging::get(self.proxy(), path, headers).unwrap()
    }

    /// The listener or the filter that comes by xDS, as it was at first.
    pub(crate) fn resource(&self) -> Value {
        self.xds.1.clone()
    }

    /// Gives Envoy these listeners, or this filter, instead of those that it has.
    pub(crate) fn publish(&self, resources: &[Value]) {
        self.xds.0.write(resources).unwrap();
    }

    /// Runs `body` while this load is on, over 64 connections. Every request must get an answer.
    pub(crate) fn while_loading<T>(
        &self,
        asks: &[Ask],
        rate: Rate,
        body: impl FnOnce() -> T,
    ) -> (Report, T) {
        let (report, done) = self.while_trying(asks, rate, body);
        assert!(
            report.errors().is_empty(),
            "requests without an answer: {:?}; {self:?}",
            report.errors()
        );
        (report, done)
    }

    /// As `while_loading`, but requests may get no answer.
    pub(crate) fn while_trying<T>(
        &self,
        asks: &[Ask],
        rate: Rate,
        body: impl FnOnce() -> T,
    ) -> (Report, T) {
        let stopped = Arc::new(AtomicBool::new(false));
        let plan = Plan {
            server: self.proxy(),
            asks: asks.to_vec(),
            connections: 64,
            rate,
            until: Until::Stopped(Arc::clone(&stopped)),
        };
        let load = std::thread::spawn(move || load::run(&plan).unwrap());
        let done = catch_unwind(AssertUnwindSafe(body));
        stopped.store(true, Ordering::Relaxed);
        let report = load.join().unwrap();
        (report, done.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// GET `path` is answered with `status` within half a minute, and so often in a row on connections of their own that no
    /// worker answers otherwise.
    #[track_caller]
    pub(crate) fn becomes(&self, path: &str, status: u16) {
        self.when(&format!("{status} for {path}"), || {
            (0..IN_A_ROW).all(|_| self.get(path).status == status).then_some(())
        });
    }

    /// Waits until `look` yields something, for half a minute at most.
    #[track_caller]
    pub(crate) fn when<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        clock::wait_for(what, PATIENCE, || Ok(look()))
            .unwrap_or_else(|error| panic!("{error:#}; {self:?}"))
    }

    /// A mix at this rate for so long, over 64 connections.
    pub(crate) fn flood(&self, asks: &[Ask], per_second: u32, seconds: u64) -> Report {
        self.load(asks, Rate::PerSecond(per_second), Until::Elapsed(Duration::from_secs(seconds)))
    }

    /// Over 64 connections. Every request must get an answer.
    pub(crate) fn load(&self, asks: &[Ask], rate: Rate, until: Until) -> Report {
        let plan = Plan { server: self.proxy(), asks: asks.to_vec(), connections: 64, rate, until };
        let report = load::run(&plan).unwrap();
        assert!(
            report.errors().is_empty(),
            "requests without an answer: {:?}; {self:?}",
            report.errors()
        );
        report
    }

    pub(crate) fn stats(&self) -> Stats {
        self.envoy.stats().unwrap()
    }

    /// The stats as soon as they are as `good` wants them, in ten seconds at most.
    #[track_caller]
    pub(crate) fn stats_when(&self, what: &str, good: impl Fn(&Stats) -> bool) -> Stats {
        let waited = clock::wait_for(what, PATIENCE, || Ok(Some(self.stats()).filter(&good)));
        waited.unwrap_or_else(|error| {
            let series: Vec<_> = self.stats().series().collect();
            panic!("{error:#}; Sentinel's metrics: {series:?}; {self:?}")
        })
    }

    /// What stands in the access log by now.
    pub(crate) fn access_log(&self) -> String {
        std::fs::read_to_string(&self.access_log).unwrap_or_default()
    }

    /// The line of the access log that contains `text`, as soon as it is there.
    #[track_caller]
    pub(crate) fn access_logged(&self, text: &str) -> String {
        clock::wait_for("a line in the access log", PATIENCE, || {
            let log = self.access_log();
            Ok(log.lines().find(|line| line.contains(text)).map(str::to_owned))
        })
        .unwrap_or_else(|error| panic!("{error:#} ({text})"))
    }

    /// A line that Envoy printed with `text` in it, upper or lower case, as soon as it is there.
    #[track_caller]
    pub(crate) fn printed(&self, text: &str) -> Vec<String> {
        clock::wait_for(text, PATIENCE, || {
            let mut lines = self.envoy.log_lines("")?;
            lines.retain(|line| line.to_lowercase().contains(text));
            Ok(Some(lines).filter(|lines| !lines.is_empty()))
        })
        .unwrap_or_else(|error| panic!("no log line: {error:#}; {self:?}"))
    }

    /// No VM has been loaded again, so none has trapped.
    #[track_caller]
    pub(crate) fn assert_nothing_trapped(&self) {
        let stats = self.stats();
        assert_eq!(stats.sum("wasm.", ".vm_reload"), 0, "a VM trapped: {self:?}");
        assert_eq!(stats.sum("wasm.", ".vm_reload_success"), 0, "a VM trapped: {self:?}");
    }
}

impl fmt::Debug for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}{:?}", self.envoy, self.upstream)
    }
}

/// Of so many connections each of four workers gets one, but for one time in three hundred.
pub(crate) const IN_A_ROW: u32 = 24;

/// A document of rules, each a YAML mapping of its fields.
pub(crate) fn document(kind: &str, rules: &[&str]) -> Value {
    rules::document(kind, &rules.iter().map(|rule| yaml(rule)).collect::<Vec<_>>())
}

/// Steps of `contract.rs` are the service's as well. What filters may do must be the same, or Envoy gives them VMs of their
/// own.
fn allow_steps(listener: &mut Value) {
    let filter = "/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config";
    if let Some(Value::Object(may)) = listener.pointer_mut(&format!("{filter}{CAPABILITIES}")) {
        for call in ["proxy_register_shared_queue", "proxy_dequeue_shared_queue"] {
            may.insert(call.to_owned(), json!({}));
        }
    }
}

fn put(root: &mut Value, place: &str, value: Value) {
    let (parent, name) = place.rsplit_once('/').unwrap();
    let parent = at(root, parent).unwrap();
    if let Some(list) = parent.as_array_mut() {
        list.insert(name.parse().unwrap(), value);
    } else {
        parent.as_object_mut().unwrap().insert(name.to_owned(), value);
    }
}

pub(crate) fn yaml(text: &str) -> Value {
    rules::parse(text).unwrap().pop().unwrap()
}

/// Lets time pass until a second of the wall clock has just begun.
pub(crate) fn begin_a_second() {
    let into = clock::wall_nanos() % 1_000_000_000;
    clock::pause(Duration::from_nanos(1_001_000_000 - into));
}

/// The machine, for one test. A test that failed has done with it as well.
pub(crate) fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn dist() -> PathBuf {
    given("SENTINEL_DIST", &[&root().join("dist")], "sentinel_filter.wasm")
}

pub(crate) fn faults_dist() -> PathBuf {
    given("SENTINEL_FAULTS_DIST", &[&root().join("target/faults")], "sentinel_filter.wasm")
}

/// The newest Envoy that is supported.
pub(crate) fn envoy() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = env::split_paths(&path).map(|place| place.join("envoy")).collect();
    places.insert(0, cache().join("envoy-1.40.0/envoy"));
    given("ENVOY", &places.iter().map(PathBuf::as_path).collect::<Vec<_>>(), "")
}

/// The oldest.
pub(crate) fn oldest_envoy() -> PathBuf {
    given("ENVOY_1_36", &[&cache().join("envoy-1.36.4/envoy")], "")
}

/// A gRPC client that is not ours.
pub(crate) fn grpcurl() -> PathBuf {
    given("GRPCURL", &[&cache().join("grpcurl-1.8.6/grpcurl")], "")
}

/// Every version that is supported, as far as they are here: the oldest and the newest are.
pub(crate) fn every_envoy() -> Vec<PathBuf> {
    let between = ["1.37.0", "1.38.3", "1.39.3"]
        .map(|version| cache().join(format!("envoy-{version}/envoy")));
    let named = env::var_os("ENVOYS").map(|named| env::split_paths(&named).collect());
    let between = named.unwrap_or_else(|| between.to_vec());
    let there = between.into_iter().filter(|binary| binary.is_file());
    [oldest_envoy()].into_iter().chain(there).chain([envoy()]).collect()
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache");
    env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("sentinel-envoy")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What a variable names, or the first place where it is; `within` must be in it.
fn given(variable: &str, places: &[&Path], within: &str) -> PathBuf {
    let named = env::var_os(variable).map(PathBuf::from);
    let mut places = named
        .iter()
        .map(PathBuf::as_path)
        .chain(places.iter().copied().filter(|_| named.is_none()));
    let found =
        places.find(
            |place| if within.is_empty() { place.is_file() } else { place.join(within).is_file() },
        );
    match found {
        Some(place) => std::path::absolute(place).unwrap(),
        None => panic!(
            "{variable} does not say where it is: run `cargo xtask test`, which sets up and builds what tests need"
        ),
    }
}

/// How long a state may take to come about: a busy machine may take long for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long rules and totals may be on their way: two seconds are promised, and a busy machine adds some. What it really
/// takes is printed.
pub(crate) const FOLLOWED: Duration = Duration::from_secs(6);
