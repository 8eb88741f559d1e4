//! Requests at a time, as the upstream sees them.

use std::collections::{BTreeMap, BTreeSet};

use sentinel_core::{
    ledger::{
        permits::{Holder, PermitLedger},
        rate::whole_tokens,
    },
    time::{Nanos, Span},
};

use super::{Broken, Row, TICK};

/// All permits of one rule.
#[derive(Debug, Default)]
pub(super) struct PermitBook {
    ledgers: BTreeMap<u128, PermitLedger>,
    /// Admitted requests that have not ended at the upstream, whoever lives: by what they are counted by.
    in_flight: BTreeMap<String, BTreeSet<u64>>,
    most: u64,
    /// Whether a worker has gone for good and left room, so that one that comes back is above the threshold.
    reaped: bool,
    refused: Option<Row>,
}

impl PermitBook {
    pub(super) fn store(
        &mut self,
        hash: u128,
        ledger: &PermitLedger,
        threshold: f64,
        now: Nanos,
        ttl: Span,
    ) -> Result<(), Broken> {
        self.most = self.most.max(whole_tokens(threshold));
        let held: u64 = ledger.holders.iter().map(|holder| holder.permits).sum();
        let old = self.ledgers.insert(hash, ledger.clone()).unwrap_or_default();
        let is_gone = |incarnation| ledger.holders.iter().all(|new| new.incarnation != incarnation);
        let gone = old.holders.iter().filter(|old| is_gone(old.incarnation));
        let (silent, fresh): (Vec<&Holder>, Vec<&Holder>) =
            gone.partition(|old| now.since(old.seen) > ttl);
        // One may have given back all of its own.
        if fresh.len() > 1 {
            return Err(format!("{} workers lose their permits in one write", fresh.len()));
        }
        self.reaped |= silent.iter().any(|holder| holder.permits > 0);
        if held > self.most && !self.reaped {
            return Err(format!("{held} permits are held, and {} are the most", self.most));
        }
        Ok(())
    }

    /// A ledger is forgotten: whoever is in flight would not be counted any more.
    pub(super) fn forget(&mut self, hash: u128, now: Nanos, ttl: Span) -> Result<(), Broken> {
        match self.ledgers.remove(&hash) {
            Some(ledger) if !ledger.is_idle(now, ttl) => {
                Err("a value with requests in flight was forgotten".to_owned())
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn admitted(&mut self, key: &str, stream: u64) -> Result<(), Broken> {
        self.refused = None;
        let streams = self.in_flight.entry(key.to_owned()).or_default();
        streams.insert(stream);
        let in_flight = streams.len() as u64;
        if in_flight > self.most {
            return Err(format!("{in_flight} are in flight, and {} are the most", self.most));
        }
        let held = self.held();
        let all: u64 = self.in_flight.values().map(|streams| streams.len() as u64).sum();
        if held < all && !self.reaped {
            return Err(format!("{all} are in flight, and only {held} permits are held"));
        }
        Ok(())
    }

    /// A request was refused: there must be none left, or a worker keeps one that it does not need.
    pub(super) fn refused(&mut self, key: &str, batch: u64, now: Nanos) -> Result<(), Broken> {
        let in_flight = self.in_flight.get(key).map_or(0, |streams| streams.len() as u64);
        if in_flight + batch > self.most {
            self.refused = None;
            return Ok(());
        }
        let row = Row::go_on(self.refused, now);
        self.refused = Some(row);
        // One that has just become idle is kept until a whole tick has passed without use: that is the second one from
        // there, unless somebody has asked for it.
        if row.length() > Span::new(2 * TICK.get()) {
            let for_ms = row.length().as_millis();
            return Err(format!(
                "it refuses for {for_ms} ms though only {in_flight} of {} are in flight",
                self.most
            ));
        }
        Ok(())
    }

    pub(super) fn ended(&mut self, stream: u64) {
        for streams in self.in_flight.values_mut() {
            streams.remove(&stream);
        }
    }

    /// Permits of these workers.
    pub(super) fn held_by(&self, workers: &[u64]) -> u64 {
        let holders = self.ledgers.values().flat_map(|ledger| &ledger.holders);
        let theirs = holders.filter(|holder| workers.contains(&holder.incarnation));
        theirs.map(|holder| holder.permits).sum()
    }

    fn held(&self) -> u64 {
        let holders = self.ledgers.values().flat_map(|ledger| &ledger.holders);
        holders.map(|holder| holder.permits).sum()
    }
}
