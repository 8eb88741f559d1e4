//! What `cargo xtask bench rules` does: what large rule sets cost Envoy, its workers and the requests.
//!
//! Each set is loaded by Envoys of its own, inline, beside an Envoy that has both modules and no rules: what is more than
//! that is the rules'. Times are CPU times of single threads, so that what else the machine does falls out of them.
//! What a request costs is measured as in [`crate::cost`]: rounds in random order, one request after the other, and the
//! lower quartile of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use crate::bootstrap::{
    Bootstrap, CONNECTION_MANAGER, Configuration, Sentinel, at, shipped_filter,
};
use crate::client::Client;
use crate::cost::{Pinned, percentile};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Until};
use crate::rule_server::RuleServer;
use crate::windows::Arrival;
use crate::{clock, load, rules};

/// Loads all sets and runs all rounds, and prints the tables. `published` says how many bytes the set of a service's
/// configuration has. True when a request with one rule costs the same beside ten thousand others, as promised.
///
/// # Errors
///
/// When an Envoy does not start or does not answer as it should, or the system does not count CPU time.
pub fn rules(
    binary: &Path,
    dist: &Path,
    published: &dyn Fn(&[u8]) -> Result<usize>,
    out: &mut dyn Write,
) -> Result<bool> {
    writeln!(
        out,
        "rule sets in Envoys with 1 and 4 workers, inline in the service's configuration; some minutes"
    )?;
    out.flush()?;
    let mut table = table([
        "rules",
        "workers",
        "main thread",
        "published",
        "take-up per worker",
        "slowest first answer",
        "memory",
    ]);
    for workers in [1, 4] {
        let mut base: Option<Loaded> = None;
        for set in
            [Set::Flow(0), Set::Flow(1), Set::Flow(1_000), Set::Flow(10_000), Set::Regex(5_000)]
        {
            let loaded = Loaded::measure(set, workers, binary, dist)?;
            let bytes = published(set.service().to_string().as_bytes())?;
            let base = base.get_or_insert(loaded);
            table.add_row([
                set.name(),
                workers.to_string(),
                more(loaded.main, base.main),
                format!("{} KB", bytes / 1_000),
                more(loaded.per_worker, base.per_worker),
                format!("{:.1} ms", millis(loaded.first)),
                format!("{:+.1} MB", megabytes(loaded.memory) - megabytes(base.memory)),
            ]);
        }
    }
    writeln!(
        out,
        "{table}\nCPU time of Envoy's main thread until it serves, of a worker until it has answered its first requests, \n\
         and memory, each beyond that without rules; the published set is what each worker copies."
    )?;
    change(binary, dist, out)?;
    let measured = compare(binary, dist, out)?;
    let cost = |name: &str| -> Result<f64> {
        let found = measured.iter().find(|measured| measured.variant.name == name);
        Ok(micros(found.context("a variant is missing")?.percentile(25)?))
    };
    let ratio = cost(BESIDE_MANY.name)? / cost(ALONE.name)?;
    writeln!(
        out,
        "a request with one rule costs {ratio:.3} times as much beside 10,000 rules for other resources as alone (promised: at \
         most {RATIO_MOST})"
    )?;
    Ok(ratio <= RATIO_MOST)
}

/// A rule set.
#[derive(Clone, Copy, Debug)]
enum Set {
    /// So many flow rules, each for a resource of its own.
    Flow(usize),
    /// So many flow rules for patterns, each with a beginning of its own.
    Regex(usize),
    /// So many flow rules for patterns that no beginning tells apart.
    Tried(usize),
}

impl Set {
    fn name(self) -> String {
        match self {
            Self::Flow(0) => "none".to_owned(),
            Self::Flow(count) => format!("{count} flow"),
            Self::Regex(count) | Self::Tried(count) => format!("{count} `regex: true`"),
        }
    }

