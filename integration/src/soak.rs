//! What `cargo xtask soak` does: rules of every kind at maximum load, with harm in turn, and whether anything grows.
//!
//! It goes in turns of some seconds, each with another harm: none, rules that change, clients that abort, a service that traps,
//! workers that trap. After each turn limits are judged ([`mix`]), totals must be whole, the queue empty and nothing in
//! flight. While load is on, what could grow is looked at every two seconds: Envoy's memory, Sentinel's series, the values of
//! a hot parameter whose value is another in each request, and frames that wait for the service.
//!
//! The modules must be those of a build with faults.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use crate::bootstrap::{ADMIN_CLUSTER, Bootstrap, CONNECTION_MANAGER, Configuration, Sentinel, at};
use crate::client::{self, Client};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Until};
use crate::mix::{self, Books, OTHER, Stretch, Unserved};
use crate::raw::Raw;
use crate::rule_server::RuleServer;
use crate::stats::Stats;
use crate::upstream::{SENT_AT, Upstream};
use crate::windows::Shape;
use crate::{clock, load, rules};

/// What is run, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// The directory with the two modules of a build with faults.
    pub dist: PathBuf,
    /// How long load is on, in all.
    pub load: Duration,
}

/// What is done to Envoy in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Nothing,
    RulesChange,
    ClientsAbort,
    ServiceTraps,
    WorkersTrap,
}

impl Harm {
    const ALL: [Self; 5] = [
        Self::Nothing,
        Self::RulesChange,
        Self::ClientsAbort,
        Self::ServiceTraps,
        Self::WorkersTrap,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "load alone",
            Self::RulesChange => "rules change",
            Self::ClientsAbort => "clients abort",
            Self::ServiceTraps => "service traps",
            Self::WorkersTrap => "workers trap",
        }
    }

    /// How long from one to the next.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Nothing | Self::WorkersTrap => 250,
            Self::RulesChange => 500,
            Self::ClientsAbort => 2,
            Self::ServiceTraps => 2500,
        })
    }
}

/// What could grow, at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    values: [u64; WATCHED.len()],
}

/// What is watched, and how many of its units are one of the table's.
const WATCHED: [&str; 4] =
    ["memory, KB", "series", "values of a hot parameter", "frames not yet folded"];
const MEMORY: usize = 0;
const SERIES: usize = 1;
const VALUES: usize = 2;
const FRAMES: usize = 3;

/// Runs it and prints the table. True when every limit held, all was counted, and nothing grew.
///
/// # Errors
///
/// When it could not be carried out.
pub fn soak(options: &Options, out: &mut dyn Write) -> Result<bool> {
    let harms = u32::try_from(Harm::ALL.len())?;
    let turn = (options.load / harms).min(TURN);
    let turns = options.load.as_millis().div_ceil(turn.as_millis().max(1));
    writeln!(
        out,
        "{turns} turns of {} s at maximum load over {CONNECTIONS} connections, {WORKERS} workers; each ends in a rest of a few seconds",
        turn.as_secs()
    )?;
    let mut soak = Soak::start(options)?;
    let begin = clock::now();
    for (number, harm) in (1..=turns).zip(Harm::ALL.into_iter().cycle()) {
        let line = soak.turn(harm, turn)?;
        writeln!(out, "  {number} of {turns}, {:.0} s: {line}", begin.elapsed().as_secs_f64())?;
        out.flush()?;
        if number == u128::from(harms) {
            soak.settled = soak.samples.len();
        }
    }
    writeln!(out, "{}", soak.table())?;
    soak.judge_growth();
    for wrong in &soak.wrong {
        writeln!(out, "WRONG: {wrong}")?;
    }
    if soak.wrong.is_empty() {
        writeln!(
            out,
            "{} requests, {} harms: every limit held, every request was counted once, nothing grew",
            soak.sent, soak.harms
        )?;
    }
    Ok(soak.wrong.is_empty())
}

/// What runs, and what has been seen so far.
struct Soak {
    envoy: Envoy,
    upstream: Upstream,
    console: SocketAddr,
    rules: RuleServer,
    books: Books,
    /// Requests that may be missing from the totals: each trap of a worker costs what it has counted since its last flush.
    may_miss: u64,
    samples: Vec<Sample>,
    /// How many of the samples belong to the first round of all harms, in which everything has come into being.
    settled: usize,
    sent: u64,
    harms: u64,
    version: u64,
    wrong: Vec<String>,
}

