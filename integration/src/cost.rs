//! What `cargo xtask bench cost` does: the CPU time that a request costs Envoy, with and without Sentinel.
//!
//! Every variant has an Envoy of its own with one worker, and all of them are started first. Envoy answers each request
//! itself (`direct_response`), so that no upstream mixes in. Then rounds: in each, every variant gets the same number
//! of requests, in random order, so that what else the machine does falls on all of them alike. What counts is
//! the CPU time of the whole Envoy process, main thread and service included.
//!
//! Two things are the same for each request, because either would change more than what a filter adds:
//!
//! - One connection, one request in flight: each request wakes its worker once. With several, a worker takes up as
//!   many as have come while it was busy, which saves most where a request takes longest.
//! - One processor for clients and Envoys: waking a sleeping one costs about as much as the request, and
//!   left alone the scheduler does it in one round and not in the next.
//!
//! Noise only ever adds time. So the figure to quote is the lower quartile of the rounds, and between machines only
//! ratios can be compared.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bootstrap::{Bootstrap, CONNECTION_MANAGER, Configuration, Sentinel, at};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Until};
use crate::stats::Stats;
use crate::yardsticks::{
    calls_of_a_flow_rule, calls_of_a_refusal, calls_of_three_rules, least_calls, two_callbacks,
};
use crate::{load, rules};

/// What is compared with what.
#[derive(Debug)]
pub struct Modules {
    /// The directory with Sentinel's two modules.
    pub dist: PathBuf,
    /// The filter on the stock SDK that does nothing: `integration/stock_filter`.
    pub stock: PathBuf,
}

/// Runs all rounds and prints the table. True when a governed request makes next to no shared-data and queue calls,
/// and costs no more than its goals say, each a ratio of what was measured side by side.
///
/// # Errors
///
/// When an Envoy does not start, clients cannot connect, requests are not answered as their variant should
/// answer them, or the system does not count CPU time.
pub fn cost(binary: &Path, modules: &Modules, out: &mut dyn Write) -> Result<bool> {
    writeln!(
        out,
        "{} Envoys with 1 worker each, {STARTS} times; then {ROUNDS} rounds of {REQUESTS} requests to each, in random \
         order, one after the other on one connection (HTTP/1.1 keep-alive), all on one processor; about ten minutes",
        VARIANTS.len()
    )?;
    out.flush()?;
    let _pinned = Pinned::to_one_processor()?;
    let yardsticks = Yardsticks::write()?;
    let mut measured = Vec::new();
    for variant in &VARIANTS {
        let envoy = variant.start(binary, modules, &yardsticks)?;
        measured.push(Measured { variant, envoy, rounds: Vec::new(), on_worker: Vec::new() });
    }
    for start in 1..=STARTS {
        if start > 1 {
            for one in &mut measured {
                one.envoy = one.variant.start(binary, modules, &yardsticks)?;
            }
        }
        for _ in 0..ROUNDS {
            let mut order: Vec<_> = measured.iter_mut().collect();
            fastrand::shuffle(&mut order);
            for variant in order {
                variant.round()?;
            }
        }
        for one in &measured {
            one.was_governed()?;
        }
        writeln!(out, "  {start} of {STARTS}")?;
        out.flush()?;
    }
    writeln!(out, "{}", table(&measured)?)?;
    writeln!(
        out,
        "CPU time of the Envoy process per request, and what that adds to `{}`. Where medians lie far above lower\n\
         quartiles the machine was busy: run it again with less beside it.",
        BASE.name
    )?;
    let (goals, met) = goals(&measured)?;
    writeln!(out, "{goals}")?;
    let governed = measured.iter().find(|measured| measured.variant.name == GOVERNED.name);
    let (calls, rate) = governed.context("no variant is governed")?.steady_calls()?;
    writeln!(
        out,
        "{}: {calls:.4} shared-data and queue calls per request at a steady {rate} a second (promised: below {CALLS_BELOW})",
        GOVERNED.name
    )?;
    Ok(met && calls < CALLS_BELOW)
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) filter: Filter,
    pub(crate) path: &'static str,
    /// How each request must be answered.
    pub(crate) status: u16,
    /// The resource with whose series each request must be counted; empty: none has its own.
    pub(crate) resource: &'static str,
}

