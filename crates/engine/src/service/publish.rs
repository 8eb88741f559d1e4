//! The rule set on its way to the workers.
//!
//! The service allots each rule a ledger slot, lowest free first, and a generation that only grows: a
//! thousand changes use no more keys than the largest set had rules, and a worker that is behind can
//! never write into a ledger that belongs to another rule by now. A rule that counts what an old one
//! counted goes on with its ledger, whatever its new threshold (semantics 1.12).

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use sentinel_core::{config::ServiceConfig, ledger::whole_tokens, rule::Rule};
use sentinel_wire::{
    DecodeError,
    key::Key,
    rules::{self, RuleEntry, RuleSetHeader, RuleSetReader},
};

use super::announce;
use crate::{
    host::{Host, Meter},
    shared::{Shared, Then},
    telemetry::{Metric, of_rule},
};

/// What this instance has published, or found published.
#[derive(Debug, Default)]
pub(super) struct Publication {
    version: u64,
    /// Gauges of all rules that ever were, so that one that is gone shows 0.
    thresholds: BTreeMap<String, Metric>,
}

impl Publication {
    /// The newest version this instance knows of; 0 for none.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Puts the configured rules in force if there is no rule set at all.
    pub(super) fn put_first<H: Host>(&mut self, host: &mut H, shared: &mut Shared, config: &ServiceConfig) {
        self.put(host, shared, config, false);
    }

    /// Publishes the configured rules if they differ from those in force.
    pub(super) fn publish<H: Host + Meter>(&mut self, host: &mut H, shared: &mut Shared, config: &ServiceConfig) {
        self.put(host, shared, config, true);
        self.show_thresholds(host, config);
    }

    fn put<H: Host>(&mut self, host: &mut H, shared: &mut Shared, config: &ServiceConfig, replace: bool) {
        let updated = shared.update(host, Key::Rules, |found, written| {
            let old = match found.map(RuleSet::decode) {
                Some(Ok(old)) if !replace || old.says(config) => return (Then::Keep, Put::Kept(old.header.version)),
                Some(Ok(old)) => old,
                // A newer module has published: it knows better.
                Some(Err(DecodeError::Newer { .. })) => return (Then::Keep, Put::Refused),
                Some(Err(DecodeError::Malformed)) | None => RuleSet::default(),
            };
            let new = old.followed_by(config);
            match rules::encode(&new.header, &new.entries) {
                Some(bytes) => {
                    *written = bytes;
                    (Then::Write, Put::Published(new.header.version))
                }
                None => (Then::Keep, Put::Refused),
            }
        });
        match updated.map(|updated| updated.result) {
            Ok(Put::Published(version)) => {
                self.version = version;
                announce(host);
            }
            Ok(Put::Kept(version)) => self.version = version,
            Ok(Put::Refused) => {
                log::error!("the rule set is larger than 8 MiB, or a newer module has published one: not published");
            }
            Err(error) => log::error!("the rule set could not be published: {error:?}"),
        }
    }

    fn show_thresholds<M: Meter>(&mut self, meter: &mut M, config: &ServiceConfig) {
        for (id, gauge) in &mut self.thresholds {
            gauge.set(meter, 0, |text| of_rule(id, None, "threshold", text));
        }
        let bound = usize::try_from(config.series_max).unwrap_or(usize::MAX);
        for rule in config.rules.iter().take(bound) {
            let Rule::Flow(flow) = rule;
            let gauge = self.thresholds.entry(flow.id.clone()).or_default();
            gauge.set(meter, whole_tokens(flow.threshold), |text| of_rule(&flow.id, None, "threshold", text));
        }
    }
}

enum Put {
    Published(u64),
    Kept(u64),
    Refused,
}

/// A whole rule set, decoded.
#[derive(Default)]
struct RuleSet {
    header: RuleSetHeader,
    entries: Vec<RuleEntry>,
}

