//! The service: a singleton on Envoy's main thread.
//!
//! A thin shell around the engine's service: configuration, timer, queue.

#![expect(missing_docs, reason = "`proxy_wasm::main!` exports an undocumented `_initialize`")]

mod root;

use proxy_wasm::types::LogLevel;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(root::ServiceRoot::default()));
}}
