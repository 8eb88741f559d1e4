//! What one worker has said of each resource: its totals so far, against which a frame tells what is new.
//!
//! With many workers that is megabytes, which no near cache holds, and fetching a piece of it takes longer than all
//! arithmetic about it. So what one worker has said of one resource lies in one piece of whole cache lines, and
//! [`Fold::fold`](super::fold::Fold::fold) takes each step of its way there for all entries of a frame before the next step.

use alloc::vec::Vec;

use sentinel_core::stat::{MetricBucket, RT_CLASSES, RtHistogram};
use sentinel_wire::frame::EntryView;

/// The words of a cache line, as most processors have them.
const LINE_WORDS: usize = 8;

/// Before the classes of response times: five totals, and the requests in flight.
const HEAD_WORDS: usize = 6;

/// The first line of a piece has the head and two classes, 0 and 1 ms; each further one eight classes more.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Line([u64; LINE_WORDS]);

/// What one worker has said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// By the places of resources.
    pieces: Vec<Piece>,
    /// In the order in which it has first spoken of them. A piece that has become too small is left behind for one that is
    /// at least twice as large, up to 16 lines.
    lines: Vec<Line>,
}

/// Where a piece begins, times 8, and in the lower three bits one more than the logarithm of its length; 0 if there is none. A VM
/// has no room for 2^26 lines.
#[derive(Clone, Copy, Debug, Default)]
struct Piece(u32);

impl Said {
    /// The first line of what was said of the resource at a place; `None` if that is nothing.
    #[inline(always)]
    pub(super) fn find(&self, place: usize) -> Option<usize> {
        let piece = self.pieces.get(place).copied().unwrap_or_default();
        (piece.len() > 0).then(|| piece.first())
    }

    /// Brings a line near.
    #[inline(always)]
    pub(super) fn touch(&self, line: usize) -> u64 {
        self.lines.get(line).map_or(0, |Line([word, ..])| *word)
    }

    /// Moves what was said of the resource at a place to what `entry` says, and tells what it moved by. `in_flight`, that of
    /// all workers, moves with it, and new response times are counted in `distributed`. A worker whose totals have gone back
    /// has forgotten the resource in between and begun anew: then all of it is new.
    #[inline(always)]
    pub(super) fn advance(
        &mut self,
        place: usize,
        entry: &EntryView,
        histogram: &[(u8, u64)],
        in_flight: &mut u64,
        mut distributed: Option<&mut RtHistogram>,
    ) -> MetricBucket {
        let highest = histogram.last().map_or(0, |(class, _)| usize::from(*class));
        let words = HEAD_WORDS + 1 + highest.min(RT_CLASSES - 1);
        let mut piece = self.pieces.get(place).copied().unwrap_or_default();
        if piece.len() * LINE_WORDS < words {
            piece = self.make_room(place, words.div_ceil(LINE_WORDS));
        }
        let lines = self.lines.get_mut(piece.first()..piece.end()).unwrap_or_default();
        let now = &entry.totals;
        if let [Line([pass, block, ..]), ..] = lines
            && (now.pass < *pass || now.block < *block)
        {
            forget_totals(lines);
        }
        let [Line([pass, block, complete, error, rt_ms, own_in_flight, ..]), ..] = lines else {
            return MetricBucket::default();
        };
        *in_flight = in_flight.wrapping_sub(*own_in_flight).wrapping_add(entry.in_flight);
        *own_in_flight = entry.in_flight;
        let moved = MetricBucket {
            pass: advance(pass, now.pass),
            block: advance(block, now.block),
            complete: advance(complete, now.complete),
            error: advance(error, now.error),
            rt_ms: advance(rt_ms, now.rt_ms),
            // Not a total.
            rt_min: now.rt_min,
        };
        for &(class, count) in histogram {
            let word = HEAD_WORDS + usize::from(class);
            let line = lines.get_mut(word / LINE_WORDS);
            let Some(total) = line.and_then(|line| line.0.get_mut(word % LINE_WORDS)) else {
                continue;
            };
            let new = advance(total, count);
            if let Some(distributed) = &mut distributed {
                distributed.add_class(class, new);
            }
        }
        moved
    }

    /// The requests in flight of the resource at each place.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = u64> {
        self.pieces.iter().map(|piece| match self.lines.get(piece.first()..piece.end()) {
            Some([Line([.., in_flight, _, _]), ..]) => *in_flight,
            Some([]) | None => 0,
        })
    }

    /// Gives the resource at a place a piece of at least so many lines, with what stood in the one before.
    #[inline(never)]
    fn make_room(&mut self, place: usize, lines: usize) -> Piece {
        if self.pieces.len() <= place {
            self.pieces.resize(place.saturating_add(1), Piece::default());
        }
        let Some(piece) = self.pieces.get_mut(place) else { return Piece::default() };
        let first = self.lines.len();
        let old = core::mem::replace(piece, Piece::new(first, lines));
        let new = *piece;
        self.lines.resize(new.end(), Line::default());
        if let Some((before, own)) = self.lines.split_at_mut_checked(first) {
            let old = before.get(old.first()..old.end()).unwrap_or_default();
            own.iter_mut().zip(old).for_each(|(new, old)| *new = *old);
        }
        new
    }
}

