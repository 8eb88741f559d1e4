//! What a rule answers when its ledger cannot be used: never by letting a request through because it was hard.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{
    config::ServiceConfig,
    ledger::{Ledger, Stamp, rate::RateLedger},
    param::Anonymous,
    rule::{Common, FlowRule, OnHostFailure, Rule},
};
use sentinel_engine::{
    host::{Host as _, Stored},
    service::Service,
    worker::{Call, Outcome, Verdict, Worker},
};
use sentinel_sim::{host::SimHost, process::Process, rules::flow};
use sentinel_wire::{
    key::Key,
    ledger::{self, Value},
};

const WALL_NS: u64 = 1_900_000_000_000_000_000;

fn worker_with_a_limit_of_ten(on_host_failure: OnHostFailure) -> (SimHost<'static>, Worker) {
    let process = Rc::new(RefCell::new(Process::new(1, WALL_NS)));
    let mut host = SimHost::undisturbed(&process, 0);
    let Rule::Flow(rule) = flow("ten", "GET:/ten", 10.0, 1_000) else {
        panic!("it is a flow rule")
    };
    let common = Common { on_host_failure, ..Common::default() };
    let config = ServiceConfig {
        rules: vec![Rule::Flow(FlowRule { common, ..rule })],
        series_max: 10_000,
        ..ServiceConfig::default()
    };
    let _service = Service::configure(&mut host, config);
    let mut host = SimHost::undisturbed(&process, 1);
    let worker = Worker::start(&mut host);
    (host, worker)
}

fn passes(host: &mut SimHost<'static>, worker: &mut Worker) -> bool {
    let call = Call {
        resource: b"GET:/ten",
        batch: 1,
        inbound: true,
        stream: 1,
        before_first_rules: None,
    };
    match worker.enter(host, &call, &mut Anonymous) {
        Verdict::Pass(entry) => {
            worker.exit(host, entry, Outcome::OK);
            true
        }
        Verdict::Wait(..) => panic!("the rule lets nobody wait"),
        Verdict::Blocked(_) => false,
    }
}

/// Replaces the ledger by `value`, as somebody with another module or another rule set would.
fn write_ledger(host: &mut SimHost<'static>, value: &[u8]) {
    let mut found = vec![];
    let stored = match host.load(Key::Ledger(0), &mut found) {
        Ok(Some(cas)) => host.store(Key::Ledger(0), value, cas),
        Ok(None) => host.create(Key::Ledger(0), value),
        Err(error) => Err(error),
    };
    assert_eq!(stored, Ok(Stored::Done));
}

fn ledger_of_a_newer_generation() -> Vec<u8> {
    let stamp = Stamp { generation: 99, version: 99, threshold: 10.0 };
    let mut bytes = vec![];
    ledger::encode(&stamp, &Value::Single(Ledger::Rate(RateLedger::default())), &mut bytes);
    bytes
}

#[track_caller]
fn check(on_host_failure: OnHostFailure, ledger: &[u8], expected: bool) {
    let (mut host, mut worker) = worker_with_a_limit_of_ten(on_host_failure);
    assert!(passes(&mut host, &mut worker), "an ordinary ledger admits");
    worker.settle(&mut host);
    worker.settle(&mut host);

    write_ledger(&mut host, ledger);

    for _ in 0..3 {
        assert_eq!(passes(&mut host, &mut worker), expected);
    }
}

#[test]
fn a_ledger_of_a_newer_rule_set_that_cannot_be_read_refuses_unless_the_rule_says_pass() {
    check(OnHostFailure::Block, &ledger_of_a_newer_generation(), false);
    check(OnHostFailure::Pass, &ledger_of_a_newer_generation(), true);
}

#[test]
fn a_ledger_of_a_newer_layout_refuses_unless_the_rule_says_pass() {
    check(OnHostFailure::Block, &[ledger::LAYOUT + 1, 1, 2], false);
    check(OnHostFailure::Pass, &[ledger::LAYOUT + 1, 1, 2], true);
}
