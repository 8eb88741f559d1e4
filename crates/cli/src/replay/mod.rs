//! Decisions that other implementations gave, against ours.
//!
//! A vector is a list of calls at given times with the answer that each must have, or a table of what a
//! function must say. N real workers and a real service run the calls on a simulated host that nobody
//! interrupts; calls go to the workers in turn. What is late in real life is on time here: around every call
//! and every move of the clock all workers and the service do everything that is due, so that vectors show the
//! meaning of a rule, and the decisions are the same for every number of workers. A table asks the functions
//! that the modules are made of. What this build does not run fails and says so.
//!
//! The schema is that of the reference's vectors. Our own ([`Vector`]) need a little more, which a file of the
//! reference never has:
//!
//! * the dialect `crd`: rules stand under the kinds of rule documents, as an operator writes them;
//! * `{call}` in a text of `args` is the number of the call, so that many calls can have as many values;
//! * `request` of an entry: `path`, `headers`, `host` and `client_ip` of a request as Envoy has it;
//! * `status` and `grpc_status` of an entry or an exit: how the upstream answered;
//! * `rush` of an entry: its calls follow each other so fast that nothing is settled between them;
//! * the expectations `any` and `{at_most: n}`, of which the second speaks of all calls of an entry together;
//! * `refused` of `load_rules`: the set must be refused with these words, and the one before stays.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

mod expect;
pub(crate) mod proxy;
mod request;
mod rules;
mod tables;
mod vector;

pub use vector::Vector;

/// How a replay ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Vectors whose every expectation was met.
    pub passed: u64,
    /// The others, those that this build does not run included.
    pub failed: u64,
}

/// Replays all vectors of `files` on `workers` workers, 1 or more. `say` gets one line for each vector
/// and a last one, `N passed, M failed`.
///
/// # Errors
/// If a file cannot be read or holds no vectors. A vector that fails is no error.
pub fn replay(files: &[PathBuf], workers: u16, mut say: impl FnMut(&str)) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for path in files {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let vectors = vectors(&text).with_context(|| path.display().to_string())?;
        for vector in &vectors {
            match vector.run(workers) {
                Ok(()) => {
                    outcome.passed += 1;
                    say(&format!("ok {}", vector.id));
                }
                Err(reason) => {
                    outcome.failed += 1;
                    say(&format!("FAILED {}: {reason:#}", vector.id));
                }
            }
        }
    }
    say(&format!("{} passed, {} failed", outcome.passed, outcome.failed));
    Ok(outcome)
}

/// The vectors that stand in `text`.
///
/// # Errors
/// If it is no file of vectors.
pub fn vectors(text: &str) -> Result<Vec<Vector>> {
    #[derive(Deserialize)]
    struct File {
        vectors: Vec<Vector>,
    }
    let file: File = serde_json::from_str(text).context("this is no file of vectors")?;
    Ok(file.vectors)
}