/// What stands before the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    None,
    /// Envoy's own local rate limit, with a bucket of so many tokens that is filled again after so long.
    Native {
        tokens: u32,
        fill_interval: &'static str,
    },
    /// A Wasm filter written by hand.
    ByHand(ByHand),
    /// A Wasm filter on the stock SDK that does nothing.
    Stock,
    /// Both modules, with the same rules in every variant but so many more for other resources: the path decides which applies.
    Sentinel(Named, usize),
}

/// What a Wasm filter written by hand does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByHand {
    /// Nothing, in two callbacks.
    TwoCallbacks,
    /// In two callbacks, what whoever counts requests must ask: what it is, when it begins and when it ends.
    LeastCalls,
    /// The calls that ours makes where one flow rule applies, and nothing else.
    CallsOfFlow,
    /// Those where a hot parameter and a breaker apply too.
    CallsOfThree,
    /// Those of a refusal.
    CallsOfRefusal,
}

/// By what a request's resource is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    MethodAndPath,
    Header,
    Route,
}

impl Named {
    fn configuration(self) -> Value {
        match self {
            Self::MethodAndPath => json!({"resource": {"from": "method_path"}}),
            Self::Header => json!({"resource": {"from": {"header": "x-resource"}}}),
            Self::Route => json!({"resource": {"from": "route"}}),
        }
    }
}

/// The modules that nobody ships, in files of their own.
pub(crate) struct Yardsticks {
    folder: TempDir,
}

impl Yardsticks {
    pub(crate) fn write() -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for modules")?;
        let all = Self { folder };
        for (module, bytes) in [
            (ByHand::TwoCallbacks, two_callbacks()),
            (ByHand::LeastCalls, least_calls()),
            (ByHand::CallsOfFlow, calls_of_a_flow_rule()),
            (ByHand::CallsOfThree, calls_of_three_rules()),
            (ByHand::CallsOfRefusal, calls_of_a_refusal()),
        ] {
            std::fs::write(all.path(module), bytes).context("cannot write a module")?;
        }
        Ok(all)
    }

    fn path(&self, module: ByHand) -> PathBuf {
        self.folder.path().join(format!("{module:?}.wasm"))
    }
}

impl Variant {
    pub(crate) fn bootstrap(&self, dist: &Path) -> Result<Bootstrap> {
        let sentinel = match self.filter {
            Filter::Sentinel(named, others) => Some(Sentinel {
                filter: Some(Configuration::Struct(named.configuration())),
                service: Some(Configuration::Text(
                    json!({"rules": rules(others), "settings": {"rulesMax": 20_000}}).to_string(),
                )),
                ..Sentinel::with_rules(dist, &[])?
            }),
            Filter::None | Filter::Native { .. } | Filter::ByHand(_) | Filter::Stock => None,
        };
        Ok(Bootstrap {
            port: 0,
            admin_port: 0,
            // Nobody is asked there, unless whoever starts it says who.
            upstream: ([127, 0, 0, 1], 9).into(),
            sentinel,
            console_port: 0,
            access_log: None,
        })
    }

    fn start(&self, binary: &Path, modules: &Modules, yardsticks: &Yardsticks) -> Result<Envoy> {
        Envoy::start_changed(binary, 1, &self.bootstrap(&modules.dist)?, |root| {
            Self::answer_directly(root)?;
            self.put_filter(root, modules, yardsticks)
        })
    }

    /// Makes of the shipped configuration one with which Envoy answers by itself.
    pub(crate) fn answer_directly(root: &mut Value) -> Result<()> {
        *at(root, &format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0"))? = json!({
            "name": ROUTE,
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        });
        Ok(())
    }

    /// Puts in what stands before the router, unless it is Sentinel.
    pub(crate) fn put_filter(
        &self,
        root: &mut Value,
        modules: &Modules,
        yardsticks: &Yardsticks,
    ) -> Result<()> {
        let filter = match self.filter {
            Filter::None | Filter::Sentinel(..) => return Ok(()),
            Filter::Native { tokens, fill_interval } => native(tokens, fill_interval),
            Filter::ByHand(module) => wasm(&yardsticks.path(module)),
            Filter::Stock => wasm(&modules.stock),
        };
        let filters = at(root, &format!("{CONNECTION_MANAGER}/http_filters"))?;
        filters.as_array_mut().context("http_filters is no list")?.insert(0, filter);
        Ok(())
    }

    /// Every variant is sent the same, but for the path.
    pub(crate) fn ask(&self) -> Ask {
        Ask::get(self.path).header("x-resource", BY_HEADER).header("x-user", "ann")
    }
}

