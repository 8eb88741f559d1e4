//! Rules that filters carry in their own configuration, on their way to the service.
//!
//! Envoy delivers a listener's filter configuration to every VM, and a filter that carries rules hands the
//! configuration over as it came. So that 1 MB is not written again by each VM of each worker, what is carried stands
//! in two places: a short directory of who carries what, and each configuration in a value of its own.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};

/// The layout of this build, for both values.
pub const LAYOUT: u8 = 1;

/// The most configurations with rules at a time, those of draining listeners included. One more is not handed over,
/// and the log says so.
pub const CARRIED_MAX: usize = 64;

/// The most VMs that carry one configuration: two for each of the most workers, and the main thread's.
pub const HOLDERS_MAX: usize = 516;

/// The most digests that are remembered of configurations whose rules are in order.
pub const CHECKED_MAX: usize = 16;

/// Who carries what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The order of the newest set; 0 before the first.
    pub newest: u64,
    /// Digests of configurations whose rules have compiled, the newest last: what one VM has found in order no other
    /// needs to compile. At most [`CHECKED_MAX`].
    pub checked: Vec<u64>,
    /// At most [`CARRIED_MAX`].
    pub sets: Vec<CarriedSet>,
}

/// One configuration with rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedSet {
    /// The process's hash of the configuration's bytes.
    pub digest: u64,
    /// Grows with each configuration that a plugin is given: of two sets of one plugin the newer one wins.
    pub order: u64,
    /// The plugin's name in Envoy's configuration.
    pub plugin: String,
    /// Where the configuration stands: the `n` of its key.
    pub slot: u32,
    /// Whether it stands there.
    pub stored: bool,
    /// The VMs that carry it. When there is none any more, the set leaves. At most [`HOLDERS_MAX`].
    pub holders: Vec<Holder>,
}

/// One VM that carries a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Random; another after each start of the VM.
    pub vm: u64,
    /// When the VM was last alive, in nanoseconds since the epoch.
    pub seen_ns: u64,
}

/// A configuration as Envoy gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The process's hash of `bytes`.
    pub digest: u64,
    /// The configuration; empty once nobody carries it any more.
    pub bytes: Vec<u8>,
}

impl Directory {
    /// Replaces `bytes` by this value.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a value; lists longer than their bounds are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let directory: Self = codec::decode(LAYOUT, bytes)?;
        let is_bounded = directory.checked.len() <= CHECKED_MAX
            && directory.sets.len() <= CARRIED_MAX
            && directory.sets.iter().all(|set| set.holders.len() <= HOLDERS_MAX);
        if is_bounded { Ok(directory) } else { Err(DecodeError::Malformed) }
    }
}

impl Configuration {
    /// Replaces `bytes` by this value.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(LAYOUT, bytes)
    }
}
