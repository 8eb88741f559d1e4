//! The promises, checked from outside.
//!
//! The checker sees what Envoy could see: which requests were answered how, when they went on and when they
//! ended at the upstream, what the clock said to the worker that answered, and which bytes stand in shared
//! data. It knows Sentinel's arithmetic and the layout of the values. How tokens are claimed and leased it
//! does not know.
//!
//! Two things are looked at for each rule. Each write to its ledgers must be a step that the rule allows: so
//! no budget is larger than it may be, whoever holds it. And every admitted request must have taken its part
//! of them, and no other: so nobody goes without, and nobody is charged for a refusal.
//!
//! A request counts at the time its worker read from the clock for it, or at the start of the newest
//! bucket that it then found in one of its ledgers, whichever is later: that is what "now" means to a
//! worker that slept in between.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use sentinel_core::{
    config::Settings,
    ledger::{Ledger, breaker::BreakerState},
    rule::{Rule, Target, Unit},
    time::{Nanos, Span},
};
use sentinel_wire::{
    key::Key,
    ledger::{self, Value},
    rules::RuleSetReader,
    service::ServiceBeat,
    workers::Seeds,
};

use crate::{
    process::Write,
    vm::{Answer, Decision},
};

mod breaker;
mod bucket;
mod law;
mod pace;
mod permits;
mod rate;

use breaker::Ended;
pub use breaker::Moves;
use law::{Book, Context, Law, ONLY};
use rate::Account;
pub(crate) use rate::WindowUse;

/// What went wrong, in one sentence.
pub(crate) type Broken = String;

/// A rule's occupancy of its ledgers: the generation.
type Occupant = u64;

/// Everything that was promised, and how it stands.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    t0_ns: u64,
    /// By version: the rules, and whose ledgers each has. Another rule may go on with the same ledger.
    sets: BTreeMap<u64, Vec<(Occupant, Rc<Rule>)>>,
    laws: BTreeMap<Occupant, Law>,
    /// The occupant whose bytes stand under each key.
    written: BTreeMap<Key, Occupant>,
    /// Admitted requests that have not ended: what of, and since when.
    open: BTreeMap<u64, (Rc<str>, Nanos)>,
    /// Those that have, by resource.
    ended: BTreeMap<Rc<str>, VecDeque<Ended>>,
    settings: Settings,
    /// The slots of requests and messages that wait, by ticket, and whose they are.
    slots: BTreeMap<u64, Vec<(Occupant, Nanos)>>,
    /// The last ticket of messages.
    ticket: u64,
    /// Since when a VM has answered by an older set than this one.
    behind: BTreeMap<u32, (u64, Nanos)>,
    /// When the newest rule set was published, by the host's clock.
    published_ns: u64,
    keys_most: usize,
    /// By VM: the version of its set, and which newer occupants stand in for those of that set.
    followed: BTreeMap<u32, (u64, BTreeMap<Occupant, Occupant>)>,
    /// Who is the service, and when it has last said so.
    service: Option<(u64, Nanos)>,
    /// How breakers have moved.
    pub(crate) moves: Moves,
}

/// A row of refusals that should not have been.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: Nanos,
    last: Nanos,
}

/// How long a wrong refusal may last, and a request that may go may still wait: a worker's tick, 10 ms and what
/// the kernel adds, and a little for the calls of all workers.
pub(crate) const TICK: Span = Span::from_millis(17);

/// How long a worker with requests may go on with old rules: three ticks.
const BEHIND: Span = Span::from_millis(3 * 17);

/// Sets tickets of messages apart from numbers of streams.
const MESSAGES: u64 = 1 << 40;

/// How the ids of rules begin that stand only in configurations which Envoy has tried and rejected.
pub(crate) const TRIED: &str = "tried";

impl Checker {
    /// Takes in a write to shared data.
    pub(crate) fn written(&mut self, write: &Write, by_service: bool) -> Result<(), Broken> {
        match write.key {
            Key::Seeds => {
                let seeds = Seeds::decode(&write.value).map_err(|error| error.to_string())?;
                self.t0_ns = seeds.t0_ns;
            }
            Key::Rules => {
                self.published_ns = write.at_ns;
                self.rules_written(&write.value)?;
            }
            Key::Ledger(_) | Key::Set(_) => {
                self.ledger_written(write, by_service)?;
            }
            Key::Service => self.beaten(write)?,
            Key::Workers
            | Key::Missing
            | Key::Decisions
            | Key::Carried
            | Key::CarriedSet(_)
            | Key::Source(_)
            | Key::Signal(_) => {}
        }
        Ok(())
    }