/// Rules that never refuse, one that always does, and so many for other resources.
fn rules(others: usize) -> Vec<Value> {
    let plenty = 1_000_000_000;
    let mut flow = vec![
        json!({"id": "governed", "resource": GOVERNED.resource, "threshold": plenty}),
        json!({"id": "by-header", "resource": BY_HEADER, "threshold": plenty}),
        json!({"id": "by-route", "resource": ROUTE, "threshold": plenty}),
        json!({"id": "refused", "resource": REFUSED.resource, "threshold": 0}),
        json!({"id": "three", "resource": THREE.resource, "threshold": plenty}),
        json!({"id": "ten-1", "resource": TEN.resource, "threshold": plenty}),
        json!({"id": "ten-2", "resource": TEN.resource, "threshold": plenty, "statIntervalInMs": 10_000}),
        json!({"id": "ten-3", "resource": TEN.resource, "threshold": plenty, "statIntervalInMs": 500}),
        json!({"id": "ten-4", "resource": TEN.resource, "threshold": plenty, "tokenCalculateStrategy": "WarmUp", "warmUpPeriodSec": 1}),
    ];
    flow.extend((0..others).map(|number| {
        let resource = format!("GET:/other-{number}");
        json!({"id": format!("other-{number}"), "resource": resource, "threshold": plenty})
    }));
    let values = |id, resource, kind| json!({"id": id, "resource": resource, "metricType": kind, "threshold": plenty, "durationInSec": 1, "paramKey": "header:x-user"});
    let breaker = |id, resource, strategy, threshold| {
        json!({"id": id, "resource": resource, "strategy": strategy, "threshold": threshold, "maxAllowedRtMs": 60_000,
            "minRequestAmount": 5, "statIntervalMs": 1000, "retryTimeoutMs": 1000})
    };
    vec![
        rules::flow_rules(&flow),
        rules::document(
            "HotspotRules",
            &[
                values("hot", HOT.resource, "QPS"),
                values("hot-three", THREE.resource, "QPS"),
                values("ten-5", TEN.resource, "QPS"),
                values("ten-6", TEN.resource, "Concurrency"),
            ],
        ),
        rules::document(
            "CircuitBreakerRules",
            &[
                breaker("breaker", BREAKER.resource, "ErrorRatio", 50),
                breaker("breaker-three", THREE.resource, "ErrorRatio", 50),
                breaker("ten-7", TEN.resource, "ErrorRatio", 50),
                breaker("ten-8", TEN.resource, "SlowRequestRatio", 50),
            ],
        ),
        rules::document(
            "IsolationRules",
            &[json!({"id": "ten-9", "resource": TEN.resource, "threshold": 100_000})],
        ),
        rules::document(
            "AuthorityRules",
            &[
                json!({"id": "ten-10", "resource": TEN.resource, "limitApp": "nobody", "strategy": "Black"}),
            ],
        ),
    ]
}

fn native(tokens: u32, fill_interval: &str) -> Value {
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    json!({
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "native",
            "token_bucket": {
                "max_tokens": tokens,
                "tokens_per_fill": tokens,
                "fill_interval": fill_interval,
            },
            "filter_enabled": always,
            "filter_enforced": always,
        },
    })
}

fn wasm(module: &Path) -> Value {
    json!({
        "name": "yardstick",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": "yardstick",
                "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": module}},
                },
            },
        },
    })
}

/// A variant, its Envoy, and what its requests cost in each round so far.
#[derive(Debug)]
struct Measured {
    variant: &'static Variant,
    envoy: Envoy,
    rounds: Vec<Duration>,
    /// What the worker's thread had of it.
    on_worker: Vec<Duration>,
}

impl Measured {
    /// Measures one round, after some requests that are not counted: they bring this process back into the
    /// machine's caches, use up the native bucket that is to be empty, and let a lease grow to its steady size.
    fn round(&mut self) -> Result<()> {
        self.load(Until::Sent(u64::from(WARM_UP)))?;
        let (before, worker_before) = self.cpu_times()?;
        let report = self.load(Until::Sent(u64::from(REQUESTS)))?;
        let (after, worker_after) = self.cpu_times()?;
        let used = after.saturating_sub(before);
        judge(self.variant, &report, &self.envoy)?;
        if used.is_zero() {
            bail!(
                "this system counts no CPU time in /proc/<pid>/task/*/schedstat: run it on another Linux"
            );
        }
        self.rounds.push(used / REQUESTS);
        self.on_worker.push(worker_after.saturating_sub(worker_before) / REQUESTS);
        Ok(())
    }

