//! Messages of streams in the engine: who counts them, and what a refusal and a wait cost.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{
    config::Settings,
    param::Anonymous,
    rule::{Common, FlowRule, HotspotMetric, HotspotRule, Rule, Unit},
    time::Span,
};
use sentinel_engine::{
    service::Service,
    worker::{Call, MessageVerdict, Messages, Outcome, Verdict, Worker},
};
use sentinel_sim::{
    host::SimHost,
    process::Process,
    rules::{flow, hotspot, throttling},
    scenario::config,
};

/// So many workers under one set of rules.
struct Proxy {
    process: Rc<RefCell<Process>>,
    hosts: Vec<SimHost<'static>>,
    workers: Vec<Worker>,
}

fn of_messages(mut rule: Rule) -> Rule {
    let common = Common { unit: Unit::Message, ..Common::default() };
    if let Rule::Flow(FlowRule { common: its, .. })
    | Rule::Hotspot(HotspotRule { common: its, .. }) = &mut rule
    {
        *its = common;
    }
    rule
}

fn call(stream: u32) -> Call<'static> {
    Call { resource: b"chat", batch: 1, inbound: true, stream, before_first_rules: None }
}

impl Proxy {
    fn start(workers: u32, rules: Vec<Rule>) -> Self {
        let process = Rc::new(RefCell::new(Process::new(1, 1_900_000_020_000_000_000)));
        Service::configure(
            &mut SimHost::undisturbed(&process, 0),
            config(rules, Settings::DEFAULT),
        );
        let mut hosts: Vec<_> =
            (1..=workers).map(|vm| SimHost::undisturbed(&process, vm)).collect();
        let workers = hosts.iter_mut().map(Worker::start).collect();
        Self { process, hosts, workers }
    }

    fn send(&mut self, worker: usize, count: u32, held: Option<Span>) -> MessageVerdict {
        let messages = Messages { count, held };
        let host = &mut self.hosts[worker];
        self.workers[worker].enter_messages(host, &call(7), messages, &mut Anonymous)
    }

    fn passes(&mut self, worker: usize, count: u32) -> bool {
        matches!(self.send(worker, count, None), MessageVerdict::Pass)
    }

    /// Whether a request passes, which ends at once.
    fn request_passes(&mut self) -> bool {
        match self.workers[0].enter(&mut self.hosts[0], &call(1), &mut Anonymous) {
            Verdict::Pass(entry) => {
                self.workers[0].exit(&mut self.hosts[0], entry, Outcome::OK);
                true
            }
            Verdict::Wait(..) | Verdict::Blocked(_) => false,
        }
    }

    fn tick_after(&mut self, millis: u64) {
        self.process.borrow_mut().monotonic_ns += millis * 1_000_000;
        for (worker, host) in self.workers.iter_mut().zip(&mut self.hosts) {
            worker.tick(host);
            worker.report_messages(host);
        }
    }

    fn due(&mut self) -> usize {
        let mut due = 0;
        while let Some(stream) = self.workers[0].due(&mut self.hosts[0]) {
            assert_eq!(stream, 7);
            due += 1;
        }
        due
    }

    fn stat(&self, name: &str) -> u64 {
        self.process.borrow().stats.value(&format!("sentinel.{name}"))
    }
}

#[test]
fn rules_of_messages_and_of_requests_do_not_see_each_other() {
    let rules = vec![
        flow("requests", "chat", 2.0, 600_000),
        of_messages(flow("messages", "chat", 3.0, 600_000)),
    ];
    let mut proxy = Proxy::start(1, rules);

    assert_eq!([(); 3].map(|()| proxy.passes(0, 1)), [true; 3]);
    assert_eq!([(); 3].map(|()| proxy.request_passes()), [true, true, false]);
    assert!(!proxy.passes(0, 1));
    proxy.tick_after(10);

    let stats = ["pass_total", "block_total", "message_pass_total", "message_block_total"];
    let of = |name| match name {
        "block_total" => proxy.stat("block_total"),
        name => proxy.stat(&format!("resource.chat.{name}")),
    };
    assert_eq!(stats.map(of), [2, 1, 3, 1]);
    let of_rule =
        |rule| proxy.stat(&format!("resource.chat.rule.{rule}.type.FlowControl.block_total"));
    assert_eq!((of_rule("requests"), of_rule("messages")), (1, 1));
}

