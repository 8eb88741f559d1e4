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
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::bootstrap::{Bootstrap, CONNECTION_MANAGER, Sentinel, at};
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Report, Until};
use crate::stats::Stats;
use crate::{load, rules};

/// Runs all rounds and prints the table. True when a governed request makes next to no shared-data and queue calls,
/// as promised; there is no promise in microseconds that every machine could keep.
///
/// # Errors
///
/// When an Envoy does not start, clients cannot connect, requests are not answered as their variant should
/// answer them, or the system does not count CPU time.
pub fn cost(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<bool> {
    writeln!(
        out,
        "{} Envoys with 1 worker each; {ROUNDS} rounds of {REQUESTS} requests to each, in random order, one after the \
         other on one connection (HTTP/1.1 keep-alive), all on one processor; about half a minute",
        VARIANTS.len()
    )?;
    out.flush()?;
    let _pinned = Pinned::to_one_processor()?;
    let mut measured = Vec::new();
    for variant in &VARIANTS {
        measured.push(Measured::start(variant, binary, dist)?);
    }
    for round in 1..=ROUNDS {
        let mut order: Vec<_> = measured.iter_mut().collect();
        fastrand::shuffle(&mut order);
        for variant in order {
            variant.round()?;
        }
        if round % 10 == 0 {
            writeln!(out, "  {round} of {ROUNDS}")?;
            out.flush()?;
        }
    }
    writeln!(out, "{}", table(&measured)?)?;
    writeln!(
        out,
        "CPU time of the Envoy process per request, and what that adds to `{}`. Where medians lie far above lower\n\
         quartiles the machine was busy: run it again with less beside it.",
        BASE.name
    )?;
    let governed = measured.iter().find(|measured| measured.variant.path == GOVERNED.path);
    let (calls, rate) = governed.context("no variant is governed")?.steady_calls()?;
    writeln!(
        out,
        "{}: {calls:.4} shared-data and queue calls per request at a steady {rate} a second (promised: below {CALLS_BELOW})",
        GOVERNED.name
    )?;
    Ok(calls < CALLS_BELOW)
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
struct Variant {
    name: &'static str,
    filter: Filter,
    path: &'static str,
    /// How each request must be answered.
    status: u16,
}

/// What stands before the router.
#[derive(Clone, Copy, Debug)]
enum Filter {
    None,
    /// Envoy's own local rate limit, with a bucket of so many tokens that is filled again after so long.
    Native {
        tokens: u32,
        fill_interval: &'static str,
    },
    /// Both modules, with the same rules in every variant: the path decides which applies.
    Sentinel,
}

impl Variant {
    fn bootstrap(&self, dist: &Path) -> Result<Bootstrap> {
        Ok(Bootstrap {
            port: 0,
            admin_port: 0,
            // Nobody is asked there.
            upstream: ([127, 0, 0, 1], 9).into(),
            sentinel: match self.filter {
                Filter::None | Filter::Native { .. } => None,
                Filter::Sentinel => Some(Sentinel::with_rules(dist, &[rules()])?),
            },
            console_port: 0,
            access_log: None,
        })
    }

    /// Makes of the shipped configuration one with which Envoy answers by itself.
    fn change(&self, root: &mut Value) -> Result<()> {
        *at(root, &format!("{CONNECTION_MANAGER}/route_config/virtual_hosts/0/routes/0"))? = json!({
            "name": "default",
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        });
        if let Filter::Native { tokens, fill_interval } = self.filter {
            let filters = at(root, &format!("{CONNECTION_MANAGER}/http_filters"))?;
            let filters = filters.as_array_mut().context("http_filters is no list")?;
            filters.insert(0, native(tokens, fill_interval));
        }
        Ok(())
    }
}

/// One rule that never refuses, and one that always does.
fn rules() -> Value {
    rules::flow_rules(&[
        json!({"id": "governed", "resource": format!("GET:{}", GOVERNED.path), "threshold": 1_000_000_000}),
        json!({"id": "refused", "resource": format!("GET:{}", REFUSED.path), "threshold": 0}),
    ])
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

/// A variant, its Envoy, and what its requests cost in each round so far.
#[derive(Debug)]
struct Measured {
    variant: &'static Variant,
    envoy: Envoy,
    rounds: Vec<Duration>,
}

impl Measured {
    fn start(variant: &'static Variant, binary: &Path, dist: &Path) -> Result<Self> {
        let envoy = Envoy::start_changed(binary, 1, &variant.bootstrap(dist)?, |root| {
            variant.change(root)
        })?;
        Ok(Self { variant, envoy, rounds: Vec::new() })
    }

    /// Measures one round, after some requests that are not counted: they bring this process back into the
    /// machine's caches, use up the native bucket that is to be empty, and let a lease grow to its steady size.
    fn round(&mut self) -> Result<()> {
        self.load(Until::Sent(u64::from(WARM_UP)))?;
        let before = self.envoy.cpu_time()?;
        let report = self.load(Until::Sent(u64::from(REQUESTS)))?;
        let used = self.envoy.cpu_time()?.saturating_sub(before);
        self.judge(&report)?;
        if used.is_zero() {
            bail!(
                "this system counts no CPU time in /proc/<pid>/task/*/schedstat: run it on another Linux"
            );
        }
        self.rounds.push(used / REQUESTS);
        Ok(())
    }

    /// Fails unless every request was answered as this variant should: else something else was measured.
    fn judge(&self, report: &Report) -> Result<()> {
        let Variant { name, status, .. } = self.variant;
        let as_expected = report.status(*status);
        if as_expected == report.sent() {
            return Ok(());
        }
        bail!(
            "`{name}`: {as_expected} of {} requests were answered with {status} (no answer: {:?}); {:?}",
            report.sent(),
            report.errors(),
            self.envoy
        )
    }

    fn load(&self, until: Until) -> Result<Report> {
        load::run(&Plan {
            server: self.envoy.proxy(),
            asks: vec![Ask::get(self.variant.path)],
            connections: 1,
            rate: Rate::Max,
            until,
        })
    }

    /// Shared-data and queue calls, which take Envoy's process-wide locks: so many per request, at so many requests
    /// a second.
    fn steady_calls(&self) -> Result<(f64, u64)> {
        let calls = |stats: &Stats| stats.total("shared_data_calls") + stats.total("queue_calls");
        self.load(Until::Elapsed(Duration::from_secs(1)))?;
        let before = calls(&self.envoy.stats()?);
        let report = self.load(Until::Elapsed(STEADY))?;
        let stats = self.envoy.stats()?;
        self.judge(&report)?;
        let resource = format!("GET:{}", self.variant.path);
        if calls(&stats) == 0 || stats.resource(&resource, "pass_total") == 0 {
            bail!("no rule applied to {resource}, or no calls were counted: {:?}", self.envoy);
        }
        Ok((per_request(calls(&stats) - before, report.sent()), report.rate()))
    }

    /// What a request cost in the round below which so many percent of the rounds lie.
    fn percentile(&self, percent: usize) -> Result<Duration> {
        percentile(&self.rounds, percent).context("there was no round")
    }
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
        "added, median",
        "ratio",
    ]);
    let base = measured.first().context("there is nothing to compare with")?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let (base_quartile, base_median) = (micros(base.percentile(25)?), micros(base.percentile(50)?));
    for one in measured {
        let (quartile, median) = (micros(one.percentile(25)?), micros(one.percentile(50)?));
        table.add_row([
            one.variant.name.to_owned(),
            one.variant.status.to_string(),
            format!("{quartile:.1} µs"),
            format!("{median:.1} µs"),
            format!("{:+.1} µs", quartile - base_quartile),
            format!("{:+.1} µs", median - base_median),
            format!("{:.2}", quartile / base_quartile),
        ]);
    }
    Ok(table)
}

const BASE: Variant = Variant { name: "no filter", filter: Filter::None, path: "/", status: 200 };
const GOVERNED: Variant = Variant {
    name: "Sentinel, one flow rule, passes",
    filter: Filter::Sentinel,
    path: "/governed",
    status: 200,
};
const REFUSED: Variant =
    Variant { name: "Sentinel, refuses", filter: Filter::Sentinel, path: "/refused", status: 429 };
static VARIANTS: [Variant; 6] = [
    BASE,
    Variant {
        name: "local_ratelimit, passes",
        filter: Filter::Native { tokens: 1_000_000_000, fill_interval: "1s" },
        path: "/",
        status: 200,
    },
    Variant {
        name: "Sentinel, no rule names the resource",
        filter: Filter::Sentinel,
        path: "/free",
        status: 200,
    },
    GOVERNED,
    Variant {
        name: "local_ratelimit, refuses",
        filter: Filter::Native { tokens: 1, fill_interval: "86400s" },
        path: "/",
        status: 429,
    },
    REFUSED,
];

const ROUNDS: u32 = 30;
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
        let filters: Vec<_> = VARIANTS
            .iter()
            .map(|variant| {
                let mut root = variant.bootstrap(Path::new("dist")).unwrap().render().unwrap();
                variant.change(&mut root).unwrap();
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
        assert_eq!(filters.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 2, 2, 2, 2, 2]);
    }
}
