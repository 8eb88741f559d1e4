//! Sentinel in a real Envoy: what issue after issue promises, measured from the outside.
//!
//! The modules and the Envoys are given in the environment; `cargo xtask test` builds and fetches what is missing
//! and sets it. One test has the machine at a time, whatever `--test-threads` says: each needs all of it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod configuration;
mod exact;
mod host_contract;
mod input;
mod metrics;
mod naming;
mod path;
mod reply;
mod service;
mod together;
mod world;