    fn rule(self, number: usize) -> Value {
        let (resource, is_pattern) = match self {
            Self::Flow(_) => (format!("GET:/service-{number}/orders"), false),
            Self::Regex(_) => (format!("GET:/service-{number}/users/[0-9]+"), true),
            Self::Tried(_) => (format!("GET:/.*/users-{number}/[0-9]+"), true),
        };
        json!({"resource": resource, "regex": is_pattern, "threshold": 1_000_000_000})
    }

    /// The rules, and one more that is asked for, with a window of so many milliseconds.
    fn document(self, interval_ms: u32) -> Option<Value> {
        let (Self::Flow(count) | Self::Regex(count) | Self::Tried(count)) = self;
        let mut all: Vec<_> = (0..count).map(|number| self.rule(number)).collect();
        all.push(json!({
            "id": ONE,
            "resource": ONE,
            "threshold": 1_000_000_000,
            "statIntervalInMs": interval_ms,
        }));
        (count > 0).then(|| rules::flow_rules(&all))
    }

    /// The service's configuration, with the rules inline.
    fn service(self) -> Value {
        let documents: Vec<_> = self.document(1000).into_iter().collect();
        json!({"rules": documents, "settings": {"rulesMax": 20_000}})
    }

    fn start(self, workers: u32, binary: &Path, dist: &Path) -> Result<Envoy> {
        start(&self.service(), None, workers, binary, dist)
    }
}

/// An Envoy that answers every request itself, with a cluster for the service to ask.
fn start(
    service: &Value,
    cluster: Option<Value>,
    workers: u32,
    binary: &Path,
    dist: &Path,
) -> Result<Envoy> {
    let mut filter = shipped_filter()?;
    // What a header says can be another name each time.
    let fields = filter.as_object_mut().context("the shipped filter's configuration is no map")?;
    fields.insert("resource".to_owned(), json!({"from": {"header": NAME_HEADER}}));
    let bootstrap = Bootstrap {
        port: 0,
        admin_port: 0,
        // Nobody is asked there.
        upstream: ([127, 0, 0, 1], 9).into(),
        sentinel: Some(Sentinel {
            dist: dist.to_owned(),
            filter: Some(Configuration::Struct(filter)),
            service: Some(Configuration::Text(service.to_string())),
            revived: true,
            files: None,
        }),
        console_port: 0,
        access_log: None,
    };
    Envoy::start_changed(binary, workers, &bootstrap, |root| {
        *at(root, &format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0"))? = json!({
            "name": "default",
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        });
        if let Some(cluster) = cluster {
            *at(root, "/static_resources/clusters/0")? = cluster;
        }
        Ok(())
    })
}

