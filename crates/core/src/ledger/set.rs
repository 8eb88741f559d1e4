//! A table of values in few keys of shared data.
//!
//! A key of Envoy's shared data can never be removed, so values have no keys of their own: a table is a fixed
//! number of *sets*, each one key, and a value's keyed hash says which. A set has room for [`SET_MAX`] entries
//! and tables are made so large that it holds [`SET_LOAD`] of them on average: that one fills up by chance
//! happens once in 10¹⁰. (The design has sets that are half full and a second choice; two keys for one value
//! need two compare-and-sets, between which two workers can give it two budgets. Entries that are not there
//! take no memory, so more sets cost only their keys.)
//!
//! An entry goes only when it carries no information: a value must not get a fresh budget by being forgotten.
//! When all are alive, new values share one entry (`overflow: share`) or are refused; as long as that entry is
//! alive, new values go on sharing it, so that nobody escapes from it with a fresh budget.

use alloc::vec::Vec;

use crate::rule::Overflow;

/// The most values in one set; besides them there can be the entry that the others share.
pub const SET_MAX: usize = 32;

/// How many values of a table's capacity there are to a set.
pub const SET_LOAD: u32 = 8;

/// One set of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSet<L> {
    /// Values by their hash; [`SHARED`] is the one that others share.
    pub entries: Vec<(u128, L)>,
}

/// The hash of no value.
pub const SHARED: u128 = 0;

/// How many sets a table for `capacity` values has.
pub fn sets_for(capacity: u32) -> u32 {
    capacity.div_ceil(SET_LOAD).max(1)
}

/// The set of a value in a table of `sets`: the remainder of its hash, the lower half of which counts more.
///
/// In four steps of a long division: one of 128 bits takes 1 KB of code.
pub fn set_of(hash: u128, sets: u32) -> u32 {
    let sets = u64::from(sets.max(1));
    let [low, high] =
        [hash, hash >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0));
    let rest = (low >> 32) % sets;
    let rest = (rest << 32 | low & 0xffff_ffff) % sets;
    let rest = (rest << 32 | high >> 32) % sets;
    let rest = (rest << 32 | high & 0xffff_ffff) % sets;
    u32::try_from(rest).unwrap_or(0)
}

impl<L> LedgerSet<L> {
    /// The ledger of the value with this hash, which is `new` if it is not there, and the hash it is kept under.
    /// `is_idle` says which entries carry no information any more. `None`: there is no room, and `overflow` is to block.
    pub fn ledger_of(
        &mut self,
        hash: u128,
        overflow: Overflow,
        is_idle: impl Fn(&L) -> bool,
        new: impl FnOnce() -> L,
    ) -> Option<(u128, &mut L)> {
        let hash = hash.max(1);
        let found = self.entries.iter().position(|(known, _)| *known == hash);
        let place = match found {
            Some(place) => place,
            None => {
                self.entries.retain(|(_, ledger)| !is_idle(ledger));
                let shared = self.entries.iter().position(|(known, _)| *known == SHARED);
                match (shared, overflow) {
                    (Some(place), _) => place,
                    (None, _) if self.entries.len() < SET_MAX => {
                        self.entries.push((hash, new()));
                        self.entries.len() - 1
                    }
                    (None, Overflow::Share) => {
                        self.entries.push((SHARED, new()));
                        self.entries.len() - 1
                    }
                    (None, Overflow::Block) => return None,
                }
            }
        };
        self.entries.get_mut(place).map(|(hash, ledger)| (*hash, ledger))
    }

    /// The ledger that the value with this hash has, if it has one: its own, or the one it may share.
    pub fn find(&mut self, hash: u128) -> Option<&mut L> {
        let hash = hash.max(1);
        let own = self.entries.iter().position(|(known, _)| *known == hash);
        let place = own.or_else(|| self.entries.iter().position(|(known, _)| *known == SHARED))?;
        self.entries.get_mut(place).map(|(_, ledger)| ledger)
    }
}

