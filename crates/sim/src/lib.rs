//! A simulated Envoy for the engine that ships.
//!
//! N workers and the service run on one thread, each VM a coroutine that stops before every host call. A
//! seed decides who goes on, how long each call takes, who loses its thread for milliseconds or dies. So a
//! failure is a number, and the same number shows the same failure again. The checker knows the
//! promises and Sentinel's windows, and nothing of how the engine keeps them.

#![forbid(unsafe_code)]

pub mod explore;
pub mod host;
pub mod process;
pub mod rules;
pub mod scenario;
pub mod shared_data;
pub mod shared_queue;
pub mod stats;
pub mod steady;

mod checker;
mod run;
mod thread;
mod vm;
mod world;

pub use checker::Moves;
pub use run::{Failure, Options, Report, run, run_many, run_scenario};
