//! The engine's host over proxy-wasm.
//!
//! The only crate that knows proxy-wasm's ABI, and the only one that needs no SDK to: in that one, a status that it
//! does not expect, or one header byte that is not UTF-8, traps the VM and takes every request of its worker along.
//! Here a status is a value, and what a client sends is bytes.

pub mod dispatch;
pub mod host;
pub mod logging;
pub mod stream;

mod ffi;

pub use host::EnvoyHost;
