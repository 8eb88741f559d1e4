//! The rule set that a worker applies, and the next one being compiled beside it.
//!
//! A set is taken up whole. Until then [`Upcoming`] compiles it in slices, so that no request waits for
//! ten thousand rules; a rule whose ledger is the same in both sets keeps its lease.

use alloc::{rc::Rc, string::String, vec::Vec};

use hashbrown::HashTable;
use sentinel_core::{
    config::Settings, lease::Lease, ledger::RateTerms, rule::Rule, window::WindowShape,
};
use sentinel_wire::{
    DecodeError,
    rules::{RuleEntry, RuleSetHeader, RuleSetReader},
};

use crate::{
    clock::Clock,
    host::{Cas, Meter},
    telemetry::{Total, of_rule},
};

/// How many rules are compiled in one slice of a tick, well under the 2 ms that a tick may take for it: ten
/// thousand took a worker in Envoy 6 ms in all, the indexing at the end included, which is one piece.
const SLICE_RULES: usize = 500;

/// A slot above this is not remembered over a change of rules: its lease is dropped. Slots are allotted
/// lowest free first, so that only a set of more rules than any setting allows has one.
const SLOTS_MAX: usize = 1 << 20;

/// The rule set in force.
#[derive(Debug, Default)]
pub(crate) struct RuleBook {
    /// The set's version; 0 before the first.
    pub(crate) version: u64,
    /// Settings that came with it.
    pub(crate) settings: Settings,
    /// The most series that may be defined.
    pub(crate) series_max: u32,
    /// Rules in claim order, as the service has put them: the same in every worker.
    pub(crate) rules: Vec<RuleState>,
    /// The resources that a rule or the metrics configuration names.
    pub(crate) resources: Vec<Resource>,
    by_name: HashTable<u32>,
}

/// One rule as a worker applies it.
#[derive(Debug)]
pub(crate) struct RuleState {
    /// The rule.
    pub(crate) rule: Rc<Rule>,
    /// Its ledger's slot.
    pub(crate) slot: u32,
    /// What a claim tells the ledger.
    pub(crate) terms: RateTerms,
    /// What this worker holds.
    pub(crate) lease: Lease,
    /// The ledger as it was at the last refusal: only when it has moved can others be asked to give back.
    pub(crate) refused_at: Option<Cas>,
    /// Tokens that the request in hand has claimed one by one: they go back if another rule refuses it.
    pub(crate) fresh: u64,
    /// What this rule says to the request in hand.
    pub(crate) answer: Answer,
    /// Whether the rule is on the list of those that a tick looks at.
    pub(crate) active: bool,
    /// Requests refused, and those that a shadow rule would have refused.
    pub(crate) blocked: u64,
    /// How much of `blocked` Envoy has been told.
    pub(crate) total: Total,
    /// Whether the rule has a series of its own.
    pub(crate) has_series: bool,
}

/// What a rule says to the request in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its token must be spent.
    #[default]
    Spend,
    /// A shadow rule that would refuse: counted, and the request goes on.
    WouldBlock,
    /// The host failed, and the rule lets requests through then.
    Waived,
}

/// A resource that has a name of its own.
#[derive(Debug)]
pub(crate) struct Resource {
    /// The whole name.
    pub(crate) name: Rc<str>,
    /// The name's hash under the process's key.
    pub(crate) hash: u64,
    /// Its rules, as ascending indexes into [`RuleBook::rules`].
    pub(crate) rules: Rc<[u32]>,
    /// Whether somebody wants to know which of its responses were errors.
    pub(crate) needs_status: bool,
    /// Its counters, as an index into the worker's nodes.
    pub(crate) node: u32,
}

/// A rule set that is being compiled.
#[derive(Debug)]
pub(crate) struct Upcoming {
    header: RuleSetHeader,
    reader: RuleSetReader,
    rules: Vec<RuleState>,
}

impl RuleBook {
    /// The resource of this name, if it has rules or series of its own.
    pub(crate) fn find(&self, hash: u64, name: &[u8]) -> Option<&Resource> {
        let is_it = |index: &u32| {
            self.resource(*index).is_some_and(|resource| resource.name.as_bytes() == name)
        };
        self.by_name.find(hash, is_it).and_then(|index| self.resource(*index))
    }

    /// A rule by its place in the claim order.
    pub(crate) fn rule_mut(&mut self, index: u32) -> Option<&mut RuleState> {
        self.rules.get_mut(usize::try_from(index).ok()?)
    }

    fn resource(&self, index: u32) -> Option<&Resource> {
        self.resources.get(usize::try_from(index).ok()?)
    }

    /// The place of a resource, which is added if it is new.
    fn add_resource(&mut self, clock: &Clock, name: &str) -> Option<usize> {
        let hash = clock.hash(name.as_bytes());
        let is_it =
            |index: &u32| self.resource(*index).is_some_and(|resource| *resource.name == *name);
        if let Some(index) = self.by_name.find(hash, is_it) {
            return usize::try_from(*index).ok();
        }
        let index = self.resources.len();
        let entry = u32::try_from(index).ok()?;
        let rules = Rc::from([]);
        self.resources.push(Resource {
            name: name.into(),
            hash,
            rules,
            needs_status: false,
            node: 0,
        });
        let resources = &self.resources;
        let hash_of = |index: &u32| {
            usize::try_from(*index)
                .ok()
                .and_then(|index| resources.get(index))
                .map_or(0, |resource| resource.hash)
        };
        self.by_name.insert_unique(hash, entry, hash_of);
        Some(index)
    }
}

