//! The filter: one VM on each of Envoy's worker threads, in the path of every request.
//!
//! A thin shell. It names the request's resource, asks the engine's worker, turns a refusal into a reply and a wait
//! into a pause, and tells the worker of the request's end. No decision is taken here.

mod chain;
mod connection;
#[cfg(feature = "faults")]
mod faults;
mod listener;
#[cfg(feature = "messages")]
mod messages;
mod reply;
mod request;
mod streams;
mod vm;

use sentinel_envoy::{
    dispatch::{Flow, Shell},
    stream::vm_configuration,
};

/// What Envoy calls.
struct Filter;

sentinel_envoy::entry_points!(Filter);

impl Shell for Filter {
    fn start(size: usize) {
        let configuration = vm_configuration(size);
        vm::with(|vm| vm.neighbours.set_kind(&configuration));
    }

    fn create(context: u32, root: u32) {
        vm::with(|vm| vm.create(context, root));
    }

    fn delete(context: u32) {
        vm::with(|vm| vm.delete(context));
    }

    fn configure(root: u32, size: usize) -> bool {
        listener::configure(root, size)
    }

    fn tick(root: u32) {
        vm::with(|vm| vm.tick(root));
    }

    fn request_headers(stream: u32) -> Flow {
        #[cfg(feature = "faults")]
        if faults::obey() {
            return Flow::Pause;
        }
        vm::with(|vm| vm.enter(stream)).unwrap_or(Flow::Continue)
    }

    #[cfg(feature = "messages")]
    fn request_body(stream: u32, size: usize) -> sentinel_envoy::dispatch::DataFlow {
        vm::with(|vm| vm.enter_messages(stream, size))
            .unwrap_or(sentinel_envoy::dispatch::DataFlow::Continue)
    }

    fn new_connection(stream: u32) -> Flow {
        vm::with(|vm| vm.accept(stream)).unwrap_or(Flow::Continue)
    }

    fn downstream_data(stream: u32) -> Flow {
        vm::with(|vm| vm.hold_back(stream)).unwrap_or(Flow::Continue)
    }

    fn upstream_data(stream: u32) -> Flow {
        vm::with(|vm| vm.replace(stream));
        Flow::Continue
    }

    fn log(stream: u32) {
        vm::with(|vm| vm.end(stream));
    }
}
