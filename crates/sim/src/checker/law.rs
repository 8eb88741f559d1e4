//! One rule: what each write to its ledgers must be, and what an admitted request must have taken.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use sentinel_core::{
    ledger::{Ledger, Stamp, breaker::Probe, bucket::BucketTerms, rate::whole_tokens},
    rule::{Control, FlowRule, HotspotMetric, Keeps, Rule, TokenCalculate, Unit},
    time::{Nanos, Span},
    window::WindowShape,
};
use sentinel_wire::{key::Key, ledger::Value};

use super::{
    Broken,
    breaker::{BreakerBook, Ended, Moves},
    bucket::BucketBook,
    pace::PaceBook,
    permits::PermitBook,
    rate::Account,
};
use crate::vm::Answer;

/// The hash of a rule with one ledger.
pub(super) const ONLY: u128 = 0;

/// One rule, and what has come of it.
#[derive(Debug)]
pub(super) struct Law {
    pub(super) rule: Rc<Rule>,
    /// Whether it has ever only counted: then what is admitted has not always been taken.
    pub(super) was_shadow: bool,
    /// Its ledger's slot, or its first set, and how many sets.
    slot: u32,
    pub(super) sets: u32,
    /// Tokens, slots or buckets' tokens that were taken and not given back.
    pub(super) taken: i64,
    /// The same of admitted requests.
    pub(super) admitted: i64,
    /// Entries that its sets have now.
    entries: BTreeMap<Key, BTreeSet<u128>>,
    pub(super) book: Book,
}

/// What a rule's ledgers say, by entry.
#[derive(Debug)]
pub(super) enum Book {
    Nothing,
    Rate(BTreeMap<u128, Account>),
    Pace(BTreeMap<u128, PaceBook>),
    Bucket(BTreeMap<u128, BucketBook>),
    Permits(PermitBook),
    Breaker(BreakerBook),
}

/// Of a write.
pub(super) struct Context<'a> {
    pub(super) now: Nanos,
    pub(super) ttl: Span,
    pub(super) by_service: bool,
    /// Ended requests of the rule's resource.
    pub(super) ended: &'a VecDeque<Ended>,
}

impl Law {
    pub(super) fn new(rule: Rc<Rule>, slot: u32, sets: u32) -> Self {
        let book = match rule.keeps() {
            Keeps::Nothing => Book::Nothing,
            Keeps::Rate => Book::Rate(BTreeMap::new()),
            Keeps::Pace => Book::Pace(BTreeMap::new()),
            Keeps::Bucket => Book::Bucket(BTreeMap::new()),
            Keeps::Permits => Book::Permits(PermitBook::default()),
            Keeps::Breaker => Book::Breaker(BreakerBook::default()),
        };
        let was_shadow = rule.common().shadow;
        let entries = BTreeMap::new();
        Self { rule, was_shadow, slot, sets, taken: 0, admitted: 0, entries, book }
    }

    /// The same occupant under a newer rule set.
    pub(super) fn go_on(&mut self, new: Self) -> Result<(), Broken> {
        let same = (self.slot, self.sets) == (new.slot, new.sets)
            && self.rule.keeps() == new.rule.keeps()
            && self.shape() == new.shape()
            && self.interval() == new.interval();
        if !same {
            return Err(self.say("it goes on with a ledger that counts something else"));
        }
        self.was_shadow |= new.was_shadow;
        self.rule = new.rule;
        Ok(())
    }

    pub(super) fn say(&self, what: &str) -> Broken {
        format!("rule {}: {what}", self.rule.id())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let (slot, sets) = (self.slot, self.sets);
        let single =
            (sets == 0 && !matches!(self.book, Book::Nothing)).then_some(Key::Ledger(slot));
        single.into_iter().chain((slot..slot + sets).map(Key::Set))
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.keys().any(|own| own == key)
    }

    pub(super) fn store(
        &mut self,
        key: Key,
        stamp: &Stamp,
        value: &Value,
        context: &Context<'_>,
        moves: &mut Moves,
    ) -> Result<(), Broken> {
        match value {
            Value::Single(ledger) => self.store_one(ONLY, stamp, ledger, context, moves),
            Value::Set(_, set) => {
                let hashes: BTreeSet<u128> = set.entries.iter().map(|(hash, _)| *hash).collect();
                if hashes.len() < set.entries.len() {
                    return Err("a value has two entries in one set".to_owned());
                }
                // Each set has an entry of its own that others share.
                let name = |hash: u128| match (hash, key) {
                    (0, Key::Set(set)) => u128::from(set) + 1,
                    _ => hash,
                };
                let hashes: BTreeSet<u128> = hashes.into_iter().map(name).collect();
                let before = self.entries.insert(key, hashes.clone()).unwrap_or_default();
                if let Book::Permits(book) = &mut self.book {
                    for gone in before.difference(&hashes) {
                        book.forget(*gone, context.now, context.ttl)?;
                    }
                }
                for (hash, ledger) in &set.entries {
                    let hash = name(*hash);
                    if !before.contains(&hash) {
                        self.begin_anew(hash, stamp, ledger, context.now)?;
                    }
                    self.store_one(hash, stamp, ledger, context, moves)?;
                }
                Ok(())
            }
        }
    }

