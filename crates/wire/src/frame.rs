//! What a worker tells the service.
//!
//! A frame carries *running totals* of each resource that was touched since the last frame that the
//! service has acknowledged. So a frame that is lost, late or repeated costs nothing: the next one says
//! all of it again, and who has folded a total once cannot fold it twice.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::iter;

use sentinel_core::stat::{MetricBucket, RT_CLASSES};
use serde::Serialize;

use crate::codec::{self, DecodeError, Malformed, Reader};

/// The layout of this build.
pub const LAYOUT: u8 = 2;

/// The most resources in one frame. The queue has no limit of its own, so we set one: what is over
/// stays dirty and goes with the next frame.
pub const FRAME_ENTRIES_MAX: usize = 256;

/// One worker's totals of the resources it has touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
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

    /// Reads a frame as [`FrameView::decode`] does, and keeps it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let view = FrameView::decode(bytes)?;
        Ok(Self {
            incarnation: view.incarnation,
            sequence: view.sequence,
            at_ns: view.at_ns,
            waiting: view.waiting,
            permits_owed: view.permits_owed,
            entries: view.entries.iter().map(FrameEntry::of).collect(),
        })
    }
}

impl FrameEntry {
    fn of(view: &EntryView<'_>) -> Self {
        let MetricBucket { pass, block, complete, error, rt_ms, rt_min } = view.totals;
        Self {
            resource: view.resource,
            name: view.name.map(ToOwned::to_owned),
            pass,
            block,
            complete,
            error,
            rt_ms,
            in_flight: view.in_flight,
            rt_min,
            breakers: view.breakers().collect(),
            histogram: view.histogram().collect(),
        }
    }
}

/// A [`CounterFrame`] as the service reads it, thousands of times a second: where it lies, with one allocation for all entries.
#[derive(Clone, Debug)]
pub struct FrameView<'a> {
    /// As in [`CounterFrame`].
    pub incarnation: u64,
    /// As in [`CounterFrame`].
    pub sequence: u64,
    /// As in [`CounterFrame`].
    pub at_ns: u64,
    /// As in [`CounterFrame`].
    pub waiting: u32,
    /// As in [`CounterFrame`].
    pub permits_owed: u64,
    /// At most [`FRAME_ENTRIES_MAX`].
    pub entries: Vec<EntryView<'a>>,
}

/// A [`FrameEntry`] where it lies.
#[derive(Clone, Debug)]
pub struct EntryView<'a> {
    /// The keyed hash of the resource's name.
    pub resource: u64,
    /// The name, until this service has acknowledged a frame that carried it.
    pub name: Option<&'a str>,
    /// What has happened since the worker's start, but for the shortest response time.
    pub totals: MetricBucket,
    /// Requests open now.
    pub in_flight: u64,
    breakers: &'a [u8],
    histogram: &'a [u8],
}

impl<'a> FrameView<'a> {
    /// Reads a frame; one with more than [`FRAME_ENTRIES_MAX`] entries is malformed.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        codec::decode_with(LAYOUT, bytes, Self::read)
    }

    /// The fields in the order of [`CounterFrame`].
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let [incarnation, sequence, at_ns] = reader.numbers()?;
        let waiting = reader.number()?;
        let [permits_owed] = reader.numbers()?;
        let count = reader.length()?;
        if count > FRAME_ENTRIES_MAX {
            return Err(Malformed);
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(EntryView::read(reader)?);
        }
        Ok(Self { incarnation, sequence, at_ns, waiting, permits_owed, entries })
    }
}

impl<'a> EntryView<'a> {
    /// What the breakers of the resource have seen.
    pub fn breakers(&self) -> impl Iterator<Item = BreakerCounts> {
        items(self.breakers, BreakerCounts::read)
    }

    /// Response times by class: (class, count).
    pub fn histogram(&self) -> impl Iterator<Item = (u8, u64)> {
        items(self.histogram, read_class)
    }

    /// The fields in the order of [`FrameEntry`].
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let [resource] = reader.numbers()?;
        let name = match reader.byte()? {
            0 => None,
            1 => Some(reader.text()?),
            _ => return Err(Malformed),
        };
        let [pass, block, complete, error, rt_ms, in_flight, rt_min] = reader.numbers()?;
        Ok(Self {
            resource,
            name,
            totals: MetricBucket { pass, block, complete, error, rt_ms, rt_min },
            in_flight,
            breakers: list(reader, BREAKERS_MAX, BreakerCounts::read)?,
            histogram: list(reader, RT_CLASSES, read_class)?,
        })
    }
}