    /// Of the whole process, and of its one worker.
    fn cpu_times(&self) -> Result<(Duration, Duration)> {
        let threads = self.envoy.threads()?;
        let workers = threads.iter().filter(|thread| thread.name.starts_with("wrk:"));
        Ok((threads.iter().map(|thread| thread.ran).sum(), workers.map(|thread| thread.ran).sum()))
    }

    fn load(&self, until: Until) -> Result<Report> {
        load::run(&Plan {
            server: self.envoy.proxy(),
            asks: vec![self.variant.ask()],
            connections: 1,
            rate: Rate::Max,
            until,
        })
    }

    /// Fails unless the rules that this variant is about have seen its requests: else something else was measured.
    fn was_governed(&self) -> Result<()> {
        let Variant { name, resource, .. } = self.variant;
        if resource.is_empty() {
            return Ok(());
        }
        let stats = self.envoy.stats()?;
        let counted =
            stats.resource(resource, "pass_total") + stats.resource(resource, "block_total");
        let at_least = u64::from(ROUNDS * REQUESTS);
        if counted < at_least {
            bail!(
                "`{name}`: {counted} requests of {resource} were counted, but {at_least} were sent; {:?}",
                self.envoy
            );
        }
        Ok(())
    }

    /// Shared-data and queue calls, which take Envoy's process-wide locks: so many per request, at so many requests
    /// a second.
    fn steady_calls(&self) -> Result<(f64, u64)> {
        let calls = |stats: &Stats| stats.total("shared_data_calls") + stats.total("queue_calls");
        self.load(Until::Elapsed(Duration::from_secs(1)))?;
        let before = calls(&self.envoy.stats()?);
        let report = self.load(Until::Elapsed(STEADY))?;
        let stats = self.envoy.stats()?;
        judge(self.variant, &report, &self.envoy)?;
        if calls(&stats) == 0 {
            bail!("no calls were counted: {:?}", self.envoy);
        }
        Ok((per_request(calls(&stats) - before, report.sent()), report.rate()))
    }

    /// What a request cost in the round below which so many percent of the rounds lie.
    fn percentile(&self, percent: usize) -> Result<Duration> {
        percentile(&self.rounds, percent).context("there was no round")
    }
}

/// Fails unless every request was answered as this variant should: else something else was measured.
pub(crate) fn judge(variant: &Variant, report: &Report, envoy: &Envoy) -> Result<()> {
    let Variant { name, status, .. } = variant;
    let as_expected = report.status(*status);
    if as_expected == report.sent() {
        return Ok(());
    }
    bail!(
        "`{name}`: {as_expected} of {} requests were answered with {status} (no answer: {:?}); {envoy:?}",
        report.sent(),
        report.errors(),
    )
}

/// What was promised of the lower quartiles, and whether it holds.
fn goals(measured: &[Measured]) -> Result<(Table, bool)> {
    let micros = |variant: &Variant| -> Result<f64> {
        let one = measured.iter().find(|one| one.variant.name == variant.name);
        Ok(one.context("a variant is missing")?.percentile(25)?.as_secs_f64() * 1e6)
    };
    let base = micros(&BASE)?;
    let stock = micros(&STOCK)? - base;
    let by_stock = |variant: &Variant| -> Result<f64> { Ok((micros(variant)? - base) / stock) };
    let by_native =
        |variant: &Variant| -> Result<f64> { Ok(micros(variant)? / micros(&NATIVE_REFUSES)?) };
    let of_stock = "of what the filter on the stock SDK adds that does nothing";
    let of_native = "of one that local_ratelimit refuses, in all";
    let floor = by_stock(&FLOOR)?;
    let lines = [
        ("one flow rule, resource named by a header", by_stock(&HEADER)?, floor, 1.0, of_stock),
        ("one flow rule, resource named by the route", by_stock(&BY_ROUTE)?, floor, 1.0, of_stock),
        ("… named by method and path", by_stock(&GOVERNED)?, floor, 1.15, of_stock),
        (
            "with a breaker and a hot parameter too",
            by_stock(&THREE)?,
            by_stock(&FLOOR_OF_THREE)?,
            1.6,
            of_stock,
        ),
        (
            "a refused request, in all",
            by_native(&REFUSED)?,
            by_native(&FLOOR_OF_REFUSAL)?,
            1.25,
            of_native,
        ),
        (
            "one flow rule beside 10,000 others, in all",
            micros(&BESIDE)? / micros(&GOVERNED)?,
            1.0,
            1.02,
            "of one without them, in all",
        ),
    ];
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["goal", "measured", "its calls alone", "at most", "", ""]);
    let mut met = true;
    for (what, ratio, floor, most, of) in lines {
        met &= ratio <= most;
        table.add_row([
            what.to_owned(),
            format!("{ratio:.2} ×"),
            format!("{floor:.2} ×"),
            format!("{most:.2} ×"),
            of.to_owned(),
            if ratio <= most { "met" } else { "MISSED" }.to_owned(),
        ]);
    }
    Ok((table, met))
}

