//! Messages of a stream, which count one by one where a rule says `unit: message`.
//!
//! A message belongs to a request that has been admitted and lives on: it has no end of its own, and is in none of the
//! counts of requests. What is here is called only by the filter that reads streams; in the other one nothing of it is
//! left but an empty list.

use alloc::{rc::Rc, vec::Vec};

use sentinel_core::{
    param::Request,
    rule::{Control, HotspotMetric, OnHostFailure, Rule, Unit},
    time::{Nanos, Span},
};

use super::{
    Blocked, Call, ROUNDS_MAX, Worker,
    waiting::{self, Waiting},
};
use crate::{
    admission::{Admission, Answer},
    host::{Host, Meter},
    rule_state::Terms,
    telemetry::{OTHER, Total, of_resource},
};

/// Messages that have come at once: all of them go on, or none.
#[derive(Clone, Copy, Debug)]
pub struct Messages {
    /// How many.
    pub count: u32,
    /// For how long the stream's oldest message has been held, if any is.
    pub held: Option<Span>,
}

/// What messages are told.
#[derive(Debug)]
pub enum MessageVerdict {
    /// They may go on.
    Pass,
    /// They may go on when [`Worker::due`] names the stream. One that is named for each such verdict; what came later must
    /// not overtake it.
    Wait,
    /// They are refused, and the stream with them. No rule's tokens are spent.
    Blocked(Blocked),
}

/// What this worker has counted of messages.
#[derive(Debug, Default)]
pub(super) struct Counts {
    resources: Vec<Counted>,
    has_news: bool,
}

#[derive(Debug)]
struct Counted {
    name: Rc<str>,
    /// Running totals: passed, refused, and refused when the response had begun.
    totals: [u64; NAMES.len()],
    series: [Total; NAMES.len()],
}

/// Statistics of a resource's messages.
const NAMES: [&str; 3] = ["message_pass_total", "message_block_total", "message_reset_total"];

const PASS: usize = 0;
const BLOCK: usize = 1;
const RESET: usize = 2;

impl Worker {
    /// Asks of a request whatever rules of messages will want to know of its stream: later it cannot be asked any more.
    pub fn foresee_messages(&mut self, call: &Call<'_>, request: &mut dyn Request) {
        let applying = self.book.applying(&self.clock, call.resource);
        self.ask_rules(&applying, Unit::Message, call, request);
        self.asks.clear();
    }

    /// Decides messages of the stream `call.stream`, whose request was admitted. `request` answers what rules ask of it.
    pub fn enter_messages<H: Host + Meter>(
        &mut self,
        host: &mut H,
        call: &Call<'_>,
        messages: Messages,
        request: &mut dyn Request,
    ) -> MessageVerdict {
        let count = u64::from(messages.count);
        let now = self.now(host);
        self.seen_at = now;
        let mut slots = Vec::new();
        let mut left = count;
        let mut rounds = 0;
        while left > 0 {
            rounds += 1;
            let applying = self.book.applying(&self.clock, call.resource);
            self.ask_rules(&applying, Unit::Message, call, request);
            if self.asks.is_empty() {
                break;
            }
            self.refuse_behind_held(messages.held);
            // A pace lets a whole batch go at once and makes the next one wait: messages have each a slot of their own.
            let batch = if self.asks_for_slots() { 1 } else { left };
            match self.admit(host, now, batch) {
                Admission::Pass => {
                    let (held, new) = self.settle_asks(batch);
                    // Rules that keep something until the end count no messages.
                    self.keep_spare(held);
                    if waiting::last(&new) >= waiting::last(&slots) {
                        slots = new;
                    }
                    left -= batch;
                    rounds = 0;
                }
                Admission::Refused { rule, retry_at } => {
                    return self.refuse_messages(call, rule, retry_at, count, count - batch, now);
                }
                Admission::Superseded { rule } if rounds < ROUNDS_MAX => self.follow(host, rule),
                // The newer rule set cannot be read: as if the ledger could not.
                Admission::Superseded { rule } => {
                    self.tally.failures = self.tally.failures.saturating_add(1);
                    if self.answers_failure(rule) == OnHostFailure::Pass {
                        break;
                    }
                    return self.refuse_messages(call, rule, None, count, count, now);
                }
            }
        }
        self.asks.clear();
        self.count_messages(call.resource, PASS, count);
        if waiting::last(&slots) > now {
            self.waiting.push(Waiting::new(call.stream, slots));
            return MessageVerdict::Wait;
        }
        MessageVerdict::Pass
    }

