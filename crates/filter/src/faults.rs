//! Faults and questions on demand, for tests: never in a module that ships.
//!
//! A request with `x-sentinel-fault: worker` traps this VM; one with `x-sentinel-fault: service` makes the
//! service trap at its next tick. One with `x-sentinel-contract: <statement>/<step>/<carried>` lets this VM
//! take that step of what we claim about Envoy, and is answered what came of it: 200 and what the next step
//! needs, or 500 and what Envoy did instead; `x-sentinel-vm` tells the VMs apart.

use std::cell::OnceCell;

use sentinel_engine::{
    contract::take_step,
    host::{Host as _, Meter as _, MetricId, MetricKind},
};
use sentinel_envoy::{
    host::{EnvoyHost, metric_value},
    stream::{LocalReply, map, request_header},
};

use crate::vm;

/// Does what the request's headers ask for. `true` if that has answered the request.
#[expect(clippy::panic, reason = "to trap the VM is what is asked for")]
pub(crate) fn obey() -> bool {
    match request_header("x-sentinel-fault").as_deref() {
        Some(b"worker") => panic!("a request asked for it"),
        Some(b"service") => {
            vm::with(|vm| {
                if let Ok(fault) = vm.host.define(MetricKind::Counter, "sentinel.signal.fault") {
                    vm.host.add(fault, 1);
                }
            });
        }
        Some(_) | None => {}
    }
    match request_header("x-sentinel-contract") {
        Some(asked) => {
            answer(&String::from_utf8_lossy(&asked));
            true
        }
        None => false,
    }
}

/// Takes the step that is `asked` for and replies with what came of it. The worker is left out of it: a VM
/// that has seen nothing else touches neither shared data nor the queue on its own.
fn answer(asked: &str) {
    let taken = vm::with(|vm| match parse(asked) {
        Some((statement, step, carried)) => {
            let read = |_: &EnvoyHost, metric: MetricId| metric_value(metric.0);
            take_step(&mut vm.host, &read, statement, step, carried)
        }
        None => Err(format!("`{asked}` must be <statement>/<step>/<carried>")),
    });
    let (status, body) = match taken {
        Some(Ok(carried)) => (200, carried),
        Some(Err(broken)) => (500, broken),
        None => (500, "the VM is in use".to_owned()),
    };
    let id = id().map(|id| format!("{id:016x}")).unwrap_or_default();
    let reply = LocalReply {
        status,
        details: b"sentinel_contract",
        headers: &map(&[("x-sentinel-vm", id.as_bytes())]),
        body: body.as_bytes(),
        grpc_status: 0,
    };
    if let Err(error) = reply.send() {
        crate::reply::complain("to send a reply", error);
    }
}

fn parse(asked: &str) -> Option<(&str, usize, &str)> {
    let (statement, rest) = asked.split_once('/')?;
    let (step, carried) = rest.split_once('/')?;
    Some((statement, step.parse().ok()?, carried))
}

/// What tells this VM from the others: no name that Envoy gives does.
fn id() -> Option<u64> {
    thread_local! {
        static ID: OnceCell<u64> = const { OnceCell::new() };
    }
    vm::with(|vm| ID.with(|id| *id.get_or_init(|| vm.host.random())))
}
