//! One pace: slots follow each other, and nothing goes before its own.

use std::collections::BTreeMap;

use sentinel_core::time::{Nanos, Span};

use super::Broken;

/// What a pace's ledger has given.
#[derive(Debug, Default)]
pub(super) struct PaceBook {
    /// Slots that were taken and not undone, each with the one before it. The first is none.
    slots: BTreeMap<Nanos, Nanos>,
    last: Nanos,
}

impl PaceBook {
    /// Takes in what the ledger says now; `cost` is the time that one request takes. The answer is by how much
    /// the number of slots has changed.
    pub(super) fn store(&mut self, last: Nanos, cost: Span) -> Result<i64, Broken> {
        let before = self.last;
        if last == before {
            return Ok(0);
        }
        self.last = last;
        if last > before {
            if before > Nanos::default() && last.since(before) < cost {
                let gap = last.since(before).get();
                return Err(format!(
                    "two slots are {gap} ns apart, and {} ns are the least",
                    cost.get()
                ));
            }
            self.slots.insert(last, before);
            return Ok(1);
        }
        match self.slots.remove(&before) {
            Some(previous) if previous == last => Ok(-1),
            _ => Err("its time has gone back, and not to the slot before".to_owned()),
        }
    }

    /// A pace that was forgotten is made anew: its last slot must be long past.
    pub(super) fn begin_anew(&mut self, now: Nanos, interval: Span) -> Result<(), Broken> {
        if self.last > Nanos::default() && now.since(self.last) <= interval {
            let ago = now.since(self.last).as_millis();
            return Err(format!("a value was forgotten {ago} ms after its last slot"));
        }
        self.last = Nanos::default();
        Ok(())
    }

    /// Takes in that a request has the slot `at`, which costs it `cost`.
    pub(super) fn admitted(&self, at: Nanos, cost: Span) -> Result<(), Broken> {
        match self.slots.get(&at) {
            Some(before) if *before > Nanos::default() && at.since(*before) < cost => {
                let gap = at.since(*before).get();
                Err(format!("a batch that costs {} ns follows after {gap} ns", cost.get()))
            }
            Some(_) => Ok(()),
            None => Err("a request goes without a slot".to_owned()),
        }
    }
}
