//! What `cargo xtask bench scale` does on the real Envoy: what many workers cost the main thread, and what each costs at rest.
//!
//! Sixty-four threads are more than most machines have. So a module that never ships, in the place of the filter, runs as many
//! of the engine's workers in one VM: what is measured is Envoy's main thread with the service that ships, which gets all
//! their frames.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use crate::bootstrap::{
    Bootstrap, CONNECTION_MANAGER, Configuration, Sentinel, at, shipped_filter,
};
use crate::client::Client;
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Until};
use crate::{clock, load, rules};

/// The service's share of a core for 64 workers with 1,000 busy resources each, of which 50 have a rule that it evaluates. True
/// when it is below what is promised. `crowd` is the module in the filter's place.
///
/// # Errors
///
/// When Envoy does not start, or the system does not count CPU time.
pub fn service(binary: &Path, dist: &Path, crowd: &Path, out: &mut dyn Write) -> Result<bool> {
    writeln!(
        out,
        "the service under {CROWD} workers, each with {RESOURCES} resources, {WATCHED} of them with a breaker; a minute"
    )?;
    out.flush()?;
    let mut table = table([
        "requests a second",
        "frames a second",
        "main thread, at rest",
        "main thread",
        "of a core",
        "a frame",
        "the crowd's thread",
    ]);
    let mut share = 0.0;
    for per_second in RATES {
        let crowded = Crowded::measure(per_second, binary, dist, crowd)?;
        share = crowded.share();
        table.add_row([
            format!("{:.0}", crowded.requests),
            format!("{:.0}", crowded.frames),
            format!("{:.2} %", crowded.at_rest * 100.0),
            format!("{:.2} %", crowded.busy * 100.0),
            format!("{:.2} %", share * 100.0),
            format!("{:.1} µs", share * 1e6 / crowded.frames),
            format!("{:.0} %", crowded.of_crowd * 100.0),
        ]);
    }
    let holds = share < SHARE_MOST;
    writeln!(
        out,
        "{table}\nof a core: what the main thread uses beyond the same Envoy with the crowd not yet set off. Goal: under {:.0} % at the \
         last line: {}",
        SHARE_MOST * 100.0,
        verdict(holds)
    )?;
    Ok(holds)
}

/// What one rate of requests costs; shares are of a core.
#[derive(Clone, Copy, Debug)]
struct Crowded {
    /// Made in a second.
    requests: f64,
    /// Sent in a second.
    frames: f64,
    at_rest: f64,
    busy: f64,
    of_crowd: f64,
}

impl Crowded {
    fn share(&self) -> f64 {
        self.busy - self.at_rest
    }

