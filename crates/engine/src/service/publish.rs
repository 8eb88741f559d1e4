//! The rule set on its way to the workers.
//!
//! The service allots each rule its place in shared data, lowest free first, and a generation that only grows: a
//! thousand changes use few more keys than the largest set had rules, and a worker that is behind can never
//! write into a ledger that belongs to another rule by now. A rule that counts what an old one counted goes
//! on with its ledger, whatever its new threshold (semantics 1.12). One that counts something else by now begins anew
//! in its own place, so that nobody goes on admitting by what it said before.
//!
//! A place that is left rests until every worker that lives has taken up the set without it: only then may another rule
//! have it. Else a worker that is behind would find another's ledger where its own was, and could not tell what holds
//! for the request in its hands without reading the whole new set.
//!
//! Nothing here compares every rule with every other: Envoy's main thread stands still meanwhile, and a set may
//! have ten thousand.

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};
use core::cmp::Ordering;

use sentinel_core::{
    config::ServiceConfig,
    ledger::{rate::whole_tokens, set::sets_for},
    order::{order_of, sort_by},
    rule::{
        Keeps, Rule, SystemMetric, TokenCalculate,
        compile::{matched_capacity, table_bytes},
    },
    time::Nanos,
};
use sentinel_wire::{
    DecodeError,
    key::Key,
    rules::{self, RuleEntry, RuleSetHeader, RuleSetReader},
};

use super::{announce, sources::identity};
use crate::{
    census,
    host::{Host, Meter},
    shared::{Shared, Then},
    telemetry::{Metric, of_rule},
};

/// The gauge of a rule's effective threshold.
pub(super) const THRESHOLD: &str = "threshold";

/// The gauge of a breaker's state.
pub(super) const BREAKER_STATE: &str = "breaker_state";

/// What this instance has published, or found published.
#[derive(Debug, Default)]
pub(super) struct Publication {
    version: u64,
    /// Whether the host would not take the last set: then it is put again.
    is_owed: bool,
    /// Places that were left, in the order in which they were.
    resting: Vec<Resting>,
    /// Of all rules that ever were, in the order of their names, so that one that is gone shows 0.
    gauges: Vec<RuleGauge>,
}

/// Ledgers, or sets of a table, that no rule has now, but of which a worker may still think that one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resting {
    what: Kind,
    /// The first, and how many.
    range: (u32, u32),
    /// What may still stand in them.
    bytes: u64,
    /// The first set without them.
    since: u64,
}

/// Ledgers and sets of tables have numbers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ledger,
    Table,
}

impl Kind {
    fn of(is_table: bool) -> Self {
        if is_table { Self::Table } else { Self::Ledger }
    }
}

/// Lets go, those left first first, what is too much: tables must stay within their bound with those that rest.
fn keep_within(resting: &mut Vec<Resting>, config: &ServiceConfig, matched: u32) {
    let of_rules = config.rules.iter().map(|rule| table_bytes(rule, matched));
    let used = of_rules.fold(0, u64::saturating_add);
    let mut left = u64::from(config.settings.param_table_bytes).saturating_sub(used);
    let mut first = resting.len();
    for newest in resting.iter().rev().take(RESTING_MAX) {
        let Some(rest) = left.checked_sub(newest.bytes) else { break };
        left = rest;
        first = first.saturating_sub(1);
    }
    resting.drain(..first);
}

/// The most places that rest at a time; beyond, the one that was left first is given away.
const RESTING_MAX: usize = 10_000;

/// The one gauge of a rule.
#[derive(Debug)]
struct RuleGauge {
    resource: String,
    id: String,
    what: &'static str,
    metric: Metric,
}

impl Publication {
    /// The newest version this instance knows of; 0 for none.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether a set is still to be published.
    pub(super) fn is_owed(&self) -> bool {
        self.is_owed
    }