impl Soak {
    fn start(options: &Options) -> Result<Self> {
        let rules = RuleServer::start()?;
        rules.put(CHANGING, &changing(0).to_string());
        let mut documents = Vec::new();
        for (kind, texts) in mix::RULES.iter().chain(&MORE_RULES) {
            let parsed: Result<Vec<_>> = texts.iter().map(|text| parsed(text)).collect();
            documents.push(rules::document(kind, &parsed?));
        }
        let service = json!({
            "rules": documents,
            "sources": [{
                "name": "changing",
                "http": {"cluster": "rules", "authority": "rules", "path": CHANGING},
                "intervalMs": 100,
                // All rules are in force from the first request: before that it would count as one of no rule's.
                "fallback": [changing(0)],
            }],
            "envoyStats": {"cluster": ADMIN_CLUSTER},
            "settings": {"workerTtlMs": 5000, "orphanTtlMs": 1000},
        });
        let upstream = Upstream::start(0)?;
        mix::prepare(&upstream);
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream: upstream.address(),
            sentinel: Some(Sentinel {
                service: Some(Configuration::Text(service.to_string())),
                ..Sentinel::with_rules(&options.dist, &[])?
            }),
            console_port: 0,
            access_log: None,
        };
        let envoy = Envoy::start_changed(&options.envoy, WORKERS, &bootstrap, |root| {
            let clusters = at(root, "/static_resources/clusters")?.as_array_mut();
            clusters.context("clusters are no list")?.push(rules.cluster("rules"));
            // A request that waits in a VM that traps hangs for so long.
            *at(root, &format!("{CONNECTION_MANAGER}/stream_idle_timeout"))? = json!("3s");
            Ok(())
        })?;
        let console = envoy.listener("sentinel_console")?;
        let mut soak = Self {
            envoy,
            upstream,
            console,
            rules,
            books: Books::default(),
            may_miss: 0,
            samples: Vec::new(),
            settled: 0,
            sent: 0,
            harms: 0,
            version: 0,
            wrong: Vec::new(),
        };
        soak.warm_up()?;
        Ok(soak)
    }

    /// Load at an easy rate until the breaker of what is ill has opened: from then on the mix can be judged.
    fn warm_up(&mut self) -> Result<()> {
        let rate = Rate::PerSecond(mix::per_second());
        let (report, ill) = self.under_load(rate, |soak| mix::wait_until_ill(&soak.upstream))?;
        self.books.enter(&Stretch::of(report, &self.upstream));
        ill
    }

    /// Runs `body` while load is on.
    fn under_load<T>(
        &mut self,
        rate: Rate,
        body: impl FnOnce(&mut Self) -> T,
    ) -> Result<(Report, T)> {
        let stopped = Arc::new(AtomicBool::new(false));
        let plan = Plan {
            server: self.envoy.proxy(),
            asks: asks(),
            connections: CONNECTIONS,
            rate,
            until: Until::Stopped(Arc::clone(&stopped)),
        };
        let load = std::thread::spawn(move || load::run(&plan));
        let done = body(self);
        stopped.store(true, Ordering::Relaxed);
        let report =
            load.join().map_err(|_| anyhow!("the load generator panicked, see above"))??;
        Ok((report, done))
    }

    /// One turn, and what is to be said of it.
    fn turn(&mut self, harm: Harm, span: Duration) -> Result<String> {
        let sampled = self.samples.len();
        let wrong = self.wrong.len();
        let (report, traps) = self.under_load(Rate::Max, |soak| soak.harm(harm, span))?;
        let traps = traps?;
        let (sent, rate) = (report.sent(), report.rate());
        let stretch = Stretch::of(report, &self.upstream);
        self.books.enter(&stretch);
        self.sent += sent;
        for (from, to) in traps {
            self.may_miss += stretch.open_within(from.saturating_sub(FLUSH_NS), to);
        }
        self.wrong.extend(self.exceeded(&stretch));
        self.rest(harm)?;
        for new in self.wrong.iter_mut().skip(wrong) {
            *new = format!("{}: {new}", harm.name());
        }
        let turn = self.samples.get(sampled..).unwrap_or_default();
        let most = |what: usize| turn.iter().filter_map(|sample| sample.values.get(what)).max();
        let most = |what| most(what).copied().unwrap_or(0);
        Ok(format!(
            "{}; {sent} requests, {rate} a second; at most {} MB, {} series, {} values, {} frames waiting; {}",
            harm.name(),
            most(MEMORY) / 1024,
            most(SERIES),
            most(VALUES),
            most(FRAMES),
            if self.wrong.len() == wrong { "all held" } else { "SOMETHING BROKE" },
        ))
    }

    fn exceeded(&self, stretch: &Stretch) -> Vec<String> {
        let mut exceeded = stretch.exceeded();
        let changing = Shape::of(1000).count(stretch.arrived("GET:/changing"), stretch.span_ns());
        if !changing.never_over(CHANGING_MOST) {
            exceeded.push(format!("more than {CHANGING_MOST} in a window: {:?}", changing.all()));
        }
        let staff = stretch.arrived("GET:/staff").len();
        if staff > 0 {
            exceeded.push(format!("{staff} requests passed that may not come from their origin"));
        }
        exceeded
    }

    /// Does it again and again for so long, looking at what could grow. When workers trapped: from before until it was answered.
    fn harm(&mut self, harm: Harm, span: Duration) -> Result<Vec<(u64, u64)>> {
        let end = clock::now() + span;
        let mut sample_at = clock::now();
        let mut traps = Vec::new();
        while clock::now() < end {
            if clock::now() >= sample_at {
                let sample = self.sample()?;
                self.samples.push(sample);
                sample_at += SAMPLE;
            }
            let from_ns = clock::wall_nanos();
            let done = match harm {
                Harm::Nothing => false,
                Harm::RulesChange => {
                    self.version += 1;
                    self.rules.put(CHANGING, &changing(self.version).to_string());
                    true
                }
                Harm::ClientsAbort => self.abort().is_ok(),
                Harm::ServiceTraps => self.fault("service").is_ok(),
                Harm::WorkersTrap => self.fault("worker").is_ok(),
            };
            if harm == Harm::WorkersTrap && done {
                traps.push((from_ns, clock::wall_nanos()));
            }
            self.harms += u64::from(done);
            clock::pause(harm.pause());
        }
        Ok(traps)
    }

    /// Breaks a request off: in its head, right after it, or while the upstream is at it.
    fn abort(&mut self) -> Result<()> {
        let path = if fastrand::bool() { "/aborted" } else { "/free" };
        let sent_ns = clock::wall_nanos();
        let head = format!("GET {path} HTTP/1.1\r\nhost: soak\r\n{SENT_AT}: {sent_ns}\r\n\r\n");
        let part = if fastrand::bool() { head.len() } else { head.len() / 2 };
        let mut raw = Raw::connect(self.envoy.proxy())?;
        self.books.enter_aborted(&format!("GET:{path}"), 1);
        raw.write(head.as_bytes().get(..part).unwrap_or_default())?;
        clock::pause(Duration::from_millis(fastrand::u64(0..10)));
        raw.break_off()
    }

    /// A request that makes a worker or the service trap, on a connection of its own.
    fn fault(&self, who: &str) -> Result<()> {
        let mut client = Client::connect(self.envoy.proxy())?;
        client.send("GET", "/fault", &[("x-sentinel-fault", who)]).map(drop)
    }

    /// Without load everything comes to rest: totals are whole, no frame waits, nothing is in flight.
    fn rest(&mut self, harm: Harm) -> Result<()> {
        let unserved = if self.may_miss > 0 { Unserved::Either } else { Unserved::Passed };
        let mut wrong = Vec::new();
        let waited = clock::wait_for("rest", PATIENCE, || {
            self.envoy.ask_admin("/ready")?;
            let stats = self.envoy.stats_of("wasmcustom")?;
            wrong = self.books.miscounted(&stats, unserved, self.may_miss);
            wrong.extend(mix::unsound(&stats));
            let waiting = waiting_frames(&stats);
            if waiting > 0 {
                wrong.push(format!("{waiting} frames wait in the queue"));
            }
            let in_flight = stats.total("in_flight");
            if in_flight > 0 {
                wrong.push(format!("{in_flight} requests are in flight, says the gauge"));
            }
            Ok(wrong.is_empty().then_some(()))
        });
        if waited.is_err() {
            self.wrong.extend(wrong);
        }
        let panicked = self.envoy.log_lines("panicked")?.len();
        if u64::try_from(panicked)? > self.harms {
            self.wrong.push(format!("{panicked} panics, more than {harm:?} set off"));
        }
        self.envoy.still_running()
    }

    fn sample(&self) -> Result<Sample> {
        let stats = self.envoy.stats_of("wasmcustom")?;
        let table = client::get(self.console, "/sentinel/state?rule=ever-new")
            .ok()
            .and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok())
            .and_then(|state| state.pointer("/rules/0/table/values")?.as_u64());
        let values = [
            self.envoy.memory_bytes()? / 1024,
            u64::try_from(stats.series().count())?,
            table.unwrap_or(0),
            waiting_frames(&stats),
        ];
        Ok(Sample { at: clock::now(), values })
    }

    /// The samples of one thing, as seconds since the first and values.
    fn points(&self, what: usize, skip: usize) -> Vec<(f64, f64)> {
        let samples = self.samples.get(skip..).unwrap_or_default();
        let Some(first) = samples.first() else { return Vec::new() };
        #[expect(clippy::cast_precision_loss, reason = "what is counted here is far below 2^53")]
        let point = |sample: &Sample| {
            let value = sample.values.get(what).copied().unwrap_or(0) as f64;
            (sample.at.duration_since(first.at).as_secs_f64(), value)
        };
        samples.iter().map(point).collect()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["", "first", "after a round", "last", "most", "slope after it"]);
        for (what, name) in WATCHED.iter().enumerate() {
            let values: Vec<_> =
                self.samples.iter().filter_map(|sample| sample.values.get(what)).collect();
            let value = |found: Option<&&u64>| {
                found.map_or_else(|| "too short".to_owned(), |value| value.to_string())
            };
            let slope = slope(&self.points(what, self.settled));
            table.add_row([
                (*name).to_owned(),
                value(values.first()),
                value(values.get(self.settled)),
                value(values.last()),
                value(values.iter().max()),
                slope.map_or_else(
                    || "too short".to_owned(),
                    |slope| format!("{slope:+.1} a minute"),
                ),
            ]);
        }
        table
    }

    /// What has grown after the first round of harms, in which everything has come into being.
    fn judge_growth(&mut self) {
        let mut grown = String::new();
        for (what, (name, (may_grow, most))) in WATCHED.iter().zip(ALLOWED).enumerate() {
            let points = self.points(what, self.settled);
            if let Some(slope) = slope(&points)
                && slope > may_grow
            {
                let _ = write!(grown, "{name} grow by {slope:.1} a minute, {may_grow} may be; ");
            }
            let values = self.samples.iter().filter_map(|sample| sample.values.get(what));
            if let Some(found) = values.max().filter(|found| **found > most) {
                let _ = write!(grown, "{name} were {found}, {most} may be; ");
            }
        }
        if !grown.is_empty() {
            self.wrong.push(grown);
        }
    }
}