    /// Takes in a request that was admitted at `at`. `late`: whether everybody must know by then what there is to
    /// know. The answer is the time before which it must not go.
    pub(crate) fn admitted(
        &mut self,
        answer: &Answer,
        at: Nanos,
        late: bool,
    ) -> Result<Nanos, Broken> {
        let occupants = self.applying(answer);
        let read = self.now(answer.seen.monotonic_ns);
        if answer.unit == Unit::Request {
            self.open.insert(answer.stream, (answer.resource.clone(), at));
        }
        let mut now = read;
        for (key, stamp, value) in &answer.seen.loaded {
            if let Value::Single(Ledger::Rate(rate)) = value
                && occupants.iter().any(|(occupant, _)| *occupant == stamp.generation)
                && let Some(law) = self.laws.get(&stamp.generation)
                && law.has(*key)
                && let Book::Rate(accounts) = &law.book
                && let Some(account) = accounts.get(&ONLY)
            {
                now = now.max(account.shape.start_of(rate.newest));
            }
        }
        // A worker that has nothing to do takes a newer set up at its next tick.
        let late = late && answer.rules_version == self.rules_version();
        let mut slots = Vec::new();
        for (occupant, rule) in occupants {
            let Some(law) = self.laws.get_mut(&occupant) else { continue };
            // One that only counts may have been over.
            if rule.common().shadow {
                continue;
            }
            let late = late.then_some(read);
            let slot =
                law.admit(answer, now, late, &mut self.moves).map_err(|what| law.say(&what))?;
            slots.push((occupant, slot));
        }
        let earliest = slots.iter().map(|(_, slot)| *slot).max().unwrap_or_default();
        if let Decision::Waits(_) = answer.decision {
            let ticket = match answer.unit {
                Unit::Request => answer.stream,
                Unit::Message => {
                    self.ticket += 1;
                    MESSAGES | self.ticket
                }
            };
            self.slots.insert(ticket, slots);
        }
        Ok(earliest)
    }

    /// The ticket of the messages that were admitted last, where they wait.
    pub(crate) fn ticket(&self) -> u64 {
        MESSAGES | self.ticket
    }

    /// That whoever answers goes by the newest rules, or has not done so for long: a worker takes up newer ones at a tick,
    /// and whoever answers has the next one soon.
    pub(crate) fn goes_by_new_rules(&mut self, answer: &Answer, now: Nanos) -> Result<(), Broken> {
        let newest = self.rules_version();
        if answer.rules_version == newest {
            self.behind.remove(&answer.vm);
            return Ok(());
        }
        let (of, since) = *self
            .behind
            .entry(answer.vm)
            .and_modify(|(of, since)| {
                if *of != newest {
                    (*of, *since) = (newest, now);
                }
            })
            .or_insert((newest, now));
        let behind = now.since(since);
        if behind > BEHIND {
            let (old, ms) = (answer.rules_version, behind.as_millis());
            return Err(format!(
                "rule set {old} still answers {ms} ms after set {of} was published"
            ));
        }
        Ok(())
    }

    /// A request that waited goes on: the time before which it must not, and when that was settled. The slots of
    /// rules that are gone, or that only count by now, hold nobody.
    pub(crate) fn leaves(&mut self, stream: u64) -> (Nanos, Nanos) {
        let slots = self.slots.remove(&stream).unwrap_or_default();
        let set = self.sets.values().next_back();
        let holds = |occupant: &Occupant| {
            let rule = set.into_iter().flatten().find(|(known, _)| known == occupant);
            rule.is_some_and(|(_, rule)| !rule.common().shadow)
        };
        let all = slots.iter().map(|(_, slot)| *slot).max().unwrap_or_default();
        let held = slots.iter().filter(|(occupant, _)| holds(occupant)).map(|(_, slot)| *slot);
        let held = held.max().unwrap_or_default();
        (held, if held < all { held.max(self.now(self.published_ns)) } else { held })
    }

