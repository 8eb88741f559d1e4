//! A worker and the service, given a host.
//!
//! [`worker::Worker`] is one VM of one Envoy worker thread, [`service::Service`] the singleton on the main
//! thread. Both talk through [`host::Host`] only, so that the engine that ships is the engine that the
//! simulator runs. Decisions are taken in `sentinel-core`; what stands here is the conversation:
//! `enter`/`exit` (a request), `claim`/`give_back` (a ledger), `flush` (worker → queue), `drain` (queue →
//! service), `publish` (service → shared data), `refresh` (shared data → worker).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod carried;
pub mod console;
#[cfg(feature = "contract")]
pub mod contract;
pub mod document;
pub mod host;
pub mod service;
pub mod telemetry;
pub mod worker;

mod admission;
mod census;
mod change;
mod clock;
mod group;
mod nodes;
mod rule_state;
mod rulebook;
mod shared;
mod table;

/// When a VM wants its next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The period to ask Envoy for, in milliseconds.
    pub period_ms: u32,
}

impl Next {
    /// The period of a VM with nothing to do but to show that it lives.
    pub const IDLE: Self = Self { period_ms: 1_000 };

    /// The sooner of the two.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        Self { period_ms: self.period_ms.min(other.period_ms) }
    }
}