/// Holds the calling thread, and with it what it starts, on one processor until dropped.
pub(crate) struct Pinned {
    allowed_before: CpuSet,
}

impl Pinned {
    pub(crate) fn to_one_processor() -> Result<Self> {
        let allowed_before =
            sched_getaffinity(None).context("cannot ask which processors we may use")?;
        // The last one: the first usually serves most interrupts.
        let last = (0..CpuSet::MAX_CPU).rev().find(|processor| allowed_before.is_set(*processor));
        let mut one = CpuSet::new();
        one.set(last.context("there is no processor that we may use")?);
        sched_setaffinity(None, &one).context("cannot stay on one processor")?;
        Ok(Self { allowed_before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What was allowed before is allowed again, unless a processor has gone: then one is as good as any.
        let _ = sched_setaffinity(None, &self.allowed_before);
    }
}

/// The element below which `percent` of the others lie; of two the smaller. `None`: there is none.
pub(crate) fn percentile(values: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? * percent / 100).copied()
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^53")]
fn per_request(calls: u64, requests: u64) -> f64 {
    calls as f64 / requests.max(1) as f64
}

/// The variants, one a line; the first is what the others are compared with.
fn table(measured: &[Measured]) -> Result<Table> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "variant",
        "answer",
        "lower quartile",
        "median",
        "added, lower quartile",
        "of it on the worker",
        "ratio",
    ]);
    let base = measured.first().context("there is nothing to compare with")?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let base_quartile = micros(base.percentile(25)?);
    let on_worker = |one: &Measured| percentile(&one.on_worker, 25).map_or(0.0, micros);
    for one in measured {
        let (quartile, median) = (micros(one.percentile(25)?), micros(one.percentile(50)?));
        table.add_row([
            one.variant.name.to_owned(),
            one.variant.status.to_string(),
            format!("{quartile:.1} µs"),
            format!("{median:.1} µs"),
            format!("{:+.1} µs", quartile - base_quartile),
            format!("{:+.1} µs", on_worker(one) - on_worker(base)),
            format!("{:.2}", quartile / base_quartile),
        ]);
    }
    Ok(table)
}

pub(crate) const BASE: Variant =
    Variant { name: "no filter", filter: Filter::None, path: "/", status: 200, resource: "" };
pub(crate) const NATIVE: Variant = Variant {
    name: "local_ratelimit, passes",
    filter: Filter::Native { tokens: 1_000_000_000, fill_interval: "1s" },
    ..BASE
};
const TWO: Variant = Variant {
    name: "Wasm by hand, two callbacks, does nothing",
    filter: Filter::ByHand(ByHand::TwoCallbacks),
    ..BASE
};
const LEAST: Variant = Variant {
    name: "Wasm by hand, the headers and the clock",
    filter: Filter::ByHand(ByHand::LeastCalls),
    ..BASE
};
pub(crate) const FLOOR: Variant = Variant {
    name: "Wasm by hand, the calls of one flow rule",
    filter: Filter::ByHand(ByHand::CallsOfFlow),
    ..BASE
};
const FLOOR_OF_THREE: Variant = Variant {
    name: "Wasm by hand, the calls of three rules",
    filter: Filter::ByHand(ByHand::CallsOfThree),
    ..BASE
};
const FLOOR_OF_REFUSAL: Variant = Variant {
    name: "Wasm by hand, the calls of a refusal",
    filter: Filter::ByHand(ByHand::CallsOfRefusal),
    status: 429,
    ..BASE
};
pub(crate) const STOCK: Variant =
    Variant { name: "Wasm on the stock SDK, does nothing", filter: Filter::Stock, ..BASE };
