//! What all workers together have spent, and what each of them does to it.
//!
//! One small value in shared data per rule, or per set of a table of values. A worker that needs
//! something *claims*: it reads the value, computes here what follows, and writes it back by compare-and-set,
//! again on a mismatch. Nothing here knows the host; each function is one pure step, so that any
//! interleaving of claims is a sequence of these steps.
//!
//! Every value carries a [`Stamp`]: which rule it belongs to, and what that rule said last.

pub mod breaker;
pub mod bucket;
pub mod pace;
pub mod permits;
pub mod rate;
pub mod set;

use breaker::BreakerLedger;
use bucket::BucketLedger;
use pace::PaceLedger;
use permits::PermitLedger;
use rate::RateLedger;

use crate::rule::Keeps;

/// Whose a ledger is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stamp {
    /// Which occupant of the ledger's slot this is; only grows. Who knows only an older one writes nothing.
    pub generation: u64,
    /// The rule set that `threshold` is from; only grows within a generation.
    pub version: u64,
    /// The rule's threshold.
    pub threshold: f64,
}

/// One rule's, or one value's, ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum Ledger {
    /// Tokens of a window.
    Rate(RateLedger),
    /// The next slot of a pace.
    Pace(PaceLedger),
    /// Requests in flight.
    Permits(PermitLedger),
    /// A bucket of tokens.
    Bucket(BucketLedger),
    /// A circuit breaker.
    Breaker(BreakerLedger),
}

/// How a worker's rule and a ledger meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meeting {
    /// The stamp that the ledger has from here on.
    pub stamp: Stamp,
    /// Whether what it has counted is somebody else's, or nothing: begin anew.
    pub anew: bool,
    /// Whether the ledger did not know this rule set yet: what is written must be written also if nothing is
    /// granted.
    pub renewed: bool,
    /// Whether the ledger knows no newer rule set than the one that meets it.
    pub is_current: bool,
}

impl Stamp {
    /// Meets what was `found`: takes the slot over for a newer generation, brings the threshold of a newer
    /// rule set, and goes by the ledger's where that is newer. `None` if the slot belongs to a newer
    /// generation: then nothing may be written, and the rules must be loaded first.
    pub fn meet(self, found: Option<Self>) -> Option<Meeting> {
        match found {
            Some(found) if found.generation > self.generation => None,
            Some(found) if found.generation == self.generation => {
                let renewed = found.version < self.version;
                let stamp = if renewed { self } else { found };
                let is_current = found.version <= self.version;
                Some(Meeting { stamp, anew: false, renewed, is_current })
            }
            Some(_) | None => {
                Some(Meeting { stamp: self, anew: true, renewed: true, is_current: true })
            }
        }
    }
}

impl Ledger {
    /// An untouched ledger; `None` for a rule that keeps nothing.
    pub fn new(keeps: Keeps) -> Option<Self> {
        Some(match keeps {
            Keeps::Nothing => return None,
            Keeps::Rate => Self::Rate(RateLedger::default()),
            Keeps::Pace => Self::Pace(PaceLedger::default()),
            Keeps::Permits => Self::Permits(PermitLedger::default()),
            Keeps::Bucket => Self::Bucket(BucketLedger::default()),
            Keeps::Breaker => Self::Breaker(BreakerLedger::default()),
        })
    }

    /// What kind of ledger this is.
    pub fn keeps(&self) -> Keeps {
        match self {
            Self::Rate(_) => Keeps::Rate,
            Self::Pace(_) => Keeps::Pace,
            Self::Permits(_) => Keeps::Permits,
            Self::Bucket(_) => Keeps::Bucket,
            Self::Breaker(_) => Keeps::Breaker,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { generation: 2, version: 5, threshold: 10.0 };

    #[test]
    fn an_older_generation_writes_nothing() {
        assert_eq!(Stamp { generation: 1, ..STAMP }.meet(Some(STAMP)), None);
    }

    #[test]
    fn a_newer_generation_begins_anew() {
        let newer = Stamp { generation: 3, ..STAMP };
        let anew = Meeting { stamp: newer, anew: true, renewed: true, is_current: true };
        assert_eq!(newer.meet(Some(STAMP)), Some(anew));
        assert_eq!(STAMP.meet(None), Some(Meeting { stamp: STAMP, ..anew }));
    }

    #[test]
    fn a_newer_rule_set_brings_its_threshold_and_an_older_one_uses_it() {
        let newer = Stamp { version: 6, threshold: 8.0, ..STAMP };
        let renewed = Meeting { stamp: newer, anew: false, renewed: true, is_current: true };
        assert_eq!(newer.meet(Some(STAMP)), Some(renewed));
        assert_eq!(newer.meet(Some(newer)), Some(Meeting { renewed: false, ..renewed }));
        let behind = Meeting { renewed: false, is_current: false, ..renewed };
        assert_eq!(STAMP.meet(Some(newer)), Some(behind));
    }
}
