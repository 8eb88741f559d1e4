//! A real Envoy under load, seen from the outside.
//!
//! Nothing here asks Sentinel how it did: clients count what they sent and what came back, an upstream writes
//! down when each request arrived, and limits are judged from those two lists. Sentinel's own metrics are
//! only read to be compared with them.
//!
//! In the order of a run: [`bootstrap`] makes Envoy's configuration out of `envoy/envoy.yaml`, [`envoy`] starts
//! it, [`upstream`] stands behind it, [`rule_server`] and [`xds`] change what it goes by, and [`load`], [`client`] and [`hanging`] stand in front,
//! [`windows`] and [`pacing`] judge. [`demo`], [`up`], [`accuracy`], [`cost`], [`message_cost`], [`reaction`], [`rules_bench`], [`scale`] and [`throughput`] are what commands do.

pub mod accuracy;
pub mod bootstrap;
pub mod client;
pub mod clock;
pub mod connection_cost;
pub mod cost;
pub mod demo;
pub mod envoy;
pub mod grpc;
pub mod hanging;
pub mod load;
pub mod message_cost;
pub mod mix;
pub mod pacing;
pub mod raw;
pub mod reaction;
mod rounds;
pub mod rule_server;
pub mod rules;
pub mod rules_bench;
pub mod scale;
pub mod soak;
pub mod stats;
pub mod tcp;
pub mod throughput;
pub mod up;
pub mod upstream;
pub mod windows;
pub mod xds;
mod yardsticks;