    /// Takes in a refused request. `steady`: no thread is lost and nothing changes, so that what others hold
    /// unspent must be back within a tick.
    pub(crate) fn refused(
        &mut self,
        answer: &Answer,
        by: &str,
        steady: bool,
    ) -> Result<(), Broken> {
        let now = self.now(answer.seen.monotonic_ns);
        let occupants = self.applying(answer);
        let mut is_one = false;
        if answer.unit == Unit::Message {
            for (occupant, _) in &occupants {
                if let Some(law) = self.laws.get_mut(occupant) {
                    law.refuse_messages(answer);
                }
            }
        }
        for (occupant, rule) in occupants.into_iter().filter(|(_, rule)| rule.id() == by) {
            let Some(law) = self.laws.get_mut(&occupant) else { continue };
            is_one = true;
            if rule.common().shadow {
                return Err(format!("rule {by} only counts, and has refused a request"));
            }
            if steady {
                law.refuse(answer, now).map_err(|what| law.say(&what))?;
            }
        }
        if is_one || !self.sets.contains_key(&answer.rules_version) {
            return Ok(());
        }
        Err(format!("rule {by} has refused a request of {}, which is not its own", answer.resource))
    }

    /// Takes in that a request has ended at the upstream, or was given up before.
    pub(crate) fn ended(&mut self, stream: u64, failed: bool, now: Nanos) {
        for law in self.laws.values_mut() {
            match &mut law.book {
                Book::Permits(book) => book.ended(stream),
                Book::Breaker(book) => book.ended(stream, failed),
                Book::Nothing | Book::Rate(_) | Book::Pace(_) | Book::Bucket(_) => {}
            }
        }
        if let Some((resource, began)) = self.open.remove(&stream) {
            self.ended.entry(resource).or_default().push_back(Ended { began, at: now, failed });
        }
    }

    /// The shared clock at a monotonic time.
    pub(crate) fn now(&self, monotonic_ns: u64) -> Nanos {
        Nanos::new(self.t0_ns.saturating_add(monotonic_ns))
    }

    /// That nothing is charged but what was admitted: everybody has given back what they held, for the buckets
    /// that count at `now`. (Of a rule that is gone nothing is given back, and nobody counts it.)
    pub(crate) fn nothing_is_held(&self, now: Nanos, workers: &[u64]) -> Result<(), Broken> {
        for law in self.in_force() {
            law.nothing_is_held(self.now(0), now, workers).map_err(|what| law.say(&what))?;
        }
        Ok(())
    }

    /// That nobody who lives holds a permit: all requests have ended.
    pub(crate) fn no_permits_are_held(&self, workers: &[u64]) -> Result<(), Broken> {
        for law in self.in_force() {
            if let Book::Permits(book) = &law.book
                && book.held_by(workers) > 0
            {
                let held = book.held_by(workers);
                return Err(law.say(&format!("{held} permits are held, and nothing is in flight")));
            }
        }
        Ok(())
    }

    /// That every breaker has opened for which everything failed for a while.
    pub(crate) fn breakers_have_opened(&self) -> Result<(), Broken> {
        for law in self.in_force() {
            if let (Book::Breaker(book), Rule::CircuitBreaker(rule)) = (&law.book, &*law.rule)
                && let Some(ended) = self.ended.get(law.rule.resource())
            {
                book.has_opened(rule, ended).map_err(|what| law.say(&what))?;
            }
        }
        Ok(())
    }

    /// Slots that were taken and not used.
    pub(crate) fn slots_unused(&self) -> u64 {
        let of = |law: &Law| match law.book {
            Book::Pace(_) if !law.was_shadow => {
                u64::try_from(law.taken - law.admitted).unwrap_or(0)
            }
            Book::Nothing
            | Book::Rate(_)
            | Book::Pace(_)
            | Book::Bucket(_)
            | Book::Permits(_)
            | Book::Breaker(_) => 0,
        };
        self.laws.values().map(of).sum()
    }

    /// The version of the newest rule set; 0 if there is none.
    pub(crate) fn rules_version(&self) -> u64 {
        self.sets.last_key_value().map_or(0, |(version, _)| *version)
    }

    /// The most keys that shared data may have: seeds, workers, service, rules, decisions, and the ledgers and
    /// sets of the largest rule set.
    pub(crate) fn keys_most(&self) -> usize {
        5 + self.keys_most
    }

