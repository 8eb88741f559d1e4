//! A real Envoy under load, seen from the outside.
//!
//! Nothing here asks Sentinel how it did: clients count what they sent and what came back, an upstream writes
//! down when each request arrived, and limits are judged from those two lists. Sentinel's own metrics are
//! only read to be compared with them.
//!
//! In the order of a run: [`bootstrap`] makes Envoy's configuration out of `envoy/envoy.yaml`, [`envoy`] starts
//! it, [`upstream`] stands behind it and [`load`] in front, [`windows`] judges. [`demo`], [`up`],
//! [`accuracy`] and [`cost`] are what the commands of the same names do.

pub mod accuracy;
pub mod bootstrap;
pub mod client;
pub mod clock;
pub mod cost;
pub mod demo;
pub mod envoy;
pub mod load;
pub mod rules;
pub mod stats;
pub mod up;
pub mod upstream;
pub mod windows;
