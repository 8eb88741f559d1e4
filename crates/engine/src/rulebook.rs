//! The rule set that a worker applies, and the next one being compiled beside it.
//!
//! A set is taken up whole. Until then [`Upcoming`] compiles it in slices, so that no request waits for
//! ten thousand rules; a rule whose ledger is the same in both sets keeps what it holds. Which rules a name
//! has is found out when it is first asked for, and remembered.

use alloc::{boxed::Box, rc::Rc, string::String, vec::Vec};

use hashbrown::HashTable;
use sentinel_core::{
    config::Settings,
    order::sort_by,
    pattern::{Pattern, Patterns},
    resource::is_same,
    rule::{INBOUND, LimitApp, Rule, Target},
};
use sentinel_wire::{
    DecodeError,
    rules::{RuleSetHeader, RuleSetReader},
};

use crate::{
    clock::Clock,
    group::Group,
    nodes::{SERIES_PER_RESOURCE, SERIES_PER_RULE},
    rule_state::RuleState,
};

/// How many rules are compiled in one slice of a tick, well under the 2 ms that a tick may take for it.
const SLICE_RULES: usize = 500;

/// How many names that no rule writes out are remembered with the rules that they match: those asked for last.
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
    /// Places in [`RuleBook::resources`] by [`digest`] of their names: those that were asked for last, so that their names
    /// need no keyed hash. Empty before the first.
    recent: Vec<u32>,
    by_generation: HashTable<u32>,
    /// Rules that apply to whatever is inbound.
    pub(crate) everywhere: Vec<u32>,
    /// Rules whose resource is a pattern.
    patterns: Patterns,
    /// Rules for what no other rule of their kind names.
    defaults: Vec<u32>,
    /// The rules of a name that no rule writes out and no pattern can match.
    unmatched: Rc<[u32]>,
    /// Names that no rule writes out, and that had to be tried against patterns.
    matched: HashTable<Matched>,
    /// Those that were asked for before: a name that is asked for again comes back from here, so that a client which
    /// makes up new ones cannot make the others be found out anew.
    matched_before: HashTable<Matched>,
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
    /// Whether it has series of its own.
    pub(crate) has_series: bool,
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

impl Resource {
    fn applying(&self, rules: &Rc<[u32]>) -> Applying {
        Applying { rules: Rc::clone(rules), node: self.node, needs_status: self.needs_status }
    }
}

#[derive(Debug)]
struct Matched {
    hash: u64,
    name: Box<[u8]>,
    rules: Rc<[u32]>,
}

/// A rule set that is being compiled, beside the one in force.
#[derive(Debug)]
pub(crate) struct Upcoming {
    header: RuleSetHeader,
    reader: RuleSetReader,
    book: RuleBook,
    /// Where in the set in force the rules are that these go on from.
    goes_on_from: Vec<Option<u32>>,
    /// How many of the metrics configuration's resources are in the book.
    named: usize,
    is_linked: bool,
}

/// The node of a resource that the set in force does not have.
pub(crate) const NEW_NODE: u32 = u32::MAX;

impl RuleBook {
    /// The rules and counters of a resource.
    pub(crate) fn applying(&mut self, clock: &Clock, name: &[u8]) -> Applying {
        let digest = digest(name);
        let recent = self.recent.get(digest).and_then(|place| usize::try_from(*place).ok());
        let is_it = |resource: &Resource| is_same(resource.name.as_bytes(), name);
        if let Some(place) = recent
            && let Some(resource) = self.resources.get(place).filter(|recent| is_it(recent))
            && let Some(rules) = &resource.rules
        {
            return resource.applying(rules);
        }
        let hash = clock.hash(name);
        let Some(place) = self.place_of(hash, name) else {
            return Applying { rules: self.matching(hash, name), node: 0, needs_status: false };
        };
        if self.recent.is_empty() {
            self.recent.resize(RECENT, u32::MAX);
        }
        if let (Some(recent), Ok(place)) = (self.recent.get_mut(digest), u32::try_from(place)) {
            *recent = place;
        }
        self.applying_at(place)
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
        let is_it = |index: &u32| generation_of(&self.rules, *index) == generation;
        self.by_generation.find(spread(generation), is_it).copied()
    }

