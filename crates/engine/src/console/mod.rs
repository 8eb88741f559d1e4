//! What is in force now, as JSON: for `cargo xtask top`, and for whoever else looks.
//!
//! It is read from shared data as it stands. Looking writes nothing, makes no VM a worker, and needs neither the
//! service nor traffic. What a worker has in hand or lets wait stands in no ledger: of that only the worker
//! that answers can tell, and it says who it is.
//!
//! `<path>/state` shows a page of rules, `?offset=` and `?limit=` say which, and `next` where the following one begins;
//! `?rule=<id>` shows one rule with the values in its table. What one answer reads and says is bounded: it is made on a thread
//! that has requests to serve.

mod json;

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};

use sentinel_core::{
    config::Settings,
    ledger::{
        Ledger, Meeting, Stamp,
        breaker::BreakerState,
        bucket::{BucketLedger, BucketTerms},
        pace::Paced,
        rate::whole_tokens,
        set::SHARED,
    },
    param::query_param,
    resource::path_without_query,
    rule::{BreakerStrategy, CircuitBreakerRule, Control, Keeps, LimitApp, Rule},
    time::Nanos,
};
use sentinel_wire::{
    DecodeError,
    decisions::Decisions,
    key::Key,
    ledger::{self, Value},
    rules::{RuleEntry, RuleSetHeader, RuleSetReader},
    service::ServiceBeat,
    workers::Workers,
};

use self::json::Json;
use crate::{
    census::LIVE,
    clock::Clock,
    host::Host,
    rule_state::{Hold, Terms, is_adaptive, threshold_of},
    worker::Worker,
};

/// Which shape the answers have: grows when a reader of an older one would misunderstand.
pub const FORMAT: u64 = 1;

/// The most rules in one answer.
pub const RULES_MAX: u32 = 500;

/// An answer that is this long gets no further rule.
const BYTES_MAX: usize = 256 * 1024;

/// The most sets of a table that one answer is made from: 512 are all of a table for 4,096 values.
pub const SETS_MAX: u32 = 512;

/// How many values of a table are shown.
const VALUES_SHOWN: usize = 10;

/// What the console says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON.
    pub body: String,
}

/// Answers a request for `path`, query included, if it stands below the console's own path `prefix`; `None`: it is a
/// request like any other. `worker` is that of this VM, if there is one.
pub fn answer<H: Host>(
    host: &mut H,
    worker: Option<&Worker>,
    prefix: &str,
    path: &[u8],
) -> Option<Answer> {
    let answer = match path_without_query(path).strip_prefix(prefix.as_bytes())? {
        b"/state" => match Asked::of(path) {
            Ok(asked) => state(host, worker, &asked),
            Err(problem) => refusal(400, problem),
        },
        [] | [b'/', ..] => refusal(404, "there is only `state` under this path"),
        _ => return None,
    };
    Some(answer)
}

fn refusal(status: u16, problem: &str) -> Answer {
    let mut json = Json::default();
    json.open("", '{');
    json.text("error", problem);
    json.close('}');
    Answer { status, body: json.into_text() }
}

/// What is asked for.
struct Asked {
    rule: Option<Vec<u8>>,
    offset: u32,
    limit: u32,
}

impl Asked {
    fn of(path: &[u8]) -> Result<Self, &'static str> {
        let (offset, limit) = (number(path, "offset", 0), number(path, "limit", RULES_MAX));
        let (Some(offset), Some(limit)) = (offset, limit) else {
            return Err("`offset` and `limit` must be whole numbers");
        };
        Ok(Self { rule: query_param(path, "rule"), offset, limit: limit.clamp(1, RULES_MAX) })
    }
}

/// A whole number of the query; `None` if it is none.
#[inline(never)]
fn number(path: &[u8], name: &str, default: u32) -> Option<u32> {
    let Some(text) = query_param(path, name) else { return Some(default) };
    let number = text.iter().try_fold(0_u32, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| number.saturating_mul(10).saturating_add(u32::from(digit)))
    });
    number.filter(|_| !text.is_empty())
}

