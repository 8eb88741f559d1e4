//! What the commands that need no proxy are made of, natively and with the engine that ships.

#![forbid(unsafe_code)]

pub mod check;
pub mod explain;
mod filter;
mod limit;
pub mod replay;
pub mod top;