const FREE: Variant = Variant {
    name: "Sentinel, no rule names the resource",
    filter: SENTINEL,
    path: "/free",
    ..BASE
};
pub(crate) const GOVERNED: Variant = Variant {
    name: "Sentinel, one flow rule",
    filter: SENTINEL,
    path: "/governed",
    status: 200,
    resource: "GET:/governed",
};
const HEADER: Variant = Variant {
    name: "… resource named by a header",
    filter: Filter::Sentinel(Named::Header, 0),
    resource: BY_HEADER,
    ..GOVERNED
};
const BY_ROUTE: Variant = Variant {
    name: "… resource named by the route",
    filter: Filter::Sentinel(Named::Route, 0),
    resource: ROUTE,
    ..GOVERNED
};
const BESIDE: Variant = Variant {
    name: "… beside 10,000 rules for other resources",
    filter: Filter::Sentinel(Named::MethodAndPath, 10_000),
    ..GOVERNED
};
const HOT: Variant =
    Variant { name: "Sentinel, a hot parameter", path: "/hot", resource: "GET:/hot", ..GOVERNED };
const BREAKER: Variant = Variant {
    name: "Sentinel, a circuit breaker",
    path: "/breaker",
    resource: "GET:/breaker",
    ..GOVERNED
};
const THREE: Variant = Variant {
    name: "Sentinel, flow, hot parameter and breaker",
    path: "/three",
    resource: "GET:/three",
    ..GOVERNED
};
const TEN: Variant = Variant {
    name: "Sentinel, ten rules of five kinds",
    path: "/ten",
    resource: "GET:/ten",
    ..GOVERNED
};
const NATIVE_REFUSES: Variant = Variant {
    name: "local_ratelimit, refuses",
    filter: Filter::Native { tokens: 1, fill_interval: "86400s" },
    status: 429,
    ..BASE
};
const REFUSED: Variant = Variant {
    name: "Sentinel, refuses",
    path: "/refused",
    status: 429,
    resource: "GET:/refused",
    ..GOVERNED
};
const SENTINEL: Filter = Filter::Sentinel(Named::MethodAndPath, 0);
/// The first is what the others are compared with.
static VARIANTS: [Variant; 19] = [
    BASE,
    NATIVE,
    TWO,
    STOCK,
    LEAST,
    FLOOR,
    FLOOR_OF_THREE,
    FREE,
    GOVERNED,
    HEADER,
    BY_ROUTE,
    BESIDE,
    HOT,
    BREAKER,
    THREE,
    TEN,
    NATIVE_REFUSES,
    FLOOR_OF_REFUSAL,
    REFUSED,
];

const BY_HEADER: &str = "by-header";
const ROUTE: &str = "default";
/// How often everything is started anew: where a process happens to have its memory costs it up to a tenth.
const STARTS: u32 = 3;
const ROUNDS: u32 = 10;
const REQUESTS: u32 = 3000;
const WARM_UP: u32 = 500;
const STEADY: Duration = Duration::from_secs(4);
const CALLS_BELOW: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_quartile_of_twenty_rounds_is_the_fifth_smallest() {
        let rounds: Vec<_> = (1..=20).rev().map(Duration::from_micros).collect();

        assert_eq!(percentile(&rounds, 25), Some(Duration::from_micros(5)));
        assert_eq!(percentile(&rounds, 50), Some(Duration::from_micros(10)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn only_the_filter_differs_between_variants() {
        let modules = Modules { dist: "dist".into(), stock: "stock.wasm".into() };
        let yardsticks = Yardsticks::write().unwrap();
        let filters: Vec<_> = VARIANTS
            .iter()
            .map(|variant| {
                let mut root = variant.bootstrap(&modules.dist).unwrap().render().unwrap();
                Variant::answer_directly(&mut root).unwrap();
                variant.put_filter(&mut root, &modules, &yardsticks).unwrap();
                let filters =
                    at(&mut root, &format!("{CONNECTION_MANAGER}/http_filters")).unwrap().take();
                for service in ["bootstrap_extensions", "stats_sinks"] {
                    root.as_object_mut().unwrap().remove(service);
                }
                // Besides, Sentinel has a console on a listener of its own, which nobody asks here.
                let listeners = at(&mut root, "/static_resources/listeners").unwrap();
                listeners.as_array_mut().unwrap().retain(|listener| listener["name"] == "ingress");
                (root.to_string(), filters.as_array().unwrap().len())
            })
            .collect();

        assert!(filters.iter().all(|(rest, _)| *rest == filters[0].0));
        let counts = filters.iter().map(|(_, count)| *count);
        let is_first_alone = |(at, count): (usize, usize)| count == if at == 0 { 1 } else { 2 };
        assert!(counts.enumerate().all(is_first_alone));
    }
}