fn state<H: Host>(host: &mut H, worker: Option<&Worker>, asked: &Asked) -> Answer {
    let mut found = Vec::new();
    let now = Clock::look(host, &mut found);
    let mut look = Look { host, worker, now, found, json: Json::default() };
    look.json.open("", '{');
    look.json.number("format", FORMAT);
    look.json.number("nowMs", now.get() / 1_000_000);
    match worker {
        Some(worker) => {
            look.json.open("answeredBy", '{');
            look.json.id("worker", worker.incarnation());
            look.json.number("waiting", worker.waiting());
            look.json.close('}');
        }
        None => look.json.null("answeredBy"),
    }
    let rules = look.read(Key::Rules, |found| RuleSetReader::open(core::mem::take(found)));
    let ttl_ms = match &rules {
        Ok(Some((header, _))) => header.settings.decisions_ttl_ms,
        Ok(None) | Err(_) => Settings::DEFAULT.decisions_ttl_ms,
    };
    look.service(ttl_ms);
    look.workers();
    let shown = match rules {
        Ok(Some((header, reader))) => look.rules(&header, reader, asked),
        Ok(None) => {
            look.json.null("ruleSet");
            0
        }
        Err(problem) => {
            look.problem("ruleSet", problem);
            0
        }
    };
    look.json.close('}');
    if asked.rule.is_some() && shown == 0 {
        return refusal(404, "no rule in force has this id");
    }
    Answer { status: 200, body: look.json.into_text() }
}

/// One look at shared data.
struct Look<'a, H> {
    host: &'a mut H,
    worker: Option<&'a Worker>,
    now: Nanos,
    found: Vec<u8>,
    json: Json,
}

/// Why something cannot be said.
#[derive(Clone, Copy)]
enum Problem {
    /// The bytes cannot be read.
    Bytes(DecodeError),
    /// They cannot be had.
    Host,
}

/// One rule, its ledger apart.
struct Shown<'a> {
    rule: &'a Rule,
    terms: Terms,
    stamp: Stamp,
}