    /// Puts the configured rules in force if there is no rule set at all.
    pub(super) fn put_first<H: Host>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        config: &ServiceConfig,
    ) {
        self.put(host, shared, config, None);
    }

    /// Publishes the configured rules if they differ from those in force, and returns the entries of those
    /// for which the service decides something. `None` if they are not in force.
    pub(super) fn publish<H: Host + Meter>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        config: &ServiceConfig,
        now: Nanos,
    ) -> Option<Vec<RuleEntry>> {
        let entries = self.put(host, shared, config, Some(now));
        self.show_thresholds(host, config);
        entries
    }

    fn put<H: Host>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        config: &ServiceConfig,
        replace: Option<Nanos>,
    ) -> Option<Vec<RuleEntry>> {
        if let Some(now) = replace.filter(|_| !self.resting.is_empty()) {
            let oldest = census::oldest_version(host, shared, now).unwrap_or(u64::MAX);
            self.resting.retain(|resting| resting.since > oldest);
        }
        let resting = &self.resting;
        let updated = shared.update(host, Key::Rules, |found, written| {
            let old = match found.map(RuleSet::decode) {
                Some(Ok(old)) if replace.is_none() => return (Then::Keep, Some((old, None))),
                Some(Ok(old)) => old,
                // A newer module has published: it knows better.
                Some(Err(DecodeError::Newer { .. })) => return (Then::Keep, None),
                Some(Err(DecodeError::Malformed)) | None => RuleSet::default(),
            };
            let (mut header, entries, left) = old.followed_by(config, resting);
            // What says the same is not written again.
            if found.is_some() && rules::encode(&header, &entries).as_deref() == found {
                return (Then::Keep, Some((old, None)));
            }
            header.version = header.version.saturating_add(1);
            match rules::encode(&header, &entries) {
                Some(bytes) => {
                    let new = RuleSet::decode(&bytes).ok();
                    *written = bytes;
                    (Then::Write, new.map(|new| (new, Some(left))))
                }
                None => (Then::Keep, None),
            }
        });
        self.is_owed = updated.is_err();
        match updated.map(|updated| updated.result) {
            Ok(Some((mut set, left))) => {
                self.version = set.header.version;
                if let Some(left) = left {
                    self.resting = left;
                    announce(host);
                }
                set.entries.retain(|entry| entry.rule.needs_service());
                Some(set.entries)
            }
            Ok(None) => {
                log::error!(
                    "the rule set is larger than 8 MiB, or a newer module has published one: not published"
                );
                None
            }
            Err(error) => {
                log::error!("the rule set could not be published: {error:?}");
                None
            }
        }
    }

    /// Shows `value` as what `rule`'s gauge says.
    pub(super) fn show<M: Meter>(&mut self, meter: &mut M, rule: &Rule, value: u64) {
        let (resource, id, what) = (rule.resource(), rule.id(), gauge_of(rule));
        if let Ok(place) = self.gauge(resource, id, what)
            && let Some(gauge) = self.gauges.get_mut(place)
        {
            gauge.metric.set(meter, value, |text| of_rule(resource, id, what, text));
        }
    }

    fn show_thresholds<M: Meter>(&mut self, meter: &mut M, config: &ServiceConfig) {
        for gauge in &mut self.gauges {
            let (resource, id, what) = (&gauge.resource, &gauge.id, gauge.what);
            gauge.metric.set(meter, 0, |text| of_rule(resource, id, what, text));
        }
        let bound = usize::try_from(config.series_max).unwrap_or(usize::MAX);
        let mut new: Vec<RuleGauge> = Vec::new();
        for rule in &config.rules {
            let (resource, id, what) = (rule.resource(), rule.id(), gauge_of(rule));
            let is_there = self.gauge(resource, id, what).is_ok();
            if is_there || self.gauges.len().saturating_add(new.len()) >= bound {
                continue;
            }
            let (resource, id) = (resource.to_string(), id.to_string());
            new.push(RuleGauge { resource, id, what, metric: Metric::default() });
        }
        self.gauges.append(&mut new);
        sort_by(&mut self.gauges, |a, b| by_name(&a.resource, &a.id, a.what, b));
        for rule in &config.rules {
            self.show(meter, rule, configured_threshold(rule));
        }
    }

    fn gauge(&self, resource: &str, id: &str, what: &str) -> Result<usize, usize> {
        self.gauges.binary_search_by(|gauge| by_name(resource, id, what, gauge).reverse())
    }
}