/// What clients see while one of ten thousand rules gets another window again and again, so that every worker meets a
/// ledger that is newer than its set; and what they see when nothing changes.
fn change(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<()> {
    let contents =
        |interval_ms| Set::Flow(10_000).document(interval_ms).map(|document| document.to_string());
    let [short, long] = [contents(1000), contents(2000)].map(Option::unwrap_or_default);
    let server = RuleServer::start()?;
    server.put(RULES, &short);
    let service = json!({
        "sources": [
            {"name": "rules", "http": {"cluster": "config", "path": RULES}, "intervalMs": 100},
        ],
        "settings": {"rulesMax": 20_000},
    });
    let envoy = start(&service, Some(server.cluster("config")), 4, binary, dist)?;
    let version = |at_least: u64| {
        clock::wait_for("a rule set", PATIENCE, || {
            // A look at all statistics takes the main thread, which has to make the change.
            clock::pause(Duration::from_millis(250));
            let stats = envoy.stats()?;
            let version = stats.total("rules_version");
            Ok((version >= at_least && stats.total("workers") == 4).then_some(version))
        })
    };
    let load = |until: Until| {
        load::run(&Plan {
            server: envoy.proxy(),
            asks: vec![Ask::get("/").header(NAME_HEADER, ONE)],
            connections: 16,
            rate: Rate::PerSecond(RATE),
            until,
        })
    };
    let during = |act: &dyn Fn() -> Result<()>| -> Result<Report> {
        let enough = Arc::new(AtomicBool::new(false));
        let until = Until::Stopped(Arc::clone(&enough));
        thread::scope(|scope| {
            let loading = scope.spawn(|| load(until));
            let acted = act();
            enough.store(true, Ordering::Relaxed);
            let report = loading.join().map_err(|_| anyhow!("the load has panicked"))?;
            acted.and(report)
        })
    };
    // Every worker has its first request behind it.
    during(&|| version(1).map(drop))?;
    let calm = during(&|| {
        clock::pause(CALM);
        Ok(())
    })?;
    let changed = during(&|| {
        for contents in [&long, &short].into_iter().cycle().take(CHANGES) {
            let before = envoy.stats()?.total("rules_version");
            server.put(RULES, contents);
            version(before + 1)?;
        }
        Ok(())
    })?;
    let mut table = table(["10,000 rules, 4 workers", "requests", "median", "p99", "slowest"]);
    for (name, report) in [("nothing changes", calm), ("one rule's window changes", changed)] {
        if report.status(200) != report.sent() {
            bail!("{name}: not every request passed: {envoy:?}");
        }
        let answers = report.asks.values().flat_map(|seen| &seen.answered);
        let took = |answer: &Arrival| answer.arrived_ns.saturating_sub(answer.sent_ns);
        let took: Vec<_> = answers.map(|answer| Duration::from_nanos(took(answer))).collect();
        let part = |percent| percentile(&took, percent).map_or(0.0, millis);
        table.add_row([
            name.to_owned(),
            report.sent().to_string(),
            format!("{:.1} ms", part(50)),
            format!("{:.1} ms", part(99)),
            format!("{:.1} ms", part(100)),
        ]);
    }
    writeln!(out, "{table}\nat {RATE} requests a second; {CHANGES} changes over HTTP.")?;
    Ok(())
}

/// What a set cost until every worker had taken it up.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    main: Duration,
    per_worker: Duration,
    first: Duration,
    memory: u64,
}

impl Loaded {
    fn measure(set: Set, workers: u32, binary: &Path, dist: &Path) -> Result<Self> {
        let envoy = set.start(workers, binary, dist)?;
        // The first tick of the service publishes; the canary and its likes are gone by then.
        clock::pause(Duration::from_secs(2));
        let (main, before) = times(&envoy)?;
        let mut first = Duration::ZERO;
        let deadline = clock::now() + PATIENCE;
        loop {
            let mut client = Client::connect(envoy.proxy())?;
            let sent = clock::now();
            let answer = client.send("GET", "/", &[(NAME_HEADER, ONE)])?;
            if answer.status != 200 {
                bail!("{} answered {}: {envoy:?}", set.name(), answer.status);
            }
            first = first.max(sent.elapsed());
            if envoy.stats()?.total("workers") >= u64::from(workers) {
                break;
            }
            if clock::now() > deadline {
                bail!("some worker never got a request: {envoy:?}");
            }
        }
        clock::pause(Duration::from_millis(300));
        let (_, after) = times(&envoy)?;
        let used: Duration = after
            .iter()
            .map(|(name, ran)| ran.saturating_sub(before.get(name).copied().unwrap_or_default()))
            .sum();
        Ok(Self { main, per_worker: used / workers, first, memory: envoy.memory_bytes()? })
    }
}

/// What the main thread and each worker have used so far.
fn times(envoy: &Envoy) -> Result<(Duration, BTreeMap<String, Duration>)> {
    let threads = envoy.threads()?;
    let main = threads.iter().find(|thread| thread.is_main).context("Envoy has no main thread")?;
    let workers = threads.iter().filter(|thread| thread.name.starts_with("wrk:"));
    Ok((main.ran, workers.map(|thread| (thread.name.clone(), thread.ran)).collect()))
}

/// What requests are compared.
#[derive(Clone, Copy, Debug)]
struct Variant {
    name: &'static str,
    set: Set,
    /// What a request is called; `{load}` and `{turn}` are other numbers in each.
    resource: &'static str,
}

#[derive(Debug)]
struct Measured {
    variant: Variant,
    envoy: Envoy,
    rounds: Vec<Duration>,
    loads: u32,
}

