//! One listener's configuration, and its timer.

use std::rc::Rc;

use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::ContextType,
};
use sentinel_core::config::FilterConfig;
use sentinel_engine::{Next, document};
use sentinel_envoy::stream::plugin_configuration;

use crate::{stream::Request, vm, vm::Timer};

/// A root context: what Envoy makes of one `envoy.filters.http.wasm` on this thread.
#[derive(Default)]
pub(crate) struct FilterRoot {
    listener: Rc<Listener>,
}

/// What a listener's streams share.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    pub(crate) config: FilterConfig,
    pub(crate) timer: Timer,
}

impl Context for FilterRoot {}

impl RootContext for FilterRoot {
    /// Parses and validates, and nothing with an effect: Envoy also configures a VM that it then throws
    /// away, and one on its main thread that never sees a stream.
    fn on_configure(&mut self, size: usize) -> bool {
        let config = match document::configuration(&plugin_configuration(size)) {
            Ok(node) => FilterConfig::from_node(&node),
            Err(error) => Err(error.in_source("configuration").into()),
        };
        match config {
            Ok(config) => {
                self.listener = Rc::new(Listener { config, timer: Timer::default() });
                // A listener that is configured anew drops its old root, and that one's timer with it.
                if vm::with(|vm| vm.is_worker()) == Some(true) {
                    self.listener.timer.arm(Next::IDLE.period_ms);
                }
                true
            }
            Err(refusals) => {
                for line in refusals.lines() {
                    log::error!("filter: {line}");
                }
                false
            }
        }
    }

    fn on_tick(&mut self) {
        vm::with(|vm| vm.tick(&self.listener.timer));
    }

    fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request::new(Rc::clone(&self.listener))))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
