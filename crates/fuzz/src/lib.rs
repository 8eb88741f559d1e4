//! Random input for everything that reads any, and random callbacks for the modules that ship.
//!
//! [`targets`] are the readers: of frames, ledgers, rule documents, configurations, headers and paths. [`search`] feeds them
//! with a corpus that stands beside this source, and with what [`mutate`] makes of it. [`modules`] runs the modules of
//! `dist/` in an interpreter that counts instructions, under a host that calls them in any order and fails as it likes.
//! `cargo xtask fuzz` is the way in; `README.md` says what is promised and how a finding is replayed.

pub mod modules;
pub mod mutate;
pub mod search;
pub mod targets;