#[test]
fn a_default_rule_of_requests_holds_beside_a_rule_of_messages_that_names_the_resource() {
    let rules = vec![
        flow("default", "*", 1.0, 600_000),
        of_messages(flow("messages", "chat", 3.0, 600_000)),
    ];
    let mut proxy = Proxy::start(1, rules);

    assert_eq!([(); 2].map(|()| proxy.request_passes()), [true, false]);
}

#[test]
fn messages_that_come_together_go_together_and_a_refusal_spends_nothing() {
    let rules = vec![
        of_messages(flow("wide", "chat", 20.0, 600_000)),
        of_messages(flow("narrow", "chat", 10.0, 300_000)),
    ];
    let mut proxy = Proxy::start(2, rules);

    assert!(proxy.passes(0, 6));
    assert!(!proxy.passes(1, 6));
    assert!(proxy.passes(1, 4));
    assert!(!proxy.passes(0, 1));
    proxy.tick_after(10);
    assert_eq!(proxy.stat("resource.chat.message_pass_total"), 10);
    assert_eq!(proxy.stat("resource.chat.message_block_total"), 7);
}

#[test]
fn each_message_of_a_chunk_has_a_slot_of_its_own() {
    let mut proxy = Proxy::start(1, vec![of_messages(throttling("pace", "chat", 10.0, 1_000))]);

    assert!(matches!(proxy.send(0, 3, None), MessageVerdict::Wait));
    assert!(matches!(proxy.send(0, 1, None), MessageVerdict::Wait));
    proxy.tick_after(199);
    assert_eq!(proxy.due(), 0, "the third goes after 200 ms");
    proxy.tick_after(1);
    assert_eq!(proxy.due(), 1);
    proxy.tick_after(100);
    assert_eq!(proxy.due(), 1);

    // A second holds ten of them, and of twelve the last would wait for longer.
    assert!(matches!(proxy.send(0, 12, None), MessageVerdict::Blocked(_)));
    proxy.tick_after(10);
    assert_eq!(proxy.stat("resource.chat.message_pass_total"), 4);
    assert_eq!(proxy.stat("resource.chat.message_block_total"), 12);
    let refused = "resource.chat.rule.pace.type.FlowControl.block_total";
    assert_eq!(proxy.stat(refused), 12);
    assert_eq!(proxy.due(), 0, "nobody waits for what was refused");
}

#[test]
fn nothing_is_added_to_what_has_been_held_as_long_as_a_message_may_wait() {
    let mut proxy = Proxy::start(1, vec![of_messages(throttling("pace", "chat", 10.0, 500))]);

    assert!(proxy.passes(0, 1));
    let held = |millis| Some(Span::from_millis(millis));
    assert!(matches!(proxy.send(0, 1, held(500)), MessageVerdict::Wait));
    assert!(matches!(proxy.send(0, 1, held(501)), MessageVerdict::Blocked(_)));
    assert_eq!(proxy.workers[0].waiting(), 1);
    proxy.workers[0].forget_held(7);
    assert_eq!(proxy.workers[0].waiting(), 0);
}

#[test]
fn a_rule_by_value_passes_messages_of_streams_without_the_value() {
    let metric = HotspotMetric::Reject { duration_ms: 600_000, burst: 0 };
    let mut proxy = Proxy::start(1, vec![of_messages(hotspot("user", "chat", 1, metric))]);

    assert!(proxy.passes(0, 5));
}
