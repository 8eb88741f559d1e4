//! `mutants`: whether the simulation finds engines that are broken on purpose.

use std::num::NonZeroUsize;
use std::thread;

use anyhow::{Result, bail};
use clap::Args;

use super::Tally;
use crate::mutants::{Broken, Hunt, LIST, Mutation, read};
use crate::say;
use crate::workspace::Workspace;

/// Breaks the engine in every way of a list, one at a time, and expects the simulation to find it.
///
/// The list is crates/sim/mutations.yaml. First the whole engine must keep every promise in the first seeds. Prints for
/// each mutation the seed that found it and what did not hold. Exit code 1 if one is not found.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only mutations with these words in their names.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// The most seeds for one mutation.
    #[arg(long, value_name = "N", default_value_t = MOST, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) runs: u64,
}

/// Enough for the rarest of the list twice over.
pub(crate) const MOST: u64 = 1_000;

/// In how many seeds the whole engine must keep every promise first.
const WHOLE: u64 = 200;

/// # Errors
/// If a mutation does not fit the engine any more, or if the broken engine does not compile.
pub(crate) fn run(arguments: &Arguments) -> Result<Tally> {
    let workspace = Workspace::find()?;
    let mutations = read(&workspace)?;
    let is_asked = |mutation: &Mutation| {
        let names = &arguments.names;
        names.is_empty() || names.iter().any(|name| mutation.name.contains(name.as_str()))
    };
    if !mutations.iter().any(is_asked) {
        bail!("no mutation in {LIST} has one of these words in its name");
    }
    let broken = Broken::build(&workspace, &mutations)?;
    let jobs = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let whole = broken.hunt(0, WHOLE, jobs)?;
    if let Some((seed, what)) = whole.found {
        bail!("the whole engine breaks a promise in seed {seed}: {what}");
    }
    say::line(format_args!("   the whole engine keeps every promise in {} seeds", whole.runs));
    let mut tally = Tally::default();
    for (number, mutation) in (1..).zip(&mutations).filter(|(_, mutation)| is_asked(mutation)) {
        let hunt = broken.hunt(number, arguments.runs, jobs)?;
        say::result(line(mutation, &hunt));
        match hunt.found {
            Some(_) => tally.passed += 1,
            None => tally.failed += 1,
        }
    }
    Ok(tally)
}

/// One line of the table.
fn line(mutation: &Mutation, hunt: &Hunt) -> String {
    let Mutation { name, promise, .. } = mutation;
    let Hunt { runs, ms, .. } = hunt;
    match &hunt.found {
        Some((seed, what)) => format!("found      {name}: seed {seed} ({ms} ms): {what}"),
        None => format!("NOT FOUND  {name} ({promise}), in {runs} seeds ({ms} ms)"),
    }
}