impl<L> Default for LedgerSet<L> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{
        ledger::bucket::{BucketLedger, BucketTerms, Taken},
        time::{Nanos, Span},
    };

    const THRESHOLD: u64 = 3;
    const TERMS: BucketTerms = BucketTerms { duration: Span::from_millis(1_000), burst: 2 };

    fn at(millis: u64) -> Nanos {
        Nanos::from_millis(1_900_000_020_000 + millis)
    }

    fn is_idle(now: Nanos) -> impl Fn(&BucketLedger) -> bool {
        move |bucket| bucket.is_idle(now, THRESHOLD, &TERMS)
    }

    fn takes(bucket: &mut BucketLedger, now: Nanos) -> bool {
        matches!(bucket.take(now, 1, THRESHOLD, &TERMS), Taken::From(_))
    }

    fn passes(
        set: &mut LedgerSet<BucketLedger>,
        hash: u128,
        now: Nanos,
        overflow: Overflow,
    ) -> bool {
        let ledger = set.ledger_of(hash, overflow, is_idle(now), BucketLedger::default);
        ledger.is_some_and(|(_, bucket)| takes(bucket, now))
    }

    /// Hashes as random as SipHash's (splitmix64, twice).
    fn hash(value: u64) -> u128 {
        let half = |seed: u64| {
            let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            u128::from(bits ^ (bits >> 31))
        };
        half(value.wrapping_add(1)) << 64 | half(!value)
    }

    fn full_set(now: Nanos) -> LedgerSet<BucketLedger> {
        let mut set = LedgerSet::default();
        for value in 1..=32 {
            assert!(passes(&mut set, value, now, Overflow::Block));
        }
        set
    }

    #[test]
    fn each_value_has_a_budget_of_its_own() {
        let mut set = LedgerSet::default();
        for value in [1, 2, u128::MAX] {
            let passed = (0..9).filter(|_| passes(&mut set, value, at(0), Overflow::Share)).count();
            assert_eq!(passed, 5, "value {value}");
        }
    }

    #[test]
    fn the_set_of_a_value_is_the_remainder_of_its_hash_with_halves_exchanged() {
        for value in 0..1_000 {
            for sets in [1, 2, 7, 2_500, 65_537, u32::MAX] {
                let expected = hash(value).rotate_right(64) % u128::from(sets);
                assert_eq!(u128::from(set_of(hash(value), sets)), expected, "{value} of {sets}");
            }
        }
        assert_eq!(set_of(u128::MAX, 0), 0);
    }

    #[test]
    fn a_value_with_the_hash_of_nobody_does_not_share() {
        let mut set = LedgerSet::default();
        assert!(passes(&mut set, SHARED, at(0), Overflow::Share));
        assert!(set.entries.iter().all(|(hash, _)| *hash != SHARED));
    }

    #[test]
    fn what_has_a_full_budget_again_makes_room() {
        let mut set = full_set(at(0));
        assert!(!passes(&mut set, 33, at(1_000), Overflow::Block));
        assert!(passes(&mut set, 33, at(1_001), Overflow::Block));
        assert_eq!(set.entries.len(), 1);
    }

    #[test]
    fn a_full_set_refuses_new_values_or_lets_them_share_one_budget() {
        let mut set = full_set(at(0));
        assert!(!passes(&mut set, 33, at(1), Overflow::Block));
        assert_eq!(set.entries.len(), SET_MAX);

        let shared =
            (33..50).filter(|value| passes(&mut set, *value, at(1), Overflow::Share)).count();
        assert_eq!((shared, set.entries.len()), (5, SET_MAX + 1));
        assert!(passes(&mut set, 32, at(1), Overflow::Share), "who has an entry keeps it");
    }

    #[test]
    fn who_shares_goes_on_sharing_until_the_shared_budget_is_full_again() {
        let mut set = full_set(at(0));
        assert_eq!(
            (33..50).filter(|value| passes(&mut set, *value, at(900), Overflow::Share)).count(),
            5
        );

        // The others are idle now and give room, but who shared has used up what there was.
        assert!(!passes(&mut set, 33, at(1_800), Overflow::Share));
        assert_eq!(set.entries.len(), 1);
        assert!(set.find(33).is_some_and(|bucket| bucket.tokens == 0));

        assert!(
            passes(&mut set, 33, at(1_901), Overflow::Share),
            "two durations would fill it: {set:?}"
        );
    }

    #[test]
    fn the_ledger_that_is_found_is_the_one_that_was_used() {
        let mut set = full_set(at(0));
        assert!(passes(&mut set, 33, at(1), Overflow::Share));
        let (own, shared) = (set.find(5).cloned(), set.find(33).cloned());
        assert_eq!(own.map(|bucket| bucket.filled), Some(at(0)));
        assert_eq!(shared.map(|bucket| bucket.filled), Some(at(1)));
        assert!(LedgerSet::<BucketLedger>::default().find(5).is_none());
    }

    #[test]
    fn a_table_has_room_for_its_capacity_in_sets_of_which_next_to_none_overflows() {
        for capacity in [1, 8, 9, 4_000, 20_000] {
            let sets = sets_for(capacity);
            assert_eq!(sets, capacity.div_ceil(8));
            let mut load = vec![0usize; sets as usize];
            for value in 0..u64::from(capacity) {
                load[set_of(hash(value), sets) as usize] += 1;
            }
            assert!(load.iter().all(|values| *values <= SET_MAX), "capacity {capacity}: {load:?}");
        }
        assert_eq!((sets_for(0), set_of(hash(7), 0)), (1, 0));
    }

    /// In a table that is a thousand times too small.
    #[test]
    fn a_million_values_give_nobody_a_fresh_budget_and_make_nothing_grow() {
        const VALUES: u64 = 1_000_000;
        const STEPS_PER_MILLI: u64 = 200;
        let sets = sets_for(1_000);
        let mut table = vec![LedgerSet::<BucketLedger>::default(); sets as usize];
        let mut ask = |value: u64, now: Nanos| {
            let hash = hash(value);
            let set = &mut table[set_of(hash, sets) as usize];
            let passed = passes(set, hash, now, Overflow::Share);
            assert!(set.entries.len() <= SET_MAX + 1);
            passed
        };
        // One asks from the beginning, the other only when there is no room any more: what each would get alone.
        let (early, late) = (VALUES + 1, VALUES + 2);
        let mut alone = [BucketLedger::default(); 2];
        let (mut passed, mut allowed) = ([0; 2], [0; 2]);
        for value in 0..VALUES {
            let now = at(value / STEPS_PER_MILLI);
            ask(value, now);
            if value % 50 == 0 {
                for (who, asking) in [(0, early), (1, late)] {
                    if who == 0 || value > VALUES / 2 {
                        passed[who] += u64::from(ask(asking, now));
                        allowed[who] += u64::from(takes(&mut alone[who], now));
                    }
                }
            }
        }
        assert_eq!(passed[0], allowed[0]);
        assert!(passed[1] <= allowed[1], "{passed:?} of {allowed:?}");
        assert!(allowed[0] >= 5 + 3 * 4, "five seconds' worth: {allowed:?}");
    }
}