impl Upcoming {
    /// Begins with a published set.
    pub(crate) fn open(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let (header, reader) = RuleSetReader::open(bytes)?;
        Ok(Self { header, reader, rules: Vec::new() })
    }

    /// The set's version.
    pub(crate) fn version(&self) -> u64 {
        self.header.version
    }

    /// Compiles one slice. `true` when nothing is left to compile.
    pub(crate) fn compile_slice(&mut self) -> Result<bool, DecodeError> {
        for _ in 0..SLICE_RULES {
            let Some(entry) = self.reader.next_entry()? else { return Ok(true) };
            self.rules.push(RuleState::new(entry, self.header.version));
        }
        Ok(false)
    }

    /// The compiled set, with the leases of those rules of `old` that it goes on with.
    pub(crate) fn take_up(self, clock: &Clock, old: &mut RuleBook) -> RuleBook {
        // By slot, which is unique within a set and below the number of rules that ever stood side by side.
        let mut kept: Vec<Option<RuleState>> = Vec::new();
        for state in old.rules.drain(..) {
            let slot = usize::try_from(state.slot).unwrap_or(usize::MAX);
            if slot < SLOTS_MAX {
                kept.resize_with(kept.len().max(slot + 1), || None);
                if let Some(place) = kept.get_mut(slot) {
                    *place = Some(state);
                }
            }
        }
        let mut rules = self.rules;
        for state in &mut rules {
            let slot = usize::try_from(state.slot).unwrap_or(usize::MAX);
            if let Some(old) = kept.get_mut(slot).and_then(Option::take)
                && old.terms.generation == state.terms.generation
            {
                state.go_on_from(old);
            }
        }

        let mut book = RuleBook {
            version: self.header.version,
            settings: self.header.settings,
            series_max: self.header.series_max,
            ..RuleBook::default()
        };
        let mut rules_of: Vec<Vec<u32>> = Vec::new();
        for (index, state) in (0..).zip(&rules) {
            let Some(resource) = book.add_resource(clock, state.rule.resource()) else { continue };
            rules_of.resize_with(book.resources.len(), Vec::new);
            if let Some(rules) = rules_of.get_mut(resource) {
                rules.push(index);
            }
        }
        for (resource, rules) in book.resources.iter_mut().zip(rules_of) {
            resource.rules = rules.into();
        }
        for name in &self.header.metrics_resources {
            let index = book.add_resource(clock, name);
            if let Some(resource) = index.and_then(|index| book.resources.get_mut(index)) {
                resource.needs_status = true;
            }
        }
        book.rules = rules;
        book
    }
}

impl RuleState {
    fn new(entry: RuleEntry, version: u64) -> Self {
        let Rule::Flow(flow) = &entry.rule;
        let terms = RateTerms {
            generation: entry.generation,
            version,
            threshold: flow.threshold,
            shape: WindowShape::for_flow(flow.stat_interval_ms),
        };
        Self {
            rule: Rc::new(entry.rule),
            slot: entry.slot,
            terms,
            lease: Lease::default(),
            refused_at: None,
            fresh: 0,
            answer: Answer::Spend,
            active: false,
            blocked: 0,
            total: Total::default(),
            has_series: true,
        }
    }

    /// Keeps what the same rule of an older set held and counted.
    fn go_on_from(&mut self, old: Self) {
        self.lease = old.lease;
        if self.terms.threshold != old.terms.threshold {
            self.lease.forget_exhaustion();
        }
        if self.rule.id() == old.rule.id() && self.rule.common().shadow == old.rule.common().shadow
        {
            self.blocked = old.blocked;
            self.total = old.total;
        }
    }

    /// Whether a tick has anything to do for this rule.
    pub(crate) fn needs_tick(&self) -> bool {
        self.lease.is_active() || self.total.is_behind(self.blocked)
    }

    /// Tells Envoy of new refusals. What is returned has to be counted elsewhere, because this rule has no
    /// series of its own.
    pub(crate) fn report<M: Meter>(&mut self, meter: &mut M) -> u64 {
        if !self.total.is_behind(self.blocked) {
            return 0;
        }
        if !self.has_series {
            return self.total.take_unreported(self.blocked);
        }
        let counter =
            if self.rule.common().shadow { FLOW_SHADOW_BLOCK_TOTAL } else { FLOW_BLOCK_TOTAL };
        let rule = &self.rule;
        self.total.report(meter, self.blocked, |text| {
            of_rule(rule.resource(), rule.id(), counter, text);
        });
        0
    }
}

/// The last segments of a flow rule's counters: `FlowControl` is its [`BlockType`](sentinel_core::block::BlockType).
pub(crate) const FLOW_BLOCK_TOTAL: &str = "type.FlowControl.block_total";
const FLOW_SHADOW_BLOCK_TOTAL: &str = "type.FlowControl.shadow_block_total";

/// A rule set's error as a log line.
pub(crate) fn refusal(error: DecodeError) -> String {
    alloc::format!("the published rule set cannot be read: {error}; the last one stays in force")
}
