//! The rules of flow control as plain functions.
//!
//! No clock, no I/O, no globals, no proxy-wasm: time is an argument, and what a function decides it
//! decides from its arguments alone. So a decision reads the same in a worker, in the service, in the
//! simulator and in a unit test.
//!
//! In the order in which a request meets them: [`time`] and [`window`] say when something counts,
//! [`resource`] what a request is called, [`rule`] what is asked of it, [`ledger`] how many tokens a
//! rule still has for all workers, [`lease`] what this worker holds of them, and [`block`] what a
//! refused client is told. [`stat`] is what the service counts, [`config`] what an operator may set.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod config;
pub mod decimal;
pub mod lease;
pub mod ledger;
pub mod message;
pub mod network;
pub mod order;
pub mod param;
pub mod pattern;
pub mod resource;
pub mod rule;
pub mod stat;
pub mod system;
pub mod time;
pub mod warm_up;
pub mod window;

mod regex;
