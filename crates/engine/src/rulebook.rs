//! The rule set that a worker applies, and the next one being compiled beside it.
//!
//! A set is taken up whole. Until then [`Upcoming`] compiles it in slices, so that no request waits for
//! ten thousand rules; a rule whose ledger is the same in both sets keeps what it holds. Which rules a name
//! has is found out when it is first asked for, and remembered.

use alloc::{boxed::Box, rc::Rc, string::String, vec::Vec};

use hashbrown::HashTable;
use sentinel_core::{
    config::Settings,
    pattern::Pattern,
    rule::{INBOUND, LimitApp, Rule, Target},
};
use sentinel_wire::{
    DecodeError,
    rules::{RuleSetHeader, RuleSetReader},
};

use crate::{clock::Clock, group::Group, rule_state::RuleState};

/// How many rules are compiled in one slice of a tick, well under the 2 ms that a tick may take for it: ten
/// thousand took a worker in Envoy 6 ms in all, the indexing at the end included, which is one piece.
const SLICE_RULES: usize = 500;

/// How many names that no rule writes out are remembered with the rules that they match. When there are more, all
/// are forgotten and found out anew: 256 patterns take some tens of microseconds.
const MATCHED_MAX: usize = 4_096;

/// The rule set in force.
#[derive(Debug, Default)]
pub(crate) struct RuleBook {
    /// The set's version; 0 before the first.
    pub(crate) version: u64,
    /// Whether a source of rules is still to be fetched for the first time.
    pub(crate) pending: bool,
    /// Settings that came with it.
    pub(crate) settings: Settings,
    /// The most series that may be defined.
    pub(crate) series_max: u32,
    /// Rules in claim order, as the service has put them: the same in every worker.
    pub(crate) rules: Vec<RuleState>,
    /// The resources that a rule or the metrics configuration names.
    pub(crate) resources: Vec<Resource>,
    /// API groups with rules.
    pub(crate) groups: Vec<Group>,
    /// Rules that the service decides something for.
    pub(crate) decided: Vec<u32>,
    by_name: HashTable<u32>,
    /// By generation, ascending.
    by_generation: Vec<(u64, u32)>,
    /// Rules that apply to whatever is inbound.
    pub(crate) everywhere: Vec<u32>,
    /// Rules whose resource is a pattern.
    patterns: Vec<(u32, Pattern)>,
    /// Rules for what no other rule of their kind names.
    defaults: Vec<u32>,
    /// Names that no rule writes out.
    matched: HashTable<Matched>,
}

/// A resource that has a name of its own.
#[derive(Debug)]
pub(crate) struct Resource {
    /// The whole name.
    pub(crate) name: Rc<str>,
    /// The name's hash under the process's key.
    pub(crate) hash: u64,
    /// The rules that write the name out, as ascending indexes into [`RuleBook::rules`].
    pub(crate) exact: Vec<u32>,
    /// All rules that apply, once somebody has asked.
    rules: Option<Rc<[u32]>>,
    /// Its breakers.
    pub(crate) breakers: Rc<[u32]>,
    /// Whether somebody wants to know which of its responses were errors.
    pub(crate) needs_status: bool,
    /// Whether the service evaluates a rule by its counts.
    pub(crate) is_watched: bool,
    /// Its counters, as an index into the worker's nodes.
    pub(crate) node: u32,
}

/// What applies to a request.
#[derive(Clone, Debug)]
pub(crate) struct Applying {
    /// Rules, as ascending indexes into [`RuleBook::rules`].
    pub(crate) rules: Rc<[u32]>,
    /// Counters, as an index into the worker's nodes.
    pub(crate) node: u32,
    /// Whether somebody wants to know if the response was an error.
    pub(crate) needs_status: bool,
}

#[derive(Debug)]
struct Matched {
    hash: u64,
    name: Box<[u8]>,
    rules: Rc<[u32]>,
}

/// A rule set that is being compiled.
#[derive(Debug)]
pub(crate) struct Upcoming {
    header: RuleSetHeader,
    reader: RuleSetReader,
    rules: Vec<RuleState>,
}

impl RuleBook {
    /// The rules and counters of a resource.
    pub(crate) fn applying(&mut self, hash: u64, name: &[u8]) -> Applying {
        if let Some(place) = self.place_of(hash, name) {
            return self.applying_at(place);
        }
        let rules = if self.patterns.is_empty() && self.defaults.is_empty() {
            self.everywhere.as_slice().into()
        } else {
            self.matching(hash, name)
        };
        Applying { rules, node: 0, needs_status: false }
    }

