//! Sentinel in a real Envoy: what issue after issue promises, measured from the outside.
//!
//! The modules and the Envoys are given in the environment; `cargo xtask test` builds and fetches what is missing
//! and sets it. One test has the machine at a time, whatever `--test-threads` says: each needs all of it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test says what went wrong by panicking, and what it has measured by printing it"
)]

mod authority;
mod breaker;
mod changes;
mod configuration;
mod console;
mod every_kind;
mod exact;
mod faults;
mod flow;
mod gateway;
mod grpc;
mod host_contract;
mod hostile;
mod hotspot;
mod http_kinds;
mod input;
mod isolation;
mod messages;
mod metrics;
mod naming;
mod pacing;
mod path;
mod reply;
mod service;
mod several;
mod shipped;
mod sources;
mod system;
mod tcp;
mod together;
mod up;
mod world;
mod xds;