    /// The time, as this worker counts it.
    pub fn time<H: Host>(&self, host: &mut H) -> Nanos {
        self.now(host)
    }

    /// Nobody waits for the stream any more: it has ended.
    pub fn forget_held(&mut self, stream: u32) {
        self.waiting.retain(|waiting| waiting.stream != stream);
    }

    /// A stream was refused when its response had begun.
    pub fn count_reset(&mut self, resource: &[u8]) {
        self.count_messages(resource, RESET, 1);
    }

    /// Adds what is new to Envoy's counters. To be called with each tick.
    pub fn report_messages<M: Meter>(&mut self, meter: &mut M) {
        if !core::mem::take(&mut self.messages.has_news) {
            return;
        }
        let Self { messages, book, clock, .. } = self;
        for counted in &mut messages.resources {
            let Counted { name, totals, series } = counted;
            for ((what, total), series) in NAMES.into_iter().zip(totals).zip(series) {
                series.report(meter, *total, |text| of_resource(name, what, text));
            }
        }
        // Resources that no rule names any more begin anew if they come back.
        messages.resources.retain(|counted| {
            let hash = clock.hash(counted.name.as_bytes());
            *counted.name == *OTHER || book.find(hash, counted.name.as_bytes()).is_some()
        });
    }

    /// Whether anything was counted since the last [`Worker::report_messages`].
    pub fn has_message_news(&self) -> bool {
        self.messages.has_news
    }

    fn refuse_messages(
        &mut self,
        call: &Call<'_>,
        rule: u32,
        retry_at: Option<Nanos>,
        count: u64,
        unnoted: u64,
        now: Nanos,
    ) -> MessageVerdict {
        self.asks.clear();
        self.note_refusal(rule, unnoted);
        self.count_messages(call.resource, BLOCK, count);
        MessageVerdict::Blocked(self.refusal(rule, retry_at, now))
    }

    fn count_messages(&mut self, resource: &[u8], what: usize, count: u64) {
        let hash = self.clock.hash(resource);
        let known = self.book.find(hash, resource).filter(|resource| resource.has_series);
        let name = known.map(|resource| &*resource.name).unwrap_or(OTHER);
        let Counts { resources, has_news } = &mut self.messages;
        let place = match resources.iter().position(|counted| *counted.name == *name) {
            Some(place) => place,
            None => {
                let name = known.map_or_else(|| OTHER.into(), |resource| Rc::clone(&resource.name));
                let (totals, series) = Default::default();
                resources.push(Counted { name, totals, series });
                resources.len() - 1
            }
        };
        let counted = resources.get_mut(place);
        if let Some(total) = counted.and_then(|counted| counted.totals.get_mut(what)) {
            *total = total.saturating_add(count);
            *has_news = true;
        }
    }

    fn asks_for_slots(&self) -> bool {
        self.asks.iter().any(|ask| {
            self.book.rule(ask.rule).is_some_and(|state| matches!(state.terms, Terms::Pace(_)))
        })
    }

    /// What a stream holds goes on in one piece, when the last message in it may. So that one to which more is always
    /// added goes on at all, nothing is added to what has been held as long as a message may wait.
    fn refuse_behind_held(&mut self, held: Option<Span>) {
        let Some(held) = held else { return };
        for ask in &mut self.asks {
            let most_ms = match self.book.rule(ask.rule).map(|state| &*state.rule) {
                Some(Rule::Flow(rule)) => match rule.control {
                    Control::Throttling { max_queueing_ms } => u64::from(max_queueing_ms),
                    Control::Reject => continue,
                },
                Some(Rule::Hotspot(rule)) => match rule.metric {
                    HotspotMetric::Throttling { max_queueing_ms, .. } => max_queueing_ms,
                    HotspotMetric::Reject { .. } | HotspotMetric::Concurrency => continue,
                },
                _ => continue,
            };
            if held > Span::from_millis(most_ms) {
                ask.answer = Answer::Refuses;
            }
        }
    }
}
