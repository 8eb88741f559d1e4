//! One listener's configuration.

use std::rc::Rc;

use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::ContextType,
};
use sentinel_core::config::FilterConfig;
use sentinel_engine::document;
use sentinel_envoy::{EnvoyHost, stream::plugin_configuration};

use crate::{stream::Request, vm};

/// A root context: what Envoy makes of one `envoy.filters.http.wasm` on this thread.
pub(crate) struct FilterRoot {
    listener: Rc<Listener>,
}

/// What a listener's streams share.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The root context's id.
    pub(crate) root: u32,
    pub(crate) config: FilterConfig,
}

impl FilterRoot {
    pub(crate) fn new(root: u32) -> Self {
        Self { listener: Rc::new(Listener { root, config: FilterConfig::default() }) }
    }
}

impl Context for FilterRoot {}

/// Envoy has let go of the root. (`proxy_on_done` says so too, but then also for every stream.)
impl Drop for FilterRoot {
    fn drop(&mut self) {
        vm::with(|vm| vm.leave(self.listener.root));
    }
}

impl RootContext for FilterRoot {
    /// Parses and validates, and nothing with an effect: Envoy also configures a VM that it then throws
    /// away, and one on its main thread that never sees a stream.
    fn on_configure(&mut self, size: usize) -> bool {
        if let Some(function) = EnvoyHost::refused_function() {
            log::error!(
                "filter: Envoy refuses {function}: allow it in capability_restriction_config"
            );
            return false;
        }
        let config = match document::configuration(&plugin_configuration(size)) {
            Ok(node) => FilterConfig::from_node(&node),
            Err(error) => Err(error.in_source("configuration").into()),
        };
        match config {
            Ok(config) => {
                let root = self.listener.root;
                self.listener = Rc::new(Listener { root, config });
                vm::with(|vm| vm.join(root));
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
        vm::with(|vm| vm.tick(self.listener.root));
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request::new(context_id, Rc::clone(&self.listener))))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
