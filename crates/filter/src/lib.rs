//! The filter: one VM on each of Envoy's worker threads, in the path of every request.
//!
//! A thin shell. It names the request's resource, asks the engine's worker, turns a refusal into a
//! reply, and tells the worker of the request's end. No decision is taken here.

#![expect(missing_docs, reason = "`proxy_wasm::main!` exports an undocumented `_initialize`")]

#[cfg(feature = "faults")]
mod faults;
mod reply;
mod root;
mod stream;
mod vm;

use proxy_wasm::types::LogLevel;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|id| Box::new(root::FilterRoot::new(id)));
}}
