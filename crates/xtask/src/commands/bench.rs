//! `bench`: what it holds and what it costs, side by side.

use std::process::ExitCode;
use std::slice;

use anyhow::Result;
use clap::{Args, ValueEnum};
use sentinel_integration::accuracy::accuracy;
use sentinel_integration::connection_cost::connections;
use sentinel_integration::cost::{self, cost};
use sentinel_integration::message_cost::messages;
use sentinel_integration::reaction::breaker;
use sentinel_integration::rules_bench::rules;
use sentinel_integration::throughput::throughput;

use super::{Tally, exit_code, instructions};
use crate::modules::{self, Flavour};
use crate::scale;
use crate::workspace::Workspace;
use crate::{apt, envoy, process};

/// Runs the benchmarks, side by side in one run.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Runs only this one; without it all.
    #[arg(value_enum)]
    pub(crate) name: Option<Bench>,
    /// Instructions: writes the figures into the file that tests compare with.
    #[arg(long)]
    write: bool,
    /// Instructions: in which functions this one case spends them.
    #[arg(long, value_name = "CASE", conflicts_with = "write")]
    profile: Option<String>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bench {
    /// How exact limits are, by number of workers, threshold and window, counted at the upstream.
    Accuracy,
    /// The CPU time that a request costs Envoy: without a filter, with Envoy's own local rate limit, with Wasm filters that do
    /// nothing, and with ours.
    Cost,
    /// How many requests a second one worker carries, and how long they take at a fixed rate, with the same filters.
    Throughput,
    /// The CPU time that a TCP connection costs Envoy, and a piece of data in one: without a filter and with ours.
    Connections,
    /// The CPU time that a message of a stream costs Envoy: without a filter, and with either of ours.
    Messages,
    /// What 1, 1,000 and 10,000 rules and 5,000 patterns cost: Envoy's main thread, its workers, memory, requests.
    Rules,
    /// What the modules do for a request, a message, a connection, a frame and a tick, without Envoy: instructions and host calls.
    Instructions,
    /// How long after the answer that trips a circuit breaker the last worker still lets a request through.
    Breaker,
    /// What grows with workers and thresholds: claims and accuracy (simulated, up to 64 workers), the service's CPU time for
    /// 64 workers, an idle worker, memory, start-up.
    Scale,
}

/// # Errors
/// If something cannot be set up or measured.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    if matches!(arguments.name, Some(Bench::Instructions)) {
        return instructions::run(&workspace, arguments.write, arguments.profile.as_deref())
            .map(Tally::code);
    }
    let dist = modules::build(&workspace, Flavour::Shipping)?.folder;
    let binary = envoy::envoy(None)?;
    let chosen = arguments.name.as_ref().map_or_else(Bench::value_variants, slice::from_ref);
    let out = &mut std::io::stdout();
    let mut holds = true;
    for bench in chosen {
        holds &= match bench {
            Bench::Accuracy => accuracy(&binary, &dist, out)?,
            Bench::Cost => {
                let stock = modules::build_stock(&workspace)?;
                cost(&binary, &cost::Modules { dist: dist.clone(), stock }, out)?
            }
            Bench::Throughput => {
                if process::on_path("wrk").is_none() {
                    apt::install(&["wrk"], "throughput is measured with wrk")?;
                }
                let stock = modules::build_stock(&workspace)?;
                throughput(&binary, &cost::Modules { dist: dist.clone(), stock }, out)?
            }
            Bench::Connections => connections(&binary, &dist, out)?,
            Bench::Messages => messages(&binary, &dist, out)?,
            Bench::Rules => rules(&binary, &dist, &sentinel_cli::published_bytes, out)?,
            Bench::Instructions => instructions::run(&workspace, false, None)?.failed == 0,
            Bench::Breaker => breaker(&binary, &dist, out)?,
            Bench::Scale => scale::scale(&workspace, &binary, &dist, out)?,
        };
    }
    Ok(exit_code(holds))
}
