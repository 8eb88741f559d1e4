//! The names of the shared-data keys and of the queue, in one place.
//!
//! A key of Envoy's shared data can never be removed, so there are few, and their number is fixed by the
//! number of rules: never a client, a resource or a time in one.

use alloc::string::String;

use sentinel_core::decimal::{WHOLE_DIGITS, whole_digits};

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
        let (kind, number) = match self {
            Self::Seeds => ("sentinel/seeds", None),
            Self::Workers => ("sentinel/workers", None),
            Self::Service => ("sentinel/service", None),
            Self::Rules => ("sentinel/rules", None),
            Self::Missing => ("sentinel/missing", None),
            Self::Decisions => ("sentinel/decisions", None),
            Self::Set(set) => ("sentinel/t/", Some(set)),
            Self::Ledger(slot) => ("sentinel/l/", Some(slot)),
            Self::Carried => ("sentinel/carried", None),
            Self::CarriedSet(set) => ("sentinel/c/", Some(set)),
            Self::Source(source) => ("sentinel/source/", Some(source)),
            Self::Signal(signal) => ("sentinel/s/", Some(u32::from(signal))),
        };
        name.push_str(kind);
        // Written for each claim, so without what `{}` brings along.
        if let Some(number) = number {
            let mut room = [0; WHOLE_DIGITS];
            let digits = whole_digits(u64::from(number), &mut room);
            name.extend(digits.iter().map(|digit| char::from(*digit)));
        }
    }
}
