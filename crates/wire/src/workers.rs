//! What all instances of a process agree on: its seeds, and who is a worker.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};

/// The layout of this build, for both values.
pub const LAYOUT: u8 = 1;

/// The most workers that have a slot. Who finds none claims token by token.
pub const WORKERS_MAX: usize = 256;

/// What the first instance of a process put into shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds {
    /// Wall time minus monotonic time, in nanoseconds: everybody's now is monotonic time plus this.
    pub t0_ns: u64,
    /// The key under which names are hashed. Random, so that nobody outside can aim at a hash.
    pub hash_key: [u8; 16],
}

/// Who is a worker: a slot for each VM that has seen a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    /// At most [`WORKERS_MAX`].
    pub slots: Vec<WorkerSlot>,
}

/// One worker's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSlot {
    /// Random; another after each start of the VM.
    pub incarnation: u64,
    /// When the worker was last alive, in nanoseconds since the epoch.
    pub heartbeat_ns: u64,
    /// The rule set that it applies; 0 before the first.
    pub rules_version: u64,
}

impl Seeds {
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

impl Workers {
    /// Replaces `bytes` by this value.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a value; more slots than [`WORKERS_MAX`] are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let workers: Self = codec::decode(LAYOUT, bytes)?;
        if workers.slots.len() > WORKERS_MAX { Err(DecodeError::Malformed) } else { Ok(workers) }
    }
}