    /// Tokens granted and never spent, in all buckets of a rule's ledger that are still written there.
    pub(crate) fn stranded(&self, rule: &str) -> u64 {
        let of = |account: &Account| {
            let unspent = |(bucket, granted): (_, u64)| granted - account.admitted_in(bucket);
            account.granted().map(unspent).sum::<u64>()
        };
        self.accounts(rule).map(of).sum()
    }

    /// What each whole window of a rule admitted that lies between two points in time.
    pub(crate) fn windows(&self, rule: &str, from: Nanos, until: Nanos) -> Vec<WindowUse> {
        let mut uses = Vec::new();
        for account in self.accounts(rule) {
            let shape = account.shape;
            let back = u64::from(shape.buckets()) - 1;
            let mut first = shape.bucket_at(from).later(1);
            while shape.start_of(first.later(back + 1)) <= until {
                let end = first.later(back);
                uses.push(WindowUse {
                    from: shape.start_of(first),
                    last_bucket: shape.bucket(),
                    admitted: account.window(end),
                    allowed: account.allowed(end),
                });
                first = first.later(1);
            }
        }
        uses
    }

    /// Breakers of the set in force that are not closed.
    pub(crate) fn not_closed(&self) -> usize {
        let is_open = |law: &&Law| match &law.book {
            Book::Breaker(book) => book.state() != BreakerState::Closed,
            Book::Nothing | Book::Rate(_) | Book::Pace(_) | Book::Bucket(_) | Book::Permits(_) => {
                false
            }
        };
        self.in_force().filter(is_open).count()
    }

    fn accounts(&self, rule: &str) -> impl Iterator<Item = &Account> {
        let laws = self.laws.values().filter(move |law| law.rule.id() == rule && law.sets == 0);
        laws.filter_map(|law| match &law.book {
            Book::Rate(accounts) => accounts.get(&ONLY),
            Book::Nothing
            | Book::Pace(_)
            | Book::Bucket(_)
            | Book::Permits(_)
            | Book::Breaker(_) => None,
        })
    }

    fn in_force(&self) -> impl Iterator<Item = &Law> {
        let occupants = self.sets.values().next_back().into_iter().flatten();
        occupants.filter_map(|(occupant, _)| self.laws.get(occupant))
    }

    /// The rules that look at a request, under the set by which it was answered. Where the worker has met a newer
    /// occupant in a rule's ledger, that one stands in for the rule until the worker has taken up the whole set.
    fn applying(&mut self, answer: &Answer) -> Vec<(Occupant, Rc<Rule>)> {
        let mut rules = self.named_by(answer);
        let (version, followed) = self.followed.entry(answer.vm).or_default();
        if *version != answer.rules_version {
            (*version, *followed) = (answer.rules_version, BTreeMap::new());
        }
        for (occupant, rule) in &mut rules {
            let Some(law) = self.laws.get(occupant) else { continue };
            // What it writes over an older occupant is the newer one's as well.
            let loaded = answer.seen.loaded.iter().map(|(key, stamp, _)| (key, stamp));
            let stored = answer.seen.stored.iter().map(|(key, stamp, ..)| (key, stamp));
            let met = loaded.chain(stored).filter(|(key, _)| law.has(**key));
            let newest = met.map(|(_, stamp)| stamp.generation).max();
            if let Some(newer) = newest.filter(|newest| newest > occupant) {
                followed.insert(*occupant, newer);
            }
            if let Some(newer) = followed.get(occupant)
                && let Some(law) = self.laws.get(newer)
            {
                (*occupant, *rule) = (*newer, Rc::clone(&law.rule));
            }
        }
        rules
    }

    /// The rules of the set by which a request was answered.
    fn named_by(&self, answer: &Answer) -> Vec<(Occupant, Rc<Rule>)> {
        let Some(set) = self.sets.get(&answer.rules_version) else { return Vec::new() };
        let is_named = |rank: u8| {
            set.iter().any(|(_, rule)| {
                rule.rank() == rank
                    && rule.common().unit == answer.unit
                    && rule.resource() == &*answer.resource
            })
        };
        let applies = |rule: &Rule| match (rule, rule.target()) {
            _ if rule.common().unit != answer.unit => false,
            (Rule::Hotspot(rule), _) if rule.param.is_some() && answer.user.is_none() => false,
            (_, None) => true,
            (_, Some(Target::Resource(name))) => **name == *answer.resource,
            (rule, Some(Target::Default)) => !is_named(rule.rank()),
            (_, Some(Target::Pattern(_) | Target::Group(_))) => false,
        };
        set.iter().filter(|(_, rule)| applies(rule)).cloned().collect()
    }

