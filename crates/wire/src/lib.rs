//! The bytes that cross between VMs, and nothing else.
//!
//! Workers and the service share no memory; what one writes another reads, possibly from a module of
//! another version during an upgrade. So each value begins with its layout version, every length is
//! checked before it is believed, and the bytes of each version are frozen by a golden test. A reader
//! that meets a newer layout says so ([`DecodeError::Newer`]) and the rule's `onHostFailure` decides.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod carried;
pub mod codec;
pub mod decisions;
pub mod frame;
pub mod key;
pub mod ledger;
pub mod rules;
pub mod service;
pub mod sources;
pub mod workers;

pub use codec::DecodeError;
