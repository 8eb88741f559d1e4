//! What a worker tells the service.
//!
//! A frame carries *running totals* of each resource that was touched since the last frame that the
//! service has acknowledged. So a frame that is lost, late or repeated costs nothing: the next one says
//! all of it again, and who has folded a total once cannot fold it twice.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::ops::Range;

use sentinel_core::stat::{MetricBucket, RT_CLASSES};
use serde::Serialize;

use crate::codec::{self, DecodeError, Malformed, Quick};

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
pub const BREAKERS_MAX: u64 = 100_000;

impl CounterFrame {
    /// Replaces `bytes` by this frame.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a frame as [`FrameView::read`] does, and keeps it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut view = FrameView::default();
        view.read(bytes)?;
        Ok(Self {
            incarnation: view.incarnation,
            sequence: view.sequence,
            at_ns: view.at_ns,
            waiting: view.waiting,
            permits_owed: view.permits_owed,
            entries: view.entries.iter().map(|entry| view.entry(entry)).collect(),
        })
    }
}

/// A [`CounterFrame`] as the service reads it, thousands of times a second: one list for all names, one for all breakers and
/// one for all histograms, whose memory the next frame takes over.
#[derive(Debug, Default)]
pub struct FrameView {
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
    pub entries: Vec<EntryView>,
    names: String,
    breakers: Vec<BreakerCounts>,
    classes: Vec<(u8, u64)>,
}

/// A [`FrameEntry`] of a [`FrameView`].
#[derive(Debug)]
pub struct EntryView {
    /// The keyed hash of the resource's name.
    pub resource: u64,
    /// All of them totals but the shortest response time.
    pub totals: MetricBucket,
    /// Requests open now.
    pub in_flight: u64,
    name: Option<Range<usize>>,
    breakers: Range<usize>,
    classes: Range<usize>,
}

impl FrameView {
    /// Reads a frame in place of the one before; one with more than [`FRAME_ENTRIES_MAX`] entries is malformed. After an error
    /// what stands here is nothing to go by.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        codec::read_quick(LAYOUT, bytes, |reader| self.read_fields(reader))
    }

    /// The resource's name, until this service has acknowledged a frame that carried it.
    pub fn name_of(&self, entry: &EntryView) -> Option<&str> {
        self.names.get(entry.name.clone()?)
    }

    /// Whether any entry carries a name.
    pub fn has_names(&self) -> bool {
        self.entries.iter().any(|entry| entry.name.is_some())
    }

    /// What the breakers of the entry's resource have seen.
    #[inline(always)]
    pub fn breakers_of(&self, entry: &EntryView) -> &[BreakerCounts] {
        self.breakers.get(entry.breakers.clone()).unwrap_or_default()
    }

    /// Response times by class: (class, count).
    #[inline(always)]
    pub fn histogram_of(&self, entry: &EntryView) -> &[(u8, u64)] {
        self.classes.get(entry.classes.clone()).unwrap_or_default()
    }

    fn entry(&self, entry: &EntryView) -> FrameEntry {
        let MetricBucket { pass, block, complete, error, rt_ms, rt_min } = entry.totals;
        FrameEntry {
            resource: entry.resource,
            name: self.name_of(entry).map(ToOwned::to_owned),
            pass,
            block,
            complete,
            error,
            rt_ms,
            in_flight: entry.in_flight,
            rt_min,
            breakers: self.breakers_of(entry).to_vec(),
            histogram: self.histogram_of(entry).to_vec(),
        }
    }

    /// The fields in the order of [`CounterFrame`].
    fn read_fields(&mut self, reader: &mut Quick<'_>) -> Result<(), Malformed> {
        self.incarnation = reader.number();
        self.sequence = reader.number();
        self.at_ns = reader.number();
        self.waiting = u32::try_from(reader.number()).map_err(|_| Malformed)?;
        self.permits_owed = reader.number();
        let count = reader.number();
        if count > FRAME_ENTRIES_MAX as u64 {
            return Err(Malformed);
        }
        self.entries.clear();
        self.names.clear();
        self.breakers.clear();
        self.classes.clear();
        let mut own = *reader;
        for _ in 0..count {
            self.read_entry(&mut own)?;
        }
        *reader = own;
        Ok(())
    }

    /// The fields in the order of [`FrameEntry`].
    #[inline(always)]
    fn read_entry(&mut self, reader: &mut Quick<'_>) -> Result<(), Malformed> {
        let resource = reader.number();
        let name = match reader.byte() {
            0 => None,
            1 => {
                let mut own = *reader;
                let begin = self.names.len();
                self.names.push_str(own.text()?);
                *reader = own;
                Some(begin..self.names.len())
            }
            _ => return Err(Malformed),
        };
        let pass = reader.number();
        let block = reader.number();
        let complete = reader.number();
        let error = reader.number();
        let rt_ms = reader.number();
        let in_flight = reader.number();
        let rt_min = reader.number();
        let first_breaker = self.breakers.len();
        let breakers = reader.number();
        if breakers > BREAKERS_MAX {
            return Err(Malformed);
        }
        for _ in 0..breakers {
            self.breakers.push(BreakerCounts {
                generation: reader.number(),
                epoch: reader.number(),
                complete: reader.number(),
                bad: reader.number(),
            });
            // No list is longer than what it is read from.
            reader.rest()?;
        }
        let first_class = self.classes.len();
        let classes = reader.number();
        if classes > RT_CLASSES as u64 {
            return Err(Malformed);
        }
        for _ in 0..classes {
            self.classes.push((reader.byte(), reader.number()));
        }
        self.entries.push(EntryView {
            resource,
            totals: MetricBucket { pass, block, complete, error, rt_ms, rt_min },
            in_flight,
            name,
            breakers: first_breaker..self.breakers.len(),
            classes: first_class..self.classes.len(),
        });
        reader.rest().map(|_| ())
    }
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