    /// A value that was forgotten, if it was ever known, has an entry again.
    fn begin_anew(
        &mut self,
        hash: u128,
        stamp: &Stamp,
        ledger: &Ledger,
        now: Nanos,
    ) -> Result<(), Broken> {
        let (terms, interval) = (self.bucket_terms(), self.interval());
        match (&mut self.book, ledger) {
            (Book::Rate(accounts), Ledger::Rate(rate)) => match accounts.get_mut(&hash) {
                Some(account) => account.begin_anew(rate),
                None => Ok(()),
            },
            (Book::Bucket(books), _) => match books.get_mut(&hash) {
                Some(book) => book.begin_anew(now, whole_tokens(stamp.threshold), &terms),
                None => Ok(()),
            },
            (Book::Pace(books), _) => match books.get_mut(&hash) {
                Some(book) => book.begin_anew(now, interval),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn store_one(
        &mut self,
        hash: u128,
        stamp: &Stamp,
        ledger: &Ledger,
        context: &Context<'_>,
        moves: &mut Moves,
    ) -> Result<(), Broken> {
        let (shape, interval, terms) = (self.shape(), self.interval(), self.bucket_terms());
        match (&mut self.book, ledger) {
            (Book::Rate(accounts), Ledger::Rate(rate)) => {
                let account =
                    accounts.entry(hash).or_insert_with(|| Account::new(self.rule.id(), shape));
                let before = account.granted_ever;
                account.store(stamp, rate)?;
                self.taken += signed(account.granted_ever) - signed(before);
            }
            (Book::Pace(books), Ledger::Pace(pace)) => {
                let cost = cost(1, stamp.threshold, interval);
                self.taken += books.entry(hash).or_default().store(pace.last, cost)?;
            }
            (Book::Bucket(books), Ledger::Bucket(bucket)) => {
                let book = books.entry(hash).or_default();
                self.taken += book.store(*bucket, whole_tokens(stamp.threshold), &terms)?;
            }
            (Book::Permits(book), Ledger::Permits(permits)) => {
                book.store(hash, permits, stamp.threshold, context.now, context.ttl)?;
            }
            (Book::Breaker(book), Ledger::Breaker(breaker)) => {
                if let Rule::CircuitBreaker(rule) = &*self.rule {
                    book.store(breaker, rule, context, moves)?;
                }
            }
            _ => return Err("its ledger is of another kind".to_owned()),
        }
        Ok(())
    }

    /// Takes in an admitted request; the answer is its slot.
    pub(super) fn admit(
        &mut self,
        answer: &Answer,
        now: Nanos,
        late: Option<Nanos>,
        moves: &mut Moves,
    ) -> Result<Nanos, Broken> {
        let batch = u64::from(answer.batch);
        let interval = self.interval();
        let key = self.counted_by(answer);
        let stored = self.last_stored(answer);
        let slots = self.slots_of_messages(answer);
        match &mut self.book {
            Book::Nothing => {}
            Book::Rate(accounts) => {
                self.admitted += signed(batch);
                if self.sets == 0 {
                    match accounts.get_mut(&ONLY) {
                        Some(account) => account.admit(now, batch)?,
                        None => {
                            return Err(
                                "a request is admitted before anything was granted".to_owned()
                            );
                        }
                    }
                }
            }
            Book::Bucket(_) => self.admitted += signed(batch),
            Book::Pace(books) => {
                // Each message has a slot of its own.
                let batch = if answer.unit == Unit::Message {
                    if slots != signed(batch) {
                        return Err(format!("{batch} messages go with {slots} slots"));
                    }
                    self.admitted += slots;
                    1
                } else {
                    self.admitted += 1;
                    batch
                };
                let Some((stamp, hash, before, after)) = stored else {
                    return Err("a request goes without asking for a slot".to_owned());
                };
                let (Ledger::Pace(before), Ledger::Pace(after)) = (before, after) else {
                    return Err("its ledger is of another kind".to_owned());
                };
                if after.last <= before.last {
                    return Err("a request goes without taking a slot".to_owned());
                }
                // A worker that lost its thread may have been followed by others.
                if let Some(book) = books.get(&hash) {
                    book.admitted(after.last, cost(batch, stamp.threshold, interval))?;
                }
                return Ok(after.last);
            }
            Book::Permits(book) => book.admitted(&key, answer.stream)?,
            Book::Breaker(book) => {
                let out = |ledger: Ledger| -> Vec<Probe> {
                    if let Ledger::Breaker(breaker) = ledger { breaker.out } else { Vec::new() }
                };
                let probes = stored.map(|(_, _, before, after)| (out(before), out(after)));
                if let Rule::CircuitBreaker(rule) = &*self.rule {
                    book.admitted(answer.stream, probes, rule, late, moves)?;
                }
            }
        }
        Ok(Nanos::default())
    }

    /// Messages are refused: those of them that a pace had let go before have had their slots.
    pub(super) fn refuse_messages(&mut self, answer: &Answer) {
        self.admitted += self.slots_of_messages(answer);
    }

    /// How many slots messages have taken of a pace, without those that they gave back.
    fn slots_of_messages(&self, answer: &Answer) -> i64 {
        if answer.unit != Unit::Message || !matches!(self.book, Book::Pace(_)) {
            return 0;
        }
        let steps = (0..answer.seen.stored.len()).filter_map(|place| self.stored_at(answer, place));
        let slots = steps.map(|(_, _, before, after)| match (before, after) {
            (Ledger::Pace(before), Ledger::Pace(after)) => match after.last.cmp(&before.last) {
                Ordering::Greater => 1,
                Ordering::Equal => 0,
                Ordering::Less => -1,
            },
            _ => 0,
        });
        slots.sum()
    }

    pub(super) fn refuse(&mut self, answer: &Answer, now: Nanos) -> Result<(), Broken> {
        let batch = u64::from(answer.batch);
        let (key, is_plain) = (self.counted_by(answer), self.is_plain());
        match &mut self.book {
            Book::Rate(accounts) if is_plain => match accounts.get_mut(&ONLY) {
                Some(account) => account.refuse(now, batch),
                None => Ok(()),
            },
            Book::Permits(book) if is_plain => book.refused(&key, batch, now),
            Book::Nothing
            | Book::Rate(_)
            | Book::Pace(_)
            | Book::Bucket(_)
            | Book::Permits(_)
            | Book::Breaker(_) => Ok(()),
        }
    }

    pub(super) fn nothing_is_held(
        &self,
        began: Nanos,
        now: Nanos,
        workers: &[u64],
    ) -> Result<(), Broken> {
        // What was taken before a bucket ended, or a value's was filled, and given back after that stays charged
        // to what has ended: each worker can be in the middle of one request then.
        let charges = |what: &str, each: Span| {
            let (taken, admitted) = (self.taken, self.admitted);
            let ends = signed(now.since(began).get() / each.get().max(1) + 1);
            let late = ends.saturating_mul(signed(workers.len() as u64));
            if (0..=late).contains(&(taken - admitted)) || self.was_shadow {
                return Ok(());
            }
            Err(format!(
                "{taken} {what} are charged and {admitted} were used, though everybody has ended"
            ))
        };
        match &self.book {
            Book::Nothing => Ok(()),
            Book::Rate(_) if self.sets > 0 => charges("tokens", self.shape().bucket()),
            Book::Rate(accounts) => {
                for account in accounts.values().filter(|_| !self.was_shadow) {
                    let current = account.shape.bucket_at(now);
                    for (bucket, granted) in account.granted() {
                        let admitted = account.admitted_in(bucket);
                        if account.shape.counts(bucket, current) && granted != admitted {
                            return Err(format!(
                                "{granted} tokens are charged to bucket {} and {admitted} were spent, though \
                                 everybody has given back",
                                bucket.get(),
                            ));
                        }
                    }
                }
                Ok(())
            }
            Book::Bucket(_) => charges("tokens", self.interval()),
            // A slot that somebody has followed cannot be given back: see `slots_unused`.
            Book::Pace(_) if self.taken >= self.admitted || self.was_shadow => Ok(()),
            Book::Pace(_) => {
                Err(format!("{} requests had {} slots between them", self.admitted, self.taken))
            }
            Book::Permits(book) => match book.held_by(workers) {
                0 => Ok(()),
                held => Err(format!("{held} permits are held, and nothing is in flight")),
            },
            Book::Breaker(book) => match book.probes_out() {
                0 => Ok(()),
                out => Err(format!("{out} probes are out, and all have ended")),
            },
        }
    }

    /// What a request is counted by, in a table.
    fn counted_by(&self, answer: &Answer) -> String {
        let resource = match self.rule.target() {
            Some(target) if target.is_many() => &*answer.resource,
            _ => "",
        };
        match (&*self.rule, answer.user) {
            (Rule::Hotspot(rule), Some(user)) if rule.param.is_some() => {
                format!("{resource} {user}")
            }
            _ => resource.to_owned(),
        }
    }

    /// The entry that a worker last wrote for a request, as it was before and after.
    fn last_stored(&self, answer: &Answer) -> Option<(Stamp, u128, Ledger, Ledger)> {
        let last = answer.seen.stored.iter().rposition(|(key, ..)| self.has(*key))?;
        self.stored_at(answer, last)
    }

    /// The entry that a worker has written so, if it is one of this rule's, as it was before and after.
    fn stored_at(&self, answer: &Answer, place: usize) -> Option<(Stamp, u128, Ledger, Ledger)> {
        let (key, stamp, after, loaded) = answer.seen.stored.get(place)?;
        if !self.has(*key) {
            return None;
        }
        let empty = || Ledger::new(self.rule.keeps());
        let before = answer.seen.loaded.get(..*loaded)?;
        let before = before.iter().rev().find(|(known, ..)| known == key);
        let before = before.filter(|(_, found, _)| found.generation == stamp.generation);
        match (before.map(|(_, _, value)| value), after) {
            (Some(Value::Single(before)), Value::Single(after)) => {
                Some((*stamp, ONLY, before.clone(), after.clone()))
            }
            (_, Value::Single(after)) => Some((*stamp, ONLY, empty()?, after.clone())),
            (before, Value::Set(_, after)) => {
                let known = |hash: u128| match before {
                    Some(Value::Set(_, set)) => {
                        let entry = set.entries.iter().find(|(known, _)| *known == hash);
                        entry.map(|(_, ledger)| ledger.clone())
                    }
                    Some(Value::Single(_)) | None => None,
                };
                let (hash, after) = after
                    .entries
                    .iter()
                    .find(|(hash, ledger)| known(*hash).as_ref() != Some(ledger))?;
                let before = known(*hash).or_else(empty)?;
                let name = match (*hash, key) {
                    (0, Key::Set(set)) => u128::from(*set) + 1,
                    _ => *hash,
                };
                Some((*stamp, name, before, after.clone()))
            }
        }
    }

    /// Whether nothing but its threshold says how much is left.
    fn is_plain(&self) -> bool {
        match &*self.rule {
            Rule::Flow(flow) => self.sets == 0 && flow.calculate == TokenCalculate::Direct,
            Rule::Isolation(_) | Rule::System(_) => self.sets == 0,
            Rule::Authority(_) | Rule::Gateway(_) | Rule::Hotspot(_) | Rule::CircuitBreaker(_) => {
                false
            }
        }
    }

    pub(super) fn shape(&self) -> WindowShape {
        let interval_ms =
            if let Rule::Flow(flow) = &*self.rule { flow.stat_interval_ms } else { 1_000 };
        WindowShape::for_flow(interval_ms)
    }

    /// The time that a pace's or a bucket's threshold speaks of.
    fn interval(&self) -> Span {
        let paced = |flow: &FlowRule| matches!(flow.control, Control::Throttling { .. });
        Span::from_millis(match &*self.rule {
            Rule::Flow(flow) if paced(flow) => u64::from(flow.stat_interval_ms),
            Rule::Hotspot(rule) | Rule::Gateway(rule) => rule.metric.duration_ms(),
            Rule::Authority(_)
            | Rule::System(_)
            | Rule::Flow(_)
            | Rule::Isolation(_)
            | Rule::CircuitBreaker(_) => 0,
        })
    }

    fn bucket_terms(&self) -> BucketTerms {
        let mut terms = BucketTerms { duration: self.interval(), burst: 0 };
        if let Rule::Hotspot(rule) | Rule::Gateway(rule) = &*self.rule
            && let HotspotMetric::Reject { burst, .. } = rule.metric
        {
            terms.burst = burst;
        }
        terms
    }
}

/// The time that a batch takes, rounded down: what is given may be a nanosecond more.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, and a nanosecond is nothing"
)]
fn cost(batch: u64, threshold: f64, interval: Span) -> Span {
    if threshold <= 0.0 {
        return Span::ZERO;
    }
    Span::new((batch as f64 / threshold * interval.get() as f64 * (1.0 - 1e-12)) as u64)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