/// Frames that workers have sent and the service has not taken in.
fn waiting_frames(stats: &Stats) -> u64 {
    stats.total("frames").saturating_sub(stats.total("frames_folded"))
}

/// How much the second numbers grow with each minute of the first, by least squares; `None`: there are too few to say.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    if last.0 - first.0 < LONG_ENOUGH.as_secs_f64() {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "there are thousands at most")]
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let up = points.iter().map(|point| (point.0 - mean_x) * (point.1 - mean_y)).sum::<f64>();
    let across = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum::<f64>();
    Some(up / across * 60.0)
}

fn parsed(text: &str) -> Result<Value> {
    rules::parse(text)?.pop().with_context(|| format!("not a rule: {text}"))
}

/// The document that changes, in its so-manieth version: another threshold each time.
fn changing(version: u64) -> Value {
    let threshold = if version.is_multiple_of(2) { CHANGING_MOST } else { CHANGING_MOST / 2 };
    let rule = json!({"id": "changing", "resource": "GET:/changing", "threshold": threshold});
    // And one that comes and goes.
    let mut rules = vec![rule];
    if version.is_multiple_of(3) {
        rules.push(json!({"id": "now-and-then", "resource": "GET:/free", "threshold": 1_000_000, "statIntervalInMs": 500}));
    }
    rules::flow_rules(&rules)
}

