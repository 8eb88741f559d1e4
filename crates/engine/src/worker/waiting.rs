//! Requests that wait for their slot.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::cmp::Ordering;

use sentinel_core::time::Nanos;

use super::Worker;
use crate::rulebook::RuleBook;

/// The next one first.
pub(super) type Queue = BinaryHeap<Waiting>;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) until: Nanos,
    pub(super) stream: u32,
    /// By generation, the rules that let it wait, and its slot with each.
    slots: Vec<(u64, Nanos)>,
}

impl Waiting {
    /// A request that goes when all of `slots` are there.
    pub(super) fn new(stream: u32, slots: Vec<(u64, Nanos)>) -> Self {
        Self { until: last(&slots), stream, slots }
    }
}

/// The time of the last slot.
#[inline(always)]
pub(super) fn last(slots: &[(u64, Nanos)]) -> Nanos {
    slots.iter().map(|(_, at)| *at).max().unwrap_or_default()
}

impl Worker {
    /// Lets nobody wait for a rule that is gone, or that only counts by now. Who waits for others keeps his slots.
    pub(super) fn release_waiting(&mut self) {
        let book = &self.book;
        let waiting = core::mem::take(&mut self.waiting).into_iter().map(|mut request| {
            request.slots.retain(|(generation, _)| lets_wait(book, *generation));
            Waiting::new(request.stream, request.slots)
        });
        self.waiting = waiting.collect();
    }
}

fn lets_wait(book: &RuleBook, generation: u64) -> bool {
    let state = book.index_of(generation).and_then(|index| book.rule(index));
    state.is_some_and(|state| !state.rule.common().shadow)
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.until, other.stream).cmp(&(self.until, self.stream))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}