    /// The resource of this name, if it has rules or series of its own.
    pub(crate) fn find(&self, hash: u64, name: &[u8]) -> Option<&Resource> {
        self.resources.get(self.place_of(hash, name)?)
    }

    /// A rule by its place in the claim order.
    pub(crate) fn rule_mut(&mut self, index: u32) -> Option<&mut RuleState> {
        self.rules.get_mut(usize::try_from(index).ok()?)
    }

    /// A rule by its place in the claim order.
    pub(crate) fn rule(&self, index: u32) -> Option<&RuleState> {
        self.rules.get(usize::try_from(index).ok()?)
    }

    /// The place of the rule with this generation.
    pub(crate) fn index_of(&self, generation: u64) -> Option<u32> {
        let place =
            self.by_generation.binary_search_by(|(known, _)| known.cmp(&generation)).ok()?;
        self.by_generation.get(place).map(|(_, index)| *index)
    }

    fn place_of(&self, hash: u64, name: &[u8]) -> Option<usize> {
        let is_it = |index: &u32| {
            let place = usize::try_from(*index).ok();
            let resource = place.and_then(|place| self.resources.get(place));
            resource.is_some_and(|resource| resource.name.as_bytes() == name)
        };
        self.by_name.find(hash, is_it).and_then(|index| usize::try_from(*index).ok())
    }

    fn applying_at(&mut self, place: usize) -> Applying {
        let known = self.resources.get(place).and_then(|resource| resource.rules.clone());
        let rules = known.unwrap_or_else(|| {
            let (name, exact) = match self.resources.get(place) {
                Some(resource) => (Rc::clone(&resource.name), resource.exact.clone()),
                None => ("".into(), Vec::new()),
            };
            let rules = self.resolve(name.as_bytes(), exact);
            if let Some(resource) = self.resources.get_mut(place) {
                resource.rules = Some(Rc::clone(&rules));
            }
            rules
        });
        let (node, needs_status) = self
            .resources
            .get(place)
            .map_or((0, false), |resource| (resource.node, resource.needs_status));
        Applying { rules, node, needs_status }
    }

    fn matching(&mut self, hash: u64, name: &[u8]) -> Rc<[u32]> {
        let is_it = |matched: &Matched| *matched.name == *name;
        if let Some(matched) = self.matched.find(hash, is_it) {
            return Rc::clone(&matched.rules);
        }
        let rules = self.resolve(name, Vec::new());
        if self.matched.len() >= MATCHED_MAX {
            self.matched.clear();
        }
        let matched = Matched { hash, name: name.into(), rules: Rc::clone(&rules) };
        self.matched.insert_unique(hash, matched, |matched| matched.hash);
        rules
    }

    /// All rules of a name: those that write it out (`rules`), those whose pattern it matches, the defaults of
    /// each kind that has neither, and those for whatever is inbound.
    fn resolve(&self, name: &[u8], mut rules: Vec<u32>) -> Rc<[u32]> {
        let matching = self.patterns.iter().filter(|(_, pattern)| pattern.matches(name));
        rules.extend(matching.map(|(index, _)| *index));
        let rank = |index: u32| self.rule(index).map(|state| state.rule.rank());
        let named = rules.len();
        for &default in &self.defaults {
            let is_named = rules.iter().take(named).any(|&index| rank(index) == rank(default));
            // What counts under `other`, or has no name, is a resource like any other.
            if !is_named && name != INBOUND.as_bytes() {
                rules.push(default);
            }
        }
        rules.extend_from_slice(&self.everywhere);
        ascending(&mut rules);
        rules.into()
    }

    /// The place of a resource, which is added if it is new.
    fn add_resource(&mut self, clock: &Clock, name: &str) -> Option<&mut Resource> {
        let hash = clock.hash(name.as_bytes());
        let place = match self.place_of(hash, name.as_bytes()) {
            Some(place) => place,
            None => {
                let place = self.resources.len();
                let entry = u32::try_from(place).ok()?;
                self.resources.push(Resource {
                    name: name.into(),
                    hash,
                    exact: Vec::new(),
                    rules: None,
                    breakers: Rc::from([]),
                    needs_status: false,
                    is_watched: false,
                    node: 0,
                });
                let resources = &self.resources;
                let hash_of = |index: &u32| {
                    let place = usize::try_from(*index).ok();
                    place.and_then(|place| resources.get(place)).map_or(0, |resource| resource.hash)
                };
                self.by_name.insert_unique(hash, entry, hash_of);
                place
            }
        };
        self.resources.get_mut(place)
    }