/// The mix, and requests for what [`MORE_RULES`] speak of.
fn asks() -> Vec<Ask> {
    let mut asks = mix::asks();
    asks.extend([
        Ask::get("/changing").weight(200),
        Ask::get("/cold").weight(200),
        Ask::get("/any").header("x-any", "{turn}").weight(200),
        Ask::get("/few-each").header("x-user", "one").weight(30),
        Ask::get("/staff").header("x-origin", "crawler").weight(30),
        Ask { name: format!("{OTHER}storefront"), ..Ask::get("/storefront/1").weight(60) },
        Ask { name: format!("{OTHER}pattern"), ..Ask::get("/pattern/1").weight(60) },
        // Who waits keeps a connection busy.
        Ask::get("/paced").weight(2),
    ]);
    asks
}

/// Besides those of the mix: every kind of rule.
const MORE_RULES: [(&str, &[&str]); 7] = [
    (
        "FlowRules",
        &[
            "{id: cold, resource: 'GET:/cold', threshold: 100, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 5}",
            "{id: paced, resource: 'GET:/paced', threshold: 20, controlBehavior: Throttling, maxQueueingTimeMs: 100}",
            "{id: pattern, resource: 'GET:/pattern/.*', regex: true, threshold: 50}",
        ],
    ),
    ("IsolationRules", &["{id: aborted, resource: 'GET:/aborted', threshold: 16}"]),
    (
        "HotspotRules",
        &[
            "{id: ever-new, resource: 'GET:/any', metricType: QPS, threshold: 5, durationInSec: 1, paramKey: 'header:x-any'}",
            "{id: few-each, resource: 'GET:/few-each', metricType: Concurrency, threshold: 2, paramKey: 'header:x-user'}",
        ],
    ),
    (
        "SystemRules",
        &[
            "{id: inbound, metricType: InboundQPS, triggerCount: 1000000, strategy: NoAdaptive}",
            "{id: at-a-time, metricType: Concurrency, triggerCount: 100000, strategy: NoAdaptive}",
        ],
    ),
    ("AuthorityRules", &["{id: staff, resource: 'GET:/staff', limitApp: shop, strategy: White}"]),
    (
        "ApiDefinitions",
        &[
            "{apiName: storefront, predicateItems: [{pattern: '/storefront/**', matchStrategy: Prefix}]}",
        ],
    ),
    (
        "GatewayFlowRules",
        &[
            "{id: storefront, resource: storefront, resourceMode: ApiGroup, count: 40, intervalSec: 2}",
        ],
    ),
];