/// What a configuration says, as bytes: two that say the same have the same.
pub(super) fn meaning(config: &ServiceConfig) -> Vec<u8> {
    let (header, entries, _) = RuleSet::default().followed_by(config, &[]);
    let mut bytes = rules::encode(&header, &entries).unwrap_or_default();
    bytes.extend_from_slice(config.envoy_stats.as_deref().unwrap_or_default().as_bytes());
    for source in &config.sources {
        bytes.extend_from_slice(identity(source).as_bytes());
    }
    bytes
}

fn by_name(resource: &str, id: &str, what: &str, gauge: &RuleGauge) -> Ordering {
    resource.cmp(&gauge.resource).then_with(|| id.cmp(&gauge.id)).then_with(|| what.cmp(gauge.what))
}

fn gauge_of(rule: &Rule) -> &'static str {
    if rule.keeps() == Keeps::Breaker { BREAKER_STATE } else { THRESHOLD }
}

/// What a rule's gauge shows before anything has moved it: of a CPU rule percent, of a breaker that it is closed.
fn configured_threshold(rule: &Rule) -> u64 {
    match rule {
        Rule::Authority(_) | Rule::CircuitBreaker(_) => 0,
        Rule::System(rule) => {
            let is_cpu = matches!(rule.metric, SystemMetric::CpuUsage { .. });
            whole_tokens(if is_cpu { rule.trigger * 100.0 } else { rule.trigger })
        }
        Rule::Flow(flow) => match &flow.calculate {
            TokenCalculate::Direct | TokenCalculate::WarmUp(_) => whole_tokens(flow.threshold),
            TokenCalculate::MemoryAdaptive(marks) => whole_tokens(marks.threshold(None)),
        },
        Rule::Isolation(rule) => u64::from(rule.threshold),
        Rule::Gateway(rule) | Rule::Hotspot(rule) => rule.threshold,
    }
}

/// A whole rule set, decoded.
#[derive(Default)]
struct RuleSet {
    header: RuleSetHeader,
    /// In the order in which every worker claims.
    entries: Vec<RuleEntry>,
}

