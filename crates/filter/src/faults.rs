//! Faults on demand, for tests: never in a module that ships.
//!
//! A request with `x-sentinel-fault: worker` traps this VM; one with `x-sentinel-fault: service` makes the
//! service trap at its next tick.

use sentinel_engine::host::{Meter as _, MetricKind};
use sentinel_envoy::stream::request_header;

use crate::vm;

/// Does what the request's fault header says.
#[expect(clippy::panic, reason = "to trap the VM is what is asked for")]
pub(crate) fn obey() {
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
}
