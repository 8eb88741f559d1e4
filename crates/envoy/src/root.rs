//! What belongs to a plugin and its root context.

use crate::ffi::{self, Status};

/// The plugin's configuration, byte for byte; only in `on_configure`.
pub fn configuration() -> Result<Vec<u8>, Status> {
    match ffi::plugin_configuration() {
        Err(Status::NOT_FOUND | Status::EMPTY) => Ok(Vec::new()),
        read => read,
    }
}

/// Ticks the root of the current context every `period_ms`; 0 stops it.
///
/// Envoy refuses only a VM that may not tick at all, which [`crate::host::EnvoyHost::new`] has ruled out.
pub fn tick_every(period_ms: u32) {
    let set = ffi::set_tick_period(period_ms);
    debug_assert!(set.is_ok(), "{set:?}");
}

/// Ticks another root, from within a callback of `current`. `false` if there is no such root any more.
pub fn tick_other_every(root: u32, period_ms: u32, current: u32) -> bool {
    let switched = ffi::set_effective_context(root).is_ok();
    if switched {
        tick_every(period_ms);
        let back = ffi::set_effective_context(current);
        debug_assert!(back.is_ok(), "{back:?}");
    }
    switched
}