impl Measured {
    fn round(&mut self) -> Result<()> {
        self.load(WARM_UP)?;
        let before = self.envoy.cpu_time()?;
        self.load(REQUESTS)?;
        self.rounds.push(self.envoy.cpu_time()?.saturating_sub(before) / REQUESTS);
        Ok(())
    }

    fn load(&mut self, requests: u32) -> Result<()> {
        self.loads += 1;
        let resource = self.variant.resource.replace("{load}", &self.loads.to_string());
        let report = load::run(&Plan {
            server: self.envoy.proxy(),
            asks: vec![Ask::get("/").header(NAME_HEADER, &resource)],
            connections: 1,
            rate: Rate::Max,
            until: Until::Sent(u64::from(requests)),
        })?;
        if report.status(200) != report.sent() {
            bail!("`{}`: not every request passed: {:?}", self.variant.name, self.envoy);
        }
        Ok(())
    }

    fn percentile(&self, percent: usize) -> Result<Duration> {
        percentile(&self.rounds, percent).context("there was no round")
    }
}

/// What a request costs, by the rules that are there for others and by what is known of its name.
fn compare(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<Vec<Measured>> {
    let _pinned = Pinned::to_one_processor()?;
    let mut measured = Vec::new();
    for variant in VARIANTS {
        let envoy = variant.set.start(1, binary, dist)?;
        measured.push(Measured { variant, envoy, rounds: Vec::new(), loads: 0 });
    }
    for _ in 0..ROUNDS {
        let mut order: Vec<_> = measured.iter_mut().collect();
        fastrand::shuffle(&mut order);
        for variant in order {
            variant.round()?;
        }
    }
    let mut table = table(["request", "lower quartile", "median", "ratio"]);
    let base = micros(measured.first().context("there is nothing to compare")?.percentile(25)?);
    for one in &measured {
        let (quartile, median) = (micros(one.percentile(25)?), micros(one.percentile(50)?));
        table.add_row([
            one.variant.name.to_owned(),
            format!("{quartile:.1} µs"),
            format!("{median:.1} µs"),
            format!("{:.3}", quartile / base),
        ]);
    }
    writeln!(
        out,
        "{table}\nCPU time of the Envoy process per request, {ROUNDS} rounds of {REQUESTS} in random order."
    )?;
    Ok(measured)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn more(time: Duration, base: Duration) -> String {
    format!("{:+.1} ms", millis(time) - millis(base))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "memory far below 2^53 bytes")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

const NAME_HEADER: &str = "x-name";
const ONE: &str = "one";
const ALONE: Variant =
    Variant { name: "one rule, and one other", set: Set::Flow(1), resource: ONE };
const BESIDE_MANY: Variant = Variant {
    name: "one rule, beside 10,000 for other resources",
    set: Set::Flow(10_000),
    resource: ONE,
};
const VARIANTS: [Variant; 6] = [
    ALONE,
    BESIDE_MANY,
    Variant { name: "one rule, beside 5,000 patterns", set: Set::Regex(5_000), resource: ONE },
    Variant {
        name: "one of 5,000 patterns, name known",
        set: Set::Regex(5_000),
        resource: "GET:/service-4711/users/42",
    },
    Variant {
        name: "one of 5,000 patterns, name new",
        set: Set::Regex(5_000),
        resource: "GET:/service-4711/users/{load}0000{turn}",
    },
    Variant {
        name: "256 patterns that begin alike, name new",
        set: Set::Tried(256),
        resource: "GET:/service-4711/users-255/{load}0000{turn}",
    },
];

const RULES: &str = "/rules.json";
const CHANGES: usize = 10;
const RATE: u32 = 1000;
const CALM: Duration = Duration::from_secs(10);

const RATIO_MOST: f64 = 1.02;
const ROUNDS: u32 = 20;
const REQUESTS: u32 = 1000;
const WARM_UP: u32 = 300;
const PATIENCE: Duration = Duration::from_secs(30);