    /// Puts `new` where the rule that it stands for was.
    fn stand_in(&mut self, index: u32, mut new: RuleState) {
        let generation = new.stamp.generation;
        let Some(old) = self.rule_mut(index) else { return };
        new.stand_in_for(old);
        let before = core::mem::replace(old, new).stamp.generation;
        let known = self.by_generation.find_entry(spread(before), |known| *known == index);
        if let Ok(known) = known {
            known.remove();
        }
        let rules = &self.rules;
        let hash_of = |index: &u32| spread(generation_of(rules, *index));
        self.by_generation.insert_unique(spread(generation), index, hash_of);
    }

    fn place_of(&self, hash: u64, name: &[u8]) -> Option<usize> {
        let is_it = |index: &u32| {
            let place = usize::try_from(*index).ok();
            let resource = place.and_then(|place| self.resources.get(place));
            resource.is_some_and(|resource| is_same(resource.name.as_bytes(), name))
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
        match self.resources.get(place) {
            Some(resource) => resource.applying(&rules),
            None => Applying { rules, node: 0, needs_status: false },
        }
    }

    /// The rules of a name that no rule writes out.
    fn matching(&mut self, hash: u64, name: &[u8]) -> Rc<[u32]> {
        let is_it = |matched: &Matched| is_same(&matched.name, name);
        if let Some(matched) = self.matched.find(hash, is_it) {
            return Rc::clone(&matched.rules);
        }
        let matched = match self.matched_before.find_entry(hash, is_it) {
            Ok(before) => before.remove().0,
            // What counts under `other`, or has no name, is a resource like any other; all together is none.
            Err(_) if !self.patterns.may_match(name) && name != INBOUND.as_bytes() => {
                return Rc::clone(&self.unmatched);
            }
            Err(_) => Matched { hash, name: name.into(), rules: self.resolve(name, Vec::new()) },
        };
        if self.matched.len() >= MATCHED_MAX / 2 {
            self.matched_before = core::mem::take(&mut self.matched);
        }
        let rules = Rc::clone(&matched.rules);
        self.matched.insert_unique(hash, matched, |matched| matched.hash);
        rules
    }

    /// All rules of a name: those that write it out (`rules`), those whose pattern it matches, the defaults of
    /// each kind that has neither, and those for whatever is inbound.
    fn resolve(&self, name: &[u8], mut rules: Vec<u32>) -> Rc<[u32]> {
        self.patterns.matching(name, &mut rules);
        // Rules of requests and of messages are of two kinds.
        let rank = |index: u32| {
            self.rule(index).map(|state| (state.rule.rank(), state.rule.common().unit))
        };
        let named = rules.len();
        for &default in &self.defaults {
            let is_named = rules.iter().take(named).any(|&index| rank(index) == rank(default));
            if !is_named && name != INBOUND.as_bytes() {
                rules.push(default);
            }
        }
        rules.extend_from_slice(&self.everywhere);
        ascending(&mut rules);
        rules.into()
    }

    /// The place of a resource, which is added if it is new. One that `old` has keeps its node.
    fn add_resource(&mut self, clock: &Clock, old: &Self, name: &str) -> Option<&mut Resource> {
        let hash = clock.hash(name.as_bytes());
        let place = match self.place_of(hash, name.as_bytes()) {
            Some(place) => place,
            None => {
                let place = self.resources.len();
                let entry = u32::try_from(place).ok()?;
                let (name, node) = match old.find(hash, name.as_bytes()) {
                    Some(same) => (Rc::clone(&same.name), same.node),
                    None => (name.into(), NEW_NODE),
                };
                self.resources.push(Resource {
                    name,
                    hash,
                    exact: Vec::new(),
                    rules: None,
                    // None so far: one empty list for all.
                    breakers: Rc::clone(&self.unmatched),
                    needs_status: false,
                    is_watched: false,
                    has_series: false,
                    node,
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

    /// Adds a rule behind all others, where requests will find it.
    fn add(&mut self, clock: &Clock, old: &Self, state: RuleState) {
        let Ok(index) = u32::try_from(self.rules.len()) else { return };
        let rule = Rc::clone(&state.rule);
        let generation = state.stamp.generation;
        self.rules.push(state);
        let rules = &self.rules;
        let hash_of = |index: &u32| spread(generation_of(rules, *index));
        self.by_generation.insert_unique(spread(generation), index, hash_of);
        if rule.needs_service() {
            self.decided.push(index);
        }
        match rule.target() {
            None => {
                self.everywhere.push(index);
                if rule.needs_service()
                    && let Some(resource) = self.add_resource(clock, old, INBOUND)
                {
                    resource.is_watched = true;
                }
            }
            Some(Target::Resource(name)) => {
                if let Some(resource) = self.add_resource(clock, old, name) {
                    resource.exact.push(index);
                    if let Rule::CircuitBreaker(breaker) = &*rule {
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
                    self.patterns.add(index, pattern);
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
        if let Rule::Flow(flow) = &*rule
            && let Some(name) = &flow.ref_resource
            && let Some(resource) = self.add_resource(clock, old, name)
        {
            resource.is_watched = true;
        }
    }

    /// Puts in order what needs all rules to be there.
    fn link(&mut self) {
        self.patterns.link();
        name_others(&mut self.rules);
        let mut unmatched: Vec<u32> = self.defaults.clone();
        unmatched.extend_from_slice(&self.everywhere);
        ascending(&mut unmatched);
        self.unmatched = unmatched.into();
        self.allot_series();
    }

    /// Says whose statistics are shown under their own names: as many as the bound allows, those of rules that no
    /// resource's name leads to first.
    fn allot_series(&mut self) {
        let mut left = self.series_max.saturating_sub(SERIES_PER_RESOURCE);
        let mut take = |wanted: u32| {
            let has_series = left >= wanted;
            left -= if has_series { wanted } else { 0 };
            has_series
        };
        for state in &mut self.rules {
            if !matches!(state.rule.target(), Some(Target::Resource(_))) {
                state.has_series = take(SERIES_PER_RULE);
            }
        }
        for resource in &mut self.resources {
            let rules = u32::try_from(resource.exact.len()).unwrap_or(u32::MAX);
            let wanted = rules.saturating_mul(SERIES_PER_RULE).saturating_add(SERIES_PER_RESOURCE);
            // What repeats others' counts has none.
            resource.has_series = *resource.name != *INBOUND && take(wanted);
            for &index in &resource.exact {
                if let Some(state) =
                    usize::try_from(index).ok().and_then(|index| self.rules.get_mut(index))
                {
                    state.has_series = resource.has_series;
                }
            }
        }
    }

    /// Frees a slice of a set that is no longer in force. `false` when there is nothing left.
    pub(crate) fn wither(&mut self) -> bool {
        let [rules, resources, patterns] =
            [self.rules.len(), self.resources.len(), self.patterns.len()]
                .map(|length| length.saturating_sub(SLICE_RULES));
        self.rules.truncate(rules);
        self.resources.truncate(resources);
        self.patterns.truncate(patterns);
        rules + resources + patterns > 0
    }
}

/// How many names can be found without a keyed hash. A client that makes them collide pays, and makes others pay, what all
/// would without this.
const RECENT: usize = 64;

/// Below [`RECENT`], by a name's length and the bytes at its ends.
fn digest(name: &[u8]) -> usize {
    let ends = match *name {
        [a, b, c, d, .., w, x, y, z] => {
            u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([w, x, y, z]).rotate_left(13)
        }
        _ => 0,
    };
    let length = u32::try_from(name.len()).unwrap_or(0);
    let mixed = (ends ^ length).wrapping_mul(0x9e37_79b9);
    usize::try_from(mixed >> (32 - RECENT.ilog2())).unwrap_or(0)
}

/// Spreads generations, which follow each other, over a hash table.
pub(crate) fn spread(generation: u64) -> u64 {
    generation.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn generation_of(rules: &[RuleState], index: u32) -> u64 {
    let place = usize::try_from(index).ok();
    place.and_then(|place| rules.get(place)).map_or(0, |state| state.stamp.generation)
}

impl Upcoming {
    /// Begins with a published set.
    pub(crate) fn open(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let (header, reader) = RuleSetReader::open(bytes)?;
        let book = RuleBook {
            version: header.version,
            pending: header.pending,
            settings: header.settings.clone(),
            series_max: header.series_max,
            ..RuleBook::default()
        };
        Ok(Self { header, reader, book, goes_on_from: Vec::new(), named: 0, is_linked: false })
    }

    /// The set's version.
    pub(crate) fn version(&self) -> u64 {
        self.header.version
    }

    /// Compiles one slice, beside the set in force, `old`. `true` when nothing is left to compile.
    pub(crate) fn compile_slice(
        &mut self,
        clock: &Clock,
        old: &RuleBook,
    ) -> Result<bool, DecodeError> {
        for done in 0..SLICE_RULES {
            if let Some(entry) = self.reader.next_entry()? {
                self.goes_on_from.push(old.index_of(entry.generation));
                self.book.add(clock, old, RuleState::new(entry, &self.header));
            } else if let Some(name) = self.header.metrics_resources.get(self.named) {
                self.named += 1;
                if let Some(resource) = self.book.add_resource(clock, old, name) {
                    resource.needs_status = true;
                }
            } else if self.is_linked {
                return Ok(true);
            } else {
                // Of thousands of rules that is a slice of its own.
                let is_slice = self.book.rules.len() > SLICE_RULES;
                if is_slice && done > 0 {
                    return Ok(false);
                }
                self.book.link();
                self.is_linked = true;
                return Ok(!is_slice);
            }
        }
        Ok(false)
    }

    /// Lets the rule that follows the one at `index` in its ledger stand in for it, without reading the others. `false`
    /// if there is none that is like it but for what it counts.
    pub(crate) fn stand_in(&mut self, book: &mut RuleBook, index: u32) -> bool {
        let Some(old) = book.rule(index) else { return false };
        let entry = self.reader.entry_at(old.place.slot, old.place.sets > 0);
        let Some(entry) = entry.filter(|entry| {
            entry.generation > old.stamp.generation && entry.rule.stands_for(&old.rule)
        }) else {
            return false;
        };
        let generation = entry.generation;
        book.stand_in(index, RuleState::new(entry, &self.header));
        // Compiled already, it did not know where it would go on from.
        let compiled = self.book.index_of(generation).and_then(|at| usize::try_from(at).ok());
        if let Some(from) = compiled.and_then(|at| self.goes_on_from.get_mut(at)) {
            *from = Some(index);
        }
        true
    }

    /// The compiled set, with what those rules of `old` hold that it goes on with.
    pub(crate) fn take_up(self, old: &mut RuleBook) -> RuleBook {
        let mut book = self.book;
        for (state, from) in book.rules.iter_mut().zip(self.goes_on_from) {
            if let Some(old) = from.and_then(|index| old.rule_mut(index)) {
                state.go_on_from(old);
            }
        }
        book
    }
}

/// Tells each rule for other callers whom the rules beside it name.
fn name_others(rules: &mut [RuleState]) {
    let mut by_resource: Vec<(Rc<Rule>, usize)> = Vec::new();
    for (place, state) in rules.iter().enumerate() {
        if let Rule::Flow(flow) = &*state.rule
            && flow.limit_app != LimitApp::Default
        {
            by_resource.push((Rc::clone(&state.rule), place));
        }
    }
    sort_by(&mut by_resource, |(a, _), (b, _)| a.resource().cmp(b.resource()));
    for beside in by_resource.chunk_by(|(a, _), (b, _)| a.resource() == b.resource()) {
        for (rule, place) in beside {
            let Rule::Flow(flow) = &**rule else { continue };
            if flow.limit_app != LimitApp::Other {
                continue;
            }
            let named = beside.iter().filter_map(|(rule, _)| {
                if let Rule::Flow(other) = &**rule
                    && other.target == flow.target
                    && other.common.unit == flow.common.unit
                    && let LimitApp::Origin(origin) = &other.limit_app
                {
                    return Some(origin.clone());
                }
                None
            });
            if let Some(state) = rules.get_mut(*place) {
                state.others = named.collect();
            }
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
