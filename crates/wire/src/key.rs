//! The names of the shared-data keys and of the queue, in one place.
//!
//! A key of Envoy's shared data can never be removed, so there are few, and their number is fixed by the
//! number of rules: never a client, a resource or a time in one.

use alloc::string::String;
use core::fmt::Write as _;

/// One key of shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `t0` and the process's hash key: put once, by whoever comes first.
    Seeds,
    /// Who is a worker.
    Workers,
    /// Who is the service, its heartbeat, and what it has acknowledged.
    Service,
    /// The rule set in force.
    Rules,
    /// There as soon as a worker has said that there is no service, so that it is said once.
    Missing,
    /// What the service has decided.
    Decisions,
    /// The ledger in this slot.
    Ledger(u32),
    /// One set of a table of ledgers.
    Set(u32),
    /// Who carries rules in a filter's configuration.
    Carried,
    /// One configuration that a filter carries.
    CarriedSet(u32),
    /// What the service has last fetched of this source.
    Source(u32),
    /// A signal's fallback where Envoy's statistics are switched off.
    Signal(u8),
}

/// The name of the queue from the workers to the service.
pub const QUEUE: &str = "sentinel.frames";

impl Key {
    /// Writes the key's name into `name`, replacing what is there.
    pub fn write_name(self, name: &mut String) {
        name.clear();
        let written = match self {
            Self::Seeds => name.write_str("sentinel/seeds"),
            Self::Workers => name.write_str("sentinel/workers"),
            Self::Service => name.write_str("sentinel/service"),
            Self::Rules => name.write_str("sentinel/rules"),
            Self::Missing => name.write_str("sentinel/missing"),
            Self::Decisions => name.write_str("sentinel/decisions"),
            Self::Set(set) => write!(name, "sentinel/t/{set}"),
            Self::Ledger(slot) => write!(name, "sentinel/l/{slot}"),
            Self::Carried => name.write_str("sentinel/carried"),
            Self::CarriedSet(set) => write!(name, "sentinel/c/{set}"),
            Self::Source(source) => write!(name, "sentinel/source/{source}"),
            Self::Signal(signal) => write!(name, "sentinel/s/{signal}"),
        };
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
}
