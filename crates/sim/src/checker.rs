//! The promises, checked from outside.
//!
//! The checker sees what Envoy could see: which requests were answered how, what the clock said to the
//! worker that answered, and which bytes stand in shared data. It knows Sentinel's windows and the layout
//! of the values. How tokens are claimed and leased it does not know.
//!
//! A request counts at the time its worker read from the clock for it, or at the start of the newest
//! bucket that it then found in one of its ledgers, whichever is later: that is what "now" means to a
//! worker that slept in between.

use std::collections::{BTreeMap, BTreeSet};

use sentinel_core::{
    ledger::{RateLedger, whole_tokens},
    rule::Rule,
    time::{Nanos, Span},
    window::{BucketId, WindowShape},
};
use sentinel_wire::{key::Key, ledger, rules::RuleSetReader, workers::Seeds};

use crate::{process::Write, vm::Answer};

/// What went wrong, in one sentence.
pub(crate) type Broken = String;

/// A ledger's occupant: slot and generation.
type Occupant = (u32, u64);

/// Everything that was promised, and how it stands.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    t0_ns: u64,
    /// By version: what each resource's requests have to pay.
    sets: BTreeMap<u64, BTreeMap<String, Vec<Occupant>>>,
    ledgers: BTreeMap<Occupant, Account>,
    rules_most: usize,
}

/// One ledger's life.
#[derive(Debug)]
struct Account {
    rule: String,
    shape: WindowShape,
    /// Tokens of admitted requests.
    admitted: BTreeMap<BucketId, u64>,
    /// The threshold, and the bucket from which on it was in the ledger.
    thresholds: Vec<(BucketId, u64)>,
    /// The newest bytes.
    stored: Option<RateLedger>,
    /// When requests were refused though more were allowed, without a pause.
    refused: Option<Refused>,
}

/// A row of refusals in one bucket.
#[derive(Clone, Copy, Debug)]
struct Refused {
    bucket: BucketId,
    first: Nanos,
    last: Nanos,
}

/// How long a wrong refusal may last: a worker's tick, 10 ms and what the kernel adds, and a little for the
/// calls of all workers.
const TICK: Span = Span::from_millis(17);

/// How much of each window was admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowUse {
    /// When the window begins.
    pub(crate) from: Nanos,
    /// How long its last bucket is.
    pub(crate) last_bucket: Span,
    pub(crate) admitted: u64,
    pub(crate) allowed: u64,
}

impl Checker {
    /// Takes in a write to shared data.
    pub(crate) fn written(&mut self, write: &Write) -> Result<(), Broken> {
        match write.key {
            Key::Seeds => {
                let seeds = Seeds::decode(&write.value).map_err(|error| error.to_string())?;
                self.t0_ns = seeds.t0_ns;
            }
            Key::Rules => self.rules_written(&write.value)?,
            Key::Ledger(slot) => {
                let ledger = ledger::decode(&write.value).map_err(|error| error.to_string())?;
                self.ledger_written(slot, ledger)?;
            }
            Key::Workers | Key::Service | Key::Missing | Key::Signal(_) => {}
        }
        Ok(())
    }

    /// Takes in an admitted request.
    pub(crate) fn admitted(&mut self, answer: &Answer) -> Result<(), Broken> {
        let Some(set) = self.sets.get(&answer.rules_version) else { return Ok(()) };
        let Some(occupants) = set.get(&*answer.resource) else { return Ok(()) };
        let mut now = self.now(answer.seen.monotonic_ns);
        for (slot, ledger) in &answer.seen.ledgers {
            let occupant = (*slot, ledger.generation);
            if occupants.contains(&occupant)
                && let Some(account) = self.ledgers.get(&occupant)
            {
                now = now.max(account.shape.start_of(ledger.newest));
            }
        }
        for occupant in occupants {
            if let Some(account) = self.ledgers.get_mut(occupant) {
                account.admit(now, u64::from(answer.batch))?;
            }
        }
        Ok(())
    }

    /// Takes in a refused request of a run in which no thread is lost and nothing changes: what others hold
    /// unspent must be back within a tick.
    pub(crate) fn refused(&mut self, answer: &Answer, by: &str) -> Result<(), Broken> {
        let now = self.now(answer.seen.monotonic_ns);
        let Some(set) = self.sets.get(&answer.rules_version) else { return Ok(()) };
        for occupant in set.get(&*answer.resource).into_iter().flatten() {
            if let Some(account) =
                self.ledgers.get_mut(occupant).filter(|account| account.rule == by)
            {
                account.refuse(now, u64::from(answer.batch))?;
            }
        }
        Ok(())
    }