impl<H: Host> Look<'_, H> {
    /// What stands under `key`, or why that cannot be said.
    fn read<T>(
        &mut self,
        key: Key,
        decode: impl FnOnce(&mut Vec<u8>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, Problem> {
        match self.host.load(key, &mut self.found) {
            Ok(Some(_)) => decode(&mut self.found).map(Some).map_err(Problem::Bytes),
            Ok(None) => Ok(None),
            Err(_) => Err(Problem::Host),
        }
    }

    /// Says as the field `name`, or as an item of a list, why something cannot be said.
    fn problem(&mut self, name: &str, problem: Problem) {
        self.json.open(name, '{');
        self.error(problem);
        self.json.close('}');
    }

    fn error(&mut self, problem: Problem) {
        let text = match problem {
            Problem::Bytes(error) => error.to_string(),
            Problem::Host => "Envoy does not hand it out".to_string(),
        };
        self.json.text("error", &text);
    }

    fn age_ms(&self, then_ns: u64) -> u64 {
        self.now.since(Nanos::new(then_ns)).as_millis()
    }

    fn service(&mut self, ttl_ms: u32) {
        match self.read(Key::Service, |found| ServiceBeat::decode(found)) {
            Ok(Some(beat)) => {
                let age_ms = self.age_ms(beat.heartbeat_ns);
                self.json.open("service", '{');
                self.json.id("instance", beat.instance);
                self.json.number("heartbeatAgeMs", age_ms);
                self.json.flag("alive", age_ms <= u64::from(ttl_ms));
                self.json.number("rulesVersion", beat.rules_version);
                self.json.close('}');
            }
            Ok(None) => self.json.null("service"),
            Err(problem) => self.problem("service", problem),
        }
    }

    fn workers(&mut self) {
        match self.read(Key::Workers, |found| Workers::decode(found)) {
            Ok(workers) => {
                self.json.open("workers", '[');
                for slot in workers.iter().flat_map(|workers| &workers.slots) {
                    let age_ms = self.age_ms(slot.heartbeat_ns);
                    self.json.open("", '{');
                    self.json.id("worker", slot.incarnation);
                    self.json.number("heartbeatAgeMs", age_ms);
                    self.json.flag("alive", age_ms <= LIVE.as_millis());
                    self.json.number("rulesVersion", slot.rules_version);
                    self.json.close('}');
                }
                self.json.close(']');
            }
            Err(problem) => self.problem("workers", problem),
        }
    }

    /// The set, and the rules that are asked for. Gives how many those were.
    fn rules(&mut self, header: &RuleSetHeader, mut reader: RuleSetReader, asked: &Asked) -> u32 {
        self.json.open("ruleSet", '{');
        self.json.number("version", header.version);
        self.json.number("rules", u64::from(header.rules));
        self.json.flag("pending", header.pending);
        self.json.close('}');
        let decisions = match self.read(Key::Decisions, |found| Decisions::decode(found)) {
            Ok(decisions) => decisions.unwrap_or_default(),
            Err(problem) => {
                self.problem("decisions", problem);
                Decisions::default()
            }
        };
        let mut at = if asked.rule.is_some() { 0 } else { asked.offset };
        let mut shown = 0;
        let mut next = None;
        reader.skip_entries(at);
        self.json.open("rules", '[');
        loop {
            let entry = match reader.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => {
                    self.problem("", Problem::Bytes(error));
                    break;
                }
            };
            let is_asked = asked.rule.as_ref().is_none_or(|id| entry.rule.id().as_bytes() == id);
            if is_asked && (shown == asked.limit || self.json.len() > BYTES_MAX) {
                next = Some(u64::from(at));
                break;
            }
            at = at.saturating_add(1);
            if is_asked {
                shown += 1;
                self.rule(&entry, header, &decisions, asked.rule.is_some());
            }
        }
        self.json.close(']');
        self.json.maybe("next", next);
        shown
    }

    fn rule(
        &mut self,
        entry: &RuleEntry,
        header: &RuleSetHeader,
        decisions: &Decisions,
        whole: bool,
    ) {
        let rule = &entry.rule;
        let generation = entry.generation;
        let decided =
            decisions.decisions.binary_search_by(|known| known.generation.cmp(&generation));
        let decided = decided.ok().and_then(|place| decisions.decisions.get(place));
        let decision = decided.map(|decision| decision.value);
        let threshold = threshold_of(rule, decision);
        let shown = Shown {
            rule,
            terms: Terms::of(rule, &header.settings),
            stamp: Stamp { generation, version: header.version, threshold },
        };
        self.json.open("", '{');
        self.json.text("id", rule.id());
        self.json.text("kind", kind_of(rule));
        self.json.text("resource", rule.resource());
        self.json.text("blockType", rule.block_type().name());
        self.json.flag("shadow", rule.common().shadow);
        self.json.number("generation", generation);
        self.terms(&shown);
        if rule.keeps() == Keeps::Nothing {
            self.decision(rule, decision);
        } else if entry.sets == 0 {
            self.single(&shown, Key::Ledger(entry.slot));
        } else {
            self.table(&shown, entry.slot, entry.sets, whole);
        }
        self.json.close('}');
    }

    /// What the rule says.
    fn terms(&mut self, shown: &Shown<'_>) {
        let json = &mut self.json;
        match shown.rule {
            Rule::Authority(_) => {}
            Rule::System(rule) => json.float("threshold", rule.trigger),
            Rule::CircuitBreaker(rule) => breaker_terms(json, rule),
            Rule::Flow(_) | Rule::Isolation(_) | Rule::Gateway(_) | Rule::Hotspot(_) => {
                json.float("threshold", shown.stamp.threshold);
            }
        }
        if let Rule::Flow(rule) = shown.rule {
            match &rule.limit_app {
                LimitApp::Default => {}
                LimitApp::Other => json.text("limitApp", "other"),
                LimitApp::Origin(origin) => json.text("limitApp", origin),
            }
            if let Some(resource) = &rule.ref_resource
                && rule.control == Control::Reject
            {
                json.text("refResource", resource);
                json.number("windowMs", u64::from(rule.stat_interval_ms));
            }
        }
        match &shown.terms {
            Terms::Rate(terms) => json.number("windowMs", terms.shape.window().as_millis()),
            Terms::Pace(terms) => {
                json.number("windowMs", terms.interval.as_millis());
                json.number("maxWaitMs", terms.max_wait.as_millis());
            }
            Terms::Bucket { terms, .. } => {
                json.number("windowMs", terms.duration.as_millis());
                json.number("burst", terms.burst);
            }
            Terms::Nothing | Terms::Permits { .. } | Terms::Breaker(_) => {}
        }
    }

    /// What the service has decided for a rule that keeps nothing.
    fn decision(&mut self, rule: &Rule, decision: Option<u64>) {
        match rule {
            Rule::System(_) => self.json.flag("refuses", decision == Some(1)),
            Rule::Flow(_) => self.json.maybe("left", decision),
            Rule::Authority(_)
            | Rule::Gateway(_)
            | Rule::Isolation(_)
            | Rule::Hotspot(_)
            | Rule::CircuitBreaker(_) => {}
        }
    }

    /// A rule with one ledger.
    fn single(&mut self, shown: &Shown<'_>, key: Key) {
        let keeps = shown.rule.keeps();
        let mut value = None;
        let Some(meeting) = self.meet(shown, key, &mut value) else { return };
        let mut new = Ledger::new(keeps);
        let (known, ledger) = match &mut value {
            Some(Value::Single(ledger)) if ledger.keeps() == keeps => ("read", Some(ledger)),
            Some(_) | None => ("untouched", new.as_mut()),
        };
        self.json.text("ledger", known);
        self.json.number("version", meeting.stamp.version);
        if let Some(ledger) = ledger {
            self.ledger(shown, ledger, &meeting);
        }
        let hold = self.worker.and_then(|worker| worker.hold_of(shown.stamp.generation));
        match (hold, &shown.terms) {
            (Some(Hold::Lease(lease)), Terms::Rate(terms)) => {
                self.json.number("unspentHere", lease.spendable_at(terms.shape, self.now));
            }
            (Some(Hold::Permits(permits)), _) => {
                self.json.number("inUseHere", permits.in_use);
                self.json.number("idleHere", permits.idle);
            }
            _ => {}
        }
    }

    /// Replaces `value` by what stands under `key` for a rule, and gives how they meet. `None` if that cannot be said: then
    /// it is said why.
    fn meet(&mut self, shown: &Shown<'_>, key: Key, value: &mut Option<Value>) -> Option<Meeting> {
        *value = None;
        let mut stamp = None;
        match self.read(key, |found| ledger::decode(found)) {
            Ok(Some((known, found))) => {
                stamp = Some(known);
                *value = Some(found);
            }
            Ok(None) => {}
            Err(problem) => {
                self.json.text("ledger", "unreadable");
                self.error(problem);
                return None;
            }
        }
        let Some(mut meeting) = shown.stamp.meet(stamp) else {
            // Another rule of a newer set has the slot already.
            self.json.text("ledger", "superseded");
            return None;
        };
        if is_adaptive(shown.rule) {
            meeting.stamp.threshold = shown.stamp.threshold;
        }
        if meeting.anew {
            *value = None;
        }
        Some(meeting)
    }

    /// What a ledger says now.
    fn ledger(&mut self, shown: &Shown<'_>, ledger: &mut Ledger, meeting: &Meeting) {
        let (now, threshold) = (self.now, meeting.stamp.threshold);
        match (ledger, &shown.terms) {
            (Ledger::Rate(rate), Terms::Rate(terms)) => {
                let allowed =
                    rate.allowed(now, threshold, terms.shape, terms.warm_up, meeting.is_current);
                let granted = rate.counted(terms.shape);
                self.json.float("inForce", allowed.0);
                self.json.number("granted", granted);
                self.json.number("left", whole_tokens(allowed.0).saturating_sub(granted));
            }
            (Ledger::Pace(pace), Terms::Pace(terms)) => {
                let mut allowed = threshold;
                if let (Some(passed), Some((warm_up, shape))) = (&mut pace.passed, terms.warm_up) {
                    allowed =
                        passed.allowed(now, threshold, shape, Some(warm_up), meeting.is_current).0;
                }
                self.json.float("inForce", allowed);
                self.json.number("queuedMs", pace.last.since(now).as_millis());
                let (paced, _) = pace.claim(now, 1, threshold, terms, meeting.is_current);
                let wait = |at: Nanos| Some(at.since(now).as_millis());
                let (next, retry) = match paced {
                    Paced::At(slot) => (wait(slot.at), None),
                    Paced::Refused { retry_at } => (None, retry_at.and_then(wait)),
                };
                self.json.maybe("nextSlotInMs", next);
                self.json.maybe("retryInMs", retry);
            }
            (Ledger::Permits(permits), Terms::Permits { ttl }) => {
                let holders =
                    permits.holders.iter().filter(|holder| now.since(holder.seen) <= *ttl);
                let held = holders.clone().fold(0, |sum: u64, one| sum.saturating_add(one.permits));
                self.json.float("inForce", threshold);
                self.json.number("held", held);
                self.json.number("left", whole_tokens(threshold).saturating_sub(held));
                self.json.open("heldBy", '[');
                for holder in holders {
                    let age_ms = self.now.since(holder.seen).as_millis();
                    self.json.open("", '{');
                    self.json.id("worker", holder.incarnation);
                    self.json.number("permits", holder.permits);
                    self.json.number("writtenMsAgo", age_ms);
                    self.json.close('}');
                }
                self.json.close(']');
            }
            (Ledger::Bucket(bucket), Terms::Bucket { terms, .. }) => {
                let taken = taken(bucket, now, threshold, terms);
                let most = whole_tokens(threshold).saturating_add(terms.burst);
                self.json.float("inForce", threshold);
                self.json.number("granted", taken);
                self.json.number("left", most.saturating_sub(taken));
            }
            (Ledger::Breaker(breaker), Terms::Breaker(_)) => {
                let json = &mut self.json;
                json.text("state", breaker.state.name());
                json.number("epoch", breaker.epoch);
                let retry = breaker.retry_at.since(now).as_millis();
                json.maybe("retryInMs", (breaker.state == BreakerState::Open).then_some(retry));
                json.number("goodProbes", u64::from(breaker.good));
                json.open("probesOut", '[');
                for probe in &breaker.out {
                    json.open("", '{');
                    json.id("worker", probe.incarnation);
                    json.number("sinceMs", now.since(probe.since).as_millis());
                    json.close('}');
                }
                json.close(']');
            }
            _ => {}
        }
    }

    /// A rule with a ledger for each value.
    fn table(&mut self, shown: &Shown<'_>, first: u32, sets: u32, whole: bool) {
        self.json.open("table", '{');
        self.json.number("sets", u64::from(sets));
        if whole {
            self.values(shown, first, sets);
        }
        self.json.close('}');
    }

    /// The values that have used most of theirs.
    fn values(&mut self, shown: &Shown<'_>, first: u32, sets: u32) {
        let read = sets.min(SETS_MAX);
        let mut values = 0_u64;
        let mut most: Vec<(u64, u128)> = Vec::new();
        let mut value = None;
        for set in 0..read {
            let key = Key::Set(first.saturating_add(set));
            let Some(meeting) = self.meet(shown, key, &mut value) else { return };
            let Some(Value::Set(_, set)) = &mut value else { continue };
            for (hash, ledger) in &mut set.entries {
                if shown.terms.is_idle(ledger, self.now) {
                    continue;
                }
                values = values.saturating_add(1);
                let used = self.used(shown, ledger, meeting.stamp.threshold);
                let place = most.iter().position(|known| known.0 < used).unwrap_or(most.len());
                most.insert(place, (used, *hash));
                most.truncate(VALUES_SHOWN);
            }
        }
        self.json.number("setsRead", u64::from(read));
        self.json.number("values", values);
        self.json.open("mostUsed", '[');
        for (used, hash) in most {
            self.json.open("", '{');
            if hash == SHARED {
                self.json.text("value", "shared");
            } else {
                self.json.id("value", u64::try_from(hash >> 64).unwrap_or(0));
            }
            self.json.number("used", used);
            self.json.close('}');
        }
        self.json.close(']');
    }

    /// How much a value has used: tokens, permits, or milliseconds of waiting.
    fn used(&self, shown: &Shown<'_>, ledger: &mut Ledger, threshold: f64) -> u64 {
        let now = self.now;
        match (ledger, &shown.terms) {
            (Ledger::Rate(rate), Terms::Rate(terms)) => {
                rate.allowed(now, threshold, terms.shape, None, false);
                rate.counted(terms.shape)
            }
            (Ledger::Pace(pace), _) => pace.last.since(now).as_millis(),
            (Ledger::Permits(permits), _) => permits.others(0),
            (Ledger::Bucket(bucket), Terms::Bucket { terms, .. }) => {
                taken(bucket, now, threshold, terms)
            }
            _ => 0,
        }
    }
}

