//! One listener's configuration: what Envoy makes of one `envoy.filters.http.wasm` on this thread.

use std::rc::Rc;

use sentinel_core::{
    config::{FilterConfig, SOURCE},
    rule::error::Refusals,
};
use sentinel_engine::document;
use sentinel_envoy::{EnvoyHost, stream::plugin_configuration};

use crate::vm;

/// What a listener's streams share. They keep it when their root is configured anew, or gone.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The root context's id.
    pub(crate) root: u32,
    pub(crate) config: FilterConfig,
}

impl Listener {
    pub(crate) fn new(root: u32, config: FilterConfig) -> Rc<Self> {
        Rc::new(Self { root, config })
    }
}

/// Parses and validates, and nothing with an effect on traffic: Envoy also configures a VM that it then throws
/// away, and one on its main thread that never sees a stream. `false` if the configuration is refused.
pub(crate) fn configure(root: u32, size: usize) -> bool {
    if let Some(function) = EnvoyHost::refused_function() {
        log::error!("filter: Envoy refuses {function}: allow it in capability_restriction_config");
        return false;
    }
    let bytes = plugin_configuration(size);
    let node = match document::configuration(&bytes) {
        Ok(node) => node,
        Err(error) => return refuse(&error.in_source(SOURCE).into()),
    };
    let is_checked = vm::with(|vm| vm.is_checked(&bytes)).unwrap_or(false);
    let config = if is_checked {
        FilterConfig::from_checked_node(&node)
    } else {
        FilterConfig::from_node(&node)
    };
    match config {
        Ok(config) => {
            vm::with(|vm| vm.join(Listener::new(root, config), bytes, is_checked));
            true
        }
        Err(refusals) => refuse(&refusals),
    }
}

fn refuse(refusals: &Refusals) -> bool {
    vm::with(vm::Vm::count_rejection);
    for line in refusals.lines() {
        log::error!("filter: {line}");
    }
    false
}