impl BreakerCounts {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let [generation, epoch, complete, bad] = reader.numbers()?;
        Ok(Self { generation, epoch, complete, bad })
    }
}

fn read_class(reader: &mut Reader<'_>) -> Result<(u8, u64), Malformed> {
    let class = reader.byte()?;
    let [count] = reader.numbers()?;
    Ok((class, count))
}

/// The bytes of a list, whose items can all be read.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    items_max: usize,
    read: impl Fn(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<&'a [u8], Malformed> {
    let count = reader.length()?;
    if count > items_max {
        return Err(Malformed);
    }
    let all = reader.rest;
    for _ in 0..count {
        read(reader)?;
    }
    all.get(..all.len() - reader.rest.len()).ok_or(Malformed)
}

/// The items of such a list.
fn items<'a, T>(
    bytes: &'a [u8],
    read: impl Fn(&mut Reader<'a>) -> Result<T, Malformed>,
) -> impl Iterator<Item = T> {
    let mut reader = Reader { rest: bytes };
    iter::from_fn(move || if reader.rest.is_empty() { None } else { read(&mut reader).ok() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_number() -> impl Strategy<Value = u64> {
        prop_oneof![0..4_u64, 249..260_u64, any::<u64>()]
    }

    fn any_breaker() -> impl Strategy<Value = BreakerCounts> {
        [any_number(), any_number(), any_number(), any_number()].prop_map(
            |[generation, epoch, complete, bad]| BreakerCounts { generation, epoch, complete, bad },
        )
    }

    fn any_entry() -> impl Strategy<Value = FrameEntry> {
        let lists = (
            prop::collection::vec(any_breaker(), 0..3),
            prop::collection::vec((any::<u8>(), any_number()), 0..4),
        );
        let numbers = prop::collection::vec(any_number(), 8);
        (any::<Option<String>>(), numbers, lists).prop_map(|(name, numbers, lists)| FrameEntry {
            resource: numbers[0],
            name,
            pass: numbers[1],
            block: numbers[2],
            complete: numbers[3],
            error: numbers[4],
            rt_ms: numbers[5],
            in_flight: numbers[6],
            rt_min: numbers[7],
            breakers: lists.0,
            histogram: lists.1,
        })
    }

    fn any_frame() -> impl Strategy<Value = CounterFrame> {
        let numbers = [any_number(), any_number(), any_number(), any_number()];
        (numbers, any::<u32>(), prop::collection::vec(any_entry(), 0..4)).prop_map(
            |([incarnation, sequence, at_ns, permits_owed], waiting, entries)| CounterFrame {
                incarnation,
                sequence,
                at_ns,
                waiting,
                permits_owed,
                entries,
            },
        )
    }

    #[test]
    fn a_frame_or_a_list_in_it_that_is_too_long_is_malformed() {
        let with = |entries: usize, classes: usize| {
            let histogram = alloc::vec![(0, 0); classes];
            let entry = FrameEntry { histogram, ..FrameEntry::default() };
            let entries = alloc::vec![entry; entries];
            let mut bytes = Vec::new();
            CounterFrame { entries, ..CounterFrame::default() }.encode(&mut bytes);
            CounterFrame::decode(&bytes).map(|frame| frame.entries.len())
        };
        assert_eq!(with(FRAME_ENTRIES_MAX, RT_CLASSES), Ok(FRAME_ENTRIES_MAX));
        assert_eq!(with(FRAME_ENTRIES_MAX + 1, 0), Err(DecodeError::Malformed));
        assert_eq!(with(1, RT_CLASSES + 1), Err(DecodeError::Malformed));
    }

    proptest! {
        #[test]
        fn what_is_read_in_place_is_what_serde_reads_of_damaged_bytes_too(
            frame in any_frame(),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            if let Some((at, byte)) = damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let read = CounterFrame::decode(&bytes);
            if damage.is_none() && cut.is_none() {
                prop_assert_eq!(&read, &Ok(frame));
            }
            prop_assert_eq!(read, codec::decode::<CounterFrame>(LAYOUT, &bytes));
        }
    }
}
