//! The service's configuration, its timer, its queue and its questions to Envoy.

use std::cell::RefCell;

use sentinel_core::config::ServiceConfig;
use sentinel_engine::{
    Next, document,
    service::{Answer, Service},
};
use sentinel_envoy::{
    EnvoyHost,
    stream::{
        http_call_body, http_call_header, http_call_status, http_get, plugin_configuration,
        set_tick_period,
    },
};

/// A root context of `envoy.bootstrap.wasm`. Its twin in the stats sinks is this very instance where Envoy
/// sees the same bytes (a `StringValue`), and else a second one in the same VM, which waits for the role.
pub(crate) struct Live {
    root: u32,
    host: EnvoyHost,
    service: Service,
    armed_ms: u32,
    /// Calls to servers of rules: Envoy's number, and the service's.
    fetches: Vec<(u32, u32)>,
    /// Whether it has been said that Envoy does not answer about its statistics.
    has_complained: bool,
    #[cfg(feature = "faults")]
    fault: Fault,
}

thread_local! {
    static ROOTS: RefCell<Vec<Live>> = const { RefCell::new(Vec::new()) };
}

/// How soon after its configuration an instance becomes the service. A VM that Envoy only tries the
/// configuration on is gone by then.
const FIRST_TICK_MS: u32 = 20;

/// Just the statistics that rules may need, of Envoy's admin endpoint:
/// `^(server[.]memory_allocated|overload[.]envoy[.]resource_monitors[.]cpu_utilization[.]pressure)$`.
const STATS: &str = "/stats?filter=%5E(server%5B.%5Dmemory_allocated%7Coverload%5B.%5Denvoy%5B.%5D\
                     resource_monitors%5B.%5Dcpu_utilization%5B.%5Dpressure)%24";

/// Longer than any stall of the main thread that is worth waiting for.
const STATS_TIMEOUT_MS: u32 = 1_000;

/// How long a server of rules may take.
const FETCH_TIMEOUT_MS: u32 = 5_000;

/// Runs `body` with the root `root`, if that is configured.
pub(crate) fn with(root: u32, body: impl FnOnce(&mut Live)) {
    ROOTS.with(|roots| {
        // In use already never: nothing of ours calls back into Envoy's dispatch.
        let Ok(mut roots) = roots.try_borrow_mut() else { return };
        if let Some(live) = roots.iter_mut().find(|live| live.root == root) {
            body(live);
        }
    });
}

/// The root `root` is gone.
pub(crate) fn leave(root: u32) {
    ROOTS.with(|roots| {
        if let Ok(mut roots) = roots.try_borrow_mut() {
            roots.retain(|live| live.root != root);
        }
    });
}

/// Takes a configuration, or says what is wrong with it and refuses it.
pub(crate) fn configure(root: u32, size: usize) -> bool {
    if let Some(function) = EnvoyHost::refused_function() {
        log::error!("service: Envoy refuses {function}: allow it in capability_restriction_config");
        return false;
    }
    let config = match document::configuration(&plugin_configuration(size)) {
        Ok(node) => ServiceConfig::from_node(&node),
        Err(error) => Err(error.in_source("configuration").into()),
    };
    match config {
        Ok(config) => {
            leave(root);
            let live = Live::new(root, config);
            ROOTS.with(|roots| {
                if let Ok(mut roots) = roots.try_borrow_mut() {
                    roots.push(live);
                }
            });
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

impl Live {
    fn new(root: u32, config: ServiceConfig) -> Self {
        let mut host = EnvoyHost::new();
        let service = Service::configure(&mut host, config);
        let mut live = Self {
            root,
            #[cfg(feature = "faults")]
            fault: Fault::new(&mut host),
            host,
            service,
            armed_ms: 0,
            fetches: Vec::new(),
            has_complained: false,
        };
        live.arm(Next { period_ms: FIRST_TICK_MS });
        live
    }

    /// The timer has fired.
    pub(crate) fn tick(&mut self) {
        #[cfg(feature = "faults")]
        self.fault.obey();
        let next = self.service.tick(&mut self.host);
        if self.service.stats_due(&mut self.host) {
            self.ask_stats();
        }
        let fetched = self.fetch();
        self.arm(next.sooner(fetched));
    }

    /// A frame stands in the queue.
    pub(crate) fn take_frame(&mut self) {
        let next = self.service.take_frame(&mut self.host);
        // Only ever sooner: the timer itself says when there is time again.
        if next.period_ms < self.armed_ms {
            self.arm(next);
        }
    }

    /// A call has been answered, or has not.
    pub(crate) fn take_response(&mut self, call: u32, headers: usize, size: usize) {
        let status = if headers > 0 { http_call_status() } else { 0 };
        let place = self.fetches.iter().position(|(known, _)| *known == call);
        let Some((_, id)) = place.map(|place| self.fetches.swap_remove(place)) else {
            let body = (status == 200).then(|| http_call_body(size));
            self.take_stats(body.as_deref());
            return;
        };
        let mut answer = Answer { status, ..Answer::default() };
        if status == 200 {
            answer.etag = http_call_header("etag").unwrap_or_default().into();
            answer.body = http_call_body(size);
        }
        let next = self.service.take_answer(&mut self.host, id, answer);
        let next = next.sooner(self.fetch());
        self.arm(next);
    }

    /// Asks all that is to be asked of servers of rules. Says when there is more to do.
    fn fetch(&mut self) -> Next {
        let mut next = Next::IDLE;
        while let Some(fetch) = self.service.next_fetch(&mut self.host) {
            let mut headers: Vec<(&str, &[u8])> = fetch
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes()))
                .collect();
            if !fetch.etag.is_empty() {
                headers.push(("if-none-match", fetch.etag));
            }
            let id = fetch.id;
            let (cluster, authority, path) = (fetch.cluster, fetch.authority, fetch.path);
            match http_get(cluster, authority, path, &headers, FETCH_TIMEOUT_MS) {
                Ok(call) => self.fetches.push((call, id)),
                Err(_) => {
                    let failed = self.service.take_answer(&mut self.host, id, Answer::default());
                    next = next.sooner(failed);
                }
            }
        }
        next
    }

    /// Envoy's admin endpoint has answered, or has not.
    fn take_stats(&mut self, body: Option<&[u8]>) {
        match &body {
            Some(_) => self.has_complained = false,
            None => self
                .complain("does not answer /stats with status 200: is it Envoy's admin endpoint?"),
        }
        self.service.take_stats(&mut self.host, body);
    }

    fn ask_stats(&mut self) {
        let cluster = self.service.stats_cluster().unwrap_or_default();
        if http_get(cluster, cluster, STATS, &[], STATS_TIMEOUT_MS).is_err() {
            self.complain("is none that Envoy knows: add a static cluster of its admin endpoint");
            self.service.take_stats(&mut self.host, None);
        }
    }

    /// Says once what is wrong; again after it was right.
    fn complain(&mut self, problem: &str) {
        if !self.has_complained {
            self.has_complained = true;
            let cluster = self.service.stats_cluster().unwrap_or_default();
            log::warn!(
                "service: the cluster `{cluster}` (envoyStats) {problem}. Until then rules that need CPU or memory do without"
            );
        }
    }

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