    /// Puts rule `index` where requests will find it.
    fn index(&mut self, clock: &Clock, index: u32, rule: &Rule) {
        if rule.needs_service() {
            self.decided.push(index);
        }
        match rule.target() {
            None => {
                self.everywhere.push(index);
                if rule.needs_service()
                    && let Some(resource) = self.add_resource(clock, INBOUND)
                {
                    resource.is_watched = true;
                }
            }
            Some(Target::Resource(name)) => {
                if let Some(resource) = self.add_resource(clock, name) {
                    resource.exact.push(index);
                    if let Rule::CircuitBreaker(breaker) = rule {
                        let breakers = resource.breakers.iter().copied().chain([index]);
                        resource.breakers = breakers.collect();
                        resource.is_watched = true;
                        resource.needs_status |= breaker.strategy.is_about_errors();
                    }
                }
            }
            Some(Target::Pattern(pattern)) => {
                // It compiled in the service; what does not here matches nothing.
                if let Ok(pattern) = Pattern::new(pattern) {
                    self.patterns.push((index, pattern));
                }
            }
            Some(Target::Default) => self.defaults.push(index),
            Some(Target::Group(group)) => {
                match self.groups.iter_mut().find(|known| known.is(&group.name)) {
                    Some(known) => known.rules.push(index),
                    None => self.groups.push(Group::new(group, index)),
                }
            }
        }
        if let Rule::Flow(flow) = rule
            && let Some(name) = &flow.ref_resource
            && let Some(resource) = self.add_resource(clock, name)
        {
            resource.is_watched = true;
        }
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
            self.rules.push(RuleState::new(entry, &self.header));
        }
        Ok(false)
    }

    /// The compiled set, with what those rules of `old` hold that it goes on with.
    pub(crate) fn take_up(self, clock: &Clock, old: &mut RuleBook) -> RuleBook {
        let mut rules = self.rules;
        let mut left: Vec<Option<RuleState>> = old.rules.drain(..).map(Some).collect();
        for state in &mut rules {
            let place =
                old.index_of(state.stamp.generation).and_then(|at| usize::try_from(at).ok());
            if let Some(old) = place.and_then(|place| left.get_mut(place)).and_then(Option::take) {
                state.go_on_from(old);
            }
        }
        let mut book = RuleBook {
            version: self.header.version,
            pending: self.header.pending,
            settings: self.header.settings,
            series_max: self.header.series_max,
            ..RuleBook::default()
        };
        for (index, state) in (0..).zip(&rules) {
            book.index(clock, index, &state.rule);
            book.by_generation.push((state.stamp.generation, index));
        }
        sentinel_core::order::sort_by(&mut book.by_generation, |a, b| a.0.cmp(&b.0));
        name_others(&mut rules);
        for name in &self.header.metrics_resources {
            if let Some(resource) = book.add_resource(clock, name) {
                resource.needs_status = true;
            }
        }
        book.rules = rules;
        book
    }
}

/// Tells each rule for other callers whom the rules beside it name.
fn name_others(rules: &mut [RuleState]) {
    let mut named: Vec<(Rc<Rule>, String)> = Vec::new();
    for state in rules.iter() {
        if let Rule::Flow(flow) = &*state.rule
            && let LimitApp::Origin(origin) = &flow.limit_app
        {
            named.push((Rc::clone(&state.rule), origin.clone()));
        }
    }
    for state in rules.iter_mut() {
        if let Rule::Flow(flow) = &*state.rule
            && flow.limit_app == LimitApp::Other
        {
            let beside = named.iter().filter(|(rule, _)| rule.target() == Some(&flow.target));
            state.others = beside.map(|(_, origin)| origin.clone()).collect();
        }
    }
}

/// Sorts a short list that is nearly in order.
pub(crate) fn ascending(rules: &mut [u32]) {
    for end in 1..rules.len() {
        let mut at = end;
        while at > 0 && rules.get(at - 1) > rules.get(at) {
            rules.swap(at - 1, at);
            at -= 1;
        }
    }
}

/// A rule set's error as a log line.
pub(crate) fn refusal(error: DecodeError) -> String {
    alloc::format!("the published rule set cannot be read: {error}; the last one stays in force")
}