impl Piece {
    /// One of at least so many lines, up to 64.
    fn new(first: usize, lines: usize) -> Self {
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        Self(first.wrapping_mul(8) | (lines.next_power_of_two().ilog2() + 1))
    }

    fn first(self) -> usize {
        usize::try_from(self.0 / 8).unwrap_or(usize::MAX)
    }

    fn len(self) -> usize {
        (1 << (self.0 % 8)) >> 1
    }

    fn end(self) -> usize {
        self.first().saturating_add(self.len())
    }
}

/// What is in flight is no total.
#[inline(never)]
fn forget_totals(lines: &mut [Line]) {
    let in_flight = lines.first().map_or(0, |Line([.., in_flight, _, _])| *in_flight);
    lines.fill(Line::default());
    if let [Line([.., own, _, _]), ..] = lines {
        *own = in_flight;
    }
}

/// Moves a total, and says what it moved by.
#[inline(always)]
fn advance(total: &mut u64, now: u64) -> u64 {
    now.saturating_sub(core::mem::replace(total, now))
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeMap, vec};

    use proptest::prelude::*;
    use sentinel_wire::frame::{CounterFrame, FrameEntry, FrameView};

    use super::*;

    /// A worker that has served `pass` requests, whose response times it has counted by class, and has so many open.
    fn frame(pass: u64, in_flight: u64, histogram: &BTreeMap<u8, u64>) -> FrameView {
        let histogram = histogram.iter().map(|(class, count)| (*class, *count)).collect();
        let entry = FrameEntry { pass, in_flight, histogram, ..FrameEntry::default() };
        let mut bytes = Vec::new();
        CounterFrame { entries: vec![entry], ..CounterFrame::default() }.encode(&mut bytes);
        let mut view = FrameView::default();
        view.read(&bytes).unwrap();
        view
    }

    proptest! {
        #[test]
        fn what_a_worker_says_is_counted_once_whatever_classes_it_comes_to_and_however_often_it_begins_anew(
            steps in prop::collection::vec((0..3_usize, 0..9_u64, 0..RT_CLASSES, any::<bool>()), 1..60),
        ) {
            let mut said = Said::default();
            let mut worker = vec![(0, BTreeMap::<u8, u64>::new()); 3];
            let mut in_flight = [0; 3];
            let (mut counted, mut expected) = ([0; 3], [0; 3]);
            let mut distributed = [RtHistogram::default(); 3];
            let mut expected_of = [RtHistogram::default(); 3];
            for (place, requests, class, forgets) in steps {
                let (pass, histogram) = &mut worker[place];
                // Who has forgotten more than it has seen since has gone back.
                if forgets && *pass > requests {
                    (*pass, *histogram) = (0, BTreeMap::new());
                }
                *pass += requests;
                let class = u8::try_from(class).unwrap();
                *histogram.entry(class).or_default() += requests;
                let view = frame(*pass, requests, histogram);
                let entry = &view.entries[0];
                let moved = said.advance(
                    place,
                    entry,
                    view.histogram_of(entry),
                    &mut in_flight[place],
                    Some(&mut distributed[place]),
                );

                counted[place] += moved.pass;
                expected[place] += requests;
                expected_of[place].add_class(class, requests);
                prop_assert_eq!(in_flight[place], requests);
                prop_assert!(said.find(place).is_some());
            }
            prop_assert_eq!(counted, expected);
            prop_assert_eq!(distributed, expected_of);
            for (place, open) in said.in_flight().enumerate() {
                prop_assert_eq!(open, in_flight[place]);
            }
            let pieces = said.pieces.iter().map(|piece| piece.len()).sum::<usize>();
            prop_assert!(said.lines.len() <= 2 * pieces, "no more is left behind than is used");
        }
    }

    #[test]
    fn a_class_that_does_not_exist_is_counted_nowhere() {
        let view = frame(1, 0, &BTreeMap::from([(200, 1)]));
        let (mut said, mut in_flight) = (Said::default(), 0);
        let mut distributed = RtHistogram::default();
        let entry = &view.entries[0];
        let histogram = view.histogram_of(entry);

        let moved = said.advance(0, entry, histogram, &mut in_flight, Some(&mut distributed));

        assert_eq!((moved.pass, distributed), (1, RtHistogram::default()));
    }
}