/// How many tokens are missing in a bucket.
fn taken(bucket: &BucketLedger, now: Nanos, threshold: f64, terms: &BucketTerms) -> u64 {
    let tokens = whole_tokens(threshold);
    let most = tokens.saturating_add(terms.burst);
    most.saturating_sub(bucket.tokens_at(now, tokens, terms))
}

fn breaker_terms(json: &mut Json, rule: &CircuitBreakerRule) {
    let (strategy, threshold) = match rule.strategy {
        BreakerStrategy::SlowRequestRatio { ratio, .. } => ("SlowRequestRatio", ratio),
        BreakerStrategy::ErrorRatio(ratio) => ("ErrorRatio", ratio),
        #[expect(clippy::cast_precision_loss, reason = "thresholds are at most 2^53")]
        BreakerStrategy::ErrorCount(count) => ("ErrorCount", count as f64),
    };
    json.text("strategy", strategy);
    json.float("threshold", threshold);
    if let BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms, .. } = rule.strategy {
        json.number("maxAllowedRtMs", max_allowed_rt_ms);
    }
    json.number("windowMs", u64::from(rule.stat_interval_ms));
    json.number("probeNum", u64::from(rule.probe_num));
}

/// The kind of document that such a rule stands in.
fn kind_of(rule: &Rule) -> &'static str {
    match rule {
        Rule::Authority(_) => "AuthorityRules",
        Rule::System(_) => "SystemRules",
        Rule::Gateway(_) => "GatewayFlowRules",
        Rule::Flow(_) => "FlowRules",
        Rule::Isolation(_) => "IsolationRules",
        Rule::Hotspot(_) => "HotspotRules",
        Rule::CircuitBreaker(_) => "CircuitBreakerRules",
    }
}
