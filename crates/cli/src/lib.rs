//! What the commands that need no proxy are made of, natively and with the engine that ships.

#![forbid(unsafe_code)]

pub mod check;
pub mod explain;
mod filter;
mod limit;
pub mod replay;
pub mod schema;
pub mod top;

use anyhow::{Result, anyhow};
use sentinel_core::{
    config::ServiceConfig, ledger::set::sets_for, rule::compile::matched_capacity,
};
use sentinel_engine::document;
use sentinel_wire::rules::{RuleEntry, RuleSetHeader, encode};

/// How many bytes the set has that the service publishes of a configuration, and that each worker copies.
///
/// # Errors
/// If the configuration is refused, or the set is larger than a value may be.
pub fn published_bytes(configuration: &[u8]) -> Result<usize> {
    let node = document::configuration(configuration)
        .map_err(|error| anyhow!("{}", error.in_source("configuration")))?;
    let config = ServiceConfig::from_node(&node).map_err(|refusals| anyhow!("{refusals}"))?;
    let matched = matched_capacity(&config.rules.iter(), config.settings.param_table_bytes);
    let entry = |(slot, rule)| {
        let capacity = sentinel_core::rule::Rule::table_capacity(rule, matched);
        let sets = if capacity == 0 { 0 } else { sets_for(capacity) };
        RuleEntry {
            slot: if sets > 0 { slot * sets } else { slot },
            sets,
            generation: slot.into(),
            rule,
        }
    };
    let entries: Vec<_> = (0_u32..).zip(&config.rules).map(entry).collect();
    let header = RuleSetHeader {
        version: 1,
        settings: config.settings.clone(),
        metrics_resources: config.metrics_resources.clone(),
        ..RuleSetHeader::default()
    };
    encode(&header, &entries).map(|bytes| bytes.len()).ok_or_else(|| anyhow!("it is too large"))
}
