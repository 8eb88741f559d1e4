//! Who is the service, that it lives, and what it has folded.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, DecodeError},
    workers::WORKERS_MAX,
};

/// The layout of this build.
pub const LAYOUT: u8 = 1;

/// The service's own value: only the holder of the role writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBeat {
    /// The holder's incarnation: random, another after each start of its VM.
    pub instance: u64,
    /// A hash of its configuration's bytes: a second service with another one is a conflict.
    pub config_hash: u64,
    /// When the holder was last alive, in nanoseconds since the epoch.
    pub heartbeat_ns: u64,
    /// The newest rule set that it has published.
    pub rules_version: u64,
    /// What it has folded, one for each worker heard of lately; at most [`WORKERS_MAX`] twice over, since a
    /// worker that was revived is heard of under both incarnations for a while.
    pub acks: Vec<Ack>,
}

/// The newest frame of a worker that the service has folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The worker.
    pub incarnation: u64,
    /// The frame's sequence number.
    pub sequence: u64,
}

/// The most acknowledgements in one value.
pub const ACKS_MAX: usize = 2 * WORKERS_MAX;

impl ServiceBeat {
    /// Replaces `bytes` by this value.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a value; more acknowledgements than [`ACKS_MAX`] are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let beat: Self = codec::decode(LAYOUT, bytes)?;
        if beat.acks.len() > ACKS_MAX { Err(DecodeError::Malformed) } else { Ok(beat) }
    }

    /// The newest folded frame of a worker.
    pub fn ack_of(&self, incarnation: u64) -> Option<u64> {
        self.acks.iter().find(|ack| ack.incarnation == incarnation).map(|ack| ack.sequence)
    }
}
