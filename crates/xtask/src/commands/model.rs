//! `model`: every interleaving of small scripts.

use anyhow::{Result, bail};
use clap::Args;
use sentinel_sim::explore::{Explored, Script, Search, explore};

use super::Tally;
use crate::say;

/// Explores every interleaving of small scripts, at every single host call, and checks the promises in each.
///
/// The engine is the one that ships, on the simulated Envoy. Each script is about one place of the protocol where it is
/// easy to get wrong. Where a promise does not hold, the calls that lead there are shown, with as few preemptions as
/// there are. Exit code 1 on any.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only this script; may be given several times. Without it all.
    #[arg(long = "script", value_name = "NAME")]
    pub(crate) scripts: Vec<String>,
    /// Only interleavings in which VMs are interrupted in the middle of a request or a tick at most so often.
    #[arg(long, value_name = "N")]
    pub(crate) preemptions: Option<u32>,
    /// Prints the scripts, and explores nothing.
    #[arg(long)]
    pub(crate) list: bool,
}

/// # Errors
/// If there is no script of a name that was given.
pub(crate) fn run(arguments: &Arguments) -> Result<Tally> {
    let scripts = Script::all();
    let is_known = |name: &&String| scripts.iter().any(|script| script.name == **name);
    if let Some(unknown) = arguments.scripts.iter().find(|name| !is_known(name)) {
        let names: Vec<&str> = scripts.iter().map(|script| script.name).collect();
        bail!("there is no script `{unknown}`; there are {}", names.join(", "));
    }
    let is_wanted = |script: &&Script| {
        arguments.scripts.is_empty() || arguments.scripts.iter().any(|name| name == script.name)
    };
    let mut tally = Tally::default();
    for script in scripts.iter().filter(is_wanted) {
        if arguments.list {
            say::result(format_args!("{:<18} {}", script.name, script.about));
            say::result(format_args!("{:<18} {}", "", bounds(script)));
            continue;
        }
        let step = say::Step::begin_silent(format_args!("{}: {}", script.name, script.about));
        let progress = |runs: u64, states: u64| {
            if runs.is_multiple_of(1_000) {
                step.say(format_args!("{states} states, {runs} runs"));
            }
        };
        let search = Search {
            preemptions: arguments.preemptions,
            progress: Some(&progress),
            ..Search::default()
        };
        match explore(script, search) {
            Ok(explored) => {
                step.done("every promise held");
                say::result(figures(script, &explored));
                tally.passed += 1;
            }
            Err(found) => {
                step.done("a promise does not hold");
                say::result(&found);
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// What the interleavings are of.
fn bounds(script: &Script) -> String {
    let workers = script.workers.len();
    let moves: usize = script.workers.iter().chain([&script.service]).map(Vec::len).sum();
    let service = if script.service.is_empty() { "" } else { " and the service" };
    let clock = match script.clock_ms.len() {
        0 => "the clock stands".to_owned(),
        1 => "the clock moves once".to_owned(),
        moves => format!("the clock moves {moves} times"),
    };
    let trap = if script.trap.is_some() { ", one VM traps" } else { "" };
    format!("{workers} workers{service}, {moves} moves between them; {clock}{trap}")
}

fn figures(script: &Script, explored: &Explored) -> String {
    let Explored { runs, states, interleavings, longest, ends, outcomes } = explored;
    format!(
        "{:<18} {interleavings} interleavings of up to {longest} steps: {states} states in {runs} runs, {} ends, {} outcomes",
        script.name,
        ends.len(),
        outcomes.len(),
    )
}
