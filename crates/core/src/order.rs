//! One sort for a whole module.
//!
//! The standard library's sort is 4 KB, for each type and each order again. What we sort is never on a request's way, so
//! all of it goes through one, which is half as fast and a tenth as large.

use alloc::vec::Vec;
use core::cmp::Ordering;

/// The indexes from 0 to `count` in the order that `compare` gives; equal ones stay as they are.
pub fn order_of(count: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut merged = Vec::with_capacity(count);
    // Runs of one, of two, of four … in order, until one run is all.
    let mut run = 1;
    while run < count {
        for pair in order.chunks(run.saturating_mul(2)) {
            let (mut left, mut right) = pair.split_at_checked(run).unwrap_or((pair, &[]));
            while let (Some((&a, left_rest)), Some((&b, right_rest))) =
                (left.split_first(), right.split_first())
            {
                if compare(a, b).is_le() {
                    merged.push(a);
                    left = left_rest;
                } else {
                    merged.push(b);
                    right = right_rest;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        core::mem::swap(&mut order, &mut merged);
        merged.clear();
        run = run.saturating_mul(2);
    }
    order
}

/// Puts `items` in the order that `compare` gives; equal ones stay as they are.
pub fn sort_by<T>(items: &mut Vec<T>, compare: impl Fn(&T, &T) -> Ordering) {
    let order = order_of(items.len(), &|a, b| match (items.get(a), items.get(b)) {
        (Some(a), Some(b)) => compare(a, b),
        (None, _) | (_, None) => Ordering::Equal,
    });
    let mut taken: Vec<Option<T>> = items.drain(..).map(Some).collect();
    items.extend(order.into_iter().filter_map(|index| taken.get_mut(index).and_then(Option::take)));
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_sorts_as_the_standard_library_does(items in prop::collection::vec((0u8..5, 0u8..5), 0..50)) {
            let mut ours: Vec<(u8, u8)> = items.clone();
            sort_by(&mut ours, |a, b| a.0.cmp(&b.0));
            let mut theirs = items;
            theirs.sort_by_key(|item| item.0);
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn nothing_is_in_order() {
        let mut nothing: Vec<u8> = vec![];
        sort_by(&mut nothing, Ord::cmp);
        assert!(nothing.is_empty());
    }
}
