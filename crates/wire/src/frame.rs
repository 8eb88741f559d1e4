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
pub const LAYOUT: u8 = 1;

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
    /// Response times by class: (class, count), in ascending order of classes, without empty ones.
    pub histogram: Vec<(u8, u64)>,
}

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
            && frame.entries.iter().all(|entry| entry.histogram.len() <= RT_CLASSES);
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
        }
    }
}