    fn rules_written(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let unreadable = |error| format!("the published rule set cannot be read: {error}");
        let (header, mut reader) = RuleSetReader::open(bytes.to_vec()).map_err(unreadable)?;
        self.settings = header.settings;
        let mut occupants = Vec::new();
        let mut keys = BTreeSet::new();
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            let rule = Rc::new(entry.rule);
            if rule.id().starts_with(TRIED) {
                let id = rule.id();
                return Err(format!(
                    "rule {id} is in force, of a configuration that was only tried"
                ));
            }
            let law = Law::new(Rc::clone(&rule), entry.slot, entry.sets);
            let count = keys.len();
            keys.extend(law.keys());
            if keys.len() != count + law.keys().count() {
                return Err(format!(
                    "rule {} of set {} shares a ledger",
                    rule.id(),
                    header.version
                ));
            }
            match self.laws.get_mut(&entry.generation) {
                Some(known) => known.go_on(law)?,
                None => {
                    self.laws.insert(entry.generation, law);
                }
            }
            occupants.push((entry.generation, rule));
        }
        if header.version <= self.rules_version() {
            return Err(format!("rule set {} came after a newer one", header.version));
        }
        // Contiguous sets may have to lie behind a gap that is too small.
        self.keys_most = self.keys_most.max(2 * keys.len());
        self.sets.insert(header.version, occupants);
        Ok(())
    }

    /// There is one service: another one may take its role only when it has been silent for two seconds.
    fn beaten(&mut self, write: &Write) -> Result<(), Broken> {
        const ROLE_TTL: Span = Span::from_millis(2_000);
        let beat = ServiceBeat::decode(&write.value).map_err(|error| error.to_string())?;
        let heard = Nanos::new(beat.heartbeat_ns);
        if let Some((instance, last)) = self.service
            && instance != beat.instance
            && self.now(write.at_ns).since(last) <= ROLE_TTL
        {
            let after = self.now(write.at_ns).since(last).as_millis();
            return Err(format!("another service takes over {after} ms after the last has beaten"));
        }
        self.service = Some((beat.instance, heard));
        Ok(())
    }

    /// The rules of the newest set, by their ids.
    pub(crate) fn rules_in_force(&self) -> Vec<Rc<Rule>> {
        let set = self.sets.values().next_back();
        set.into_iter().flatten().map(|(_, rule)| Rc::clone(rule)).collect()
    }

    /// How many rules the largest set had.
    pub(crate) fn rules_most(&self) -> usize {
        self.sets.values().map(Vec::len).max().unwrap_or(0)
    }

    fn ledger_written(&mut self, write: &Write, by_service: bool) -> Result<(), Broken> {
        let (stamp, value) = ledger::decode(&write.value).map_err(|error| error.to_string())?;
        let occupant = stamp.generation;
        let before = self.written.insert(write.key, occupant);
        if before.is_some_and(|before| before > occupant) {
            return Err(format!("an older generation has written over {:?}", write.key));
        }
        let now = self.now(write.at_ns);
        let ttl = u64::from(self.settings.worker_ttl_ms) + u64::from(self.settings.orphan_ttl_ms);
        let Some(law) = self.laws.get_mut(&occupant).filter(|law| law.has(write.key)) else {
            return Err(format!("{:?} has an occupant that no rule set names", write.key));
        };
        let nothing = VecDeque::new();
        let ended = self.ended.get(law.rule.resource()).unwrap_or(&nothing);
        let context = Context { now, ttl: Span::from_millis(ttl), by_service, ended };
        law.store(write.key, &stamp, &value, &context, &mut self.moves)
            .map_err(|what| law.say(&what))
    }
}

impl Row {
    /// A row of refusals with one more at `now`: the same row if there was one just before.
    fn go_on(row: Option<Self>, now: Nanos) -> Self {
        let first = row.filter(|row| now.since(row.last) <= TICK).map_or(now, |row| row.first);
        Self { first, last: now }
    }

    fn length(self) -> Span {
        self.last.since(self.first)
    }

    fn is_too_long(self) -> bool {
        self.length() > TICK
    }
}