/// What each of [`WATCHED`] may grow by in a minute, and the most that it may ever be: memory of V8 and its four VMs; resources
/// and rules of the set; values of a table of 4,000; for 3.5 s a frame from each worker in each tick.
const ALLOWED: [(f64, u64); WATCHED.len()] =
    [(1024.0, 512 << 10), (0.5, 1_000), (100.0, 6_000), (20.0, 1_400)];
const WORKERS: u32 = 4;
const CONNECTIONS: u32 = 64;
const TURN: Duration = Duration::from_secs(10);
const SAMPLE: Duration = Duration::from_secs(2);
/// How long it must run after the first round for a slope to mean anything.
const LONG_ENOUGH: Duration = Duration::from_secs(90);
/// How long it may take until all has come to rest: a dead worker's requests are given up after six seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// A flush is due every 10 ms; the rest is how late a timer may be where a processor is taken away for a while.
const FLUSH_NS: u64 = 200_000_000;
const CHANGING: &str = "/changing.yaml";
const CHANGING_MOST: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_what_is_added_in_a_minute() {
        let points: Vec<_> = (0..100).map(|at| (f64::from(at * 2), f64::from(at))).collect();
        assert!((slope(&points).unwrap() - 30.0).abs() < 1e-9);
        assert_eq!(slope(&points[..10]), None, "twenty seconds say nothing");
    }
}
