//! What `cargo xtask bench breaker` does: how long after the answer that trips a breaker the last worker still lets a
//! request through.
//!
//! The breaker counts errors, so the answer that trips it is known: the one with which as many have been given as its threshold. Both
//! moments are the upstream's: when it gave that answer, and when the last request arrived after it. In between lie the
//! completion, a frame, the service's decision, and each worker's look at it, while as many clients as Envoy can bear ask on.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::bootstrap::{Bootstrap, Sentinel};
use crate::clock;
use crate::envoy::Envoy;
use crate::load::{Ask, Plan, Rate, Until};
use crate::upstream::{Behaviour, Upstream};
use crate::{load, rules};

/// How a breaker is made to trip again and again.
#[derive(Clone, Copy, Debug)]
pub struct Trips {
    /// How often, at least once.
    pub count: usize,
    /// Envoy's worker threads.
    pub workers: u32,
    /// Clients' connections.
    pub connections: u32,
    /// Requests a second.
    pub rate: Rate,
}

/// How long it took each time.
#[derive(Clone, Debug, Default)]
pub struct Reactions {
    /// Ascending.
    pub delays: Vec<Duration>,
    /// Requests a second that were really offered.
    pub offered: u64,
    /// The most that still arrived after the answer that tripped the breaker.
    pub stragglers: usize,
}

impl Reactions {
    /// The delay that so many in a hundred did not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let at = (self.delays.len() * percent).div_ceil(100).saturating_sub(1);
        self.delays.get(at).copied().unwrap_or_default()
    }
}

impl Trips {
    /// Trips the breaker in an Envoy of its own.
    ///
    /// # Errors
    ///
    /// When Envoy does not start, clients cannot connect, or the breaker does not open or close.
    pub fn run(&self, binary: &Path, dist: &Path) -> Result<Reactions> {
        let upstream = Upstream::start(0)?;
        let rule = json!({
            "id": "breaker", "resource": NAME, "strategy": "ErrorCount", "threshold": ERRORS, "minRequestAmount": 1,
            "statIntervalMs": 10_000, "statSlidingWindowBucketCount": 10, "retryTimeoutMs": RETRY_MS, "probeNum": 1,
        });
        let documents = [rules::document("CircuitBreakerRules", &[rule])];
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream: upstream.address(),
            sentinel: Some(Sentinel::with_rules(dist, &documents)?),
            console_port: 0,
            access_log: None,
        };
        let envoy = Envoy::start(binary, self.workers, &bootstrap)?;
        let plan = Plan {
            server: envoy.proxy(),
            asks: vec![Ask::get(PATH)],
            connections: self.connections,
            rate: self.rate,
            until: Until::Elapsed(Duration::from_millis(500) * u32::try_from(self.count)?),
        };
        std::thread::scope(|scope| {
            let load = scope.spawn(|| load::run(&plan));
            let mut ill = Vec::new();
            while !load.is_finished() {
                // Well, and closed: as much passes as is asked for.
                let before = upstream.arrived(NAME);
                clock::pause(Duration::from_millis(100));
                if upstream.arrived(NAME) < before + 100 {
                    continue;
                }
                ill.push(clock::wall_nanos());
                upstream.behave(NAME, Behaviour::status(500));
                clock::pause(Duration::from_millis(RETRY_MS - 100));
                upstream.behave(NAME, Behaviour::default());
            }
            let report =
                load.join().unwrap_or_else(|_| bail!("the load generator panicked, see above"))?;
            let mut reactions = judge(&upstream, &ill);
            reactions.offered = report.rate();
            if reactions.delays.len() * 2 < self.count {
                bail!(
                    "the breaker opened only {} times, not {}",
                    reactions.delays.len(),
                    self.count
                );
            }
            Ok(reactions)
        })
    }
}

fn judge(upstream: &Upstream, ill: &[u64]) -> Reactions {
    let failed = upstream.failed_ns(NAME);
    let arrivals = upstream.take().remove(NAME).unwrap_or_default();
    let mut reactions = Reactions::default();
    for (number, since) in ill.iter().enumerate() {
        let until = ill.get(number + 1).copied().unwrap_or(u64::MAX);
        let errors = failed.iter().filter(|at| (*since..until).contains(at));
        let Some(tripped) = errors.clone().nth(ERRORS - 1) else { continue };
        // Until the first probe may come.
        let quiet = *tripped..tripped + (RETRY_MS - 20) * 1_000_000;
        let after: Vec<_> = arrivals
            .iter()
            .map(|arrival| arrival.arrived_ns)
            .filter(|at| quiet.contains(at))
            .collect();
        let last = after.iter().max().copied().unwrap_or(*tripped);
        reactions.delays.push(Duration::from_nanos(last - tripped));
        reactions.stragglers = reactions.stragglers.max(after.len());
    }
    reactions.delays.sort_unstable();
    reactions
}

/// Trips a breaker a hundred times at full load and prints how long it took. True when the promise holds.
///
/// # Errors
///
/// As [`Trips::run`].
pub fn breaker(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<bool> {
    let trips = Trips { count: 110, workers: 4, connections: 64, rate: Rate::Max };
    writeln!(
        out,
        "a breaker trips about a hundred times under 4 workers, while {} connections ask as fast as they are answered; about a minute",
        trips.connections
    )?;
    out.flush()?;
    let reactions = trips.run(binary, dist)?;
    let ms = |percent| reactions.percentile(percent).as_secs_f64() * 1000.0;
    writeln!(
        out,
        "from the answer that trips it to the last request that still arrives, {} times at {} requests a second: {:.1} ms (p50), \
         {:.1} ms (p90), {:.1} ms (p99), {:.1} ms at most; {} requests at most still arrived (promised: p99 below {} ms)",
        reactions.delays.len(),
        reactions.offered,
        ms(50),
        ms(90),
        ms(99),
        ms(100),
        reactions.stragglers,
        BELOW.as_millis(),
    )?;
    Ok(reactions.percentile(99) < BELOW)
}

const PATH: &str = "/breaker";
const NAME: &str = "GET:/breaker";
/// So many errors open it.
const ERRORS: usize = 20;
const RETRY_MS: u64 = 400;
const BELOW: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_delays_the_99th_is_the_99th_percentile() {
        let delays = (1..=100).map(Duration::from_millis).collect();
        let reactions = Reactions { delays, ..Reactions::default() };

        assert_eq!(reactions.percentile(99), Duration::from_millis(99));
        assert_eq!(reactions.percentile(50), Duration::from_millis(50));
        assert_eq!(Reactions::default().percentile(99), Duration::ZERO);
    }
}
