//! The engine's host over proxy-wasm.
//!
//! The only crate besides the two shells that knows proxy-wasm. It goes past the SDK wherever that could
//! panic: a status that the SDK does not expect, or one header byte that is not UTF-8, would trap the VM
//! and take every request of its worker along. Here a status is a value, and what a client sends is bytes.

pub mod host;
pub mod stream;

mod ffi;

pub use host::EnvoyHost;
