//! The service: a singleton on Envoy's main thread.
//!
//! A thin shell around the engine's service: configuration, timer, queue, and what Envoy's own statistics say of CPU
//! and memory.

mod root;

use sentinel_envoy::dispatch::Shell;

/// What Envoy calls.
struct Module;

sentinel_envoy::entry_points!(Module);

impl Shell for Module {
    /// A root is of no interest before it has a configuration.
    fn create(_context: u32, _root: u32) {}

    fn delete(context: u32) {
        root::leave(context);
    }

    fn configure(root: u32, size: usize) -> bool {
        root::configure(root, size)
    }

    fn tick(root: u32) {
        root::with(root, root::Live::tick);
    }

    fn queue_ready(root: u32) {
        root::with(root, root::Live::take_frame);
    }

    fn http_response(root: u32, call: u32, headers: usize, size: usize) {
        root::with(root, |live| live.take_response(call, headers, size));
    }
}
