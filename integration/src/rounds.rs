//! What the benches of single acts share: an Envoy with one worker for each variant, rounds in random order, all on one
//! processor, and of the CPU times of an act the lower quartile and the median.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use crate::cost::percentile;
use crate::envoy::Envoy;

/// A variant, its Envoy, what is done to it, and what that cost in each round so far.
pub(crate) struct Measured<'a> {
    name: &'static str,
    envoy: &'a Envoy,
    act: Act<'a>,
    rounds: Vec<Duration>,
}

/// A message, a connection or the like, with its answer.
pub(crate) type Act<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) rounds: u32,
    /// Acts of a round.
    pub(crate) acts: u32,
    /// Acts before each round that are not counted.
    pub(crate) warm_up: u32,
}

impl<'a> Measured<'a> {
    pub(crate) fn new(name: &'static str, envoy: &'a Envoy, act: Act<'a>) -> Self {
        Self { name, envoy, act, rounds: Vec::new() }
    }

    fn act(&mut self, times: u32) -> Result<()> {
        for _ in 0..times {
            (self.act)().with_context(|| format!("{}: {:?}", self.name, self.envoy))?;
        }
        Ok(())
    }

    fn round(&mut self, plan: Rounds) -> Result<()> {
        self.act(plan.warm_up)?;
        let before = self.envoy.cpu_time()?;
        self.act(plan.acts)?;
        let used = self.envoy.cpu_time()?.saturating_sub(before);
        if used.is_zero() {
            bail!(
                "this system counts no CPU time in /proc/<pid>/task/*/schedstat: run it on another Linux"
            );
        }
        self.rounds.push(used / plan.acts);
        Ok(())
    }

    fn percentile(&self, percent: usize) -> Result<f64> {
        let time = percentile(&self.rounds, percent).context("there was no round")?;
        Ok(time.as_secs_f64() * 1e6)
    }
}

impl Rounds {
    /// Runs them. The variants, one a line; the first is what the others are compared with.
    pub(crate) fn run(self, what: &str, measured: &mut [Measured<'_>]) -> Result<Table> {
        for _ in 0..self.rounds {
            let mut order: Vec<_> = measured.iter_mut().collect();
            fastrand::shuffle(&mut order);
            for variant in order {
                variant.round(self)?;
            }
        }
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header([what, "lower quartile", "median", "added, lower quartile", "ratio"]);
        let base = measured.first().context("there is nothing to compare with")?.percentile(25)?;
        for one in measured {
            let (quartile, median) = (one.percentile(25)?, one.percentile(50)?);
            table.add_row([
                one.name.to_owned(),
                format!("{quartile:.1} µs"),
                format!("{median:.1} µs"),
                format!("{:+.1} µs", quartile - base),
                format!("{:.2}", quartile / base),
            ]);
        }
        Ok(table)
    }
}
