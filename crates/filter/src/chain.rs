//! Several Sentinel filters in the chain of one stream: what one of them has entered the others leave alone.
//!
//! The filter that enters a resource leaves a mark on the stream (filter state `wasm.sentinel>RESOURCE`), and one that
//! finds it there lets the request through. To set a mark and to find none takes about 1 µs together, so that neither
//! is done where nobody can stand beside this filter:
//!
//! * Another filter of **this VM**: Envoy numbers contexts when it makes them, and makes those of all filters of a chain
//!   before the first of them is called. So one behind this filter has the next number, and is there already; one
//!   before it has the number before, lives, and has seen that it is followed. That a context is there says only that
//!   a filter may follow, which is enough: it is the mark that is relied on.
//! * A filter of **another VM**: the VMs of a process have the same configuration, or have found each other when they were
//!   configured, which is before Envoy sends them streams. This VM looks for that again where it has not looked for a
//!   millisecond: before a stream can meet a new VM, this thread has made one, which takes it longer.

use sentinel_core::time::{Nanos, Span};
use sentinel_engine::host::{Meter as _, MetricId, MetricKind};
use sentinel_envoy::{EnvoyHost, host::metric_value};

/// What tells whether filters of another VM may stand in a stream's chain.
#[derive(Debug)]
pub(crate) struct Neighbours {
    /// What Envoy tells VMs apart by, in one number.
    kind: u64,
    /// 1 as soon as there are VMs of two kinds; `None`: Envoy's statistics do not tell.
    several: Option<MetricId>,
    /// Until when it is known that there are none.
    alone_until: Nanos,
}

/// How long nothing can have come between.
const ALONE: Span = Span::from_millis(1);

impl Neighbours {
    /// Knows nothing yet, and takes there to be others.
    pub(crate) const fn new() -> Self {
        Self { kind: 0, several: None, alone_until: Nanos::new(0) }
    }

    /// This VM has this configuration (`vm_config.configuration`, none of a filter's).
    pub(crate) fn set_kind(&mut self, configuration: &[u8]) {
        let code = concat!(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        // FNV-1a: nobody gains by two kinds that look alike but who wrote both. 0 stands for none.
        let flavour: &[u8] = if cfg!(feature = "messages") { b"messages" } else { b"" };
        let bytes = code.as_bytes().iter().chain(flavour).chain(configuration);
        self.kind = 1 | bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// This VM may get streams from now on. The first one of the process leaves its kind, and whoever finds another one's
    /// says so, for good. Envoy configures the VMs of all threads on its main thread first, one after the other.
    pub(crate) fn register(&mut self, host: &mut EnvoyHost) {
        let gauges = ["sentinel.signal.first_vm", "sentinel.signal.several_vms"];
        let [Ok(first), Ok(several)] = gauges.map(|name| host.define(MetricKind::Gauge, name))
        else {
            return;
        };
        if metric_value(first.0) == Some(0) {
            host.set(first, self.kind);
        }
        let found = metric_value(first.0);
        // What reads 0 now is no gauge: `stats_matcher` leaves it out.
        if found != Some(0) {
            self.several = Some(several);
            if found != Some(self.kind) {
                host.set(several, 1);
            }
        }
    }

    /// Whether there may be VMs of another kind.
    pub(crate) fn may_be(&mut self, now: Nanos) -> bool {
        if now < self.alone_until {
            return false;
        }
        let may_be = self.several.is_none_or(|several| metric_value(several.0) != Some(0));
        if !may_be {
            self.alone_until = now + ALONE;
        }
        may_be
    }
}
