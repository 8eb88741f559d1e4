//! What a rule answers when its ledger cannot be used: never by letting a request through because it was hard.

use std::{cell::RefCell, rc::Rc};

use sentinel_core::{
    config::ServiceConfig,
    ledger::{RateLedger, RateTerms},
    rule::{Common, FlowRule, OnHostFailure, Rule},
    time::Nanos,
    window::WindowShape,
};
use sentinel_engine::{
    host::{Host as _, Stored},
    service::Service,
    worker::{Verdict, Worker},
};
use sentinel_sim::{host::SimHost, process::Process};
use sentinel_wire::{key::Key, ledger};

const WALL_NS: u64 = 1_900_000_000_000_000_000;

fn worker_with_a_limit_of_ten(on_host_failure: OnHostFailure) -> (SimHost<'static>, Worker) {
    let process = Rc::new(RefCell::new(Process::new(1, WALL_NS)));
    let mut host = SimHost::undisturbed(&process, 0);
    let common = Common { on_host_failure, ..Common::default() };
    let rule = FlowRule {
        id: "ten".into(),
        resource: "GET:/ten".into(),
        threshold: 10.0,
        stat_interval_ms: 1_000,
        common,
    };
    let config = ServiceConfig {
        rules: vec![Rule::Flow(rule)],
        series_max: 10_000,
        ..ServiceConfig::default()
    };
    let _service = Service::configure(&mut host, config);
    let mut host = SimHost::undisturbed(&process, 1);
    let worker = Worker::start(&mut host);
    (host, worker)
}

fn passes(host: &mut SimHost<'static>, worker: &mut Worker) -> bool {
    match worker.enter(host, b"GET:/ten", 1, None) {
        Verdict::Pass(entry) => {
            worker.exit(host, entry, false);
            true
        }
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
    let shape = WindowShape::for_flow(1_000);
    let terms = RateTerms { generation: 99, version: 99, threshold: 10.0, shape };
    let mut bytes = vec![];
    ledger::encode(&RateLedger::open(&terms, Nanos::new(WALL_NS)), shape.buckets(), &mut bytes);
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