    fn measure(per_second: u32, binary: &Path, dist: &Path, crowd: &Path) -> Result<Self> {
        let rule = |number: u32, rule: &Value| {
            let mut rule = rule.clone();
            if let Some(fields) = rule.as_object_mut() {
                fields.insert("resource".to_owned(), json!(format!("r-{number}")));
            }
            rule
        };
        let of_all = json!({"threshold": 1_000_000_000});
        let breaker = json!({
            "strategy": "ErrorRatio", "threshold": 50, "retryTimeoutMs": 1000, "minRequestAmount": 10,
            "statIntervalMs": 1000, "statSlidingWindowBucketCount": 10,
        });
        let flows: Vec<_> = (0..RESOURCES).map(|number| rule(number, &of_all)).collect();
        let breakers: Vec<_> = (0..WATCHED).map(|number| rule(number, &breaker)).collect();
        let service = json!({"rules": [
            rules::flow_rules(&flows),
            rules::document("CircuitBreakerRules", &breakers),
        ]});
        let envoy = start(&service, 1, binary, dist, |root| {
            let plugin =
                at(root, &format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config"))?;
            *at(plugin, "/vm_config/code/local/filename")? = json!(crowd);
            *at(plugin, "/configuration")? = json!({
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": format!("{CROWD} {RESOURCES} {per_second}"),
            });
            Ok(())
        })?;
        clock::pause(SETTLES);
        let at_rest = Used::over(LOOK, &envoy)?;
        let answer = Client::connect(envoy.proxy())?.send("GET", "/", &[])?;
        if answer.status != 200 {
            bail!("Envoy answered {}: {envoy:?}", answer.status);
        }
        clock::pause(SETTLES);
        let count = |name: &str| -> Result<u64> {
            let stats = envoy.stats_of(name)?;
            let counter = stats.value(&format!("wasmcustom.{name}"));
            counter.with_context(|| format!("there is no counter {name}: {envoy:?}"))
        };
        let (frames, requests, began) = (count(FRAMES)?, count(REQUESTS)?, clock::now());
        let busy = Used::over(LOOK, &envoy)?;
        let (frames, requests) = (count(FRAMES)? - frames, count(REQUESTS)? - requests);
        let seconds = began.elapsed().as_secs_f64();
        Ok(Self {
            requests: number(requests) / seconds,
            frames: number(frames) / seconds,
            at_rest: at_rest.main,
            busy: busy.main,
            of_crowd: busy.workers,
        })
    }
}

/// A worker at rest, memory and start-up, by the number of workers. True when a worker at rest is below what is promised.
///
/// # Errors
///
/// As [`service`].
pub fn at_rest(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<bool> {
    writeln!(
        out,
        "Envoys with 1 to 16 workers, with Sentinel and without, at rest at the same time; about three minutes"
    )?;
    out.flush()?;
    let mut table = table([
        "workers",
        "a worker at rest",
        "without",
        "main thread at rest",
        "memory beyond none",
        "start-up beyond none",
    ]);
    let mut holds = true;
    let mut memory = Vec::new();
    let one = json!({"rules": [rules::flow_rules(&[json!({"id": "one", "resource": "one", "threshold": 100})])]});
    for workers in [1, 2, 4, 8, 16] {
        let [with, without] = Rest::measure([Some(&one), None], workers, binary, dist)?;
        let of_worker = with.used.workers / f64::from(workers);
        holds &= of_worker < AT_REST_MOST;
        memory.push((f64::from(workers), with.memory - without.memory));
        table.add_row([
            workers.to_string(),
            format!("{:.3} %", of_worker * 100.0),
            format!("{:.3} %", without.used.workers / f64::from(workers) * 100.0),
            format!("{:.2} %", with.used.main * 100.0),
            format!("{:+.1} MB", (with.memory - without.memory) / 1e6),
            format!("{:+.0} ms", (with.started - without.started) * 1e3),
        ]);
        writeln!(out, "  {workers} of 16 workers")?;
        out.flush()?;
    }
    writeln!(
        out,
        "{table}\nshares of a core, CPU time, the medians of {LOOKS} looks; start-up: of the main thread until it serves, in which it compiles \
         the modules.\n\
         a worker at rest, goal: under {:.1} %: {}",
        AT_REST_MOST * 100.0,
        verdict(holds)
    )?;
    if let (Some((few, at_few)), Some((many, at_many))) = (memory.first(), memory.last()) {
        writeln!(out, "memory per worker: {:.2} MB", (at_many - at_few) / (many - few) / 1e6)?;
    }
    resources(binary, dist, out)?;
    Ok(holds)
}

/// What ten thousand resources take, each with a rule and each asked for.
fn resources(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<()> {
    let mut table = table(["workers", "10,000 rules, nobody asks", "each resource asked for"]);
    for workers in [1, 4] {
        let rule =
            |number: u32| json!({"resource": format!("r-{number}"), "threshold": 1_000_000_000});
        let of_many = |count: u32| {
            let all: Vec<_> = (0..count).map(rule).collect();
            json!({"rules": [rules::flow_rules(&all)], "settings": {"rulesMax": 20_000}})
        };
        let few = start(&of_many(1), workers, binary, dist, |_| Ok(()))?;
        meet_all(&few, workers)?;
        let many = start(&of_many(MANY), workers, binary, dist, |_| Ok(()))?;
        meet_all(&many, workers)?;
        clock::pause(SETTLES);
        let base = few.memory_bytes()?;
        let known = more(many.memory_bytes()?, base);
        // Evenly over the connections, and those over the workers, as far as the kernel does.
        load::run(&Plan {
            server: many.proxy(),
            asks: vec![Ask::get("/").header(NAME_HEADER, "r-{turn}")],
            connections: 16,
            rate: Rate::PerSecond(MANY / 4),
            until: Until::Sent(u64::from(MANY)),
        })?;
        clock::pause(SETTLES);
        let asked = more(many.memory_bytes()?, base);
        table.add_row([
            workers.to_string(),
            format!("{:+.1} MB", known / 1e6),
            format!("{:+.1} MB", asked / 1e6),
        ]);
    }
    writeln!(out, "memory of the Envoy process beyond that with one rule\n{table}")?;
    Ok(())
}

/// An Envoy at rest.
#[derive(Clone, Copy, Debug)]
struct Rest {
    used: Used,
    /// Bytes.
    memory: f64,
    /// Seconds of the main thread's CPU time until it served.
    started: f64,
}

impl Rest {
    /// Envoys with these services, or with no modules, all of them at the same time: a machine that others use has slow hours.
    fn measure<const N: usize>(
        services: [Option<&Value>; N],
        workers: u32,
        binary: &Path,
        dist: &Path,
    ) -> Result<[Self; N]> {
        let started = |envoy: &Envoy| -> Result<f64> {
            let threads = envoy.threads()?;
            let main = threads.iter().find(|thread| thread.is_main);
            Ok(main.context("Envoy has no main thread")?.ran.as_secs_f64())
        };
        let mut envoys = Vec::with_capacity(N);
        for service in services {
            let start = || match service {
                Some(service) => start(service, workers, binary, dist, |_| Ok(())),
                None => without(workers, binary),
            };
            // The quicker of two: what is more was something else's.
            let first = started(&start()?)?;
            let envoy = start()?;
            let quickest = first.min(started(&envoy)?);
            if service.is_some() {
                meet_all(&envoy, workers)?;
            }
            envoys.push((envoy, quickest));
        }
        clock::pause(SETTLES);
        let mut looks: [Vec<Used>; N] = [const { Vec::new() }; N];
        for _ in 0..LOOKS {
            let used = Used::of_each(LOOK, envoys.iter().map(|(envoy, _)| envoy))?;
            looks.iter_mut().zip(used).for_each(|(looks, used)| looks.push(used));
        }
        let mut rests = Vec::with_capacity(N);
        for ((envoy, started), looks) in envoys.iter().zip(&looks) {
            let memory = number(envoy.memory_bytes()?);
            rests.push(Self { used: Used::median(looks), memory, started: *started });
        }
        rests.try_into().map_err(|_| anyhow!("an Envoy is missing"))
    }
}

/// Shares of a core.
#[derive(Clone, Copy, Debug)]
struct Used {
    main: f64,
    /// All of them together.
    workers: f64,
}

impl Used {
    fn over(look: Duration, envoy: &Envoy) -> Result<Self> {
        let used = Self::of_each(look, [envoy].into_iter())?;
        used.first().copied().context("no Envoy was looked at")
    }

    /// Of each of several Envoys in one and the same time.
    fn of_each<'a>(
        look: Duration,
        envoys: impl Iterator<Item = &'a Envoy> + Clone,
    ) -> Result<Vec<Self>> {
        let times = |envoy: &Envoy| -> Result<(Duration, Duration)> {
            let threads = envoy.threads()?;
            let main =
                threads.iter().filter(|thread| thread.is_main).map(|thread| thread.ran).sum();
            let workers = threads.iter().filter(|thread| thread.name.starts_with("wrk:"));
            Ok((main, workers.map(|thread| thread.ran).sum()))
        };
        let began = clock::now();
        let before: Vec<_> = envoys.clone().map(times).collect::<Result<_>>()?;
        clock::pause(look);
        let after: Vec<_> = envoys.map(times).collect::<Result<_>>()?;
        let elapsed = began.elapsed().as_secs_f64();
        if after.iter().any(|(main, _)| main.is_zero()) {
            bail!(
                "this system counts no CPU time in /proc/<pid>/task/*/schedstat: run it on another Linux"
            );
        }
        let share = |after: Duration, before| after.saturating_sub(before).as_secs_f64() / elapsed;
        let of_both = before.into_iter().zip(after);
        let used = of_both.map(|((main, workers), (main_after, workers_after))| Self {
            main: share(main_after, main),
            workers: share(workers_after, workers),
        });
        Ok(used.collect())
    }

    fn median(looks: &[Self]) -> Self {
        let median_of = |share: fn(&Self) -> f64| {
            let mut shares: Vec<f64> = looks.iter().map(share).collect();
            shares.sort_by(f64::total_cmp);
            shares.get(shares.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self { main: median_of(|used| used.main), workers: median_of(|used| used.workers) }
    }
}

/// An Envoy with both modules that answers every request itself.
fn start(
    service: &Value,
    workers: u32,
    binary: &Path,
    dist: &Path,
    change: impl FnOnce(&mut Value) -> Result<()>,
) -> Result<Envoy> {
    let mut filter = shipped_filter()?;
    let fields = filter.as_object_mut().context("the shipped filter's configuration is no map")?;
    fields.insert("resource".to_owned(), json!({"from": {"header": NAME_HEADER}}));
    let sentinel = Sentinel {
        dist: dist.to_owned(),
        filter: Some(Configuration::Struct(filter)),
        service: Some(Configuration::Text(service.to_string())),
        revived: true,
        files: None,
    };
    answering(Some(sentinel), workers, binary, change)
}

/// The same without modules.
fn without(workers: u32, binary: &Path) -> Result<Envoy> {
    answering(None, workers, binary, |_| Ok(()))
}

fn answering(
    sentinel: Option<Sentinel>,
    workers: u32,
    binary: &Path,
    change: impl FnOnce(&mut Value) -> Result<()>,
) -> Result<Envoy> {
    let bootstrap = Bootstrap {
        port: 0,
        admin_port: 0,
        // Nobody is asked there.
        upstream: ([127, 0, 0, 1], 9).into(),
        sentinel,
        console_port: 0,
        access_log: None,
    };
    Envoy::start_changed(binary, workers, &bootstrap, |root| {
        *at(root, &format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0"))? = json!({
            "name": "default",
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        });
        change(root)
    })
}

/// Asks until each worker has had a request: only then is there one.
fn meet_all(envoy: &Envoy, workers: u32) -> Result<()> {
    clock::wait_for("a request on each worker", PATIENCE, || {
        for _ in 0..workers * 4 {
            let answer =
                Client::connect(envoy.proxy())?.send("GET", "/", &[(NAME_HEADER, "one")])?;
            if answer.status != 200 && answer.status != 429 {
                bail!("Envoy answered {}: {envoy:?}", answer.status);
            }
        }
        let stats = envoy.stats_of("sentinel.workers")?;
        Ok((stats.total("workers") >= u64::from(workers)).then_some(()))
    })
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn verdict(holds: bool) -> &'static str {
    if holds { "met" } else { "NOT MET" }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

fn more(bytes: u64, base: u64) -> f64 {
    number(bytes) - number(base)
}

const NAME_HEADER: &str = "x-name";
const FRAMES: &str = "sentinel.frames";
const REQUESTS: &str = "crowd.requests";

const CROWD: u32 = 64;
const RESOURCES: u32 = 1_000;
const WATCHED: u32 = 50;
/// Requests a second of the whole crowd.
const RATES: [u32; 3] = [30_000, 100_000, 300_000];
const SHARE_MOST: f64 = 0.05;
const AT_REST_MOST: f64 = 0.001;
const MANY: u32 = 10_000;

/// Until what has just begun is over: a heartbeat of each worker, a look of the service.
const SETTLES: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(5);
const LOOKS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);
