//! A worker that has not taken up the newest rule set yet, while others go by it already.
//!
//! Its requests are decided by the newest limits where a ledger says that there are newer ones, and none of them reads the
//! whole new set for it.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{
    config::Settings,
    param::{Param, ParamValue, Request},
    rule::{HotspotMetric, Rule},
};
use sentinel_engine::{
    service::Service,
    worker::{Call, Entry, Outcome, Verdict, Worker},
};
use sentinel_sim::{
    host::SimHost,
    process::Process,
    rules::{flow, hotspot, isolation, throttling},
    scenario::config,
};

/// A request of one user.
struct OfAnn;

impl Request for OfAnn {
    fn param(&mut self, _: &Param) -> Option<ParamValue> {
        Some(ParamValue::Bytes(b"ann".to_vec()))
    }

    fn arg(&mut self, _: i32) -> Option<ParamValue> {
        None
    }

    fn origin(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn path(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

struct Proxy {
    process: Rc<RefCell<Process>>,
    service: Service,
    /// The second one is behind after a change.
    workers: [Worker; 2],
}

impl Proxy {
    /// In the middle of a window, so that what follows falls into one.
    fn start(rules: Vec<Rule>) -> Self {
        let process = Rc::new(RefCell::new(Process::new(1, 1_900_000_020_100_000_000)));
        let mut host = SimHost::undisturbed(&process, 0);
        let mut service = Service::configure(&mut host, config(rules, Settings::DEFAULT));
        service.tick(&mut host);
        let start = |vm| Worker::start(&mut SimHost::undisturbed(&process, vm));
        let workers = [start(1), start(2)];
        Self { process, service, workers }
    }

    /// Publishes `rules` and lets the first worker take them up.
    fn change(&mut self, rules: Vec<Rule>) {
        let mut host = SimHost::undisturbed(&self.process, 0);
        self.service.replace(&mut host, config(rules, Settings::DEFAULT));
        self.settle(0);
    }

    fn settle(&mut self, worker: usize) {
        let mut host = SimHost::undisturbed(&self.process, 1);
        self.workers[worker].settle(&mut host);
    }

    fn versions(&self) -> [u64; 2] {
        [0, 1].map(|worker| self.workers[worker].rules_version())
    }

    fn ask(&mut self, worker: usize, resource: &str) -> Verdict {
        let call = Call {
            resource: resource.as_bytes(),
            batch: 1,
            inbound: true,
            stream: 1,
            before_first_rules: None,
        };
        let mut host = SimHost::undisturbed(&self.process, 1);
        self.workers[worker].enter(&mut host, &call, &mut OfAnn)
    }

    fn end(&mut self, worker: usize, entry: Entry) {
        let mut host = SimHost::undisturbed(&self.process, 1);
        self.workers[worker].exit(&mut host, entry, Outcome::OK);
    }

    /// How many of `tries` requests are admitted; they end at once.
    fn admitted(&mut self, worker: usize, resource: &str, tries: u32) -> u32 {
        let mut admitted = 0;
        for _ in 0..tries {
            if let Verdict::Pass(entry) = self.ask(worker, resource) {
                self.end(worker, entry);
                admitted += 1;
            }
        }
        admitted
    }
}

/// Beside so many others that they are not compiled in one piece.
fn beside_others(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.extend((0..2_000).map(|n| flow(&format!("f{n}"), &format!("GET:/f{n}"), 1.0, 1_000)));
    rules
}

#[test]
fn a_limit_with_another_window_holds_for_who_is_behind_and_he_need_not_read_the_whole_set() {
    let mut proxy = Proxy::start(beside_others(vec![flow("a", "a", 50.0, 1_000)]));
    proxy.change(beside_others(vec![flow("a", "a", 20.0, 2_000)]));
    assert_eq!(proxy.versions(), [2, 1]);

    let mut admitted = proxy.admitted(0, "a", 5) + proxy.admitted(1, "a", 100);
    assert_eq!(proxy.versions(), [2, 1], "the request has waited for the whole set");

    // What the first one keeps for its next requests goes to who wants it.
    for _ in 0..3 {
        proxy.settle(0);
        proxy.settle(1);
        admitted += proxy.admitted(1, "a", 10);
    }
    assert_eq!(proxy.versions(), [2, 2]);
    assert_eq!(admitted, 20);
}

#[test]
fn who_follows_while_half_of_the_new_set_is_compiled_loses_nothing_of_what_he_holds() {
    let users = |metric| vec![hotspot("u", "a", 2, metric)];
    let per_second = HotspotMetric::Reject { duration_ms: 1_000, burst: 0 };
    let mut proxy = Proxy::start(beside_others(users(per_second)));
    assert_eq!(proxy.admitted(1, "a", 1), 1);
    proxy.change(beside_others(users(HotspotMetric::Concurrency)));

    // Each holds one of the two permits of the new rule.
    assert!(matches!(proxy.ask(0, "a"), Verdict::Pass(_)));
    let Verdict::Pass(own) = proxy.ask(1, "a") else { panic!("a permit is left") };
    assert!(matches!(proxy.ask(0, "a"), Verdict::Blocked(_)));
    assert!(matches!(proxy.ask(1, "a"), Verdict::Blocked(_)));
    assert_eq!(proxy.versions(), [2, 1], "the request has waited for the whole set");

    proxy.settle(1);
    assert!(matches!(proxy.ask(0, "a"), Verdict::Blocked(_)));
    proxy.end(1, own);
    assert!(matches!(proxy.ask(0, "a"), Verdict::Pass(_)));
}

#[test]
fn all_that_a_request_asks_follows_at_once() {
    let rules = |threshold, interval_ms| {
        ["a", "b", "c", "d", "e"].map(|id| flow(id, "a", threshold, interval_ms)).to_vec()
    };
    let mut proxy = Proxy::start(beside_others(rules(100.0, 1_000)));
    proxy.change(beside_others(rules(3.0, 2_000)));
    assert_eq!(proxy.admitted(0, "a", 1), 1);

    assert_eq!(proxy.admitted(1, "a", 10), 2);
    assert_eq!(proxy.versions(), [2, 1]);
}

#[test]
fn a_rule_that_lets_wait_by_now_lets_wait_also_who_is_behind() {
    let mut proxy = Proxy::start(beside_others(vec![flow("a", "a", 10.0, 1_000)]));
    proxy.change(beside_others(vec![throttling("a", "a", 10.0, 10_000)]));
    assert!(matches!(proxy.ask(0, "a"), Verdict::Pass(_)));

    assert!(matches!(proxy.ask(1, "a"), Verdict::Wait(..)));
    assert_eq!(proxy.versions(), [2, 1]);
}

#[test]
fn nobody_who_is_behind_meets_another_rule_in_his_ledger() {
    let [old, new] = ["old", "new"].map(|id| beside_others(vec![flow(id, id, 5.0, 1_000)]));
    let mut proxy = Proxy::start(old);
    for (round, threshold) in (3..20).zip([5.0, 4.0].into_iter().cycle()) {
        let mut rules = new.clone();
        rules[0] = flow(&format!("new{round}"), &format!("new{round}"), threshold, 1_000);
        proxy.change(rules);
        assert_eq!(proxy.admitted(0, &format!("new{round}"), 1), 1);
        proxy.admitted(1, "old", 1);
        assert_eq!(proxy.versions()[1], 1);
    }
    assert_eq!(proxy.admitted(1, "old", 10), 0, "five of its window are used");
}

#[test]
fn a_place_is_given_again_when_nobody_is_behind_any_more() {
    let rule = |n: u32| isolation(&format!("i{n}"), &format!("r{n}"), 1);
    let mut proxy = Proxy::start(vec![rule(0)]);
    for n in 1..100 {
        proxy.change(vec![rule(n)]);
        proxy.settle(1);
        let resource = format!("r{n}");
        assert_eq!(proxy.admitted(0, &resource, 1) + proxy.admitted(1, &resource, 1), 2);
    }
    let keys = proxy.process.borrow().shared_data.keys();
    assert!(keys <= 12, "{keys} keys");
}