/// Where a rule is in shared data.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    generation: u64,
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

    /// What `config` asks for, after this set and as this version of it: where it says the same, the same. Nobody gets
    /// a place that is `resting`.
    fn followed_by<'c>(
        &self,
        config: &'c ServiceConfig,
        resting: &[Resting],
    ) -> (RuleSetHeader, Vec<RuleEntry<&'c Rule>>, Vec<Resting>) {
        let matched = matched_capacity(&config.rules.iter(), config.settings.param_table_bytes);
        let mut places = self.places_kept(&config.rules, matched);
        let mut next_generation = self.header.next_generation.max(1);
        let keeps = |rule: &Rule| rule.keeps() != Keeps::Nothing;
        let sets = |rule: &Rule| sets_of(rule, matched);
        let mut resting = resting.to_vec();
        self.leave(&config.rules, &places, &mut resting);
        keep_within(&mut resting, config, matched);
        let taken = |what| resting.iter().filter(move |resting| resting.what == what);
        allot(&config.rules, &mut places, taken(Kind::Ledger), &|rule| {
            (keeps(rule) && sets(rule) == 0).then_some(1)
        });
        allot(&config.rules, &mut places, taken(Kind::Table), &|rule| {
            Some(sets(rule)).filter(|sets| *sets > 0)
        });
        // Those that keep nothing are addressed by their generation all the same.
        for (place, rule) in places.iter_mut().zip(&config.rules) {
            if place.is_none() && rule.keeps() == Keeps::Nothing {
                *place = Some(Place { slot: 0, generation: 0 });
            }
            if let Some(place) = place.as_mut().filter(|place| place.generation == 0) {
                place.generation = next_generation;
                next_generation = next_generation.saturating_add(1);
            }
        }
        let entry = |index: usize| {
            let Place { slot, generation } = places.get(index).copied().flatten()?;
            let rule = config.rules.get(index)?;
            Some(RuleEntry { slot, sets: sets(rule), generation, rule })
        };
        let entries: Vec<RuleEntry<&'c Rule>> =
            claim_order(&config.rules).into_iter().filter_map(entry).collect();
        let header = RuleSetHeader {
            version: self.header.version,
            pending: config.pending,
            next_generation,
            settings: config.settings.clone(),
            metrics_resources: config.metrics_resources.clone(),
            series_max: config.series_max,
            rules: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        };
        (header, entries, resting)
    }

    /// Adds the places of this set where none of `rules` goes on.
    fn leave(&self, rules: &[Rule], places: &[Option<Place>], resting: &mut Vec<Resting>) {
        let is_table = |rule: &Rule| rule.table_capacity(1) > 0;
        let kept = rules.iter().zip(places).filter(|(rule, _)| rule.keeps() != Keeps::Nothing);
        let mut kept: Vec<(Kind, u32)> = kept
            .filter_map(|(rule, place)| Some((Kind::of(is_table(rule)), place.as_ref()?.slot)))
            .collect();
        sort_by(&mut kept, Ord::cmp);
        let most = self.header.settings.param_table_bytes;
        let matched = matched_capacity(&self.entries.iter().map(|entry| &entry.rule), most);
        for entry in self.entries.iter().filter(|entry| entry.rule.keeps() != Keeps::Nothing) {
            let what = Kind::of(entry.sets > 0);
            if kept.binary_search(&(what, entry.slot)).is_err() {
                resting.push(Resting {
                    what,
                    range: (entry.slot, entry.sets.max(1)),
                    bytes: table_bytes(&entry.rule, matched),
                    since: self.header.version.saturating_add(1),
                });
            }
        }
    }

    /// For each new rule the place that it goes on in: that of the old rule of the same id, even if that counts
    /// something else, but then anew; else that of an old rule whose id is gone, if both count the same.
    fn places_kept(&self, rules: &[Rule], matched: u32) -> Vec<Option<Place>> {
        let goes_on_as = |entry: &RuleEntry, rule: &Rule| {
            entry.sets == sets_of(rule, matched) && entry.rule.counts_the_same_as(rule)
        };
        // Where the old rule was, if the new one has a use for the like. The generation comes later.
        let begins_anew_in = |entry: &RuleEntry, rule: &Rule| {
            let keeps = |rule: &Rule| rule.keeps() != Keeps::Nothing;
            let fits = entry.sets == sets_of(rule, matched) && keeps(rule) && keeps(&entry.rule);
            (fits && rule.stands_for(&entry.rule))
                .then_some(Place { generation: 0, ..place_of(entry) })
        };
        let old = &self.entries;
        let by_id = order_of(old.len(), &|a, b| id_of(old, a).cmp(id_of(old, b)));
        let mut is_gone: Vec<bool> = old.iter().map(|_| true).collect();
        let mut kept: Vec<Option<Place>> = Vec::with_capacity(rules.len());
        for rule in rules {
            let found = by_id.binary_search_by(|&index| id_of(old, index).cmp(rule.id())).ok();
            let index = found.and_then(|place| by_id.get(place).copied());
            let entry = index.and_then(|index| old.get(index));
            if let Some(gone) = index.and_then(|index| is_gone.get_mut(index)) {
                *gone = false;
            }
            kept.push(entry.and_then(|entry| {
                let goes_on = goes_on_as(entry, rule).then(|| place_of(entry));
                goes_on.or_else(|| begins_anew_in(entry, rule))
            }));
        }

        // Only rules of one kind and one resource can count the same.
        let same_group = |a: &Rule, b: &Rule| {
            a.rank().cmp(&b.rank()).then_with(|| a.resource().cmp(b.resource()))
        };
        let mut left = order_of(old.len(), &|a, b| match (old.get(a), old.get(b)) {
            (Some(a), Some(b)) => same_group(&a.rule, &b.rule),
            (None, _) | (_, None) => Ordering::Equal,
        });
        left.retain(|index| is_gone.get(*index).copied().unwrap_or(false));
        for (place, rule) in kept.iter_mut().zip(rules).filter(|(place, _)| place.is_none()) {
            let order = |index: &usize| {
                old.get(*index).map_or(Ordering::Less, |entry| same_group(&entry.rule, rule))
            };
            let first = left.partition_point(|index| order(index) == Ordering::Less);
            let candidates = left.iter().enumerate().skip(first).take(CANDIDATES_MAX);
            let found = candidates
                .take_while(|(_, index)| order(index) == Ordering::Equal)
                .filter_map(|(at, index)| Some((at, old.get(*index)?)))
                .find(|(_, entry)| goes_on_as(entry, rule));
            if let Some((at, entry)) = found {
                *place = Some(place_of(entry));
                left.remove(at);
            }
        }
        kept
    }
}

