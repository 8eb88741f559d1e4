//! The life of a request and of messages: asked, answered, held, gone on, asked again.

use std::rc::Rc;

use sentinel_core::{
    rule::Unit,
    time::{Nanos, Span},
};

use super::{Event, HeldMessages, Waiting, World};
use crate::{
    checker::{Broken, TICK},
    scenario::{MS, Pattern, SECOND, Traffic},
    vm::{Answer, Decision, Order},
};

impl World<'_> {
    /// Messages are not in the counts of requests, and have no end of their own.
    pub(super) fn answered_messages(
        &mut self,
        index: usize,
        answer: &Answer,
    ) -> Result<(), Broken> {
        let (count, stream) = (u64::from(answer.batch), answer.stream);
        let (version, resource) = (answer.rules_version, &answer.resource);
        let undisturbed = self.scenario.is_faultless() && self.scenario.stall_one_in == 0;
        self.note(format_args!(
            "thread {index}: {count} messages of {stream} to {resource}: {:?} under set {version}",
            answer.decision
        ));
        if let Some(thread) = self.threads.get_mut(index) {
            thread.unreported_messages += count;
        }
        if undisturbed {
            self.checker.goes_by_new_rules(answer, self.clock())?;
        }
        match &answer.decision {
            Decision::RefusedBy(rule) => {
                self.report.messages_refused += count;
                let steady = undisturbed && self.scenario.is_steady();
                self.checker.refused(answer, rule, steady)
            }
            Decision::Passes => {
                self.report.messages += count;
                let slot = self.checker.admitted(answer, self.clock(), undisturbed)?;
                // Behind what is held they go with that.
                if self.held.contains_key(&stream) { Ok(()) } else { self.goes_on(slot, stream) }
            }
            Decision::Waits(_) => {
                self.report.messages += count;
                self.report.messages_waited += count;
                self.checker.admitted(answer, self.clock(), undisturbed)?;
                let ticket = self.checker.ticket();
                let held = HeldMessages { thread: index, ticket, since: self.clock() };
                self.held.entry(stream).or_default().push_back(held);
                Ok(())
            }
        }
    }

    /// Messages that were held may go on. (Those of a stream that has ended meanwhile are nobody's.)
    pub(super) fn messages_due(&mut self, stream: u64) -> Result<(), Broken> {
        let Some(queue) = self.held.get_mut(&stream) else { return Ok(()) };
        let oldest = queue.pop_front();
        if queue.is_empty() {
            self.held.remove(&stream);
        }
        let Some(HeldMessages { thread, ticket, since }) = oldest else { return Ok(()) };
        self.note(format_args!("thread {thread}: messages of {stream} go on"));
        let (slot, settled) = self.checker.leaves(ticket);
        self.goes_on(slot, stream)?;
        let late = self.clock().since(settled.max(since));
        if late > TICK && self.scenario.is_faultless() && self.scenario.stall_one_in == 0 {
            let late_ms = late.as_millis();
            return Err(format!("messages of {stream} go on {late_ms} ms after their slot"));
        }
        Ok(())
    }

    pub(super) fn answered(
        &mut self,
        index: usize,
        vm: u32,
        answer: &Answer,
    ) -> Result<(), Broken> {
        if answer.unit == Unit::Message {
            return self.answered_messages(index, answer);
        }
        let batch = u64::from(answer.batch);
        let stream = answer.stream;
        let asked = self.asked.remove(&stream);
        let traffic = asked.and_then(|traffic| self.scenario.traffic.get(traffic));
        let passed = !matches!(answer.decision, Decision::RefusedBy(_));
        if self.trace.is_on() {
            let (version, resource, user) = (answer.rules_version, &answer.resource, answer.user);
            let user = user.map(|user| format!(" of user {user}")).unwrap_or_default();
            let decision = match &answer.decision {
                Decision::Passes => "passes".to_owned(),
                Decision::Waits(until) => {
                    format!("waits for {} ns", until.since(self.clock()).get())
                }
                Decision::RefusedBy(rule) => format!("is refused by {rule}"),
            };
            self.note(format_args!(
                "thread {index}: {stream} to {resource}{user} {decision} under set {version}"
            ));
        }
        if let Some(thread) = self.threads.get_mut(index) {
            let (pass, block) = &mut thread.unreported;
            *(if passed { pass } else { block }) += batch;
        }
        if let Some(these) = self.got_through.as_mut().filter(|_| passed) {
            these.insert(Rc::clone(&answer.resource));
        }
        let undisturbed = self.scenario.is_faultless() && self.scenario.stall_one_in == 0;
        if undisturbed {
            self.checker.goes_by_new_rules(answer, self.clock())?;
        }
        match &answer.decision {
            Decision::RefusedBy(rule) => {
                self.report.refused += batch;
                self.refused_by.insert(Rc::clone(&answer.resource), rule.clone());
                let steady = undisturbed && self.scenario.is_steady();
                self.checker.refused(answer, rule, steady)?;
                self.ask_again(asked);
            }
            Decision::Passes => {
                self.report.admitted += batch;
                let slot = self.checker.admitted(answer, self.clock(), undisturbed)?;
                self.goes_on(slot, stream)?;
                self.depart(index, vm, stream, asked);
                self.ask_again(asked);
            }
            Decision::Waits(until) => {
                self.report.admitted += batch;
                self.report.waited += batch;
                let slot = self.checker.admitted(answer, self.clock(), undisturbed)?;
                if slot > *until {
                    return Err(format!("request {stream} is to go before its slot"));
                }
                if let Some(one_in) = traffic.map(|traffic| traffic.gives_up_one_in)
                    && one_in > 0
                    && self.random.u32(..one_in) == 0
                {
                    let left = until.since(self.clock()).get();
                    let at = self.now + self.random.u64(..=left);
                    self.plan(at, Event::GiveUp { stream });
                }
                let since = self.clock();
                let waiting = Waiting { thread: index, vm, traffic: asked, since, until: *until };
                self.waiting.insert(stream, waiting);
            }
        }
        Ok(())
    }

    /// A request that waited may go on. (One that was given up meanwhile is nobody's.)
    pub(super) fn due(&mut self, stream: u64) -> Result<(), Broken> {
        let Some(Waiting { thread, vm, traffic, since, until }) = self.waiting.remove(&stream)
        else {
            return self.messages_due(stream);
        };
        self.note(format_args!("thread {thread}: {stream} goes on"));
        let (slot, settled) = self.checker.leaves(stream);
        self.goes_on(slot.min(until), stream)?;
        // A worker that was idle when its rule went hears of that with the first tick after.
        let late = self.clock().since(settled.max(since).min(until));
        self.report.latest = self.report.latest.max(late.get());
        self.report.all_gone = self.elapsed();
        if late > TICK && self.scenario.is_faultless() && self.scenario.stall_one_in == 0 {
            let late_ms = late.as_millis();
            return Err(format!("request {stream} goes on {late_ms} ms after its slot"));
        }
        self.depart(thread, vm, stream, traffic);
        self.ask_again(traffic);
        Ok(())
    }

    pub(super) fn goes_on(&self, slot: Nanos, stream: u64) -> Result<(), Broken> {
        let early = slot.since(self.clock());
        if early > Span::ZERO {
            return Err(format!("request {stream} goes on {} ns before its slot", early.get()));
        }
        Ok(())
    }

    /// A request goes to the upstream, which answers after some time, whoever lives then.
    pub(super) fn depart(&mut self, thread: usize, vm: u32, stream: u64, index: Option<usize>) {
        let traffic = index.and_then(|index| self.scenario.traffic.get(index));
        let (open, fails_one_in) =
            traffic.map_or((0, 0), |traffic| (traffic.open_ns, traffic.fails_one_in));
        self.open += 1;
        let failed = self.scenario.is_out(self.now)
            || fails_one_in > 0 && self.random.u32(..fails_one_in) == 0;
        let ends = self.now + 1_000 + self.random.u64(..=open);
        self.plan(ends, Event::End { thread, vm, stream, failed });
        if let (Some(traffic), Some(Traffic { pieces, .. })) = (index, traffic) {
            for _ in 0..*pieces {
                let at = self.random.u64(self.now..ends);
                let count = self.random.u32(1..4);
                self.plan(at, Event::Send { thread, vm, stream, traffic, count });
            }
        }
    }

    /// A client that waits for its answer has it, or will never get one.
    pub(super) fn ask_again(&mut self, traffic: Option<usize>) {
        let Some(index) = traffic else { return };
        let sequential = self
            .scenario
            .traffic
            .get(index)
            .is_some_and(|traffic| matches!(traffic.pattern, Pattern::Sequential { .. }));
        if sequential {
            let at = self.now + self.random.u64(300_000..3 * MS);
            self.plan(at, Event::Arrive { traffic: index });
        }
    }

    pub(super) fn arrive(&mut self, index: usize) {
        let Some(traffic) = self.scenario.traffic.get(index) else { return };
        if !self.arriving {
            return;
        }
        let mut thread = self.random.usize(..self.scenario.workers);
        match traffic.pattern {
            Pattern::Flood { per_second } => {
                let gap = self.random.u64(..=2 * SECOND / u64::from(per_second.max(1)));
                self.plan(self.now + gap, Event::Arrive { traffic: index });
            }
            Pattern::Sequential { reconnects: false } => thread = index % self.scenario.workers,
            Pattern::Sequential { reconnects: true } | Pattern::BucketEnds { .. } => {}
        }
        self.ask(Some(index), traffic, traffic.batch, thread);
    }

    /// A request of this traffic, on this thread.
    pub(super) fn ask(
        &mut self,
        index: Option<usize>,
        traffic: &Traffic,
        batch: u32,
        thread: usize,
    ) {
        self.next_stream += 1;
        let stream = self.next_stream;
        if let Some(index) = index {
            self.asked.insert(stream, index);
        }
        if self.vm_of(thread).is_none() {
            self.start_worker(thread);
        }
        let resource = Rc::clone(&traffic.resource);
        let user = (traffic.users > 0).then(|| self.random.u32(..traffic.users));
        if let Some(user) = user.filter(|_| traffic.pieces > 0) {
            self.users.insert(stream, user);
        }
        self.deliver(thread, Order::Enter { stream, resource, batch, user });
    }
}
