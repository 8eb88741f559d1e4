//! What a worker tells the service.
//!
//! A frame carries *running totals* of each resource that was touched since the last frame that the
//! service has acknowledged. So a frame that is lost, late or repeated costs nothing: the next one says
//! all of it again, and who has folded a total once cannot fold it twice.

use alloc::{string::String, vec::Vec};

use sentinel_core::stat::{MetricBucket, RT_CLASSES};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};

/// The layout of this build.
pub const LAYOUT: u8 = 2;

/// The most resources in one frame. The queue has no limit of its own, so we set one: what is over
/// stays dirty and goes with the next frame.
pub const FRAME_ENTRIES_MAX: usize = 256;

/// One worker's totals of the resources it has touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterFrame {
    /// The worker.
    pub incarnation: u64,
    /// 1 for a worker's first frame, then one more for each.
    pub sequence: u64,
    /// When the frame was made, in nanoseconds since the epoch: the slice in which it counts.
    pub at_ns: u64,
    /// Requests that wait for their slot.
    pub waiting: u32,
    /// Permits that the host would not take back so far.
    pub permits_owed: u64,
    /// At most [`FRAME_ENTRIES_MAX`].
    pub entries: Vec<FrameEntry>,
}

/// One resource's running totals since its worker's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameEntry {
    /// The keyed hash of the resource's name.
    pub resource: u64,
    /// The name, until this service has acknowledged a frame that carried it.
    pub name: Option<String>,
    /// Requests admitted.
    pub pass: u64,
    /// Requests refused.
    pub block: u64,
    /// Requests that have ended.
    pub complete: u64,
    /// Requests that have ended as errors.
    pub error: u64,
    /// The sum of response times in milliseconds.
    pub rt_ms: u64,
    /// Requests open now: not a total.
    pub in_flight: u64,
    /// The shortest response time since the last frame, as
    /// [`MetricBucket::rt_min`](sentinel_core::stat::MetricBucket::rt_min): not a total.
    pub rt_min: u64,
    /// What the breakers of the resource have seen.
    pub breakers: Vec<BreakerCounts>,
    /// Response times by class: (class, count), in ascending order of classes, without empty ones.
    pub histogram: Vec<(u8, u64)>,
}

/// What one worker has seen of one breaker since it entered its epoch: running totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerCounts {
    /// The breaker, by the generation of its entry in the rule set.
    pub generation: u64,
    /// The epoch in which all of it was admitted.
    pub epoch: u64,
    /// Requests that have ended.
    pub complete: u64,
    /// Those of them that were slow, or errors.
    pub bad: u64,
}

/// The most breakers of one entry: as many as a set may have rules.
pub const BREAKERS_MAX: usize = 100_000;

impl CounterFrame {
    /// Replaces `bytes` by this frame.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a frame; one with more than [`FRAME_ENTRIES_MAX`] entries is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let frame: Self = codec::decode(LAYOUT, bytes)?;
        let sound = frame.entries.len() <= FRAME_ENTRIES_MAX
            && frame.entries.iter().all(|entry| {
                entry.histogram.len() <= RT_CLASSES && entry.breakers.len() <= BREAKERS_MAX
            });
        if sound { Ok(frame) } else { Err(DecodeError::Malformed) }
    }
}

impl FrameEntry {
    /// The totals as counts.
    pub fn totals(&self) -> MetricBucket {
        MetricBucket {
            pass: self.pass,
            block: self.block,
            complete: self.complete,
            error: self.error,
            rt_ms: self.rt_ms,
            rt_min: self.rt_min,
        }
    }
}
