//! The names of the shared-data keys and of the queue, in one place.
//!
//! A key of Envoy's shared data can never be removed, so there are few, and their number is fixed by the
//! number of rules: never a client, a resource or a time in one.

use alloc::string::String;

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

/// Room for any key's name.
pub type NameRoom = [u8; KIND_BYTES + 16];

const KIND_BYTES: usize = 16;

impl Key {
    /// The key's name, which is made in `room` if it has a number: for each claim, so without a call or a copy of an
    /// unknown length.
    pub fn name(self, room: &mut NameRoom) -> &[u8] {
        // What stands before a number, and how much of the sixteen bytes does not belong to it.
        let (kind, skipped, number): (&[u8; KIND_BYTES], _, _) = match self {
            Self::Seeds => return b"sentinel/seeds",
            Self::Workers => return b"sentinel/workers",
            Self::Service => return b"sentinel/service",
            Self::Rules => return b"sentinel/rules",
            Self::Missing => return b"sentinel/missing",
            Self::Decisions => return b"sentinel/decisions",
            Self::Carried => return b"sentinel/carried",
            Self::Set(set) => (b"     sentinel/t/", 5, set),
            Self::Ledger(slot) => (b"     sentinel/l/", 5, slot),
            Self::CarriedSet(set) => (b"     sentinel/c/", 5, set),
            Self::Source(source) => (b"sentinel/source/", 0, source),
            Self::Signal(signal) => (b"     sentinel/s/", 5, u32::from(signal)),
        };
        // From behind: the last digits are the first to be known.
        let (mut rest, mut start) = (number, room.len());
        while let Some(place) = start.checked_sub(1).and_then(|last| room.get_mut(last)) {
            *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            start -= 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let start = start.saturating_sub(KIND_BYTES);
        if let Some(place) = room.get_mut(start..start + KIND_BYTES) {
            place.copy_from_slice(kind);
        }
        room.get(start + skipped..).unwrap_or_default()
    }

    /// Writes the key's name into `name`, replacing what is there.
    pub fn write_name(self, name: &mut String) {
        name.clear();
        let mut room = NameRoom::default();
        name.extend(self.name(&mut room).iter().map(|byte| char::from(*byte)));
    }
}
