//! What a rule's table of values may come to.
//!
//! The bytes are those that the table has when every entry of every set is in use ([`crate::ledger::set`]), so
//! that no traffic, however it is chosen, takes more than the operator has allowed.

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

/// The most bytes that the rule's table takes in shared data; 0 if it has none.
pub fn table_bytes(rule: &Rule) -> u64 {
    let capacity = rule.table_capacity();
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
