//! The rule set on its way to the workers.
//!
//! The service allots each rule a ledger slot, lowest free first, and a generation that only grows: a
//! thousand changes use no more keys than the largest set had rules, and a worker that is behind can
//! never write into a ledger that belongs to another rule by now. A rule that counts what an old one
//! counted goes on with its ledger, whatever its new threshold (semantics 1.12).

use alloc::{string::String, vec::Vec};

use sentinel_core::{config::ServiceConfig, ledger::whole_tokens, order::order_of, rule::Rule};
use sentinel_wire::{
    DecodeError,
    key::Key,
    rules::{self, RuleEntry, RuleSetHeader, RuleSetReader},
};

use super::announce;
use crate::{
    host::{Host, Meter},
    shared::{Shared, Then},
    table::Table,
    telemetry::{Metric, of_rule},
};

/// What this instance has published, or found published.
#[derive(Debug, Default)]
pub(super) struct Publication {
    version: u64,
    /// Gauges of all rules that ever were, by resource and id, so that one that is gone shows 0.
    thresholds: Table<(String, String), Metric>,
}

impl Publication {
    /// The newest version this instance knows of; 0 for none.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Puts the configured rules in force if there is no rule set at all.
    pub(super) fn put_first<H: Host>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        config: &ServiceConfig,
    ) {
        self.put(host, shared, config, false);
    }

    /// Publishes the configured rules if they differ from those in force.
    pub(super) fn publish<H: Host + Meter>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        config: &ServiceConfig,
    ) {
        self.put(host, shared, config, true);
        self.show_thresholds(host, config);
    }

    fn put<H: Host>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        config: &ServiceConfig,
        replace: bool,
    ) {
        let updated = shared.update(host, Key::Rules, |found, written| {
            let old = match found.map(RuleSet::decode) {
                Some(Ok(old)) if !replace || old.says(config) => {
                    return (Then::Keep, Put::Kept(old.header.version));
                }
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
                log::error!(
                    "the rule set is larger than 8 MiB, or a newer module has published one: not published"
                );
            }
            Err(error) => log::error!("the rule set could not be published: {error:?}"),
        }
    }

    fn show_thresholds<M: Meter>(&mut self, meter: &mut M, config: &ServiceConfig) {
        for ((resource, id), gauge) in self.thresholds.iter_mut() {
            gauge.set(meter, 0, |text| of_rule(resource, id, "threshold", text));
        }
        let bound = usize::try_from(config.series_max).unwrap_or(usize::MAX);
        for rule in &config.rules {
            let Rule::Flow(flow) = rule;
            let of = (flow.resource.clone(), flow.id.clone());
            if self.thresholds.len() >= bound && self.thresholds.get(&of).is_none() {
                continue;
            }
            let Some(gauge) = self.thresholds.get_or_insert_with(of, Metric::default) else {
                continue;
            };
            let (resource, id) = (&flow.resource, &flow.id);
            gauge.set(meter, whole_tokens(flow.threshold), |text| {
                of_rule(resource, id, "threshold", text);
            });
        }
    }
}

/// What a configuration says, as bytes: two that say the same have the same.
pub(super) fn meaning(config: &ServiceConfig) -> Vec<u8> {
    let set = RuleSet::default().followed_by(config);
    rules::encode(&set.header, &set.entries).unwrap_or_default()
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
            && config.rules.iter().all(|rule| self.holds(rule))
    }

    fn holds(&self, rule: &Rule) -> bool {
        let place = self.entries.binary_search_by(|entry| entry.rule.id().cmp(rule.id()));
        place
            .ok()
            .and_then(|place| self.entries.get(place))
            .is_some_and(|entry| entry.rule == *rule)
    }

    /// The set that `config` asks for, after this one.
    fn followed_by(&self, config: &ServiceConfig) -> Self {
        let mut next_generation = self.header.next_generation.max(1);
        let mut allotted: Vec<Option<(u32, u64)>> = self.ledgers_kept(&config.rules);
        let mut taken: Table<u32, ()> = Table::default();
        for (slot, _) in allotted.iter().flatten() {
            taken.get_or_insert_with(*slot, || ());
        }
        let mut free = (0..u32::MAX).filter(|slot| taken.get(slot).is_none());
        for place in allotted.iter_mut().filter(|place| place.is_none()) {
            *place = free.next().map(|slot| (slot, next_generation));
            next_generation = next_generation.saturating_add(1);
        }
        // The order in which every worker claims: by kind (there is one so far), then by id.
        let id = |index: usize| config.rules.get(index).map(Rule::id);
        let claim_order = order_of(config.rules.len(), &|a, b| id(a).cmp(&id(b)));
        let entry = |index: usize| {
            let (slot, generation) = allotted.get(index).copied().flatten()?;
            Some(RuleEntry { slot, generation, rule: config.rules.get(index)?.clone() })
        };
        let entries: Vec<RuleEntry> = claim_order.into_iter().filter_map(entry).collect();
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
        let mut left: Table<&str, &RuleEntry> = Table::default();
        for entry in &self.entries {
            left.get_or_insert_with(entry.rule.id(), || entry);
        }
        let mut kept: Vec<Option<(u32, u64)>> = Vec::with_capacity(rules.len());
        for rule in rules {
            let same = left.get(&rule.id()).filter(|entry| entry.rule.counts_the_same_as(rule));
            kept.push(same.map(|entry| (entry.slot, entry.generation)));
        }
        for rule in rules {
            left.remove(&rule.id());
        }
        for (place, rule) in kept.iter_mut().zip(rules).filter(|(place, _)| place.is_none()) {
            let same_count = left.iter().find(|(_, entry)| entry.rule.counts_the_same_as(rule));
            if let Some((id, entry)) = same_count.map(|(id, entry)| (*id, *entry)) {
                left.remove(&id);
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
        let first = RuleSet::default()
            .followed_by(&config(vec![flow("a", "r", 5.0, 20_000), flow("b", "r", 1.0, 1_000)]));
        assert_eq!(places(&first), [("a", 0, 1), ("b", 1, 2)]);

        let second = first
            .followed_by(&config(vec![flow("a", "r", 8.0, 20_000), flow("b", "r", 1.0, 2_000)]));
        assert_eq!(places(&second), [("a", 0, 1), ("b", 1, 3)]);
        assert_eq!(second.header.version, 2);
    }

    #[test]
    fn an_inserted_rule_shifts_nobody_and_a_freed_slot_is_used_again() {
        let first = RuleSet::default()
            .followed_by(&config(vec![flow("a", "r", 1.0, 0), flow("b", "s", 1.0, 0)]));
        let second =
            first.followed_by(&config(vec![flow("new", "q", 1.0, 0), flow("b", "s", 1.0, 0)]));

        assert_eq!(places(&second), [("b", 1, 2), ("new", 0, 3)]);
    }

    #[test]
    fn a_rule_that_only_changed_its_name_goes_on() {
        let first = RuleSet::default().followed_by(&config(vec![flow("a", "r", 1.0, 1_000)]));
        let second = first.followed_by(&config(vec![flow("z", "r", 1.0, 1_000)]));

        assert_eq!(places(&second), [("z", 0, 1)]);
    }
}
