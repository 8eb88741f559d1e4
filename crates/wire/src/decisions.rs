//! What the service has decided, for all workers.
//!
//! Only what differs from what a worker assumes on its own: breakers that have ever opened, system rules
//! that refuse, thresholds that have moved. So the value is small while all is well, and one that is lost costs no
//! more than being late.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};

/// The layout of this build.
pub const LAYOUT: u8 = 1;

/// All decisions that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// In ascending order of [`Decision::generation`].
    pub decisions: Vec<Decision>,
}

/// One rule's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The rule, by the generation of its entry in the rule set.
    pub generation: u64,
    /// By the rule's kind: for a breaker the epoch of its ledger, unless that is 0; for a system rule 1 while it
    /// refuses; for a flow rule that is adaptive to memory the bits of its threshold; for a flow rule that reads
    /// another resource the tokens that are left.
    pub value: u64,
}

impl Decisions {
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
