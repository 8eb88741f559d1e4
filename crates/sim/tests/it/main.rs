//! What the simulated Envoy says about itself and about the engine.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what went wrong by panicking"
)]

mod behind;
mod contract;
mod explore;
mod failure;
mod many_rules;
mod messages;
mod scenarios;
mod steady;
mod swarm;