/// With how many rules of its kind and resource, whose ids are gone, a rule with a new id is compared.
const CANDIDATES_MAX: usize = 100;

/// The order in which every worker claims: that of the checks, but pacing last; then by id.
fn claim_order(rules: &[Rule]) -> Vec<usize> {
    let rank = |rule: &Rule| (rule.keeps() == Keeps::Pace, rule.rank());
    order_of(rules.len(), &|a, b| match (rules.get(a), rules.get(b)) {
        (Some(a), Some(b)) => rank(a).cmp(&rank(b)).then_with(|| a.id().cmp(b.id())),
        (None, _) | (_, None) => Ordering::Equal,
    })
}

/// Gives each rule that has a size the place that it has not got yet, beside those that are resting.
fn allot<'r>(
    rules: &[Rule],
    places: &mut [Option<Place>],
    resting: impl Iterator<Item = &'r Resting>,
    size_of: &dyn Fn(&Rule) -> Option<u32>,
) {
    let mut taken: Vec<(u32, u32)> = resting.map(|resting| resting.range).collect();
    let mut wanted: Vec<(u32, u32)> = Vec::new();
    for ((place, rule), index) in places.iter().zip(rules).zip(0..) {
        let Some(size) = size_of(rule) else { continue };
        match place {
            Some(place) => taken.push((place.slot, size)),
            None => wanted.push((size, index)),
        }
    }
    for (index, slot) in first_fit(taken, wanted) {
        let place = usize::try_from(index).ok().and_then(|index| places.get_mut(index));
        if let Some(place) = place {
            // The generation comes when all have their places.
            *place = Some(Place { slot, generation: 0 });
        }
    }
}

/// How many sets the rule's table has; 0 if it keeps one ledger or none.
fn sets_of(rule: &Rule, matched: u32) -> u32 {
    let capacity = if rule.keeps() == Keeps::Nothing { 0 } else { rule.table_capacity(matched) };
    if capacity == 0 { 0 } else { sets_for(capacity) }
}

/// Finds for each that is `wanted` (its size, and whose it is) the first place that is free beside the ranges
/// that are `taken` (start, size). Small ones first, so that the search never has to go back.
fn first_fit(mut taken: Vec<(u32, u32)>, mut wanted: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    for list in [&mut taken, &mut wanted] {
        sort_by(list, Ord::cmp);
    }
    let mut taken = taken.into_iter().peekable();
    let mut free = 0_u32;
    let mut found = Vec::with_capacity(wanted.len());
    for (size, whose) in wanted {
        let Some(mut end) = free.checked_add(size) else { break };
        while let Some((start, length)) = taken.next_if(|(start, _)| *start < end) {
            free = free.max(start.saturating_add(length));
            end = free.saturating_add(size);
        }
        found.push((whose, free));
        free = end;
    }
    found
}

