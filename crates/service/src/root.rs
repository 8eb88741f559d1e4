//! The service's configuration, its timer and its queue.

use proxy_wasm::{
    traits::{Context, RootContext},
    types::ContextType,
};
use sentinel_core::config::ServiceConfig;
use sentinel_engine::{Next, document, service::Service};
use sentinel_envoy::{
    EnvoyHost,
    stream::{plugin_configuration, set_tick_period},
};

/// The root context of `envoy.bootstrap.wasm`. Its twin in the stats sinks is this very instance where Envoy
/// sees the same bytes (a `StringValue`), and else a second one in the same VM, which waits for the role.
#[derive(Default)]
pub(crate) struct ServiceRoot {
    live: Option<Live>,
}

struct Live {
    host: EnvoyHost,
    service: Service,
    armed_ms: u32,
    #[cfg(feature = "faults")]
    fault: Fault,
}

/// How soon after its configuration an instance becomes the service. A VM that Envoy only tries the
/// configuration on is gone by then.
const FIRST_TICK_MS: u32 = 20;

impl Context for ServiceRoot {}

impl RootContext for ServiceRoot {
    fn on_configure(&mut self, size: usize) -> bool {
        if let Some(function) = EnvoyHost::refused_function() {
            log::error!(
                "service: Envoy refuses {function}: allow it in capability_restriction_config"
            );
            return false;
        }
        let config = match document::configuration(&plugin_configuration(size)) {
            Ok(node) => ServiceConfig::from_node(&node),
            Err(error) => Err(error.in_source("configuration").into()),
        };
        match config {
            Ok(config) => {
                let mut host = EnvoyHost::new();
                let service = Service::configure(&mut host, config);
                let mut live = Live {
                    #[cfg(feature = "faults")]
                    fault: Fault::new(&mut host),
                    host,
                    service,
                    armed_ms: 0,
                };
                live.arm(Next { period_ms: FIRST_TICK_MS });
                self.live = Some(live);
                true
            }
            Err(refusals) => {
                for line in refusals.lines() {
                    log::error!("service: {line}");
                }
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let Some(live) = &mut self.live else { return };
        #[cfg(feature = "faults")]
        live.fault.obey();
        let next = live.service.tick(&mut live.host);
        live.arm(next);
    }

    fn on_queue_ready(&mut self, _queue: u32) {
        let Some(live) = &mut self.live else { return };
        let next = live.service.drain(&mut live.host);
        // Only ever sooner: the timer itself says when there is time again.
        if next.period_ms < live.armed_ms {
            live.arm(next);
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Live {
    fn arm(&mut self, next: Next) {
        if self.armed_ms != next.period_ms && set_tick_period(next.period_ms).is_ok() {
            self.armed_ms = next.period_ms;
        }
    }
}

/// A fault on demand, for tests: never in a module that ships. The service traps at the first tick after
/// a request with `x-sentinel-fault: service`.
#[cfg(feature = "faults")]
struct Fault {
    metric: Option<u32>,
    seen: Option<u64>,
}

#[cfg(feature = "faults")]
impl Fault {
    fn new(host: &mut EnvoyHost) -> Self {
        use sentinel_engine::host::{Meter as _, MetricKind};

        let metric =
            host.define(MetricKind::Counter, "sentinel.signal.fault").ok().map(|metric| metric.0);
        Self { metric, seen: metric.and_then(sentinel_envoy::host::metric_value) }
    }

    #[expect(clippy::panic, reason = "to trap the VM is what is asked for")]
    fn obey(&self) {
        if self.metric.and_then(sentinel_envoy::host::metric_value) != self.seen {
            panic!("a request asked for it");
        }
    }
}