    /// The shared clock at a monotonic time.
    pub(crate) fn now(&self, monotonic_ns: u64) -> Nanos {
        Nanos::new(self.t0_ns.saturating_add(monotonic_ns))
    }

    /// That nothing is granted but what was admitted, for buckets that count at `now`: everybody has given
    /// back what they held. (Of a rule that is gone nothing is given back, and nobody counts it.)
    pub(crate) fn nothing_is_held(&self, now: Nanos) -> Result<(), Broken> {
        let in_force =
            self.sets.values().next_back().into_iter().flat_map(BTreeMap::values).flatten();
        for account in in_force.filter_map(|occupant| self.ledgers.get(occupant)) {
            let current = account.shape.bucket_at(now);
            for (bucket, granted) in account.granted() {
                let admitted = account.admitted_in(bucket);
                if account.shape.counts(bucket, current) && granted != admitted {
                    return Err(format!(
                        "rule {}: {granted} tokens are charged to bucket {} and {admitted} were spent, \
                         though everybody has given back",
                        account.rule,
                        bucket.get(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The version of the newest rule set; 0 if there is none.
    pub(crate) fn rules_version(&self) -> u64 {
        self.sets.last_key_value().map_or(0, |(version, _)| *version)
    }

    /// The most keys that shared data may have: seeds, workers, service, rules, and one for each rule of the
    /// largest set.
    pub(crate) fn keys_most(&self) -> usize {
        4 + self.rules_most
    }

    /// Tokens granted and never spent, in all buckets of a rule's ledger that are still written there.
    pub(crate) fn stranded(&self, rule: &str) -> u64 {
        let accounts = self.ledgers.values().filter(|account| account.rule == rule);
        let of = |account: &Account| {
            let unspent =
                |(bucket, granted): (BucketId, u64)| granted - account.admitted_in(bucket);
            account.granted().map(unspent).sum::<u64>()
        };
        accounts.map(of).sum()
    }

    /// What each whole window of a rule admitted that lies between two points in time.
    pub(crate) fn windows(&self, rule: &str, from: Nanos, until: Nanos) -> Vec<WindowUse> {
        let mut uses = Vec::new();
        for account in self.ledgers.values().filter(|account| account.rule == rule) {
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

    fn rules_written(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let unreadable = |error| format!("the published rule set cannot be read: {error}");
        let (header, mut reader) = RuleSetReader::open(bytes.to_vec()).map_err(unreadable)?;
        let mut set: BTreeMap<String, Vec<Occupant>> = BTreeMap::new();
        let mut slots = BTreeSet::new();
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            let occupant = (entry.slot, entry.generation);
            if !slots.insert(entry.slot) {
                return Err(format!(
                    "two rules of set {} share ledger {}",
                    header.version, entry.slot
                ));
            }
            let Rule::Flow(flow) = &entry.rule;
            set.entry(flow.resource.clone()).or_default().push(occupant);
            let shape = WindowShape::for_flow(flow.stat_interval_ms);
            let account =
                self.ledgers.entry(occupant).or_insert_with(|| Account::new(&flow.id, shape));
            if account.shape != shape {
                return Err(format!("rule {} goes on with a ledger of another window", flow.id));
            }
        }
        if header.version <= self.rules_version() {
            return Err(format!("rule set {} came after a newer one", header.version));
        }
        self.rules_most = self.rules_most.max(slots.len());
        self.sets.insert(header.version, set);
        Ok(())
    }

    fn ledger_written(&mut self, slot: u32, ledger: RateLedger) -> Result<(), Broken> {
        let occupant = (slot, ledger.generation);
        let newest = self
            .ledgers
            .range((slot, 0)..=(slot, u64::MAX))
            .rev()
            .find(|(_, a)| a.stored.is_some());
        if let Some((newest, account)) = newest
            && *newest > occupant
        {
            return Err(format!(
                "an older generation has written over rule {}'s ledger",
                account.rule
            ));
        }
        let Some(account) = self.ledgers.get_mut(&occupant) else {
            return Err(format!("ledger {slot} has an occupant that no rule set names"));
        };
        account.store(ledger)
    }
}

impl Account {
    fn new(rule: &str, shape: WindowShape) -> Self {
        let rule = rule.to_owned();
        let (admitted, thresholds) = (BTreeMap::new(), Vec::new());
        Self { rule, shape, admitted, thresholds, stored: None, refused: None }
    }

    fn store(&mut self, ledger: RateLedger) -> Result<(), Broken> {
        if self.stored.as_ref().is_some_and(|old| old.newest > ledger.newest) {
            return Err(format!("the time of rule {}'s ledger has gone back", self.rule));
        }
        let threshold = whole_tokens(ledger.threshold);
        if self.thresholds.last().is_none_or(|(_, last)| *last != threshold) {
            self.thresholds.push((ledger.newest, threshold));
        }
        self.stored = Some(ledger);
        let mut sum = 0;
        for (bucket, granted) in self.granted() {
            sum += granted;
            let admitted = self.admitted_in(bucket);
            if admitted > granted {
                let bucket = bucket.get();
                return Err(format!(
                    "rule {}: {admitted} tokens of bucket {bucket} are spent, but only {granted} are granted",
                    self.rule,
                ));
            }
        }
        let end = self.stored.as_ref().map_or(BucketId::new(0), |ledger| ledger.newest);
        self.no_more_than_allowed(end, sum, "granted")
    }

    fn admit(&mut self, now: Nanos, batch: u64) -> Result<(), Broken> {
        let bucket = self.shape.bucket_at(now);
        self.refused = None;
        *self.admitted.entry(bucket).or_default() += batch;
        for later in 0..u64::from(self.shape.buckets()) {
            let end = bucket.later(later);
            self.no_more_than_allowed(end, self.window(end), "admitted")?;
        }
        Ok(())
    }

    fn refuse(&mut self, now: Nanos, batch: u64) -> Result<(), Broken> {
        let bucket = self.shape.bucket_at(now);
        let left = self.allowed(bucket).saturating_sub(self.window(bucket));
        if left < batch {
            self.refused = None;
            return Ok(());
        }
        let goes_on = |row: &Refused| row.bucket == bucket && now.since(row.last) <= TICK;
        let first = self.refused.filter(goes_on).map_or(now, |row| row.first);
        self.refused = Some(Refused { bucket, first, last: now });
        if now.since(first) <= TICK {
            return Ok(());
        }
        let for_ms = now.since(first).as_millis();
        Err(format!("rule {} refuses for {for_ms} ms though {left} more are allowed", self.rule))
    }

    fn no_more_than_allowed(&self, end: BucketId, sum: u64, what: &str) -> Result<(), Broken> {
        let allowed = self.allowed(end);
        if sum <= allowed {
            return Ok(());
        }
        Err(format!(
            "rule {}: {sum} {what} in the window that ends with bucket {}, but {allowed} are allowed",
            self.rule,
            end.get(),
        ))
    }

    /// What the window that ends with this bucket has admitted.
    fn window(&self, end: BucketId) -> u64 {
        self.admitted.range(self.first_of(end)..=end).map(|(_, tokens)| tokens).sum()
    }

    /// The largest threshold that held in any bucket of the window that ends with this one.
    fn allowed(&self, end: BucketId) -> u64 {
        let first = self.first_of(end);
        let mut allowed = 0;
        for (place, (from, threshold)) in self.thresholds.iter().enumerate() {
            let next = self.thresholds.get(place + 1).map(|(next, _)| *next);
            // In the bucket of a change both hold.
            if *from <= end && next.is_none_or(|next| next >= first) {
                allowed = allowed.max(*threshold);
            }
        }
        allowed
    }

    /// The first bucket of the window that ends with this one.
    fn first_of(&self, end: BucketId) -> BucketId {
        BucketId::new(end.get().saturating_sub(u64::from(self.shape.buckets()) - 1))
    }

    fn admitted_in(&self, bucket: BucketId) -> u64 {
        self.admitted.get(&bucket).copied().unwrap_or(0)
    }

    /// Buckets that are written in the ledger, and what is granted in each.
    fn granted(&self) -> impl Iterator<Item = (BucketId, u64)> {
        let buckets = usize::from(self.shape.buckets());
        self.stored.iter().flat_map(move |ledger| {
            let id = |age: u64| Some(BucketId::new(ledger.newest.get().checked_sub(age)?));
            let ring = (0..).zip(ledger.granted.iter().take(buckets));
            ring.filter_map(move |(age, granted)| Some((id(age)?, *granted)))
        })
    }
}