fn id_of(entries: &[RuleEntry], index: usize) -> &str {
    entries.get(index).map_or("", |entry| entry.rule.id())
}

fn place_of(entry: &RuleEntry) -> Place {
    Place { slot: entry.slot, generation: entry.generation }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use proptest::prelude::*;
    use sentinel_core::rule::{
        Common, Control, FlowRule, IsolationRule, LimitApp, SystemRule, Target,
        compile::MATCHED_CAPACITIES,
    };

    use super::*;

    fn flow_rule(id: &str, resource: &str, threshold: f64, stat_interval_ms: u32) -> FlowRule {
        FlowRule {
            id: id.to_string(),
            target: Target::Resource(resource.to_string()),
            limit_app: LimitApp::Default,
            threshold,
            stat_interval_ms,
            calculate: TokenCalculate::Direct,
            control: Control::Reject,
            ref_resource: None,
            common: Common::default(),
        }
    }

    fn flow(id: &str, resource: &str, threshold: f64, stat_interval_ms: u32) -> Rule {
        Rule::Flow(flow_rule(id, resource, threshold, stat_interval_ms))
    }

    fn pace(id: &str, resource: &str) -> Rule {
        let control = Control::Throttling { max_queueing_ms: 500 };
        Rule::Flow(FlowRule { control, ..flow_rule(id, resource, 1.0, 1_000) })
    }

    fn of_all(id: &str) -> Rule {
        Rule::Flow(FlowRule { target: Target::Default, ..flow_rule(id, "", 1.0, 1_000) })
    }

    fn associated(id: &str, resource: &str) -> Rule {
        let ref_resource = Some("other".to_string());
        Rule::Flow(FlowRule { ref_resource, ..flow_rule(id, resource, 1.0, 1_000) })
    }

    fn isolation(id: &str, target: Target) -> Rule {
        Rule::Isolation(IsolationRule {
            id: id.to_string(),
            target,
            threshold: 1,
            common: Common::default(),
        })
    }

    fn system(id: &str, metric: SystemMetric) -> Rule {
        let common = Common::default();
        Rule::System(SystemRule { id: id.to_string(), metric, trigger: 0.5, common })
    }

    fn config(rules: Vec<Rule>) -> ServiceConfig {
        ServiceConfig { rules, ..ServiceConfig::default() }
    }

    /// The set that `config` asks for after `old`.
    fn after(old: &RuleSet, config: &ServiceConfig) -> RuleSet {
        let (mut header, entries, _) = old.followed_by(config, &[]);
        header.version += 1;
        RuleSet::decode(&rules::encode(&header, &entries).unwrap()).unwrap()
    }

    fn places(set: &RuleSet) -> Vec<(&str, u32, u64)> {
        set.entries.iter().map(|entry| (entry.rule.id(), entry.slot, entry.generation)).collect()
    }

    #[test]
    fn a_changed_threshold_keeps_its_ledger_and_a_changed_window_begins_anew_in_its_place() {
        let first = after(
            &RuleSet::default(),
            &config(vec![flow("a", "r", 5.0, 20_000), flow("b", "r", 1.0, 1_000)]),
        );
        assert_eq!(places(&first), [("a", 0, 1), ("b", 1, 2)]);

        let second =
            after(&first, &config(vec![flow("a", "r", 8.0, 20_000), flow("b", "r", 1.0, 2_000)]));
        assert_eq!(places(&second), [("a", 0, 1), ("b", 1, 3)]);
        assert_eq!(second.header.version, 2);

        let third = after(&second, &config(vec![flow("a", "r", 8.0, 1_000), pace("b", "r")]));
        assert_eq!(places(&third), [("a", 0, 4), ("b", 1, 5)]);
    }

    #[test]
    fn an_inserted_rule_shifts_nobody_and_a_slot_that_was_left_is_used_again_when_it_has_rested() {
        let first = after(
            &RuleSet::default(),
            &config(vec![flow("a", "r", 1.0, 0), flow("b", "s", 1.0, 0)]),
        );
        let second = after(&first, &config(vec![flow("new", "q", 1.0, 0), flow("b", "s", 1.0, 0)]));

        assert_eq!(places(&second), [("b", 1, 2), ("new", 2, 3)]);

        let third = config(vec![flow("b", "s", 1.0, 0), flow("third", "t", 1.0, 0)]);
        let left = [Resting { what: Kind::Ledger, range: (0, 1), bytes: 0, since: 2 }];
        let (_, entries, resting) = second.followed_by(&third, &left);
        let slots: Vec<u32> = entries.iter().map(|entry| entry.slot).collect();
        assert_eq!(slots, [1, 3]);
        let again = Resting { range: (2, 1), since: 3, ..left[0] };
        assert_eq!(resting, [left[0], again]);
        assert_eq!(places(&after(&second, &third)), [("b", 1, 2), ("third", 0, 4)]);
    }

    #[test]
    fn tables_that_rest_do_not_take_the_room_of_those_in_use() {
        let twelve = |from: u32| {
            let rule = |n| isolation(&format!("p{n}"), Target::Pattern(format!("{n}/.*")));
            config((from..from + 12).map(rule).collect())
        };
        let first = after(&RuleSet::default(), &twelve(0));
        let second = twelve(12);
        let (_, entries, resting) = first.followed_by(&second, &[]);

        let matched = matched_capacity(&second.rules.iter(), second.settings.param_table_bytes);
        let used: u64 = second.rules.iter().map(|rule| table_bytes(rule, matched)).sum();
        let rests: u64 = resting.iter().map(|resting| resting.bytes).sum();
        assert!((1..12).contains(&resting.len()), "{}", resting.len());
        assert!(used + rests <= u64::from(second.settings.param_table_bytes));
        assert_eq!(entries.len(), 12);
    }

    #[test]
    fn a_rule_that_only_changed_its_name_goes_on() {
        let first = after(&RuleSet::default(), &config(vec![flow("a", "r", 1.0, 1_000)]));
        let second = after(&first, &config(vec![flow("z", "r", 1.0, 1_000)]));

        assert_eq!(places(&second), [("z", 0, 1)]);
    }

    #[test]
    fn rules_claim_in_the_order_of_checks_and_pacing_comes_last() {
        let set = after(
            &RuleSet::default(),
            &config(vec![
                pace("a", "r"),
                isolation("b", Target::Resource("r".to_string())),
                flow("d", "r", 1.0, 1_000),
                flow("c", "r", 1.0, 1_000),
                system("e", SystemMetric::InboundQps),
            ]),
        );

        let ids: Vec<&str> = set.entries.iter().map(|entry| entry.rule.id()).collect();
        assert_eq!(ids, ["e", "c", "d", "b", "a"]);
    }

    #[test]
    fn a_rule_that_keeps_nothing_takes_no_slot_and_has_a_generation() {
        let set = after(
            &RuleSet::default(),
            &config(vec![
                associated("a", "r"),
                flow("b", "r", 1.0, 1_000),
                system("c", SystemMetric::AvgRt),
            ]),
        );

        assert_eq!(places(&set), [("c", 0, 3), ("a", 0, 1), ("b", 0, 2)]);
    }

    #[test]
    fn tables_have_numbers_of_their_own_and_an_unchanged_rule_keeps_its_table() {
        let sets = sets_for(MATCHED_CAPACITIES[0]);
        let pattern = || isolation("p", Target::Pattern("a.*".to_string()));
        let first = after(
            &RuleSet::default(),
            &config(vec![of_all("d"), pattern(), flow("f", "r", 1.0, 1_000)]),
        );
        assert_eq!(places(&first), [("d", 0, 1), ("f", 0, 3), ("p", sets, 2)]);

        let second = after(&first, &config(vec![pattern(), of_all("new")]));
        assert_eq!(places(&second), [("new", 0, 1), ("p", sets, 2)], "`new` counts what `d` did");

        let third = after(&second, &config(vec![pattern()]));
        let fourth = after(&third, &config(vec![of_all("d"), pattern()]));
        assert_eq!(places(&fourth), [("d", 0, 4), ("p", sets, 2)]);
        assert!(fourth.entries.iter().all(|entry| entry.sets == sets));
    }

    #[test]
    fn with_many_patterns_tables_are_smaller_and_a_rule_more_shifts_nobody() {
        let rules = |count: u32| -> Vec<Rule> {
            let pattern =
                |n: u32| isolation(&format!("p{n:04}"), Target::Pattern(format!("{n}/.*")));
            (0..count).map(pattern).collect()
        };
        let first = after(&RuleSet::default(), &config(rules(10)));
        let second = after(&first, &config(rules(11)));
        assert_eq!(places(&first), places(&second)[..10]);

        // Too many for the largest tables: all begin anew with smaller ones.
        let third = after(&second, &config(rules(1_000)));
        assert!(third.entries.iter().all(|entry| entry.sets == 8 && entry.generation > 11));
        let fourth = after(&third, &config(rules(1_001)));
        assert_eq!(places(&third), places(&fourth)[..1_000]);
    }

    #[test]
    fn a_set_says_what_its_configuration_says_in_whatever_order() {
        let rules = vec![pace("a", "r"), flow("b", "r", 1.0, 1_000), of_all("c")];
        let set = after(&RuleSet::default(), &config(rules.clone()));
        let says = |rules: Vec<Rule>| {
            let config = config(rules);
            let (header, entries, _) = set.followed_by(&config, &[]);
            rules::encode(&header, &entries) == rules::encode(&set.header, &set.entries)
        };

        assert!(says(rules.clone()));
        assert!(says(rules.iter().rev().cloned().collect()));
        assert!(!says(vec![pace("a", "r"), flow("b", "r", 2.0, 1_000), of_all("c")]));
        assert!(!says(rules[1..].to_vec()));
        assert_eq!(meaning(&config(rules.clone())), meaning(&config(rules)));
    }

    /// Ten thousand rules against ten thousand others would be a hundred million comparisons.
    #[test]
    fn ten_thousand_rules_that_all_change_their_ids_go_on_in_their_ledgers() {
        let rules = |prefix: &str| -> Vec<Rule> {
            let rule = |n: u32| flow(&format!("{prefix}{n}"), &format!("r{n}"), 1.0, 1_000);
            (0..10_000).map(rule).collect()
        };
        let first = after(&RuleSet::default(), &config(rules("a")));
        let second = after(&first, &config(rules("b")));

        let of = |set: &RuleSet| -> Vec<(u32, u64)> {
            set.entries.iter().map(|entry| (entry.slot, entry.generation)).collect()
        };
        assert_eq!(of(&first), of(&second));
    }

    proptest! {
        #[test]
        fn whatever_is_taken_nobody_gets_a_place_twice(
            taken in prop::collection::vec((1u32..5, 0u32..3), 0..20),
            wanted in prop::collection::vec(1u32..6, 0..20),
        ) {
            // Ranges with gaps between them.
            let mut start = 0;
            let ranges: Vec<(u32, u32)> = taken
                .iter()
                .map(|(size, gap)| {
                    let range = (start + gap, *size);
                    start = range.0 + size;
                    range
                })
                .collect();
            let sizes: Vec<(u32, u32)> = wanted.iter().copied().zip(0..).collect();
            let found = first_fit(ranges.clone(), sizes);
            prop_assert_eq!(found.len(), wanted.len());

            let mut all = ranges.clone();
            all.extend(found.iter().map(|(whose, start)| (*start, wanted[*whose as usize])));
            all.sort_unstable();
            for pair in all.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:?}", pair);
            }
            // The lowest free: the first single one stands in the first gap.
            let first_gap = (0..).find(|n| !ranges.iter().any(|(at, size)| (*at..at + size).contains(n)));
            let lowest = found.iter().map(|(_, start)| *start).min();
            if wanted.contains(&1) {
                prop_assert_eq!(lowest, first_gap);
            }
        }
    }
}
