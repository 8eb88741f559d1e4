//! The end of a run: all streams end, nothing fails any more, and time passes. Then nothing may be held.

use std::collections::BTreeMap;

use sentinel_core::ledger::{Ledger, permits::PermitLedger};
use sentinel_wire::{
    ledger::{self, Value},
    workers::Seeds,
};

use super::{Exchange, NAMES, Stream, WORKERS, World};

impl World<'_> {
    /// Ends everything, and holds what is left against what must be.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.note("from here on nothing fails".to_owned());
        self.process.borrow_mut().failing = 0;
        self.quiet(300, 10)?;
        let is_clean = self.plan.failing == 0 && !self.plan.is_rude && !self.plan.reconfigures;
        if is_clean && let Some((vm, id)) = self.waiting() {
            return Err(format!(
                "stream {id} of {} still waits, longer than any rule allows",
                NAMES.get(vm).unwrap_or(&"?")
            ));
        }
        let all: Vec<(usize, u32)> = self.streams.keys().copied().collect();
        for (vm, id) in all {
            self.end(vm, id)?;
        }
        // Where a timer could not be armed the next stream is what wakes a worker.
        for vm in WORKERS {
            if self.roots.get(vm).is_some_and(Vec::is_empty) {
                let root = self.create(vm, 0, Exchange::default())?;
                self.configure(vm, root, super::configuration(vm).into())?;
            }
            let root = self.roots.get(vm).and_then(|roots| roots.last()).copied().unwrap_or(0);
            let mut exchange = Exchange::default();
            exchange.request.push((b":method".into(), b"GET".into()));
            exchange.request.push((b":path".into(), b"/last".into()));
            let id = self.create(vm, root, exchange)?;
            self.streams.insert((vm, id), Stream::default());
            self.enter(vm, id, false)?;
            self.end(vm, id)?;
        }
        self.quiet(100, 10)?;
        // Longer than workerTtlMs and orphanTtlMs of `service.yaml`, and than the defaults.
        self.quiet(200, 1_000)?;
        self.nothing_is_held()?;
        if is_clean
            && !self.plan.restarts
            && self.plan.has_service
            && !self.process.borrow().has_no_statistics
        {
            self.statistics_add_up()?;
        }
        Ok(())
    }

    /// Nothing but time and timers, and what they bring about.
    fn quiet(&mut self, rounds: u32, each_ms: u64) -> Result<(), String> {
        for _ in 0..rounds {
            self.pass(each_ms * 1_000_000)?;
            self.process_events()?;
        }
        Ok(())
    }

    fn waiting(&self) -> Option<(usize, u32)> {
        self.streams.iter().find(|(_, stream)| stream.waits).map(|(key, _)| *key)
    }

    /// No permit is held by whoever still refreshes what it holds.
    fn nothing_is_held(&self) -> Result<(), String> {
        const RECENT_NS: u64 = 90_000_000_000;
        let process = self.process.borrow();
        // The clock of all VMs is monotonic time and what the first of them has found the wall clock ahead of it.
        let Some(seeds) = process
            .data
            .get(&b"sentinel/seeds"[..])
            .and_then(|(seeds, _)| Seeds::decode(seeds).ok())
        else {
            return Ok(());
        };
        let now = process.now_ns.saturating_add(seeds.t0_ns);
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for (key, (value, _)) in &process.data {
            let key = String::from_utf8_lossy(key);
            if !key.starts_with("sentinel/l/") && !key.starts_with("sentinel/t/") {
                continue;
            }
            let Ok((_, value)) = ledger::decode(value) else {
                return Err(format!("{key} holds what is no ledger"));
            };
            let permits = |ledger: &Ledger| match ledger {
                Ledger::Permits(PermitLedger { holders }) => holders
                    .iter()
                    .filter(|holder| holder.seen.get().saturating_add(RECENT_NS) > now)
                    .map(|holder| holder.permits)
                    .sum(),
                Ledger::Rate(_) | Ledger::Pace(_) | Ledger::Bucket(_) | Ledger::Breaker(_) => 0,
            };
            let count: u64 = match &value {
                Value::Single(ledger) => permits(ledger),
                Value::Set(_, set) => set.entries.iter().map(|(_, ledger)| permits(ledger)).sum(),
            };
            if count > 0 {
                held.insert(key.into_owned(), count);
            }
        }
        if held.is_empty() {
            Ok(())
        } else {
            Err(format!("permits are held though no stream lives: {held:?}"))
        }
    }

    /// What came in has gone out.
    fn statistics_add_up(&self) -> Result<(), String> {
        let process = self.process.borrow();
        for (name, value) in process.statistics() {
            let rests =
                [".in_flight", ".waiting", ".permits_owed"].iter().any(|end| name.ends_with(end));
            if rests && value != 0 {
                return Err(format!("{name} is {value} though no stream lives"));
            }
        }
        let [passed, ended] =
            ["sentinel.pass_total", "sentinel.complete_total"].map(|name| process.statistic(name));
        if passed != ended {
            return Err(format!("{passed} requests were admitted, but {ended} have ended"));
        }
        Ok(())
    }
}