impl RuleSet {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, mut reader) = RuleSetReader::open(bytes.to_vec())?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(Self { header, entries })
    }

    /// Whether this set says what `config` says.
    fn says(&self, config: &ServiceConfig) -> bool {
        self.header.settings == config.settings
            && self.header.metrics_resources == config.metrics_resources
            && self.header.series_max == config.series_max
            && self.entries.len() == config.rules.len()
            && self.entries.iter().zip(&config.rules).all(|(entry, rule)| entry.rule == *rule)
    }

    /// The set that `config` asks for, after this one.
    fn followed_by(&self, config: &ServiceConfig) -> Self {
        let mut next_generation = self.header.next_generation.max(1);
        let mut allotted: Vec<Option<(u32, u64)>> = self.ledgers_kept(&config.rules);
        let mut taken: Vec<u32> = allotted.iter().flatten().map(|(slot, _)| *slot).collect();
        taken.sort_unstable();
        let mut free = (0..u32::MAX).filter(|slot| taken.binary_search(slot).is_err());
        for place in allotted.iter_mut().filter(|place| place.is_none()) {
            *place = free.next().map(|slot| (slot, next_generation));
            next_generation = next_generation.saturating_add(1);
        }
        let entries: Vec<RuleEntry> = config
            .rules
            .iter()
            .zip(allotted)
            .filter_map(|(rule, place)| {
                let (slot, generation) = place?;
                Some(RuleEntry { slot, generation, rule: rule.clone() })
            })
            .collect();
        let header = RuleSetHeader {
            version: self.header.version.saturating_add(1),
            next_generation,
            settings: config.settings.clone(),
            metrics_resources: config.metrics_resources.clone(),
            series_max: config.series_max,
            rules: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        };
        Self { header, entries }
    }

    /// For each new rule the ledger that it goes on with: that of the old rule of the same id, else that
    /// of an old rule whose id is gone, if both count the same.
    fn ledgers_kept(&self, rules: &[Rule]) -> Vec<Option<(u32, u64)>> {
        let mut old: BTreeMap<&str, &RuleEntry> = self.entries.iter().map(|entry| (entry.rule.id(), entry)).collect();
        let mut kept: Vec<Option<(u32, u64)>> = rules
            .iter()
            .map(|rule| {
                let same = old.get(rule.id()).filter(|entry| entry.rule.counts_the_same_as(rule))?;
                let place = (same.slot, same.generation);
                old.remove(rule.id());
                Some(place)
            })
            .collect();
        let mut by_resource: BTreeMap<&str, Vec<&RuleEntry>> = BTreeMap::new();
        for entry in old.into_values() {
            by_resource.entry(entry.rule.resource()).or_default().push(entry);
        }
        for (place, rule) in kept.iter_mut().zip(rules).filter(|(place, _)| place.is_none()) {
            let Some(left) = by_resource.get_mut(rule.resource()) else { continue };
            if let Some(index) = left.iter().position(|entry| entry.rule.counts_the_same_as(rule)) {
                let entry = left.swap_remove(index);
                *place = Some((entry.slot, entry.generation));
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use sentinel_core::rule::{Common, FlowRule};

    use super::*;

    fn flow(id: &str, resource: &str, threshold: f64, stat_interval_ms: u32) -> Rule {
        Rule::Flow(FlowRule {
            id: id.to_string(),
            resource: resource.to_string(),
            threshold,
            stat_interval_ms,
            common: Common::default(),
        })
    }

    fn config(rules: Vec<Rule>) -> ServiceConfig {
        ServiceConfig { rules, ..ServiceConfig::default() }
    }

    fn places(set: &RuleSet) -> Vec<(&str, u32, u64)> {
        set.entries.iter().map(|entry| (entry.rule.id(), entry.slot, entry.generation)).collect()
    }

    #[test]
    fn a_changed_threshold_keeps_its_ledger_and_a_changed_window_gets_a_new_one() {
        let first = RuleSet::default().followed_by(&config(vec![flow("a", "r", 5.0, 20_000), flow("b", "r", 1.0, 1_000)]));
        assert_eq!(places(&first), [("a", 0, 1), ("b", 1, 2)]);

        let second = first.followed_by(&config(vec![flow("a", "r", 8.0, 20_000), flow("b", "r", 1.0, 2_000)]));
        assert_eq!(places(&second), [("a", 0, 1), ("b", 1, 3)]);
        assert_eq!(second.header.version, 2);
    }

    #[test]
    fn an_inserted_rule_shifts_nobody_and_a_freed_slot_is_used_again() {
        let first = RuleSet::default().followed_by(&config(vec![flow("a", "r", 1.0, 0), flow("b", "s", 1.0, 0)]));
        let second = first.followed_by(&config(vec![flow("new", "q", 1.0, 0), flow("b", "s", 1.0, 0)]));

        assert_eq!(places(&second), [("new", 0, 3), ("b", 1, 2)]);
    }

    #[test]
    fn a_rule_that_only_changed_its_name_goes_on() {
        let first = RuleSet::default().followed_by(&config(vec![flow("a", "r", 1.0, 1_000)]));
        let second = first.followed_by(&config(vec![flow("z", "r", 1.0, 1_000)]));

        assert_eq!(places(&second), [("z", 0, 1)]);
    }
}
