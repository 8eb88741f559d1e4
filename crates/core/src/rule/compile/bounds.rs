//! What a rule's table of values may come to.
//!
//! The bytes are those that the table has when every entry of every set is in use ([`crate::ledger::set`]), so
//! that no traffic, however it is chosen, takes more than the operator has allowed.
//!
//! Rules that count per matched resource or caller say nothing of a capacity. They all get the same, the largest of
//! four with which all tables together stay within the bound: a set with one such rule and one with five thousand load
//! alike. The steps are far apart, so that a set rarely crosses one; when it does, these tables begin anew. It goes by the
//! set alone and not by what was before, so that one set means the same in every Envoy.

use crate::{
    ledger::set::{SET_MAX, sets_for},
    rule::{FlowRule, Keeps, Rule, TokenCalculate},
    window::WindowShape,
};

/// The name of an entry.
const HASH: u64 = 16;

/// What a warm-up keeps.
const WARM_UP: u64 = 32;

/// Workers that can hold permits of one value at a time, for the size of its entry: as many as Envoys commonly have.
const HOLDERS: u64 = 8;

/// How many matched resources or callers a rule keeps apart, from the most on. The first is Sentinel's size of a table
/// for concurrency, the last one set, which has room for 32.
pub const MATCHED_CAPACITIES: [u32; 4] = [4_000, 400, 64, 8];

/// How many matched resources or callers each such rule of a set keeps apart: the most with which all tables
/// together take no more than `most` bytes, or else the least there is.
pub fn matched_capacity<'r>(rules: &(impl Iterator<Item = &'r Rule> + Clone), most: u32) -> u32 {
    let fits = |capacity: &u32| {
        let all = rules.clone().map(|rule| table_bytes(rule, *capacity));
        all.fold(0, u64::saturating_add) <= u64::from(most)
    };
    let [.., least] = MATCHED_CAPACITIES;
    MATCHED_CAPACITIES.into_iter().find(fits).unwrap_or(least)
}

/// The most bytes that the rule's table takes in shared data; 0 if it has none. `matched`: how many matched
/// resources or callers a rule keeps apart.
pub fn table_bytes(rule: &Rule, matched: u32) -> u64 {
    let capacity = rule.table_capacity(matched);
    if capacity == 0 {
        return 0;
    }
    let entry = match rule.keeps() {
        Keeps::Nothing | Keeps::Breaker => 0,
        Keeps::Rate => rate(rule),
        Keeps::Pace => 9 + warm_up_window(rule),
        Keeps::Permits => 2 + HOLDERS * 24,
        Keeps::Bucket => 16,
    };
    // Besides its own a set has one entry that values without room share.
    let entries = u64::from(sets_for(capacity)).saturating_mul(SET_MAX as u64 + 1);
    entries.saturating_mul(HASH + entry)
}

/// A window of tokens.
fn rate(rule: &Rule) -> u64 {
    const WINDOW: u64 = 10;
    const BUCKET: u64 = 8;

    let Rule::Flow(flow) = rule else { return WINDOW + BUCKET };
    let buckets = u64::from(WindowShape::for_flow(flow.stat_interval_ms).buckets());
    // A warm-up has one bucket more, from which it knows what passed before.
    WINDOW + BUCKET * buckets + if warms_up(flow) { WARM_UP + BUCKET } else { 0 }
}

/// What a pace that warms up counts beside its slots.
fn warm_up_window(rule: &Rule) -> u64 {
    if let Rule::Flow(flow) = rule
        && warms_up(flow)
    {
        return rate(rule);
    }
    0
}

fn warms_up(rule: &FlowRule) -> bool {
    matches!(rule.calculate, TokenCalculate::WarmUp(_))
}
